"""Compressing any module: a plan that can be looked at and changed, and what it does."""

from __future__ import annotations

import math
import time
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.allocation import Budget, allocate
from fastlr.nn.compression.features import Collector, ErrorMeter
from fastlr.nn.compression.interrupt import interrupt_deferred
from fastlr.nn.compression.module_layers import FoundLayer, find_layers
from fastlr.nn.compression.offers import Rank, offer_of
from fastlr.nn.compression.planned_layer import PlannedLayer
from fastlr.nn.compression.report import CompressionReport, ModelSize
from fastlr.nn.compression.targets import matches
from fastlr.nn.evaluate import evaluation_mode
from fastlr.nn.modules.replace import replace_modules

UNCHANGED = "compress was interrupted; the module is as it was before the call"
COMPLETED = "compress was interrupted after its last step; the module is fully compressed"
NEVER_CALLED = "it was never called with these inputs"

_ALLOCATIONS = ("knapsack", "product", "uniform")

Forward = Callable[[nn.Module, Any], Any]
Ranks = Mapping[str, Rank]


class CompressionPlan:
    """What :func:`fastlr.nn.compress` would do with a module: a mapping from names to layers.

    Nothing is changed before :meth:`apply`. Layers can be given other sizes until then, see
    :class:`PlannedLayer`.

    Attributes
    ----------
    module : nn.Module
    method : str
        "features" or "weights".

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import plan
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Flatten(),
    ...                             torch.nn.Linear(32, 10))
    >>> planned = plan(model, ratio=0.4)
    >>> list(planned), planned.parameters_before
    (['0', '2'], 1184)
    >>> planned["2"].keep_dense()
    >>> planned["0"].choose(ratio=0.5)
    >>> model = planned.apply()
    >>> [layer.form for layer in model.fastlr_report.layers][1], type(model[2]).__name__
    ('dense', 'Linear')
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[PlannedLayer],
        method: str,
        allocation: str,
        run: Callable[[], Iterator[None]] | None,
        inputs: int,
        seconds: dict[str, float],
        asked: float | None,
    ) -> None:
        self.module = module
        self.method = method
        self._layers = {layer.name: layer for layer in layers}
        self._allocation = allocation
        self._run = run
        self._inputs = inputs
        self._seconds = seconds
        self._asked = asked
        self._applied = False

    def __getitem__(self, name: str) -> PlannedLayer:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def keys(self) -> KeysView[str]:
        """The names of the layers."""
        return self._layers.keys()

    def values(self) -> ValuesView[PlannedLayer]:
        """The layers."""
        return self._layers.values()

    def items(self) -> ItemsView[str, PlannedLayer]:
        """Names and layers."""
        return self._layers.items()

    @property
    def parameters_before(self) -> int:
        """Of the weights of all layers that can be compressed."""
        return sum(layer.parameters_before for layer in self._able())

    @property
    def parameters_after(self) -> int:
        """The same with the new ones."""
        return sum(layer.parameters_after for layer in self._able())

    @property
    def ratio(self) -> float:
        """The share of them that goes."""
        return 1 - self.parameters_after / self.parameters_before

    def apply(self) -> nn.Module:
        """Put the new layers into the module.

        Returns
        -------
        nn.Module
            The module itself, or the new layer if the module is one layer; with
            ``fastlr_report``, a :class:`~fastlr.nn.CompressionReport`. With inputs they go
            through the dense module once more, and the report has the errors that the new layers
            make of them.

        Raises
        ------
        ValueError
            If the plan has been applied before.
        KeyboardInterrupt
            On Ctrl-C, before anything is changed or after everything is.
        """
        if self._applied:
            raise ValueError("apply: this plan has been applied already")
        start = time.perf_counter()
        try:
            built = {name: layer.build() for name, layer in self._layers.items()}
            measured = self._measured(built)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(UNCHANGED) from None
        seen = self._run is not None
        reports = [
            layer.report(built[layer.name].get(layer.name), measured.get(layer.name), observed=seen)
            for layer in self._able()
        ]
        before = ModelSize.of(self.module)
        replacements = {name: new for layers in built.values() for name, new in layers.items()}
        with interrupt_deferred(COMPLETED):
            module = _replaced(self.module, replacements)
            self._applied = True
            seconds = {**self._seconds, "factorization": time.perf_counter() - start}
            seconds["total"] = math.fsum(seconds.values())
            module.__dict__["fastlr_report"] = CompressionReport(
                self.method,
                ", ".join(sorted({report.form for report in reports} - {"dense"})) or "dense",
                self._allocation,
                self.ratio if self._asked is None else self._asked,
                reports,
                before,
                ModelSize.of(module),
                self._inputs,
                seconds,
                calibration_unit="batches",
            )
        return module

    def _able(self) -> list[PlannedLayer]:
        return [layer for layer in self._layers.values() if layer.offer is not None]

    def _measured(self, built: Mapping[str, Mapping[str, nn.Module]]) -> dict[str, float]:
        if self._run is None:
            return {}
        layers = {name: layer.found.layer for name, layer in self._layers.items()}
        new = {name: modules[name] for name, modules in built.items() if modules}
        centres = {
            name: layer.centre for name, layer in self._layers.items() if layer.centre is not None
        }
        with torch.no_grad(), evaluation_mode(self.module):
            for module in new.values():
                module.eval()
            found = ErrorMeter(layers, new, centres).measure(self._run)
        return found

    def __str__(self) -> str:
        width = max(len("layer"), *(len(name) for name in self._layers))
        lines = [
            f"plan: {self.method}, {self._allocation}, {self.parameters_before:,} → "
            f"{self.parameters_after:,} parameters (−{self.ratio:.1%})",
            f"{'layer':<{width}}  {'kind':<9}  {'shape':>17}  {'form':<13}  {'rank':>9}  "
            f"{'parameters':>22}  {'error':>9}  note",
        ]
        for name, layer in self._layers.items():
            rank = "–" if layer.rank is None else str(layer.rank)
            note = f"  {layer.note}" if layer.note else ""
            lines.append(
                f"{name:<{width}}  {layer.kind:<9}  {'×'.join(map(str, layer.shape)):>17}  "
                f"{layer.form:<13}  {rank:>9}  {layer.parameters_before:>10} →"
                f"{layer.parameters_after:>10}  {layer.predicted_error:>9.3e}{note}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"CompressionPlan({type(self.module).__name__}, {len(self)} layers, "
            f"{self.parameters_before} → {self.parameters_after} numbers)"
        )


def plan(
    module: nn.Module,
    inputs: Any = None,
    *,
    ratio: float | None = None,
    tol: float | None = None,
    ranks: Ranks | None = None,
    method: str = "auto",
    form: str = "interpolative",
    allocation: str | Mapping[str, float] | None = None,
    targets: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    forward: Forward | None = None,
) -> CompressionPlan:
    """Preview what :func:`fastlr.nn.compress` does: ranks, sizes and predicted errors.

    Parameters
    ----------
    module, inputs, ratio, tol, ranks, method, form, allocation, targets, ignore, forward
        As in :func:`fastlr.nn.compress`. `module` is not changed.

    Returns
    -------
    CompressionPlan
        A mapping from the names of layers; it can be printed, changed and applied.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastlr.nn.compress`.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import plan
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(),
    ...                             torch.nn.Linear(64, 10))
    >>> planned = plan(model, torch.ones(2, 64), ranks={"0": 8})
    >>> planned["0"].rank, planned["2"].rank, planned.parameters_after
    (8, None, 1600)
    """
    start = time.perf_counter()
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    _check_goal(ratio, tol, ranks)
    if method not in ("auto", "features", "weights"):
        raise ValueError(f'method must be "auto", "features" or "weights", got {method!r}')
    if method == "features" and inputs is None:
        raise ValueError('method="features" needs inputs')
    if form not in ("interpolative", "factored"):
        raise ValueError(f'form must be "interpolative" or "factored", got {form!r}')
    if not isinstance(allocation, Mapping) and allocation not in (None, *_ALLOCATIONS):
        raise ValueError(
            f"allocation must be one of {', '.join(_ALLOCATIONS)} or a mapping, got {allocation!r}"
        )
    found = find_layers(module, targets, ignore)
    run = None if inputs is None else _passes(module, inputs, forward or _call)
    name = "weights" if run is None or method == "weights" else "features"
    able = {layer.name: layer.layer for layer in found if not layer.obstacle}
    collector = Collector(able)
    counted = 0
    if run is not None:
        with torch.no_grad(), evaluation_mode(module):
            counted = collector.collect(run)
    seconds = {"statistics": time.perf_counter() - start}
    start = time.perf_counter()
    layers = [_planned(layer, collector, name, form, run is not None) for layer in found]
    planned = CompressionPlan(module, layers, name, "", run, counted, seconds, ratio)
    if allocation is None:
        allocation = "product" if name == "features" else "knapsack"
    planned._allocation = _allocated(planned._able(), ratio, tol, ranks, allocation)
    seconds["measuring"] = time.perf_counter() - start
    return planned


def compress(
    module: nn.Module,
    inputs: Any = None,
    *,
    ratio: float | None = None,
    tol: float | None = None,
    ranks: Ranks | None = None,
    method: str = "auto",
    form: str = "interpolative",
    allocation: str | Mapping[str, float] | None = None,
    targets: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    forward: Forward | None = None,
) -> nn.Module:
    """Replace the linear, convolution, embedding and bilinear layers of any module by smaller ones.

    With inputs, a layer keeps the directions in which its outputs vary most on them, and its bias
    takes up the mean of the others; without, it is near to the dense weight.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place. Any float dtype, on any device, in any mode (features are those of the
        evaluation mode).
    inputs : optional
        A tensor: one batch. Or batches, for instance a DataLoader. A batch is a tensor; a tuple or
        list, of which the first is the input (and the rest are labels); or a mapping of keyword
        arguments. Tensors are moved to the device of the module. An iterator is read into memory.
    ratio : float
        The share of the numbers of all these layers' weights to remove, between 0 and 1.
    tol : float
        The relative error that each layer may have, not squared: of the features about their mean,
        or of the weight.
    ranks : mapping from names or patterns to int (pair of int for a Tucker split)
        Other layers stay dense. One of `ratio`, `tol` and `ranks` is to be given.
    method : {"auto", "features", "weights"}
        "features" needs `inputs`, and is "auto" with them.
    form : {"interpolative", "factored"}
        How linear layers are stored, see :func:`fastlr.nn.compress_llm`.
    allocation : {"product", "knapsack", "uniform"} or mapping, optional
        How a `ratio` is shared. "product": so that the product of the shares of energy that the
        layers keep is largest (the default with features); "knapsack": the least sum of relative
        errors, none far above their mean (the default without); "uniform": the same share from
        each; or a mapping from names or patterns to the share to remove.
    targets, ignore : str or list of str, optional
        Names, ends of names or patterns of the layers to compress, and to leave alone.
    forward : callable, optional
        (module, batch): called for each batch, where a batch is something else.

    Returns
    -------
    torch.nn.Module
        `module`, or a new layer if `module` is one; with ``fastlr_report``, a
        :class:`CompressionReport`.

    Raises
    ------
    TypeError
        If `module` is no module, or an argument of another type.
    ValueError
        If not one of `ratio`, `tol` and `ranks` is given or one is out of range, nothing matches,
        or an entry of a weight or a feature is not finite.
    KeyboardInterrupt
        On Ctrl-C. Its message says whether the module is as it was, or fully compressed.

    See Also
    --------
    plan : the same, to look at first.
    compress_llm : for language models, with a model of the loss.

    Notes
    -----
    "features": principal components of each layer's outputs about their mean, at all places of a
    convolution [1]_: W' = U Uᵀ W and b' = b + (I − U Uᵀ) E[W x], the least E‖y − y'‖² of its rank
    on these inputs. Convolutions become the whole kernel to r channels and a 1×1 one
    (``split="channel"``), or Tucker or spatial splits that are chosen by the same outputs,
    whichever does best. Linear layers become interpolative or factored ones,
    embeddings tables of low rank that weigh each token as often as it occurs (they have no bias).
    "weights": the least ‖W − W'‖_F of its size over all splits of a kernel. Bilinear layers always
    go by their weight.

    An embedding whose table is the weight of a linear layer stays tied to it. What is left alone,
    with a reason in the :func:`plan`: subclasses of these layers, layers with hooks or weights that
    others share, and, with inputs, layers that these never reach (so that a module that reads the
    weight of another, as ``nn.MultiheadAttention`` does, is safe). The fast path of
    ``nn.TransformerEncoderLayer``, which reads weights, is switched off where its layers are new.

    Cost: tokens·min(o, i)² multiply-adds in float64 for the moments of a linear layer, and one
    eigenproblem or SVD; the inputs pass twice, for the moments and for the errors of the new
    layers. Memory: 8·min(o, i)² bytes a layer. For a convolution with k > 1 entries in its kernel's
    window it is places·(i·k)²/g and up to 64 fits of o·(i·k)²/g, and 8·(i·k)²/g bytes, three times
    as much in the plan. Where 8·(i·k)²/g is more than 64 MiB it is once more the work
    of the layer and places·16·o²/g, and 128·o²/g bytes, without a fit and spatial splits; where
    these are more than 64 MiB, too, or k = 1, the channel split alone for places·o²/g and 8·o²/g
    bytes.

    References
    ----------
    .. [1] H. Yu, J. Wu, "Compressing transformers: features are low-rank, but weights are not!",
       AAAI 2023.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import compress
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(),
    ...                             torch.nn.Conv2d(32, 32, 3))
    >>> images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    >>> model = compress(model, images, ratio=0.5)
    >>> model.fastlr_report.ratio_achieved >= 0.5, type(model[2]).__name__
    (True, 'LowRankConv2d')
    """
    try:
        planned = plan(
            module,
            inputs,
            ratio=ratio,
            tol=tol,
            ranks=ranks,
            method=method,
            form=form,
            allocation=allocation,
            targets=targets,
            ignore=ignore,
            forward=forward,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(UNCHANGED) from None
    return planned.apply()


def _check_goal(ratio: Any, tol: Any, ranks: Any) -> None:
    if sum(given is not None for given in (ratio, tol, ranks)) != 1:
        raise ValueError(
            f"one of ratio, tol and ranks must be given, got ratio={ratio}, tol={tol}, "
            f"ranks={ranks}"
        )
    for name, value in (("ratio", ratio), ("tol", tol)):
        if value is not None and (not isinstance(value, int | float) or not 0 < value < 1):
            raise ValueError(f"{name} must be between 0 and 1, both excluded, got {value!r}")
    if ranks is not None and not isinstance(ranks, Mapping):
        raise TypeError(f"ranks must be a mapping from layers to ranks, got {ranks!r}")


def _planned(
    found: FoundLayer, collector: Collector, method: str, form: str, observed: bool
) -> PlannedLayer:
    if found.obstacle:
        return PlannedLayer(found, None)
    if observed and found.name not in collector.called:
        return PlannedLayer(found, None, NEVER_CALLED)
    by_features = method == "features"
    offer = offer_of(
        found.layer,
        collector.features(found.name) if by_features else None,
        collector.counts.get(found.name) if by_features else None,
        form,
    )
    if not bool((offer.sizes < offer.entries).any()):
        return PlannedLayer(found, None, "even rank 1 has no fewer numbers")
    return PlannedLayer(found, offer)


def _allocated(
    layers: Sequence[PlannedLayer],
    ratio: float | None,
    tol: float | None,
    ranks: Ranks | None,
    allocation: str | Mapping[str, float],
) -> str:
    """Choose for each layer; how that was done."""
    if ranks is not None:
        for pattern, rank in ranks.items():
            matching = [layer for layer in layers if matches(layer.name, [pattern])]
            if not matching:
                raise ValueError(f"ranks: no layer that can be compressed matches {pattern!r}")
            for layer in matching:
                layer.choose(rank=rank)
        return "given ranks"
    if tol is not None:
        for layer in layers:
            layer.choose(tol=tol)
        return f"tol {tol:g}"
    assert ratio is not None
    fronts = {layer.name: layer.front() for layer in layers}
    candidates = {name: front for name, (front, _) in fronts.items()}
    dense = {layer.name: layer.parameters_before for layer in layers}
    chosen = allocate(Budget(candidates, dense, ratio, {}), allocation)
    for layer in layers:
        layer.take(fronts[layer.name][1][chosen[layer.name]])
    return allocation if isinstance(allocation, str) else "given"


def _passes(module: nn.Module, inputs: Any, forward: Forward) -> Callable[[], Iterator[None]]:
    """Something that makes all batches pass, one at a time, whenever it is called."""
    batches = [inputs] if isinstance(inputs, Tensor | Mapping) else inputs
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"inputs must be a tensor, a mapping or batches of them, got {type(inputs).__name__}"
        )
    if iter(batches) is batches:
        batches = list(batches)

    def run() -> Iterator[None]:
        empty = True
        for batch in batches:
            forward(module, batch)
            empty = False
            yield
        if empty:
            raise ValueError("inputs must hold a batch, got none")

    return run


def _call(module: nn.Module, batch: Any) -> None:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if isinstance(batch, Mapping):
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        module(**moved)
        return
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor):
        raise TypeError(
            "inputs: a batch must be a tensor, a tuple or list that begins with one, or a mapping "
            f"(give forward= for others), got {type(batch).__name__}"
        )
    module(first.to(device))


def _replaced(module: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    if "" in replacements:
        return replacements[""]
    replace_modules(module, replacements)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.TransformerEncoderLayer) and any(
            f"{name}.{linear}".lstrip(".") in replacements for linear in ("linear1", "linear2")
        ):
            # Torch's fast path reads the weights of the two; it is for these activations alone.
            layer.activation_relu_or_gelu = 0
    return module
