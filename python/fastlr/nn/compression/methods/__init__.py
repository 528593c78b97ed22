"""The ways to compress a layer, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.forms import FORMS
from fastlr.nn.compression.methods import (
    afm,
    asvd,
    basis_sharing,
    cospadi,
    fwsvd,
    modegpt,
    rocket,
    sparse,
    sub_moe,
    svd,
    svd_llm,
    two_sided,
)
from fastlr.nn.compression.problem import Candidates, LayerGroup, LayerProblem

LOW_RANK_FORMS = tuple(FORMS)
COMPRESSED_FORMS = ("interpolative", "factored")


@dataclass(frozen=True)
class Method:
    """A way to compress linear layers.

    Attributes
    ----------
    prepare : callable
        (problem, form, rank multiple) → :class:`Candidates`, for one layer.
    propagation : float, "adaptive" or None
        Whether it makes up for the errors of earlier blocks unless told otherwise.
    join : callable or None
        Where layers are not compressed one by one: (model, problems, ratio, form) → a list of
        :class:`LayerGroup`, in which every problem is a member of exactly one. `prepare` is then
        for those that are alone.
    batches : bool
        Whether `join` is also given the batches of calibration, as its last argument.
    inputs, gradients : bool
        Whether it needs the moments of the layers' inputs, and of the loss's gradients at their
        outputs (one backward pass).
    predicts_loss : bool
        Whether half of its errors are increases of the model's mean loss, in nats a token.
    forms : tuple of str
        How its weights can be stored; the first one is the default.
    allocation : str
        How it shares the budget between the layers unless told otherwise.

    Examples
    --------
    >>> from fastlr.nn.compression.methods import method_named
    >>> method_named("two_sided").forms
    ('interpolative', 'factored', 'dense')
    """

    prepare: Callable[[LayerProblem, str, int], Candidates]
    inputs: bool = False
    gradients: bool = False
    predicts_loss: bool = False
    forms: tuple[str, ...] = LOW_RANK_FORMS
    allocation: str = "uniform"
    propagation: float | str | None = None
    join: Callable[..., list[LayerGroup]] | None = None
    batches: bool = False

    def groups(
        self,
        model: nn.Module,
        problems: Sequence[LayerProblem],
        ratio: float,
        form: str,
        batches: Sequence[Batch] = (),
    ) -> list[LayerGroup]:
        """What is compressed together: without `join`, each layer is alone."""
        if self.join is not None:
            tokens = (batches,) if self.batches else ()
            return self.join(model, problems, ratio, form, *tokens)
        return [LayerGroup(p.name, (p,), partial(self.prepare, p)) for p in problems]


METHODS: dict[str, Method] = {
    "svd": Method(svd.prepare),
    # The same closed form has been published under two names. Not as a dense layer: transformers
    # would not load a bias that the architecture does not have.
    "afm": Method(afm.prepare, inputs=True, forms=COMPRESSED_FORMS),
    "lord": Method(afm.prepare, inputs=True, forms=COMPRESSED_FORMS),
    "welore": Method(svd.prepare, allocation="welore"),
    "fwsvd": Method(fwsvd.prepare, gradients=True),
    "asvd": Method(asvd.prepare, inputs=True),
    "svd_llm": Method(svd_llm.prepare, inputs=True),
    # The same problem, for the inputs that the compressed blocks before give, with a part of what
    # they have lost made up for.
    "saes": Method(svd_llm.prepare, inputs=True, propagation="adaptive"),
    "basis_sharing": Method(
        svd_llm.prepare, inputs=True, forms=COMPRESSED_FORMS, join=basis_sharing.join
    ),
    "sub_moe": Method(
        svd_llm.prepare, inputs=True, forms=("interpolative",), join=sub_moe.join, batches=True
    ),
    "modegpt": Method(
        modegpt.prepare,
        inputs=True,
        forms=("structured",),
        allocation="block_influence",
        join=modegpt.join,
    ),
    "two_sided": Method(
        two_sided.prepare, inputs=True, gradients=True, predicts_loss=True, allocation="loss"
    ),
    "sparse": Method(
        sparse.prepare,
        inputs=True,
        gradients=True,
        predicts_loss=True,
        forms=("sparse",),
        allocation="loss",
    ),
    "rocket": Method(rocket.prepare, inputs=True, forms=("dictionary",), allocation="knapsack"),
    "cospadi": Method(cospadi.prepare, inputs=True, forms=("dictionary",)),
}
# The least share of the budget that must be left for values where each entry has a bit in a mask.
_FOR_VALUES = 0.75


def method_named(name: str) -> Method:
    """The method called `name`.

    Raises
    ------
    ValueError
        With the list of names, when there is none.
    """
    if name not in METHODS:
        known = ", ".join(["auto", *sorted(METHODS)])
        raise ValueError(f"method must be one of {known}, got {name!r}")
    return METHODS[name]


def default_method(ratio: float, dtype: torch.dtype) -> str:
    """What "auto" stands for: "sparse", unless masks would take up a quarter of what is left.

    They are 1/32 of the dense numbers in float32 and 1/16 in half types, so that "two_sided" takes
    over above a ratio of 0.875 or 0.75.
    """
    fits = masks_share(dtype) <= (1 - _FOR_VALUES) * (1 - ratio)
    return "sparse" if fits else "two_sided"


def masks_share(dtype: torch.dtype) -> float:
    """What masks of one bit an entry take, in parts of the dense numbers."""
    return 1 / (8 * dtype.itemsize)


def register_method(name: str, method: Method) -> None:
    """Make a method of your own known to :func:`fastlr.nn.compress_llm`.

    Parameters
    ----------
    name : str
        What to pass as ``method=``.
    method : Method

    Raises
    ------
    ValueError
        If there is a method of that name already.

    Examples
    --------
    Rows of the weight scaled to length one before its singular values are taken:

    >>> import torch
    >>> from fastlr.nn.compression import Method, register_method
    >>> from fastlr.nn.compression.methods.low_rank import low_rank_candidates
    >>> def prepare(problem, form, multiple):
    ...     lengths = problem.weight.norm(dim=1)
    ...     left = torch.diag(lengths**-2)
    ...     return low_rank_candidates(problem, form, left=left, multiple=multiple)
    >>> register_method("unit_rows", Method(prepare))
    """
    if name in METHODS or name == "auto":
        raise ValueError(f"register_method: name {name!r} is taken")
    METHODS[name] = method
