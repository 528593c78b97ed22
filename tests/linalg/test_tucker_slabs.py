"""tucker of tensors that are read in slabs along the first mode."""

import itertools
import math
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_row_blocks import Again, Dataset, readers, write_hdf5, write_safetensors
from test_tucker import DTYPES, METHODS, distance, graded, normal, planted, rounding

import fastlr.linalg as la
from fastlr.linalg import _blocks, _files, _tensor_slabs
from references import orthonormality_error, unit_roundoff
from strategies import seeds


class Counted(Dataset):
    """A dataset that counts how often its first row is read."""

    @property
    def reads(self):
        return sum(first == 0 for first, _ in self.asked)


@pytest.fixture
def small_slabs(monkeypatch):
    """Files in slabs of a few kilobytes."""
    monkeypatch.setattr(_files, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(_blocks, "BLOCK_BYTES", 4000)


def cut(X, heights):
    """X in slabs of these heights, and what is left."""
    ends = [0, *(min(end, len(X)) for end in itertools.accumulate(heights)), len(X)]
    return [X[i:j] for i, j in itertools.pairwise(ends)]


# ---- ranks ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((30, 40, 50), (5, 6, 7)),
        ((60, 30, 2, 3), (6, 3, 2, 1)),
        ((200, 100), (10, 10)),
        ((20, 3, 4, 25, 6), (4, 3, 2, 3, 2)),
        ((7, 5, 1), (1, 1, 1)),
    ],
)
def test_recovers_exact_ranks(shape, ranks, method, dtype):
    X = planted(shape, ranks, dtype)
    for arguments in ({"ranks": ranks}, {"tol": 1e-5}):
        T = la.tucker(cut(X, [3, 0, 1, 8]), **arguments, method=method, seed=0)
        assert T.shape == shape
        assert T.ranks == ranks
        assert T.info.converged
        assert T.info.method == method
        assert distance(T, X) <= rounding(X)
        assert abs(T.info.error - distance(T, X)) <= rounding(X)
        for F in T.factors:
            assert F.dtype == dtype
            assert orthonormality_error(F) <= 10
            largest = F.gather(0, F.abs().argmax(0, keepdim=True))[0]
            assert bool((largest.real > 0).all())
            # A product of the largest entry with its own sign.
            assert float(largest.imag.abs().max() if X.is_complex() else 0) <= unit_roundoff(X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_as_good_as_in_memory(dtype):
    for seed, shape, ranks in (
        (0, (30, 40, 50), (4, 5, 6)),
        (1, (60, 25, 40), (6, 7, 5)),
        (2, (14, 24, 20, 9), (3, 4, 2, 3)),
    ):
        X = graded(shape, lambda i: 0.7**i, dtype, seed)
        for method in METHODS:
            T = la.tucker(cut(X, [7, 7, 7]), ranks, method=method, seed=0)
            whole = la.tucker(X, ranks, method=method, seed=0)
            # The bases hold 10 directions more than the ranks: 0.7^10 = 3 % of the last one's size,
            # 0.1 % of its energy. Without sweeps the order of the modes matters more.
            slack = 1e-3 if method == "hooi" else 5e-3
            assert T.info.error <= whole.info.error * (1 + slack)
            assert T.info.error == pytest.approx(distance(T, X), rel=1e-3)
            assert T.info.relative_error == pytest.approx(T.info.error / float(X.norm()), rel=1e-5)
    assert T.info.history[-1] == T.info.error


def test_the_power_iteration_pays():
    # A flat tail: sketches alone miss a lot of it.
    X = graded((60, 80, 90), lambda i: 1.0 if i < 5 else 0.3)
    slabs = _tensor_slabs.Slabs(_blocks.tensor_source_of(cut(X, [20, 20]), "test"), "test")
    bases = _tensor_slabs.sketched(slabs, {1: 5, 2: 5}, 0)
    first = _tensor_slabs.projected(slabs, bases)
    second = _tensor_slabs.projected(slabs, _tensor_slabs.improved(slabs, bases))
    whole = la.tucker(X, 5, seed=0)
    assert second.missed < 0.98 * first.missed
    assert la.tucker(cut(X, [20, 20]), 5, seed=0).info.error <= whole.info.error * 1.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_singular_values_survive_the_power_iteration(dtype):
    # Products with X Xᴴ know squares, of which the last is far below rounding of the first.
    least = 8 * unit_roundoff(torch.empty(0, dtype=dtype)) ** 0.5
    X = graded((40, 50, 60), lambda i: 0.0 if i > 7 else (least / 64) ** (i / 7), dtype)
    assert distance(la.tucker(cut(X, [9, 9]), 8, seed=0), X) <= rounding(X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("form", [{"ranks": (5, 4, 6)}, {"tol": 0.05}])
def test_the_height_of_slabs_does_not_matter(form, dtype):
    X = graded((40, 30, 35), lambda i: 0.7**i, dtype)
    one = la.tucker([X], **form, seed=0)
    for heights in ([1] * 40, [7] * 6, [0, 33, 0, 0], [39]):
        T = la.tucker(cut(X, heights), **form, seed=0)
        if "tol" in form:
            # Which directions a slab adds depends on it; the guarantee does not.
            assert distance(T, X) <= 0.05 * float(X.norm())
            assert all(abs(r - s) <= 1 for r, s in zip(T.ranks, one.ranks, strict=True))
            continue
        assert T.info.error == pytest.approx(one.info.error, rel=1e3 * unit_roundoff(X))
        # The same draws: factors are the same to rounding over the gap of squares, 0.5 of values
        # of 0.7^5 of the largest.
        for F, G in zip(T.factors, one.factors, strict=True):
            torch.testing.assert_close(F, G, rtol=0, atol=2e3 * unit_roundoff(X))
    if "ranks" in form:
        other = la.tucker([X], **form, seed=1)
        assert float((other.factors[1] - one.factors[1]).norm()) > 5e3 * unit_roundoff(X)


# ---- a tolerance ----


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
    # Slabs of falling or rising size, or in any order.
    scale = data.draw(st.sampled_from([0.0, 0.5, -0.5]))
    X = X * torch.exp(scale * torch.arange(shape[0])).to(dtype).view(-1, *[1] * (dimensions - 1))
    if data.draw(st.booleans()):
        X = X[torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed % 1000))]
    slabs = cut(X, data.draw(st.lists(st.integers(0, most), max_size=8)))
    # Sixteen rounding errors of a slab are left to the bases: above these the tolerance is kept.
    tol = 10.0 ** -data.draw(st.floats(0.2, 5.0 if dtype == torch.float32 else 12.0))
    norm = float(torch.linalg.vector_norm(X.to(torch.complex128)))
    for method in ("hooi", "st_hosvd"):
        T = la.tucker(iter(slabs), tol=tol, method=method, seed=seed)
        assert T.info.converged
        assert distance(T, X) <= tol * norm * (1 + 1e-6)
        # ‖P‖² − ‖core‖² is right to 1e-4 of itself; where bases grew, the error is a bound.
        assert T.info.error >= distance(T, X) * (1 - 1e-3) - rounding(X)
        assert T.info.error <= distance(T, X) * 1.5 + rounding(X)
        assert all(orthonormality_error(F) <= 10 for F in T.factors)


def test_a_tolerance_spares_as_much_as_in_memory():
    X = graded((60, 50, 70), lambda i: 0.8**i)
    for tol in (0.1, 1e-2, 1e-3):
        whole = la.tucker(X, tol=tol, seed=0)
        for slabs in (cut(X, [7] * 9), [X]):
            T = la.tucker(slabs, tol=tol, seed=0)
            # A column more in one or two modes.
            assert T.size <= 1.1 * whole.size


@pytest.mark.parametrize(("share", "most"), [(0.6, 0.03), (0.9, 0.1)])
def test_noise_below_the_tolerance_does_not_fill_the_bases(share, most, monkeypatch):
    X, noise = planted((60, 50, 40), (4, 4, 4)), normal((60, 50, 40), seed=9)
    tol = 0.05
    X = X / X.norm() + share * tol * noise / noise.norm()
    made, together = [], _tensor_slabs._together
    monkeypatch.setattr(
        _tensor_slabs, "_together", lambda *parts: made.append(together(*parts)) or made[-1]
    )
    T = la.tucker(cut(X, [6] * 10), tol=tol, seed=0)
    assert T.ranks == (4, 4, 4)
    assert distance(T, X) <= tol * float(X.norm())
    assert made[0].tensor.numel() < most * X.numel()


def test_earlier_slabs_leave_their_share_to_later_ones():
    # The second slab is below what the first one is allowed to lose and has not lost.
    first, second = planted((20, 40, 30), (2, 2, 2)), normal((20, 40, 30), seed=5)
    X = torch.cat([first / first.norm(), 1e-3 * second / second.norm()])
    T = la.tucker(cut(X, [20]), tol=1e-2, seed=0)
    assert T.ranks == (2, 2, 2)
    # In the other order, directions for the noise are in the bases, but not in the result.
    assert la.tucker(cut(X.flip(0), [20]), tol=1e-2, seed=0).ranks == (2, 2, 2)


@pytest.mark.parametrize("modes", [(1,), (0, 1)])
def test_the_error_of_an_older_part_is_bounded(modes):
    # X̂ has 0.05 where the first row of X has lost -0.1: the worst case of the bound.
    eye = torch.eye(2, dtype=torch.float64)
    X, core = (torch.tensor([[1, x], [0, 1]], dtype=torch.float64) for x in (-0.1, 0.05))
    older = [(slice(0, 1), torch.Size((1, 1)), 0.1)]
    small = _tensor_slabs.Small(eye, {1: eye}, float(X.norm()), 0.1, older)
    error = small.error(core, dict.fromkeys(modes, eye), 0.05)
    assert error == pytest.approx(0.15, rel=1e-12)
    assert error == pytest.approx(float((X - core).norm()), rel=1e-12)


def test_ranks_limit_a_tolerance():
    X = graded((40, 30, 20), lambda i: 0.8**i)
    free = la.tucker(cut(X, [11] * 3), tol=1e-3, seed=0)
    with pytest.warns(la.ConvergenceWarning, match="ranks") as caught:
        T = la.tucker(cut(X, [11] * 3), 5, tol=1e-3, seed=0)
    assert caught[0].filename == __file__
    assert T.ranks == (5, 5, 5)
    assert not T.info.converged
    assert distance(T, X) <= T.info.error <= distance(T, X) * 1.1
    assert la.tucker(cut(X, [11] * 3), 100, tol=1e-3, seed=0).ranks == free.ranks


@pytest.mark.parametrize("tol", [1e-6, 1e-9, 1e-30])
def test_a_tolerance_below_rounding_is_not_met(tol):
    X = graded((20, 30, 40), lambda i: 0.4**i, torch.float32)
    with pytest.warns(la.ConvergenceWarning, match=f"tol = {tol:g}"):
        T = la.tucker(cut(X, [7, 7]), tol=tol, seed=0)
    assert not T.info.converged
    assert T.info.error > tol * float(X.norm())
    # Bases do not grow for the sake of rounding, whose size this is: 16 units of each slab.
    assert T.info.relative_error <= 40 * unit_roundoff(X)
    assert T.factors[2].shape[1] < 40


def test_max_sweeps():
    X = normal((20, 40, 40))
    with pytest.warns(la.ConvergenceWarning, match="max_sweeps = 1"):
        T = la.tucker(cut(X, [9]), 3, max_sweeps=1, seed=0)
    assert T.info.sweeps == 1
    assert len(T.info.history) == 2
    assert T.info.history[1] <= T.info.history[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        start = la.tucker(cut(X, [9]), 3, max_sweeps=0, seed=0)
    assert start.info.error == pytest.approx(T.info.history[0], rel=1e-12)
    assert start.info.error == pytest.approx(distance(start, X), rel=1e-9)


# ---- sources ----


def sources(X, folder):
    """X in every form in which it may be larger than memory."""
    m = len(X)
    np.save(folder / "whole.npy", X)
    np.save(folder / "top.npy", X[: m // 3])
    np.save(folder / "bottom.npy", X[m // 3 :])
    yield "blocks of one row", list(X[:, None])
    yield "uneven blocks", (X[:7], X[7:7], X[7:8], X[8 : m // 2], X[m // 2 :])
    yield "strided blocks", [np.asfortranarray(X[:9]), X[:8:-1][::-1]]
    yield "memmap", np.load(folder / "whole.npy", mmap_mode="r")
    yield "rows of a memmap", [np.load(folder / "whole.npy", mmap_mode="r")[i::1] for i in (0,)]
    yield "memmaps", [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("top", "bottom")]
    yield "path", folder / "whole.npy"
    yield "paths", [folder / "top.npy", str(folder / "bottom.npy")]
    yield "dataset", Dataset(X)
    yield "HDF5", write_hdf5(folder / "a.h5", X)
    yield "chunked HDF5", write_hdf5(folder / "chunked.h5", X, chunks=(5, *X.shape[1:]))
    yield "again", Again(X, 11)
    if X.dtype != np.complex128:  # which safetensors does not have
        yield "safetensors", write_safetensors(folder / "a.safetensors", X=X)


@pytest.mark.parametrize("shape", [(40, 25, 20), (30, 8, 9, 13), (60, 45)])
@pytest.mark.parametrize("dtype", [np.float32, np.complex128, ">f8", np.float16, np.int16])
def test_every_source_is_the_same_tensor(shape, dtype, tmp_path, small_slabs):
    kind = torch.complex128 if dtype == np.complex128 else torch.float64
    X = graded(shape, lambda i: 0.6**i, kind).numpy()
    X = (X * 1e4).round().astype(dtype) if dtype == np.int16 else X.astype(dtype)
    whole = torch.from_numpy(X.astype(X.dtype.newbyteorder("=")))
    expected = la.tucker(list(whole.split(6)), 3, seed=0)
    loose = 0.1 * float(torch.linalg.vector_norm(whole.to(torch.complex128)))
    for name, source in sources(X, tmp_path):
        T = la.tucker(source, 3, seed=0)
        assert isinstance(T.core, np.ndarray), name
        assert T.core.dtype == (np.float64 if dtype in (np.int16, ">f8") else X.dtype), name
        assert T.info.relative_error == pytest.approx(expected.info.relative_error, rel=1e-3), name
        assert T.shape == shape
        held = la.tucker(source, tol=0.1, seed=0)
        assert held.info.error <= loose, name
        # Of float16 the factors are rounded after the error is measured.
        unit = 2.0**-9 * loose / 0.1 if dtype == np.float16 else 0
        assert distance(held, whole) <= loose + unit, name
    assert readers() == []


def test_reads_are_counted(small_slabs):
    X = graded((40, 25, 20), lambda i: 0.6**i).numpy()
    for arguments, reads in (({"ranks": 3}, 3), ({"tol": 0.1}, 1), ({"ranks": 9, "tol": 0.5}, 1)):
        dataset, again = Counted(X), Again(X, 11)
        la.tucker(dataset, **arguments, seed=0)
        assert dataset.reads == reads
        # One row of 25·20 doubles fills the 4000 bytes of a slab.
        assert dataset.asked[:2] == [(0, 1), (1, 2)]
        la.tucker(again, **arguments, seed=0)
        assert again.reads == 1 + reads  # + 1: a look at the first slab


def test_an_iterator_is_read_once():
    X = graded((40, 25, 20), lambda i: 0.6**i)
    T = la.tucker((X[i : i + 7] for i in range(0, 40, 7)), tol=1e-3, seed=0)
    assert distance(T, X) <= 1e-3 * float(X.norm())
    assert T.shape == X.shape
    with pytest.raises(ValueError, match="X is an iterator, which can be read once: only tol"):
        la.tucker((X[i : i + 7] for i in range(0, 40, 7)), 3, seed=0)


def test_kinds():
    X = graded((30, 25, 20), lambda i: 0.6**i)
    for dtype in (torch.float16, torch.bfloat16):
        half = X.to(dtype)
        T = la.tucker(list(half.split(8)), 3, seed=0)
        assert T.core.dtype == dtype
        whole = la.tucker(half.float(), 3, seed=0)
        assert T.info.error == pytest.approx(whole.info.error, rel=1e-3)
    integers = la.tucker(list((X * 1000).round().to(torch.int32).split(8)), 3, seed=0)
    assert integers.core.dtype == torch.float32
    assert integers.info.relative_error == pytest.approx(
        la.tucker(X, 3, seed=0).info.relative_error, rel=0.05
    )
    tracked = X.clone().requires_grad_()
    assert not la.tucker(list(tracked.split(8)), 3, seed=0).core.requires_grad
    Z = graded((30, 25, 20), lambda i: 0.6**i, torch.complex128)
    lazy = la.tucker(list(Z.conj().split(8)), 3, seed=0)
    assert torch.equal(lazy.core, la.tucker(list(Z.conj_physical().split(8)), 3, seed=0).core)
    before = Z.clone()
    la.tucker([Z], tol=0.1, seed=0)
    assert torch.equal(Z, before)


def test_what_is_an_array_stays_one(tmp_path):
    X = graded((12, 9, 8), lambda i: 0.6**i).numpy()
    expected = la.tucker(X, 3, seed=0)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "columns.npy", np.asfortranarray(X))
    small = np.load(tmp_path / "X.npy", mmap_mode="r")
    forms = [X.tolist(), [[list(row) for row in each] for each in X], small, np.asfortranarray(X)]
    for form in forms:
        assert _blocks.tensor_source_of(form, "tucker") is None
        T = la.tucker(form, 3, seed=0)
        # Sweeps over modes in another order end near the same minimum.
        assert T.info.error == pytest.approx(expected.info.error, rel=1e-3)
    assert np.array_equal(la.tucker(small, 3, seed=0).core, expected.core)
    masked = la.tucker(small, 3, mask=np.ones(X.shape, bool), seed=0)
    assert masked.info.error == pytest.approx(expected.info.error, rel=1e-2)


def test_a_memmap_larger_than_a_block_is_read(tmp_path, small_slabs, monkeypatch):
    X = graded((40, 25, 20), lambda i: 0.6**i).numpy()
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "columns.npy", np.asfortranarray(X))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    read, blocks = [], _files.FileMatrix.blocks
    monkeypatch.setattr(
        _files.FileMatrix, "blocks", lambda self: read.append(self.path) or blocks(self)
    )
    la.tucker(mapped, 3, seed=0)
    assert len(read) == 3
    # Parts of it, in C order or not; batches and masks are for arrays.
    part = la.tucker(mapped[5:30], 3, seed=0)
    assert len(read) == 6
    assert part.info.error == pytest.approx(
        la.tucker(X[5:30].copy(), 3, seed=0).info.error, rel=1e-3
    )
    for form, options in (
        (mapped[:, 1:], {}),
        (np.load(tmp_path / "columns.npy", mmap_mode="r"), {}),
        (mapped, {"batch_dims": 1}),
        (mapped, {"mask": np.ones(X.shape, bool), "max_sweeps": 1000}),
    ):
        la.tucker(form, 3, **options, seed=0)
    assert len(read) == 6


def test_some_modes():
    X = graded((16, 30, 5, 40), lambda i: 0.6**i)
    slabs = cut(X, [5, 5])
    T = la.tucker(slabs, (4, 7), modes=(1, -1), seed=0)
    assert T.ranks == (16, 4, 5, 7)
    assert [None if F is None else tuple(F.shape) for F in T.factors] == [
        None, (30, 4), None, (40, 7),
    ]  # fmt: skip
    assert T.info.error == pytest.approx(distance(T, X), rel=1e-9)
    whole = la.tucker(X, (4, 7), modes=(1, 3), seed=0)
    assert T.info.error <= whole.info.error * (1 + 1e-3)
    swapped = la.tucker(slabs, (7, 4), modes=(3, 1), seed=0)
    assert torch.equal(swapped.core, T.core)
    rows = la.tucker(slabs, 3, modes=(0,), seed=0)
    assert rows.ranks == (3, 30, 5, 40)
    assert rows.info.error == pytest.approx(la.tucker(X, 3, modes=(0,)).info.error, rel=1e-3)
    for modes in ((1, 3), (0,), (0, 2)):
        held = la.tucker(slabs, tol=1e-2, modes=modes, seed=0)
        assert distance(held, X) <= 1e-2 * float(X.norm())
    none = la.tucker(slabs, [], modes=(), seed=0)
    assert torch.equal(none.full(), X)


@pytest.mark.parametrize("exponent", [-200, 200])
def test_scale(exponent):
    X = graded((20, 25, 26), lambda i: 0.6**i)
    for arguments in ({"ranks": (3, 4, 5)}, {"tol": 1e-3}):
        T = la.tucker(cut(X, [6, 6]), **arguments, seed=0)
        big = X * 2.0 ** (3 * exponent)
        scaled = la.tucker(cut(big, [6, 6]), **arguments, seed=0)
        assert scaled.ranks == T.ranks
        assert scaled.info.relative_error == pytest.approx(T.info.relative_error, rel=1e-9)
        error = (torch.as_tensor(scaled.full()) * 2.0 ** (-3 * exponent) - X).norm()
        assert float(error) <= T.info.error * (1 + 1e-9)
        small = (X * 10.0 ** (exponent * 0.15)).float()
        loose = la.tucker(cut(small, [6, 6]), **arguments, seed=0)
        assert loose.info.relative_error == pytest.approx(T.info.relative_error, rel=1e-2)


def test_slabs_of_very_different_size():
    X = (
        graded((20, 25, 26), lambda i: 0.6**i)
        * (10.0 ** torch.linspace(-200, 200, 20, dtype=torch.float64))[:, None, None]
    )
    for slabs in (cut(X, [1] * 20), cut(X.flip(0), [3] * 7)):
        T = la.tucker(slabs, tol=1e-3, seed=0)
        assert T.info.converged
        error = (T.full() - torch.cat(slabs)) * 1e-200
        assert float(error.norm()) <= 1e-3 * float((X * 1e-200).norm())


@pytest.mark.parametrize("method", METHODS)
def test_degenerate(method):
    for zero in (torch.zeros(5, 26, 7), torch.zeros(9, 30)):
        ranks = (2, 3, 4)[: zero.dim()]
        T = la.tucker(list(zero.split(2)), ranks, method=method, seed=0)
        assert T.ranks == ranks
        assert not T.core.any()
        assert T.info.error == T.info.relative_error == 0
        assert all(orthonormality_error(F) <= 10 for F in T.factors)
        held = la.tucker(list(zero.split(2)), tol=0.1, method=method, seed=0)
        assert held.ranks == (1,) * zero.dim()
        assert held.shape == tuple(zero.shape)
        assert not held.full().any()
    X = planted((6, 30, 8), (2, 2, 2))
    padded = torch.cat([torch.zeros(3, 30, 8), X, torch.zeros(4, 30, 8)])
    for arguments in ({"ranks": 2}, {"tol": 1e-9}):
        T = la.tucker(cut(padded, [3, 6]), **arguments, method=method, seed=0)
        assert T.ranks == (2, 2, 2)
        assert distance(T, padded) <= rounding(padded)
    # More than the other modes can fill.
    wide = normal((2, 40, 2))
    T = la.tucker(list(wide.split(1)), (2, 20, 2), method=method, seed=0)
    assert distance(T, wide) <= rounding(wide)
    assert orthonormality_error(T.factors[1]) <= 10
    one = normal((1, 1))
    assert la.tucker([one], 1, method=method).full() == pytest.approx(one)


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 30, 0), (0, 30, 3), (0, 30)])
def test_without_entries(shape):
    empty = torch.zeros(shape)
    modes = [mode for mode, n in enumerate(shape) if n]
    for slabs in ([empty], [empty[:0], empty], Again(empty.numpy(), 2)):
        if isinstance(slabs, Again) and not len(empty):
            continue  # nothing is yielded, which has no shape
        for arguments in ({"ranks": 1}, {"tol": 0.1}):
            T = la.tucker(slabs, **arguments, modes=modes, seed=0)
            assert T.shape == shape
            assert T.info.error == 0
            assert T.info.converged
            expected = la.tucker(empty, **arguments, modes=modes, seed=0)
            assert T.ranks == expected.ranks


def test_seeds():
    X = graded((30, 60, 50), lambda i: 1 / (1 + i))
    one, same, other = (la.tucker(cut(X, [9, 9]), 4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.core, same.core)
    assert not torch.equal(one.core, other.core)


# ---- everything that can be wrong ----


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "ranks or tol"),
        ({"ranks": (1, 9, 1)}, ValueError, "at most the size of the mode, 5 for mode 1, got 9"),
        ({"ranks": (9, 1, 1)}, ValueError, "at most the size of the mode, 4 for mode 0, got 9"),
        ({"ranks": 0}, ValueError, "at least 1, got 0"),
        ({"ranks": (1, 2)}, ValueError, "one for each of 3 modes"),
        ({"tol": 1.0}, ValueError, "between 0 and 1"),
        (
            {"tol": 0.1, "batch_dims": 1},
            ValueError,
            "read in slabs takes no mask and no batch_dims",
        ),
        ({"ranks": 1, "mask": torch.ones(4, 5, 6, dtype=bool)}, ValueError, "takes no mask"),
        ({"ranks": 1, "method": "hosvd"}, ValueError, "method must be one of"),
        ({"ranks": 1, "modes": (0, 0)}, ValueError, "different"),
        ({"ranks": 1, "modes": (3,)}, ValueError, "from -3 to 2, got 3"),
        ({"ranks": 1, "max_sweeps": -1}, ValueError, "max_sweeps"),
        ({"ranks": 1, "seed": 1.5}, TypeError, "seed"),
    ],
)
def test_bad_arguments(arguments, error, message):
    X = normal((4, 5, 6))
    for source in (list(X.split(3)), Again(X.numpy(), 3), Dataset(X.numpy())):
        with pytest.raises(error, match=message) as raised:
            la.tucker(source, **arguments)
        assert str(raised.value).startswith("tucker: ")


@pytest.mark.parametrize(
    ("slab", "error", "words"),
    [
        (
            np.ones((5, 4, 6)),
            ValueError,
            r"slab 2.*|block 2 of X must have the sizes .*\(6, 4\), got \(4, 6\)",
        ),
        (np.ones((5, 24)), ValueError, r"block 2 of X must have the sizes .*\(6, 4\), got \(24,\)"),
        (np.ones((5, 6, 4), np.float32), TypeError, r"block 2 of X must have the dtype .*float64"),
        (torch.ones(5, 6, 4).double(), TypeError, r"block 2 of X must be of the kind .*NumPy"),
        (np.ones(24), ValueError, r"block 2 of X must have at least 2 dimensions, got .*\(24,\)"),
        (np.full((5, 6, 4), "a"), TypeError, r"block 2 of X must be a NumPy array or torch tensor"),
        (torch.ones(2, 6, 4).to_sparse(), TypeError, r"block 2 of X must be dense"),
        (None, TypeError, r"block 2 of X must be a NumPy array or torch tensor"),
    ],
)
def test_a_bad_slab_is_named(slab, error, words):
    X = normal((9, 6, 4)).numpy()
    slabs = [X[:5], X[5:], slab, X[:2]]

    class Slabs:
        def __iter__(self):
            return iter(slabs)

    for source in (slabs, Slabs(), iter(slabs)):
        with pytest.raises(error, match=words) as raised:
            la.tucker(source, tol=0.1, seed=0)
        assert str(raised.value).startswith("tucker: ")
    assert readers() == []


@pytest.mark.parametrize("arguments", [{"ranks": 2}, {"tol": 0.1}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_entry_is_named(arguments, bad, tmp_path, small_slabs):
    X = normal((30, 8, 9)).numpy()
    X[25, 3, 7] = bad
    for name, source in sources(X, tmp_path):
        with pytest.raises(ValueError, match=r"X.* must be finite, got (nan|inf) at") as raised:
            la.tucker(source, **arguments, seed=0)
        assert "(25, 3, 7)" in str(raised.value), name
    assert readers() == []


@pytest.mark.parametrize(("then", "words"), [(20, "gave 20 of the 30"), (40, "gave 40 of the 30")])
def test_reads_that_disagree(then, words):
    X = normal((40, 20, 20)).numpy()

    class Changing:
        reads = 0

        def __iter__(self):
            self.reads += 1
            # A look at the first slab and the first read; then another number of rows.
            rows = 30 if self.reads <= 2 else then
            return iter([X[i : min(i + 7, rows)] for i in range(0, rows, 7)])

    with pytest.raises(ValueError, match=f"tucker: a read {words} rows of X; every read must give"):
        la.tucker(Changing(), 3, seed=0)


def test_a_dataset_that_gives_something_else(small_slabs):
    X = normal((30, 20, 25)).numpy()
    words = r"tucker: rows 0:1 of X must have shape \(1, 20, 25\) and dtype float64, got "
    for read in (
        lambda X, rows: X[rows][:, :-1],
        lambda X, rows: X[rows].reshape(-1, 25, 20),
        lambda X, rows: X[rows].astype(np.float32),
    ):
        with pytest.raises(ValueError, match=words):
            la.tucker(Dataset(X, read), 3, seed=0)


def test_bad_files(tmp_path):
    np.save(tmp_path / "vector.npy", np.ones(5))
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.ones((5, 4, 3))))
    np.save(tmp_path / "X.npy", np.ones((5, 4, 3)))
    (tmp_path / "noise.npy").write_bytes(os.urandom(100))
    cases = {
        "vector.npy": r"must hold a tensor, got shape \(5,\)",
        "columns.npy": "must be in C order",
        "noise.npy": "has no header of a tensor",
        "X.csv": r"must end in \.npy or \.safetensors",
    }
    for name, words in cases.items():
        for source in (tmp_path / name, [str(tmp_path / name)]):
            with pytest.raises(ValueError, match=words) as raised:
                la.tucker(source, 1, seed=0)
            assert name in str(raised.value)
            assert str(raised.value).startswith("tucker: ")
    os.truncate(tmp_path / "X.npy", 300)
    with pytest.raises(ValueError, match="is truncated"):
        la.tucker(tmp_path / "X.npy", 1)
    with pytest.raises(FileNotFoundError):
        la.tucker(tmp_path / "absent.npy", 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="directory without"):
        la.tucker(tmp_path / "folder", 1)
    # A matrix by columns is read as such.
    A = normal((30, 25)).numpy()
    np.save(tmp_path / "A.npy", np.asfortranarray(A))
    T = la.tucker(tmp_path / "A.npy", 25, seed=0)
    assert distance(T, torch.from_numpy(A)) <= rounding(torch.from_numpy(A))


@pytest.mark.parametrize("where", [1, 3])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_the_reader_raises_reaches_the_caller(where, error):
    threads = torch.get_num_threads()

    class Slabs:
        def __iter__(self):
            for index in range(6):
                if index == where:
                    raise error("the disk is gone")
                yield np.ones((10, 20, 20))

    for source, arguments in ((Slabs(), {"ranks": 3}), (iter(Slabs()), {"tol": 0.1})):
        with pytest.raises(error, match="the disk is gone"):
            la.tucker(source, **arguments, seed=0)
        assert readers() == []
        assert torch.get_num_threads() == threads


def test_an_interrupt_leaves_no_thread(monkeypatch):
    calls, split = [], _tensor_slabs._split

    def interrupted(*arguments):
        calls.append(threading.current_thread())
        if len(calls) == 4:
            raise KeyboardInterrupt
        return split(*arguments)

    monkeypatch.setattr(_tensor_slabs, "_split", interrupted)
    X = normal((40, 20, 20)).numpy()
    with pytest.raises(KeyboardInterrupt):
        la.tucker((X[i : i + 2] for i in range(0, 40, 2)), tol=0.1, seed=0)
    assert readers() == []
    assert set(calls) == {threading.main_thread()}


# ---- memory ----

PEAK = """
import sys
import numpy as np, torch
import fastlr.linalg as la
la.tucker([np.ones((9, 30, 20), np.float32)], 2, seed=0)
la.tucker([np.ones((9, 30, 20), np.float32)], tol=0.1, seed=0)
def peak():
    # Not getrusage, whose peak survives exec: it would be that of the tests themselves.
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
before = peak()
X = np.memmap(sys.argv[1], dtype=np.float32, mode="r", shape=(448, 512, 512))
la.tucker(X, 2, seed=0)
la.tucker(X, tol=0.1, seed=0)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_is_bounded(tmp_path):
    path = tmp_path / "X"
    with open(path, "wb") as file:
        file.write(np.ones(100, np.float32))
        file.truncate(448 * 512 * 512 * 4)  # 448 MiB, of zeros that take no disk
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    # Two buffers of 32 MiB, an unfolding or a residual and its products, draws and allocators.
    assert int(run.stdout.split()[-1]) < 320 * 1024
