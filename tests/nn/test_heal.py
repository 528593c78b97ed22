"""Distillation after the compression."""

import copy

import pytest
import torch

from fastlr.nn import SparseLinear, compress_llm, load
from fastlr.nn.compression import calibrate, heal
from fastlr.nn.compression.heal import Student

OPTIONS = {"seq_len": 24, "progress": False}


@pytest.fixture
def model(make_model):
    return make_model("llama")


@pytest.mark.parametrize("method", ["sparse", "two_sided"])
@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2"])
def test_it_comes_nearer_to_the_dense_model(make_model, tokens, architecture, method):
    model = make_model(architecture)
    report = compress_llm(
        model, 0.4, method=method, calibration=tokens, samples=60, heal_steps=30, **OPTIONS
    ).fastlr_report
    healed = report.heal
    assert healed.steps == 30
    assert healed.rate in heal.RATES
    # A random model on random text: there is little to learn, but not nothing.
    assert healed.after < 0.995 * healed.before
    assert healed.after == min(found for _, found in healed.history)
    assert healed.history[0] == (0, healed.before)
    assert report.seconds["healing"] > 0
    assert 0.4 <= report.ratio_achieved < 0.41


def test_only_new_layers_and_norms_change(model, tokens):
    dense = copy.deepcopy(model)
    compress_llm(model, 0.4, calibration=tokens, samples=40, heal_steps=10, **OPTIONS)
    before, after = dense.state_dict(), model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(before[name], after[name])
    norms = [name for name in before if "norm" in name]
    assert len(norms) == 5
    assert all(not torch.equal(before[name], after[name]) for name in norms)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    # What was zero stays so: the layers are as small as before.
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, SparseLinear)
    assert int((layer.compose() != 0).sum()) <= layer.nonzeros


def test_a_model_that_cannot_become_better_stays(model, tokens, monkeypatch):
    """Rates that throw the model far away: the initial state is kept, to the bit."""
    monkeypatch.setattr(heal, "RATES", (1e3, 1e4, 1e5))
    other = copy.deepcopy(model)
    options = {"calibration": tokens, "samples": 40, **OPTIONS}
    compress_llm(model, 0.4, heal_steps=10, **options)
    compress_llm(other, 0.4, **options)
    report = model.fastlr_report.heal
    assert report.rate == 0
    assert report.after == report.before
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_half_types_move_too(make_model, tokens):
    """A step is smaller than the rounding of bfloat16; sums of steps must not be lost."""
    model = make_model("llama", torch.bfloat16)
    report = compress_llm(
        model, 0.4, calibration=tokens, samples=60, heal_steps=30, **OPTIONS
    ).fastlr_report
    assert report.heal.after < 0.995 * report.heal.before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_statistics_serve_and_the_seed_decides(make_model, tokens, monkeypatch):
    monkeypatch.setattr(heal, "_TOKENS_A_STEP", 500)  # not all of the text in every step
    statistics = calibrate(make_model("llama"), tokens, samples=83, gradients=True, **OPTIONS)
    found = [
        compress_llm(
            make_model("llama"),
            0.4,
            calibration=statistics,
            heal_steps=5,
            seed=seed,
            progress=False,
        )
        for seed in (0, 0, 1)
    ]
    values = [model.model.layers[0].mlp.up_proj.values for model in found]
    history = [model.fastlr_report.heal.history for model in found]
    assert torch.equal(values[0], values[1])
    assert history[0] == history[1]
    assert history[0] != history[2]


def test_a_healed_model_saves_and_loads(model, tokens, tmp_path, logits):
    compress_llm(model, 0.4, calibration=tokens, samples=40, heal_steps=5, **OPTIONS)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_the_students_memory_is_the_dense_models(model):
    student = Student(model, {})
    shared = dict(model.named_parameters())
    for name, parameter in student.model.named_parameters():
        assert (parameter is shared[name]) == ("norm" not in name)


def test_ctrl_c_leaves_the_model_as_it_was(model, tokens, monkeypatch):
    before = copy.deepcopy(model.state_dict())

    def pressed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(heal._Healing, "_state", pressed)
    with pytest.raises(KeyboardInterrupt, match="as it was before the call"):
        compress_llm(model, calibration=tokens, samples=20, heal_steps=5, **OPTIONS)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in model.parameters())


def test_there_must_be_text(model, tokens):
    with pytest.raises(ValueError, match="heal_steps: there is no calibration text"):
        compress_llm(model, method="svd", heal_steps=3, progress=False)
    with pytest.raises(ValueError, match="at least two sequences"):
        compress_llm(model, calibration=tokens[None, :24], heal_steps=3, progress=False)
