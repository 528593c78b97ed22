"""nearest_kronecker and monarch_project: the optimum, whatever the size, the kind and the scale."""

import dataclasses
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr.linalg import _balanced
from references import exact, unit_roundoff
from strategies import gaussian

KINDS = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SMALL = st.integers(1, 5)


def stacked(*shape, dtype=torch.float64, seed=0):
    """Gaussian matrices, one below the other."""
    return gaussian(math.prod(shape[:-1]), shape[-1], dtype=dtype, seed=seed).reshape(shape)


def kronecker_matrix(result):
    """The sum, by NumPy's own product, in double precision."""
    B, C = (exact(factor) for factor in result)
    return sum(map(np.kron, B, C))


def monarch_matrix(result, o, i):
    """From the definition: dense block diagonal matrices between two permutations."""
    left, right = (exact(factor) for factor in result)
    b, h, inner = left.shape
    rank, w = inner // b, right.shape[2]
    L = np.zeros((b * h, b * inner), left.dtype)
    R = np.zeros((b * inner, b * w), right.dtype)
    for k in range(b):
        L[k * h : (k + 1) * h, k * inner : (k + 1) * inner] = left[k]
        R[k * inner : (k + 1) * inner, k * w : (k + 1) * w] = right[k]
    middle = np.arange(b * inner).reshape(b, rank, b).transpose(2, 0, 1).ravel()
    outer = np.arange(b * h).reshape(b, h).T.ravel()
    return (L @ R[middle])[outer][:o, :i]


def left_out(matrices, rank):
    """The norm of all singular values but the first `rank`, of every matrix."""
    values = [np.linalg.svd(exact(M), compute_uv=False)[rank:] for M in matrices]
    return float(np.linalg.norm(np.concatenate(values)))


def monarch_slices(W, b):
    """By loops: rows l, l + b, … in the columns of block k."""
    W = exact(W)
    w = -(-W.shape[1] // b)
    cuts = [W[row::b, k * w : (k + 1) * w] for row in range(b) for k in range(b)]
    return [cut for cut in cuts if cut.size]


def allowed(A):
    """Singular values and products of two factors round some √n·u of ‖A‖_F."""
    return 40 * math.sqrt(max(A.shape)) * unit_roundoff(A) * float(np.linalg.norm(exact(A)))


@given(m1=SMALL, m2=SMALL, n1=SMALL, n2=SMALL, part=st.floats(0, 1), dtype=st.sampled_from(KINDS))
def test_kronecker_is_the_optimum(m1, m2, n1, n2, part, dtype):
    A = gaussian(m1 * m2, n1 * n2, dtype=dtype, seed=m1 + 7 * n2)
    limit = min(m1 * n1, m2 * n2)
    terms = 1 + int(part * (limit - 1))
    result = la.nearest_kronecker(A, (m1, n1), terms=terms)
    assert result.B.shape == (terms, m1, n1)
    assert result.C.shape == (terms, m2, n2)
    error = np.linalg.norm(exact(A) - kronecker_matrix(result))
    blocks = [
        exact(A)[p * m2 : (p + 1) * m2, q * n2 : (q + 1) * n2].ravel()
        for p in range(m1)
        for q in range(n1)
    ]
    optimum = left_out([np.array(blocks)], terms)
    assert abs(error - optimum) <= allowed(A)
    # Both are norms of one residual, in double precision.
    assert abs(result.info.error - error) <= 1e-13 * result.info.norm
    assert result.info.norm == pytest.approx(np.linalg.norm(exact(A)), rel=1e-12)
    if terms == limit:
        assert error <= allowed(A)


@given(
    o=st.integers(1, 14),
    i=st.integers(1, 14),
    b=st.integers(1, 6),
    part=st.floats(0, 1),
    dtype=st.sampled_from(KINDS),
)
def test_monarch_is_the_optimum(o, i, b, part, dtype):
    b = min(b, o, i)
    W = gaussian(o, i, dtype=dtype, seed=o + 20 * i)
    limit = min(-(-o // b), -(-i // b))
    rank = 1 + int(part * (limit - 1))
    result = la.monarch_project(W, b, rank=rank)
    assert result.left.shape == (b, -(-o // b), b * rank)
    assert result.right.shape == (b, rank * b, -(-i // b))
    error = np.linalg.norm(exact(W) - monarch_matrix(result, o, i))
    assert abs(error - left_out(monarch_slices(W, b), rank)) <= allowed(W)
    assert abs(result.info.error - error) <= 1e-13 * result.info.norm
    if rank == limit:
        assert error <= allowed(W)


@pytest.mark.parametrize("dtype", KINDS)
def test_what_has_the_structure_is_found(dtype):
    B, C = stacked(2, 3, 4, dtype=dtype), stacked(2, 5, 2, dtype=dtype, seed=1)
    A = sum(map(torch.kron, B, C))
    exact_terms = la.nearest_kronecker(A, (3, 4), terms=2)
    assert exact_terms.info.error <= allowed(A)
    # The negative control: one term is too few.
    assert la.nearest_kronecker(A, (3, 4)).info.error > 0.1 * exact_terms.info.norm
    given_factors = la.MonarchResult(
        stacked(4, 5, 8, dtype=dtype), stacked(4, 8, 3, dtype=dtype, seed=1), exact_terms.info
    )
    W = torch.from_numpy(monarch_matrix(given_factors, 18, 11)).to(dtype)
    assert la.monarch_project(W, 4, rank=2).info.error <= allowed(W)
    assert la.monarch_project(W, 4).info.error > 0.1 * exact_terms.info.norm


def test_terms_are_nested_orthogonal_balanced_and_signed():
    A = gaussian(12, 10, dtype=torch.complex128)
    B, C = la.nearest_kronecker(A, (3, 5), terms=4)
    for fewer in range(1, 4):
        # One SVD, cut off and scaled: complex products round up to 4u.
        first = la.nearest_kronecker(A, (3, 5), terms=fewer).B
        torch.testing.assert_close(first, B[:fewer], rtol=4 * unit_roundoff(A), atol=0)
    flat_B, flat_C = B.flatten(1), C.flatten(1)
    for flat in (flat_B, flat_C):
        gram = flat @ flat.mH
        sizes = gram.diagonal().real
        assert (gram - torch.diag(gram.diagonal())).abs().max() <= 1e-13 * sizes[0]
        assert (sizes.diff() < 0).all()
    torch.testing.assert_close(flat_B.norm(dim=1), flat_C.norm(dim=1), rtol=1e-13, atol=0)
    largest = flat_B.gather(1, flat_B.abs().argmax(1, keepdim=True))
    assert (largest.real > 0).all()
    assert (largest.imag.abs() <= 1e-14 * largest.real).all()


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 2.0**100), (torch.float64, 2.0**700)])
def test_scales(dtype, scale):
    A = gaussian(6, 8, dtype=dtype)
    for project in (
        lambda X: la.nearest_kronecker(X, (2, 4), terms=2),
        lambda X: la.monarch_project(X, 2),
    ):
        expected = project(A)
        for factor in (scale, 1 / scale):
            result = project(A * factor)
            for got, wanted in zip(result, expected, strict=True):
                assert torch.equal(got, wanted * math.sqrt(factor))
            assert result.info.error == expected.info.error * factor
            assert result.info.norm == expected.info.norm * factor


def test_batches_are_loops():
    A = stacked(2, 3, 6, 8)
    A[0, 1] *= 1e200
    A[1, 2] = 0
    together = la.nearest_kronecker(A, (3, 2), terms=2)
    monarch = la.monarch_project(A, 2)
    assert together.info.error.shape == monarch.info.error.shape == (2, 3)
    for p in range(2):
        for q in range(3):
            alone = la.nearest_kronecker(A[p, q], (3, 2), terms=2)
            assert torch.equal(together.B[p, q], alone.B)
            assert torch.equal(together.C[p, q], alone.C)
            assert float(together.info.error[p, q]) == alone.info.error
            alone = la.monarch_project(A[p, q], 2)
            assert torch.equal(monarch.left[p, q], alone.left)
            assert torch.equal(monarch.right[p, q], alone.right)
            assert float(monarch.info.norm[p, q]) == pytest.approx(alone.info.norm, rel=1e-15)


@pytest.mark.parametrize("shape", [(0, 6), (6, 0), (0, 0), (6, 6), (1, 6), (6, 1)])
def test_zeros_and_vectors(shape):
    A = torch.zeros(shape)
    m1, n1 = (3 if size == 6 else 1 for size in shape)
    B, C = result = la.nearest_kronecker(A, (m1, n1))
    assert torch.equal(torch.kron(B[0], C[0]), A)
    assert (result.info.error, result.info.norm) == (0, 0)
    blocks = 1 if 0 in shape or 1 in shape else 2
    monarch = la.monarch_project(A, blocks)
    assert not monarch.left.any()
    assert not monarch.right.any()
    assert (monarch.info.error, monarch.info.norm) == (0, 0)
    ones = la.nearest_kronecker(torch.ones(shape), (m1, n1))
    torch.testing.assert_close(torch.kron(ones.B[0], ones.C[0]), torch.ones(shape))


@pytest.mark.parametrize(
    "project",
    [
        lambda X: la.nearest_kronecker(X, (2, 4), terms=2),
        lambda X: la.monarch_project(X, 2, rank=2),
    ],
)
def test_kinds_of_arrays(project):
    A = gaussian(6, 8, dtype=torch.float32)
    kept = A.clone()
    expected = project(A)
    from_numpy = project(A.numpy())
    for got, wanted in zip(from_numpy, expected, strict=True):
        assert isinstance(got, np.ndarray)
        assert np.array_equal(got, wanted.numpy())
    assert from_numpy.info == expected.info
    assert torch.equal(A, kept)
    for half in (torch.float16, torch.bfloat16):
        rounded = project(A.to(half))
        assert {factor.dtype for factor in rounded} == {half}
        # Each factor is rounded once, relative to its size.
        wide = project(A.to(half).float())
        for got, wanted in zip(rounded, wide, strict=True):
            assert (got.float() - wanted).norm() <= unit_roundoff(got) * wanted.norm()
        # The rounding is in the error.
        assert rounded.info.error != wide.info.error
    integers = project(torch.arange(48).reshape(6, 8))
    assert integers[0].dtype == torch.float32
    assert project(np.arange(48).reshape(6, 8))[0].dtype == np.float64
    again = pickle.loads(pickle.dumps(expected))
    assert torch.equal(again[0], expected[0])
    assert again.info == expected.info
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(project(A)[0], expected[0])


def test_large_matrices_by_a_krylov_space():
    m = 24
    A = gaussian(m * m, m * m)
    result = la.nearest_kronecker(A, (m, m), terms=3)
    assert result.info.method == "block Krylov"
    R = A.reshape(m, m, m, m).transpose(1, 2).reshape(m * m, m * m)
    S = torch.linalg.svdvals(R)
    # The residuals of triplets bound the errors of the values: 1e-10 of the largest one.
    sizes = result.B.flatten(1).norm(dim=1) * result.C.flatten(1).norm(dim=1)
    assert (sizes - S[:3]).abs().max() <= 1e-10 * S[0]
    assert result.info.error == pytest.approx(float(S[3:].norm()), rel=1e-12)
    assert torch.equal(la.nearest_kronecker(A, (m, m), terms=3).B, result.B)


def test_a_krylov_space_that_fails_is_replaced(monkeypatch):
    def failing(*arguments, **options):
        found = la.randomized_svd(*arguments, **options)
        info = dataclasses.replace(found.info, converged=False)
        return la.SVDResult(*found, info)

    monkeypatch.setattr(_balanced, "_DENSE", 8)
    monkeypatch.setattr(_balanced, "_FEW", 1)
    A = gaussian(144, 144)
    by_krylov = la.nearest_kronecker(A, (12, 12))
    assert by_krylov.info.method == "block Krylov"
    monkeypatch.setattr(_balanced, "randomized_svd", failing)
    dense = la.nearest_kronecker(A, (12, 12))
    assert dense.info.method == "dense SVD"
    torch.testing.assert_close(by_krylov.B, dense.B, rtol=0, atol=1e-8)


def test_bad_arguments():
    A = torch.ones(6, 8)
    for shape in ((4, 4), (6, 3), (12, 8)):
        with pytest.raises(
            ValueError,
            match=re.escape(f"nearest_kronecker: shape must divide that of A, (6, 8), got {shape}"),
        ):
            la.nearest_kronecker(A, shape)
    with pytest.raises(ValueError, match="shape must be two integers, got 4"):
        la.nearest_kronecker(A, 4)
    with pytest.raises(ValueError, match=r"shape\[0\] must be at least 1, got 0"):
        la.nearest_kronecker(A, (0, 2))
    for terms in (0, 7):
        with pytest.raises(ValueError, match=f"terms must be between 1 and .* = 6, got {terms}"):
            la.nearest_kronecker(A, (3, 2), terms=terms)
    for blocks in (0, 7):
        with pytest.raises(ValueError, match=f"blocks must be between 1 and .* = 6, got {blocks}"):
            la.monarch_project(A, blocks)
    for rank in (0, 4):
        with pytest.raises(ValueError, match=f"rank must be between 1 and .* = 3, got {rank}"):
            la.monarch_project(A, 2, rank=rank)
    for wrong in (2.0, True, None):
        with pytest.raises(TypeError, match="terms must be an integer"):
            la.nearest_kronecker(A, (3, 2), terms=wrong)
        with pytest.raises(TypeError, match="blocks must be an integer"):
            la.monarch_project(A, wrong)
    A[2, 5] = math.nan
    with pytest.raises(
        ValueError, match=re.escape("nearest_kronecker: A must be finite, got nan at index (2, 5)")
    ):
        la.nearest_kronecker(A, (3, 2))
    with pytest.raises(
        ValueError, match=re.escape("monarch_project: W must be finite, got nan at index (2, 5)")
    ):
        la.monarch_project(A, 2)
    with pytest.raises(TypeError, match="must be a dense matrix"):
        la.monarch_project(torch.eye(4).to_sparse(), 2)
    with pytest.raises(ValueError, match="must have at least 2 dimensions"):
        la.nearest_kronecker(torch.ones(4), (1, 1))
