"""An embedding table as the product of two thin matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.nn.modules.base import check_rank
from fastlr.nn.modules.dense import FLOAT_DTYPES, high_precision
from fastlr.nn.modules.low_rank_linear import LowRankLinear
from fastlr.nn.modules.masked_linear import check_finite
from fastlr.nn.modules.rank_choice import choose_rank, least_rank


class LowRankEmbedding(nn.Module):
    """An embedding of low rank: row t of the table is A_t·B.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        n and d, the rows of the table and their length.
    rank : int
        r, between 1 and min(n, d).
    padding_idx : int, optional
        A row that is zero at first and never gets a gradient; negative ones count from the end.
    scale_grad_by_freq : bool, default False
        Divide the gradient of a row of A by how often it occurs in the batch.
    sparse : bool, default False
        The gradient of A is a sparse tensor, of the rows that occur.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    A : Parameter of shape (n, r)
        What is looked up.
    B : Parameter of shape (r, d)
        What it is multiplied by; orthonormal rows after `from_dense`.
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense table.

    Raises
    ------
    ValueError
        If a size is not positive, the rank is out of range or there is no row `padding_idx`.
    TypeError
        If the dtype is not a real float type.

    Notes
    -----
    r·(n + d) numbers against n·d, and 2·r·d flops a token.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LowRankEmbedding
    >>> dense = torch.nn.Embedding(1000, 32, padding_idx=0)
    >>> layer = LowRankEmbedding.from_dense(dense, rank=8)
    >>> layer
    LowRankEmbedding(1000, 32, rank=8, padding_idx=0, parameters=8256, flops_per_token=512)
    >>> layer(torch.tensor([[0, 3, 999]])).shape
    torch.Size([1, 3, 32])
    >>> bool(layer(torch.tensor(0)).any())
    False
    """

    weight: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        *,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if value < 1:
                raise ValueError(f"{owner}: {name} must be at least 1, got {value}")
        if dtype is not None and dtype not in FLOAT_DTYPES:
            raise TypeError(f"{owner}: dtype must be a real float type, got {dtype}")
        check_rank(owner, embedding_dim, num_embeddings, rank)
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(
                    f"{owner}: padding_idx must be a row of {num_embeddings}, got {padding_idx}"
                )
            padding_idx %= num_embeddings
        self.num_embeddings, self.embedding_dim, self.rank = num_embeddings, embedding_dim, rank
        self.padding_idx = padding_idx
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        self.A = nn.Parameter(torch.empty(num_embeddings, rank, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(rank, embedding_dim, device=device, dtype=dtype))
        self.register_buffer("weight", torch.empty(0, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A and B so that the table has the variance of a fresh ``nn.Embedding``, 1."""
        nn.init.normal_(self.A)
        nn.init.normal_(self.B, std=1 / math.sqrt(self.rank))
        if self.padding_idx is not None:
            with torch.no_grad():
                self.A[self.padding_idx].zero_()

    def forward(self, input: Tensor) -> Tensor:
        """The rows of the table at integers of any shape, ``… × embedding_dim``."""
        coefficients = F.embedding(
            input,
            self.A,
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
        )
        return coefficients @ self.B

    def projection(self, bias: bool = False) -> LowRankLinear:
        """The output projection that is tied to this table: logits h·(A·B)ᵀ for h of length d.

        Its parameters are the very ones of this layer, so that both are trained together and a
        model that has both counts them once.
        """
        layer = LowRankLinear(
            self.embedding_dim, self.num_embeddings, self.rank, bias, "meta", self.A.dtype
        )
        if layer.bias is not None:
            layer.bias = nn.Parameter(self.A.new_zeros(self.num_embeddings))
        layer.weight = self.weight.new_empty(0)
        layer.A, layer.B = self.B, self.A
        return layer.train(self.training)

    def compose(self) -> Tensor:
        """The table, n × d, in float64."""
        return high_precision(self.A) @ high_precision(self.B)

    def to_dense(self) -> nn.Embedding:
        """The ``torch.nn.Embedding`` with the same table, composed in float64 and rounded once."""
        dense = nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
            device=self.A.device,
            dtype=self.A.dtype,
        )
        with torch.no_grad():
            dense.weight.copy_(self.compose())
        return dense.train(self.training)

    @classmethod
    def from_dense(
        cls,
        embedding: nn.Embedding,
        rank: int | None = None,
        *,
        ratio: float | None = None,
        tol: float | None = None,
        counts: Tensor | None = None,
    ) -> LowRankEmbedding:
        """The layer of a rank that is nearest to a dense table.

        Parameters
        ----------
        embedding : torch.nn.Embedding
            The table E, n × d, in float16, bfloat16, float32 or float64.
        rank : int, optional
            Between 1 and min(n, d). One of `rank`, `ratio` and `tol` is given.
        ratio : float, optional
            The share of the numbers that is removed, between 0 and 1: the largest rank with
            r·(n + d) ≤ (1 − ratio)·n·d.
        tol : float, optional
            The least rank with ‖C(E − A·B)‖_F ≤ tol·‖C·E‖_F, before A and B are rounded to the
            dtype.
        counts : Tensor of shape (n,), optional
            How often each token occurs: C = diag(√counts), so that the mean error over the text is
            least. All rows count alike if None.

        Returns
        -------
        LowRankEmbedding
            A new layer, in the dtype, on the device and in the mode of `embedding`.

        Raises
        ------
        TypeError
            If `embedding` is no ``nn.Embedding`` of real floats.
        ValueError
            If not one of `rank`, `ratio` and `tol` is given, one is out of range, the table has
            `max_norm`, which a product cannot keep, or an entry of the table or of `counts` is not
            finite, or a count negative.

        Notes
        -----
        B is the leading right singular vectors of C·E, found from the factor R of its QR
        factorization in float64, and A = E·Bᵀ: each row, also one that does not occur, is the
        nearest in the space of B. 2·n·d² flops and a copy of the table in float64.
        """
        owner = cls.__name__
        table = _table(owner, embedding)
        n, d = table.shape
        wide = weighted = high_precision(table)
        if counts is not None:
            weighted = wide * _checked_counts(owner, counts, n).to(wide).sqrt()[:, None]
        _, S, Vh = torch.linalg.svd(torch.linalg.qr(weighted, mode="r").R, full_matrices=False)
        chosen = choose_rank(
            owner,
            rank,
            ratio,
            tol,
            limit=len(S),
            numbers=lambda r: r * (n + d),
            dense=n * d,
            within=lambda tol: least_rank(tol, S),
        )
        layer = cls(
            n,
            d,
            chosen,
            embedding.padding_idx,
            scale_grad_by_freq=embedding.scale_grad_by_freq,
            sparse=embedding.sparse,
            device="meta",
            dtype=table.dtype,
        ).to_empty(device=table.device)
        with torch.no_grad():
            layer.B.copy_(Vh[:chosen])
            layer.A.copy_(wide @ Vh[:chosen].mT)
        return layer.train(embedding.training)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}{padding}, "
            f"parameters={sum(p.numel() for p in self.parameters())}, "
            f"flops_per_token={2 * self.rank * self.embedding_dim}"
        )


def _table(owner: str, embedding: Any) -> Tensor:
    if not isinstance(embedding, nn.Embedding):
        raise TypeError(
            f"{owner}: embedding must be a torch.nn.Embedding, got {type(embedding).__name__}"
        )
    if embedding.max_norm is not None:
        raise ValueError(
            f"{owner}: embedding must have no max_norm, which rescales rows when they are looked "
            f"up, got {embedding.max_norm}"
        )
    table = embedding.weight.detach()
    if table.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{owner}: embedding must hold real floats, got {table.dtype}")
    check_finite(owner, "embedding", table)
    return table


def _checked_counts(owner: str, counts: Tensor, rows: int) -> Tensor:
    if counts.shape != (rows,):
        raise ValueError(
            f"{owner}: counts must have shape ({rows},), got shape {tuple(counts.shape)}"
        )
    wide = counts.to(torch.float64)
    wrong = ~torch.isfinite(wide) | (wide < 0)
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        raise ValueError(
            f"{owner}: counts must be finite and not negative, got {wide[index].item()} at index "
            f"{index}"
        )
    if not bool(wide.any()):
        raise ValueError(f"{owner}: counts must not all be zero")
    return wide
