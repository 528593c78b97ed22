"""Samplers against the probabilities and constants of all samples, enumerated.

Statistical tests have fixed seeds. With fresh ones each would fail with probability 1e-4 at most
(5e-5 for means, at four standard deviations) though nothing is wrong.
"""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from references import singular_values, tail_norm
from strategies import seeds

FALSE_ALARM = 1e-4
DEVIATIONS = 4.06  # 5e-5 of a normal variable is farther from its mean
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def uneven(n, d, dtype=torch.float64, seed=0):
    """Rows of different size, every d of them independent."""
    return draw(n, d, dtype=dtype, seed=seed) * torch.linspace(0.3, 2, n)[:, None]


def gram_determinant(X):
    """det(XᴴX) or det(XXᴴ), of the smaller of the two."""
    return float(np.prod(np.square(singular_values(X))))


def subsets(A, size):
    """The probability of every set of `size` rows, by volume."""
    volumes = {
        rows: gram_determinant(A[list(rows)])
        for rows in itertools.combinations(range(len(A)), size)
    }
    total = sum(volumes.values())
    return {rows: volume / total for rows, volume in volumes.items()}


def assert_frequencies(draws, probabilities):
    """The chi-square test; sets that are too rare for it count together."""
    counts, number = Counter(draws), len(draws)
    assert set(counts) <= {rows for rows, p in probabilities.items() if p > 1e-12}
    frequent = {rows: p for rows, p in probabilities.items() if p * number >= 5}
    observed = [counts[rows] for rows in frequent]
    expected = [p * number for p in frequent.values()]
    rare = number - sum(expected)
    if rare > 1e-6 * number:
        observed.append(number - sum(observed))
        expected.append(rare)
    if len(expected) > 1:
        statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
        assert statistic <= scipy.stats.chi2.isf(FALSE_ALARM, len(expected) - 1)


def assert_mean(values, probabilities, statistic):
    """The mean over draws, of a function of a sample, against mean and deviation over all."""
    p = np.array(list(probabilities.values()))
    exact = np.array([statistic(sample) for sample in probabilities])
    mean = p @ exact
    deviation = math.sqrt(p @ np.square(exact - mean) / len(values))
    assert abs(np.mean(values) - mean) <= DEVIATIONS * deviation


def loss(A, x, b, weights=1.0):
    return float((weights * (A @ x - b).abs().square()).sum())


# --- The samplers draw what they state.


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_projection_process_frequencies(dtype, k):
    Q = torch.linalg.qr(uneven(6, k, dtype=dtype))[0]
    probabilities = {
        rows: abs(complex(torch.linalg.det(Q[list(rows)]))) ** 2
        for rows in itertools.combinations(range(6), k)
    }
    assert sum(probabilities.values()) == pytest.approx(1)
    draws = [tuple(la.projection_dpp(Q, seed=seed).tolist()) for seed in range(1200)]
    assert_frequencies(draws, probabilities)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_volume_frequencies(dtype, size):
    A = uneven(5, 3, dtype=dtype)
    draws = [tuple(la.volume_sample(A, size, seed=seed).tolist()) for seed in range(1000)]
    assert_frequencies(draws, subsets(A, size))


def test_few_rows_of_a_dependent_or_wide_matrix():
    A = draw(5, 2) @ draw(2, 4, seed=1)
    for matrix, size in ((A, 1), (A, 2), (draw(4, 9), 2), (draw(4, 9), 4)):
        draws = [tuple(la.volume_sample(matrix, size, seed=seed).tolist()) for seed in range(800)]
        assert_frequencies(draws, subsets(matrix, size))


MEASURE = torch.tensor([1.0, 0.2, 3.0, 0.7], dtype=torch.float64)


def rescaled_probabilities(A, size, measure):
    """Of every sequence: its density det(Σ wᵢ·qᵢ·qᵢᴴ), by the leverage measure."""
    Q = torch.linalg.qr(A * measure.sqrt()[:, None])[0].numpy()
    scores = np.square(np.abs(Q)).sum(1)
    d = Q.shape[1]
    probabilities = {}
    for rows in itertools.product(range(len(A)), repeat=size):
        X = Q[list(rows)] * np.sqrt(d / scores[list(rows)])[:, None]
        chance = np.prod(scores[list(rows)] / d)
        probabilities[rows] = chance * gram_determinant(X) / math.perm(size, d)
    return probabilities


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_rescaled_frequencies(dtype, size):
    A = uneven(4, 2, dtype=dtype)
    sequences = rescaled_probabilities(A, size, MEASURE)
    # The factor (size − d)!/size! makes them probabilities: the mean of the determinant.
    assert sum(sequences.values()) == pytest.approx(1)
    multisets = Counter()
    for rows, p in sequences.items():
        multisets[tuple(sorted(rows))] += p
    samples = [
        la.volume_rescaled_sample(A, size, weights=MEASURE, seed=seed).rows for seed in range(1000)
    ]
    assert_frequencies([tuple(sorted(rows.tolist())) for rows in samples], multisets)


# --- Unbiasedness and constants.


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [3, 4, 6])
def test_volume_samples_are_unbiased_and_lose_d_plus_one(dtype, size):
    n, d = 7, 3
    A, b = uneven(n, d, dtype=dtype), draw(n, dtype=dtype, seed=1)
    best = torch.linalg.pinv(A) @ b

    def solution(rows):
        return torch.linalg.pinv(A[list(rows)]) @ b[list(rows)]

    def lost(rows):
        return loss(A, solution(rows), b)

    probabilities = subsets(A, size)
    mean = sum(p * solution(rows) for rows, p in probabilities.items())
    # 35 terms or fewer, of which the largest have p·cond of 1e3 at most.
    rounding = 1e5 * 2.0**-53
    assert torch.allclose(mean, best, rtol=rounding, atol=rounding)
    ratio = sum(p * lost(rows) for rows, p in probabilities.items()) / loss(A, best, b)
    if size == d:
        assert ratio == pytest.approx(d + 1, rel=rounding)
    else:
        assert 1 < ratio < d + 1
    # Uniform sets are biased: the negative control.
    uniform = sum(solution(rows) for rows in probabilities) / len(probabilities)
    assert float((uniform - best).abs().max()) > 1e-3
    # The sampler's mean, and that of a coordinate.
    draws = [la.volume_sample(A, size, seed=seed).tolist() for seed in range(800)]
    assert_mean([lost(rows) for rows in draws], probabilities, lost)
    assert_mean(
        [solution(rows)[0].real.item() for rows in draws],
        probabilities,
        lambda rows: solution(rows)[0].real.item(),
    )


@pytest.mark.parametrize("size", [3, 4, 6])
def test_mean_of_the_inverse_gram_matrix(size):
    n, d = 7, 3
    A = uneven(n, d)
    mean = sum(
        p * torch.linalg.inv(A[list(rows)].T @ A[list(rows)])
        for rows, p in subsets(A, size).items()
    )
    expected = (n - d + 1) / (size - d + 1) * torch.linalg.inv(A.T @ A)
    # Squared condition numbers of the sets: below 1e6 where p is not negligible.
    assert torch.allclose(mean, expected, rtol=1e7 * 2.0**-53, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_that_span_the_others(size):
    A = uneven(6, 5, seed=3)

    def residual(rows):
        chosen = A[list(rows)]
        return float((A - A @ torch.linalg.pinv(chosen) @ chosen).norm() ** 2)

    probabilities = subsets(A, size)
    mean = sum(p * residual(rows) for rows, p in probabilities.items())
    squares = np.square(singular_values(A))
    polynomials = np.abs(np.poly(squares))
    # The coefficients of Π(t − σ²), all sums of positive terms.
    assert mean == pytest.approx(
        (size + 1) * polynomials[size + 1] / polynomials[size], rel=1e4 * 2.0**-53
    )
    assert tail_norm(A, size) ** 2 < mean < (size + 1) * tail_norm(A, size) ** 2
    draws = [la.volume_sample(A, size, seed=seed).tolist() for seed in range(800)]
    assert_mean([residual(rows) for rows in draws], probabilities, residual)


def test_the_constant_of_spanning_rows_is_attained():
    # Where the singular values fall steeply, by 1e-3 here: e_3/e_2 is σ_3² but for 1e-6 or so.
    A = torch.linalg.qr(draw(6, 4))[0] * torch.tensor([1.0, 1.0, 1e-3, 1e-6]).double()
    mean = 0.0
    for rows, p in subsets(A, 2).items():
        chosen = A[list(rows)]
        mean += p * float((A - A @ torch.linalg.pinv(chosen) @ chosen).norm() ** 2)
    assert mean == pytest.approx(3 * tail_norm(A, 2) ** 2, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_rescaled_samples_are_unbiased(dtype, size):
    n, d = 4, 2
    A, b = uneven(n, d, dtype=dtype), draw(n, dtype=dtype, seed=1)
    roots = MEASURE.sqrt()[:, None]
    best = torch.linalg.pinv(roots * A) @ (roots[:, 0] * b)
    least = loss(A, best, b, MEASURE)
    scores = la.leverage_scores(roots * A, size=n)
    weights = MEASURE * d / (size * scores)
    whole = A.mH @ (MEASURE[:, None] * A)

    def gram(rows):
        return A[rows].mH @ (weights[rows][:, None] * A[rows])

    def solution(rows):
        X = A[rows].mH * weights[rows]
        return torch.linalg.solve(X @ A[rows], X @ b[rows])

    def excess(rows):
        return loss(A, solution(list(rows)), b, MEASURE) - least

    probabilities = {
        rows: p for rows, p in rescaled_probabilities(A, size, MEASURE).items() if p > 1e-20
    }
    means = [
        sum(p * statistic(list(rows)) for rows, p in probabilities.items())
        for statistic in (gram, solution, lambda rows: torch.linalg.inv(gram(rows)))
    ]
    rounding = 1e5 * 2.0**-53  # up to 1024 terms, squared conditions of 1e2 or so
    assert torch.allclose(means[0], whole, rtol=rounding, atol=rounding)
    assert torch.allclose(means[1], best, rtol=rounding, atol=rounding)
    # The mean of the inverse is size/(size − d + 1)·inverse at most: those of rank d − 1 lack.
    inverse = torch.linalg.inv(whole)
    gap = size / (size - d + 1) * inverse - means[2]
    assert float(torch.linalg.eigvalsh(gap)[0]) >= -rounding * float(inverse.norm())
    # The right-hand sides: those of the residual r have the mean square d/size·‖r‖² at most, in the
    # norm of the inverse.
    r = b - A @ best
    square = 0.0
    for rows, p in probabilities.items():
        g = A[list(rows)].mH @ (weights[list(rows)] * r[list(rows)])
        square += p * float((g.conj() @ inverse @ g).real)
    assert 0 < square <= d / size * least
    mean = sum(p * excess(rows) for rows, p in probabilities.items())
    assert 0 < mean <= d * least * (1 + rounding)
    if size == d:
        assert mean == pytest.approx(d * least, rel=rounding)
    # What the library returns is these rows and weights, and `lstsq` takes them.
    found = []
    for seed in range(400):
        rows, sampled = la.volume_rescaled_sample(A, size, weights=MEASURE, seed=seed)
        assert torch.allclose(sampled, weights[rows], rtol=100 * 2.0**-53)
        found.append(la.lstsq(A[rows], b[rows], weights=sampled).x)
    for index in range(d):
        assert_mean(
            [x[index].real.item() for x in found],
            probabilities,
            lambda rows, index=index: solution(list(rows))[index].real.item(),
        )
    assert_mean([loss(A, x, b, MEASURE) - least for x in found], probabilities, excess)


def constant(size, d):
    """The proven C of E‖x − E[x]‖² ≤ C·min‖A·x − b‖²."""
    if size == d:
        return d
    deltas = np.linspace(0.01, 0.99, 99)
    good = size * d / ((1 - deltas) * (size - d)) ** 2
    return min(d, (good + d**2 * np.exp(-(deltas**2) * (size - d) / (2 * d))).min())


def test_the_error_is_within_its_constant():
    # Powers on [−1, 1]: scores are ten times as large at the ends.
    t = torch.linspace(-1, 1, 4000, dtype=torch.float64)
    A, b = t[:, None] ** torch.arange(5), (3 * t).abs() + torch.cos(40 * t)
    solved = torch.linalg.lstsq(A, b[:, None]).solution[:, 0]
    least = loss(A, solved, b)
    for size in (5, 25, 250):
        found = []
        for seed in range(200):
            rows, weights = la.volume_rescaled_sample(A, size, seed=seed)
            found.append(la.lstsq(A[rows], b[rows], weights=weights).x)
        losses = np.array([loss(A, x, b) / least - 1 for x in found])
        deviation = losses.std() / math.sqrt(200)
        assert losses.mean() <= constant(size, 5) + DEVIATIONS * deviation
        if size == 5:  # every five rows are independent: the constant is the mean
            assert losses.mean() >= 5 - DEVIATIONS * deviation
    # At 50·d rows it is near d/size, and the constant not far from it.
    assert 0.5 * 5 / 250 <= losses.mean() <= 2 * 5 / 250
    assert constant(250, 5) < 0.2


def test_uniform_rows_lose_what_few_rows_have():
    A = torch.cat([draw(3000, 2), torch.zeros(3000, 1, dtype=torch.float64)], 1)
    A[1234] = torch.tensor([0.0, 0.0, 1.0])
    missed = 0
    for seed in range(20):
        assert 1234 in la.volume_sample(A, 3, seed=seed)
        rows, _ = la.volume_rescaled_sample(A, 10, seed=seed)
        assert 1234 in rows
        missed += 1234 not in la.random_matrix(10, 1, kind="uniform", seed=seed).mul(3000).long()
    # The negative control: ten uniform rows have it with probability 1/300, three times in twenty
    # samples with 4e-5.
    assert missed >= 18


# --- Seeds, scales, kinds.


@settings(max_examples=30)
@given(seed=seeds, n=st.integers(1, 30), d=st.integers(1, 6))
def test_larger_samples_extend_smaller_ones(seed, n, d):
    A = uneven(n, min(n, d), seed=d)
    d = A.shape[1]
    samples = [set(la.volume_sample(A, size, seed=seed).tolist()) for size in range(d, n + 1)]
    for size, (smaller, larger) in enumerate(itertools.pairwise(samples), d):
        assert len(smaller) == size
        assert smaller < larger
    assert samples[-1] == set(range(n))
    whole = la.volume_rescaled_sample(A, d + 20, seed=seed)
    part = la.volume_rescaled_sample(A, d + 3, seed=seed)
    assert torch.equal(whole.rows[: d + 3], part.rows)
    # The same scores: only the factor 1/size differs, by some rounding.
    longer = whole.weights[: d + 3] * (d + 20) / (d + 3)
    assert torch.allclose(longer, part.weights, rtol=10 * 2.0**-53, atol=0)
    assert torch.equal(whole.rows[:d].sort().values, la.volume_sample(A, d, seed=seed))


def test_seeds():
    A = draw(200, 4)
    again = la.volume_sample(A, 9, seed=3)
    assert torch.equal(again, la.volume_sample(A, 9, seed=3))
    assert not torch.equal(again, la.volume_sample(A, 9, seed=4))
    generator = torch.Generator().manual_seed(1)
    first, second = (la.volume_sample(A, 9, seed=generator) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    one = la.projection_dpp(la.orthonormalize(A))
    torch.manual_seed(5)
    assert torch.equal(one, la.projection_dpp(la.orthonormalize(A)))


def test_threads_change_nothing():
    A = draw(20_000, 30)
    threads = torch.get_num_threads()
    try:
        samples = []
        for number in (1, 2):
            torch.set_num_threads(number)
            samples.append([la.volume_sample(A, size, seed=0) for size in (10, 30, 50)])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *samples))


@settings(max_examples=30)
@given(seed=seeds, scale=st.sampled_from([1e-300, 1e-200, 1e200, 1e300]))
def test_volumes_have_no_scale(seed, scale):
    # Other rounding: a row changes with probability 1e-12 or so.
    A = draw(40, 5, seed=1)
    columns = torch.tensor([1.0, scale, 1.0, 1 / scale, 3.0], dtype=torch.float64)
    other = A @ torch.triu(torch.ones(5, 5, dtype=A.dtype))
    for size in (5, 8):
        rows = la.volume_sample(A, size, seed=seed)
        for same in (A * scale, A * columns, other):
            assert torch.equal(la.volume_sample(same, size, seed=seed), rows)
    assert torch.equal(la.volume_sample(A * scale, 3, seed=seed), la.volume_sample(A, 3, seed=seed))
    measure = torch.linspace(0, 1, 40, dtype=torch.float64)
    rows, weights = la.volume_rescaled_sample(A, 9, weights=measure, seed=seed)
    assert 0 not in rows  # it has no weight
    scaled = la.volume_rescaled_sample(A * columns, 9, weights=scale * measure, seed=seed)
    assert torch.equal(scaled.rows, rows)
    # Scores of a basis of another rounding, of a condition of 10 or so.
    assert torch.allclose(scaled.weights / scale, weights, rtol=1e4 * 2.0**-53, atol=0)


def test_spectra_beyond_the_range_of_their_products():
    # Products of 60 squares reach 1e1000. Values fall by ten each: a row is left out for the next
    # with odds of 1e-2.
    values = torch.logspace(0, -11, 12, dtype=torch.float64).repeat_interleave(10)
    rows = la.volume_sample(torch.diag(values), 60, seed=0)
    assert len(rows) == 60
    assert int((rows < 60).sum()) >= 55
    steep = torch.diag(torch.logspace(-12, 0, 5, dtype=torch.float64))
    # Odds of a smaller value are 1e-6 a step.
    for seed in range(20):
        assert la.volume_sample(steep, 3, seed=seed).tolist() == [2, 3, 4]
    equal = 1e-150 * torch.eye(300, dtype=torch.float64)
    counts = torch.zeros(300)
    for seed in range(40):
        counts[la.volume_sample(equal, 150, seed=seed)] += 1
    # Every direction with probability 1/2: the sum of 300 deviations of variance 10, each with the
    # kurtosis of 40 coins.
    assert float((counts - 20).square().mean()) == pytest.approx(10, abs=DEVIATIONS * 14 / 17)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds)
@settings(max_examples=20)
def test_rows_that_are_alike_exclude_each_other(dtype, seed):
    A = uneven(6, 4, dtype=dtype)
    twice = torch.cat([A, A, -3 * A, torch.zeros_like(A)])
    for size in (3, 4):
        rows = la.volume_sample(twice, size, seed=seed)
        assert len(set((rows % 6).tolist())) == size
        assert int(rows.max()) < 18
    Q = torch.linalg.qr(twice)[0]
    rows = la.projection_dpp(Q, seed=seed)
    assert len(set((rows % 6).tolist())) == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_kinds_and_dtypes(dtype):
    A = uneven(50, 4, dtype=dtype)
    before = A.clone()
    Q = torch.linalg.qr(A)[0]
    rows = la.volume_sample(A, 7, seed=0)
    chosen = la.projection_dpp(Q, seed=0)
    sample = la.volume_rescaled_sample(A, 7, seed=0)
    assert rows.dtype == chosen.dtype == sample.rows.dtype == torch.int64
    assert sample.weights.dtype == dtype.to_real()
    for other in (A.numpy(), np.asfortranarray(A.numpy()), A.numpy()[::-1][::-1]):
        found = la.volume_sample(other, 7, seed=0)
        assert isinstance(found, np.ndarray)
        assert found.tolist() == rows.tolist()
        pair = la.volume_rescaled_sample(other, 7, weights=np.ones(50, int), seed=0)
        assert isinstance(pair.weights, np.ndarray)
        assert pair.rows.tolist() == sample.rows.tolist()
        assert pair.weights.tolist() == sample.weights.tolist()
    assert la.projection_dpp(Q.numpy(), seed=0).tolist() == chosen.tolist()
    # Conjugation changes no determinant's size; a view of A is read as what it is.
    assert torch.equal(la.volume_sample(A.conj(), 7, seed=0), rows)
    assert torch.equal(la.volume_sample(A.clone().requires_grad_(), 7, seed=0), rows)
    assert torch.equal(A, before)


def test_half_types_and_integers():
    A = uneven(50, 3, dtype=torch.float32).half()
    assert torch.equal(la.volume_sample(A, 5, seed=0), la.volume_sample(A.float(), 5, seed=0))
    assert la.volume_rescaled_sample(A, 5, seed=0).weights.dtype == torch.float32
    # In half precision columns are orthonormal to half precision.
    Q = torch.linalg.qr(A.float())[0]
    assert la.projection_dpp(Q.half(), seed=0).shape == (3,)
    assert la.volume_sample(np.eye(3, dtype=int), 3).tolist() == [0, 1, 2]


def test_long_matrices_pass_the_check_of_orthonormality():
    for dtype in (torch.float32, torch.float64):
        Q = torch.linalg.qr(draw(100_000, 6, dtype=dtype))[0]
        assert la.projection_dpp(Q, seed=0).shape == (6,)


def test_nothing_to_choose():
    assert la.projection_dpp(torch.zeros(5, 0)).shape == (0,)
    assert la.projection_dpp(torch.eye(4), seed=0).tolist() == [0, 1, 2, 3]
    assert la.volume_sample(torch.zeros(5, 0), 5, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert la.volume_sample(torch.ones(1, 1), 1).tolist() == [0]


ONES = torch.ones(300, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: la.volume_sample(draw(300, 4), 512),
            ValueError,
            r"^volume_sample: size must be between 1 and n = 300, got 512$",
        ),
        (lambda: la.volume_sample(draw(300, 4), 0), ValueError, "between 1 and n = 300, got 0"),
        (lambda: la.volume_sample(draw(9, 4), 2.5), TypeError, "size must be an integer"),
        (
            lambda: la.volume_sample(ONES, 2),
            ValueError,
            "A must have a rank of at least 2 for 2 rows that span a volume, got rank 1",
        ),
        (lambda: la.volume_sample(ONES, 9), ValueError, "a rank of at least 2 .* got rank 1"),
        (lambda: la.volume_sample(0 * ONES, 1), ValueError, "at least 1 .* got rank 0"),
        (
            lambda: la.volume_sample(ONES.index_fill(0, torch.tensor(70), math.nan), 2),
            ValueError,
            r"volume_sample: A must be finite, got nan at index \(70, 0\)",
        ),
        (
            lambda: la.volume_sample(torch.ones(2, 5, 3), 3),
            ValueError,
            r"volume_sample: A must have 2 dimensions, got shape \(2, 5, 3\)",
        ),
        (lambda: la.volume_sample(torch.eye(3).to_sparse(), 2), TypeError, "must be a dense"),
        (
            lambda: la.volume_rescaled_sample(ONES, 5),
            ValueError,
            "volume_rescaled_sample: A must have full column rank 2, got rank 1",
        ),
        (
            lambda: la.volume_rescaled_sample(draw(9, 4), 3),
            ValueError,
            "volume_rescaled_sample: size must be at least 4, got 3",
        ),
        (
            lambda: la.volume_rescaled_sample(draw(3, 4), 5),
            ValueError,
            "A must have between 1 and n = 3 columns, got 4",
        ),
        (lambda: la.volume_rescaled_sample(draw(3, 0), 5), ValueError, "columns, got 0"),
        (
            lambda: la.volume_rescaled_sample(draw(3, 1), 5, weights=[1.0, -2.0, 1.0]),
            ValueError,
            r"weights must be non-negative and finite, got -2 at index \(1,\)",
        ),
        (
            lambda: la.volume_rescaled_sample(draw(3, 1), 5, weights=[1.0, 1.0, math.nan]),
            ValueError,
            r"got nan at index \(2,\)",
        ),
        (
            lambda: la.volume_rescaled_sample(draw(3, 1), 5, weights=[1.0]),
            ValueError,
            r"weights must have shape \(3,\), got \(1,\)",
        ),
        (
            lambda: la.volume_rescaled_sample(draw(3, 1), 5, weights=[0.0, 0.0, 0.0]),
            ValueError,
            "full column rank 1, got rank 0",
        ),
        (
            lambda: la.projection_dpp(ONES),
            ValueError,
            "projection_dpp: Q must have orthonormal columns, to .* got",
        ),
        (lambda: la.projection_dpp(torch.eye(3)[:2]), ValueError, "orthonormal columns"),
        (
            lambda: la.projection_dpp((1 + 1e-4) * torch.eye(9)),
            ValueError,
            "orthonormal columns, to .*e-06 .* got 6.0e-04",
        ),
        (
            lambda: la.projection_dpp(torch.full((3, 1), math.inf)),
            ValueError,
            r"Q must be finite, got inf at index \(0, 0\)",
        ),
        (lambda: la.projection_dpp(torch.eye(3), seed=0.5), TypeError, "seed must be an int"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
