"""Second moments of the gradients at the outputs of a model's layers, by one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.divergence import logits_of
from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.statistics import Grams, InputCollector, Statistics
from fastlr.nn.evaluate import training_only
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def collect_with_gradients(
    model: PreTrainedModel,
    targets: Sequence[Mapping[str, nn.Module]],
    batches: Sequence[Batch],
    bar: Progress,
) -> Statistics:
    """The Gram matrices of all target layers' inputs, and those of Σ g gᵀ at their outputs.

    g is the gradient of the negative log-likelihood, summed over the predicted tokens, at an output
    of the layer. The model must be in evaluation mode; no parameter gets a gradient.
    """
    layers = {name: module for block in targets for name, module in block.items()}
    parts = [part for batch in batches for part in batch.parts()]
    inputs = InputCollector(layers, partial(number_of, parts))
    outputs = GradientCollector(layers)
    bar.stage("Inputs and gradients", len(parts))
    with _only_activations(model), inputs.listening(), outputs.listening():
        for number, part in enumerate(parts):
            inputs.begin(part.attention_mask)
            finite_loss(model, parts, number).backward()  # type: ignore[no-untyped-call]
            inputs.finish()
            bar.step()
    tokens = sum(batch.tokens() for batch in batches)
    return Statistics(inputs.grams(), tokens, gradients=outputs.grams, batches=list(batches))


def negative_log_likelihood(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The sum over all predicted tokens of a batch that count."""
    logits, mask = logits_of(model, batch), batch.attention_mask
    wanted = batch.input_ids[:, 1:]
    if mask is not None:
        # Position t predicts token t + 1: both must count.
        wanted = wanted.masked_fill((mask[:, 1:] == 0) | (mask[:, :-1] == 0), -100)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), wanted.flatten().to(logits.device), reduction="sum"
    )


def finite_loss(model: PreTrainedModel, parts: Sequence[Batch], number: int) -> Tensor:
    """The negative log-likelihood of one of the parts; ValueError names it if it is not finite."""
    loss = negative_log_likelihood(model, parts[number])
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"calibration: {number_of(parts, number)}: the loss is {loss.item()}, not finite; "
            "nothing was changed"
        )
    return loss


def number_of(parts: Sequence[Batch], index: int) -> str:
    """Which sequences of the calibration a part holds, counted from 0."""
    first = sum(len(part.input_ids) for part in parts[:index])
    last = first + len(parts[index].input_ids) - 1
    return f"sequence {first}" if first == last else f"sequences {first} to {last}"


class GradientCollector:
    """Sums g gᵀ at the outputs of some layers."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.grams: Grams = {}
        self._layers = layers

    @contextmanager
    def listening(self) -> Iterator[None]:
        handles = []
        try:
            for name, module in self._layers.items():
                handles.append(module.register_forward_hook(self._listener(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _listener(self, name: str) -> Any:
        def add(gradient: Tensor) -> None:
            gram = Gram.of(gradient, exact=False)
            if name in self.grams:
                self.grams[name].add(gram)
            else:
                self.grams[name] = gram

        def listen(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(add)  # type: ignore[no-untyped-call]

        return listen


@contextmanager
def _only_activations(model: PreTrainedModel) -> Iterator[None]:
    """Gradients flow to the embedded tokens, and to no parameter."""

    def track(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_(True)

    embedding: nn.Module = model.get_input_embeddings()
    handle = embedding.register_forward_hook(track)
    try:
        with training_only(model, ()), torch.enable_grad():
            yield
    finally:
        handle.remove()
