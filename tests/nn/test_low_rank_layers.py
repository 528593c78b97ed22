"""LowRankLinear and InterpolativeLinear."""

import copy
import io
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import fastlr.linalg as la
from fastlr.nn import InterpolativeLinear, LowRankLinear, MaestroLinear
from fastlr.nn.compression import Gram, solve

U = torch.finfo(torch.float64).eps
CLASSES = [LowRankLinear, InterpolativeLinear]
both = pytest.mark.parametrize("kind", CLASSES)


def dense(out_features, in_features, bias=True, dtype=torch.float64, seed=0):
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    layer = torch.nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    torch.random.set_rng_state(state)
    return layer


@st.composite
def sizes(draw):
    o, i = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    return o, i, draw(st.integers(1, min(o, i)))


@given(sizes(), st.integers(0, 1000), st.booleans())
def test_both_are_the_same_map_of_the_given_rank(size, seed, bias):
    o, i, rank = size
    linear = dense(o, i, bias, seed=seed)
    inputs = torch.randn(7, i, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    cut = solve(linear.weight).truncate(rank)
    expected = cut.basis @ cut.projected
    # |T| ≤ 2 bounds the growth of rounding errors by √(1 + 4·r·max(o, i)).
    tolerance = (
        10 * (o + i) * U * (1 + 4 * rank * max(o, i)) ** 0.5 * float(linear.weight.detach().norm())
    )
    for kind in CLASSES:
        layer = kind.from_dense(linear, rank)
        assert (layer.to_dense().weight - expected).norm() <= tolerance
        reference = inputs @ expected.T + (linear.bias if bias else 0)
        assert (layer(inputs) - reference).norm() <= tolerance * (1 + float(inputs.norm()))
        torch.testing.assert_close(layer.to_dense()(inputs), layer(inputs), rtol=1e-10, atol=1e-10)


@given(sizes(), st.integers(0, 1000))
def test_parameter_counts_and_bounded_coefficients(size, seed):
    o, i, rank = size
    linear = dense(o, i, bias=False, seed=seed)
    interpolative = InterpolativeLinear.from_dense(linear, rank)
    assert sum(p.numel() for p in interpolative.parameters()) == rank * (o + i) - rank**2 <= o * i
    assert interpolative.weight_parameters() == rank * (o + i) - rank**2
    assert bool((interpolative.coefficients.abs() <= 2 + 1e-10).all())
    factored = LowRankLinear.from_dense(linear, rank)
    assert factored.weight_parameters() == rank * (o + i)
    order = interpolative.order
    assert interpolative.weight_bytes() == 8 * interpolative.weight_parameters() + 4 * len(order)
    assert sorted(order.tolist()) == list(range(o if interpolative.side == "rows" else i))


@pytest.mark.parametrize("side", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(11, 7), (7, 11)])
def test_each_side_is_exact_and_keeps_its_skeleton(side, shape):
    weight = dense(*shape).weight.detach()
    cut = solve(weight).truncate(4)
    layer = InterpolativeLinear.from_factors(
        cut.basis, cut.projected, side=side, dtype=torch.float64
    )
    product = cut.basis @ cut.projected
    torch.testing.assert_close(layer.compose(), product, rtol=1e-12, atol=1e-12)
    vectors = product if side == "rows" else product.T
    skeleton = layer.skeleton if side == "rows" else layer.skeleton.T
    distances = torch.cdist(skeleton.detach(), vectors).min(1).values
    assert float(distances.max()) <= 1e-13
    assert layer.side == side


def test_the_side_is_the_one_with_the_smaller_coefficients():
    weight = dense(40, 12).weight.detach()
    cut = solve(weight).truncate(5)
    norms = {
        side: float(
            torch.linalg.matrix_norm(
                InterpolativeLinear.from_factors(
                    cut.basis, cut.projected, side=side, dtype=torch.float64
                ).coefficients.detach(),
                2,
            )
        )
        for side in ("rows", "columns")
    }
    chosen = InterpolativeLinear.from_factors(cut.basis, cut.projected).side
    assert norms[chosen] == min(norms.values())
    assert norms["rows"] != norms["columns"]


@both
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_gradients(kind, side):
    linear = dense(6, 5)
    cut = solve(linear.weight).truncate(3)
    extra = {"side": side} if kind is InterpolativeLinear else {}
    layer = kind.from_factors(
        cut.basis, cut.projected, linear.bias.detach(), dtype=torch.float64, **extra
    )
    names = [name for name, _ in layer.named_parameters()]

    def apply(inputs, *parameters):
        return torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (inputs,)
        )

    inputs = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (inputs, *layer.parameters()))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_are_kept_and_factored_in_high_precision(kind, dtype):
    linear = dense(24, 16, dtype=dtype)
    layer = kind.from_dense(linear, 12)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer.weight.dtype == dtype
    assert layer(torch.ones(2, 16, dtype=dtype)).dtype == dtype
    exact = kind.from_dense(linear.double(), 12).compose()
    # Each factor is rounded once; T (entries up to 2) multiplies the skeleton's rounding.
    u = torch.finfo(dtype).eps
    assert (layer.compose() - exact).norm() <= 4 * u * exact.norm()
    assert layer.to_dense().weight.dtype == dtype


@both
def test_conv1d_is_transposed(kind):
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(10, 6)  # ten outputs, six inputs
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    inputs = torch.randn(3, 6)
    low = kind.from_dense(layer, 6)
    assert (low.out_features, low.in_features) == (10, 6)
    torch.testing.assert_close(low(inputs), layer(inputs), rtol=1e-5, atol=1e-5)


@both
def test_calibrated_from_dense(kind):
    linear = dense(12, 10, bias=False)
    inputs = torch.randn(40, 10, dtype=torch.float64) * 0.5 ** torch.arange(10)
    errors = [
        float((kind.from_dense(linear, 3, gram=gram)(inputs) - linear(inputs)).detach().norm())
        for gram in (Gram.of(inputs), inputs.T @ inputs, None)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-10)
    assert errors[0] < 0.5 * errors[2]


@both
def test_the_dense_layer_is_not_changed(kind):
    linear = dense(6, 6)
    before = copy.deepcopy(linear.state_dict())
    kind.from_dense(linear, 2)
    for name, tensor in linear.state_dict().items():
        assert torch.equal(tensor, before[name])


@both
def test_fresh_layers_train_and_show_themselves(kind):
    layer = kind(6, 4, rank=2)
    layer(torch.randn(3, 6)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    expected = sum(p.numel() for p in layer.parameters())
    assert "rank=2" in repr(layer)
    assert f"parameters={expected}" in repr(layer)
    assert kind(6, 4, 2, bias=False).bias is None
    assert kind(4, 4, 4).to_dense().weight.shape == (4, 4)


@both
def test_fresh_layers_have_the_variance_of_a_linear_layer(kind):
    torch.manual_seed(0)
    variance = kind(300, 200, rank=60).compose().var()
    assert float(variance) == pytest.approx(1 / (3 * 300), rel=0.1)


@both
def test_the_checkpoint_does_not_load_into_a_dense_layer(kind):
    linear = dense(6, 4, dtype=torch.float32)
    layer = kind.from_dense(linear, 2)
    assert layer.state_dict()["weight"].shape == (0,)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        linear.load_state_dict(layer.state_dict(), strict=False)
    again = kind(**layer.structure())
    again.load_state_dict(layer.state_dict())
    inputs = torch.randn(3, 4)
    assert torch.equal(again(inputs), layer(inputs))
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    assert torch.equal(copy.deepcopy(layer)(inputs), layer(inputs))


@both
def test_cast_keeps_the_order(kind):
    layer = kind.from_dense(dense(6, 4, dtype=torch.float32), 2).to(torch.bfloat16)
    assert layer(torch.ones(1, 4, dtype=torch.bfloat16)).shape == (1, 6)
    if kind is InterpolativeLinear:
        assert layer.order.dtype == torch.int32


@both
def test_bad_arguments(kind):
    name = kind.__name__
    with pytest.raises(ValueError, match=rf"{name}: rank must be between 1 and .* = 4, got 5"):
        kind(6, 4, 5)
    with pytest.raises(ValueError, match="rank must be between 1"):
        kind.from_dense(dense(6, 4), 0)
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        kind(0, 4, 1)
    with pytest.raises(TypeError, match=r"real float type, got torch\.int64"):
        kind(6, 4, 1, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Linear or a transformers Conv1D"):
        kind.from_dense(torch.nn.Conv1d(3, 3, 1), 1)
    quantized = torch.nn.Linear(4, 4)
    quantized.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"torch\.int8 in Linear; dequantize"):
        kind.from_dense(quantized, 1)
    with pytest.raises(ValueError, match=r"o×r and r×i matrices"):
        kind.from_factors(torch.ones(4, 2), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
        kind.from_factors(torch.eye(4), torch.ones(4, 4), torch.ones(3))
    nan = dense(4, 4)
    with torch.no_grad():
        nan.weight[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"nan at index \(2, 1\)"):
        kind.from_dense(nan, 1)


def test_bad_side():
    with pytest.raises(ValueError, match='side must be "rows" or "columns", got \'left\''):
        InterpolativeLinear(4, 4, 2, side="left")
    with pytest.raises(ValueError, match="side must be"):
        InterpolativeLinear.from_factors(torch.eye(4), torch.eye(4), side="left")


def output_error(layer, linear, inputs):
    """‖(W − W')X‖_F and ‖WX‖_F, from the products themselves."""
    weight = linear.weight.detach().double()
    return float(((layer.compose() - weight) @ inputs.T).norm()), float((weight @ inputs.T).norm())


@given(sizes(), st.floats(1e-3, 0.99), st.integers(0, 1000), st.booleans())
def test_the_least_rank_within_a_tolerance(size, tol, seed, calibrated):
    o, i, _ = size
    linear = dense(o, i, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.eye(i, dtype=torch.float64)
    if calibrated:
        inputs = torch.randn(3 * i, i, dtype=torch.float64, generator=generator)
        inputs = inputs * 0.5 ** (torch.arange(i) % 5)
    gram = inputs.T @ inputs if calibrated else None
    # The squares of the singular values are those of a Gram matrix: 1e-14 of the largest.
    slack = 1e-10
    for kind in CLASSES:
        with warnings.catch_warnings():
            warnings.simplefilter("error", la.ConvergenceWarning)
            layer = kind.from_dense(linear, tol=tol, gram=gram)
        error, norm = output_error(layer, linear, inputs)
        assert error <= tol * norm * (1 + slack)
        if layer.rank > 1:
            error, norm = output_error(
                kind.from_dense(linear, layer.rank - 1, gram=gram), linear, inputs
            )
            assert error > tol * norm * (1 - slack)


@given(sizes(), st.floats(0, 0.99))
def test_the_largest_rank_within_a_ratio(size, ratio):
    o, i, _ = size
    linear = dense(o, i)
    kept = (1 - ratio) * o * i
    for kind, numbers in (
        (LowRankLinear, lambda r: r * (o + i)),
        (InterpolativeLinear, lambda r: r * (o + i) - r * r),
        (MaestroLinear, lambda r: r * (o + i)),
    ):
        if numbers(1) > kept:
            with pytest.raises(ValueError, match=f"ratio must leave rank=1, {numbers(1)} of"):
                kind.from_dense(linear, ratio=ratio)
            continue
        layer = kind.from_dense(linear, ratio=ratio)
        assert layer.weight_parameters() == numbers(layer.rank) <= kept
        assert layer.rank == min(o, i) or numbers(layer.rank + 1) > kept


def test_no_ratio_takes_an_interpolative_layer_of_full_rank():
    # r·(o + i) − r² is o·i at r = min(o, i), where two full factors are twice as large.
    assert InterpolativeLinear.from_dense(dense(7, 11), ratio=0).rank == 7
    assert LowRankLinear.from_dense(dense(7, 11), ratio=0).rank == 77 // 18


@both
def test_a_tolerance_below_the_rounding_is_told(kind):
    # Of rank 4 and exact in bfloat16, as singular vectors are not.
    linear = dense(16, 12, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-3, 4, shape, generator=generator) for shape in ((16, 4), (4, 12)))
    with torch.no_grad():
        linear.weight.copy_(left @ right)
    message = rf"{kind.__name__}: tol=1e-06 not met in torch\.bfloat16; the relative error is"
    with pytest.warns(la.ConvergenceWarning, match=message):
        assert kind.from_dense(linear, tol=1e-6).rank == 4
    inputs = torch.randn(50, 12, dtype=torch.float64)
    with pytest.warns(la.ConvergenceWarning, match=message):
        kind.from_dense(linear, tol=1e-6, gram=inputs.T @ inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind.from_dense(linear, tol=0.05, gram=Gram.of(inputs))
        kind.from_dense(linear, rank=1)


@both
def test_the_scale_of_weight_and_gram_changes_no_rank(kind):
    linear = dense(9, 8)
    inputs = torch.randn(30, 8, dtype=torch.float64) * 0.6 ** torch.arange(8)
    gram = inputs.T @ inputs
    ranks = {
        kind.from_dense(scaled(linear, factor), tol=0.2, gram=other * gram).rank
        for factor in (1.0, 2.0**300, 2.0**-300)
        for other in (1.0, 2.0**300, 2.0**-300)
    }
    assert len(ranks) == 1
    assert kind.from_dense(scaled(linear, 0.0), tol=0.2).rank == 1


def scaled(linear, factor):
    linear = copy.deepcopy(linear)
    with torch.no_grad():
        linear.weight.mul_(factor)
    return linear


@both
def test_flops_are_those_that_torch_counts(kind):
    layer = kind.from_dense(dense(24, 16), 5)
    with FlopCounterMode(display=False) as counted:
        layer(torch.ones(1, 16, dtype=torch.float64))
    assert counted.get_total_flops() == layer.flops() == 2 * layer.weight_parameters()
    assert repr(layer).endswith(f", flops={layer.flops()})")


@both
def test_the_mode_is_kept(kind):
    assert not kind.from_dense(dense(4, 4).eval(), 2).training
    assert kind.from_dense(dense(4, 4), 2).training


@both
def test_bad_sizes(kind):
    linear = dense(6, 4)
    for given_of in ({}, {"rank": 1, "tol": 0.1}, {"ratio": 0.5, "tol": 0.1}):
        with pytest.raises(ValueError, match="one of rank, ratio and tol must be given"):
            kind.from_dense(linear, **given_of)
    for wrong in (1, -0.5, math.nan):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: tol must be in \[0, 1\)"):
            kind.from_dense(linear, tol=wrong)
        with pytest.raises(ValueError, match=f"{kind.__name__}: ratio must leave rank=1"):
            kind.from_dense(linear, ratio=wrong)
    for wrong in (2.0, True):
        with pytest.raises(TypeError, match="rank must be an integer"):
            kind.from_dense(linear, wrong)
