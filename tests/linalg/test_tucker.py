"""tucker: a core and orthonormal factors, with a measured error."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from references import orthonormality_error, unit_roundoff
from strategies import gaussian, seeds

METHODS = ["hooi", "st_hosvd", "randomized"]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def normal(shape, dtype=torch.float64, seed=0):
    """A tensor of independent normal entries."""
    return gaussian(math.prod(shape), 1, dtype=dtype, seed=seed).reshape(shape)


def planted(shape, ranks, dtype=torch.float64, seed=0):
    """A tensor of exactly these multilinear ranks."""
    core = normal(ranks, dtype, seed)
    factors = [
        gaussian(n, r, dtype=dtype, seed=seed + i)
        for i, (n, r) in enumerate(zip(shape, ranks, strict=True), 1)
    ]
    return la.TuckerTensor(core, factors).full()


def unfolded(X, mode):
    return torch.movedim(X, mode, 0).flatten(1)


def graded(shape, decay, dtype=torch.float64, seed=0):
    """A tensor whose unfoldings have singular values that fall like decay(0), decay(1), …"""
    X = normal(shape, dtype, seed)
    for mode, n in enumerate(shape):
        scale = torch.tensor([decay(i) for i in range(n)], dtype=torch.float64)
        Q = torch.linalg.qr(gaussian(n, n, dtype=dtype, seed=seed + 1 + mode)).Q
        X = torch.movedim(torch.tensordot(Q * scale.to(X.dtype), X, ([1], [mode])), 0, mode)
    return X.contiguous()


def tails(X, ranks):
    """What each unfolding has beyond its rank, in the Frobenius norm."""
    values = (torch.linalg.svdvals(unfolded(X, mode)) for mode in range(X.dim()))
    return [float(S[r:].norm()) for S, r in zip(values, ranks, strict=True)]


def rounding(X):
    """Of products over d modes in turn: √n·u each, and a few times as much for the factors."""
    return 8 * X.dim() * math.sqrt(max(X.shape)) * unit_roundoff(X) * float(X.norm())


def distance(T, X):
    wide = torch.complex128 if X.is_complex() else torch.float64
    return float((torch.as_tensor(T.full()).to(wide) - X.to(wide)).norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((30, 40, 50), (5, 6, 7)),
        ((100, 90, 110), (9, 12, 10)),
        ((60, 10, 2, 3), (7, 3, 2, 1)),
        ((200, 100), (10, 10)),
        ((40, 3, 4, 5, 6), (4, 3, 2, 3, 2)),
        ((1, 5, 1), (1, 1, 1)),
    ],
)
def test_recovers_exact_ranks(shape, ranks, method, dtype):
    X = planted(shape, ranks, dtype)
    T = la.tucker(X, ranks, method=method, seed=0)
    assert T.shape == shape
    assert T.ranks == ranks
    assert T.info.converged
    assert T.info.method == method
    assert distance(T, X) <= rounding(X)
    assert abs(T.info.error - distance(T, X)) <= rounding(X)
    for F in T.factors:
        assert F.dtype == dtype
        assert orthonormality_error(F) <= 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_error_is_measured_and_near_the_best(dtype, method):
    for seed, shape, ranks in (
        (0, (25, 30, 20), (4, 5, 6)),
        (1, (120, 100, 110), (6, 7, 5)),
        (2, (14, 12, 10, 9), (3, 4, 2, 3)),
    ):
        X = graded(shape, lambda i: 1 / (1 + i), dtype, seed)
        T = la.tucker(X, ranks, method=method, seed=0)
        error = distance(T, X)
        # ‖X‖² − ‖core‖² is used down to 1e4·u of ‖X‖²: 1e-4 of the square, half of that below.
        assert T.info.error == pytest.approx(error, rel=1e-3)
        assert T.info.relative_error == pytest.approx(error / float(X.norm()), rel=1e-3)
        tail = tails(X, ranks)
        assert error >= max(tail) * (1 - 1e-3)
        # The bound of ST-HOSVD; a sketch of 10 more columns, improved once, loses a little of it.
        slack = 1.05 if method == "randomized" else 1 + 1e-3
        assert error <= math.hypot(*tail) * slack


def test_hooi_is_no_worse_than_its_start():
    for seed in range(10):
        X = normal((20, 25, 30), seed=seed)
        start = la.tucker(X, (3, 4, 5), method="st_hosvd")
        T = la.tucker(X, (3, 4, 5), seed=0)
        assert T.info.error < start.info.error
        assert T.info.history[0] == pytest.approx(start.info.error, rel=1e-12)
        history = T.info.history
        assert len(history) == T.info.sweeps + 1
        for before, after in itertools.pairwise(history):
            # Rounding of ‖X‖² − ‖core‖².
            assert after <= before * (1 + 1e-12)
        fewer = la.tucker(X, (3, 4, 5), max_sweeps=0, seed=0)
        assert fewer.info.error == pytest.approx(start.info.error, rel=1e-12)


def test_hooi_from_a_sketch_ends_below_st_hosvd():
    X = graded((130, 120, 140), lambda i: 0.9**i)
    start = la.tucker(X, 8, method="st_hosvd")
    for seed in range(3):
        assert la.tucker(X, 8, seed=seed).info.error < start.info.error


def test_a_sweep_solves_for_each_factor():
    X = normal((15, 20, 18), torch.complex128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        T = la.tucker(X, (3, 4, 5), max_sweeps=400, seed=0)
    for mode in range(3):
        others = [m for m in range(3) if m != mode]
        Y = X
        for m in others:
            Y = torch.movedim(torch.tensordot(T.factors[m].mH, Y, ([1], [m])), 0, m)
        best = torch.linalg.svdvals(unfolded(Y, mode))[: T.ranks[mode]]
        got = torch.linalg.svdvals(T.factors[mode].mH @ unfolded(Y, mode))
        # Sweeps end when the error falls by 0.01 %; the energies of neighbouring sweeps differ by
        # twice that, of some percent of it that is captured.
        assert float(got.norm()) >= float(best.norm()) * (1 - 1e-2)
        assert float(got.norm()) <= float(best.norm()) * (1 + 1e-12)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.complex128]),
    seed=seeds,
)
def test_a_tolerance_is_kept(data, dtype, seed):
    dimensions = data.draw(st.integers(2, 4))
    most = {2: 120, 3: 40, 4: 14}[dimensions]
    shape = tuple(data.draw(st.integers(1, most)) for _ in range(dimensions))
    rate = data.draw(st.floats(0.3, 0.97))
    power = data.draw(st.floats(0.0, 3.0))
    decay = data.draw(st.sampled_from([lambda i: rate**i, lambda i: (1 + i) ** -power]))
    X = graded(shape, decay, dtype, seed % 1000)
    least = 5.0 if dtype == torch.float32 else 12.0
    tol = 10.0 ** -data.draw(st.floats(0.2, least))
    reference = equal_shares(X, tol)
    for method in METHODS:
        T = la.tucker(X, tol=tol, method=method, seed=seed)
        assert T.info.converged
        assert distance(T, X) <= tol * float(X.norm()) * (1 + 1e-6)
        if method == "hooi":
            # Modes are cut in another order, which may take a column more.
            assert sum(T.ranks) <= sum(reference) + 1


def equal_shares(X, tol):
    """Ranks of ST-HOSVD with the same share of the tolerance for each mode."""
    allowed, ranks = (tol * float(X.norm())) ** 2 / X.dim(), []
    for mode in range(X.dim()):
        U, S, _ = torch.linalg.svd(unfolded(X, mode), full_matrices=False)
        tail = S.double().square().flip(0).cumsum(0).flip(0)
        r = max(int((tail > allowed).sum()), 1)
        ranks.append(r)
        X = torch.movedim(torch.tensordot(U[:, :r].mH, X, ([1], [mode])), 0, mode)
    return ranks


@pytest.mark.parametrize("method", METHODS)
def test_small_tolerances_see_small_values(method):
    # Singular values from 1 to 1e-13: the Gram matrix knows nothing below 1e-8.
    X = graded((30, 28, 26), lambda i: 10.0 ** (-i / 2))
    for tol in (1e-9, 1e-11, 1e-13):
        T = la.tucker(X, tol=tol, method=method, seed=0)
        assert T.info.converged
        assert distance(T, X) <= tol * float(X.norm())
        assert max(T.ranks) <= -2 * math.log10(tol) + 3
    fixed = la.tucker(X, 22, method="st_hosvd")
    assert distance(fixed, X) <= 2 * math.hypot(*tails(X, (22, 22, 22))) + rounding(X)


def test_a_tolerance_below_rounding_is_not_met():
    X = normal((20, 20, 20), torch.float32)
    with pytest.warns(la.ConvergenceWarning, match="tol = 1e-09"):
        T = la.tucker(X, tol=1e-9, seed=0)
    assert not T.info.converged
    assert T.info.error > 1e-9 * float(X.norm())


def test_ranks_limit_a_tolerance():
    X = graded((40, 30, 20), lambda i: 0.8**i)
    free = la.tucker(X, tol=1e-3, seed=0)
    assert min(free.ranks) > 5
    with pytest.warns(la.ConvergenceWarning, match="ranks"):
        T = la.tucker(X, 5, tol=1e-3, seed=0)
    assert T.ranks == (5, 5, 5)
    assert la.tucker(X, 100, tol=1e-3, seed=0).ranks == free.ranks


@pytest.mark.parametrize("method", METHODS)
def test_permuted_and_rotated(method):
    X = graded((50, 30, 40), lambda i: 1 / (1 + i) ** 2)
    ranks = (4, 5, 6)
    T = la.tucker(X, ranks, method=method, seed=0)
    for order in itertools.permutations(range(3)):
        permuted = X.permute(order)
        for Y in (permuted, permuted.contiguous()):
            P = la.tucker(Y, [ranks[i] for i in order], method=method, seed=0)
            assert P.shape == tuple(Y.shape)
            # Another order of modes, other draws: near a minimum, errors differ to second order.
            assert P.info.error == pytest.approx(T.info.error, rel=2e-3)
    rotations = [torch.linalg.qr(gaussian(n, n, seed=n)).Q for n in X.shape]
    Y = la.TuckerTensor(X, rotations).full()
    assert la.tucker(Y, ranks, method=method, seed=0).info.error == pytest.approx(
        T.info.error, rel=2e-3
    )


def test_memory_order_is_not_copied():
    # A view of a tensor in another order has the same factors, to the bit.
    X = graded((20, 24, 28), lambda i: 1 / (1 + i))
    T, P = la.tucker(X, (3, 4, 5), seed=0), la.tucker(X.permute(2, 0, 1), (5, 3, 4), seed=0)
    assert torch.equal(P.core, T.core.permute(2, 0, 1))
    for F, G in zip(P.factors, (T.factors[2], T.factors[0], T.factors[1]), strict=True):
        assert torch.equal(F, G)


def test_core_is_canonical():
    X = normal((12, 13, 14), torch.complex128)
    T = la.tucker(X, (4, 5, 6), seed=0)
    for mode in range(3):
        slices = unfolded(T.core, mode)
        gram = slices @ slices.mH
        lengths = gram.diagonal().real
        assert float((gram - torch.diag(gram.diagonal())).norm()) <= 1e-13 * float(gram.norm())
        assert bool((lengths.diff() <= 1e-13 * lengths[0]).all())
        F = T.factors[mode]
        largest = F.gather(0, F.abs().argmax(0, keepdim=True))[0]
        assert bool((largest.real > 0).all())
        assert float(largest.imag.abs().max()) <= 1e-15


@pytest.mark.parametrize("method", METHODS)
def test_some_modes(method):
    X = graded((6, 30, 5, 40), lambda i: 1 / (1 + i))
    T = la.tucker(X, (4, 7), modes=(1, -1), method=method, seed=0)
    assert T.ranks == (6, 4, 5, 7)
    assert [None if F is None else tuple(F.shape) for F in T.factors] == [
        None, (30, 4), None, (40, 7),
    ]  # fmt: skip
    swapped = la.tucker(X, (7, 4), modes=(3, 1), method=method, seed=0)
    assert torch.equal(swapped.core, T.core)
    assert T.info.error == pytest.approx(distance(T, X), rel=1e-9)
    # Two modes are a matrix with the others as columns: both unfoldings are cut.
    assert T.info.error <= math.hypot(tails(X, (6, 4, 5, 40))[1], tails(X, (6, 30, 5, 7))[3])
    none = la.tucker(X, [], modes=(), method=method, seed=0)
    assert torch.equal(none.full(), X)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_a_loop(method):
    X = graded((2, 3, 20, 18, 16), lambda i: 1 / (1 + i), torch.float32)
    T = la.tucker(X, (3, 4, 5), method=method, batch_dims=2, seed=0)
    assert T.shape == X.shape
    assert T.core.shape == (2, 3, 3, 4, 5)
    singles = {
        (i, j): la.tucker(X[i, j], (3, 4, 5), method=method, seed=0)
        for i in range(2)
        for j in range(3)
    }
    for (i, j), one in singles.items():
        assert torch.equal(T.core[i, j], one.core)
        assert all(torch.equal(F[i, j], G) for F, G in zip(T.factors, one.factors, strict=True))
    errors = [one.info.error for one in singles.values()]
    assert T.info.error == pytest.approx(math.hypot(*errors))
    assert la.tucker(X[:0], (3, 4, 5), batch_dims=2).shape == (0, 3, 20, 18, 16)


def test_a_mask_that_hides_nothing():
    X = graded((20, 18, 16), lambda i: 1 / (1 + i))
    everything = torch.ones(X.shape, dtype=torch.bool)
    T, M = la.tucker(X, (3, 4, 5), seed=0), la.tucker(X, (3, 4, 5), mask=everything, seed=0)
    # Both are within 0.1 % of the same minimum: sweeps end at 0.01 %.
    assert M.info.error == pytest.approx(T.info.error, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_unknown_entries(dtype):
    X = planted((25, 24, 23), (2, 3, 2), dtype)
    seen = la.random_matrix(25 * 24, 23, kind="uniform", seed=5).reshape(X.shape) < 0.3
    nan = torch.tensor(math.nan, dtype=dtype)
    T = la.tucker(torch.where(seen, X, nan), (2, 3, 2), mask=seen, seed=0)
    assert T.info.converged
    # The known entries are met to 8 rounding errors; the others as well as they determine them.
    assert distance(T, X) <= 1e3 * unit_roundoff(X) * float(X.norm())
    noisy = X + 0.1 * normal(X.shape, dtype, seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        T = la.tucker(torch.where(seen, noisy, nan), (2, 3, 2), mask=seen, seed=0)
    for before, after in itertools.pairwise(T.info.history):
        assert after <= before * (1 + 4 * unit_roundoff(X))
    known = torch.where(seen, noisy - T.full(), 0)
    assert T.info.error == pytest.approx(float(known.norm()), rel=1e-5)


def test_a_mask_says_when_it_did_not_end():
    X = normal((10, 10, 10))
    seen = normal(X.shape, seed=1) > 0
    with pytest.warns(la.ConvergenceWarning, match="max_sweeps = 3"):
        assert not la.tucker(X, 4, mask=seen, max_sweeps=3, seed=0).info.converged


@pytest.mark.parametrize("exponent", [-200, 200])
def test_scale(exponent):
    X = graded((20, 18, 16), lambda i: 1 / (1 + i))
    T = la.tucker(X, (3, 4, 5), seed=0)
    scaled = la.tucker(X * 2.0 ** (3 * exponent), (3, 4, 5), seed=0)
    assert torch.equal(scaled.core, T.core * 2.0 ** (3 * exponent))
    assert scaled.info.error == T.info.error * 2.0 ** (3 * exponent)
    assert scaled.info.relative_error == pytest.approx(T.info.relative_error, rel=1e-14)
    small = (X * 2.0 ** (exponent // 2)).float()
    loose = la.tucker(small, tol=0.1, seed=0)
    assert loose.ranks == la.tucker(X.float(), tol=0.1, seed=0).ranks
    assert distance(loose, small) <= 0.1 * float(small.double().norm())


@pytest.mark.parametrize("method", METHODS)
def test_degenerate(method):
    zero = la.tucker(torch.zeros(5, 6, 7), (2, 3, 4), method=method)
    assert not zero.core.any()
    assert zero.info.error == 0
    assert zero.info.relative_error == 0
    assert all(orthonormality_error(F) <= 10 for F in zero.factors)
    assert la.tucker(torch.zeros(5, 6, 7), tol=0.1, method=method).ranks == (1, 1, 1)
    # More than the other modes can fill: an orthonormal factor, and zeros in the core.
    wide = normal((10, 2, 2))
    T = la.tucker(wide, (8, 2, 2), method=method, seed=0)
    assert distance(T, wide) <= rounding(wide)
    assert orthonormality_error(T.factors[0]) <= 10
    assert float(T.core[4:].abs().max()) <= rounding(wide)
    one = normal((1, 1))
    assert la.tucker(one, 1, method=method).full() == pytest.approx(one)
    empty = la.tucker(torch.zeros(4, 0, 3), 1, modes=(0, 2), method=method)
    assert empty.shape == (4, 0, 3)
    assert empty.ranks == (1, 0, 1)


def test_numpy_and_types():
    X = np.random.default_rng(0).standard_normal((9, 8, 7))
    T = la.tucker(X, 3, seed=0)
    assert isinstance(T.core, np.ndarray)
    assert isinstance(T.full(), np.ndarray)
    assert T.core.dtype == np.float64
    integers = la.tucker(np.arange(60).reshape(3, 4, 5), 2, seed=0)
    assert integers.core.dtype == np.float64
    half = la.tucker(torch.from_numpy(X).half(), 3, seed=0)
    assert half.core.dtype == torch.float16
    assert distance(half, torch.from_numpy(X)) == pytest.approx(T.info.error, rel=1e-2)
    fortran = la.tucker(np.asfortranarray(X), 3, seed=0)
    assert fortran.info.error == pytest.approx(T.info.error, rel=1e-3)
    before = X.copy()
    la.tucker(X, 3, mask=X > 0, max_sweeps=1000, seed=0)
    assert np.array_equal(X, before)
    assert not la.tucker(torch.from_numpy(X).requires_grad_(), 3, seed=0).core.requires_grad


def test_seeds():
    X = graded((120, 110, 100), lambda i: 1 / (1 + i))
    one, same, other = (la.tucker(X, 4, method="randomized", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.core, same.core)
    assert not torch.equal(one.core, other.core)
    # Both are near the least error, within what the sketches lose.
    assert one.info.error == pytest.approx(other.info.error, rel=0.05)


def test_max_sweeps():
    X = normal((20, 20, 20))
    with pytest.warns(la.ConvergenceWarning, match="max_sweeps = 1"):
        T = la.tucker(X, 3, max_sweeps=1, seed=0)
    assert T.info.sweeps == 1
    assert not T.info.converged


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "ranks or tol"),
        ({"ranks": (9, 1, 1)}, ValueError, "at most the size of the mode, 4 for mode 0, got 9"),
        ({"ranks": 0}, ValueError, "at least 1, got 0"),
        ({"ranks": 2.5}, TypeError, "integer, got 2.5"),
        ({"ranks": (1, 2)}, ValueError, "one for each of 3 modes"),
        ({"ranks": "two"}, TypeError, "integer"),
        ({"tol": 0.0}, ValueError, "between 0 and 1"),
        ({"tol": 1.0}, ValueError, "between 0 and 1"),
        ({"tol": math.nan}, ValueError, "between 0 and 1"),
        ({"tol": 0.1, "batch_dims": 1}, ValueError, "one tensor"),
        ({"ranks": 1, "method": "hosvd"}, ValueError, "method must be one of"),
        ({"ranks": 1, "modes": (0, 0)}, ValueError, "different"),
        ({"ranks": 1, "modes": (3,)}, ValueError, "from -3 to 2, got 3"),
        ({"ranks": 1, "modes": 1}, TypeError, "sequence of integers"),
        ({"ranks": 1, "batch_dims": 3}, ValueError, "batch_dims"),
        ({"ranks": 1, "batch_dims": -1}, ValueError, "batch_dims"),
        ({"ranks": 1, "max_sweeps": -1}, ValueError, "max_sweeps"),
        ({"ranks": 1, "mask": torch.ones(4, 5)}, TypeError, "boolean"),
        ({"ranks": 1, "mask": torch.ones(4, 5, dtype=bool)}, ValueError, "shape of X"),
        ({"ranks": 1, "mask": torch.zeros(4, 5, 6, dtype=bool)}, ValueError, "observed entry"),
        (
            {"ranks": 1, "mask": torch.ones(4, 5, 6, dtype=bool), "method": "st_hosvd"},
            ValueError,
            'method="hooi"',
        ),
        ({"tol": 0.1, "mask": torch.ones(4, 5, 6, dtype=bool)}, ValueError, "takes ranks"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        la.tucker(normal((4, 5, 6)), **arguments)
    assert str(raised.value).startswith("tucker: ")


def test_bad_tensors():
    X = normal((4, 5, 6))
    X[1, 2, 3] = math.inf
    for method in METHODS:
        with pytest.raises(
            ValueError, match=r"tucker: X must be finite, got inf at index \(1, 2, 3\)"
        ):
            la.tucker(X, 2, method=method)
    with pytest.raises(ValueError, match=r"X must be finite, got inf at index \(1, 2, 3\)"):
        la.tucker(X, 2, mask=torch.ones(X.shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="tucker: X must have at least 2 dimensions"):
        la.tucker(torch.ones(3), 1)
    with pytest.raises(TypeError, match="tucker: X must be"):
        la.tucker(np.array([["a", "b"]]), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_finds_the_same(method):
    X = graded((120, 100, 90), lambda i: 1 / (1 + i))
    one = la.tucker(X, 6, method=method, seed=0)
    other = la.tucker(X.cuda(), 6, method=method, seed=0)
    assert other.core.is_cuda
    assert other.info.error == pytest.approx(one.info.error, rel=1e-10)


def sparse(shape, share, dtype=torch.float64, seed=0):
    """A tensor most of whose entries are zero, dense and sparse."""
    kept = la.random_matrix(math.prod(shape), 1, kind="uniform", seed=seed + 50).reshape(shape)
    dense = torch.where(kept < share, normal(shape, dtype, seed), 0)
    return dense, dense.to_sparse_coo()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((40, 30, 20), (3, 4, 5)), ((200, 15), (4, 4)), ((9, 8, 7, 6), (2, 3, 2, 1))],
)
def test_sparse_is_dense(shape, ranks, dtype):
    dense, coo = sparse(shape, 0.1, dtype)
    T, D = (la.tucker(X, ranks, max_sweeps=2000, seed=0) for X in (coo, dense))
    assert T.shape == shape
    assert T.ranks == ranks
    assert T.core.dtype == dtype
    # Sweeps end at 0.01 % of the error, from other starts, perhaps in other minima.
    assert T.info.error == pytest.approx(D.info.error, rel=2e-2)
    assert T.info.error == pytest.approx(distance(T, dense), rel=1e-4)
    for F in T.factors:
        assert orthonormality_error(F) <= 10
    for before, after in itertools.pairwise(T.info.history):
        assert after <= before * (1 + 1e3 * unit_roundoff(dense))


def test_a_sparse_sweep_is_a_dense_one():
    dense, coo = sparse((30, 25, 20), 0.2)
    for sweeps in (1, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", la.ConvergenceWarning)
            T = la.tucker(coo, (2, 3, 4), max_sweeps=sweeps, seed=0)
        core = dense
        for mode, F in enumerate(T.factors):
            core = torch.movedim(torch.tensordot(F.mH, core, ([1], [mode])), 0, mode)
        # Sums of 15000 products.
        torch.testing.assert_close(T.core, core, rtol=0, atol=1e3 * 2.0**-53 * float(dense.norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_of_exact_rank(dtype):
    # Blocks of ones: rank 3 in every mode, most entries zero.
    X = torch.zeros(30, 40, 50, dtype=dtype)
    X[:5, :6, :7], X[5:9, 6:20, 7:9], X[20:, 30:, 40:] = 1.0, 2.0, -3.0
    T = la.tucker(X.to_sparse(), 3, seed=0)
    assert distance(T, X) <= rounding(X)
    # All that ‖X‖² − ‖core‖² can say.
    assert T.info.relative_error == pytest.approx(math.sqrt(unit_roundoff(X)), rel=10)
    again = la.tucker(X.to_sparse(), 3, seed=0)
    assert torch.equal(again.core, T.core)


def test_sparse_kinds():
    import scipy.sparse

    dense, coo = sparse((20, 30), 0.2)
    T = la.tucker(coo, 3, seed=0)
    csr = la.tucker(dense.to_sparse_csr(), 3, seed=0)
    assert torch.equal(csr.core, T.core)
    for matrix in (scipy.sparse.csr_array(dense.numpy()), scipy.sparse.coo_matrix(dense.numpy())):
        N = la.tucker(matrix, 3, seed=0)
        assert isinstance(N.core, np.ndarray)
        assert np.array_equal(N.core, T.core.numpy())
    indices, values = coo.indices(), coo.values()
    halves = torch.sparse_coo_tensor(
        torch.cat([indices, indices], 1), torch.cat([values, values]) / 2, (20, 30)
    )
    assert torch.equal(la.tucker(halves, 3, seed=0).core, T.core)
    scaled = la.tucker(coo * 2.0**600, 3, seed=0)
    assert torch.equal(scaled.core, T.core * 2.0**600)
    assert scaled.info.error == T.info.error * 2.0**600
    empty = la.tucker(torch.zeros(4, 5, 6).to_sparse(), (1, 2, 3))
    assert empty.ranks == (1, 2, 3)
    assert empty.info.error == 0
    assert not empty.full().any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ranks": 9}, ValueError, "at most the size of the mode, 4 for mode 0"),
        ({"tol": 0.1}, ValueError, "a sparse X takes ranks"),
        ({"ranks": 1, "modes": (0,)}, ValueError, "a sparse X takes ranks"),
        ({"ranks": 1, "method": "st_hosvd"}, ValueError, 'method="hooi"'),
        ({}, ValueError, "ranks or tol"),
    ],
)
def test_bad_sparse_arguments(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        la.tucker(sparse((4, 5, 6), 0.5)[1], **arguments)
    assert str(raised.value).startswith("tucker: ")


def test_bad_sparse_tensors():
    _, coo = sparse((4, 5, 6), 0.5)
    coo = coo.coalesce()
    coo.values()[3] = math.nan
    place = tuple(coo.indices()[:, 3].tolist())
    with pytest.raises(ValueError, match="X must be finite, got nan") as raised:
        la.tucker(coo, 1)
    assert str(place) in str(raised.value)
    with pytest.raises(TypeError, match="a sparse X must be real"):
        la.tucker(normal((4, 5), torch.complex64).to_sparse(), 1)
    with pytest.raises(ValueError, match="no dense dimensions"):
        la.tucker(normal((4, 5, 6)).to_sparse(2), 1)
    outside = torch.sparse_coo_tensor([[0, 1], [2, 7]], [1.0, 2.0], (4, 5), check_invariants=False)
    with pytest.raises(ValueError, match="from 0 to 4 along mode 1, got 7"):
        la.tucker(outside, 1)
