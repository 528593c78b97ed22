"""The operators `torch.ops.fastlr.*`: loads them, and adds fake (meta) kernels and autograd."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastlr._loader import load_core

load_core()

_INFO = {"svd": 9, "interpolative": 5, "pivoted_qr": 4, "cur": 5}


@torch.library.register_fake("fastlr::random_matrix")
def _(
    rows: int,
    columns: int,
    kind: str,
    seed: int,
    row0: int,
    column0: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return torch.empty((rows, columns), dtype=dtype, device=device)


@torch.library.register_fake("fastlr::gaussian_product")
def _(X: Tensor, rows: int, columns: int, seed: int, transposed: bool) -> Tensor:
    return X.new_empty((X.shape[0], rows if transposed else columns))


@torch.library.register_fake("fastlr::sketch_apply")
def _(
    A: Tensor, kind: str, rows: int, columns: int, seed: int, nonzeros: int, first: int
) -> Tensor:
    return A.new_empty((rows, A.shape[1]))


@torch.library.register_fake("fastlr::sketch_adjoint")
def _(
    Y: Tensor, kind: str, rows: int, columns: int, seed: int, nonzeros: int, first: int, count: int
) -> Tensor:
    return Y.new_empty((count, Y.shape[1]))


@torch.library.register_fake("fastlr::orthonormalize")
def _(Y: Tensor) -> Tensor:
    return Y.new_empty((Y.shape[0], min(Y.shape)))


@torch.library.register_fake("fastlr::randomized_svd")
def _(
    A: Tensor,
    rank: int,
    oversample: int,
    power_iters: int | None,
    method: str,
    precision: str,
    center: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_svd(A, rank)


@torch.library.register_fake("fastlr::adaptive_svd")
def _(
    A: Tensor,
    tol: float,
    most_rank: int | None,
    oversample: int,
    power_iters: int | None,
    center: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_svd(A, torch.library.get_ctx().new_dynamic_size())


def _fake_svd(A: Tensor, rank: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *batch, m, n = A.shape

    def empty(*shape: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty((*batch, *shape), dtype=dtype or A.dtype, device=A.device)

    info = torch.empty((*batch, _INFO["svd"]), dtype=torch.float64, device="cpu")
    return empty(m, rank), empty(rank, dtype=A.dtype.to_real()), empty(rank, n), info


@torch.library.register_fake("fastlr::svd_backward")
def _(
    A: Tensor,
    U: Tensor,
    S: Tensor,
    Vh: Tensor,
    gU: Tensor | None,
    gS: Tensor | None,
    gVh: Tensor | None,
    center: bool,
) -> Tensor:
    return A.new_empty(A.shape)


@torch.library.register_fake("fastlr::interpolative")
def _(
    A: Tensor, rank: int | None, tol: float | None, of_rows: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = A.shape
    k: Any = torch.library.get_ctx().new_dynamic_size() if tol is not None else rank
    return (
        A.new_empty((*batch, k), dtype=torch.int64),
        A.new_empty((*batch, m, k) if of_rows else (*batch, k, n)),
        torch.empty((*batch, _INFO["interpolative"]), dtype=torch.float64, device="cpu"),
    )


@torch.library.register_fake("fastlr::pivoted_qr")
def _(
    A: Tensor, rank: int | None, tol: float, strong: float | None, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *batch, m, n = A.shape
    most = min(m, n) if rank is None else rank
    k = torch.library.get_ctx().new_dynamic_size() if tol > 0 else most
    info = torch.empty((*batch, _INFO["pivoted_qr"]), dtype=torch.float64, device="cpu")
    pivots = A.new_empty((*batch, n), dtype=torch.int64)
    if batch:
        return A.new_empty((*batch, m, k)), A.new_empty((*batch, k, n)), pivots, info
    Q = A.new_empty((m, k)) if 0 < 4 * n <= m else A.new_empty((k, m)).mT
    return Q, A.new_empty((n, k)).mT, pivots, info


@torch.library.register_fake("fastlr::cur")
def _(
    A: Tensor, rank: int, columns: Tensor | None, rows: Tensor | None, middle: str, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    m, n = A.shape
    count = min(2 * rank, m) if middle == "intersection" else rank
    return (
        A.new_empty((m, rank)),
        A.new_empty((rank, count)),
        A.new_empty((count, n)),
        A.new_empty((count,), dtype=torch.int64),
        A.new_empty((rank,), dtype=torch.int64),
        torch.empty((_INFO["cur"],), dtype=torch.float64, device="cpu"),
    )


@torch.library.register_fake("fastlr::joint_factors")
def _(
    matrices: list[Tensor], width: int, power_iters: int, seed: int, caller: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like, count = matrices[0], len(matrices)
    m = like.shape[0]
    wide = torch.complex128 if like.is_complex() else torch.float64
    U = like.new_empty((count, m, min(width, m)), dtype=wide)
    S = torch.empty((count, min(width, m)), dtype=torch.float64, device="cpu")
    return U, S, S.new_empty(count), S.new_empty(count)


@torch.library.register_fake("fastlr::joint_bounds")
def _(U: Tensor, S: Tensor, rest: Tensor, norm: Tensor, rank: int, roundoff: float) -> Tensor:
    return torch.empty((3,), dtype=torch.float64, device="cpu")


@torch.library.register_fake("fastlr::cluster_matrices")
def _(
    U: Tensor,
    S: Tensor,
    rest: Tensor,
    norm: Tensor,
    rank: int,
    tol: float,
    roundoff: float,
    bound: str,
) -> tuple[Tensor, Tensor, Tensor]:
    clusters = torch.library.get_ctx().new_dynamic_size()
    labels = torch.empty((U.shape[0],), dtype=torch.int64, device="cpu")
    errors = torch.empty((clusters,), dtype=torch.float64, device="cpu")
    return labels, errors, U.new_empty((clusters, U.shape[1], rank))


@torch.library.register_fake("fastlr::incremental_append")
def _(
    core: Tensor, lines: Tensor, most: int, tol: float, error: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept: Any = torch.library.get_ctx().new_dynamic_size()
    return (
        core.new_empty((lines.shape[0], kept)),
        core.new_empty((kept, kept)),
        lines.new_empty((kept, lines.shape[1])).mT,
        torch.empty((3,), dtype=torch.float64, device="cpu"),
    )


@torch.library.register_fake("fastlr::incremental_compose")
def _(chain: list[Tensor]) -> Tensor:
    rows: Any = sum(block.shape[0] for block in chain[::2])
    return chain[0].new_empty((rows, chain[-1].shape[1]))


@torch.library.register_fake("fastlr::incremental_compress")
def _(
    left: Tensor,
    core: Tensor,
    right: Tensor,
    least: int,
    most: int,
    tol: float,
    error: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rank: Any = torch.library.get_ctx().new_dynamic_size()
    return (
        left.new_empty((left.shape[0], rank)),
        core.new_empty((rank,), dtype=torch.float64),
        right.new_empty((rank, right.shape[0])),
        torch.empty((4,), dtype=torch.float64, device="cpu"),
    )


@torch.library.register_fake("fastlr::weighted_low_rank")
def _(
    W: Tensor,
    left: Tensor | None,
    left_vectors: Tensor | None,
    right: Tensor | None,
    right_vectors: Tensor | None,
    mean: Tensor | None,
    rank: int | None,
    tol: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    o, i = W.shape
    k: Any = min(o, i) if rank is None else rank
    if tol is not None:
        k = torch.library.get_ctx().new_dynamic_size()
    return (
        W.new_empty((o, k)),
        W.new_empty((k, i)),
        W.new_empty((k,), dtype=torch.float64),
        W.new_empty((0 if mean is None else o,)),
        torch.empty((4,), dtype=torch.float64, device="cpu"),
    )


@torch.library.register_fake("fastlr::nonnegative_rows")
def _(
    X: Tensor, G: Tensor, B: Tensor, penalty: float, passes: int, tol: float
) -> tuple[Tensor, Tensor]:
    return X.new_empty(X.shape), torch.empty((3,), dtype=torch.float64, device="cpu")


def _require_one_device(name: str, *tensors: Tensor) -> None:
    """Also where only some are on the meta device: the result would be memory without content."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"{name}: all tensors must be on one device, got {found}")


@torch.library.register_fake("fastlr::sparse_expand")
def _(values: Tensor, mask: Tensor, columns: int) -> Tensor:
    _require_one_device("sparse_expand", values, mask)
    return values.new_empty((mask.shape[0], columns))


@torch.library.register_fake("fastlr::sparse_gather")
def _(matrix: Tensor, mask: Tensor, nonzeros: int) -> Tensor:
    _require_one_device("sparse_gather", matrix, mask)
    return matrix.new_empty((nonzeros,))


@torch.library.register_fake("fastlr::sparse_linear")
def _(X: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    _require_one_device("sparse_linear", X, values, mask)
    return X.new_empty((*X.shape[:-1], mask.shape[0]))


@torch.library.register_fake("fastlr::sparse_linear_adjoint")
def _(Y: Tensor, values: Tensor, mask: Tensor, columns: int) -> Tensor:
    _require_one_device("sparse_linear_adjoint", Y, values, mask)
    return Y.new_empty((*Y.shape[:-1], columns))


@torch.library.register_fake("fastlr::sparse_products")
def _(Y: Tensor, X: Tensor, mask: Tensor, nonzeros: int) -> Tensor:
    _require_one_device("sparse_products", Y, X, mask)
    return X.new_empty((nonzeros,))


# Layers that are stored as factors. For their gradients see
# cpp/bindings/low_rank_linear_autograd.cpp.


@torch.library.register_fake("fastlr::low_rank_linear")
def _(X: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Tensor:
    _require_one_device("low_rank_linear", X, A, B, *([] if bias is None else [bias]))
    return X.new_empty((*X.shape[:-1], B.shape[0]))


@torch.library.register_fake("fastlr::interpolative_linear")
def _(
    X: Tensor,
    skeleton: Tensor,
    coefficients: Tensor,
    order: Tensor,
    bias: Tensor | None,
    of_rows: bool,
) -> Tensor:
    others = [order] if bias is None else [order, bias]
    _require_one_device("interpolative_linear", X, skeleton, coefficients, *others)
    outputs = order.shape[0] if of_rows else skeleton.shape[0]
    return X.new_empty((*X.shape[:-1], outputs))


@torch.library.register_fake("fastlr::low_rank_linear_backward")
def _(gradient: Tensor, X: Tensor, A: Tensor, B: Tensor, wanted: list[bool]) -> list[Tensor]:
    return _like_wanted((X, A, B), wanted)


@torch.library.register_fake("fastlr::interpolative_linear_backward")
def _(
    gradient: Tensor,
    X: Tensor,
    skeleton: Tensor,
    coefficients: Tensor,
    order: Tensor,
    of_rows: bool,
    wanted: list[bool],
) -> list[Tensor]:
    return _like_wanted((X, skeleton, coefficients), wanted)


def _like_wanted(inputs: tuple[Tensor, Tensor, Tensor], wanted: list[bool]) -> list[Tensor]:
    return [X.new_empty(X.shape) for X, want in zip(inputs, wanted, strict=True) if want]


# X -> X Omega is linear: its adjoint multiplies by the same Omega, conjugated and transposed.


def _product_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.rows, ctx.columns, ctx.seed, ctx.transposed = inputs


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    adjoint = torch.ops.fastlr.gaussian_product(
        grad.conj().resolve_conj(), ctx.rows, ctx.columns, ctx.seed, not ctx.transposed
    ).conj()
    return adjoint, None, None, None, None


torch.library.register_autograd(
    "fastlr::gaussian_product", _product_backward, setup_context=_product_context
)


# A -> S A is linear, and S is real: its adjoint is the product with Sᵀ.


def _sketch_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    A, *ctx.arguments = inputs
    ctx.count = A.shape[0]


def _sketch_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    adjoint = torch.ops.fastlr.sketch_adjoint(grad, *ctx.arguments, ctx.count)
    return adjoint, *[None] * 6


def _sketch_adjoint_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.arguments, _ = inputs


def _sketch_adjoint_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.fastlr.sketch_apply(grad, *ctx.arguments), *[None] * 7


torch.library.register_autograd(
    "fastlr::sketch_apply", _sketch_backward, setup_context=_sketch_context
)
torch.library.register_autograd(
    "fastlr::sketch_adjoint", _sketch_adjoint_backward, setup_context=_sketch_adjoint_context
)


def _svd_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    A, *others, ctx.center, _seed = inputs
    ctx.others = len(others) + 2
    *factors, info = output
    ctx.save_for_backward(A, *factors)
    ctx.mark_non_differentiable(info)
    ctx.set_materialize_grads(False)  # a loss of S alone needs no pass over A


def _svd_backward(
    ctx: Any, gU: Tensor | None, gS: Tensor | None, gVh: Tensor | None, _info: None
) -> tuple[Tensor | None, ...]:
    grad = torch.ops.fastlr.svd_backward(*ctx.saved_tensors, gU, gS, gVh, ctx.center)
    return grad, *[None] * ctx.others


for _name in ("randomized_svd", "adaptive_svd"):
    torch.library.register_autograd(f"fastlr::{_name}", _svd_backward, setup_context=_svd_context)


# A matrix W with the values v, expanded or gathered: each is the other's adjoint. And the three
# gradients of the sum of v · (Yᵀ X) over the kept entries: X Wᵀ by Y, Y W by X, the kept entries of
# Yᵀ X by v. That of X Wᵀ itself is in cpp/bindings/sparse_linear_autograd.cpp.


def _expand_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, mask, _ = inputs
    ctx.nonzeros = values.shape[0]
    ctx.save_for_backward(mask)


def _expand_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.fastlr.sparse_gather(grad, *ctx.saved_tensors, ctx.nonzeros), None, None


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    matrix, mask, _ = inputs
    ctx.columns = matrix.shape[1]
    ctx.save_for_backward(mask)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.fastlr.sparse_expand(grad, *ctx.saved_tensors, ctx.columns), None, None


def _sparse_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    one, other, mask, *_ = inputs
    ctx.save_for_backward(one, other, mask)


def _by_Y(X: Tensor, values: Tensor, mask: Tensor) -> Any:
    return torch.ops.fastlr.sparse_linear(X, values, mask)


def _by_X(Y: Tensor, values: Tensor, mask: Tensor, X: Tensor) -> Any:
    return torch.ops.fastlr.sparse_linear_adjoint(Y, values, mask, X.shape[-1])


def _by_values(Y: Tensor, X: Tensor, mask: Tensor, values: Tensor) -> Any:
    return torch.ops.fastlr.sparse_products(Y, X, mask, values.shape[0])


def _adjoint_backward(ctx: Any, X: Tensor) -> tuple[Tensor | None, ...]:
    Y, values, mask = ctx.saved_tensors
    wants_Y, wants_values, *_ = ctx.needs_input_grad
    return (
        _by_Y(X, values, mask) if wants_Y else None,
        _by_values(Y, X, mask, values) if wants_values else None,
        None,
        None,
    )


def _products_backward(ctx: Any, values: Tensor) -> tuple[Tensor | None, ...]:
    Y, X, mask = ctx.saved_tensors
    wants_Y, wants_X, *_ = ctx.needs_input_grad
    return (
        _by_Y(X, values, mask) if wants_Y else None,
        _by_X(Y, values, mask, X) if wants_X else None,
        None,
        None,
    )


for _name, _setup, _backward in (
    ("sparse_expand", _expand_context, _expand_backward),
    ("sparse_gather", _gather_context, _gather_backward),
    ("sparse_linear_adjoint", _sparse_context, _adjoint_backward),
    ("sparse_products", _sparse_context, _products_backward),
):
    torch.library.register_autograd(f"fastlr::{_name}", _backward, setup_context=_setup)


# Products of reflectors. Their gradients are in cpp/bindings/householder_autograd.cpp.

_BLOCK = 64  # vectors of a block, as the core has them


def _factors_of_reflectors(V: Tensor) -> tuple[Tensor, Tensor]:
    k, batch = V.shape[-1], V.shape[:-2].numel()
    width, count = min(k, _BLOCK), (k + _BLOCK - 1) // _BLOCK
    double = torch.complex128 if V.is_complex() else torch.float64
    parts = 2 if V.dtype == double else 1
    return (
        V.new_empty((parts, count, batch, width, width), dtype=double),
        V.new_empty((count, batch, 1, width), dtype=torch.int32),
    )


@torch.library.register_fake("fastlr::householder_product")
def _(V: Tensor, columns: int, lower: bool) -> tuple[Tensor, Tensor, Tensor]:
    return V.new_empty((*V.shape[:-1], columns)), *_factors_of_reflectors(V)


@torch.library.register_fake("fastlr::householder_apply")
def _(V: Tensor, X: Tensor, adjoint: bool, lower: bool) -> tuple[Tensor, Tensor, Tensor]:
    return X.new_empty(X.shape), *_factors_of_reflectors(V)


@torch.library.register_fake("fastlr::householder_backward")
def _(
    V: Tensor,
    T: Tensor,
    exponents: Tensor,
    result: Tensor,
    grad: Tensor,
    adjoint: bool,
    lower: bool,
    of_identity: bool,
) -> tuple[Tensor, Tensor]:
    return V.new_empty(V.shape), grad.new_empty(grad.shape)


@torch.library.register_fake("fastlr::householder_vectors")
def _(Q: Tensor) -> tuple[Tensor, Tensor]:
    return Q.new_empty(Q.shape), Q.new_empty((*Q.shape[:-2], Q.shape[-1]))


def _not_differentiable(name: str, what: str) -> None:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{what} is not differentiable; detach its input")

    torch.library.register_autograd(f"fastlr::{name}", backward)


_not_differentiable("orthonormalize", "fastlr.linalg.orthonormalize")
_not_differentiable("interpolative", "fastlr.linalg.interpolative")
_not_differentiable("pivoted_qr", "fastlr.linalg.pivoted_qr")
_not_differentiable("cur", "fastlr.linalg.cur")
_not_differentiable("svd_backward", "the gradient of fastlr.linalg.randomized_svd")
_not_differentiable("joint_factors", "fastlr.linalg.joint_svd_bounds or cluster_matrices")
_not_differentiable("joint_bounds", "fastlr.linalg.joint_svd_bounds")
_not_differentiable("cluster_matrices", "fastlr.linalg.cluster_matrices")
_not_differentiable("incremental_append", "fastlr.linalg.IncrementalSVD")
_not_differentiable("incremental_compose", "fastlr.linalg.IncrementalSVD")
_not_differentiable("incremental_compress", "fastlr.linalg.IncrementalSVD")
_not_differentiable("weighted_low_rank", "fastlr.linalg.weighted_low_rank")
_not_differentiable("householder_vectors", "fastlr.linalg.householder_vectors")
_not_differentiable("householder_backward", "the gradient of fastlr.linalg.householder_product")
_not_differentiable("nonnegative_rows", "fastlr.linalg.nmf or semi_nmf")
_not_differentiable("low_rank_linear_backward", "the gradient of fastlr.nn.LowRankLinear")
_not_differentiable(
    "interpolative_linear_backward", "the gradient of fastlr.nn.InterpolativeLinear"
)


# What torch.utils.flop_counter counts of these layers: two flops for each number of a factor that
# is multiplied with a token. `first` is the factor that inputs are multiplied with.

_Shape = tuple[int, ...]


def _flops(X: _Shape, first: _Shape, last: _Shape) -> int:
    return 2 * math.prod(X[:-1]) * (math.prod(first) + math.prod(last))


def _backward_flops(
    X: _Shape, first: _Shape, last: _Shape, of_X: bool, of_first: bool, of_last: bool
) -> int:
    products_with_first = of_last + of_first + of_X  # that of `last` multiplies the inputs again
    products_with_last = of_last + (of_first or of_X)
    numbers = products_with_first * math.prod(first) + products_with_last * math.prod(last)
    return 2 * math.prod(X[:-1]) * numbers


@register_flop_formula(torch.ops.fastlr.low_rank_linear)
def _(X: _Shape, A: _Shape, B: _Shape, *_: Any, **__: Any) -> int:
    return _flops(X, A, B)


@register_flop_formula(torch.ops.fastlr.interpolative_linear)
def _(X: _Shape, skeleton: _Shape, coefficients: _Shape, *_: Any, **__: Any) -> int:
    return _flops(X, skeleton, coefficients)


@register_flop_formula(torch.ops.fastlr.low_rank_linear_backward)
def _(gradient: _Shape, X: _Shape, A: _Shape, B: _Shape, wanted: list[bool], **_: Any) -> int:
    return _backward_flops(X, A, B, *wanted)


@register_flop_formula(torch.ops.fastlr.interpolative_linear_backward)
def _(
    gradient: _Shape,
    X: _Shape,
    skeleton: _Shape,
    coefficients: _Shape,
    order: _Shape,
    of_rows: bool,
    wanted: list[bool],
    **_: Any,
) -> int:
    of_X, of_skeleton, of_coefficients = wanted
    if of_rows:
        return _backward_flops(X, skeleton, coefficients, of_X, of_skeleton, of_coefficients)
    return _backward_flops(X, coefficients, skeleton, of_X, of_coefficients, of_skeleton)
