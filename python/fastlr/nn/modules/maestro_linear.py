"""A linear layer that learns its rank: ordered factors, and a penalty that shortens them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.nn.modules.base import FactoredLinear, check_factors
from fastlr.nn.modules.dense import high_precision
from fastlr.nn.modules.low_rank_linear import LowRankLinear


class MaestroLinear(FactoredLinear):
    """A linear layer y = U (Vᵀ x) + b whose columns are ordered by training: Maestro.

    While the module is in training mode, each forward pass uses the first columns of U and V only,
    a random number of them. So each leading part learns to be the best of its rank, and what comes
    last matters least. :meth:`penalty` makes the last columns vanish, :meth:`shrink` cuts them off.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    rank : int
        r, the rank to begin with, between 1 and min(o, i).
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    U : Parameter of shape (o, r)
    V : Parameter of shape (i, r)
    bias : Parameter of shape (o,) or None
    rank : int
        That of now.
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive or the rank is out of range.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    LowRankLinear : what `to_low_rank` returns.

    Notes
    -----
    The number b of columns is uniform on 1, ..., r, one for all inputs of a forward pass, drawn
    from torch's generator of the device as dropout's masks are. In evaluation mode b = r. For
    inputs without preferred direction and targets A x the minimum of the mean squared error is the
    singular value decomposition of A, and for targets x the principal components of the inputs.

    2·r·(o + i) flops a token, also for b < r: columns are masked. Source: Horváth, Laskaridis,
    Rajput, Wang, "Maestro: uncovering low-rank structures via trainable decomposition", ICML 2024.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import MaestroLinear
    >>> layer = MaestroLinear.from_dense(torch.nn.Linear(12, 8), rank=8)
    >>> optimizer = torch.optim.Adam(layer.parameters())
    >>> x, y = torch.randn(100, 12), torch.zeros(100, 8)
    >>> loss = (layer(x) - y).square().mean() + 1e-3 * layer.penalty()
    >>> loss.backward()
    >>> optimizer.step()
    >>> rank = layer.shrink(0.5, optimizer)  # half of ‖W‖_F may go
    >>> rank < 8, layer.rank == rank, layer.to_low_rank().rank == rank
    (True, True, True)
    """

    form = "factored"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, device, dtype)
        self.U = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.V = nn.Parameter(torch.empty(in_features, rank, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw U and V, of one scale, so that U Vᵀ has the variance of an ``nn.Linear``, 1/(3i).

        The bias is zero.
        """
        bound = (3 / (self.in_features * self.rank)) ** 0.25
        nn.init.uniform_(self.U, -bound, bound)
        nn.init.uniform_(self.V, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, rank: int | None = None) -> Tensor:
        """Apply the layer; with the first `rank` columns, where that is given."""
        coefficients = F.linear(input, self.V.mT)
        if rank is not None:
            if not 1 <= rank <= self.rank:
                raise ValueError(
                    f"MaestroLinear: rank must be between 1 and {self.rank}, got {rank}"
                )
            coefficients = coefficients * self._first(rank)
        elif self.training:
            drawn = torch.randint(1, self.rank + 1, (), device=self.U.device)
            coefficients = coefficients * self._first(drawn)
        return F.linear(coefficients, self.U, self.bias)

    def _first(self, count: int | Tensor) -> Tensor:
        return torch.arange(self.rank, device=self.U.device) < count

    def penalty(self) -> Tensor:
        """Σ_b ‖U[:, b:]‖_F + ‖V[:, b:]‖_F over b = 0, ..., r − 1: hierarchical group lasso.

        To be multiplied by a weight and added to the loss. A later column is in more of the groups,
        so that the last ones vanish first. Its gradient is finite at columns of zeros.
        """
        return _tail_norms(self.U).sum() + _tail_norms(self.V).sum()

    def shrink(self, threshold: float, optimizer: torch.optim.Optimizer | None = None) -> int:
        """Cut off the last columns that matter little; the rank that is left.

        Parameters
        ----------
        threshold : float
            The least rank k, 1 or more, with ``‖U[:, k:] V[:, k:]ᵀ‖_F ≤ threshold·‖U Vᵀ‖_F``
            is kept; at least 0 and below 1. With 0 only columns of zeros are cut.
        optimizer : torch.optim.Optimizer, optional
            That of the layer. What it keeps for U and V, such as means of gradients, is cut with
            them. Without it, a new one has to be made if the rank has changed.

        Raises
        ------
        ValueError
            If `threshold` is out of range.

        Notes
        -----
        U and V remain the same parameters, with shorter data; their ``grad`` is cut, too. The error
        is from Gram matrices in float64, which resolve 1e-8 of ‖U Vᵀ‖_F. 2·r²·(o + i) flops.
        """
        if not 0 <= threshold < 1:
            raise ValueError(
                f"MaestroLinear: threshold must be at least 0 and below 1, got {threshold:g}"
            )
        errors = _tail_errors(high_precision(self.U), high_precision(self.V))
        keep = max(1, int((errors > threshold * errors[0]).sum()))
        if keep < self.rank:
            for factor in (self.U, self.V):
                _cut(factor, keep, optimizer)
            self.rank = keep
        return self.rank

    def compose(self) -> Tensor:
        return high_precision(self.U) @ high_precision(self.V).mT

    def to_low_rank(self) -> LowRankLinear:
        """The :class:`LowRankLinear` with B = U and A = Vᵀ, in this layer's dtype and mode."""
        layer = LowRankLinear.from_factors(
            self.U.detach(),
            self.V.detach().mT,
            None if self.bias is None else self.bias.detach(),
            dtype=self.U.dtype,
            device=self.U.device,
        )
        return layer.train(self.training)

    @classmethod
    def from_factors(
        cls,
        basis: Tensor,
        projected: Tensor,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> MaestroLinear:
        """The layer whose weight is ``basis @ projected`` (o × r, r × i), in this order of columns.

        Columns of U and V have the same lengths.

        Raises
        ------
        ValueError
            If the shapes do not fit together.
        """
        basis, projected = check_factors(cls.__name__, basis, projected, bias)
        (out_features, rank), in_features = basis.shape, projected.shape[1]
        device = device if device is not None else basis.device
        layer = cls.unfilled(
            in_features, out_features, rank, bias is not None, device=device, dtype=dtype
        )
        left = torch.linalg.vector_norm(basis, dim=0)
        right = torch.linalg.vector_norm(projected, dim=1)
        # Where one of the columns is zero, so is the product.
        used = (left > 0) & (right > 0)
        ratio = torch.where(used, right, 1) / torch.where(used, left, 1)
        with torch.no_grad():
            layer.U.copy_(basis * ratio.sqrt())
            layer.V.copy_(projected.mT / ratio.sqrt())
            layer._store_bias(bias)
        return layer


def _tail_norms(F: Tensor) -> Tensor:
    """‖F[:, b:]‖_F for every b, with a gradient of zero where that is zero."""
    squares = F.square().sum(0).flip(0).cumsum(0)
    return torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)


def _tail_errors(U: Tensor, V: Tensor) -> Tensor:
    """‖U[:, k:] V[:, k:]ᵀ‖_F for k = 0, ..., r − 1, from the products of columns."""
    products = (U.mT @ U) * (V.mT @ V)
    trailing = products.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    return trailing.clamp(min=0).sqrt()


def _cut(factor: nn.Parameter, rank: int, optimizer: torch.optim.Optimizer | None) -> None:
    """Keep the first columns of a parameter, and of all that has its shape beside it."""
    shape, grad = factor.shape, factor.grad
    state = optimizer.state.get(factor, {}) if optimizer is not None else {}
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == shape:
            state[name] = value[:, :rank].clone()
    factor.grad = None
    factor.data = factor.data[:, :rank].clone()
    if grad is not None:
        factor.grad = grad[:, :rank].clone()
