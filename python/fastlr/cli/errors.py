"""What counts as a user's error, and the one sentence that is printed for it."""

from __future__ import annotations

import importlib.util
import os
import sys

# A package's import name is not always the name that pip knows, but for all of these it is.
_READS_GGUF = ("gguf", "accelerate")


def require(*packages: str) -> None:
    """Raise one ImportError that names every missing package and the command that installs it."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise ImportError(
            f"this command needs {names}; install with: pip install {' '.join(missing)}"
        )


def require_transformers(*, gguf: bool = False) -> None:
    """Check for what reading a model takes; a GGUF file takes two packages more."""
    require("transformers", "safetensors", *(_READS_GGUF if gguf else ()))


def is_expected(error: BaseException) -> bool:
    """Whether an exception tells the user something, rather than pointing at a bug of ours."""
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, MemoryError)):
        return True
    torch = sys.modules.get("torch")
    # Both are RuntimeErrors; torch is looked up and not imported, since an error before it is
    # loaded cannot be one of them.
    return torch is not None and isinstance(
        error, (torch.linalg.LinAlgError, torch.OutOfMemoryError)
    )


def sentence(error: BaseException) -> str:
    """Put an exception into one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return "there is not enough memory for this model"
    return " ".join(str(error).split()) or type(error).__name__


def wants_traceback() -> bool:
    """Whether the developer's switch ``FASTLR_TRACEBACK=1`` is on."""
    return os.environ.get("FASTLR_TRACEBACK", "") not in ("", "0")
