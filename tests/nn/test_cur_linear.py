"""CURLinear."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastlr.nn import CURLinear

U = torch.finfo(torch.float64).eps / 2


def dense(o, i, rank=None, bias=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    r = min(o, i) if rank is None else rank
    weight = torch.randn(o, r, dtype=torch.float64, generator=generator)
    weight = weight @ torch.randn(r, i, dtype=torch.float64, generator=generator)
    linear = nn.Linear(i, o, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 99), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_full_rank_is_exact(o, i, seed, bias):
    linear = dense(o, i, bias=bias, seed=seed)
    rank = min(o, i)
    layer = CURLinear.from_dense(linear, rank, seed=seed)
    assert sum(p.numel() for p in layer.parameters()) == rank * (o + i + rank) + bias * o
    assert layer.weight_parameters() == rank * (o + i + rank)
    weight = linear.weight.detach()
    condition = float(torch.linalg.cond(weight))
    # U is the inverse of C and R: an error of a rounding is multiplied by the condition number.
    bound = 100 * (o + i) * U * condition * float(weight.norm())
    assert (layer.compose() - weight).norm() <= bound
    x = torch.ones(2, i, dtype=torch.float64)
    assert (layer(x) - linear(x)).norm() <= bound * math.sqrt(2 * i) + 1e-14


@given(st.integers(5, 30), st.integers(5, 30), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_weight_of_low_rank_is_kept_by_rows_and_columns_of_it(o, i, rank, seed):
    linear = dense(o, i, rank, seed=seed)
    layer = CURLinear.from_dense(linear, rank, seed=seed)
    weight = linear.weight.detach()
    assert torch.equal(layer.C.detach(), weight[:, layer.column_index])
    assert torch.equal(layer.R.detach(), weight[layer.row_index])
    S = torch.linalg.svdvals(weight)
    bound = 1000 * (o + i) * U * float(S[0] / S[rank - 1]) ** 2 * float(S[0])
    assert (layer.compose() - weight).norm() <= bound


@pytest.mark.parametrize("tol", [0.5, 0.1, 1e-6])
def test_tolerances_are_kept(tol):
    linear = dense(40, 30)
    with torch.no_grad():
        linear.weight.mul_(0.7 ** torch.arange(30))
    layer = CURLinear.from_dense(linear, tol=tol, seed=0)
    weight = linear.weight.detach()
    assert float((layer.compose() - weight).norm()) <= tol * float(weight.norm())
    assert layer.rank < 30 or tol < 1e-4


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.9])
def test_the_largest_rank_within_a_ratio(ratio):
    o, i = 60, 40
    rank = CURLinear.from_dense(dense(o, i), ratio=ratio, seed=0).rank
    kept = (1 - ratio) * o * i
    assert rank * (o + i + rank) <= kept < (rank + 1) * (o + i + rank + 1)


def test_gradients_are_those_of_the_dense_layer_by_the_chain_rule():
    layer = CURLinear.from_dense(dense(9, 7), 3, seed=0)
    linear = layer.to_dense()
    x, weights = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    (layer(x) * weights).sum().backward()
    (linear(x) * weights).sum().backward()
    G = linear.weight.grad
    C, middle, R = layer.C.detach(), layer.U.detach(), layer.R.detach()
    for got, expected in (
        (layer.C.grad, G @ (middle @ R).T),
        (layer.U.grad, C.T @ G @ R.T),
        (layer.R.grad, (C @ middle).T @ G),
        (layer.bias.grad, linear.bias.grad),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_gradcheck():
    layer = CURLinear.from_dense(dense(5, 4), 2, seed=0)
    parameters = dict(layer.named_parameters())
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 4), (2, 3, 4)])
def test_shapes(shape):
    layer = CURLinear.from_dense(dense(6, 4), 2, seed=0)
    assert layer(torch.ones(shape, dtype=torch.float64)).shape == (*shape[:-1], 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision(dtype):
    linear = dense(12, 10, rank=3, dtype=dtype)
    layer = CURLinear.from_dense(linear, 3, seed=0)
    assert layer.C.dtype == layer.U.dtype == dtype
    # C and R are exact; U is rounded once, and the weight was rounded to `dtype` before.
    bound = 2 * torch.finfo(dtype).eps
    sizes = (layer.C.double().norm() * layer.U.double().norm() * layer.R.double().norm()).detach()
    weight = linear.weight.detach().double()
    S = torch.linalg.svdvals(weight)
    best = float(S[3:].norm())
    # Strong pivots: within a factor of the best that grows with the sizes.
    assert float((layer.compose() - weight).norm()) <= bound * float(sizes) + 30 * best


def test_saved_copied_compiled_and_exported():
    layer = CURLinear.from_dense(dense(6, 5), 3, seed=0)
    x = torch.randn(2, 5, dtype=torch.float64)
    expected = layer(x)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = CURLinear(**layer.structure(), dtype=torch.float64)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), expected)
    assert torch.equal(other.row_index, layer.row_index)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Linear(5, 6).load_state_dict(layer.state_dict(), strict=False)
    damaged = layer.state_dict()
    damaged["column_index"] = damaged["column_index"] + 100
    with pytest.raises(RuntimeError, match="column_index must be between 0 and 4"):
        other.load_state_dict(damaged)


def test_a_fresh_layer_has_the_variance_of_a_dense_one():
    torch.manual_seed(0)
    layer = CURLinear(300, 200, 40, dtype=torch.float64)
    # The mean square is that of the 40 × 40 entries of U, whose deviation is √(2/1600) = 3.5 %,
    # and of R's and C's smaller ones.
    assert abs(float(layer.compose().square().mean()) * 3 * 300 - 1) < 0.2


def test_a_zero_weight():
    linear = dense(4, 3)
    with torch.no_grad():
        linear.weight.zero_()
    for size in ({"rank": 2}, {"tol": 0.1}):
        layer = CURLinear.from_dense(linear, **size, seed=0)
        assert not bool(layer.compose().any())
        torch.testing.assert_close(layer.bias, linear.bias)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CURLinear(0, 4, 1), ValueError, "in_features must be at least 1"),
        (lambda: CURLinear(5, 4, 0), ValueError, "rank must be between 1"),
        (lambda: CURLinear(5, 4, 1, dtype=torch.int64), TypeError, "real float type"),
        (lambda: CURLinear.from_dense(nn.Embedding(3, 3), 1), TypeError, "torch.nn.Linear"),
        (lambda: CURLinear.from_dense(dense(5, 4)), ValueError, "one of rank, ratio and tol"),
        (lambda: CURLinear.from_dense(dense(5, 4), 1, tol=0.1), ValueError, "one of rank, ratio"),
        (lambda: CURLinear.from_dense(dense(5, 4), 5), ValueError, "rank must be between 1"),
        (lambda: CURLinear.from_dense(dense(5, 4), ratio=0.9), ValueError, "ratio must leave"),
        (lambda: CURLinear.from_dense(dense(5, 4), ratio=-0.1), ValueError, "ratio must leave"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_weight_that_is_not_finite():
    linear = dense(5, 4)
    with torch.no_grad():
        linear.weight[2, 1] = math.inf
    with pytest.raises(ValueError, match=r"weight must be finite, got inf at index \(2, 1\)"):
        CURLinear.from_dense(linear, 2)
