"""Calling a model on a batch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from fastlr.nn.compression.calibration import Batch
from fastlr.nn.evaluate import embedding_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_batch(model: PreTrainedModel, batch: Batch) -> Any:
    """What `model` makes of the batch, without a cache of keys and values.

    The types of tokens are for the models that know them: tokenizers make them for others too.
    """
    known = inspect.signature(model.forward).parameters
    device = embedding_weight(model).device
    mask, types = batch.attention_mask, batch.token_type_ids
    more: dict[str, Any] = {}
    if types is not None and "token_type_ids" in known:
        more["token_type_ids"] = types.to(device)
    if "use_cache" in known or model.can_generate():
        more["use_cache"] = False
    return model(
        input_ids=batch.input_ids.to(device),
        attention_mask=None if mask is None else mask.to(device),
        **more,
    )
