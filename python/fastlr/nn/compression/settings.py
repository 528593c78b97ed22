"""What a compression was asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fastlr.nn.compression.allocation import check_allocation
from fastlr.nn.compression.methods import COMPRESSED_FORMS, Method, default_method, method_named


@dataclass(frozen=True)
class Settings:
    """What was asked for, once it is checked."""

    name: str
    method: Method
    form: str
    allocation: str | Mapping[str, float]
    ratio: float
    cap: float | None
    multiple: int
    propagation: float | str | None = None
    refit: bool = False

    @classmethod
    def of(
        cls,
        ratio: float,
        method: str,
        form: str | None,
        allocation: str | Mapping[str, float] | None,
        cap: float | None,
        multiple: int,
        propagation: float | str | None,
        refit: bool,
        dtype: torch.dtype,
    ) -> Settings:
        """Raise ValueError for what is unknown, out of range, or does not go together."""
        if not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise ValueError(f"ratio must be between 0 and 1, both excluded, got {ratio!r}")
        name = default_method(ratio, dtype) if method == "auto" else method
        chosen = method_named(name)
        stored = chosen.forms[0] if form is None else form
        if stored not in chosen.forms:
            raise ValueError(
                f"form must be one of {', '.join(sorted(chosen.forms))} for method={name!r}, "
                f"got {form!r}"
            )
        shared = chosen.allocation if allocation is None else allocation
        check_allocation(shared, ratio, cap)
        if shared == "loss" and not chosen.predicts_loss:
            raise ValueError(
                'allocation="loss" needs a method whose errors predict the loss (two_sided, '
                f"sparse), got method={name!r}"
            )
        if not isinstance(multiple, int) or multiple < 1:
            raise ValueError(f"rank_multiple must be a positive integer, got {multiple!r}")
        if multiple > 1 and "interpolative" not in chosen.forms:
            raise ValueError(f"rank_multiple needs a low-rank method, got method={name!r}")
        mixture = chosen.propagation if propagation is None else propagation
        _check_propagation(mixture, refit, name, chosen, stored)
        return cls(name, chosen, stored, shared, float(ratio), cap, multiple, mixture, bool(refit))

    def shares(self) -> list[object]:
        """What decides, beside method and form, how small each layer becomes, and for what."""
        shared = self.allocation
        given = shared if isinstance(shared, str) else sorted(shared.items())
        return [self.ratio, given, self.cap, self.propagation, self.refit]

    @property
    def needs_calibration(self) -> bool:
        """Whether anything has to be run through the model."""
        measured = self.allocation == "block_influence" or self.propagation is not None
        return self.method.inputs or self.method.gradients or measured

    @property
    def block_by_block(self) -> bool:
        """Whether a block can be compressed before the next one's statistics are there."""
        needs_all = (
            self.method.join is not None
            or self.method.gradients
            or self.allocation != "uniform"
            or self.propagation is not None
        )
        return not needs_all


def _check_propagation(
    mixture: float | str | None, refit: bool, name: str, method: Method, form: str
) -> None:
    if isinstance(mixture, str):
        valid = mixture == "adaptive"
    else:
        valid = mixture is None or (isinstance(mixture, int | float) and 0 <= mixture <= 1)
    if not valid or isinstance(mixture, bool):
        raise ValueError(
            f'propagation must be None, "adaptive" or between 0 and 1, got {mixture!r}'
        )
    if mixture is not None and method.join is not None:
        raise ValueError(f"propagation: method={name!r} compresses several layers at once")
    if refit and (mixture is None or form not in COMPRESSED_FORMS):
        raise ValueError(
            "refit needs propagation, and a form of low rank (interpolative, factored), got "
            f"propagation={mixture!r}, form={form!r}"
        )
