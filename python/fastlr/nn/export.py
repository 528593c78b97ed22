"""A compressed model as the plain one that it stands for."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastlr.nn import hf
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.dense import is_conv1d
from fastlr.nn.modules.experts import RoutedExperts
from fastlr.nn.modules.replace import replace_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_dense(model: PreTrainedModel) -> PreTrainedModel:
    """Make a compressed model a plain one of transformers, with the same function and dense layers.

    For tools that know nothing of fastlr: it can be saved and loaded, quantized or converted as the
    original. It has the size of the original, too.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Compressed by :func:`fastlr.nn.compress_llm`, or loaded; changed in place. Layers that are
        dense already are left alone, and a model without any compressed layer as it is.

    Returns
    -------
    transformers.PreTrainedModel
        `model` itself, without its ``fastlr_report``.

    Raises
    ------
    TypeError
        If `model` is no transformers model.
    ValueError
        If a compressed layer has a bias and the original none, as with method "afm": the plain
        model has no place for it. Nothing is changed then.

    Notes
    -----
    Each weight is composed in float64 and rounded once. 2·r·o·i flops for a layer of rank r. In
    memory are the dense weights beside the compressed ones.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compress_llm, export_dense
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2))
    >>> model = export_dense(compress_llm(model, 0.5, method="svd", progress=False))
    >>> model.model.layers[0].mlp.up_proj
    Linear(in_features=32, out_features=64, bias=False)
    >>> int(torch.linalg.matrix_rank(model.model.layers[0].mlp.up_proj.weight)) < 32
    True
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a PreTrainedModel of transformers, got {type(model)}")
    original = _empty_original(model)
    replacements: dict[str, nn.Module] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            within = any(name.startswith(f"{done}.") for done in replacements)
            if isinstance(module, RoutedExperts):
                replacements[name] = module.fused_as(original.get_submodule(name))
            elif isinstance(module, CompressedLinear) and not within:
                replacements[name] = _dense_as(name, module, original.get_submodule(name))
    replace_modules(model, replacements)
    hf.forget_quantizer(model)
    model.config.__dict__.pop("quantization_config", None)
    model.__dict__.pop("fastlr_report", None)
    return model


def _empty_original(model: PreTrainedModel) -> nn.Module:
    """The model without weights, as its class builds it."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    build: Any = type(model)
    with torch.device("meta"):
        original: nn.Module = build(config)
    return original


def _dense_as(name: str, module: CompressedLinear, original: nn.Module) -> nn.Module:
    """The dense layer of the original's class."""
    dense = module.to_dense()
    if dense.bias is not None and original.bias is None:
        raise ValueError(
            f"export_dense: layer {name!r} has a bias, for which the original model has no place"
        )
    built = original.to_empty(device=dense.weight.device).to(dense.weight.dtype)
    built.get_parameter("weight").copy_(dense.weight.T if is_conv1d(original) else dense.weight)
    if original.bias is not None:
        built.get_parameter("bias").copy_(torch.zeros(()) if dense.bias is None else dense.bias)
    return built.requires_grad_(next(module.parameters()).requires_grad)
