"""Principal components against SciPy's SVD of the centred matrix."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, orthonormality_error, rounding, unit_roundoff
from strategies import dtypes, seeds, with_spectrum

VALUES = 0.5 ** np.arange(40.0)


def samples(dtype=torch.float64, mean=0.0, m=120, n=60):
    return with_spectrum(m, n, VALUES, dtype) + mean


def reference(A):
    """Singular values, rows of components and total variance of the centred matrix, in float64."""
    X = exact(A)
    centered = X - X.mean(0)
    _, S, Vh = scipy.linalg.svd(centered, full_matrices=False)
    return S, Vh, float(np.linalg.norm(centered) ** 2) / max(len(X) - 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [0.0, 3.0, 1e3])
def test_is_the_svd_of_the_centered_matrix(dtype, mean):
    A = samples(dtype, mean)
    model = la.pca(A, 5, seed=0)
    S, Vh, total = reference(A)
    near = rounding(A)
    # 1e-3: σ₁₅/σ₅ after the iterations of "auto"; rounding is relative to the mean.
    np.testing.assert_allclose(exact(model.singular_values), S[:5], rtol=1e-3, atol=near)
    np.testing.assert_allclose(
        exact(model.mean), exact(A).mean(0), atol=8 * unit_roundoff(A) * (1 + mean)
    )
    assert model.total_variance == pytest.approx(total, rel=1e-3, abs=near**2)
    assert model.info.total_variance_exact
    assert model.n_samples == 120
    assert orthonormality_error(model.components.mT) <= 10
    variance = exact(model.singular_values) ** 2 / 119
    np.testing.assert_allclose(exact(model.explained_variance), variance, rtol=8 * unit_roundoff(A))
    np.testing.assert_allclose(
        exact(model.explained_variance_ratio),
        variance / model.total_variance,
        rtol=8 * unit_roundoff(A),
    )
    if near < 1e-6:
        # Gaps of a factor of 2: the leading components are determined to the same digits.
        alignment = np.abs(np.sum(exact(model.components) * Vh[:5], axis=1))
        np.testing.assert_allclose(alignment, 1, rtol=1e-3)


def test_rounding_is_relative_to_the_mean():
    """The negative control of the docstring's remark: digits go where the mean is large."""
    errors = []
    for mean in (0.0, 1e4):
        A = samples(torch.float32, mean)
        S, _, _ = reference(A)
        errors.append(np.abs(exact(la.pca(A, 3, seed=0).singular_values) - S[:3]).max())
        assert errors[-1] <= rounding(A) + 1e-3
    assert errors[1] > 10 * errors[0]


def test_total_variance_does_not_cancel():
    # ‖A‖² − m·‖mean‖² would have an error of u·1e12 against a total of 1e-2.
    A = samples(torch.float64, 1e6)
    _, _, total = reference(A)
    for kind in (A, A.to_sparse_csr()):
        # Of the mean, u·1e6 is lost to its rounding, and as much to that of the deviations.
        assert la.pca(kind, 3, seed=0).total_variance == pytest.approx(total, rel=1e-6)
    naive = (float((A**2).sum()) - 120 * float((A.mean(0) ** 2).sum())) / 119
    assert abs(naive - total) > 1e-2 * total


def kinds(A):
    T = torch.from_numpy(A)
    yield "NumPy", A
    yield "torch", T
    yield "transposed", T.mT.contiguous().mT
    yield "torch CSR", T.to_sparse_csr()
    yield "SciPy", scipy.sparse.csc_array(A)
    yield "operator", la.LinearOperator(A.shape, lambda X: T @ X, lambda Y: T.mH @ Y, dtype=T.dtype)
    yield "SciPy operator", scipy.sparse.linalg.aslinearoperator(A)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_every_kind_gives_the_same_model(dtype):
    A = scipy.sparse.random(90, 60, density=0.2, random_state=0).toarray().astype(dtype)
    if dtype == np.complex128:
        A *= np.exp(1j * np.arange(60))
    S, _, total = reference(A)
    scores = None
    for name, given_as in kinds(A):
        model = la.pca(given_as, 6, power_iters=4, seed=3)
        torch_in = name.startswith(("torch", "trans")) or name == "operator"
        assert isinstance(model.components, torch.Tensor if torch_in else np.ndarray), name
        # Eight applications to a flat spectrum leave a per cent; the draws are the same.
        np.testing.assert_allclose(exact(model.singular_values), S[:6], rtol=0.01, err_msg=name)
        scores = exact(model.scores) if scores is None else scores
        # Gaps of a few per cent between singular values: 1e6·u for the condition of the vectors.
        np.testing.assert_allclose(exact(model.scores), scores, atol=1e6 * 2.0**-53, err_msg=name)
        exactly = "operator" not in name
        assert model.info.total_variance_exact == exactly, name
        # Ten probes of what 6 of 60 leave: 1/√(10·54) of it but for a factor of 4.
        assert model.total_variance == pytest.approx(total, rel=1e-12 if exactly else 0.2), name
        # A·Vᴴ is U·S but for the error of the decomposition.
        near = np.linalg.norm(exact(model.transform(given_as)) - scores)
        assert near <= model.info.error, name
        expected = (A - A.mean(0)) @ exact(model.components).conj().T
        np.testing.assert_allclose(
            exact(model.transform(given_as)), expected, atol=rounding(torch.from_numpy(A))
        )


@given(m=st.integers(1, 40), n=st.integers(1, 40), dtype=dtypes, seed=seeds)
def test_scores_and_rows_go_back_and_forth(m, n, dtype, seed):
    A = with_spectrum(m, n, np.ones(min(m, n)), dtype) + 2
    model = la.pca(A, min(m, n), seed=seed)
    # All of the centred matrix is in the components: back and forth is the identity.
    np.testing.assert_allclose(
        exact(model.inverse_transform(model.scores)), exact(A), atol=rounding(A)
    )
    np.testing.assert_allclose(exact(model.transform(A)), exact(model.scores), atol=rounding(A))
    assert model.explained_variance_ratio.sum() <= 1 + 40 * unit_roundoff(A) * math.sqrt(m * n)


@pytest.mark.parametrize("kind", ["dense", "sparse", "operator"])
@pytest.mark.parametrize("m", [1, 30])
def test_equal_rows_have_no_variance(m, kind):
    A = torch.arange(1.0, 51.0).expand(m, 50)
    given_as = {
        "dense": A,
        "sparse": A.to_sparse_csr(),
        "operator": la.LinearOperator(
            (m, 50), lambda X: A @ X, lambda Y: A.mT @ Y, dtype=torch.float32
        ),
    }[kind]
    model = la.pca(given_as, 1, seed=0)
    # Whole numbers: their means are exact, and so are the deviations.
    assert torch.equal(model.mean, A[0])
    for part in (model.explained_variance, model.explained_variance_ratio, model.scores):
        assert not part.isnan().any()
    assert float(model.explained_variance.sum()) <= rounding(A) ** 2
    assert orthonormality_error(model.components.mT) <= 10


def test_tolerance_is_a_share_of_the_variance():
    A = samples(mean=100.0)
    model = la.pca(A, tol=0.1, seed=0)
    assert model.explained_variance_ratio.sum() >= 1 - 0.1**2
    assert len(la.pca(A, tol=0.01, seed=0).explained_variance) > len(model.explained_variance)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_pickle(again):
    A = samples()
    model = la.pca(A, 3, seed=0)
    copied = again(model)
    assert torch.equal(copied.transform(A), model.transform(A))
    assert copied.info == model.info


def test_transform_of_other_kinds_and_single_rows():
    A = samples(mean=1.0)
    model = la.pca(A, 4, seed=0)
    expected = exact(model.transform(A))
    assert isinstance(model.transform(A.numpy()), np.ndarray)
    near = rounding(A)
    np.testing.assert_allclose(model.transform(A[3]), expected[3], atol=near)
    np.testing.assert_allclose(
        model.transform(scipy.sparse.csr_array(A.numpy())), expected, atol=near
    )
    np.testing.assert_allclose(model.transform(A.float()), expected, atol=rounding(A.float()))
    assert model.transform(A.half()).dtype == torch.float16
    np.testing.assert_allclose(
        model.inverse_transform(expected), model.inverse_transform(model.scores), atol=near
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: la.pca(torch.ones(2, 5, 4), 1), ValueError, "pca: A must be one matrix"),
        (lambda: la.pca(torch.ones(5, 4)), ValueError, "give rank, tol, or both"),
        (lambda: la.pca(torch.ones(5, 4), 5), ValueError, "rank must be between 1 and"),
        (
            lambda: la.pca(torch.tensor([[1.0], [math.nan]]), 1),
            ValueError,
            r"nan at index \(1, 0\)",
        ),
        (
            lambda: la.pca(samples(), 2, seed=0).transform(torch.ones(3, 4)),
            ValueError,
            "X must have 60 columns as A had, got 4",
        ),
        (
            lambda: la.pca(samples(), 2, seed=0).transform(torch.ones(3, 60) + 0j),
            TypeError,
            "X must be real",
        ),
        (
            lambda: la.pca(samples(), 2, seed=0).inverse_transform(np.ones((3, 4))),
            ValueError,
            "Z must have 2 columns",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
