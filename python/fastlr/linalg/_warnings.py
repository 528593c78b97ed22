"""Warnings at the line that called this package."""

import sys
import warnings


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line outside of fastlr, however deep within it the reason is found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("fastlr."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
