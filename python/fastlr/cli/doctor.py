"""``fastlr doctor``: what runs here, and what is broken."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastlr.cli.machine import processor, usable_cores

Status = Literal["ok", "note", "broken"]

_EXTRAS = ("transformers", "safetensors", "tokenizers", "gguf", "accelerate", "typer", "rich")
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[red]broken[/]"}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    status: Status
    value: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Look at everything that fastlr depends on.

    Returns
    -------
    list of Finding
        In the order in which they are printed; one that is ``"broken"`` stops fastlr from
        working, a ``"note"`` only limits it.
    """
    findings = [Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    findings += _torch()
    findings += _core()
    findings += _packages()
    findings.append(_demo_model())
    return findings


def report(findings: list[Finding]) -> dict[str, Any]:
    """Return the diagnosis for machines."""
    return {
        "broken": any(finding.status == "broken" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def print_findings(findings: list[Finding]) -> None:
    """Print the diagnosis for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = escape(finding.value)
        if finding.remedy:
            text += f" ({escape(finding.remedy)})"
        table.add_row(finding.name, _MARKS[finding.status], text)
    Console(highlight=False).print(table)


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding("torch", "broken", str(error), "reinstall torch")]
    threads = torch.get_num_threads()
    available = usable_cores()
    limit = os.environ.get("OMP_NUM_THREADS")
    threads_text = f"{threads} of {available} cores"
    if limit is not None:
        threads_text += f", OMP_NUM_THREADS={limit}"
    crowded = threads > available
    return [
        Finding("torch", "ok", torch.__version__),
        Finding("cpu", "ok", f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"),
        Finding(
            "threads",
            "note" if crowded else "ok",
            threads_text,
            "more threads than cores are slow; set OMP_NUM_THREADS" if crowded else "",
        ),
        Finding("gpu", "ok", _gpus()),
    ]


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"none visible to this torch, built for CUDA {built}" if built else "torch has none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


def _core() -> list[Finding]:
    import fastlr

    version = Finding("fastlr", "ok", fastlr.__version__)
    try:
        importlib.import_module("fastlr.linalg")  # loads the core
    except (ImportError, OSError) as error:
        # The loader's message names both versions and the remedy.
        return [version, Finding("core", "broken", " ".join(str(error).split()))]
    info = fastlr.build_info()
    built, running, compiler = info["torch_built"], info["torch_running"], info["compiler"]
    return [
        version,
        Finding("core", "ok", f"built for torch {built} by {compiler}, runs on {running}"),
        Finding("blas", "ok", str(info["blas"])),
        _core_gpu(info["cuda"]),
        _self_test(),
    ]


def _core_gpu(built: Any) -> Finding:
    import torch

    if built:
        archs = " ".join(map(str, built)) if isinstance(built, (list, tuple)) else "yes"
        return Finding("core gpu", "ok", f"CUDA kernels built: {archs}")
    if torch.cuda.is_available():
        return Finding(
            "core gpu",
            "note",
            "built without CUDA kernels",
            "reinstall fastlr where nvcc is on the PATH to use them",
        )
    return Finding("core gpu", "ok", "built without CUDA kernels")


def _self_test() -> Finding:
    """Decompose a matrix of known singular values."""
    import torch

    import fastlr.linalg as la

    expected = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    left = torch.linalg.qr(torch.arange(120.0, dtype=torch.float64).sin().reshape(40, 3))[0]
    right = torch.linalg.qr(torch.arange(90.0, dtype=torch.float64).cos().reshape(30, 3))[0]
    values = la.randomized_svd((left * expected) @ right.T, 3, seed=0).S
    error = float((values - expected).abs().max())
    # Rank 3 is exact, so what is left is rounding: a few hundred units of 2e-16.
    good = error < 1e-12
    return Finding(
        "self-test",
        "ok" if good else "broken",
        f"randomized_svd reproduces known singular values to {error:.0e}",
        "" if good else "reinstall fastlr; please report it if that does not help",
    )


def _packages() -> list[Finding]:
    findings = []
    for name in _EXTRAS:
        try:
            findings.append(Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "note", "not installed", f"pip install {name}"))
    return findings


def _demo_model() -> Finding:
    from fastlr.cli.demo_model import MODEL, cache_directory

    path = cache_directory() / MODEL.name
    found = str(path) if path.exists() else "not downloaded yet; fastlr demo does it"
    return Finding("demo model", "ok", found)
