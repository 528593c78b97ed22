"""Tiny random models of the shapes that matter, without any network."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCABULARY = 96


def _llama(tie=False, layers=2, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,  # grouped queries: k and v are 16×32
        "max_position_embeddings": 256,
        "tie_word_embeddings": tie,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def _qwen(**changes):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(  # q, k and v have a bias
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=2,
        )
    )


def _gpt2(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(  # Conv1D layers, tied embeddings, learned positions
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _opt(**changes):
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(  # biases everywhere, learned positions, fc1 and fc2 beside the attention
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=72,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


ARCHITECTURES = {"llama": _llama, "qwen": _qwen, "gpt2": _gpt2, "opt": _opt}


@pytest.fixture
def make_model():
    """make_model(architecture, **changes) builds a random model, the same one every time."""

    def make(architecture="llama", dtype=torch.float32, **changes):
        state = torch.random.get_rng_state()
        torch.manual_seed(3)
        try:
            model = ARCHITECTURES[architecture](**changes)
            # Larger than the default, so that the layers matter and the inputs are correlated.
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(6)
                    elif parameter.numel() and not bool(parameter.any()):
                        parameter.normal_(std=0.1)
        finally:
            torch.random.set_rng_state(state)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def tokens():
    """A stream of 2000 tokens in which some are much more frequent than others."""
    generator = torch.Generator().manual_seed(5)
    weights = 1 / torch.arange(1, VOCABULARY + 1).double()
    return torch.multinomial(weights, 2000, replacement=True, generator=generator)


@pytest.fixture
def prompt():
    return torch.arange(3, 43)[None]


@pytest.fixture
def logits(prompt):
    """logits(model): for the prompt."""

    def of(model):
        with torch.no_grad():
            return model(prompt).logits

    return of
