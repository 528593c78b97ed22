"""What became of the layers of a model that were quantized."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fastlr.nn.compression.layer_reports import LayerReports
from fastlr.nn.text_table import aligned


@dataclass(frozen=True)
class QuantizedLayerReport:
    """One layer, W ≈ Q + B A.

    Attributes
    ----------
    name : str
    shape : tuple of int
        (out_features, in_features).
    quantization : str
    block_size : int
        Of Q.
    rank : int
        Of B A.
    bits : float
        What is stored for each entry of W, scales, B and A included.
    error_quantized : float
        ‖(W − Ŵ)X‖² / ‖WX‖² of the weight that is only rounded. X are the inputs of the calibration;
        without them, ‖W − Ŵ‖² / ‖W‖².
    error_compensated : float
        The same of the rounded weight with the best correction of this rank.
    error : float
        The same of the layer as it is, B and A as they are stored.
    rounds : int
        How many pairs of Q and B A were tried.
    note : str
        Empty, or what was out of the ordinary.

    Examples
    --------
    >>> from fastlr.nn.compression import QuantizedLayerReport
    >>> QuantizedLayerReport("up", (64, 32), "nf4", 64, 4, 7.5, 0.01, 0.004, 0.003, 6).error
    0.003
    """

    name: str
    shape: tuple[int, int]
    quantization: str
    block_size: int
    rank: int
    bits: float
    error_quantized: float
    error_compensated: float
    error: float
    rounds: int
    note: str = ""


@dataclass(frozen=True)
class QuantizationReport(LayerReports[QuantizedLayerReport]):
    """What :func:`fastlr.nn.quantize_plus_low_rank` did; the model has it as ``fastlr_report``.

    Attributes
    ----------
    layers : list of QuantizedLayerReport
    calibration_tokens : int
    seconds : float
        Wall time of the whole call.

    Examples
    --------
    >>> from fastlr.nn import QuantizationReport
    >>> from fastlr.nn.compression import QuantizedLayerReport
    >>> layers = [QuantizedLayerReport("up", (64, 32), "nf4", 64, 4, 7.5, 0.01, 0.004, 0.003, 6),
    ...           QuantizedLayerReport("down", (32, 64), "int8", 64, 4, 11.5, 6e-4, 4e-4, 4e-4, 5)]
    >>> report = QuantizationReport(layers, calibration_tokens=512, seconds=1.0)
    >>> report.bits, round(report.mean_error, 6)
    (9.5, 0.0017)
    """

    layers: list[QuantizedLayerReport]
    calibration_tokens: int
    seconds: float

    @property
    def bits(self) -> float:
        """What is stored for each entry of all these weights, scales, B and A included."""
        sizes = [math.prod(layer.shape) for layer in self.layers]
        stored = (layer.bits * size for layer, size in zip(self.layers, sizes, strict=True))
        return math.fsum(stored) / sum(sizes)

    @property
    def mean_error_quantized(self) -> float:
        """The mean over the layers."""
        return self._mean(lambda layer: layer.error_quantized)

    @property
    def mean_error_compensated(self) -> float:
        """The mean over the layers."""
        return self._mean(lambda layer: layer.error_compensated)

    @property
    def mean_error(self) -> float:
        """The mean over the layers."""
        return self._mean(lambda layer: layer.error)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return {
            "bits": self.bits,
            "mean_error_quantized": self.mean_error_quantized,
            "mean_error_compensated": self.mean_error_compensated,
            "mean_error": self.mean_error,
            "calibration_tokens": self.calibration_tokens,
            "seconds": self.seconds,
            "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers],
        }

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "shape", "stored as", "rank", "bits", "rounded", "corrected", "error")
        ]
        for layer in self.layers:
            errors = layer.error_quantized, layer.error_compensated, layer.error
            rows.append(
                (
                    layer.name,
                    "×".join(map(str, layer.shape)),
                    f"{layer.quantization}/{layer.block_size}",
                    str(layer.rank),
                    f"{layer.bits:.2f}",
                    *(f"{error:.3e}" for error in errors),
                )
            )
        notes = [f"{layer.name}: {layer.note}" for layer in self.layers if layer.note]
        return "\n".join(
            [
                f"fastlr: {self.bits:.3f} bits an entry, corrections included, "
                f"{self.calibration_tokens} calibration tokens, {self.seconds:.1f} s",
                f"mean error {self.mean_error_quantized:.3e} rounded, "
                f"{self.mean_error_compensated:.3e} then corrected, {self.mean_error:.3e} together",
                "",
                *(line.rstrip() for line in aligned(rows)),
                *notes,
            ]
        )
