"""A compression that keeps what it has computed, is stopped at any point, and goes on."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastlr.nn import compress_llm
from fastlr.nn.compression import calibrate
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.checkpoint import (
    Checkpoint,
    fingerprint,
    fingerprint_of_model,
    fingerprint_of_tensors,
)
from fastlr.nn.compression.model_files import batches_key

transformers = pytest.importorskip("transformers", reason="compress_llm needs transformers")

TOKENS = torch.arange(1280) * 7919 % 64
# Of less than 1024 tokens each: with a directory and without, the sums are of the same parts.
BATCHES = list(TOKENS.reshape(2, 20, 32))
METHODS = (
    "sparse",
    "two_sided",
    "fwsvd",
    "svd_llm",
    "afm",
    "saes",
    "basis_sharing",
    "modegpt",
    "rocket",
    "cospadi",
    "svd",
)


class Stopped(BaseException):
    """What stops a run in these tests; nothing catches it."""


def tiny(layers: int = 3) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def compressed(model: Any, directory: Path | None, **options: Any) -> Any:
    settings = {"ratio": 0.3, "calibration": BATCHES, **options}
    ratio = settings.pop("ratio")
    return compress_llm(
        copy.deepcopy(model), ratio, checkpoint_dir=directory, progress=False, **settings
    )


def require_same(first: Any, second: Any) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert first.fastlr_report.layers == second.fastlr_report.layers
    assert first.fastlr_report.predictions == second.fastlr_report.predictions


def stopping_after(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """The process dies when so many files have been written."""
    written = 0
    write = Checkpoint.write

    def counted(self: Checkpoint, *args: Any, **more: Any) -> None:
        nonlocal written
        if written == files:
            raise Stopped
        written += 1
        write(self, *args, **more)

    monkeypatch.setattr(Checkpoint, "write", counted)


@pytest.mark.parametrize("method", METHODS)
def test_a_directory_changes_no_bit_and_a_second_run_only_reads(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    plain = compressed(model, None, method=method)
    require_same(compressed(model, tmp_path, method=method), plain)
    stopping_after(monkeypatch, 0)
    require_same(compressed(model, tmp_path, method=method), plain)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "sparse"},
        {"method": "svd_llm", "calibration": None, "samples": 3, "seq_len": 8},
        {"method": "svd_llm", "propagation": 0.5, "refit": True},
        {"method": "modegpt"},
        {"method": "sparse", "heal_steps": 2},
    ],
    ids=["gradients", "own text", "refit", "structured", "healed"],
)
def test_stopped_before_any_file_it_goes_on_to_the_same_bits(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(2)
    plain = compressed(model, None, **options)
    stops = 0
    while True:
        with monkeypatch.context() as patched:
            stopping_after(patched, 1)
            try:
                found = compressed(model, tmp_path, **options)
            except Stopped:
                stops += 1
                continue
        break
    assert stops > 10  # each file was the last one that a process wrote
    require_same(found, plain)


def test_of_the_hidden_states_nothing_is_left(tmp_path: Path) -> None:
    compressed(tiny(), tmp_path)
    names = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert {"inputs-0.safetensors", "gradients-2.safetensors", "layers-0.safetensors"} <= names
    assert not any(name.startswith(("hidden", "slopes")) for name in names)
    assert not list(tmp_path.rglob("*.partial"))


def passes_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts how often the blocks run, and how often a layer is prepared."""
    counts = {"blocks": 0}
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward = LlamaDecoderLayer.forward

    def counted(self: nn.Module, *args: Any, **more: Any) -> Any:
        counts["blocks"] += 1
        return forward(self, *args, **more)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    return counts


def test_statistics_serve_other_ratios_and_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    expected = {m: compressed(model, None, method=m, ratio=0.5) for m in ("svd_llm", "asvd")}
    compressed(model, tmp_path, method="svd_llm")
    counts = passes_of(monkeypatch)
    for method, plain in expected.items():
        require_same(compressed(model, tmp_path, method=method, ratio=0.5), plain)
    assert counts["blocks"] == 0


def test_gradients_come_on_top_of_the_inputs(tmp_path: Path) -> None:
    model = tiny()
    plain = compressed(model, None, method="two_sided")
    compressed(model, tmp_path, method="svd_llm")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("inputs-*.safetensors")}
    require_same(compressed(model, tmp_path, method="two_sided"), plain)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("inputs-*.safetensors")}


def test_masked_positions_do_not_count_backward_either(tmp_path: Path) -> None:
    model = tiny()
    ids = BATCHES[0]
    mask = torch.ones_like(ids)
    mask[::2, 20:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    plain = compressed(model, None, calibration=batch)
    require_same(compressed(model, tmp_path, calibration=batch), plain)
    other = compressed(model, tmp_path, calibration={"input_ids": ids})
    weight = "model.layers.0.mlp.up_proj.values"
    assert not torch.equal(other.state_dict()[weight], plain.state_dict()[weight])


@pytest.mark.parametrize("change", ["model", "config", "text", "ratio", "targets"])
def test_what_belongs_to_something_else_is_not_used(change: str, tmp_path: Path) -> None:
    model = tiny()
    compressed(model, tmp_path)
    options: dict[str, Any] = {}
    if change == "model":
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    elif change == "config":  # the same weights, and another function
        model.config.rms_norm_eps = 0.5
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 0.5
    elif change == "text":
        options = {"calibration": BATCHES[::-1]}
    elif change == "ratio":
        options = {"ratio": 0.31}
    else:
        options = {"targets": "up_proj"}
    require_same(compressed(model, tmp_path, **options), compressed(model, None, **options))


def test_all_that_goes_with_the_tokens_is_in_their_name() -> None:
    ids = BATCHES[0]
    batches = [
        Batch(ids),
        Batch(ids, torch.ones_like(ids)),
        Batch(ids, None, torch.ones_like(ids)),
        Batch(ids, None, torch.zeros_like(ids)),
    ]
    assert len({batches_key([batch]) for batch in batches}) == 4


def test_statistics_of_calibrate_are_in_files(tmp_path: Path) -> None:
    model = tiny()
    plain = calibrate(model, BATCHES, gradients=True, progress=False)
    stored = calibrate(model, BATCHES, gradients=True, checkpoint_dir=tmp_path, progress=False)
    assert stored.grams.keys() == plain.grams.keys()
    for name, gram in plain.grams.items():
        assert torch.equal(gram.matrix, stored.grams[name].matrix)
        assert torch.equal(plain.gradients[name].matrix, stored.gradients[name].matrix)
    q, k = (stored.grams[f"model.layers.0.self_attn.{name}_proj"] for name in "qk")
    assert q is k  # one object for one input
    require_same(
        compressed(model, tmp_path, calibration=stored), compressed(model, None, calibration=plain)
    )


@pytest.mark.parametrize("in_files", [True, False])
def test_statistics_can_be_saved(tmp_path: Path, in_files: bool) -> None:
    directory = tmp_path / "work" if in_files else None
    found = calibrate(tiny(), BATCHES, gradients=True, checkpoint_dir=directory, progress=False)
    torch.save(found, tmp_path / "statistics.pt")
    again = torch.load(tmp_path / "statistics.pt", weights_only=False)
    for name, gram in found.grams.items():
        assert torch.equal(again.grams[name].matrix, gram.matrix)
        assert torch.equal(again.gradients[name].matrix, found.gradients[name].matrix)


def test_a_model_trained_from_what_was_read_is_its_own(tmp_path: Path) -> None:
    """Layers that were read from the directory can be changed without changing their files."""
    model = tiny()
    first = compressed(model, tmp_path)
    read = compressed(model, tmp_path)
    with torch.no_grad():
        for parameter in read.parameters():
            parameter.add_(1)
    require_same(compressed(model, tmp_path), first)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    model = tiny()
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match=r"checkpoint_dir: .*taken.* cannot be written"):
        compressed(model, tmp_path / "taken")
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)


_RUN = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_checkpoint import tiny, compressed
model = compressed(tiny(4), {directory!r})
model.save_pretrained({out!r})
"""


def _start(directory: Path, out: Path) -> subprocess.Popen[bytes]:
    code = _RUN.format(tests=str(Path(__file__).parent), directory=str(directory), out=str(out))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_killed_again_and_again_it_writes_the_same_files(tmp_path: Path) -> None:
    assert _start(tmp_path / "once", tmp_path / "expected").wait() == 0
    total = len(list((tmp_path / "once").rglob("*.safetensors")))
    # Killed each time when some more files are there: wherever that catches it.
    killed = 0
    while True:
        goal = min(total, (killed + 1) * total // 3)
        process = _start(tmp_path / "often", tmp_path / "found")
        while process.poll() is None:
            if len(list((tmp_path / "often").rglob("*.safetensors"))) >= goal and killed < 2:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            time.sleep(0.01)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert killed == 2
    for file in sorted((tmp_path / "expected").iterdir()):
        assert file.read_bytes() == (tmp_path / "found" / file.name).read_bytes(), file.name


def test_a_result_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Checkpoint(tmp_path)
    files.write("a", {"x": torch.arange(6).reshape(2, 3), "none": torch.empty(0)}, {"k": [1, 2.5]})
    tensors, facts = files.read("a")
    assert torch.equal(tensors["x"], torch.arange(6).reshape(2, 3))
    assert not tensors["none"].numel()
    assert facts == {"k": [1, 2.5]}

    def fail(*_: Any) -> None:
        raise Stopped

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Stopped):
        files.write("b", {"x": torch.ones(2)})
    with pytest.raises(Stopped):
        files.write("a", {"x": torch.ones(2)})
    assert "b" not in files
    assert torch.equal(files.read("a")[0]["x"], torch.arange(6).reshape(2, 3))


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    files = Checkpoint(tmp_path)
    files.write("a", {"x": torch.arange(100)})
    path = tmp_path / "a.safetensors"
    content = path.read_bytes()
    cases: dict[bytes, str] = {
        content[:-8]: "was not written completely: tensor 'x'",
        content[:20]: "its header is cut off",
        content[:4]: "it has 4 bytes",
        content[:8] + b"!" * (len(content) - 8): "its header is no JSON",
    }
    for broken, complaint in cases.items():
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=complaint):
            files.read("a")


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
def test_tensors_come_back_as_they_were(dtype: torch.dtype, tmp_path: Path) -> None:
    files = Checkpoint(tmp_path)
    value = torch.arange(35).reshape(5, 7).to(dtype)
    files.write("a", {"odd": torch.ones(3, dtype=torch.uint8), "x": value.T, "scalar": value[2, 1]})
    found, _ = files.read("a")
    assert found["x"].dtype == dtype
    assert torch.equal(found["x"], value.T)
    assert torch.equal(found["scalar"], value[2, 1])
    files.release()
    assert torch.equal(found["x"], value.T)


def test_fingerprints_tell_contents_apart() -> None:
    x = torch.tensor([1.0, -0.0])
    others = [x.abs(), x.double(), x[None], x[:1], torch.tensor([1.0, 0.0])]
    names = [fingerprint_of_tensors(y) for y in others]
    assert fingerprint_of_tensors(x) == fingerprint_of_tensors(x.clone())
    assert fingerprint_of_tensors(x) not in names
    layers: list[Callable[[], nn.Module]] = [lambda: nn.Linear(2, 3), lambda: nn.Linear(3, 2)]
    assert len({fingerprint_of_model(build()) for build in layers}) == 2
    assert fingerprint({"a": 1, "b": 2}) == fingerprint(json.loads('{"b": 2, "a": 1}'))
