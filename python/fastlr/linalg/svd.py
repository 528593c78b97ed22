"""Truncated singular value decompositions."""

from typing import Any, Literal

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_out, as_power_iters, as_real, as_seed
from fastlr.linalg._arrays import check_one_matrix, number_or_batch
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import Matrix, can_be_read_again, open_matrix
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning, SVDInfo, SVDResult

Method = Literal["auto", "subspace", "krylov", "single_pass", "nystrom"]

# In the order of the core's enumeration.
_METHODS = (
    "dense SVD",
    "subspace iteration",
    "block Krylov",
    "single pass",
    "generalized Nyström",
    "blocked QB",
)
_ONE_READ = ("single_pass", "nystrom")


@as_written
def randomized_svd(
    A: Any,
    rank: int | None = None,
    *,
    tol: float | None = None,
    oversample: int = 10,
    power_iters: int | Literal["auto"] = "auto",
    method: Method = "auto",
    center: bool = False,
    precision: Literal["auto", "full"] = "auto",
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> SVDResult:
    """Compute the leading singular triplets of a matrix from random sketches of it.

    Parameters
    ----------
    A : array, Tensor, sparse matrix, operator or source of rows, shape (…, m, n)
        A NumPy array or torch tensor, real or complex, whose leading dimensions are a batch; a
        SciPy or torch sparse matrix (COO, CSR, CSC); a `LinearOperator` of fastlr or SciPy.
        float16 and bfloat16 are computed in float32. Never written to.

        Or what may be larger than memory, read in blocks of rows: an ``np.memmap``; a dataset of
        HDF5, zarr or their like (a 2-D ``shape``, a ``dtype``, and rows ``A[i:j]``); the path of a
        ``.npy`` file or of a ``.safetensors`` file that holds one matrix; a list or tuple of such
        paths, datasets or matrices, which lie one below the other; an object that yields matrices
        of the same rows whenever it is iterated over; an iterator, which is read once.
    rank : int, optional
        Number of triplets, between 1 and min(m, n). With `tol`, the most that are returned.
    tol : float, optional
        Return the smallest rank, within the oversampling, with ‖A − U·diag(S)·Vh‖_F ≤ tol·‖A‖_F,
        for 0 < tol < 1. A zero matrix has rank 0.
    oversample : int
        Columns of the random sketch beyond `rank`.
    power_iters : int or "auto"
        Subspace iterations. "auto" iterates until none of the leading `rank` singular values grows
        by more than 2 %, at least once and at most 8 times (``info.converged`` says whether that
        was enough); 0 is fast and poor unless the spectrum decays quickly. With `tol`, "auto" is 2
        for every block. For ``method="krylov"``, the blocks beyond the first; "auto" goes on until
        all residuals ‖A·v − s·u‖ and ‖Aᴴ·u − s·v‖ are below 1e-10·S[0] (or
        40·√(rank + oversample)·u·S[0]).
    method : {"auto", "subspace", "krylov", "single_pass", "nystrom"}
        "subspace": subspace iteration, or a blocked QB factorization with `tol`. "krylov": a block
        Krylov space with thick restarts, for high relative accuracy. "single_pass" (three sketches)
        and "nystrom" (generalized Nyström): one product with A and one with Aᴴ that do not depend
        on each other, no power iterations; one read of rows in blocks. "auto": "subspace", or
        "single_pass" for an iterator.
    center : bool
        Decompose A minus the mean of its rows, without forming it. Where the mean dwarfs the
        spread, rounding is relative to the mean.
    precision : {"auto", "full"}
        "auto" takes all steps of a subspace iteration but the last in half the precision of a dense
        A (float32 for float64; bfloat16 for float32, on CPUs with AMX and GPUs with tensor cores
        for it), at the cost of a copy of A of half its size, and only where the singular values
        show that the rounding does not reach the result; ``info.precision`` says what was used.
        "full" computes in the precision of A throughout.
    seed : int, torch.Generator or None
        The same seed gives the same factors; None draws one from torch's default generator.
    out : {"torch", "numpy"}, optional
        Kind of the factors; that of A if None.

    Returns
    -------
    SVDResult
        ``U`` (…, m, rank), ``S`` (…, rank), ``Vh`` (…, rank, n), of the kind, dtype and device of A
        (S is real), and ``info``. U and Vh are orthonormal to 10·√rank·u whatever the rank of A;
        singular values below 4·√(rank + oversample)·u·S[0] are rounding noise and returned as exact
        zeros; the largest entry of each column of U is real and positive. Where A has a zero
        dimension, the factors are empty.

    Raises
    ------
    ValueError
        Neither `rank` nor `tol`, one of them out of range, a negative `oversample` or
        `power_iters`, an unknown `method`, an entry that is not finite (its index is named where
        entries can be seen), a sparse tensor that requires grad; a block that does not fit the
        first one, a file that is truncated or changes, another number of rows in a later read, an
        iterator where it would be read twice.
    TypeError
        An input of none of the kinds above, a number that is not an integer, a block of another
        dtype than the first one.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met within `rank`, or the Krylov space did not converge.
    UserWarning
        From ``backward``: see below.

    Notes
    -----
    With l = rank + oversample: 2 + 2·power_iters passes over A, each 2·m·n·l flops (four times that
    for complex ones), and O((m + n)·l²) besides; two more where σ_l/σ_1 is below √u, for one more
    step, with orthonormal bases on both sides; one more where A·P has columns that are nearly
    dependent. "krylov" to its residuals: 3 + 2·blocks, and two to four more where S[-1] is below
    1e-5·S[0] (float64) and orthonormal bases on both sides are needed. With `tol`: 2 +
    2·power_iters passes for every block, of a width that grows by half, one for ‖A‖_F and one that
    checks A. Where l reaches min(m, n) (with `tol`, two thirds of it), one dense SVD is computed
    instead. The short side of A is sketched, so that A and Aᴴ get the
    same factors. Matrices whose squares would leave the floating-point range are multiplied by a
    power of two on the way.

    ``info.error`` is an upper estimate of ‖A − U·diag(S)·Vh‖_F, from ten random probes that share
    the first pass over A; it fails with the stated probability. With `tol` it comes from the
    projected norm, without a chance of failure, unless that would cancel (tol below 32·√u) or A is
    an operator: then every decision takes a fresh probe.

    Rows in blocks: AᴴA·X is one read where the blocks run along the longer side, which makes
    1 + power_iters reads (2 + 2·power_iters with `center`, or across it); one more counts the rows
    of an object that is iterated over. Blocks of 32 MiB are read by a thread, each while the one
    before is multiplied: memory is two blocks and some arrays of (m + n)·l numbers.

    Matrices of a batch share their draws; small ones are iterated in groups, a group to a thread.
    Ctrl-C stops between products and between blocks.

    Differentiable once with respect to a dense tensor: the gradient of exact triplets, so as
    accurate as U, S and Vh are. Right for repeated and clustered values where the loss does not
    depend on the choice of vectors among equal ones; the truncated matrix is best written
    ``U @ (U.mH @ A)``, since the factors alone do not hold all of its gradient there. Where the
    loss depends on that choice, the rank cuts through a cluster, or the triplets have not
    converged, what has no derivative is left out and a UserWarning says so. No pass over A for a
    loss of S; otherwise two passes an iteration of conjugate residuals, of which it takes
    17/√(1 − σ²_(rank+1)/σ²_rank) at most in float64, or eigenvalues of a Gram matrix of the short
    side where that is cheaper, and O((m + n)·rank) memory besides the gradient (m·n with the Gram
    matrix).

    Sources: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011);
    Yu, Gu, Li, SIMAX 39 (2018), for `tol`; Musco, Musco, NeurIPS 2015, and Baglama, Reichel, BIT 46
    (2006), for "krylov"; Tropp, Yurtsever, Udell, Cevher, SISC 41 (2019), for "single_pass";
    Nakatsukasa, arXiv:2009.11392, for "nystrom"; Townsend (2016), Wan, Zhang, arXiv:1909.02659, and
    Francuz, Schuch, Vanhecke, arXiv:2311.11894, for the gradient.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.outer(torch.arange(1.0, 5.0), torch.ones(3))
    >>> U, S, Vh = la.randomized_svd(A, 2, seed=0)
    >>> S
    tensor([9.4868, 0.0000])
    >>> la.randomized_svd(A, 1, seed=0).info.error < 1e-4
    True
    >>> la.randomized_svd(torch.diag(2.0 ** -torch.arange(90)), tol=0.01, seed=0).S.shape
    torch.Size([7])
    """
    caller = "randomized_svd"
    if method == "auto" and tol is None and not can_be_read_again(A):
        method = "single_pass"
    matrix = open_matrix(A, caller, read_once=method in _ONE_READ)
    iterations = as_power_iters(power_iters, caller)
    _check_request(matrix, rank, tol, method, iterations, caller)
    oversample = as_integer(oversample, caller, "oversample")
    if precision not in ("auto", "full"):
        raise ValueError(f'{caller}: precision must be "auto" or "full", got {precision!r}')
    out = as_out(out, caller)
    common = (oversample, iterations)
    most_rank = None if rank is None else as_integer(rank, caller, "rank")
    if tol is not None:
        factors = _call(
            "adaptive_svd", matrix, tol, most_rank, *common, center, as_seed(seed, caller)
        )
    else:
        chosen = "subspace" if method == "auto" else method
        factors = _call(
            "randomized_svd",
            matrix,
            most_rank,
            *common,
            chosen,
            precision,
            center,
            as_seed(seed, caller),
        )
    U, S, Vh, numbers = factors
    info = _info(numbers.detach(), matrix.reads, U.dtype)
    _warn_unless_converged(info, tol, caller)
    return SVDResult(matrix.restore(U, out), matrix.restore(S, out), matrix.restore(Vh, out), info)


def _call(name: str, matrix: Matrix, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run an algorithm of the core: torch's operator for dense tensors, a function elsewhere."""
    functions = torch.ops.fastlr if isinstance(matrix.data, Tensor) else _core
    result: tuple[Tensor, Tensor, Tensor, Tensor] = getattr(functions, name)(
        matrix.data, *arguments
    )
    return result


def _check_request(
    matrix: Matrix,
    rank: int | None,
    tol: float | None,
    method: str,
    iterations: int | None,
    caller: str,
) -> None:
    if rank is None and tol is None:
        raise ValueError(f"{caller}: give rank, tol, or both")
    if method in _ONE_READ and iterations:
        raise ValueError(
            f'{caller}: method="{method}" has no power iterations, got power_iters={iterations}'
        )
    if tol is None:
        return
    as_real(tol, caller, "tol")
    if method not in ("auto", "subspace"):
        raise ValueError(f'{caller}: tol goes with method "auto" or "subspace", got "{method}"')
    check_one_matrix(matrix.data.shape, caller)


# What a subspace iteration in half the precision computes in.
_HALVES = {
    torch.float32: torch.bfloat16,
    torch.float64: torch.float32,
    torch.complex128: torch.complex64,
}


def _info(numbers: Tensor, reads: int, computed: torch.dtype) -> SVDInfo:
    if not numbers.numel():
        nothing: Any = numbers.sum(-1)
        return SVDInfo("none", 0, nothing, nothing, 0.0, nothing, 0, True, computed)
    passes, estimate, upper, spectral, failure, power_iters, converged, method, lowered = (
        numbers.unbind(-1)
    )

    return SVDInfo(
        method=_METHODS[int(method.flatten()[0])],
        passes=reads + int(passes.max()),
        error=number_or_batch(upper),
        error_estimate=number_or_batch(estimate),
        failure_probability=float(failure.max()),
        spectral_error=number_or_batch(spectral),
        power_iters=int(power_iters.max()),
        converged=bool(converged.all()),
        precision=_HALVES[computed] if bool(lowered.any()) else computed,
    )


def _warn_unless_converged(info: SVDInfo, tol: float | None, caller: str) -> None:
    if info.converged or (tol is None and info.method != "block Krylov"):
        return
    wanted = "the residuals of the Krylov space" if tol is None else f"tol={tol:g}"
    warn(
        f"{caller}: {wanted} not met; the error is {info.error:.3g} at most (see info)",
        ConvergenceWarning,
    )
