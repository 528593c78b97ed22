"""Layers that store a linear map in fewer numbers, or bound it."""

from fastlr.nn.modules.borrowed_linear import BorrowedLinear
from fastlr.nn.modules.corrected_linear import CorrectedLinear
from fastlr.nn.modules.cp_conv import CPConv2d
from fastlr.nn.modules.cur_linear import CURLinear
from fastlr.nn.modules.dictionary_linear import DictionaryLinear
from fastlr.nn.modules.experts import RoutedExperts
from fastlr.nn.modules.householder_projector import HouseholderProjector
from fastlr.nn.modules.interpolative_linear import InterpolativeLinear
from fastlr.nn.modules.kronecker_linear import KroneckerLinear
from fastlr.nn.modules.lipschitz_linear import LipschitzLinear
from fastlr.nn.modules.lipschitz_residual import LipschitzResidual
from fastlr.nn.modules.low_rank_bilinear import LowRankBilinear
from fastlr.nn.modules.low_rank_conv import LowRankConv1d, LowRankConv2d, LowRankConv3d
from fastlr.nn.modules.low_rank_embedding import LowRankEmbedding
from fastlr.nn.modules.low_rank_linear import LowRankLinear
from fastlr.nn.modules.low_rank_plus_diagonal import LowRankPlusDiagonal
from fastlr.nn.modules.maestro_linear import MaestroLinear
from fastlr.nn.modules.monarch_linear import MonarchLinear
from fastlr.nn.modules.quantized_linear import QuantizedLinear
from fastlr.nn.modules.shared_basis_linear import SharedBasisLinear
from fastlr.nn.modules.sparse_linear import SparseLinear
from fastlr.nn.modules.subset_linear import SubsetLinear

__all__ = [
    "BorrowedLinear",
    "CPConv2d",
    "CURLinear",
    "CorrectedLinear",
    "DictionaryLinear",
    "HouseholderProjector",
    "InterpolativeLinear",
    "KroneckerLinear",
    "LipschitzLinear",
    "LipschitzResidual",
    "LowRankBilinear",
    "LowRankConv1d",
    "LowRankConv2d",
    "LowRankConv3d",
    "LowRankEmbedding",
    "LowRankLinear",
    "LowRankPlusDiagonal",
    "MaestroLinear",
    "MonarchLinear",
    "QuantizedLinear",
    "RoutedExperts",
    "SharedBasisLinear",
    "SparseLinear",
    "SubsetLinear",
]
