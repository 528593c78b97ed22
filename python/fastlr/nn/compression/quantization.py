"""A language model in 4 or 8 bits, with a correction of low rank beside each layer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastlr.linalg._warnings import warn
from fastlr.nn import hf
from fastlr.nn.compression.bit_budget import best_choices
from fastlr.nn.compression.blocks import find_blocks
from fastlr.nn.compression.calibration import Calibration
from fastlr.nn.compression.engine import calibrate, require_unquantized
from fastlr.nn.compression.experts import unfused_experts
from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.interrupt import interrupt_deferred
from fastlr.nn.compression.layer_report import relative_error
from fastlr.nn.compression.model_kind import require_accepted
from fastlr.nn.compression.quantization_report import QuantizationReport, QuantizedLayerReport
from fastlr.nn.compression.quantization_solver import QuantizationProblem
from fastlr.nn.compression.statistics import Grams, Statistics
from fastlr.nn.compression.targets import find_targets
from fastlr.nn.modules.applied_weight import layer_sizes
from fastlr.nn.modules.corrected_linear import CorrectedLinear
from fastlr.nn.modules.dense import dense_weight
from fastlr.nn.modules.quantized_linear import (
    check_quantization,
    require_quantizer,
    stored_bits,
)
from fastlr.nn.modules.rank_choice import check_common_rank
from fastlr.nn.modules.replace import replace_modules
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEVER_CALLED = "its input never occurred in the calibration: fitted to its weight alone"
UNCHANGED = "quantize_plus_low_rank was interrupted; the model is as it was before the call"
COMPLETED = (
    "quantize_plus_low_rank was interrupted after its last step; the model is fully quantized"
)
# What a budget of bits is spent on.
_CHOICES = (("nf4", 256), ("nf4", 128), ("nf4", 64), ("nf4", 32), ("int8", 256), ("int8", 64))

Choice = tuple[str, int]


def quantize_plus_low_rank(
    model: PreTrainedModel,
    rank: int = 64,
    *,
    quantization: str | None = None,
    block_size: int = 64,
    bits: float | None = None,
    calibration: Calibration | Statistics = None,
    tokenizer: Any = None,
    samples: int = 64,
    seq_len: int = 512,
    targets: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] = ("lm_head",),
    seed: int = 0,
    progress: bool = True,
) -> PreTrainedModel:
    """Store each linear layer as a quantized matrix and one of low rank, W ≈ Q + B A.

    Both are found together: Q is rounded from what B A leaves, and B A is the best map of its rank
    for what Q leaves, on the layer's inputs.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        As in :func:`fastlr.nn.compress_llm`, with dense weights; changed in place.
    rank : int, default 64
        Of every B A, at least 1 (and at most the smaller side of a layer).
    quantization : str, optional
        Of all Q: "nf4" (the default without `bits`) or "int8", see
        :class:`fastlr.nn.QuantizedLinear`.
    block_size : int, default 64
        How many entries of Q share a scale, with `quantization`.
    bits : float, optional
        In place of `quantization`: how many bits the layers may take for each entry of their
        weights in all, scales and B A included. Each layer gets one of "nf4" with blocks of 32, 64,
        128 or 256 and "int8" with blocks of 64 or 256, such that the sum of the relative errors is
        least.
    calibration : optional
        As in :func:`fastlr.nn.compress_llm`; None lets the model write the text. Or
        :class:`~fastlr.nn.compression.Statistics` from
        :func:`~fastlr.nn.compression.calibrate`.
    tokenizer, samples, seq_len, targets, ignore, seed, progress
        As in :func:`fastlr.nn.compress_llm`.

    Returns
    -------
    transformers.PreTrainedModel
        `model` itself. In place of each layer is a :class:`CorrectedLinear` around a
        :class:`QuantizedLinear`; B and A are parameters, in the dtype of the layer, Q is fixed.
        ``model.fastlr_report`` is a :class:`QuantizationReport`.

    Raises
    ------
    TypeError
        As :func:`fastlr.nn.compress_llm`, or if `rank` is no integer.
    ValueError
        As :func:`fastlr.nn.compress_llm`; if `quantization` and `bits` are both given or one of the
        numbers is out of range; if `bits` does not suffice for the cheapest choice with this rank.
        Nothing is changed then.
    ImportError
        If bitsandbytes, which rounds to "nf4", is not installed.
    KeyboardInterrupt
        On Ctrl-C. Its message says which of the two states the model is in: as it was, or fully
        quantized.

    Warns
    -----
    UserWarning
        For a layer whose input never occurred: it is fitted to its weight alone.

    See Also
    --------
    fastlr.nn.compensate : corrects a model that another tool has quantized.

    Notes
    -----
    The alternation of [1]_, with the exact minimiser over the layer's inputs X,
    ‖(W − Q − B A)X‖, in place of one over the weights. It begins with the best B A without Q, and
    ends when a round lowers the squared error by less than 1 %, or raises it, after 20 rounds at
    most. The best pair is kept, and if that is better, the one that quantizing and then
    :func:`compensate` give: the result is never worse.

    The choices within `bits` are an integer program that is solved exactly, with the errors of
    that last pair.

    A round takes 2·o·i·(o + i) flops, and an eigenproblem of size min(o, i) or, for
    rank ≤ min(o, i)/8, mostly a few products with its matrix. In memory are the model, the Gram
    matrices of all layers (8·i² bytes each) and the new layers.

    References
    ----------
    .. [1] H. Guo, P. Greengard, E. P. Xing, Y. Kim, "LQ-LoRA: Low-rank plus quantized matrix
       decomposition for efficient language model finetuning", ICLR 2024.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import quantize_plus_low_rank
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4))
    >>> model = quantize_plus_low_rank(model, 2, quantization="int8", calibration=torch.arange(64),
    ...                                seq_len=16, samples=4, progress=False)
    >>> report = model.fastlr_report
    >>> report.mean_error <= report.mean_error_compensated <= report.mean_error_quantized
    True
    >>> type(model.model.layers[0].mlp.up_proj.base).__name__
    'QuantizedLinear'
    """
    start = time.perf_counter()
    choices = _choices(rank, quantization, block_size, bits)
    require_accepted(model, targets)
    require_unquantized(model)
    with unfused_experts(model) as experts:
        try:
            blocks = find_targets(model, find_blocks(model), targets, ignore)
            layers = _layers(blocks, rank)
            _check_bits(layers, choices, bits)
            if isinstance(calibration, Statistics):
                statistics = calibration
            else:
                statistics = calibrate(
                    model,
                    calibration,
                    tokenizer=tokenizer,
                    samples=samples,
                    seq_len=seq_len,
                    targets=targets,
                    ignore=ignore,
                    seed=seed,
                    progress=progress,
                )
            grams = statistics.grams
            with Progress(progress) as bar, torch.no_grad():
                chosen = _chosen(layers, grams, choices, bits, bar)
                bar.stage("Layers quantized", len(layers))
                found = {}
                for name, layer in layers.items():
                    bar.step(name)
                    found[name] = layer.quantized(chosen[name], grams.get(name))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(UNCHANGED) from None
        with interrupt_deferred(COMPLETED):
            replace_modules(model, {name: layer for name, (layer, _) in found.items()})
            experts.settle()
            hf.describe_compressed(model)
            seconds = time.perf_counter() - start
            reports = [report for _, report in found.values()]
            # Not a module or a tensor: typing knows no other attributes of a module.
            model.__dict__["fastlr_report"] = QuantizationReport(
                reports, statistics.tokens, seconds
            )
    return model


def _choices(
    rank: int, quantization: str | None, block_size: int, bits: float | None
) -> tuple[Choice, ...]:
    """What each layer may be, once the arguments are seen to fit."""
    check_common_rank(rank)
    if bits is None:
        choice = "nf4" if quantization is None else quantization, block_size
        check_quantization("quantize_plus_low_rank", *choice)
        require_quantizer(choice[0])
        return (choice,)
    if quantization is not None:
        raise ValueError(
            "one of quantization and bits must be given, got "
            f"quantization={quantization!r}, bits={bits!r}"
        )
    if not (isinstance(bits, int | float) and 0 < bits < float("inf")):
        raise ValueError(f"bits must be a positive number, got {bits!r}")
    require_quantizer("nf4")
    return _CHOICES


@dataclass(frozen=True)
class _Layer:
    """A layer to be quantized."""

    name: str
    linear: nn.Module
    rank: int

    def bits(self, choice: Choice) -> int:
        """What the layer takes, Q and B A."""
        weight = dense_weight(self.linear)
        factors = 8 * weight.element_size() * self.rank * sum(weight.shape)
        return stored_bits(weight.numel(), *choice) + factors

    def quantized(
        self, choice: Choice, gram: Gram | None
    ) -> tuple[CorrectedLinear, QuantizedLayerReport]:
        note = ""
        if gram is None:
            note = NEVER_CALLED
            warn(f"quantize_plus_low_rank: layer {self.name!r}: {note}", UserWarning)
        found = QuantizationProblem(self.linear, gram, self.rank).alternate(*choice)
        weight = dense_weight(self.linear)
        best = found.best
        layer = CorrectedLinear.around(best.base, best.B, best.A, dtype=weight.dtype)
        report = QuantizedLayerReport(
            name=self.name,
            shape=layer_sizes(self.linear),
            quantization=choice[0],
            block_size=choice[1],
            rank=self.rank,
            bits=self.bits(choice) / weight.numel(),
            error_quantized=relative_error(weight, found.first.base.compose(), gram),
            error_compensated=found.first.error,
            error=relative_error(weight, layer.compose(), gram),
            rounds=found.rounds,
            note=note,
        )
        return layer, report


def _layers(blocks: Iterable[Mapping[str, nn.Module]], rank: int) -> dict[str, _Layer]:
    return {
        name: _Layer(name, linear, min(rank, *layer_sizes(linear)))
        for block in blocks
        for name, linear in block.items()
    }


def _entries(layers: Mapping[str, _Layer]) -> int:
    return sum(dense_weight(layer.linear).numel() for layer in layers.values())


def _check_bits(
    layers: Mapping[str, _Layer], choices: Sequence[Choice], bits: float | None
) -> None:
    least = sum(min(map(layer.bits, choices)) for layer in layers.values()) / _entries(layers)
    if bits is not None and least > bits:
        raise ValueError(f"bits must be at least {least:.4g} with this rank, got {bits}")


def _chosen(
    layers: Mapping[str, _Layer],
    grams: Grams,
    choices: Sequence[Choice],
    bits: float | None,
    bar: Progress,
) -> dict[str, Choice]:
    """What each layer is to be."""
    if bits is None:
        return dict.fromkeys(layers, choices[0])
    bar.stage("Layers weighed", len(layers))
    errors = {}
    for name, layer in layers.items():
        bar.step(name)
        problem = QuantizationProblem(layer.linear, grams.get(name), layer.rank)
        errors[name] = [problem.first(*choice).error for choice in choices]
    costs = {name: list(map(layer.bits, choices)) for name, layer in layers.items()}
    places = best_choices(errors, costs, int(bits * _entries(layers)))
    return {name: choices[place] for name, place in places.items()}
