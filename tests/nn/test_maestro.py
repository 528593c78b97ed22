"""MaestroLinear: factors that order themselves as the SVD does, a penalty, and cuts."""

import copy
import io
import math
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn import LowRankLinear, MaestroLinear

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def orthonormal(m, n, seed=0):
    return torch.linalg.qr(draw(m, n, seed=seed))[0]


def train(layer, x, y, steps, weight=0.0, lr=0.05):
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.8)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().sum() + weight * layer.penalty()
        loss.backward()
        optimizer.step()
    return optimizer


def leading(layer, rank):
    with torch.no_grad():
        return layer.U[:, :rank] @ layer.V[:, :rank].mT


def matrix(values, m=6, n=5):
    values = torch.tensor(values, dtype=torch.float64)
    return orthonormal(m, len(values)) * values @ orthonormal(n, len(values), seed=1).mT


def test_inputs_without_preferred_direction_lead_to_the_svd():
    torch.manual_seed(0)
    A = matrix([3.0, 2.0, 1.0])
    x = orthonormal(30, 5, seed=2)  # a second moment of exactly the identity, as of a ball
    layer = MaestroLinear(5, 6, 4, bias=False, dtype=torch.float64)
    train(layer, x, x @ A.mT, 800)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    # All random gradients vanish at the SVD, so that the iteration converges linearly, to rounding
    # in the end: errors are 1e-5 after 400 steps, and 1e-10 after 800.
    for rank in range(1, 5):
        best = U[:, :rank] * S[:rank] @ Vh[:rank]
        assert torch.dist(leading(layer, rank), best) < 1e-6
    lengths = (layer.U.norm(dim=0) * layer.V.norm(dim=0)).detach()
    torch.testing.assert_close(lengths, S[:4], rtol=0, atol=1e-6)
    # The rank that A has is found.
    assert layer.shrink(1e-5) == 3
    # The negative control: without random ranks, the product is as good and its parts are not.
    torch.manual_seed(0)
    plain = MaestroLinear(5, 6, 4, bias=False, dtype=torch.float64).eval()
    train(plain, x, x @ A.mT, 300)
    assert torch.dist(leading(plain, 4), A) < 1e-3
    assert torch.dist(leading(plain, 2), U[:, :2] * S[:2] @ Vh[:2]) > 0.1


def test_a_linear_autoencoder_leads_to_principal_components():
    torch.manual_seed(0)
    directions = orthonormal(6, 6)
    variances = torch.tensor([3.0, 2.0, 1.3, 0.9, 0.5, 0.2], dtype=torch.float64)
    x = orthonormal(40, 6, seed=1) * variances.sqrt() @ directions.mT
    layer = MaestroLinear(6, 6, 4, bias=False, dtype=torch.float64)
    train(layer, x, x, 1000)
    for rank in range(1, 5):
        # Principal angles between the spans: their cosines are the singular values.
        for factor in (layer.U, layer.V):
            basis = torch.linalg.qr(factor.detach()[:, :rank])[0]
            sines = torch.linalg.svdvals(
                basis - directions[:, :rank] @ (directions[:, :rank].mT @ basis)
            )
            assert float(sines[0]) < 1e-4
        projector = directions[:, :rank] @ directions[:, :rank].mT
        assert torch.dist(leading(layer, rank), projector) < 1e-4


def test_the_penalty_finds_the_rank_and_keeps_the_map():
    torch.manual_seed(0)
    A = matrix([3.0, 2.0])
    x = orthonormal(30, 5, seed=2)
    layer = MaestroLinear(5, 6, 5, bias=False, dtype=torch.float64)
    before = float(torch.linalg.vector_norm(layer.U[:, 2:].detach()))
    optimizer = train(layer, x, x @ A.mT, 600, weight=0.02, lr=0.03)
    # Steps of lr·weight·(groups, five at most) about zero, ten times that with momentum.
    after = float(torch.linalg.vector_norm(layer.U[:, 2:].detach()))
    assert after < 0.05 < before
    assert layer.shrink(0.01, optimizer) == 2
    # The bias of a lasso: less than the weight by the groups and the curvature.
    assert torch.dist(layer.compose(), A) < 0.1
    assert float(layer.U.detach().norm()) > 1


@given(
    o=st.integers(1, 9),
    i=st.integers(1, 9),
    seed=st.integers(0, 1000),
    zeros=st.integers(0, 3),
)
def test_the_penalty_is_the_sum_of_its_groups(o, i, seed, zeros):
    rank = min(o, i)
    layer = MaestroLinear(i, o, rank, dtype=torch.float64)
    with torch.no_grad():
        layer.U.copy_(draw(o, rank, seed=seed))
        layer.V.copy_(draw(i, rank, seed=seed + 1))
        layer.U[:, rank - min(zeros, rank) :] = 0
    value = layer.penalty()
    expected = sum(layer.U[:, b:].norm() + layer.V[:, b:].norm() for b in range(rank))
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    value.backward()
    # The gradient of ‖F[:, b:]‖ is F[:, b:] divided by it, and 0 at 0.
    for factor in (layer.U, layer.V):
        gradient = torch.zeros_like(factor)
        for b in range(rank):
            tail = factor.detach()[:, b:]
            gradient[:, b:] += tail / tail.norm() if tail.any() else 0
        torch.testing.assert_close(factor.grad, gradient, rtol=1e-12, atol=1e-13)


def test_random_ranks_are_uniform_and_end_with_training():
    layer = MaestroLinear(4, 4, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.U.copy_(torch.eye(4))
        layer.V.copy_(torch.eye(4))
    x = torch.ones(3, 4, dtype=torch.float64)
    torch.manual_seed(0)
    counts = torch.zeros(5)
    for _ in range(2000):
        output = layer(x)
        rank = int(output[0].sum())
        assert torch.equal(output, (torch.arange(4) < rank).double().expand(3, 4))
        counts[rank] += 1
    # A deviation of √(2000·3/16) = 19.4.
    assert counts[0] == 0
    assert (counts[1:] - 500).abs().max() < 4.5 * 19.4
    torch.manual_seed(7)
    drawn = [layer(x) for _ in range(5)]
    torch.manual_seed(7)
    assert all(torch.equal(output, layer(x)) for output in drawn)
    # A rank that is asked for, in both modes; all of it otherwise.
    for rank in (1, 3, 4):
        assert int(layer(x, rank)[0].sum()) == int(layer.eval()(x, rank)[0].sum()) == rank
        layer.train()
    assert torch.equal(layer.eval()(x), x)


def test_a_forward_pass_trains_the_leading_columns_only():
    layer = MaestroLinear(6, 5, 5, dtype=torch.float64)
    layer(draw(7, 6), rank=2).square().sum().backward()
    for factor in (layer.U, layer.V):
        assert bool((factor.grad[:, :2].abs().sum(0) > 0).all())
        assert not factor.grad[:, 2:].any()


@given(
    o=st.integers(1, 12),
    i=st.integers(1, 12),
    decay=st.floats(0.05, 1),
    threshold=st.floats(1e-6, 0.99),
    seed=st.integers(0, 1000),
)
def test_the_least_rank_within_the_threshold_is_kept(o, i, decay, threshold, seed):
    rank = min(o, i)
    layer = MaestroLinear(i, o, rank, dtype=torch.float64)
    with torch.no_grad():
        layer.U.copy_(draw(o, rank, seed=seed) * decay ** torch.arange(rank))
        layer.V.copy_(draw(i, rank, seed=seed + 1))
    whole = copy.deepcopy(layer)
    kept = layer.shrink(threshold)
    assert kept == layer.rank == layer.U.shape[1] == layer.V.shape[1]
    assert torch.equal(layer.U, whole.U[:, :kept])
    assert torch.equal(layer.V, whole.V[:, :kept])
    size = whole.compose().norm()
    # Gram matrices resolve some √u of it.
    assert torch.dist(layer.compose(), whole.compose()) <= (threshold + 1e-7) * size
    if kept > 1:
        fewer = leading(whole, kept - 1)
        assert torch.dist(fewer, whole.compose()) >= (threshold - 1e-7) * size
    assert layer.shrink(0) == kept


def test_nothing_but_zeros_is_cut_without_a_threshold():
    layer = MaestroLinear(5, 6, 5)
    assert layer.shrink(0) == 5
    with torch.no_grad():
        layer.U[:, 3:] = 0
    assert layer.shrink(0) == 3
    torch.nn.init.zeros_(layer.V)
    # A rank of at least 1.
    assert layer.shrink(0.5) == 1
    assert not layer.eval()(torch.ones(2, 5)).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
        lambda p: torch.optim.Adagrad(p, lr=0.01),
    ],
)
def test_an_optimizer_goes_on_as_if_the_columns_had_never_been(make):
    x, y = draw(20, 5), draw(20, 6, seed=1)
    torch.manual_seed(0)
    layer = MaestroLinear(5, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.U[:, 3:] = 0
        layer.V[:, 3:] = 0  # zero gradients: they stay
    # The same with three columns from the beginning.
    small = MaestroLinear(5, 6, 3, dtype=torch.float64)
    small.load_state_dict(
        {"U": layer.U[:, :3], "V": layer.V[:, :3], "bias": layer.bias, "weight": layer.weight}
    )
    optimizers = [make(module.parameters()) for module in (layer, small)]

    def steps(count):
        for _ in range(count):
            for module, optimizer in zip((layer, small), optimizers, strict=True):
                optimizer.zero_grad()
                (module(x, rank=module.rank) - y).square().mean().backward()
                optimizer.step()

    steps(4)
    parameter = layer.U
    assert layer.shrink(0, optimizers[0]) == 3
    assert layer.U is parameter
    assert layer.U.grad.shape == (6, 3)
    steps(4)
    # Sums of five terms or of three and two zeros.
    torch.testing.assert_close(layer.U, small.U, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.V, small.V, rtol=1e-10, atol=1e-12)


def test_to_low_rank_and_dense():
    for bias in (True, False):
        layer = MaestroLinear(7, 5, 4, bias=bias, dtype=torch.float64).eval()
        low = layer.to_low_rank()
        assert isinstance(low, LowRankLinear)
        assert (low.rank, low.training, low.bias is not None) == (4, False, bias)
        x = draw(3, 7)
        torch.testing.assert_close(low(x), layer(x), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(layer.to_dense()(x), layer(x), rtol=1e-13, atol=1e-14)
        with torch.no_grad():
            low.A.zero_()
        assert layer.V.any()
    assert MaestroLinear(7, 5, 4, dtype=torch.bfloat16).to_low_rank().A.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_dense_begins_with_the_svd(dtype):
    torch.manual_seed(0)
    linear = torch.nn.Linear(9, 6, dtype=dtype)
    layer = MaestroLinear.from_dense(linear, 6)
    assert layer.U.dtype == layer.V.dtype == dtype
    U, S, Vh = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
    u = torch.finfo(dtype).eps / 2
    for rank in range(1, 7):
        best = U[:, :rank] * S[:rank] @ Vh[:rank]
        # Two factors rounded; eigenvectors of a Gram matrix in float64.
        error = torch.dist(leading(layer, rank).double(), best)
        assert float(error) <= (4 * u + 1e-9) * float(S.norm())
    torch.testing.assert_close(layer.U.norm(dim=0), layer.V.norm(dim=0), rtol=20 * u, atol=0)
    # Rank-deficient weights have columns of zeros, and no NaN.
    torch.nn.init.zeros_(linear.weight)
    assert not MaestroLinear.from_dense(linear, 3).compose().any()


def test_saved_copied_and_compiled():
    torch.manual_seed(0)
    layer = MaestroLinear(6, 4, 4)
    x = torch.randn(7, 6)
    with torch.no_grad():
        layer.U[:, 3:] = 0
    assert layer.shrink(0) == 3
    layer.eval()
    expected = layer(x)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    again = MaestroLinear(**layer.structure()).eval()
    again.load_state_dict(torch.load(stream))
    for other in (again, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    layer.train()
    torch.manual_seed(3)
    outputs = [compiled(x) for _ in range(30)]
    # Ranks are drawn anew in every call of the same graph.
    assert len({round(float(output.detach().norm()), 5) for output in outputs}) == layer.rank
    outputs[0].sum().backward()
    assert layer.U.grad.isfinite().all()
    assert layer(x[None, :0]).shape == (1, 0, 4)
    assert layer(x[0]).shape == (4,)
    with pytest.raises(RuntimeError, match="size mismatch for U"):
        MaestroLinear(6, 4, 4).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        torch.nn.Linear(6, 4).load_state_dict(layer.state_dict(), strict=False)
    assert MaestroLinear(6, 4, 2, device="meta")(x.to("meta")).shape == (7, 4)


def test_fresh_layers():
    torch.manual_seed(0)
    layer = MaestroLinear(300, 200, 40)
    # 60,000 products; entries of one column or row have common factors: 200 independent ones.
    assert float(layer.compose().var()) == pytest.approx(1 / (3 * 300), rel=0.2)
    assert not layer.bias.any()
    assert "in_features=300, out_features=200, rank=40, bias=True" in repr(layer)
    assert layer.weight_parameters() == 40 * 500
    assert math.isfinite(float(layer.penalty().detach()))


def test_bad_arguments():
    with pytest.raises(ValueError, match=re.escape("MaestroLinear: rank must be between 1 and")):
        MaestroLinear(4, 5, 5)
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        MaestroLinear(0, 4, 1)
    with pytest.raises(TypeError, match=r"real float type, got torch\.int64"):
        MaestroLinear(4, 4, 1, dtype=torch.int64)
    layer = MaestroLinear(4, 5, 3)
    for rank in (0, 4):
        with pytest.raises(ValueError, match=f"rank must be between 1 and 3, got {rank}"):
            layer(torch.ones(2, 4), rank=rank)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="threshold must be at least 0 and below 1, got"):
            layer.shrink(threshold)
    with pytest.raises(ValueError, match="basis and projected must be"):
        MaestroLinear.from_factors(torch.ones(3, 2), torch.ones(3, 4))
