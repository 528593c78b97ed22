"""A saved language model whose tensors stay on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastlr.nn import hf
from fastlr.nn.compression.blocks import find_blocks
from fastlr.nn.compression.freed_memory import give_back_freed_memory
from fastlr.nn.compression.mapped_tensors import MappedFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What transformers may make itself: buffers, and a small tensor that it converts.
_MOST_IN_MEMORY = 0.01
_CHUNK = 1 << 24


class MappedModel:
    """A saved model whose parameters are views of its files.

    Parameters
    ----------
    directory : Path
        A complete checkpoint in safetensors files.

    Attributes
    ----------
    directory : Path
    paths : list of Path
        Its weight files.
    tensors : dict of str to Tensor
        What they hold, by the names there.
    dtype : torch.dtype
        That of most of them.

    Raises
    ------
    ValueError
        If the config names no class of transformers, or a file is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths = [directory / name for name in hf.weight_files(directory, "compress_on_disk")]
        self._files = MappedFiles()
        self._kind = hf.model_class(directory, "compress_on_disk")
        self.tensors: dict[str, Tensor] = {}
        for path in self.paths:
            self.tensors.update(self._files.read(path).tensors)
        dtypes = [t.dtype for t in self.tensors.values() if t.is_floating_point()]
        self.dtype = max(set(dtypes), key=dtypes.count)

    def outline(self) -> PreTrainedModel:
        """The model without weights."""
        create = getattr(self._kind, "_from_config", None) or self._kind.from_config
        with torch.device("meta"):
            model: PreTrainedModel = create(self._config(), dtype=self.dtype)
        return model

    def build(self, scratch: Path) -> PreTrainedModel:
        """The model; what transformers keeps in another way than it is stored goes to `scratch`.

        ValueError if a parameter is missing.
        """
        found = self.tensors
        if not self.outline().state_dict().keys() <= found.keys():
            found = self._converted(scratch)
        loaded = self._kind.from_pretrained(
            None,
            config=self._config(),
            state_dict=found,
            dtype=self.dtype,
            output_loading_info=True,
            # They are refused below, by name.
            ignore_mismatched_sizes=True,
        )
        model: PreTrainedModel = self._complete(loaded).eval()
        self._require_mapped(model, found)
        return model

    def key(self) -> str:
        """A name for the content of the files."""
        found = hashlib.sha256()
        for path in [self.directory / "config.json", *self.paths]:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    found.update(chunk)
        return found.hexdigest()[:16]

    def release(self) -> None:
        """Let the system forget what it has read of the files, and have what is freed."""
        self._files.release()
        give_back_freed_memory()

    @contextmanager
    def released_after_blocks(self, model: PreTrainedModel) -> Iterator[None]:
        """Within, each block is forgotten when it has run."""
        blocks = find_blocks(model).blocks
        handles = [block.register_forward_hook(lambda *_: self.release()) for block in blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.directory)

    def _converted(self, scratch: Path) -> dict[str, Tensor]:
        """The tensors under the names of the model.

        A model that is offloaded to disk is loaded one tensor at a time. What is only renamed is
        read where it is, what has to be converted (experts that are stored one by one) is written.
        """
        loaded = self._kind.from_pretrained(
            self.directory,
            dtype=self.dtype,
            device_map={"": "disk"},
            offload_folder=scratch,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        index = _offload_index(self._complete(loaded))
        written = {Path(entry["safetensors_file"]) for entry in index.values()}
        held = {path: self._files.read(path).tensors for path in written}
        return {
            name: held[Path(entry["safetensors_file"])][entry["weight_name"]]
            for name, entry in index.items()
        }

    def _complete(self, loaded: tuple[Any, Mapping[str, Any]]) -> Any:
        model, found = loaded
        if found["missing_keys"] or found["mismatched_keys"]:
            name = min([*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])])
            raise ValueError(
                f"compress_on_disk: the checkpoint {str(self.directory)!r} holds no tensor that "
                f"fits {name} of {self._kind.__name__}"
            )
        return model

    def _require_mapped(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
        places = {tensor.data_ptr() for tensor in tensors.values()}
        sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
        others = {n: sizes[n] for n, p in model.named_parameters() if p.data_ptr() not in places}
        if sum(others.values()) > _MOST_IN_MEMORY * sum(sizes.values()):
            name = max(others, key=lambda name: others[name])
            raise ValueError(
                f"compress_on_disk: {name} is stored in another way than {type(model).__name__} "
                "keeps it, and would be converted in memory; load the model and use compress_llm"
            )


def _offload_index(model: Any) -> dict[str, dict[str, str]]:
    """Where accelerate has found or put each parameter of a model that is on disk."""
    for module in model.modules():
        weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if weights is not None:
            index: dict[str, dict[str, str]] = weights.dataset.index
            return index
    raise ValueError("compress_on_disk: transformers has offloaded no parameter")
