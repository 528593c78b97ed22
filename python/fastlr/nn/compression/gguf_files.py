"""A language model in a GGUF file, unpacked into files of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastlr.nn.compression.shards import write_shards
from fastlr.nn.modules.dense import FLOAT_DTYPES
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GgufFile:
    """A language model in a GGUF file.

    Parameters
    ----------
    path : Path
    dtype : torch.dtype
        What its weights become.

    Raises
    ------
    TypeError
        If the dtype is no float type.
    ValueError
        If the file is no GGUF file, or of an architecture that transformers does not read.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        if dtype not in FLOAT_DTYPES:
            raise TypeError(f"dtype must be a real float type, got {dtype}")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError(f"{path} is no GGUF file")
        self.path = path
        self.dtype = dtype

    def outline(self) -> PreTrainedModel:
        """The model without weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.path.parent, gguf_file=self.path.name)
        automatic: Any = AutoModelForCausalLM
        with torch.device("meta"):
            model: PreTrainedModel = automatic.from_config(config, dtype=self.dtype)
        return model

    def unpack(self, directory: Path, bar: Progress) -> None:
        """Write the model to a new directory, a block to a file, with little more in memory."""
        from gguf import GGUFReader
        from transformers import AutoTokenizer

        directory.mkdir()
        model = self.outline()
        # Only here: what it has read stays in memory as long as it does.
        reader = GGUFReader(self.path)
        count = len(set(map(_block_of, reader.tensors)))
        write_shards(model, self.dtype, self._blocks(model, reader, bar), count, directory)
        if "tokenizer.ggml.model" in reader.fields:
            tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
            tokenizer.save_pretrained(directory)

    def _blocks(
        self, model: PreTrainedModel, reader: Any, bar: Progress
    ) -> Iterator[dict[str, Tensor]]:
        """The tensors of each block, as transformers unpacks, names and arranges them."""
        from gguf import dequantize
        from transformers import modeling_gguf_pytorch_utils

        of_transformers: Any = modeling_gguf_pytorch_utils
        parsed = of_transformers.load_gguf_checkpoint(self.path)
        architecture = reader.fields["general.architecture"].contents()
        kinds = of_transformers.TENSOR_PROCESSORS
        kind = kinds.get(architecture, of_transformers.TensorProcessor)
        processor = kind(config=parsed["config"])
        names = of_transformers.get_gguf_hf_weights_map(model, processor)
        bar.stage("Tensors unpacked", len(reader.tensors))
        for _, block in groupby(sorted(reader.tensors, key=_block_of), key=_block_of):
            # Parts of a tensor are joined where processors look for it.
            found: dict[str, Tensor] = {}
            for tensor in block:
                bar.step(tensor.name)
                made = processor.process(
                    weights=dequantize(tensor.data, tensor.tensor_type),
                    name=tensor.name,
                    tensor_key_mapping=names,
                    parsed_parameters={**parsed, "tensors": found},
                )
                if made.name in names:
                    # A copy: what is not packed is a view of the file.
                    found[names[made.name]] = torch.from_numpy(np.array(made.weights))
            yield {name: value.to(self.dtype).contiguous() for name, value in found.items()}


def _block_of(tensor: Any) -> int:
    """The number of a tensor's block, −1 outside of them."""
    parts = tensor.name.split(".")
    return int(parts[1]) if parts[0] == "blk" else -1
