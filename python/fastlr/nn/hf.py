"""Saving and loading through transformers, which is not imported before it is needed."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fastlr.nn.modules.applied_weight import is_plain
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.corrected_linear import CorrectedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def register() -> None:
    """Teach transformers to load what fastlr has saved. Imports transformers; may be repeated."""
    importlib.import_module("fastlr.nn.hf_quantizer")


def describe_compressed(model: PreTrainedModel) -> None:
    """Write the layers of a compressed model into its config, so that it can be saved and loaded.

    What is left of a GGUF file that the model was read from is removed: the weights are plain
    tensors now. A model without any low-rank layer is described as a plain one.
    """
    from fastlr.nn.hf_quantizer import FastlrConfig

    forget_quantizer(model)
    config = FastlrConfig.of(model)
    if config.layers:
        model.config.quantization_config = config


def forget_quantizer(model: PreTrainedModel) -> None:
    """Make transformers treat `model` as one with plain weights: trainable, castable, saveable."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "_is_quantized", False):
            config._is_quantized = False


def describe_corrected(model: PreTrainedModel) -> None:
    """:func:`describe_compressed`, of a model that may have corrections beside any layers.

    Of one that another tool has quantized, ``save_pretrained`` raises ValueError from now on: that
    tool's loader knows nothing of corrections, and would fill the layers with anything.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or is_dequantized_gguf(model):
        model.config.__dict__.pop("quantization_config", None)
        if all(is_plain(base) or isinstance(base, CompressedLinear) for base in _bases(model)):
            describe_compressed(model)
    elif any(True for _ in _bases(model)):
        quantizer.is_serializable = _not_serializable


def _bases(model: PreTrainedModel) -> Iterator[nn.Module]:
    """What stands beside corrections."""
    return (module.base for module in model.modules() if isinstance(module, CorrectedLinear))


def _not_serializable(*_: Any, **__: Any) -> bool:
    raise ValueError(
        "save_pretrained: layers of another quantizer with corrections beside them could not be "
        "loaded again; save the corrections with fastlr.nn.to_peft(model, directory), for use with "
        "the model as it was"
    )


def is_dequantized_gguf(model: PreTrainedModel) -> bool:
    """Whether `model` was read from a GGUF file and unpacked into plain float weights."""
    quantizer = getattr(model, "hf_quantizer", None)
    kind = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    return getattr(kind, "value", kind) == "gguf"


def load(directory: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Load a model that fastlr has compressed and ``save_pretrained`` has saved.

    The same as ``from_pretrained`` of the model's class in transformers, which the directory's
    config names (``LlamaForCausalLM``, ``BertModel``, …), with a check of the directory first, so
    that one that was not written completely is reported as such.

    Parameters
    ----------
    directory : str or path
        A local directory.
    **kwargs
        Passed on to ``from_pretrained`` (``dtype=``, ``device_map=``, …).

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, with the saved dtype unless ``dtype=`` says otherwise.

    Raises
    ------
    ValueError
        If the directory does not exist, a file or a weight is missing or incomplete, the model is
        quantized, or transformers has no class of the name.

    Examples
    --------
    >>> import tempfile, torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compress_llm, load
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4)).eval()
    >>> model = compress_llm(model, calibration=torch.arange(64), seq_len=16, progress=False,
    ...                      samples=4)
    >>> directory = tempfile.mkdtemp()
    >>> model.save_pretrained(directory)
    >>> tokens = torch.arange(8)[None]
    >>> with torch.no_grad():
    ...     torch.equal(load(directory)(tokens).logits, model(tokens).logits)
    True
    """
    check_directory(Path(directory), "load")
    register()
    kind = model_class(Path(directory), "load")
    loaded = kind.from_pretrained(os.fspath(directory), output_loading_info=True, **kwargs)
    model: PreTrainedModel = loaded[0]
    absent = sorted(loaded[1]["missing_keys"])
    if absent:
        raise ValueError(
            f"load: the directory {os.fspath(directory)!r} was not written completely: the weights "
            f"of {len(absent)} tensors are missing, the first is {absent[0]}"
        )
    return model


def model_class(directory: Path, caller: str) -> Any:
    """The class that the config names; for code of the model's own, transformers' automatic one.

    ValueError if it names none, or the weights are quantized by another tool.
    """
    import transformers

    config = _read_config(directory, caller)
    names, own = config.get("architectures") or [], config.get("auto_map") or {}
    if own:
        causal = "AutoModelForCausalLM" in own
        return transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    kind = getattr(transformers, str(names[0]), None) if len(names) == 1 else None
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise ValueError(
            f"{caller}: architectures in the config of {str(directory)!r} must name one model "
            f"class of transformers, got {names}; load it by from_pretrained of its own class"
        )
    return kind


def _read_config(directory: Path, caller: str) -> dict[str, Any]:
    """The model's config, of plain weights or of compressed layers; ValueError for any other."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{caller}: {str(path)!r} is not a model's config ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{caller}: {str(path)!r} is not a model's config, but a {type(config)}")
    kind = (config.get("quantization_config") or {}).get("quant_method", "fastlr")
    if kind != "fastlr":
        raise ValueError(
            f"{caller}: the model in {str(directory)!r} is quantized with {kind}; only models that "
            "fastlr has compressed, and dense ones, can be loaded"
        )
    return config


def check_directory(directory: Path, caller: str) -> None:
    """Raise ValueError unless `directory` holds a complete checkpoint in safetensors files."""
    if not directory.is_dir():
        raise ValueError(f"{caller}: there is no directory {str(directory)!r}")
    incomplete = _incomplete(directory, caller)
    if not (directory / "config.json").is_file():
        raise ValueError(incomplete + "config.json is missing")
    for name in weight_files(directory, caller):
        path = directory / name
        if not path.is_file():
            raise ValueError(incomplete + f"{name} is missing")
        _check_file(path, incomplete)


def weight_files(directory: Path, caller: str) -> list[str]:
    """The files that transformers will read: a single one goes before the shards of an index."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single.name]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError) as error:
        incomplete = _incomplete(directory, caller)
        raise ValueError(incomplete + f"{index.name} cannot be read ({error})") from error


def _incomplete(directory: Path, caller: str) -> str:
    return f"{caller}: the directory {str(directory)!r} was not written completely: "


def _check_file(path: Path, incomplete: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(incomplete + f"{path.name} cannot be read ({error})") from error
