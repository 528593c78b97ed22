"""Time routines beside their floors and their peers, and print one table.

All cases of a table are timed in turns, A B C A B C …, after one untimed turn, so that whatever
else the machine does falls on all of them alike. `time` is the median over the turns;
`time / floor` is the median of the ratios within a turn, which a slow minute does not move.

A benchmark is a script:

    with Session(__doc__) as session:
        session.table("title", [Case("name", run, quality)], floor=Case("two products", products))
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

# The idle threads of a BLAS spin for some milliseconds before they sleep: that is not the next
# case's time.
PAUSE = 0.05


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes
    ----------
    name : str
    run : callable
        What is timed.
    quality : callable, optional
        From the result of `run` to further columns, by name; not timed.
    floors : float
        How many times the table's floor this case cannot avoid.
    """

    name: str
    run: Callable[[], Any]
    quality: Callable[[Any], Mapping[str, Any]] | None = None
    floors: float = 1.0


Row = dict[str, Any]


class Session:
    """The tables of one run of a benchmark, printed as they are finished.

    Parameters
    ----------
    description : str
        The help text.
    repeats : int
        Timed turns, unless ``--repeats`` says otherwise.
    options : mapping, optional
        Further options of the command line and their defaults.

    Attributes
    ----------
    options : argparse.Namespace
        What the command line gave.
    """

    def __init__(
        self,
        description: str | None,
        *,
        repeats: int = 7,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_options(parser, repeats=repeats)
        for name, default in (options or {}).items():
            parser.add_argument(
                f"--{name}", type=type(default), default=default, help=f"(default: {default})"
            )
        self.options = parser.parse_args()
        self._tables: list[dict[str, Any]] = []

    def __enter__(self) -> Session:
        if not self.options.json:
            print(machine_line())
        return self

    def table(
        self, title: str, cases: Sequence[Case], *, floor: Case | None = None, note: str = ""
    ) -> None:
        """Time `cases`, and `floor` with them, and print the table."""
        rows = compare(cases, floor, self.options.repeats)
        self._tables.append({"title": title, "note": note, "rows": rows})
        if not self.options.json:
            print("\n" + "\n\n".join(filter(None, (title, note, markdown(rows)))))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.options.json:
            report = {
                "machine": machine_line(),
                "repeats": self.options.repeats,
                "tables": self._tables,
            }
            print(json.dumps(report, indent=2))


def add_options(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    """Add the options that all benchmarks have."""
    parser.add_argument("--repeats", type=_positive, default=repeats, help="timed turns")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def compare(cases: Sequence[Case], floor: Case | None, repeats: int) -> list[Row]:
    """Time all cases in turns; the rows of a table, the floor first."""
    timed = [*([floor] if floor else []), *cases]
    qualities = [_first_run(case) for case in timed]
    turns = [[_seconds(case.run) for case in timed] for _ in range(repeats)]
    rows = []
    for index, (case, quality) in enumerate(zip(timed, qualities, strict=True)):
        row: Row = {"": case.name, "time": statistics.median(turn[index] for turn in turns)}
        if floor:
            ratios = (turn[index] / (case.floors * turn[0]) for turn in turns)
            row["time / floor"] = statistics.median(ratios)
        rows.append({**row, **quality})
    return rows


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """The median time of one routine alone, after one untimed call."""
    run()
    return statistics.median(_seconds(run) for _ in range(repeats))


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table with aligned columns, readable as plain text."""
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    cells = [[_shown(name, row.get(name)) for name in columns] for row in listed]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    lines = (columns, rule, *cells)
    return "\n".join(f"| {' | '.join(_aligned(line, widths))} |" for line in lines)


def machine_line() -> str:
    """The processor, the threads in use, the versions and the BLAS; the GPU where there is one."""
    _, found, rest = torch.__config__.show().partition("BLAS_INFO=")
    blas = rest.split(",")[0] if found else "unknown"
    facts = [
        processor(),
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores",
        torch.backends.cpu.get_cpu_capability(),
        f"torch {torch.__version__}",
        f"BLAS {blas}",
        f"Python {platform.python_version()}",
    ]
    if torch.cuda.is_available():
        facts.insert(0, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    return "; ".join(facts)


def processor() -> str:
    """The processor's name, as the system gives it."""
    if platform.system() == "Linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{seconds:.0e} s"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _first_run(case: Case) -> Row:
    """The untimed turn, whose result is graded."""
    result = case.run()
    return dict(case.quality(result)) if case.quality else {}


def _seconds(run: Callable[[], Any]) -> float:
    time.sleep(PAUSE)
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _shown(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        if column.endswith("time"):
            return duration(value)
        return f"{value:.2f}" if column.endswith("floor") else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    head, *rest = zip(line, widths, strict=True)
    return [head[0].ljust(head[1]), *(cell.rjust(width) for cell, width in rest)]
