"""The commands and their options; each command's work is in a module of its own.

Nothing heavy is imported here: typer reads this file to print the help.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fastlr.cli.errors import is_expected, sentence, wants_traceback

app = typer.Typer(
    name="fastlr",
    help="Make language models smaller with certified low-rank algebra.",
    epilog="FASTLR_TRACEBACK=1 shows the traceback of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Method(Enum):
    """A name of a method; no Literal, of which typer takes no lists."""

    auto = "auto"
    sparse = "sparse"
    two_sided = "two_sided"
    rocket = "rocket"
    cospadi = "cospadi"
    svd_llm = "svd_llm"
    saes = "saes"
    basis_sharing = "basis_sharing"
    sub_moe = "sub_moe"
    modegpt = "modegpt"
    asvd = "asvd"
    fwsvd = "fwsvd"
    afm = "afm"
    lord = "lord"
    welore = "welore"
    svd = "svd"


Form = Literal["interpolative", "factored", "dense", "sparse", "dictionary", "structured"]
Allocation = Literal[
    "loss", "uniform", "knapsack", "product", "svd_llm_v2", "d_rank", "welore", "block_influence"
]
Quantization = Literal["nf4", "int8"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A directory that transformers reads, or a .gguf.")
]
RatioOption = Annotated[
    float, typer.Option(help="Share of the linear layers' parameters to remove, between 0 and 1.")
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Calibration text; without it the model writes its own."),
]
EvaluateOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Text to measure perplexity on, before and after."),
]
WindowsOption = Annotated[
    int | None, typer.Option(min=1, help="Windows of the --evaluate text; default: all.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what fastlr saved at OUT.")
]
SamplesOption = Annotated[int, typer.Option(min=1, help="Number of calibration samples.")]
SeqLenOption = Annotated[int, typer.Option(min=2, help="Tokens in a sample or window.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Number type; auto: as stored, float32 for a .gguf.")
]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the report as JSON, and nothing else, on stdout.")
]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import fastlr

        print(f"fastlr {fastlr.__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("compress")
def _compress(
    model: ModelArgument,
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="The directory to write; none with --plan."),
    ] = None,
    ratio: RatioOption = 0.2,
    method: Annotated[
        list[Method] | None,
        typer.Option(
            help="What the new weights are; auto, the default: sparse, the most accurate. "
            "With --sweep it may be given several times."
        ),
    ] = None,
    form: Annotated[
        Form | None, typer.Option(help="How low rank is stored; default: interpolative.")
    ] = None,
    allocation: Annotated[
        Allocation | None,
        typer.Option(help="How layers share what is kept; default: the method's own."),
    ] = None,
    heal_steps: Annotated[
        int, typer.Option(min=0, help="Steps of distillation from the dense model afterwards.")
    ] = 0,
    calibration: CalibrationOption = None,
    evaluate: EvaluateOption = None,
    samples: SamplesOption = 64,
    seq_len: SeqLenOption = 512,
    windows: WindowsOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep what is computed there: the same command goes on from it."
        ),
    ] = None,
    on_disk: Annotated[
        bool,
        typer.Option("--on-disk", help="With little more than one block of MODEL in memory."),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only say what would be done, and why; nothing is written."),
    ] = False,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS",
            help="Measure models of these ratios (0.1,0.2,0.4) on the --evaluate text; OUT gets "
            "a table and a plot of them, and no model.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress MODEL and save it to the directory OUT."""
    from fastlr.cli.compress import compress
    from fastlr.cli.compress_request import CompressRequest

    compress(
        CompressRequest(
            model=model,
            out=out,
            ratio=ratio,
            methods=tuple(one.value for one in method or (Method.auto,)),
            form=form,
            allocation=allocation,
            heal_steps=heal_steps,
            calibration=calibration,
            evaluate=evaluate,
            samples=samples,
            seq_len=seq_len,
            windows=windows,
            seed=seed,
            dtype=dtype,
            device=device,
            checkpoint=checkpoint,
            on_disk=on_disk,
            plan=plan,
            sweep=sweep,
            overwrite=overwrite,
        ),
        as_json=as_json,
    )


@app.command("quantize")
def _quantize(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    rank: Annotated[
        int, typer.Option(min=1, help="Of the map of low rank beside each layer.")
    ] = 64,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Of all layers; default without --bits: nf4.")
    ] = None,
    block_size: Annotated[int, typer.Option(help="Entries that share a scale.")] = 64,
    bits: Annotated[
        float | None,
        typer.Option(help="For each entry of the weights in all: every layer gets what is best."),
    ] = None,
    calibration: CalibrationOption = None,
    evaluate: EvaluateOption = None,
    samples: SamplesOption = 64,
    seq_len: SeqLenOption = 512,
    windows: WindowsOption = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Store MODEL in 4 or 8 bits with maps of low rank beside, and save it to OUT."""
    from fastlr.cli.quantize import quantize

    quantize(
        model,
        out,
        rank=rank,
        quantization=quantization,
        block_size=block_size,
        bits=bits,
        calibration=calibration,
        evaluate=evaluate,
        samples=samples,
        seq_len=seq_len,
        windows=windows,
        seed=seed,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
        as_json=as_json,
    )


@app.command("evaluate")
def _evaluate(
    model: ModelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text.")],
    seq_len: SeqLenOption = 512,
    windows: Annotated[int | None, typer.Option(min=1, help="How many; default: all.")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure MODEL's perplexity on the text in FILE."""
    from fastlr.cli.evaluate import evaluate

    evaluate(
        model, file, seq_len=seq_len, windows=windows, dtype=dtype, device=device, as_json=as_json
    )


@app.command("inspect")
def _inspect(
    model: ModelArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html|DIR", help="Write a page; in a directory, all numbers beside it."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the singular values, by type of layer."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only such layers: q_proj, 'model.layers.1?.*'."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text on which to measure the hidden states."),
    ] = None,
    seq_len: SeqLenOption = 512,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Windows of the --text; default: all.")
    ] = None,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Show how the singular values of MODEL's weights fall, and how heavy their tails are."""
    from fastlr.cli.inspect import InspectRequest, inspect

    inspect(
        InspectRequest(
            model=model,
            out=out,
            plot=plot,
            layers=layers,
            text=text,
            seq_len=seq_len,
            windows=windows,
            seed=seed,
            dtype=dtype,
            device=device,
        ),
        as_json=as_json,
    )


@app.command("demo")
def _demo(
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR|FILE.gguf", help="Another model than SmolLM2-135M-Instruct."),
    ] = None,
    ratio: RatioOption = 0.2,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path(
        "fastlr-demo"
    ),
    samples: SamplesOption = 12,
    seq_len: SeqLenOption = 512,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each evaluation.")] = 4,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compress a real language model and write a report: a few minutes on two cores."""
    from fastlr.cli.demo import DemoRequest, demo

    code = demo(
        DemoRequest(
            model=model,
            ratio=ratio,
            out=out,
            samples=samples,
            seq_len=seq_len,
            windows=windows,
            seed=seed,
        ),
        as_json=as_json,
    )
    if code:
        raise typer.Exit(code)


@app.command("doctor")
def _doctor(as_json: JsonOption = False) -> None:
    """Show versions and hardware, and check that fastlr works; exit code 1 if it does not."""
    from fastlr.cli.console import print_json
    from fastlr.cli.doctor import diagnose, print_findings, report

    findings = diagnose()
    if as_json:
        print_json(report(findings))
    else:
        print_findings(findings)
    if any(finding.status == "broken" for finding in findings):
        raise typer.Exit(1)


def run(arguments: list[str]) -> int:
    """Run one command; an expected error becomes one sentence on stderr and exit code 2."""
    try:
        # Not typer's standalone mode: that one prints usage boxes and exits by itself.
        command = typer.main.get_command(app)
        with _plain_warnings():
            code = command(arguments, prog_name="fastlr", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(error.format_message())
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if wants_traceback() or not is_expected(error):
            raise
        return _fail(sentence(error))
    if code == 130:
        _complain("interrupted; nothing half-written was left behind")
    return code if isinstance(code, int) else 0


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show what the library warns about as a sentence, without the place in the source."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        # Warnings about the future of some package are for developers.
        if category is UserWarning or category.__module__.startswith("fastlr"):
            _complain(f"warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _fail(message: str) -> int:
    _complain(" ".join(message.split()))
    return 2


def _complain(message: str) -> None:
    print(f"fastlr: {message}", file=sys.stderr)
