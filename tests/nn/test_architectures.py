"""Every architecture that compress_llm is for: compressed, saved, loaded, generating."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastlr.nn import InterpolativeLinear, RoutedExperts, compress_llm, export_dense, load

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 8}
MIXTURE = {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
# The type of the model → sizes of its own, and how many layers of a block are compressed.
ARCHITECTURES = {
    "llama": ({}, 7),
    "mistral": ({}, 7),
    "qwen2": ({}, 7),
    "qwen3": (HEADS, 7),
    "gemma2": (HEADS, 7),
    "gemma3_text": (HEADS, 7),
    "phi3": ({}, 4),  # queries, keys and values in one matrix, gate and up too
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}, 4),  # Conv1D
    "gpt_neox": ({}, 4),
    "opt": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, 6),
    "falcon": ({}, 4),
    "mixtral": (MIXTURE, 4 + 8),
    "qwen2_moe": ({**MIXTURE, "shared_expert_intermediate_size": 32}, 4 + 4 + 8),
    "qwen3_moe": ({**MIXTURE, **HEADS}, 4 + 8),
    "olmoe": (MIXTURE, 4 + 8),
    "gpt_oss": ({**MIXTURE, **HEADS}, 4 + 8),  # experts with biases, stored transposed
    "deepseek_v3": (
        {
            **MIXTURE,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
        None,  # the first block is dense, the second a mixture
    ),
}
every = pytest.mark.parametrize("architecture", ARCHITECTURES)
mixtures = pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "gpt_oss"])


def model_of(architecture, dtype=torch.float32, **changes):
    sizes, _ = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(architecture, **{**SIZES, **sizes, **changes})
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    torch.random.set_rng_state(state)
    return model


def text(*shape):
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(1))


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def linears(model, kind=torch.nn.Linear):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


@every
def test_full_rank_is_the_same_model(architecture):
    model, tokens = model_of(architecture), text(2, 16)
    expected = logits(model, tokens)
    compress_llm(
        model, 0.1, method="svd", form="interpolative", allocation={"*": 0.0}, progress=False
    )
    _, layers = ARCHITECTURES[architecture]
    if layers is not None:
        assert len(model.fastlr_report.layers) == 2 * layers
    # Layers whose r × r block is the identity: two blocks of some ten products each, of 64 terms at
    # most, with entries of coefficients up to 2.
    scale = float(expected.abs().max())
    assert (logits(model, tokens) - expected).abs().max() <= 2000 * 2.0**-24 * scale


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compressed_saved_loaded_and_generating(architecture, dtype, tmp_path):
    model, tokens = model_of(architecture, dtype), text(2, 16)
    compress_llm(model, 0.3, calibration=text(8, 16), progress=False)
    report = model.fastlr_report
    assert 0.3 <= report.ratio_achieved < 0.31
    assert len(report.layers) == len({layer.name for layer in report.layers})
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=dtype)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    written = loaded.generate(tokens, max_new_tokens=4, do_sample=False)
    assert torch.equal(written, model.generate(tokens, max_new_tokens=4, do_sample=False))


@every
def test_compiled(architecture):
    """Experts, whose tokens are counted as they come, run as they are between compiled parts."""
    # GPT-2 has another name for the number, and DeepSeek's first block is dense.
    blocks = {"gpt2": {"n_layer": 1}, "deepseek_v3": {}}.get(architecture, {"num_hidden_layers": 1})
    model, tokens = model_of(architecture, **blocks), text(2, 16)
    compress_llm(model, 0.3, method="svd", progress=False)
    compiled = torch.compile(model, backend="aot_eager")
    # The same products, maybe with their additions in another order.
    torch.testing.assert_close(logits(compiled, tokens), logits(model, tokens))
    torch._dynamo.reset()


_FRESH = """
import sys, torch
from fastlr.nn import load
for directory in sys.argv[1:]:
    tokens = torch.load(directory + "/tokens.pt")
    with torch.no_grad():
        torch.save(load(directory)(tokens).logits, directory + "/logits.pt")
"""


def test_a_fresh_process_loads_them(tmp_path):
    expected = {}
    for architecture in ARCHITECTURES:
        model, tokens = model_of(architecture), text(1, 8)
        compress_llm(model, 0.4, method="svd", progress=False)
        directory = tmp_path / architecture
        model.save_pretrained(directory)
        torch.save(tokens, directory / "tokens.pt")
        expected[directory] = logits(model, tokens)
    subprocess.run([sys.executable, "-c", _FRESH, *map(str, expected)], check=True)
    for directory, found in expected.items():
        assert torch.equal(torch.load(directory / "logits.pt"), found)


@every
def test_exported_as_a_plain_model(architecture, tmp_path):
    model, tokens = model_of(architecture), text(2, 16)
    compress_llm(model, 0.3, method="svd", progress=False)
    compressed = logits(model, tokens)
    plain = export_dense(model)
    assert {type(m) for m in plain.modules()} == {type(m) for m in model_of(architecture).modules()}
    # Weights that are composed and rounded: some twenty products of at most 64 terms.
    scale = float(compressed.abs().max())
    assert (logits(plain, tokens) - compressed).abs().max() <= 2000 * 2.0**-24 * scale
    plain.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    loaded, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    assert torch.equal(logits(loaded, tokens), logits(plain, tokens))


def test_what_cannot_be_exported():
    model = model_of("llama")
    compress_llm(model, 0.3, method="afm", calibration=text(8, 16), progress=False)
    with pytest.raises(ValueError, match=r"layer 'model.layers.0.\S+' has a bias, for which"):
        export_dense(model)
    assert linears(model, InterpolativeLinear)  # nothing was changed
    with pytest.raises(TypeError, match="model must be a PreTrainedModel"):
        export_dense(torch.nn.Linear(2, 2))


# ---- experts ----


@mixtures
def test_experts_apart_do_what_fused_ones_do(architecture):
    model = model_of(architecture)
    fused = model.get_submodule("model.layers.0.mlp.experts")
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
    fused.config._experts_implementation = "eager"
    experts = RoutedExperts(fused)
    tokens = torch.randn(30, 32, generator=torch.Generator().manual_seed(4)).requires_grad_()
    chosen = torch.randn(30, 4, generator=torch.Generator().manual_seed(5)).topk(2)
    weights = chosen.values.softmax(-1)
    close = {"rtol": 1e-5, "atol": 1e-6}  # sums of at most 64 terms of about 1: 64·2⁻²⁴ = 4e-6
    torch.testing.assert_close(
        experts(tokens, chosen.indices, weights), fused(tokens, chosen.indices, weights), **close
    )
    # Weights are views: nothing is stored twice.
    memory = {p.untyped_storage().data_ptr() for p in fused.parameters()}
    assert {p.untyped_storage().data_ptr() for p in experts.parameters()} == memory
    (of_apart,) = torch.autograd.grad(experts(tokens, chosen.indices, weights).sum(), tokens)
    (of_fused,) = torch.autograd.grad(fused(tokens, chosen.indices, weights).sum(), tokens)
    torch.testing.assert_close(of_apart, of_fused, rtol=1e-4, atol=1e-5)


@mixtures
def test_a_number_of_no_expert_stands_for_none(architecture):
    experts = RoutedExperts(model_of(architecture).get_submodule("model.layers.0.mlp.experts"))
    tokens, none = torch.ones(3, 32), torch.full((3, 2), 4)
    assert not experts(tokens, none, torch.ones(3, 2)).any()
    assert experts(torch.ones(0, 32), torch.ones(0, 2).long(), torch.ones(0, 2)).shape == (0, 32)


@mixtures
def test_experts_that_are_left_alone_stay_fused(architecture):
    model = model_of(architecture)
    names = {name for name, _ in model.named_parameters()}
    dense = {name: p for name, p in model.named_parameters() if "experts" in name}
    compress_llm(model, 0.3, method="svd", ignore="*experts*", progress=False)
    assert not linears(model, RoutedExperts)
    kept = {name: p for name, p in model.named_parameters() if name in names}
    assert all(kept[name] is p for name, p in dense.items())


def test_one_layer_of_one_expert(tmp_path):
    model, tokens = model_of("mixtral"), text(1, 8)
    compress_llm(model, 0.3, method="svd", targets="layers.1.mlp.experts.2.down", progress=False)
    assert list(linears(model, RoutedExperts)) == ["model.layers.1.mlp.experts"]
    assert list(linears(model, InterpolativeLinear)) == ["model.layers.1.mlp.experts.2.down"]
    # What is dense beside it does not keep the memory of all experts.
    rest = model.get_submodule("model.layers.1.mlp.experts.0.down").weight
    assert rest.untyped_storage().nbytes() == rest.nbytes
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["experts"] == ["model.layers.1.mlp.experts"]
    assert torch.equal(logits(load(tmp_path), tokens), logits(model, tokens))


def test_an_expert_that_is_never_chosen_is_named():
    model = model_of("mixtral")
    for block in model.model.layers:
        with torch.no_grad():  # scores of one sign for what norms leave positive
            block.post_attention_layernorm.weight.fill_(1)
            block.mlp.gate.weight[3] = 0
            block.mlp.gate.weight[:3] *= 1e-9
            block.mlp.gate.weight[3].sub_(1e4 * model.model.embed_tokens.weight[5])
    one_token = torch.full((2, 16), 5)
    with pytest.warns(UserWarning, match=r"layer 'model.layers.0.mlp.experts.3.\w+': .*never"):
        compress_llm(model, 0.3, method="svd_llm", calibration=one_token, progress=False)
    never = [layer for layer in model.fastlr_report.layers if "never" in (layer.note or "")]
    assert "model.layers.0.mlp.experts.3.gate_up" in {layer.name for layer in never}


@mixtures
def test_interrupted_models_keep_their_experts(architecture, monkeypatch):
    from fastlr.nn.compression import run

    model, tokens = model_of(architecture), text(1, 8)
    expected, before = logits(model, tokens), copy.deepcopy(model.state_dict())

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.CompressionRun, "_allocate", interrupt)
    with pytest.raises(KeyboardInterrupt, match="the model is as it was"):
        compress_llm(model, 0.3, method="svd", progress=False)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model, tokens), expected)


def test_calibration_leaves_experts_fused():
    from fastlr.nn.compression import calibrate

    model = model_of("mixtral")
    statistics = calibrate(model, text(4, 16), progress=False)
    assert "model.layers.0.mlp.experts.0.gate_up" in statistics.grams
    assert not linears(model, RoutedExperts)
    compress_llm(model, 0.3, method="svd_llm", calibration=statistics, progress=False)
    assert len(linears(model, RoutedExperts)) == 2


def test_experts_of_another_kind_stay_dense_and_are_named():
    model = model_of("mixtral")
    experts = model.get_submodule("model.layers.0.mlp.experts")
    experts.extra = torch.nn.Parameter(torch.ones(4, 2, 2))
    with pytest.raises(ValueError, match=r"RoutedExperts: MixtralExperts has more .*: extra"):
        RoutedExperts(experts)
    with pytest.raises(ValueError, match="Linear does not keep its experts as transformers does"):
        RoutedExperts(torch.nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="experts 'model.layers.0.mlp.experts' stay dense"):
        compress_llm(model, 0.3, method="svd", progress=False)
    assert list(linears(model, RoutedExperts)) == ["model.layers.1.mlp.experts"]


@pytest.mark.parametrize("method", ["saes", "rocket", "basis_sharing", "modegpt", "two_sided"])
def test_other_methods_of_a_mixture(method):
    model, tokens = model_of("qwen2_moe"), text(2, 16)
    compress_llm(model, 0.3, method=method, calibration=text(8, 32), progress=False)
    assert logits(model, tokens).isfinite().all()
    assert len(linears(model, RoutedExperts)) == 2
