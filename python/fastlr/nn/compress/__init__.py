"""Compressing language models: calibration, the solver, ranks, forms and the report."""

from fastlr.nn.compress.engine import calibrate, compress_llm
from fastlr.nn.compress.gram import Gram
from fastlr.nn.compress.heal import HealReport
from fastlr.nn.compress.loss_model import LossPrediction
from fastlr.nn.compress.methods import Method, register_method
from fastlr.nn.compress.problem import Candidates, LayerGroup, LayerProblem
from fastlr.nn.compress.report import CompressionReport, LayerReport
from fastlr.nn.compress.solver import Solution, Truncation, solve
from fastlr.nn.compress.statistics import Statistics

__all__ = [
    "Candidates",
    "CompressionReport",
    "Gram",
    "HealReport",
    "LayerGroup",
    "LayerProblem",
    "LayerReport",
    "LossPrediction",
    "Method",
    "Solution",
    "Statistics",
    "Truncation",
    "calibrate",
    "compress_llm",
    "register_method",
    "solve",
]
