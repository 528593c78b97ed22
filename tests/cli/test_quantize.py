"""``fastlr quantize`` on a tiny model."""

from __future__ import annotations

import json

import pytest

from fastlr import nn

SMALL = ["--samples", "4", "--seq-len", "16", "--rank", "2"]


def test_quantize_saves_a_model_that_evaluates(fastlr, tiny_model, text_file, tmp_path):
    out = tmp_path / "small"
    ran = fastlr(
        "quantize", tiny_model, out, "--quantization", "int8", "--calibration", text_file,
        "--evaluate", text_file, "--windows", 5, "--json", *SMALL,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["settings"]["quantization"] == "int8"
    assert result["settings"]["rank"] == 2
    assert {layer["quantization"] for layer in result["report"]["layers"]} == {"int8"}
    assert set(result["seconds"]) >= {"load", "quantize", "save"}
    again = fastlr("evaluate", out, text_file, "--seq-len", 16, "--windows", 5, "--json")
    # The same weights in the same arithmetic: saving and loading must not change one bit.
    measured = json.loads(again.out)["perplexity"]
    assert measured == result["perplexity_after"]["perplexity"]
    assert list(tmp_path.iterdir()) == [out]


def test_quantize_for_people(fastlr, tiny_model, text_file, tmp_path):
    pytest.importorskip("bitsandbytes", reason="rounds to nf4")
    out = tmp_path / "small"
    words = ["--bits", 20, "--evaluate", text_file, "--calibration", text_file, *SMALL]
    ran = fastlr("quantize", tiny_model, out, *words)
    assert ran.code == 0, ran.err
    assert "bits an entry, corrections included" in ran.out
    assert "then corrected" in ran.out
    assert "perplexity " in ran.out
    assert f"saved {out}" in ran.out
    assert nn.load(out).config.quantization_config.quant_method == "fastlr"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{out}", "--quantization", "nf3"], "nf3"),
        (["{out}", "--quantization", "nf4", "--bits", "5"], "one of quantization and bits"),
        (["{out}", "--block-size", "48", "--quantization", "int8"], "block_size must be one of"),
        (["{out}", "--bits", "0.5", "--calibration", "{text}"], "bits must be at least"),
        (["{model}", "--quantization", "int8"], "holds the model that is to be read"),
        (["{out}", "--calibration", "{out}.txt"], "{out}.txt"),
        ([], "argument"),
    ],
)
def test_mistakes_are_one_sentence(fastlr, tiny_model, text_file, tmp_path, words, says):
    names = {"out": tmp_path / "out", "text": text_file, "model": tiny_model}
    ran = fastlr("quantize", tiny_model, *(word.format(**names) for word in words), *SMALL)
    assert ran.code in (1, 2), ran.err
    assert ran.out == ""
    assert says.format(**names).lower() in ran.complaint.lower()
    assert list(tmp_path.iterdir()) == []
