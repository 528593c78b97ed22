"""cp: sums of outer products, exact where they are, with a measured error where they are not."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr.linalg import _cp_steps
from references import unit_roundoff
from strategies import gaussian

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def normal(shape, dtype=torch.float64, seed=0):
    """A tensor of independent normal entries."""
    return gaussian(math.prod(shape), 1, dtype=dtype, seed=seed).reshape(shape)


def planted(shape, rank, dtype=torch.float64, seed=0):
    factors = [gaussian(n, rank, dtype=dtype, seed=seed + k) for k, n in enumerate(shape, 1)]
    return la.CPTensor(torch.ones(rank, dtype=dtype.to_real()), factors)


def noisy(shape, rank, noise, dtype=torch.float64, seed=0):
    X, N = planted(shape, rank, dtype, seed).full(), normal(shape, dtype, seed + 50)
    return X + noise * X.norm() / N.norm() * N


def wide(X):
    return X.to(torch.complex128 if X.is_complex() else torch.float64)


def distance(T, X):
    return float((wide(torch.as_tensor(T.full())) - wide(X)).norm())


def rounding(X):
    """Products along all modes and sums of a handful of terms: d·√n·u, and some times as much."""
    return 8 * X.dim() * math.sqrt(max(X.shape)) * unit_roundoff(X) * float(wide(X).norm())


def check_form(T):
    weights, factors = T
    unit = unit_roundoff(factors[0])
    assert bool((weights >= 0).all())
    assert bool((weights.diff() <= 0).all())
    for mode, F in enumerate(factors):
        lengths = torch.linalg.vector_norm(F, dim=0)
        assert float((lengths - 1).abs().max()) <= 4 * math.sqrt(len(F)) * unit
        if mode < len(factors) - 1:
            largest = F.gather(0, F.abs().argmax(0, keepdim=True))[0]
            assert bool((largest.real > 0).all())
            if F.is_complex():
                assert float(largest.imag.abs().max()) <= 4 * unit


def matched(one, other):
    """The least |cosine| of components that belong together, over all modes."""
    cosines = torch.stack(
        [(wide(F).mH @ wide(G)).abs() for F, G in zip(one.factors, other.factors, strict=True)]
    )
    places = cosines.prod(0).argmax(1)
    assert sorted(places.tolist()) == list(range(one.rank))
    return float(cosines[:, torch.arange(one.rank), places].min()), places


# Tensors of small integers, by the definition of what they do


def matrix_product(n=2):
    X = torch.zeros(n * n, n * n, n * n, dtype=torch.float64)
    for i, j, k in itertools.product(range(n), repeat=3):
        X[n * i + j, n * j + k, n * i + k] = 1
    return X


def cross_product():
    X = torch.zeros(3, 3, 3, dtype=torch.float64)
    for i, j, k in itertools.permutations(range(3)):
        X[i, j, k] = (i - j) * (j - k) * (k - i) / 2
    return X


def complex_product():
    X = torch.zeros(2, 2, 2, dtype=torch.float64)
    X[0, 0, 0] = X[0, 1, 1] = X[1, 0, 1] = 1
    X[1, 1, 0] = -1
    return X


def spin_one_half():
    """How two spins ½ add up to 1 and to 0: Clebsch-Gordan coefficients, a basis of 4 in 2 × 2."""
    X = torch.zeros(2, 2, 4, dtype=torch.float64)
    X[0, 0, 0] = X[1, 1, 2] = 1
    X[0, 1, 1] = X[1, 0, 1] = X[0, 1, 3] = math.sqrt(0.5)
    X[1, 0, 3] = -math.sqrt(0.5)
    return X


def border():
    """Of rank 3, and the limit of tensors of rank 2."""
    X = torch.zeros(2, 2, 2, dtype=torch.float64)
    X[0, 0, 1] = X[0, 1, 0] = X[1, 0, 0] = 1
    return X


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((30, 20, 25), 4),
        ((7, 6, 5), 4),
        ((6, 6, 6), 8),  # above all sizes
        ((9, 8), 1),
        ((5, 4, 3, 6), 5),
        ((40, 3, 50), 5),
    ],
)
def test_recovers_components(shape, rank, dtype):
    # Kruskal: min(n, rank) sum up to 2·rank + d − 1 at least, so that components are unique.
    assert rank == 1 or sum(min(n, rank) for n in shape) >= 2 * rank + len(shape) - 1
    truth = planted(shape, rank, dtype)
    X = truth.full()
    T = la.cp(X, rank, restarts=5, seed=0)
    assert T.info.converged
    assert T.shape == shape
    assert T.rank == rank
    check_form(T)
    assert distance(T, X) <= rounding(X)
    assert T.info.error == pytest.approx(distance(T, X), abs=rounding(X))
    cosine, places = matched(T, truth.normalized())
    # Errors of the factors are those of X times their condition number, below 100 for these; in
    # the cosine they are squared, and add to its own rounding.
    assert 1 - cosine <= 1e3 * unit_roundoff(X)
    weights = truth.normalized().weights[places]
    assert torch.allclose(T.weights, weights, rtol=2e4 * unit_roundoff(X), atol=0)
    for F in T.factors:
        assert F.dtype == dtype


@pytest.mark.parametrize(
    ("X", "rank"),
    [
        (matrix_product(), 7),
        (cross_product(), 5),
        (complex_product(), 3),
        (spin_one_half(), 4),
        (border(), 3),
    ],
    ids=["matrices", "cross", "complex", "spins", "border"],
)
def test_known_ranks_to_rounding(X, rank):
    for seed in range(4):
        T = la.cp(X, rank, tol=1e-12, restarts=20, seed=seed)
        assert T.info.converged
        assert distance(T, X) <= 1e-12 * float(X.norm())
        check_form(T)


@pytest.mark.parametrize(
    ("X", "rank", "least"),
    [
        (matrix_product(), 6, 0.1),
        (cross_product(), 4, 0.1),
        (spin_one_half(), 3, 0.1),
        # Any error is possible here, at the price of weights that are as large.
        (border(), 2, 0.0),
    ],
    ids=["matrices", "cross", "spins", "border"],
)
def test_one_component_less_is_not_exact(X, rank, least):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        T = la.cp(X, rank, tol=1e-12, restarts=1, seed=0)
    assert not T.info.converged
    assert T.info.relative_error > max(least, 1e-12)
    assert distance(T, X) == pytest.approx(T.info.error, rel=1e-6)


def test_complex_numbers_need_fewer_components():
    # Products of complex numbers are two of numbers, in the eigenbasis of i.
    X = complex_product().to(torch.complex128)
    T = la.cp(X, 2, tol=1e-12, restarts=5, seed=0)
    assert T.info.converged
    assert distance(T, X) <= 1e-12 * 2


def test_components_that_diverge_are_told():
    with pytest.warns(la.ConvergenceWarning, match="components cancel.*ridge"):
        T = la.cp(border(), 2, seed=0)
    for seed in range(5):
        # Slices along two modes are a defective matrix here, of one eigenvector.
        other = la.cp(border(), 2, tol=0.01, seed=seed)
        assert other.info.converged
    assert not T.info.converged
    longer = la.cp(border(), 2, init=T, tol=0.9 * T.info.relative_error)
    assert longer.info.cancellation > T.info.cancellation > 20
    held = la.cp(border(), 2, ridge=1e-3, seed=0)
    assert held.info.converged
    assert held.info.cancellation < 5
    assert held.info.error > T.info.error


def test_ridge_is_what_it_says():
    X = noisy((8, 7, 6), 3, 0.1)
    ridge = 0.05
    T = la.cp(X, 3, ridge=ridge, seed=0)
    size = float(X.norm())

    def objective(T):
        # Weights that are spread evenly: Σ‖F‖² = d·Σ w^(2/d).
        spread = 3 * float((T.normalized().weights ** (2 / 3)).sum())
        return distance(T, X) ** 2 + ridge * size ** (4 / 3) * spread

    least = objective(T)
    assert least < objective(la.cp(X, 3, seed=0))
    for seed in range(20):
        moved = la.CPTensor(
            T.weights, [F + 1e-3 * normal(F.shape, seed=seed + k) for k, F in enumerate(T.factors)]
        )
        assert objective(moved) > least
    for scale in (1e-100, 1e100):
        scaled = la.cp(X * scale, 3, ridge=ridge, seed=0)
        assert torch.allclose(scaled.weights / scale, T.weights, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("shape", [(20, 25, 30), (6, 7, 5), (9, 8, 7, 6)])
def test_error_is_measured_and_never_rises(shape, dtype):
    X = noisy(shape, 4, 0.3, dtype)
    T = la.cp(X, 4, seed=0)
    assert T.info.error == pytest.approx(distance(T, X), rel=1e-5)
    assert T.info.relative_error == pytest.approx(T.info.error / float(X.norm()), rel=1e-5)
    assert T.info.relative_error < 0.3
    history = T.info.history
    assert len(history) == T.info.sweeps + 1
    assert history[-1] == pytest.approx(T.info.error, rel=1e-4)
    for before, after in itertools.pairwise(history):
        # Rounding of the sums, at the passage from a core to X.
        assert after <= before * (1 + 8 * unit_roundoff(X))


def test_noise_leaves_a_stationary_point():
    for shape, dtype in (((30, 25, 20), torch.float64), ((6, 7, 5), torch.complex128)):
        X = noisy(shape, 3, 0.2, dtype)
        T = la.cp(X, 3, seed=0)
        left = X - T.full()
        for mode, F in enumerate(T.factors):
            rows = torch.movedim(left, mode, 0).flatten(1)
            others = khatri_rao([G for m, G in enumerate(T.factors) if m != mode])
            slope = rows @ others.conj()
            # Steps end when one gains 1e-8 of the error; the slope is some root of that.
            assert float(slope.norm()) <= 1e-3 * float(left.norm())
            assert F.shape == slope.shape


def khatri_rao(factors):
    """By its definition."""
    columns = []
    for a in range(factors[0].shape[1]):
        column = factors[0][:, a]
        for F in factors[1:]:
            column = torch.outer(column, F[:, a]).flatten()
        columns.append(column)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("shape", "rank"), [((4, 5, 6), 6), ((8, 5, 6), 3), ((3, 4, 2, 3), 5)])
def test_a_sweep_solves_least_squares(shape, rank, dtype):
    X, start = normal(shape, dtype), planted(shape, rank, dtype, seed=9)
    factors = [F.clone() for F in start.factors]
    for mode in range(len(shape)):
        others = khatri_rao([F for m, F in enumerate(factors) if m != mode])
        rows = torch.movedim(X, mode, 0).flatten(1)
        solution = np.linalg.lstsq(others.numpy(), rows.mT.numpy(), rcond=None)[0]
        factors[mode] = torch.from_numpy(solution).mT
    expected = la.CPTensor(torch.ones(rank, dtype=torch.float64), factors).full()
    with pytest.warns(la.ConvergenceWarning, match="max_sweeps"):
        T = la.cp(X, rank, init=start, max_sweeps=1)
    assert T.info.sweeps == 1
    # Normal equations: u times the square of a condition number, some 100.
    assert float((T.full() - expected).norm()) <= 1e5 * unit_roundoff(X) * float(X.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("limit", [0, 1000])
@pytest.mark.parametrize(("shape", "rank"), [((4, 5, 3), 4), ((9, 2, 8), 3), ((3, 2, 4, 6), 3)])
def test_a_step_solves_the_damped_equations(shape, rank, limit, dtype, monkeypatch):
    monkeypatch.setattr(_cp_steps, "_LARGEST_DENSE", limit)
    monkeypatch.setattr(_cp_steps, "_INEXACT", 1e-14)
    factors = list(planted(shape, rank, dtype).factors)
    E = normal(shape, dtype, seed=3)
    slope = _cp_steps.gradient(E, factors, 0.0)
    # The derivative, column by column.
    columns = []
    for mode, F in enumerate(factors):
        for place in range(F.numel()):
            unit = torch.zeros_like(F).flatten()
            unit[place] = 1
            moved = [*factors[:mode], unit.reshape(F.shape), *factors[mode + 1 :]]
            ones = torch.ones(rank, dtype=torch.float64)
            columns.append(la.CPTensor(ones, moved).full().flatten())
    J = torch.stack(columns, 1)
    flat = torch.cat([G.flatten() for G in slope])
    assert torch.allclose(flat, J.mH @ E.flatten(), rtol=0, atol=1e-12 * float(J.norm()))
    damping = 0.1
    H = J.mH @ J + damping * torch.eye(J.shape[1], dtype=dtype)
    step = torch.cat([D.flatten() for D in _cp_steps.damped_step(factors, slope, damping)])
    # A condition number of some 1e4 times u; conjugate gradients end at 1e-14 of a residual.
    assert float((H @ step - flat).norm()) <= 1e-10 * float(flat.norm())


def test_orders_and_rotations():
    X = noisy((12, 9, 10), 3, 0.1)
    T = la.cp(X, 3, seed=0)
    for order in itertools.permutations(range(3)):
        permuted = X.permute(order)
        # A view of another order is the same tensor in memory.
        assert la.cp(permuted, 3, seed=0).info.history == T.info.history
        copied = la.cp(permuted.contiguous(), 3, seed=0)
        # Both end within 1e-8 of the same minimum.
        assert copied.info.error == pytest.approx(T.info.error, rel=1e-7)
        back = [copied.factors[order.index(mode)] for mode in range(3)]
        assert matched(la.CPTensor(T.weights, back), T)[0] > 1 - 1e-6
    rotations = [torch.linalg.qr(gaussian(n, n, seed=n)).Q for n in X.shape]
    rotated = la.cp(la.TuckerTensor(X, rotations).full(), 3, seed=0)
    assert rotated.info.error == pytest.approx(T.info.error, rel=1e-7)
    turned = [Q @ F for Q, F in zip(rotations, T.factors, strict=True)]
    assert matched(rotated, la.CPTensor(T.weights, turned))[0] > 1 - 1e-6


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    rank=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_matrices_are_truncated_svds(shape, rank, seed):
    X = normal(shape, seed=seed)
    values = torch.linalg.svdvals(X)
    T = la.cp(X, rank, seed=seed)
    # Stationary to 1e-8, and exact to rounding where the rank is full.
    assert T.info.error == pytest.approx(float(values[rank:].norm()), rel=1e-6, abs=rounding(X))
    check_form(T)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1000))
def test_any_shape(data, dtype, seed):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=5)))
    rank = data.draw(st.integers(1, 6))
    X = normal(shape, dtype, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        T = la.cp(X, rank, max_sweeps=60, seed=seed)
    assert T.shape == shape
    assert T.rank == rank
    assert T.info.error == pytest.approx(distance(T, X), rel=1e-4, abs=rounding(X))
    assert T.info.error <= float(wide(X).norm()) * (1 + 1e-6)
    check_form(T)


def test_rank_one_and_modes_of_length_one():
    a, b = torch.arange(1.0, 9), torch.arange(-2.0, 4)
    X = -a[:, None, None] * b[:, None] * b
    T = la.cp(X, 1, seed=0)
    assert float(T.weights) == pytest.approx(float(X.norm()), rel=1e-6)
    assert torch.allclose(T.factors[0][:, 0], a / a.norm())
    flat = planted((1, 5, 6, 1), 1).full()
    assert distance(la.cp(flat, 1, seed=0), flat) <= rounding(flat)
    point = normal((1, 1, 1))
    assert float(la.cp(point, 1, seed=0).full()) == pytest.approx(float(point), rel=1e-14)
    # More components than there are: the error is still nothing.
    more = la.cp(X.double(), 3, seed=0)
    assert distance(more, X.double()) <= rounding(X.double())


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 0, 5), (2, 3)])
def test_zero(shape):
    T = la.cp(torch.zeros(shape), 2)
    assert T.weights.tolist() == [0, 0]
    assert T.info.error == T.info.relative_error == T.info.cancellation == 0
    assert T.info.converged
    assert T.full().shape == shape
    assert not T.full().any()
    if all(shape):
        check_form(T)


@pytest.mark.parametrize("exponent", [-660, 660])
@pytest.mark.parametrize("rank", [2, 9])
def test_scale(exponent, rank):
    X = noisy((8, 9, 7), 2, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        T, scaled = (la.cp(Y, rank, max_sweeps=20, seed=0) for Y in (X, X * 2.0**exponent))
    # A power of two changes no digit.
    assert torch.equal(scaled.weights, T.weights * 2.0**exponent)
    assert all(torch.equal(F, G) for F, G in zip(scaled.factors, T.factors, strict=True))
    assert scaled.info.error == T.info.error * 2.0**exponent
    assert scaled.info.relative_error == T.info.relative_error
    for scale in (1e-30, 1e30):
        small = la.cp((X * scale).float(), 2, seed=0)
        plain = la.cp(X.float(), 2, seed=0)
        assert small.info.relative_error == pytest.approx(plain.info.relative_error, rel=1e-5)


def test_tolerances():
    X = noisy((12, 11, 10), 3, 1e-3)
    tight = la.cp(X, 3, seed=0)
    loose = la.cp(X, 3, tol=0.1, init="random", seed=0)
    assert loose.info.converged
    assert 1e-3 < loose.info.relative_error <= 0.1
    assert loose.info.sweeps < tight.info.sweeps
    with pytest.warns(la.ConvergenceWarning, match=r"the error is .* more than tol = 1e-05"):
        unmet = la.cp(X, 3, tol=1e-5, seed=0)
    assert not unmet.info.converged
    assert unmet.info.error == pytest.approx(tight.info.error, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(25, 20, 30), (8, 30, 4, 25)])
def test_orthogonal_components_of_one_weight(shape, dtype):
    # Iterations from other starts end where one component is missing and one comes twice.
    factors = [torch.linalg.qr(gaussian(n, 16, dtype=dtype, seed=n)).Q for n in shape if n > 16]
    factors += [gaussian(n, 16, dtype=dtype, seed=n) for n in shape if n <= 16]
    truth = la.CPTensor(torch.ones(16, dtype=torch.float64), factors)
    X = truth.full()
    T = la.cp(X, 16, seed=0)
    assert distance(T, X) <= rounding(X)
    N = normal(X.shape, dtype)
    Y = X + 0.01 * X.norm() / N.norm() * N
    fit = la.cp(Y, 16, seed=0)
    assert fit.info.error < float((Y - X).norm())
    assert matched(fit, truth.normalized())[0] > 0.98


def test_restarts_keep_the_best():
    X = normal((4, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        many = la.cp(X, 3, restarts=4, seed=0)
        one = la.cp(X, 3, seed=0)
    assert many.info.starts == 5
    assert one.info.starts == 1
    assert many.info.error <= one.info.error
    # None is made once there is nothing left.
    assert la.cp(planted((5, 5, 5), 3).full(), 3, restarts=50, seed=0).info.starts == 1


def test_a_tensor_to_begin_with():
    X = noisy((12, 9, 10), 3, 0.1)
    T = la.cp(X, 3, seed=0)
    again = la.cp(X, 3, init=T)
    assert again.info.history[0] == pytest.approx(T.info.error, rel=1e-12)
    assert again.info.error <= T.info.error * (1 + 1e-12)
    assert again.info.sweeps <= 20
    scaled = la.cp(X * 1e200, 3, init=T * 1e200)
    assert scaled.info.relative_error == pytest.approx(T.info.relative_error, rel=1e-7)
    with pytest.warns(la.ConvergenceWarning, match="no minimum was reached"):
        nothing = la.cp(X, 3, init=0 * T)
    assert nothing.info.error == pytest.approx(float(X.norm()), rel=1e-14)
    none = planted((12, 9, 10), 3, seed=70)
    with pytest.warns(la.ConvergenceWarning, match="max_sweeps"):
        kept = la.cp(X, 3, init=none, max_sweeps=0)
    assert distance(kept, none.full()) <= rounding(none.full())


def test_numpy_and_types():
    X = np.random.default_rng(0).standard_normal((5, 6, 4))
    T = la.cp(X, 2, seed=0)
    for array in (*T.factors, T.weights, T.full()):
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float64
    fortran = la.cp(np.asfortranarray(X), 2, seed=0)
    assert fortran.info.error == pytest.approx(T.info.error, rel=1e-6)
    assert la.cp(np.arange(60).reshape(3, 4, 5) ** 2, 1, seed=0).weights.dtype == np.float64
    tensor = torch.from_numpy(X)
    half = la.cp(tensor.half(), 2, seed=0)
    assert half.weights.dtype == torch.float16
    assert half.info.relative_error == pytest.approx(T.info.relative_error, rel=1e-2)
    single = la.cp(tensor.to(torch.complex64), 2, seed=0)
    assert single.weights.dtype == torch.float32
    assert single.factors[0].dtype == torch.complex64
    before = X.copy()
    la.cp(X[::-1, ::2], 1, seed=0)
    assert np.array_equal(X, before)
    assert not la.cp(tensor.clone().requires_grad_(), 2, seed=0).weights.requires_grad
    conjugate = planted((5, 6, 4), 2, torch.complex128).full().conj()
    assert distance(la.cp(conjugate, 2, restarts=3, seed=0), conjugate) <= rounding(conjugate)


def test_seeds():
    X = noisy((9, 8, 7), 3, 0.3)
    one, same, other = (la.cp(X, 3, init="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.weights, same.weights)
    assert one.info.history == same.info.history
    assert one.info.history[0] != other.info.history[0]


START = planted((4, 5, 6), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": 2.5}, TypeError, "rank must be an integer, got 2.5"),
        ({"tol": 0.0}, ValueError, "between 0 and 1"),
        ({"tol": math.nan}, ValueError, "between 0 and 1"),
        (
            {"init": "hosvd"},
            ValueError,
            "init must be 'auto', 'svd', 'random' or a CPTensor, got 'hosvd'",
        ),
        ({"init": [1]}, ValueError, "init must be"),
        ({"init": planted((4, 5, 7), 2)}, ValueError, r"shape \(4, 5, 6\) and rank 2"),
        ({"init": planted((4, 5, 6), 3)}, ValueError, "rank 2, got"),
        ({"init": planted((4, 5, 6), 2, torch.complex128)}, TypeError, "real for a real X"),
        ({"init": START * math.inf}, ValueError, "init must be finite"),
        ({"init": START, "restarts": 1}, ValueError, "restarts must be 0 with an init"),
        ({"restarts": -1}, ValueError, "restarts must be at least 0"),
        ({"ridge": -1.0}, ValueError, "ridge must be non-negative"),
        ({"max_sweeps": -1}, ValueError, "max_sweeps must be at least 0"),
        ({"seed": 0.5}, TypeError, "seed must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        la.cp(normal((4, 5, 6)), **{"rank": 2, **arguments})
    assert str(raised.value).startswith("cp: ")


def test_bad_tensors():
    X = normal((4, 5, 6))
    for value in (math.nan, math.inf, -math.inf):
        X[1, 2, 3] = value
        for view in (X, X.to(torch.complex128)):
            with pytest.raises(ValueError, match=r"cp: X must be finite, got .* \(1, 2, 3\)"):
                la.cp(view, 2)
    with pytest.raises(ValueError, match="cp: X must have at least 2 dimensions"):
        la.cp(torch.ones(3), 1)
    with pytest.raises(TypeError, match="cp: X must be"):
        la.cp(torch.eye(3).to_sparse(), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same():
    X = noisy((30, 25, 20), 3, 0.1)
    one, other = la.cp(X, 3, seed=0), la.cp(X.cuda(), 3, seed=0)
    assert other.weights.is_cuda
    assert other.info.error == pytest.approx(one.info.error, rel=1e-7)
