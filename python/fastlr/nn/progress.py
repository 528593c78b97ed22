"""Telling the user how far a long computation is."""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """A progress bar on stderr, or lines of text where rich is not installed, or nothing.

    Parameters
    ----------
    enabled : bool
        False shows nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self._bar: Any = _rich_bar() if enabled and importlib.util.find_spec("rich") else None
        self._plain = enabled and self._bar is None
        self._task: Any = None
        self._stage = _Stage("", 0)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, title: str, total: int) -> None:
        """Begin a stage of `total` steps."""
        self._stage = _Stage(title, total)
        if self._bar is not None:
            self._task = self._bar.add_task(title, total=total)
        elif self._plain:
            print(f"{title} ...", file=sys.stderr, flush=True)

    def step(self, detail: str = "", steps: int = 1) -> None:
        """Record `steps` done; `detail` says what is being worked on."""
        title = f"{self._stage.title} · {detail}" if detail else self._stage.title
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, description=title)
        elif self._plain:
            self._stage.done += steps
            tenth = 10 * self._stage.done // max(self._stage.total, 1)
            if tenth > self._stage.shown:
                self._stage.shown = tenth
                left = self._stage.seconds_left()
                print(f"{title}: {10 * tenth} %, {left:.0f} s left", file=sys.stderr, flush=True)


class _Stage:
    def __init__(self, title: str, total: int) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self.shown = 0
        self.start = time.monotonic()

    def seconds_left(self) -> float:
        spent = time.monotonic() - self.start
        return spent * (self.total - self.done) / max(self.done, 1)


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
