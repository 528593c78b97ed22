"""Compressing language models: calibration, the solver, ranks, forms and the report."""

from fastlr.nn.compress.engine import calibrate, compress_llm
from fastlr.nn.compress.gram import Gram
from fastlr.nn.compress.report import CompressionReport, LayerReport
from fastlr.nn.compress.solver import Solution, Truncation, solve
from fastlr.nn.compress.statistics import Statistics

__all__ = [
    "CompressionReport",
    "Gram",
    "LayerReport",
    "Solution",
    "Statistics",
    "Truncation",
    "calibrate",
    "compress_llm",
    "solve",
]
