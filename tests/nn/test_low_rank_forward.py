"""One call for the two products of LowRankLinear and InterpolativeLinear."""

import subprocess
import sys

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jvp, vmap

from fastlr.linalg.factored_linear import interpolative_linear, low_rank_linear
from fastlr.nn import InterpolativeLinear, LowRankLinear
from references import UNIT_ROUNDOFF

FORMS = ["low rank", "rows", "columns"]
form = pytest.mark.parametrize("form", FORMS)
dtypes = pytest.mark.parametrize("dtype", UNIT_ROUNDOFF, ids=str)


def layer_of(form, inputs=37, outputs=29, rank=5, bias=True, dtype=torch.float64):
    """A layer of random values, in any order."""
    torch.manual_seed(inputs + outputs + rank)
    if form == "low rank":
        layer = LowRankLinear(inputs, outputs, rank, bias, dtype=dtype)
    else:
        layer = InterpolativeLinear(inputs, outputs, rank, bias, form, dtype=dtype)
        layer.order.copy_(torch.randperm(len(layer.order)))
    if bias:
        torch.nn.init.normal_(layer.bias)
    return layer


def tokens_of(layer, *shape):
    state = torch.Generator().manual_seed(len(shape))
    dtype = next(layer.parameters()).dtype
    return torch.randn(*shape, layer.in_features, generator=state, dtype=torch.float64).to(dtype)


def products(layer, X):
    """The products that the layer stands for, one by one."""
    if isinstance(layer, LowRankLinear):
        return F.linear(F.linear(X, layer.A), layer.B, layer.bias)
    if layer.side == "rows":
        kept = F.linear(X, layer.skeleton)
        whole = torch.cat((kept, F.linear(kept, layer.coefficients)), -1)[..., layer.order.long()]
        return whole if layer.bias is None else whole + layer.bias
    kept, others = X[..., layer.order.long()].tensor_split([layer.rank], -1)
    return F.linear(kept + F.linear(others, layer.coefficients), layer.skeleton, layer.bias)


def absolute(layer):
    """The layer of the absolute values: its outputs bound the sums of the terms of the layer's."""
    bound = layer_of(
        form_of(layer), layer.in_features, layer.out_features, layer.rank, layer.bias is not None
    )
    state = {k: v.abs().double() for k, v in layer.state_dict().items() if k != "order"}
    bound.load_state_dict({**layer.state_dict(), **state})
    return bound


def form_of(layer):
    return "low rank" if isinstance(layer, LowRankLinear) else layer.side


def assert_close_to_exact(layer, X):
    """Each sum has at most i + r + 2 terms, and up to three results are rounded to the dtype."""
    dtype = X.dtype
    exact = layer_of(
        form_of(layer), layer.in_features, layer.out_features, layer.rank, layer.bias is not None
    )
    exact.load_state_dict(layer.state_dict())
    got = layer(X)
    assert got.dtype == dtype
    u, in_sums = UNIT_ROUNDOFF[dtype], min(UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF[torch.float32])
    terms = layer.in_features + layer.rank + 2
    with torch.no_grad():
        bound = (terms * in_sums + 3 * u) * products(absolute(layer), X.double().abs())
        assert ((got.double() - products(exact, X.double())).abs() <= bound).all()


@form
@dtypes
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_that_of_the_factors(form, dtype, bias):
    layer = layer_of(form, bias=bias, dtype=dtype)
    for count in (0, 1, 2, 3, 5, 7, 8, 9, 300):
        assert_close_to_exact(layer, tokens_of(layer, count))


@form
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (1, 9, 1), (9, 1, 1), (8, 16, 8), (3, 4, 3), (64, 70, 33)]
)
def test_forward_of_any_sizes(form, size):
    for dtype in (torch.float32, torch.bfloat16):
        layer = layer_of(form, *size, dtype=dtype)
        for count in (1, 4, 6, 20):
            assert_close_to_exact(layer, tokens_of(layer, count))


@form
def test_tiles(form):
    # Of more than 2²⁰ entries between the factors, at 256 tokens and more: two tiles and more.
    layer = layer_of(form, 2100, 2100, 2100 if form == "low rank" else 3, dtype=torch.float32)
    assert_close_to_exact(layer, tokens_of(layer, 1100))


@form
def test_shapes_and_strides(form):
    layer = layer_of(form)
    X = tokens_of(layer, 2, 3, 4)
    expected = products(layer, X)
    close = {"rtol": 0, "atol": 1e-13}  # sums of at most 44 terms of about 1, rounded by 2⁻⁵³
    torch.testing.assert_close(layer(X), expected, **close)
    torch.testing.assert_close(layer(X[0, 0, 0]), expected[0, 0, 0], **close)
    torch.testing.assert_close(layer(X.mT.contiguous().mT), expected, **close)
    torch.testing.assert_close(layer(X[:, ::2]), expected[:, ::2], **close)
    for name, parameter in list(layer.named_parameters()):
        if parameter.ndim == 2:
            setattr(layer, name, torch.nn.Parameter(parameter.detach().mT.contiguous().mT))
    torch.testing.assert_close(layer(X), expected, **close)
    torch.testing.assert_close(layer(X[0, 0]), expected[0, 0], **close)


def test_every_bfloat16_is_widened_as_it_is():
    """Through a skeleton of all rows: NaN, infinities and subnormal numbers, too."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    order = torch.arange(len(every), dtype=torch.int32)
    for columns in (1, 8, 11):  # alone, in a vector, in the last entries
        X = torch.ones(1, columns, dtype=torch.bfloat16)
        skeleton = torch.zeros(len(every), columns, dtype=torch.bfloat16)
        skeleton[:, -1] = every
        got = interpolative_linear(
            X, skeleton, skeleton.new_empty(0, len(every)), order, of_rows=True
        )
        assert torch.equal(got[0].nan_to_num(12), every.nan_to_num(12))


def test_infinity_stays_infinity():
    """In the inputs and in the factors, wherever in a row: no product with a padding of zeros."""
    for columns in range(8, 25):
        for column in range(columns):
            one, other = torch.ones(1, columns), torch.ones(1, columns)
            one[0, column] = torch.inf
            for X, A in ((one, other), (other, one)):
                assert torch.isposinf(low_rank_linear(X, A, torch.ones(1, 1))).all()


@form
def test_gradients(form):
    for bias in (True, False):
        layer = layer_of(form, 7, 6, 3, bias)
        names = [name for name, _ in layer.named_parameters()]

        def call(X, *parameters, layer=layer, names=names):
            return functional_call(layer, dict(zip(names, parameters, strict=True)), (X,))

        for count in (1, 10):
            inputs = (tokens_of(layer, count).requires_grad_(), *layer.parameters())
            assert torch.autograd.gradcheck(call, inputs)
            assert torch.autograd.gradgradcheck(call, inputs)


@form
@dtypes
def test_gradients_are_those_of_the_products(form, dtype):
    """Also where there are several tiles, whose gradients are summed in float32 at least."""
    layer = layer_of(form, 2100, 2100, 700 if form == "low rank" else 3, dtype=dtype)
    slow = form == "low rank" and dtype != torch.float32
    tokens = 20 if slow else 1600
    X = tokens_of(layer, tokens).requires_grad_()
    Y = layer(X)
    G = torch.randn(Y.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    wanted = [X, *layer.parameters()]
    got = torch.autograd.grad(Y, wanted, G)
    exact = layer_of(form, 2100, 2100, layer.rank)
    exact.load_state_dict(layer.state_dict())
    X = X.detach().double().requires_grad_()
    expected = torch.autograd.grad(products(exact, X), [X, *exact.parameters()], G.double())
    # Rounding errors of independent signs: of each of the three factors of a gradient once, and of
    # sums of n terms √n times that of the sums.
    terms = 2100**0.5 + tokens**0.5
    u = 8 * UNIT_ROUNDOFF[dtype] + 4 * terms * min(UNIT_ROUNDOFF[dtype], 2.0**-24)
    for one, two in zip(got, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - two).norm() <= u * two.norm()


@form
def test_only_what_is_asked_for(form):
    layer = layer_of(form)
    X = tokens_of(layer, 20).requires_grad_()
    whole = torch.autograd.grad(layer(X).square().sum(), [X, *layer.parameters()])
    for asked, expected in zip([X, *layer.parameters()], whole, strict=True):
        for other in [X, *layer.parameters()]:
            other.requires_grad_(other is asked)
        (got,) = torch.autograd.grad(layer(X).square().sum(), asked)
        # The same products, maybe alone: rounding of sums of at most 42 terms.
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@form
def test_transforms_of_torch(form):
    layer = layer_of(form)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    X = tokens_of(layer, 4)

    def gradient(parameters, x):
        return grad(lambda p: functional_call(layer, p, (x,)).square().sum())(parameters)

    for name, found in vmap(gradient, (None, 0))(parameters, X).items():
        for x, one in zip(X, found, strict=True):
            torch.testing.assert_close(one, gradient(parameters, x)[name])
    value, tangent = jvp(layer, (X,), (X,))
    linear = products(layer, X) - products(layer, torch.zeros_like(X))
    torch.testing.assert_close(value, products(layer, X))
    torch.testing.assert_close(tangent, linear)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(X, X)))
    torch.testing.assert_close(dual.tangent, linear)
    second = hessian(lambda x: layer(x).square().sum())(X[0])
    weight = layer.compose()
    torch.testing.assert_close(second, 2 * weight.T @ weight)


@form
def test_autocast_is_that_of_a_dense_layer(form):
    layer = layer_of(form, dtype=torch.float32)
    X = tokens_of(layer, 12).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Y = layer(X)
    lowered = layer_of(form, dtype=torch.bfloat16)
    lowered.load_state_dict(layer.state_dict())
    assert Y.dtype == torch.bfloat16
    assert torch.equal(Y, lowered(X.bfloat16()))
    Y.sum().backward()
    assert X.grad.dtype == layer.bias.grad.dtype == torch.float32


@form
def test_compiled_and_exported(form):
    layer = layer_of(form)
    X = tokens_of(layer, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(X), layer(X))
    compiled(X).sum().backward()
    program = torch.export.export(layer, (X,))
    assert all("fastlr" not in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(X), layer(X))


@form
def test_what_autograd_keeps(form):
    """The inputs and the factors, and nothing between the factors."""
    layer = layer_of(form)
    X = tokens_of(layer, 500).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        layer(X)
    numbers = sum(tensor.numel() for tensor in kept)
    assert numbers == X.numel() + layer.weight_parameters() + len(getattr(layer, "order", ()))


_MEMORY = """
import torch
from fastlr.nn import InterpolativeLinear, LowRankLinear

def peak():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

tokens, size, form = 400_000, 64, {form!r}
if form == "low rank":
    layer = LowRankLinear(size, size, size)
else:
    layer = InterpolativeLinear(size, size, size // 2, side=form)
call = layer if {fused} else lambda X: X @ layer.A.T @ layer.B.T
with torch.no_grad():
    call(torch.zeros(1000, size))
    X = torch.zeros(tokens, size).add_(1)
    before = peak()
    Y = call(X)
print((peak() - before) / (Y.numel() * Y.element_size()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of the memory")
def test_memory_does_not_grow_with_what_is_between_the_factors():
    def memory(form, fused=True):
        script = _MEMORY.format(form=form, fused=fused)
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        return float(ran.stdout)

    # In units of the outputs: they themselves, and a tile of 2²⁰ entries at most of 25·2²⁰.
    for form in FORMS:
        assert 0.9 < memory(form) < 1.25
    assert memory("low rank", fused=False) > 1.75


@form
def test_few_tokens_have_the_bits_of_one_alone(form):
    layer = layer_of(form, 300, 200, 50, dtype=torch.float32)
    X = tokens_of(layer, 8)
    together = layer(X)
    for x, y in zip(X, together, strict=True):
        assert torch.equal(layer(x), y)


def test_bad_input():
    layer = layer_of("low rank", dtype=torch.float32)
    X = tokens_of(layer, 3)
    A, B, bias = layer.A, layer.B, layer.bias
    with pytest.raises(ValueError, match="X must have 37 entries in its last dimension, got shape"):
        low_rank_linear(X[:, 1:], A, B)
    with pytest.raises(TypeError, match="low_rank_linear: X must be Float, got Double"):
        low_rank_linear(X.double(), A, B)
    with pytest.raises(ValueError, match=r"B must have shape \[29, 5\], got \[29, 4\]"):
        low_rank_linear(X, A, B[:, 1:])
    with pytest.raises(TypeError, match="B must be Float, got Double"):
        low_rank_linear(X, A, B.double())
    with pytest.raises(ValueError, match=r"bias must have shape \[29\], got \[28\]"):
        low_rank_linear(X, A, B, bias[1:])
    with pytest.raises(ValueError, match="A must have 2 dimensions, got shape"):
        low_rank_linear(X, A[0], B)
    with pytest.raises(TypeError, match="A must be float16, bfloat16, float32 or float64, got Int"):
        low_rank_linear(X.int(), A.int(), B.int())


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_bad_interpolation(side):
    layer = layer_of(side, dtype=torch.float32)
    X, S, C, order = tokens_of(layer, 3), layer.skeleton, layer.coefficients, layer.order
    n = len(order)

    def call(X=X, S=S, C=C, order=order, bias=None):
        return interpolative_linear(X, S, C, order, bias, of_rows=side == "rows")

    for number, text in ((n, f"got {n}"), (-1, "got -1"), (int(order[0]), f"{order[0]} twice")):
        wrong = order.clone()
        wrong[1] = number
        for tokens in (X, X.repeat(9, 1)):
            with pytest.raises(ValueError, match=f"a permutation of 0 to {n - 1}, .*{text}"):
                call(tokens, order=wrong)
    with pytest.raises(TypeError, match="order must be int32, got Long"):
        call(order=order.long())
    with pytest.raises(ValueError, match=rf"order must have shape \[{n}\], got \[{n - 1}\]"):
        call(order=order[1:])
    with pytest.raises(ValueError, match="coefficients must have shape"):
        call(C=C[:, 1:] if side == "rows" else C[1:])
    with pytest.raises(ValueError, match="skeleton must have 2 dimensions, got shape"):
        call(S=S[0])
    with pytest.raises(ValueError, match="X must have 37 entries in its last dimension"):
        call(X[:, 1:])
