"""A model as transformers reads it, written one file after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastlr.nn.output import write_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


def write_shards(
    model: PreTrainedModel,
    dtype: torch.dtype,
    parts: Iterable[Mapping[str, Tensor]],
    count: int,
    directory: Path,
) -> None:
    """Write the parts of a model's weights, an index of them and the model's config.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its class and config count, not its weights.
    dtype : torch.dtype
        That of the config.
    parts : iterable of mappings from names to tensors
        What each file holds; asked for one after the other.
    count : int
        How many there are.
    directory : Path
        It exists.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        write_tensors(directory / file, tensors, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
