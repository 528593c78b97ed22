"""A linear layer with a bounded norm: a step of training, and the norm after parameters moved.

Forward and backward of n × n layers for 256 inputs in float32; the floor is `nn.Linear`. The norm,
which is to be 1 at most, is that after the parameters were multiplied by 10 and noise was added:
`spectral_norm` estimates it by power iteration, one step a forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastlr.nn import LipschitzLinear, LipschitzResidual
from harness import Case, Session

SIZES = [64, 256, 512]


def step(module: nn.Module, x: Tensor) -> nn.Module:
    module.zero_grad()
    module(x).square().sum().backward()
    return module


def moved_norm(module: nn.Module) -> dict[str, str]:
    """‖W‖₂ after the parameters moved; the times that follow do not depend on their values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(10).add_(torch.randn_like(parameter))
    weight = module.weight
    assert isinstance(weight, Tensor)
    return {"norm": f"{float(torch.linalg.matrix_norm(weight.detach().double(), 2)):.6f}"}


def main() -> None:
    with Session(__doc__) as session:
        for n in SIZES:
            torch.manual_seed(0)
            x = torch.randn(256, n)
            layers = {
                "fastlr LipschitzLinear": LipschitzLinear(n, n),
                "torch spectral_norm": parametrizations.spectral_norm(nn.Linear(n, n)),
                "torch orthogonal": parametrizations.orthogonal(nn.Linear(n, n)),
            }
            block, dense = LipschitzResidual(n, n, 2.0), nn.Linear(n, n)
            cases = [
                *(
                    Case(name, lambda layer=layer, x=x: step(layer, x), moved_norm)
                    for name, layer in layers.items()
                ),
                Case("fastlr LipschitzResidual, L = 2, h = n", lambda b=block, x=x: step(b, x)),
            ]
            floor = Case("nn.Linear", lambda d=dense, x=x: step(d, x))
            session.table(f"n = {n}", cases, floor=floor)


if __name__ == "__main__":
    main()
