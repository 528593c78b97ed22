"""Figures, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches outside of pyplot: no window opens, and nothing is to be closed.

    Raises
    ------
    ImportError
        If matplotlib is not installed, with the command that installs it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a plot needs matplotlib; install with: pip install matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")
