"""Sketching matrices of every kind: what they are, and that every way to apply them is the same."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, unit_roundoff

KINDS = ["gaussian", "rademacher", "sparse_sign", "countsketch", "srht", "uniform", "leverage"]
# Kinds of which every row of A enters: a theorem bounds their distortion for any A.
OBLIVIOUS = [kind for kind in KINDS if kind not in ("uniform", "leverage")]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def close(got, expected, terms, A, S):
    """Within (terms + 3)·u·Σ|s||a| entrywise, whatever the order of summation."""
    bound = np.abs(S) @ np.abs(exact(A))
    roundoff = unit_roundoff(A.real if A.is_complex() else A)
    # A complex product has the rounding of its two parts.
    assert np.all(np.abs(exact(got) - expected) <= 2 * (terms + 3) * roundoff * bound)


def operator(kind, rows, cols, seed=0, nonzeros=8, probabilities=None):
    """A sketch of any kind; one that needs probabilities gets some between 1 and 2."""
    if kind == "leverage" and probabilities is None:
        draws = la.random_matrix(cols, 1, kind="uniform", seed=99, dtype=torch.float64)
        probabilities = 1 + draws[:, 0]
    return la.SketchOperator(kind, rows, cols, seed, nonzeros, probabilities)


def dense_of(S):
    return S.to_dense(dtype=torch.float64).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(300, 7), (37, 70), (1, 1), (64, 130)])
def test_apply_and_adjoint_are_products_with_the_dense_matrix(kind, dtype, shape):
    m, n = shape
    size = min(16, m)
    S = operator(kind, size, m, seed=3, nonzeros=min(4, size))
    # Independent entries in float32 are others than those in float64; the other kinds have one S.
    real = torch.float32 if dtype in (torch.float32, torch.complex64) else torch.float64
    dense = S.to_dense(dtype=real).double().numpy()
    if kind not in ("gaussian", "rademacher"):
        assert np.allclose(dense, dense_of(S), rtol=2.0**-22, atol=0)
    assert dense.shape == S.shape == (size, m)
    A, Y = draw(m, n, dtype=dtype), draw(size, n, dtype=dtype, seed=1)
    assert (S @ A).dtype == dtype
    close(S @ A, dense @ exact(A), m, A, dense)
    close(S.adjoint(Y), dense.T @ exact(Y), size, Y, dense.T)
    transposed = draw(n, m, dtype=dtype).T  # not row-major
    close(S.apply(transposed), dense @ exact(transposed), m, transposed, dense)


@pytest.mark.parametrize("kind", KINDS)
def test_the_entries_are_those_of_the_definition(kind):
    size, m = 12, 100
    S = operator(kind, size, m, seed=5, nonzeros=4)
    dense = dense_of(S)
    if kind in ("rademacher", "srht"):
        # ±1/√size: rounded twice at most.
        assert np.allclose(np.abs(dense), 1 / math.sqrt(size), rtol=4 * 2.0**-53, atol=0)
    if kind in ("sparse_sign", "countsketch"):
        count = 4 if kind == "sparse_sign" else 1
        assert np.all((dense != 0).sum(0) == count)
        assert np.allclose(np.abs(dense[dense != 0]), 1 / math.sqrt(count), rtol=4 * 2.0**-53)
        parts = np.add.reduceat(dense != 0, [part * size // count for part in range(count)], axis=0)
        assert np.all(parts == 1)
    if kind == "leverage":
        p = 1 + la.random_matrix(m, 1, kind="uniform", seed=99, dtype=torch.float64)[:, 0].numpy()
        rows, columns = dense.nonzero()
        assert np.array_equal(rows, np.arange(size))
        scales = 1 / np.sqrt(size * p[columns] / p.sum())
        assert np.allclose(dense[rows, columns], scales, rtol=(m + 4) * 2.0**-53, atol=0)
    if kind == "uniform":
        assert np.all((dense != 0).sum(1) == 1)
        assert np.allclose(dense.max(1), math.sqrt(m / size), rtol=4 * 2.0**-53)
    if kind == "srht":
        # Rows of a Hadamard matrix, before the random signs, are orthogonal over its whole length.
        whole = dense_of(la.SketchOperator(kind, 64, 64, seed=5))
        assert np.allclose(whole @ whole.T, np.eye(64), atol=64 * 2.0**-53)


def test_the_gaussian_kind_is_the_random_matrix():
    S = la.SketchOperator("gaussian", 9, 50, seed=2)
    expected = la.random_matrix(50, 9, seed=2, dtype=torch.float64).T / math.sqrt(9)
    assert (S.to_dense(dtype=torch.float64) - expected).abs().max() <= 2.0**-50
    signs = la.SketchOperator("rademacher", 9, 50, seed=2).to_dense(dtype=torch.float64)
    expected = la.random_matrix(50, 9, kind="sign", seed=2, dtype=torch.float64).T
    assert torch.equal(signs.sign(), expected)


@pytest.mark.parametrize("kind", KINDS)
@given(
    m=st.integers(1, 300),
    cuts=st.lists(st.integers(0, 300), max_size=3),
    seed=st.integers(0, 2**63 - 1),
)
def test_blocks_add_up(kind, m, cuts, seed):
    size = min(8, m)
    S = operator(kind, size, m, seed=seed, nonzeros=min(3, size))
    A = draw(m, 3)
    ends = [0, *sorted(min(cut, m) for cut in cuts), m]
    parts = sum(S.apply(A[start:stop], first=start) for start, stop in itertools.pairwise(ends))
    dense = dense_of(S)
    close(parts, dense @ exact(A), m + 4, A, dense)
    Y = draw(size, 2)
    windows = [
        S.adjoint(Y, first=start, count=stop - start) for start, stop in itertools.pairwise(ends)
    ]
    close(torch.cat(windows), dense.T @ exact(Y), size, Y, dense.T)


@pytest.mark.parametrize("kind", KINDS)
def test_the_adjoint_identity(kind):
    S = operator(kind, 40, 700, seed=1)
    A, Y = draw(700, 5), draw(40, 5, seed=2)
    left, right = float(((S @ A) * Y).sum()), float((A * S.adjoint(Y)).sum())
    # Two sums of some 40·700·5 products.
    size = float((S @ A).norm() * Y.norm() + A.norm() * S.adjoint(Y).norm())
    assert abs(left - right) <= 700 * 2.0**-53 * size


@pytest.mark.parametrize("kind", ["sparse_sign", "countsketch", "srht", "uniform", "leverage"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_do_not_depend_on_threads(kind, dtype, threads):
    A = draw(20_000, 150, dtype=dtype)
    found = []
    for number in (1, 2):
        with threads(number):
            S = operator(kind, 300, 20_000, seed=4)
            found.append((S @ A, S.adjoint(draw(300, 150, dtype=dtype))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_kept_in_expectation(kind):
    x = draw(200, 1)
    squares = [float((operator(kind, 50, 200, seed=s) @ x).square().sum()) for s in range(400)]
    # E‖Sx‖² = ‖x‖². The variance is at most 2/50 ‖x‖⁴ but for uniform sampling, (m Σx⁴ − ‖x‖⁴)/50:
    # about 2/50 too for normal entries. Of a mean of 400 the deviation is 1 %; 5 of them. Where no
    # row is drawn less than by 2/3 of uniform sampling: 3.5/50 and 1.3 %.
    assert np.mean(squares) == pytest.approx(float(x.square().sum()), rel=0.05)


@pytest.mark.parametrize("kind", OBLIVIOUS)
def test_distortion_of_subspaces(kind):
    # Of a basis with all of its weight on few rows, the hardest for sampling and CountSketch, and
    # of a flat one. (1 ± √(d/size)) bounds the singular values of S Q in the limit for a Gaussian
    # S; deviations of order 1/√size come on top: for all 40 seeds three of them. A CountSketch
    # needs d²/(ε²δ) rows: 400 columns of 4000 rows with ε = 1/2 and δ = 1/80, in total 5 % of
    # failures over 40 seeds; here d = 10.
    d, size = 10, 4000 if kind == "countsketch" else 400
    spiked = torch.zeros(5000, d, dtype=torch.float64)
    spiked[torch.arange(d) * 7, torch.arange(d)] = 1
    flat = torch.linalg.qr(draw(5000, d))[0]
    worst = math.sqrt(d / size) + 3 / math.sqrt(size) if kind != "countsketch" else 0.5
    for Q in (spiked, flat):
        for seed in range(40):
            values = torch.linalg.svdvals(la.SketchOperator(kind, size, 5000, seed=seed) @ Q)
            assert float((values - 1).abs().max()) <= worst


def test_countsketch_keeps_the_norm_of_a_matrix():
    # 2000 → 200: the square of the norm has relative deviation √(2/200)·‖AᵀA‖_F/‖A‖_F², far
    # below 10 % for 50 independent columns.
    for seed in range(50):
        A = draw(2000, 50, seed=seed)
        ratio = (la.SketchOperator("countsketch", 200, 2000, seed=seed) @ A).norm() / A.norm()
        assert abs(float(ratio) - 1) <= 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_every_kind_of_matrix(kind, axis, tmp_path):
    sparse = scipy.sparse.random(90, 60, 0.1, random_state=1, format="csr")
    A = torch.from_numpy(sparse.toarray())
    options = {"kind": kind, "axis": axis, "seed": 6, "nonzeros": 5}
    expected = la.sketch(A, 20, **options)
    by_rows = axis in (0, -2)
    scores = la.leverage_scores(A if by_rows else A.T, seed=6) if kind == "leverage" else None
    S = operator(kind, 20, A.shape[axis], 6, 5, scores)
    dense = S.to_dense(dtype=torch.float64)
    product = dense @ A if by_rows else A @ dense.T
    # Sums of at most 90 products of entries below 1 and 3.
    allowed = 100 * 2.0**-53 * float(dense.abs().sum(1).max())
    assert (expected - product).abs().max() <= allowed
    for other in (
        A.numpy(),
        sparse,
        sparse.tocoo(),
        A.to_sparse_csr(),
        A.to_sparse_coo(),
        A.T.contiguous().T,
    ):
        found = torch.as_tensor(la.sketch(other, 20, **options))
        assert (found - expected).abs().max() <= allowed
    batch = torch.stack([A, 2 * A])[None]
    stacked = la.sketch(batch, 20, **options)
    assert stacked.shape == (1, 2, *expected.shape)
    assert (stacked[0, 1] - 2 * expected).abs().max() <= 2 * allowed
    if by_rows:
        path = tmp_path / "a.npy"
        np.save(path, A.numpy())
        for source in (path, np.load(path, mmap_mode="r"), [A[:30], A[30:]]):
            found = torch.as_tensor(la.sketch(source, 20, **options))
            assert (found - expected).abs().max() <= allowed
        if kind not in ("srht", "uniform", "leverage"):
            found = la.sketch(iter([A[:10], A[10:]]), 20, **options)
            assert (torch.as_tensor(found) - expected).abs().max() <= allowed
    else:
        with pytest.raises(ValueError, match="axis must be 0 for data that is read by blocks"):
            la.sketch([A[:30], A[30:]], 20, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients(kind, dtype):
    S = operator(kind, 4, 9, seed=2, nonzeros=2)
    A = draw(9, 3, dtype=dtype).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: S.apply(X[2:], first=2), A)
    assert torch.autograd.gradgradcheck(S.apply, A)
    Y = draw(4, 3, dtype=dtype).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: S.adjoint(X, first=1, count=5), Y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(kind, dtype):
    A = draw(50, 3).to(dtype)
    found = la.sketch(A, 10, kind=kind, seed=1)
    assert found.dtype == dtype
    assert torch.equal(found, la.sketch(A.float(), 10, kind=kind, seed=1).to(dtype))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "leverage"])
def test_compiled(kind):
    S = la.SketchOperator(kind, 8, 40, seed=1)
    torch.library.opcheck(
        torch.ops.fastlr.sketch_apply, (draw(40, 3), kind, 8, 40, 1, S.nonzeros, 0)
    )
    torch.library.opcheck(
        torch.ops.fastlr.sketch_adjoint, (draw(8, 3), kind, 8, 40, 1, S.nonzeros, 2, 5)
    )


def test_empty_and_large():
    for kind in KINDS:
        assert la.sketch(torch.zeros(0, 3), 2, kind=kind, nonzeros=1).shape == (2, 3)
        assert la.sketch(torch.zeros(5, 0), 2, kind=kind, nonzeros=1).shape == (2, 0)
        assert not la.sketch(torch.zeros(5, 4), 3, kind=kind, nonzeros=2).any()
    # Columns far beyond 2³².
    S = la.SketchOperator("sparse_sign", 20, 2**50, seed=1)
    one, other = (S.apply(torch.ones(1, 1), first=first) for first in (2**40, 2**40 + 2**32))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dense", 3, 5), "kind must be one of gaussian, .* got 'dense'"),
        (("gaussian", 0, 5), "rows must be at least 1, got 0"),
        (("gaussian", 3, 0), "cols must be at least 1, got 0"),
        (("sparse_sign", 3, 5), "nonzeros must be between 1 and rows = 3, got 8"),
        (("srht", 9, 5), "rows must be at most 8, cols padded to a power of two, .* got 9"),
        (("leverage", 3, 5), 'kind "leverage" needs probabilities, got None'),
        (("leverage", 3, 5, 0, 8, torch.ones(4)), r"must have shape \(5,\), got \(4,\)"),
        (("leverage", 3, 2, 0, 8, [0.5, -1.0]), "non-negative, got -1.0 at index 1"),
        (("leverage", 3, 2, 0, 8, [math.nan, 1.0]), "must be finite .* got nan at index 0"),
        (("leverage", 3, 2, 0, 8, [0.0, 0.0]), "probabilities must not all be zero"),
        (("uniform", 3, 2, 0, 8, [0.5, 0.5]), 'probabilities are for the kind "leverage"'),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        la.SketchOperator(*arguments)


def test_mistakes_of_products():
    S = la.SketchOperator("countsketch", 3, 5, seed=0)
    with pytest.raises(ValueError, match="rows 0 to 6 must be among the 5"):
        S.apply(torch.ones(6, 2))
    with pytest.raises(ValueError, match="rows 4 to 6 must be among the 5"):
        S.apply(torch.ones(2, 2), first=4)
    with pytest.raises(ValueError, match="first must be at least 0, got -1"):
        S.apply(torch.ones(2, 2), first=-1)
    with pytest.raises(ValueError, match=r"Y must have 3 rows, got shape \(4, 2\)"):
        S.adjoint(torch.ones(4, 2))
    with pytest.raises(ValueError, match="start and stop must lie in order between 0 and 3"):
        S.rows_of(2, 4)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        S.apply(torch.ones(5))
    with pytest.raises(TypeError, match="rows"):
        la.SketchOperator("gaussian", 2.5, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_has_the_same_sketch(kind, dtype):
    for m, n, first in ((3000, 70, 0), (1, 1, 0), (517, 33, 1483)):
        size = min(100, m)
        S = operator(kind, size, 3000 if m > 1 else 1, seed=3, nonzeros=min(8, size))
        A, Y = draw(m, n, dtype=dtype), draw(S.rows, n, dtype=dtype, seed=1)
        dense = S.to_dense(dtype=A.real.dtype).double().numpy()[:, first : first + m]
        for matrix in (A.cuda(), A.T.contiguous().cuda().T, A.to_sparse_csr().cuda()):
            close(S.apply(matrix, first=first).cpu(), dense @ exact(A), m, A, dense)
        found = S.adjoint(Y.cuda(), first=first, count=m).cpu()
        close(found, dense.T @ exact(Y), S.rows, Y, dense.T)
