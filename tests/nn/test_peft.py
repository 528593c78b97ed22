"""Corrections as adapters of PEFT, and adapters of PEFT on compressed layers."""

import copy
import json
import warnings

import pytest
import torch
from four_bits import bitsandbytes
from torch import nn

from fastlr.nn import (
    CorrectedLinear,
    InterpolativeLinear,
    LowRankLinear,
    SparseLinear,
    compensate,
    compress_llm,
    load,
    lora_config,
    merge,
    to_peft,
)
from fastlr.nn.hf import describe_compressed
from fastlr.nn.modules.dense import is_dense_linear
from fastlr.nn.modules.replace import replace_modules

peft = pytest.importorskip("peft", reason="the adapters are PEFT's")

U32, U64 = 2.0**-24, 2.0**-53
CALIBRATION = {"samples": 8, "seq_len": 24, "progress": False}


def replaced(model, build):
    found = {n: m for n, m in model.named_modules() if is_dense_linear(m) and n != "lm_head"}
    replace_modules(model, {name: build(module) for name, module in found.items()})
    return model


def scaled(model):
    """A copy with worse weights."""
    lossy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, module in lossy.named_modules():
            if is_dense_linear(module) and name != "lm_head":
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.mul_(1 + 0.2 * noise.to(module.weight.dtype))
    return lossy


def near(found, wanted, u=U32):
    """Sums in another order in two blocks: 1e3 roundings of the largest logit."""
    return bool((found - wanted).abs().max() <= 1e3 * u * wanted.abs().max())


def trained(model, config, tokens, steps=20):
    """A PeftModel, and its loss on the same tokens before and after."""
    adapted = peft.get_peft_model(model, config)
    chosen = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(chosen, 1e-2)
    batch = tokens[:192].view(8, 24)
    losses = []
    for _ in range(steps):
        loss = adapted(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    return adapted.eval()


@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2"])
def test_the_files_give_the_same_logits(make_model, tokens, logits, tmp_path, architecture):
    original = make_model(architecture, torch.float64)
    lossy = scaled(original)
    corrected = compensate(
        copy.deepcopy(lossy), original, ratio=0.15, calibration=tokens, **CALIBRATION
    )
    assert len({layer.rank for layer in corrected.fastlr_report.layers}) > 1
    to_peft(corrected, tmp_path / "adapter")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter"}
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fan_in_fan_out")  # which PEFT would put right
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(lossy), tmp_path / "adapter")
    assert near(logits(adapted), logits(corrected), U64)
    assert not near(logits(adapted), logits(lossy), U64)
    # PEFT knows the layers: its own merge works, too.
    assert near(logits(adapted.merge_and_unload()), logits(corrected), U64)


def test_the_files_serve_a_quantized_model(make_model, tokens, logits, tmp_path):
    bitsandbytes()
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    original = make_model()
    original.save_pretrained(tmp_path / "dense")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", quantization_config=settings, device_map="cpu"
    )
    quantized.save_pretrained(tmp_path / "quantized")
    corrected = compensate(quantized, original, rank=4, calibration=tokens, **CALIBRATION)
    to_peft(corrected, tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized", device_map="cpu")
    before = logits(again)
    adapted = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert near(logits(adapted), logits(corrected))
    assert torch.dist(logits(adapted), logits(original)) < torch.dist(before, logits(original))


def test_what_is_no_base_with_a_correction_is_refused(make_model, tokens, tmp_path):
    low = compress_llm(
        make_model(), 0.4, method="svd_llm", form="factored", calibration=tokens, **CALIBRATION
    )
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.q_proj' is not .* LowRank"):
        to_peft(low, tmp_path / "out")
    original = make_model()
    sparse = replaced(make_model(), lambda layer: SparseLinear.from_dense(layer, 0.5))
    compensate(sparse, original, rank=1, calibration=tokens, **CALIBRATION)
    with pytest.raises(ValueError, match=r"q_proj' is not .* a SparseLinear with one"):
        to_peft(sparse, tmp_path / "out")
    with pytest.raises(ValueError, match="has no corrections"):
        to_peft(original, tmp_path / "out")
    with pytest.raises(TypeError, match="must be a PreTrainedModel"):
        to_peft(nn.Linear(2, 2), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    corrected = compensate(scaled(original), original, rank=1, calibration=tokens, **CALIBRATION)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        to_peft(corrected, tmp_path / "file")


def test_files_are_replaced_and_nothing_is_half_written(make_model, tokens, tmp_path, monkeypatch):
    import safetensors.torch

    original = make_model()
    corrected = compensate(scaled(original), original, rank=1, calibration=tokens, **CALIBRATION)
    to_peft(corrected, tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_config.json").read_text()

    def full(*arguments, **more):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        to_peft(corrected, tmp_path / "adapter")
    with pytest.raises(OSError, match="no space"):
        to_peft(corrected, tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter"}
    monkeypatch.undo()
    twice = compensate(scaled(original), original, rank=2, calibration=tokens, **CALIBRATION)
    to_peft(twice, tmp_path / "adapter")
    after = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (json.loads(before)["r"], after["r"]) == (1, 2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_corrections_are_merged_into_dense_layers(
    make_model, tokens, logits, tmp_path, architecture
):
    original = make_model(architecture)
    corrected = compensate(scaled(original), original, rank=3, calibration=tokens, **CALIBRATION)
    wanted = logits(corrected)
    assert merge(corrected) is corrected
    assert near(logits(corrected), wanted)
    assert not any(isinstance(module, CorrectedLinear) for module in corrected.modules())
    assert [type(m) for m in corrected.modules()] == [type(m) for m in original.modules()]
    # A plain checkpoint again.
    corrected.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(load(tmp_path)), logits(corrected))


def test_a_merged_weight_is_rounded_once(make_model, tokens):
    original = make_model(dtype=torch.bfloat16)
    corrected = compensate(scaled(original), original, rank=3, calibration=tokens, **CALIBRATION)
    exact = corrected.model.layers[0].mlp.up_proj.compose()
    merged = merge(corrected).model.layers[0].mlp.up_proj.weight
    assert torch.equal(merged, exact.to(torch.bfloat16))


KINDS = {
    LowRankLinear: lambda layer: LowRankLinear.from_dense(layer, ratio=0.2),
    InterpolativeLinear: lambda layer: InterpolativeLinear.from_dense(layer, ratio=0.2),
    SparseLinear: lambda layer: SparseLinear.from_dense(layer, 0.7),
    CorrectedLinear: lambda layer: CorrectedLinear(SparseLinear.from_dense(layer, 0.5), 2),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("architecture", ["llama", "qwen"])
def test_adapters_on_compressed_layers_train_and_merge(
    make_model, tokens, logits, tmp_path, architecture, kind
):
    model = replaced(make_model(architecture), KINDS[kind])
    describe_compressed(model)
    adapted = trained(model, lora_config(model, 4, lora_alpha=6, lora_dropout=0.1), tokens)
    wanted = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = merge(adapted)
    assert merged is model
    assert near(logits(merged), wanted)
    assert not any("lora" in name for name, _ in merged.named_modules())
    layer = merged.model.layers[0].mlp.up_proj
    if kind is LowRankLinear:
        assert type(layer) is LowRankLinear
        assert layer.rank == KINDS[kind](nn.Linear(layer.in_features, layer.out_features)).rank + 4
    else:
        assert layer.rank == 4 + 2 * (kind is CorrectedLinear)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), logits(merged))
    # The adapter's own files, on the compressed model as it was.
    fresh = replaced(make_model(architecture), KINDS[kind])
    if kind is not CorrectedLinear:  # whose untrained factors are random
        config = lora_config(fresh, 4, lora_alpha=6)
        again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter", config=config)
        assert near(logits(again.eval()), wanted)


def test_ranks_that_add_up_to_more_than_full(make_model, tokens, logits):
    def build(layer):
        return LowRankLinear.from_dense(layer, min(layer.weight.shape) - 2)

    adapted = trained(model := replaced(make_model(), build), lora_config(model, 6), tokens)
    wanted = logits(adapted)
    merged = merge(adapted)
    assert near(logits(merged), wanted)
    assert merged.model.layers[0].self_attn.k_proj.rank == 16
    assert merged.model.layers[0].mlp.down_proj.rank == 32


def test_adapters_on_dense_and_compressed_layers_at_once(make_model, tokens, logits):
    model = make_model()
    low = InterpolativeLinear.from_dense(model.model.layers[0].mlp.up_proj, ratio=0.2)
    model.model.layers[0].mlp.up_proj = low
    adapted = trained(model, lora_config(model, target_modules=["up_proj", "v_proj"]), tokens)
    wanted = logits(adapted)
    merged = merge(adapted)
    assert near(logits(merged), wanted)
    assert type(merged.model.layers[0].mlp.up_proj) is CorrectedLinear
    assert type(merged.model.layers[1].mlp.up_proj) is nn.Linear


def test_several_adapters_and_one_that_is_not_active(make_model, tokens, logits):
    model = replaced(make_model(), KINDS[LowRankLinear])
    adapted = trained(model, lora_config(model, 2), tokens)
    adapted.add_adapter("other", lora_config(adapted, 3, init_lora_weights=False))
    adapted.base_model.set_adapter(["default", "other"])
    both = copy.deepcopy(adapted)
    wanted = logits(both)
    assert near(logits(merge(both)), wanted)
    adapted.set_adapter("other")
    wanted = logits(adapted)
    merged = merge(adapted)
    assert near(logits(merged), wanted)
    assert not near(logits(merged), logits(both))


def test_what_peft_does_without_help(make_model):
    model = replaced(make_model(), KINDS[LowRankLinear])
    with pytest.raises(ValueError, match=r"LowRankLinear.* is not supported"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    model = replaced(make_model(), KINDS[LowRankLinear])
    adapted = peft.get_peft_model(model, lora_config(model))
    with pytest.raises(ValueError, match=r"use fastlr\.nn\.merge"):
        adapted.merge_and_unload()


def test_what_cannot_be_merged(make_model, tokens, logits):
    with pytest.raises(ValueError, match="there is nothing to merge"):
        merge(make_model())
    with pytest.raises(TypeError, match="PeftModel around one, got Linear"):
        merge(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no compressed linear layer"):
        lora_config(make_model())
    model = replaced(make_model(), KINDS[LowRankLinear])
    adapted = peft.get_peft_model(model, lora_config(model, lora_bias=True))
    with pytest.raises(ValueError, match="without a bias, got CompressedLora"):
        merge(adapted)
    with pytest.raises(ValueError, match="give the PeftModel"):
        merge(adapted.get_base_model())
    with pytest.raises(ValueError, match="has adapters of PEFT"):
        to_peft(adapted.get_base_model(), "nowhere")


def test_a_merge_that_fails_leaves_the_adapters(make_model, tokens, logits):
    model = make_model()
    model.model.layers[0].mlp.up_proj = KINDS[LowRankLinear](model.model.layers[0].mlp.up_proj)
    adapted = trained(model, lora_config(model, target_modules=["up_proj"]), tokens)
    broken = adapted.base_model.model.model.layers[1].mlp.up_proj.lora_B["default"].weight
    kept = broken.detach().clone()
    wanted = logits(adapted)
    with torch.no_grad():
        broken.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        merge(adapted)
    with torch.no_grad():
        broken.copy_(kept)
    assert torch.equal(logits(adapted), wanted)
