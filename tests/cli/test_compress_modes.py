"""``fastlr compress`` with checkpoints, on disk, as a sweep, and what it says of its decisions."""

from __future__ import annotations

import json

import pytest
import torch

from fastlr import nn
from fastlr.cli.console import Progress
from fastlr.cli.decisions import say_exceptions
from fastlr.nn.compression import CompressionReport
from fastlr.nn.compression.report import LayerReport, ModelSize
from tiny_gguf import write_gguf

SMALL = ["--samples", "4", "--seq-len", "16"]


def _weights(directory):
    from safetensors.torch import load_file

    tensors = {}
    for path in directory.glob("*.safetensors"):
        tensors.update(load_file(path))
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def test_an_interrupted_compression_goes_on(fastlr, tiny_model, text_file, tmp_path, monkeypatch):
    """Stopped between calibration and saving; then the calibration is not done again."""
    kept = tmp_path / "kept"
    words = [
        "compress", tiny_model, tmp_path / "out", "--calibration", text_file,
        "--checkpoint", kept, *SMALL,
    ]  # fmt: skip
    real = nn.compress_llm

    def stopped(model, **options):
        real(model, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nn, "compress_llm", stopped)
        ran = fastlr(*words)
    assert ran.code == 130
    assert f"{kept} keeps what was computed: the same command goes on" in ran.err
    assert list(tmp_path.iterdir()) == [kept]
    files = {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()}
    assert files
    assert fastlr(*words).code == 0
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()} == files

    # And without a checkpoint nothing of the kind is promised.
    monkeypatch.setattr(nn, "compress_llm", stopped)
    without = fastlr("compress", tiny_model, tmp_path / "other", "--method", "svd")
    assert without.code == 130
    assert "goes on" not in without.err


def test_on_disk_gives_the_same_model(fastlr, tiny_model, text_file, tmp_path):
    results = []
    for name, mode in (("memory", ["--checkpoint", tmp_path / "kept"]), ("disk", ["--on-disk"])):
        ran = fastlr(
            "compress", tiny_model, tmp_path / name, "--calibration", text_file,
            "--ratio", 0.4, "--json", *mode, *SMALL,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        results.append(json.loads(ran.out))
    memory, disk = results
    assert disk["report"]["layers"] == memory["report"]["layers"]
    assert disk["settings"] == memory["settings"]
    assert _weights(tmp_path / "disk") == _weights(tmp_path / "memory")
    assert (tmp_path / "disk" / "tokenizer.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"memory", "disk", "kept"}


def test_a_sweep_is_a_table_and_a_plot(fastlr, tiny_model, text_file, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    words = [
        "compress", tiny_model, out, "--sweep", "0.2,0.5", "--method", "svd", "--method", "svd_llm",
        "--evaluate", text_file, "--windows", 2, "--calibration", text_file, *SMALL,
    ]  # fmt: skip
    ran = fastlr(*words)
    assert ran.code == 0, ran.err
    assert {path.name for path in out.iterdir()} == {"sweep.json", "sweep.png"}
    result = json.loads((out / "sweep.json").read_text())
    points = [(point["method"], point["ratio"]) for point in result["points"]]
    assert points == [("svd", 0.2), ("svd", 0.5), ("svd_llm", 0.2), ("svd_llm", 0.5)]
    assert ran.out.count("svd_llm") == 2

    # A second time only on demand, and a directory that holds no sweep never.
    assert "--overwrite" in fastlr(*words).complaint
    again = fastlr(*words, "--overwrite", "--json")
    found = json.loads(again.out)
    measured = [point["perplexity"] for point in found["points"]]
    assert measured == [point["perplexity"] for point in result["points"]]
    (out / "sweep.json").unlink()
    assert "does not hold a sweep.json" in fastlr(*words, "--overwrite").complaint


def test_an_interrupted_sweep_leaves_nothing(fastlr, tiny_model, text_file, tmp_path, monkeypatch):
    def interrupted(*anything, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(nn, "sweep", interrupted)
    words = ["--sweep", "0.2", "--evaluate", text_file, *SMALL]
    assert fastlr("compress", tiny_model, tmp_path / "out", *words).code == 130
    assert list(tmp_path.iterdir()) == []


def test_decisions_are_said_before_the_work(fastlr, tiny_model, text_file, tmp_path):
    words = ["compress", tiny_model, tmp_path / "out", "--calibration", text_file, *SMALL]
    said = fastlr(*words).err
    for text in (
        'method "sparse" (auto: ',
        'allocation "loss" (the method\'s own)',
        f"calibration: 4 × 16 tokens from {text_file}, with gradients",
    ):
        assert text in said
        assert said.index(text) < said.index("Compressing …")
    asked = fastlr(
        "compress", tiny_model, tmp_path / "2", "--method", "svd_llm", "--allocation", "product",
        *SMALL,
    ).err  # fmt: skip
    assert 'method "svd_llm" (as asked)' in asked
    assert 'allocation "product" (as asked)' in asked
    assert "that the model writes itself, without gradients" in asked


def test_layers_with_a_note_are_listed_by_it(capsys):
    def layer(name, note):
        return LayerReport(name, (8, 8), 4, "dense", None, 64, 64, 256, 256, 0.0, 0.0, 0.0, note)

    layers = [layer(f"l{n}", "left dense") for n in range(5)]
    layers += [layer("odd", "never called"), layer("plain", "")]
    sizes = ModelSize(1, 1), ModelSize(1, 1)
    say_exceptions(
        CompressionReport("svd", "factored", "uniform", 0.2, layers, *sizes, 1, {}), Progress()
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "left dense: 5 of 7 layers (l0, l1, l2 and 2 more)",
        "never called: 1 of 7 layers (odd)",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["{out}", "--on-disk", "--evaluate", "{text}"],
            "--evaluate cannot be used with --on-disk",
        ),
        (["{out}", "--on-disk", "--heal-steps", "2"], "--heal-steps cannot be used with --on-disk"),
        (["{out}", "--on-disk", "--device", "cuda"], "--device cannot be used with --on-disk"),
        (["{out}", "--on-disk", "--dtype", "float16"], "--dtype can be used with --on-disk for a"),
        (["{out}", "--checkpoint", "{text}"], "--checkpoint must be a directory"),
        (["{out}", "--checkpoint", "{out}/kept"], "--checkpoint must lie outside of OUT"),
        (["{out}", "--sweep", "0.2"], "--evaluate FILE"),
        (["{out}", "--sweep", "0.2,much", "--evaluate", "{text}"], "0.2,much"),
        (["{out}", "--sweep", "0.2,1", "--evaluate", "{text}"], "between 0 and 1"),
        (["{out}", "--sweep", "0.2", "--ratio", "0.3"], "--ratio cannot be used with --sweep"),
        (["{out}", "--sweep", "0.2", "--on-disk"], "--on-disk cannot be used with --sweep"),
        (["--sweep", "0.2", "--plan"], "--plan cannot be used with --sweep"),
        (["{out}", "--method", "svd", "--method", "afm"], "--method may be given once"),
        ([], "argument OUT"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    fastlr, tiny_model, text_file, tmp_path, words, says
):
    given = [word.format(out=tmp_path / "out", text=text_file) for word in words]
    ran = fastlr("compress", tiny_model, *given, *SMALL)
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert says in ran.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_is_planned_and_compressed_on_disk(fastlr, tmp_path):
    file = write_gguf(tmp_path / "model.gguf")
    ran = fastlr("compress", file, "--plan", "--method", "svd", "--json")
    assert json.loads(ran.out)["dtype"] == "float32"
    assert json.loads(ran.out)["blocks"] == 3
    out = tmp_path / "out"
    ran = fastlr("compress", file, out, "--on-disk", "--method", "svd", "--dtype", "bfloat16")
    assert ran.code == 0, ran.err
    assert nn.load(out).dtype == torch.bfloat16


def test_on_disk_wants_a_complete_directory(fastlr, tiny_model, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    ran = fastlr("compress", tmp_path, tmp_path.parent / "elsewhere", "--on-disk")
    assert "model.safetensors is missing" in ran.complaint
    assert not (tmp_path.parent / "elsewhere").exists()
