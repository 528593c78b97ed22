"""``fastlr demo`` from end to end on a tiny model, and its parts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from contextlib import redirect_stdout
from html.parser import HTMLParser
from io import StringIO

import pytest
import torch

from fastlr.cli import main, reload
from fastlr.cli.demo import spread_windows, variants
from fastlr.cli.demo_text import demo_text

SMALL = ["--samples", 4, "--seq-len", 32, "--windows", 2]


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """Run the demo once; give its directory and its JSON."""
    out = tmp_path_factory.mktemp("demo") / "out"
    words = ["demo", "--model", tiny_model, "--out", out, "--ratio", 0.3, *SMALL, "--json"]
    printed = StringIO()
    with redirect_stdout(printed):
        assert main([str(word) for word in words]) == 0
    return out, json.loads(printed.getvalue())


def test_every_variant_is_measured(finished):
    _, result = finished
    entries = {variant["name"]: variant for variant in result["variants"]}
    assert list(entries) == ["svd_llm, factored", "sparse"]
    assert all(0.3 <= entry["removed_from_linears"] < 0.4 for entry in entries.values())
    for entry in entries.values():
        # Which of the two is less depends on this Python's documentation, where weights are random.
        errors = [layer["error"] for layer in entry["layers"]]  # zero of a layer that stays dense
        assert 0 <= min(errors) < max(errors) < 1
        assert math.isfinite(entry["perplexity"])


def test_the_shares_are_those_of_the_budget(finished):
    _, result = finished
    for variant in result["variants"]:
        sizes = [math.prod(layer["shape"]) for layer in variant["layers"]]
        kept = [layer["share"] * size for layer, size in zip(variant["layers"], sizes, strict=True)]
        # Sums of some 14 numbers, in another order: a few roundings.
        assert sum(kept) / sum(sizes) == pytest.approx(
            1 - variant["removed_from_linears"], rel=1e-14
        )


def test_the_default_is_kept_and_its_predictions_were_checked(finished):
    out, result = finished
    assert result["kept"] == "sparse"
    config = json.loads((out / "model" / "config.json").read_text())
    saved = config["quantization_config"]["layers"]
    assert {layer["class"] for layer in saved.values()} == {"SparseLinear"}
    layers = [layer["name"] for layer in result["variants"][-1]["layers"]]
    # Two of each kind are measured, and there are two blocks.
    assert sorted(entry["name"] for entry in result["predictions"]) == sorted(layers)
    assert all(entry["predicted"] > 0 for entry in result["predictions"])
    # A divergence is not negative but for rounding: of averages of differences of two logarithms,
    # each below 10 and from some four roundings to 2⁻²⁴ of that size.
    lowest = -2 * 10 * 4 * 2.0**-24
    assert all(lowest <= entry["measured"] < math.inf for entry in result["predictions"])


def test_the_default_comes_last():
    """Masks would take up too much of little: then another method is the default."""
    few, much = (variants(ratio, torch.float32) for ratio in (0.9, 0.2))
    assert few == [("svd_llm", "factored"), ("two_sided", "interpolative")]
    assert much == [("svd_llm", "factored"), ("sparse", "sparse")]


def test_what_was_saved_comes_back(finished):
    out, result = finished
    assert result["saved"]["identical"] is True
    assert (out / "model" / "config.json").is_file()


def test_the_three_lines_run(finished):
    _, result = finished
    assert len(result["usage"].splitlines()) == 3
    subprocess.run([sys.executable, "-c", result["usage"]], check=True, capture_output=True)


def test_the_report_stands_alone(finished):
    out, result = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|@import|url\(|<script", page)
    assert "nan" not in page.lower().replace("finance", "")
    _Balanced().feed(page)
    # The perplexities, 7 kinds of layer by error and by share, and 2 blocks' spectra.
    assert page.count("<svg") == 1 + 7 + 7 + 2
    assert f"{result['dense']['perplexity']:.2f}" in page
    assert all(f"<td>{entry['name']}</td>" in page for entry in result["predictions"])


class _Balanced(HTMLParser):
    """Fails where an element is closed that was not the last one opened."""

    VOID = ("meta",)

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_for_people_and_again_in_the_same_place(fastlr, finished, tiny_model):
    out, _ = finished
    ran = fastlr("demo", "--model", tiny_model, "--out", out, "--ratio", 0.9, *SMALL)
    assert ran.code == 0, ran.err
    assert "report.html" in ran.out
    assert "The model of two_sided, interpolative" in ran.out
    assert "sparse" not in ran.out + (out / "report.html").read_text(encoding="utf-8")
    assert "fastlr.nn.load" in ran.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ratio", "0"], "--ratio"),
        (["--model", "nowhere"], "there is no model"),
        (["--windows", "100000"], "--windows"),
        (["--seq-len", "500"], "at most 64"),
    ],
)
def test_bad_input_is_one_sentence(fastlr, tiny_model, tmp_path, words, says):
    ran = fastlr("demo", "--model", tiny_model, "--out", tmp_path / "out", *words)
    assert ran.code == 2
    assert says in ran.complaint
    assert not (tmp_path / "out").exists()


def test_a_strangers_directory_is_left_alone(fastlr, tiny_model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "diary.txt").write_text("precious")
    ran = fastlr("demo", "--model", tiny_model, "--out", tmp_path, *SMALL)
    assert ran.code == 2
    assert (tmp_path / "model" / "diary.txt").read_text() == "precious"


def test_the_text_is_cut_without_overlap():
    text = demo_text()
    assert text.last_topic < text.first_held_out_topic
    calibration = {" ".join(part.split()) for part in text.calibration.split("\n\n")}
    held_out = {" ".join(part.split()) for part in text.held_out.split("\n\n")}
    assert not calibration & held_out
    assert len(text.held_out) > 50_000


def test_windows_are_spread_over_the_text():
    tokens = torch.arange(103)
    assert spread_windows(tokens, 10, 2).tolist() == [*range(10), *range(50, 60)]
    assert spread_windows(tokens, 10, 10).tolist() == list(range(100))
    with pytest.raises(ValueError, match="fills 10 windows"):
        spread_windows(tokens, 10, 11)


def test_a_model_that_does_not_load_is_one_sentence(tmp_path):
    question = reload.Question(str(tmp_path / "nothing"), [1], "a", 1, 1)
    with pytest.raises(OSError, match="does not load in a new process"):
        reload.ask_new_process(question)
