"""Matrix sensing: recovery of known matrices, and the rates that theory states."""

import itertools
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr.linalg.sensing import _exact_step, _preconditioned
from references import exact, unit_roundoff

METHODS = ["scaled_gd", "gd"]
PARAMETERIZATIONS = ["asymmetric", "symmetric"]


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


class Problem:
    """Gaussian measurements of a matrix with singular values between 1 and 1/κ, and its size."""

    def __init__(self, m=14, n=11, rank=2, p=200, kappa=1.0, *, symmetric=False, seed=0):
        U = torch.linalg.qr(draw(m, rank, seed=seed))[0]
        V = U if symmetric else torch.linalg.qr(draw(n, rank, seed=seed + 1))[0]
        S = torch.logspace(0, -math.log10(kappa), rank, dtype=torch.float64)
        self.X = (U * S) @ V.mT
        self.shape = tuple(self.X.shape)
        self.A = draw(p, self.X.numel(), seed=seed + 2) / math.sqrt(p)
        self.y = self.A @ self.X.ravel()

    def solve(self, rank, **options):
        return la.matrix_sensing(self.A, self.y, self.shape, rank, seed=0, **options)

    def error(self, result):
        """‖UVᵀ − X‖_F / ‖X‖_F."""
        U, V = (exact(factor) for factor in result)
        X = exact(self.X)
        return float(np.linalg.norm(U @ V.T - X) / np.linalg.norm(X))


def least(A):
    """The smallest singular value of the operator: ‖E‖_F ≤ ‖A(E)‖/σ for any E, where p ≥ m·n."""
    return float(torch.linalg.svdvals(A)[-1])


def swallowed(info, u):
    """What is left of ‖X‖ when factors swallow the steps of plain descent, 2u of their length.

    An error that falls by ρ of itself in a step is no larger than the step, divided by ρ; there are
    two factors. ρ is that of the last three quarters of the decades.
    """
    if info.method == "scaled_gd":
        return 0.0
    start = next(t for t, value in enumerate(info.history) if value < info.relative_residual**0.25)
    stop = next(t for t, value in enumerate(info.history) if value < info.relative_residual**0.75)
    return 2 * 2 * u / -math.expm1(slope(info.history, start, stop))


def slope(values, start, stop):
    """Of log(values) between two iterations."""
    return math.log(values[stop] / values[start]) / (stop - start)


def never_rises(history):
    return all(later <= earlier for earlier, later in itertools.pairwise(history))


def sparse_problem():
    problem = Problem()
    problem.A = problem.A * (draw(*problem.A.shape, seed=9) > 0.5)
    problem.y = problem.A @ problem.X.ravel()
    return problem


def stack(A):
    return A.reshape(-1, 14, 11)


KINDS = {
    "stack": stack,
    "matrix": lambda A: A,
    "stack, NumPy": lambda A: stack(A).numpy(),
    "matrix, NumPy": lambda A: A.numpy(),
    "strided": lambda A: A.mT.contiguous().mT,
    "COO": lambda A: A.to_sparse(),
    "CSR": lambda A: A.to_sparse_csr(),
    "CSC": lambda A: A.to_sparse_csc(),
    "SciPy CSR": lambda A: scipy.sparse.csr_array(A.numpy()),
    "SciPy COO": lambda A: scipy.sparse.coo_matrix(A.numpy()),
    "operator": lambda A: la.LinearOperator(
        A.shape, lambda X: A @ X, lambda Y: A.mT @ Y, dtype=A.dtype
    ),
    "SciPy operator": lambda A: scipy.sparse.linalg.aslinearoperator(A.numpy()),
}


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC) tensor support is in beta")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_recovers_through_every_kind_of_operator(kind, method):
    problem = sparse_problem()
    numpy = "NumPy" in kind or "SciPy" in kind
    y = problem.y.numpy() if numpy else problem.y
    result = la.matrix_sensing(KINDS[kind](problem.A), y, problem.shape, 2, method=method, seed=0)
    assert all(isinstance(part, np.ndarray if numpy else torch.Tensor) for part in result)
    assert result.U.shape == (14, 2)
    assert result.V.shape == (11, 2)
    assert result.info.converged
    # The residual's rounding, 16 u, over σ of the operator on matrices of rank 4, 0.16 at least.
    assert problem.error(result) < 100 * 2.0**-53


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_both_parameterizations(method, parameterization):
    problem = Problem(12, 12, 2, 250, 3.0, symmetric=True)
    result = problem.solve(2, method=method, parameterization=parameterization)
    assert (result.U is result.V) == (parameterization == "symmetric")
    assert result.info.converged
    # p > m·n: nothing but the smallest singular value of the operator stands between.
    allowed = 16 * 2.0**-53 * float(problem.y.norm() / problem.X.norm()) / least(problem.A)
    allowed += swallowed(result.info, 2.0**-53)
    # u and a half for the product of the factors beside it.
    assert problem.error(result) <= allowed + 4 * 2.0**-53


@settings(max_examples=15)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from(METHODS),
    st.integers(0, 10**6),
)
def test_properties(m, n, rank, method, seed):
    """Of any shape, with as many measurements as unknowns and a half more."""
    rank = min(rank, m, n)
    problem = Problem(m, n, rank, m * n * 3 // 2 + 10, seed=seed)
    copies = problem.A.clone(), problem.y.clone()
    result = problem.solve(rank, method=method, tol=1e-8)
    info = result.info
    assert torch.equal(problem.A, copies[0])
    assert torch.equal(problem.y, copies[1])
    assert len(info.history) == info.iterations + 1
    assert info.history[-1] == info.relative_residual <= 1e-8
    measured = problem.A @ (result.U @ result.V.mT).ravel()
    residual = float((measured - problem.y).norm() / problem.y.norm())
    assert abs(residual - info.relative_residual) <= 1e-14
    assert method == "gd" or never_rises(info.history)
    again = problem.solve(rank, method=method, tol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(result, again, strict=True))
    assert again.info == info


def test_a_residual_of_which_only_rounding_is_left_is_still_one_that_fell():
    """Also at the very end, and with columns too many."""
    for kappa, rank in ((1, 2), (1e3, 2), (1e3, 4)):
        result = Problem(rank=2, kappa=kappa).solve(rank)
        assert result.info.converged
        assert never_rises(result.info.history)


def test_the_condition_number_hardly_matters_to_scaled_gradients():
    counts = [
        Problem(rank=3, p=300, kappa=kappa).solve(3, tol=1e-9).info.iterations
        for kappa in (1.0, 1e3)
    ]
    assert counts[1] <= 1.5 * counts[0]


def test_it_does_to_plain_gradients():
    """The control: at κ = 1000 ten times the iterations of κ = 1 have not begun on the last σ."""
    easy = Problem(rank=3, p=300).solve(3, method="gd", tol=1e-9).info.iterations
    hard = Problem(rank=3, p=300, kappa=1e3)
    with pytest.warns(la.ConvergenceWarning):
        result = hard.solve(3, method="gd", tol=1e-9, max_iters=10 * easy)
    # The last singular value is 1e-3 of ‖X‖.
    assert hard.error(result) > 1e-4


class TestRates:
    """Of plain gradient descent; `Problem` has rank 2."""

    def run(self, rank, most, *, symmetric=False, **options):
        problem = Problem(12, 12, 2, 600, symmetric=symmetric)
        parameterization = PARAMETERIZATIONS[symmetric]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", la.ConvergenceWarning)
            result = problem.solve(
                rank, method="gd", parameterization=parameterization, max_iters=most, **options
            )
        assert result.info.step == 0.5  # never halved
        return result.info

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_right_rank_is_linear(self, symmetric):
        history = self.run(2, 160, symmetric=symmetric).history
        first, second = slope(history, 60, 110), slope(history, 110, 160)
        assert first < -0.1
        assert second == pytest.approx(first, rel=0.2)

    def test_symmetric_beyond_the_rank_is_sublinear(self):
        history = self.run(4, 3200, symmetric=True).history
        # Of log(residual) over log(T): −1 in the limit, for the residual and not its square, and
        # approached from above.
        orders = [math.log2(history[2 * T] / history[T]) for T in (400, 800, 1600)]
        assert all(-1.02 < order < -0.5 for order in orders)
        assert orders == sorted(orders, reverse=True)

    def test_asymmetric_beyond_the_rank_is_linear_at_a_rate_of_the_squared_scale(self):
        rates = []
        for scale, start, stop in ((0.4, 500, 1500), (0.2, 1500, 3500)):
            history = self.run(4, stop, init_scale=scale).history
            middle = (start + stop) // 2
            rates.append(slope(history, start, stop))
            # Linear: both halves alike.
            assert slope(history, start, middle) == pytest.approx(rates[-1], rel=0.1)
        assert rates[0] / rates[1] == pytest.approx(4, rel=0.1)

    def test_rebalancing_makes_the_rate_independent_of_the_scale(self):
        rates = []
        for scale in (0.4, 0.1, 0.01):
            info = self.run(4, 200, init_scale=scale, rebalance=True)
            assert 0 < info.rebalanced < 50
            # As soon as it may be.
            assert info.history[info.rebalanced - 1] <= 0.1 < info.history[info.rebalanced - 2]
            rates.append(slope(info.history, 100, 180))
        right = slope(self.run(2, 200).history, 100, 180)
        assert rates == pytest.approx([right] * 3, rel=0.25)


def test_rank_above_the_truth():
    problem = Problem(rank=2, p=300)
    result = problem.solve(5)
    assert result.info.converged
    allowed = 16 * 2.0**-53 * float(problem.y.norm() / problem.X.norm()) / least(problem.A)
    assert problem.error(result) <= allowed + 4 * 2.0**-53


@pytest.mark.parametrize("method", METHODS)
def test_random_start(method):
    problem = Problem(p=300)
    results = [problem.solve(2, method=method, init_scale=scale) for scale in (1e-6, 0.5)]
    assert results[0].info.history[0] == pytest.approx(1, abs=1e-9)
    assert results[0].info.history[0] > results[1].info.history[0] or method == "gd"
    for result in results:
        assert result.info.converged
        assert problem.error(result) < 100 * 2.0**-53
    other = la.matrix_sensing(
        problem.A, problem.y, problem.shape, 2, method=method, init_scale=0.5, seed=1
    )
    assert not torch.equal(other.U, results[1].U)


def test_random_factors_are_independent_and_of_the_size_that_is_asked_for():
    problem = Problem(40, 40, 3, 800)
    problem.y *= 9  # of which no power of two leaves 1
    with pytest.warns(la.ConvergenceWarning):
        U, V = problem.solve(3, method="gd", init_scale=0.2, max_iters=0)
    # Gaussian columns: 1 ± √(3/40), and the estimate of ‖X‖₂ = 9.
    for factor, size in ((U, 0.2), (V, 0.2 / 3)):
        values = torch.linalg.svdvals(factor) / (size * 3)
        assert 0.6 < float(values[-1]) < float(values[0]) < 1.4
    # The cosine of independent ones is 1/√120 on average.
    assert abs(float((U * V).sum())) < 3 / math.sqrt(120) * float(U.norm() * V.norm())


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_steps_that_are_too_long_are_halved_for_good(parameterization):
    """The factors are ten times as long as the constant step is made for."""
    problem = Problem(12, 12, symmetric=parameterization == "symmetric")
    with pytest.warns(la.ConvergenceWarning):
        info = problem.solve(
            2, method="gd", init_scale=10, parameterization=parameterization, max_iters=50
        ).info
    assert never_rises(info.history)
    assert info.history[-1] < 0.1 * info.history[0]
    # 1/2, three to five times halved: the curvature is up to 100 times that of the constant step.
    assert info.step in (2.0**-4, 2.0**-5, 2.0**-6)


def test_noise_far_above_the_signal():
    """Nothing but the rounding of Aᵀ(r) is left of the gradient long before u of the factors."""
    problem = Problem(6, 5, 1, 80)
    noise = draw(80, seed=5)
    Q = torch.linalg.qr(problem.A)[0]
    for _ in range(2):
        noise -= Q @ (Q.mT @ noise)
    problem.y += 1e6 * problem.y.norm() / noise.norm() * noise
    result = problem.solve(1, method="gd")
    assert result.info.converged
    # u·‖A‖·‖r‖ of it is rounding, the curvature σ², and the condition number of A 5.
    assert problem.error(result) < 5**2 * 10 * 2.0**-53 * 1e6


def test_the_nearest_positive_semidefinite_matrix():
    """Of indefinite data: columns that the start gives to negative eigenvalues have to vanish."""
    A = torch.eye(36, dtype=torch.float64)
    for seed in range(3):
        B = draw(6, 6, seed=seed)
        B = B + B.mT
        values, vectors = torch.linalg.eigh(B)
        nearest = (vectors * values.clamp(min=0)) @ vectors.mT
        U, V = la.matrix_sensing(A, B.ravel(), (6, 6), 6, parameterization="symmetric", seed=0)
        # Where the squared residual is flat to u, the error is √u of ‖y‖.
        assert float((U @ V.mT - nearest).norm()) <= 64 * math.sqrt(2.0**-53) * float(B.norm())


@pytest.mark.parametrize("negative", [1.0, 100.0, 1e6])
def test_a_small_positive_eigenvalue_beside_a_large_negative_one(negative):
    A = torch.eye(4, dtype=torch.float64)
    y = torch.tensor([1, 0, 0, -negative], dtype=torch.float64)
    options = {"parameterization": "symmetric", "seed": 0}
    U, V = la.matrix_sensing(A, y, (2, 2), 2, **options)
    # Of y the unknown part, which the squared residual shows to √u.
    nearest = torch.diag(torch.tensor([1.0, 0], dtype=torch.float64))
    assert float((U @ V.mT - nearest).norm()) <= 8 * math.sqrt(2.0**-53) * float(y.norm())
    # For plain descent the constant step is too long by that much: it says that it has not ended.
    with pytest.warns(la.ConvergenceWarning):
        info = la.matrix_sensing(A, y, (2, 2), 2, method="gd", max_iters=20, **options).info
    assert never_rises(info.history)
    assert info.step * negative < 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_nothing_of_the_data_is_in_the_range(method, parameterization):
    """Aᵀ(y) is rounding, and the fit of it has either sign."""
    options = {"method": method, "parameterization": parameterization}
    for seed in range(6):
        A, y = draw(30, 16, seed=seed), draw(30, seed=seed + 100)
        Q = torch.linalg.qr(A)[0]
        for _ in range(2):
            y -= Q @ (Q.mT @ y)
        U, V = la.matrix_sensing(A, y, (4, 4), 4, seed=0, **options)
        # Aᵀ(y) is rounded by some u·‖A‖·‖y‖, which σ² of A divides.
        allowed = 8 * 2.0**-53 * float(torch.linalg.svdvals(A)[0] * y.norm()) / least(A) ** 2
        assert float((U @ V.mT).norm()) <= allowed


def test_preconditioner_of_dependent_columns():
    V = torch.cat([draw(9, 2), torch.zeros(9, 1)], 1) @ draw(3, 3, seed=1)
    found = _preconditioned(V, 0.0)
    # Of v/(v² + ε), with ε = 2·k·u·‖V‖², the most is 1/(2√ε).
    size = float(torch.linalg.matrix_norm(V, 2))
    most = 1 / (2 * math.sqrt(2 * 3 * 2.0**-53) * size)
    assert float(torch.linalg.matrix_norm(found, 2)) <= 1.01 * most
    # In what V spans it is the pseudo-inverse, up to ε over the square of the value, and rounding.
    least_value = float(torch.linalg.svdvals(V)[1])
    allowed = 20 * 3 * 2.0**-53 * (size / least_value) ** 2 * size
    assert float((V.mT @ found @ V.mT - V.mT).norm()) <= allowed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_noise(method, parameterization):
    symmetric = parameterization == "symmetric"
    problem = Problem(12, 12, symmetric=symmetric)
    noise = draw(len(problem.y), seed=5)
    noise *= 0.1 * problem.y.norm() / noise.norm()
    clean, problem.y = problem.y, problem.y + noise
    result = problem.solve(2, method=method, parameterization=parameterization)
    assert result.info.converged
    # The misfit of the truth is that of the noise; the best fit has a smaller one.
    assert result.info.relative_residual <= float(noise.norm() / problem.y.norm())
    # Stationary: no first-order change of the factors lowers the residual. The line search sees
    # changes of the square of u, gradients to its root; plain descent goes on until the gradient is
    # rounding, or 2u of the factors over the step.
    r = problem.A @ (result.U @ result.V.mT).ravel() - problem.y
    G = (problem.A.mT @ r).reshape(problem.shape)
    G = (G + G.mT) / 2 if symmetric else G
    scale = float(problem.A.norm()) * float(r.norm()) * float(result.V.norm())
    allowed = 4 * math.sqrt(2.0**-53) if method == "scaled_gd" else 32 * 2.0**-53
    assert float((G @ result.V).norm()) <= allowed * scale
    if method == "scaled_gd":
        # Steps that gain rounding alone are none: 8 u less that of the two norms.
        history = result.info.history
        assert all(b <= a * (1 - 6 * 2.0**-53) for a, b in itertools.pairwise(history))
    # 44 degrees of freedom of 200 see the noise: √(44/200)·0.1 on average, for an isotropic A.
    assert problem.error(result) < 0.1
    with pytest.warns(la.ConvergenceWarning, match="more than tol = 1e-06"):
        assert not problem.solve(2, method=method, tol=1e-6).info.converged
    assert float((problem.y - clean - noise).norm()) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_step_is_in_double_precision(dtype):
    r, a, b = draw(3, 50).to(dtype)
    a = -a * torch.sign(r @ a)
    assert _exact_step(r, a, b) == _exact_step(r.double(), a.double(), b.double())


def test_symmetric_start_fits_best_of_its_multiples():
    problem = Problem(12, 12, kappa=5.0, symmetric=True)
    D = (problem.A.mT @ problem.y).reshape(12, 12)
    S, Q = torch.linalg.eigh((D + D.mT) / 2)
    start = problem.A @ ((Q[:, -2:] * S[-2:]) @ Q[:, -2:].mT).ravel()
    best = problem.y - start * (start @ problem.y) / (start @ start)
    with pytest.warns(la.ConvergenceWarning):
        result = problem.solve(2, parameterization="symmetric", max_iters=0)
    assert result.info.history == pytest.approx([float(best.norm() / problem.y.norm())], rel=1e-12)


def test_spectral_start_fits_best_of_its_multiples():
    problem = Problem()
    U, S, Vh = torch.linalg.svd((problem.A.mT @ problem.y).reshape(problem.shape))
    start = problem.A @ (U[:, :2] * S[:2] @ Vh[:2]).ravel()
    best = problem.y - start * (start @ problem.y) / (start @ start)
    with pytest.warns(la.ConvergenceWarning):
        result = problem.solve(2, max_iters=0)
    assert result.info.history == pytest.approx([float(best.norm() / problem.y.norm())], rel=1e-12)


def test_columns_that_the_start_does_not_see_still_grow():
    """Aᵀ(y) has rank 1 and lies along the first axis; nothing of rank 1 there fits."""
    A = torch.zeros(2, 2, 2, dtype=torch.float64)
    A[0, 0, 0] = A[1, 0, 0] = 1
    A[1, 1, 1] = -1
    y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for parameterization in PARAMETERIZATIONS:
        result = la.matrix_sensing(A, y, (2, 2), 2, parameterization=parameterization, seed=0)
        X = result.U @ result.V.mT
        # 16 u is the residual that counts as rounding; σ of the operator is 0.6.
        assert float((X.diagonal() - 1).abs().max()) < 32 * 2.0**-53


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(-3, 3), st.floats(-9, 3))
def test_exact_step_is_the_first_minimum(seed, p, log_a, log_b):
    r, a, b = draw(3, p, seed=seed)
    a, b = a * 10**log_a, b * 10**log_b
    a = -a * torch.sign(r @ a)
    step = _exact_step(r, a, b)

    def derivative(eta):
        """And the sum of the sizes of its terms."""
        terms = [r @ a, eta * (a @ a), eta * 2 * (r @ b), 3 * eta**2 * (a @ b)]
        terms.append(2 * eta**3 * (b @ b))
        return float(sum(terms)), float(sum(abs(term) for term in terms))

    value, size = derivative(step)
    # The zero of a cubic by the eigenvalues of its companion, to some u of its largest terms; near
    # a double zero √u.
    assert abs(value) <= 1e-10 * size
    assert all(derivative(step * part)[0] < 0 for part in (0.01, 0.1, 0.3, 0.6, 0.9))


def test_too_few_measurements_fit_and_do_not_recover():
    problem = Problem(p=25)  # of 46 degrees of freedom
    result = problem.solve(2)
    assert result.info.converged
    assert result.info.relative_residual < 1e-13
    assert problem.error(result) > 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("which", ["y", "operator", "rows"])
def test_zeros(method, parameterization, which):
    A, y = draw(30, 16), draw(30, seed=1)
    if which == "y":
        y = torch.zeros_like(y)
    elif which == "operator":
        A = torch.zeros_like(A)
    else:
        A, y = A[:0], y[:0]
    result = la.matrix_sensing(
        A, y, (4, 4), 2, method=method, parameterization=parameterization, seed=0
    )
    assert not result.U.any()
    assert not result.V.any()
    assert result.info.relative_residual == (1.0 if which == "operator" else 0.0)
    assert result.info.converged
    assert result.info.iterations == 0
    assert result.info.step == 0


def test_nothing_positive_semidefinite_fits():
    """−X: the best of them is 0, where a positive start would only shrink."""
    A = torch.eye(16, dtype=torch.float64)
    y = -torch.eye(4, dtype=torch.float64).ravel()
    result = la.matrix_sensing(A, y, (4, 4), 2, parameterization="symmetric", seed=0)
    assert not result.U.any()
    assert result.info.relative_residual == 1.0
    with pytest.warns(la.ConvergenceWarning):
        la.matrix_sensing(A, y, (4, 4), 2, parameterization="symmetric", seed=0, tol=0.5)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_thin_matrices_are_least_squares(shape, method):
    A, y = draw(40, math.prod(shape)), draw(40, seed=1)
    U, V = la.matrix_sensing(A, y, shape, 1, method=method, seed=0)
    best = torch.linalg.lstsq(A, y[:, None]).solution[:, 0]
    # Where the squared residual is flat to u, the error is √u of ‖y‖/σ.
    allowed = 8 * math.sqrt(2.0**-53) * float(y.norm()) / least(A)
    assert float(((U @ V.mT).ravel() - best).norm()) <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_lower_precision(dtype, method):
    problem = Problem()
    A = problem.A.to(dtype)
    y = (A.double() @ problem.X.ravel()).to(dtype)
    result = la.matrix_sensing(A, y, problem.shape, 2, method=method, seed=0)
    assert result.U.dtype == result.V.dtype == dtype
    # y and the factors are rounded to the dtype; computed in float32 at the least.
    allowed = 32 * unit_roundoff(A) + swallowed(result.info, unit_roundoff(A.float()))
    assert problem.error(result) < allowed


def test_measurements_are_computed_in_the_dtype_of_the_operator():
    problem = Problem()
    A = problem.A.float()
    one, other = (
        la.matrix_sensing(A, y, problem.shape, 2, seed=0) for y in (problem.y, problem.y.float())
    )
    assert torch.equal(one.U, other.U)
    assert one.info == other.info


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "exponents"), [(torch.float64, (-100, 100, -200, 200)), (torch.float32, (-30, 30))]
)
def test_scale(method, dtype, exponents):
    """Powers of four, so that nothing but the scale changes."""
    problem = Problem()
    A, y = problem.A.to(dtype), problem.y.to(dtype)

    def solve(A, y):
        options = {"method": method, "tol": 1e-3}
        return la.matrix_sensing(A, y, problem.shape, 2, seed=0, **options)

    plain = solve(A, y)
    for exponent in exponents:
        unit = 2.0 ** (2 * round(exponent * math.log2(10) / 2))
        for result, factor in (
            (solve(A * unit, y), 1 / unit),
            (solve(A, y * unit), unit),
            (solve(A * unit, y * unit), 1),
        ):
            assert result.info.iterations == plain.info.iterations
            # 1e-30 times a small entry is subnormal in float32, which rounds it; nothing else does.
            allowed = 0 if dtype == torch.float64 else 2.0**-18
            for a, b in zip(result, plain, strict=True):
                assert float((a / math.sqrt(factor) - b).norm()) <= allowed * float(b.norm())


def test_subnormal_measurements():
    problem = Problem()
    result = la.matrix_sensing(problem.A, problem.y * 1e-310, problem.shape, 2, seed=0)
    # 1e-310 has 14 bits fewer than a normal number.
    assert problem.error((result.U * 1e155, result.V * 1e155)) < 2.0**-34


def test_warning_names_the_limit():
    problem = Problem()
    with pytest.warns(
        la.ConvergenceWarning, match="after 3 = max_iters iterations .* still falls"
    ) as caught:
        result = la.matrix_sensing(problem.A, problem.y, problem.shape, 2, max_iters=3, seed=0)
    assert caught[0].filename == __file__
    assert not result.info.converged
    assert result.info.iterations == 3
    with pytest.warns(la.ConvergenceWarning, match="more than tol = 1e-09"):
        problem.solve(2, max_iters=3, tol=1e-9)
    with pytest.warns(la.ConvergenceWarning):
        assert problem.solve(2, max_iters=0).info.iterations == 0


def test_met_at_the_last_iteration():
    problem = Problem()
    info = problem.solve(2, tol=1e-6).info
    needed = info.iterations
    # A residual of tol meets it.
    assert problem.solve(2, tol=info.relative_residual).info == info
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert problem.solve(2, tol=1e-6, max_iters=needed).info.converged


def test_passes():
    """Of an operator that counts."""
    problem = Problem()
    count = 0

    def counted(matrix):
        def product(X):
            nonlocal count
            count += 1
            return matrix @ X

        return product

    A = la.LinearOperator(
        problem.A.shape, counted(problem.A), counted(problem.A.mT), dtype=problem.A.dtype
    )
    info = la.matrix_sensing(A, problem.y, problem.shape, 2, tol=1e-6, seed=0).info
    assert info.passes == count == 4 + 3 * info.iterations
    # In units of a step of 1 for an isotropic operator; that of a Gaussian one is of this size.
    assert 0.25 < info.step < 4
    count = 0
    info = la.matrix_sensing(A, problem.y, problem.shape, 2, tol=1e-6, method="gd", seed=0).info
    assert info.passes == count


def test_result_unpacks_and_pickles():
    result = Problem().solve(2)
    U, V = result
    assert U is result.U
    assert V is result.V
    assert pickle.loads(pickle.dumps(result)).info == result.info


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite(bad):
    A, y = draw(30, 16), draw(30, seed=1)
    broken = A.clone()
    broken[7, 3] = bad
    named = f"must be finite, got {bad} at index "
    first = A.clone()
    first[7, 0] = bad
    for operator, index in (
        (broken, "(7, 3)"),
        (scipy.sparse.csr_array(first.numpy()), "(7, 0)"),
        (broken.reshape(30, 4, 4), "(7, 0, 3)"),
        (scipy.sparse.csr_array(broken.numpy()), "(7, 3)"),
    ):
        measured = y if isinstance(operator, torch.Tensor) else y.numpy()
        message = re.escape(f"matrix_sensing: operator {named}{index}")
        with pytest.raises(ValueError, match=message):
            la.matrix_sensing(operator, measured, (4, 4), 1)
    y[5] = bad
    with pytest.raises(ValueError, match=re.escape(f"matrix_sensing: y {named}(5,)")):
        la.matrix_sensing(A, y, (4, 4), 1)


A, Y = draw(30, 20), draw(30, seed=1)


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (ValueError, "method must be one of", (A, Y, (4, 5), 1), {"method": "als"}),
        (
            ValueError,
            "parameterization must be one of",
            (A, Y, (4, 5), 1),
            {"parameterization": "psd"},
        ),
        (
            ValueError,
            r"shape must be square .* got \(4, 5\)",
            (A, Y, (4, 5), 1),
            {"parameterization": "symmetric"},
        ),
        (TypeError, r"shape must be a pair", (A, Y, 20, 1), {}),
        (TypeError, r"shape must be a pair", (A, Y, (4, 5, 1), 1), {}),
        (TypeError, r"shape must be an integer", (A, Y, (4, 5.0), 1), {}),
        (ValueError, r"shape must be at least 1, got 0", (A, Y, (0, 5), 1), {}),
        (ValueError, "rank must be at least 1, got 0", (A, Y, (4, 5), 0), {}),
        (ValueError, r"rank must be between 1 and min\(m, n\) = 4, got 5", (A, Y, (4, 5), 5), {}),
        (TypeError, "rank must be an integer", (A, Y, (4, 5), 1.5), {}),
        (ValueError, r"operator must have shape \(30, 4, 4\) or \(30, 16\)", (A, Y, (4, 4), 1), {}),
        (ValueError, r"\(29, 20\) .* got \(30, 20\)", (A, Y[1:], (4, 5), 1), {}),
        (ValueError, r"\(p, 4, 5\), got \(30, 5, 4\)", (A.reshape(30, 5, 4), Y, (4, 5), 1), {}),
        (ValueError, "2 or 3 dimensions", (A[0], Y[:1], (4, 5), 1), {}),
        (ValueError, "2 or 3 dimensions", (A[None, None], Y, (4, 5), 1), {}),
        (
            ValueError,
            r"y must have one dimension, got shape \(30, 1\)",
            (A, Y[:, None], (4, 5), 1),
            {},
        ),
        (TypeError, "both be of NumPy or both of torch", (A.numpy(), Y, (4, 5), 1), {}),
        (TypeError, "both be of NumPy or both of torch", (A, Y.numpy(), (4, 5), 1), {}),
        (TypeError, "operator must be real", (A.to(torch.complex128), Y, (4, 5), 1), {}),
        (TypeError, "y must be real", (A, Y.to(torch.complex128), (4, 5), 1), {}),
        (TypeError, "y must be a NumPy array", (A.numpy(), np.array(["a"] * 30), (4, 5), 1), {}),
        (ValueError, "tol must be between 0 and 1, got 0", (A, Y, (4, 5), 1), {"tol": 0}),
        (ValueError, "tol must be between 0 and 1, got nan", (A, Y, (4, 5), 1), {"tol": math.nan}),
        (TypeError, "tol must be a real number", (A, Y, (4, 5), 1), {"tol": "1"}),
        (ValueError, "init_scale must be positive", (A, Y, (4, 5), 1), {"init_scale": 0}),
        (ValueError, "init_scale must be positive", (A, Y, (4, 5), 1), {"init_scale": math.inf}),
        (ValueError, "max_iters must be at least 0", (A, Y, (4, 5), 1), {"max_iters": -1}),
        (ValueError, "rebalance takes method=", (A, Y, (4, 5), 1), {"rebalance": True}),
        (
            ValueError,
            "rebalance takes method=",
            (A[:, :16], Y, (4, 4), 1),
            {"rebalance": True, "method": "gd", "parameterization": "symmetric"},
        ),
        (TypeError, "seed must be", (A, Y, (4, 5), 1), {"seed": 1.5}),
    ],
)
def test_bad_arguments(error, message, arguments, options):
    with pytest.raises(error, match=f"^matrix_sensing: .*{message}"):
        la.matrix_sensing(*arguments, **options)
