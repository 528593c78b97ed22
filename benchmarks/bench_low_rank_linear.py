"""Layers that are stored as factors, beside the dense layer.

The floor of a row is the dense layer's time times the share of its numbers that the row's layer
stores: the share of the bytes that one token reads, and that of the flops of many. `two products`
is the low-rank layer as two calls of torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.nn import InterpolativeLinear, LowRankLinear
from harness import Case, Session

SIZES = [(1536, 576), (2048, 2048), (4096, 4096)]
TOKENS = (1, 8, 512)
# A single call may take a few microseconds: so many multiplications are timed at once.
TIMED = 2**30


def main() -> None:
    with (
        Session(__doc__, options={"ratio": 0.5, "dtype": "float32"}) as session,
        torch.inference_mode(),
    ):
        dtype = getattr(torch, session.options.dtype)
        for outputs, inputs in SIZES:
            dense = nn.Linear(inputs, outputs, dtype=dtype)
            layers = layers_of(dense, session.options.ratio)
            for tokens in TOKENS:
                X = torch.randn(tokens, inputs).to(dtype)
                calls = max(1, TIMED // (tokens * dense.weight.numel()))
                cases = [
                    Case(name, repeated(layer, X, calls), floors=share)
                    for name, (layer, share) in layers.items()
                ]
                floor = Case("dense", repeated(dense, X, calls))
                title = f"{outputs} × {inputs}, {tokens} tokens, {dtype}, {calls} calls"
                session.table(title, cases, floor=floor)


def layers_of(
    dense: nn.Linear, ratio: float
) -> dict[str, tuple[Callable[[Tensor], Tensor], float]]:
    """Layers of any values, without `ratio` of the numbers, and the share that they store."""
    outputs, inputs = dense.weight.shape
    numbers = (1 - ratio) * outputs * inputs
    whole = outputs + inputs
    rank = int(numbers / whole)
    low_rank = LowRankLinear(inputs, outputs, rank, dtype=dense.weight.dtype)
    layers: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
        "two products": (
            lambda X: F.linear(F.linear(X, low_rank.A), low_rank.B, low_rank.bias),
            low_rank.weight_parameters() / dense.weight.numel(),
        ),
        "LowRankLinear": (low_rank, low_rank.weight_parameters() / dense.weight.numel()),
    }
    rank = int((whole - (whole**2 - 4 * numbers) ** 0.5) / 2)  # of r·(o + i) − r² numbers
    for side in ("rows", "columns"):
        layer = InterpolativeLinear(inputs, outputs, rank, side=side, dtype=dense.weight.dtype)
        layer.order.copy_(torch.randperm(len(layer.order)))
        share = layer.weight_parameters() / dense.weight.numel()
        layers[f"InterpolativeLinear, {side}"] = (layer, share)
    return layers


def repeated(layer: Callable[[Tensor], Tensor], X: Tensor, calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            layer(X)

    return run


if __name__ == "__main__":
    main()
