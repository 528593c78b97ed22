"""How much each block of a model does to the hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastlr.nn.compression.blocks import BlockStack, hidden_of
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.forward_pass import run_batch
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A mean over so many tokens is known to a percent or two of itself.
_TOKENS = 4096


def block_influences(
    model: PreTrainedModel, stack: BlockStack, batches: Sequence[Batch], bar: Progress
) -> list[float]:
    """For each block, 1 − the mean cosine of the hidden states before and after it.

    One forward pass over some 4096 of the tokens; positions that are masked do not count.

    X. Men, M. Xu, Q. Zhang, B. Wang, H. Lin, Y. Lu, X. Han, W. Chen, "ShortGPT: Layers in large
    language models are more redundant than you expect", arXiv:2403.03853, 2024.
    """
    sums = [0.0] * len(stack.blocks)
    parts = [part for batch in batches for part in batch.parts()]
    chosen: list[Batch] = []
    while len(chosen) < len(parts) and sum(part.tokens() for part in chosen) < _TOKENS:
        chosen.append(parts[len(chosen)])
    tokens = sum(part.tokens() for part in chosen)
    keep: Tensor | None = None

    def listener(index: int) -> Any:
        def listen(block: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            before = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            cosines = functional.cosine_similarity(
                before.double(), hidden_of(output).double(), dim=-1
            )
            counted = cosines if keep is None else cosines[keep.to(cosines.device)]
            sums[index] += float((1 - counted).sum())

        return listen

    bar.stage("Measuring the blocks' influence", len(chosen))
    handles = [
        block.register_forward_hook(listener(index), with_kwargs=True)
        for index, block in enumerate(stack.blocks)
    ]
    try:
        with torch.no_grad():
            for part in chosen:
                keep = None if part.attention_mask is None else part.attention_mask != 0
                run_batch(model, part)
                bar.step()
    finally:
        for handle in handles:
            handle.remove()
    return [value / tokens for value in sums]
