"""Corrections of low rank as the files of a PEFT adapter."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.corrected_linear import CorrectedLinear
from fastlr.nn.modules.dense import is_conv1d
from fastlr.nn.output import write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def to_peft(model: PreTrainedModel, path: str | os.PathLike[str]) -> None:
    """Save the corrections of a model as a LoRA adapter of PEFT.

    ``PeftModel.from_pretrained(base, path)``, with the model as it was before the corrections, does
    what `model` does. That is how to keep a model which another tool has quantized: as that tool
    saves it, and these files beside it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With corrections from :func:`fastlr.nn.compensate`; not changed.
    path : str or path
        A directory, made where there is none. ``adapter_config.json`` and
        ``adapter_model.safetensors`` in it are replaced.

    Raises
    ------
    TypeError
        If `model` is no transformers model.
    ValueError
        If a layer is not one of another package with a correction beside it, as one of low rank
        that is a layer's only weight; if there are no corrections, or adapters of PEFT beside them;
        if `path` is a file. Nothing is written then.

    See Also
    --------
    fastlr.nn.merge : the corrections in the weights.

    Notes
    -----
    A is ``lora_A``, B ``lora_B``; each layer has its own rank, and the scale α/r is 1. Written in
    the dtype of the corrections: r·(o + i) numbers a layer. PEFT itself is not needed for it. The
    files are put in place when they are complete.

    Examples
    --------
    >>> import copy, json, tempfile, torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compensate, to_peft
    >>> original = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4)).eval()
    >>> lossy = copy.deepcopy(original)
    >>> with torch.no_grad():
    ...     _ = lossy.model.layers[0].mlp.up_proj.weight.mul_(0.9)
    >>> corrected = compensate(copy.deepcopy(lossy), original, rank=4, targets="up_proj",
    ...                        calibration=torch.arange(64), seq_len=16, samples=4, progress=False)
    >>> directory = tempfile.mkdtemp()
    >>> to_peft(corrected, directory)
    >>> with open(directory + "/adapter_config.json") as file:
    ...     json.load(file)["target_modules"]
    ['model.layers.0.mlp.up_proj']
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a PreTrainedModel of transformers, got {type(model)}")
    corrections = _corrections(model)
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ValueError(f"to_peft: path must be a directory, {os.fspath(path)!r} is a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".to_peft-") as unfinished:
        config = json.dumps(_config(model, corrections), indent=2, sort_keys=True)
        (Path(unfinished) / CONFIG).write_text(config + "\n", encoding="utf-8")
        write_tensors(Path(unfinished) / WEIGHTS, _tensors(corrections), {"format": "pt"})
        target.mkdir(exist_ok=True)
        for name in (WEIGHTS, CONFIG):  # PEFT looks for the second one first
            os.replace(Path(unfinished) / name, target / name)


def _corrections(model: PreTrainedModel) -> dict[str, CorrectedLinear]:
    if getattr(model, "peft_config", None):
        raise ValueError("to_peft: model has adapters of PEFT; merge them first")
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, CorrectedLinear) and not isinstance(module.base, CompressedLinear):
            found[name] = module
        elif isinstance(module, CompressedLinear):
            raise ValueError(
                f"to_peft: layer {name!r} is not a layer of the original's kind with a correction "
                f"beside it, but {_described(module)}"
            )
    if not found:
        raise ValueError("to_peft: model has no corrections; fastlr.nn.compensate makes them")
    return found


def _described(module: CompressedLinear) -> str:
    if isinstance(module, CorrectedLinear):
        return f"a {type(module.base).__name__} with one"
    return f"a {type(module).__name__}"


def _config(model: PreTrainedModel, corrections: Mapping[str, CorrectedLinear]) -> dict[str, Any]:
    # The keys of PEFT's patterns are regular expressions.
    ranks = {re.escape(name): layer.rank for name, layer in corrections.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(model.config, "_name_or_path", "") or None,
        "target_modules": list(corrections),
        "r": max(ranks.values()),
        "rank_pattern": ranks,
        # The scale of a layer's update is α/r.
        "lora_alpha": max(ranks.values()),
        "alpha_pattern": ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": all(is_conv1d(layer.base) for layer in corrections.values()),
        "inference_mode": True,
    }


def _tensors(corrections: Mapping[str, CorrectedLinear]) -> dict[str, Tensor]:
    return {
        f"base_model.model.{name}.lora_{key}.weight": factor.detach().cpu().contiguous()
        for name, layer in corrections.items()
        for key, factor in (("A", layer.A), ("B", layer.B))
    }
