"""Leading eigenpairs against SciPy's eigh: semidefinite, indefinite, degenerate, complex."""

import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, orthonormality_error, rounding, unit_roundoff
from strategies import hermitian, seeds, spectra

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def by_magnitude(values):
    return np.asarray(sorted(values, key=lambda value: -abs(value)))


def residual(A, result) -> float:
    values, V = (exact(part) for part in result)
    return float(np.linalg.norm(exact(A) - (V * values) @ V.conj().T))


@st.composite
def semidefinite(draw):
    values = draw(spectra(draw(st.integers(1, 60))))
    return hermitian(values, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31)))


# ---- nystrom ----


@given(A=semidefinite(), data=st.data(), seed=seeds)
def test_nystrom_of_any_semidefinite_matrix(A, data, seed):
    rank = data.draw(st.integers(1, len(A)))
    result = la.nystrom(A, rank, seed=seed)
    values, V = result
    assert values.dtype == A.dtype.to_real()
    assert values.shape == (rank,)
    assert V.shape == (len(A), rank)
    assert orthonormality_error(V) <= 10
    assert (values >= 0).all()
    assert (values.diff() <= 0).all()
    # Nyström's is below A in the order of Hermitian matrices: no value is above its eigenvalue.
    truth = by_magnitude(scipy.linalg.eigvalsh(exact(A)))
    assert (exact(values) <= truth[:rank] + rounding(A)).all()
    # 1 %: the probes' chance of failure; 3: a probe off by that much more has one of 1e-9.
    assert residual(A, result) <= 3 * result.info.error + rounding(A)
    assert result.info.passes == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [5, 12])
def test_nystrom_is_exact_where_the_rank_is(dtype, rank):
    A = hermitian(np.r_[np.arange(5.0, 0, -1), np.zeros(195)], dtype)
    values, V = result = la.nystrom(A, rank, seed=0)
    # The shift √n·u·‖A‖ and the rounding that it covers.
    near = 20 * math.sqrt(200) * unit_roundoff(A) * 5
    assert residual(A, (values, V)) <= near
    assert residual(A, result) <= result.info.error + near
    np.testing.assert_allclose(exact(values)[:5], np.arange(5, 0, -1), atol=near)
    assert (exact(values)[5:] == 0).all()


def test_nystrom_follows_its_bound():
    values = 1.0 / np.arange(1, 301) ** 2
    A = hermitian(values)
    # E‖A − Nyström‖_* ≤ (1 + k/(p − 1))·tail for the untruncated one (rank = k + p columns); its
    # truncation to k adds the best error at most. Mean of ten, so that 1.2 covers the spread.
    tail = values[20:].sum()
    errors = []
    for seed in range(10):
        eigenvalues, V = la.nystrom(A, 20, seed=seed)
        remainder = exact(A) - (exact(V) * exact(eigenvalues)) @ exact(V).T
        errors.append(np.linalg.svd(remainder, compute_uv=False).sum())
    assert np.mean(errors) <= 1.2 * (2 + 20 / 29) * tail
    # Without oversampling it is worse: the negative control.
    poor = la.nystrom(A, 20, oversample=0, seed=0)
    assert residual(A, poor) > 1.2 * residual(A, la.nystrom(A, 20, seed=0))


def test_nystrom_error_estimate_is_unbiased_and_certified():
    A = hermitian(1.0 / np.arange(1, 201))
    ratios, failures = [], 0
    for seed in range(100):
        result = la.nystrom(A, 8, seed=seed)
        truth = residual(A, result)
        ratios.append((result.info.error_estimate / truth) ** 2)
        failures += truth > result.info.error
    # A ratio has a variance of 2/10 at most: the mean of 100 is within 3·√0.002 of 1.
    assert abs(np.mean(ratios) - 1) <= 3 * math.sqrt(0.002)
    assert failures <= 5  # of 1 expected: more has a chance of 5e-4


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_nystrom_at_the_ends_of_the_range(scale):
    A = hermitian(0.5 ** np.arange(100.0))
    one, two = la.nystrom(A, 5, seed=0), la.nystrom(A * scale, 5, seed=0)
    np.testing.assert_allclose(two.eigenvalues / scale, one.eigenvalues, rtol=1e-9)
    assert two.info.error == pytest.approx(one.info.error * scale, rel=1e-6)


@pytest.mark.parametrize("n", [4, 100])
def test_zero_matrix(n):
    for routine in (la.nystrom, la.randomized_eigh):
        values, V = result = routine(torch.zeros(n, n), 3, seed=0)
        assert torch.equal(values, torch.zeros(3))
        assert orthonormality_error(V) <= 10
        assert result.info.error == 0


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_semidefinite_is_an_error(n, dtype):
    A = hermitian(np.r_[np.ones(n // 2), -np.ones(n - n // 2)], dtype)
    with pytest.raises(torch.linalg.LinAlgError, match="nystrom: A must be positive semidefinite"):
        la.nystrom(A, 8, seed=0)
    # Rounding below zero is none.
    tiny = 10 * unit_roundoff(A)
    la.nystrom(hermitian(np.r_[np.ones(n // 2), -tiny * np.ones(n - n // 2)], dtype), 8, seed=0)


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize("routine", [la.nystrom, la.randomized_eigh])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_hermitian_is_an_error(n, routine, dtype):
    A = hermitian(0.9 ** np.arange(n), dtype)
    A = A / torch.linalg.matrix_norm(A)
    skew = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(0)).triu()
    skew = skew / torch.linalg.matrix_norm(skew)
    # 100·√n·u and more is seen; a hundredth of that is rounding.
    seen = 1000 * math.sqrt(n) * unit_roundoff(A)
    with pytest.raises(torch.linalg.LinAlgError, match="A must be Hermitian"):
        routine(A + seen * skew, 3, seed=0)
    routine(A + seen / 1000 * skew, 3, seed=0)


# ---- randomized_eigh ----


@given(
    size=st.integers(1, 80),
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    power_iters=st.sampled_from(["auto", 0, 2]),
    seed=seeds,
)
def test_eigh_of_any_hermitian_matrix(size, data, dtype, power_iters, seed):
    values = data.draw(spectra(size)) * np.asarray(
        data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=size, max_size=size))
    )
    A = hermitian(values, dtype)
    rank = data.draw(st.integers(1, size))
    result = la.randomized_eigh(A, rank, oversample=4, power_iters=power_iters, seed=seed)
    eigenvalues, V = result
    assert orthonormality_error(V) <= 10
    assert (eigenvalues.abs().diff() <= 0).all()
    assert residual(A, result) <= 3 * result.info.error + rounding(A)
    # Weyl: an eigenvalue within the residual of every Ritz value, and the residual is what it says.
    truth = scipy.linalg.eigvalsh(exact(A))
    gap = exact(A) @ exact(V) - exact(V) * exact(eigenvalues)
    assert (np.linalg.norm(gap, axis=0) <= exact(result.info.residuals) + rounding(A)).all()
    for value, allowed in zip(exact(eigenvalues), exact(result.info.residuals), strict=True):
        assert np.abs(truth - value).min() <= allowed + rounding(A)
    if power_iters == "auto":
        assert result.info.converged
        best = np.abs(by_magnitude(truth))
        np.testing.assert_allclose(np.abs(exact(eigenvalues)), best[:rank], atol=rounding(A))
        assert residual(A, result) <= np.linalg.norm(best[rank:]) + rounding(A)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_of_opposite_sign(dtype):
    pairs = np.ravel([[value, -value] for value in 0.8 ** np.arange(150.0)])
    A = hermitian(pairs, dtype)
    values, V = result = la.randomized_eigh(A, 10, seed=0)
    assert result.info.method == "block Lanczos"
    # Residuals of 1e-10 or 40·√20·u; values are off by less.
    target = max(1e-10, 40 * math.sqrt(20) * unit_roundoff(A))
    np.testing.assert_allclose(np.abs(exact(values)), np.abs(pairs[:10]), atol=2 * target)
    assert abs(float(values.sum())) <= 20 * target  # as many of each sign
    gap = exact(A) @ exact(V) - exact(V) * exact(values)
    assert np.linalg.norm(gap, axis=0).max() <= 2 * target
    # Half of a pair is as good as the other half.
    assert abs(abs(la.randomized_eigh(A, 9, seed=0).eigenvalues[8]) - 0.8**4) <= 2 * target


@pytest.mark.parametrize("multiplicity", [3, 12, 40])
def test_multiple_eigenvalues(multiplicity):
    values = np.r_[2 * np.ones(multiplicity), np.linspace(1, 0, 300 - multiplicity)]
    A = hermitian(values)
    result = la.randomized_eigh(A, 12, seed=0)
    np.testing.assert_allclose(exact(result.eigenvalues), values[:12], atol=1e-9)
    identity = la.randomized_eigh(torch.eye(300), 12, seed=0)
    np.testing.assert_allclose(identity.eigenvalues, np.ones(12), atol=40 * 2.0**-24)
    assert identity.info.error_estimate == pytest.approx(math.sqrt(288), rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_beside_which_the_space_is_invariant(dtype):
    # Every block after the first is rounding; a completion that is the same every time would be
    # in the space already, and its eigenvalue would grow with every block.
    A = torch.ones(300, 300, dtype=dtype)
    for power_iters in ("auto", 8):
        result = la.randomized_eigh(A, 3, power_iters=power_iters, seed=0)
        np.testing.assert_allclose(exact(result.eigenvalues), [300, 0, 0], atol=rounding(A))
        assert orthonormality_error(result.eigenvectors) <= 10
    # The shift lowers the eigenvalue by n/l·ν; ν = √l·u·‖Y‖ and ‖Y‖ = √(l/n)·‖A‖: √n·u of it.
    assert float(la.nystrom(A, 3, seed=0).eigenvalues[0]) == pytest.approx(
        300, rel=3 * math.sqrt(300) * unit_roundoff(A)
    )


def test_accuracy_costs_what_it_says():
    A = hermitian(np.linspace(1, 0, 400) ** 4)
    truth = by_magnitude(scipy.linalg.eigvalsh(exact(A)))[:6]
    errors = []
    for power_iters in (0, 2, 6):
        result = la.randomized_eigh(A, 6, power_iters=power_iters, seed=0)
        assert result.info.passes == 2 + power_iters
        errors.append(np.abs(exact(result.eigenvalues) - truth).max())
    # Krylov spaces contain those of less depth; without iterations there is no accuracy here.
    assert errors[2] < errors[1] < errors[0]
    assert errors[0] > 0.05
    assert np.abs(exact(la.randomized_eigh(A, 6, seed=0).eigenvalues) - truth).max() <= 1e-10


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_eigh_at_the_ends_of_the_range(scale):
    A = hermitian(0.5 ** np.arange(100.0))
    one, two = (la.randomized_eigh(B, 5, power_iters=2, seed=0) for B in (A, A * scale))
    np.testing.assert_allclose(two.eigenvalues / scale, one.eigenvalues, rtol=1e-9)


# ---- both ----


def kinds(A):
    T = torch.from_numpy(A)
    yield "torch", T
    yield "transposed", T.mT.contiguous().mT
    yield "torch CSR", T.to_sparse_csr()
    yield "SciPy", scipy.sparse.csc_array(A)
    yield "operator", la.LinearOperator(A.shape, lambda X: T @ X, lambda Y: T.mH @ Y, dtype=T.dtype)
    yield "SciPy operator", scipy.sparse.linalg.aslinearoperator(A)


@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@pytest.mark.parametrize("routine", [la.nystrom, la.randomized_eigh])
def test_every_kind_gives_the_pairs_of_the_dense_matrix(routine, dtype):
    B = scipy.sparse.random(120, 30, density=0.2, random_state=0).toarray().astype(dtype)
    if dtype == np.complex128:
        B *= np.exp(1j * np.arange(120))[:, None]
    A = B @ B.conj().T
    A = (A + A.conj().T) / 2
    expected = routine(A, 4, seed=3)
    assert isinstance(expected.eigenvalues, np.ndarray)
    for name, given_as in kinds(A):
        result = routine(given_as, 4, seed=3)
        torch_in = name.startswith(("torch", "trans")) or name == "operator"
        assert isinstance(result.eigenvalues, torch.Tensor if torch_in else np.ndarray), name
        # The same draws; sums in another order.
        np.testing.assert_allclose(
            np.asarray(result.eigenvalues),
            expected.eigenvalues,
            atol=20 * rounding(torch.from_numpy(A)),
            err_msg=name,
        )
    half = routine(torch.from_numpy(A.real.copy()).half(), 4, seed=3, out="numpy")
    assert half.eigenvalues.dtype == np.float16


@pytest.mark.parametrize("routine", [la.nystrom, la.randomized_eigh])
def test_results_pickle_and_repeat(routine):
    A = hermitian(0.5 ** np.arange(90.0))
    result, again = routine(A, 3, seed=5), routine(A, 3, seed=5)
    copied = pickle.loads(pickle.dumps(result))
    assert torch.equal(copied.eigenvectors, result.eigenvectors)
    assert copied.info.error == result.info.error
    assert torch.equal(again.eigenvectors, result.eigenvectors)
    largest = result.eigenvectors.gather(0, result.eigenvectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize("routine", [la.nystrom, la.randomized_eigh])
@pytest.mark.parametrize(
    ("A", "rank", "options", "error", "words"),
    [
        (torch.ones(5, 4), 1, {}, ValueError, r"A must be square, got shape \(5, 4\)"),
        (torch.ones(2, 4, 4), 1, {}, ValueError, "A must be one matrix and no batch"),
        (torch.eye(4), 5, {}, ValueError, "rank must be between 1 and n = 4, got 5"),
        (torch.eye(4), 0, {}, ValueError, "rank must be between 1 and n = 4, got 0"),
        (torch.eye(4), 1.5, {}, TypeError, "rank must be an integer"),
        (torch.eye(4), 1, {"oversample": -1}, ValueError, "oversample must be non-negative"),
        (torch.eye(4), 1, {"out": "jax"}, ValueError, "out must be"),
        (torch.diag(torch.tensor([1.0, math.nan])), 1, {}, ValueError, r"nan at index \(1, 1\)"),
        (torch.eye(99) / 0, 1, {}, ValueError, r"A must be finite, got inf at index \(0, 0\)"),
    ],
)
def test_bad_input(routine, A, rank, options, error, words):
    with pytest.raises(error, match=f"{routine.__name__}: .*{words}"):
        routine(A, rank, **options)


def test_bad_power_iters():
    with pytest.raises(ValueError, match="power_iters must be"):
        la.randomized_eigh(torch.eye(4), 1, power_iters=-1)
