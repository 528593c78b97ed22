"""Layers that store a linear map of low rank."""

from fastlr.nn.modules.interpolative_linear import InterpolativeLinear
from fastlr.nn.modules.low_rank_linear import LowRankLinear

__all__ = ["InterpolativeLinear", "LowRankLinear"]
