"""A model that is loaded, measured, changed, measured again and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.console import Progress
from fastlr.cli.errors import sentence
from fastlr.cli.evaluate import Measured, measure, read_windows
from fastlr.cli.models import ModelSource, has_tokenizer, load_model, load_tokenizer
from fastlr.nn.output import atomic_directory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rewriting:
    """What is read and written, and how it is measured.

    Attributes
    ----------
    source : ModelSource
    out : Path
        The directory to write.
    calibration, evaluate : Path, optional
        Texts; the second one to measure the perplexity on.
    seq_len, windows : int, optional
        Of what is measured.
    dtype, device : str
        Of the model.
    """

    source: ModelSource
    out: Path
    calibration: Path | None
    evaluate: Path | None
    seq_len: int
    windows: int | None
    dtype: str
    device: str

    def run(
        self,
        change: Callable[[PreTrainedModel, PreTrainedTokenizerBase | None], None],
        progress: Progress,
    ) -> tuple[PreTrainedModel, Perplexities]:
        """The changed model and its perplexities; nothing is left at `out` where it fails."""
        # The directory is made first, so that one that cannot be written costs no waiting.
        with atomic_directory(self.out) as partial:
            with progress.stage("load", f"Loading {self.source.path}", spin=True):
                tokenizer = self._tokenizer(progress)
                model = load_model(self.source, self.dtype, self.device)
            tokens = None
            if self.evaluate is not None and tokenizer is not None:
                tokens = read_windows(self.evaluate, tokenizer, self.seq_len, self.windows)
            before = self._perplexity(model, tokens, progress, "before")
            change(model, tokenizer)
            after = self._perplexity(model, tokens, progress, "after")
            with progress.stage("save", f"Saving to {self.out}"):
                self._save(model, tokenizer, partial)
        return model, Perplexities(before, after)

    def _tokenizer(self, progress: Progress) -> PreTrainedTokenizerBase | None:
        reads_text = self.calibration is not None or self.evaluate is not None
        if reads_text or has_tokenizer(self.source):
            return load_tokenizer(self.source)
        say_no_tokenizer(self.source, progress)
        return None

    def _perplexity(
        self, model: PreTrainedModel, tokens: Tensor | None, progress: Progress, when: str
    ) -> Measured | None:
        if tokens is None:
            return None
        with progress.stage(f"evaluate_{when}", f"Measuring perplexity {when}"):
            return measure(model, tokens, self.seq_len)

    def _save(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, partial: Path
    ) -> None:
        """Write both to `partial`; ValueError, of `out`, where there is no room for them."""
        from safetensors import SafetensorError

        try:
            model.save_pretrained(partial)
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
        # What safetensors raises is no OSError, even where the disk is full.
        except SafetensorError as error:
            raise ValueError(f"{self.out} cannot be written: {sentence(error)}") from error


@dataclass(frozen=True)
class Perplexities:
    """Of a model before and after, where they were measured."""

    before: Measured | None = None
    after: Measured | None = None

    def document(self) -> dict[str, Any]:
        """The perplexities for JSON, None where they were not measured."""
        return {
            "perplexity_before": self.before.to_dict() if self.before else None,
            "perplexity_after": self.after.to_dict() if self.after else None,
        }

    def line(self) -> str | None:
        """For people; None where nothing was measured."""
        if self.before is None or self.after is None:
            return None
        return (
            f"perplexity {self.before.perplexity:.4f} → {self.after.perplexity:.4f} "
            f"({self.after.windows} windows of {self.after.seq_len} tokens)"
        )


def say_no_tokenizer(source: ModelSource, progress: Progress) -> None:
    progress.say(f"{source.path} holds no tokenizer, so none is saved with the result.")
