"""Perplexity."""

import math

import pytest
import torch

from fastlr.nn import perplexity
from fastlr.nn.evaluate import tokenize_file


def direct(model, tokens, seq_len):
    """From the definition, one position at a time, in float64."""
    losses = []
    for start in range(0, len(tokens) - seq_len + 1, seq_len):
        window = tokens[start : start + seq_len]
        with torch.no_grad():
            odds = model(window[None]).logits[0].double().log_softmax(-1)
        losses += [-float(odds[k, window[k + 1]]) for k in range(seq_len - 1)]
    return math.exp(math.fsum(losses) / len(losses))


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_it_is_the_definition(make_model, tokens, batch_size):
    model = make_model("llama")
    text = tokens[:333]  # 8 windows of 40, and a tail that does not count
    expected = direct(model, text, 40)
    found = perplexity(model, text, 40, batch_size=batch_size)
    # float32 logits, whose rounding depends on the batch; the exponential of a mean loss near 8.
    assert found == pytest.approx(expected, rel=1e-4)
    assert perplexity(model, text[None], 40) == pytest.approx(expected, rel=1e-4)
    assert perplexity(model, text[:320], 40) == pytest.approx(expected, rel=1e-4)
    first = perplexity(model, text, 40, windows=2)
    assert first == pytest.approx(direct(model, text[:80], 40), rel=1e-4)
    assert abs(first - expected) > 1e-3 * expected


def test_the_model_keeps_its_mode_and_dropout_is_off(make_model, tokens):
    model = make_model("gpt2")
    expected = perplexity(model, tokens[:100], 20)
    model.train()
    assert perplexity(model, tokens[:100], 20) == expected
    assert model.training
    assert all(module.training for module in model.modules())


def test_losses_are_taken_in_float32(make_model, tokens):
    model = make_model("llama", torch.bfloat16)
    text = tokens[:200]
    assert perplexity(model, text, 20, batch_size=1) == pytest.approx(
        direct(model, text, 20), rel=1e-4
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_window_that_is_not_finite_makes_it_nan(make_model, tokens, value):
    model = make_model("llama")
    text = tokens[:200] % 90
    text[45] = 95  # in the third of ten windows only
    with torch.no_grad():
        model.model.embed_tokens.weight[95] = value
    assert math.isnan(perplexity(model, text, 20))
    assert math.isfinite(perplexity(model, text, 20, windows=2))


def test_bad_input(make_model, tokens):
    model = make_model("gpt2")

    def fails(kind, match, *arguments, **options):
        with pytest.raises(kind, match=match):
            perplexity(model, *arguments, **options)

    fails(ValueError, "at least one window of seq_len = 50, got 49 tokens", tokens[:49], 50)
    fails(ValueError, "seq_len must be at least 2, got 1", tokens, 1)
    fails(ValueError, "seq_len must be at most 64, the model's longest context", tokens, 65)
    fails(ValueError, "windows must be at least 1, got 0", tokens, 50, windows=0)
    fails(ValueError, "batch_size must be at least 1, got 0", tokens, 50, batch_size=0)
    fails(ValueError, r"shape \(n,\) or \(1, n\), got \(2, 1000\)", tokens.reshape(2, -1), 50)
    fails(ValueError, "between 0 and 95, the model's vocabulary, got 96", tokens % 2 + 95, 50)
    fails(TypeError, r"a tensor of integers, got torch\.float32", tokens.float(), 50)
    fails(TypeError, "a tensor of integers, got list", [1, 2, 3], 2)


def test_progress_is_shown_on_stderr(make_model, tokens, capsys, monkeypatch):
    import importlib.util

    model = make_model("llama")
    perplexity(model, tokens[:200], 20, progress=True)
    assert "Perplexity" in capsys.readouterr().err
    perplexity(model, tokens[:200], 20)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no rich
    perplexity(model, tokens[:200], 20, batch_size=1, progress=True)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "Perplexity ..."
    assert shown[-1] == "Perplexity: 100 %, 0 s left"
    assert len(shown) == 11


def test_tokenize_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("añ", encoding="utf-8")

    def letters(text, **options):
        assert options == {"add_special_tokens": False, "verbose": False}
        return {"input_ids": [ord(letter) for letter in text]}

    assert tokenize_file(path, letters).tolist() == [97, 241]
    with pytest.raises(ValueError, match="tokenizer"):
        tokenize_file(path, None)
    with pytest.raises(ValueError, match="cannot read the text file"):
        tokenize_file(tmp_path / "none.txt", letters)
