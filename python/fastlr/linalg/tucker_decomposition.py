"""Tucker decompositions of tensors."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_axis, as_seed, at_least
from fastlr.linalg._arrays import adapt, as_mask, as_tensor, computed_dtype
from fastlr.linalg._autocast import as_written
from fastlr.linalg._blocks import Source, tensor_source_of
from fastlr.linalg._sources import can_be_read_again, is_scipy_sparse
from fastlr.linalg._tensor_slabs import (
    Slabs,
    Small,
    grown,
    improved,
    projected,
    sketched,
    with_signs,
)
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.tucker_tensor import TuckerTensor, as_ranks, checked_tol, decomposed

_CALLER = "tucker"

Method = Literal["hooi", "st_hosvd", "randomized"]
_METHODS = ("hooi", "st_hosvd", "randomized")

# A masked tensor has converged when a sweep lowers the error by less than this much of itself.
_MASKED_GAIN = 1e-4

# The tolerance of the small tensor that slabs make is lowered so often.
_MOST_ATTEMPTS = 4


@as_written
def tucker(
    X: Any,
    ranks: int | Sequence[int] | None = None,
    *,
    tol: float | None = None,
    method: Method = "hooi",
    modes: Sequence[int] | None = None,
    mask: Any = None,
    batch_dims: int = 0,
    max_sweeps: int | None = None,
    seed: Seed = None,
) -> TuckerTensor:
    """Write a tensor as a small core times an orthonormal matrix along each mode.

    X ≈ core ×₀ F₀ ×₁ F₁ …, where ×ₖ multiplies every fibre along mode k.

    Parameters
    ----------
    X : array or Tensor, shape (\\*batch, n₀, …, n_{d-1})
        Real or complex, d + batch of at least 2. float16 and bfloat16 are computed in float32,
        integers in the default float type. Any strides: a permuted view costs no copy. Or sparse,
        real and on the CPU: of torch (COO, or CSR for a matrix) or SciPy; with `ranks` and "hooi",
        for all modes. Or one that need not fit into memory and is read in slabs of consecutive
        indices of its first mode: a dataset of h5py, zarr or their like, the path of a `.npy` file
        in C order or of a `.safetensors` file, a memmap in C order of more than 32 MiB, a list or
        tuple of these or of arrays of at least 2 dimensions, which are slabs, or whatever yields
        such arrays when it is iterated over; with `tol` an iterator, too. Never written to.
    ranks : int or sequence of int, optional
        Sizes of the core: one for all modes, or one for each of `modes`; at least 1 and at most the
        size of the mode. With `tol`, the largest ones that are tried.
    tol : float, optional
        The smallest ranks, as far as the method can tell, with ‖X − X̂‖_F ≤ tol·‖X‖_F, 0 < tol < 1.
        ``info.error`` is measured, and that it is small enough is checked.
    method : {"hooi", "st_hosvd", "randomized"}
        "hooi": alternating least squares over the factors, from the start that "randomized" makes.
        "st_hosvd": one mode after the other is cut to its leading singular vectors; error at most
        √d times the best one. "randomized": the same of a tensor that random sketches have made
        small, with one step of subspace iteration. With `tol`, the last two are the same: sketches
        where they are narrow enough to pay.
    modes : sequence of int, optional
        Those that get a factor; the others stay as they are (their factor is None). All if None.
        They are counted without the batch; negative ones count from the end.
    mask : array or Tensor of bool, shape of X, optional
        Where X is observed; other entries count for nothing, and may be NaN. With `ranks` and
        "hooi" alone, for an X in memory.
    batch_dims : int
        Leading dimensions of X, in memory, that are a batch of separate tensors, with the same
        ranks.
    max_sweeps : int, optional
        Of "hooi". 50 if None, 500 with a mask. A sweep finds every factor once.
    seed : int, torch.Generator or None
        Of the sketches. The same seed gives the same factors; None draws one from torch's default
        generator.

    Returns
    -------
    TuckerTensor
        Of the kind, dtype and device of X. Orthonormal factors, whose columns have a largest entry
        that is real and positive; a core whose slices along each mode are orthogonal to each other,
        with descending norms. Its ``info`` says how good it is.

    Raises
    ------
    ValueError
        Neither ranks nor tol; a rank above the size of its mode; modes twice or out of range; tol
        for a batch or with a mask; a mask of another shape, or without any observed entry; an entry
        that is not finite (its index is named). Slabs: of different sizes; a batch or a mask; an
        iterator without tol; reads that differ; a file that is truncated or was replaced.
    TypeError
        A sparse X that is complex or on a GPU, a mask that is not boolean, numbers of the wrong
        type, slabs of different types.

    Warns
    -----
    ConvergenceWarning
        `max_sweeps` ended the sweeps, or rounding keeps `tol` from being met; ``info.converged`` is
        False.

    See Also
    --------
    TuckerTensor : what can be done with it.
    randomized_svd : the same for matrices.

    Notes
    -----
    For N entries and l = rank + 10: the start takes 4·l·N flops for the first mode, and for the
    next ones a tensor that is smaller by n/l. A sweep multiplies by all factors but one, mode after
    mode; products that several modes share are made once: two passes over X of 2·rank·N flops, for
    d = 3 or 4. Factors come from a few steps of subspace iteration that begin at the last ones.
    Sweeps end when one lowers the error by less than 0.01 % of itself. "st_hosvd" takes 2·n·N flops
    for the Gram matrix of the first mode, in double precision; where that cannot tell (singular
    values below 1e-6 of the largest), QR factorizations. With `tol`, sketches grow until what they
    miss is 2 % of what is allowed (in squares), ranks are chosen on the small tensor that is left,
    and what one mode does not use of the tolerance goes to the others; sweeps then allow some
    slices of the core to be dropped. Memory: the tensor and the first product, of l/n of its size.

    With a mask: the unknown entries are filled from the factors before every sweep, which lowers
    the error of the known ones in each sweep (an EM iteration). Where few entries are known it
    takes hundreds.

    Sparse X is never made dense: a sweep takes 2·d flops for each entry and each product of the
    other modes' ranks, from random factors; their rows are n × that product in memory.
    ``info.error`` is then √(‖X‖² − ‖core‖²), or √u·‖X‖ where that cancels.

    Slabs have 32 MiB, or one index of more, and a thread reads the next one meanwhile. With ranks X
    is read three times: sketches of all modes but the first, one step of subspace iteration, and
    the tensor in the bases that this gives, P, which `method` decomposes in memory: sweeps go on
    within the span of rank + 10 directions of each mode. With `tol` X is read once: a slab of which
    the bases so far lose more than their share adds directions; what is left of the tolerance is
    that of P. For its sake ``info.error`` is measured where no basis grew after the first slab, and
    otherwise a bound, some percent above the error. Memory: 0.2 GB, or 0.4 GB with `tol`, and P,
    of n₀·Πl numbers, l = rank + 10 for ranks; to a tolerance l is as large as the slabs need,
    half as much again as the rank or more. Modes that get no factor are whole in P, and so is the
    first one. A memmap is an array, in memory as far as it fits, as ``numpy.asarray(X)``.

    Not differentiable.

    Sources: Vannieuwenhoven, Vandebril, Meerbergen, "A new truncation strategy for the higher-order
    singular value decomposition", SISC 34 (2012); De Lathauwer, De Moor, Vandewalle, "On the best
    rank-1 and rank-(R1, …, RN) approximation of higher-order tensors", SIMAX 21 (2000); Minster,
    Saibaba, Kilmer, "Randomized algorithms for low-rank tensor decompositions in the Tucker
    format", SIMODS 2 (2020).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> i = torch.arange(30.0, dtype=torch.float64)
    >>> X = 1 / (1 + i[:, None, None] + i[:, None] + i)
    >>> T = la.tucker(X, tol=1e-6, seed=0)
    >>> T.ranks, T.info.relative_error < 1e-6, T.size / X.numel() < 0.05
    ((8, 8, 8), True, True)
    >>> bool((T.full() - X).norm() <= 1e-6 * X.norm())
    True
    """
    sparse = _open_sparse(X)
    if sparse is not None:
        if (method, tol, modes, mask, batch_dims) != ("hooi", None, None, None, 0):
            raise ValueError(
                f'{_CALLER}: a sparse X takes ranks, max_sweeps and seed with method="hooi" alone'
            )
        most = 50 if max_sweeps is None else at_least(max_sweeps, 0, _CALLER, "max_sweeps")
        return _of_sparse(sparse, ranks, most, as_seed(seed, _CALLER))
    source = None if isinstance(X, Tensor) else _open_source(X, mask, batch_dims)
    if source is not None:
        most = 50 if max_sweeps is None else at_least(max_sweeps, 0, _CALLER, "max_sweeps")
        target = checked_tol(tol, 0, _CALLER)
        if target is None and not can_be_read_again(X):
            raise ValueError(
                f"{_CALLER}: X is an iterator, which can be read once: only tol takes it; give a "
                "list of slabs, or an object that can be iterated again"
            )
        _check_method(method)
        slabs = Slabs(source, _CALLER)
        chosen = _modes(modes, 1 + len(slabs.sizes))
        return _of_slabs(slabs, chosen, ranks, target, method, most, as_seed(seed, _CALLER))
    adapted = adapt(X, _CALLER, "X", batched=True, complex_=True)
    tensor = adapted.tensor.detach()
    batch = at_least(batch_dims, 0, _CALLER, "batch_dims")
    if batch >= tensor.dim():
        raise ValueError(
            f"{_CALLER}: batch_dims must leave a dimension of {tuple(tensor.shape)}, got {batch}"
        )
    _check_method(method)
    chosen = _modes(modes, tensor.dim() - batch)
    target = checked_tol(tol, batch, _CALLER)
    sizes = [tensor.shape[batch + mode] for mode in chosen]
    wanted = _ranks(ranks, chosen, sizes, target)
    observed = _mask(mask, tensor, method, target, batch)
    default = 50 if observed is None else 500
    most = default if max_sweeps is None else at_least(max_sweeps, 0, _CALLER, "max_sweeps")
    key = as_seed(seed, _CALLER)
    order = _memory_order(tensor, batch)
    places = [order.index(batch + mode) - batch for mode in chosen]
    by_place = sorted(range(len(places)), key=places.__getitem__)
    arguments = ([places[i] for i in by_place], [wanted[i] for i in by_place])
    laid_out = tensor.permute(order)
    if not laid_out.numel():
        core, found, outcomes = _of_nothing(laid_out, batch, *arguments)
    elif observed is None:
        core, found, outcomes = decomposed(laid_out, batch, *arguments, target, method, most, key)
    else:
        outcome = _masked(laid_out, observed.permute(order), *arguments, most, key)
        core, found, outcomes = outcome[0], outcome[1], [outcome]
    factors: list[Tensor | None] = [None] * (tensor.dim() - batch)
    for i, F in zip(by_place, found, strict=True):
        factors[chosen[i]] = F
    inverse = [order.index(dimension) for dimension in range(tensor.dim())]
    errors = [outcome[3] for outcome in outcomes]
    converged = all(outcome[5] for outcome in outcomes)
    _warn(converged, most, target, max(errors, default=0.0))
    history = [math.hypot(*step) for step in _steps([outcome[4] for outcome in outcomes])]
    told = (
        method,
        math.hypot(*errors),
        math.hypot(*(outcome[2] for outcome in outcomes)),
        history,
        len(history) - 1,
        converged,
    )
    return TuckerTensor._made(
        core.permute(inverse).contiguous(),
        factors,
        adapted.numpy,
        adapted.dtype,
        batch,
        told,
    )


@dataclass(frozen=True)
class _Sparse:
    """Entries of a tensor, no place twice, and the way back."""

    indices: Tensor  # (d, entries)
    values: Tensor
    sizes: list[int]
    numpy: bool
    dtype: torch.dtype


def _open_sparse(X: Any) -> _Sparse | None:
    """The entries of a sparse tensor of torch or SciPy; None for others."""
    if isinstance(X, Tensor) and X.layout != torch.strided:
        if X.layout == torch.sparse_coo and X.dense_dim():
            raise ValueError(f"{_CALLER}: a sparse X must have no dense dimensions")
        tensor, numpy = X.detach().to_sparse(layout=torch.sparse_coo), False
    elif is_scipy_sparse(X):
        entries = X.tocoo()
        coords = getattr(entries, "coords", None) or (entries.row, entries.col)
        indices = torch.from_numpy(np.stack([np.asarray(c, dtype=np.int64) for c in coords]))
        values = as_tensor(entries.data)
        tensor = torch.sparse_coo_tensor(indices, values, X.shape, check_invariants=True)
        numpy = True
    else:
        return None
    promoted = torch.float64 if numpy else torch.get_default_dtype()
    dtype, computed = computed_dtype(tensor.dtype, promoted, _CALLER, "X")
    if computed.is_complex or tensor.device.type != "cpu":
        raise TypeError(f"{_CALLER}: a sparse X must be real and on the CPU, got {X.dtype}")
    if tensor.dim() < 2:
        raise ValueError(
            f"{_CALLER}: X must have at least 2 dimensions, got shape {tuple(X.shape)}"
        )
    _check_places(tensor)
    tensor = tensor.to(computed).coalesce()
    values = tensor.values()
    bad = torch.nonzero(~torch.isfinite(values))
    if len(bad):
        place, value = tensor.indices()[:, bad[0, 0]], values[bad[0, 0]].item()
        raise ValueError(
            f"{_CALLER}: X must be finite, got {value} at index {tuple(place.tolist())}"
        )
    return _Sparse(tensor.indices(), values, list(tensor.shape), numpy, dtype)


def _check_places(X: Tensor) -> None:
    """Refuse indices outside the tensor, which torch does not look at by default."""
    indices = X._indices()
    for mode, n in enumerate(X.shape):
        bad = torch.nonzero((indices[mode] < 0) | (indices[mode] >= n))
        if len(bad):
            raise ValueError(
                f"{_CALLER}: indices of X must be from 0 to {n - 1} along mode {mode}, got "
                f"{int(indices[mode, bad[0, 0]])}"
            )


def _of_sparse(X: _Sparse, ranks: Any, most: int, seed: int) -> TuckerTensor:
    wanted = _ranks(ranks, list(range(len(X.sizes))), X.sizes, None)
    if not bool(X.values.any()):
        nothing = X.values.new_zeros(()).expand(X.sizes)
        core, factors, _ = _of_nothing(nothing, 0, list(range(len(wanted))), wanted)
        norm, error, history, converged = 0.0, 0.0, [0.0], True
    else:
        core, factors, norm, error, history, converged = _core.sparse_tucker(
            X.indices, X.values, X.sizes, wanted, most, seed
        )
    _warn(converged, most, None, error)
    told = ("hooi", error, norm, history, len(history) - 1, converged)
    return TuckerTensor._made(core, [*factors], X.numpy, X.dtype, 0, told)


def _open_source(X: Any, mask: Any, batch_dims: int) -> Source | None:
    """What is read in slabs; a memmap that is to be masked or is a batch is an array."""
    plain = mask is None and not batch_dims
    if isinstance(X, np.memmap) and not plain:
        return None
    source = tensor_source_of(X, _CALLER)
    if source is not None and not plain:
        raise ValueError(f"{_CALLER}: an X that is read in slabs takes no mask and no batch_dims")
    return source


def _of_slabs(
    slabs: Slabs,
    chosen: list[int],
    ranks: Any,
    tol: float | None,
    method: str,
    most: int,
    seed: int,
) -> TuckerTensor:
    """Read thrice for ranks, once for a tolerance; then what is left is decomposed in memory."""
    wanted = _ranks_of_slabs(slabs, chosen, ranks, tol)
    later = {mode: r for mode, r in wanted.items() if mode}
    if tol is None:
        bases = sketched(slabs, later, seed)
        # The number of rows, which bounds the first rank, is known by now.
        wanted = _ranks_of_slabs(slabs, chosen, ranks, tol)
        small = projected(slabs, improved(slabs, bases))
    else:
        small = grown(slabs, list(later), tol, seed)
        wanted = _ranks_of_slabs(slabs, chosen, ranks, tol)
    P, modes = small.tensor, list(wanted)
    error, history, converged = 0.0, [0.0], True
    if not (slabs.rows and all(slabs.sizes)):
        nothing = slabs.zeros(slabs.rows or 0, *slabs.sizes)
        core, found, _ = _of_nothing(nothing, 0, modes, list(wanted.values()))
        factors = dict(zip(modes, found, strict=True))
    else:
        most_ranks = [min(r, P.shape[mode]) for mode, r in wanted.items()]
        core, factors, error, history, converged = _of_small(
            small, modes, most_ranks, tol, method, most, seed
        )
        for mode, Q in small.bases.items():
            core, factors[mode] = with_signs(core, mode, Q @ factors[mode])
    _warn(converged, most, tol, error)
    told = (method, error, small.norm, history, len(history) - 1, converged)
    of_modes = [factors.get(mode) for mode in range(P.dim())]
    return TuckerTensor._made(core, of_modes, slabs.numpy, slabs.dtype, 0, told)


def _of_small(
    small: Small,
    modes: list[int],
    ranks: list[int],
    tol: float | None,
    method: str,
    most: int,
    seed: int,
) -> tuple[Tensor, dict[int, Tensor], float, list[float], bool]:
    """The core and the factors of the small tensor, and what is told of the whole one."""
    left = None if tol is None else small.tolerance(tol)
    for attempts in reversed(range(_MOST_ATTEMPTS)):
        core, found, outcomes = decomposed(small.tensor, 0, modes, ranks, left, method, most, seed)
        factors = dict(zip(modes, found, strict=True))
        inner, history, converged = outcomes[0][3:]
        error = small.error(core, factors, inner)
        history = [*(math.hypot(small.missed, step) for step in history[:-1]), error]
        if tol is None or left is None:
            break
        met, converged = converged, error <= tol * small.norm
        if converged or not met or not attempts:
            break
        left = small.tolerance(tol, inner, error, last=attempts == 1)
    return core, factors, error, history, converged


def _ranks_of_slabs(
    slabs: Slabs, chosen: list[int], ranks: Any, tol: float | None
) -> dict[int, int]:
    """The rank of each mode, in ascending order; any will do for a first one of unknown size."""
    sizes = [sys.maxsize if slabs.rows is None else slabs.rows, *slabs.sizes]
    wanted = _ranks(ranks, chosen, [sizes[mode] for mode in chosen], tol)
    return dict(sorted(zip(chosen, wanted, strict=True)))


def _steps(histories: Sequence[list[float]]) -> list[list[float]]:
    """For every sweep the errors of a batch: the last one of those that had ended."""
    length = max(map(len, histories), default=1)
    return [[h[min(step, len(h) - 1)] for h in histories] for step in range(length)]


def _memory_order(X: Tensor, batch: int) -> list[int]:
    """The order of the dimensions, after the batch, in which X lies in memory."""
    strides = X.stride()
    return [*range(batch), *sorted(range(batch, X.dim()), key=lambda i: -strides[i])]


def _of_nothing(
    X: Tensor, batch: int, modes: list[int], ranks: list[int]
) -> tuple[Tensor, list[Tensor], list[Any]]:
    """A tensor without entries, or of zeros: a core of zeros."""
    sizes, factors = list(X.shape), []
    for mode, r in zip(modes, ranks, strict=True):
        sizes[batch + mode] = r
        eye = torch.eye(X.shape[batch + mode], r, dtype=X.dtype, device=X.device)
        factors.append(eye.expand(*X.shape[:batch], -1, -1))
    return X.new_zeros(sizes), factors, []


def _masked(
    X: Tensor, observed: Tensor, modes: list[int], ranks: list[int], most: int, seed: int
) -> tuple[Tensor, list[Tensor], float, float, list[float], bool]:
    """Sweeps over the known entries and what the last factors say of the others."""
    known = torch.where(observed, X, 0)
    core, factors, norm, *_ = _core.tucker(known, modes, ranks, None, "randomized", 0, seed)
    wide = torch.complex128 if X.is_complex() else torch.float64
    errors: list[float] = []
    converged = False
    while True:
        of_modes = dict(zip(modes, factors, strict=True))
        model = TuckerTensor(core, [of_modes.get(mode) for mode in range(X.dim())]).full()
        filled = torch.where(observed, known, model)
        errors.append(float(torch.linalg.vector_norm(filled - model, dtype=wide)))
        if len(errors) > 1:
            floor = 8 * torch.finfo(X.dtype).eps * norm
            gain = errors[-2] - errors[-1]
            converged = errors[-1] <= floor or gain <= _MASKED_GAIN * errors[-1]
        if converged or len(errors) > most:
            return core, factors, norm, errors[-1], errors, converged
        core, factors = _core.tucker_sweep(filled, modes, factors)


def _warn(converged: bool, most: int, tol: float | None, error: float) -> None:
    if converged:
        return
    message = (
        f"the error still falls after max_sweeps = {most} sweeps"
        if tol is None
        else f"rounding or ranks keep tol = {tol:g} from being met, the error is {error:.3g}"
    )
    warn(f"{_CALLER}: {message}", ConvergenceWarning)


# Arguments


def _check_method(method: Any) -> None:
    if method not in _METHODS:
        raise ValueError(f"{_CALLER}: method must be one of {', '.join(_METHODS)}, got {method!r}")


def _modes(modes: Any, dimensions: int) -> list[int]:
    if modes is None:
        return list(range(dimensions))
    if not isinstance(modes, Sequence) or isinstance(modes, str):
        raise TypeError(f"{_CALLER}: modes must be a sequence of integers, got {modes!r}")
    chosen = [as_axis(mode, dimensions, _CALLER, "modes") for mode in modes]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{_CALLER}: modes must be different, got {list(modes)}")
    return chosen


def _ranks(ranks: Any, modes: list[int], sizes: list[int], tol: float | None) -> list[int]:
    if ranks is None:
        if tol is None:
            raise ValueError(f"{_CALLER}: give ranks or tol, got neither")
        return sizes
    wanted = as_ranks(ranks, len(modes), _CALLER)
    for mode, r, n in zip(modes, wanted, sizes, strict=True):
        if r > n and tol is None:
            raise ValueError(
                f"{_CALLER}: ranks must be at most the size of the mode, {n} for mode {mode}, got "
                f"{r}"
            )
    return [min(r, n) for r, n in zip(wanted, sizes, strict=True)]


def _mask(mask: Any, X: Tensor, method: str, tol: float | None, batch: int) -> Tensor | None:
    if mask is None:
        return None
    observed = as_mask(mask, X, _CALLER, "X")
    if method != "hooi" or tol is not None or batch:
        raise ValueError(
            f'{_CALLER}: mask takes ranks, method="hooi" and one tensor, got method={method!r}, '
            f"tol={tol}, batch_dims={batch}"
        )
    if not bool(observed.any()):
        raise ValueError(f"{_CALLER}: mask must have an observed entry, got none")
    bad = torch.nonzero(observed & ~torch.isfinite(X))
    if len(bad):
        index = tuple(bad[0].tolist())
        raise ValueError(f"{_CALLER}: X must be finite, got {X[index].item()} at index {index}")
    return observed
