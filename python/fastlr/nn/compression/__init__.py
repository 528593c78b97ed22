"""Compressing language models: calibration, the solver, ranks, forms and the report."""

from fastlr.nn.compression.compensation import compensate
from fastlr.nn.compression.compensation_report import CompensationReport, CorrectionReport
from fastlr.nn.compression.engine import calibrate, compress_llm
from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.heal import HealReport
from fastlr.nn.compression.loss_model import LossPrediction
from fastlr.nn.compression.methods import Method, register_method
from fastlr.nn.compression.module_plan import CompressionPlan, compress, plan
from fastlr.nn.compression.on_disk import compress_on_disk
from fastlr.nn.compression.planned_layer import PlannedLayer
from fastlr.nn.compression.problem import Candidates, LayerGroup, LayerProblem
from fastlr.nn.compression.quantization import quantize_plus_low_rank
from fastlr.nn.compression.quantization_report import QuantizationReport, QuantizedLayerReport
from fastlr.nn.compression.ratio_sweep import Sweep, SweepPoint, sweep
from fastlr.nn.compression.report import CompressionReport, LayerReport
from fastlr.nn.compression.solver import Solution, Truncation, solve
from fastlr.nn.compression.statistics import Statistics

__all__ = [
    "Candidates",
    "CompensationReport",
    "CompressionPlan",
    "CompressionReport",
    "CorrectionReport",
    "Gram",
    "HealReport",
    "LayerGroup",
    "LayerProblem",
    "LayerReport",
    "LossPrediction",
    "Method",
    "PlannedLayer",
    "QuantizationReport",
    "QuantizedLayerReport",
    "Solution",
    "Statistics",
    "Sweep",
    "SweepPoint",
    "Truncation",
    "calibrate",
    "compensate",
    "compress",
    "compress_llm",
    "compress_on_disk",
    "plan",
    "quantize_plus_low_rank",
    "register_method",
    "solve",
    "sweep",
]
