"""The command ``fastlr``.

Importing this package loads neither torch nor typer: ``main`` imports what a command needs
when the command runs, so that ``fastlr --help`` answers at once and a missing extra is one
sentence instead of a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``fastlr``; ``sys.argv[1:]`` when omitted.

    Returns
    -------
    int
        0 on success, 1 when ``fastlr doctor`` finds something broken, 2 for an error in what
        was asked, 130 after Ctrl-C.
    """
    try:
        from fastlr.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(
            f"fastlr: the command line needs {error.name}; install it with: pip install typer rich",
            file=sys.stderr,
        )
        return 2
    return run(sys.argv[1:] if arguments is None else list(arguments))
