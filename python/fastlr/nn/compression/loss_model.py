"""How well the predicted errors tell the increase of the model's loss: a few layers, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlr.nn.compression.allocation import Budget, by_type, uniform
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.divergence import divergence_from, log_probabilities
from fastlr.nn.modules.replace import replace_modules
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fastlr.nn.compression.run_record import RunRecord

_LAYERS_OF_A_TYPE = 2


@dataclass(frozen=True)
class LossPrediction:
    """What compressing one layer alone was predicted to do to the model, and what it did.

    Attributes
    ----------
    name : str
    predicted : float
        tr(H Δ G Δᵀ)/2 per token, as the method predicts it: nats.
    measured : float
        The Kullback–Leibler divergence of the model's predictions from the dense model's, nats a
        token: the increase of the loss without its first order, which has no sign of its own.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compress_llm
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4))
    >>> model = compress_llm(model, 0.3, calibration=torch.arange(64), seq_len=16, samples=4,
    ...                      progress=False)
    >>> [p.name.rpartition(".")[2] for p in model.fastlr_report.predictions][:3]
    ['q_proj', 'k_proj', 'v_proj']
    """

    name: str
    predicted: float
    measured: float


def measure_layers(
    model: PreTrainedModel,
    budget: Budget,
    batches: Sequence[Batch],
    bar: Progress,
    record: RunRecord,
) -> list[LossPrediction]:
    """Compress two layers of each type, one after the other and alone, by the share of the budget.

    One forward pass over some 1024 tokens each; the model is as it was afterwards.
    """
    names = [name for group in by_type(budget.candidates).values() for name in _spread(group)]
    at_uniform = uniform(budget)
    measure = _Divergences(model, next(batches[0].parts()))
    bar.stage("Measuring predictions", len(names))
    found = []
    for number, name in enumerate(names):
        candidates, index = budget.candidates[name], at_uniform[name]
        build = partial(candidates.build, index) if candidates.compared else lambda: None
        divergence = record.value(f"divergence-{number}", partial(measure.of, name, build))
        if divergence is not None:
            predicted = float(candidates.errors[index]) / 2
            found.append(LossPrediction(name, predicted, divergence))
        bar.step(name)
    return found


class _Divergences:
    """How far a model's predictions of one text move if one layer is replaced."""

    def __init__(self, model: PreTrainedModel, part: Batch) -> None:
        self._model, self._part = model, part
        self._dense: Tensor | None = None

    def of(self, name: str, build: Callable[[], object]) -> float | None:
        """Nats a token; None where there is no replacement."""
        replacement = build()
        if not isinstance(replacement, nn.Module):
            return None
        if self._dense is None:
            self._dense = self._log_probabilities()
        original = self._model.get_submodule(name)
        replace_modules(self._model, {name: replacement})
        try:
            found = self._log_probabilities()
        finally:
            replace_modules(self._model, {name: original})
        return float(divergence_from(self._dense, found)) / len(found)

    def _log_probabilities(self) -> Tensor:
        with torch.no_grad():
            return log_probabilities(self._model, self._part)


def factors_of(
    predictions: Sequence[LossPrediction], layers: Mapping[str, object]
) -> dict[str, float]:
    """For each layer, what its predictions are to be multiplied by; 1 where nothing was measured.

    The root of the geometric mean of measured / predicted of its type: two layers alone say half as
    much about all of them together.
    """
    factors = dict.fromkeys(layers, 1.0)
    measured = {p.name: p for p in predictions if p.predicted > 0 and p.measured > 0}
    for names in by_type(layers).values():
        ratios = [
            math.log(measured[name].measured / measured[name].predicted)
            for name in names
            if name in measured
        ]
        if ratios:
            factors.update(dict.fromkeys(names, math.exp(math.fsum(ratios) / len(ratios) / 2)))
    return factors


def _spread(names: Sequence[str]) -> list[str]:
    """Some of the names, at equal distances."""
    count = min(_LAYERS_OF_A_TYPE, len(names))
    return [names[(2 * k + 1) * len(names) // (2 * count)] for k in range(count)]
