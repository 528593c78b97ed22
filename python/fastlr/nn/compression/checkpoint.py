"""Results of a long computation, in files that are written once and wholly."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.mapped_tensors import MappedFiles
from fastlr.nn.output import write_tensors

_FACTS = "facts"
_OF_ITS_ORIGIN = ("_name_or_path", "transformers_version")


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
        self._mapped = MappedFiles()

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def part(self, *key: Any) -> Checkpoint:
        """A checkpoint within this one, for what is computed from `key`."""
        part = Checkpoint(self.directory / fingerprint(*key))
        part._mapped = self._mapped
        return part

    def write(self, name: str, tensors: Mapping[str, Tensor], facts: Any = None) -> None:
        """Keep `tensors`, and `facts` that JSON can hold.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        path = self._path(name)
        partial = path.with_suffix(".partial")
        whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(partial, whole, {_FACTS: json.dumps(facts)})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            if partial.is_file():
                partial.unlink()
            raise OSError(
                f"checkpoint_dir: {path} cannot be written ({error.__cause__ or error})"
            ) from error

    def read(self, name: str) -> tuple[dict[str, Tensor], Any]:
        """The tensors, read from the file when they are used, and the facts."""
        mapped = self._mapped.read(self._path(name))
        return mapped.tensors, json.loads(mapped.metadata[_FACTS])

    def remove(self, name: str) -> None:
        """Forget a result; nothing where there is none."""
        self._path(name).unlink(missing_ok=True)

    def release(self) -> None:
        """Take what was read out of memory until it is used again."""
        self._mapped.release()

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
    """A name for the class, the config and all tensors of a model: one pass over these."""
    config: Any = getattr(model, "config", None)
    settings: dict[str, Any] = {} if config is None else config.to_dict()
    # Where it was loaded from, and by what, change nothing that it does.
    told = {key: value for key, value in settings.items() if key not in _OF_ITS_ORIGIN}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    hashes = {name: fingerprint_of_tensors(tensor) for name, tensor in tensors.items()}
    return fingerprint(type(model).__name__, told, hashes)
