"""How well a model still predicts, by how much of it is removed and how."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastlr.nn.compression.calibration import Calibration
from fastlr.nn.compression.engine import calibrate, compress_llm
from fastlr.nn.compression.model_kind import require_causal_lm
from fastlr.nn.compression.report import ModelSize
from fastlr.nn.compression.settings import Settings
from fastlr.nn.compression.statistics import Statistics
from fastlr.nn.evaluate import perplexity
from fastlr.nn.figures import new_figure
from fastlr.nn.progress import Progress
from fastlr.nn.text_table import aligned

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SweepPoint:
    """One compressed model of a sweep.

    Attributes
    ----------
    method : str
        As it was asked for.
    ratio, ratio_achieved : float
        The share of the numbers of the compressed layers' weights to be removed, and removed.
    parameters, bytes : int
        Of the whole model.
    perplexity : float
    seconds : float
        Of the compression, without the calibration.

    Examples
    --------
    >>> from fastlr.nn.compression import SweepPoint
    >>> point = SweepPoint("sparse", 0.4, 0.4001, 80_000, 320_000, 12.5, 1.0)
    >>> point.perplexity, point.bytes
    (12.5, 320000)
    """

    method: str
    ratio: float
    ratio_achieved: float
    parameters: int
    bytes: int
    perplexity: float
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """What :func:`fastlr.nn.sweep` found.

    Attributes
    ----------
    points : tuple of SweepPoint
        By method, then by ratio, in the order in which they were asked for.
    dense : SweepPoint
        The model itself, with method "dense".

    Examples
    --------
    >>> from fastlr.nn.compression import Sweep, SweepPoint
    >>> dense = SweepPoint("dense", 0.0, 0.0, 100, 400, 10.0, 0.0)
    >>> points = (SweepPoint("svd", 0.2, 0.2, 80, 320, 10.4, 0.1),
    ...     SweepPoint("svd", 0.5, 0.5, 50, 200, 17.0, 0.1))
    >>> found = Sweep(points, dense)
    >>> found.smallest(1.05).bytes, found.smallest(2).bytes, found.smallest(1).method
    (320, 200, 'dense')
    """

    points: tuple[SweepPoint, ...]
    dense: SweepPoint

    def smallest(self, most: float) -> SweepPoint:
        """The smallest model, by bytes, whose perplexity is at most `most` × that of the dense one.

        The dense one itself where no other is.
        """
        good = [p for p in self.points if p.perplexity <= most * self.dense.perplexity]
        return min([*good, self.dense], key=lambda point: point.bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return {"dense": asdict(self.dense), "points": [asdict(point) for point in self.points]}

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the perplexities over the sizes of the models, a line for each method.

        Parameters
        ----------
        path : path, optional
            Where to save the figure, in the format of its suffix.

        Returns
        -------
        matplotlib.figure.Figure
            Outside of pyplot: it opens no window, and there is nothing to close.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        figure = new_figure(6, 4)
        axis = figure.subplots()
        for method in dict.fromkeys(point.method for point in self.points):
            line = [point for point in self.points if point.method == method]
            line.sort(key=lambda point: point.bytes)
            sizes = [point.bytes / 1e6 for point in line]
            axis.plot(sizes, [point.perplexity for point in line], "o-", markersize=4, label=method)
        axis.plot(self.dense.bytes / 1e6, self.dense.perplexity, "k*", label="dense")
        axis.set_yscale("log")
        for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            ticks("{x:g}")
        axis.set_xlabel("size of the model, MB")
        axis.set_ylabel("perplexity")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
        if path is not None:
            figure.savefig(path)
        return figure

    def __str__(self) -> str:
        rows = [
            [
                point.method,
                f"{point.ratio_achieved:.1%}",
                f"{point.bytes / 1e6:.1f}",
                f"{point.perplexity:.4g}",
                f"{point.perplexity / self.dense.perplexity:.3f}",
            ]
            for point in (self.dense, *self.points)
        ]
        return "\n".join(aligned([["method", "removed", "MB", "perplexity", "/ dense"], *rows]))


def sweep(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
    methods: str | Sequence[str] = ("auto",),
    calibration: Calibration | Statistics = None,
    tokenizer: Any = None,
    samples: int = 64,
    seq_len: int = 512,
    windows: int | None = None,
    targets: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] = ("lm_head",),
    seed: int = 0,
    progress: bool = True,
) -> Sweep:
    """Compress copies of a language model by every method to every ratio, and measure them.

    Calibration is done once, for all of them.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder-only causal language model. It is not changed.
    tokens : Tensor of shape (n,) or (1, n)
        The text on which perplexities are measured, best none of the calibration's.
    ratios : sequence of float
        Shares of the numbers to remove, between 0 and 1.
    methods : str or sequence of str
        As `method` of :func:`fastlr.nn.compress_llm`.
    calibration, tokenizer, samples, targets, ignore, seed
        As in :func:`fastlr.nn.compress_llm`.
    seq_len : int
        Tokens of a window, of the calibration and of the measurement.
    windows : int, optional
        Measure on the first `windows` windows of `tokens` only.
    progress : bool, default True
        Show a progress bar on stderr.

    Returns
    -------
    Sweep
        ``points`` and ``dense``; a table (``print(sweep)``), ``plot(path)``, ``smallest(1.05)``,
        ``to_dict()``.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastlr.nn.compress_llm` and :func:`fastlr.nn.perplexity`; for a ratio or a method
        that is unknown, and for text that does not fit, before anything is computed.

    Notes
    -----
    One calibration, and for each model a compression and a forward pass over the measured windows.
    A copy of the model is in memory beside it, and the statistics of all its layers.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import sweep
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2))
    >>> text = torch.arange(256) % 64
    >>> found = sweep(model, text[:128], ratios=(0.2, 0.4), methods=("svd", "sparse"), samples=4,
    ...     calibration=text[128:], seq_len=16, progress=False)
    >>> [(point.method, point.ratio) for point in found.points]
    [('svd', 0.2), ('svd', 0.4), ('sparse', 0.2), ('sparse', 0.4)]
    >>> found.smallest(0.0).method
    'dense'
    """
    require_causal_lm(model, "sweep measures perplexity: model")
    methods = (methods,) if isinstance(methods, str) else tuple(methods)
    settings = [_settings(model, ratio, method) for method in methods for ratio in ratios]
    if not settings:
        raise ValueError(
            f"sweep: there must be a ratio and a method, got {ratios!r} and {methods!r}"
        )
    dense = _point("dense", 0.0, model, perplexity(model, tokens, seq_len, windows=windows), 0.0)
    if not any(one.needs_calibration for one in settings):
        calibration = None
    elif not isinstance(calibration, Statistics):
        calibration = calibrate(
            model,
            calibration,
            tokenizer=tokenizer,
            samples=samples,
            seq_len=seq_len,
            targets=targets,
            ignore=ignore,
            seed=seed,
            gradients=any(one.method.gradients for one in settings),
            progress=progress,
        )
    points = []
    with Progress(progress) as bar:
        bar.stage("Models", len(settings))
        for method in methods:
            for ratio in ratios:
                start = time.perf_counter()
                smaller = compress_llm(
                    copy.deepcopy(model),
                    ratio,
                    method=method,
                    calibration=calibration,
                    targets=targets,
                    ignore=ignore,
                    seed=seed,
                    progress=False,
                )
                seconds = time.perf_counter() - start
                measured = perplexity(smaller, tokens, seq_len, windows=windows)
                points.append(_point(method, ratio, smaller, measured, seconds))
                bar.step(f"{method}, {ratio:g}")
    return Sweep(tuple(points), dense)


def _settings(model: PreTrainedModel, ratio: float, method: str) -> Settings:
    """What compress_llm makes of its arguments: their mistakes are found before any work."""
    return Settings.of(ratio, method, None, None, None, 1, None, False, model.dtype)


def _point(
    method: str, ratio: float, model: PreTrainedModel, measured: float, seconds: float
) -> SweepPoint:
    size = ModelSize.of(model)
    # The model itself may have a report, of what it was made from.
    achieved = model.__dict__["fastlr_report"].ratio_achieved if ratio else 0.0
    return SweepPoint(method, ratio, achieved, size.parameters, size.bytes, measured, seconds)
