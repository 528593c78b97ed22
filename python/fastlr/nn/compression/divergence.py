"""How far the predictions of two language models are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.forward_pass import run_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def logits_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """At every position, sequences × length × vocabulary; half types become float32."""
    logits: Tensor = run_batch(model, batch).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def log_probabilities(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Of every token at every position that counts, positions × vocabulary, float32 or wider."""
    logits, mask = logits_of(model, batch), batch.attention_mask
    rows = logits.flatten(0, 1) if mask is None else logits[mask.to(logits.device) != 0]
    return F.log_softmax(rows, -1)


def divergence_from(expected: Tensor, found: Tensor) -> Tensor:
    """The sum over positions of KL(expected ‖ found), in nats, of log-probabilities."""
    return F.kl_div(found, expected, reduction="sum", log_target=True)


def divergence_of(
    model: PreTrainedModel, reference: PreTrainedModel, batch: Batch
) -> tuple[Tensor, int]:
    """KL(reference ‖ model) summed over the positions that count, in nats, and their number.

    Differentiable in the parameters of `model`.
    """
    with torch.no_grad():
        expected = log_probabilities(reference, batch)
    return divergence_from(expected, log_probabilities(model, batch)), len(expected)
