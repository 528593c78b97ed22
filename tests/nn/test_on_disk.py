"""Compression from one directory to another, with little more than a block in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlr.nn import compress_llm, compress_on_disk, load
from fastlr.nn.compression.checkpoint import Checkpoint

transformers = pytest.importorskip("transformers", reason="compress_on_disk needs transformers")

TOKENS = torch.arange(640) * 7919 % 64


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **options,
    }
    config = getattr(transformers, f"{name}Config")(**sizes)
    kind: Any = transformers.AutoModelForCausalLM
    return kind.from_config(config, dtype=options.get("dtype", torch.float32)).eval()


def saved(directory: Path, model: Any, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


def on_disk(source: Path, out: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"calibration": TOKENS, "seq_len": 32, "samples": 20, **options}
    ratio = settings.pop("ratio", 0.3)
    return compress_on_disk(source, out, ratio, progress=False, **settings)


def in_memory(model: Any, directory: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"calibration": TOKENS, "seq_len": 32, "samples": 20, **options}
    smaller = compress_llm(model, settings.pop("ratio", 0.3), progress=False, **settings)
    smaller.save_pretrained(directory)
    return smaller


def require_same(found: Any, expected: Any) -> None:
    one, other = found.state_dict(), expected.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert torch.equal(one[name], tensor), name
        assert one[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "two_sided", "form": "factored"},
        {"method": "svd_llm"},
        {"method": "svd_llm", "form": "dense"},
        {"method": "saes", "refit": True},
        {"method": "basis_sharing"},
        {"method": "modegpt"},
        {"method": "rocket"},
        {"method": "svd", "calibration": None},
        {"method": "svd_llm", "calibration": None, "samples": 2, "seq_len": 8},
        {"method": "svd_llm", "targets": ["q_proj", "model.layers.1.*"]},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "auto",
)
@pytest.mark.filterwarnings("ignore:compress_llm. ratio=0.3 is not reached:UserWarning")
def test_the_bits_are_those_of_the_model_in_memory(options: dict[str, Any], tmp_path: Path) -> None:
    model = build("Llama")
    source = saved(tmp_path / "dense", model)
    report = on_disk(source, tmp_path / "small", **options)
    smaller = in_memory(model, tmp_path / "expected", **options)
    require_same(load(tmp_path / "small"), smaller)
    assert report.layers == smaller.fastlr_report.layers
    assert report.predictions == smaller.fastlr_report.predictions
    assert report.model_after == smaller.fastlr_report.model_after


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"dtype": torch.bfloat16}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 8}),
        ("Gemma2", {"head_dim": 8}),
        ("Phi3", {"pad_token_id": 0}),
        ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0}),
        ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4}),
        ("GPTNeoX", {}),
        ("Falcon", {"alibi": False, "new_decoder_architecture": False}),
    ],
)
def test_architectures_dtypes_and_shards(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = build(name, **options)
    source = saved(tmp_path / "dense", model, max_shard_size="20KB")
    on_disk(source, tmp_path / "small", method="sparse")
    smaller = in_memory(model, tmp_path / "expected", method="sparse")
    found = load(tmp_path / "small")
    require_same(found, smaller)
    prompt = torch.tensor([[1, 2, 3]])
    written = [m.generate(prompt, max_new_tokens=4, do_sample=False) for m in (found, smaller)]
    assert torch.equal(*written)


def test_what_belongs_to_the_tokenizer_goes_with_it(tmp_path: Path) -> None:
    source = saved(tmp_path / "dense", build("Llama"))
    (source / "tokenizer.json").write_text("{}")
    (source / "merges.txt").write_text("a b")
    (source / "pytorch_model.bin").write_text("old")
    on_disk(source, tmp_path / "small", method="svd")
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"tokenizer.json", "merges.txt", "config.json", "generation_config.json"} <= names
    assert "pytorch_model.bin" not in names
    shards = {f"model-0000{number}-of-00004.safetensors" for number in range(1, 5)}
    assert {name for name in names if name.endswith(".safetensors")} == shards
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_generation_settings_are_kept(tmp_path: Path) -> None:
    model = build("Llama")
    model.generation_config.temperature = 0.25
    model.generation_config.do_sample = True
    source = saved(tmp_path / "dense", model)
    on_disk(source, tmp_path / "small", method="svd")
    assert load(tmp_path / "small").generation_config.temperature == 0.25


class Stopped(BaseException):
    """What stops a run in these tests; nothing catches it."""


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("Llama")
    source = saved(tmp_path / "dense", model)
    write, stops = Checkpoint.write, 0
    while not (tmp_path / "small").exists():
        written = 0

        def some(self: Checkpoint, *args: Any) -> None:
            nonlocal written
            written += 1
            if written > 3:
                raise Stopped
            write(self, *args)

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoint, "write", some)
            try:
                on_disk(source, tmp_path / "small", checkpoint_dir=tmp_path / "kept")
            except Stopped:
                stops += 1
    assert stops > 10
    require_same(load(tmp_path / "small"), in_memory(model, tmp_path / "expected"))


def test_stopped_while_saving_it_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "dense", build("Llama"))
    on_disk(source, tmp_path / "small", method="svd")
    before = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    import safetensors.torch

    save, calls = safetensors.torch.save_file, 0

    def some(tensors: dict[str, Tensor], path: Path, *more: Any) -> None:
        nonlocal calls
        if "small" in str(path):
            calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        save(tensors, path, *more)

    monkeypatch.setattr(safetensors.torch, "save_file", some)
    with pytest.raises(KeyboardInterrupt):
        on_disk(
            source,
            tmp_path / "small",
            ratio=0.5,
            method="svd",
            checkpoint_dir=tmp_path / "kept",
            overwrite=True,
        )
    assert calls == 3
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    source = saved(tmp_path / "dense", build("Llama"))
    save = safetensors.torch.save_file

    def full(tensors: dict[str, Tensor], path: Path, *more: Any) -> None:
        if "small" in str(path):
            raise safetensors.SafetensorError("No space left on device")
        save(tensors, path, *more)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"small.* cannot be written: No space left"):
        on_disk(source, tmp_path / "small", method="svd", checkpoint_dir=tmp_path / "kept")
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "kept"}


_MEASURE = """
import sys, torch
TARGETS = ["o_proj", "k_proj"]
from transformers import LlamaForCausalLM
from fastlr.nn import compress_on_disk
def peak():
    lines = open("/proc/self/status").read().split("VmHWM:")
    return int(lines[1].split()[0]) * 1024
torch.linalg.eigh(torch.eye(512))
before = peak()
compress_on_disk(*sys.argv[1:], 0.4, method="svd_llm", targets=TARGETS, seq_len=64, samples=2,
                 calibration=torch.arange(128) % 64, progress=False)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures peak memory as Linux reports it")
def test_memory_is_that_of_some_blocks_and_not_of_the_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 40}
    model = build("Llama", **sizes)
    block = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    source = saved(tmp_path / "dense", model, max_shard_size="20MB")
    command = [sys.executable, "-c", _MEASURE, str(source), str(tmp_path / "small")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    # 40 blocks of 3.0 MB. In memory would be the model; here are a block, its moments in float64
    # (0.5 MB), copies of a weight in float64 (0.3 MB each), and what the imports of the first call
    # take.
    assert int(done.stdout) < 20 * block


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("gone", "there is no directory"),
        ("no config", "config.json is missing"),
        ("no weights", "model.safetensors is missing"),
        ("cut", "model.safetensors cannot be read"),
        ("tensor missing", "holds no tensor that fits model.layers.1.mlp.up_proj.weight"),
        ("other shape", "holds no tensor that fits model.layers.2.mlp.up_proj.weight"),
        ("out in use", "is not empty"),
        ("out is source", "holds the model that is to be read"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    damage: str, complaint: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source, out = saved(tmp_path / "dense", build("Llama")), tmp_path / "small"
    weights = source / "model.safetensors"
    if damage == "gone":
        source = tmp_path / "elsewhere"
    elif damage == "no config":
        (source / "config.json").unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "tensor missing":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "other shape":
        tensors = load_file(weights)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(3, 5)
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "out in use":
        out.mkdir()
        (out / "letter.txt").write_text("dear")
    else:
        out = source
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=complaint):
        on_disk(source, out)
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
        ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0}),
    ],
)
@pytest.mark.parametrize("method", ["sparse", "sub_moe"])
@pytest.mark.filterwarnings("ignore:compress_llm.*never:UserWarning")
def test_experts_that_are_stored_one_by_one(
    name: str, options: dict[str, Any], method: str, tmp_path: Path
) -> None:
    model = build(name, **options)
    source = saved(tmp_path / "dense", model, max_shard_size="20KB")
    on_disk(source, tmp_path / "small", method=method)
    smaller = in_memory(model, tmp_path / "expected", method=method)
    require_same(load(tmp_path / "small"), smaller)
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "small", "expected"}


def test_a_compressed_model_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "dense", build("Llama"))
    on_disk(source, tmp_path / "small", method="svd")
    with pytest.raises(ValueError, match="compressed already"):
        on_disk(tmp_path / "small", tmp_path / "smaller", method="svd")
    assert not (tmp_path / "smaller").exists()


def test_the_index_names_every_tensor_once(tmp_path: Path) -> None:
    source = saved(tmp_path / "dense", build("Llama"))
    on_disk(source, tmp_path / "small")
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load(tmp_path / "small").state_dict())
    assert index["weight_map"]["model.layers.1.mlp.up_proj.values"].startswith("model-00003")
