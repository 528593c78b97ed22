"""Error propagation: layers are compressed for the inputs that the compressed model gives them.

With X the inputs of a layer behind the compressed blocks, X_f those in the dense model, H = X Xᵀ
and Δ = (X_f − X) Xᵀ, the output W X_f is best approximated from X by the weight W + W Δ H⁺ (least
squares). A part β of that correction, damped, is taken: W + β W Δ (H + δI)⁺, in the norm of H. The
mixture, and its adaptive choice, are those of SAES (see the page on error propagation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlr.nn.compression.blocks import BlockStack, BlockWalk
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.gram import Gram, cross_products
from fastlr.nn.compression.problem import LayerProblem
from fastlr.nn.compression.statistics import hearing_inputs
from fastlr.nn.modules.replace import replace_modules
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What an adaptive choice tries: α / (1 + α) for α up to 1. Each costs the preparation of a layer.
# More than a half is unstable over many blocks, which the kept share does not show (see the docs).
MIXTURES = (0.0, 0.125, 0.25, 0.375, 0.5)
# Of the mean of the diagonal of H, added to it where it is inverted: directions in which the
# calibration text hardly varies get no correction made of noise, which other text would pay for.
DAMPING = 0.01
NOT_PROPAGATED = "its inputs do not correspond to the dense model's: no error propagated"


@dataclass
class PairedInputs:
    """Moments of a layer's inputs x, and of the x_f that the dense model has in their places.

    Attributes
    ----------
    gram : Gram
        H = Σ x xᵀ.
    cross : Tensor of shape (i, i)
        D = Σ x_f xᵀ, float64.
    dense_total : Tensor of shape (i,)
        Σ x_f, float64.
    """

    gram: Gram
    cross: Tensor
    dense_total: Tensor

    @classmethod
    def of(cls, dense: Tensor, inputs: Tensor) -> PairedInputs:
        """The moments of two … × i tensors of one shape: 2·tokens·i² multiply-adds."""
        total = dense.flatten(0, -2).sum(0, dtype=torch.float64)
        return cls(Gram.of(inputs, exact=False), cross_products(dense, inputs), total)

    def add(self, other: PairedInputs) -> None:
        """Add more inputs of the same layer, in place."""
        self.gram.add(other.gram)
        self.cross += other.cross
        self.dense_total = self.dense_total + other.dense_total

    def correction(self, weight: Tensor) -> Tensor:
        """W Δ (H + δI)⁺: what makes up for the errors of the inputs, o × i."""
        scale = self.gram.scale
        values, vectors = self.gram.eigen()
        values = values.clamp(min=0) + DAMPING * values.mean()
        limit = values.max() * len(values) * torch.finfo(values.dtype).eps
        inverses = torch.where(values > limit, 1 / values.clamp(min=limit), 0.0)
        change = (self.cross - self.gram.matrix) / scale
        return ((weight @ change) @ vectors * inverses) @ vectors.T

    def bias_change(self, weight: Tensor, composed: Tensor) -> Tensor:
        """What a bias must be raised by for the mean output to be that of the dense model."""
        assert self.gram.total is not None
        return (weight @ self.dense_total - composed @ self.gram.total) / self.gram.tokens


def propagated(
    problem: LayerProblem, pair: PairedInputs, mixture: float, correction: Tensor
) -> LayerProblem:
    """To approximate W + β·`correction` for the inputs behind the compressed blocks."""
    target = problem.weight + mixture * correction
    return replace(problem, inputs=pair.gram, target=target)


def paired_blocks(
    model: PreTrainedModel,
    stack: BlockStack,
    targets: Sequence[Mapping[str, nn.Module]],
    batches: Sequence[Batch],
    bar: Progress,
    compress: Callable[[int, Mapping[str, PairedInputs]], Mapping[str, nn.Module]],
) -> None:
    """Go through the blocks: measure the inputs of both models, compress, and run on what results.

    `compress` is given a block's number and the moments of its layers (those that can be paired)
    and returns their replacements, which are in the model only while their block runs. Three
    forward passes of each block, and the hidden states of both models in memory.
    """
    bar.stage("Reading the blocks' inputs", 2 * len(batches))
    dense = BlockWalk(model, stack, batches, bar.step)
    compressed = BlockWalk(model, stack, batches, bar.step)
    bar.stage("Blocks", 3 * len(stack.blocks) * len(batches))
    for index, layers in enumerate(targets):
        label = f"block {index + 1}/{len(targets)} · both models' inputs"
        collector = _PairCollector(layers)

        def step(number: int, label: str = label) -> None:
            bar.step(label)

        for number, batch in enumerate(batches):
            with collector.reading_dense():
                dense.advance(index, number)
            bar.step(label)
            with collector.pairing(batch):
                compressed.output(index, number)
            bar.step(label)
        replacements = compress(index, collector.pairs())
        originals = {name: model.get_submodule(name) for name in replacements}
        replace_modules(model, replacements)
        try:
            compressed.run(index, step)
        finally:
            replace_modules(model, originals)


class _PairCollector:
    """Sums the moments of what enters some layers in the dense and in the compressed model."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._dense: dict[str, Tensor] = {}
        self._sums: dict[tuple[str, ...], PairedInputs] = {}

    @contextmanager
    def reading_dense(self) -> Iterator[None]:
        """The inputs of one batch in the dense model are kept."""
        self._dense = {}
        copies: dict[tuple[int, int], Tensor] = {}
        seen = []

        def keep(name: str, value: Tensor) -> None:
            # Copied, since a model may change its hidden states in place later on.
            key = id(value), value._version
            if key not in copies:
                copies[key] = value.detach().clone()
                seen.append(value)
            self._dense[name] = copies[key]

        with hearing_inputs(self._layers, keep):
            yield

    @contextmanager
    def pairing(self, batch: Batch) -> Iterator[None]:
        """Those of the same batch in the compressed model are summed with them.

        Layers share the sum where they read the very same tensor. A layer whose inputs are not one
        for each token (a routed expert) is left out.
        """
        mask = batch.attention_mask
        seen: list[tuple[Tensor, int, list[str], PairedInputs]] = []

        def pair(name: str, value: Tensor) -> None:
            exact = self._dense.get(name)
            positions = batch.input_ids.shape
            if exact is None or value.shape[:-1] != positions or exact.shape[:-1] != positions:
                return
            for other, version, names, _ in seen:
                if other is value and version == value._version:
                    names.append(name)
                    return
            counted = slice(None) if mask is None else (mask != 0).to(value.device)
            found = PairedInputs.of(exact[counted], value[counted])
            if not math.isfinite(float(found.gram.matrix.diagonal().sum())):
                raise ValueError(
                    f"calibration: the compressed model's inputs of layer {name!r} are not finite; "
                    "nothing was changed"
                )
            seen.append((value, value._version, [name], found))

        with hearing_inputs(self._layers, pair):
            yield
        for _, _, names, found in seen:
            key = tuple(names)
            if key in self._sums:
                self._sums[key].add(found)
            else:
                self._sums[key] = found

    def pairs(self) -> dict[str, PairedInputs]:
        """The sums by layer; one object for the layers that share it."""
        return {name: found for names, found in self._sums.items() for name in names}
