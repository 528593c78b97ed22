"""Leverage scores against the exact ones, and rows that are drawn by them."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, unit_roundoff
from strategies import seeds, with_spectrum

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def uneven(m, n, dtype=torch.float64, seed=0):
    """Rows of very different size: scores from 1e-4 to nearly 1."""
    return (
        draw(m, n, dtype=dtype, seed=seed) * torch.logspace(0, 3, m, dtype=dtype.to_real())[:, None]
    )


def reference(A, rank=None):
    U = scipy.linalg.svd(exact(A), full_matrices=False)[0]
    return np.square(np.abs(U[:, :rank])).sum(1)


def rounding(A) -> float:
    """Of a row norm of Q: some m·u, and of its square twice that; the QR has √n of them."""
    return 20 * math.sqrt(A.shape[1]) * A.shape[0] * unit_roundoff(A)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(300, 7), (40, 40), (5, 30), (1, 1), (30, 1)])
def test_exact_scores(dtype, shape):
    A = uneven(*shape, dtype=dtype)
    scores = la.leverage_scores(A, size=shape[0])
    assert scores.dtype == dtype.to_real()
    assert np.allclose(scores.numpy(), reference(A), rtol=0, atol=rounding(A))
    # The whole is the rank.
    assert float(scores.sum()) == pytest.approx(min(shape), abs=shape[0] * rounding(A))
    # Short matrices have exact scores without being asked for them.
    if shape[0] <= 8 * shape[1]:
        assert torch.equal(la.leverage_scores(A, seed=5), scores)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [6, 60])
def test_sketched_scores_are_within_the_stated_factor(dtype, n):
    A = uneven(4000, n, dtype=dtype)
    expected = reference(A)
    Q = torch.from_numpy(scipy.linalg.qr(exact(A), mode="economic")[0])
    errors = {}
    for size in (8 * n, 64 * n):
        for seed in range(5):
            # A score is qᴴ((S Q)ᴴ S Q)⁻¹q: between σ⁻² of the largest and the smallest singular
            # value of S Q. Rounding: that of a QR and of a triangular solve of cond(A) < 1e3.
            sketch = la.SketchOperator("sparse_sign", size, 4000, seed)
            values = np.linalg.svd((sketch @ Q).numpy(), compute_uv=False)
            ratio = la.leverage_scores(A, size=size, seed=seed).double().numpy() / expected
            slack = 1e3 * n * unit_roundoff(A)
            assert values[0] ** -2 * (1 - slack) <= ratio.min()
            assert ratio.max() <= values[-1] ** -2 * (1 + slack)
            errors[size, seed] = np.abs(ratio - 1).max()
            if n == 60:
                # ε = √(n/size) and three deviations of 1/√size for these seeds.
                assert abs(values - 1).max() <= math.sqrt(n / size) + 3 / math.sqrt(size)
    # Longer is nearer, and neither is a QR.
    assert errors[64 * n, 0] < errors[8 * n, 0]
    assert min(errors.values()) > 0.05


def test_projected_scores_are_within_another_factor_of_two():
    # 10.4·ln(200·3000) = 139 columns of the 300: the sketch's own error is left out by comparing
    # with its scores, which are the row norms of A V Σ⁻¹.
    A = uneven(3000, 300)
    S = la.SketchOperator("sparse_sign", 2400, 3000, seed=3)
    R = torch.linalg.qr(S @ A, mode="r")[1]
    whitened = torch.linalg.solve_triangular(R, A, upper=True, left=False).square().sum(1)
    ratio = la.leverage_scores(A, seed=3) / whitened.clamp(max=1)
    assert float(ratio.min()) >= 0.5
    assert float(ratio.max()) <= 2
    assert float((ratio - 1).abs().max()) > 0.01  # projected indeed


@pytest.mark.parametrize("size", [None, 2000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dependent_columns_do_not_count_twice(size, dtype):
    B = uneven(2000, 4, dtype=dtype)
    A = torch.cat([B, B @ draw(4, 3, dtype=dtype, seed=1)], 1)
    scores = la.leverage_scores(A, size=size, seed=0)
    # The basis is that of B, to rounding; in a sketch within its factor, here 3.
    expected = reference(A, rank=4)
    if size is None:
        ratio = scores.double().numpy() / expected
        assert 1 / 3 <= ratio.min() <= ratio.max() <= 3
        assert float(scores.sum()) < 7
    else:
        assert float(scores.sum()) == pytest.approx(4, abs=2000 * rounding(A))
        assert np.allclose(scores.numpy(), expected, rtol=0, atol=1e3 * rounding(A))


@settings(max_examples=20)
@given(m=st.integers(1, 200), n=st.integers(1, 8), scale=st.sampled_from([1e-200, 1, 1e200]))
def test_scaling_and_bases_change_nothing(m, n, scale):
    A = draw(m, n, seed=m)
    one = la.leverage_scores(A, seed=0)
    # The same draws; powers of ten are no powers of two, and the basis changes rounding. An exact
    # Gaussian matrix has a condition that its entries divided by m bound for these sizes.
    allowed = 1e4 * m * 2.0**-53 * float(torch.linalg.cond(A))
    assert (la.leverage_scores(A * scale, seed=0) - one).abs().max() <= allowed
    other = A @ torch.triu(torch.ones(n, n, dtype=A.dtype))
    assert (la.leverage_scores(other, seed=0) - one).abs().max() <= allowed * n
    assert float(one.max()) <= 1
    assert float(one.min()) >= 0


@pytest.mark.parametrize("size", [None, 30, 700])
def test_every_kind_of_matrix(size, tmp_path):
    # Of 700 rows, more than are multiplied by 16 columns at a time; a known condition number.
    dense = with_spectrum(700, 20, np.linspace(1, 10, 20)).numpy()
    dense[np.abs(dense) < 0.3 * np.abs(dense).max()] = 0
    A = torch.from_numpy(dense)
    A[:20] += torch.eye(20, dtype=A.dtype)
    dense = A.numpy()
    expected = la.leverage_scores(A, size=size, seed=2)
    allowed = 100 * 700 * 2.0**-53 * float(torch.linalg.cond(A)) ** 2
    path = tmp_path / "a.npy"
    np.save(path, dense)
    for other in (
        dense,
        scipy.sparse.csr_array(dense),
        scipy.sparse.coo_array(dense),
        A.to_sparse_csr(),
        A.to_sparse_coo(),
        A.T.contiguous().T,
        path,
        np.load(path, mmap_mode="r"),
        [A[:300], A[300:]],
    ):
        found = la.leverage_scores(other, size=size, seed=2)
        kept = isinstance(other, torch.Tensor | list)
        assert isinstance(found, torch.Tensor) == kept
        assert (torch.as_tensor(found) - expected).abs().max() <= allowed
    batch = torch.stack([A, 2 * A])[None]
    found = la.leverage_scores(batch, size=size, seed=2)
    assert found.shape == (1, 2, 700)
    assert (found - expected).abs().max() <= allowed
    lazy = Blocks([A[:300], A[300:]])  # of which the number of rows is not known
    assert (la.leverage_scores(lazy, size=size, seed=2) - expected).abs().max() <= allowed


def test_rows_by_blocks(monkeypatch):
    A = uneven(500, 6)
    whole = la.leverage_scores(A, seed=1)
    monkeypatch.setattr("fastlr.linalg.leverage._BLOCK", 100)
    # The same sums.
    assert (la.leverage_scores(A, seed=1) - whole).abs().max() <= 10 * 2.0**-53
    assert len(la.leverage_scores([A[:300], A[300:]], seed=1)) == 500


class Blocks:
    """An iterable that can be read again."""

    def __init__(self, blocks):
        self.blocks = blocks

    def __iter__(self):
        return iter(self.blocks)


def test_half_types_and_integers():
    A = uneven(50, 3, dtype=torch.float32).half()
    assert la.leverage_scores(A, size=50).dtype == torch.float16
    assert torch.equal(
        la.leverage_scores(A, size=50), la.leverage_scores(A.float(), size=50).half()
    )
    assert la.leverage_scores(np.eye(3, dtype=int)).tolist() == [1.0, 1.0, 1.0]


def test_empty_and_zero():
    assert la.leverage_scores(torch.zeros(0, 3)).shape == (0,)
    assert la.leverage_scores(torch.zeros(2, 0, 3)).shape == (2, 0)
    assert la.leverage_scores(torch.zeros(0, 5, 3)).shape == (0, 5)
    for shape in ((5, 0), (5, 3), (500, 3)):
        assert not la.leverage_scores(torch.zeros(shape)).any()
    assert not la.leverage_scores(torch.zeros(500, 3).to_sparse_csr()).any()


@given(seed=seeds, m=st.integers(1, 60))
def test_rows_are_drawn_by_their_probabilities(seed, m):
    p = torch.arange(m, dtype=torch.float64) % 3  # a third of the rows is never drawn
    p[-1] = 1
    S = la.SketchOperator("leverage", 30, m, seed, probabilities=p).to_dense(dtype=torch.float64)
    assert torch.equal((S != 0).sum(1), torch.ones(30, dtype=torch.int64))
    assert not S[:, p == 0].any()
    # Draws are by seed and index: a longer sketch begins with the shorter one's, scaled.
    longer = la.SketchOperator("leverage", 60, m, seed, probabilities=p).to_dense(
        dtype=torch.float64
    )
    assert (longer[:30] * math.sqrt(2) - S).abs().max() <= 4 * 2.0**-53 * S.max()
    # The sum of the probabilities does not matter: powers of two not at all.
    doubled = la.SketchOperator("leverage", 30, m, seed, probabilities=2 * p)
    assert doubled == la.SketchOperator("leverage", 30, m, seed, probabilities=p)


def test_a_draw_inverts_the_sums_at_its_own_number():
    u = la.random_matrix(40, 1, kind="uniform", seed=7, column_offset=2**31, dtype=torch.float64)[
        :, 0
    ]
    S = la.SketchOperator("leverage", 40, 64, 7, probabilities=torch.ones(64))
    # Sums of 1/64 are exact: row i is drawn for i/64 < u ≤ (i + 1)/64.
    picked = S.to_dense().argmax(1)
    assert torch.equal(picked, (64 * u).ceil().long() - 1)


def test_entries_that_are_given_twice_are_added_up():
    A = torch.sparse_csr_tensor(
        [0, 2, 3], [1, 1, 0], torch.tensor([2.0, 3.0, 4.0]), (2, 2), check_invariants=False
    )
    S = la.SketchOperator("leverage", 1, 2, 0, probabilities=[1.0, 0.0])
    assert (S @ A).tolist() == [[0.0, 5.0]]


def test_frequencies():
    p = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    S = la.SketchOperator("leverage", 20_000, 4, 1, probabilities=p)
    counts = (S @ torch.eye(4) != 0).sum(0)
    # √(p(1 − p)·20000) is 71 at most: four deviations.
    assert float((counts - 20_000 * p).abs().max()) <= 4 * 71


def test_the_sketch_is_unbiased():
    A = uneven(200, 3)
    A /= A.norm()
    total = sum((Y := la.sketch(A, 100, kind="leverage", seed=seed)).T @ Y for seed in range(400))
    # E[Yᵀ Y] = AᵀA. By p ≥ score/(4·3) an entry has a variance of at most 12·‖A‖⁴/100; the mean of
    # 400 has 1.7 % of ‖A‖² as a deviation, of which four are allowed.
    assert float((total / 400 - A.T @ A).abs().max()) <= 4 * 0.0174


def test_heavy_rows_are_kept_where_uniform_sampling_loses_them():
    # One row that alone has the third direction, and two directions of all the others.
    m, size = 10_000, 150
    A = torch.cat([draw(m, 2), torch.zeros(m, 1, dtype=torch.float64)], 1)
    A[4321] = torch.tensor([0.0, 0.0, 1.0])
    Q = torch.linalg.qr(A)[0]
    missed = 0
    for seed in range(30):
        values = torch.linalg.svdvals(la.sketch(A, size, kind="leverage", seed=seed) @ R_inverse(A))
        # Matrix Chernoff: d·2·exp(−ε²·size/(3·β·d)) with scores within β = 2: ε = 0.75 gives 0.05
        # for a seed in that (loose) bound; √(d β/size)·4 is its size in practice.
        assert float((values.square() - 1).abs().max()) <= 0.75
        uniform = torch.linalg.svdvals(la.sketch(Q, size, kind="uniform", seed=seed))
        missed += float(uniform[-1]) < 1e-12
    # The negative control: the row is missed with probability (1 − 1e-4)^150 = 98.5 %.
    assert missed >= 27


def R_inverse(A):
    R = torch.linalg.qr(A, mode="r")[1]
    return torch.linalg.inv(R)


def test_a_batch_has_rows_drawn_by_scores_of_its_own():
    A = torch.zeros(2, 100, 2, dtype=torch.float64)
    A[0, 5, 0] = A[0, 6, 1] = A[1, 50, 0] = A[1, 60, 1] = 1
    Y = la.sketch(A, 40, kind="leverage", seed=0)
    for index in range(2):
        assert torch.equal(Y[index], la.sketch(A[index], 40, kind="leverage", seed=0))
        # Nothing but the two rows is drawn: both, but with probability 2⁻³⁹.
        assert int(torch.linalg.matrix_rank(Y[index])) == 2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: la.leverage_scores(torch.ones(3)), ValueError, "at least 2 dimensions"),
        (
            lambda: la.leverage_scores(torch.ones(50, 4), size=3),
            ValueError,
            "leverage_scores: size must be at least 4, got 3",
        ),
        (lambda: la.leverage_scores(torch.ones(5, 2), size=2.5), TypeError, "size must be an int"),
        (
            lambda: la.leverage_scores(iter([torch.ones(5, 2)])),
            ValueError,
            "A is an iterator, which can be read once; two reads are needed",
        ),
        (
            lambda: la.leverage_scores(torch.eye(5).masked_fill(torch.eye(5) == 1, math.nan)),
            ValueError,
            r"A must be finite, got nan at index \(0, 0\)",
        ),
        (
            lambda: la.leverage_scores(torch.ones(99, 2).index_fill(0, torch.tensor(70), math.inf)),
            ValueError,
            r"A must be finite, got inf at index \(70, 0\)",
        ),
        (
            lambda: la.leverage_scores([np.ones((9, 2)), np.full((9, 2), np.nan)]),
            ValueError,
            r"A must be finite, got nan at index \(9, 0\)",
        ),
        (
            lambda: la.leverage_scores(
                scipy.sparse.csr_array(([1.0, np.nan], ([3, 8], [0, 1])), shape=(20, 2))
            ),
            ValueError,
            r"A must be finite, got nan at index \(8, 1\)",
        ),
        (lambda: la.leverage_scores("a"), ValueError, "a"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
