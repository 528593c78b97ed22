"""Which models can be compressed, and what can be asked of one that predicts no next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from fastlr.nn.compression.settings import Settings

# Of the methods without the loss, what keeps the most of the layers' outputs for its time.
METHOD_WITHOUT_LOSS = "svd_llm"


def is_causal_lm(model: Any) -> bool:
    """Whether a transformers model is decoder-only and has a language modelling head."""
    head: object = cast(Any, model).get_output_embeddings()
    return model.can_generate() and head is not None and not model.config.is_encoder_decoder


def require_causal_lm(model: Any, subject: str = "model") -> None:
    """Raise unless `model` is a decoder-only transformers model with a language modelling head.

    `subject` begins the message: the name of the argument, and perhaps who needs such a model.
    """
    _require_transformers(model, subject)
    if not is_causal_lm(model):
        raise ValueError(
            f"{subject} must be a decoder-only causal language model with a language modelling "
            f"head (such as LlamaForCausalLM), got {type(model).__name__}"
        )


def require_accepted(model: Any, targets: str | Sequence[str] | None) -> bool:
    """Whether `model` is a causal language model; raise unless that or one of known targets.

    Raises
    ------
    TypeError
        If it is no transformers model.
    ValueError
        If it is an encoder-decoder or reads no tokens; if it has no causal head, and `targets` is
        None.
    """
    _require_transformers(model)
    if is_causal_lm(model):
        return True
    if targets is None or model.config.is_encoder_decoder:
        raise ValueError(
            "model must be a decoder-only causal language model with a language modelling head "
            "(such as LlamaForCausalLM), or, with targets= given, an encoder (such as BertModel), "
            f"got {type(model).__name__}"
        )
    if model.main_input_name != "input_ids":
        raise ValueError(
            f"model must read tokens (input_ids), {type(model).__name__} reads "
            f"{model.main_input_name}; fastlr.nn.compress takes modules of any kind"
        )
    return False


def require_no_loss(model: Any, settings: Settings, heal_steps: int, calibration: object) -> None:
    """Raise ValueError if what is asked for needs a head that predicts tokens, which is missing."""
    absent = f"which {type(model).__name__} has no head for"
    if settings.method.gradients or settings.allocation == "loss":
        raise ValueError(
            f"method={settings.name!r} needs the loss of predicted tokens, {absent}; "
            f'"{METHOD_WITHOUT_LOSS}" is among the methods that do not'
        )
    if heal_steps:
        raise ValueError(f"heal_steps must be 0: healing learns predicted tokens, {absent}")
    if calibration is None and settings.needs_calibration:
        raise ValueError(
            f"calibration must be given: without it a model generates its own text, {absent}"
        )


def _require_transformers(model: Any, subject: str = "model") -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"{subject} must be a causal language model of transformers (a PreTrainedModel), got "
            + type(model).__name__
        )
