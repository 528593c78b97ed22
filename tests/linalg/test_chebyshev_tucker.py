"""chebyshev_tucker: polynomials exactly, analytic functions to the tolerance, others honestly."""

import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev as numpy_chebyshev

import fastlr.linalg as la
from fastlr.linalg import chebyshev
from fastlr.linalg._box_function import BoxFunction
from fastlr.linalg._chebyshev_grids import _Fibres, _worst
from references import orthonormality_error
from strategies import gaussian

U = 2.0**-53
CUBE = [(-1.0, 1.0)]
FULL, CROSS = {}, {"max_grid": 1}


def points(count, domain, seed=0, dtype=torch.float64):
    """Uniform in a box, by another generator than the library's."""
    rng = np.random.default_rng(seed)
    low, high = np.array(domain, dtype=float).T
    return torch.from_numpy(low + (high - low) * rng.random((count, len(low)))).to(dtype)


def largest_error(T, f, domain, seed=0):
    """At 5000 fresh points, relative to the largest value."""
    x = points(5000, domain, seed)
    return float((T(x) - f(x)).abs().max() / f(x).abs().max())


def planted(degrees, ranks, domain, dtype=torch.float64, seed=0):
    """A polynomial of exactly these degrees and ranks."""
    core = gaussian(math.prod(ranks), 1, dtype=dtype, seed=seed).reshape(ranks)
    factors = [
        gaussian(n + 1, r, dtype=dtype, seed=seed + i)
        for i, (n, r) in enumerate(zip(degrees, ranks, strict=True), 1)
    ]
    return la.ChebyshevTucker(la.TuckerTensor(core, factors), domain)


def runge(x):
    return 1 / (1 + 4 * x.square().sum(1))


def exponential(x):
    return torch.exp(x @ torch.arange(1, x.shape[1] + 1, dtype=x.dtype) / 2)


def cosine(x):
    return torch.cos(3 * x.sum(1))


def bell(x):
    return torch.exp(-5 * (x - 0.3).square().sum(1))


ANALYTIC = [runge, exponential, cosine, bell]


# In one variable


@pytest.mark.parametrize("degree", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_transforms_and_calculus_in_one_variable(degree, dtype):
    c = gaussian(degree + 1, 3, dtype=dtype, seed=degree)
    nodes = chebyshev.nodes(degree, torch.float64, c.device)
    assert torch.equal(nodes, -nodes.flip(0))
    assert torch.equal(
        chebyshev.nodes(2 * degree, torch.float64, c.device)[::2][: degree + 1], nodes
    )
    values = torch.from_numpy(numpy_chebyshev.chebval(nodes.numpy(), c.numpy())).mT
    # Sums of degree + 1 terms; cosines of angles up to degree·π have errors of degree·u.
    bound = 20 * (degree + 1) ** 2 * U * float(c.abs().max())
    assert float((chebyshev.basis(nodes, degree).to(dtype) @ c - values).abs().max()) <= bound
    assert float((chebyshev.coefficients(values) - c).abs().max()) <= bound
    across = chebyshev.coefficients(values.mT.contiguous(), 1).mT
    assert float((across - c).abs().max()) <= bound
    slope = torch.from_numpy(numpy_chebyshev.chebder(c.numpy()))
    assert chebyshev.derivative(c).shape == slope.shape
    assert float((chebyshev.derivative(c) - slope).abs().max()) <= 2 * degree**2 * bound
    primitive = numpy_chebyshev.chebint(c.numpy())
    area = numpy_chebyshev.chebval(1.0, primitive) - numpy_chebyshev.chebval(-1.0, primitive)
    weights = chebyshev.integrals(degree, dtype, c.device)
    assert float((weights @ c - torch.from_numpy(area)).abs().max()) <= bound


# Polynomials


@settings(max_examples=15, deadline=None)
@given(
    degrees=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
    cross=st.booleans(),
)
def test_polynomials_are_exact(degrees, seed, dtype, cross):
    domain = [(-1.0, 2.0), (3.0, 3.5), (-5.0, -4.0), (0.0, 100.0)][: len(degrees)]
    ranks = [min(2, n + 1) for n in degrees]
    ranks = [min(r, math.prod(ranks[:k] + ranks[k + 1 :])) for k, r in enumerate(ranks)]
    P = planted(degrees, ranks, domain, dtype, seed)
    T = la.chebyshev_tucker(P, domain, tol=1e-10, seed=seed, **(CROSS if cross else FULL))
    # Gaussian coefficients: the last are far above 1e-10 of all but with probability 1e-9.
    assert T.degrees == tuple(degrees)
    assert T.ranks == tuple(ranks)
    assert T.info.converged
    assert T.info.method == ("cross" if cross and len(degrees) > 1 else "full grid")
    # Rounding of P, and of interpolation and truncation of 8⁴ values at most: measured 3e-15.
    x = points(500, domain, 1)
    assert float((T(x) - P(x)).abs().max()) <= 1e-13 * T.info.scale


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0 + 1.0j])
@pytest.mark.parametrize("kind", [FULL, CROSS])
def test_constants(value, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        T = la.chebyshev_tucker(
            lambda x: torch.full((len(x),), value),
            [(0, 1), (2, 4), (5, 6)],
            tol=1e-12,
            seed=0,
            **kind,
        )
    assert T.degrees == (0, 0, 0)
    assert T.ranks == (1, 1, 1)
    assert T.info.error <= 4 * U
    assert T.info.converged
    assert T(points(3, T.domain)).tolist() == pytest.approx([value] * 3, rel=4 * U)
    assert T.integral() == pytest.approx(2 * value, rel=10 * U)
    assert T.derivative(1)(points(3, T.domain)).tolist() == [0, 0, 0]


# Analytic functions


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("f", ANALYTIC)
@pytest.mark.parametrize(
    ("axes", "kind"), [(1, FULL), (2, FULL), (3, FULL), (3, CROSS), (4, CROSS)]
)
def test_the_tolerance_holds_at_fresh_points(f, axes, kind, tol):
    # 1/(1 + 4·x²) in four variables has ranks of 20 at 1e-12: its core would take a while.
    if axes == 4 and f is runge and tol < 1e-6:
        return
    domain = [(-1.0, 1.0), (-0.5, 1.5), (-1.0, 0.5), (0.0, 1.0)][:axes]
    T = la.chebyshev_tucker(f, domain, tol=tol, seed=1, **kind)
    assert T.info.converged
    # tol is of the largest value seen, that of 5000 points may be smaller by some percent.
    assert largest_error(T, f, domain) <= 1.3 * tol
    assert T.info.method == ("cross" if kind and axes > 1 else "full grid")
    # A looser tolerance takes less.
    smaller = la.chebyshev_tucker(f, domain, tol=tol * 100, seed=1, **kind)
    assert sum(smaller.degrees) < sum(T.degrees)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_errors_fall_geometrically(axes):
    # 1/(1 + x²) has poles at ±i: coefficients fall like ρ^−n with ρ = 1 + √2 (Bernstein's ellipse).
    def f(x):
        return 1 / (1 + x.square().sum(1))

    degrees = [
        la.chebyshev_tucker(f, CUBE * axes, tol=tol, seed=0).degrees[0] for tol in (1e-4, 1e-12)
    ]
    expected = math.log(1e8) / math.log(1 + math.sqrt(2))  # 20.9 for eight digits
    assert abs(degrees[1] - degrees[0] - expected) <= 3


def test_ranks_are_nearly_those_of_the_grid():
    tol = 1e-6
    T = la.chebyshev_tucker(runge, CUBE * 3, tol=tol, seed=0)
    axis = torch.linspace(-1, 1, 65, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    G = la.tucker(runge(grid.reshape(-1, 3)).reshape(65, 65, 65), tol=tol, seed=0)
    # The one norm is a maximum, and tol/4 of it, the other is Frobenius'.
    assert all(0 <= a - b <= 2 for a, b in zip(T.ranks, G.ranks, strict=True))


def test_cross_is_the_full_grid_from_fewer_points():
    tol = 1e-7

    def f(x):
        return 1 / (1.2 + x.square().sum(1) / 4 + 0.3 * torch.sin(x[:, 0] + x[:, 1]))

    full = la.chebyshev_tucker(f, CUBE * 4, tol=tol, seed=0)
    cross = la.chebyshev_tucker(f, CUBE * 4, tol=tol, seed=0, **CROSS)
    assert (full.info.method, cross.info.method) == ("full grid", "cross")
    x = points(3000, CUBE * 4)
    assert float((full(x) - cross(x)).abs().max()) <= 2 * tol * full.info.scale
    assert cross.info.evaluations < full.info.evaluations / 5
    assert all(abs(a - b) <= 1 for a, b in zip(full.ranks, cross.ranks, strict=True))


def test_a_narrow_peak_is_found_by_fibres_through_it():
    def f(x):
        return 1 / (1 + 300 * (x - 0.3).square().sum(1))

    T = la.chebyshev_tucker(f, CUBE * 3, tol=1e-4, seed=0, **CROSS)
    assert T.info.converged
    assert max(T.degrees) > 120
    near = 0.3 + 0.1 * (2 * points(2000, [(0, 1)] * 3) - 1)
    assert float((T(near) - f(near)).abs().max()) <= 1e-4
    assert T.info.evaluations < 0.2 * math.prod(n + 1 for n in T.degrees)


def test_an_axis_that_only_some_fibres_need():
    # Oscillates along axis 1 where x₀ is near 1 only: the worst fibre of the grid shows it.
    def f(x):
        return torch.exp(12 * (x[:, 0] - 1)) * torch.cos(25 * x[:, 1]) + x[:, 2]

    for kind in (FULL, CROSS):
        for seed in range(5):
            T = la.chebyshev_tucker(f, CUBE * 3, tol=1e-6, seed=seed, **kind)
            x = points(3000, CUBE * 3)
            x[:, 0] = 1 - x[:, 0].abs() / 50
            assert float((T(x) - f(x)).abs().max()) <= 1e-6 * 2.2
            assert T.ranks == (2, 2, 2)


def test_complex_functions():
    def f(x):
        return torch.exp(1j * (3 * x[:, 0] + x[:, 1] * x[:, 2]))

    for kind in (FULL, CROSS):
        T = la.chebyshev_tucker(f, CUBE * 3, tol=1e-9, seed=0, **kind)
        assert T.coefficients.core.dtype == torch.complex128
        assert largest_error(T, f, CUBE * 3) <= 1e-9
        assert T.degrees[0] > T.degrees[1]


@pytest.mark.parametrize("scale", [2.0**-900, 2.0**900])
def test_scaling_by_powers_of_two_changes_nothing(scale):
    one = la.chebyshev_tucker(runge, CUBE * 2, tol=1e-6, seed=0)
    other = la.chebyshev_tucker(lambda x: scale * runge(x), CUBE * 2, tol=1e-6, seed=0)
    x = points(100, CUBE * 2)
    assert torch.equal(other(x), scale * one(x))
    assert other.info.error == one.info.error
    assert other.info.scale == scale * one.info.scale


def test_float32():
    seen = set()

    def f(x):
        seen.add(x.dtype)
        return cosine(x)

    for kind in (FULL, CROSS):
        T = la.chebyshev_tucker(f, CUBE * 3, tol=1e-4, dtype=torch.float32, seed=0, **kind)
        assert T.info.converged
        x = points(1000, CUBE * 3, dtype=torch.float32)
        assert T(x).dtype == torch.float32
        assert float((T(x) - f(x)).abs().max()) <= 1e-4
    assert seen == {torch.float32}


# Functions that are not smooth


@pytest.mark.parametrize(
    ("f", "axes", "error"),
    [
        (lambda x: (x[:, 0] - 0.1).abs(), 1, 1e-4),
        (lambda x: (x[:, 0] - 0.1).abs() * x[:, 1], 2, 1e-4),
        (lambda x: (x[:, 0] > 0.3).double(), 1, 0.1),
        (lambda x: (x.sum(1) > 0.3).double(), 2, 0.1),
    ],
)
@pytest.mark.parametrize("kind", [FULL, CROSS])
def test_what_is_not_smooth_is_not_called_converged(f, axes, error, kind):
    with pytest.warns(la.ConvergenceWarning, match=r"chebyshev_tucker: tol=1e-06 not met"):
        T = la.chebyshev_tucker(f, CUBE * axes, tol=1e-6, max_degree=200, seed=0, **kind)
    info = T.info
    assert not info.converged
    assert T.degrees[0] == 200
    assert info.samples == 1000
    # The estimate is of the error: a maximum of 1000 points is at most that of these and others.
    assert error / 10 < info.error
    x = points(20000, CUBE * axes, 7)
    measured = float((T(x) - f(x)).abs().max()) / info.scale
    assert info.error <= 1.5 * measured
    assert measured <= 5 * info.error


def test_max_degree():
    with pytest.warns(la.ConvergenceWarning, match=r"max_degree is needed along axes \[0, 1\]"):
        T = la.chebyshev_tucker(exponential, CUBE * 2, tol=1e-12, max_degree=4, seed=0)
    assert T.degrees == (4, 4)
    assert all(tail > 1e-12 for tail in T.info.tails)
    # Twice the sum of the tails is what interpolation may lose, and more than it does lose.
    assert T.info.error <= 2.2 * sum(T.info.tails)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        la.chebyshev_tucker(lambda x: x[:, 0] ** 4, CUBE * 2, tol=1e-12, max_degree=4, seed=0)


def test_an_axis_that_max_degree_ended_is_never_converged():
    # An even function, two degrees fewer than its tails need: the sample shows nothing of it.
    T = la.chebyshev_tucker(runge, CUBE, tol=1e-6, seed=0)
    with pytest.warns(la.ConvergenceWarning, match=r"max_degree is needed along axes \[0\]"):
        one_less = la.chebyshev_tucker(runge, CUBE, tol=1e-6, max_degree=T.degrees[0] - 2, seed=0)
    assert one_less.info.error <= 1e-6
    assert not one_less.info.converged


def test_the_sample_is_fresh():
    calls = []

    def f(x):
        if len(x) == 777:
            calls.append(x.clone())
        return runge(x)

    T = la.chebyshev_tucker(f, CUBE * 2, tol=1e-4, samples=777, seed=0)
    guide, check = calls
    assert not (guide[:, None] == check).all(-1).any()
    error = float((T(check) - runge(check)).abs().max()) / T.info.scale
    assert T.info.error == pytest.approx(error, rel=1e-6)


def test_the_worst_fibres_are_those_of_the_largest_last_coefficients():
    c = torch.full((9, 20), 1e-9, dtype=torch.float64)
    c[:2] = gaussian(2, 20)
    c[8, 5], c[7, 11] = 1e-3, 2e-3
    values = chebyshev.basis(chebyshev.nodes(8, torch.float64, c.device), 8) @ c
    assert _worst(values).tolist() == [11, 5]


def test_fibres_are_more_than_their_rank():
    function = BoxFunction(
        lambda x: 1 / (1.05 + x.prod(1)),
        CUBE * 3,
        torch.float64,
        torch.device("cpu"),
        False,
        "test",
    )
    nodes = [chebyshev.nodes(60, torch.float64, torch.device("cpu"))] * 3
    fibres = _Fibres(function, nodes, 0, torch.zeros(1, 3, dtype=torch.float64), 0)
    fibres.cover(1e-12)
    # Rank 17 cannot be known from the 17 fibres of the beginning.
    assert len(fibres.rows) > 17
    assert fibres._values.shape[1] >= len(fibres.rows) + 8


def test_noise_is_not_resolved():
    generator = torch.Generator().manual_seed(0)

    def f(x):
        return cosine(x) + 1e-8 * torch.randn(len(x), dtype=torch.float64, generator=generator)

    # Above the noise nothing is wrong; below, the degrees do not grow without end.
    T = la.chebyshev_tucker(f, CUBE * 2, tol=1e-6, seed=0)
    assert T.info.converged
    with pytest.warns(la.ConvergenceWarning):
        T = la.chebyshev_tucker(f, CUBE * 2, tol=1e-11, seed=0)
    assert not T.info.converged
    assert max(T.degrees) < 40
    assert 1e-8 < T.info.error < 1e-6


def test_a_tolerance_below_rounding():
    with pytest.warns(la.ConvergenceWarning):
        T = la.chebyshev_tucker(cosine, CUBE * 3, tol=1e-17, seed=0)
    assert not T.info.converged
    assert max(T.degrees) < 40
    assert T.info.error < 1e-14


def test_degrees_next_to_rounding():
    def f(x):
        return 1 / (1 + x.square().sum(1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)  # 1e-15 is met, or not
        T = la.chebyshev_tucker(f, CUBE * 3, tol=1e-15, seed=0)
    # Coefficients fall to 1e-16 by degree 42; rounding needs none.
    assert max(T.degrees) <= 44
    assert T.info.error < 1e-14


# What can be done with it


@pytest.fixture(scope="module")
def product():
    """exp(x₀ − 2·x₁)·sin(x₂ + 1) on a box that is not the cube, to 1e-13."""

    def f(x):
        return torch.exp(x[:, 0] - 2 * x[:, 1]) * torch.sin(x[:, 2] + 1)

    domain = [(-1.0, 1.5), (0.0, 1.0), (2.0, 3.0)]
    return la.chebyshev_tucker(f, domain, tol=1e-13, seed=0), f, domain


def test_derivatives(product):
    T, f, domain = product
    x = points(1000, domain)
    scale = T.info.scale
    # Markov: n² over half the length, for each order; n = 17 and less, errors of 1e-15 or so.
    for axis, order, exact in [
        (0, 1, f(x)),
        (1, 1, -2 * f(x)),
        (1, 3, -8 * f(x)),
        (-1, 1, f(x) / torch.tan(x[:, 2] + 1)),
        (2, 2, -f(x)),
    ]:
        D = T.derivative(axis, order)
        assert float((D(x) - exact).abs().max()) <= (2 * 17**2) ** order * 1e-14 * scale
        assert D.degrees[axis] == T.degrees[axis] - order
        assert D.ranks == T.ranks
        assert D.info is None
    assert T.derivative(0, 100).degrees[0] == 0
    assert float(T.derivative(0, 100)(x).abs().max()) == 0


def test_integrals(product):
    T, f, domain = product
    e, c = math.exp, math.cos
    along = [e(1.5) - e(-1), (1 - e(-2)) / 2, c(3) - c(4)]
    volume = 2.5 * T.info.scale
    total = T.integral()
    assert isinstance(total, float)
    assert abs(total - math.prod(along)) <= 1e-13 * volume
    x = points(500, domain)
    for axis in range(3):
        others = [k for k in range(3) if k != axis]
        rest = T.integral(axis)
        assert rest.domain == tuple(domain[k] for k in others)
        one = torch.tensor([along[axis]], dtype=torch.float64)
        exact = (
            one * f(x) / [torch.exp(x[:, 0]), torch.exp(-2 * x[:, 1]), torch.sin(x[:, 2] + 1)][axis]
        )
        assert float((rest(x[:, others]) - exact).abs().max()) <= 1e-12 * volume
    assert T.integral(2).integral(0).integral(-1) == pytest.approx(total, rel=1e-12)
    waves = la.chebyshev_tucker(lambda x: torch.exp(1j * x[:, 0]), [(0, 1)], tol=1e-12, seed=0)
    assert abs(waves.integral() - (np.exp(1j) - 1) / 1j) <= 1e-12


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
    seed=st.integers(0, 2**31),
)
def test_on_grid(sizes, dtype, seed):
    domain = [(-1.0, 1.0), (2.0, 5.0), (0.0, 0.1)]
    P = planted((6, 9, 4), (3, 4, 2), domain, dtype, seed)
    axes = [
        points(m, [interval], seed + i)[:, 0]
        for i, (m, interval) in enumerate(zip(sizes, domain, strict=True))
    ]
    G = P.on_grid(*axes)
    assert isinstance(G, la.TuckerTensor)
    assert G.shape == tuple(sizes)
    assert all(r <= min(m, n) for r, m, n in zip(G.ranks, sizes, P.ranks, strict=True))
    for F in G.factors:
        assert orthonormality_error(F) <= 10
    at = torch.cartesian_prod(*axes)
    values = P(at).reshape(sizes)
    # Sums of 7·10·5 products of Gaussians, 24 of the core.
    bound = 1e3 * U * float(P.coefficients.full().abs().sum())
    assert float((G.full() - values).abs().max()) <= bound


def test_on_grid_forms_nothing_large():
    T = la.chebyshev_tucker(runge, CUBE * 3, tol=1e-6, seed=0)
    axis = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    G = T.on_grid(axis, axis, axis)  # 8e12 entries
    assert G.size < 3 * 20001 * 20
    assert float(abs(G.at([[10000, 10000, 10000]]) - 1)) <= 1e-6


def test_arithmetic(product):
    T, f, domain = product
    g = lambda x: torch.cos(x.sum(1)) - x[:, 1]  # noqa: E731
    S = la.chebyshev_tucker(g, domain, tol=1e-13, seed=1)
    x = points(1000, domain)
    for combined, exact in [
        (T + S, f(x) + g(x)),
        (T - S, f(x) - g(x)),
        (2 * T - S / 4, 2 * f(x) - g(x) / 4),
        (-T + 1.5, 1.5 - f(x)),
        (3 - T, 3 - f(x)),
        (np.float64(2) * T, 2 * f(x)),
        (T * S, f(x) * g(x)),
        (S * S, g(x) ** 2),
    ]:
        assert float((combined(x) - exact).abs().max()) <= 1e-12 * float(exact.abs().max())
        assert combined.info is None
    assert (T + S).degrees == tuple(map(max, zip(T.degrees, S.degrees, strict=True)))
    assert (T * S).degrees == tuple(map(sum, zip(T.degrees, S.degrees, strict=True)))
    assert (T + S).ranks == tuple(map(sum, zip(T.ranks, S.ranks, strict=True)))
    # Rounding makes ranks small again.
    same = (T + T).rounded(tol=1e-12)
    assert same.ranks == T.ranks
    assert float((same(x) - 2 * f(x)).abs().max()) <= 1e-11 * T.info.scale
    assert (S + T).rounded(1).ranks == (1, 1, 1)
    zero = T - T
    assert float(zero(x).abs().max()) <= 1e-13 * T.info.scale


def test_arithmetic_refuses_what_does_not_fit(product):
    T, f, domain = product
    other = la.chebyshev_tucker(f, [(-1, 1)] * 3, tol=1e-3, seed=0)
    for combine in (lambda: T + other, lambda: T - other, lambda: T * other):
        with pytest.raises(ValueError, match=r"ChebyshevTucker.*must have the same domain"):
            combine()
    single = la.chebyshev_tucker(f, domain, tol=1e-3, dtype=torch.float32, seed=0)
    with pytest.raises(ValueError, match="same dtype"):
        T + single
    with pytest.raises(TypeError, match="must be a real number"):
        T + "one"
    with pytest.raises(TypeError, match="a real tensor takes a real number"):
        T * 1j


def test_from_coefficients():
    # 2·T₁(x)·T₂(y) = 2·x·(2·y² − 1), from coefficients without factors.
    c = torch.zeros(2, 3, dtype=torch.float64)
    c[1, 2] = 2
    T = la.ChebyshevTucker(la.TuckerTensor(c, [None, None]), CUBE * 2)
    x = points(50, CUBE * 2)
    exact = 2 * x[:, 0] * (2 * x[:, 1] ** 2 - 1)
    assert float((T(x) - exact).abs().max()) <= 20 * U
    assert T.coefficients.shape == (2, 3)
    assert torch.equal(T.coefficients.full(), c)
    with pytest.raises(ValueError, match="an interval for each of 2 axes, got 1"):
        la.ChebyshevTucker(la.TuckerTensor(c, [None, None]), CUBE)
    with pytest.raises(TypeError, match="must be a TuckerTensor"):
        la.ChebyshevTucker(c, CUBE * 2)
    batch = la.TuckerTensor(torch.ones(2, 1, 1), [torch.ones(2, 3, 1)] * 2)
    with pytest.raises(ValueError, match="one tensor, got a batch"):
        la.ChebyshevTucker(batch, CUBE * 2)


def test_saved_and_loaded(product, tmp_path):
    T, _, domain = product
    T.save(tmp_path / "function")
    loaded = la.ChebyshevTucker.load(tmp_path / "function")
    x = points(20, domain)
    for copy in (loaded, pickle.loads(pickle.dumps(T)), T.to("cpu")):
        assert torch.equal(copy(x), T(x))
        assert copy.info == T.info
        assert copy.domain == T.domain
        assert repr(copy) == repr(T)
    damaged = (tmp_path / "function").read_bytes()[:-100]
    (tmp_path / "function").write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        la.ChebyshevTucker.load(tmp_path / "function")


def test_numpy_gives_the_same():
    def f(x):
        assert isinstance(x, np.ndarray)
        values = np.exp(-np.sum(x**2, axis=1))
        x[:] = 0  # what a function does to its argument is its own business
        return values

    T = la.chebyshev_tucker(f, CUBE * 2, tol=1e-8, seed=0, out="numpy")
    same = la.chebyshev_tucker(lambda x: torch.exp(-x.square().sum(1)), CUBE * 2, tol=1e-8, seed=0)
    x = points(100, CUBE * 2)
    values = T(x.numpy())
    assert isinstance(values, np.ndarray)
    # exp here and there: an ulp.
    assert np.abs(values - same(x).numpy()).max() <= 1e-14
    grid = T.on_grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 6))
    assert isinstance(grid.full(), np.ndarray)
    assert isinstance(T.integral(0)(x.numpy()[:, :1]), np.ndarray)
    with pytest.raises(TypeError, match="points must be of the kind of T"):
        T(x)
    with pytest.raises(TypeError, match="points must be of the kind of T"):
        same(x.numpy())


def test_seeds():
    one, same, other = (
        la.chebyshev_tucker(runge, CUBE * 3, tol=1e-5, seed=seed, **CROSS) for seed in (3, 3, 4)
    )
    x = points(10, CUBE * 3)
    assert torch.equal(one(x), same(x))
    assert one.info == same.info
    assert not torch.equal(one(x), other(x))


def test_blocks_and_counts(monkeypatch):
    sizes = []

    def f(x):
        sizes.append(len(x))
        assert bool(((x >= -2) & (x <= 3)).all())
        return runge(x)

    T = la.chebyshev_tucker(f, [(-2, 3)] * 3, tol=1e-6, seed=0)
    assert T.info.evaluations == sum(sizes)
    assert max(sizes) <= 1 << 16
    assert len(sizes) > 10
    # Blocks of the evaluation change nothing.
    x = points(1000, [(-2, 3)] * 3)
    whole = T(x)
    monkeypatch.setattr("fastlr.linalg.chebyshev_tensor._BLOCK", 3000)
    # Products of other heights may sum in another order.
    assert float((T(x) - whole).abs().max()) <= 1e-13 * T.info.scale
    assert T(x[:0]).shape == (0,)


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"f": 3}, TypeError, "f must be a function, got 3"),
        ({"tol": 0}, ValueError, "tol must be between 0 and 1, got 0"),
        ({"tol": 1.0}, ValueError, "tol must be between 0 and 1, got 1"),
        ({"tol": math.nan}, ValueError, "tol must be between 0 and 1, got nan"),
        ({"tol": "small"}, TypeError, "tol must be a real number"),
        ({"domain": []}, ValueError, r"domain must be a sequence of \(low, high\)"),
        ({"domain": 3}, ValueError, r"domain must be a sequence of \(low, high\)"),
        ({"domain": [(0, 1), (2,)]}, ValueError, r"domain must be a sequence of \(low, high\)"),
        ({"domain": [(0, 1), (2, 2)]}, ValueError, r"got \(2, 2\) for axis 1"),
        ({"domain": [(1, 0), (0, 1)]}, ValueError, r"low < high, got \(1, 0\) for axis 0"),
        ({"domain": [(0, math.inf)]}, ValueError, r"finite low < high, got \(0, inf\) for axis 0"),
        (
            {"domain": [(1, 1 + 1e-9)], "dtype": torch.float32},
            ValueError,
            r"got \(1, 1\) for axis 0 in torch.float32",
        ),
        ({"domain": [(math.nan, 1)]}, ValueError, r"got \(nan, 1\) for axis 0"),
        ({"max_degree": -1}, ValueError, "max_degree must be at least 0, got -1"),
        ({"max_grid": 0}, ValueError, "max_grid must be at least 1, got 0"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"dtype": torch.complex64}, TypeError, "dtype must be float32 or float64"),
        ({"out": "jax"}, ValueError, "out must be"),
        ({"seed": 1.5}, TypeError, "seed must be"),
        (
            {"f": lambda x: x},
            ValueError,
            r"f must return shape \(\d+,\) for points of shape \(\d+, 2\)",
        ),
        ({"f": lambda x: 1.0}, ValueError, r"f must return shape \(\d+,\).*, got \(\)"),
        ({"f": lambda x: np.array(["a"] * len(x))}, TypeError, "what f returns must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    given = {"f": runge, "domain": CUBE * 2, "tol": 1e-3, **arguments}
    with pytest.raises(error, match=message) as raised:
        la.chebyshev_tucker(given.pop("f"), given.pop("domain"), **given)
    assert str(raised.value).startswith("chebyshev_tucker: ")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_point_of_a_bad_value_is_named(bad):
    seen = []

    def f(x):
        values = runge(x)
        hit = (x[:, 0] > 0.9).nonzero()
        if len(hit):
            seen.append(x[hit[0, 0]].clone())
            values[hit[0, 0]] = bad
        x.zero_()  # what a function does to its argument is its own business
        return values

    with pytest.raises(ValueError, match=r"f must return finite numbers, got (nan|inf)") as raised:
        la.chebyshev_tucker(f, CUBE * 2, tol=1e-3, seed=0)
    assert str(tuple(seen[0].tolist())) in str(raised.value)


def test_what_f_raises_passes_through():
    def f(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        la.chebyshev_tucker(f, CUBE, tol=1e-3)


def test_real_then_complex_is_refused():
    calls = itertools.count()

    def f(x):
        return runge(x) if next(calls) < 2 else runge(x) * 1j

    with pytest.raises(ValueError, match="always return real numbers, or never"):
        la.chebyshev_tucker(f, CUBE * 2, tol=1e-3, seed=0)


def test_bad_points(product):
    T, _, domain = product
    x = points(5, domain)
    for bad in (x[:, :2], x[0], x[None]):
        with pytest.raises(ValueError, match=r"points must have shape \(p, 3\)"):
            T(bad)
    x[3, 1] = 1.01
    with pytest.raises(ValueError, match=r"from 0 to 1 for axis 1, got 1.01 at \(3, 1\)"):
        T(x)
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match="got nan"):
        T(x)
    ends = torch.tensor(list(itertools.product(*domain)), dtype=torch.float64)
    assert bool(torch.isfinite(T(ends)).all())
    axis = torch.linspace(0, 1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="axes must be 3 vectors of coordinates, got 2"):
        T.on_grid(axis, axis)
    with pytest.raises(ValueError, match=r"on_grid: points must lie.*from 2 to 3 for axis 2"):
        T.on_grid(axis, axis, axis)
    with pytest.raises(ValueError, match=r"axes\[0\] must be a vector"):
        T.on_grid(axis[None], axis, axis + 2)
    for method in (T.derivative, T.integral):
        with pytest.raises(ValueError, match="axis must be from -3 to 2, got 3"):
            method(3)
    with pytest.raises(ValueError, match="order must be at least 1"):
        T.derivative(0, 0)
    with pytest.raises(TypeError, match="points must be real"):
        T(x + 1j)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [FULL, CROSS])
def test_a_gpu_finds_the_same(kind):
    T = la.chebyshev_tucker(runge, CUBE * 3, tol=1e-6, device="cuda", seed=0, **kind)
    x = points(100, CUBE * 3)
    assert float((T(x.cuda()).cpu() - runge(x)).abs().max()) <= 1e-6
