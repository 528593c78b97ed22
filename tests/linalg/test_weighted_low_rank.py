"""Low-rank approximations in weighted norms."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, orthonormality_error, unit_roundoff
from strategies import hermitian

FLOATS = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SHAPES = [(8, 13), (13, 8), (9, 9)]
U = 2.0**-53
KINDS = ["none", "diagonal", "graded", "matrix", "singular", "eigen", "outlier"]


def random(rng, *shape, dtype=torch.float64):
    array = rng.standard_normal(shape)
    if dtype.is_complex:
        array = array + 1j * rng.standard_normal(shape)
    return torch.from_numpy(array).to(dtype)


def weight(kind, n, rng, dtype=torch.float64):
    """A weight of the given kind, in double precision."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    X = random(rng, n, 3 * n, dtype=wide)
    match kind:
        case "none":
            return None
        case "diagonal":
            return torch.from_numpy(rng.random(n) + 0.1)
        case "graded":
            return torch.from_numpy(10.0 ** (-6 * np.arange(n) / n))
        case "matrix":
            return X @ X.mH
        case "singular":
            return X[:, : n // 2] @ X[:, : n // 2].mH
        case "eigen":
            return torch.linalg.eigh(X @ X.mH)
        case "outlier":
            X[0] *= 1e3
            return X @ X.mH
    raise AssertionError(kind)


def full(given, n):
    """The weight as a matrix in NumPy."""
    if given is None:
        return np.eye(n)
    if isinstance(given, tuple):
        values, vectors = (exact(part) for part in given)
        return (vectors * values) @ vectors.conj().T
    array = exact(given)
    return np.diag(array) if array.ndim == 1 else array


def root(given, n):
    """A root K of the weight, K K* = weight."""
    values, vectors = scipy.linalg.eigh(full(given, n))
    return vectors * np.sqrt(np.clip(values, 0, None))


def weighted_values(W, left, right):
    """Singular values of H^½ W G^½, by SciPy."""
    o, i = W.shape
    return scipy.linalg.svd(root(left, o).conj().T @ exact(W) @ root(right, i), compute_uv=False)


def weighted_norm(D, left, right):
    o, i = D.shape
    return np.linalg.norm(root(left, o).conj().T @ exact(D) @ root(right, i))


def reconstructed(result, rank=None):
    return exact(result.B[:, :rank]) @ exact(result.A[:rank])


def plain_norms(W, left, right):
    """‖W‖² ‖H‖ ‖G‖, the size of the terms that the squares of weighted values are summed from."""
    o, i = W.shape
    return (
        np.linalg.norm(exact(W)) ** 2
        * np.linalg.norm(full(left, o), 2)
        * np.linalg.norm(full(right, i), 2)
    )


def tolerance(W, left, right):
    """What rounding may add to the square of a weighted value: 4 (o + i) u of its terms."""
    return 4 * sum(W.shape) * U * plain_norms(W, left, right)


kinds = st.sampled_from(KINDS)
sizes = st.integers(1, 20)
seeds = st.integers(0, 10_000)


# ---- optimality ----


@given(sizes, sizes, kinds, kinds, seeds)
def test_every_rank_is_the_optimum(o, i, left_kind, right_kind, seed):
    rng = np.random.default_rng(seed)
    W = random(rng, o, i)
    left, right = weight(left_kind, o, rng), weight(right_kind, i, rng)
    result = la.weighted_low_rank(W, left=left, right=right)
    values, allowed = weighted_values(W, left, right), tolerance(W, left, right)
    assert result.B.shape == (o, min(o, i))
    assert result.A.shape == (min(o, i), i)
    np.testing.assert_allclose(exact(result.S) ** 2, values**2, rtol=0, atol=allowed)
    for rank in range(min(o, i) + 1):
        error = weighted_norm(exact(W) - reconstructed(result, rank), left, right)
        assert error**2 <= (values[rank:] ** 2).sum() + allowed


@given(sizes, sizes, kinds, kinds, seeds, st.sampled_from(FLOATS))
def test_certificate_is_the_error(o, i, left_kind, right_kind, seed, dtype):
    rng = np.random.default_rng(seed)
    W = random(rng, o, i, dtype=dtype)
    left, right = weight(left_kind, o, rng, dtype), weight(right_kind, i, rng, dtype)
    result = la.weighted_low_rank(W, 1 + seed % min(o, i), left=left, right=right)
    assert result.B.dtype == result.A.dtype == dtype
    assert result.S.dtype == torch.float64
    allowed = tolerance(W, left, right)
    measured = weighted_norm(exact(W) - reconstructed(result), left, right)
    assert result.info.error**2 == pytest.approx(measured**2, rel=1e-9, abs=allowed)
    norm = weighted_norm(W, left, right)
    assert result.info.norm**2 == pytest.approx(norm**2, rel=1e-9, abs=allowed)
    assert result.info.method == "exact"


@given(sizes, sizes, kinds, kinds, seeds)
def test_no_random_candidate_is_better(o, i, left_kind, right_kind, seed):
    rng = np.random.default_rng(seed)
    W = random(rng, o, i)
    left, right = weight(left_kind, o, rng), weight(right_kind, i, rng)
    rank = 1 + seed % min(o, i)
    result = la.weighted_low_rank(W, rank, left=left, right=right)
    allowed = tolerance(W, left, right)
    for _ in range(5):
        # Near the optimum, where a wrong one would be beaten, and anywhere.
        size = 10.0 ** rng.integers(-6, 1)
        B = exact(result.B) + size * rng.standard_normal((o, rank))
        A = exact(result.A) + size * rng.standard_normal((rank, i))
        other = weighted_norm(exact(W) - B @ A, left, right)
        assert result.info.error**2 <= other**2 + allowed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_plain_truncation_is_worse(shape, sides):
    """The negative control: without its weights the error is not the least."""
    rng = np.random.default_rng(0)
    W = random(rng, *shape)
    left = weight("outlier", shape[0], rng) if sides != "right" else None
    right = weight("outlier", shape[1], rng) if sides != "left" else None
    aware, blind = la.weighted_low_rank(W, 3, left=left, right=right), la.weighted_low_rank(W, 3)
    error = weighted_norm(exact(W) - reconstructed(blind), left, right)
    assert error > 1.5 * aware.info.error


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_ranks_are_nested(shape, dtype):
    rng = np.random.default_rng(1)
    W = random(rng, *shape, dtype=dtype)
    left, right = weight("matrix", shape[0], rng, dtype), weight("matrix", shape[1], rng, dtype)
    everything = la.weighted_low_rank(W, left=left, right=right)
    for rank in (1, 4, 8):
        alone = la.weighted_low_rank(W, rank, left=left, right=right)
        # Condition numbers of 1e2 and gaps of 1e-2: 1e4 u.
        gap = np.linalg.norm(reconstructed(everything, rank) - reconstructed(alone))
        assert gap <= 1e4 * unit_roundoff(W) * np.linalg.norm(exact(W))
        torch.testing.assert_close(everything.S[:rank], alone.S, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_without_weights_it_is_the_svd(shape, dtype):
    W = random(np.random.default_rng(2), *shape, dtype=dtype)
    result = la.weighted_low_rank(W)
    left, S, right = scipy.linalg.svd(exact(W), full_matrices=False)
    # From a Gram matrix: squares to some (o + i) u of the largest.
    squares = result.S.numpy() ** 2
    np.testing.assert_allclose(squares, S**2, rtol=0, atol=4 * sum(shape) * U * S[0] ** 2)
    for rank in range(1, 9):
        best = (left[:, :rank] * S[:rank]) @ right[:rank]
        # Singular gaps of 1e-2.
        assert np.linalg.norm(reconstructed(result, rank) - best) <= 1e3 * unit_roundoff(W) * S[0]


# ---- the weights ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_ways_to_give_a_weight(shape, dtype):
    rng = np.random.default_rng(3)
    W = random(rng, *shape, dtype=dtype)
    o, i = shape
    left, right = weight("matrix", o, rng, dtype), weight("matrix", i, rng, dtype)
    reference = la.weighted_low_rank(W, 4, left=left, right=right)
    eigen = [torch.linalg.eigh(left), torch.linalg.eigh(right)]
    same_pairs = la.weighted_low_rank(W, 4, left=eigen[0], right=tuple(eigen[1]))
    one_sided = la.weighted_low_rank(W, 4, right=right)
    other_sided = la.weighted_low_rank(W, 4, left=left)
    h, g = torch.rand(o, dtype=torch.float64) + 0.1, torch.rand(i, dtype=torch.float64) + 0.1
    diagonal = la.weighted_low_rank(W, 4, left=h, right=g)
    pairs = [
        (reference, same_pairs),
        (one_sided, la.weighted_low_rank(W, 4, left=torch.eye(o), right=right)),
        (one_sided, la.weighted_low_rank(W, 4, left=torch.ones(o), right=right)),
        (other_sided, la.weighted_low_rank(W, 4, left=left, right=torch.eye(i))),
        (diagonal, la.weighted_low_rank(W, 4, left=torch.diag(h), right=torch.diag(g))),
    ]
    for one, other in pairs:
        # Condition numbers of 1e2 and gaps of 1e-2: 1e4 u.
        gap = np.linalg.norm(reconstructed(one) - reconstructed(other))
        assert gap <= 1e4 * unit_roundoff(W) * np.linalg.norm(exact(W))
        assert one.info.error == pytest.approx(other.info.error, rel=1e4 * unit_roundoff(W))


@given(
    st.sampled_from(SHAPES),
    st.sampled_from(["diagonal", "matrix", "singular", "eigen"]),
    st.integers(-400, 400),
    st.integers(-400, 400),
)
def test_scales_of_the_weights_change_nothing(shape, kind, left_exponent, right_exponent):
    rng = np.random.default_rng(4)
    W = random(rng, *shape)
    left, right = weight(kind, shape[0], rng), weight(kind, shape[1], rng)

    def times(given, factor):
        return (given[0] * factor, given[1]) if isinstance(given, tuple) else given * factor

    one = la.weighted_low_rank(W, left=left, right=right)
    scales = 2.0**left_exponent, 2.0**right_exponent
    other = la.weighted_low_rank(W, left=times(left, scales[0]), right=times(right, scales[1]))
    assert torch.equal(one.B, other.B)
    assert torch.equal(one.A, other.A)
    factor = 2.0 ** (left_exponent / 2) * 2.0 ** (right_exponent / 2)
    torch.testing.assert_close(one.S * factor, other.S, rtol=4 * U, atol=0)
    assert other.info.error == pytest.approx(one.info.error * factor, rel=4 * U)
    assert other.info.norm == pytest.approx(one.info.norm * factor, rel=4 * U)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 1e200), (torch.float32, 1e30)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_scales(shape, dtype, scale, sign):
    rng = np.random.default_rng(5)
    W = random(rng, *shape, dtype=dtype)
    right = weight("matrix", shape[1], rng)
    one = la.weighted_low_rank(W, 3, right=right)
    other = la.weighted_low_rank(W * scale**sign, 3, right=right * 1e200**-sign)
    # W * scale is rounded, and so is the scaled weight; gaps of 1e-2.
    allowed = 1e3 * unit_roundoff(W)
    torch.testing.assert_close(other.B, one.B, rtol=allowed, atol=allowed)
    torch.testing.assert_close(other.A / scale**sign, one.A, rtol=allowed, atol=10 * allowed)
    factor = (scale * 1e-100) ** sign
    assert other.info.error == pytest.approx(one.info.error * factor, rel=allowed)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_agrees_with_float64(shape):
    rng = np.random.default_rng(6)
    W = random(rng, *shape, dtype=torch.float32)
    left, right = weight("outlier", shape[0], rng), weight("outlier", shape[1], rng)
    single = la.weighted_low_rank(W, 3, left=left, right=right)
    double = la.weighted_low_rank(W.double(), 3, left=left, right=right)
    # Everything but the returned factors is in double precision.
    torch.testing.assert_close(single.S, double.S, rtol=1e-14, atol=0)
    torch.testing.assert_close(single.B, double.B.float(), rtol=0, atol=2.0**-24)
    torch.testing.assert_close(single.A, double.A.float(), rtol=2.0**-23, atol=0)


# ---- accuracy where the weights are ill-conditioned ----


def longdouble_optimum(W, h, rank):
    """The optimum for the diagonal weight h of the rows, by one-sided Jacobi in extended precision.

    Jacobi's method finds the right singular vectors of diag(√h) W with high relative accuracy.
    """
    M = np.sqrt(h.astype(np.longdouble))[:, None] * W.astype(np.longdouble)
    X, n = M.T.copy(), M.shape[0]
    for _ in range(40):
        largest = np.longdouble(0)
        for p in range(n - 1):
            for q in range(p + 1, n):
                a, b, c = X[:, p] @ X[:, p], X[:, q] @ X[:, q], X[:, p] @ X[:, q]
                if a == 0 or b == 0:
                    continue
                cosine = abs(c) / np.sqrt(a * b)
                largest = max(largest, cosine)
                if cosine < 1e-18:
                    continue
                zeta = (b - a) / (2 * c)
                t = np.copysign(1, zeta) / (abs(zeta) + np.sqrt(1 + zeta * zeta))
                cos = 1 / np.sqrt(1 + t * t)
                X[:, [p, q]] = np.stack(
                    (cos * X[:, p] - cos * t * X[:, q], cos * t * X[:, p] + cos * X[:, q]), 1
                )
        if largest < 1e-17:
            break
    lengths = np.sqrt((X * X).sum(0))
    order = np.argsort(lengths)[::-1][:rank]
    V = X[:, order] / lengths[order]
    return (W.astype(np.longdouble) @ V) @ V.T


@pytest.mark.parametrize("shape", [(8, 13), (13, 8)])
@pytest.mark.parametrize("form", ["vector", "matrix"])
@pytest.mark.parametrize("with_right", [False, True])
def test_graded_weight_of_the_rows(shape, form, with_right):
    """Condition 1e12: the whole of W', not only what the weights see, is that of the optimum."""
    rng = np.random.default_rng(7)
    o, i = shape
    W, h = rng.standard_normal(shape), 10.0 ** (-12 * np.arange(o) / (o - 1))
    right = torch.ones(i, dtype=torch.float64) if with_right else None
    given = torch.from_numpy(h if form == "vector" else np.diag(h))
    for rank in (1, 3):
        result = la.weighted_low_rank(torch.from_numpy(W), rank, left=given, right=right)
        expected = longdouble_optimum(W, h, rank).astype(np.float64)
        # Singular values fall by a factor of 7 a rank; W V is as accurate as the vectors: 7²·rank
        # of u for each of some (o + i) terms. Division by √h would cost 1e6.
        allowed = 50 * rank * sum(shape) * U
        assert np.linalg.norm(reconstructed(result) - expected) <= allowed * np.linalg.norm(W)


@pytest.mark.parametrize("shape", SHAPES)
def test_rotated_graded_weights_on_both_sides(shape):
    """Condition 1e12 of both: optimal in the weighted norm, bounded in the plain one."""
    o, i = shape
    left = hermitian(10.0 ** (-12 * np.arange(o) / (o - 1)), seed=1)
    right = hermitian(10.0 ** (-12 * np.arange(i) / (i - 1)), seed=2)
    W = random(np.random.default_rng(8), o, i)
    result = la.weighted_low_rank(W, left=left, right=right)
    values = weighted_values(W, left, right)
    for rank in range(1, min(shape) + 1):
        W_r = reconstructed(result, rank)
        error = weighted_norm(exact(W) - W_r, left, right)
        assert error**2 <= (values[rank:] ** 2).sum() + tolerance(W, left, right)
        # ‖L⁻¹ U Uᴴ L W‖, L⁻¹ bounded by the square root of the rounding level o·2u.
        assert np.linalg.norm(W_r) <= np.linalg.norm(exact(W)) / np.sqrt(2 * min(shape) * U)


@pytest.mark.parametrize("shape", [(8, 13), (13, 8)])
def test_small_values_of_float64_are_seen(shape):
    """Without a matrix as weight values far below √u of the largest are accurate."""
    rng = np.random.default_rng(9)
    left, right = (scipy.linalg.qr(rng.standard_normal((n, 8)), mode="economic")[0] for n in shape)
    values = 10.0 ** -np.arange(0.0, 12.0, 1.5)
    h, g = 10.0 ** rng.uniform(-1, 1, shape[0]), 10.0 ** rng.uniform(-1, 1, shape[1])
    W = ((left * values) @ right.T) / np.sqrt(np.outer(h, g))
    result = la.weighted_low_rank(torch.from_numpy(W), left=torch.tensor(h), right=torch.tensor(g))
    np.testing.assert_allclose(result.S, values, rtol=0, atol=10 * sum(shape) * U)
    for rank in range(1, 8):
        cut = la.weighted_low_rank(W, rank, left=h, right=g)
        assert cut.info.error == pytest.approx(
            np.linalg.norm(values[rank:]), rel=1e-3, abs=10 * sum(shape) * U
        )


# ---- what the weights do not see ----


@given(sizes, sizes, kinds, kinds, seeds)
def test_full_rank_gives_W_back(o, i, left_kind, right_kind, seed):
    rng = np.random.default_rng(seed)
    W = random(rng, o, i)
    left, right = weight(left_kind, o, rng), weight(right_kind, i, rng)
    result = la.weighted_low_rank(W, left=left, right=right)
    # The oblique projections have norms of up to the root of the condition of the shorter side's
    # weight: 1e3 to 1e4 here, but for what is zero.
    assert np.linalg.norm(reconstructed(result) - exact(W)) <= 1e5 * (o + i) * U * np.linalg.norm(
        exact(W)
    )
    for rank in range(min(o, i)):
        assert np.linalg.norm(reconstructed(result, rank)) <= 1e4 * np.linalg.norm(exact(W))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_one_weight_never_enlarges(shape, side):
    rng = np.random.default_rng(10)
    W = random(rng, *shape)
    for kind in ("singular", "outlier", "graded"):
        given = weight(kind, shape[side == "right"], rng)
        result = la.weighted_low_rank(W, **{side: given})
        for rank in range(1, 9):
            size = np.linalg.norm(reconstructed(result, rank))
            assert size <= (1 + 100 * U) * np.linalg.norm(exact(W))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["vector", "matrix", "eigen"])
def test_what_one_weight_does_not_see_comes_by_size(shape, side, form):
    rng = np.random.default_rng(11)
    W, n = random(rng, *shape), shape[side == "right"]
    seen = torch.zeros(n, dtype=torch.float64)
    seen[[1, 4]] = torch.tensor([2.0, 3.0], dtype=torch.float64)
    given = {"vector": seen, "matrix": torch.diag(seen)}.get(form)
    if given is None:
        given = torch.linalg.eigh(torch.diag(seen))
    result = la.weighted_low_rank(W, **{side: given})
    assert (result.S > 0).sum() == 2
    rest = scipy.linalg.svd(exact(W) - reconstructed(result, 2), compute_uv=False)
    for rank in range(2, 9):
        error = np.linalg.norm(exact(W) - reconstructed(result, rank))
        # Squares from a Gram matrix: (o + i) u of ‖W‖².
        allowed = 10 * sum(shape) * U * np.linalg.norm(exact(W)) ** 2
        assert error**2 == pytest.approx((rest[rank - 2 :] ** 2).sum(), abs=allowed)
    if side == "right":
        assert orthonormality_error(result.B) <= 10


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_weights_on_both_sides(shape):
    """Directions that neither sees never add a visible error, at any rank."""
    rng = np.random.default_rng(12)
    o, i = shape
    W = random(rng, o, i)
    left, right = torch.ones(o, dtype=torch.float64), torch.ones(i, dtype=torch.float64)
    left[: o // 2], right[: i // 2] = 0, 0
    result = la.weighted_low_rank(W, left=left, right=right)
    values = weighted_values(W, left, right)
    errors = [np.linalg.norm(exact(W))]
    for rank in range(1, min(shape) + 1):
        W_r = reconstructed(result, rank)
        error = weighted_norm(exact(W) - W_r, left, right)
        assert error**2 <= (values[rank:] ** 2).sum() + tolerance(W, left, right)
        errors.append(np.linalg.norm(exact(W) - W_r))
    silent = int((result.S > 0).sum())
    assert all(a > b for a, b in zip(errors[silent:], errors[silent + 1 :], strict=False))
    assert errors[-1] <= 1e3 * sum(shape) * U * errors[0]


def test_rows_without_weight_stay_bounded():
    """The fit of such a row to A in the norm of G would have an entry of 5e11."""
    W = torch.tensor([[1e-12, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    short, long = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-24, 0.0])
    for A, left, right in ((W, short, long), (W.T, long, short)):
        result = la.weighted_low_rank(A, 1, left=left, right=right)
        assert result.S[0] == pytest.approx(2**0.5 * 1e-12, rel=1e-6)
        assert result.info.error <= 1e-6 * result.info.norm
        # One over the root of the rounding level.
        assert np.linalg.norm(reconstructed(result)) <= 2 / np.sqrt(4 * U)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["vector", "matrix", "rotated"])
def test_what_neither_weight_sees_is_not_mixed(shape, form):
    """A rest with rows of weight zero and columns of weight zero: mixtures would be visible."""
    rng = np.random.default_rng(24)
    o, i = shape
    W = random(rng, o, i)
    W[3:, 3:] = random(rng, o - 3, 1) @ random(rng, 1, i - 3)
    left, right = torch.ones(o, dtype=torch.float64), torch.ones(i, dtype=torch.float64)
    left[:3], right[:3] = 0, 0
    if form != "vector":
        left, right = torch.diag(left), torch.diag(right)
    if form == "rotated":  # zeros that are known to rounding only
        P, Q = (torch.linalg.qr(random(rng, n, n)).Q for n in shape)
        W, left, right = P @ W @ Q.T, P @ left @ P.T, Q @ right @ Q.T
    result = la.weighted_low_rank(W, left=left, right=right)
    assert (result.S > 0).sum() == 1
    for rank in range(1, min(shape) + 1):
        error = weighted_norm(exact(W) - reconstructed(result, rank), left, right)
        assert error**2 <= tolerance(W, left, right)
    assert np.linalg.norm(exact(W) - reconstructed(result)) <= 1e3 * U * np.linalg.norm(exact(W))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zero", ["left", "right", "both", "W"])
def test_nothing_to_see(shape, zero):
    rng = np.random.default_rng(13)
    o, i = shape
    W = random(rng, o, i) if zero != "W" else torch.zeros(o, i, dtype=torch.float64)
    left = torch.zeros(o, o) if zero in ("left", "both") else weight("matrix", o, rng)
    right = torch.zeros(i) if zero in ("right", "both") else weight("diagonal", i, rng)
    for sides in ({"left": left, "right": right}, {"left": left}, {"right": right}):
        if zero in ("left", "right") and zero not in sides:
            continue
        result = la.weighted_low_rank(W, **sides)
        assert all(torch.isfinite(part).all() for part in result[:3])
        assert not result.S.any()
        assert result.info.error == result.info.norm == 0
        gap = np.linalg.norm(reconstructed(result) - exact(W))
        assert gap <= 100 * U * np.linalg.norm(exact(W))
        if zero != "W":  # ordered by plain size
            best = scipy.linalg.svd(exact(W), compute_uv=False)
            error = np.linalg.norm(exact(W) - reconstructed(result, 3))
            assert error == pytest.approx(np.linalg.norm(best[3:]), rel=1e-10)
        if "left" not in sides:
            assert orthonormality_error(result.B) <= 10
        assert la.weighted_low_rank(W, tol=0.1, **sides).B.shape == (o, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_rank_above_that_of_W(shape):
    rng = np.random.default_rng(14)
    W = random(rng, shape[0], 3) @ random(rng, 3, shape[1])
    result = la.weighted_low_rank(W, 6, right=weight("matrix", shape[1], rng))
    assert (result.S > 0).sum() == 3
    assert orthonormality_error(result.B) <= 10
    assert np.linalg.norm(reconstructed(result) - exact(W)) <= 1e3 * U * np.linalg.norm(exact(W))
    both = la.weighted_low_rank(W, 6, left=weight("matrix", shape[0], rng), right=None)
    assert torch.isfinite(both.B).all()
    assert np.linalg.norm(reconstructed(both) - exact(W)) <= 1e3 * U * np.linalg.norm(exact(W))


@given(sizes, sizes, kinds, kinds, seeds, st.sampled_from(FLOATS))
def test_form_of_the_factors(o, i, left_kind, right_kind, seed, dtype):
    rng = np.random.default_rng(seed)
    W = random(rng, o, i, dtype=dtype)
    left, right = weight(left_kind, o, rng, dtype), weight(right_kind, i, rng, dtype)
    B, A, S, bias = la.weighted_low_rank(W, left=left, right=right)
    assert bias is None
    assert (S.diff() <= 0).all()
    torch.testing.assert_close(
        torch.linalg.vector_norm(B, dim=0), torch.ones(len(S), dtype=dtype.to_real())
    )
    largest = B.gather(0, B.abs().argmax(0, keepdim=True))
    assert (largest.real > 0).all()
    if dtype.is_complex:
        assert (largest.imag.abs() <= 10 * unit_roundoff(W)).all()
    if left is None:
        assert orthonormality_error(B) <= 10
    elif right is None:
        lengths = torch.linalg.vector_norm(A, dim=1)
        assume(bool((lengths > 0).all()))
        assert orthonormality_error((A / lengths[:, None]).mH) <= 30  # after a division by lengths


# ---- mean ----


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tokens", [5, 200])
@pytest.mark.parametrize("left_kind", ["none", "matrix"])
def test_mean_output_is_exact(shape, dtype, tokens, left_kind):
    rng = np.random.default_rng(15)
    o, i = shape
    W, left = random(rng, *shape, dtype=dtype), weight(left_kind, o, rng, dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    X = random(rng, i, tokens, dtype=wide) + 3
    mean = X.mean(1)
    result = la.weighted_low_rank(W, 3, left=left, right=X @ X.mH / tokens, mean=mean)
    approximated = result.B.to(wide) @ result.A.to(wide)
    outputs, kept = W.to(wide) @ X, approximated @ X + result.bias.to(wide)[:, None]
    gap = (outputs.mean(1) - kept.mean(1)).norm() / outputs.mean(1).norm()
    # The bias is rounded to the type of W once.
    assert gap <= 10 * unit_roundoff(W) + 100 * i * U
    # The optimum of the centred outputs, by SciPy from the inputs themselves.
    centered = exact(W) @ exact(X - mean[:, None]) / np.sqrt(tokens)
    K = root(left, o).conj().T
    values = scipy.linalg.svd(K @ centered, compute_uv=False)
    # The square of the mean, 9 i of it, has been subtracted.
    allowed = 10 * tolerance(W, left, X @ X.mH / tokens)
    error = np.linalg.norm(K @ exact(outputs - kept) / np.sqrt(tokens)) ** 2
    storage = (100 * unit_roundoff(W) * np.linalg.norm(K @ exact(outputs))) ** 2 / tokens
    assert error <= (values[3:] ** 2).sum() + allowed + 2 * storage + 1e-6 * error
    assert result.info.error**2 == pytest.approx(error, rel=1e-4, abs=allowed + storage)
    without = la.weighted_low_rank(W, 3, left=left, right=X @ X.mH / tokens)
    assert np.linalg.norm(K @ exact(outputs) - K @ reconstructed(without) @ exact(X)) ** 2 >= error


def test_a_mean_that_is_all():
    """One token: nothing is left but the bias."""
    W, x = torch.randn(4, 6, dtype=torch.float64), torch.arange(1.0, 7.0, dtype=torch.float64)
    result = la.weighted_low_rank(W, 2, right=torch.outer(x, x), mean=x)
    assert not result.S.any()
    assert np.linalg.norm(reconstructed(result)) <= np.linalg.norm(exact(W)) * (1 + 10 * U)
    torch.testing.assert_close(
        torch.from_numpy(reconstructed(result)) @ x + result.bias, W @ x, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("left_kind", ["none", "matrix"])
def test_rounding_of_a_mean_is_not_a_direction(shape, left_kind):
    """Equal tokens, of which only rounding is left: what was lost raises the level of zero."""
    rng = np.random.default_rng(23)
    o, i = shape
    W, x = random(rng, o, i), random(rng, i, 1)
    X = x.expand(i, 7)
    G = X @ X.T / 7
    assert (G - x @ x.T).any()
    result = la.weighted_low_rank(W, right=G, mean=x[:, 0], left=weight(left_kind, o, rng))
    assert not result.S.any()
    assert np.linalg.norm(reconstructed(result) - exact(W)) <= 1e3 * U * np.linalg.norm(exact(W))


def test_scales_with_a_mean():
    rng = np.random.default_rng(16)
    W, X = random(rng, 5, 7), random(rng, 7, 50) + 1
    G, mean = X @ X.T / 50, X.mean(1)
    one = la.weighted_low_rank(W, 2, right=G, mean=mean)
    for exponent in (-301, 300):
        factor = 2.0**exponent
        other = la.weighted_low_rank(W, 2, right=G * factor * factor, mean=mean * factor)
        torch.testing.assert_close(other.B, one.B, rtol=0, atol=0)
        torch.testing.assert_close(other.bias, one.bias * factor, rtol=1e-12, atol=0)


# ---- tolerance ----


@given(sizes, sizes, kinds, kinds, seeds, st.floats(1e-3, 0.95))
def test_tolerance_gives_the_smallest_rank(o, i, left_kind, right_kind, seed, tol):
    rng = np.random.default_rng(seed)
    W = random(rng, o, i)
    left, right = weight(left_kind, o, rng), weight(right_kind, i, rng)
    result = la.weighted_low_rank(W, tol=tol, left=left, right=right)
    values = weighted_values(W, left, right)
    assume(values.any())
    tails = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0)) / np.linalg.norm(values)
    assume(np.abs(tails - tol).min() > 1e-7)
    assert result.info.converged
    assert result.info.error <= tol * result.info.norm
    assert len(result.S) == int((tails > tol).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_tolerance_below_rounding_takes_everything(shape):
    rng = np.random.default_rng(17)
    W, right = random(rng, *shape), weight("singular", shape[1], rng)
    result = la.weighted_low_rank(W, tol=1e-12, right=right)
    assert len(result.S) == min(shape)
    # A Gram matrix on the longer side: its squares are known to u.
    limit = 1e-12 if shape[0] > shape[1] else 1e-7
    assert result.info.error <= limit * result.info.norm


def test_unmet_tolerance_is_said():
    W = torch.eye(20, dtype=torch.float64)
    with pytest.warns(la.ConvergenceWarning, match=r"0\.5 of the norm at rank 15"):
        result = la.weighted_low_rank(W, 15, tol=0.1)
    assert not result.info.converged
    W32 = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    with pytest.warns(la.ConvergenceWarning):
        single = la.weighted_low_rank(W32, tol=1e-12)
    assert len(single.S) == 20
    # Measured, not estimated: a tolerance is decided by it.
    measured = np.linalg.norm(exact(W32) - reconstructed(single))
    assert single.info.error == pytest.approx(measured, rel=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert la.weighted_low_rank(W, 15, tol=0.9).info.converged


# ---- the random sketch ----


def decaying(o, i, exponent, seed=0):
    rng = np.random.default_rng(seed)
    W = random(rng, o, i, dtype=torch.float32)
    shorter = min(o, i)
    Q = scipy.linalg.qr(rng.standard_normal((i, i)))[0]
    values = 1.0 / np.arange(1, i + 1) ** exponent
    return W, torch.from_numpy((Q * values) @ Q.T), shorter


@pytest.mark.parametrize("shape", [(512, 640), (640, 512)])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_randomized_is_as_good_as_exact(shape, exponent):
    W, right, shorter = decaying(*shape, exponent)
    rank = shorter // 16
    result = la.weighted_low_rank(W, rank, right=right)
    full_result = la.weighted_low_rank(W, right=right)
    best = float(full_result.S[rank:].norm())
    assert result.info.method == "randomized"
    assert best * (1 - 1e-6) <= result.info.error <= 1.01 * best
    # Nested: the leading columns are as good for their ranks, the sums of squares of Ritz values
    # being within 2 % of the tail of the rank that was certified.
    D = W.double() - (result.B[:, :5] @ result.A[:5]).double()
    error = float((D @ right * D).sum().sqrt())
    assert error <= 1.01 * float(full_result.S[5:].norm())
    assert orthonormality_error(result.B) <= 10


def test_randomized_falls_back_where_the_sketch_is_not_good():
    """A flat spectrum has no leading directions: a sketch does not find the best ones."""
    W = random(np.random.default_rng(18), 512, 600, dtype=torch.float64)
    result = la.weighted_low_rank(W, 20)
    exactly = float(la.weighted_low_rank(W).S[20:].norm())
    assert result.info.error <= 1.01 * exactly
    # Exact low rank: the tail is rounding, of which no sketch can be shown to be optimal.
    low = random(np.random.default_rng(19), 512, 20) @ random(np.random.default_rng(20), 20, 600)
    assert la.weighted_low_rank(low, 30).info.method == "exact"


# ---- arguments ----


def test_kinds():
    rng = np.random.default_rng(21)
    W, g = rng.standard_normal((4, 6)), rng.random(6)
    result = la.weighted_low_rank(W, 2, right=torch.from_numpy(g))
    assert all(isinstance(part, np.ndarray) for part in result[:3])
    torch_result = la.weighted_low_rank(torch.from_numpy(W), 2, right=g.tolist())
    np.testing.assert_array_equal(result.B, torch_result.B.numpy())
    assert isinstance(la.weighted_low_rank(W, 2, out="torch").A, torch.Tensor)
    assert la.weighted_low_rank(torch.from_numpy(W), 2, out="numpy").S.dtype == np.float64
    half = la.weighted_low_rank(torch.from_numpy(W).half(), 2, right=g)
    assert half.B.dtype == torch.float16
    assert la.weighted_low_rank(np.eye(3, dtype=int), 2).B.dtype == np.float64
    pair = np.linalg.eigh(np.diag(g))
    np.testing.assert_allclose(la.weighted_low_rank(W, 2, right=pair).S, result.S, rtol=1e-14)


def test_result_survives_copies():
    result = la.weighted_low_rank(torch.eye(3), 2)
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert other.info == result.info
        assert torch.equal(other.A, result.A)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty(shape):
    B, A, S, bias = la.weighted_low_rank(
        torch.zeros(shape), right=torch.eye(shape[1]), mean=torch.zeros(shape[1])
    )
    assert B.shape == (shape[0], 0)
    assert A.shape == (0, shape[1])
    assert S.shape == (0,)
    assert torch.equal(bias, torch.zeros(shape[0]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("left_kind", ["none", "diagonal", "matrix"])
def test_vectors(shape, left_kind):
    rng = np.random.default_rng(22)
    W, left = random(rng, *shape), weight(left_kind, shape[0], rng)
    right = weight("matrix", shape[1], rng)
    result = la.weighted_low_rank(W, left=left, right=right)
    assert np.linalg.norm(reconstructed(result) - exact(W)) <= 1e3 * U * np.linalg.norm(exact(W))
    assert result.info.norm == pytest.approx(weighted_norm(W, left, right), rel=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_entries_are_named(bad):
    def spoiled(*shape):
        A = torch.ones(shape)
        A[tuple(1 for _ in shape)] = bad
        return A

    W, eye = torch.ones(3, 4), torch.eye(4)
    with pytest.raises(ValueError, match=r"W must be finite, got (nan|inf) at index \(1, 1\)"):
        la.weighted_low_rank(spoiled(3, 4))
    with pytest.raises(ValueError, match=r"left must be finite, got (nan|inf) at index \(1, 1\)"):
        la.weighted_low_rank(W, left=spoiled(3, 3))
    with pytest.raises(ValueError, match=r"right must be finite, got (nan|inf) at index \(1\)"):
        la.weighted_low_rank(W, right=spoiled(4))
    with pytest.raises(ValueError, match=r"right must be finite, got (nan|inf) at index \(1, 1\)"):
        la.weighted_low_rank(W, right=(torch.ones(4), spoiled(4, 4)))
    with pytest.raises(ValueError, match=r"mean must be finite, got (nan|inf) at index \(1\)"):
        la.weighted_low_rank(W, right=eye, mean=spoiled(4))


def test_bad_weights():
    W = torch.ones(3, 4)
    skew, indefinite = torch.eye(4), torch.eye(4)
    skew[0, 1] = 0.1
    indefinite[2, 2] = -1e-3
    for tall, side in ((False, "right"), (True, "left")):
        A = W.T if tall else W
        with pytest.raises(ValueError, match=f"{side} must be Hermitian, but differs .* by 0.07"):
            la.weighted_low_rank(A, **{side: skew})
        other = "left" if side == "right" else "right"
        for name, n in ((side, 4), (other, 3)):
            with pytest.raises(ValueError, match=f"{name} must be positive semidefinite"):
                la.weighted_low_rank(A, **{name: -torch.eye(n)})
        with pytest.raises(ValueError, match=f"{side} must be positive semidefinite"):
            la.weighted_low_rank(A, **{side: indefinite})
        with pytest.raises(ValueError, match=rf"{side} must be non-negative, got -0.001.* \(2,\)"):
            la.weighted_low_rank(A, **{side: indefinite.diagonal()})
        with pytest.raises(ValueError, match=f"{side} must be positive semidefinite"):
            la.weighted_low_rank(A, **{side: (indefinite.diagonal(), torch.eye(4))})
    # Rounding of float32 passes, also where it is kept in float64.
    X = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    rounded = (X @ X.T).double()
    assert float(torch.linalg.eigvalsh(rounded)[0]) < 0
    la.weighted_low_rank(W, right=rounded)
    la.weighted_low_rank(W.T, left=rounded)
    with pytest.raises(ValueError, match=r"right - mean meanᴴ must be positive semidefinite"):
        la.weighted_low_rank(W, right=torch.eye(4), mean=torch.ones(4))
    with pytest.raises(ValueError, match=r"right - mean meanᴴ must be positive semidefinite"):
        la.weighted_low_rank(W.T, right=torch.eye(3), mean=torch.ones(3))


def test_bad_arguments():
    W = torch.ones(3, 4)
    wrong = [
        (r"W must have 2 dimensions, got shape \(2, 3, 4\)", {"W": torch.ones(2, 3, 4)}),
        (r"rank must be between 1 and min\(o, i\) = 3, got 4", {"rank": 4}),
        (r"rank must be between 1 and min\(o, i\) = 3, got 0", {"rank": 0}),
        ("tol must be between 0 and 1, got 1", {"tol": 1.0}),
        ("tol must be between 0 and 1, got nan", {"tol": float("nan")}),
        (r"left must have shape \(3, 3\) .* 3 rows of W, got shape \[4, 4\]", {"left": np.eye(4)}),
        (r"right must have shape \(4, 4\) .* 4 columns", {"right": np.ones(3)}),
        (r"right must have shape \(4, 4\) .* 4 columns", {"right": np.ones((4, 3))}),
        ("a tuple of 3", {"right": (1, 2, 3)}),
        ("eigenvalues of right must be a vector", {"right": (np.eye(4), np.eye(4))}),
        (r"right must have shape \(4, 4\) for", {"right": (np.ones(4), np.eye(3))}),
        ("mean needs right", {"mean": np.ones(4)}),
        ("mean needs right", {"mean": np.ones(4), "right": np.ones(4)}),
        (r"mean must have shape \(4\)", {"mean": np.ones(3), "right": np.eye(4)}),
        ("out must be", {"out": "jax"}),
    ]
    for message, arguments in wrong:
        with pytest.raises(ValueError, match=message):
            la.weighted_low_rank(**{"W": W, **arguments})
    for message, arguments in [
        ("rank must be an integer", {"rank": 2.0}),
        ("tol must be a real number", {"tol": "0.1"}),
        ("right must be real for a real W", {"right": np.eye(4) * 1j}),
        ("left must be real where it is a vector", {"W": W + 0j, "left": np.ones(3) * 1j}),
        ("W must be a dense matrix", {"W": W.to_sparse()}),
    ]:
        with pytest.raises(TypeError, match=message):
            la.weighted_low_rank(**{"W": W, **arguments})


def test_inputs_are_left_alone():
    W, G, mean = torch.ones(3, 4), torch.eye(4) * 2, torch.full((4,), 0.1)
    before = [A.clone() for A in (W, G, mean)]
    la.weighted_low_rank(W, 2, left=G[:3, :3], right=G, mean=mean)
    assert all(torch.equal(a, b) for a, b in zip(before, (W, G, mean), strict=True))
