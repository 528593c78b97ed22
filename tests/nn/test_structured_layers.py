"""KroneckerLinear and MonarchLinear."""

import copy
import io
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastlr.linalg as la
from fastlr.nn import KroneckerLinear, LowRankLinear, MonarchLinear
from references import unit_roundoff

# Sizes that 3 blocks do not divide, and B first or C first.
LAYERS = [
    pytest.param(KroneckerLinear, (8, 12), {"shape": (4, 3)}, "terms", id="Kronecker"),
    pytest.param(KroneckerLinear, (8, 12), {"shape": (2, 6)}, "terms", id="Kronecker, wide B"),
    pytest.param(MonarchLinear, (8, 12), {"blocks": 2}, "rank", id="Monarch"),
    pytest.param(MonarchLinear, (8, 11), {"blocks": 3}, "rank", id="Monarch, filled up"),
]
layers = pytest.mark.parametrize(("kind", "sizes", "structure", "count"), LAYERS)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(o, i, dtype=torch.float64, bias=True, seed=0):
    linear = nn.Linear(i, o, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(draw(o, i, seed=seed) / math.sqrt(i))
        if bias:
            linear.bias.copy_(draw(o, seed=seed + 1))
    return linear


def product(layer, B, C):
    """The weight by other words than the layer's, with a gradient."""
    if isinstance(layer, KroneckerLinear):
        return sum(torch.kron(b, c) for b, c in zip(B, C, strict=True))
    blocks, h, _ = B.shape
    weight = B.new_zeros(h * blocks, blocks * C.shape[2])
    for row in range(blocks):
        for k in range(blocks):
            # `rank` rows of block k of the right factor lead to this slice.
            left = B[row][:, k * layer.rank : (k + 1) * layer.rank]
            right = C[k][row::blocks]
            part = torch.zeros_like(weight)
            part[row::blocks, k * C.shape[2] : (k + 1) * C.shape[2]] = left @ right
            weight = weight + part
    return weight[: layer.out_features, : layer.in_features]


def factors(layer):
    if isinstance(layer, KroneckerLinear):
        return layer.B, layer.C
    return layer.left, layer.right


@layers
@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_that_of_the_dense_weight(kind, sizes, structure, count, bias):
    linear = dense(*sizes, bias=bias)
    layer = kind.from_dense(linear, *structure.values(), **{count: 2})
    weight = product(layer, *factors(layer)).detach()
    torch.testing.assert_close(layer.compose(), weight, rtol=0, atol=1e-15)
    for lead in ((), (0,), (1,), (5,), (2, 0), (2, 3)):
        x = draw(*lead, sizes[1], seed=3)
        expected = nn.functional.linear(x, weight, linear.bias)
        y = layer(x)
        # Sums of some dozen products.
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
        assert y.is_contiguous()
    transposed = draw(sizes[1], 7).T
    torch.testing.assert_close(layer(transposed), layer(transposed.contiguous()))
    for wrong in (sizes[1] - 1, 2 * sizes[1]):
        with pytest.raises(RuntimeError, match="multiply up to the size"):
            layer(draw(4, wrong))
    torch.testing.assert_close(layer.to_dense()(x), layer(x), rtol=0, atol=1e-14)


@layers
def test_from_dense_is_the_optimum_and_exact_in_full(kind, sizes, structure, count):
    linear = dense(*sizes)
    given_structure = tuple(structure.values())
    for number in (1, 2):
        layer = kind.from_dense(linear, *given_structure, **{count: number})
        if kind is KroneckerLinear:
            info = la.nearest_kronecker(linear.weight, *given_structure, terms=number).info
        else:
            info = la.monarch_project(linear.weight, *given_structure, rank=number).info
        error = float(torch.dist(layer.compose(), linear.weight))
        assert error == pytest.approx(info.error, rel=1e-12)
        assert error > 0.1 * info.norm
        assert torch.equal(layer.bias, linear.bias)
    with pytest.raises(ValueError, match=f"{count} must be between 1 and") as caught:
        kind.from_dense(linear, *given_structure, **{count: 99})
    limit = int(re.search(r"and (\d+),", str(caught.value))[1])
    full = kind.from_dense(linear, *given_structure, **{count: limit})
    # An SVD in float64 of norm 3, some √n·u.
    assert torch.dist(full.compose(), linear.weight) <= 1e-13


@given(tol=st.floats(0.01, 0.99), ratio=st.floats(0.01, 0.8), seed=st.integers(0, 99))
def test_tol_and_ratio_are_kept_by_the_fitting_number(tol, ratio, seed):
    linear = dense(12, 16, seed=seed)
    norm = float(linear.weight.norm())
    for kind, structure, count in (
        (KroneckerLinear, (3, 4), "terms"),
        (MonarchLinear, 3, "rank"),
    ):

        def error(number, kind=kind, structure=structure, count=count):
            cut = kind.from_dense(linear, structure, **{count: number})
            return float(torch.dist(cut.compose(), linear.weight))

        number = getattr(kind.from_dense(linear, structure, tol=tol), count)
        assert error(number) <= tol * norm
        assert number == 1 or error(number - 1) > tol * norm
        one = kind.from_dense(linear, structure, **{count: 1}).weight_parameters()
        if one > (1 - ratio) * 12 * 16:
            with pytest.raises(ValueError, match=f"ratio must leave {count}=1"):
                kind.from_dense(linear, structure, ratio=ratio)
            continue
        layer = kind.from_dense(linear, structure, ratio=ratio)
        assert layer.weight_parameters() <= (1 - ratio) * 12 * 16
        assert layer.weight_parameters() + one > (1 - ratio) * 12 * 16


def test_a_tolerance_below_the_rounding_is_told():
    linear = dense(8, 8, torch.bfloat16)
    with pytest.warns(la.ConvergenceWarning, match=r"tol=1e-06 not met in torch\.bfloat16"):
        KroneckerLinear.from_dense(linear, (2, 2), tol=1e-6)
    with pytest.warns(la.ConvergenceWarning, match=r"MonarchLinear: tol=1e-06 not met"):
        MonarchLinear.from_dense(linear, 2, tol=1e-6)


@layers
def test_gradients(kind, sizes, structure, count):
    layer = kind.from_dense(dense(*sizes), *structure.values(), **{count: 2})
    names = [name for name, _ in layer.named_parameters()]

    def apply(inputs, *parameters):
        return torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (inputs,)
        )

    x = draw(2, sizes[1], seed=5).requires_grad_()
    assert torch.autograd.gradcheck(apply, (x, *layer.parameters()), fast_mode=True)
    # The chain rule through the weight: the dense layer's gradient, pulled back.
    weight = layer.compose().requires_grad_()
    nn.functional.linear(x, weight, layer.bias).square().sum().backward()
    G = weight.grad
    expected = torch.autograd.grad((product(layer, *factors(layer)) * G).sum(), factors(layer))
    got = torch.autograd.grad(layer(x).square().sum(), factors(layer))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@layers
def test_counts(kind, sizes, structure, count):
    layer = kind.from_dense(dense(*sizes), *structure.values(), **{count: 2})
    parameters = sum(p.numel() for p in layer.parameters())
    assert layer.weight_parameters() + sizes[0] == parameters
    assert f"{count}=2, bias=True, parameters={parameters}, flops={layer.flops()})" in repr(layer)
    # What torch counts, for a single input.
    with FlopCounterMode(display=False) as counted:
        layer(draw(1, sizes[1]))
    assert counted.get_total_flops() == layer.flops()
    assert layer.weight_bytes() == 8 * layer.weight_parameters()


@layers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(kind, sizes, structure, count, dtype):
    linear = dense(*sizes, dtype=dtype)
    layer = kind.from_dense(linear, *structure.values(), **{count: 2})
    assert {p.dtype for p in layer.parameters()} == {dtype}
    u = unit_roundoff(layer.bias)
    wide = kind.from_dense(linear.double(), *structure.values(), **{count: 2})
    size = math.prod(float(factor.detach().norm()) for factor in factors(wide))
    # Both factors are rounded once.
    assert torch.dist(layer.compose(), wide.compose()) <= 3 * u * size
    x = draw(6, sizes[1], seed=2).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    # Factors, what is between the products, the output and its sum with the bias are rounded.
    bound = 8 * u * (size * float(x.double().norm()) + float(wide.bias.norm()) * math.sqrt(6))
    assert torch.dist(y.double(), wide(x.double())) <= bound
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x.float()).dtype == torch.bfloat16


@layers
def test_saved_copied_and_moved(kind, sizes, structure, count):
    layer = kind.from_dense(dense(*sizes).eval(), *structure.values(), **{count: 2})
    assert not layer.training
    x = draw(3, sizes[1])
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    # The structure survives JSON, as a checkpoint's description does.
    again = kind(**json.loads(json.dumps(layer.structure())), dtype=torch.float64)
    again.load_state_dict(torch.load(stream))
    assert again.structure() == layer.structure()
    assert torch.equal(again(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        nn.Linear(sizes[1], sizes[0]).load_state_dict(layer.state_dict(), strict=False)
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == (3, sizes[0])
    assert layer.float()(x.float()).dtype == torch.float32


def test_described_to_transformers():
    pytest.importorskip("transformers")
    from fastlr.nn.hf_quantizer import FastlrConfig

    model = nn.ModuleDict(
        {
            "a": KroneckerLinear.from_dense(dense(8, 12), (4, 3), terms=2),
            "b": MonarchLinear.from_dense(dense(8, 12, bias=False), 4, rank=2),
        }
    )
    described = FastlrConfig(json.loads(json.dumps(FastlrConfig.of(model).layers)))
    for name, layer in model.items():
        built = described.build(name, nn.Linear(1, 1, dtype=torch.float64))
        assert type(built) is type(layer)
        assert built.structure() == layer.structure()


@layers
def test_compiled_and_exported(kind, sizes, structure, count):
    layer = kind.from_dense(dense(*sizes, torch.float32), *structure.values(), **{count: 2})
    x = draw(4, sizes[1], dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    batch = torch.export.Dim("batch", min=2, max=1024)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    more = draw(9, sizes[1], dtype=torch.float32)
    torch.testing.assert_close(exported.module()(more), layer(more))


def test_one_block_is_a_layer_of_low_rank():
    linear = dense(9, 7)
    monarch, low = MonarchLinear.from_dense(linear, 1, rank=3), LowRankLinear.from_dense(linear, 3)
    torch.testing.assert_close(monarch.compose(), low.compose(), rtol=0, atol=1e-13)
    assert monarch.weight_parameters() == low.weight_parameters()


def test_fresh_layers_have_the_variance_of_a_dense_one():
    torch.manual_seed(0)
    for layer in (
        KroneckerLinear(144, 144, (12, 12), terms=8, dtype=torch.float64),
        MonarchLinear(144, 144, 12, dtype=torch.float64),
    ):
        # Some thousand independent factors: 10 % is three standard deviations and more.
        variance = float(layer.compose().square().mean())
        assert variance == pytest.approx(1 / (3 * 144), rel=0.1)
        assert not layer.bias.any()


def test_conv1d_is_transposed():
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    conv = Conv1D(8, 12)
    layer = KroneckerLinear.from_dense(conv, (4, 3), terms=8)
    torch.testing.assert_close(layer.compose().float(), conv.weight.T.detach())


def test_bad_arguments():
    for shape in ((3, 3), (4, 5), (0, 3), (4,), (2.0, 3)):
        with pytest.raises(ValueError, match=r"shape must be divisors of .* \(8, 12\), got"):
            KroneckerLinear(12, 8, shape)
    for terms in (0, 9):
        with pytest.raises(ValueError, match=f"terms must be between 1 and 8, got {terms}"):
            KroneckerLinear(12, 8, (4, 3), terms)
    for blocks in (0, 9, 2.0):
        with pytest.raises(ValueError, match=f"blocks must be .* = 8, got {blocks}"):
            MonarchLinear(12, 8, blocks)
    for rank in (0, 3):
        with pytest.raises(ValueError, match=f"rank must be between 1 and 2, got {rank}"):
            MonarchLinear(12, 8, 4, rank)
    linear = dense(8, 12)
    for kind, structure, count in (
        (KroneckerLinear, (4, 3), "terms"),
        (MonarchLinear, 4, "rank"),
    ):
        for given_of in ({}, {count: 1, "tol": 0.1}, {"ratio": 0.5, "tol": 0.1}):
            with pytest.raises(ValueError, match=f"one of {count}, ratio and tol must be given"):
                kind.from_dense(linear, structure, **given_of)
        for wrong in (1, -0.5, math.nan):
            with pytest.raises(ValueError, match=rf"tol must be in \[0, 1\), got {wrong}"):
                kind.from_dense(linear, structure, tol=wrong)
            with pytest.raises(ValueError, match=f"ratio must leave {count}=1, .* got {wrong}"):
                kind.from_dense(linear, structure, ratio=wrong)
        for wrong in (2.0, True):
            with pytest.raises(TypeError, match=f"{count} must be an integer, got {wrong}"):
                kind.from_dense(linear, structure, **{count: wrong})
        with pytest.raises(ValueError, match=f"ratio must leave {count}=1"):
            kind.from_dense(linear, structure, ratio=0.99)
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Linear .*, got Conv2d"):
            kind.from_dense(nn.Conv2d(1, 1, 1), structure, **{count: 1})
        with pytest.raises(TypeError, match="dtype must be a real float type"):
            kind(12, 8, structure, dtype=torch.complex64)
        with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
            kind(0, 8, structure)
    with torch.no_grad():
        linear.weight[2, 1] = math.nan
    for made in (
        lambda: KroneckerLinear.from_dense(linear, (4, 3), terms=1),
        lambda: MonarchLinear.from_dense(linear, 4, tol=0.1),
    ):
        with pytest.raises(
            ValueError, match=re.escape("weight must be finite, got nan at index (2, 1)")
        ):
            made()
