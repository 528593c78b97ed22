"""Corrections of low rank for a model that was quantized or pruned."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastlr.linalg._warnings import warn
from fastlr.nn import hf
from fastlr.nn.compression.blocks import BlockStack, find_blocks
from fastlr.nn.compression.calibration import Calibration, calibration_batches
from fastlr.nn.compression.compensation_report import CompensationReport, CorrectionReport
from fastlr.nn.compression.engine import require_unquantized
from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.interrupt import interrupt_deferred
from fastlr.nn.compression.layer_report import relative_error
from fastlr.nn.compression.model_kind import require_causal_lm
from fastlr.nn.compression.rank_budget import shared_ranks
from fastlr.nn.compression.solver import require_finite, solve
from fastlr.nn.compression.statistics import Grams, Statistics, collect_statistics
from fastlr.nn.compression.targets import find_targets
from fastlr.nn.evaluate import evaluation_mode
from fastlr.nn.modules.applied_weight import applied_weight, layer_sizes
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.corrected_linear import CorrectedLinear
from fastlr.nn.modules.dense import dense_weight, high_precision
from fastlr.nn.modules.rank_choice import check_common_rank
from fastlr.nn.modules.replace import replace_modules
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEVER_CALLED = "its input never occurred in the calibration: corrected by its weight alone"
NOT_WEIGHED = "its input never occurred in the calibration: left as it was"
UNCHANGED = "compensate was interrupted; the model is as it was before the call"
COMPLETED = "compensate was interrupted after its last step; the model is fully corrected"


def compensate(
    model: PreTrainedModel,
    original: PreTrainedModel,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    calibration: Calibration | Statistics = None,
    tokenizer: Any = None,
    samples: int = 64,
    seq_len: int = 512,
    targets: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] = ("lm_head",),
    seed: int = 0,
    progress: bool = True,
) -> PreTrainedModel:
    """Correct the layers of a quantized or pruned model by maps of low rank.

    For each linear layer, with the weight W of the original and Ŵ of the lossy model, the B A of a
    given rank with the least ‖(W − Ŵ − B A)X‖ over the layer's inputs X on calibration text.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The lossy model, changed in place: its layers stay as they are, inside of
        :class:`CorrectedLinear`. They may be dense layers with rounded or pruned weights, layers of
        bitsandbytes, torchao or another quantizer, or of this package; whatever maps linearly.
    original : transformers.PreTrainedModel
        What it was made from, in any float dtype; not changed.
    rank : int, optional
        Of every correction, at least 1 (and at most the smaller side of a layer). One of `rank` and
        `ratio` is given.
    ratio : float, optional
        What all corrections may store, as a share of the entries of these layers' weights, between
        0 and 1. The layers share it so that the sum of their relative errors is least.
    calibration : optional
        As in :func:`fastlr.nn.compress_llm`; None lets the original write the text. Or
        :class:`~fastlr.nn.compression.Statistics` from
        :func:`~fastlr.nn.compression.calibrate`, of either model: otherwise the inputs X are those
        in the lossy model.
    tokenizer, samples, seq_len, targets, ignore, seed, progress
        As in :func:`fastlr.nn.compress_llm`; `targets` and `ignore` are of layers of the original.

    Returns
    -------
    transformers.PreTrainedModel
        `model` itself, with ``model.fastlr_report``, a :class:`CompensationReport`.

    Raises
    ------
    TypeError
        If a model is no transformers model, a layer tells no sizes, `rank` is no integer, or
        `calibration` none of the accepted kinds.
    ValueError
        If not one of `rank` and `ratio` is given or it is out of range; if the models do not fit
        together or do not differ; if `original` is quantized or compressed, or a layer of `model`
        is not linear or corrected already; if an argument names nothing known, or the calibration
        text cannot be used. Nothing is changed then.
    KeyboardInterrupt
        On Ctrl-C. Its message says which of the two states the model is in: as it was, or fully
        corrected.

    Warns
    -----
    UserWarning
        For a layer whose input never occurred: with `rank` it is corrected by its weight alone,
        with `ratio` left as it was.

    See Also
    --------
    fastlr.nn.to_peft : the corrections as an adapter of PEFT.
    fastlr.nn.merge : the corrections in the weights.

    Notes
    -----
    The problem is that of [1]_. With G = X Xᵀ and the leading eigenvectors U of (W − Ŵ) G (W − Ŵ)ᵀ,
    B = U and A = Uᵀ(W − Ŵ) solve it, without an inverse of a root of G:
    :func:`fastlr.nn.compression.solve`. The bias is that of the lossy layer.

    One pass through the blocks of the lossy model, tokens·i² multiply-adds for each distinct input.
    Then 2·o·i·(o + i) flops and an eigenproblem of size min(o, i) a layer, twice with `ratio`. A
    layer that keeps its weight in a form of its own is asked by applying it to i unit vectors. In
    memory: both models, the Gram matrices of all layers (8·i² bytes each), the corrections.

    A model whose layers are all dense, or of this package, can be saved by ``save_pretrained`` and
    loaded again. Of one with layers of another quantizer ``save_pretrained`` raises ValueError, as
    that one's loader knows no corrections; save them by :func:`fastlr.nn.to_peft`, for the lossy
    model.

    References
    ----------
    .. [1] S.-Y. Liu, M. Khadkevich, N. C. Fung, C. Sakr, C.-H. H. Yang, C.-Y. Wang, S.
       Muralidharan, H. Yin, K.-T. Cheng, J. Kautz, Y.-C. F. Wang, P. Molchanov, M.-H. Chen, "EoRA:
       Fine-tuning-free compensation for compressed LLM with eigenspace low-rank approximation",
       arXiv:2410.21271, 2024.

    Examples
    --------
    >>> import copy, torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compensate
    >>> original = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4)).eval()
    >>> lossy = copy.deepcopy(original)
    >>> with torch.no_grad():
    ...     for layer in lossy.model.layers[0].mlp.children():
    ...         if isinstance(layer, torch.nn.Linear):  # keep the larger half of the weights
    ...             _ = layer.weight.mul_(layer.weight.abs() > layer.weight.abs().median())
    >>> lossy = compensate(lossy, original, rank=8, calibration=torch.arange(64), seq_len=16,
    ...                    samples=4, targets="model.layers.*.mlp.*", progress=False)
    >>> report = lossy.fastlr_report
    >>> report.mean_error_after < 0.5 * report.mean_error_before
    True
    >>> type(lossy.model.layers[0].mlp.up_proj).__name__
    'CorrectedLinear'
    """
    start = time.perf_counter()
    require_causal_lm(model)
    require_causal_lm(original, "original")
    require_unquantized(original, "original")
    _check_size(rank, ratio)
    pairs = _pairs(model, original, targets, ignore)
    try:
        with Progress(progress) as bar, evaluation_mode(model), evaluation_mode(original):
            if isinstance(calibration, Statistics):
                statistics = calibration
            else:
                batches = calibration_batches(
                    original,
                    calibration,
                    tokenizer=tokenizer,
                    samples=samples,
                    seq_len=seq_len,
                    seed=seed,
                    bar=bar,
                )
                stack = find_blocks(model)
                statistics = collect_statistics(model, stack, _by_block(stack, pairs), batches, bar)
            corrections = _corrections(pairs, statistics.grams, rank, ratio, bar)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(UNCHANGED) from None
    with interrupt_deferred(COMPLETED):
        replace_modules(model, {name: c.layer for name, c in corrections.items() if c.layer})
        hf.describe_corrected(model)
        seconds = time.perf_counter() - start
        reports = [correction.report for correction in corrections.values()]
        report = CompensationReport(reports, statistics.tokens, seconds)
        # Not a module or a tensor: typing knows no other attributes of a module.
        model.__dict__["fastlr_report"] = report
    return model


@dataclass(frozen=True)
class _Pair:
    """A layer of the lossy model, and the one that it was made from."""

    name: str
    lossy: nn.Module
    dense: nn.Module

    @property
    def shape(self) -> tuple[int, int]:
        return layer_sizes(self.dense)

    def weights(self) -> tuple[Tensor, Tensor]:
        """W, and what of it is lost, W − Ŵ, in float64."""
        exact = dense_weight(self.dense)
        try:
            kept = applied_weight(self.lossy, exact.dtype)
        except ValueError as error:
            raise ValueError(f"model: layer {self.name!r}: {error}") from None
        require_finite(f"model: the weight of layer {self.name!r}", kept)
        whole = high_precision(exact).to(kept.device)
        return whole, whole - kept


@dataclass(frozen=True)
class _Correction:
    """The new layer, None where the old one stays, and what it does."""

    layer: CorrectedLinear | None
    report: CorrectionReport
    differs: bool


def _check_size(rank: int | None, ratio: float | None) -> None:
    if (rank is None) == (ratio is None):
        raise ValueError(f"one of rank and ratio must be given, got rank={rank}, ratio={ratio}")
    if rank is not None:
        check_common_rank(rank)
    if ratio is not None and not (isinstance(ratio, int | float) and 0 < ratio < 1):
        raise ValueError(f"ratio must be between 0 and 1, both excluded, got {ratio!r}")


def _pairs(
    model: nn.Module,
    original: nn.Module,
    targets: str | Sequence[str] | None,
    ignore: str | Sequence[str],
) -> list[_Pair]:
    """The layers to correct, each with the dense one."""
    for name, module in original.named_modules():
        if isinstance(module, CompressedLinear):
            raise ValueError(
                f"original must be dense, its layer {name!r} is a {type(module).__name__}"
            )
    blocks = find_targets(original, find_blocks(original), targets, ignore)
    return [_pair(model, name, dense) for block in blocks for name, dense in block.items()]


def _pair(model: nn.Module, name: str, dense: nn.Module) -> _Pair:
    try:
        lossy = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"model has no layer {name!r}, which original has") from None
    if isinstance(lossy, CorrectedLinear):
        raise ValueError(f"model: layer {name!r} is corrected already; merge it first")
    if layer_sizes(lossy) != layer_sizes(dense):
        raise ValueError(
            f"model: layer {name!r} must map as original's does, of shape {layer_sizes(dense)}, "
            f"got {layer_sizes(lossy)}"
        )
    return _Pair(name, lossy, dense)


def _by_block(stack: BlockStack, pairs: Iterable[_Pair]) -> list[dict[str, nn.Module]]:
    found: list[dict[str, nn.Module]] = []
    for index in range(len(stack.blocks)):
        inside = stack.block_name(index) + "."
        found.append({pair.name: pair.lossy for pair in pairs if pair.name.startswith(inside)})
    return found


def _corrections(
    pairs: Sequence[_Pair], grams: Grams, rank: int | None, ratio: float | None, bar: Progress
) -> dict[str, _Correction]:
    ranks = _ranks(pairs, grams, rank, ratio, bar)
    bar.stage("Layers corrected", len(pairs))
    found = {}
    for pair in pairs:
        bar.step(pair.name)
        found[pair.name] = _corrected(pair, grams.get(pair.name), ranks[pair.name], ratio)
    if not any(correction.differs for correction in found.values()):
        raise ValueError("model: no layer's weight differs from the original's")
    return found


def _ranks(
    pairs: Sequence[_Pair], grams: Grams, rank: int | None, ratio: float | None, bar: Progress
) -> Mapping[str, int]:
    if ratio is None:
        assert rank is not None
        return {pair.name: min(rank, *pair.shape) for pair in pairs}
    bar.stage("Layers weighed", len(pairs))
    gains, numbers = {}, 0
    for pair in pairs:
        bar.step(pair.name)
        out_features, in_features = pair.shape
        numbers += out_features * in_features
        gram = grams.get(pair.name)
        gains[pair.name] = torch.zeros(1) if gram is None else _gains(pair, gram)
    costs = {pair.name: sum(pair.shape) for pair in pairs}
    return shared_ranks(gains, costs, int(ratio * numbers))


def _gains(pair: _Pair, gram: Gram) -> Tensor:
    """By how much each direction of the correction lowers the layer's relative error."""
    exact, lost = pair.weights()
    return solve(lost, gram).energies * relative_error(exact, exact - lost, gram)


def _corrected(pair: _Pair, gram: Gram | None, rank: int, ratio: float | None) -> _Correction:
    exact, lost = pair.weights()
    note = ""
    if gram is None:
        note = NEVER_CALLED if ratio is None else NOT_WEIGHED
        warn(f"compensate: layer {pair.name!r}: {note}", UserWarning)
    before = after = predicted = relative_error(exact, exact - lost, gram)
    layer = None
    differs = bool(lost.any())
    if rank and differs:
        cut = solve(lost, gram).truncate(rank)
        predicted = before * cut.relative_error
        dtype = dense_weight(pair.dense).dtype
        layer = CorrectedLinear.around(pair.lossy, cut.basis, cut.projected, dtype=dtype)
        after = relative_error(exact, exact - lost + layer.correction().to(exact.device), gram)
    report = CorrectionReport(
        pair.name,
        pair.shape,
        type(pair.lossy).__name__,
        rank if layer is not None else 0,
        before,
        after,
        predicted,
        note,
    )
    return _Correction(layer, report, differs)
