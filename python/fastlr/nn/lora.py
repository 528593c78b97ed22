"""LoRA adapters of PEFT on layers of this package."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import nn

from fastlr.nn.modules.base import CompressedLinear


def lora_config(model: nn.Module, r: int = 8, **settings: Any) -> Any:
    """A configuration with which PEFT trains LoRA adapters on the layers of a compressed model.

    PEFT itself takes only layers whose classes it knows.

    Parameters
    ----------
    model : torch.nn.Module
        With layers of :func:`fastlr.nn.compress_llm` or :func:`fastlr.nn.compensate`; perhaps with
        adapters already.
    r : int, default 8
        The rank of the adapters.
    **settings
        Anything else of ``peft.LoraConfig``. By default `target_modules` are all compressed linear
        layers, and `lora_alpha` is `r`, a scale of 1.

    Returns
    -------
    peft.LoraConfig
        For ``peft.get_peft_model(model, config)``; and as ``config=`` of
        ``PeftModel.from_pretrained``, which cannot read from an adapter's files how these layers
        are adapted.

    Raises
    ------
    ImportError
        If PEFT is not installed.
    ValueError
        If `model` has no compressed linear layer.

    See Also
    --------
    fastlr.nn.merge : adds the trained adapters to the layers.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LowRankLinear, lora_config
    >>> model = torch.nn.Sequential(LowRankLinear(12, 12, 3), torch.nn.Linear(12, 2))
    >>> config = lora_config(model, r=2)
    >>> sorted(config.target_modules), config.r, config.lora_alpha
    (['0'], 2, 2)
    """
    peft = _peft()
    inner: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    # Where there is an adapter already, the layer is inside of it.
    names = [
        name.removesuffix(".base_layer")
        for name, module in inner.named_modules()
        if isinstance(module, CompressedLinear) and not _within_another(inner, name)
    ]
    if not names:
        raise ValueError("model has no compressed linear layer; peft.LoraConfig serves for it")
    config = peft.LoraConfig(**{"r": r, "lora_alpha": r, "target_modules": names, **settings})
    config._register_custom_module({CompressedLinear: adapter_class()})
    return config


def _within_another(model: nn.Module, name: str) -> bool:
    """Whether a layer is the base of a corrected one."""
    parent = name.rpartition(".")[0]
    return bool(parent) and isinstance(model.get_submodule(parent), CompressedLinear)


@functools.cache
def adapter_class() -> type[nn.Module]:
    """PEFT's LoRA layer, around layers whose weight cannot take up the adapter."""
    _peft()
    from peft.tuners.lora.layer import Linear

    class CompressedLora(Linear):  # type: ignore[misc]
        """LoRA around a layer of this package."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with warnings.catch_warnings():
                # PEFT warns of a class that it does not know.
                warnings.filterwarnings("ignore", "Unsupported layer type")
                super().__init__(*args, **kwargs)

        def merge(self, *args: Any, **kwargs: Any) -> None:
            """Raise ValueError: there is no dense weight."""
            raise ValueError(
                f"a {type(self.get_base_layer()).__name__} has no dense weight that an adapter "
                "could be merged into; use fastlr.nn.merge(model)"
            )

        def get_delta_weight(self, adapter: str) -> torch.Tensor:
            """What the adapter adds, o × i."""
            B, A = self.lora_B[adapter].weight, self.lora_A[adapter].weight
            delta: torch.Tensor = self.scaling[adapter] * (B @ A)
            return delta

    return CompressedLora


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA adapters need PEFT; install with: pip install peft") from error
    return peft
