"""The gradients at the layers' outputs, and what the loss model makes of them."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastlr.nn import compress_llm
from fastlr.nn.compression import Gram, calibrate
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.divergence import divergence_of
from fastlr.nn.modules.dense import is_dense_linear

U = torch.finfo(torch.float64).eps


def linears(model):
    return {n: m for n, m in model.named_modules() if is_dense_linear(m) and n != "lm_head"}


def gradients_of(model, windows):
    """By plain autograd, with all parameters trainable and the loss that transformers computes."""
    outputs, handles = {}, []
    for name, module in linears(model).items():

        def keep(_, args, output, name=name):
            output.retain_grad()
            outputs[name] = output

        handles.append(module.register_forward_hook(keep))
    logits = model(windows).logits
    loss = F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), windows[:, 1:].reshape(-1), reduction="sum"
    )
    loss.backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return {name: out.grad.reshape(-1, out.shape[-1]) for name, out in outputs.items()}


@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2"])
def test_moments_are_those_of_plain_autograd(make_model, tokens, architecture):
    model = make_model(architecture, torch.float64)
    windows = tokens[:240].reshape(10, 24)
    expected = gradients_of(model, windows)
    statistics = calibrate(model, windows, gradients=True, progress=False)
    plain = calibrate(model, windows, progress=False)
    assert set(statistics.gradients) == set(expected)
    for name, g in expected.items():
        found = statistics.gradients[name]
        assert found.tokens == 240
        # Float64 throughout; sums over 240 positions, and a backward pass through two blocks.
        assert (found.matrix - g.T @ g).norm() <= 1e4 * U * (g.T @ g).norm()
        inputs = statistics.grams[name].matrix
        assert (inputs - plain.grams[name].matrix).norm() <= 1e4 * U * inputs.norm()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_padding_has_no_gradient(make_model, tokens):
    model = make_model("llama", torch.float64)
    windows = tokens[:60].reshape(3, 20)
    padded = torch.cat((windows, torch.zeros(3, 9, dtype=torch.int64)), 1)
    mask = (torch.arange(29) < 20).long().expand(3, 29)
    plain = calibrate(model, windows, gradients=True, progress=False)
    masked = calibrate(
        model, {"input_ids": padded, "attention_mask": mask}, gradients=True, progress=False
    )
    unmasked = calibrate(model, padded, gradients=True, progress=False)
    name = "model.layers.0.mlp.down_proj"
    torch.testing.assert_close(masked.gradients[name].matrix, plain.gradients[name].matrix)
    assert not torch.allclose(unmasked.gradients[name].matrix, plain.gradients[name].matrix)


def test_frozen_parameters_stay_frozen(make_model, tokens):
    model = make_model("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    calibrate(model, tokens, samples=2, seq_len=16, gradients=True, progress=False)
    assert not model.model.embed_tokens.weight.requires_grad
    assert model.lm_head.weight.requires_grad


def test_short_sums_in_float32_are_near_those_in_float64():
    rows = torch.randn(5000, 40, generator=torch.Generator().manual_seed(0)) + 1
    exact, quick = Gram.of(rows), Gram.of(rows, exact=False)
    # 512 products of float32 a sum: √512·u of the diagonal, at most 512·u.
    limit = 512 * torch.finfo(torch.float32).eps * float(exact.matrix.diagonal().max())
    assert 0 < float((exact.matrix - quick.matrix).abs().max()) <= limit
    assert torch.equal(quick.matrix, quick.matrix.T)
    assert quick.tokens == 5000
    torch.testing.assert_close(quick.total, rows.double().sum(0))
    torch.testing.assert_close(quick.magnitude, rows.double().abs().sum(0))


def test_a_loss_that_is_not_finite_is_named_and_nothing_changes(make_model, tokens):
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[90] = torch.nan
    batches = [tokens[:24].clamp(max=80)[None], torch.full((1, 8), 90)]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="sequence 1: the loss is nan"):
        compress_llm(model, calibration=batches, progress=False)
    after = model.state_dict()
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)


def test_predictions_are_of_the_size_of_what_is_measured(make_model, tokens):
    """tr(H Δ G Δᵀ)/2 against the divergence, layer by layer, where the truncation is mild."""
    model = make_model("llama", torch.float64)
    report = compress_llm(
        model, 0.05, method="two_sided", calibration=tokens, samples=40, seq_len=24, progress=False
    ).fastlr_report
    assert len({p.name.rpartition(".")[2] for p in report.predictions}) == 7
    for prediction in report.predictions:
        assert prediction.predicted > 0
        # Gradients of labels that a random model did not write are larger than the Fisher ones,
        # and inputs and gradients are not independent: a factor, but no more than one.
        assert 0.01 < prediction.measured / prediction.predicted < 100


def test_divergence_is_zero_only_from_itself(make_model, tokens):
    model, other = make_model("llama"), make_model("llama")
    batch = Batch(tokens[:48].reshape(2, 24))
    total, count = divergence_of(model, other, batch)
    assert count == 48
    assert abs(float(total)) < 1e-3
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    assert float(divergence_of(model, other, batch)[0]) > 0.1


def test_statistics_without_gradients_do_not_serve(make_model, tokens):
    model = make_model("llama")
    statistics = calibrate(model, tokens, samples=4, seq_len=16, progress=False)
    with pytest.raises(ValueError, match=r"no gradients, which method='sparse' needs"):
        compress_llm(model, calibration=statistics, progress=False)
