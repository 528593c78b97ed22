"""What the compressed layers have in common."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fastlr.linalg import ConvergenceWarning
from fastlr.linalg._balanced import power_of_two
from fastlr.linalg._warnings import warn
from fastlr.nn.modules.dense import FLOAT_DTYPES, dense_bias, dense_weight, high_precision
from fastlr.nn.modules.rank_choice import choose_rank, least_rank

if TYPE_CHECKING:
    from fastlr.nn.compression.gram import Gram

Layer = TypeVar("Layer", bound="CompressedLinear")
Self = TypeVar("Self", bound="FactoredLinear")


class CompressedLinear(nn.Module, abc.ABC):
    """A linear layer whose weight is stored in fewer numbers than it has entries.

    Beside what stands for the weight every such layer keeps a persistent buffer ``weight`` without
    any element. A checkpoint that holds it cannot be loaded into a dense layer: the shapes differ,
    and transformers raises an error instead of leaving the dense weights at random values.
    """

    form: ClassVar[str]  # how the weight is stored, as reports call it

    in_features: int
    out_features: int
    weight: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {value}")
        if dtype is not None and dtype not in FLOAT_DTYPES:
            raise TypeError(f"{type(self).__name__}: dtype must be a real float type, got {dtype}")
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("weight", torch.empty(0, device=device, dtype=dtype))
        self.bias = (
            nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )

    @abc.abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to a ``… × in_features`` tensor."""

    @abc.abstractmethod
    def compose(self) -> Tensor:
        """The dense weight, ``out_features × in_features``, in float64."""

    def composed_bias(self) -> Tensor | None:
        """The bias of all outputs, or None."""
        return self.bias

    @abc.abstractmethod
    def _size(self) -> dict[str, Any]:
        """The arguments that say what of the weight is kept."""

    def to_dense(self) -> nn.Linear:
        """The dense ``torch.nn.Linear`` with the same weight and bias, in this layer's dtype.

        The weight is composed in float64 and rounded once.
        """
        bias = self.composed_bias()
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        with torch.no_grad():
            linear.weight.copy_(self.compose())
            if bias is not None:
                linear.bias.copy_(bias)
        return linear.train(self.training)

    @classmethod
    def unfilled(
        cls: type[Layer],
        *sizes: Any,
        device: torch.device | str,
        dtype: torch.dtype | None,
        **more: Any,
    ) -> Layer:
        """A layer of these sizes whose memory holds anything: nothing is drawn at random."""
        # Each class has sizes of its own, which typing cannot know here.
        create: Any = cls
        layer: Layer = create(*sizes, device="meta", dtype=dtype, **more)
        return layer.to_empty(device=device)

    @classmethod
    def unfilled_for(cls: type[Layer], linear: nn.Module, *sizes: Any) -> Layer:
        """One of these sizes in place of a dense layer, with its bias, dtype, device and mode."""
        weight, bias = dense_weight(linear), dense_bias(linear)
        out_features, in_features = weight.shape
        layer = cls.unfilled(
            in_features,
            out_features,
            *sizes,
            bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            layer._store_bias(bias)
        return layer.train(linear.training)

    def weight_parameters(self) -> int:
        """How many numbers stand for the weight (the bias is not counted)."""
        factors = (p.numel() for name, p in self.named_parameters() if name != "bias")
        return sum(factors) + self.numbers_beside()

    def numbers_beside(self) -> int:
        """What is stored beside parameters and is as large as they are, in numbers of the dtype."""
        return 0

    def flops(self) -> int:
        """Flops of the products for one input, two for a multiplication with an addition.

        Every number that stands for the weight is multiplied once, unless a class says otherwise.
        """
        return 2 * sum(p.numel() for name, p in self.named_parameters() if name != "bias")

    def weight_bytes(self) -> int:
        """Bytes that stand for the weight, buffers included."""
        factors = (p for name, p in self.named_parameters() if name != "bias")
        return sum(t.numel() * t.element_size() for t in (*factors, *self.buffers()))

    def damage(self) -> str | None:
        """What makes the stored tensors contradict each other, or None: checked after loading."""
        return None

    def structure(self) -> dict[str, Any]:
        """The arguments that rebuild an empty layer of this shape."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            **self._size(),
            "bias": self.bias is not None,
        }

    def extra_repr(self) -> str:
        described = ", ".join(f"{key}={value}" for key, value in self.structure().items())
        parameters = sum(p.numel() for p in self.parameters())
        return f"{described}, parameters={parameters}, flops={self.flops()}"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        damage = self.damage()
        if damage is not None:
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__} is damaged: {damage}")

    def _store_bias(self, bias: Tensor | None) -> None:
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def _error_of(self, weight: Tensor, gram: Tensor | None = None) -> float:
        """How far what is stored is from `weight`, relatively; with `gram`, on the outputs."""
        return relative_distance(self.compose(), high_precision(weight), gram)

    def _warn_unless_within(
        self, tol: float | None, weight: Tensor, gram: Tensor | None = None
    ) -> None:
        """Of a layer that was made to be within `tol` of a dense one: rounding may have the say."""
        if tol is None:
            return
        error = self._error_of(weight, gram)
        if error > tol:
            warn(
                f"{type(self).__name__}: tol={tol:g} not met in {weight.dtype}; the relative error "
                f"is {error:.3g}",
                ConvergenceWarning,
            )


def relative_distance(found: Tensor, exact: Tensor, gram: Tensor | None = None) -> float:
    """‖found − exact‖ / ‖exact‖ of matrices, whose squares neither overflow nor vanish."""
    power = power_of_two(exact)
    off, whole = (found - exact) / power, exact / power
    return relative(weighted_norm(off, gram), weighted_norm(whole, gram))


def weighted_norm(matrix: Tensor, gram: Tensor | None) -> Tensor:
    """‖M‖_F, or ‖M·X‖_F of the inputs X with this Gram matrix."""
    norm: Tensor = torch.linalg.matrix_norm(matrix)
    if gram is not None:
        norm = ((matrix @ gram.to(matrix)) * matrix).sum().clamp(min=0).sqrt()
    return norm


def relative(error: Tensor, size: Tensor) -> float:
    """error/size, and 0 where both are."""
    return float(error / size) if float(size) else float(error)


def composed_weight(module: nn.Module) -> Tensor:
    """The weight that a layer, dense or compressed, stands for, o × i, float64."""
    if isinstance(module, CompressedLinear):
        return module.compose()
    return high_precision(dense_weight(module))


class FactoredLinear(CompressedLinear):
    """A linear layer whose weight, of rank `rank`, is stored as factors."""

    rank: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check_rank(type(self).__name__, in_features, out_features, rank)
        self.rank = rank

    @classmethod
    @abc.abstractmethod
    def from_factors(
        cls: type[Self],
        basis: Tensor,
        projected: Tensor,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """The layer whose weight is ``basis @ projected`` (orthonormal ``o × r``, ``r × i``)."""

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """How many numbers such a layer stores for its weight: two full factors, r·(o + i)."""
        return rank * (out_features + in_features)

    @classmethod
    def from_dense(
        cls: type[Self],
        linear: nn.Module,
        rank: int | None = None,
        *,
        ratio: float | None = None,
        tol: float | None = None,
        gram: Gram | Tensor | None = None,
    ) -> Self:
        """The layer of a rank that is nearest to a dense one.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64. The
            factors are computed in float64 and stored in the layer's dtype, on its device.
        rank : int, optional
            Between 1 and min(o, i). One of `rank`, `ratio` and `tol` is given.
        ratio : float, optional
            The share of the numbers that is removed: the largest rank that stores at most
            (1 − ratio)·o·i of them.
        tol : float, optional
            The least rank with ‖(W − W')X‖_F ≤ tol·‖WX‖_F over the inputs X of `gram`; without it,
            ‖W − W'‖_F ≤ tol·‖W‖_F.
        gram : Tensor of shape (i, i) or Gram, optional
            X Xᵀ = Σ x xᵀ over the inputs x that the layer is to be good for. Without it all inputs
            count alike.

        Returns
        -------
        FactoredLinear
            A new layer in the mode of `linear`, which is not changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer, or `rank` no integer.
        ValueError
            If not one of `rank`, `ratio` and `tol` is given or it is out of range, or a weight or
            an entry of `gram` is not finite.

        Warns
        -----
        ConvergenceWarning
            `tol` is not met by the layer as it is stored: it is below the rounding of its dtype or,
            with `gram`, below 1e-7 or so, what products with a Gram matrix show.

        Notes
        -----
        One product W G Wᵀ and one symmetric eigenproblem of size min(o, i), in float64: about
        2·o·i·(o + i) + 9·min(o, i)³ flops. See :func:`fastlr.nn.compression.solve`.
        """
        from fastlr.nn.compression.gram import Gram
        from fastlr.nn.compression.solver import solve

        weight = dense_weight(linear)
        out_features, in_features = weight.shape
        seen = Gram(gram) if isinstance(gram, Tensor) else gram
        solution = solve(weight, seen)
        rank = choose_rank(
            cls.__name__,
            rank,
            ratio,
            tol,
            limit=min(out_features, in_features),
            numbers=lambda r: cls.numbers(out_features, in_features, r),
            dense=weight.numel(),
            within=lambda tol: least_rank(tol, solution.energies.sqrt()),
        )
        cut = solution.truncate(rank)
        layer = cls.in_place_of(linear, cut.basis, cut.projected)
        layer._warn_unless_within(tol, weight, None if seen is None else seen.unit)
        return layer.train(linear.training)

    @classmethod
    def in_place_of(cls: type[Self], linear: nn.Module, basis: Tensor, projected: Tensor) -> Self:
        """``from_factors`` with the bias, the dtype and the device of a dense layer."""
        weight = dense_weight(linear)
        return cls.from_factors(
            basis, projected, dense_bias(linear), dtype=weight.dtype, device=weight.device
        )

    def _size(self) -> dict[str, int]:
        return {"rank": self.rank}


def check_rank(owner: str, in_features: int, out_features: int, rank: int) -> None:
    """Raise ValueError unless 1 ≤ rank ≤ min(sizes)."""
    limit = min(in_features, out_features)
    if not 1 <= rank <= limit:
        raise ValueError(
            f"{owner}: rank must be between 1 and min(out_features, in_features) = {limit}, "
            f"got {rank}"
        )


def check_factors(
    owner: str, basis: Tensor, projected: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The two factors in float64, once their shapes are seen to fit."""
    fits = basis.ndim == 2 and projected.ndim == 2 and basis.shape[1] == projected.shape[0]
    if not fits:
        raise ValueError(
            f"{owner}: basis and projected must be o×r and r×i matrices, got shapes "
            f"{tuple(basis.shape)} and {tuple(projected.shape)}"
        )
    check_bias(owner, bias, len(basis))
    return high_precision(basis), high_precision(projected)


def check_bias(owner: str, bias: Tensor | None, out_features: int) -> None:
    """Raise ValueError unless there is no bias or one number for each output."""
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(
            f"{owner}: bias must have shape ({out_features},), got {tuple(bias.shape)}"
        )
