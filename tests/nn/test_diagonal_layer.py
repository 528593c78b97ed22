"""LowRankPlusDiagonal."""

import copy
import io
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastlr.linalg as la
from fastlr.nn import LowRankLinear, LowRankPlusDiagonal
from references import unit_roundoff

sides = pytest.mark.parametrize("sizes", [(8, 8), (8, 11), (11, 8)])


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(o, i, dtype=torch.float64, bias=True, seed=0, rank=None):
    """Of a rank beside a diagonal, where one is given."""
    linear = nn.Linear(i, o, bias=bias, dtype=dtype)
    weight = draw(o, i, seed=seed) / math.sqrt(i)
    if rank is not None:
        weight = draw(o, rank, seed=seed) @ draw(rank, i, seed=seed + 1) / math.sqrt(i * rank)
        weight.diagonal().add_(draw(min(o, i), seed=seed + 2))
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias:
            linear.bias.copy_(draw(o, seed=seed + 3))
    return linear


def composed(layer):
    """The weight by other words than the layer's, with a gradient."""
    eye = torch.eye(layer.out_features, layer.in_features, dtype=layer.B.dtype)
    spread = torch.zeros(max(eye.shape), dtype=layer.B.dtype)
    spread = torch.cat((layer.diagonal, spread[len(layer.diagonal) :]))
    return layer.B @ layer.A + spread[: layer.out_features, None] * eye


@sides
@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_that_of_the_dense_weight(sizes, bias):
    layer = LowRankPlusDiagonal.from_dense(dense(*sizes, bias=bias), 2)
    weight = composed(layer).detach()
    torch.testing.assert_close(layer.compose(), weight, rtol=0, atol=1e-15)
    for lead in ((), (0,), (1,), (5,), (2, 0), (2, 3)):
        x = draw(*lead, sizes[1], seed=3)
        # Sums of a dozen products.
        expected = nn.functional.linear(x, weight, layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)
        torch.testing.assert_close(layer.to_dense()(x), expected, rtol=0, atol=1e-13)


@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 99), st.booleans())
@settings(max_examples=30)
def test_the_full_rank_is_exact_and_all_is_counted(o, i, seed, bias):
    linear = dense(o, i, bias=bias, seed=seed)
    rank = min(o, i)
    layer = LowRankPlusDiagonal.from_dense(linear, rank)
    numbers = rank * (o + i) + min(o, i)
    assert layer.weight_parameters() == numbers
    assert sum(p.numel() for p in layer.parameters()) == numbers + bias * o
    assert layer.weight_bytes() == 8 * numbers
    assert layer.flops() == 2 * numbers
    # Some sums of ten products in float64, of entries of order one.
    assert torch.dist(layer.compose(), linear.weight.detach()) <= 1e-12
    if bias:
        assert torch.equal(layer.bias, linear.bias)


@sides
def test_from_dense_is_the_decomposition_and_finds_what_there_is(sizes):
    linear = dense(*sizes)
    info = la.low_rank_plus_diagonal(linear.weight.detach(), 2).info
    layer = LowRankPlusDiagonal.from_dense(linear, 2)
    error = float(torch.dist(layer.compose(), linear.weight.detach()))
    assert error == pytest.approx(info.error, rel=1e-12)
    # Never worse than without the diagonal.
    low = LowRankLinear.from_dense(linear, 2)
    assert error < float(torch.dist(low.compose(), linear.weight.detach()))
    planted = dense(20, 20, rank=3)
    found = LowRankPlusDiagonal.from_dense(planted, 3)
    assert torch.dist(found.compose(), planted.weight.detach()) <= 1e-12
    assert LowRankPlusDiagonal.from_dense(planted, tol=1e-10).rank == 3


@given(st.floats(0.02, 0.9), st.floats(0, 0.9), st.integers(0, 99))
@settings(max_examples=20)
def test_tol_and_ratio_are_kept_by_the_fitting_rank(tol, ratio, seed):
    o, i = 10, 14
    linear = dense(o, i, seed=seed)
    norm = float(linear.weight.detach().norm())

    def error(rank):
        cut = LowRankPlusDiagonal.from_dense(linear, rank)
        return float(torch.dist(cut.compose(), linear.weight.detach()))

    rank = LowRankPlusDiagonal.from_dense(linear, tol=tol).rank
    assert error(rank) <= tol * norm * (1 + 1e-12)
    assert rank == 1 or error(rank - 1) > tol * norm * (1 - 1e-12)
    kept = (1 - ratio) * o * i
    if (o + i) + 10 > kept:
        with pytest.raises(ValueError, match="ratio must leave rank=1, 34 of 140 numbers"):
            LowRankPlusDiagonal.from_dense(linear, ratio=ratio)
        return
    layer = LowRankPlusDiagonal.from_dense(linear, ratio=ratio)
    assert layer.weight_parameters() <= kept < layer.weight_parameters() + o + i


@sides
def test_gradients(sizes):
    layer = LowRankPlusDiagonal.from_dense(dense(*sizes), 2)
    parameters = dict(layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    x = draw(3, sizes[1], seed=5).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *parameters.values()))
    # The dense layer's gradient, projected on the three factors.
    linear = layer.to_dense()
    weights = draw(3, sizes[0], seed=6)
    (layer(x) * weights).sum().backward()
    (linear(x) * weights).sum().backward()
    G = linear.weight.grad
    for got, expected in (
        (layer.A.grad, layer.B.detach().T @ G),
        (layer.B.grad, G @ layer.A.detach().T),
        (layer.diagonal.grad, G.diagonal()),
        (layer.bias.grad, linear.bias.grad),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@sides
def test_flops_are_those_of_the_products(sizes):
    layer = LowRankPlusDiagonal.from_dense(dense(*sizes), 3)
    with FlopCounterMode(display=False) as counted:
        layer(draw(1, sizes[1]))
    # torch counts no products by entries.
    assert counted.get_total_flops() + 2 * min(sizes) == layer.flops()
    parameters = sum(p.numel() for p in layer.parameters())
    assert repr(layer).endswith(
        f"rank=3, bias=True, parameters={parameters}, flops={layer.flops()})"
    )


@sides
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(sizes, dtype):
    linear = dense(*sizes, dtype=dtype)
    layer = LowRankPlusDiagonal.from_dense(linear, 2)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    wide = LowRankPlusDiagonal.from_dense(linear.double(), 2)
    u = unit_roundoff(layer.bias)
    size = float(wide.B.detach().norm() * wide.A.detach().norm() + wide.diagonal.detach().norm())
    # All three are rounded once.
    assert torch.dist(layer.compose(), wide.compose()) <= 3 * u * size
    x = draw(6, sizes[1], seed=2).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    # Factors, what is between the products, both summands and their sum are rounded.
    bound = (
        8 * u * (size * float(x.double().norm()) + float(wide.bias.detach().norm()) * math.sqrt(6))
    )
    assert torch.dist(y.double(), wide(x.double())) <= bound
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x.float()).dtype == torch.bfloat16


@sides
def test_saved_copied_compiled_and_exported(sizes):
    layer = LowRankPlusDiagonal.from_dense(dense(*sizes).eval(), 2)
    assert not layer.training
    x = draw(3, sizes[1])
    expected = layer(x)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    again = LowRankPlusDiagonal(**json.loads(json.dumps(layer.structure())), dtype=torch.float64)
    again.load_state_dict(torch.load(stream))
    assert torch.equal(again(x), expected)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        nn.Linear(sizes[1], sizes[0]).load_state_dict(layer.state_dict(), strict=False)
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == (3, sizes[0])
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    batch = torch.export.Dim("batch", min=2, max=1024)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).module()
    more = draw(9, sizes[1])
    torch.testing.assert_close(exported(more), layer(more))


def test_described_to_transformers():
    pytest.importorskip("transformers")
    from fastlr.nn.hf_quantizer import FastlrConfig

    layer = LowRankPlusDiagonal.from_dense(dense(8, 12), 2)
    described = FastlrConfig(json.loads(json.dumps(FastlrConfig.of(nn.Sequential(layer)).layers)))
    built = described.build("0", nn.Linear(12, 8, dtype=torch.float64))
    assert type(built) is LowRankPlusDiagonal
    assert built.structure() == layer.structure()


def test_a_conv1d_is_transposed():
    from transformers.pytorch_utils import Conv1D

    linear = Conv1D(10, 6)  # ten outputs, six inputs
    layer = LowRankPlusDiagonal.from_dense(linear, 6)
    assert (layer.out_features, layer.in_features) == (10, 6)
    x = draw(3, 6, dtype=torch.float32)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-5, atol=1e-5)


def test_zero_weights_and_the_dense_layer_unchanged():
    linear = dense(5, 4)
    before = copy.deepcopy(linear.state_dict())
    LowRankPlusDiagonal.from_dense(linear, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in linear.state_dict().items())
    with torch.no_grad():
        linear.weight.zero_()
    for size in ({"rank": 2}, {"tol": 0.1}):
        assert not bool(LowRankPlusDiagonal.from_dense(linear, **size).compose().any())


def test_a_fresh_layer():
    torch.manual_seed(0)
    layer = LowRankPlusDiagonal(300, 200, rank=60, dtype=torch.float64)
    off = ~torch.eye(200, 300, dtype=torch.bool)
    assert float(layer.compose()[off].var()) == pytest.approx(1 / 900, rel=0.1)
    # 200 squares of uniform numbers: a deviation of √(0.8/200) = 6 %.
    assert float(layer.diagonal.square().mean()) == pytest.approx(1 / 900, rel=0.3)
    assert not bool(layer.bias.any())
    layer(draw(2, 300)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_a_tolerance_below_the_rounding_is_told():
    with pytest.warns(la.ConvergenceWarning, match=r"tol=1e-06 not met in torch\.bfloat16"):
        LowRankPlusDiagonal.from_dense(dense(8, 8, torch.bfloat16), tol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda kind: kind(0, 4, 1), ValueError, "in_features must be at least 1"),
        (lambda kind: kind(5, 4, 0), ValueError, "rank must be between 1"),
        (lambda kind: kind(5, 4, 5), ValueError, "rank must be between 1"),
        (lambda kind: kind(5, 4, 1, dtype=torch.int64), TypeError, "real float type"),
        (lambda kind: kind.from_dense(nn.Embedding(3, 3), 1), TypeError, "torch.nn.Linear"),
        (lambda kind: kind.from_dense(dense(5, 4)), ValueError, "one of rank, ratio and tol"),
        (lambda kind: kind.from_dense(dense(5, 4), 1, tol=0.1), ValueError, "one of rank, ratio"),
        (lambda kind: kind.from_dense(dense(5, 4), 0), ValueError, "rank must be between 1 and 4"),
        (lambda kind: kind.from_dense(dense(5, 4), 5), ValueError, "rank must be between 1 and 4"),
        (lambda kind: kind.from_dense(dense(5, 4), 1.5), TypeError, "rank must be an integer"),
        (lambda kind: kind.from_dense(dense(5, 4), ratio=0.9), ValueError, "ratio must leave"),
        (lambda kind: kind.from_dense(dense(5, 4), tol=1.0), ValueError, r"tol must be in \[0, 1"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make(LowRankPlusDiagonal)


def test_a_weight_that_is_not_finite():
    linear = dense(5, 4)
    with torch.no_grad():
        linear.weight[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"weight must be finite, got nan at index \(2, 1\)"):
        LowRankPlusDiagonal.from_dense(linear, 2)
