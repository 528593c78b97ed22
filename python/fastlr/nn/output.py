"""Directories that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_output(
    out: Path, *, overwrite: bool, model: Path | None = None, mark: str = "config.json"
) -> None:
    """Refuse an output directory that would destroy something.

    Parameters
    ----------
    out : Path
        The directory to be written.
    overwrite : bool
        Whether what was saved there may be replaced.
    model : Path, optional
        The model that is read; it must not be what gets replaced.
    mark : str
        The file by which it is known that something of the kind was saved there; by default, that
        of a model.

    Raises
    ------
    ValueError
        If `out` is a file, or a directory that is not empty and may not be replaced.
    """
    if model is not None and model.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{out} holds the model that is to be read; choose another directory")
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file; the output must be a directory")
    if existing is not out:
        return
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"{out} exists and is not empty; choose another directory or add --overwrite"
        )
    # --overwrite with a home directory by mistake must not cost the user that directory.
    if not (out / mark).is_file():
        kind = "a saved model" if mark == "config.json" else f"a {mark}"
        raise ValueError(f"{out} does not hold {kind}, so it is not overwritten")


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """Give a temporary sibling of `out` that takes its place when the block ends well.

    An exception (Ctrl-C included) removes the sibling and leaves `out` as it was. Call
    `check_output` first: what stands at `out` is replaced.
    """
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    partial = out.with_name(f".{out.name}.partial-{mark}")
    # Made here and not with tempfile, whose directories only their owner may read.
    partial.mkdir()
    try:
        yield partial
        _replace(partial, out, out.with_name(f".{out.name}.old-{mark}"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, out: Path, aside: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    out.rename(aside)
    try:
        new.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    shutil.rmtree(aside)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that no reader ever sees half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; OSError where it cannot be, as on a full disk.

    What safetensors itself raises there is no OSError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def directory_size(directory: Path) -> int:
    """Add up the bytes of the files in a directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
