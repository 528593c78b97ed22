"""Equality-constrained Newton systems against dense solutions, and what is said of them."""

import math
import pickle

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, operator, unit_roundoff
from strategies import dtypes, hermitian, seeds, with_spectrum


def kkt(H, A):
    """The matrix of the system, in float64."""
    H, A = exact(H), exact(A)
    return np.block([[H, A.T], [A, np.zeros((len(A), len(A)))]])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def system(n, m, values=None, dtype=torch.float64, seed=0):
    """H with the given eigenvalues (1 to 10 if none), a Gaussian A, f and c of a known solution."""
    values = np.linspace(1, 10, n) if values is None else values
    H, A = hermitian(values, dtype, seed), random(m, n, seed=seed + 1, dtype=dtype) / math.sqrt(n)
    right = kkt(H, A) @ exact(random(n + m, seed=seed + 2))
    right = torch.from_numpy(right).to(dtype)
    return H, A, right[:n], right[n:]


def default_tol(dtype):
    return unit_roundoff(torch.empty(0, dtype=dtype)) ** (2 / 3)


def residual(H, A, f, c, solution):
    """‖b − K z‖ / ‖b‖, in float64."""
    b = np.concatenate([exact(f), exact(c)])
    z = np.concatenate([exact(part) for part in solution])
    return float(np.linalg.norm(b - kkt(H, A) @ z) / np.linalg.norm(b))


def rounding(H, A, f, c, solution):
    """What the residual is rounded to: (n + m)·u·‖K‖·‖z‖ / ‖b‖."""
    z = np.concatenate([exact(part) for part in solution])
    b = np.concatenate([exact(f), exact(c)])
    size = float(np.linalg.norm(kkt(H, A)) * np.linalg.norm(z) / np.linalg.norm(b))
    return math.sqrt(len(z)) * unit_roundoff(H) * size


KINDS = st.sampled_from(["definite", "indefinite", "clustered", "zero"])


@given(
    n=st.integers(1, 90),
    share=st.floats(0, 1),
    kind=KINDS,
    dtype=dtypes,
    seed=seeds,
)
def test_any_system(n, share, kind, dtype, seed):
    values = {
        "definite": np.linspace(1, 10, n),
        "indefinite": np.linspace(1, 10, n) * (-1.0) ** np.arange(n),
        "clustered": np.where(np.arange(n) % 3 == 0, 100.0, 1.0),
        "zero": np.zeros(n),
    }[kind]
    m = n if kind == "zero" else int(share * n)
    H, A, f, c = system(n, m, values, dtype)
    K = kkt(H, A)
    condition = np.linalg.cond(K)
    tol = default_tol(dtype)
    solution = la.solve_kkt(H, A, f, c, seed=seed)
    assert solution.info.method != "eigenvalues"
    # For b = K z, ‖K‖·‖z‖/‖b‖ is cond(K) at most: u times that, with room for sums, is reached.
    if 100 * n * unit_roundoff(H) * condition < tol:
        assert solution.info.converged
    if solution.info.converged:
        slack = rounding(H, A, f, c, solution)
        assert residual(H, A, f, c, solution) <= tol + slack
        b = np.concatenate([exact(f), exact(c)])
        z = np.concatenate([exact(part) for part in solution])
        error = np.linalg.norm(z - np.linalg.solve(K, b))
        # ‖z − K⁻¹b‖ ≤ ‖K⁻¹‖·‖b − K z‖, and the reference has u·cond(K) of its own.
        inverse = np.linalg.norm(np.linalg.inv(K), 2)
        allowed = inverse * (tol + slack) * np.linalg.norm(b)
        assert error <= 1.01 * allowed + 100 * n * 2.0**-53 * condition * np.linalg.norm(z)


def test_the_residual_is_that_of_the_solution():
    H, A, f, c = system(300, 60)
    for tol in (1e-1, 1e-4, 1e-8):
        solution = la.solve_kkt(H, A, f, c, tol=tol, seed=0)
        assert solution.info.converged
        assert solution.info.residual <= tol
        assert solution.info.residual == pytest.approx(
            residual(H, A, f, c, solution), rel=1e-3, abs=rounding(H, A, f, c, solution)
        )
    # The negative control: less accuracy is less work, and is seen in the residual.
    rough = la.solve_kkt(H, A, f, c, tol=1e-1, seed=0)
    assert rough.info.residual > 1e-6
    assert rough.info.iterations < solution.info.iterations / 2


def test_iterations_grow_as_the_root_of_the_condition_number():
    n, tol = 1200, 1e-8
    for condition in (4, 16, 36):
        H, A, f, c = system(n, 20, np.linspace(1, condition, n))
        info = la.solve_kkt(operator(H), A, f, c, tol=tol, seed=0).info
        assert info.converged
        assert info.method == "sketch and project"
        # The rate of conjugate gradients on the null space of A; the first residual, of x of least
        # norm, is ‖b‖ at most but for a constant below 10.
        assert info.iterations <= math.ceil(0.5 * math.sqrt(condition) * math.log(20 / tol))


def test_outlying_eigenvalues_cost_little():
    n = 800
    flat, outliers = np.linspace(1, 2, n), np.linspace(1, 2, n)
    outliers[:12] = np.geomspace(1e2, 1e5, 12)
    outliers[12:15] = (1e-3, -1e-3, -1e4)
    few, more = (
        la.solve_kkt(operator(H), *others, tol=1e-8, seed=0).info
        for H, *others in (system(n, 50, values) for values in (flat, outliers))
    )
    assert few.converged
    assert more.converged
    assert more.method == "sketch and project"
    # Each of 15 outliers costs two dimensions of the Krylov space at most, of 4 an iteration; the
    # rate for a condition number of 1e8 would be thousands.
    assert more.iterations <= few.iterations + 2 * 15


def test_lu_takes_over_where_sketches_cost_as_much():
    values = np.linspace(-1, 1, 300)  # definite on no null space, with a condition number of 300
    H, A, f, c = system(300, 30, values)
    solution = la.solve_kkt(H, A, f, c, seed=0)
    assert solution.info.converged
    assert solution.info.method == "LU"
    # Two thirds of N³ flops, at four times the rate, pay for so many products, and what is more.
    assert 4 * (solution.info.iterations - 1) <= 330**3 / 6 / (2 * 300**2)
    assert residual(H, A, f, c, solution) <= default_tol(torch.float64)


@pytest.mark.parametrize("n", [40, 300])
def test_ill_conditioned(n):
    # Of a known solution, so that ‖K‖·‖z‖/‖b‖ is no more than √N or so, whatever cond(K) is.
    H, A, f, c = system(n, n // 5, np.geomspace(1e-11, 1, n))
    solution = la.solve_kkt(H, A, f, c, seed=0)
    assert solution.info.converged
    assert residual(H, A, f, c, solution) <= default_tol(torch.float64)


@pytest.mark.parametrize("m", [20, 7000])
def test_too_large_to_be_dense(m):
    # With 7000 constraints their orthogonal factor would be too large, too: nothing is eliminated.
    n = 20000
    tridiagonal = scipy.sparse.diags_array([-1.0, 3.0, -1.0], offsets=[-1, 0, 1], shape=(n, n))
    columns = np.random.default_rng(0).permutation(n)[:m]
    A = scipy.sparse.csr_array((np.ones(m), (np.arange(m), columns)), shape=(m, n))
    f, c = exact(random(n)), exact(random(m))
    x, multipliers = solution = la.solve_kkt(tridiagonal, A, f, c, tol=1e-8, seed=0)
    assert solution.info.converged
    assert solution.info.method == "sketch and project"
    left = np.concatenate([f - tridiagonal @ x - A.T @ multipliers, c - A @ x])
    assert np.linalg.norm(left) <= 1e-8 * np.linalg.norm(np.concatenate([f, c]))
    # The negative control: what is not solved is not claimed, and no dense matrix steps in.
    with pytest.warns(la.ConvergenceWarning):
        few = la.solve_kkt(tridiagonal, A, f, c, tol=1e-8, max_iters=3, seed=0).info
    assert (few.iterations, few.method) == (3, "sketch and project")


def test_a_tolerance_below_rounding_is_not_claimed():
    H, A, _, _ = system(200, 40, np.geomspace(1e-9, 1, 200))
    f, c = random(200), random(40)
    with pytest.warns(la.ConvergenceWarning, match=r"solve_kkt: the residual is .* more than tol"):
        solution = la.solve_kkt(H, A, f, c, tol=1e-14, seed=0)
    assert not solution.info.converged
    # It is a good solution all the same: that of a system that is off by rounding.
    assert residual(H, A, f, c, solution) <= 10 * rounding(H, A, f, c, solution)


def test_max_iters():
    H, A, f, c = system(400, 50)
    with pytest.warns(la.ConvergenceWarning, match="after 2 sketches"):
        info = la.solve_kkt(H, A, f, c, max_iters=2, seed=0).info
    assert (info.iterations, info.converged, info.method) == (2, False, "sketch and project")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_badly_scaled_rows(dtype):
    n, m = 1000, 30
    H, A, f, c = system(n, m, dtype=dtype)
    units = 10.0 ** (4 * random(n + m, seed=5).clamp(-2, 2))
    D = torch.diag(2.0 ** torch.log2(units).round()).to(dtype)
    K = kkt(H, A)
    H, A = D[:n, :n] @ H @ D[:n, :n], D[n:, n:] @ A @ D[:n, :n]
    solution = la.solve_kkt(operator(H), A, D[:n, :n] @ f, D[n:, n:] @ c, tol=1e-4, seed=0)
    assert solution.info.converged
    # With the scales undone the system has a condition number of some hundreds: sketches do.
    assert solution.info.method == "sketch and project"
    b = np.concatenate([exact(f), exact(c)])
    z = exact(D) @ np.concatenate([exact(part) for part in solution])
    # The scales that are found are those of D but for a factor of 3 or so, of either sign, so that
    # small rows are as accurate as large ones; a residual of (f, c) would not even see them.
    assert np.linalg.norm(b - K @ z) <= 10 * 1e-4 * np.linalg.norm(b)


def test_small_rows_count():
    # Large rows that one step solves beside small ones that take many: ‖b − K z‖ sees the first.
    n = 300
    one, many = torch.eye(n, dtype=torch.float64), hermitian(np.linspace(1, 100, n) / 58)
    H = torch.block_diag(1e8 * one, 1e-8 * many)
    f, none = random(2 * n), torch.empty(0, dtype=torch.float64)
    A = torch.empty(0, 2 * n, dtype=torch.float64)
    units = torch.tensor([1e4, 1e-4], dtype=torch.float64).repeat_interleave(n)
    x, _ = solution = la.solve_kkt(operator(H), A, units * f, none, tol=1e-3, seed=0)
    assert solution.info.method == "sketch and project"
    left = f[n:] - many @ (units * x)[n:]
    # All of the equilibrated residual may be there, in units that are known to a factor of 2.
    assert left.norm() <= 4e-3 * f.norm()


@pytest.mark.parametrize(
    ("scales", "dtype"),
    [
        ((1e200, 1e200), torch.float64),
        ((1e-200, 1e-200), torch.float64),
        ((1e150, 1e-150), torch.float64),
        ((2.0**100, 2.0**100), torch.float32),
        ((2.0**-100, 2.0**-100), torch.float32),
    ],
)
def test_ends_of_the_range(scales, dtype):
    n, m = 100, 20
    H, A, f, c = system(n, m, dtype=dtype)
    x, multipliers = la.solve_kkt(H, A, f, c, seed=0)
    by_H, by_A = scales
    # (x, λ by_H / by_A) solves [[by_H H, by_A Aᵀ], [by_A A, 0]] with (by_H f, by_A c).
    scaled = la.solve_kkt(H * by_H, A * by_A, f * by_H, c * by_A, seed=0)
    assert scaled.info.converged
    if by_H == by_A:
        # The same arithmetic, but for the rounding of the scaled entries.
        condition = np.linalg.cond(kkt(H, A))
        allowed = 10 * condition * (default_tol(dtype) + unit_roundoff(H))
        np.testing.assert_allclose(exact(scaled.x), exact(x), atol=allowed * float(x.norm()))
        np.testing.assert_allclose(
            exact(scaled.multipliers), exact(multipliers), atol=allowed * float(x.norm())
        )


def test_dependent_constraints():
    H, A, f, c = system(80, 10)
    twice, sums = torch.cat([A, A[:3]]), torch.cat([c, c[:3]])
    solution = la.solve_kkt(H, twice, f, sums, seed=0)
    assert solution.info.converged
    # x is determined, the multipliers are not.
    expected = la.solve_kkt(H, A, f, c, seed=0).x
    condition = np.linalg.cond(kkt(H, A))
    allowed = 10 * condition * default_tol(torch.float64) * float(torch.cat([f, c]).norm())
    np.testing.assert_allclose(exact(solution.x), exact(expected), atol=allowed)
    # Contradicting ones have no solution.
    with pytest.raises(torch.linalg.LinAlgError, match="no solution: its matrix is singular, of"):
        la.solve_kkt(H, twice, f, torch.cat([c, c[:3] + 1]), seed=0)


def test_null_vectors_of_both():
    H, A, f, c = system(80, 10)
    v = torch.linalg.svd(A).Vh[-1]
    P = torch.eye(80, dtype=H.dtype) - torch.outer(v, v)
    singular = P @ H @ P
    singular = (singular + singular.T) / 2
    solution = la.solve_kkt(singular, A, P @ f, c, seed=0)
    assert solution.info.converged
    with pytest.raises(torch.linalg.LinAlgError, match="of rank 89 with 90 rows"):
        la.solve_kkt(singular, A, P @ f + v, c, seed=0)


def test_without_constraints_and_without_freedom():
    H, _, f, _ = system(70, 0)
    none = la.solve_kkt(H, torch.empty(0, 70, dtype=H.dtype), f, torch.empty(0), seed=0)
    assert none.info.converged
    assert none.multipliers.shape == (0,)
    np.testing.assert_allclose(exact(none.x), np.linalg.solve(exact(H), exact(f)), rtol=1e-9)
    A, c = with_spectrum(70, 70, np.linspace(1, 2, 70)), random(70)
    x, multipliers = all_ = la.solve_kkt(torch.zeros_like(H), A, f, c, seed=0)
    assert all_.info.iterations == 0
    np.testing.assert_allclose(exact(A @ x), exact(c), atol=1e-12)
    np.testing.assert_allclose(exact(A.T @ multipliers), exact(f), atol=1e-12)


def test_nothing_to_solve():
    H, A, f, c = system(30, 4)
    x, multipliers = zero = la.solve_kkt(H, A, 0 * f, 0 * c)
    assert not x.any()
    assert not multipliers.any()
    assert (zero.info.residual, zero.info.converged) == (0, True)
    empty = la.solve_kkt(torch.empty(0, 0), torch.empty(0, 0), torch.empty(0), torch.empty(0))
    assert empty.x.shape == empty.multipliers.shape == (0,)


def test_every_kind():
    sparse = scipy.sparse.random(200, 200, density=0.02, random_state=0)
    H = (sparse + sparse.T + 4 * scipy.sparse.eye_array(200)).toarray()
    A = scipy.sparse.random(30, 200, density=0.1, random_state=1).toarray()
    f, c = exact(random(200)), exact(random(30))
    T, B = torch.from_numpy(H), torch.from_numpy(A)
    expected = la.solve_kkt(H, A, f, c, seed=3)
    assert isinstance(expected.x, np.ndarray)
    K = kkt(H, A)
    allowed = np.linalg.norm(np.linalg.inv(K), 2) * 2 * default_tol(torch.float64) * 20
    for hessian, jacobian in (
        (T, B),
        (T.mT.contiguous().mT, B.mT.contiguous().mT),
        (T.to_sparse_csr(), B.to_sparse_csr()),
        (scipy.sparse.csc_array(H), scipy.sparse.coo_array(A)),
        (scipy.sparse.linalg.aslinearoperator(H), A),
        (operator(T), operator(B)),
    ):
        solution = la.solve_kkt(hessian, jacobian, f, c, seed=3)
        assert solution.info.converged
        np.testing.assert_allclose(exact(solution.x), expected.x, atol=allowed)
        np.testing.assert_allclose(exact(solution.multipliers), expected.multipliers, atol=allowed)
    assert isinstance(la.solve_kkt(H, A, f, c, seed=3, out="torch").x, torch.Tensor)
    copied = pickle.loads(pickle.dumps(solution))
    assert copied.info == solution.info


def test_types():
    H, A, f, c = system(20, 3)
    whole = la.solve_kkt(np.eye(3, dtype=int), np.ones((1, 3), dtype=int), [0, 0, 0], [3])
    np.testing.assert_allclose(whole.x, [1, 1, 1], atol=1e-10)
    assert whole.x.dtype == np.float64
    half = la.solve_kkt(H.half(), A.half(), f.half(), c.half(), seed=0)
    assert half.x.dtype == half.multipliers.dtype == torch.float16
    gradient = la.solve_kkt(H.requires_grad_(), A, f, c, seed=0)
    assert not gradient.x.requires_grad


def test_seeds():
    H, A, f, c = system(300, 40)
    one, again, other = (la.solve_kkt(H, A, f, c, seed=seed).x for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_inputs_are_not_written_to(threads):
    operands = system(150, 20)
    before = [tensor.clone() for tensor in operands]
    with threads(1):
        one = la.solve_kkt(*operands, seed=0)
    with threads(2):
        two = la.solve_kkt(*operands, seed=0)
    assert all(map(torch.equal, operands, before))
    # Both are within the tolerance of the solution.
    inverse = np.linalg.norm(np.linalg.inv(kkt(*operands[:2])), 2)
    allowed = 2 * inverse * default_tol(torch.float64) * float(torch.cat(operands[2:]).norm())
    np.testing.assert_allclose(exact(one.x), exact(two.x), atol=allowed)


def nan_at(tensor, *index):
    tensor = tensor.clone()
    tensor[index] = math.nan
    return tensor


GOOD = system(9, 2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"H": torch.ones(3, 4)}, ValueError, r"solve_kkt: H must be square, got shape \(3, 4\)"),
        ({"H": torch.ones(2, 9, 9)}, ValueError, "H must be one matrix and no batch"),
        ({"H": GOOD[0] + 1j}, TypeError, "H must be real"),
        ({"H": GOOD[0].float()}, TypeError, "A must have the dtype of H"),
        ({"H": torch.triu(GOOD[0])}, torch.linalg.LinAlgError, "solve_kkt: H must be Hermitian"),
        ({"A": torch.ones(2, 8).double()}, ValueError, "A must have as many columns as H, 9"),
        ({"A": torch.ones(10, 9).double()}, ValueError, "A must have at most as many rows as col"),
        ({"A": torch.ones(9)}, ValueError, "A must have at least 2 dimensions"),
        ({"f": torch.ones(8)}, ValueError, r"f must be a vector of 9 entries.*row of H, got.*8"),
        ({"f": torch.ones(9, 1)}, ValueError, r"f must be a vector, got shape \(9, 1\)"),
        ({"f": GOOD[2] + 1j}, TypeError, "f must be real"),
        ({"c": torch.ones(3)}, ValueError, r"c must be a vector of 2 entries.*row of A, got.*3"),
        ({"H": nan_at(GOOD[0], 3, 4)}, ValueError, r"H must be finite, got nan at index \(3, 4\)"),
        ({"A": nan_at(GOOD[1], 1, 2)}, ValueError, r"A must be finite, got nan at index \(1, 2\)"),
        ({"f": nan_at(GOOD[2], 5)}, ValueError, r"f must be finite, got nan at index \(5\)"),
        ({"c": nan_at(GOOD[3], 1)}, ValueError, r"c must be finite, got nan at index \(1\)"),
        ({"tol": 0.0}, ValueError, "tol must be positive, got 0"),
        ({"tol": "1"}, TypeError, "tol must be a real number"),
        ({"max_iters": 0}, ValueError, "max_iters must be at least 1, got 0"),
        ({"max_iters": 2.5}, TypeError, "max_iters must be an integer"),
        ({"seed": "x"}, TypeError, "seed must be an int"),
        ({"out": "list"}, ValueError, 'out must be "torch", "numpy" or None'),
    ],
)
def test_bad_input(change, error, words):
    arguments = dict(zip("HAfc", GOOD, strict=True)) | change
    with pytest.raises(error, match=words):
        la.solve_kkt(**arguments)
