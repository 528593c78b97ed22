"""complete: a matrix from some of its entries."""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from strategies import gaussian, seeds

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def planted(m, n, rank, oversampling, seed=0, condition=1.0, noise=0.0, dtype=torch.float64):
    """A matrix of low rank, and as many of its entries as `oversampling` degrees of freedom."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(0, -math.log10(condition), rank)
    A = (rng.standard_normal((m, rank)) * scale) @ rng.standard_normal((rank, n))
    count = int(oversampling * rank * (m + n - rank))
    rows, cols = np.divmod(rng.choice(m * n, count, replace=False), n)
    values = A[rows, cols] + noise * rng.standard_normal(count)
    return torch.from_numpy(A), (
        *map(torch.from_numpy, (rows, cols)),
        torch.tensor(values).to(dtype),
    )


def ratings(m=60, n=40, share=0.3, seed=0, dtype=torch.float64):
    """Values with biases, some rows with a single entry, and their weights."""
    rng = np.random.default_rng(seed)
    known = rng.random((m, n)) < share
    known[:5] = np.eye(5, n, dtype=bool)
    rows, cols = np.nonzero(known)
    values = 3 + rng.standard_normal(m)[rows] + rng.standard_normal(n)[cols]
    values += 0.5 * rng.standard_normal(len(rows))
    weights = rng.integers(1, 4, len(rows)).astype(float)
    return (
        *map(torch.from_numpy, (rows, cols)),
        torch.tensor(values).to(dtype),
        torch.tensor(weights),
    )


def relative_error(X, A):
    return float(torch.linalg.norm(torch.as_tensor(X).double() - A) / torch.linalg.norm(A))


def normal_solution(completion, observed, row, ridge, weights=None, biases=False, by_entry=False):
    """The row that minimises the objective for V, by the normal equations in float64."""
    rows, cols, values = (np.asarray(part) for part in observed)
    mine = rows == row
    X = np.asarray(completion.V, dtype=np.float64)[cols[mine]]
    y = values[mine].astype(np.float64) - completion.mean
    if biases:
        y = y - np.asarray(completion.col_biases, dtype=np.float64)[cols[mine]]
        X = np.column_stack([X, np.ones(len(X))])
    w = np.ones(mine.sum()) if weights is None else np.asarray(weights)[mine]
    penalty = ridge * (w.sum() if by_entry else 1.0)
    return np.linalg.solve(X.T @ (w[:, None] * X) + penalty * np.eye(X.shape[1]), X.T @ (w * y))


# ---- altmin ----


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("oversampling", [2.5, 3])
def test_recovers_an_incoherent_matrix(oversampling, solver):
    A, entries = planted(200, 150, 5, oversampling)
    completion = la.complete(*entries, A.shape, 5, solver=solver, seed=0)
    assert completion.info.converged
    assert completion.info.determined
    # It ends at u^(3/4) of the observed entries; those of a sample of 2.5 degrees of freedom bound
    # the others by some ten times that.
    assert relative_error(completion.dense(), A) < 1e-10


def test_plain_alternation_does_not_recover_it():
    # The negative control: the same entries, without a ridge that follows what is left.
    A, entries = planted(200, 150, 5, 2.5, seed=3)
    completion = la.complete(*entries, A.shape, 5, method="als", max_sweeps=200, tol=0, seed=0)
    assert relative_error(completion.dense(), A) > 0.1
    assert relative_error(la.complete(*entries, A.shape, 5, seed=0).dense(), A) < 1e-10


@settings(max_examples=10)
@given(seed=seeds, oversampling=st.floats(3, 6), rank=st.integers(1, 6), tall=st.booleans())
def test_recovers_whatever_is_well_sampled(seed, oversampling, rank, tall):
    shape = (160, 120) if tall else (120, 160)
    A, entries = planted(*shape, rank, oversampling + 3 / rank, seed=seed % 2**32)
    completion = la.complete(*entries, shape, rank, seed=seed)
    assert completion.info.converged
    assert relative_error(completion.dense(), A) < 1e-10


@pytest.mark.parametrize("condition", [1e2, 1e3])
def test_recovers_small_components(condition):
    A, entries = planted(300, 300, 5, 5, condition=condition)
    completion = la.complete(*entries, A.shape, 5, seed=0)
    # What is left is u^(3/4) = 1e-12 of the norm, and so 1e-9 of the smallest component.
    assert relative_error(completion.dense(), A) < 1e-10
    S = torch.linalg.svdvals(completion.dense())[:5]
    truth = torch.linalg.svdvals(A)[:5]
    torch.testing.assert_close(S, truth, rtol=1e-7, atol=0)


@pytest.mark.parametrize("oversampling", [0.8, 1.1])
def test_says_that_it_did_not_recover(oversampling):
    A, entries = planted(200, 150, 5, oversampling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        completion = la.complete(*entries, A.shape, 5, seed=0)
    assert relative_error(completion.dense(), A) > 0.1
    info = completion.info
    assert not info.determined or info.relative_residual > 1e-6


def test_too_few_sweeps_warn():
    A, entries = planted(100, 80, 3, 4)
    with pytest.warns(la.ConvergenceWarning, match="2 sweeps were not enough"):
        completion = la.complete(*entries, A.shape, 3, max_sweeps=2, seed=0)
    assert not completion.info.converged
    assert completion.info.sweeps == 2 == len(completion.history.training_error)


@pytest.mark.parametrize("noise", [1e-3, 0.1])
def test_noise_is_not_fitted(noise):
    A, entries = planted(300, 200, 4, 6, noise=noise)
    completion = la.complete(*entries, A.shape, 4, seed=0)
    assert completion.info.converged
    # The least-squares error of k(m + n - k) unknowns from |Ω| entries: noise·√(unknowns / |Ω|) an
    # entry where the sample is even; a half more for rows with few entries.
    error = float((completion.dense() - A).square().mean().sqrt())
    assert error < 1.5 * noise / math.sqrt(6)
    # What is left is the noise, less what the unknowns took of it.
    left = completion.history.training_error[-1]
    assert 0.9 * noise * math.sqrt(1 - 1 / 6) < left < 1.1 * noise


def test_rank_above_that_of_the_matrix():
    A, entries = planted(150, 120, 3, 10)
    completion = la.complete(*entries, A.shape, 5, seed=0)
    assert relative_error(completion.dense(), A) < 1e-8


def test_float32():
    A, entries = planted(300, 200, 4, 5, dtype=torch.float32)
    completion = la.complete(*entries, A.shape, 4, seed=0)
    assert completion.U.dtype == torch.float32
    # u^(3/4) = 4e-6 of what is observed.
    assert relative_error(completion.dense(), A) < 1e-4
    assert completion.info.converged


@pytest.mark.parametrize("method", ["altmin", "als"])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float64, 1e200), (torch.float64, 1e-200), (torch.float32, 1e-30)]
)
def test_any_scale(method, dtype, scale):
    A, (rows, cols, values) = planted(100, 80, 3, 6, dtype=dtype)
    # A power of two near the scale: the same digits.
    power = 2.0 ** round(math.log2(scale))
    one = la.complete(rows, cols, values, A.shape, 3, method=method, seed=0)
    other = la.complete(rows, cols, values * power, A.shape, 3, method=method, seed=0)
    assert (
        relative_error(other.dense().double() / power, one.dense().double())
        < 1e4 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("exponent", [-480, 480])
def test_a_power_of_two_changes_no_digit(exponent, solver):
    # Factors take half of it each, so that the ridge grows with the values; biases take all.
    rows, cols, values, weights = ratings()
    power = 2.0**exponent
    one, other = (
        la.complete(
            rows, cols, values * unit, (60, 40), 3, method="als", ridge=0.5 * unit, biases=True,
            bias_ridge=2.0, weights=weights, solver=solver, max_sweeps=4, tol=0, seed=0,
            validation=(rows[:50], cols[:50], values[:50] * unit),
        )
        for unit in (1.0, power)
    )  # fmt: skip
    assert torch.equal(other.U, one.U * math.sqrt(power))
    assert torch.equal(other.V, one.V * math.sqrt(power))
    assert torch.equal(other.row_biases, one.row_biases * power)
    assert torch.equal(other.col_biases, one.col_biases * power)
    assert other.mean == one.mean * power
    for name, unit in (
        ("objective", power**2),
        ("training_error", power),
        ("validation_error", power),
    ):
        expected = tuple(unit * value for value in getattr(one.history, name))
        assert getattr(other.history, name) == expected


def test_als_ends_when_the_objective_stands():
    rows, cols, values, _ = ratings()
    for tol in (1e-1, 1e-2):
        completion = la.complete(
            rows, cols, values, (60, 40), 3, method="als", ridge=0.5, tol=tol, seed=0
        )
        objective = completion.history.objective
        falls = [(a - b) / b for a, b in itertools.pairwise(objective)]
        assert completion.info.converged
        assert falls[-1] <= tol
        assert min(falls[:-1]) > tol


def test_a_zero_matrix():
    rows, cols = np.divmod(np.arange(12), 4)
    for method in ("altmin", "als"):
        completion = la.complete(rows, cols, np.zeros(12), (3, 4), 2, method=method, seed=0)
        assert np.array_equal(completion.dense(), np.zeros((3, 4)))
        assert completion.info.converged


def test_full_rows_and_columns():
    # Rows and a column with all entries beside a few in the others do not become the answer.
    A, (rows, cols, _) = planted(300, 300, 2, 4)
    A[:5] *= 3
    full = torch.arange(300)
    rows = torch.cat([rows, full % 5, full])
    cols = torch.cat([cols, full, full * 0])
    completion = la.complete(rows, cols, A[rows, cols], A.shape, 2, seed=0)
    assert relative_error(completion.dense(), A) < 1e-10


# ---- als ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by", ["row", "entry"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rank", [1, 7, 33])
def test_rows_solve_the_normal_equations(dtype, by, biases, weighted, rank):
    *observed, weights = ratings(dtype=dtype)
    weights = weights if weighted else None
    completion = la.complete(
        *observed, (60, 40), rank, method="als", ridge=0.3, ridge_by=by, biases=biases,
        weights=weights, max_sweeps=3, tol=0, seed=0,
    )  # fmt: skip
    for row in (0, 3, 17, 59):
        expected = normal_solution(completion, observed, row, 0.3, weights, biases, by == "entry")
        got = np.asarray(completion.U[row], dtype=np.float64)
        if biases:
            got = np.append(got, completion.row_biases[row])
        # The Gram matrix is well conditioned by the ridge: ‖G‖ ≤ 3·40·‖v‖², of the order of 1e3.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("biases", [False, True])
def test_objective_falls(solver, biases):
    *observed, weights = ratings()
    completion = la.complete(
        *observed, (60, 40), 6, method="als", ridge=0.1, biases=biases, weights=weights,
        solver=solver, max_sweeps=30, tol=0, seed=1,
    )  # fmt: skip
    objective = np.array(completion.history.objective)
    # Up to rounding of sums of a thousand squares.
    assert (np.diff(objective) <= 1e-12 * objective[:-1]).all()
    assert objective[-1] < 0.9 * objective[0]


def test_objective_and_errors_are_those_of_the_factors():
    *observed, weights = ratings()
    rows, cols, values = observed
    held_out = rows[:50], cols[:50], values[:50] + 1
    completion = la.complete(
        *observed, (60, 40), 4, method="als", ridge=0.2, biases=True, weights=weights,
        validation=held_out, max_sweeps=4, tol=0, seed=0,
    )  # fmt: skip
    rest = values - completion.predict(rows, cols)
    loss = (weights * rest.square()).sum()
    squares = sum(
        part.square().sum()
        for part in (completion.U, completion.V, completion.row_biases, completion.col_biases)
    )
    history = completion.history
    assert history.objective[-1] == pytest.approx(float(loss + 0.2 * squares), rel=1e-12)
    assert history.training_error[-1] == pytest.approx(
        float((loss / weights.sum()).sqrt()), rel=1e-12
    )
    missed = held_out[2] - completion.predict(*held_out[:2])
    assert history.validation_error[-1] == pytest.approx(
        float(missed.square().mean().sqrt()), rel=1e-12
    )
    norm = (weights * values.square()).sum()
    assert completion.info.relative_residual == pytest.approx(
        float((loss / norm).sqrt()), rel=1e-12
    )


def test_weights_are_repeated_observations():
    rows, cols, values, weights = ratings()
    options = {"method": "als", "ridge": 0.1, "biases": True, "max_sweeps": 5, "tol": 0, "seed": 0}
    weighted = la.complete(rows, cols, values, (60, 40), 3, weights=weights, **options)
    times = weights.long()
    repeated = la.complete(
        *(part.repeat_interleave(times) for part in (rows, cols, values)),
        (60, 40),
        3,
        **options,
    )
    # Sums in another order, in five sweeps.
    torch.testing.assert_close(weighted.dense(), repeated.dense(), rtol=0, atol=1e-12)
    unweighted = la.complete(rows, cols, values, (60, 40), 3, **options)
    assert (weighted.dense() - unweighted.dense()).abs().max() > 1e-3


def test_an_entry_of_no_weight_does_not_count():
    rows, cols, values, _ = ratings()
    weights = torch.ones_like(values)
    weights[::3] = 0
    changed = torch.where(weights > 0, values, 100.0)
    for method in ("als", "altmin"):
        one, other = (
            la.complete(rows, cols, y, (60, 40), 2, method=method, weights=weights, max_sweeps=20,
                        seed=0, tol=0).dense()
            for y in (values, changed)
        )  # fmt: skip
        assert torch.equal(one, other)


def test_biases_alone_have_the_closed_form():
    rows, cols, values, _ = ratings()
    completion = la.complete(
        rows, cols, values, (60, 40), 0, method="als", ridge=2.0, biases=True, tol=1e-15,
        max_sweeps=500, seed=0,
    )  # fmt: skip
    p = np.arange(len(rows))
    design = scipy.sparse.coo_matrix(
        (np.ones(2 * len(p)), (np.tile(p, 2), np.concatenate([rows, cols + 60])))
    ).toarray()
    y = values.numpy() - values.numpy().mean()
    exact = np.linalg.solve(design.T @ design + 2 * np.eye(100), design.T @ y)
    # It ends where a sweep lowers the objective by 1e-15: errors are of the order of the root.
    np.testing.assert_allclose(completion.row_biases, exact[:60], atol=1e-6)
    np.testing.assert_allclose(completion.col_biases, exact[60:], atol=1e-6)
    assert completion.rank == 0
    assert completion.mean == pytest.approx(values.numpy().mean(), rel=1e-14)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_a_ridge_for_biases_alone(solver):
    *observed, _ = ratings()
    options = {"method": "als", "ridge": 4.0, "biases": True, "tol": 1e-14, "max_sweeps": 2000}
    fit = la.complete(*observed, (60, 40), 3, bias_ridge=0.5, solver=solver, seed=0, **options)
    rows, cols, values = observed
    rest = values - fit.predict(rows, cols)
    # The gradient in every bias is zero: as far as a sweep that lowers the objective by 1e-14 of a
    # thousand tells, whose root is 1e-6 or so.
    for sums, biases, index in ((60, fit.row_biases, rows), (40, fit.col_biases, cols)):
        gradient = torch.zeros(sums).double().index_add_(0, index, rest) - 0.5 * biases
        assert gradient.abs().max() < 1e-4
    same = la.complete(*observed, (60, 40), 3, bias_ridge=4.0, solver=solver, seed=0, **options)
    default = la.complete(*observed, (60, 40), 3, solver=solver, seed=0, **options)
    assert torch.equal(same.dense(), default.dense())
    assert (fit.row_biases - same.row_biases).abs().max() > 0.1
    folded = fit.fold_in(*observed)
    torch.testing.assert_close(folded.row_biases, fit.row_biases, rtol=0, atol=1e-5)


def test_solvers_agree():
    *observed, weights = ratings()
    one, other = (
        la.complete(
            *observed, (60, 40), 5, method="als", ridge=1.0, biases=True, weights=weights,
            solver=solver, tol=1e-13, max_sweeps=2000, seed=0,
        )
        for solver in ("cholesky", "cg")
    )  # fmt: skip
    assert (one.info.solver, other.info.solver) == ("cholesky", "cg")
    assert other.history.objective[-1] == pytest.approx(one.history.objective[-1], rel=1e-6)


def test_solver_auto():
    *observed, _ = ratings(m=80, n=70)
    for rank, solver in ((64, "cholesky"), (65, "cg")):
        info = la.complete(
            *observed, (80, 70), rank, method="als", ridge=1, max_sweeps=1, tol=0, seed=0
        ).info
        assert info.solver == solver


@pytest.mark.parametrize("biases", [False, True])
def test_fewer_observations_than_unknowns_give_the_shortest_row(biases):
    rows, cols, values, _ = ratings()
    completion = la.complete(
        rows, cols, values, (60, 40), 4, method="als", ridge=0, biases=biases, max_sweeps=2, tol=0,
        seed=0,
    )  # fmt: skip
    for row in np.flatnonzero(np.bincount(rows, minlength=60) < 4):
        mine = rows == row
        X = completion.V[cols[mine]].numpy()
        y = values[mine].numpy() - completion.mean
        if biases:
            y = y - completion.col_biases[cols[mine]].numpy()
            X = np.column_stack([X, np.ones(len(X))])
        expected = np.linalg.pinv(X) @ y
        got = completion.U[row].numpy()
        if biases:
            got = np.append(got, completion.row_biases[row])
        # rcond of the pseudo-inverse is 4·k·u; the few columns are well conditioned.
        np.testing.assert_allclose(got, expected, atol=1e-10)


def test_rows_and_columns_without_observations():
    rows, cols, values, _ = ratings()
    for method in ("altmin", "als"):
        completion = la.complete(rows, cols, values, (70, 45), 3, method=method, seed=0)
        dense = completion.dense()
        assert dense.isfinite().all()
        assert not completion.info.determined
        assert torch.equal(dense[60:], torch.zeros(10, 45).double())
        assert torch.equal(dense[:, 40:], torch.zeros(70, 5).double())


def test_one_observation():
    for method in ("altmin", "als"):
        completion = la.complete([2], [1], [5.0], (4, 3), 1, method=method, seed=0)
        assert completion.predict(2, 1) == pytest.approx(5, rel=1e-12)
        assert np.count_nonzero(completion.dense()) == 1


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_vectors(shape):
    values = np.arange(1.0, 7)
    rows, cols = np.divmod(np.arange(6), shape[1])
    completion = la.complete(rows, cols, values, shape, 1, seed=0)
    np.testing.assert_allclose(completion.dense().ravel(), values, rtol=1e-10)


def test_nothing_observed():
    for method in ("altmin", "als"):
        completion = la.complete([], [], [], (3, 2), 1, method=method, seed=0)
        assert np.array_equal(completion.dense(), np.zeros((3, 2)))
        assert not completion.info.determined


# ---- invariances ----


@pytest.mark.parametrize("method", ["altmin", "als"])
def test_order_of_the_entries(method):
    A, entries = planted(80, 60, 3, 5)
    order = torch.randperm(len(entries[0]), generator=torch.Generator().manual_seed(0))
    one, other = (
        la.complete(*given, A.shape, 3, method=method, max_sweeps=60, tol=1e-9, seed=0).dense()
        for given in (entries, [part[order] for part in entries])
    )
    # Sums in another order, over some sweeps that forget what came before.
    assert relative_error(one, other) < 1e-9


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("method", ["altmin", "als"])
def test_number_of_threads(method, solver):
    A, entries = planted(300, 200, 9, 4)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", la.ConvergenceWarning)
                results.append(
                    la.complete(*entries, A.shape, 9, method=method, solver=solver, max_sweeps=5,
                                seed=0)
                )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    one, two = results
    if method == "als":
        assert torch.equal(one.U, two.U)
        assert torch.equal(one.V, two.V)
    else:  # the products and decompositions of tall matrices are BLAS's and LAPACK's
        assert relative_error(one.dense(), two.dense()) < 1e-9


def test_seed():
    A, entries = planted(80, 60, 3, 5)
    same = [la.complete(*entries, A.shape, 3, method="als", seed=4).U for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], la.complete(*entries, A.shape, 3, method="als", seed=5).U)


def test_every_kind_of_matrix():
    A, (rows, cols, values) = planted(60, 50, 2, 6)
    expected = la.complete(rows, cols, values, (60, 50), 2, seed=0).dense()
    coo = scipy.sparse.coo_matrix((values.numpy(), (rows.numpy(), cols.numpy())), shape=(60, 50))
    mask = torch.zeros(60, 50, dtype=torch.bool)
    mask[rows, cols] = True
    missing = torch.where(mask, A, torch.nan)
    given = [
        coo,
        coo.tocsr(),
        coo.tocsc(),
        torch.sparse_coo_tensor(torch.stack((rows, cols)), values, (60, 50)),
        torch.sparse_coo_tensor(torch.stack((rows, cols)), values, (60, 50)).to_sparse_csr(),
        missing,
        missing.numpy(),
        np.asfortranarray(missing.numpy()),
    ]
    for matrix in given:
        completion = la.complete(matrix, rank=2, seed=0)
        torch_given = isinstance(matrix, torch.Tensor)
        assert isinstance(completion.U, torch.Tensor) == torch_given
        assert relative_error(completion.dense(), expected) < 1e-9
    for dense in (A, A.numpy()):
        known = mask if isinstance(dense, torch.Tensor) else mask.numpy()
        completion = la.complete(dense, rank=2, mask=known, seed=0)
        assert relative_error(completion.dense(), expected) < 1e-9
    weights = torch.ones(60, 50)
    assert (
        relative_error(la.complete(missing, rank=2, weights=weights, seed=0).dense(), expected)
        < 1e-9
    )


def test_explicit_zeros_are_observations():
    sparse = scipy.sparse.coo_matrix(([0.0, 1.0, 2.0], ([0, 1, 2], [0, 1, 0])), shape=(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        completion = la.complete(sparse, rank=1, method="als", ridge=0.1, seed=0)
    offsets, _ = completion._seen
    assert offsets.tolist() == [0, 1, 2, 3]


def test_integers_and_halves():
    A, (rows, cols, values) = planted(60, 50, 2, 6)
    whole = (10 * values).round().to(torch.int64)
    assert la.complete(rows, cols, whole.numpy(), (60, 50), 2, seed=0).U.dtype == np.float64
    assert la.complete(rows, cols, whole, (60, 50), 2, seed=0).U.dtype == torch.float32
    half = la.complete(rows, cols, values.half(), (60, 50), 2, seed=0)
    assert half.U.dtype == torch.float16
    # The values are rounded to 2^-11.
    assert relative_error(half.dense(), A) < 0.01
    assert la.complete(rows.int(), cols.to(torch.uint8), values, (60, 50), 2, seed=0).rank == 2


def test_inputs_are_not_written_to():
    *observed, weights = ratings()
    kept = [part.clone() for part in (*observed, weights)]
    la.complete(*observed, (60, 40), 3, method="als", ridge=1, biases=True, weights=weights, seed=0)
    for before, after in zip(kept, (*observed, weights), strict=True):
        assert torch.equal(before, after)


# ---- what a completion can do ----


@pytest.fixture(scope="module")
def rated():
    *observed, weights = ratings()
    completion = la.complete(
        *observed, (60, 40), 4, method="als", ridge=0.5, biases=True, weights=weights, seed=0
    )
    return observed, weights, completion


def test_predict(rated):
    _, _, completion = rated
    dense = completion.dense()
    rows, cols = torch.tensor([[0], [7]]), torch.tensor([1, 5, 39])
    torch.testing.assert_close(completion.predict(rows, cols), dense[rows, cols])
    assert completion.predict(3, 4).shape == ()
    assert completion.predict([], []).shape == (0,)
    every = torch.arange(60).repeat(5000), torch.arange(40).repeat(7500)
    torch.testing.assert_close(completion.predict(*every), dense[every])


def test_top_k(rated):
    (rows, cols, _), _, completion = rated
    dense = completion.dense()
    for row in (0, 30):
        seen = cols[rows == row]
        unseen = torch.tensor(sorted(set(range(40)) - set(seen.tolist())))
        best = completion.top_k(row, 3)
        order = unseen[dense[row, unseen].argsort(descending=True)]
        assert best.indices.tolist() == order[:3].tolist()
        torch.testing.assert_close(best.values, dense[row, best.indices])
        every = completion.top_k(row, 100, exclude_seen=False)
        assert every.indices.tolist() == dense[row].argsort(descending=True).tolist()
        assert len(completion.top_k(row, 100).indices) == len(unseen)


@pytest.mark.parametrize("method", ["als", "altmin"])
def test_fold_in_is_what_training_gives(method):
    rows, cols, values, weights = ratings()
    options = {"ridge": 0.5, "biases": True} if method == "als" else {}
    completion = la.complete(
        rows, cols, values, (60, 40), 3, method=method, weights=weights, seed=0, **options
    )
    folded = completion.fold_in(rows, cols, values, weights=weights)
    # The last half-sweep of "als" is this; "altmin" scales the unknowns otherwise.
    scale = completion.U.abs().max()
    torch.testing.assert_close(folded.U, completion.U, rtol=0, atol=float(1e-10 * scale))
    if method == "als":
        assert torch.equal(folded.row_biases, completion.row_biases)


def test_fold_in_takes_every_form(rated):
    (rows, cols, values), _, completion = rated
    row = torch.full((40,), torch.nan).double()
    row[cols[rows == 20]] = values[rows == 20]
    mine = rows == 20
    expected = completion.fold_in(0 * rows[mine], cols[mine], values[mine]).dense()
    sparse = torch.sparse_coo_tensor(
        torch.stack((0 * rows[mine], cols[mine])), values[mine], (1, 40)
    )
    for new in (row, row[None], row.numpy(), sparse):
        folded = completion.fold_in(new)
        assert folded.shape == (1, 40)
        torch.testing.assert_close(folded.dense(), expected)
    known = ~row.isnan()
    torch.testing.assert_close(completion.fold_in(row.nan_to_num(), mask=known).dense(), expected)
    seen = set(cols[mine].tolist())
    assert not seen & set(completion.fold_in(row).top_k(0, 40).indices.tolist())


def test_save_and_load(rated, tmp_path):
    _, _, completion = rated
    completion.save(tmp_path / "ratings.pt")
    loaded = la.Completion.load(tmp_path / "ratings.pt")
    assert torch.equal(loaded.dense(), completion.dense())
    assert loaded.info == completion.info
    assert loaded.history == completion.history
    assert loaded.top_k(3, 5).indices.tolist() == completion.top_k(3, 5).indices.tolist()
    content = bytearray((tmp_path / "ratings.pt").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "ratings.pt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        la.Completion.load(tmp_path / "ratings.pt")


def test_is_made_by_complete():
    with pytest.raises(TypeError, match=r"call complete\(\)"):
        la.Completion()


# ---- bad input ----


BAD = [
    ({"rank": None}, TypeError, "rank must be given"),
    ({"rank": 41}, ValueError, r"rank must be at most min\(m, n\) = 40, got 41"),
    ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
    ({"rank": 2.0}, TypeError, "rank must be an integer"),
    ({"shape": (59, 40)}, ValueError, "rows must be from 0 to 58, got 59"),
    ({"shape": (60, 39)}, ValueError, "cols must be from 0 to 38, got 39"),
    ({"shape": 60}, TypeError, "shape must be two integers"),
    ({"shape": (2**62, 40)}, ValueError, "shape must be at most"),
    ({"shape": (2**57, 2**57)}, ValueError, "more than memory"),
    ({"method": "svd"}, ValueError, "method must be one of"),
    ({"solver": "qr"}, ValueError, "solver must be one of"),
    ({"ridge_by": "column"}, ValueError, "ridge_by must be one of"),
    ({"ridge": -1.0, "method": "als"}, ValueError, "ridge must be non-negative"),
    ({"ridge": 1.0}, ValueError, 'method "altmin" takes no ridge'),
    ({"biases": True}, ValueError, 'method "altmin" takes no biases'),
    ({"bias_ridge": 1.0}, ValueError, "bias_ridge goes with biases=True"),
    ({"bias_ridge": -1.0, "biases": True, "method": "als"}, ValueError, "bias_ridge must be"),
    ({"tol": -1.0}, ValueError, "tol must be non-negative"),
    ({"tol": math.nan}, ValueError, "tol must be non-negative"),
    ({"max_sweeps": 0}, ValueError, "max_sweeps must be at least 1"),
    ({"mask": np.ones((60, 40), bool)}, ValueError, "mask goes with a dense matrix"),
    ({"validation": ([0], [1])}, TypeError, "got 2 parts"),
    ({"validation": ([0], [40], [1.0])}, ValueError, "validation: cols must be from 0 to 39"),
    ({"weights": -np.ones(3)}, ValueError, "weights must have shape"),
    ({"values": None}, TypeError, "got no values"),
    ({"cols": None}, TypeError, "got no cols"),
    ({"seed": "one"}, TypeError, "seed must be"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change, error, message):
    rows, cols, values, _ = ratings()
    arguments = {"rows": rows, "cols": cols, "values": values, "shape": (60, 40), "rank": 3}
    arguments |= change
    first = [arguments.pop(name) for name in ("rows", "cols", "values", "shape", "rank")]
    with pytest.raises(error, match=message):
        la.complete(*first, seed=arguments.pop("seed", 0), **arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_entries(bad):
    rows, cols, values, weights = ratings()
    values[7] = bad
    with pytest.raises(ValueError, match=r"values must be finite, got (nan|inf) at index \(7,\)"):
        la.complete(rows, cols, values, (60, 40), 2)
    dense = torch.ones(5, 4)
    dense[2, 3] = bad
    with pytest.raises(ValueError, match=r"must be finite, got (nan|inf) at index \(2, 3\)"):
        la.complete(dense, rank=1, mask=torch.ones(5, 4, dtype=torch.bool))
    sparse = torch.sparse_coo_tensor([[0, 1], [2, 0]], [1.0, bad], (2, 3))
    with pytest.raises(ValueError, match=r"must be finite, got (nan|inf) at index \(1, 0\)"):
        la.complete(sparse, rank=1)
    weights[3] = -1
    with pytest.raises(ValueError, match=r"weights must be non-negative and finite, got -1"):
        la.complete(rows, cols, values.nan_to_num(0, 0, 0), (60, 40), 2, weights=weights)


def test_bad_indices():
    values = [1.0, 2.0]
    with pytest.raises(ValueError, match=r"rows must be from 0 to 2, got -1 at index \(1,\)"):
        la.complete([0, -1], [0, 1], values, (3, 3), 1)
    with pytest.raises(TypeError, match="cols must be integers, got dtype float64"):
        la.complete([0, 1], [0.0, 1.0], values, (3, 3), 1)
    with pytest.raises(TypeError, match="rows must be integers, got dtype bool"):
        la.complete([True, False], [0, 1], values, (3, 3), 1)
    with pytest.raises(ValueError, match="must fit 64 signed bits"):
        la.complete(np.array([0, 2**63], np.uint64), [0, 1], values, (3, 3), 1)
    with pytest.raises(ValueError, match="vectors of one length"):
        la.complete([0, 1], [0], values, (3, 3), 1)
    with pytest.raises(TypeError, match=r"must be real, got torch\.complex128"):
        la.complete([0, 1], [0, 1], [1j, 2], (3, 3), 1)


def test_bad_calls_of_a_completion(rated):
    _, _, completion = rated
    calls = [
        (lambda: completion.predict([60], [0]), "rows must be from 0 to 59, got 60"),
        (lambda: completion.predict([0], [-1]), "cols must be from 0 to 39, got -1"),
        (lambda: completion.predict([0, 1], [1, 2, 3]), "shapes that broadcast"),
        (lambda: completion.top_k(60, 1), "row must be from 0 to 59, got 60"),
        (lambda: completion.top_k(0, 0), "k must be at least 1"),
        (lambda: completion.fold_in(torch.ones(2, 39)), "new rows must have 40 columns, got 39"),
        (lambda: completion.fold_in([0], [40], [1.0]), "cols must be from 0 to 39"),
    ]  # fmt: skip
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_gaussian_matrices_are_of_full_rank():
    # The negative control of recovery: no matrix of rank 3 fits these.
    A = gaussian(60, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        completion = la.complete(A, rank=3, mask=gaussian(60, 50, seed=1) > 0, seed=0)
    assert completion.info.relative_residual > 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_finds_the_same(dtype, solver):
    *observed, weights = ratings(dtype=dtype)
    options = {"method": "als", "ridge": 0.5, "biases": True, "max_sweeps": 3, "tol": 0, "seed": 0}
    for rank in (1, 7, 33):
        one, other = (
            la.complete(
                *(part.to(device) for part in observed), (60, 40), rank, solver=solver,
                weights=weights.to(device), **options,
            ).dense().cpu()
            for device in ("cpu", "cuda")
        )  # fmt: skip
        # Three sweeps of problems that the ridge keeps well conditioned.
        torch.testing.assert_close(one, other, rtol=0, atol=1e4 * torch.finfo(dtype).eps)
