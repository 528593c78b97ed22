"""Means and covariances of vectors, and the directions in which they vary most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlr.nn.modules.dense import high_precision

_CHUNK = 4096
# Directions without any energy are ranked by the weight, as if inputs had this much white noise.
_NOISE = 2.0**-40


@dataclass
class Moments:
    """Sums over vectors x in groups, about their first mean, so that no variance cancels.

    Attributes
    ----------
    shift : Tensor of shape (g, d)
    count : int
    total : Tensor of shape (g, d)
        Σ (x − shift).
    products : Tensor of shape (g, d, d)
        Σ (x − shift)(x − shift)ᵀ.
    """

    shift: Tensor
    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def about(cls, rows: Tensor) -> Moments:
        """Empty sums about the mean of n × g × d vectors."""
        shift = rows.mean(0, dtype=torch.float64)
        zeros = torch.zeros_like(shift)
        return cls(shift, 0, zeros, zeros[..., None].repeat(1, 1, shift.shape[-1]))

    def add(self, rows: Tensor) -> None:
        """n·g·d² multiply-adds in float64."""
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            centred = (high_precision(part) - self.shift).transpose(0, 1)
            self.count += len(part)
            self.total += centred.sum(1)
            self.products += centred.mT @ centred

    @property
    def mean(self) -> Tensor:
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Its sum over the vectors, not divided by their number."""
        outer = self.total[..., :, None] * self.total[..., None, :] / self.count
        return self.products - outer


def ranked_directions(covariance: Tensor, weight: Tensor) -> Tensor:
    """Eigenvectors in groups, the most energy first; without energy they go by the weight."""
    noise = weight @ weight.mT
    scale = covariance.diagonal(0, 1, 2).sum() / noise.diagonal(0, 1, 2).sum()
    ranked = covariance + _NOISE * scale.nan_to_num(1, 1, 1) * noise
    vectors: Tensor = torch.linalg.eigh(ranked).eigenvectors
    return vectors.flip(-1)
