"""Principal component analysis, centred implicitly."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed
from fastlr.linalg._arrays import as_tensor
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import open_matrix, open_operator
from fastlr.linalg.results import SVDInfo
from fastlr.linalg.svd import Method, randomized_svd


@dataclass(frozen=True)
class PCAInfo(SVDInfo):
    """`SVDInfo` of the centred matrix.

    Attributes
    ----------
    total_variance_exact : bool
        False where only products with A are known: the total variance is then the sum of the
        explained ones and of an unbiased estimate of the rest, ``error_estimate² / (m − 1)``.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> la.pca(torch.eye(50), 3, seed=0).info.total_variance_exact
    True
    """

    total_variance_exact: bool


@dataclass(frozen=True)
class PCA:
    """Principal components of the rows of a matrix; returned by `pca`.

    Attributes
    ----------
    components : array, shape (rank, n)
        Orthonormal rows, by descending variance.
    mean : array, shape (n,)
        The mean of the rows, real or complex as they are.
    singular_values : array, shape (rank,)
        Of the centred matrix, descending.
    scores : array, shape (m, rank)
        The rows of the matrix in the components: what ``transform`` gives of it, but for the error
        of the decomposition.
    explained_variance : array, shape (rank,)
        ``singular_values² / (m − 1)``, the variance of each column of `scores`.
    explained_variance_ratio : array, shape (rank,)
        Its share of the total variance; zeros where that is zero.
    total_variance : float
        ‖A − 1·meanᵀ‖_F² / (m − 1); see ``info.total_variance_exact``.
    n_samples : int
        m.
    info : PCAInfo

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.tensor([[1.0, 5.0], [2.0, 7.0], [3.0, 9.0]])
    >>> model = la.pca(A, 1, seed=0)
    >>> model.mean
    tensor([2., 7.])
    >>> bool(torch.dist(model.inverse_transform(model.transform(A)), A) < 1e-5)
    True
    """

    components: Any
    mean: Any
    singular_values: Any
    scores: Any
    explained_variance: Any
    explained_variance_ratio: Any
    total_variance: float
    n_samples: int
    info: PCAInfo

    @as_written
    def transform(self, X: Any) -> Any:
        """Return the rows of X, minus the mean, in the components.

        Parameters
        ----------
        X : array, Tensor, sparse matrix or operator, shape (…, n)
            Of the kinds that `pca` takes, or a single row. Sparse ones are not filled: the mean is
            subtracted after the product, so that rounding is relative to it.

        Returns
        -------
        array, shape (…, rank)
            Of the kind and dtype of X, on its device.

        Raises
        ------
        ValueError
            Another number of columns.
        TypeError
            A real X where the components are complex, or the other way round.
        """
        if _ndim(X) == 1:
            return self.transform(X[None, :])[0]
        matrix = open_matrix(X, "PCA.transform")
        columns = matrix.data.shape[-1]
        basis, mean = _tensor(self.components), _tensor(self.mean)
        if columns != basis.shape[1]:
            raise ValueError(
                f"PCA.transform: X must have {basis.shape[1]} columns as A had, got {columns}"
            )
        if matrix.dtype.is_complex != basis.is_complex():
            raise TypeError(
                f"PCA.transform: X must be {'complex' if basis.is_complex() else 'real'} as A was, "
                f"got {matrix.dtype}"
            )
        if isinstance(matrix.data, Tensor):
            basis, mean = (part.to(matrix.data) for part in (basis, mean))
            return matrix.restore((matrix.data - mean) @ basis.mH)
        computed = torch.float32 if matrix.dtype.itemsize == 2 else matrix.dtype
        adjoint, mean = basis.to(computed).mH.resolve_conj().contiguous(), mean.to(computed)
        return matrix.restore(matrix.data.matmat(adjoint) - mean @ adjoint)

    @as_written
    def inverse_transform(self, Z: Any) -> Any:
        """Return the rows whose scores are Z: ``Z @ components + mean``.

        Parameters
        ----------
        Z : array or Tensor, shape (…, rank)

        Returns
        -------
        array, shape (…, n)
            Of the kind of Z.
        """
        scores = _tensor(Z)
        basis, mean = (_tensor(part).to(scores) for part in (self.components, self.mean))
        if scores.shape[-1] != basis.shape[0]:
            raise ValueError(
                f"PCA.inverse_transform: Z must have {basis.shape[0]} columns, "
                f"got shape {tuple(scores.shape)}"
            )
        rows = scores @ basis + mean
        return rows if isinstance(Z, Tensor) else rows.numpy()


@as_written
def pca(
    A: Any,
    rank: int | None = None,
    *,
    tol: float | None = None,
    oversample: int = 10,
    power_iters: int | Literal["auto"] = "auto",
    method: Method = "auto",
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> PCA:
    """Compute the principal components of the rows of a matrix, without a centred copy of it.

    Parameters
    ----------
    A : array, Tensor, sparse matrix or operator, shape (m, n)
        Samples by features: of every kind that `randomized_svd` takes, but no batch. Never written
        to; sparse ones stay sparse.
    rank, tol, oversample, power_iters, method, seed, out
        Those of `randomized_svd`, which runs with ``center=True``; `tol` is relative to
        ‖A − 1·meanᵀ‖_F, so that the components explain a share of 1 − tol² of the total variance.

    Returns
    -------
    PCA
        Components, mean, variances, and the maps from rows to scores and back. The largest entry
        of every column of ``scores`` is real and positive.

    Raises
    ------
    ValueError
        A batch; see `randomized_svd` for all else.
    TypeError
        See `randomized_svd`.

    Notes
    -----
    The passes over A and the flops of `randomized_svd`, and two more passes: one for the mean, one
    for the total variance, which is summed from centred blocks of rows (for a sparse A from its
    entries), not as the difference ‖A‖_F² − m·‖mean‖², which cancels. Of an operator neither is
    visible: the mean is a product, and the total variance is the explained one plus the unbiased
    estimate of the rest (exactly unbiased for "subspace" and "krylov", whose remainder is
    orthogonal to what is returned).

    Every product with A − 1·meanᵀ is computed as A·X − 1·(mean·X): its rounding is that of A·X. A
    singular value is off by some √n·u·√m·‖mean‖, so that digits are lost where the mean dwarfs the
    spread; subtract a guess of the mean from the data in that case. One sample, or equal ones, have
    variances of zero (to that rounding), never NaN.

    Names are those of scikit-learn's ``PCA`` without underscores at the end. Source: Halko,
    Martinsson, Shkolnisky, Tygert, "An algorithm for the principal component analysis of large data
    sets", SISC 33 (2011). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = 5 + la.random_matrix(500, 3, seed=0) @ la.random_matrix(3, 80, seed=1)
    >>> model = la.pca(A, 3, seed=0)
    >>> model.components.shape, model.scores.shape
    (torch.Size([3, 80]), torch.Size([500, 3]))
    >>> bool(model.explained_variance_ratio.sum() > 0.9999)
    True
    """
    caller = "pca"
    matrix = open_operator(A, caller)
    mean = matrix.data.row_mean()
    if not bool(mean.isfinite().all()):
        matrix.data.check_finite(caller)
    svd = randomized_svd(
        A,
        rank,
        tol=tol,
        oversample=oversample,
        power_iters=power_iters,
        method=method,
        center=True,
        seed=seed,
        out="torch",
    )
    exact = matrix.data.distance_from_row(mean)
    m, S = matrix.data.shape[0], svd.S.detach().double()
    spread = math.hypot(float(S.norm()), svd.info.error_estimate) if exact is None else exact
    freedom = max(m - 1, 1)

    def restore(result: Tensor) -> Any:
        return matrix.restore(result.to(svd.S), out)

    return PCA(
        components=matrix.restore(svd.Vh, out),
        mean=matrix.restore(mean, out),
        singular_values=matrix.restore(svd.S, out),
        scores=matrix.restore(svd.U * svd.S, out),
        explained_variance=restore((S / math.sqrt(freedom)) ** 2),
        explained_variance_ratio=restore((S / spread) ** 2 if spread > 0 else 0 * S),
        total_variance=spread * spread / freedom,
        n_samples=m,
        info=PCAInfo(**vars(svd.info), total_variance_exact=exact is not None),
    )


def _ndim(X: Any) -> int:
    return X.ndim if hasattr(X, "ndim") else len(X.shape)


def _tensor(array: Any) -> Tensor:
    return array.detach() if isinstance(array, Tensor) else as_tensor(array)
