"""What the singular values of a model's weights, and its hidden states, say about it."""

from fastlr.nn.diagnostics.report import MatrixSpectrum, SpectraReport
from fastlr.nn.diagnostics.spectra import spectra

__all__ = ["MatrixSpectrum", "SpectraReport", "spectra"]
