"""Trained adapters and corrections as parts of the layers that they are beside."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastlr.nn import hf
from fastlr.nn.modules.applied_weight import is_plain
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.corrected_linear import CorrectedLinear
from fastlr.nn.modules.dense import high_precision, is_conv1d
from fastlr.nn.modules.low_rank_linear import LowRankLinear
from fastlr.nn.modules.replace import replace_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge(model: Any) -> PreTrainedModel:
    """Make the adapters of PEFT, and the corrections beside dense layers, parts of the layers.

    Nothing is approximated: the model does what it did before, to rounding.

    Parameters
    ----------
    model : peft.PeftModel or transformers.PreTrainedModel
        With LoRA adapters on layers of any kind, or with corrections of
        :func:`fastlr.nn.compensate`; changed in place.

    Returns
    -------
    transformers.PreTrainedModel
        The model without adapters: the one inside of a PeftModel, or `model` itself.

    Raises
    ------
    TypeError
        If `model` is neither.
    ValueError
        If there is nothing to merge; if an adapter on a compressed layer is no plain LoRA (DoRA,
        other kinds, with a bias), which has no such sum; if adapters are in a model without the
        PeftModel around it. Nothing is changed then.

    See Also
    --------
    lora_config : for adapters on compressed layers.
    to_peft : keeps corrections apart from the layers.

    Notes
    -----
    An adapter s·B'A' of rank r' becomes

    - of a :class:`LowRankLinear` of rank r, r' more rows of A and columns of B: r + r';
    - of a :class:`CorrectedLinear`, as much of its correction;
    - of any other compressed layer, the correction of a CorrectedLinear around it;

    always r'·(o + i) numbers more, as many as the adapter had, in the layer's dtype; where the sum
    of the ranks is above min(o, i) the product of the factors takes their place. Truncating them
    again would be shorter, and no longer the trained model. Adapters on dense layers are merged by
    PEFT.

    Then corrections beside a dense layer are added to its weight, composed in float64 and rounded
    once; those beside layers of other kinds stay. 2·r·o·i flops a layer.

    Examples
    --------
    >>> import copy, torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compensate, merge
    >>> original = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4)).eval()
    >>> lossy = copy.deepcopy(original)
    >>> with torch.no_grad():
    ...     _ = lossy.model.layers[0].mlp.up_proj.weight.mul_(0.9)
    >>> corrected = compensate(lossy, original, rank=4, targets="up_proj",
    ...                        calibration=torch.arange(64), seq_len=16, samples=4, progress=False)
    >>> merge(corrected).model.layers[0].mlp.up_proj
    Linear(in_features=32, out_features=64, bias=False)
    """
    inner, wrapped = _unwrapped(model)
    with torch.no_grad():
        sums = _sums(inner)
        if not wrapped and not _foldable(inner):
            raise ValueError(
                "merge: there is nothing to merge: model has no adapters of PEFT, and no "
                "corrections beside dense layers"
            )
        if wrapped:
            inner = _without_adapters(model, inner, sums)
        replace_modules(inner, {name: _folded(layer) for name, layer in _foldable(inner).items()})
    hf.describe_corrected(inner)
    inner.__dict__.pop("fastlr_report", None)
    return inner


def _unwrapped(model: Any) -> tuple[PreTrainedModel, bool]:
    """The transformers model, and whether a PeftModel is around it."""
    from transformers import PreTrainedModel

    wrapped = hasattr(model, "get_base_model") and hasattr(model, "merge_and_unload")
    inner = model.get_base_model() if wrapped else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(
            "model must be a PreTrainedModel of transformers, or a PeftModel around one, got "
            + type(model).__name__
        )
    if not wrapped:
        for name, module in inner.named_modules():
            if _is_adapted(module):
                raise ValueError(
                    f"merge: layer {name!r} has an adapter; give the PeftModel that it belongs to"
                )
    return inner, wrapped


def _is_adapted(module: nn.Module) -> bool:
    """Whether PEFT has put an adapter around a layer here."""
    return hasattr(module, "base_layer") and hasattr(module, "active_adapters")


def _sums(model: nn.Module) -> dict[str, nn.Module]:
    """In place of each compressed layer with an adapter, one that has it in its factors."""
    return {
        name: _summed(name, module)
        for name, module in model.named_modules()
        if _is_adapted(module) and isinstance(module.base_layer, CompressedLinear)
    }


def _summed(name: str, adapted: Any) -> nn.Module:
    base = adapted.base_layer
    B, A = _adapter(name, adapted)
    if isinstance(base, LowRankLinear):
        B, A = _joined((base.B, B), (base.A, A))
        summed: nn.Module = LowRankLinear.from_factors(B, A, base.bias, dtype=base.A.dtype)
    elif isinstance(base, CorrectedLinear):
        B, A = _joined((base.B, B), (base.A, A))
        summed = CorrectedLinear.around(base.base, B, A, dtype=base.A.dtype)
    else:
        B, A = _joined((B,), (A,))
        dtype = next(base.parameters()).dtype
        summed = CorrectedLinear.around(base, B, A, dtype=dtype)
    # As PEFT leaves the other layers.
    summed.requires_grad_(any(parameter.requires_grad for parameter in base.parameters()))
    return summed.train(adapted.training)


def _adapter(name: str, adapted: Any) -> tuple[Tensor, Tensor]:
    """The factors of the active adapters of a layer, in float64, scaled."""
    kind = type(adapted).__name__
    active = [key for key in adapted.active_adapters if key in getattr(adapted, "lora_A", ())]
    plain = bool(active) and not any(
        key in adapted.lora_variant or adapted.lora_bias.get(key) for key in active
    )
    if not plain:
        raise ValueError(
            f"merge: layer {name!r}, a {type(adapted.base_layer).__name__}, must have an active "
            f"adapter that is plain LoRA, without a bias, got {kind}"
        )
    lefts = (high_precision(adapted.lora_B[key].weight) * adapted.scaling[key] for key in active)
    rights = (high_precision(adapted.lora_A[key].weight) for key in active)
    return torch.cat(list(lefts), 1), torch.cat(list(rights))


def _joined(lefts: tuple[Tensor, ...], rights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Factors of Σ BA, float64, of a rank of at most min(o, i)."""
    B = torch.cat([high_precision(left) for left in lefts], 1)
    A = torch.cat([high_precision(right) for right in rights])
    rank, shorter = len(A), min(len(B), A.shape[1])
    if rank <= shorter:
        return B, A
    identity = torch.eye(shorter, dtype=B.dtype, device=B.device)
    return (identity, B @ A) if len(B) == shorter else (B @ A, identity)


def _without_adapters(
    model: Any, inner: PreTrainedModel, sums: dict[str, nn.Module]
) -> PreTrainedModel:
    """The model with `sums` in place, and all other adapters merged by PEFT."""
    before = {name: inner.get_submodule(name) for name in sums}
    try:
        replace_modules(inner, sums)
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except BaseException:
        replace_modules(inner, before)
        raise
    return merged


def _foldable(model: nn.Module) -> dict[str, CorrectedLinear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CorrectedLinear) and is_plain(module.base)
    }


def _folded(layer: CorrectedLinear) -> nn.Module:
    """A dense layer of the base's class with the corrected weight."""
    composed = layer.compose()
    dense = copy.deepcopy(layer.base)
    weight = dense.get_parameter("weight")
    weight.copy_(composed.T if is_conv1d(dense) else composed)
    return dense
