"""``fastlr inspect`` on a tiny model."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from fastlr import nn
from fastlr.cli import errors


def test_inspect_for_people_and_machines(fastlr, tiny_model):
    ran = fastlr("inspect", tiny_model)
    assert ran.code == 0, ran.err
    kinds = [line.split()[0] for line in ran.out.splitlines()]
    assert kinds == [
        "layers", "embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj",
        "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    result = json.loads(fastlr("inspect", tiny_model, "--json").out)
    assert result["model"] == str(tiny_model)
    matrices = result["report"]["matrices"]
    assert len(matrices) == 15
    assert matrices[0]["others"] == ["lm_head"]
    assert result["report"]["nuclear_norms"] == {}
    assert set(result["seconds"]) == {"load", "spectra"}


def test_inspect_is_what_the_library_finds(fastlr, tiny_model):
    from transformers import AutoModelForCausalLM

    words = ["inspect", tiny_model, "--layers", "q_proj", "--layers", "mlp.*", "--seed", 5]
    refused = fastlr(*words)
    assert refused.code == 2
    assert "'mlp.*'" in refused.complaint
    words[5] = "*.mlp.*"
    found = json.loads(fastlr(*words, "--json").out)["report"]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = nn.spectra(model, layers=["q_proj", "*.mlp.*"], seed=5).to_dict()
    assert found["matrices"] == expected["matrices"]
    assert found["seed"] == 5
    assert len(found["matrices"]) == 8
    other = json.loads(fastlr("inspect", tiny_model, "--json").out)["report"]
    assert other["matrices"][1]["alpha_farms"] != found["matrices"][0]["alpha_farms"]


def test_hidden_states_on_a_text(fastlr, tiny_model, text_file):
    words = ["inspect", tiny_model, "--text", text_file, "--seq-len", 32, "--windows", 3]
    result = json.loads(fastlr(*words, "--json").out)
    assert result["report"]["tokens"] == 96
    assert list(result["report"]["nuclear_norms"]) == ["model.layers.0", "model.layers.1"]
    assert result["text"] == str(text_file)
    ran = fastlr(*words)
    assert "hidden states of 2 blocks on 96 tokens" in ran.out


def test_a_page_alone(fastlr, tiny_model, tmp_path):
    page = tmp_path / "deep" / "page.html"
    ran = fastlr("inspect", tiny_model, "--out", page)
    assert ran.code == 0, ran.err
    assert "model.layers.1.mlp.up_proj" in page.read_text(encoding="utf-8")
    assert f"saved {page}" in ran.out
    assert list(page.parent.iterdir()) == [page]


def test_a_directory_has_all_numbers(fastlr, tiny_model, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):  # a report is replaced by a newer one
        assert fastlr("inspect", tiny_model, "--out", out).code == 0
    assert {path.name for path in out.iterdir()} == {"report.html", "report.json"}
    result = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert len(result["report"]["matrices"][0]["singular_values"]) == 32


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_drawing(fastlr, tiny_model, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    drawing = tmp_path / f"spectra.{suffix}"
    ran = fastlr("inspect", tiny_model, "--plot", drawing, "--layers", "q_proj", "--json")
    assert ran.code == 0, ran.err
    assert drawing.read_bytes()[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[suffix]
    assert "plot" in json.loads(ran.out)["seconds"]
    assert list(tmp_path.iterdir()) == [drawing]


def test_a_compressed_model(fastlr, tiny_model, tmp_path):
    smaller = tmp_path / "smaller"
    words = ["compress", tiny_model, smaller, "--method", "svd", "--ratio", 0.5]
    assert fastlr(*words, "--samples", 2, "--seq-len", 16).code == 0
    result = json.loads(fastlr("inspect", smaller, "--layers", "gate_proj", "--json").out)
    for matrix in result["report"]["matrices"]:
        assert matrix["layer"] == "InterpolativeLinear"
        assert matrix["shape"] == [48, 32]
        assert matrix["effective_rank"] < 20


def test_a_nan_is_null_in_json(fastlr, tiny_model, tmp_path):
    zero = tmp_path / "zero"
    _with_tensors(tiny_model, zero, lambda tensor: tensor * 0)
    result = json.loads(fastlr("inspect", zero, "--layers", "q_proj", "--json").out)
    assert result["report"]["matrices"][0]["alpha"] is None
    assert "–" in fastlr("inspect", zero, "--layers", "q_proj").out


def test_interrupted_inspect_leaves_nothing(fastlr, tiny_model, tmp_path, monkeypatch):
    def interrupted(*anything, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(nn, "spectra", interrupted)
    ran = fastlr("inspect", tiny_model, "--out", tmp_path / "out")
    assert ran.code == 130
    assert "interrupted" in ran.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{tmp}/absent"], "there is no model"),
        (["{text}"], "not a GGUF file"),
        (["{model}", "--layers", "z_proj"], "no layer matches 'z_proj'"),
        (["{model}", "--out", "{text}"], "is a file"),
        (["{model}", "--out", "{tmp}/directory.html"], "is a directory"),
        (["{model}", "--plot", "{tmp}/directory.png"], "is a directory"),
        (["{model}", "--plot", "{tmp}/plot.exe"], "--plot must end in .png, .pdf, .svg"),
        (["{model}", "--text", "{tmp}/absent"], "No such file"),
        (["{model}", "--text", "{text}", "--seq-len", "1000000"], "fewer than one window"),
        (["{model}", "--text", "{text}", "--seq-len", "100"], "at most 64"),
        (["{model}", "--seed", "-1"], "--seed"),
        (["{model}", "--device", "toaster"], "toaster"),
        (["{nan}"], "has the value nan"),
    ],
)
def test_bad_input_is_one_sentence(fastlr, tiny_model, text_file, tmp_path, words, says):
    for suffix in ("html", "png"):
        (tmp_path / f"directory.{suffix}").mkdir()
    nan = tmp_path / "nan"
    if "{nan}" in words:
        _with_tensors(tiny_model, nan, lambda tensor: tensor * math.nan)
    before = {path.name for path in tmp_path.iterdir()}
    places = {"model": tiny_model, "text": text_file, "tmp": tmp_path, "nan": nan}
    ran = fastlr("inspect", *[word.format_map(places) for word in words])
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert says in ran.complaint
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_missing_matplotlib_is_said_before_the_model_is_loaded(
    fastlr, tiny_model, tmp_path, monkeypatch
):
    true_find = errors.importlib.util.find_spec
    monkeypatch.setattr(
        errors.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else true_find(name, *rest),
    )
    ran = fastlr("inspect", tiny_model, "--plot", tmp_path / "a.png")
    assert ran.code == 2
    assert "pip install matplotlib" in ran.complaint
    assert "Loading" not in ran.err


def _with_tensors(model, path, change):
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, path)
    tensors = load_file(path / "model.safetensors")
    changed = {name: change(tensor) for name, tensor in tensors.items()}
    save_file(changed, path / "model.safetensors", {"format": "pt"})
