"""LowRankEmbedding."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastlr.nn import LowRankEmbedding

U = torch.finfo(torch.float64).eps / 2


def table(n, d, dtype=torch.float64, seed=0, decay=1.0, **more):
    """A table whose singular values fall by `decay`."""
    generator = torch.Generator().manual_seed(seed)
    E = torch.randn(n, d, dtype=torch.float64, generator=generator)
    E = E * decay ** torch.arange(d, dtype=torch.float64)
    dense = nn.Embedding(n, d, dtype=dtype, **more)
    with torch.no_grad():
        dense.weight.copy_(E)
        if dense.padding_idx is not None:
            dense.weight[dense.padding_idx].zero_()
    return dense


sizes = st.tuples(st.integers(1, 30), st.integers(1, 12))


@given(sizes, st.data())
@settings(max_examples=50, deadline=None)
def test_the_error_is_the_tail_and_the_full_rank_is_exact(size, data):
    n, d = size
    rank = data.draw(st.integers(1, min(n, d)))
    dense = table(n, d, seed=data.draw(st.integers(0, 99)))
    layer = LowRankEmbedding.from_dense(dense, rank)
    S = torch.linalg.svdvals(dense.weight.detach())
    error = (layer.compose() - dense.weight.detach()).norm()
    # Of products and factors: a few roundings of the table for each of d terms.
    assert abs(float(error - S[rank:].norm())) <= 10 * (n + d) * U * float(S[0])
    assert sum(p.numel() for p in layer.parameters()) == rank * (n + d)
    tokens = torch.arange(n)
    bound = 10 * d * U * float(S[0])
    assert float((layer(tokens) - layer.to_dense()(tokens)).detach().abs().max()) <= bound


@given(sizes, st.data())
@settings(max_examples=50, deadline=None)
def test_counts_weigh_the_error_and_no_other_space_is_better(size, data):
    n, d = size
    rank = data.draw(st.integers(1, min(n, d)))
    dense = table(n, d, seed=data.draw(st.integers(0, 99)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    counts = torch.randint(0, 5, (n,), generator=generator)
    counts[0] = 7
    layer = LowRankEmbedding.from_dense(dense, rank, counts=counts)
    E, weights = dense.weight.detach(), counts.double().sqrt()[:, None]
    S = torch.linalg.svdvals(weights * E)
    error = float((weights * (layer.compose() - E)).norm())
    assert abs(error - float(S[rank:].norm())) <= 10 * (n + d) * U * float(S[0])
    # A row that never occurs is the nearest in the space of B.
    nearest = E @ torch.linalg.pinv(layer.B.detach()) @ layer.B.detach()
    assert (layer.compose() - nearest).norm() <= 100 * (n + d) * U * float(E.norm())


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e100])
@pytest.mark.parametrize("tol", [0.5, 0.1, 1e-3, 0.0])
def test_the_least_rank_within_a_tolerance(tol, scale):
    dense = table(200, 20, decay=0.6)
    with torch.no_grad():
        dense.weight.mul_(scale)
    layer = LowRankEmbedding.from_dense(dense, tol=tol)
    S = torch.linalg.svdvals(dense.weight.detach() / scale)
    assert float(S[layer.rank :].norm()) <= tol * float(S.norm())
    assert float(S[layer.rank - 1 :].norm()) > tol * float(S.norm())


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.9])
def test_the_largest_rank_within_a_ratio(ratio):
    n, d = 300, 25
    layer = LowRankEmbedding.from_dense(table(n, d), ratio=ratio)
    kept = (1 - ratio) * n * d
    assert layer.rank * (n + d) <= kept < (layer.rank + 1) * (n + d)


def test_gradients_are_those_of_the_dense_table():
    """Of A and B from the gradient G of the table: G·Bᵀ and Aᵀ·G; but none of the padding row."""
    layer = LowRankEmbedding.from_dense(table(20, 6, padding_idx=3), 4)
    dense = layer.to_dense()
    tokens = torch.tensor([[0, 3, 7, 7], [19, 0, 0, 1]])
    weights = torch.randn(2, 4, 6, dtype=torch.float64)
    (layer(tokens) * weights).sum().backward()
    (dense(tokens) * weights).sum().backward()
    G = dense.weight.grad
    bound = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(layer.A.grad, G @ layer.B.detach().T, **bound)
    torch.testing.assert_close(layer.B.grad, layer.A.detach().T @ G, **bound)
    assert not bool(layer.A.grad[3].any())
    assert not bool(layer(torch.tensor(3)).any())


def test_gradcheck():
    layer = LowRankEmbedding.from_dense(table(9, 5), 3)
    tokens = torch.tensor([0, 8, 8, 2])
    assert torch.autograd.gradcheck(
        lambda A, B: torch.func.functional_call(layer, {"A": A, "B": B}, (tokens,)),
        (layer.A, layer.B),
    )


def test_sparse_gradients():
    tokens = torch.tensor([0, 5, 5, 2])
    gradients = []
    for sparse in (False, True):
        layer = LowRankEmbedding.from_dense(table(50, 6, sparse=sparse), 3)
        layer(tokens).sum().backward()
        assert layer.A.grad.is_sparse == sparse
        gradients.append(layer.A.grad.to_dense() if sparse else layer.A.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradients_divided_by_frequencies():
    layer = LowRankEmbedding.from_dense(table(50, 6, scale_grad_by_freq=True), 3)
    layer(torch.tensor([0, 5, 5, 2])).sum().backward()
    # Row 5 occurs twice.
    torch.testing.assert_close(layer.A.grad[5], layer.A.grad[2])


def test_a_tied_projection_shares_its_parameters():
    layer = LowRankEmbedding.from_dense(table(40, 8), 5)
    model = nn.ModuleDict({"embed": layer, "head": layer.projection()})
    assert sum(p.numel() for p in model.parameters()) == 5 * 48
    hidden = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(model["head"](hidden), hidden @ layer.compose().T)
    model["head"](hidden).sum().backward()
    assert layer.A.grad is not None
    with_bias = layer.projection(bias=True)
    torch.testing.assert_close(with_bias(hidden), model["head"](hidden))
    assert with_bias.bias.shape == (40,)
    with torch.no_grad():
        layer.B.mul_(2)
    torch.testing.assert_close(model["head"](hidden), hidden @ layer.compose().T)


@pytest.mark.parametrize("shape", [(0,), (), (1,), (7,), (2, 3), (2, 0, 3)])
def test_shapes(shape):
    layer = LowRankEmbedding.from_dense(table(10, 4), 2)
    tokens = torch.zeros(shape, dtype=torch.int64)
    assert layer(tokens).shape == (*shape, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision(dtype):
    dense = table(60, 12, dtype)
    layer = LowRankEmbedding.from_dense(dense, 12)
    assert layer.A.dtype == layer(torch.tensor([1])).dtype == dtype
    u = torch.finfo(dtype).eps / 2
    # A, B, their product and sum round: entries of A are below the norm of a row, those of B 1.
    rows = dense.weight.detach().double().norm(dim=1, keepdim=True)
    error = (layer(torch.arange(60)).detach().double() - dense.weight.detach().double()).abs()
    assert bool((error <= 4 * math.sqrt(12) * u * rows).all())


def test_saved_copied_compiled_and_exported():
    layer = LowRankEmbedding.from_dense(table(30, 6, padding_idx=-1), 3)
    tokens = torch.tensor([[1, 2, 29]])
    expected = layer(tokens)
    assert layer.padding_idx == 29
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = LowRankEmbedding(30, 6, 3, padding_idx=29, dtype=torch.float64)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(tokens), expected)
    assert torch.equal(copy.deepcopy(layer)(tokens), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), expected)
    exported = torch.export.export(layer, (tokens,)).module()
    torch.testing.assert_close(exported(tokens), expected)
    assert layer.float().to("cpu")(tokens).dtype == torch.float32
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Embedding(30, 6).load_state_dict(layer.state_dict(), strict=False)


def test_fresh_layers_have_the_variance_of_a_dense_table():
    torch.manual_seed(0)
    layer = LowRankEmbedding(2000, 64, 16, padding_idx=5, dtype=torch.float64)
    # The mean square is that of the 16 × 64 entries of B, whose deviation is √(2/1024) = 4.4 %.
    assert abs(float(layer.compose().square().mean()) - 1) < 0.15
    assert not bool(layer.compose()[5].any())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LowRankEmbedding(0, 4, 1), ValueError, "num_embeddings must be at least 1"),
        (lambda: LowRankEmbedding(5, 4, 0), ValueError, "rank must be between 1"),
        (lambda: LowRankEmbedding(5, 4, 5), ValueError, "rank must be between 1"),
        (lambda: LowRankEmbedding(5, 4, 1, padding_idx=5), ValueError, "padding_idx must be a row"),
        (lambda: LowRankEmbedding(5, 4, 1, dtype=torch.int64), TypeError, "real float type"),
        (lambda: LowRankEmbedding.from_dense(nn.Linear(3, 3), 1), TypeError, "torch.nn.Embedding"),
        (
            lambda: LowRankEmbedding.from_dense(table(5, 4)),
            ValueError,
            "one of rank, ratio and tol",
        ),
        (
            lambda: LowRankEmbedding.from_dense(table(5, 4), 1, tol=0.1),
            ValueError,
            "one of rank, ratio and tol",
        ),
        (lambda: LowRankEmbedding.from_dense(table(5, 4), 5), ValueError, "rank must be between 1"),
        (
            lambda: LowRankEmbedding.from_dense(table(5, 4), ratio=0.9),
            ValueError,
            "ratio must leave",
        ),
        (
            lambda: LowRankEmbedding.from_dense(table(5, 4), ratio=1.5),
            ValueError,
            "ratio must leave",
        ),
        (lambda: LowRankEmbedding.from_dense(table(5, 4), tol=1.0), ValueError, "tol must be in"),
        (
            lambda: LowRankEmbedding.from_dense(nn.Embedding(5, 4, max_norm=1.0), 1),
            ValueError,
            "max_norm",
        ),
        (
            lambda: LowRankEmbedding.from_dense(table(5, 4), 1, counts=torch.ones(4)),
            ValueError,
            r"counts must have shape \(5,\)",
        ),
        (
            lambda: LowRankEmbedding.from_dense(table(2, 4), 1, counts=torch.tensor([1.0, -1])),
            ValueError,
            "got -1.0 at index 1",
        ),
        (
            lambda: LowRankEmbedding.from_dense(table(2, 4), 1, counts=torch.zeros(2)),
            ValueError,
            "not all be zero",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_table_that_is_not_finite():
    dense = table(5, 4)
    with torch.no_grad():
        dense.weight[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"embedding must be finite, got nan at index \(2, 1\)"):
        LowRankEmbedding.from_dense(dense, 2)


def test_a_zero_table():
    dense = table(5, 4)
    with torch.no_grad():
        dense.weight.zero_()
    layer = LowRankEmbedding.from_dense(dense, tol=0.0)
    assert layer.rank == 1
    assert not bool(layer.compose().any())
