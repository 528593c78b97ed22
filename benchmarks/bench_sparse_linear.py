"""Layers that keep some entries of their weight, beside dense ones.

The floor is the dense layer. As a model does, a step walks through a list of layers that together
are larger than the cache; `bytes` are those of the weights, relative to the dense ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastlr.nn import SparseLinear
from harness import Case, Session

# outputs, inputs, layers
SHAPES = ((576, 576, 50), (1536, 576, 50), (576, 1536, 50), (4096, 4096, 3))
DENSITIES = (0.77, 0.6)
TOKENS = (1, 4, 8, 2048)


def walk(layers: Sequence[nn.Module], inputs: Tensor) -> Callable[[], None]:
    """One step through all layers."""

    def step() -> None:
        with torch.no_grad():
            for layer in layers:
                layer(inputs)

    return step


def measure(session: Session, o: int, i: int, count: int, dtype: torch.dtype) -> None:
    dense = [nn.Linear(i, o, bias=False, dtype=dtype) for _ in range(count)]
    sparse = {
        density: [SparseLinear.from_dense(layer, density) for layer in dense]
        for density in DENSITIES
    }
    size = dense[0].weight.numel() * dense[0].weight.element_size()
    for tokens in TOKENS:
        inputs = torch.randn(tokens, i, dtype=dtype)
        # Many tokens are no matter of memory: three layers will do.
        used = count if tokens < 100 else 3
        session.table(
            f"{used} layers of {o} × {i}, {str(dtype).removeprefix('torch.')}, {tokens} tokens",
            [
                Case(
                    f"SparseLinear, density {density}",
                    walk(layers[:used], inputs),
                    lambda _, layer=layers[0]: {"bytes": layer.weight_bytes() / size},
                )
                for density, layers in sparse.items()
            ],
            floor=Case("dense", walk(dense[:used], inputs)),
        )


def main() -> None:
    with Session(__doc__, repeats=21, options={"dtype": "float32"}) as session:
        for o, i, count in SHAPES:
            measure(session, o, i, count, getattr(torch, session.options.dtype))


if __name__ == "__main__":
    main()
