"""Results of a long computation, in files that are written once and wholly."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.mapped_tensors import MappedTensors, release

_FACTS = "facts"


class Checkpoint:
    """A directory of named results, each of some tensors and facts.

    A result appears under its name when all of it is there: a process that is killed leaves none
    half-written. One process at a time may use the directory.

    Parameters
    ----------
    directory : path
        Made when the first result is written.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        # What has been read here, or in a part of this.
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def part(self, *key: Any) -> Checkpoint:
        """A checkpoint within this one, for what is computed from `key`."""
        part = Checkpoint(self.directory / fingerprint(*key))
        part._maps = self._maps
        return part

    def write(self, name: str, tensors: Mapping[str, Tensor], facts: Any = None) -> None:
        """Keep `tensors`, and `facts` that JSON can hold.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._path(name)
        partial = path.with_suffix(".partial")
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(whole, partial, {_FACTS: json.dumps(facts)})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            if partial.is_file():
                partial.unlink()
            raise OSError(f"checkpoint_dir: {path} cannot be written ({error})") from error

    def read(self, name: str) -> tuple[dict[str, Tensor], Any]:
        """The tensors, read from the file when they are used, and the facts."""
        mapped = MappedTensors(self._path(name))
        self._maps.add(mapped.memory)
        return mapped.tensors, json.loads(mapped.metadata[_FACTS])

    def remove(self, name: str) -> None:
        """Forget a result; nothing where there is none."""
        self._path(name).unlink(missing_ok=True)

    def release(self) -> None:
        """Take what was read out of memory until it is used again."""
        for memory in self._maps:
            release(memory)

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"


def fingerprint(*key: Any) -> str:
    """A short name for what JSON, or else ``str``, makes of `key`."""
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_of_tensors(*tensors: Tensor) -> str:
    """A name for the dtypes, shapes and bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def fingerprint_of_model(model: nn.Module) -> str:
    """A name for the class and the parameters and buffers of a model: one pass over them."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    hashes = {name: fingerprint_of_tensors(tensor) for name, tensor in tensors.items()}
    return fingerprint(type(model).__name__, hashes)
