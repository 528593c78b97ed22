"""An SVD that follows a matrix, against SciPy's SVD of the whole matrix."""

import copy
import itertools
import math
import pickle
import re
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import (
    exact,
    orthonormality_error,
    residual,
    rounding,
    singular_values,
    tail_norm,
    unit_roundoff,
)
from strategies import matrices, with_spectrum

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def matrix(m, n, dtype=torch.float64, decay=0.8, seed=0):
    """Singular values decay^j; complex ones get phases of rows and columns."""
    A = with_spectrum(m, n, decay ** np.arange(min(m, n)), seed=seed)
    if dtype.is_complex:
        A = A * torch.exp(1j * torch.arange(m))[:, None] * torch.exp(2j * torch.arange(n))
    return A.to(dtype)


def pieces(size, cuts):
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    return list(itertools.pairwise(edges))


def fed(A, *args, height=7, **kwargs):
    state = la.IncrementalSVD(*args, **kwargs)
    for row in range(0, len(A), height):
        state.append_rows(A[row : row + height])
    return state


def assert_within_bound(A, result):
    """The bound holds, for the matrix and its singular values; the factors are orthonormal."""
    error = residual(A, result)
    assert error <= result.info.error
    difference = singular_values(A)[: len(result.S)] - exact(result.S)
    assert np.abs(difference).max(initial=0) <= result.info.error
    spectral = np.linalg.norm(exact(A) - (exact(result.U) * exact(result.S)) @ exact(result.Vh), 2)
    assert spectral <= result.info.spectral_error * (1 + 1e-12)
    for basis in (result.U, result.Vh.mT):
        assert orthonormality_error(basis) <= 10
    assert (result.S[:-1] >= result.S[1:]).all()


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# ---- rows ----


@given(
    A=matrices(max_size=80),
    rank=st.integers(1, 12),
    oversample=st.integers(0, 10),
    buffer=st.integers(1, 30),
    cuts=st.lists(st.integers(0, 80), max_size=6),
)
def test_any_split_of_rows_is_within_the_bound(A, rank, oversample, buffer, cuts):
    state = la.IncrementalSVD(rank, oversample=oversample, buffer=buffer)
    for first, stop in pieces(len(A), cuts):
        state.append_rows(A[first:stop])
        assert state.shape == (stop, A.shape[1])
    result = state.result()
    assert len(result.S) == min(rank, *A.shape)
    assert_within_bound(A, result)
    # What rows drop is orthogonal: the bound is the error, but for what it allows for rounding,
    # which is 5·N·u/1e-8 of it where a Gram matrix of N ≤ 52 rows has barely resolved it.
    steps = len(A) / buffer + 2
    size = rank + oversample + buffer
    allowance = 10 * math.sqrt(steps * size) * unit_roundoff(A) * np.linalg.norm(exact(A))
    assert result.info.error <= residual(A, result) * (1 + 1e-5) + 2 * allowance
    assert result.info.error >= tail_norm(A, rank)


@given(A=matrices(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_splits_of_the_same_rows_give_the_same_bits(A, cuts):
    state = la.IncrementalSVD(4, oversample=3, buffer=5)
    for first, stop in pieces(len(A), cuts):
        state.append_rows(A[first:stop])
    whole = la.IncrementalSVD(4, oversample=3, buffer=5)
    whole.append_rows(A)
    assert same(state.result(), whole.result())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(300, 60), (60, 300), (5, 40), (40, 5), (1, 9), (9, 1)])
def test_exact_rank_is_found_to_rounding(dtype, m, n):
    rank = min(5, m, n)
    A = with_spectrum(m, n, np.linspace(2, 1, rank)).to(dtype)
    state = fed(A, 5, buffer=8)
    result = state.result()
    assert_within_bound(A, result)
    assert residual(A, result) <= rounding(A)
    # 10·√(l + buffer)·u a step, added in squares; 23 directions and 40 steps at most.
    assert result.info.error <= 10 * math.sqrt(23 * 40) * unit_roundoff(A) * 5


def test_a_direction_that_grows_behind_larger_ones_is_found():
    # σ = √800, 10, 9: no single row of the third direction reaches 9.
    A = np.zeros((802, 6))
    A[0, 0], A[1, 1], A[2:, 2] = 10, 9, 1
    np.testing.assert_allclose(fed(A, 2, height=1).result().S, [math.sqrt(800), 10], rtol=1e-13)
    # The negative control: a truncation at every row drops it every time, and says so.
    naive = fed(A, 2, height=1, oversample=0, buffer=1).result()
    np.testing.assert_allclose(naive.S, [10, 9], rtol=1e-13)
    assert naive.info.error >= math.sqrt(800)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_stay_orthonormal_over_many_steps(dtype):
    noise = la.random_matrix(6000, 120, seed=1, dtype=dtype) / 10
    A = noise + la.random_matrix(6000, 20, seed=2, dtype=dtype) @ noise[:20]
    result = fed(A, 20, height=500, oversample=5, buffer=20).result()
    assert_within_bound(A, result)
    # The tail of what was kept beyond the rank is in the error: nearly that of the optimum.
    assert result.info.error <= 1.1 * tail_norm(A, 20)


def test_the_spectral_error_is_the_first_value_that_was_dropped():
    A = matrix(12, 10)
    info = fed(A, 3, oversample=7).result().info
    assert info.spectral_error == pytest.approx(0.8**3, rel=1e-12)
    assert info.error == pytest.approx(tail_norm(A, 3), rel=1e-12)


@pytest.mark.parametrize("decay", [0.8, 0.5])
def test_a_basis_that_has_drifted_does_no_harm(decay):
    # 0.8: rows by a Gram matrix; 0.5: by projection, onto a basis made orthonormal again.
    A = matrix(60, 40, decay=decay)
    state = fed(A[:40], 20, oversample=5, buffer=10)
    skewed = torch.eye(len(state._core), dtype=torch.float64)
    skewed[0, 1:] = 1e-3
    # The same matrix in a basis that is off by 1e-3.
    state._core = state._core @ torch.linalg.inv(skewed).mT
    state._right = [state._right[0] @ skewed]
    assert orthonormality_error(state._right[0]) > 1e10
    state.append_rows(A[40:])
    expected = fed(A, 20, oversample=5, buffer=10)
    assert residual(A, state.result()) == pytest.approx(residual(A, expected.result()), rel=1e-6)
    assert_within_bound(A, state.result())
    if decay == 0.5:
        assert orthonormality_error(state._right[0]) <= 10


def test_values_below_the_resolution_of_a_gram_matrix():
    A = matrix(120, 100, decay=0.5)
    result = fed(A, 36, oversample=4, buffer=40).result()
    # σ₃₆ = 1.5e-11: √u·σ₁ would drown it. Rounding is some 10⁻¹⁵.
    np.testing.assert_allclose(result.S, 0.5 ** np.arange(36.0), rtol=1e-3)
    assert_within_bound(A, result)


# ---- columns, and both ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_are_rows_of_the_adjoint(dtype):
    A = matrix(50, 80, dtype)
    cols, rows = la.IncrementalSVD(6, buffer=9), la.IncrementalSVD(6, buffer=9)
    cols.append_cols(A[:, :33])
    cols.append_cols(A[:, 33:])
    rows.append_rows(A.mH)
    one, two = cols.result(), rows.result()
    assert_within_bound(A, one)
    # The same steps; sums may be taken in another order.
    near = 40 * unit_roundoff(A)
    torch.testing.assert_close(one.S, two.S, rtol=near, atol=near)
    assert one.info.error == pytest.approx(two.info.error, rel=1e-3)


@given(data=st.data(), A=matrices(max_size=50), rank=st.integers(1, 8))
def test_any_order_of_rows_and_columns_is_within_the_bound(data, A, rank):
    m, n = A.shape
    state = la.IncrementalSVD(rank, oversample=3, buffer=data.draw(st.integers(1, 12)))
    rows, cols = data.draw(st.integers(0, m)), n
    state.append_rows(A[:rows, :cols]) if data.draw(st.booleans()) else state.append_cols(
        A[:rows, :cols]
    )
    half = data.draw(st.integers(rows, m))
    state.append_rows(A[rows:half])
    # Columns that are there already, once more.
    state.append_cols(A[:half, : n // 2])
    wide = torch.cat([A, A[:, : n // 2]], 1)
    state.append_rows(wide[half:])
    assert state.shape == tuple(wide.shape)
    assert_within_bound(wide, state.result())


# ---- removals ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_what_was_appended_can_be_removed_again(dtype, axis):
    A = matrix(70, 60, dtype)
    state = fed(A, 8, buffer=16)
    before = state.result()
    more = matrix(9, 60, dtype, seed=1) if axis == 0 else matrix(70, 9, dtype, seed=1)
    if axis == 0:
        state.append_rows(more)
        state.remove_rows(range(70, 79))
    else:
        state.append_cols(more)
        state.remove_cols(range(60, 69))
    after = state.result()
    assert_within_bound(A, after)
    approximations = [exact(r.U) * exact(r.S) @ exact(r.Vh) for r in (before, after)]
    apart = np.linalg.norm(approximations[0] - approximations[1])
    assert apart <= before.info.error + after.info.error


@given(
    A=matrices(max_size=40),
    removed=st.lists(st.integers(0, 10**6), max_size=30),
    axis=st.integers(0, 1),
)
def test_removals_are_within_the_bound(A, removed, axis):
    indices = [i % A.shape[axis] - (A.shape[axis] if i % 2 else 0) for i in removed]
    state = fed(A, 4, oversample=2, buffer=6)
    (state.remove_cols if axis else state.remove_rows)(indices)
    rest = torch.from_numpy(np.delete(A.numpy(), np.array(indices, int), axis=axis))
    assert state.shape == tuple(rest.shape)
    assert_within_bound(rest, state.result())
    # And it goes on.
    state.append_rows(rest)
    assert_within_bound(torch.cat([rest, rest]), state.result())


def test_removing_a_row_that_carries_a_direction_removes_the_direction():
    A = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    state = fed(A, 3)
    state.remove_rows(0)
    result = state.result()
    torch.testing.assert_close(result.S, torch.tensor([2.0, 1.0], dtype=torch.float64))
    state.remove_rows([0, -1])
    assert state.shape == (0, 3)
    assert state.result().U.shape == (0, 0)


def test_indices_that_are_wrong():
    state = fed(matrix(9, 8), 2)
    with pytest.raises(
        ValueError, match=r"remove_rows: indices must be at least -9 and below 9, got 9"
    ):
        state.remove_rows([0, 9])
    with pytest.raises(TypeError, match=r"remove_cols: indices must be integers, got float64"):
        state.remove_cols([0.5])
    with pytest.raises(TypeError, match="integers, got bool"):
        state.remove_rows([True] * 9)
    assert state.shape == (9, 8)


# ---- rank one ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 1e-3, 0.0, 1e6])
def test_rank_one_updates(dtype, size):
    A = matrix(40, 30, dtype)
    a, b = size * matrix(40, 1, dtype, seed=3)[:, 0], 3 * matrix(30, 1, dtype, seed=4)[:, 0]
    state = fed(A, 6, buffer=8)
    state.update_rank_one(a, b)
    changed = A + torch.outer(a, b.conj())
    assert_within_bound(changed, state.result())
    state.update_rank_one(-a, b)
    back = state.result()
    assert_within_bound(A, back)
    # Rounding of the larger matrix is all that comes with the way there and back.
    assert residual(A, back) <= 1.1 * tail_norm(A, 6) + 3e2 * unit_roundoff(A) * (1 + size)


def test_rank_one_within_the_spaces_that_are_there():
    A = with_spectrum(30, 20, [3.0, 2.0, 1.0])
    state = fed(A, 3, oversample=0)
    result = state.result()
    state.update_rank_one(-result.S[0] * result.U[:, 0], result.Vh[0].conj())
    torch.testing.assert_close(
        state.result().S, torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64), atol=1e-13, rtol=0
    )


# ---- merging ----


@given(A=matrices(max_size=60), cut=st.integers(0, 60), rank=st.integers(1, 8))
def test_merging_is_within_the_bound(A, cut, rank):
    cut = min(cut, len(A))
    above, below = (fed(part, rank, oversample=4, buffer=6) for part in (A[:cut], A[cut:]))
    for state in (above, below):
        state.append_rows(A[:0])  # one of them may have had no rows
    before = below.result()
    above.merge(below)
    assert above.shape == tuple(A.shape)
    result = above.result()
    assert_within_bound(A, result)
    near = 2e3 * unit_roundoff(A) * singular_values(A)[0]  # 10·√(N·steps), N ≤ 25, steps ≤ 13
    assert result.info.error <= residual(A, result) * (1 + 1e-5) + near
    assert same(before, below.result())
    above.append_rows(A)
    assert_within_bound(torch.cat([A, A]), above.result())


def test_merging_states_that_have_columns_and_other_changes():
    A = matrix(40, 30, torch.complex128)
    one, two = (la.IncrementalSVD(5, buffer=7) for _ in range(2))
    one.append_cols(A[:25])
    two.append_rows(A[25:, :10])
    two.append_cols(A[25:, 10:])
    two.update_rank_one(torch.ones(15, dtype=A.dtype), torch.ones(30, dtype=A.dtype))
    one.merge(two)
    A[25:] += 1
    assert_within_bound(A, one.result())


def test_states_that_do_not_match():
    A = matrix(20, 10)
    state = fed(A, 3)
    for name, other in {
        "rank = 3, got 4": fed(A, 4),
        "decay = 1.0, got 0.5": fed(A, 3, decay=0.5),
        "oversample = 10, got 2": fed(A, 3, oversample=2),
        "dtype = torch.float64, got torch.float32": fed(A.float(), 3),
        "10 columns, got 9": fed(A[:, :9], 3),
    }.items():
        with pytest.raises(ValueError, match=f"IncrementalSVD.merge: other must have {name}"):
            state.merge(other)
    with pytest.raises(TypeError, match="other must be an IncrementalSVD, got Tensor"):
        state.merge(A)
    assert state.shape == (20, 10)


# ---- forgetting ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.parametrize("decay", [0.5, 0.97])
def test_decay_is_the_weighted_matrix(dtype, decay):
    A = matrix(90, 30, dtype)
    weights = decay ** torch.arange(89, -1, -1, dtype=torch.float64)
    weighted = (weights[:, None] * A.to(torch.complex128 if dtype.is_complex else dtype)).to(dtype)
    state = fed(A, 6, decay=decay, buffer=11)
    result = state.result()
    assert_within_bound(weighted, result)
    assert result.info.error <= 1.05 * tail_norm(weighted, 6) + 1e2 * unit_roundoff(A)
    # In two states that are merged, and with columns instead of rows.
    above, below = (fed(part, 6, decay=decay, buffer=11) for part in (A[:40], A[40:]))
    above.merge(below)
    assert_within_bound(weighted, above.result())
    columns = la.IncrementalSVD(6, decay=decay, buffer=11)
    columns.append_cols(A.mT)
    assert_within_bound(weighted.mT, columns.result())


def test_rows_are_forgotten():
    old, new = 100 * matrix(50, 20), matrix(200, 20, seed=1)
    forgetful = fed(torch.cat([old, new]), 3, decay=0.8).result()
    assert forgetful.S[0] < 1
    assert fed(torch.cat([old, new]), 3).result().S[0] > 90


# ---- tolerance ----


@given(A=matrices(max_size=60), tol=st.sampled_from([0.5, 0.1, 1e-3]), buffer=st.integers(1, 20))
def test_a_tolerance_is_kept(A, tol, buffer):
    result = fed(A, tol=tol, buffer=buffer).result()
    assert result.info.converged
    assert residual(A, result) <= result.info.error <= tol * np.linalg.norm(exact(A))
    assert_within_bound(A, result)


def test_a_tolerance_keeps_no_more_than_it_needs():
    A = matrix(200, 100)
    S = singular_values(A)
    needed = next(k for k in range(100) if tail_norm(A, k) <= 0.01 * np.linalg.norm(S))
    state = fed(A, tol=0.01)
    assert needed <= len(state.result().S) <= needed + 3
    # Nor does the state itself, but for the rows that wait.
    assert len(state._core) <= needed + 3


def test_a_tolerance_that_a_rank_does_not_allow_is_not_silent():
    A = matrix(60, 40)
    state = fed(A, 3, tol=1e-3)
    with pytest.warns(la.ConvergenceWarning, match="above tol = 0.001"):
        result = state.result()
    assert not result.info.converged
    assert len(result.S) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fed(A, 30, tol=0.1).result().S) < 20


# ---- states ----


def operations(state, A):
    """What a state may go through."""
    yield lambda: state.append_rows(A[:23])
    yield lambda: state.append_rows(A[23:40])
    yield lambda: state.append_cols(A[:40, :5])
    yield lambda: state.remove_rows([3, 5])
    yield lambda: state.append_rows(torch.cat([A[:9], A[:9, :5]], 1))
    yield lambda: state.update_rank_one(A[:47, 0], torch.cat([A[1], A[1, :5]]))
    yield lambda: state.append_rows(torch.cat([A[:9], A[:9, :5]], 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("way", ["save", "pickle", "deepcopy", "state_dict", "result"])
def test_going_on_after_a_copy_is_going_on(tmp_path, dtype, way):
    A = matrix(60, 25, dtype)
    uninterrupted = la.IncrementalSVD(4, oversample=3, buffer=6, decay=0.99)
    for step in operations(uninterrupted, A):
        step()
    state = la.IncrementalSVD(4, oversample=3, buffer=6, decay=0.99)
    for index in range(7):
        list(operations(state, A))[index]()
        if way == "save":
            state.save(tmp_path / "state")
            del state
            state = la.IncrementalSVD.load(tmp_path / "state")
        elif way == "pickle":
            state = pickle.loads(pickle.dumps(state))
        elif way == "deepcopy":
            state = copy.deepcopy(state)
        elif way == "state_dict":
            parts = state.state_dict()
            state = la.IncrementalSVD(1)
            state.load_state_dict(parts)
        else:
            state.result()
            _ = state.error_bound, state.shape
    assert same(state.result(), uninterrupted.result())
    assert state.error_bound == uninterrupted.error_bound


def test_a_process_that_was_killed_goes_on(tmp_path):
    script = """
        import os, signal, sys, torch, fastlr.linalg as la
        torch.set_num_threads(1)
        A = la.random_matrix(300, 40, seed=0)
        state = la.IncrementalSVD(5)
        for index, row in enumerate(A):
            state.append_rows(row)
            if index == 150:
                state.save(sys.argv[1])
            if index == 200:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "state"
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False)
    assert ended.returncode == -9
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        A = la.random_matrix(300, 40, seed=0)
        state = la.IncrementalSVD.load(path)
        assert state.shape == (151, 40)
        state.append_rows(A[151:])
        assert same(state.result(), fed(A, 5).result())
    finally:
        torch.set_num_threads(threads)


def test_files_that_are_damaged(tmp_path):
    path = tmp_path / "state"
    state = fed(matrix(60, 30), 3)
    state.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], whole[:-1], b"", b"something else", flipped):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"IncrementalSVD\.load: .* is no state file or a damaged one"
        ):
            la.IncrementalSVD.load(path)
    altered = dict(state.state_dict(), core=2 * state._core)
    before = state.result()
    with pytest.raises(ValueError, match="altered"):
        state.load_state_dict(altered)
    torch.save(altered, path)
    with pytest.raises(ValueError, match="altered"):
        la.IncrementalSVD.load(path)
    assert same(state.result(), before)


def test_a_result_does_not_change_with_the_state():
    A = matrix(60, 30)
    state = fed(A, 3)
    result = state.result()
    kept = [part.clone() for part in result]
    result.U.zero_()
    state.append_rows(A)
    state.remove_cols([0])
    assert same(kept[1:], result[1:])
    assert same(fed(A, 3).result(), kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_states_move_between_devices():
    A = matrix(60, 30)
    state = fed(A[:33], 3).to("cuda")
    state.append_rows(A[33:])
    state.append_rows(A[:5].cuda())
    assert state.result().U.is_cuda
    here = fed(torch.cat([A, A[:5]]), 3).result()
    torch.testing.assert_close(state.to("cpu").result().S, here.S, rtol=1e-12, atol=0)


# ---- inputs ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_gives_the_same(dtype):
    dense = scipy.sparse.random(50, 40, density=0.2, random_state=0).toarray()
    A = torch.from_numpy(dense).to(dtype)
    if dtype.is_complex:
        A = A * torch.exp(1j * torch.arange(40)).to(dtype)
    expected = fed(A, 5, buffer=8)
    array = A.numpy()
    for kind in (
        array,
        scipy.sparse.csr_array(array),
        scipy.sparse.csc_matrix(array),
        scipy.sparse.coo_array(array),
        A.to_sparse(),
        A.to_sparse_csr(),
        A.to_sparse_csc(),
        A.mT.contiguous().mT,
        A.conj().resolve_conj().conj(),
    ):
        for axis in (0, 1):
            state = la.IncrementalSVD(5, buffer=8)
            (state.append_cols if axis else state.append_rows)(kind)
            result = state.result()
            assert isinstance(
                result.U, torch.Tensor if isinstance(kind, torch.Tensor) else np.ndarray
            )
            assert exact(result.U).dtype == exact(A).dtype
            assert result.info.precision == dtype
            if axis == 0:
                assert same(map(torch.as_tensor, result), expected.result())
            assert_within_bound(A, type(result)(*map(torch.as_tensor, result), result.info))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_kind_that_wait_give_the_same_bits(dtype, axis):
    A = matrix(24, 40, dtype)
    lines = A if axis == 0 else A.mT
    spaced = torch.zeros(len(lines), 2 * lines.shape[1], dtype=dtype)
    spaced[:, ::2] = lines
    kinds = (
        lambda i: lines[i],
        lambda i: lines[i][None] if axis == 0 else lines[i][:, None],
        lambda i: spaced[i, ::2],
        lambda i: lines[i].conj().resolve_conj().conj(),
        lambda i: torch.nn.Parameter(lines[i]),
        lambda i: lines[i].numpy(),
        lambda i: spaced[i].numpy()[::2],
        lambda i: lines[i].flip(0).numpy()[::-1],
        lambda i: lines[i].numpy().astype(lines.numpy().dtype.newbyteorder()),
        lambda i: (
            scipy.sparse.csr_array(lines[i][None].numpy())
            if axis == 0
            else scipy.sparse.csc_array(lines[i][:, None].numpy())
        ),
    )
    state, whole = (la.IncrementalSVD(5, buffer=9) for _ in range(2))
    for i in range(len(lines)):
        append = state.append_cols if axis else state.append_rows
        append(kinds[i % len(kinds)](i))
    (whole.append_cols if axis else whole.append_rows)(A if axis == 0 else A.contiguous())
    assert state.shape == whole.shape
    assert same(state.result(), whole.result())


def test_half_precision_and_integers():
    A = (8 * matrix(30, 20)).round()
    for dtype in (torch.float16, torch.bfloat16):
        result = fed(A.to(dtype), 4).result()
        assert result.U.dtype == result.S.dtype == dtype
        assert result.info.precision == torch.float32
        expected = fed(A.float(), 4).result()
        assert torch.equal(result.S, expected.S.to(dtype))
    with pytest.raises(TypeError, match=r"before, torch.float16, got torch.float32"):
        fed(A.half(), 4).append_rows(A[0].float())
    assert fed(A.int(), 4).result().U.dtype == torch.float32
    assert fed(A.int().numpy(), 4).result().U.dtype == np.float64
    assert fed(A.tolist(), 4, height=30).result().U.dtype == np.float64


def test_inputs_are_neither_written_to_nor_kept():
    A = matrix(60, 30)
    expected = fed(A, 3).result()
    state = la.IncrementalSVD(3)
    block = torch.empty(4, 30, dtype=torch.float64)
    for row in range(0, 60, 4):
        block.copy_(A[row : row + 4])
        before = block.clone()
        state.append_rows(block)
        assert torch.equal(block, before)
        block.fill_(math.nan)
    assert same(state.result(), expected)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_entry_that_is_not_finite_is_named_and_changes_nothing(axis, sparse):
    A = matrix(40, 20)
    state = fed(A, 3, buffer=6)
    before = state.state_dict()
    block = matrix(30, 20, seed=1) if axis == 0 else matrix(40, 9, seed=1)
    block[17, 4] = math.nan
    block[18, 3] = math.inf
    index = "(57, 4)" if axis == 0 else "(17, 24)"
    name = ("rows", "cols")[axis]
    block = block.to_sparse_csr() if sparse else block
    with pytest.raises(
        ValueError,
        match=re.escape(f"append_{name}: {name} must be finite, got nan at index {index}"),
    ):
        (state.append_cols if axis else state.append_rows)(block)
    assert state.state_dict()["sha256"] == before["sha256"]
    with pytest.raises(ValueError, match=r"update_rank_one: b must be finite"):
        state.update_rank_one(A[:, 0], A[0] / 0)
    assert state.state_dict()["sha256"] == before["sha256"]
    fresh = la.IncrementalSVD(3)
    with pytest.raises(ValueError, match="finite"):
        fresh.append_rows(torch.full((1, 5), math.inf))
    fresh.append_rows(torch.ones(1, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_row_that_would_wait_is_named_at_once(dtype, wrong):
    A = matrix(12, 20, dtype)
    state = fed(A, 3)
    before = state.state_dict()["sha256"]
    for place in (0, 7, 19):
        row = A[0].clone()
        row[place] = complex(1, wrong) if dtype.is_complex else wrong
        for kind in (row, row.numpy()):
            with pytest.raises(ValueError, match=re.escape(f"at index (12, {place})")):
                state.append_rows(kind)
    assert state.state_dict()["sha256"] == before


def test_large_entries_whose_sum_overflows_are_finite():
    rows = torch.full((2, 40), 1e38)
    state = la.IncrementalSVD(1)
    state.append_rows(rows)
    assert state.shape == (2, 40)


def test_blocks_that_do_not_fit():
    A = matrix(20, 10)
    state = fed(A, 3)
    with pytest.raises(ValueError, match="append_rows: rows must have 10 columns, got 9"):
        state.append_rows(A[:, :9])
    with pytest.raises(ValueError, match="append_rows: rows must have 10 columns, got 9"):
        state.append_rows(A[:0, :9])
    with pytest.raises(ValueError, match="append_cols: cols must have 20 rows, got 19"):
        state.append_cols(A[:19])
    with pytest.raises(
        TypeError, match=r"rows must have the dtype of what came before, torch.float64"
    ):
        state.append_rows(A.float())
    with pytest.raises(TypeError, match=r"rows must have the dtype of what came before"):
        state.append_rows(A[0].float().numpy())
    with pytest.raises(ValueError, match="append_rows: rows must have 10 columns, got 9"):
        state.append_rows(A[0, :9])
    with pytest.raises(ValueError, match="2 dimensions"):
        state.append_rows(A[None])
    with pytest.raises(TypeError, match="append_rows"):
        state.append_rows(np.array([["a"] * 10]))
    with pytest.raises(ValueError, match=r"a must have shape \(20,\), got \(19,\)"):
        state.update_rank_one(A[:19, 0], A[0])
    with pytest.raises(TypeError, match="b must have the dtype"):
        state.update_rank_one(A[:, 0], A[0].float())
    assert same(state.result(), fed(A, 3).result())


def test_arguments_that_are_wrong():
    for error, message, kwargs in (
        (ValueError, "rank or tol must be given", {}),
        (ValueError, "rank must be at least 1, got 0", {"rank": 0}),
        (TypeError, "rank must be an integer, got 2.5", {"rank": 2.5}),
        (ValueError, "tol must be between 0 and 1, got 1.0", {"tol": 1}),
        (ValueError, "oversample must be at least 0, got -1", {"rank": 1, "oversample": -1}),
        (ValueError, "buffer must be at least 1, got 0", {"rank": 1, "buffer": 0}),
        (ValueError, "decay must be above 0 and at most 1, got 0.0", {"rank": 1, "decay": 0}),
        (
            ValueError,
            "decay must be above 0 and at most 1, got nan",
            {"rank": 1, "decay": math.nan},
        ),
    ):
        with pytest.raises(error, match=f"IncrementalSVD: {message}"):
            la.IncrementalSVD(**kwargs)
    state = la.IncrementalSVD(2)
    assert state.shape == (0, 0)
    for call in (state.result, lambda: state.remove_rows(0), lambda: state.error_bound):
        with pytest.raises(ValueError, match="rows or columns must be appended first"):
            call()


# ---- scale and rank ----


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
        (torch.float32, 1e30),
        (torch.float32, 1e-30),
    ],
)
def test_scales(dtype, scale):
    A, a, b = matrix(60, 30), matrix(55, 1, seed=1)[:, 0], matrix(30, 1, seed=2)[:, 0]

    def run(factor):
        # A power of two changes no bit of a mantissa.
        power = 2.0 ** round(math.log2(factor))
        state = fed((A * power).to(dtype), 5, buffer=9)
        state.remove_rows(range(5))
        state.update_rank_one((a * power).to(dtype), b.to(dtype))
        result = state.result()
        return exact(result.S) / power, result.info.error / power, result

    (S, error, _), (scaled, scaled_error, result) = run(1.0), run(scale)
    # Not the same bits: sums are scaled where squares would leave the range.
    np.testing.assert_allclose(scaled, S, rtol=1e2 * unit_roundoff(result.U))
    assert scaled_error == pytest.approx(error, rel=1e-3)
    assert orthonormality_error(result.U) <= 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(30, 20), (20, 30), (0, 9), (3, 50)])
def test_zero_matrices_and_ranks_beyond_the_numerical_one(dtype, m, n):
    for A in (torch.zeros(m, n, dtype=dtype), torch.ones(m, n, dtype=dtype)):
        for state in (fed(A, 6), fed(A, 6, buffer=4)):
            state.append_rows(A[:0])
            result = state.result()
            k = min(6, m, n)
            assert result.S.shape == (k,)
            assert result.U.shape == (m, k)
            assert result.Vh.shape == (k, n)
            assert (result.S[1:] == 0).all()
            assert_within_bound(A, result)
    zero = fed(torch.zeros(9, 8), tol=0.1).result()
    assert zero.S.shape == (0,)
    assert zero.info.error == 0
    assert zero.info.converged


def test_float32_is_near_float64():
    A = matrix(400, 60)
    wide, narrow = fed(A, 10).result(), fed(A.float(), 10).result()
    difference = np.abs(exact(wide.S) - exact(narrow.S)).max()
    assert difference <= wide.info.error + narrow.info.error
    # Rounding alone: a few u of σ₁ = 1.
    assert difference <= 40 * unit_roundoff(narrow.U)


def test_threads_do_not_show_but_for_rounding(threads):
    A = matrix(300, 200)
    results = []
    for number in (1, 2, 2):
        with threads(number):
            results.append(fed(A, 8).result())
    assert same(results[1], results[2])
    torch.testing.assert_close(results[0].S, results[1].S, rtol=1e-12, atol=0)
