"""LowRankConv1d, 2d, 3d and CPConv2d: dense convolutions as chains of smaller ones."""

import copy
import io
import math
import pickle
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastlr.linalg as la
from fastlr.nn import CPConv2d, LowRankConv1d, LowRankConv2d, LowRankConv3d
from references import unit_roundoff

U = torch.finfo(torch.float64).eps
LOW_RANK = {1: LowRankConv1d, 2: LowRankConv2d, 3: LowRankConv3d}
DENSE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Every class with every split that it has.
KINDS = [
    (LowRankConv1d, "tucker"),
    (LowRankConv1d, "channel"),
    (LowRankConv2d, "tucker"),
    (LowRankConv2d, "spatial"),
    (LowRankConv2d, "channel"),
    (LowRankConv3d, "tucker"),
    (LowRankConv3d, "spatial"),
    (LowRankConv3d, "channel"),
    (CPConv2d, None),
]
every = pytest.mark.parametrize(("kind", "split"), KINDS)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(dimensions, o=6, i=4, kernel=3, *, seed=0, dtype=torch.float64, bias=True, **more):
    conv = DENSE[dimensions](i, o, kernel, bias=bias, dtype=dtype, **more)
    with torch.no_grad():
        conv.weight.copy_(draw(*conv.weight.shape, seed=seed) / math.sqrt(conv.weight[0].numel()))
        if bias:
            conv.bias.copy_(draw(o, seed=seed + 1))
    return conv


def named(split):
    """The keyword of a split; CPConv2d has none."""
    return {} if split is None else {"split": split}


def sizes(kind, split, conv):
    """g, o/g, i/g, kernel, and the full rank."""
    o, i, *kernel = conv.weight.shape
    g = conv.groups
    o //= g
    full = {
        "tucker": (o, i),
        "channel": min(o, i * math.prod(kernel)),
        "spatial": min(o * math.prod(kernel[1:]), i * kernel[0]),
        None: math.prod((o, i, *kernel)) // max(o, i, *kernel),
    }
    return g, o, i, kernel, full[split]


def some_rank(kind, split, conv):
    full = sizes(kind, split, conv)[-1]
    return tuple((n + 1) // 2 for n in full) if split == "tucker" else (full + 1) // 2


def from_dense(kind, split, conv, *args, **more):
    """Without the warnings of `cp`, where a minimum is not needed."""
    with warnings.catch_warnings():
        if kind is CPConv2d:
            warnings.simplefilter("ignore", la.ConvergenceWarning)
        return kind.from_dense(conv, *args, **more, **named(split))


def decaying(kind, dtype=torch.float64, **more):
    """Smaller ones for CP, which is iterative."""
    small = {"o": 4, "i": 4, "kernel": (3, 2)} if kind is CPConv2d else {}
    return structured(kind.dimensions, dtype, **small, **more)


def relative(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@st.composite
def convolutions(draw_, kinds=KINDS):
    """A class, a split, and a dense layer with any steps, paddings and groups."""
    kind, split = draw_(st.sampled_from(kinds))
    dimensions = kind.dimensions
    g = draw_(st.integers(1, 3))
    o, i = g * draw_(st.integers(1, 4)), g * draw_(st.integers(1, 4))
    each = st.tuples(*[st.integers(1, 3)] * dimensions)
    padding = draw_(st.one_of(st.sampled_from(["same", "valid", 1]), each))
    stride = 1 if padding == "same" else draw_(st.one_of(st.integers(1, 2), each))
    conv = dense(
        dimensions,
        o,
        i,
        draw_(each),
        seed=draw_(st.integers(0, 1000)),
        bias=draw_(st.booleans()),
        stride=stride,
        padding=padding,
        dilation=draw_(st.one_of(st.integers(1, 2), each)),
        groups=g,
        padding_mode=draw_(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    return kind, split, conv


@settings(max_examples=60)
@given(convolutions(), st.sampled_from([None, 0, 1, 3]))
def test_full_rank_is_exact(case, batch):
    """With the outputs of the dense layer for all of its arguments, batched or not."""
    kind, split, conv = case
    *_, full = sizes(kind, split, conv)
    layer = from_dense(kind, split, conv, full)
    # Orthonormal factors of the channels, found by SVDs: some u for each of the entries.
    tolerance = 100 * U * math.sqrt(conv.weight.numel())
    assert relative(layer.compose(), conv.weight) <= tolerance
    shape = (conv.in_channels, *[9] * kind.dimensions)
    x = draw(*shape if batch is None else (batch, *shape), seed=5)
    expected, found = conv(x), layer(x)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 10 * tolerance * (1 + x.norm()) * conv.weight.norm()
    again = layer.to_dense()
    assert type(again) is type(conv)
    for name in ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size"):
        assert getattr(again, name) == getattr(conv, name) == getattr(layer, name)
    assert (again.bias is None) == (conv.bias is None) == (layer.bias is None)
    assert conv.bias is None or torch.equal(again.bias, conv.bias)


@settings(max_examples=40)
@given(convolutions())
def test_outputs_are_those_of_the_composed_kernel_and_counts_are_counted(case):
    kind, split, conv = case
    g, o, i, kernel, _ = sizes(kind, split, conv)
    rank = some_rank(kind, split, conv)
    layer = from_dense(kind, split, conv, rank)
    x = draw(2, conv.in_channels, *[9] * kind.dimensions, seed=5)
    size = 1 + layer.to_dense().weight.detach().norm() * x.norm()
    # Factors of CP may cancel: they are larger than their sum.
    factors = math.prod(1 + float(f.weight.detach().norm()) for f in layer.factors)
    assert (layer(x) - layer.to_dense()(x)).norm() <= 1e3 * U * (size + factors * x.norm())
    numbers = {
        "tucker": lambda r: r[1] * i + r[0] * r[1] * math.prod(kernel) + o * r[0],
        "channel": lambda r: r * (i * math.prod(kernel) + o),
        "spatial": lambda r: r * (i * kernel[0] + o * math.prod(kernel[1:])),
        None: lambda r: r * (i + sum(kernel) + o),
    }
    parameters = sum(p.numel() for p in layer.parameters())
    bias = 0 if layer.bias is None else layer.out_channels
    assert layer.weight_parameters() == parameters - bias == g * numbers[split](rank)
    assert f"parameters={parameters}, flops={layer.flops()}" in repr(layer)
    assert layer.rank == rank


def counted(layer, x):
    """Products with weights, by the outputs that each factor really has."""
    total = 0
    for factor in layer.factors:
        x = factor(x)
        total += 2 * factor.weight.numel() * math.prod(x.shape[2:])
    return total, math.prod(x.shape[2:])


@every
def test_flops_are_those_of_one_place(kind, split):
    for stride in (1, 2):
        conv = dense(kind.dimensions, stride=stride, kernel=2)
        layer = from_dense(kind, split, conv, some_rank(kind, split, conv))
        # Circular padding by one: without borders; all numbers of places are multiples.
        layer = kind(
            **{**layer.structure(), "padding_mode": "circular", "kernel_size": 1, "rank": 1}
        )
        flops, places = counted(layer, torch.zeros(1, 4, *[8] * kind.dimensions))
        assert layer.flops() * places == flops


def tails(conv, split):
    """Squared norms of what each rank leaves out, for all groups; unfoldings by hand."""
    g, o, i, kernel, _ = sizes(None, None, conv)
    parts = conv.weight.detach().reshape(g, o, i, kernel[0], -1)
    unfolded = {
        "output": parts.flatten(2),
        "input": parts.transpose(1, 2).flatten(2),
        "channel": parts.flatten(2),
        "spatial": parts.permute(0, 1, 4, 2, 3).reshape(g, o * parts.shape[4], -1),
    }[split]
    energy = torch.linalg.svdvals(unfolded).square().sum(0)
    return [float(energy[r:].sum()) for r in range(len(energy) + 1)]


@settings(max_examples=40)
@given(convolutions(KINDS[:-1]), st.floats(0, 1))
def test_errors_are_the_tails(case, part):
    kind, split, conv = case
    full = sizes(kind, split, conv)[-1]
    size = float(conv.weight.detach().norm())
    rounding = 100 * U * math.sqrt(conv.weight.numel()) * size
    if split == "tucker":
        rank = tuple(1 + int(part * (n - 1)) for n in full)
        error = float((kind.from_dense(conv, rank).compose() - conv.weight.detach()).norm())
        lost = [tails(conv, name) for name in ("output", "input")]
        left = [t[min(r, len(t) - 1)] for t, r in zip(lost, rank, strict=True)]
        # No better than either unfolding allows, and as good as both truncations together.
        assert math.sqrt(max(left)) - rounding <= error <= math.sqrt(sum(left)) + rounding
    else:
        rank = 1 + int(part * (full - 1))
        layer = kind.from_dense(conv, rank, split=split)
        error = float((layer.compose() - conv.weight.detach()).norm())
        assert abs(error - math.sqrt(tails(conv, split)[rank])) <= 10 * rounding


def structured(dimensions, dtype=torch.float64, o=12, i=8, **more):
    """A layer whose kernel has decaying spectra along the channels, as trained ones have."""
    conv = dense(dimensions, o, i, **more)
    with torch.no_grad():
        o, i = conv.weight.shape[:2]
        decay = 0.5 ** torch.arange(o, dtype=torch.float64)
        Q, _ = torch.linalg.qr(draw(o, o, seed=8))
        R, _ = torch.linalg.qr(draw(i, i, seed=9))
        kernel = torch.einsum("ab,bi...->ai...", Q * decay[:o], conv.weight)
        conv.weight.copy_(torch.einsum("ai...,ij->aj...", kernel, R * decay[:i]))
    return conv.to(dtype)


@every
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_tolerance_is_met_with_few_numbers(kind, split, groups, dtype):
    if kind is CPConv2d and dtype != torch.float32:
        return  # the search is slower
    conv = decaying(kind, dtype, groups=groups)
    last = None
    for tol in (0.5, 0.1) if kind is CPConv2d else (0.5, 0.1, 0.02):
        layer = kind.from_dense(conv, tol=tol, **named(split))
        assert relative(layer.compose(), conv.weight.detach()) <= tol
        assert layer.factors[0].weight.dtype == dtype
        assert last is None or layer.weight_parameters() >= last
        last = layer.weight_parameters()
        if split in ("channel", "spatial") and dtype == torch.float64:
            # One less would not do.
            left = tails(conv, split)
            assert layer.rank == 1 or left[layer.rank - 1] > tol**2 * left[0]


def truncated(W, a, b):
    """The projection on so many leading vectors of both unfoldings."""
    left, right = (
        torch.linalg.svd(M, full_matrices=False).U
        for M in (W.flatten(1), W.transpose(0, 1).flatten(1))
    )
    P, Q = left[:, :a], right[:, :b]
    return torch.einsum("oihw,op,ij->pjhw", W, P @ P.T, Q @ Q.T)


def test_tucker_ranks_for_a_tolerance_are_the_cheapest_truncation():
    """Against a plain search over all pairs."""
    conv = structured(2)
    layer = LowRankConv2d.from_dense(conv, tol=0.1)
    W = conv.weight.detach()
    fitting = [
        (b * 8 + a * b * 9 + a * 12, a, b)
        for a in range(1, 13)
        for b in range(1, 9)
        if relative(truncated(W, a, b), W) <= 0.1
    ]
    assert (layer.weight_parameters(), *layer.rank) == min(fitting)


@every
def test_an_unmet_tolerance_is_told(kind, split):
    conv = dense(kind.dimensions, 3, 2, kernel=2, dtype=torch.bfloat16)
    if kind is CPConv2d:
        # Fibres and places are exact in any dtype.
        layer = kind.from_dense(conv, tol=1e-9)
        assert torch.equal(layer.to_dense().weight, conv.weight)
        return
    with pytest.warns(la.ConvergenceWarning, match=rf"{kind.__name__}: the error of the kernel is"):
        layer = kind.from_dense(conv, tol=1e-9, split=split)
    assert layer.rank == sizes(kind, split, conv)[-1]


@every
@pytest.mark.parametrize("groups", [1, 2])
def test_the_ratio_is_what_is_removed(kind, split, groups):
    conv = decaying(kind, groups=groups)
    numbers = conv.weight.numel()
    for ratio in (0.3, 0.6) if kind is CPConv2d else (0.3, 0.6, 0.75):
        layer = from_dense(kind, split, conv, ratio=ratio)
        assert layer.weight_parameters() <= numbers * (1 - ratio)
        if split != "tucker" and layer.rank < sizes(kind, split, conv)[-1]:
            # One more would be too large.
            other = kind(**{**layer.structure(), "rank": layer.rank + 1})
            assert other.weight_parameters() > numbers * (1 - ratio)


@every
def test_gradcheck(kind, split):
    conv = dense(kind.dimensions, 4, 2, kernel=2, stride=2, padding=1, groups=2)
    layer = kind(**{**from_dense(kind, split, conv, 1).structure(), "dtype": torch.float64})
    names = [name for name, _ in layer.named_parameters()]

    def apply(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    x = draw(1, 2, *[3] * kind.dimensions).requires_grad_()
    assert torch.autograd.gradcheck(apply, (x, *layer.parameters()))


def composed(layer, split, weights):
    """The kernel of one group as a differentiable function of the factors."""
    flat = [W.reshape(*W.shape[:2], -1) for W in weights]
    if split == "tucker":
        kernel = torch.einsum("oa,abk,bi->oik", flat[2][..., 0], flat[1], flat[0][..., 0])
    elif split in ("channel", "spatial"):
        kernel = torch.einsum("oav,aih->oihv", flat[1], flat[0])
    else:
        kernel = torch.einsum(
            "oa,aw,ah,ai->oihw", flat[3][..., 0], flat[2][:, 0], flat[1][:, 0], flat[0][..., 0]
        )
    return kernel.reshape(layer.out_channels, layer.in_channels, *layer.kernel_size)


@every
def test_gradients_are_those_of_the_dense_layer_by_the_chain_rule(kind, split):
    torch.manual_seed(0)
    conv = dense(kind.dimensions, stride=2, padding=1, padding_mode="circular")
    *_, full = sizes(kind, split, conv)
    rank = (3, 2) if split == "tucker" else 3
    layer = kind(
        **{**from_dense(kind, split, conv, full).structure(), "rank": rank, "dtype": torch.float64}
    )
    assert relative(composed(layer, split, layer._weights()), layer.compose()) <= 100 * U
    x, y = draw(3, 4, *[6] * kind.dimensions), None
    twin = layer.to_dense()
    y = draw(*twin(x).shape, seed=4)
    (layer(x) * y).sum().backward()
    (twin(x) * y).sum().backward()
    weights = [W.detach().requires_grad_() for W in layer._weights()]
    expected = torch.autograd.grad(composed(layer, split, weights), weights, twin.weight.grad)
    for W, gradient in zip(layer._weights(), expected, strict=True):
        assert relative(W.grad, gradient) <= 1e-12
    assert relative(layer.bias.grad, twin.bias.grad) <= 1e-12


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_close(kind, split, dtype):
    conv = dense(kind.dimensions, padding=1, dtype=torch.float32)
    rank = some_rank(kind, split, conv)
    layer = from_dense(kind, split, conv, rank)
    low = from_dense(kind, split, copy.deepcopy(conv).to(dtype), rank)
    assert {p.dtype for p in low.parameters()} == {low.weight.dtype, dtype} == {dtype}
    x = draw(2, 4, *[5] * kind.dimensions).to(dtype)
    found = layer.to(dtype)(x)
    assert found.dtype == dtype
    # Each factor and what comes out of it is rounded, where components have not cancelled.
    exact = layer.double()(x.double())
    sums = copy.deepcopy(layer)
    with torch.no_grad():
        for p in sums.parameters():
            p.abs_()
    bound = 2 * len(layer.factors) * torch.finfo(dtype).eps * sums(x.double().abs()).norm()
    assert (found.double() - exact).norm() <= bound
    assert (found.double() - exact).norm() > 0
    if kind is not CPConv2d:
        change = relative(low.compose(), layer.compose())
        assert change <= 100 * torch.finfo(dtype).eps


@every
def test_saved_moved_compiled_and_exported(kind, split):
    conv = dense(kind.dimensions, dtype=torch.float32, padding=1, padding_mode="reflect")
    layer = from_dense(kind, split, conv, some_rank(kind, split, conv)).eval()
    x = draw(2, 4, *[6] * kind.dimensions, dtype=torch.float32)
    expected = layer(x)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    again = kind(**layer.structure())
    again.load_state_dict(torch.load(stream))
    for other in (again, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
        assert repr(other) == repr(layer)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        conv.load_state_dict(layer.state_dict(), strict=False)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    assert kind(**layer.structure(), device="meta")(x.to("meta")).shape == expected.shape
    wide = layer.to(torch.float64)
    assert wide(x.double()).dtype == wide.weight.dtype == torch.float64


@every
def test_fresh_layers(kind, split):
    torch.manual_seed(0)
    arguments = (20, 30, 3) if kind is not LowRankConv3d else (16, 20, 3)
    rank = (15, 10) if split == "tucker" else 15
    layer = kind(*arguments, rank=rank, **named(split))
    fan_in = arguments[0] * 3**kind.dimensions
    variance = float(layer.compose().square().mean()) * 3 * fan_in
    # The kernel of few numbers of a chain scatters; along the axes of CP there are three each.
    assert variance == pytest.approx(1, rel=0.8 if kind is CPConv2d else 0.4)
    assert not layer.bias.any()
    x = draw(2, arguments[0], *[5] * kind.dimensions, dtype=torch.float32)
    layer(x).square().sum().backward()
    assert all(p.grad.any() for p in layer.parameters())
    assert kind(*arguments, rank=rank, bias=False, **named(split)).bias is None


@every
@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_scaled_kernels(kind, split, factor):
    conv = decaying(kind)
    scaled = copy.deepcopy(conv)
    with torch.no_grad():
        scaled.weight.mul_(factor)
    for wanted in ({"rank": some_rank(kind, split, conv)}, {"tol": 0.2}, {"ratio": 0.6}):
        one, two = (
            from_dense(kind, split, conv, **wanted),
            from_dense(kind, split, scaled, **wanted),
        )
        assert one.rank == two.rank
        error = relative(one.compose(), conv.weight.detach())
        other = relative(two.compose() / factor, scaled.weight.detach() / factor)
        assert other == pytest.approx(error, rel=1e-3)


@every
def test_zero_kernels(kind, split):
    conv = dense(kind.dimensions)
    with torch.no_grad():
        conv.weight.zero_()
    x = draw(2, 4, *[4] * kind.dimensions)
    for wanted in ({"rank": 2}, {"tol": 0.1}, {"ratio": 0.5}):
        layer = from_dense(kind, split, conv, **wanted)
        assert torch.equal(layer(x), conv(x))
        assert all(p.isfinite().all() for p in layer.parameters())


@every
def test_the_dense_layer_is_not_changed_and_the_same_comes_back(kind, split):
    conv = dense(kind.dimensions).eval()
    before = copy.deepcopy(conv.state_dict())
    one, two = (from_dense(kind, split, conv, 2) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in conv.state_dict().items())
    assert not one.training
    assert not one.to_dense().training


@every
def test_bad_arguments(kind, split):
    name, more, d = kind.__name__, named(split), kind.dimensions
    conv = dense(d)
    full = sizes(kind, split, conv)[-1]
    for rank in (0, 1 + (max(full) if split == "tucker" else full)):
        with pytest.raises(ValueError, match=rf"{name}: rank must be .*, got \(?{rank}"):
            kind.from_dense(conv, rank, **more)
        with pytest.raises(ValueError, match=rf"{name}: rank must be"):
            kind(4, 6, 3, rank, **more)
    for rank in (1.5, True, "2"):
        with pytest.raises(TypeError, match=rf"{name}: rank must be an integer, got"):
            kind.from_dense(conv, rank, **more)
    with pytest.raises(ValueError, match=rf"{name}: rank must be one integer"):
        kind.from_dense(conv, (2, 2, 2), **more)
    for wanted in ({}, {"rank": 1, "tol": 0.1}, {"ratio": 0.5, "tol": 0.1}):
        with pytest.raises(ValueError, match=f"{name}: exactly one of rank, ratio and tol must be"):
            kind.from_dense(conv, **wanted, **more)
    for ratio in (0, 1, -0.5, True, "x"):
        with pytest.raises(ValueError, match=f"{name}: ratio must be between 0 and 1, both excl"):
            kind.from_dense(conv, ratio=ratio, **more)
    with pytest.raises(ValueError, match=rf"{name}: ratio must leave the \d+ numbers of rank 1"):
        kind.from_dense(conv, ratio=0.999, **more)
    for tol in (0.0, 1, math.nan):
        with pytest.raises(ValueError, match=f"{name}: tol must be between 0 and 1, got"):
            kind.from_dense(conv, tol=tol, **more)
    with pytest.raises(TypeError, match=f"{name}: tol must be a real number, got 'x'"):
        kind.from_dense(conv, tol="x", **more)
    for other in (nn.Linear(3, 3), dense(d % 3 + 1), nn.ConvTranspose2d(3, 3, 3)):
        with pytest.raises(TypeError, match=rf"{name}: expected a torch\.nn\.Conv{d}d, got"):
            kind.from_dense(other, 1, **more)
    flat = dense(d)
    flat.weight = nn.Parameter(torch.zeros(6, 4))
    with pytest.raises(ValueError, match=rf"the kernel must have {d + 2} dimensions, got shape"):
        kind.from_dense(flat, 1, **more)
    whole = dense(d)
    whole.weight = nn.Parameter(torch.zeros(6, 4, *[3] * d, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"expected a kernel of dtype .*, got torch\.int8"):
        kind.from_dense(whole, 1, **more)
    for value in (math.nan, math.inf):
        with torch.no_grad():
            conv.weight[2, 1, 1] = value
        place = ", ".join(["2", "1", "1", *["0"] * (d - 1)])
        with pytest.raises(
            ValueError,
            match=re.escape(f"{name}: weight must be finite, got {value} at index ({place})"),
        ):
            kind.from_dense(conv, 1, **more)


@every
def test_bad_geometry(kind, split):
    name, more = kind.__name__, named(split)
    with pytest.raises(ValueError, match=f"{name}: groups must divide in_channels = 4, got 3"):
        kind(4, 6, 3, 1, groups=3, **more)
    with pytest.raises(ValueError, match=f"{name}: groups must divide out_channels = 5, got 2"):
        kind(4, 5, 3, 1, groups=2, **more)
    for argument in ("in_channels", "out_channels", "groups", "kernel_size", "stride", "dilation"):
        arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "rank": 1, **more}
        with pytest.raises(ValueError, match=f"{name}: {argument} must be at least 1, got 0"):
            kind(**{**arguments, argument: 0})
        with pytest.raises(TypeError, match=f"{name}: {argument} must be an integer, got 2.0"):
            kind(**{**arguments, argument: 2.0})
    with pytest.raises(ValueError, match=f"{name}: stride must be one number or"):
        kind(4, 6, 3, 1, stride=(1, 1, 1, 1), **more)
    with pytest.raises(ValueError, match=f"{name}: padding must be at least 0, got -1"):
        kind(4, 6, 3, 1, padding=-1, **more)
    with pytest.raises(ValueError, match=f'{name}: padding must be "same", "valid" or numbers'):
        kind(4, 6, 3, 1, padding="full", **more)
    with pytest.raises(ValueError, match=f'{name}: padding="same" must have stride 1, got 2'):
        kind(4, 6, 3, 1, padding="same", stride=2, **more)
    with pytest.raises(ValueError, match=f"{name}: padding_mode must be one of zeros, "):
        kind(4, 6, 3, 1, padding_mode="constant", **more)
    with pytest.raises(TypeError, match=rf"{name}: dtype must be a real float type"):
        kind(4, 6, 3, 1, dtype=torch.int64, **more)


def test_bad_splits():
    with pytest.raises(
        ValueError, match=r'LowRankConv2d: split must be one of "tucker", "spatial"'
    ):
        LowRankConv2d(4, 4, 3, 1, split="cp")
    with pytest.raises(ValueError, match=r"LowRankConv2d: split must be one of .* got None"):
        LowRankConv2d.from_dense(dense(2), 1, split=None)
    with pytest.raises(ValueError, match='LowRankConv1d: split="spatial" must have two axes'):
        LowRankConv1d.from_dense(dense(1), 1, split="spatial")


def test_cp_finds_the_rank_of_a_kernel():
    torch.manual_seed(0)
    hidden = CPConv2d(7, 9, (3, 2), rank=5, dtype=torch.float64)
    found = CPConv2d.from_dense(hidden.to_dense(), tol=1e-9)
    assert found.rank == 5
    assert relative(found.compose(), hidden.compose()) <= 1e-9


def test_a_ridge_keeps_components_from_cancelling():
    conv = dense(2, 12, 12)
    free, held = (
        from_dense(CPConv2d, None, conv, 12, ridge=ridge, max_sweeps=60) for ridge in (0.0, 1e-4)
    )

    def largest(layer):
        return max(float(p.detach().abs().max()) for p in layer.factors.parameters())

    # A random kernel has no best approximation of this rank.
    assert 2 * largest(held) < largest(free)
    assert relative(held.compose(), conv.weight) < relative(free.compose(), conv.weight) + 0.02


def test_tucker_ranks_for_a_size_are_the_best_truncation():
    """Against a plain search over all pairs."""
    conv = structured(2)
    layer = LowRankConv2d.from_dense(conv, ratio=0.6)
    W = conv.weight.detach()
    fitting = [
        (relative(truncated(W, a, b), W), a, b)
        for a in range(1, 13)
        for b in range(1, 9)
        if b * 8 + a * b * 9 + a * 12 <= 0.4 * W.numel()
    ]
    assert layer.rank == min(fitting)[1:]


def test_float32_factors_are_rounded_once():
    conv = dense(2, dtype=torch.float32)
    layer = LowRankConv2d.from_dense(conv, (6, 4))
    assert relative(layer.compose(), conv.weight.detach()) <= 4 * unit_roundoff(conv.weight)
