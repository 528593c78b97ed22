"""What the command line says: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


class Progress:
    """Sentences and timed stages on stderr.

    Attributes
    ----------
    seconds : dict of str to float
        How long each finished stage took.
    """

    def __init__(self) -> None:
        # The stream itself, so that a stage can silence what others print to sys.stderr.
        self.console = Console(file=sys.stderr, highlight=False)
        self.seconds: dict[str, float] = {}

    def say(self, sentence: str) -> None:
        """Print one sentence."""
        self.console.print(sentence, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, title: str, *, spin: bool = False) -> Iterator[None]:
        """Announce a stage, and its time when it is over.

        Parameters
        ----------
        name : str
            Its key in `seconds`; the times of stages of one name add up.
        title : str
            What is being done.
        spin : bool
            Turn a spinner on a terminal: for stages that draw no bar of their own.
        """
        started = time.perf_counter()
        if spin and self.console.is_terminal:
            with self.console.status(title):
                yield
        else:
            self.say(f"{title} …")
            yield
        spent = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self.say(f"{title}: {spent:.1f} s")


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document to stdout; a number that is not finite becomes null."""
    print(as_json_text(document))


def as_json_text(document: dict[str, Any]) -> str:
    """Write a document as JSON; a number that is not finite becomes null."""
    return json.dumps(finite(document), indent=2, allow_nan=False)


def finite(value: Any) -> Any:
    """Replace what JSON cannot carry (NaN, infinities) by None, all the way down."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return value


def percent(share: float) -> str:
    """Write a share as per cent with one decimal."""
    return f"{100 * share:.1f} %"


def megabytes(size: int) -> str:
    """Write a number of bytes in megabytes."""
    return f"{size / 1e6:.1f} MB"
