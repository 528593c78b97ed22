"""Letting a model continue a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int
) -> str:
    """Return the likeliest next tokens after `prompt`, as text."""
    import torch

    # Without special tokens, as in the calibration and the evaluation.
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    inputs = encoded["input_ids"].to(model.device)
    # What generate is declared to return is wider than what it returns for these arguments.
    generate: Any = model.generate
    with torch.no_grad():
        output = generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id or 0,
        )
    return str(tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True))
