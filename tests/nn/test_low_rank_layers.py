"""LowRankLinear and InterpolativeLinear."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn import InterpolativeLinear, LowRankLinear
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
