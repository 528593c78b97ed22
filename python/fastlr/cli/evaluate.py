"""``fastlr evaluate``: the perplexity of a model on a text."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.console import Progress, print_json
from fastlr.cli.models import find_model, load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Measured:
    """A perplexity and what it was measured on."""

    perplexity: float
    windows: int
    seq_len: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement for a JSON report."""
        return {
            "perplexity": self.perplexity,
            "windows": self.windows,
            "seq_len": self.seq_len,
            "tokens_per_second": self.windows * self.seq_len / self.seconds,
        }


def evaluate(
    model_name: str,
    file: Path,
    *,
    seq_len: int,
    windows: int | None,
    dtype: str,
    device: str,
    as_json: bool,
) -> None:
    """Run the command; its arguments are the command's options."""
    progress = Progress()
    source = find_model(model_name)
    check_text(file)
    with progress.stage("load", f"Loading {source.path}", spin=True):
        tokenizer = load_tokenizer(source)
        model = load_model(source, dtype, device)
    tokens = read_windows(file, tokenizer, seq_len, windows)
    with progress.stage("evaluate", "Measuring perplexity"):
        measured = measure(model, tokens, seq_len)
    result = {
        "model": str(source.path),
        "file": str(file),
        **measured.to_dict(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": model.num_parameters(),
    }
    if as_json:
        print_json(result)
        return
    print(
        f"perplexity {measured.perplexity:.4f} ({measured.windows} windows of {seq_len} tokens, "
        f"{result['dtype']}, {result['tokens_per_second']:.0f} tokens/s)"
    )


def check_text(file: Path) -> None:
    """Refuse a text that cannot be used, before minutes are spent on loading a model."""
    if file.is_dir():
        raise ValueError(f"{file} is a directory; a text file was expected")
    with file.open("rb") as opened:
        if not opened.read(1):
            raise ValueError(f"{file} is empty")


def read_windows(
    file: Path, tokenizer: PreTrainedTokenizerBase, seq_len: int, windows: int | None
) -> Tensor:
    """Return the tokens of the first `windows` windows of a text (all of them when None).

    Raises
    ------
    ValueError
        If the text does not fill one window.
    """
    from fastlr.nn.evaluate import tokenize_file

    tokens = tokenize_file(file, tokenizer).flatten()
    whole = len(tokens) // seq_len
    if whole == 0:
        raise ValueError(
            f"{file} has {len(tokens)} tokens, fewer than one window of {seq_len}; "
            "give a longer text or a smaller --seq-len"
        )
    return tokens[: seq_len * min(whole, windows or whole)]


def measure(model: PreTrainedModel, tokens: Tensor, seq_len: int) -> Measured:
    """Measure perplexity over windows that fill `tokens` exactly."""
    from fastlr.nn import perplexity

    started = time.perf_counter()
    value = perplexity(model, tokens, seq_len, progress=True)
    return Measured(value, len(tokens) // seq_len, seq_len, time.perf_counter() - started)
