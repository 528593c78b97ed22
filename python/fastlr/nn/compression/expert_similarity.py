"""How much alike the outputs of a mixture's experts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.forward_pass import run_batch
from fastlr.nn.compression.statistics import hearing_inputs
from fastlr.nn.modules.dense import high_precision
from fastlr.nn.modules.experts import RoutedExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# So many tokens, of so many batches, are given to all experts.
_TOKENS = 512
_BATCHES = 8


def expert_similarities(
    model: PreTrainedModel, mixtures: Mapping[str, RoutedExperts], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Of each mixture, the mean cosines of its experts' outputs, experts × experts, float64.

    All experts see the same calibration tokens, whichever they are routed to: some 512 that come to
    the mixture, spread over at most eight batches. One forward pass over these, and 2·E·N flops a
    token for E experts with N numbers each.
    """
    step = max(1, len(batches) // _BATCHES)
    chosen = list(batches)[::step][:_BATCHES]
    share = -(-_TOKENS // len(chosen))
    sums: dict[str, Tensor] = {}
    mask: Tensor | None = None

    def hear(name: str, states: Tensor) -> None:
        experts, tokens = mixtures[name], states.flatten(0, -2)
        if mask is not None and mask.numel() == len(tokens):
            tokens = tokens[mask.flatten().to(tokens.device) != 0]
        some = tokens[:: max(1, len(tokens) // share)][:share]
        sums[name] = sums.get(name, 0) + _cosines(experts, some)

    with torch.no_grad(), hearing_inputs(mixtures, hear):
        for batch in chosen:
            mask = batch.attention_mask
            run_batch(model, batch)
    return {name: total / total.diagonal().max().clamp(min=1) for name, total in sums.items()}


def _cosines(experts: RoutedExperts, tokens: Tensor) -> Tensor:
    """Summed over the tokens; an output of zero has none with any other."""
    outputs = [experts.run_expert(expert, tokens) for expert in range(experts.num_experts)]
    directions = torch.stack([F.normalize(high_precision(o), dim=1).flatten() for o in outputs])
    return (directions @ directions.T).cpu()
