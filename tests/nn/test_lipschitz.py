"""LipschitzLinear and LipschitzResidual: bounds that no parameters break, and that are attained."""

import copy
import io
import itertools
import math
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn import LipschitzLinear, LipschitzResidual
from fastlr.nn.modules.contraction import contraction, uncontracted
from references import unit_roundoff

DTYPES = [torch.float32, torch.float64]
SLOPED = ["relu", "tanh", "softplus"]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def fill(module, size, seed=0):
    """Any parameters of about that size."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            drawn = draw(*parameter.shape, dtype=parameter.dtype, seed=97 * seed + index)
            parameter.copy_(size * drawn)
    return module


def norm(A):
    return float(torch.linalg.matrix_norm(A.detach().double(), 2))


def worst_slope(block):
    """max ‖I + G·D·W‖₂ over diagonal D in [0, 1]ʰ: a convex function, so D is a corner."""
    G, W = (part.detach().double() for part in block.branch())
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=block.hidden)))
    jacobians = torch.eye(block.features) + G @ (corners[:, :, None] * W)
    return float(torch.linalg.matrix_norm(jacobians, 2).max())


def excess(block_or_layer, size):
    """Orthonormal columns from Householder QR: some √size·u, twenty allowed; twice in G·W."""
    return 20 * size * unit_roundoff(block_or_layer.M.detach())


@given(
    o=st.integers(1, 30),
    i=st.integers(1, 30),
    lipschitz=st.sampled_from([1e-3, 0.5, 1.0, 7.0, 1e6]),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_the_norm_of_a_linear_layer_is_bounded(o, i, lipschitz, exponent, dtype, seed):
    layer = fill(LipschitzLinear(i, o, lipschitz=lipschitz, dtype=dtype), 10.0**exponent, seed)
    weight = layer.weight
    assert (weight.shape, weight.dtype) == ((o, i), dtype)
    size = norm(weight)
    assert size <= lipschitz * (1 + excess(layer, min(o, i)))
    # Singular values are those of M, bent. In float64, for the reference not to be the error.
    sigma = torch.linalg.svdvals(layer.M.detach().double())
    expected = lipschitz * sigma / (1 + sigma.square()).sqrt()
    error = (torch.linalg.svdvals(weight.detach().double()) - expected).abs().max()
    if float(sigma[-1]) > 1e-3 * float(sigma[0]) or exponent <= 0:
        assert float(error) <= lipschitz * excess(layer, min(o, i))
    # Attained once M is large.
    if exponent >= 10:
        assert size >= lipschitz * (1 - excess(layer, min(o, i)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dependent_zero_and_extreme_parameters_of_a_linear_layer(dtype):
    huge = 1e37 if dtype == torch.float32 else 1e300
    rank_one = torch.outer(draw(9), draw(6, seed=1)).to(dtype)
    for M in (
        torch.zeros(9, 6, dtype=dtype),
        torch.ones(9, 6, dtype=dtype) * huge,
        rank_one * 1e20,
        torch.ones(9, 6, dtype=dtype) / huge,
        torch.diag(torch.tensor([huge, 1, 1 / huge], dtype=dtype)),
    ):
        for parameter in (M, M.T.contiguous()):
            layer = LipschitzLinear(parameter.shape[1], parameter.shape[0], dtype=dtype)
            layer.load_state_dict({"M": parameter, "bias": torch.zeros(len(parameter))})
            assert norm(layer.weight) <= 1 + excess(layer, 9)
            layer(torch.ones(3, layer.in_features, dtype=dtype)).square().sum().backward()
            assert all(p.grad.isfinite().all() for p in layer.parameters())
    zero = LipschitzLinear(6, 9, dtype=dtype)
    torch.nn.init.zeros_(zero.M)
    assert not zero.weight.any()


@given(
    n=st.integers(1, 6),
    h=st.integers(1, 8),
    lipschitz=st.sampled_from([1.0, 1 + 1e-9, 1.5, 10.0, 1e4]),
    exponent=st.integers(-20, 20),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_no_slopes_of_a_residual_block_exceed_the_bound(n, h, lipschitz, exponent, dtype, seed):
    block = fill(LipschitzResidual(n, h, lipschitz, dtype=dtype), 10.0**exponent, seed)
    assert worst_slope(block) <= lipschitz * (1 + 2 * excess(block, max(n, h)))


@pytest.mark.parametrize("lipschitz", [1.0, 2.0])
def test_the_matrix_inequality_holds(lipschitz):
    # The proof itself: P ⪰ 0 for the multipliers that the block was made with.
    for seed in range(20):
        block = fill(LipschitzResidual(5, 7, lipschitz, dtype=torch.float64), 1.0, seed)
        G, W = (part.detach() for part in block.branch())
        multipliers = torch.exp(20 * torch.tanh(block.log_scale.detach() / 10)).diag()
        corner = (lipschitz**2 - 1) * torch.eye(5, dtype=torch.float64)
        side = -G - W.T @ multipliers
        P = torch.cat(
            [
                torch.cat([corner, side], 1),
                torch.cat([side.T, 2 * multipliers - G.T @ G], 1),
            ]
        )
        least = float(torch.linalg.eigvalsh(P)[0])
        assert least >= -100 * 2.0**-53 * norm(P)


@pytest.mark.parametrize("activation", SLOPED)
@pytest.mark.parametrize("lipschitz", [1.0, 3.0])
def test_an_adversary_finds_no_steeper_pair(lipschitz, activation):
    block = fill(LipschitzResidual(6, 20, lipschitz, activation, dtype=torch.float64), 3.0)
    x = (0.3 * draw(64, 6)).requires_grad_()
    step = (0.1 * draw(64, 6, seed=1)).requires_grad_()
    optimizer = torch.optim.Adam([x, step], lr=0.05)
    for _ in range(150):
        ratio = (block(x + step) - block(x)).norm(dim=1) / step.norm(dim=1)
        optimizer.zero_grad()
        (-ratio.log().sum()).backward()
        optimizer.step()
    ratio, step = ratio.detach(), step.detach()
    # Differences of values of size ‖x‖ ≤ 100 or so over steps of 1e-3 or more.
    assert float(step.norm(dim=1).min()) > 1e-3
    assert float(ratio.max()) <= lipschitz * (1 + 1e-9)
    # The search is worth its name: it gets beyond the random pairs that it began with.
    assert float(ratio.max()) > 0.9 * min(lipschitz, 2.0)
    # And so do the Jacobians where it ended.
    jacobians = torch.vmap(torch.func.jacrev(block))(x.detach())
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= lipschitz * (1 + 1e-13)


@pytest.mark.parametrize("lipschitz", [1.0, 1.25, 5.0])
def test_the_bound_of_a_residual_block_is_attained(lipschitz):
    # One unit of slope 1: 1 + 2·a·(c·b − a) = cos 2θ + c·sin 2θ for a = sin θ, b = cos θ.
    block = LipschitzResidual(1, 1, lipschitz, dtype=torch.float64)
    # For c = 0 the unit turns x into −x.
    angle = math.atan(math.sqrt(lipschitz**2 - 1)) / 2 if lipschitz > 1 else math.pi / 2
    with torch.no_grad():
        column = torch.tensor([[math.sin(angle)], [math.cos(angle)]], dtype=torch.float64)
        block.M.copy_(1e9 * column[: len(block.M)])
    x, y = torch.tensor([[2.0], [5.0]], dtype=torch.float64)
    sign = float(torch.sign(block.branch()[1]))  # the side on which the unit is active
    ratio = float((block(sign * y) - block(sign * x)).abs() / 3)
    assert ratio == pytest.approx(lipschitz, rel=1e-14)


def test_a_block_that_is_trained_to_break_the_bound_reaches_it():
    torch.manual_seed(0)
    for lipschitz in (1.0, 2.0):
        block = LipschitzResidual(3, 6, lipschitz, dtype=torch.float64)
        optimizer = torch.optim.Adam(block.parameters(), lr=0.1)
        x = draw(200, 3)
        for _ in range(200):
            jacobian = torch.vmap(torch.func.jacrev(block))(x[:20])
            optimizer.zero_grad()
            (-torch.linalg.matrix_norm(jacobian, 2).max()).backward()
            optimizer.step()
        reached = float(torch.linalg.matrix_norm(jacobian, 2).max())
        assert 0.98 * lipschitz <= reached <= lipschitz * (1 + 1e-13)


def test_stacks_have_the_product_of_the_bounds():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        LipschitzLinear(4, 8, lipschitz=2),
        LipschitzResidual(8, 16),
        LipschitzResidual(8, 16, 1.5, "tanh"),
        LipschitzLinear(8, 3, lipschitz=0.5),
    ).double()
    fill(net, 2.0)
    jacobians = torch.vmap(torch.func.jacrev(net))(draw(300, 4))
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= 1.5 * (1 + 1e-13)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 6)])
def test_every_matrix_below_the_bound_is_represented(shape):
    K = draw(*shape)
    K = 0.9 * K / norm(K)
    # The Cholesky factor of I − KᵀK has a condition number of 1/√0.19 at most.
    torch.testing.assert_close(contraction(uncontracted(K)), K, rtol=0, atol=1e-14)
    M = draw(*shape, seed=2)
    torch.testing.assert_close(uncontracted(contraction(M)), M, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_dense_and_back(dtype):
    torch.manual_seed(0)
    linear = torch.nn.Linear(7, 5, dtype=dtype)
    u = unit_roundoff(linear.weight)
    size = norm(linear.weight)
    kept = LipschitzLinear.from_dense(linear, 2 * size)
    # Below the bound by half: nothing is cut.
    torch.testing.assert_close(kept.weight, linear.weight, rtol=0, atol=50 * u * size)
    assert torch.equal(kept.bias, linear.bias)
    cut = LipschitzLinear.from_dense(linear, 0.5 * size)
    U, S, Vh = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
    nearest = U * S.clamp(max=0.5 * size) @ Vh
    # √u of the bound is left out, and M is of size u^-¼.
    assert norm(cut.weight.double() - nearest) <= 2 * math.sqrt(u) * size
    assert norm(cut.weight) <= 0.5 * size * (1 + excess(cut, 5))
    dense = cut.to_dense()
    assert dense.weight.dtype == dtype
    # Rounded in float64 there.
    torch.testing.assert_close(dense.weight, cut.weight, rtol=0, atol=50 * u * size)
    assert torch.equal(dense.bias, cut.bias)
    without = LipschitzLinear.from_dense(torch.nn.Linear(4, 4, bias=False), 1)
    assert without.bias is None
    assert without.to_dense().bias is None


def test_gradients():
    for shape in ((4, 3), (3, 4)):
        layer = LipschitzLinear(*shape, lipschitz=2, dtype=torch.float64)

        def apply(x, M, bias, layer=layer):
            return torch.func.functional_call(layer, {"M": M, "bias": bias}, (x,))

        x = draw(2, shape[0]).requires_grad_()
        assert torch.autograd.gradcheck(apply, (x, layer.M, layer.bias))
    for lipschitz in (1.0, 2.0):
        block = fill(LipschitzResidual(3, 5, lipschitz, "tanh", dtype=torch.float64), 1.0)

        def run(x, M, log_scale, bias, block=block):
            values = {"M": M, "log_scale": log_scale, "bias": bias}
            return torch.func.functional_call(block, values, (x,))

        x = draw(2, 3).requires_grad_()
        assert torch.autograd.gradcheck(run, (x, block.M, block.log_scale, block.bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [-30, 0, 30])
def test_gradients_are_finite_and_not_lost(exponent, dtype):
    for module in (LipschitzLinear(4, 6, dtype=dtype), LipschitzResidual(4, 9, 2.0, dtype=dtype)):
        fill(module, 10.0**exponent)
        module(draw(10, 4, dtype=dtype)).sum().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())
        if exponent == 0:
            assert all(p.grad.abs().max() > 0 for p in module.parameters())
    # Scales of hidden units that would overflow are bounded, and so are their gradients.
    block = LipschitzResidual(4, 9, dtype=dtype)
    with torch.no_grad():
        block.log_scale.copy_(torch.linspace(-1e30, 1e30, 9))
    output = block(draw(10, 4, dtype=dtype))
    assert output.isfinite().all()
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_weight_decay_and_training_keep_the_map_sound():
    torch.manual_seed(0)
    layer = LipschitzLinear(8, 8, dtype=torch.float64)
    target = 2 * torch.linalg.qr(draw(8, 8))[0]
    x = draw(200, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        (layer(x) - x @ target.T).square().mean().backward()
        optimizer.step()
    # The nearest matrix of norm 1 to twice an orthogonal one is that; M has grown to about 10.
    assert norm(layer.weight) <= 1 + 1e-13
    assert norm(layer.weight - target / 2) < 0.05


@pytest.mark.parametrize(
    "make",
    [
        lambda: LipschitzLinear(6, 4, lipschitz=2),
        lambda: LipschitzLinear(4, 6, bias=False),
        lambda: LipschitzResidual(5, 8, 3.0, "tanh"),
        lambda: LipschitzResidual(5, 3),
    ],
)
def test_saved_copied_and_compiled(make):
    torch.manual_seed(0)
    module = fill(make(), 1.0)
    x = torch.randn(7, getattr(module, "in_features", None) or module.features)
    expected = module(x)
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    stream.seek(0)
    again = make()
    again.load_state_dict(torch.load(stream))
    for other in (again, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    grads = []
    for run in (module, compiled):
        module.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    torch.testing.assert_close(*grads)
    assert module(x[0]).shape == expected[0].shape
    assert module(x[None, :0]).shape == (1, 0, expected.shape[1])
    assert module.double()(x.double()).dtype == torch.float64
    meta = copy.deepcopy(module).to("meta")
    assert meta(x.double().to("meta")).shape == expected.shape


def test_fresh_modules():
    torch.manual_seed(0)
    layer = LipschitzLinear(30, 20, lipschitz=3)
    values = torch.linalg.svdvals(layer.weight.detach())
    torch.testing.assert_close(values, torch.full((20,), 3 * 2 / math.sqrt(5)))
    assert not layer.bias.any()
    assert "in_features=30, out_features=20, bias=True, lipschitz=3" in repr(layer)
    block = LipschitzResidual(20, 60, 1.5)
    assert "features=20, hidden=60, lipschitz=1.5, activation='relu'" in repr(block)
    assert [tuple(p.shape) for p in block.parameters()] == [(40, 60), (60,), (60,)]
    assert LipschitzResidual(20, 60).M.shape == (20, 60)
    assert LipschitzLinear(3, 2, device="meta").weight.shape == (2, 3)


def test_a_state_of_another_kind_does_not_load():
    with pytest.raises(RuntimeError, match="size mismatch for M"):
        LipschitzResidual(5, 8, 2.0).load_state_dict(LipschitzResidual(5, 8).state_dict())
    with pytest.raises(RuntimeError, match="weight"):
        torch.nn.Linear(4, 4).load_state_dict(LipschitzLinear(4, 4).state_dict())


def test_bad_arguments():
    for value in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="LipschitzLinear: lipschitz must be positive and"):
            LipschitzLinear(3, 4, lipschitz=value)
    for value in (0.99, -1, float("nan"), float("inf")):
        message = "LipschitzResidual: lipschitz must be at least 1 and finite, got"
        with pytest.raises(ValueError, match=message):
            LipschitzResidual(3, 4, value)
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        LipschitzLinear(0, 4)
    with pytest.raises(ValueError, match="out_features must be at least 1, got -1"):
        LipschitzLinear(4, -1)
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        LipschitzResidual(0, 4)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        LipschitzResidual(4, 0)
    with pytest.raises(
        ValueError, match="activation must be one of relu, tanh, softplus, got 'gelu'"
    ):
        LipschitzResidual(4, 4, activation="gelu")
    for dtype in (torch.bfloat16, torch.float16, torch.complex64, torch.int64):
        for make in (LipschitzLinear, LipschitzResidual):
            message = f"{make.__name__}: dtype must be float32 or float64, got {dtype}"
            with pytest.raises(TypeError, match=re.escape(message)):
                make(3, 4, dtype=dtype)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Linear"):
        LipschitzLinear.from_dense(torch.nn.Conv1d(3, 3, 1), 1)
    with pytest.raises(TypeError, match=r"must be float32 or float64, got torch\.bfloat16"):
        LipschitzLinear.from_dense(torch.nn.Linear(3, 3).bfloat16(), 1)
    bad = torch.nn.Linear(3, 3)
    with torch.no_grad():
        bad.weight[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"weight must be finite, got nan at index \(2, 1\)"):
        LipschitzLinear.from_dense(bad, 1)
