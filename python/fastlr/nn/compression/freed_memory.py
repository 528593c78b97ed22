"""Memory that is free, and that the C library keeps."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Let the system have what is freed.

    glibc keeps pieces of less than 32 MB for later, and small ones that are still in use between
    them keep the rest from being joined: with hundreds of layers, gigabytes. Elsewhere nothing is
    done.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
