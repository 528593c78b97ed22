"""Measuring a causal language model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS_A_BATCH = 2048


def perplexity(
    model: PreTrainedModel,
    tokens: Tensor,
    seq_len: int,
    *,
    batch_size: int | None = None,
    windows: int | None = None,
    progress: bool = False,
) -> float:
    """The perplexity of a causal language model on a text.

    The text is cut into non-overlapping windows of `seq_len` tokens, without the tail that does not
    fill one; the result is exp of the mean negative log-likelihood over the seq_len − 1 predicted
    positions of every window. Nothing is put in front of a window: whether the text begins with a
    BOS token is the caller's choice.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model, of any dtype, on any device. It is evaluated as in ``eval()`` and
        left in the mode it was in.
    tokens : Tensor of shape (n,) or (1, n)
        Token ids, any integer dtype.
    seq_len : int
        The window length, at least 2.
    batch_size : int, optional
        Windows in one forward pass; by default as many as make about 2048 tokens.
    windows : int, optional
        Use only the first `windows` windows.
    progress : bool, default False
        Show a progress bar on stderr.

    Returns
    -------
    float
        NaN where the loss of any window is not finite: such a window is never skipped.

    Raises
    ------
    TypeError
        If `tokens` is not an integer tensor.
    ValueError
        If there are fewer than `seq_len` tokens, a token is outside the vocabulary, or a size is
        out of range.

    Notes
    -----
    One forward pass over the text. The log-likelihoods are taken in float32, whatever the model's
    dtype, and summed in float64. This is the protocol of the WikiText-2 figures in the literature,
    from Merity et al., "Pointer sentinel mixture models", ICLR 2017.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import perplexity
    >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32,
    ...     num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> _ = torch.nn.init.zeros_(model.lm_head.weight)  # now every token is equally likely
    >>> round(perplexity(model, torch.arange(32), seq_len=8), 3)
    32.0
    """
    batches = evaluation_windows(model, tokens, seq_len, windows)
    size = max(1, _TOKENS_A_BATCH // seq_len) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"perplexity: batch_size must be at least 1, got {size}")
    total = 0.0
    device = embedding_weight(model).device
    with Progress(progress) as bar, evaluation_mode(model), torch.no_grad():
        bar.stage("Perplexity", len(batches))
        for start in range(0, len(batches), size):
            batch = batches[start : start + size]
            total += _negative_log_likelihood(model, batch.to(device))
            bar.step(steps=len(batch))
    mean = total / (len(batches) * (seq_len - 1))
    if not math.isfinite(mean):
        return math.nan
    return math.exp(mean) if mean < math.log(float_max()) else math.inf


def evaluation_windows(
    model: PreTrainedModel,
    tokens: Tensor,
    seq_len: int,
    windows: int | None,
    owner: str = "perplexity",
) -> Tensor:
    """The non-overlapping windows of `tokens`, windows × seq_len, int64, once all is checked.

    Errors begin with `owner`.
    """
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex():
        found = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"{owner}: tokens must be a tensor of integers, got {found}")
    if tokens.ndim == 2 and len(tokens) == 1:
        tokens = tokens[0]
    if tokens.ndim != 1:
        raise ValueError(
            f"{owner}: tokens must have shape (n,) or (1, n), got {tuple(tokens.shape)}"
        )
    if seq_len < 2:
        raise ValueError(f"{owner}: seq_len must be at least 2, got {seq_len}")
    check_context(owner, model, seq_len)
    count = len(tokens) // seq_len
    if count == 0:
        raise ValueError(
            f"{owner}: tokens must fill at least one window of seq_len = {seq_len}, "
            f"got {len(tokens)} tokens"
        )
    if windows is not None:
        if windows < 1:
            raise ValueError(f"{owner}: windows must be at least 1, got {windows}")
        count = min(count, windows)
    check_vocabulary(owner, model, tokens)
    return tokens[: count * seq_len].reshape(count, seq_len).to(torch.int64)


def _negative_log_likelihood(model: PreTrainedModel, batch: Tensor) -> float:
    """The sum over all predicted positions of the batch."""
    logits = model(input_ids=batch, use_cache=False).logits
    total = 0.0
    for window, scores in zip(batch, logits, strict=True):
        losses = F.cross_entropy(scores[:-1].float(), window[1:], reduction="none")
        total += float(losses.double().sum())
    return total


def tokenize_file(path: str | os.PathLike[str], tokenizer: Any) -> Tensor:
    """The tokens of a UTF-8 text file, without special tokens.

    Parameters
    ----------
    path : str or path
    tokenizer : a transformers tokenizer

    Returns
    -------
    Tensor of shape (n,), int64

    Raises
    ------
    ValueError
        If the file cannot be read, is not UTF-8 text, or is empty; or if `tokenizer` is None.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from fastlr.nn.evaluate import tokenize_file
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "text.txt"
    >>> _ = path.write_text("abc")
    >>> tokenize_file(path, lambda text, **options: {"input_ids": [ord(c) for c in text]}).tolist()
    [97, 98, 99]
    """
    return tokenize(read_text(path), tokenizer)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file that is not empty; ValueError with the reason otherwise."""
    shown = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot read the text file {shown!r}: {reason}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the file {shown!r} is not UTF-8 text: {error}") from error
    if not text.strip():
        raise ValueError(f"the text file {shown!r} is empty")
    return text


def tokenize(text: str, tokenizer: Any) -> Tensor:
    """The tokens of `text`, int64, without special tokens; ValueError without a tokenizer."""
    if tokenizer is None:
        raise ValueError("a text can only be used with a tokenizer: pass tokenizer=…")
    # verbose=False: a whole text is meant to be longer than the model's context.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def check_vocabulary(owner: str, model: PreTrainedModel, tokens: Tensor) -> None:
    """Raise ValueError if a token id is not a row of the model's embedding."""
    size = len(embedding_weight(model))
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"{owner}: token ids must be between 0 and {size - 1}, the model's vocabulary, "
            f"got {low if low < 0 else high}"
        )


def check_context(owner: str, model: PreTrainedModel, seq_len: int) -> None:
    """Raise ValueError if windows of `seq_len` tokens do not fit the model's context."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from the row after that of padding.
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            limit -= padding + 1
    if limit < seq_len:
        raise ValueError(
            f"{owner}: seq_len must be at most {limit}, the model's longest context, got {seq_len}"
        )


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """The token embedding, vocabulary × width."""
    return cast(Tensor, model.get_input_embeddings().weight)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def training_only(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only the `chosen` parameters of the model get gradients; afterwards, those as before."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)


def float_max() -> float:
    """The largest float64."""
    return torch.finfo(torch.float64).max
