"""What corrections of low rank did for the layers of a model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fastlr.nn.compression.layer_reports import LayerReports
from fastlr.nn.text_table import aligned


@dataclass(frozen=True)
class CorrectionReport:
    """What the correction of one layer did.

    Attributes
    ----------
    name : str
    shape : tuple of int
        (out_features, in_features).
    base : str
        The class of the layer that is corrected.
    rank : int
        0 where the layer was left as it was.
    error_before, error_after : float
        ‖(W − Ŵ)X‖² / ‖WX‖² of the layer Ŵ as it was, and as it is now, with the correction as it is
        stored. X are the inputs of the calibration; without them, ‖W − Ŵ‖² / ‖W‖².
    predicted_error : float
        `error_after` before anything is rounded.
    note : str
        Empty, or what was out of the ordinary.

    Examples
    --------
    >>> from fastlr.nn.compression import CorrectionReport
    >>> CorrectionReport("up", (64, 32), "Linear4bit", 4, 0.01, 0.004, 0.004).numbers
    384
    """

    name: str
    shape: tuple[int, int]
    base: str
    rank: int
    error_before: float
    error_after: float
    predicted_error: float
    note: str = ""

    @property
    def numbers(self) -> int:
        """What the correction stores: r·(o + i)."""
        return self.rank * sum(self.shape)


@dataclass(frozen=True)
class CompensationReport(LayerReports[CorrectionReport]):
    """What :func:`fastlr.nn.compensate` did; the model has it as ``fastlr_report``.

    Attributes
    ----------
    layers : list of CorrectionReport
    calibration_tokens : int
    seconds : float
        Wall time of the whole call.

    Examples
    --------
    >>> from fastlr.nn import CompensationReport
    >>> from fastlr.nn.compression import CorrectionReport
    >>> layers = [CorrectionReport("up", (64, 32), "Linear4bit", 4, 0.01, 0.004, 0.004),
    ...           CorrectionReport("down", (32, 64), "Linear4bit", 0, 0.002, 0.002, 0.002)]
    >>> report = CompensationReport(layers, calibration_tokens=512, seconds=1.0)
    >>> report.numbers, report.ratio
    (384, 0.09375)
    >>> round(report.mean_error_before, 6), round(report.mean_error_after, 6)
    (0.006, 0.003)
    """

    layers: list[CorrectionReport]
    calibration_tokens: int
    seconds: float

    @property
    def numbers(self) -> int:
        """What all corrections store."""
        return sum(layer.numbers for layer in self.layers)

    @property
    def ratio(self) -> float:
        """`numbers` as a share of the entries of these layers' weights."""
        return self.numbers / sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def mean_error_before(self) -> float:
        """The mean over the layers."""
        return self._mean(lambda layer: layer.error_before)

    @property
    def mean_error_after(self) -> float:
        """The mean over the layers."""
        return self._mean(lambda layer: layer.error_after)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return {
            "numbers": self.numbers,
            "ratio": self.ratio,
            "mean_error_before": self.mean_error_before,
            "mean_error_after": self.mean_error_after,
            "calibration_tokens": self.calibration_tokens,
            "seconds": self.seconds,
            "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers],
        }

    def __str__(self) -> str:
        rows = [("layer", "shape", "base", "rank", "before", "after", "note")]
        for layer in self.layers:
            errors = f"{layer.error_before:.3e}", f"{layer.error_after:.3e}"
            shape = "×".join(map(str, layer.shape))
            rows.append((layer.name, shape, layer.base, str(layer.rank), *errors, layer.note))
        return "\n".join(
            [
                f"fastlr: corrections of {self.numbers:,} numbers ({self.ratio:.2%} of the dense "
                f"weights), {self.calibration_tokens} calibration tokens, {self.seconds:.1f} s",
                f"mean error {self.mean_error_before:.3e} → {self.mean_error_after:.3e}",
                "",
                *(line.rstrip() for line in aligned(rows)),
            ]
        )
