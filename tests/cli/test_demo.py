"""``fastlr demo`` from end to end on a tiny model, and its parts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from html.parser import HTMLParser
from io import StringIO

import pytest
import torch

from fastlr.cli import main, reload
from fastlr.cli.demo import spread_windows
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
    variants = result["variants"]
    assert len(variants) == 4
    assert all(0.3 <= variant["removed_from_linears"] < 0.4 for variant in variants)
    errors = {
        (v["method"], v["form"]): sum(layer["error"] for layer in v["layers"]) for v in variants
    }
    # At equal parameters: knowing the inputs wins, and so does the higher rank.
    assert errors["svd_llm", "interpolative"] < errors["svd", "interpolative"]
    assert errors["svd_llm", "interpolative"] < errors["svd_llm", "factored"]


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
    # The perplexities, 7 kinds of layer by error and by rank, and 2 blocks' spectra.
    assert page.count("<svg") == 1 + 7 + 7 + 2
    assert f"{result['dense']['perplexity']:.2f}" in page


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
    ran = fastlr("demo", "--model", tiny_model, "--out", out, *SMALL)
    assert ran.code == 0, ran.err
    assert "report.html" in ran.out
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
