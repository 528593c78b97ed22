"""Compressed layers and the compression of language models, built on ``fastlr.linalg``."""

from fastlr.nn import parametrize as parametrize
from fastlr.nn.compression import (
    CompensationReport,
    CompressionReport,
    compensate,
    compress,
    compress_llm,
    compress_on_disk,
    plan,
    sweep,
)
from fastlr.nn.diagnostics import MatrixSpectrum, SpectraReport, spectra
from fastlr.nn.evaluate import perplexity
from fastlr.nn.export import export_dense
from fastlr.nn.hf import load
from fastlr.nn.lora import lora_config
from fastlr.nn.merging import merge
from fastlr.nn.modules import (
    BorrowedLinear,
    CorrectedLinear,
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
from fastlr.nn.peft_files import to_peft

__all__ = [
    "BorrowedLinear",
    "CPConv2d",
    "CURLinear",
    "CompensationReport",
    "CompressionReport",
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
    "MatrixSpectrum",
    "MonarchLinear",
    "RoutedExperts",
    "SharedBasisLinear",
    "SparseLinear",
    "SpectraReport",
    "SubsetLinear",
    "compensate",
    "compress",
    "compress_llm",
    "compress_on_disk",
    "export_dense",
    "load",
    "lora_config",
    "merge",
    "perplexity",
    "plan",
    "spectra",
    "sweep",
    "to_peft",
]
