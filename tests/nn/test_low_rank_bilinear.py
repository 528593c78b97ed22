"""LowRankBilinear."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastlr.nn import LowRankBilinear

U = torch.finfo(torch.float64).eps / 2


def dense(i1, i2, o, bias=True, dtype=torch.float64, seed=0, decay=1.0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(o, i1, i2, dtype=torch.float64, generator=generator)
    left, S, right = torch.linalg.svd(weight, full_matrices=False)
    weight = (left * (S * decay ** torch.arange(S.shape[1]))[:, None]) @ right
    layer = nn.Bilinear(i1, i2, o, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def pairs(i1, i2, *shape):
    return tuple(torch.randn(*shape, i, dtype=torch.float64) for i in (i1, i2))


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))


@given(sizes, st.booleans(), st.data())
@settings(max_examples=50, deadline=None)
def test_the_error_is_the_tail_of_all_slices(size, bias, data):
    i1, i2, o = size
    rank = data.draw(st.integers(1, min(i1, i2)))
    bilinear = dense(i1, i2, o, bias, seed=data.draw(st.integers(0, 99)))
    layer = LowRankBilinear.from_dense(bilinear, rank)
    weight = bilinear.weight.detach()
    S = torch.linalg.svdvals(weight)
    bound = 10 * (i1 + i2) * U * float(S.norm())
    assert abs(float((layer.compose() - weight).norm() - S[:, rank:].norm())) <= bound
    assert sum(p.numel() for p in layer.parameters()) == o * rank * (i1 + i2) + bias * o
    x, y = pairs(i1, i2, 4)
    got, expected = layer(x, y), layer.to_dense()(x, y)
    assert float((got - expected).detach().norm()) <= bound * float(x.norm() * y.norm()) + 1e-14


@pytest.mark.parametrize("tol", [0.5, 0.1, 1e-4])
def test_the_least_rank_within_a_tolerance(tol):
    bilinear = dense(20, 15, 6, decay=0.5)
    rank = LowRankBilinear.from_dense(bilinear, tol=tol).rank
    S = torch.linalg.svdvals(bilinear.weight.detach())
    assert float(S[:, rank:].norm()) <= tol * float(S.norm()) < float(S[:, rank - 1 :].norm())


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8])
def test_the_largest_rank_within_a_ratio(ratio):
    rank = LowRankBilinear.from_dense(dense(20, 15, 3), ratio=ratio).rank
    assert rank * 35 <= (1 - ratio) * 300 < (rank + 1) * 35


def test_a_tucker_map_is_represented():
    """Its slices have the smaller rank of the two sides of its core."""
    core, P, Q, R = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((3, 2, 4), (10, 3), (9, 2), (7, 4))
    )
    bilinear = nn.Bilinear(10, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        bilinear.weight.copy_(torch.einsum("abc,ia,jb,oc->oij", core, P, Q, R))
    layer = LowRankBilinear.from_dense(bilinear, 2)
    error = (layer.compose() - bilinear.weight.detach()).norm()
    assert float(error) <= 100 * U * float(bilinear.weight.detach().norm())


def test_gradients_are_those_of_the_dense_layer_by_the_chain_rule():
    layer = LowRankBilinear.from_dense(dense(6, 5, 4), 3)
    bilinear = layer.to_dense()
    x, y = pairs(6, 5, 8)
    weights = torch.randn(8, 4, dtype=torch.float64)
    (layer(x, y) * weights).sum().backward()
    (bilinear(x, y) * weights).sum().backward()
    G = bilinear.weight.grad
    for got, expected in (
        (layer.U.grad, (G @ layer.V.detach().mT).mT),
        (layer.V.grad, layer.U.detach() @ G),
        (layer.bias.grad, bilinear.bias.grad),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_gradcheck():
    layer = LowRankBilinear.from_dense(dense(4, 3, 2), 2)
    parameters = dict(layer.named_parameters())

    def call(x, y, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x, y))

    inputs = (value.requires_grad_() for value in pairs(4, 3, 2))
    assert torch.autograd.gradcheck(call, (*inputs, *parameters.values()))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_shapes(shape, bias):
    layer = LowRankBilinear.from_dense(dense(6, 4, 5, bias), 2)
    assert layer(*pairs(6, 4, *shape)).shape == (*shape, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision(dtype):
    bilinear = dense(6, 4, 5, dtype=dtype)
    layer = LowRankBilinear.from_dense(bilinear, 4)
    assert layer.U.dtype == layer.V.dtype == dtype
    # Both factors are rounded once: of norm √S, each error is u·√S·√S.
    weight = bilinear.weight.detach().double()
    sizes = torch.linalg.svdvals(weight).sum()
    error = (layer.compose() - weight).norm()
    assert float(error) <= torch.finfo(dtype).eps * float(sizes)


def test_saved_copied_compiled_and_exported():
    layer = LowRankBilinear.from_dense(dense(6, 4, 5), 2)
    x, y = pairs(6, 4, 3)
    expected = layer(x, y)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = LowRankBilinear(6, 4, 5, 2, dtype=torch.float64)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x, y), expected)
    assert torch.equal(copy.deepcopy(layer)(x, y), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), expected)
    torch.testing.assert_close(torch.export.export(layer, (x, y)).module()(x, y), expected)
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Bilinear(6, 4, 5).load_state_dict(layer.state_dict(), strict=False)


def test_a_fresh_layer_has_the_variance_of_a_dense_one():
    torch.manual_seed(0)
    layer = LowRankBilinear(30, 20, 50, 5, dtype=torch.float64)
    # The mean over 50 slices of 5 × 5 products of norms; a slice's deviates by some 30 %.
    assert abs(float(layer.compose().square().mean()) * 3 * 30 - 1) < 0.2


def test_a_zero_weight():
    bilinear = dense(4, 3, 2)
    with torch.no_grad():
        bilinear.weight.zero_()
    layer = LowRankBilinear.from_dense(bilinear, tol=0.0)
    assert layer.rank == 1
    assert not bool(layer.compose().any())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LowRankBilinear(4, 3, 0, 1), ValueError, "out_features must be at least 1"),
        (lambda: LowRankBilinear(4, 3, 2, 4), ValueError, "rank must be between 1"),
        (lambda: LowRankBilinear(4, 3, 2, 1, dtype=torch.int8), TypeError, "real float type"),
        (lambda: LowRankBilinear.from_dense(nn.Linear(3, 3), 1), TypeError, "torch.nn.Bilinear"),
        (lambda: LowRankBilinear.from_dense(dense(4, 3, 2)), ValueError, "one of rank, ratio"),
        (lambda: LowRankBilinear.from_dense(dense(4, 3, 2), 0), ValueError, "rank must be between"),
        (
            lambda: LowRankBilinear.from_dense(dense(4, 3, 2), ratio=0.9),
            ValueError,
            "ratio must leave rank=1, 14 of 24 numbers, got 0.9",
        ),
        (lambda: LowRankBilinear.from_dense(dense(4, 3, 2), tol=-1.0), ValueError, "tol must be"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_weight_that_is_not_finite():
    bilinear = dense(4, 3, 2)
    with torch.no_grad():
        bilinear.weight[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match=r"weight must be finite, got nan at index \(1, 2, 0\)"):
        LowRankBilinear.from_dense(bilinear, 2)
