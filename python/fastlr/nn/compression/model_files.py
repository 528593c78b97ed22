"""All that is kept of the compression of one model in a checkpoint directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlr.nn.compression.blocks import BlockStack
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.checkpoint import (
    Checkpoint,
    fingerprint_of_model,
    fingerprint_of_tensors,
)
from fastlr.nn.compression.run_record import StoredRun
from fastlr.nn.compression.settings import Settings
from fastlr.nn.compression.statistics import Statistics
from fastlr.nn.compression.stored_statistics import StoredCollection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Blocks = Sequence[Mapping[str, nn.Module]]


@dataclass(frozen=True)
class ModelFiles:
    """The results for one model. What is computed from other inputs has another place.

    Attributes
    ----------
    files : Checkpoint
    release : callable or None
        As for :class:`~fastlr.nn.compression.run_record.StoredRun`.
    """

    files: Checkpoint
    release: Callable[[], None] | None = None

    @classmethod
    def of(cls, directory: str | os.PathLike[str], model: nn.Module) -> ModelFiles:
        """For a model in memory."""
        return cls.keyed(directory, fingerprint_of_model(model))

    @classmethod
    def keyed(
        cls,
        directory: str | os.PathLike[str],
        model_key: str,
        release: Callable[[], None] | None = None,
    ) -> ModelFiles:
        """For a model whose content has the name `model_key`."""
        import fastlr

        key = model_key, fastlr.__version__, torch.__version__
        return cls(Checkpoint(directory).part(*key), release)

    def text(self, key: Sequence[object], write: Callable[[], list[Batch]]) -> list[Batch]:
        """The tokens that the model writes with the settings `key`, without masks."""
        name = "text"
        files = self.files.part(name, *key)
        if name not in files:
            windows = {str(n): batch.input_ids for n, batch in enumerate(write())}
            files.write(name, windows)
        tensors, _ = files.read(name)
        return [Batch(tensors[str(number)].clone()) for number in range(len(tensors))]

    def collection(
        self, model: PreTrainedModel, stack: BlockStack, blocks: Blocks, batches: Sequence[Batch]
    ) -> StoredCollection:
        """The statistics of some layers on some batches."""
        files = self.files.part("statistics", _names(blocks), batches_key(batches))
        return StoredCollection(model, stack, blocks, batches, files, self._release)

    def record(self, settings: Settings, blocks: Blocks, calibration_key: str) -> StoredRun:
        """The run with these settings, on what was calibrated under that name."""
        one = [_names(blocks), calibration_key, settings.name, settings.form, settings.multiple]
        joined = settings.ratio if settings.method.join is not None else None
        return StoredRun(
            self.files.part("curves", *one, joined),
            self.files.part("layers", *one, *settings.shares()),
            None if self.release is None else self._release,
        )

    def _release(self) -> None:
        if self.release is not None:
            self.files.release()
            self.release()


def batches_key(batches: Sequence[Batch]) -> str:
    """A name for some tokens and all that goes with them."""
    none = torch.empty(0)
    parts = (part for batch in batches for part in vars(batch).values())
    return fingerprint_of_tensors(*(none if part is None else part for part in parts))


def statistics_key(statistics: Statistics | None) -> str:
    """A name for statistics that the caller has; of those that come from files see above."""
    if statistics is None:
        return "uncalibrated"
    grams = [*statistics.grams.values(), *statistics.gradients.values()]
    sums = (part for gram in grams for part in (gram.matrix, gram.total, gram.magnitude))
    distinct: dict[int, Tensor] = {id(part): part for part in sums if part is not None}
    return fingerprint_of_tensors(*distinct.values()) + batches_key(statistics.batches)


def _names(blocks: Blocks) -> list[list[str]]:
    return [list(block) for block in blocks]
