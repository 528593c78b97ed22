"""What a compression did, layer by layer and in all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from fastlr.nn.compression.heal import HealReport
from fastlr.nn.compression.layer_reports import LayerReports
from fastlr.nn.compression.loss_model import LossPrediction
from fastlr.nn.compression.report_page import page
from fastlr.nn.modules.base import CompressedLinear

LEFT_DENSE = "left dense"
NEVER_CALLED = "its input never occurred in the calibration: compressed by its weight alone"


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes
    ----------
    name : str
    shape : tuple of int
        (out_features, in_features); that of the weight of other layers than linear ones.
    rank : int, pair of int or None
        min(shape) for a layer that a low-rank method of `compress_llm` left dense; None for other
        methods. A pair, (output, input), of a convolution's Tucker split.
    form : str
        "interpolative", "factored", "shared_basis", "sparse", "dictionary", "structured", "tucker",
        "channel", "spatial", "embedding", "bilinear" or "dense".
    side : str or None
        Of an interpolative layer, "rows" or "columns".
    parameters_before, parameters_after : int
        Numbers that stand for the weight; a bias is never compressed nor counted.
    bytes_before, bytes_after : int
        The same in bytes, the order of an interpolative layer included.
    predicted_error : float or None
        The squared error that the method foresaw, relative to that of a weight of zeros, both in
        its own norm: ‖(W − W')X‖² / ‖WX‖² for "svd_llm".
    output_error : float or None
        ‖(W − W')X‖² / ‖WX‖² on the calibration inputs, with the weights as they are stored; from
        :func:`fastlr.nn.compress`, ‖y − y'‖² of the outputs, biases included, relative to that from
        their mean (from zero, where the layer goes by its weight). None where the inputs are not
        known. Of a layer that has other inputs or outputs than the dense
        one, W' is what it stands for between those.
    weight_error : float
        ‖W − W'‖² / ‖W‖² with the weights as they are stored.
    note : str
        Empty, or what was out of the ordinary.
    spectrum : list of float
        The share of each direction in the squared norm, by decreasing share; empty where the method
        is no low-rank one.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compress_llm
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4))
    >>> report = compress_llm(model, 0.5, method="svd", progress=False).fastlr_report
    >>> layer = report.layer("model.layers.0.mlp.up_proj")
    >>> layer.shape, layer.rank, layer.parameters_before, layer.parameters_after
    ((64, 32), 12, 2048, 1008)
    """

    name: str
    shape: tuple[int, ...]
    rank: int | tuple[int, ...] | None
    form: str
    side: str | None
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    predicted_error: float | None
    output_error: float | None
    weight_error: float
    note: str = ""
    spectrum: list[float] = field(default_factory=list, repr=False)

    @property
    def measured_error(self) -> float:
        """The output error where the inputs are known, else the weight error."""
        return self.weight_error if self.output_error is None else self.output_error


@dataclass(frozen=True)
class ModelSize:
    """Parameters, and bytes of parameters and saved buffers; a tied tensor counts once.

    What a compressed layer needs beside its parameters (the mask of a sparse one) counts in numbers
    of its dtype.
    """

    parameters: int
    bytes: int

    @classmethod
    def of(cls, model: nn.Module) -> ModelSize:
        """Count `model`."""
        parameters = {id(p): p for p in model.parameters()}
        tensors = {id(t): t for t in model.state_dict(keep_vars=True).values()} | parameters
        layers = (m for m in model.modules() if isinstance(m, CompressedLinear))
        beside = sum(layer.numbers_beside() for layer in layers)
        return cls(
            sum(p.numel() for p in parameters.values()) + beside,
            sum(t.numel() * t.element_size() for t in tensors.values()),
        )


@dataclass(frozen=True)
class CompressionReport(LayerReports[LayerReport]):
    """What :func:`fastlr.nn.compress_llm` did; the model has it as ``fastlr_report``.

    Attributes
    ----------
    method, form, allocation : str
    ratio : float
        The share of parameters that was asked to be removed from the compressed linear layers.
    layers : list of LayerReport
    model_before, model_after : ModelSize
        Of the whole model.
    calibration_tokens : int
        0 where nothing was calibrated. In `calibration_unit`: "tokens", or "batches" of
        :func:`fastlr.nn.compress`.
    seconds : dict
        Wall time: ``calibration`` (making or reading the tokens), ``statistics`` (passes through
        the model and Gram matrices), ``measuring`` (of a few layers' effect on the loss),
        ``factorization``, ``total``.
    predictions : list of LossPrediction
        What compressing single layers was predicted to do to the loss, and what it did: of the
        layers that were measured for the allocation "loss".
    heal : HealReport or None
        What the distillation did, where there was one.

    Examples
    --------
    >>> from fastlr.nn import CompressionReport
    >>> from fastlr.nn.compression.report import LayerReport, ModelSize
    >>> layer = LayerReport("q", (8, 8), 4, "interpolative", "rows", 64, 48, 256, 192,
    ...                     0.1, 0.1, 0.2)
    >>> report = CompressionReport("svd_llm", "interpolative", "uniform", 0.25, [layer],
    ...                            ModelSize(100, 400), ModelSize(84, 336), 512, {"total": 1.0})
    >>> report.ratio_achieved, report.parameters_before, report.parameters_after
    (0.25, 64, 48)
    >>> report.to_dict()["layers"][0]["rank"], report.to_html()[:15]
    (4, '<!DOCTYPE html>')
    """

    method: str
    form: str
    allocation: str
    ratio: float
    layers: list[LayerReport]
    model_before: ModelSize
    model_after: ModelSize
    calibration_tokens: int
    seconds: dict[str, float]
    predictions: list[LossPrediction] = field(default_factory=list)
    heal: HealReport | None = None
    calibration_unit: str = "tokens"

    @property
    def parameters_before(self) -> int:
        """Of the weights of all reported layers."""
        return sum(layer.parameters_before for layer in self.layers)

    @property
    def parameters_after(self) -> int:
        """Of the weights of all reported layers."""
        return sum(layer.parameters_after for layer in self.layers)

    @property
    def ratio_achieved(self) -> float:
        """The share of the layers' parameters that is gone."""
        return 1 - self.parameters_after / self.parameters_before

    @property
    def mean_output_error(self) -> float | None:
        """The mean of the layers' relative output errors; None where none is known."""
        known = [layer.output_error for layer in self.layers if layer.output_error is not None]
        return math.fsum(known) / len(known) if known else None

    def to_dict(self, *, spectra: bool = False) -> dict[str, Any]:
        """Plain Python values, for JSON; with `spectra` the layers' spectra too."""
        layers = []
        for layer in self.layers:
            fields = {**asdict(layer), "shape": list(layer.shape)}
            if not spectra:
                del fields["spectrum"]
            layers.append(fields)
        return {
            "method": self.method,
            "form": self.form,
            "allocation": self.allocation,
            "ratio": self.ratio,
            "ratio_achieved": self.ratio_achieved,
            "calibration_tokens": self.calibration_tokens,
            "parameters": {"before": self.parameters_before, "after": self.parameters_after},
            "model": {"before": asdict(self.model_before), "after": asdict(self.model_after)},
            "mean_output_error": self.mean_output_error,
            "seconds": dict(self.seconds),
            "predictions": [asdict(prediction) for prediction in self.predictions],
            "heal": asdict(self.heal) if self.heal else None,
            "layers": layers,
        }

    def to_json(self, *, spectra: bool = False) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(spectra=spectra), indent=2)

    def to_html(self) -> str:
        """One page with sizes and errors of all layers, that needs nothing else."""
        return page(self)

    def __str__(self) -> str:
        before, after = self.model_before, self.model_after
        lines = [
            f"fastlr: {self.method}, {self.form}, {self.allocation} ranks, "
            f"{self.calibration_tokens} calibration {self.calibration_unit}, "
            f"{self.seconds['total']:.1f} s",
            f"these layers   {self.parameters_before:>15,} → {self.parameters_after:>15,} "
            f"parameters (−{self.ratio_achieved:.1%}, asked {self.ratio:.1%})",
            f"whole model    {before.parameters:>15,} → {after.parameters:>15,} "
            f"parameters (−{1 - after.parameters / before.parameters:.1%})",
            f"               {before.bytes:>15,} → {after.bytes:>15,} "
            f"bytes      (−{1 - after.bytes / before.bytes:.1%})",
            "",
            *_table(self.layers),
        ]
        return "\n".join(lines)


def _table(layers: Sequence[LayerReport]) -> list[str]:
    width = max(len("layer"), *(len(layer.name) for layer in layers))
    head = (
        f"{'layer':<{width}}  {'shape':>13}  {'rank':>5}  {'parameters':>22}  "
        f"{'predicted':>9}  {'measured':>9}  note"
    )
    rows = [
        f"{layer.name:<{width}}  {'×'.join(map(str, layer.shape)):>13}  {_rank(layer.rank):>5}  "
        f"{layer.parameters_before:>10} →{layer.parameters_after:>10}  "
        f"{_share(layer.predicted_error):>9}  {_share(layer.measured_error):>9}  {layer.note}"
        for layer in layers
    ]
    return [head, *(row.rstrip() for row in rows)]


def _rank(rank: int | tuple[int, ...] | None) -> str:
    return "–" if rank is None else str(rank)


def _share(error: float | None) -> str:
    return "–" if error is None else f"{error:.3e}"
