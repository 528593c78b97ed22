"""From what the user has to the batches of tokens that calibrate a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fastlr.linalg._warnings import warn
from fastlr.nn.compression.self_calibration import sample_tokens
from fastlr.nn.evaluate import check_context, check_vocabulary, read_text, tokenize
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Calibration: TypeAlias = (
    "str | os.PathLike[str] | list[str] | Tensor | Mapping[str, Tensor] | "
    "Iterable[Tensor | Mapping[str, Tensor]] | None"
)
_TOKENS_A_BATCH = 2048
_BESIDE = ("attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Batch:
    """Sequences that go through the model together.

    Attributes
    ----------
    input_ids : Tensor of shape (sequences, length), int64
    attention_mask : Tensor of the same shape or None
        Zero where a position is padding; such positions do not count.
    token_type_ids : Tensor of the same shape or None
        Which of two texts a token belongs to, for models that are told.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None

    def tokens(self) -> int:
        """The positions that count."""
        if self.attention_mask is None:
            return self.input_ids.numel()
        return int((self.attention_mask != 0).sum())

    def rows(self, chosen: Tensor | slice) -> Batch:
        """Some of the sequences."""
        beside = (self.attention_mask, self.token_type_ids)
        return Batch(self.input_ids[chosen], *(None if t is None else t[chosen] for t in beside))

    def parts(self, tokens: int = 1024) -> Iterator[Batch]:
        """The sequences in order, some `tokens` tokens of them at a time, at least one sequence."""
        count = max(1, tokens // self.input_ids.shape[1])
        for start in range(0, len(self.input_ids), count):
            yield self.rows(slice(start, start + count))


def calibration_batches(
    model: PreTrainedModel,
    calibration: Calibration,
    *,
    tokenizer: Any = None,
    samples: int = 64,
    seq_len: int = 512,
    seed: int = 0,
    bar: Progress | None = None,
) -> list[Batch]:
    """The token batches that `calibration` stands for; see :func:`fastlr.nn.compress_llm`.

    Raises
    ------
    TypeError
        If `calibration` is none of the accepted kinds.
    ValueError
        If samples or seq_len is not positive, a text comes without a tokenizer, a file cannot be
        read or is empty, there is less than one window of tokens, or a token is outside the
        vocabulary.
    """
    for name, value in (("samples", samples), ("seq_len", seq_len)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if calibration is None:
        check_context("calibration", model, seq_len)
        bar = bar if bar is not None else Progress(False)
        return in_batches(sample_tokens(model, samples, seq_len, seed, bar))
    if isinstance(calibration, Tensor):
        batches = _from_tensor(model, calibration, samples, seq_len, seed)
    elif isinstance(calibration, str | os.PathLike):
        text = read_text(calibration)
        batches = _from_stream(model, tokenize(text, tokenizer), samples, seq_len, seed)
    elif isinstance(calibration, Mapping):
        batches = [_from_item(calibration)]
    elif isinstance(calibration, Iterable) and not isinstance(calibration, bytes):
        batches = _from_items(model, list(calibration), tokenizer, samples, seq_len, seed)
    else:
        raise TypeError(
            "calibration must be None, a path to a text file, a list of strings, a token tensor or "
            f"an iterable of batches, got {type(calibration).__name__}"
        )
    for batch in batches:
        check_vocabulary("calibration", model, batch.input_ids)
        check_context("calibration", model, batch.input_ids.shape[1])
    return batches


def in_batches(windows: Tensor) -> list[Batch]:
    """Rows of tokens in batches of about 2048 tokens."""
    return list(Batch(windows.to(torch.int64)).parts(_TOKENS_A_BATCH))


def random_windows(tokens: Tensor, samples: int, seq_len: int, seed: int) -> Tensor:
    """`samples` non-overlapping windows of a stream of tokens, samples × seq_len, in text order.

    Fewer, with a warning, where the stream does not hold as many; ValueError if it holds none.
    """
    count = len(tokens) // seq_len
    if count == 0:
        raise ValueError(
            f"calibration must hold at least seq_len = {seq_len} tokens, got {len(tokens)}"
        )
    if count < samples:
        warn(
            f"calibration holds {count} windows of {seq_len} tokens, fewer than samples={samples}; "
            "all of them are used",
            UserWarning,
        )
    generator = torch.Generator().manual_seed(seed)
    spare = len(tokens) - count * seq_len
    offset = int(torch.randint(spare + 1, (), generator=generator))
    windows = tokens[offset : offset + count * seq_len].reshape(count, seq_len)
    chosen = torch.randperm(count, generator=generator)[:samples].sort().values
    return windows[chosen]


def _from_stream(
    model: PreTrainedModel, tokens: Tensor, samples: int, seq_len: int, seed: int
) -> list[Batch]:
    check_context("calibration", model, seq_len)
    return in_batches(random_windows(tokens, samples, seq_len, seed))


def _from_tensor(
    model: PreTrainedModel, tokens: Tensor, samples: int, seq_len: int, seed: int
) -> list[Batch]:
    """A stream (1-D) is cut into windows; the rows of a matrix are the windows."""
    require_token_ids(tokens)
    if tokens.ndim == 1:
        return _from_stream(model, tokens.cpu(), samples, seq_len, seed)
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(
            "calibration must be a non-empty token tensor with one or two dimensions, got shape "
            f"{tuple(tokens.shape)}"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(tokens), generator=generator)[:samples].sort().values
    return in_batches(tokens.cpu()[chosen])


def _from_items(
    model: PreTrainedModel,
    items: list[Any],
    tokenizer: Any,
    samples: int,
    seq_len: int,
    seed: int,
) -> list[Batch]:
    if not items:
        raise ValueError("calibration must not be empty, got an iterable without any item")
    if all(isinstance(item, str) for item in items):
        tokens = torch.cat([tokenize(text, tokenizer) for text in items])
        return _from_stream(model, tokens, samples, seq_len, seed)
    return [_from_item(item) for item in items]


def _from_item(item: Any) -> Batch:
    """One batch of the user's own: a tensor, or a mapping with input_ids."""
    beside: dict[str, Any] = {}
    if isinstance(item, Mapping):
        if "input_ids" not in item:
            raise ValueError(
                f"calibration: a batch must have the key 'input_ids', got {sorted(item)}"
            )
        beside = {key: item[key] for key in _BESIDE if item.get(key) is not None}
        item = item["input_ids"]
    if not isinstance(item, Tensor):
        raise TypeError(
            "calibration: a batch must be a token tensor or a mapping with input_ids, got "
            + type(item).__name__
        )
    require_token_ids(item)
    ids = item.unsqueeze(0) if item.ndim == 1 else item
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(
            "calibration: a batch must be a non-empty tensor with one or two dimensions, got shape "
            f"{tuple(item.shape)}"
        )
    for key, given in beside.items():
        if given.shape not in (ids.shape, item.shape):
            raise ValueError(
                f"calibration: {key} of a batch must have its shape {tuple(item.shape)}, got "
                f"{tuple(given.shape)}"
            )
    rest = {key: given.reshape(ids.shape).cpu() for key, given in beside.items()}
    return Batch(ids.to(torch.int64).cpu(), **rest)


def require_token_ids(tokens: Tensor) -> None:
    """Raise TypeError unless `tokens` holds integers."""
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"calibration: tokens must be integers, got a tensor of {tokens.dtype}")
