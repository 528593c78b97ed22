"""Compression of GGUF files from disk to disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlr.nn import compress_llm, compress_on_disk, load
from tiny_gguf import write_gguf

transformers = pytest.importorskip("transformers", reason="compress_on_disk needs transformers")
pytest.importorskip("gguf", reason="reads GGUF files")

SETTINGS: dict[str, Any] = {
    "calibration": torch.arange(640) * 7919 % 64,
    "seq_len": 32,
    "samples": 20,
    "progress": False,
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("method", ["svd_llm", "sparse"])
def test_the_bits_are_those_of_the_model_in_memory(
    dtype: torch.dtype | None, method: str, tmp_path: Path
) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=source.name, dtype=dtype or torch.float32
    )
    report = compress_on_disk(
        source, tmp_path / "small", 0.3, method=method, dtype=dtype, **SETTINGS
    )
    smaller = compress_llm(model.eval(), 0.3, method=method, **SETTINGS)
    smaller.save_pretrained(tmp_path / "expected")
    found, expected = load(tmp_path / "small"), load(tmp_path / "expected")
    one, other = found.state_dict(), expected.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert torch.equal(one[name], tensor), name
        assert one[name].dtype == tensor.dtype
    assert report.layers == smaller.fastlr_report.layers
    assert found.dtype == (dtype or torch.float32)
    written = found.generate(torch.tensor([[1, 2]]), max_new_tokens=3, do_sample=False)
    assert written.shape == (1, 5)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "small", "expected"}


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlr.nn.compression import on_disk

    source = write_gguf(tmp_path / "tiny.gguf")
    kept = tmp_path / "kept"
    with monkeypatch.context() as patched:
        patched.setattr(on_disk, "_write", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress_on_disk(source, tmp_path / "small", 0.3, checkpoint_dir=kept, **SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "kept"}
    files = {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()}
    compress_on_disk(source, tmp_path / "small", 0.3, checkpoint_dir=kept, **SETTINGS)
    # Nothing is computed again.
    assert files
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    assert load(tmp_path / "small").config.quantization_config.quant_method == "fastlr"


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


_MEASURE = """
import sys
sys.path[:0] = sys.argv[2:4]
from test_on_disk import _MEASURE
sys.argv = ["", *sys.argv[1:2], sys.argv[4]]
import gguf, transformers.modeling_gguf_pytorch_utils
exec(_MEASURE)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures peak memory as Linux reports it")
def test_memory_is_that_of_some_blocks_and_not_of_the_model(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "large.gguf", layers=24, width=384, hidden=1024)
    here = Path(__file__).parent
    command = [sys.executable, "-c", _MEASURE, str(source), str(here), str(here.parent)]
    done = subprocess.run([*command, str(tmp_path / "small")], check=True, stdout=subprocess.PIPE)
    # 24 blocks of 6.5 MB in float32: in memory would be all of them. Here are a block and what is
    # computed from it (test_on_disk.py), and the file of 42 MB: what has been read of it may stay
    # in memory until others need it.
    block = 4 * (2 * 384**2 + 2 * 384 * 192 + 3 * 384 * 1024)
    assert int(done.stdout) < 8 * block + source.stat().st_size


@pytest.mark.parametrize(
    ("what", "arguments", "complaint"),
    [
        ("no file", {}, r"there is no directory or file .*none\.gguf"),
        ("other file", {}, "is no GGUF file"),
        ("directory", {"dtype": torch.bfloat16}, "dtype is for GGUF files, a directory keeps its"),
        ("file", {"dtype": torch.int8}, "dtype must be a real float type"),
        ("file", {"method": "magic"}, "method must be"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    what: str, arguments: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    source = tmp_path / "none.gguf"
    if what == "other file":
        source.write_text("letter")
    elif what == "file":
        write_gguf(source)
    elif what == "directory":
        source = tmp_path / "dense"
        config = transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1
        )
        transformers.LlamaForCausalLM(config).save_pretrained(source)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, TypeError), match=complaint):
        compress_on_disk(source, tmp_path / "small", **{**SETTINGS, **arguments})
    assert sorted(tmp_path.rglob("*")) == before
