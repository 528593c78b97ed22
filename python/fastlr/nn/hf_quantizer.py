"""fastlr's classes for transformers' registry of quantizers.

Importing it registers them, and imports transformers: only :func:`fastlr.nn.hf.register` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fastlr.nn.modules import (
    BorrowedLinear,
    CorrectedLinear,
    CURLinear,
    DictionaryLinear,
    InterpolativeLinear,
    KroneckerLinear,
    LowRankLinear,
    LowRankPlusDiagonal,
    MonarchLinear,
    QuantizedLinear,
    SharedBasisLinear,
    SparseLinear,
    SubsetLinear,
)
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.experts import RoutedExperts
from fastlr.nn.modules.replace import replace_modules

QUANT_METHOD = "fastlr"
FORMAT_VERSION = 1
# Of a layer without a basis, or without any numbers, of its own: the name of the one that lends it.
LENDER = "lender"
CLASSES: dict[str, type[CompressedLinear]] = {
    "BorrowedLinear": BorrowedLinear,
    "CURLinear": CURLinear,
    "DictionaryLinear": DictionaryLinear,
    "InterpolativeLinear": InterpolativeLinear,
    "KroneckerLinear": KroneckerLinear,
    "LowRankLinear": LowRankLinear,
    "LowRankPlusDiagonal": LowRankPlusDiagonal,
    "MonarchLinear": MonarchLinear,
    "QuantizedLinear": QuantizedLinear,
    "SharedBasisLinear": SharedBasisLinear,
    "SparseLinear": SparseLinear,
    "SubsetLinear": SubsetLinear,
}


@register_quantization_config(QUANT_METHOD)
class FastlrConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a compressed model: what stands in place of which layer.

    Parameters
    ----------
    layers : dict
        Layer name → class name and the arguments that build an empty layer.
    experts : list of str
        The names of the experts whose layers are modules of their own.
    format_version : int
        Of this description.
    fastlr_version : str
        That wrote it.

    Raises
    ------
    ValueError
        If the description is of a later format than this version knows.
    """

    def __init__(
        self,
        layers: dict[str, dict[str, Any]] | None = None,
        experts: list[str] | None = None,
        format_version: int = FORMAT_VERSION,
        fastlr_version: str = "",
        quant_method: str = QUANT_METHOD,
    ) -> None:
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint was written by fastlr {fastlr_version} in format "
                f"{format_version}, this version reads up to {FORMAT_VERSION}: update fastlr"
            )
        self.quant_method = quant_method  # type: ignore[assignment]
        self.layers = layers if layers is not None else {}
        self.experts = experts if experts is not None else []
        self.format_version = format_version
        self.fastlr_version = fastlr_version

    @classmethod
    def of(cls, model: nn.Module) -> FastlrConfig:
        """The description of the compressed layers of `model`."""
        import fastlr

        compressed = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, CompressedLinear)
        }
        layers = {
            name: {"class": type(module).__name__, **module.structure()}
            for name, module in compressed.items()
        }
        names = {id(module): name for name, module in compressed.items()}
        for name, module in compressed.items():
            borrows = isinstance(module, SharedBasisLinear) and module.basis is None
            if isinstance(module, BorrowedLinear) or borrows:
                layers[name][LENDER] = names[id(module.lender)]
        experts = [n for n, module in model.named_modules() if isinstance(module, RoutedExperts)]
        return cls(layers, experts, fastlr_version=fastlr.__version__)

    def build(self, name: str, replaced: nn.Module) -> CompressedLinear:
        """An empty layer on the meta device, as `name` was, in place of or around `replaced`."""
        dtype = replaced.get_parameter("weight").dtype
        arguments = {key: value for key, value in self.layers[name].items() if key != LENDER}
        kind = arguments.pop("class")
        if kind == CorrectedLinear.__name__:
            return CorrectedLinear(replaced, **arguments, device="meta", dtype=dtype)
        if kind not in CLASSES:
            raise ValueError(
                f"this checkpoint's layer {name!r} is of the unknown class {kind!r}: update fastlr"
            )
        return CLASSES[kind](**arguments, device="meta", dtype=dtype)

    def lend(self, built: Mapping[str, CompressedLinear]) -> None:
        """Let layers that borrow know from which they do."""
        for name, description in self.layers.items():
            if LENDER in description:
                borrower: Any = built[name]
                borrower.borrow(built[description[LENDER]])


@register_quantizer(QUANT_METHOD)
class FastlrQuantizer(HfQuantizer):
    """Puts empty compressed layers into a model before transformers loads its weights."""

    quantization_config: FastlrConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ValueError(
                "a fastlr config describes a model that is compressed already; use "
                "fastlr.nn.compress_llm to compress one"
            )
        for name in map(partial(_name_in, model), self.quantization_config.experts):
            replace_modules(model, {name: RoutedExperts(model.get_submodule(name))})
        built = {}
        for name in self.quantization_config.layers:
            own_name = _name_in(model, name)
            built[name] = self.quantization_config.build(name, model.get_submodule(own_name))
            replace_modules(model, {own_name: built[name]})
        self.quantization_config.lend(built)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Refuse a checkpoint with holes, then hand back a model with plain weights."""
        from fastlr.nn.hf import forget_quantizer

        missing = [
            f"{name}.{key}"
            for name, module in model.named_modules()
            if isinstance(module, CompressedLinear) and not hasattr(module, "_hf_hook")
            for key, tensor in (*module.named_parameters(), *module.named_buffers())
            if not getattr(tensor, "_is_hf_initialized", False)
        ]
        if missing:
            raise ValueError(
                f"the checkpoint was not written completely: {len(missing)} tensors of compressed "
                f"layers are missing, the first is {missing[0]}"
            )
        for name, module in model.named_modules():
            damage = module.damage() if isinstance(module, CompressedLinear) else None
            if damage is not None:
                raise ValueError(f"the checkpoint is damaged: layer {name!r}: {damage}")
        forget_quantizer(model)
        model.config.quantization_config = self.quantization_config
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _name_in(model: Any, name: str) -> str:
    """The name of a layer in `model`, which may be the saved model's base or have it as a part."""
    prefix = model.base_model_prefix + "."
    names = (name, name.removeprefix(prefix), prefix + name)
    for candidate in names:
        try:
            model.get_submodule(candidate)
        except AttributeError:
            continue
        return candidate
    raise ValueError(
        f"this checkpoint compresses the layer {name!r}, which {type(model).__name__} does not have"
    )
