"""How much of their room the hidden states of a language model fill, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastlr.nn.compression.blocks import find_blocks, hidden_of
from fastlr.nn.compression.features import hearing
from fastlr.nn.evaluate import embedding_weight, evaluation_mode, evaluation_windows
from fastlr.nn.modules.dense import high_precision
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def block_nuclear_norms(
    model: PreTrainedModel, tokens: Tensor, seq_len: int, windows: int | None, bar: Progress
) -> tuple[dict[str, float], int]:
    """For each block, by name, the mean over windows of `matrix_nuclear_norm` of its output.

    The second result is how many tokens the windows have.

    Raises
    ------
    TypeError
        If `model` is no language model of transformers, or `tokens` no integer tensor.
    ValueError
        If the tokens do not fit the model or do not fill a window.
    """
    if not hasattr(model, "get_input_embeddings"):
        raise TypeError(
            f"spectra: inputs need a language model of transformers, got {type(model).__name__}"
        )
    batches = evaluation_windows(model, tokens, seq_len, windows, owner="spectra")
    stack = find_blocks(model)
    blocks = {stack.block_name(index): block for index, block in enumerate(stack.blocks)}
    totals = dict.fromkeys(blocks, 0.0)

    def hear(name: str, args: Any, kwargs: Any, output: Any) -> None:
        totals[name] += matrix_nuclear_norm(hidden_of(output)[0])

    device = embedding_weight(model).device
    bar.stage("Hidden states", len(batches))
    with evaluation_mode(model), torch.no_grad(), hearing(blocks, hear):
        for window in batches:
            # Without the head, whose logits nobody needs.
            model.base_model(input_ids=window[None].to(device), use_cache=False)
            bar.step()
    means = {name: total / len(batches) for name, total in totals.items()}
    return means, batches.numel()


def matrix_nuclear_norm(states: Tensor) -> float:
    """An approximation of the nuclear norm of the states of some tokens, a token.

    Rows of X, tokens × width, are centred by their mean and scaled to length 1 (one that is equal
    to the mean stays 0). The result is the sum of the D = min(tokens, width) largest Euclidean
    norms of columns, over the number of tokens: at most √(D / tokens).

    Parameters
    ----------
    states : Tensor of shape (tokens, width)

    Returns
    -------
    float
        NaN where the states are not finite.
    """
    exact = high_precision(states)
    centred = exact - exact.mean(0)
    lengths = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    rows = centred / lengths.masked_fill(lengths == 0, 1)
    columns = torch.linalg.vector_norm(rows, dim=0)
    return float(columns.topk(min(rows.shape)).values.sum()) / len(rows)
