"""Compressed layers and the compression of language models, built on ``fastlr.linalg``."""

from fastlr.nn import parametrize as parametrize
from fastlr.nn.compression import CompressionReport, compress, compress_llm, plan, sweep
from fastlr.nn.diagnostics import MatrixSpectrum, SpectraReport, spectra
from fastlr.nn.evaluate import perplexity
from fastlr.nn.export import export_dense
from fastlr.nn.hf import load
from fastlr.nn.modules import (
    BorrowedLinear,
    CPConv2d,
    CURLinear,
    DictionaryLinear,
    HouseholderProjector,
    InterpolativeLinear,
    KroneckerLinear,
    LipschitzLinear,
    LipschitzResidual,
    LowRankBilinear,
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankEmbedding,
    LowRankLinear,
    LowRankPlusDiagonal,
    MaestroLinear,
    MonarchLinear,
    RoutedExperts,
    SharedBasisLinear,
    SparseLinear,
    SubsetLinear,
)

__all__ = [
    "BorrowedLinear",
    "CPConv2d",
    "CURLinear",
    "CompressionReport",
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
    "MatrixSpectrum",
    "MonarchLinear",
    "RoutedExperts",
    "SharedBasisLinear",
    "SparseLinear",
    "SpectraReport",
    "SubsetLinear",
    "compress",
    "compress_llm",
    "export_dense",
    "load",
    "perplexity",
    "plan",
    "spectra",
    "sweep",
]
