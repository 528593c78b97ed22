"""Data read in blocks of rows: the factors of the whole matrix, and every way to go wrong."""

import collections
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr.linalg import _blocks, _files
from references import exact, orthonormality_error, tail_norm, unit_roundoff
from strategies import matrices, with_spectrum

SHAPES = [(400, 30), (30, 400), (90, 60), (60, 90)]


def rounding(A) -> float:
    """40·√k·u·‖A‖_F, as in the tests of the dense case."""
    A = torch.as_tensor(np.asarray(A)) if not isinstance(A, torch.Tensor) else A
    return 40 * math.sqrt(min(A.shape)) * unit_roundoff(A) * float(np.linalg.norm(exact(A)))


def assert_same(result, expected, A, slack=1):
    """The same draws, sums in another order: a few roundings of ‖A‖_F."""
    S, reference = (np.asarray(each.S, dtype=np.float64) for each in (result, expected))
    np.testing.assert_allclose(S, reference, rtol=0, atol=slack * rounding(A))
    assert result.info.error == pytest.approx(expected.info.error, rel=1e-3)
    assert result.U.shape == expected.U.shape
    assert result.Vh.shape == expected.Vh.shape


def matrix(m, n, dtype=np.float64):
    """Columns of slowly falling size: what a sketch finds depends on its draws."""
    rng = np.random.default_rng(m)
    A = rng.standard_normal((m, n))
    if np.issubdtype(dtype, np.complexfloating):
        A = A + 1j * rng.standard_normal((m, n))
    return (A / (1 + np.arange(n)) ** 0.25).astype(dtype)


class Again:
    """Blocks of rows, from the beginning whenever they are asked for."""

    def __init__(self, A, height):
        self.A, self.height, self.reads = A, height, 0

    def __iter__(self):
        self.reads += 1
        return iter([self.A[i : i + self.height] for i in range(0, len(self.A), self.height)])


class Dataset:
    """What HDF5 and zarr have in common."""

    def __init__(self, A, read=lambda A, rows: A[rows], chunks=None):
        self.A, self.read, self.chunks = A, read, chunks
        self.shape, self.dtype = A.shape, A.dtype
        self.asked = []

    def __getitem__(self, rows):
        self.asked.append((rows.start, rows.stop))
        return self.read(self.A, rows)


@pytest.fixture
def small_blocks(monkeypatch):
    """Files in blocks of a few rows, so that small ones have many."""
    monkeypatch.setattr(_files, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(_files, "LEAST_HEIGHT", 3)


def write_hdf5(path, A, **options):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w") as file:
        file.create_dataset("A", data=A, **options)
    return h5py.File(path, "r")["A"]


def write_safetensors(path, **tensors):
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    numpy.save_file(tensors, path)
    return path


def sources(A, folder):
    """A in every form in which it may be larger than memory; the form, and what it is read as."""
    m = len(A)
    np.save(folder / "whole.npy", A)
    np.save(folder / "columns.npy", np.asfortranarray(A))
    np.save(folder / "top.npy", A[: m // 3])
    np.save(folder / "bottom.npy", np.asfortranarray(A[m // 3 :]))
    yield "blocks of one row", list(A[:, None])
    yield "uneven blocks", (A[:7], A[7:7], A[7:8], A[8 : m // 2], A[m // 2 :])
    yield "memmap", np.load(folder / "whole.npy", mmap_mode="r")
    yield "memmap, columns first", np.load(folder / "columns.npy", mmap_mode="r")
    yield "memmaps", [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("top", "bottom")]
    yield "path", folder / "whole.npy"
    yield "path, columns first", str(folder / "columns.npy")
    yield "paths", [folder / "top.npy", str(folder / "bottom.npy")]
    yield "dataset", Dataset(A)
    yield "HDF5", write_hdf5(folder / "a.h5", A)
    yield "chunked HDF5", write_hdf5(folder / "chunked.h5", A, chunks=(5, 7))
    yield "again", Again(A, 11)
    if A.dtype != np.complex128:  # which safetensors does not have
        yield "safetensors", write_safetensors(folder / "a.safetensors", A=A)
        top = write_safetensors(folder / "top.safetensors", A=A[: m // 3])
        yield "npy and safetensors", [top, folder / "bottom.npy"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@pytest.mark.parametrize("method", ["subspace", "krylov", "single_pass", "nystrom"])
def test_every_source_gives_the_factors_of_the_dense_matrix(
    shape, dtype, method, tmp_path, small_blocks
):
    A = matrix(*shape, dtype)
    # In full precision: only a matrix in memory may be taken in half of it.
    options = {"method": method, "oversample": 2, "seed": 3, "precision": "full"}
    if method in ("subspace", "krylov"):
        options["power_iters"] = 2
    expected = la.randomized_svd(A, 4, **options)
    # 20 times the rounding where a sketch is solved for.
    slack = 1 if method in ("subspace", "krylov") else 20
    for name, source in sources(A, tmp_path):
        result = la.randomized_svd(source, 4, **options)
        assert isinstance(result.U, np.ndarray), name
        assert_same(result, expected, A, slack)
        if slack == 20:
            assert result.info.passes == 1, name
            one_read = la.randomized_svd((A[i : i + 9] for i in range(0, len(A), 9)), 4, **options)
            assert_same(one_read, expected, A, slack)
    # The negative control: other draws are other factors.
    other = la.randomized_svd(A, 4, **{**options, "seed": 4})
    assert np.abs(other.S - expected.S).max() > rounding(A)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["tol", "center", "auto"])
def test_options(shape, form, tmp_path, small_blocks):
    A = matrix(*shape) + (form == "center")
    options = {"tol": {"tol": 0.2}, "center": {"rank": 4, "center": True}, "auto": {"rank": 4}}
    expected = la.randomized_svd(A, **options[form], seed=1)
    for name, source in sources(A, tmp_path):
        result = la.randomized_svd(source, **options[form], seed=1)
        assert result.info.converged == expected.info.converged, name
        assert result.S.shape == expected.S.shape, name
        # Blocks decide by other Ritz values when to stop: within the 2 % that the iteration allows.
        tolerance = 0.02 * expected.S[0] if form != "tol" else 2 * rounding(A)
        np.testing.assert_allclose(result.S, expected.S, rtol=0, atol=tolerance, err_msg=name)
        assert orthonormality_error(torch.from_numpy(result.U)) <= 10


@pytest.mark.parametrize("power_iters", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_reads_are_counted(shape, power_iters, tmp_path):
    A = matrix(*shape)
    tall, long = shape[0] > shape[1], max(shape) > 8 * min(shape)
    fused, plain = 1 + power_iters, 2 + 2 * power_iters
    if power_iters == 0:
        fused = plain
    np.save(tmp_path / "rows.npy", A)
    np.save(tmp_path / "columns.npy", np.asfortranarray(A))
    dataset, again = Dataset(A), Again(A, 13)
    expected = {
        # A^H A X is one read where blocks run along the long side.
        "dataset": (dataset, fused if tall else plain),
        # Rows are counted first.
        "again": (again, 1 + (fused if tall else plain)),
        "rows": (tmp_path / "rows.npy", fused if tall or long else plain),
        "columns": (tmp_path / "columns.npy", fused if not tall or long else plain),
    }
    for name, (source, passes) in expected.items():
        info = la.randomized_svd(source, 4, power_iters=power_iters, seed=0).info
        assert info.passes == passes, name
    assert len(dataset.asked) == expected["dataset"][1]
    assert again.reads == 1 + expected["again"][1]  # + 1: a look at the first block
    one_read = la.randomized_svd(again, 4, method="nystrom", seed=0).info
    assert one_read.passes == 1
    assert again.reads == 1 + expected["again"][1] + 2


@given(A=matrices(), cuts=st.lists(st.integers(0, 60), max_size=8), seed=st.integers(0, 2**32))
def test_any_blocks_are_the_matrix(A, cuts, seed):
    ends = [0, *sorted(min(cut, len(A)) for cut in cuts), len(A)]
    blocks = [A[i:j] for i, j in itertools.pairwise(ends)]
    rank = min(5, *A.shape)
    result = la.randomized_svd(blocks, rank, power_iters=2, seed=seed)
    U, S, Vh = (exact(factor) for factor in result)
    assert isinstance(result.U, torch.Tensor)
    for basis in (result.U, result.Vh.mT):
        assert orthonormality_error(basis) <= 10
    residual = float(np.linalg.norm(exact(A) - (U * S) @ Vh))
    # Theorem 10.5 of Halko, Martinsson, Tropp without power iterations: √(1 + k/(p − 1)) < 1.3 in
    # expectation at k = 5, p = 10; iterations only lower it.
    assert residual <= 1.4 * tail_norm(A, rank) + rounding(A)
    assert residual <= result.info.error + rounding(A)


@pytest.mark.parametrize("method", ["subspace", "nystrom"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_draws_are_the_same_bits(method, dtype):
    # One entry a row and column: every sum has one term, so that blocks change no bit of a product
    # and the factors are the same to the bit, unless the draws are not.
    A = torch.zeros(300, 50, dtype=dtype)
    A[torch.arange(50) * 5 + 3, torch.randperm(50)] = 0.9 ** torch.arange(50).to(dtype)
    options = {"method": method, "seed": 9}
    if method == "subspace":
        options["power_iters"] = 0
    expected = la.randomized_svd(A, 5, **options)
    for height in (1, 7, 64, 300):
        result = la.randomized_svd(list(A.split(height)), 5, **options)
        for factor, same in zip(result, expected, strict=True):
            assert torch.equal(factor, same), height
    assert not torch.equal(la.randomized_svd(A, 5, **{**options, "seed": 8}).U, expected.U)


LAYOUTS = {
    "rows": lambda M: M,
    "transposed": lambda M: M.T,
    "every third row": lambda M: M[1::3],
    "every 40th row": lambda M: M[::40],
    "some columns": lambda M: M[5:, 3:19],
    "every third column": lambda M: M[:, ::3],
    "backwards": lambda M: M[::-1, ::-2],
    "backwards, transposed": lambda M: M.T[::-1, 1:],
    "one row": lambda M: M[17:18],
    "one column": lambda M: M[:, 4:5],
}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [">f8", "<f2", "i1", "u2", "?", "<c8"])
def test_any_layout_of_a_memmap(order, layout, dtype, tmp_path, small_blocks):
    A = np.asarray(matrix(200, 40) * 20).astype(dtype)
    mapped = np.memmap(tmp_path / "A", dtype=dtype, mode="w+", shape=A.shape, order=order, offset=9)
    mapped[:] = A
    view, same = LAYOUTS[layout](mapped), np.ascontiguousarray(LAYOUTS[layout](A))
    source = _files.behind_memmap(view, "test")
    assert np.array_equal(np.concatenate([block.copy() for block in source.blocks()]), same)
    rank = min(3, *same.shape)
    result = la.randomized_svd(view, rank, power_iters=1, seed=0)
    expected = la.randomized_svd(same, rank, power_iters=1, seed=0)
    assert result.U.dtype == expected.U.dtype
    # A float16 result is rounded to its own type.
    unit = torch.from_numpy(same.astype(same.dtype.newbyteorder("=")))
    unit = unit if unit.is_floating_point() or unit.is_complex() else unit.double()
    np.testing.assert_allclose(
        result.S.astype(np.float64), expected.S.astype(np.float64), rtol=0, atol=rounding(unit)
    )


@pytest.mark.parametrize("name", sorted(_files._SAFETENSORS))
def test_every_type_of_safetensors(name, tmp_path):
    torch_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    names = {"F": "float", "I": "int", "U": "uint", "C": "complex"}
    dtype = {"BF16": torch.bfloat16, "BOOL": torch.bool}.get(name) or getattr(
        torch, names[name[0]] + name[1:]
    )
    A = torch.from_numpy(np.abs(matrix(60, 40)) * 20).to(dtype)
    torch_file.save_file({"A": A}, tmp_path / "A.safetensors", metadata={"by": "a test"})
    result = la.randomized_svd(tmp_path / "A.safetensors", 3, power_iters=1, seed=0, out="torch")
    computed = A if dtype.is_complex else A.to(torch.float32 if name == "F32" else torch.float64)
    if name in ("F16", "BF16"):
        computed = A.float()
    expected = la.randomized_svd(computed, 3, power_iters=1, seed=0)
    assert result.S.dtype == (A.dtype if name in ("F16", "BF16") else expected.S.dtype)
    torch.testing.assert_close(
        result.S.to(expected.S.dtype),
        expected.S,
        rtol=2 * unit_roundoff(result.S),
        atol=rounding(computed),
    )
    if name == "BF16":  # which NumPy does not have
        assert la.randomized_svd(tmp_path / "A.safetensors", 3, seed=0).S.dtype == np.float32


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_torch_blocks_give_torch(given, computed):
    A = torch.from_numpy(matrix(60, 40) * 20).to(given)
    blocks = [each.clone() for each in A.split(11)]
    if given.is_floating_point:
        blocks[0].requires_grad_()
    result = la.randomized_svd(blocks, 3, power_iters=1, seed=0)
    expected = la.randomized_svd(A.to(computed), 3, power_iters=1, seed=0)
    assert isinstance(result.U, torch.Tensor)
    assert result.S.dtype == (given if given.is_floating_point else torch.float32)
    # + 1 rounding to the type of the result
    u = unit_roundoff(result.S)
    torch.testing.assert_close(
        result.S.to(computed),
        expected.S,
        rtol=2 * u,
        atol=rounding(A.to(computed)),
    )
    assert isinstance(la.randomized_svd(blocks, 3, seed=0, out="numpy").U, np.ndarray)


def test_one_read_of_an_iterator():
    A = matrix(90, 60) + 1

    def rows():
        return (A[i : i + 8] for i in range(0, 90, 8))

    result = la.randomized_svd(rows(), 4, seed=0)
    assert (result.info.method, result.info.passes) == ("single pass", 1)
    assert_same(result, la.randomized_svd(A, 4, method="single_pass", seed=0), A, 20)
    for method in ("single_pass", "nystrom"):
        centered = la.randomized_svd(rows(), 4, method=method, center=True, seed=0)
        assert centered.info.passes == 1
        expected = la.randomized_svd(A - A.mean(0), 4, method=method, seed=0)
        assert_same(centered, expected, A, 20)
    for options in ({"method": "subspace"}, {"method": "krylov"}, {"tol": 0.1}):
        iterator = rows()
        with pytest.raises(ValueError, match="A is an iterator, which can be read once"):
            la.randomized_svd(iterator, 4, **options)
        assert len(next(iterator)) == 8  # nothing was lost
    with pytest.raises(ValueError, match='method="single_pass" has no power iterations'):
        la.randomized_svd(rows(), 4, power_iters=2)
    with pytest.raises(ValueError, match="yields no blocks"):
        la.randomized_svd(iter([]), 4)
    with pytest.raises(ValueError, match=r"min\(m, n\) = 8, got 20"):
        la.randomized_svd((A[:4] for _ in range(2)), 20)


class InMemory:
    def __init__(self, A):
        self.A = A

    def __array__(self, dtype=None, copy=None):
        return self.A

    def __iter__(self):
        return iter(self.A[:, None])


@pytest.mark.parametrize(
    "form",
    [
        lambda A: A.tolist(),
        lambda A: tuple(map(tuple, A.tolist())),
        list,
        lambda A: collections.deque(A.tolist()),
        InMemory,
        lambda A: np.asarray(A, order="F"),
    ],
    ids=["lists", "tuples", "list of rows", "deque", "__array__", "Fortran"],
)
def test_what_is_a_dense_matrix_stays_one(form):
    A = matrix(60, 40)
    expected = la.randomized_svd(A, 4, power_iters=2, seed=0)
    result = la.randomized_svd(form(A), 4, power_iters=2, seed=0)
    assert result.info.passes == expected.info.passes == 6  # row blocks would take 4
    assert_same(result, expected, A)


def test_copy_on_write_memmaps_are_what_memory_holds(tmp_path):
    A = matrix(60, 40)
    np.save(tmp_path / "A.npy", A)
    mapped = np.load(tmp_path / "A.npy", mmap_mode="c")
    mapped[5] *= 100
    expected = la.randomized_svd(np.array(mapped), 4, power_iters=0, seed=0)
    assert_same(la.randomized_svd(mapped, 4, power_iters=0, seed=0), expected, mapped)
    assert expected.S[0] > 10 * la.randomized_svd(A, 4, power_iters=0, seed=0).S[0]


def test_copies_of_memmaps_and_maps_without_a_name(tmp_path):
    A = matrix(60, 40)
    np.save(tmp_path / "A.npy", A)
    doubled = np.load(tmp_path / "A.npy", mmap_mode="r") * 2
    with open(tmp_path / "A.npy", "rb") as file:
        unnamed = np.memmap(file, dtype=A.dtype, mode="r", shape=A.shape, offset=128)
        unnamed.filename = None
    for source, factor in ((doubled, 2), (unnamed, 1)):
        expected = la.randomized_svd(factor * A, 4, power_iters=0, seed=0)
        assert_same(la.randomized_svd(source, 4, power_iters=0, seed=0), expected, factor * A)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(shape, tmp_path):
    A = np.zeros(shape)
    np.save(tmp_path / "A.npy", A)
    for source in ([A], [A, A], tmp_path / "A.npy", Dataset(A), iter([A])):
        U, _, Vh = la.randomized_svd(source, 1, seed=0)
        assert min(U.shape[1], Vh.shape[0]) == 0


def test_zero_matrix_and_rank_above_the_numerical_rank():
    A = torch.zeros(50, 40)
    for matrix_ in (A, with_spectrum(50, 40, [3.0, 2.0, 0.0])):
        for method in ("subspace", "single_pass", "nystrom"):
            U, S, Vh = la.randomized_svd(list(matrix_.split(7)), 6, method=method, seed=0)
            assert orthonormality_error(U) <= 10
            assert orthonormality_error(Vh.mT) <= 10
            assert (S[2:] == 0).all()


# ---- reading ahead ----


def readers():
    return [each for each in threading.enumerate() if each.name.startswith("fastlr-reader")]


def test_the_next_block_is_read_while_one_is_used():
    read = [threading.Event() for _ in range(6)]

    def blocks():
        for index, event in enumerate(read):
            event.set()
            yield index

    for index in _blocks.read_ahead(blocks()):
        if index + 1 < len(read):
            assert read[index + 1].wait(5), "the next block was not read meanwhile"
        time.sleep(0.01)
        # Two buffers suffice: the one after the next is not touched yet.
        assert index + 2 >= len(read) or not read[index + 2].is_set()
    assert readers() == []


@pytest.mark.parametrize("where", [1, 3])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_the_reader_raises_reaches_the_caller(where, error):
    def rows():
        for index in range(6):
            if index == where:
                raise error("the disk is gone")
            yield matrix(10, 40)

    with pytest.raises(error, match="the disk is gone"):
        la.randomized_svd(rows(), 3, seed=0)
    assert readers() == []


def test_an_error_in_the_middle_ends_the_reader():
    A = matrix(60, 40)
    A[31, 7] = math.nan
    with pytest.raises(ValueError, match=r"A must be finite, got nan at index \(31, 7\)"):
        la.randomized_svd((A[i : i + 4] for i in range(0, 60, 4)), 3, seed=0)
    assert readers() == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rank", [4, 29])  # 29: one dense SVD
def test_a_non_finite_entry_is_named(shape, bad, rank, tmp_path, small_blocks):
    A = matrix(*shape)
    A[25, 28] = bad
    words = r"A must be finite, got (nan|inf) at index \(25, 28\)"
    for source in (A, *(source for _, source in sources(A, tmp_path))):
        for method in ("subspace", "single_pass"):
            with pytest.raises(ValueError, match=words):
                la.randomized_svd(source, rank, method=method, seed=0)


# ---- everything that can be wrong with a source ----


@pytest.mark.parametrize(
    ("block", "error", "words"),
    [
        (np.ones((5, 39)), ValueError, r"block 2 of A must have the 40 columns of .*, got 39"),
        (np.ones((5, 40), np.float32), TypeError, r"block 2 of A must have the dtype .*float64"),
        (torch.ones(5, 40).double(), TypeError, r"block 2 of A must be of the kind .*NumPy"),
        (np.ones(40), ValueError, r"block 2 of A must have 2 dimensions, got shape \(40,\)"),
        (np.full((5, 40), "a"), TypeError, r"block 2 of A must be a NumPy array or torch tensor"),
        (torch.eye(40).to_sparse(), TypeError, r"block 2 of A must be dense"),
        (None, TypeError, r"block 2 of A must be a NumPy array or torch tensor"),
    ],
)
def test_a_bad_block_is_named(block, error, words):
    A = matrix(60, 40)
    blocks = [A[:20], A[20:], block, A[:20]]

    class Blocks:
        def __iter__(self):
            return iter(blocks)

    for source in (blocks, Blocks(), iter(blocks)):
        with pytest.raises(error, match=words):
            la.randomized_svd(source, 3, seed=0)
    assert readers() == []


@pytest.mark.parametrize(("then", "words"), [(50, "gave 50 of the 60"), (70, "more than the 60")])
@pytest.mark.parametrize("height", [7, 100])
def test_reads_that_disagree_on_the_number_of_rows(then, words, height):
    A = matrix(70, 40)

    class Changing:
        reads = 0

        def __iter__(self):
            self.reads += 1
            # A look at the first block, the count and the first pass; then another number of rows.
            rows = 60 if self.reads <= 3 else then
            return iter([A[i : min(i + height, rows)] for i in range(0, rows, height)])

    with pytest.raises(ValueError, match=f"{words} rows of A; every read must give the same"):
        la.randomized_svd(Changing(), 3, power_iters=2, seed=0)


@pytest.mark.parametrize(
    "read",
    [
        lambda A, rows: A[rows][:-1],
        lambda A, rows: A[rows][:, :-1],
        lambda A, rows: A[rows].astype(np.float32),
        lambda A, rows: A[rows][None],
    ],
)
def test_a_dataset_that_gives_something_else(read, small_blocks):
    words = r"rows 0:12 of A must have shape \(12, 40\) and dtype float64, got "
    with pytest.raises(ValueError, match=words):
        la.randomized_svd(Dataset(matrix(60, 40), read), 3, seed=0)


def test_blocks_are_whole_chunks(small_blocks):
    for chunk, first in [(5, (0, 10)), (20, (0, 20)), (50, (0, 50)), (1000, (0, 12))]:
        dataset = Dataset(matrix(60, 40), chunks=(chunk, 8))
        la.randomized_svd(dataset, 3, power_iters=0, seed=0)
        assert dataset.asked[0] == first
    irregular = Dataset(matrix(60, 40), chunks=((13, 47), (40,)))  # as dask's
    la.randomized_svd(irregular, 3, power_iters=0, seed=0)
    assert irregular.asked[0] == (0, 12)


def test_a_file_that_shrinks(tmp_path, small_blocks):
    A = matrix(400, 30)
    path = tmp_path / "A.npy"
    np.save(path, A)
    mapped = np.load(path, mmap_mode="r")
    size = path.stat().st_size
    os.truncate(path, size - 8)
    promised = rf"A\.npy is truncated: it has {size - 8} bytes, its header promises {size}"
    with pytest.raises(ValueError, match=promised):
        la.randomized_svd(path, 3, seed=0)
    with pytest.raises(ValueError, match=rf"A\.npy is truncated: .* the memmap needs {size}"):
        la.randomized_svd(mapped, 3, seed=0)


@pytest.mark.parametrize("kind", ["path", "memmap", "paths"])
def test_a_file_that_changes_during_a_call(kind, tmp_path, small_blocks, monkeypatch):
    A = matrix(400, 30)
    path = tmp_path / "A.npy"

    def svd_while(happens, at_read):
        np.save(path, A)
        source = np.load(path, mmap_mode="r") if kind == "memmap" else path
        fill, calls = _files.FileMatrix._fill, []

        def filled(self, file, position, piece):
            calls.append(position)
            if len(calls) == at_read:
                happens()
            fill(self, file, position, piece)

        with monkeypatch.context() as patch:
            patch.setattr(_files.FileMatrix, "_fill", filled)
            result = la.randomized_svd(
                [source, source] if kind == "paths" else source, 3, power_iters=0, seed=0
            )
        return result, len(calls)

    blocks = svd_while(lambda: None, 1)[1] // 2
    for at_read in (2, blocks + 2):
        with pytest.raises(ValueError, match=r"A\.npy is truncated: it ends at byte 1000, a"):
            svd_while(lambda: os.truncate(path, 1000), at_read)
        assert readers() == []
    # Between two reads: the first one still reads what it has opened.
    with pytest.raises(FileNotFoundError, match=r"A\.npy"):
        svd_while(lambda: os.unlink(path), 2)

    def replace():
        np.save(tmp_path / "other.npy", 2 * A)
        os.replace(tmp_path / "other.npy", path)

    with pytest.raises(ValueError, match=r"A\.npy was replaced by another file"):
        svd_while(replace, 2)


@pytest.mark.parametrize("entry", [(0, 0), (-1, -1)])
def test_a_memmap_whose_file_has_lost_its_name(entry, tmp_path):
    A = matrix(400, 30)
    np.save(tmp_path / "A.npy", A)
    mapped = np.load(tmp_path / "A.npy", mmap_mode="r")
    expected = la.randomized_svd(A, 3, power_iters=1, seed=0)
    other = A.copy()
    other[entry] += 100
    np.save(tmp_path / "other.npy", other)
    os.replace(tmp_path / "other.npy", tmp_path / "A.npy")
    # What the memmap shows is what counts, not what is found under its name.
    assert_same(la.randomized_svd(mapped, 3, power_iters=1, seed=0), expected, A)
    (tmp_path / "A.npy").write_bytes(b"short")
    assert_same(la.randomized_svd(mapped, 3, power_iters=1, seed=0), expected, A)
    os.unlink(tmp_path / "A.npy")
    assert_same(la.randomized_svd(mapped, 3, power_iters=1, seed=0), expected, A)


def safetensors_file(path, entry, data=b""):
    header = json.dumps(entry).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_bad_files(tmp_path):
    A = {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48]}
    np.save(tmp_path / "vector.npy", np.ones(5))
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    (tmp_path / "noise.npy").write_bytes(os.urandom(100))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "long.safetensors").write_bytes(b"\xff" * 20)
    safetensors_file(tmp_path / "two.safetensors", {"A": A, "B": A}, bytes(48))
    safetensors_file(tmp_path / "none.safetensors", {"__metadata__": {}})
    safetensors_file(tmp_path / "short.safetensors", {"A": A}, bytes(40))
    safetensors_file(tmp_path / "odd.safetensors", {"A": {**A, "data_offsets": [0, 40]}}, bytes(48))
    safetensors_file(tmp_path / "f8.safetensors", {"A": {**A, "dtype": "F8_E4M3"}}, bytes(48))
    safetensors_file(tmp_path / "list.safetensors", [1, 2])
    cases = {
        "vector.npy": r"must hold a matrix, got shape \(5,\)",
        "objects.npy": "must be a NumPy array or torch tensor of numbers, got a file of dtype obj",
        "noise.npy": "has no header of a matrix",
        "empty.npy": "has no header of a matrix",
        "empty.safetensors": "has no header of a matrix",
        "long.safetensors": r"has no header of a matrix: a header of \d+ bytes",
        "two.safetensors": "expected one tensor, got 2: A, B",
        "none.safetensors": "expected one tensor, got 0",
        "short.safetensors": "is truncated: it has .* bytes, its header promises",
        "odd.safetensors": r"tensor A of shape \(2, 3\) in 40 bytes",
        "f8.safetensors": "tensor A of dtype F8_E4M3",
        "list.safetensors": "has no header of a matrix",
        "A.csv": r"must end in \.npy or \.safetensors",
    }
    for name, words in cases.items():
        for source in (tmp_path / name, [str(tmp_path / name)]):
            with pytest.raises((ValueError, TypeError), match=words) as raised:
                la.randomized_svd(source, 1, seed=0)
            assert name in str(raised.value)
            assert str(raised.value).startswith("randomized_svd: ")
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        la.randomized_svd(tmp_path / "absent.npy", 1)


def test_files_that_do_not_go_together(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((5, 4)))
    np.save(tmp_path / "columns.npy", np.ones((5, 3)))
    np.save(tmp_path / "dtype.npy", np.ones((5, 4), np.float32))
    for name in ("columns", "dtype"):
        with pytest.raises((ValueError, TypeError), match=rf"{name}\.npy must have the .*a\.npy"):
            la.randomized_svd([tmp_path / "a.npy", tmp_path / f"{name}.npy"], 1)


# ---- memory ----

PEAK = """
import sys
import numpy as np, torch
import fastlr.linalg as la
la.randomized_svd(np.ones((300, 200)), 2, power_iters=1, seed=0)
def peak():
    # Not getrusage, whose peak survives exec: it would be that of the tests themselves.
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
before = peak()
for order in "CF":
    A = np.memmap(sys.argv[1], dtype=np.float32, mode="r", shape=(131072, 512), order=order)
    la.randomized_svd(A, 2, oversample=2, power_iters=0, seed=0)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_is_bounded(tmp_path):
    path = tmp_path / "A"
    with open(path, "wb") as file:
        file.write(np.ones(100, np.float32))
        file.truncate(131072 * 512 * 4)  # 256 MiB, of zeros that take no disk
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    # Two buffers of 32 MiB, factors and products of 14 columns: 30 MiB and their copies.
    assert int(run.stdout.split()[-1]) < 160 * 1024
