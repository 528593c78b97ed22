"""compress_llm on tiny random models."""

import copy
import json
import threading
import warnings

import pytest
import torch

from fastlr.nn import SparseLinear, compress_llm, load
from fastlr.nn.compression import calibrate
from fastlr.nn.compression import engine as engine_module
from fastlr.nn.compression import run as run_module
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.divergence import divergence_of
from fastlr.nn.compression.methods import METHODS
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.dense import dense_weight, is_dense_linear

U = torch.finfo(torch.float64).eps
ARCHITECTURES = ["llama", "qwen", "gpt2"]
FORMS = ["interpolative", "factored", "dense"]


def compress(model, ratio=0.3, **options):
    defaults = {"samples": 12, "seq_len": 24, "progress": False}
    return compress_llm(model, ratio, **{**defaults, **options})


def linears(model):
    return {
        name: module
        for name, module in model.named_modules()
        if is_dense_linear(module) and name != "lm_head"
    }


def captured_inputs(model, batch):
    """The inputs of every linear layer, from a plain forward pass."""
    found, handles = {}, []
    for name, module in linears(model).items():

        def listen(_, args, name=name):
            found[name] = args[0].reshape(-1, args[0].shape[-1])

        handles.append(module.register_forward_pre_hook(listen))
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_certificate(make_model, tokens, architecture, form):
    """Predicted, reported and directly measured output errors agree for every layer."""
    model = make_model(architecture, torch.float64)
    windows = tokens[:240].reshape(10, 24)
    inputs = captured_inputs(model, windows)
    dense = {name: dense_weight(module).clone() for name, module in linears(model).items()}
    compress(model, 0.3, method="svd_llm", form=form, calibration=windows)
    report = model.fastlr_report
    assert {layer.name for layer in report.layers} == set(dense)
    for layer in report.layers:
        weight, x = dense[layer.name], inputs[layer.name]
        module = model.get_submodule(layer.name)
        new = module.compose() if isinstance(module, CompressedLinear) else dense_weight(module)
        measured = float((x @ (weight - new).T).square().sum() / (x @ weight.T).square().sum())
        # Sums over tokens and channels, and T (entries up to 2) multiplying rounding errors.
        tolerance = 20 * (len(x) + sum(weight.shape)) * U
        assert layer.output_error == pytest.approx(measured, abs=tolerance)
        assert layer.predicted_error == pytest.approx(measured, abs=tolerance)
        assert 0 < layer.output_error < 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_walk_sees_the_inputs_of_the_dense_model(make_model, tokens, architecture):
    """The Gram matrices are those of one plain forward pass, batch by batch or not."""
    model = make_model(architecture)
    windows = tokens[:1200].reshape(50, 24)
    inputs = captured_inputs(model, windows)
    statistics = calibrate(model, [windows[:7], windows[7:30], windows[30:]], progress=False)
    assert statistics.tokens == 1200
    for name, x in inputs.items():
        expected = x.double().T @ x.double()
        found = statistics.grams[name].matrix
        # The forward passes are in float32 and differ by rounding with the batch.
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert statistics.grams[name].tokens == 1200


def test_layers_that_share_an_input_share_its_gram(make_model, tokens):
    model = make_model("llama")
    grams = calibrate(model, tokens, samples=90, seq_len=20, progress=False).grams
    layer = "model.layers.0."
    q, k, v, o = (grams[f"{layer}self_attn.{x}_proj"] for x in "qkvo")
    gate, up, down = (grams[f"{layer}mlp.{x}_proj"] for x in ("gate", "up", "down"))
    assert q is k is v
    assert gate is up
    assert len({id(gram) for gram in (q, o, gate, down)}) == 4
    assert q is not grams["model.layers.1.self_attn.q_proj"]


def test_padding_does_not_count(make_model, tokens):
    model = make_model("llama", torch.float64)
    windows = tokens[:60].reshape(3, 20)
    padded = torch.cat((windows, torch.zeros(3, 9, dtype=torch.int64)), 1)
    mask = (torch.arange(29) < 20).long().expand(3, 29)
    plain = calibrate(model, windows, progress=False)
    masked = calibrate(model, {"input_ids": padded, "attention_mask": mask}, progress=False)
    unmasked = calibrate(model, padded, progress=False)
    assert masked.tokens == 60
    name = "model.layers.1.mlp.down_proj"
    torch.testing.assert_close(masked.grams[name].matrix, plain.grams[name].matrix)
    assert not torch.allclose(unmasked.grams[name].matrix, plain.grams[name].matrix)


@pytest.mark.parametrize("method", ["svd", "svd_llm"])
def test_forms_are_the_same_function_at_the_same_rank(make_model, tokens, logits, method):
    """interpolative = dense in function, and its parameters are r(o + i) − r²."""
    model = make_model("llama", torch.float64)
    statistics = calibrate(model, tokens, samples=20, seq_len=20, progress=False)
    results = {
        form: compress(copy.deepcopy(model), form=form, method=method, calibration=statistics)
        for form in FORMS
    }
    exact = logits(results["dense"])
    assert (logits(results["interpolative"]) - exact).norm() <= 1e-11 * exact.norm()
    for layer in results["interpolative"].fastlr_report.layers:
        o, i = layer.shape
        assert layer.parameters_after == layer.rank * (o + i) - layer.rank**2 <= 0.7 * o * i
        factored = results["factored"].fastlr_report.layer(layer.name)
        assert factored.parameters_after == factored.rank * (o + i) <= 0.7 * o * i
        assert factored.rank < layer.rank
        assert factored.output_error > layer.output_error
        dense = results["dense"].fastlr_report.layer(layer.name)
        assert (dense.rank, dense.parameters_after) == (layer.rank, o * i)
        rank = torch.linalg.matrix_rank(dense_weight(results["dense"].get_submodule(layer.name)))
        assert int(rank) == layer.rank


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_method_that_knows_the_inputs_is_better_on_them(make_model, tokens, architecture):
    model = make_model(architecture)
    statistics = calibrate(model, tokens, samples=30, seq_len=24, gradients=True, progress=False)
    errors = {
        method: compress(
            copy.deepcopy(model), method=method, allocation="uniform", calibration=statistics
        ).fastlr_report
        for method in ("svd", "asvd", "fwsvd", "two_sided", "svd_llm")
    }
    for other in errors:
        for aware, blind in zip(errors["svd_llm"].layers, errors[other].layers, strict=True):
            # In float32, whose rounding the stored weights have.
            assert aware.output_error <= blind.output_error * (1 + 1e-6)
    for aware, blind in zip(errors["svd_llm"].layers, errors["svd"].layers, strict=True):
        assert aware.weight_error >= blind.weight_error * (1 - 1e-6)
    assert errors["svd_llm"].mean_output_error < 0.95 * errors["svd"].mean_output_error


def test_no_data_at_all(make_model):
    model = make_model("llama")
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    again = copy.deepcopy(model)
    assert compress(model) is model
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.fastlr_report.calibration_tokens == 12 * 24
    compress(again)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_svd_without_data_is_not_calibrated(make_model):
    report = compress(make_model("llama"), method="svd").fastlr_report
    assert report.calibration_tokens == 0
    for layer in report.layers:
        assert layer.output_error is None
        assert layer.predicted_error == pytest.approx(layer.weight_error, abs=1e-6)
    assert report.mean_output_error is None
    measured = compress(make_model("llama"), method="svd", calibration=torch.arange(96).repeat(4))
    assert measured.fastlr_report.layers[0].output_error > 0


@pytest.mark.parametrize("tied", [False, True])
def test_report_counts_what_is_there(make_model, tokens, tied):
    model = make_model("llama", tie=tied)
    before = {id(p): p for p in model.parameters()}
    dense = sum(dense_weight(module).numel() for module in linears(model).values())
    compress(model, 0.4, method="svd_llm", calibration=tokens)
    report = model.fastlr_report
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert report.model_before.parameters == sum(p.numel() for p in before.values())
    after = {id(p): p for p in model.parameters()}
    assert report.model_after.parameters == sum(p.numel() for p in after.values())
    factors = [m for m in model.modules() if isinstance(m, CompressedLinear)]
    assert len(factors) == len(report.layers) == 14
    assert report.parameters_before == dense
    assert report.parameters_after == sum(m.weight_parameters() for m in factors)
    assert report.ratio_achieved >= 0.4
    orders = sum(m.order.numel() * 4 for m in factors)
    assert report.model_after.bytes == 4 * report.model_after.parameters + orders
    values = json.loads(report.to_json())
    assert values["layers"][0]["shape"] == [32, 32]
    assert "spectrum" not in values["layers"][0]
    spectra = report.to_dict(spectra=True)["layers"][0]["spectrum"]
    assert len(spectra) == 32
    assert sum(spectra) == pytest.approx(1)
    assert spectra == sorted(spectra, reverse=True)
    assert report.layers[0].name in str(report)
    assert set(report.seconds) == {
        "calibration",
        "statistics",
        "measuring",
        "factorization",
        "total",
    }
    with pytest.raises(KeyError):
        report.layer("lm_head")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.7])
def test_the_default_keeps_its_budget(make_model, tokens, ratio, dtype):
    """Values and masks, in numbers of the model's dtype, and the bytes on disk."""
    model = make_model("llama", dtype)
    dense = sum(dense_weight(module).numel() for module in linears(model).values())
    report = compress(model, ratio, calibration=tokens).fastlr_report
    assert (report.method, report.form, report.allocation) == ("sparse", "sparse", "loss")
    assert report.parameters_before == dense
    sparse = [m for m in model.modules() if isinstance(m, SparseLinear)]
    stored = sum(m.values.numel() * m.values.element_size() + m.mask.numel() for m in sparse)
    left = sum(dense_weight(m).numel() for m in linears(model).values())
    assert stored + left * dtype.itemsize <= (1 - ratio) * dense * dtype.itemsize + 2 * len(sparse)
    # One step of a layer is a 1024th of it, or one entry; no layer has more than 2304.
    assert ratio <= report.ratio_achieved <= ratio + 3 / dense + 1e-3
    assert report.model_after.bytes == sum(
        t.numel() * t.element_size()
        for t in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values()
    )
    assert [p.name for p in report.predictions]
    assert json.loads(report.to_json())["predictions"][0]["measured"] >= 0


@pytest.mark.parametrize("ratio", [0.01, 0.9])
def test_extreme_ratios(make_model, tokens, logits, ratio):
    """Where masks would take most of the budget, the default is of low rank."""
    model = make_model("llama", torch.bfloat16)
    report = compress(model, ratio, calibration=tokens).fastlr_report
    assert report.method == ("sparse" if ratio < 0.5 else "two_sided")
    assert ratio <= report.ratio_achieved <= ratio + 0.01
    assert torch.isfinite(logits(model)).all()


def test_a_budget_that_cannot_be_kept_is_not_silent(make_model, tokens):
    """Masks of one bit take 1/16 of a weight in bfloat16."""
    with pytest.warns(UserWarning, match=r"ratio=0\.95 is not reached: .* 'sparse' takes"):
        compress(make_model("llama", torch.bfloat16), 0.95, method="sparse", calibration=tokens)


def test_the_default_is_better_than_low_rank(make_model, tokens):
    """On random weights, whose singular values do not fall: by the divergence of predictions."""
    model = make_model("llama")
    statistics = calibrate(model, tokens, samples=40, seq_len=24, gradients=True, progress=False)
    batch = Batch(tokens[-240:].reshape(10, 24))
    found = {}
    for method in ("sparse", "two_sided", "svd_llm", "svd"):
        other = compress(copy.deepcopy(model), 0.4, method=method, calibration=statistics)
        with torch.no_grad():
            found[method] = float(divergence_of(other, model, batch)[0])
    assert found["sparse"] < 0.8 * found["two_sided"]
    assert found["two_sided"] < found["svd_llm"]


# Without "sub_moe", which is for mixtures of experts.
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"sub_moe"}))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_method_on_every_architecture(make_model, tokens, logits, architecture, method):
    model = make_model(architecture)
    assert torch.isfinite(logits(compress(model, method=method, calibration=tokens))).all()
    report = model.fastlr_report
    assert 0.3 <= report.ratio_achieved < 0.4
    assert report.method == method


def test_afm_keeps_the_mean_output(make_model, tokens):
    model = make_model("llama", torch.float64)
    windows = tokens[:240].reshape(10, 24)
    inputs = captured_inputs(model, windows)
    dense = {name: (dense_weight(m).clone(), m.bias) for name, m in linears(model).items()}
    compress(model, 0.4, method="afm", calibration=windows)
    for name, (weight, bias) in dense.items():
        module = model.get_submodule(name)
        mean = inputs[name].mean(0)
        expected = weight @ mean + (0 if bias is None else bias)
        found = module.compose() @ mean + module.bias
        # Sums over 240 inputs and up to 72 channels.
        assert (found - expected).norm() <= 1e4 * U * weight.norm() * inputs[name].norm()
        assert module.bias is not None
    assert model.fastlr_report.ratio_achieved >= 0.4 - 1e-9


def test_a_bias_that_transformers_would_not_load_is_refused(make_model, tokens):
    with pytest.raises(ValueError, match="form must be one of factored, interpolative for method="):
        compress(make_model("llama"), method="afm", form="dense", calibration=tokens)


def test_a_bias_that_is_new_is_saved(make_model, tokens, tmp_path, logits):
    model = compress(make_model("llama"), method="afm", calibration=tokens)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_ranks_are_multiples(make_model, tokens):
    report = compress(
        make_model("llama"), method="two_sided", rank_multiple=4, calibration=tokens
    ).fastlr_report
    kept = [layer.rank for layer in report.layers if layer.form != "dense"]
    assert kept
    assert all(rank % 4 == 0 for rank in kept)


def test_zero_gradients_weigh_all_alike(make_model, tokens):
    """The loss of a model that always predicts the same does not depend on any layer."""
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    report = compress(model, calibration=tokens).fastlr_report
    assert 0.3 <= report.ratio_achieved < 0.32


@pytest.mark.parametrize("method", ["sparse", "two_sided", "svd_llm", "asvd"])
def test_hard_moments(make_model, logits, method):
    """Fewer tokens than channels, one token over and over, and channels 1000 times the others."""
    model = make_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[3] = 1000
            layer.post_attention_layernorm.weight[5] = 1000
    compress(model, method=method, calibration=torch.full((2, 4), 7))
    assert torch.isfinite(logits(model)).all()


def test_targets_and_ignore(make_model, tokens):
    def names(**options):
        model = compress(make_model("llama"), method="svd", calibration=tokens, **options)
        return {name for name, m in model.named_modules() if isinstance(m, CompressedLinear)}

    assert names(targets=["q_proj", "mlp.up_proj"]) == {
        f"model.layers.{k}.{x}" for k in (0, 1) for x in ("self_attn.q_proj", "mlp.up_proj")
    }
    assert names(targets="model.layers.1.*.?_proj") == {
        f"model.layers.1.self_attn.{x}_proj" for x in "qkvo"
    }
    everything = names()
    assert names(ignore=["mlp.down_proj"]) == {x for x in everything if "down" not in x}
    assert len(everything) == 14


def test_bias_and_dtype_and_mode_are_kept(make_model, tokens):
    model = make_model("qwen", torch.bfloat16)
    bias = model.model.layers[0].self_attn.q_proj.bias.clone()
    model.train()
    model.model.layers[1].eval()
    model.model.layers[0].mlp.up_proj.requires_grad_(False)
    compress(model, calibration=tokens)
    q = model.model.layers[0].self_attn.q_proj
    assert torch.equal(q.bias, bias)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert q.training
    assert not model.model.layers[1].mlp.up_proj.training
    assert not any(p.requires_grad for p in model.model.layers[0].mlp.up_proj.parameters())
    assert all(p.requires_grad for p in q.parameters())


def test_no_hooks_are_left_and_training_works(make_model, tokens):
    model = compress(make_model("llama"), calibration=tokens)
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in module.__dict__
    batch = tokens[:48].reshape(2, 24)
    loss = model(batch, labels=batch).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_fewer_tokens_than_channels(make_model, logits):
    model = make_model("llama")
    compress(model, method="svd_llm", calibration=torch.full((1, 3), 7))
    assert torch.isfinite(logits(model)).all()
    assert all(layer.output_error < 1e-10 for layer in model.fastlr_report.layers)


def test_a_layer_that_is_never_called_is_reported(make_model, tokens):
    model = make_model("llama")
    model.model.layers[0].mlp.spare = torch.nn.Linear(32, 32)
    with pytest.warns(UserWarning, match=r"'model\.layers\.0\.mlp\.spare': its input never"):
        compress(model, calibration=tokens)
    layer = model.fastlr_report.layer("model.layers.0.mlp.spare")
    assert "never occurred" in layer.note
    assert layer.output_error is None
    assert layer.predicted_error == pytest.approx(layer.weight_error, rel=1e-4)
    assert "never occurred" in str(model.fastlr_report)


def test_layers_with_nothing_to_gain_stay_dense(make_model, tokens):
    model = make_model("llama")
    model.model.layers[0].mlp.thin = torch.nn.Linear(32, 1)
    with pytest.warns(UserWarning, match="thin"):
        compress(model, method="svd_llm", form="factored", calibration=tokens)
    assert isinstance(model.model.layers[0].mlp.thin, torch.nn.Linear)
    layer = model.fastlr_report.layer("model.layers.0.mlp.thin")
    assert layer.parameters_after == layer.parameters_before == 32
    assert "left dense" in layer.note


class Interrupting(torch.nn.Linear):
    """A layer during whose n-th call the user presses Ctrl-C."""

    calls = 0

    def forward(self, input):
        type(self).calls += 1
        if type(self).calls == self.fatal:
            raise KeyboardInterrupt
        return super().forward(input)


def snapshot(model):
    return {name: (type(m), m.training) for name, m in model.named_modules()}, {
        name: tensor.clone() for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("fatal", [1, 3, 4])
def test_ctrl_c_leaves_the_model_as_it_was(make_model, tokens, fatal):
    model = make_model("llama")
    layer = model.model.layers[1].mlp.down_proj
    layer.__class__, Interrupting.fatal, Interrupting.calls = Interrupting, fatal, 0
    modules, state = snapshot(model)
    batches = [tokens[:24], tokens[24:48], tokens[48:72]]
    with pytest.raises(KeyboardInterrupt, match="the model is as it was before the call"):
        compress(model, calibration=batches)
    assert Interrupting.calls == fatal
    after, tensors = snapshot(model)
    assert after == modules
    assert all(torch.equal(state[name], tensors[name]) for name in state)
    assert not hasattr(model, "fastlr_report")
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in module.__dict__


def test_ctrl_c_in_a_factorization_leaves_the_model_as_it_was(make_model, tokens, monkeypatch):
    model = make_model("llama")
    modules, _ = snapshot(model)
    count = 0

    def interrupted(*args):
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt
        return real(*args)

    real = run_module.layer_report
    monkeypatch.setattr(run_module, "layer_report", interrupted)
    with pytest.raises(KeyboardInterrupt, match="as it was before"):
        compress(model, calibration=tokens)
    assert snapshot(model)[0] == modules


def test_ctrl_c_at_the_last_step_waits_for_it(make_model, tokens, monkeypatch):
    import signal

    model = make_model("llama")
    real = engine_module.replace_modules

    def pressed(*args):
        signal.raise_signal(signal.SIGINT)
        real(*args)

    monkeypatch.setattr(engine_module, "replace_modules", pressed)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="the model is fully compressed"):
        compress(model, method="svd_llm", calibration=tokens)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(model.fastlr_report.layers) == 14
    assert sum(isinstance(m, CompressedLinear) for m in model.modules()) == 14


def test_works_outside_the_main_thread(make_model, tokens):
    model = make_model("llama")
    thread = threading.Thread(target=lambda: compress(model, calibration=tokens))
    thread.start()
    thread.join()
    assert len(model.fastlr_report.layers) == 14


@pytest.mark.parametrize("extra", [None, torch.ones(1)])
def test_blocks_that_return_tuples(make_model, tokens, monkeypatch, extra):
    """As in older model code: with more than the hidden states in it, no block is skipped."""
    from transformers.models.llama import modeling_llama

    model = make_model("llama")
    batches = [tokens[:24], tokens[24:48], tokens[48:72]]
    plain = calibrate(model, batches, progress=False)
    calls = 0

    class Pair(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, hidden_states, **kwargs):
            nonlocal calls
            calls += 1
            return self.block(hidden_states, **kwargs), extra

    class First(torch.nn.ModuleList):
        """The model's own loop takes the first item."""

    def forward(self, input_ids, attention_mask=None, use_cache=False, **kwargs):
        hidden = self.model.embed_tokens(input_ids)
        places = torch.arange(hidden.shape[1])[None]
        rotary = self.model.rotary_emb(hidden, position_ids=places)
        for block in self.model.layers:
            hidden = block(hidden_states=hidden, position_embeddings=rotary, attention_mask=None)[0]
        return hidden

    model.model.layers = First([Pair(block) for block in model.model.layers])
    monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", forward)
    pairs = calibrate(model, batches, progress=False)
    # Two blocks: three batches each in the walk, and in the first pass one batch or all of them.
    assert calls == 6 + (2 if extra is None else 6)
    name = "model.layers.1.{}mlp.down_proj"
    found, expected = pairs.grams[name.format("block.")], plain.grams[name.format("")]
    assert (found.matrix - expected.matrix).norm() <= 1e-5 * expected.matrix.norm()


def test_models_that_are_refused(make_model, tokens):
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertModel,
        LlamaConfig,
        LlamaModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    bert = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    t5 = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    llama = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    for model in (
        BertModel(bert),
        BertForMaskedLM(bert),
        T5ForConditionalGeneration(t5),
        LlamaModel(llama),
    ):
        with pytest.raises(ValueError, match=f"decoder-only causal .* got {type(model).__name__}"):
            compress(model, calibration=tokens)
    with pytest.raises(TypeError, match=r"model must be a causal language model .* got Linear"):
        compress(torch.nn.Linear(3, 3))
    twice = compress(make_model("llama"), calibration=tokens)
    with pytest.raises(ValueError, match=r"compressed already: layer 'model\.layers\.0"):
        compress(twice, calibration=tokens)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan"), "0.2", None])
def test_bad_ratio(make_model, ratio):
    with pytest.raises(ValueError, match="ratio must be between 0 and 1, both excluded, got"):
        compress(make_model("llama", layers=1), ratio)


def test_bad_arguments(make_model, tokens):
    model = make_model("llama", layers=1)
    modules, _ = snapshot(model)

    def fails(match, **options):
        with pytest.raises(ValueError, match=match):
            compress(model, **{"calibration": tokens, **options})
        assert snapshot(model)[0] == modules

    fails("method must be one of auto, afm, asvd, .* got 'magic'", method="magic")
    fails("form must be one of sparse for method='sparse', got 'x'", form="x")
    fails("form must be one of dense, factored, interpolative", method="svd", form="sparse")
    fails("allocation must be one of block_influence, d_rank, .* got 'x'", allocation="x")
    fails('allocation="loss" needs a method', method="svd_llm", allocation="loss")
    fails("needs a low-rank method", allocation="d_rank")
    fails("rank_multiple must be a positive integer, got 0", rank_multiple=0)
    fails("rank_multiple needs a low-rank method, got method='sparse'", rank_multiple=8)
    fails("max_layer_ratio must be between ratio = 0.3 and 1, got 0.1", max_layer_ratio=0.1)
    fails("heal_steps must be an integer of at least 0, got -1", heal_steps=-1)
    fails("no linear layer in the blocks model.layers matches 'nothing'", targets=["nothing"])
    fails("matches 'nothing'", targets=["q_proj", "nothing"])
    fails("matches 'lm_head'", targets=["lm_head"], ignore=())
    fails("is left to compress", ignore=["*"])
    fails("samples must be at least 1", samples=0)
    fails("can only be used with a tokenizer", calibration=["text"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weights_are_named(make_model, tokens, value):
    model = make_model("llama", layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[5, 4] = value
    match = r"layer 'model\.layers\.0\.mlp\.up_proj' has the value (nan|inf) at index \(5, 4\)"
    with pytest.raises(ValueError, match=match):
        compress(model, calibration=tokens)


def test_inputs_that_are_not_finite_are_named(make_model, tokens):
    model = make_model("llama", layers=1)
    with torch.no_grad():
        model.model.embed_tokens.weight[int(tokens[0])] = float("nan")
    good, bad = tokens[tokens != tokens[0]][:24], tokens[:24]
    match = r"batch 1 .* layer 'model\.layers\.0\.self_attn\.q_proj'"
    with pytest.raises(ValueError, match=match):
        compress(model, method="svd_llm", calibration=[good, bad])


def test_a_model_whose_blocks_are_no_chain(make_model, tokens):
    model = make_model("llama")
    model.model.layers = torch.nn.ModuleList([model.model.layers[1], model.model.layers[0]])
    layers = list(model.model.layers)
    compress(copy.deepcopy(model), method="svd_llm", calibration=tokens)  # still a chain
    layers[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))
    with pytest.raises(ValueError, match=r"must run its blocks model\.layers as a chain"):
        compress(model, method="svd_llm", calibration=tokens)


def test_quantized_models_are_refused(make_model, tokens):
    from types import SimpleNamespace

    model = make_model("llama", layers=1)
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="gptq"))
    with pytest.raises(ValueError, match="it is quantized with gptq; load it dequantized"):
        compress(model, calibration=tokens)


def test_no_warnings_in_the_ordinary_case(make_model, tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(make_model("llama"), calibration=tokens)
