"""How far the predictions of two language models are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlr.nn.compress.calibration import Batch
from fastlr.nn.evaluate import embedding_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def log_probabilities(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Of every token at every position that counts, positions × vocabulary, float32 or wider."""
    device = embedding_weight(model).device
    mask = None if batch.attention_mask is None else batch.attention_mask.to(device)
    ids = batch.input_ids.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    rows = logits.flatten(0, 1) if mask is None else logits[mask != 0]
    return F.log_softmax(rows.to(torch.promote_types(rows.dtype, torch.float32)), -1)


def divergence_of(
    model: PreTrainedModel, reference: PreTrainedModel, batch: Batch
) -> tuple[Tensor, int]:
    """KL(reference ‖ model) summed over the positions that count, in nats, and their number.

    Differentiable in the parameters of `model`.
    """
    with torch.no_grad():
        expected = log_probabilities(reference, batch)
    found = log_probabilities(model, batch)
    return F.kl_div(found, expected, reduction="sum", log_target=True), len(expected)
