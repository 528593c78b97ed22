"""Saving and loading through transformers."""

import copy
import json
import subprocess
import sys
import textwrap

import pytest
import torch

from fastlr.nn import InterpolativeLinear, LowRankLinear, SparseLinear, compress_llm, load
from fastlr.nn.hf import describe_compressed
from fastlr.nn.modules.dense import is_dense_linear

CASES = [
    ("llama", "interpolative", torch.float32),
    ("llama", "factored", torch.bfloat16),
    ("llama", "interpolative", torch.bfloat16),
    ("qwen", "interpolative", torch.float16),
    ("gpt2", "interpolative", torch.float32),
    ("gpt2", "factored", torch.float32),
]


def run(code, *arguments):
    """A fresh Python process; its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def saved(make_model, tokens, tmp_path):
    """saved(architecture, form, dtype, **options) → (a compressed model, where it was saved)."""

    def save(architecture="llama", form="interpolative", dtype=torch.float32, tie=True, **options):
        from transformers import AutoModelForCausalLM

        model = make_model(architecture, dtype, tie=tie)
        place = tmp_path / f"{architecture}-{form}"
        # Loading first: a cast by .to() also rounds the rotary frequencies, which loading does not.
        model.save_pretrained(place / "dense")
        model = AutoModelForCausalLM.from_pretrained(place / "dense", dtype=dtype)
        compress_llm(
            model,
            0.3,
            method="svd_llm",
            form=form,
            calibration=tokens,
            samples=12,
            seq_len=24,
            progress=False,
        )
        model.save_pretrained(place / "low", **options)
        return model, place / "low"

    return save


@pytest.fixture
def saved_sparse(make_model, tmp_path):
    """saved_sparse(architecture, dtype) → (a model of sparse layers, where it was saved)."""

    def save(architecture="llama", dtype=torch.float32, **changes):
        from transformers import AutoModelForCausalLM

        place = tmp_path / f"{architecture}-sparse"
        make_model(architecture, dtype, **changes).save_pretrained(place / "dense")
        model = AutoModelForCausalLM.from_pretrained(place / "dense", dtype=dtype)
        for name, module in list(model.named_modules()):
            if is_dense_linear(module) and name != "lm_head":
                model.set_submodule(name, SparseLinear.from_dense(module, 0.7))
        describe_compressed(model)
        model.save_pretrained(place / "low")
        return model, place / "low"

    return save


LOADING = """
import sys
{imports}
import torch
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(torch.arange(3, 43)[None]).logits
torch.save(logits, sys.argv[2])
kinds = {{type(m).__name__ for m in model.modules()}}
print(sorted(kinds & {{"LowRankLinear", "InterpolativeLinear", "SparseLinear"}}))
"""
FIRST = "import fastlr\nassert 'transformers' not in sys.modules\n"
ORDERS = {
    "fastlr first": FIRST + "from transformers import AutoModelForCausalLM",
    "transformers first": "from transformers import AutoModelForCausalLM\nimport fastlr",
}


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_a_fresh_process_gives_the_same_bits(saved, logits, tmp_path, order):
    model, directory = saved("llama", "interpolative", torch.bfloat16)
    printed = run(LOADING.format(imports=ORDERS[order]), directory, tmp_path / "logits.pt")
    assert "InterpolativeLinear" in printed
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_sparse_layers_load_in_a_fresh_process(saved_sparse, logits, tmp_path):
    model, directory = saved_sparse("llama", torch.bfloat16, tie=True)
    printed = run(LOADING.format(imports=ORDERS["fastlr first"]), directory, tmp_path / "logits.pt")
    assert "SparseLinear" in printed
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("llama", torch.float32), ("qwen", torch.float16), ("gpt2", torch.float32)],
)
def test_sparse_layers_load_with_the_same_bits(saved_sparse, logits, architecture, dtype):
    model, directory = saved_sparse(architecture, dtype)
    again = load(directory)
    assert torch.equal(logits(again), logits(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert tensor.dtype == again.state_dict()[name].dtype
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    half = load(directory, dtype=torch.bfloat16)
    layers = [module for module in half.modules() if isinstance(module, SparseLinear)]
    assert layers
    for layer in layers:
        assert (layer.values.dtype, layer.mask.dtype) == (torch.bfloat16, torch.uint8)
        assert layer.damage() is None
    again.train()(torch.arange(3, 20)[None], labels=torch.arange(3, 20)[None]).loss.backward()
    assert all(p.grad is not None for p in again.parameters())


def test_a_damaged_mask_in_a_checkpoint_is_refused(saved_sparse):
    from safetensors.torch import load_file, save_file

    _, directory = saved_sparse()
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.mask"][3, 1] ^= 4
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"damaged: layer 'model.layers.1.mlp.up_proj': the mask"):
        load(directory)


@pytest.mark.parametrize(("architecture", "form", "dtype"), CASES)
def test_load_gives_the_same_bits(saved, logits, architecture, form, dtype):
    model, directory = saved(architecture, form, dtype)
    again = load(directory)
    kind = InterpolativeLinear if form == "interpolative" else LowRankLinear
    assert sum(isinstance(m, kind) for m in again.modules()) == len(model.fastlr_report.layers)
    assert torch.equal(logits(again), logits(model))
    assert again.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert tensor.dtype == again.state_dict()[name].dtype
    embeddings, head = again.get_input_embeddings(), again.get_output_embeddings()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (head.weight is embeddings.weight) == tied
    assert not again.training


@pytest.mark.parametrize("tie", [False, True])
def test_sharded_and_saved_again(saved, logits, tmp_path, tie):
    model, directory = saved(tie=tie, max_shard_size="20KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    again = load(directory)
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path / "twice")
    twice = load(tmp_path / "twice")
    assert torch.equal(logits(twice), logits(model))
    assert (twice.lm_head.weight is twice.model.embed_tokens.weight) == tie


def test_the_dense_form_saves_as_a_plain_model(saved, logits):
    model, directory = saved(form="dense")
    assert "quantization_config" not in json.loads((directory / "config.json").read_text())
    assert torch.equal(logits(load(directory)), logits(model))


def test_config_describes_every_layer(saved):
    model, directory = saved()
    written = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert written["quant_method"] == "fastlr"
    assert written["format_version"] == 1
    assert set(written["layers"]) == {layer.name for layer in model.fastlr_report.layers}
    assert written["layers"]["model.layers.0.self_attn.k_proj"] == {
        "class": "InterpolativeLinear",
        "in_features": 32,
        "out_features": 16,
        "rank": model.fastlr_report.layer("model.layers.0.self_attn.k_proj").rank,
        "bias": False,
        "side": model.model.layers[0].self_attn.k_proj.side,
    }
    assert not [path for path in directory.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


def test_without_fastlr_the_load_fails_loudly(saved):
    directories = [
        saved(architecture, form)[1]
        for architecture in ("llama", "gpt2")
        for form in ("interpolative", "factored")
    ]
    code = """
    import sys
    from transformers import AutoModelForCausalLM
    for directory in sys.argv[1:]:
        try:
            AutoModelForCausalLM.from_pretrained(directory)
        except RuntimeError as error:
            print("failed:", error)
    assert "fastlr" not in sys.modules
    """
    assert run(code, *directories).count("failed: You set `ignore_mismatched_sizes` to") == 4


def test_a_loaded_model_is_an_ordinary_one(saved, tokens):
    _, directory = saved()
    model = load(directory)
    assert not getattr(model, "is_quantized", False)
    assert getattr(model, "hf_quantizer", None) is None
    assert not getattr(model.config, "_is_quantized", False)
    batch = tokens[:48].reshape(2, 24)
    model.train()(batch, labels=batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.half().dtype == torch.float16
    assert model.float().dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.order.dtype == torch.int32
    copied = copy.deepcopy(model)
    assert copied.config.quantization_config.layers == model.config.quantization_config.layers
    with pytest.raises(ValueError, match="compressed already"):
        compress_llm(model, calibration=tokens, progress=False)


def test_dtype_at_load(saved, logits):
    model, directory = saved(dtype=torch.float32)
    half = load(directory, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    exact = logits(model)
    # 14 layers, the embedding and the head, each rounded to eight bits.
    assert (logits(half).float() - exact).norm() <= 0.1 * exact.norm()


def test_the_base_model_alone_loads(saved):
    from transformers import AutoModel

    model, directory = saved()
    base = AutoModel.from_pretrained(directory)
    inputs = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = model.model(inputs).last_hidden_state
        assert torch.equal(base(inputs).last_hidden_state, expected)


def test_generation_from_a_loaded_model(saved):
    model, directory = saved()
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    start = torch.arange(3, 13)[None]
    assert torch.equal(load(directory).generate(start, **options), model.generate(start, **options))


def test_a_model_from_gguf_can_be_saved(make_model, tokens, tmp_path, logits):
    from transformers.quantizers.quantizer_gguf import GgufHfQuantizer
    from transformers.utils.quantization_config import GgufConfig

    model = make_model("llama")
    # What from_pretrained(gguf_file=…) leaves on a model that it has dequantized.
    model.config.quantization_config = GgufConfig()
    model.hf_quantizer = GgufHfQuantizer(model.config.quantization_config)
    model.is_quantized, model.quantization_method = True, "gguf"
    model.config._is_quantized = True
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "refused")
    compress_llm(model, calibration=tokens, samples=12, seq_len=24, progress=False)
    model.save_pretrained(tmp_path / "low")
    assert torch.equal(logits(load(tmp_path / "low")), logits(model))
    dense = make_model("llama")
    dense.config.quantization_config = GgufConfig()
    dense.hf_quantizer = GgufHfQuantizer(dense.config.quantization_config)
    compress_llm(
        dense,
        method="svd_llm",
        form="dense",
        calibration=tokens,
        samples=12,
        seq_len=24,
        progress=False,
    )
    dense.save_pretrained(tmp_path / "dense")
    assert torch.equal(logits(load(tmp_path / "dense")), logits(dense))


def test_half_written_directories(saved, tmp_path):
    with pytest.raises(ValueError, match="there is no directory"):
        load(tmp_path / "nowhere")
    _, directory = saved(max_shard_size="20KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    content = shards[1].read_bytes()
    incomplete = "was not written completely: "
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"{incomplete}{shards[1].name} is missing"):
        load(directory)
    shards[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{incomplete}{shards[1].name} cannot be read"):
        load(directory)
    shards[1].write_bytes(content)
    load(directory)
    index = directory / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text[:40])
    with pytest.raises(ValueError, match=f"{incomplete}{index.name} cannot be read"):
        load(directory)
    index.unlink()
    with pytest.raises(ValueError, match=rf"{incomplete}model\.safetensors is missing"):
        load(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match=rf"{incomplete}config\.json is missing"):
        load(directory)


def test_a_checkpoint_with_holes_is_refused(saved):
    from safetensors.torch import load_file, save_file

    _, directory = saved()
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.coefficients"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not written completely: 1 tensors .*up_proj\.coeff"):
        load(directory)


def test_dense_weights_that_are_missing_are_not_filled_in(saved):
    from safetensors.torch import load_file, save_file

    _, directory = saved()
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing, the first is model\.norm\.wei"):
        load(directory)


def test_a_shard_that_is_no_safetensors_file(saved):
    _, directory = saved(max_shard_size="20KB")
    shard = sorted(directory.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    for damaged in (b"", b"\xff" * len(content), content[:8] + b"?" + content[9:], content + b"0"):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"not written completely: {shard.name} cannot be"):
            load(directory)


@pytest.mark.parametrize("kind", ["gptq", "bitsandbytes", "fp8", "of tomorrow"])
def test_models_of_another_quantization_are_not_loaded(saved, kind):
    _, directory = saved()
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": kind}}))
    with pytest.raises(ValueError, match=f"is quantized with {kind}; only models that fastlr"):
        load(directory)


def test_descriptions_this_version_does_not_know(saved):
    _, directory = saved()
    path = directory / "config.json"
    config = json.loads(path.read_text())

    def fails(match, change):
        altered = copy.deepcopy(config)
        change(altered["quantization_config"])
        path.write_text(json.dumps(altered))
        with pytest.raises(ValueError, match=match):
            load(directory)

    name = "model.layers.0.mlp.up_proj"
    fails("in format 2, .* update fastlr", lambda q: q.update(format_version=2))
    fails("unknown class 'Magic': update", lambda q: q["layers"][name].update({"class": "Magic"}))
    fails(
        "compresses the layer 'model.layers.9.x', which LlamaForCausalLM does not have",
        lambda q: q["layers"].update({"model.layers.9.x": q["layers"][name]}),
    )


def test_registration_may_be_repeated():
    from transformers.quantizers import auto

    from fastlr._transformers import register_on_import
    from fastlr.nn import hf

    hf.register()
    register_on_import()
    assert auto.AUTO_QUANTIZER_MAPPING["fastlr"].__name__ == "FastlrQuantizer"


def test_load_in_a_process_that_has_not_imported_transformers(saved, tmp_path, logits):
    model, directory = saved()
    code = """
    import sys
    from fastlr._transformers import register_on_import
    from fastlr.nn import load
    waiting = lambda: [f for f in sys.meta_path if type(f).__name__ == "_RegistryFinder"]
    register_on_import()
    assert len(waiting()) == 1
    assert "transformers" not in sys.modules
    model = load(sys.argv[1])
    assert not waiting()
    import torch, transformers.quantizers.auto as auto
    loaders = {type(auto.__loader__).__name__, type(auto.__spec__.loader).__name__}
    assert loaders == {"SourceFileLoader"}
    with torch.no_grad():
        torch.save(model(torch.arange(3, 43)[None]).logits, sys.argv[2])
    """
    run(code, directory, tmp_path / "logits.pt")
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))
