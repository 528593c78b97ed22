"""What goes through the layers of any model: moments of features, and the errors of new layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.moments import Moments, ranked_directions
from fastlr.nn.compression.partial_outputs import PartialOutputs, has_partial_outputs
from fastlr.nn.compression.solver import solve
from fastlr.nn.compression.windows import CONVOLUTIONS, by_place, has_small_windows, windows
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision, is_dense_linear

# Outputs are compared so many at a time.
_CHUNK = 4096


@dataclass(frozen=True)
class Features:
    """The principal components of what a layer adds to its bias, W x, in groups.

    Attributes
    ----------
    mean : Tensor of shape (g, o)
        Of W x.
    basis : Tensor of shape (g, o, k)
        Orthonormal columns, the most energy first.
    energies : Tensor of shape (k,)
        Sums of squares about the mean in each direction, those of all groups together.
    windows : Moments or None
        Of the inputs x of a convolution, where those are short.
    partial : PartialOutputs or None
        Of a convolution, where they are long.
    """

    mean: Tensor
    basis: Tensor
    energies: Tensor
    windows: Moments | None = None
    partial: PartialOutputs | None = None


@contextmanager
def hearing(
    layers: Mapping[str, nn.Module], hear: Callable[[str, tuple[Any, ...], Any, Tensor], None]
) -> Iterator[None]:
    """Tell `hear` the name, arguments, keywords and output of each layer when it is called."""

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            hear(name, args, kwargs, output)

        return listen

    handles = [
        module.register_forward_hook(listener(name), with_kwargs=True)
        for name, module in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Collector:
    """The moments of the outputs of layers, or of their inputs.

    Of inputs where a linear layer has fewer of them, and where those of the windows of a
    convolution take at most 64 MiB; of other convolutions also those of partial outputs where these
    take at most 64 MiB. Of embeddings it counts the tokens.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.moments: dict[str, Moments] = {}
        self.partial: dict[str, PartialOutputs] = {}
        self.counts: dict[str, Tensor] = {}
        self.called: set[str] = set()

    def collect(self, run: Callable[[], Iterable[None]]) -> int:
        """`run` makes the batches pass, one after the other. How many there were."""
        batches = 0
        with hearing(self.layers, self._hear):
            for _ in run():
                for name in self.moments:
                    if not self._finite(name):
                        raise ValueError(
                            f"inputs: batch {batches} (counted from 0) makes features of layer "
                            f"{name!r} that are not finite; nothing was changed"
                        )
                batches += 1
        return batches

    def features(self, name: str) -> Features | None:
        """None of a layer that was never called."""
        moments = self.moments.get(name)
        if moments is None:
            return None
        layer = self.layers[name]
        weight = weight_by_groups(layer)
        if is_dense_linear(layer) and _by_inputs(layer):
            solution = solve(weight[0], moments.covariance[0])
            mean = (weight[0] @ moments.mean[0])[None]
            return Features(mean, solution.basis[None], solution.energies * solution.total)
        if _by_inputs(layer):
            mean = (weight @ moments.mean[..., None])[..., 0]
            found = _components(mean, weight @ moments.covariance @ weight.mT, weight)
            return replace(found, windows=moments)
        mean, bias = moments.mean, dense_bias(layer)
        if bias is not None:
            mean = mean - high_precision(bias).reshape(mean.shape)
        found = _components(mean, moments.covariance, weight)
        return replace(found, partial=self.partial.get(name))

    def _hear(self, name: str, args: tuple[Any, ...], kwargs: Any, output: Tensor) -> None:
        layer = self.layers[name]
        self.called.add(name)
        given = args[0] if args else kwargs.get("input")
        if isinstance(layer, nn.Embedding):
            counts = torch.bincount(given.flatten(), minlength=layer.num_embeddings)
            self.counts[name] = self.counts.get(name, 0) + counts
        elif not isinstance(layer, nn.Bilinear):
            for rows in _vectors(layer, given, output):
                if len(rows):
                    self.moments.setdefault(name, Moments.about(rows)).add(rows)
            # What is not finite is told after the batch.
            if has_partial_outputs(layer) and output.numel() and self._finite(name):
                if name not in self.partial:
                    self.partial[name] = PartialOutputs(layer, given)
                self.partial[name].add(given)

    def _finite(self, name: str) -> bool:
        return bool(torch.isfinite(self.moments[name].total).all())


class ErrorMeter:
    """Σ ‖y − y'‖² over the outputs y of layers and y' of new ones, and Σ ‖y − centre‖²."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        replacements: Mapping[str, nn.Module],
        centres: Mapping[str, Tensor],
    ) -> None:
        self.layers = {name: layers[name] for name in replacements}
        self.replacements = replacements
        self.centres = centres
        self.lost: dict[str, float] = {}
        self.whole: dict[str, float] = {}

    def measure(self, run: Callable[[], Iterable[None]]) -> dict[str, float]:
        """Relative errors of the layers that were called."""
        with hearing(self.layers, self._hear):
            for _ in run():
                pass
        return {
            name: lost / self.whole[name] if self.whole[name] > 0 else lost
            for name, lost in self.lost.items()
        }

    def _hear(self, name: str, args: tuple[Any, ...], kwargs: Any, output: Tensor) -> None:
        new = self.replacements[name](*args, **kwargs)
        centre = self.centres.get(name)
        layer = self.layers[name]
        rows = output.reshape(-1, output.shape[-1])[:, None]
        others = new.reshape(-1, output.shape[-1])[:, None]
        if isinstance(layer, CONVOLUTIONS):
            rows, others = _rows(layer, output), _rows(layer, new)
        for start in range(0, len(rows), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            exact = high_precision(rows[chunk])
            lost = float((exact - high_precision(others[chunk])).square().sum())
            whole = exact if centre is None else exact - centre
            self.lost[name] = self.lost.get(name, 0.0) + lost
            self.whole[name] = self.whole.get(name, 0.0) + float(whole.square().sum())


def weight_by_groups(layer: nn.Module) -> Tensor:
    """The weight as matrices, g × o/g × the rest, float64."""
    if is_dense_linear(layer):
        return high_precision(dense_weight(layer))[None]
    conv: Any = layer
    return high_precision(conv.weight).reshape(conv.groups, conv.out_channels // conv.groups, -1)


def _components(mean: Tensor, covariance: Tensor, weight: Tensor) -> Features:
    basis = ranked_directions(covariance, weight)
    energies = torch.einsum("gok,gop,gpk->k", basis, covariance, basis).clamp(min=0)
    return Features(mean, basis, energies)


def _by_inputs(layer: nn.Module) -> bool:
    """Whether a linear layer has fewer inputs than outputs, or a convolution small windows."""
    if not is_dense_linear(layer):
        return has_small_windows(layer)
    out_features, in_features = dense_weight(layer).shape
    return in_features < out_features


def _vectors(layer: nn.Module, given: Tensor, output: Tensor) -> Iterable[Tensor]:
    """What moments are collected of, in parts of n × groups × their length."""
    if not _by_inputs(layer):
        return [_rows(layer, output)]
    return [_rows(layer, given)] if is_dense_linear(layer) else windows(layer, given)


def _rows(layer: nn.Module, values: Tensor) -> Tensor:
    """The vectors in a tensor of inputs or outputs, n × groups × their length."""
    values = values.detach()
    if isinstance(layer, CONVOLUTIONS):
        return by_place(layer, values)
    return values.reshape(-1, 1, values.shape[-1])
