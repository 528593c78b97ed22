"""Weights that stay orthogonal, of low rank or bounded, whatever an optimiser does."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import remove_parametrizations

from fastlr.nn import parametrize

DTYPES = [torch.float32, torch.float64]
SHAPES = [(7, 7), (9, 4), (4, 9), (70, 70), (1, 5)]


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def linear(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(columns, rows, dtype=dtype)


def tall(W: Tensor) -> Tensor:
    return (W.mT if W.shape[0] < W.shape[1] else W).detach().double()


def departure(W: Tensor) -> float:
    """‖QᵀQ − I‖₂ / (√k·u) of the columns, or of the rows."""
    Q = tall(W)
    E = Q.mT @ Q - torch.eye(Q.shape[1], dtype=torch.float64)
    # float64 is measured in its own precision, by sums of len(Q) terms.
    return float(torch.linalg.matrix_norm(E, 2)) / (math.sqrt(Q.shape[1]) * roundoff(W.dtype))


def trained(layer: nn.Linear, steps: int, *, lr: float = 0.1, decay: float = 0.0) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, layer.in_features, generator=generator).to(layer.weight.dtype)
    y = torch.randn(8, layer.out_features, generator=generator).to(layer.weight.dtype)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reflections", [None, 1, 3])
def test_orthogonal(shape: tuple[int, int], dtype: torch.dtype, reflections: int | None) -> None:
    layer = linear(*shape, dtype)
    U, _, Vh = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    assert parametrize.orthogonal(layer, reflections=reflections) is layer
    k = min(shape)
    # The nearest matrix is rounded, and its vectors are found by k steps of LU.
    assert (layer.weight - U @ Vh).norm() <= 20 * k * roundoff(dtype)
    assert departure(layer.weight) <= 10
    before = layer.weight.detach().clone()
    trained(layer, 20)
    assert departure(layer.weight) <= 10
    # One row or column alone can only turn; a single number cannot.
    assert (layer.weight - before).norm() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_orthogonal_weight_is_kept_with_its_signs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(20, 12, dtype=dtype))[0]
    for sign in (1, -1):
        layer = linear(20, 12, dtype)
        with torch.no_grad():
            layer.weight.copy_(sign * Q)
        parametrize.orthogonal(layer)
        assert (layer.weight - sign * Q).norm() <= 20 * 12 * roundoff(dtype)
        other = torch.linalg.qr(torch.randn(20, 12, dtype=dtype))[0]
        layer.weight = other  # type: ignore[assignment]
        assert (layer.weight - other).norm() <= 20 * 12 * roundoff(dtype)


def test_ten_thousand_steps_with_weight_decay() -> None:
    """And the negative control: signs from the diagonal of the parameter collapse."""
    layer = parametrize.orthogonal(linear(12, 12))
    trained(layer, 10_000, lr=0.05, decay=0.01)
    assert departure(layer.weight) <= 10

    class Naive(nn.Module):
        def forward(self, V: Tensor) -> Tensor:
            unit = V.tril(-1) + torch.eye(len(V))
            tau = 2 / unit.square().sum(0)
            return torch.linalg.householder_product(unit, tau) * V.diagonal()

        def right_inverse(self, weight: Tensor) -> Tensor:
            A, _ = torch.geqrf(weight)
            return A.tril(-1) + torch.diag(A.diagonal().sign())

    naive = linear(12, 12)
    nn.utils.parametrize.register_parametrization(naive, "weight", Naive())
    trained(naive, 1000, lr=0.05, decay=0.01)
    assert departure(naive.weight) > 1e4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "rank"), [((9, 6), 2), ((6, 9), 6), ((30, 30), 1)])
def test_low_rank(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    layer = linear(*shape, dtype)
    U, s, Vh = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    parametrize.low_rank(layer, rank=rank)
    best = (U[:, :rank] * s[:rank]) @ Vh[:rank]
    assert (layer.weight - best).norm() <= 40 * rank * roundoff(dtype) * s.norm()
    trained(layer, 20)
    values = torch.linalg.svdvals(layer.weight.detach().double())
    assert float(values[rank:].sum()) <= 10 * max(shape) * roundoff(dtype) * float(values[0])
    assert float(values[rank - 1]) > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_fixed_spectrum(shape: tuple[int, int], dtype: torch.dtype) -> None:
    layer = linear(*shape, dtype)
    W = layer.weight.detach().double()
    values = torch.linalg.svdvals(W)
    parametrize.fixed_spectrum(layer)
    bound = 40 * min(shape) * roundoff(dtype) * float(values[0])
    assert (layer.weight - W).norm() <= bound
    trained(layer, 20)
    assert (layer.weight - W).norm() > 1e-3
    assert (torch.linalg.svdvals(layer.weight.detach().double()) - values).norm() <= bound
    layer.weight = 2 * W.to(dtype)
    assert (layer.weight - 2 * W).norm() <= 2 * bound
    given = torch.arange(min(shape), 0, -1, dtype=dtype)
    other = parametrize.fixed_spectrum(linear(*shape, dtype), spectrum=given)
    got = torch.linalg.svdvals(other.weight.detach().double())
    assert (got - given).norm() <= 40 * min(shape) * roundoff(dtype) * min(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bound", [0.3, 1.0, 20.0])
def test_spectral_bound(dtype: torch.dtype, bound: float) -> None:
    layer = linear(12, 8, dtype)
    with torch.no_grad():
        layer.weight.mul_(3)
    W = layer.weight.detach().double()
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    parametrize.spectral_bound(layer, bound=bound)
    expected = (U * s.clamp(max=bound * (1 - 2**-10))) @ Vh
    # s/√(1 + s²) and its inverse near 1 lose ten bits, of which the factor is 2¹⁰/2.
    rounding = (40 * 8 + 2**11) * roundoff(dtype)
    assert (layer.weight - expected).norm() <= rounding * max(bound, float(s[0]))
    trained(layer, 200, lr=1.0)
    for scale in (1.0, 1e15):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(scale)
        norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
        # U and V are orthonormal to 10·√8·u each.
        assert norm <= bound * (1 + 30 * math.sqrt(8) * roundoff(dtype))


ALL = {
    "orthogonal": parametrize.orthogonal,
    "reflections": lambda layer: parametrize.orthogonal(layer, reflections=2),
    "low_rank": lambda layer: parametrize.low_rank(layer, rank=3),
    "fixed_spectrum": parametrize.fixed_spectrum,
    "spectral_bound": parametrize.spectral_bound,
}


@pytest.mark.parametrize("name", ALL)
def test_state_copies_and_removal(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    layer = ALL[name](linear(9, 6))
    trained(layer, 5)
    W = layer.weight.detach().clone()
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other = ALL[name](linear(9, 6, seed=5))
    assert not torch.equal(other.weight, W)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.weight, W)
    twin = copy.deepcopy(layer)
    trained(twin, 1)
    assert torch.equal(layer.weight, W)
    assert not torch.equal(twin.weight, W)
    remove_parametrizations(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight, W)


@pytest.mark.parametrize("name", ALL)
def test_compiled_and_under_autocast(name: str) -> None:
    layer = ALL[name](linear(9, 6))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: parametrize.orthogonal(linear(3, 2), "weigth"), ValueError, "orthogonal: name"),
        (lambda: parametrize.orthogonal(linear(3, 2), "bias"), ValueError, "must be a matrix"),
        (lambda: parametrize.orthogonal(linear(3, 2), reflections=4), ValueError, "from 1"),
        (lambda: parametrize.orthogonal(linear(3, 2, torch.bfloat16)), TypeError, "float32"),
        (lambda: parametrize.low_rank(linear(3, 2), rank=3), ValueError, "between 1 and 2, got 3"),
        (lambda: parametrize.spectral_bound(linear(3, 2), bound=0.0), ValueError, "positive"),
        (
            lambda: parametrize.fixed_spectrum(linear(3, 2), spectrum=torch.ones(3)),
            ValueError,
            "spectrum must have shape (2,), got (3,)",
        ),
        (
            lambda: parametrize.fixed_spectrum(linear(3, 2), spectrum=-torch.ones(2)),
            ValueError,
            "not negative",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value).replace("between 1 and 3", "from 1")


def test_weights_that_are_not_finite() -> None:
    layer = linear(3, 2)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="orthogonal: weight must be finite"):
        parametrize.orthogonal(layer)
