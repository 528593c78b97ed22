"""Mending a compressed model by a short distillation from the dense one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.divergence import divergence_of
from fastlr.nn.evaluate import training_only
from fastlr.nn.modules.dense import is_dense_linear
from fastlr.nn.modules.replace import replace_modules
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a parameter's root mean square, how far one step moves its entries at most.
RATES = (3e-4, 1e-3, 3e-3)
_TOKENS_A_STEP = 2048
# One sequence of so many is not trained on but judged by, until there are so many tokens of them.
_VALIDATION = 8
_ENOUGH = 8192
# How often the model is judged on the way.
_CHECKS = 8


@dataclass(frozen=True)
class HealReport:
    """What the distillation did.

    Attributes
    ----------
    steps : int
        Steps that were taken at `rate`; the search for it took more.
    rate : float
        The relative learning rate that was found; 0 where no rate made the model better.
    before, after : float
        The mean Kullback–Leibler divergence from the dense model on the calibration text that was
        held out, nats a token.
    history : list of (int, float)
        That divergence after so many steps.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compress_llm
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4))
    >>> model = compress_llm(model, 0.5, calibration=torch.arange(64), seq_len=16, samples=4,
    ...                      heal_steps=4, progress=False)
    >>> healed = model.fastlr_report.heal
    >>> healed.steps, healed.after <= healed.before
    (4, True)
    """

    steps: int
    rate: float
    before: float
    after: float
    history: list[tuple[int, float]]


class Student:
    """The compressed model beside the dense one, which it shares all but what is trained with.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The dense model, which is not changed.
    replacements : mapping from layer names to new layers
        Their parameters are trained in place.
    """

    def __init__(self, model: PreTrainedModel, replacements: Mapping[str, nn.Module]) -> None:
        norms = {name: p for name, p in _norm_parameters(model) if not _inside(name, replacements)}
        own = {id(p) for p in norms.values()}
        shared = {id(p): p for p in model.parameters() if id(p) not in own}
        self.model: PreTrainedModel = copy.deepcopy(model, shared)
        replace_modules(self.model, replacements)
        self.model.train(False)
        self.norms = {name: self.model.get_parameter(name) for name in norms}
        self.trained = [
            *self.norms.values(),
            *(p for module in replacements.values() for p in module.parameters()),
        ]

    def install(self, model: PreTrainedModel) -> None:
        """Give the trained norms to `model`."""
        with torch.no_grad():
            for name, parameter in self.norms.items():
                model.get_parameter(name).copy_(parameter)


def heal(
    model: PreTrainedModel,
    student: Student,
    batches: Sequence[Batch],
    steps: int,
    *,
    seed: int,
    bar: Progress,
) -> HealReport:
    """Train the student for `steps` steps to predict what the dense model predicts.

    Adam on the Kullback–Leibler divergence from the dense model's predictions, over the calibration
    text without every eighth of its sequences, some 2048 tokens a step; rates relative to each
    parameter's size, with a warm-up and a cosine. The rate is the one of three that does best on
    the sequences that were left out, after a tenth of the steps each. The state that does best on
    them is kept, the initial one included: the model does not become worse there.

    Raises
    ------
    ValueError
        If there are fewer than two sequences.
    """
    training, validation = _divided(batches)
    try:
        # What the student shares with the dense model must not get gradients.
        with training_only(student.model, student.trained):
            return _Healing(model, student, training, validation, steps, seed, bar).run()
    finally:
        for parameter in student.trained:
            parameter.grad = None


@dataclass
class _Healing:
    model: PreTrainedModel
    student: Student
    training: Sequence[Batch]
    validation: Sequence[Batch]
    steps: int
    seed: int
    bar: Progress

    def run(self) -> HealReport:
        trial = max(1, self.steps // 10)
        # A validation is counted as a step; it takes about as long.
        self.bar.stage("Healing", self.steps + len(RATES) * trial + _CHECKS + len(RATES) + 1)
        before = self._judge()
        initial = self._state()
        trials = {}
        for rate in RATES:
            for _ in self._training(rate, trial):
                pass
            trials[rate] = self._judge()
            self._restore(initial)
        rate = min(RATES, key=lambda r: trials[r] if math.isfinite(trials[r]) else math.inf)

        best, best_state, history = before, initial, [(0, before)]
        marks = {math.ceil(self.steps * (k + 1) / _CHECKS) for k in range(_CHECKS)}
        for done in self._training(rate, self.steps):
            if done not in marks:
                continue
            found = self._judge()
            history.append((done, found))
            if found < best:
                best, best_state = found, self._state()
        self._restore(best_state)
        return HealReport(self.steps, rate if best < before else 0.0, before, best, history)

    def _training(self, rate: float, steps: int) -> Iterator[int]:
        """Take steps, of a schedule that ends after all of them; yields how many are done."""
        masters = [p.detach().float().clone() for p in self.student.trained]
        groups = [{"params": [m], "lr": rate * _size(m)} for m in masters]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        order = self._order()
        for done in range(1, steps + 1):
            count = 0
            while count < _TOKENS_A_STEP:
                part = next(order)
                divergence, tokens = divergence_of(self.student.model, self.model, part)
                divergence.backward()  # type: ignore[no-untyped-call]
                count += tokens
            for master, parameter in zip(masters, self.student.trained, strict=True):
                gradient = parameter.grad
                master.grad = None if gradient is None else gradient.float() / count
                parameter.grad = None
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for master, parameter in zip(masters, self.student.trained, strict=True):
                    parameter.copy_(master)
            self.bar.step()
            yield done

    def _share_of_rate(self, done: int) -> float:
        """A warm-up over a twentieth of the steps, then a cosine down to a twentieth."""
        warm = max(1, self.steps // 20)
        if done < warm:
            return (done + 1) / warm
        progress = (done - warm) / max(1, self.steps - warm)
        return 0.05 + 0.95 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    def _order(self) -> Iterator[Batch]:
        """The training sequences over and over, shuffled anew every time."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            for index in torch.randperm(len(self.training), generator=generator).tolist():
                yield self.training[index]

    def _judge(self) -> float:
        total, tokens = 0.0, 0
        with torch.no_grad():
            for part in self.validation:
                divergence, count = divergence_of(self.student.model, self.model, part)
                total += float(divergence)
                tokens += count
        self.bar.step("validation")
        return total / tokens

    def _state(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.student.trained]

    def _restore(self, state: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self.student.trained, state, strict=True):
                parameter.copy_(kept)


def _divided(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The sequences to train on and those to judge by, in batches of some 1024 tokens."""
    count = sum(len(batch.input_ids) for batch in batches)
    if count < 2:
        raise ValueError(
            "heal_steps: the calibration must hold at least two sequences, one to judge by, got "
            f"{count}"
        )
    every = min(_VALIDATION, count)
    training: list[Batch] = []
    validation: list[Batch] = []
    number = judged = 0
    for batch in batches:
        numbers = torch.arange(number, number + len(batch.input_ids))
        number += len(numbers)
        chosen = numbers % every == 0
        # As many as the tokens that are enough to judge by, and at least one.
        enough = (_ENOUGH - judged) // batch.input_ids.shape[1] + 1
        chosen &= chosen.cumsum(0) <= max(enough, 0)
        judged += int(chosen.sum()) * batch.input_ids.shape[1]
        for part, rows in ((training, ~chosen), (validation, chosen)):
            part.extend(batch.rows(rows).parts())
    return training, validation


def _size(parameter: Tensor) -> float:
    """Its root mean square; of zeros, 1: there is nothing to be relative to."""
    size = float(parameter.square().mean().sqrt()) if parameter.numel() else 0.0
    return size or 1.0


def _norm_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The vectors that scale or shift activations, outside of linear layers."""
    for prefix, module in model.named_modules():
        if is_dense_linear(module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1:
                yield f"{prefix}.{name}" if prefix else name, parameter


def _inside(name: str, modules: Mapping[str, nn.Module]) -> bool:
    return name.rpartition(".")[0] in modules
