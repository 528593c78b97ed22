"""Self-calibration: y = D A x with neither the diagonal D nor x known, by linear least squares."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arrays import Adapted, adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._warnings import warn
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning

_CALLER = "bilinear_lstsq"
_MODELS = ("repeated", "diverse", "snapshots")
_METHODS = ("lstsq", "spectral")

# Where the answer is known to a quarter of its size and no better, it is not known.
_AMBIGUOUS = 0.25
# Blocks of two vectors; fewer than ten are enough unless the smallest singular values lie so close
# together that there is no answer.
_MOST_STEPS = 40
# What a singular value that is only an estimate still changes by, relative to it.
_SETTLED = 1e-3
# Entries of the rows that are orthogonalised at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class BilinearInfo:
    """How a calibration was obtained and how well the data determine it.

    Attributes
    ----------
    model : {"repeated", "diverse", "snapshots"}
    method : {"lstsq", "spectral"}
    residual : float
        ‖Y/d − A x‖_F / ‖Y/d‖_F over all measurements, which is what is minimised.
    ambiguity : float
        ‖M z‖ / (‖z‖·σ) for the answer z of the linear system M z = 0: an estimate of the relative
        error of z, and 1 where there are other answers. For "spectral", σ is the second smallest
        singular value of M, and this is the ratio of the two smallest; for "lstsq", σ is the
        smallest singular value of M with the constraint as a row below it, which is no larger.
    condition : float
        ‖M‖_F / σ: rounding is magnified by it. Infinite where σ is zero to rounding.
    steps : int
        Of the Krylov space in which σ was found.
    converged : bool
        False where `ambiguity` is above 1/4: the data do not determine the answer.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(40, 3, seed=0, dtype=torch.float64).reshape(4, 10, 3)
    >>> info = la.bilinear_lstsq(A, A.sum(2), model="repeated").info
    >>> info.residual < 1e-14, info.ambiguity < 1e-12, info.converged
    (True, True, True)
    """

    model: str
    method: str
    residual: float
    ambiguity: float
    condition: float
    steps: int
    converged: bool


class _BilinearFields(NamedTuple):
    d: Any
    x: Any


class BilinearResult(_BilinearFields):
    """The calibration d and the signals x of y = diag(d) A x.

    Attributes
    ----------
    d : array, shape (m,)
    x : array, shape (n,) or (p, n)
    info : BilinearInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(40, 3, seed=0, dtype=torch.float64).reshape(4, 10, 3)
    >>> result = la.bilinear_lstsq(A, A.sum(2), model="repeated")
    >>> d, x = result
    >>> d.shape, [round(value, 6) for value in x.tolist()]
    (torch.Size([10]), [1.0, 1.0, 1.0])
    """

    info: BilinearInfo

    def __new__(cls, d: Any, x: Any, info: BilinearInfo) -> "BilinearResult":
        self = super().__new__(cls, d, x)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def bilinear_lstsq(
    A: Any,
    Y: Any,
    *,
    model: Literal["repeated", "diverse", "snapshots"],
    method: Literal["lstsq", "spectral"] = "lstsq",
    constraint: tuple[Any, complex] | None = None,
) -> BilinearResult:
    """Find the gains d and the signals x of y = diag(d) A x from several measurements.

    With s = 1/d the measurements are linear in z = (s, x): diag(s) y = A x. No start is needed and
    there are no local minima.

    Parameters
    ----------
    A : array or Tensor, shape (p, m, n), or (m, n) for "snapshots"
        The measurement matrices, real or complex, dense. float16 and bfloat16 are computed in
        float32. Never written to.
    Y : array or Tensor, shape (p, m)
        The measurements, one a row, of the kind and on the device of A. The result has the wider
        dtype of the two.
    model : {"repeated", "diverse", "snapshots"}
        - "repeated": one signal, several designs, ``Y[l] = d * (A[l] @ x)``.
        - "diverse": several signals, each with its own design, ``Y[l] = d * (A[l] @ x[l])``: blind
          deconvolution of diverse inputs, after a Fourier transform.
        - "snapshots": several signals, one design, ``Y[l] = d * (A @ x[l])``.
    method : {"lstsq", "spectral"}
        "lstsq": least squares with one linear constraint. "spectral": the right singular vector of
        the smallest singular value, which needs no constraint.
    constraint : (array of shape (N,), number), optional
        w and c ≠ 0, which fix the scale: wᴴz = c, where z has the m entries of 1/d and then those
        of x, signal after signal. (d, x) and (αd, x/α) fit alike. If None, "lstsq" takes
        mean(1/d) = 1, which suits gains around 1; a w that is nearly orthogonal to z magnifies
        noise. "spectral" is only scaled; if None, to
        mean(abs(1/d)**2) = 1 with the largest entry of 1/d real and positive.

    Returns
    -------
    BilinearResult
        ``d`` (m,), ``x`` (n,) or (p, n), and ``info``.

    Raises
    ------
    ValueError
        Shapes that do not match, fewer equations p·m than unknowns less one, a sensor (a column of
        Y) or a matrix A with nothing but zeros, an unknown model or method, a constraint of another
        size, zero or orthogonal to the answer, an entry that is not finite (its index is named).
    TypeError
        NumPy and torch mixed, a sparse A, complex constraints of real data.

    Warns
    -----
    ConvergenceWarning
        The data do not determine the answer: another z, at right angles to it, fits less than four
        times as badly. ``info.converged`` is False.

    Notes
    -----
    The matrix M of M z = 0 (p·m rows; a diagonal block for s beside a dense one for x) is never
    formed. One block of unknowns is eliminated by reflections, the m gains (a reflection of length
    p for each) or the signals (a QR of each A[l]), whichever leaves fewer: K = min(m, unknowns of
    x) of them, one QR. So nothing is squared, and the error is of order u·``info.condition``. The
    smallest singular values are found by a block Krylov space of the inverse, a few products with
    the eliminated blocks.

    The columns of M are first scaled so that those of s and of x have unit length on average: the
    units of Y and A do not matter. "lstsq" is unaffected by that.

    Cost: 2·p·m·K² flops where the gains are eliminated, 2·p·m·m² and 4·p·m²·n (for "snapshots" one
    p-th of the latter) where the signals are; memory a small multiple of Y, A and K². For noise E
    in Y the error of the direction of z is at most ‖E/d‖_F / (‖z‖·σ), in the units of M and with
    the σ of ``info.ambiguity``. Not differentiable.

    Sources: Ling, Strohmer, "Self-calibration and bilinear inverse problems via linear least
    squares", SIAM J. Imaging Sciences 11 (2018), for the models and both methods; Balzano, Nowak,
    "Blind calibration of sensor networks", IPSN 2007, for the linear form.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(120, 5, seed=0, dtype=torch.float64).reshape(3, 40, 5)
    >>> x, d = torch.arange(1.0, 6.0).double(), torch.linspace(0.5, 2.0, 40).double()
    >>> found = la.bilinear_lstsq(A, d * (A @ x), model="repeated")
    >>> ratio = found.d / d  # d is known but for one factor
    >>> bool((ratio / ratio[0] - 1).abs().max() < 1e-12), found.info.converged
    (True, True)
    """
    adapted, measured, w, c = _checked(A, Y, model, method, constraint)
    system = _scaled(adapted.tensor, measured, model)
    factor = _eliminate(system)
    bordered = factor.bordered(_start(system, method, w))
    z = bordered.least_squares()
    if method == "spectral":
        z, sigma, steps, settled = _last_vector(factor, z)
    else:
        sigma, steps, settled = _least_value(bordered, z)
    ambiguity, condition = _certainty(system, factor, z, sigma)
    parts = factor.split(z)
    info = BilinearInfo(
        model,
        method,
        _residual(system, *parts),
        ambiguity,
        condition,
        steps,
        settled and ambiguity <= _AMBIGUOUS,
    )
    s, x = _in_units(system, parts, w, c, method)
    if not info.converged:
        warn(
            f"{_CALLER}: the data do not determine d and x: ambiguity {ambiguity:.3g}, where 0 is "
            f"certain and at 1 other answers fit as well",
            ConvergenceWarning,
        )
    return BilinearResult(adapted.restore(1 / s), adapted.restore(x), info)


@dataclass(frozen=True)
class _System:
    """Y and A in units in which both blocks of M have columns of unit length on average."""

    A: Tensor  # (p, m, n); a view with p = 1 stands for "snapshots"
    Y: Tensor
    y_unit: float
    a_unit: float
    shared: bool  # one signal

    @property
    def unknowns(self) -> int:
        """Entries of x."""
        return self.A.shape[2] * (1 if self.shared else self.Y.shape[0])

    @property
    def norm(self) -> float:
        """‖M‖_F, by the choice of units."""
        return math.sqrt(self.Y.shape[1] + self.unknowns)


@dataclass(frozen=True)
class _Factor:
    """F = [T −C; 0 R], which is M but for reflections, for unknowns (e, r): e is eliminated.

    T is diagonal, where e is s, or has p triangular blocks, where e is x.
    """

    T: Tensor
    C: Tensor
    R: Tensor

    def solve_T(self, B: Tensor, *, adjoint: bool = False) -> Tensor:
        """T⁻¹ B or T⁻ᴴ B."""
        if self.T.dim() == 1:
            return B / (self.T.conj() if adjoint else self.T)[:, None]
        p, n, _ = self.T.shape
        blocks = B.reshape(p, n, -1)
        return _solve(self.T, blocks, adjoint=adjoint).reshape(p * n, -1)

    def times_T(self, B: Tensor) -> Tensor:
        """T B."""
        if self.T.dim() == 1:
            return self.T[:, None] * B
        p, n, _ = self.T.shape
        return (self.T @ B.reshape(p, n, -1)).reshape(p * n, -1)

    def product(self, Z: Tensor) -> Tensor:
        """F @ Z: as long as M @ Z, column by column."""
        e, r = Z[: len(self.C)], Z[len(self.C) :]
        return torch.cat([self.times_T(e) - self.C @ r, self.R @ r])

    def joined(self, s: Tensor, x: Tensor) -> Tensor:
        """Vectors (s, x) in the order (e, r)."""
        return torch.cat([s, x] if self.T.dim() == 1 else [x, s])

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and x of z."""
        e, r = z[: len(self.C)], z[len(self.C) :]
        return (e, r) if self.T.dim() == 1 else (r, e)

    def bordered(self, weights: tuple[Tensor, Tensor]) -> "_Bordered":
        """Put the row wᴴ below F and make it triangular again."""
        w = self.joined(*weights)
        w_e, w_r = w[: len(self.C)], w[len(self.C) :]
        v = self.solve_T(w_e[:, None], adjoint=True)[:, 0]
        mu = math.hypot(1.0, float(torch.linalg.vector_norm(v)))
        last = (self.C.mH @ v + w_r).conj() / mu
        Q, R = torch.linalg.qr(torch.cat([self.R, last[None]]))
        return _Bordered(self, w, v, mu, _regular(R), Q[-1].conj())


@dataclass(frozen=True)
class _Bordered:
    """[F; wᴴ] but for reflections: [B T, −B⁻¹(C − v w_rᴴ); 0, R], B = (I + v vᴴ)^½, v = T⁻ᴴ w_e.

    It is regular where w is not orthogonal to the null vector of F and there is but one.
    """

    factor: _Factor
    w: Tensor
    v: Tensor
    mu: float  # √(1 + ‖v‖²)
    R: Tensor
    last: Tensor  # what the reflections make of the last unit vector, in the rows of R

    def least_squares(self) -> Tensor:
        """The unit vector along the z that minimises ‖F z‖² + |wᴴz − 1|²."""
        r = _solve(self.R, self.last[:, None])
        e = self.factor.solve_T(self._shrunk(self.v[:, None] + self._beside(r)))
        z = torch.cat([e, r])[:, 0]
        unit: Tensor = z / torch.linalg.vector_norm(z)
        return unit

    def product(self, Z: Tensor) -> Tensor:
        """[F; wᴴ] @ Z."""
        return torch.cat([self.factor.product(Z), (self.w.conj() @ Z)[None]])

    def inverse_gram(self, B: Tensor) -> Tensor:
        """(FᴴF + w wᴴ)⁻¹ B."""
        height = len(self.factor.C)
        a = self._shrunk(self.factor.solve_T(B[:height], adjoint=True))
        shrunk = self._shrunk(a)
        back = self.factor.C.mH @ shrunk - self.w[height:, None] * (self.v.conj() @ shrunk)
        r = _solve(self.R, _solve(self.R, B[height:] + back, adjoint=True))
        return torch.cat([self.factor.solve_T(self._shrunk(a + self._beside(r))), r])

    def _beside(self, r: Tensor) -> Tensor:
        """B⁻¹ (C − v w_rᴴ) r."""
        return self._shrunk(self.factor.C @ r - self.v[:, None] * (self.w[-len(r) :].conj() @ r))

    def _shrunk(self, B: Tensor) -> Tensor:
        """(I + v vᴴ)^−½ B."""
        along = (self.v.conj() @ B) / (self.mu * (self.mu + 1))
        return B - self.v[:, None] * along


def _eliminate(system: _System) -> _Factor:
    """Leave the smaller group of unknowns; with one signal, gains are cheaper to eliminate."""
    if system.shared or system.unknowns <= system.Y.shape[1]:
        return _without_gains(system)
    return _without_signals(system)


def _without_gains(system: _System) -> _Factor:
    """A reflection for each sensor takes its p measurements to one; the other rows have no gain."""
    p, m = system.Y.shape
    k = system.unknowns
    y = system.Y.T
    largest = y.abs().amax(1)
    lengths = largest * torch.linalg.vector_norm(y / largest[:, None], dim=1)
    # y goes to −phase·‖y‖ times the first unit vector: no cancellation.
    first = y[:, 0]
    phases = torch.where(first == 0, torch.ones_like(first), first.sgn())
    v = y / lengths[:, None]
    v[:, 0] += phases
    v /= torch.linalg.vector_norm(v, dim=1)[:, None]
    C = y.new_empty(m, k)
    R = y.new_zeros(0, k)
    # The rows of a QR are at least four times those of R, which enter again.
    step = max(1, max(_BLOCK // (p * k), 4 * k // max(p - 1, 1)))
    for start in range(0, m, step):
        rows = _rows_of_sensors(system, start, min(start + step, m))
        mirror = v[start : start + step, :, None]
        rows = torch.baddbmm(rows, mirror, mirror.mH @ rows, alpha=-2)
        C[start : start + step] = rows[:, 0]
        R = _triangle(R, rows[:, 1:].reshape(-1, k))
    return _Factor(-phases * lengths, C, _padded(R))


def _rows_of_sensors(system: _System, start: int, stop: int) -> Tensor:
    """What multiplies x in the p equations of each sensor, shape (sensors, p, unknowns of x)."""
    rows = system.A[:, start:stop].transpose(0, 1)
    if system.shared:
        return rows
    sensors, p, n = stop - start, system.Y.shape[0], system.A.shape[2]
    apart = rows.new_zeros(sensors, p, p, n)
    torch.diagonal(apart, dim1=1, dim2=2).copy_(rows.expand(sensors, p, n).mT)
    return apart.reshape(sensors, p, p * n)


def _without_signals(system: _System) -> _Factor:
    """A QR of each matrix: the rows that are orthogonal to its range have no signal."""
    p, m = system.Y.shape
    n = system.A.shape[2]
    T, C, R = [], [], system.Y.new_zeros(0, m)
    # The rows of a QR are four times those of R, which enter again.
    together = max(1, 4 * m // max(m - n, 1))
    waiting: list[Tensor] = []
    Q = Rl = system.Y.new_empty(0, 0)
    for index in range(p):
        if index < len(system.A):
            Q, Rl = torch.linalg.qr(system.A[index], mode="complete")
        turned = Q.mH * system.Y[index]
        T.append(_regular(Rl[:n]))
        C.append(turned[:n])
        waiting.append(turned[n:])
        if len(waiting) == together or index == p - 1:
            R = _triangle(R, torch.cat(waiting))
            waiting = []
    return _Factor(torch.stack(T), torch.cat(C), _padded(R))


def _triangle(R: Tensor, rows: Tensor) -> Tensor:
    found: Tensor = torch.linalg.qr(torch.cat([R, rows]), mode="r")[1]
    return found


def _padded(R: Tensor) -> Tensor:
    """Rows of zeros where there were fewer than columns."""
    missing = R.shape[1] - R.shape[0]
    return torch.cat([R, R.new_zeros(missing, R.shape[1])]) if missing else R


def _regular(R: Tensor) -> Tensor:
    """Lift zeros of the diagonal to the rounding of R: no division by zero, and a null vector."""
    diagonal = R.diagonal().abs()
    least = len(R) * _eps(R) * float(torch.linalg.matrix_norm(R))
    lifted = torch.where(diagonal < least, least, R.diagonal())
    return R.clone().diagonal_scatter(lifted)


def _solve(R: Tensor, B: Tensor, *, adjoint: bool = False) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(R.mH if adjoint else R, B, upper=not adjoint)
    return solution


def _start(system: _System, method: str, w: Tensor | None) -> tuple[Tensor, Tensor]:
    """The row w of the first least squares problem, of unit length, in the units of M."""
    m, k = system.Y.shape[1], system.unknowns
    if w is not None:
        # z is multiplied by the units of Y and of A, and w divided, up to a common factor.
        ratio = system.y_unit / system.a_unit
        row = torch.cat([w[:m], w[m:] * ratio])
        row = row / row.abs().amax()
    elif method == "lstsq":
        row = torch.cat([system.Y.new_ones(m), system.Y.new_zeros(k)])
    else:
        # No w is known to go with z; one at random is orthogonal to none.
        real = system.Y.real.dtype
        row = random_matrix(m + k, 1, seed=0, dtype=real, device=system.Y.device)[:, 0]
        row = row.to(system.Y.dtype)
    row = row / torch.linalg.vector_norm(row)
    return row[:m], row[m:]


class _Space(NamedTuple):
    step: int
    V: Tensor  # a basis
    values: Tensor  # singular values of the product with V: upper bounds of the matrix's own
    last: Tensor  # coefficients of the last right singular vector
    complete: bool  # nothing more to come


def _spaces(
    product: Callable[[Tensor], Tensor], inverse_gram: Callable[[Tensor], Tensor], z: Tensor
) -> Iterator[_Space]:
    """Krylov spaces of the inverse Gram matrix, from z and a vector at random."""
    random = random_matrix(len(z), 1, seed=1, dtype=z.real.dtype, device=z.device).to(z.dtype)
    V = torch.cat([z[:, None], _beside(random, z[:, None])], 1)
    PV, newest = product(V), V
    for step in itertools.count(1):
        _, values, turn = torch.linalg.svd(PV, full_matrices=False)
        newest = _beside(inverse_gram(newest), V)
        complete = newest.shape[1] == 0
        yield _Space(step, V, values, turn[-1].conj(), complete)
        if complete or step == _MOST_STEPS:
            return
        V, PV = torch.cat([V, newest], 1), torch.cat([PV, product(newest)], 1)


def _least_value(bordered: _Bordered, z: Tensor) -> tuple[float, int, bool]:
    """The smallest singular value of [F; wᴴ], the steps taken, and whether it has settled."""
    before = math.inf
    for space in _spaces(bordered.product, bordered.inverse_gram, z):
        least = float(space.values[-1])
        settled = space.complete or before - least <= _SETTLED * least
        if settled:
            break
        before = least
    return least, space.step, settled


def _last_vector(factor: _Factor, z: Tensor) -> tuple[Tensor, float, int, bool]:
    """The last right singular vector of F, from z near it, and the second smallest singular value.

    (FᴴF + z zᴴ)⁻¹ is regular where that value is not zero. From z it makes the space that (FᴴF)⁻¹
    does: they differ by multiples of a vector that the space contains.
    """
    before = math.inf
    for space in _spaces(factor.product, factor.bordered(factor.split(z)).inverse_gram, z):
        newer, (second, least) = space.V @ space.last, space.values[-2:].tolist()
        # Rounding turns the vector by that much.
        allowed = 8 * _eps(z) * math.sqrt(len(z)) / max(second - least, _eps(z))
        moved = float(torch.linalg.vector_norm(newer - z * torch.vdot(z, newer)))
        settled = space.complete or (before - second <= _SETTLED * second and moved <= allowed)
        z, before = newer, second
        if settled:
            break
    return z, second, space.step, settled


def _certainty(system: _System, factor: _Factor, z: Tensor, sigma: float) -> tuple[float, float]:
    """`ambiguity` and `condition` of the answer z."""
    rounding = 4 * _eps(z) * system.norm
    s, _ = factor.split(z)
    # Gains that vanish beside the signal: A does not see it, and the data do not enter.
    blind = float(torch.linalg.vector_norm(s)) <= math.sqrt(_eps(z))
    if sigma <= rounding or blind:
        return 1.0, math.inf
    misfit = float(torch.linalg.vector_norm(factor.product(z[:, None])))
    return min(1.0, misfit / sigma), system.norm / sigma


def _beside(B: Tensor, V: Tensor) -> Tensor:
    """An orthonormal basis of what B adds to the range of V; columns that add nothing are left."""
    B = B / torch.linalg.vector_norm(B, dim=0)
    columns: list[Tensor] = []
    for b in B.unbind(1):
        basis = torch.cat([V, *(column[:, None] for column in columns)], 1)
        if basis.shape[1] == len(b):
            break
        for _ in range(2):
            b = b - basis @ (basis.mH @ b)
        length = torch.linalg.vector_norm(b)
        if float(length) > 8 * _eps(b) * math.sqrt(len(b)):
            b = b / length
            columns.append(b - basis @ (basis.mH @ b))
    return torch.stack(columns, 1) if columns else B[:, :0]


def _eps(A: Tensor) -> float:
    return torch.finfo(A.dtype).eps


def _checked(
    A: Any, Y: Any, model: str, method: str, constraint: tuple[Any, complex] | None
) -> tuple[Adapted, Tensor, Tensor | None, complex]:
    """A and Y in one dtype, and the constraint; whatever is wrong with them is said."""
    for value, known, name in ((model, _MODELS, "model"), (method, _METHODS, "method")):
        if value not in known:
            raise ValueError(f"{_CALLER}: {name} must be one of {', '.join(known)}, got {value!r}")
    designs = adapt(A, _CALLER, "A", batched=True, complex_=True)
    measured = adapt(Y, _CALLER, "Y", complex_=True)
    if designs.numpy != measured.numpy:
        raise TypeError(f"{_CALLER}: A and Y must both be NumPy arrays or both tensors")
    if designs.tensor.device != measured.tensor.device:
        raise ValueError(
            f"{_CALLER}: Y must be on the device of A, {designs.tensor.device}, got "
            f"{measured.tensor.device}"
        )
    wide = torch.promote_types(designs.tensor.dtype, measured.tensor.dtype)
    adapted = Adapted(
        designs.tensor.detach().to(wide).resolve_conj(),
        designs.numpy,
        torch.promote_types(designs.dtype, measured.dtype),
    )
    measurements = measured.tensor.detach().to(wide).resolve_conj()
    _check_shapes(adapted.tensor, measurements, model)
    for tensor, name in ((adapted.tensor, "A"), (measurements, "Y")):
        _check_finite(tensor, name)
    _check_seen(adapted.tensor, measurements, model)
    size = measurements.shape[1] + _signals(measurements, model) * adapted.tensor.shape[-1]
    return adapted, measurements, *_checked_constraint(constraint, size, adapted.tensor)


def _signals(Y: Tensor, model: str) -> int:
    return 1 if model == "repeated" else Y.shape[0]


def _check_shapes(A: Tensor, Y: Tensor, model: str) -> None:
    p, m = Y.shape
    expected = ("m", "n") if model == "snapshots" else ("p", "m", "n")
    if A.dim() != len(expected):
        raise ValueError(
            f"{_CALLER}: A must have shape ({', '.join(expected)}) for {model!r}, got "
            f"{tuple(A.shape)}"
        )
    wanted = A.shape[:-1] if model != "snapshots" else (p, A.shape[0])
    if (p, m) != tuple(wanted):
        raise ValueError(
            f"{_CALLER}: Y must have shape {tuple(wanted)} for an A of shape {tuple(A.shape)}, got "
            f"{(p, m)}"
        )
    if A.numel() == 0:
        raise ValueError(f"{_CALLER}: A must not be empty, got shape {tuple(A.shape)}")
    unknowns = m + _signals(Y, model) * A.shape[-1]
    if p * m < unknowns - 1:
        raise ValueError(
            f"{_CALLER}: {p * m} measurements cannot determine {unknowns} unknowns up to a factor; "
            f"at least {unknowns - 1} are needed"
        )


def _check_finite(tensor: Tensor, name: str) -> None:
    if not math.isfinite(_largest(tensor)):
        index = tuple(torch.isfinite(tensor).logical_not().nonzero()[0].tolist())
        raise ValueError(
            f"{_CALLER}: {name} must be finite, got {tensor[index].item()} at index {index}"
        )


def _check_seen(A: Tensor, Y: Tensor, model: str) -> None:
    """Nothing but zeros says nothing: about a gain, or about a signal."""
    rows = (A != 0).any(-1)
    for seen, name in ((Y != 0, "Y"), (rows if rows.dim() == 2 else rows[None], "A")):
        blind = seen.any(0).logical_not().nonzero()
        if len(blind):
            raise ValueError(
                f"{_CALLER}: sensor {int(blind[0])} has nothing but zeros in {name}: its gain "
                "cannot be found; leave it out"
            )
    if model == "diverse":
        blind = rows.any(1).logical_not().nonzero()
        if len(blind):
            raise ValueError(f"{_CALLER}: A[{int(blind[0])}] must not be zero")


def _checked_constraint(
    constraint: tuple[Any, complex] | None, size: int, A: Tensor
) -> tuple[Tensor | None, complex]:
    if constraint is None:
        return None, 1
    if not isinstance(constraint, tuple) or len(constraint) != 2:
        raise ValueError(f"{_CALLER}: constraint must be a pair (w, c), got {constraint!r}")
    given, c = constraint
    w = given.detach() if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    if w.shape != (size,):
        raise ValueError(
            f"{_CALLER}: w of the constraint must have shape ({size},), got {tuple(w.shape)}"
        )
    if not A.is_complex() and (w.is_complex() or isinstance(c, complex)):
        raise TypeError(f"{_CALLER}: the constraint must be real where A and Y are")
    w = w.to(A.device, A.dtype)
    _check_finite(w, "w of the constraint")
    if not bool(w.any()):
        raise ValueError(f"{_CALLER}: w of the constraint must not be zero")
    if c == 0 or not math.isfinite(abs(c)):
        raise ValueError(f"{_CALLER}: c of the constraint must be finite and not zero, got {c}")
    return w, c


def _scaled(A: Tensor, Y: Tensor, model: str) -> _System:
    """Divide by lengths that neither overflow nor underflow."""
    stack = A[None] if model == "snapshots" else A
    # Columns of x: n, or p·n of which every matrix has n.
    columns = stack.shape[2] * (1 if model == "repeated" else len(stack))
    y_top, a_top = _largest(Y), _largest(stack)
    Y, stack = Y / y_top, stack / a_top
    y_length = _length(Y) / math.sqrt(Y.shape[1])
    a_length = _length(stack) / math.sqrt(columns)
    return _System(
        stack.div_(a_length),
        Y.div_(y_length),
        y_top * y_length,
        a_top * a_length,
        model == "repeated",
    )


def _largest(A: Tensor) -> float:
    """The largest part of an entry, in one pass; not finite where one of them is not."""
    least, most = _parts(A).aminmax()
    return max(-float(least), float(most))


def _length(A: Tensor) -> float:
    return float(torch.linalg.vector_norm(_parts(A)))


def _parts(A: Tensor) -> Tensor:
    """Real numbers: absolute values of complex ones are slow."""
    return torch.view_as_real(A) if A.is_complex() else A


def _in_units(
    system: _System, z: tuple[Tensor, Tensor], w: Tensor | None, c: complex, method: str
) -> tuple[Tensor, Tensor]:
    """The answer on its scale: that of the constraint, or of the gains where there is none."""
    s, x = z
    if not bool(s.any()):
        raise ValueError(f"{_CALLER}: A has dependent columns: a signal that it does not see fits")
    x = x * (system.y_unit / system.a_unit)
    if w is not None:
        along = torch.vdot(w, torch.cat([s, x]))
        size = float((w.abs() * torch.cat([s, x]).abs()).sum())
        if float(along.abs()) <= len(w) * _eps(w) * size:
            raise ValueError(
                f"{_CALLER}: w of the constraint is orthogonal to the answer, which it cannot scale"
            )
        factor = c / along
    elif method == "lstsq":
        factor = 1 / s.mean()
    else:
        largest = s[s.abs().argmax()]
        factor = largest.sgn().conj() * math.sqrt(len(s)) / torch.linalg.vector_norm(s)
    x = x.reshape(-1, system.A.shape[2])
    return s * factor, (x[0] if system.shared else x) * factor


def _residual(system: _System, s: Tensor, x: Tensor) -> float:
    """‖Y s − A x‖_F / ‖Y s‖_F."""
    signals = x.reshape(-1, system.A.shape[2])
    left = system.Y * s
    right = (system.A @ signals[..., None])[..., 0]
    return float(torch.linalg.vector_norm(left - right) / torch.linalg.vector_norm(left))
