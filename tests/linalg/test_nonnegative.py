"""nmf and semi_nmf: bounds, recovery, certificates, and matrices that leave nothing to do."""

import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import tail_norm, unit_roundoff
from strategies import gaussian

DTYPES = [torch.float32, torch.float64]


def uniform(*shape, dtype=torch.float64, seed=0):
    return la.random_matrix(*shape, kind="uniform", seed=seed, dtype=dtype)


def planted(m, n, k, seed=0):
    """Separable: every component has a row and a column that no other one has."""
    W, H = uniform(m, k, seed=seed), uniform(k, n, seed=seed + 1)
    W[:k], H[:, :k] = torch.eye(k), torch.eye(k)
    return W, H


def features(m, n, k, density, seed=0):
    """Sparse nonnegative codes and unit directions."""
    directions = gaussian(k, n, seed=seed)
    kept = uniform(m, k, seed=seed + 1) < density
    return uniform(m, k, seed=seed + 2) * kept, directions / directions.norm(dim=1, keepdim=True)


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        return function(*arguments, **{"seed": 0, **options})


def wide(*factors):
    return [torch.as_tensor(factor).double() for factor in factors]


def relative_error(A, result):
    A, W, H = wide(A, *result)
    return float(torch.dist(W @ H, A) / A.norm())


def objective(A, result):
    """Relative to ½·‖A‖², as in ``info.objective``."""
    A, W, _ = wide(A, *result)
    square = float(A.norm()) ** 2
    return relative_error(A, result) ** 2 + 2 * result.info.penalty * float(W.sum()) / square


def kkt_residual(A, result, *, signed=False):
    """From its definition: with rows of H of unit length, and columns of W scaled to it."""
    A, W, H = wide(A, *result)
    of_W = torch.minimum(W, W @ (H @ H.T) - A @ H.T + result.info.penalty)
    of_W = of_W[:, H.any(1)]
    sizes = W.norm(dim=0)[:, None]
    used = sizes[:, 0] > 0
    sizes, H, W = sizes[used], H[used], W[:, used]
    slope = (W.T @ (A - W @ H)) / sizes  # of H, times the sizes
    if not signed:
        of_H = torch.minimum(H * sizes, -slope)
    elif result.info.penalty == 0:
        of_H = slope
    else:
        moved = H + slope / sizes
        of_H = (moved / moved.norm(dim=1, keepdim=True).clamp_min(1) - H) * sizes
    return math.hypot(float(of_W.norm()), float(of_H.norm())) / float(A.norm())


def check(A, result, *, signed=False):
    """Everything that holds for every result."""
    (W, H), info = result, result.info
    m, n = A.shape
    u = unit_roundoff(W)
    assert (W.shape, H.shape) == ((m, W.shape[1]), (W.shape[1], n))
    assert (W >= 0).all()
    assert signed or (H >= 0).all()
    lengths = H.double().norm(dim=1)
    used = (W > 0).any(0)
    assert ((lengths - 1).abs() <= 10 * u)[used].all()
    assert not H[~used].any()
    sizes = W.double().norm(dim=0)
    assert (sizes[1:] <= sizes[:-1] * (1 + 10 * math.sqrt(m) * u)).all()
    # Residual entries are sums of k + 1 terms whose sizes add up to that of A or so.
    slack = 10 * (1 + W.shape[1]) * u
    assert info.relative_error == pytest.approx(relative_error(A, result), rel=1e-2, abs=slack)
    assert info.objective[-1] == pytest.approx(objective(A, result), rel=1e-2, abs=slack)
    assert len(info.objective) == info.iterations + 1
    assert all(b <= a for a, b in itertools.pairwise(info.objective))
    assert info.kkt_residual == pytest.approx(
        kkt_residual(A, result, signed=signed), rel=1e-2, abs=slack
    )


def run(A, rank, method, **options):
    """nmf, or semi_nmf without and with a penalty."""
    if method == "nmf":
        return quietly(la.nmf, A, rank, **options)
    return quietly(la.semi_nmf, A, rank, sparsity=0.1 * (method == "sparse"), **options)


METHODS = ["nmf", "semi", "sparse"]


def data(method, m, n, dtype=torch.float64, seed=0):
    A = uniform(m, n, seed=seed) if method == "nmf" else gaussian(m, n, seed=seed)
    return A.to(dtype)


@given(
    m=st.integers(1, 25),
    n=st.integers(1, 25),
    rank=st.integers(1, 12),
    method=st.sampled_from(METHODS),
    init=st.sampled_from(["svd", "random"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_any_shape(m, n, rank, method, init, dtype, seed):
    A = data(method, m, n, dtype, seed)
    result = run(A, rank, method, init=init, max_iters=20, seed=seed)
    assert result[0].dtype == result[1].dtype == dtype
    check(A, result, signed=method != "nmf")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", ["svd", "random"])
def test_the_objective_falls_as_the_history_says(method, init):
    # Each iterate anew: what was gained is what the factors show.
    A = data(method, 60, 40)
    whole = run(A, 7, method, init=init, tol=0, max_iters=30).info.objective
    assert all(b < a for a, b in itertools.pairwise(whole))
    for count in (1, 2, 5, 17):
        result = run(A, 7, method, init=init, tol=0, max_iters=count)
        # Sums of 2400 terms; forty is allowed for the sums of gains.
        assert objective(A, result) == pytest.approx(whole[count], rel=100 * 2.0**-53 * 40)
        check(A, result, signed=method != "nmf")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_converged_means_the_residual_is_small(method, dtype):
    A = uniform(80, 50).to(dtype)
    if method != "nmf":  # Columns of either sign: without a penalty there is a minimum, too.
        A *= gaussian(1, 50).sign().to(dtype)
    loose, tight = (run(A, 5, method, tol=tol, max_iters=5000) for tol in (1e-2, 1e-4))
    for result, tol in ((loose, 1e-2), (tight, 1e-4)):
        assert result.info.converged
        assert result.info.kkt_residual <= tol
        check(A, result, signed=method != "nmf")
    assert tight.info.iterations > loose.info.iterations
    assert kkt_residual(A, loose, signed=method != "nmf") > 1e-4
    # Each factor is optimal for the other one: rows of W are those of nnls.
    if method == "nmf":
        W, H = wide(*tight)
        rows = [scipy.optimize.nnls(H.T.numpy(), a)[0] for a in A.double().numpy()]
        best = float(torch.dist(torch.from_numpy(np.array(rows)) @ H, A.double()))
        # The residual bounds the gap: f − f* ≤ ‖P‖²·cond(H·Hᵀ), 100 here.
        gap = float(torch.dist(W @ H, A.double())) ** 2 - best**2
        assert -1e-5 <= gap <= 2 * 100 * (1e-4 * float(A.double().norm())) ** 2 + 1e-5
        assert float(torch.linalg.cond(H @ H.T)) < 100


@pytest.mark.parametrize("method", METHODS)
def test_not_converged_is_a_warning(method):
    A = data(method, 60, 40)
    loudly = la.nmf if method == "nmf" else la.semi_nmf
    with pytest.warns(la.ConvergenceWarning, match=r"nmf: the KKT residual is .* after 3 iterat"):
        result = loudly(A, 5, tol=1e-9, max_iters=3, seed=0)
    assert not result.info.converged
    assert result.info.iterations == 3


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_planted_factors_are_found(k, seed):
    # Separable factors are unique up to order and scale (Donoho and Stodden).
    W, H = planted(120, 90, k, seed)
    A = W @ H
    result = la.nmf(A, k, tol=1e-12, max_iters=5000, seed=0)
    check(A, result)
    assert result.info.converged
    assert result.info.relative_error < 1e-11
    unit = H / H.norm(dim=1, keepdim=True)
    match = (result.H @ unit.T).argmax(1)
    assert sorted(match.tolist()) == list(range(k))
    # An error of 1e-11 in A, times the condition of the factors, below 1e3.
    assert torch.allclose(result.H, unit[match], rtol=0, atol=1e-8)
    assert torch.allclose(result.W, (W * H.norm(dim=1))[:, match], rtol=0, atol=1e-7)
    if k > 1:  # one component less is far from it
        assert quietly(la.nmf, A, k - 1).info.relative_error > 1e-2


def test_planted_features_are_found_by_the_penalty_only():
    codes, directions = features(1500, 48, 16, 0.15)
    A = codes @ directions + 0.02 * gaussian(1500, 48, seed=9) / math.sqrt(48)
    result = la.semi_nmf(A, 16, sparsity=0.05, seed=0)
    check(A, result, signed=True)
    cosines = result.directions @ directions.T
    match = cosines.argmax(1)
    assert sorted(match.tolist()) == list(range(16))
    assert cosines.max(1).values.min() > 0.999
    # Codes are smaller than the true ones, by λ times the inverse Gram's sums: a few λ.
    assert (result.codes - codes[:, match]).abs().max() < 6 * result.info.penalty
    assert result.info.penalty == pytest.approx(0.05 * float(A.norm()) / math.sqrt(1500))
    # Without it the error is smaller, and the directions are others.
    plain = quietly(la.semi_nmf, A, 16)
    assert plain.info.penalty == 0
    assert plain.info.relative_error < result.info.relative_error
    assert (plain.directions @ directions.T).max(1).values.median() < 0.9


def test_sparsity_grows_with_its_weight():
    codes, directions = features(400, 30, 10, 0.2)
    A = codes @ directions + 0.1 * gaussian(400, 30, seed=9) / math.sqrt(30)
    found = [quietly(la.semi_nmf, A, 10, sparsity=s) for s in (0, 0.02, 0.1, 0.3, 1.0)]
    nonzeros = [int((result.codes > 0).sum()) for result in found]
    assert nonzeros == sorted(nonzeros, reverse=True)
    assert len(set(nonzeros)) == 5
    errors = [result.info.relative_error for result in found]
    assert errors == sorted(errors)
    # No row of A is as long as λ.
    nothing = la.semi_nmf(A, 10, sparsity=1.001 * float(A.norm(dim=1).max()) * 20 / float(A.norm()))
    assert not nothing.codes.any()
    assert not nothing.directions.any()
    assert (nothing.info.relative_error, nothing.info.converged) == (1, True)


@given(
    m=st.integers(2, 40),
    n=st.integers(2, 40),
    rank=st.integers(1, 12),
    shift=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**32),
)
def test_semi_nmf_is_between_two_truncated_svds(m, n, rank, shift, seed):
    # The singular vectors are exact where rank + 10 reaches min(m, n); elsewhere the randomized
    # ones are within 5 % (power iterations; min(m, n) ≤ 40).
    A = gaussian(m, n, seed=seed) + shift
    result = quietly(la.semi_nmf, A, rank, max_iters=30, seed=seed)
    error, norm = relative_error(A, result), float(A.norm())
    exact = min(m, n) <= rank + 10
    assert error >= tail_norm(A, rank) / norm - 1e-13
    assert error <= tail_norm(A, rank - 1) / norm * (1 if exact else 1.05) + 1e-7


def test_semi_nmf_reaches_the_svd_where_it_can():
    # Nonnegative data have a positive vector in the span of the leading left singular vectors.
    A = uniform(200, 60)
    best, before = (tail_norm(A, k) / float(A.norm()) for k in (6, 5))
    result = la.semi_nmf(A, 6, tol=1e-5, max_iters=3000, seed=0)
    # The residual is 1e-5: error² − best² is some multiples of 1e-10 of ‖A‖².
    assert result.info.relative_error == pytest.approx(best, rel=1e-5)
    assert before > 1.005 * best
    # Of rank k exactly: nothing is left but rounding, k·cond(C)·u.
    B = gaussian(90, 4, seed=1).abs() @ gaussian(4, 70, seed=2)
    assert la.semi_nmf(B, 4, seed=0).info.relative_error < 1e-12
    # And one more component does for every matrix, without a positive vector.
    C = gaussian(90, 4, seed=1) @ gaussian(4, 70, seed=2)
    C = torch.cat([C, -C])
    assert la.semi_nmf(C, 5, seed=0).info.relative_error < 1e-12
    assert quietly(la.semi_nmf, C, 4).info.relative_error > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", ["svd", "random"])
def test_a_rank_above_the_sizes(method, init):
    A = data(method, 9, 6)
    result = run(A, 20, method, init=init, max_iters=3000)
    check(A, result, signed=method != "nmf")
    assert result.info.converged
    if method != "sparse":
        assert result.info.relative_error < 1e-2
    assert torch.isfinite(result[0]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (4, 6), (1, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_empty(method, shape, dtype):
    A = torch.zeros(shape, dtype=dtype)
    result = run(A, 3, method)
    assert torch.equal(result[0], torch.zeros(shape[0], 3, dtype=dtype))
    assert torch.equal(result[1], torch.zeros(3, shape[1], dtype=dtype))
    info = result.info
    assert (info.iterations, info.converged, info.relative_error) == (0, True, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_or_column_is_exact(method, shape, dtype):
    A = data(method, *shape, dtype)
    result = run(A, 1 if method == "nmf" else 2, method)
    check(A, result, signed=method != "nmf")
    assert result.info.converged
    if method != "sparse":
        # Codes of a real column are two, of a condition of ten or so.
        assert result.info.relative_error <= (10 if method == "nmf" else 50) * unit_roundoff(A)


@pytest.mark.parametrize("method", METHODS)
def test_zero_rows_and_columns_stay_zero(method):
    A = data(method, 30, 20)
    A[3], A[:, 7] = 0, 0
    result = run(A, 4, method, max_iters=2000)
    check(A, result, signed=method != "nmf")
    # To rounding in the products: of lengths up to ‖A‖ = 25.
    assert result[0][3].abs().max() <= 1e3 * 2.0**-53 if method != "semi" else True
    assert (result[0][3] @ result[1]).norm() <= 1e-2
    assert (result[0] @ result[1][:, 7]).norm() <= 1e-12


def test_components_that_vanish_begin_anew():
    # All of the start is in one component; the others are zero.
    W, H = planted(60, 50, 5)
    A = W @ H
    start = torch.zeros(60, 5).double(), torch.zeros(5, 50).double()
    start[0][:, 0], start[1][0] = 1, 1
    result = la.nmf(A, 5, init=start, tol=1e-8, max_iters=5000, seed=0)
    check(A, result)
    assert result.info.relative_error < 1e-6
    codes, directions = features(300, 30, 5, 0.3)
    B = codes @ directions
    start = torch.zeros(300, 5).double(), torch.zeros(5, 30).double()
    for sparsity in (0.0, 0.05):
        found = quietly(la.semi_nmf, B, 5, init=start, sparsity=sparsity, max_iters=2000)
        check(B, found, signed=True)
        assert (found.codes > 0).any(0).all()
        assert found.info.relative_error < 1e-3 + 4 * sparsity
    # A component that would only fit rounding stays zero.
    once = la.nmf(W[:, :1] @ H[:1], 3, seed=0, init="random", max_iters=2000, tol=1e-10)
    assert once.info.relative_error < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [-1, 1])
def test_powers_of_two_change_nothing(method, dtype, side):
    A = data(method, 50, 40, dtype)
    factor = 2.0 ** (side * (100 if dtype == torch.float32 else 700))  # 1e±30 and 1e±210
    one, other = (run(B, 4, method, max_iters=40) for B in (A, A * factor))
    assert torch.equal(other[0], one[0] * factor)
    assert torch.equal(other[1], one[1])
    assert other.info.objective == one.info.objective
    assert other.info.kkt_residual == one.info.kkt_residual
    assert other.info.penalty == one.info.penalty * factor


@pytest.mark.parametrize("method", METHODS)
def test_other_scales(method):
    A = data(method, 50, 40)
    for scale in (1e200, 1e-200):
        result = run(A * scale, 4, method, tol=1e-3, max_iters=500)
        same = run(A, 4, method, tol=1e-3, max_iters=500)
        # Not the same bits: 1e200 is no power of two.
        assert result.info.relative_error == pytest.approx(same.info.relative_error, rel=1e-6)
        assert torch.isfinite(result[0]).all()


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "torch_csr", "torch_coo", "torch_csc"])
@pytest.mark.parametrize("method", METHODS)
def test_sparse_matrices(kind, method):
    S = scipy.sparse.random(70, 50, density=0.1, random_state=0)
    if method != "nmf":
        S.data -= 0.5
    dense = torch.from_numpy(S.toarray())
    forms = {
        "csr": S.tocsr,
        "csc": S.tocsc,
        "coo": S.tocoo,
        "torch_csr": dense.to_sparse_csr,
        "torch_coo": dense.to_sparse,
        "torch_csc": dense.to_sparse_csc,
    }
    # From the same start, as the singular vectors of the two differ by rounding.
    init = (np.ones((70, 6)), uniform(6, 50).numpy())
    result = run(forms[kind](), 6, method, init=init, tol=0, max_iters=3)
    expected = run(dense, 6, method, init=init, tol=0, max_iters=3)
    assert isinstance(result[0], torch.Tensor if kind.startswith("torch") else np.ndarray)
    for factor, other in zip(wide(*result), expected, strict=True):
        # Passes differ: a sparse product is worth more of them. The inner tolerance is 1 %.
        assert factor.shape == other.shape
    check(dense, type(result)(*wide(*result), result.info), signed=method != "nmf")
    assert result.info.objective[-1] == pytest.approx(expected.info.objective[-1], rel=0.05)


def test_sparse_matrices_of_exact_rank():
    # The error is below what inner products show: it is measured by blocks of rows.
    W, H = planted(300, 200, 4)
    W, H = W * (uniform(300, 4, seed=5) < 0.2), H * (uniform(4, 200, seed=6) < 0.2)
    W[:4], H[:, :4] = torch.eye(4), torch.eye(4)
    A = W @ H
    result = la.nmf(A.to_sparse_csr(), 4, tol=1e-10, max_iters=3000, seed=0)
    check(A, result)
    assert result.info.relative_error < 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_matrices_of_other_scales(dtype):
    A = (uniform(40, 30) * (uniform(40, 30, seed=1) < 0.2)).to(dtype)
    factor = 2.0 ** (100 if dtype == torch.float32 else 700)
    one, other = (quietly(la.nmf, B.to_sparse_csr(), 3, max_iters=20) for B in (A, A * factor))
    assert torch.equal(other.W, one.W * factor)
    assert other.info.objective == one.info.objective


@pytest.mark.parametrize("method", METHODS)
def test_numpy_torch_and_other_types(method):
    A = data(method, 40, 30)
    before = A.clone()
    result = run(A, 3, method, max_iters=10)
    assert torch.equal(A, before)
    same = run(A.numpy(), 3, method, max_iters=10)
    for factor, other in zip(result, same, strict=True):
        assert isinstance(other, np.ndarray)
        assert torch.equal(factor, torch.from_numpy(other))
    assert same.info == result.info
    assert isinstance(run(A.numpy(), 3, method, max_iters=2, out="torch")[0], torch.Tensor)
    assert isinstance(run(A, 3, method, max_iters=2, out="numpy")[0], np.ndarray)
    half = run(A.half(), 3, method, max_iters=10)
    assert half[0].dtype == half[1].dtype == torch.float16
    counted = run((10 * A).long(), 3, method, max_iters=10)
    assert counted[0].dtype == torch.float32
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again[0], result[0])
    assert again.info == result.info
    grad = run(A.clone().requires_grad_(), 3, method, max_iters=10)
    assert not grad[0].requires_grad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", ["svd", "random"])
def test_seeds(method, init):
    A = data(method, 40, 30)
    one, same, other = (run(A, 4, method, init=init, seed=seed, max_iters=10) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert one.info == same.info
    if init == "random":
        assert not torch.allclose(one[1], other[1], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_threads(method, threads):
    # The kernel gives the same bits; products of BLAS may not, by u each time.
    A = data(method, 300, 200)
    results = []
    for number in (1, 2):
        with threads(number):
            results.append(run(A, 6, method, init="random", tol=0, max_iters=5))
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-9 * float(one.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_going_on_from_factors(method):
    A = data(method, 60, 40)
    first = run(A, 5, method, max_iters=10, tol=0)
    more = run(A, 5, method, init=tuple(first), max_iters=10, tol=0)
    # The start is where the first run ended: the same numbers but for rounding.
    assert more.info.objective[0] == pytest.approx(first.info.objective[-1], rel=1e-12)
    # It does not begin anew: ten iterations from the singular vectors end there.
    assert more.info.objective[-1] < first.info.objective[-1]
    # The scale of a component is of no account, be it extreme.
    moved = (first[0] * 1e-250, first[1] * 1e250)
    again = run(A, 5, method, init=moved, max_iters=1, tol=0)
    assert again.info.objective[0] == pytest.approx(first.info.objective[-1], rel=1e-12)
    done = run(A, 5, method, max_iters=5000, tol=1e-3)
    assert run(A, 5, method, init=tuple(done), tol=1.1e-3).info.iterations <= 1


@pytest.mark.parametrize("seed", range(3))
def test_not_worse_than_scikit_learn(seed):
    decomposition = pytest.importorskip("sklearn.decomposition")
    A = uniform(120, 80, seed=seed) * (uniform(120, 80, seed=seed + 50) < 0.3)
    rng = np.random.default_rng(seed)
    W, H = rng.random((120, 8)), rng.random((8, 80))
    peer = decomposition.NMF(8, init="custom", solver="cd", tol=1e-6, max_iter=3000)
    W_found = peer.fit_transform(A.numpy(), W=W.copy(), H=H.copy())
    theirs = np.linalg.norm(A.numpy() - W_found @ peer.components_) / np.linalg.norm(A.numpy())
    ours = quietly(la.nmf, A, 8, init=(W, H), tol=1e-5, max_iters=3000).info.relative_error
    # Local minima differ; of the objective, 1 % is allowed.
    assert ours**2 <= 1.01 * theirs**2


@pytest.mark.parametrize("call", [la.nmf, la.semi_nmf])
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": 2.5}, TypeError, "rank must be an integer, got 2.5"),
        ({"tol": -1}, ValueError, "tol must be non-negative and finite, got -1"),
        ({"max_iters": 0}, ValueError, "max_iters must be at least 1, got 0"),
        ({"init": "nndsvd"}, ValueError, 'init must be "svd", "random" or a pair of factors, got'),
        (
            {"init": (np.ones((5, 2)), np.ones((3, 4)))},
            ValueError,
            r"of init must have shape \(2, 4",
        ),
        ({"init": (-np.ones((5, 2)), np.ones((2, 4)))}, ValueError, "of init must be non-negative"),
        (
            {"init": (np.ones((5, 2)), np.full((2, 4), np.nan))},
            ValueError,
            "of init must be finite",
        ),
        ({"seed": "a"}, TypeError, "seed must be an int"),
        ({"out": "list"}, ValueError, "out must be"),
        ({"A": torch.ones(5)}, ValueError, "A must have 2 dimensions"),
        ({"A": torch.ones(2, 5, 4)}, ValueError, "A must have 2 dimensions"),
        ({"A": torch.ones(5, 4, dtype=torch.complex64)}, TypeError, "A must be real"),
        ({"A": torch.ones(5, 4).cfloat().to_sparse()}, TypeError, "A must be real"),
        (
            {"A": la.LinearOperator((5, 4), None.__eq__, None.__eq__, dtype=torch.float32)},
            TypeError,
            "A must be a NumPy array or torch tensor of numbers, got LinearOperator",
        ),
    ],
)
def test_errors(call, options, error, match):
    given = {"A": torch.ones(5, 4), "rank": 2, **options}
    with pytest.raises(error, match=f"{call.__name__}: .*{match}"):
        call(given.pop("A"), given.pop("rank"), **given)


@pytest.mark.parametrize("call", [la.nmf, la.semi_nmf])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite(call, sparse, value):
    A = torch.ones(5, 4)
    A[1, 2] = A[3, 0] = value
    A[2] = 0
    match = rf"{call.__name__}: A must be finite, got {value} at index \(1, 2\)"
    with pytest.raises(ValueError, match=match):
        call(A.to_sparse_csr() if sparse else A, 2)


@pytest.mark.parametrize("sparse", [False, True])
def test_negative_entries(sparse):
    A = torch.ones(5, 4)
    A[0] = 0
    A[3, 1] = A[4, 0] = -0.5
    with pytest.raises(
        ValueError, match=r"nmf: A must be non-negative, got -0.5 at index \(3, 1\)"
    ):
        la.nmf(A.to_sparse_csr() if sparse else A, 2)
    assert la.semi_nmf(A, 4, seed=0).info.relative_error < 1e-3


@pytest.mark.parametrize(
    ("value", "error"), [(-0.1, ValueError), (math.inf, ValueError), ("a", TypeError)]
)
def test_bad_sparsity(value, error):
    with pytest.raises(error, match="semi_nmf: sparsity must be"):
        la.semi_nmf(torch.ones(5, 4), 2, sparsity=value)
