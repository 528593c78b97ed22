"""``fastlr compress`` and ``fastlr evaluate`` on a tiny model."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import pytest

from fastlr import nn

SMALL = ["--samples", "4", "--seq-len", "16"]


def test_compress_saves_a_model_that_evaluates(fastlr, tiny_model, text_file, tmp_path):
    out = tmp_path / "smaller"
    ran = fastlr(
        "compress", tiny_model, out, "--ratio", 0.3, "--calibration", text_file,
        "--evaluate", text_file, "--windows", 5, "--json", *SMALL,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert 0.3 <= result["report"]["ratio_achieved"] < 0.4
    assert result["settings"]["method"] == "sparse"
    assert result["settings"]["allocation"] == "loss"
    assert result["perplexity_before"]["windows"] == 5
    assert set(result["seconds"]) >= {"load", "compress", "save"}

    again = fastlr("evaluate", out, text_file, "--seq-len", 16, "--windows", 5, "--json")
    assert again.code == 0, again.err
    measured = json.loads(again.out)["perplexity"]
    # The same weights in the same arithmetic: saving and loading must not change one bit.
    assert measured == result["perplexity_after"]["perplexity"]
    assert list(tmp_path.iterdir()) == [out]


def test_compress_for_people(fastlr, tiny_model, text_file, tmp_path):
    out = tmp_path / "smaller"
    ran = fastlr(
        "compress", tiny_model, out, "--form", "factored", "--method", "svd",
        "--evaluate", text_file, "--windows", 2, *SMALL,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "perplexity" in ran.out
    assert str(out) in ran.out


def test_without_calibration_or_tokenizer_the_model_writes_its_text(fastlr, tiny_model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("token*"))
    ran = fastlr("compress", bare, tmp_path / "out", "--json", *SMALL)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["report"]["calibration_tokens"] == 64
    assert "no tokenizer" in ran.err


def test_overwrite_replaces_a_saved_model(fastlr, tiny_model, tmp_path):
    out = tmp_path / "out"
    words = ["compress", tiny_model, out, "--method", "svd", *SMALL]
    assert fastlr(*words).code == 0
    (out / "left-over").write_text("1")
    refused = fastlr(*words)
    assert refused.code == 2
    assert "--overwrite" in refused.complaint
    assert fastlr(*words, "--overwrite").code == 0
    assert not (out / "left-over").exists()


def test_interrupted_compress_leaves_nothing(fastlr, tiny_model, tmp_path, monkeypatch):
    def interrupted(*anything, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(nn, "compress_llm", interrupted)
    out = tmp_path / "sub" / "out"
    ran = fastlr("compress", tiny_model, out, *SMALL)
    assert ran.code == 130
    assert "interrupted" in ran.complaint
    assert list(out.parent.iterdir()) == []


def test_evaluate_for_people_and_machines(fastlr, tiny_model, text_file):
    words = ["evaluate", tiny_model, text_file, "--seq-len", 32, "--windows", 3]
    ran = fastlr(*words)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("perplexity ")
    result = json.loads(fastlr(*words, "--json").out)
    assert result["windows"] == 3
    assert result["dtype"] == "float32"
    # A random model is about as good as guessing among the tokens of its vocabulary.
    assert 200 < result["perplexity"] < 500


def test_evaluate_takes_the_whole_text_by_default(fastlr, tiny_model, text_file):
    result = json.loads(fastlr("evaluate", tiny_model, text_file, "--seq-len", 64, "--json").out)
    assert result["windows"] > 10


def test_a_nan_is_null_in_json(fastlr, tiny_model, text_file, monkeypatch):
    monkeypatch.setattr(nn, "perplexity", lambda *a, **k: math.nan)
    ran = fastlr("evaluate", tiny_model, text_file, "--seq-len", 32, "--json")
    assert json.loads(ran.out)["perplexity"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{absent}", "{out}"], "there is no model"),
        (["org/name", "{out}"], "downloads nothing"),
        (["{empty_directory}", "{out}"], "neither a config.json nor a .gguf"),
        (["{text}", "{out}"], "not a GGUF file"),
        (["{two_gguf}", "{out}"], "several .gguf files"),
        (["{truncated}", "{out}"], "cannot be loaded"),
        (["{half_weights}", "{out}"], "cannot be loaded"),
        (["{no_weights}", "{out}"], "cannot be loaded"),
        (["{unknown_type}", "{out}"], "cannot be loaded"),
        (["{not_causal}", "{out}"], "cannot be loaded"),
        (["{an_encoder}", "{out}"], "weights are missing"),
        (["{quantized}", "{out}"], "optimum"),
        (["{model}", "{out}", "--ratio", "1"], "--ratio"),
        (["{model}", "{out}", "--ratio", "nan"], "--ratio"),
        (["{model}", "{out}", "--calibration", "{absent}"], "No such file"),
        (["{model}", "{out}", "--calibration", "{empty}"], "is empty"),
        (["{model}", "{out}", "--evaluate", "{binary}"], "not UTF-8"),
        (["{model}", "{out}", "--evaluate", "{directory}"], "is a directory"),
        (["{model}", "{out}", "--calibration", "{short}"], "token"),
        (["{model}", "{out}", "--evaluate", "{short}"], "fewer than one window"),
        (["{model}", "{text}"], "is a file"),
        (["{model}", "{model}", "--overwrite"], "choose another directory"),
        (["{model}", "{directory}"], "--overwrite"),
        (["{model}", "{directory}", "--overwrite"], "does not hold a saved model"),
        (["{model}", "{text}/out"], "is a file"),
        (["{no_tokenizer}", "{out}", "--calibration", "{text}"], "no tokenizer"),
        (["{nan}", "{out}"], "nan"),
        (["{model}", "{out}", "--device", "toaster"], "toaster"),
        (["{model}", "{out}", "--seq-len", "1000"], "at most 64"),
    ],
)
def test_bad_input_is_one_sentence(fastlr, tiny_model, text_file, tmp_path, words, says):
    place = _Places(tiny_model, text_file, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    small = [] if "--seq-len" in words else SMALL
    ran = fastlr("compress", *[word.format_map(place) for word in words], *small)
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert says in ran.complaint
    # Neither the output nor a part of it.
    assert not (tmp_path / "out").exists()
    partial = {path.name for path in tmp_path.iterdir()} - before - set(place.made)
    assert not partial


class _Places(dict):
    """Files and models that are wrong, made when a test names them."""

    def __init__(self, tiny_model, text_file, tmp_path):
        super().__init__(model=tiny_model, text=text_file, out=tmp_path / "out")
        self.tmp_path, self.tiny_model, self.made = tmp_path, tiny_model, []

    def __missing__(self, name):
        self.made.append(name)
        path = self.tmp_path / name
        getattr(self, f"_{name}")(path)
        self[name] = path
        return path

    def _absent(self, path):
        pass

    def _empty(self, path):
        path.write_text("")

    def _short(self, path):
        path.write_text("Ho!")

    def _binary(self, path):
        path.write_bytes(bytes(range(128, 256)))

    def _empty_directory(self, path):
        path.mkdir()

    def _directory(self, path):
        path.mkdir()
        (path / "diary.txt").write_text("precious")

    def _two_gguf(self, path):
        path.mkdir()
        for name in ("a.gguf", "b.gguf"):
            (path / name).write_bytes(b"GGUF")

    def _truncated(self, path):
        shutil.copytree(self.tiny_model, path)
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])

    def _no_weights(self, path):
        shutil.copytree(self.tiny_model, path, ignore=shutil.ignore_patterns("*.safetensors"))

    def _no_tokenizer(self, path):
        shutil.copytree(self.tiny_model, path, ignore=shutil.ignore_patterns("token*"))

    def _half_weights(self, path):
        self._with_tensors(path, lambda tensors: dict(list(tensors.items())[:8]))

    def _nan(self, path):
        self._with_tensors(path, lambda tensors: {k: v * math.nan for k, v in tensors.items()})

    def _with_tensors(self, path, change):
        from safetensors.torch import load_file, save_file

        shutil.copytree(self.tiny_model, path)
        tensors = load_file(path / "model.safetensors")
        save_file(change(tensors), path / "model.safetensors", {"format": "pt"})

    def _unknown_type(self, path):
        self._with_config(path, model_type="abacus")

    def _quantized(self, path):
        self._with_config(path, quantization_config={"quant_method": "gptq", "bits": 4})

    def _an_encoder(self, path):
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertModel(BertConfig(vocab_size=64, intermediate_size=16, **sizes)).save_pretrained(path)

    def _not_causal(self, path):
        self._with_config(path, model_type="vit")

    def _with_config(self, path, **changes):
        shutil.copytree(self.tiny_model, path)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))


# As on a full disk: no file can grow beyond so many bytes.
FULL = """
import resource, sys
import fastlr.nn, transformers
from fastlr.cli import main
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("limit", "before"), [(20_000, True), (300, False)])
def test_a_full_disk_leaves_what_was_there(tiny_model, tmp_path, limit, before):
    """The weights do not fit, or not even the config."""
    pytest.importorskip("resource")
    out = tmp_path / "out"
    words = ["compress", str(tiny_model), str(out), "--method", "svd"]
    if before:
        shutil.copytree(tiny_model, out)
    there = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(limit), *words, "--overwrite"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    (complaint,) = [line for line in ran.stderr.splitlines() if line.startswith("fastlr: ")]
    assert "File too large" in complaint
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == there


def test_the_command_as_a_process(tiny_model, text_file):
    command = [sys.executable, "-m", "fastlr.cli", "evaluate", str(tiny_model), str(text_file)]
    ran = subprocess.run([*command, "--seq-len", "32", "--json"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["seq_len"] == 32
