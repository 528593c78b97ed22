"""Constrained minima of known problems, against their published values and SciPy."""

import itertools
import math
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch

import fastlr.linalg as la
from fastlr.linalg import constrained
from strategies import hermitian


class Problem(NamedTuple):
    fun: object
    constraint: object
    x0: tuple
    minimum: float
    x: tuple | None = None


def stack(function):
    """A vector of the entries that a function returns."""
    return lambda x: torch.stack(tuple(function(*x)))


def scalar(function):
    return lambda x: function(*x)


ROOT2 = math.sqrt(2)

# Hock, Schittkowski, "Test examples for nonlinear programming codes", 1981 (HS), and Boggs, Tolle,
# SINUM 26 (1989) (BT), in the formulas of the problems; Maratos's circle.
PROBLEMS = {
    "HS6": Problem(
        scalar(lambda a, b: (1 - a) ** 2),
        stack(lambda a, b: [10 * (b - a**2)]),
        (-1.2, 1),
        0,
        (1, 1),
    ),
    "HS7": Problem(
        scalar(lambda a, b: torch.log(1 + a**2) - b),
        stack(lambda a, b: [(1 + a**2) ** 2 + b**2 - 4]),
        (2, 2),
        -math.sqrt(3),
        (0, math.sqrt(3)),
    ),
    "HS8": Problem(
        scalar(lambda a, b: -torch.ones_like(a)),
        stack(lambda a, b: [a**2 + b**2 - 25, a * b - 9]),
        (2, 1),
        -1,
    ),
    "HS9": Problem(
        scalar(lambda a, b: torch.sin(math.pi * a / 12) * torch.cos(math.pi * b / 16)),
        stack(lambda a, b: [4 * a - 3 * b]),
        (0, 0),
        -0.5,
    ),
    "HS26": Problem(
        scalar(lambda a, b, c: (a - b) ** 2 + (b - c) ** 4),
        stack(lambda a, b, c: [(1 + b**2) * a + c**4 - 3]),
        (-2.6, 2, 2),
        0,
    ),
    "HS27": Problem(
        scalar(lambda a, b, c: 0.01 * (a - 1) ** 2 + (b - a**2) ** 2),
        stack(lambda a, b, c: [a + c**2 + 1]),
        (2, 2, 2),
        0.04,
        (-1, 1, 0),
    ),
    "HS28": Problem(
        scalar(lambda a, b, c: (a + b) ** 2 + (b + c) ** 2),
        stack(lambda a, b, c: [a + 2 * b + 3 * c - 1]),
        (-4, 1, 1),
        0,
        (0.5, -0.5, 0.5),
    ),
    "HS39": Problem(
        scalar(lambda a, b, c, d: -a),
        stack(lambda a, b, c, d: [b - a**3 - c**2, a**2 - b - d**2]),
        (2, 2, 2, 2),
        -1,
        (1, 1, 0, 0),
    ),
    "HS40": Problem(
        scalar(lambda a, b, c, d: -a * b * c * d),
        stack(lambda a, b, c, d: [a**3 + b**2 - 1, a**2 * d - c, d**2 - b]),
        (0.8, 0.8, 0.8, 0.8),
        -0.25,
    ),
    "HS42": Problem(
        scalar(lambda a, b, c, d: (a - 1) ** 2 + (b - 2) ** 2 + (c - 3) ** 2 + (d - 4) ** 2),
        stack(lambda a, b, c, d: [a - 2, c**2 + d**2 - 2]),
        (1, 1, 1, 1),
        28 - 10 * ROOT2,
        (2, 2, 0.6 * ROOT2, 0.8 * ROOT2),
    ),
    "HS46": Problem(
        scalar(lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6),
        stack(lambda a, b, c, d, e: [a**2 * d + torch.sin(d - e) - 1, b + c**4 * d**2 - 2]),
        (ROOT2 / 2, 1.75, 0.5, 2, 2),
        0,
    ),
    "HS48": Problem(
        scalar(lambda a, b, c, d, e: (a - 1) ** 2 + (b - c) ** 2 + (d - e) ** 2),
        stack(lambda a, b, c, d, e: [a + b + c + d + e - 5, c - 2 * (d + e) + 3]),
        (3, 5, -3, 2, -2),
        0,
        (1, 1, 1, 1, 1),
    ),
    "HS49": Problem(
        scalar(lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6),
        stack(lambda a, b, c, d, e: [a + b + c + 4 * d - 7, c + 5 * e - 6]),
        (10, 7, 2, -3, 0.8),
        0,
    ),
    "HS50": Problem(
        scalar(lambda a, b, c, d, e: (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 2),
        stack(
            lambda a, b, c, d, e: [
                a + 2 * b + 3 * c - 6,
                b + 2 * c + 3 * d - 6,
                c + 2 * d + 3 * e - 6,
            ]
        ),
        (35, -31, 11, 5, -5),
        0,
        (1, 1, 1, 1, 1),
    ),
    "HS51": Problem(
        scalar(lambda a, b, c, d, e: (a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2),
        stack(lambda a, b, c, d, e: [a + 3 * b - 4, c + d - 2 * e, b - e]),
        (2.5, 0.5, 2, -1, 0.5),
        0,
        (1, 1, 1, 1, 1),
    ),
    "HS52": Problem(
        scalar(
            lambda a, b, c, d, e: (4 * a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2
        ),
        stack(lambda a, b, c, d, e: [a + 3 * b, c + d - 2 * e, b - e]),
        (2, 2, 2, 2, 2),
        1859 / 349,
        tuple(np.array([-33, 11, 180, -158, 11]) / 349),
    ),
    "HS77": Problem(
        scalar(
            lambda a, b, c, d, e: (
                (a - 1) ** 2 + (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6
            )
        ),
        stack(
            lambda a, b, c, d, e: [
                a**2 * d + torch.sin(d - e) - 2 * ROOT2,
                b + c**4 * d**2 - 8 - ROOT2,
            ]
        ),
        (2, 2, 2, 2, 2),
        0.24150513,
    ),
    "HS78": Problem(
        scalar(lambda a, b, c, d, e: a * b * c * d * e),
        stack(
            lambda a, b, c, d, e: [
                a**2 + b**2 + c**2 + d**2 + e**2 - 10,
                b * c - 5 * d * e,
                a**3 + b**3 + 1,
            ]
        ),
        (-2, 1.5, 2, -1, -1),
        -2.91970041,
    ),
    "HS79": Problem(
        scalar(
            lambda a, b, c, d, e: (
                (a - 1) ** 2 + (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 4
            )
        ),
        stack(
            lambda a, b, c, d, e: [
                a + b**2 + c**3 - 2 - 3 * ROOT2,
                b - c**2 + d + 2 - 2 * ROOT2,
                a * e - 2,
            ]
        ),
        (2, 2, 2, 2, 2),
        0.0787768209,
    ),
    "BT1": Problem(
        scalar(lambda a, b: 100 * a**2 + 100 * b**2 - a - 100),
        stack(lambda a, b: [a**2 + b**2 - 1]),
        (0.08, 0.06),
        -1,
        (1, 0),
    ),
    "Maratos": Problem(
        scalar(lambda a, b: -a + 2 * (a**2 + b**2 - 1)),
        stack(lambda a, b: [a**2 + b**2 - 1]),
        (0.8, 0.6),
        -1,
        (1, 0),
    ),
}

# For which the Hessian on the null space is singular at the solution: x is known to the root, or
# the fifth, of the residual.
FLAT = {"HS26", "HS46", "HS49"}


def minimize(problem, dtype=torch.float64, **options):
    x0 = torch.tensor(problem.x0, dtype=dtype)
    return la.minimize_equality(problem.fun, problem.constraint, x0, seed=0, **options)


@pytest.mark.parametrize("name", PROBLEMS)
def test_known_minima(name):
    problem = PROBLEMS[name]
    x, multipliers = minimum = minimize(problem)
    info = minimum.info
    assert info.converged
    assert info.message == "tol met"
    gradient = torch.func.grad(problem.fun)(x)
    jacobian = torch.func.jacrev(problem.constraint)(x)
    slope = gradient + jacobian.T @ multipliers
    residual = torch.cat([slope, problem.constraint(x)]).norm().item()
    # Of terms of the size of ∇f, Jᵀλ and 1, in another order.
    size = 10 + gradient.norm().item() + (jacobian.norm() * multipliers.norm()).item()
    assert info.residual == pytest.approx(residual, abs=1e2 * 2.0**-53 * size)
    assert residual <= 2.0**-26.5 * max(1, gradient.norm().item()) + 1e2 * 2.0**-53 * size
    assert info.infeasibility == problem.constraint(x).norm().item()
    assert info.objective == pytest.approx(problem.fun(x).item())
    # f is flat along the constraints, and steep across them by ‖λ‖: 1e-8 published, and 1e-8 left.
    assert info.objective == pytest.approx(problem.minimum, abs=1e-7 * size)
    if problem.x is not None:
        # Residuals of 1e-8 over Hessians of the order of 1; 0.01 in HS27.
        np.testing.assert_allclose(x.numpy(), problem.x, atol=1e-5)


@pytest.mark.parametrize("name", ["HS6", "HS7", "HS39", "HS42", "HS48", "HS52", "HS77", "HS79"])
def test_against_scipy(name):
    problem = PROBLEMS[name]

    def numpy(function):
        return lambda x: function(torch.from_numpy(x)).numpy()

    reference = scipy.optimize.minimize(
        numpy(problem.fun),
        np.array(problem.x0, dtype=float),
        jac=numpy(torch.func.grad(problem.fun)),
        hess=numpy(torch.func.hessian(problem.fun)),
        method="trust-constr",
        constraints=scipy.optimize.NonlinearConstraint(
            numpy(problem.constraint),
            0,
            0,
            jac=numpy(torch.func.jacrev(problem.constraint)),
            hess=lambda x, v: numpy(
                torch.func.hessian(lambda y: torch.from_numpy(v) @ problem.constraint(y))
            )(x),
        ),
        options={"gtol": 1e-9, "xtol": 1e-12, "maxiter": 2000},
    )
    minimum = minimize(problem)
    # Both stop at residuals of 1e-8, over Hessians of 0.1 or more.
    np.testing.assert_allclose(minimum.x.numpy(), reference.x, atol=1e-5)
    assert minimum.info.objective <= reference.fun + 1e-7


@pytest.mark.parametrize("name", ["HS7", "HS28", "HS42", "HS77"])
def test_float32(name):
    problem = PROBLEMS[name]
    minimum = minimize(problem, torch.float32)
    assert minimum.info.converged
    assert minimum.x.dtype == minimum.multipliers.dtype == torch.float32
    # 2.4e-4 of a gradient of some units, over curvatures of 1.
    assert minimum.info.objective == pytest.approx(problem.minimum, abs=1e-2)


def test_derivatives_that_are_given_are_used():
    problem, calls = PROBLEMS["HS77"], set()

    def counted(name, function):
        def call(*arguments):
            calls.add(name)
            return function(*arguments)

        return call

    def lagrangian(x, multipliers):
        return problem.fun(x) + multipliers @ problem.constraint(x)

    derivatives = {
        "grad": counted("grad", torch.func.grad(problem.fun)),
        "jac": counted("jac", torch.func.jacrev(problem.constraint)),
        "hess": counted("hess", torch.func.hessian(lagrangian)),
    }
    expected = minimize(problem)
    for names in (["grad"], ["jac"], ["hess"], ["grad", "jac", "hess"]):
        calls.clear()
        minimum = minimize(problem, **{name: derivatives[name] for name in names})
        assert calls == set(names)
        # The same arithmetic but for its order, over some iterations.
        torch.testing.assert_close(minimum.x, expected.x, rtol=1e-7, atol=1e-7)
        assert minimum.info.iterations == expected.info.iterations
    # A wrong Hessian is noticed where it is not symmetric.
    with pytest.raises(torch.linalg.LinAlgError, match="hess must return a symmetric matrix"):
        minimize(problem, hess=lambda x, multipliers: torch.triu(torch.ones(5, 5).double()))


def test_smallest_eigenvalue():
    n = 60
    values = np.linspace(-1, 2, n)
    C = hermitian(values)
    x0 = np.random.default_rng(0).standard_normal(n)
    x, multipliers = minimum = la.minimize_equality(
        lambda x: x @ C @ x, lambda x: (x @ x - 1)[None], x0, seed=0
    )
    assert isinstance(x, np.ndarray)
    assert minimum.info.converged
    # Every eigenvector is a stationary point; one alone is a minimum.
    assert minimum.info.objective == pytest.approx(-1, abs=1e-8)
    assert multipliers[0] == pytest.approx(1, abs=1e-7)
    assert minimum.info.modified > 0


def test_logistic_regression_with_constraints():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    n, rows = 120, 400
    X, labels = random(rows, n), random(rows).sign()
    A, b = random(10, n), random(10)

    def loss(x):
        return torch.nn.functional.softplus(-labels * (X @ x)).mean()

    def constraint(x):
        return torch.cat([A @ x - b, (x @ x - 1)[None]])

    minimum = la.minimize_equality(loss, constraint, torch.ones(n, dtype=torch.float64), seed=0)
    assert minimum.info.converged
    assert minimum.info.infeasibility <= 1e-8
    # Second-order: no feasible direction of first order lowers the Lagrangian.
    jacobian = torch.func.jacrev(constraint)(minimum.x)
    basis = torch.linalg.qr(jacobian.T, mode="complete").Q[:, len(jacobian) :]
    hessian = torch.func.hessian(lambda x: loss(x) + minimum.multipliers @ constraint(x))(minimum.x)
    assert torch.linalg.eigvalsh(basis.T @ hessian @ basis)[0] > 0


def circle(x):
    return (x @ x - 1)[None]


def test_a_maximum_is_left(monkeypatch):
    start = torch.tensor([-1.0, 0.05], dtype=torch.float64)
    minimum = la.minimize_equality(lambda x: -x[0], circle, start, seed=0)
    assert minimum.info.converged
    assert minimum.info.modified > 0
    assert minimum.info.objective == pytest.approx(-1)
    # The negative control: without a modified Hessian Newton's method goes to the maximum.
    monkeypatch.setattr(constrained, "positive_on_null_space", lambda H, J: H)
    monkeypatch.setattr(constrained._Newton, "_search", _whole_step)
    monkeypatch.setattr(constrained, "_MOST_ETA1", 1.0)
    monkeypatch.setattr(constrained._Newton, "_along", lambda *arguments: -math.inf)
    assert la.minimize_equality(lambda x: -x[0], circle, start, seed=0).info.objective > 0.99


def _whole_step(newton, point, dx, dual, along):
    problem, x = newton._problem, point.x + dx
    return problem.at(x, point.multipliers + dual, problem.objective(x), problem.values(x))


def test_modified_hessians():
    J = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Z = torch.linalg.qr(J.T, mode="complete").Q[:, 4:]
    for J_ in (J, torch.cat([J, J[:2]]), J[:0]):
        null = torch.linalg.svd(J_).Vh[4:] if len(J_) else torch.eye(12, dtype=J.dtype)
        H = hermitian(np.linspace(-1, 1, 12))
        B = constrained.positive_on_null_space(H, J_)
        before, after = (torch.linalg.eigvalsh(null @ M @ null.T) for M in (H, B))
        # Magnitudes, in another order.
        torch.testing.assert_close(after, before.abs().sort().values, rtol=0, atol=1e-12)
        # Nothing else is changed: neither the range of Jᵀ nor what couples it to the null space.
        across = torch.eye(12, dtype=J.dtype) - null.T @ null
        torch.testing.assert_close(across @ B, across @ H, rtol=0, atol=1e-12)
    # What is definite where it has to be is left alone.
    H = Z @ Z.T - 5 * (torch.eye(12, dtype=J.dtype) - Z @ Z.T)
    assert constrained.positive_on_null_space(H, J) is H


def test_quadratic_convergence():
    residuals = []
    for iterations in range(4, 10):
        with pytest.warns(la.ConvergenceWarning, match=f"not met in {iterations} iterations"):
            minimum = minimize(PROBLEMS["HS77"], tol=1e-30, max_iters=iterations)
        residuals.append(minimum.info.residual)
    # Quadratic with a constant of some units, down to rounding; the accuracy of the steps follows.
    for before, after in itertools.pairwise(residuals):
        assert after <= max(100 * before**2, 1e-13)
    assert residuals[-1] < 1e-10


def test_loose_steps_converge_slower(monkeypatch):
    # The negative control: with steps of a fixed accuracy convergence is linear.
    tight = minimize(PROBLEMS["HS77"]).info.iterations

    def rough(*operands, tol, **options):
        dx, dual, info = solve(*operands, tol=1e-12, **options)
        return dx * 0.9, dual * 0.9, info

    solve = constrained.solve_operators
    monkeypatch.setattr(constrained, "solve_operators", rough)
    assert minimize(PROBLEMS["HS77"]).info.iterations > tight + 2


def test_redundant_constraints():
    problem = PROBLEMS["HS52"]
    twice = minimize(problem._replace(constraint=lambda x: problem.constraint(x).repeat(2)[:5]))
    assert twice.info.converged
    np.testing.assert_allclose(twice.x.numpy(), problem.x, atol=1e-7)
    with pytest.raises(torch.linalg.LinAlgError, match=r"minimize_equality: the Jacobian.*rank"):
        la.minimize_equality(
            lambda x: x @ x, lambda x: torch.stack([x[0] - 1, x[0] - 2]), torch.zeros(3), seed=0
        )


def test_without_constraints_and_without_freedom():
    free = la.minimize_equality(
        lambda x: (x - 2).square().sum() + (x[0] * x[1]) ** 2,
        lambda x: x[:0],
        torch.ones(3).double(),
    )
    assert free.info.converged
    assert free.multipliers.shape == (0,)
    square = la.minimize_equality(
        lambda x: x @ x, lambda x: x**3 - 8, torch.ones(3).double(), seed=0
    )
    torch.testing.assert_close(square.x, torch.full((3,), 2.0).double())
    torch.testing.assert_close(square.multipliers, torch.full((3,), -1 / 3).double())


def test_what_does_not_converge_says_so():
    unbounded = {"fun": lambda x: x[0], "constraint": lambda x: x[1:2], "x0": torch.zeros(3)}
    with pytest.warns(la.ConvergenceWarning, match=r"minimize_equality: .*the residual is"):
        info = la.minimize_equality(**unbounded, max_iters=20, seed=0).info
    assert not info.converged
    with pytest.warns(la.ConvergenceWarning, match="tol not met in 1 iterations"):
        info = minimize(PROBLEMS["HS77"], max_iters=1).info
    assert (info.iterations, info.converged) == (1, False)


def test_steps_stay_where_the_functions_are_defined():
    # The whole first step leaves the domain of the logarithm, where f is NaN.
    minimum = la.minimize_equality(
        lambda x: x[0] - torch.log(x[0]) + x[1] ** 2,
        lambda x: x[1:2] - 0.1 * x[0:1],
        torch.tensor([5.0, 0.0]).double(),
        seed=0,
    )
    assert minimum.info.converged
    assert minimum.x[0] > 0


def test_multipliers_seeds_and_pickles():
    problem = PROBLEMS["HS77"]
    minimum = minimize(problem)
    assert minimize(problem, multipliers=[1.0, 1.0]).info.converged
    again = la.minimize_equality(
        problem.fun, problem.constraint, minimum.x, multipliers=minimum.multipliers
    )
    assert again.info.iterations == 0
    assert torch.equal(minimize(problem).x, minimum.x)
    copied = pickle.loads(pickle.dumps(minimum))
    assert copied.info == minimum.info
    start = torch.tensor(problem.x0, dtype=torch.float64, requires_grad=True)
    assert not la.minimize_equality(problem.fun, problem.constraint, start).x.requires_grad


def sphere(x):
    return x @ x


ARGUMENTS = {"fun": sphere, "constraint": circle, "x0": torch.ones(3)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"fun": 3}, TypeError, "minimize_equality: fun must be a function, got 3"),
        ({"constraint": None}, TypeError, "constraint must be a function, got None"),
        ({"jac": 3}, TypeError, "jac must be a function"),
        ({"fun": lambda x: 1.0}, TypeError, "fun must return a Tensor, got float"),
        ({"fun": lambda x: x}, ValueError, r"fun must return shape \(\), got \(3,\)"),
        ({"fun": lambda x: sphere(x).double()}, ValueError, "fun must return torch.float32 on cpu"),
        ({"fun": lambda x: sphere(x) / 0}, ValueError, "fun must be finite at x0, got inf"),
        ({"constraint": sphere}, ValueError, r"constraint must return a vector, got shape \(\)"),
        ({"constraint": lambda x: x.repeat(2)}, ValueError, "as many constraints as unknowns, 3"),
        ({"grad": lambda x: x[:2]}, ValueError, r"grad must return shape \(3,\), got \(2,\)"),
        ({"jac": lambda x: x}, ValueError, r"jac must return shape \(1, 3\), got \(3,\)"),
        ({"hess": lambda x, m: x}, ValueError, r"hess must return shape \(3, 3\), got \(3,\)"),
        ({"x0": torch.ones(3, 1)}, ValueError, r"x0 must be a vector, got shape \(3, 1\)"),
        ({"x0": torch.ones(3) + 1j}, TypeError, "x0 must be real"),
        ({"multipliers": [1.0, 2.0]}, ValueError, r"multipliers must have shape \(1,\).*got \(2,"),
        ({"tol": -1.0}, ValueError, "tol must be positive, got -1"),
        ({"max_iters": 0}, ValueError, "max_iters must be at least 1, got 0"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        la.minimize_equality(**(ARGUMENTS | change))
