"""How far a new layer is from the dense one, and how much it stores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.problem import Candidates, LayerProblem
from fastlr.nn.compression.report import LEFT_DENSE, LayerReport
from fastlr.nn.modules.base import CompressedLinear, composed_weight
from fastlr.nn.modules.dense import dense_weight, high_precision

_PANEL = 1024


def layer_report(
    problem: LayerProblem,
    candidates: Candidates,
    index: int,
    module: nn.Module | None,
    note: str,
) -> LayerReport:
    """What became of a layer: `module`, of the candidate `index`; None where it stays dense."""
    weight = dense_weight(problem.linear)
    before = kept = weight_size(problem.linear)
    spectrum = candidates.spectrum
    rank = None if candidates.ranks is None else int(candidates.ranks[index])
    notes = [text for text in (problem.note, note) if text]
    output_error = weight_error = 0.0
    if module is None:
        notes.append(LEFT_DENSE)
    else:
        composed = composed_weight(module)
        if candidates.restored is not None:
            composed = candidates.restored(index, problem.name, composed)
        kept = weight_size(module)
        weight_error = relative_error(weight, composed, None)
        if problem.inputs is not None:
            output_error = relative_error(weight, composed, problem.inputs)
    total = candidates.total if candidates.total > 0 else 1.0
    return LayerReport(
        name=problem.name,
        shape=problem.shape,
        rank=rank,
        form=getattr(module, "form", "dense"),
        side=getattr(module, "side", None),
        parameters_before=before[0],
        parameters_after=kept[0],
        bytes_before=before[1],
        bytes_after=kept[1],
        predicted_error=float(candidates.relative_errors[index]),
        output_error=None if problem.inputs is None else output_error,
        weight_error=weight_error,
        note="; ".join(notes),
        spectrum=[] if spectrum is None else (spectrum / total).tolist(),
    )


def relative_error(weight: Tensor, approximation: Tensor, gram: Gram | None) -> float:
    """tr(Δ G Δᵀ) / tr(W G Wᵀ) with Δ the difference, in float64; 0 / 0 is 0."""
    lost = whole = 0.0
    # Some rows at a time: what is made of them need not be kept.
    for rows, found in zip(
        torch.split(weight, _PANEL), torch.split(approximation, _PANEL), strict=True
    ):
        exact = high_precision(rows)
        lost += _energy(exact - found.to(exact.device), gram)
        whole += _energy(exact, gram)
    if whole <= 0:
        return 0.0 if lost <= 0 else float("inf")
    return max(lost, 0.0) / whole


def _energy(matrix: Tensor, gram: Gram | None) -> float:
    """tr(M G Mᵀ)."""
    return float((matrix if gram is None else matrix @ gram.matrix).mul(matrix).sum())


def weight_size(module: nn.Module) -> tuple[int, int]:
    """Numbers and bytes that stand for the weight."""
    if isinstance(module, CompressedLinear):
        return module.weight_parameters(), module.weight_bytes()
    weight = dense_weight(module)
    return weight.numel(), weight.numel() * weight.element_size()
