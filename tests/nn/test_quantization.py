"""Layers of four and eight bits, and the maps of low rank beside them."""

import copy
import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastlr.nn import (
    CorrectedLinear,
    QuantizedLinear,
    compensate,
    export_dense,
    load,
    quantize_plus_low_rank,
)
from fastlr.nn.compression import calibrate, quantization, quantization_solver
from fastlr.nn.compression.bit_budget import best_choices
from fastlr.nn.compression.quantization import _CHOICES
from fastlr.nn.modules.dense import dense_weight
from fastlr.nn.modules.replace import replace_modules

pytest.importorskip("bitsandbytes", reason="rounds to nf4")

U32, U64 = 2.0**-24, 2.0**-53
CALIBRATION = {"samples": 12, "seq_len": 24, "progress": False}
# Dettmers et al. 2023, appendix E, to four digits.
NF4 = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
NF4 += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]


def corrected(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, CorrectedLinear)}


def values(quantization):
    if quantization == "nf4":
        return torch.tensor(NF4, dtype=torch.float64)
    return torch.arange(-127, 128, dtype=torch.float64) / 127


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("block_size", [32, 64, 256])
# Rows of a whole number of blocks, of none, and fewer entries than a block.
@pytest.mark.parametrize("shape", [(12, 256), (7, 90), (3, 5)])
def test_every_entry_is_the_nearest_value(quantization, block_size, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = QuantizedLinear.from_weight(weight, quantization, block_size)
    flat, read = weight.double().flatten(), layer.compose().flatten()
    levels = values(quantization)
    for start in range(0, flat.numel(), block_size):
        block, found = flat[start : start + block_size], read[start : start + block_size]
        scale = block.abs().max()
        nearest = (block[:, None] - scale * levels).abs().amin(1)
        # Levels are known to 5e-5, or in float32.
        allowed = 5e-5 if quantization == "nf4" else 4 * U32
        assert bool(((block - found).abs() <= nearest + allowed * scale).all())


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_layer_multiplies_by_its_weight(quantization, dtype):
    dense = nn.Linear(40, 24).to(dtype)
    layer = QuantizedLinear.from_dense(dense, quantization)
    inputs = torch.randn(2, 3, 40).to(dtype)
    exact = inputs.double() @ layer.compose().T + dense.bias.double()
    # Products of 40 terms and the weight, each rounded to the dtype (to float32 for float64).
    u = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, U32)
    bound = 3 * u * (inputs.double().norm() * layer.compose().norm() + exact.norm())
    assert layer(inputs).dtype == dtype
    assert torch.dist(layer(inputs).double(), exact) <= bound
    assert torch.equal(layer.to_dense().weight, layer.compose().to(dtype))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_zeros_stay_zeros(kind):
    layer = QuantizedLinear.from_weight(torch.zeros(8, 32), kind)
    assert not layer.compose().any()


@pytest.mark.parametrize(("quantization", "bits"), [("nf4", 4.5), ("int8", 8.5)])
def test_what_is_stored(quantization, bits):
    layer = QuantizedLinear.from_dense(nn.Linear(64, 48), quantization)
    assert 8 * layer.weight_bytes() == bits * 64 * 48
    assert layer.weight_parameters() == layer.weight_bytes() / 4
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_casts_leave_the_weight_as_it_is(quantization):
    layer = QuantizedLinear.from_dense(nn.Linear(64, 48), quantization)
    assert torch.equal(copy.deepcopy(layer).bfloat16().compose(), layer.compose())
    twin = QuantizedLinear(64, 48, quantization)
    twin.load_state_dict(layer.state_dict())
    inputs = torch.randn(3, 64)
    assert torch.equal(twin(inputs), layer(inputs))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_compiled_whole_and_with_gradients(quantization):
    layer = QuantizedLinear.from_dense(nn.Linear(64, 48), quantization)
    inputs = torch.randn(3, 64, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled(inputs).sum().backward()
    assert torch.equal(compiled(inputs), layer(inputs))
    ones = layer.compose().sum(0)
    # Sums of 48 float32 numbers.
    bound = 48 * U32 * layer.compose().abs().sum(0)
    assert bool(((inputs.grad[0] - ones).abs() <= bound).all())


def test_a_damaged_layer_is_refused():
    layer = QuantizedLinear.from_dense(nn.Linear(64, 48), "int8")
    state = layer.state_dict()
    state["scales"][2] = torch.tensor(float("nan")).view(torch.int32)
    with pytest.raises(RuntimeError, match="a scale is negative or not finite"):
        QuantizedLinear(64, 48, "int8").load_state_dict(state)


def test_bad_layers_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="quantization must be one of nf4, int8, got 'fp4'"):
        QuantizedLinear(8, 8, "fp4")
    with pytest.raises(ValueError, match=r"block_size must be one of 32, 64, .*, got 48"):
        QuantizedLinear.from_dense(nn.Linear(8, 8), block_size=48)
    with pytest.raises(ValueError, match="weight must be finite in float32"):
        QuantizedLinear.from_weight(torch.tensor([[1e300]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"weight must be a matrix, got shape \(3,\)"):
        QuantizedLinear.from_weight(torch.ones(3))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        QuantizedLinear(8, 8)
    QuantizedLinear.from_dense(nn.Linear(8, 8), "int8")(torch.ones(8))


choices = st.lists(
    st.tuples(st.floats(0, 1, allow_subnormal=False), st.integers(1, 30)), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=150)
@given(st.lists(choices, min_size=1, max_size=5), st.integers(0, 60))
def test_choices_within_a_budget_are_the_best(layers, more):
    errors = {str(k): [error for error, _ in layer] for k, layer in enumerate(layers)}
    costs = {str(k): [cost for _, cost in layer] for k, layer in enumerate(layers)}
    budget = sum(map(min, costs.values())) + more
    found = best_choices(errors, costs, budget)
    assert sum(costs[name][k] for name, k in found.items()) <= budget
    least = min(
        sum(error for error, _ in tried)
        for tried in itertools.product(*layers)
        if sum(cost for _, cost in tried) <= budget
    )
    # Sums of at most five numbers below 1, in another order.
    assert sum(errors[name][k] for name, k in found.items()) <= least + 25 * U64
    with pytest.raises(ValueError, match="the cheapest choices take"):
        best_choices(errors, costs, budget - more - 1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_never_worse_than_rounding_and_then_correcting(
    make_model, tokens, architecture, quantization
):
    model = make_model(architecture, torch.float64)
    statistics = calibrate(model, tokens, **CALIBRATION)
    together = quantize_plus_low_rank(
        copy.deepcopy(model), 4, quantization=quantization, calibration=statistics, progress=False
    )
    rounded = copy.deepcopy(model)
    layers = {
        name: QuantizedLinear.from_dense(rounded.get_submodule(name), quantization)
        for name in corrected(together)
    }
    replace_modules(rounded, layers)
    compensate(rounded, model, rank=4, calibration=statistics, progress=False)
    better = 0
    assert len(together.fastlr_report.layers) == len(layers) > 7
    for report in together.fastlr_report.layers:
        after = rounded.fastlr_report.layer(report.name)
        # Products with a Gram matrix, relative to the whole: some i·u.
        tol = 100 * max(report.shape) * U64
        assert abs(report.error_quantized - after.error_before) <= tol
        assert abs(report.error_compensated - after.error_after) <= tol
        assert report.error <= report.error_compensated + tol
        better += report.error < 0.9 * report.error_compensated
        weight = dense_weight(model.get_submodule(report.name))
        lost = weight - together.get_submodule(report.name).compose()
        gram = statistics.grams[report.name].matrix
        share = ((lost @ gram) * lost).sum() / ((weight @ gram) * weight).sum()
        assert abs(report.error - float(share)) <= tol
    assert better > len(layers) / 2


def test_full_rank_gives_the_model_back(make_model, tokens, logits):
    model = make_model("qwen", torch.float64)
    before = logits(model)
    quantize_plus_low_rank(model, 10**6, calibration=tokens, **CALIBRATION)
    # Two blocks of random weights: rounding grows by less than 1e5.
    assert torch.dist(logits(model), before) <= 1e5 * U64 * before.norm()


def test_the_best_of_all_rounds_is_kept(make_model, tokens, monkeypatch):
    seen = []
    pair_of = quantization_solver.Pair

    def remembered(*parts):
        seen.append(pair_of(*parts))
        return seen[-1]

    monkeypatch.setattr(quantization_solver, "Pair", remembered)
    model = make_model(dtype=torch.float64)
    quantize_plus_low_rank(model, 3, targets="*.0.mlp.up_proj", calibration=tokens, **CALIBRATION)
    (report,) = model.fastlr_report.layers
    assert report.rounds == len(seen) > 3
    least = min(pair.error for pair in seen)
    assert report.error == pytest.approx(least, abs=100 * 72 * U64)
    assert least < seen[0].error == report.error_compensated


def test_bits_are_kept_and_shared_best(make_model, tokens):
    model = make_model(dtype=torch.float64)
    statistics = calibrate(model, tokens, **CALIBRATION)
    arguments = {"calibration": statistics, "targets": "*.0.mlp.*", "progress": False}
    entries = 3 * 32 * 72
    factors = 3 * 2 * (32 + 72) * 64
    bits = 6 + factors / entries
    found = quantize_plus_low_rank(copy.deepcopy(model), 2, bits=bits, **arguments)
    report = found.fastlr_report
    stored = sum(8 * layer.weight_bytes() for layer in corrected(found).values())
    assert report.bits == pytest.approx(stored / entries, rel=8 * U64)
    assert report.bits <= bits
    assert {layer.quantization for layer in report.layers} == {"nf4", "int8"}

    first = {
        choice: quantize_plus_low_rank(
            copy.deepcopy(model), 2, quantization=choice[0], block_size=choice[1], **arguments
        ).fastlr_report
        for choice in _CHOICES
    }
    names = [layer.name for layer in report.layers]

    def total(tried):
        return sum(first[c].layer(n).error_compensated for n, c in zip(names, tried, strict=True))

    def size(tried):
        return sum(first[c].layer(n).bits for n, c in zip(names, tried, strict=True)) / 3

    best = min((t for t in itertools.product(_CHOICES, repeat=3) if size(t) <= bits), key=total)
    assert [(layer.quantization, layer.block_size) for layer in report.layers] == list(best)


SAVED = [
    ("llama", torch.float32, {"quantization": "nf4"}),
    ("llama", torch.bfloat16, {"bits": 20}),
    ("gpt2", torch.float32, {"quantization": "int8"}),
    ("qwen", torch.float16, {"quantization": "nf4", "block_size": 32}),
]


@pytest.mark.parametrize(("architecture", "dtype", "arguments"), SAVED)
def test_saved_loaded_and_exported(
    make_model, tokens, logits, tmp_path, architecture, dtype, arguments
):
    from transformers import AutoModelForCausalLM

    # Loading first: a cast by .to() also rounds the rotary frequencies, which loading does not.
    make_model(architecture, dtype).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=dtype)
    before = logits(model)
    quantize_plus_low_rank(model, 2, calibration=tokens, **CALIBRATION, **arguments)
    layers = corrected(model)
    assert all(isinstance(layer.base, QuantizedLinear) for layer in layers.values())
    assert (architecture == "mixtral") == any("experts" in name for name in layers)
    assert torch.dist(logits(model), before) < 0.5 * before.norm()
    model.save_pretrained(tmp_path / "small")
    again = load(tmp_path / "small", dtype=dtype)
    assert torch.equal(logits(again), logits(model))
    generated = again.generate(tokens[None, :4], max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 7)
    plain = export_dense(again)
    # The weights are rounded to the dtype once more.
    u = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(dtype, U32)
    assert torch.dist(logits(plain), logits(model)) <= 1e3 * u * before.norm()


def test_experts_are_taken_apart(tokens, logits, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    model = MixtralForCausalLM(config).eval()
    before = logits(model)
    quantize_plus_low_rank(model, 2, quantization="int8", calibration=tokens, **CALIBRATION)
    assert sum("experts" in name for name in corrected(model)) == 2 * 3 * 2  # gate and up are one
    assert torch.dist(logits(model), before) < 0.1 * before.norm()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_what_is_quantized_is_not_trained(make_model, tokens):
    model = make_model().requires_grad_(False)
    quantize_plus_low_rank(model, 2, calibration=tokens, **CALIBRATION)
    model(tokens[None, :24], labels=tokens[None, :24]).loss.backward()
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.A.grad.abs().max() > 0
    assert layer.B.grad.abs().max() > 0
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        f"{name}.{factor}" for name in corrected(model) for factor in "AB"
    }


def test_a_layer_without_inputs_is_fitted_to_its_weight(make_model, tokens):
    model = make_model(dtype=torch.float64)
    statistics = calibrate(model, tokens, **CALIBRATION)
    name = "model.layers.1.mlp.up_proj"
    del statistics.grams[name]
    weight = model.get_submodule(name).weight.detach().clone()
    with pytest.warns(UserWarning, match=f"layer {name!r}: its input never occurred"):
        quantize_plus_low_rank(model, 4, calibration=statistics, progress=False)
    report = model.fastlr_report.layer(name)
    lost = weight - model.get_submodule(name).compose()
    assert report.error == pytest.approx(float((lost.norm() / weight.norm()) ** 2), rel=1e-10)
    assert f"{name}: its input never occurred" in str(model.fastlr_report)


def test_a_zero_weight_is_no_trouble(make_model, tokens):
    model = make_model()
    nn.init.zeros_(model.model.layers[0].mlp.up_proj.weight)
    quantize_plus_low_rank(model, 2, calibration=tokens, **CALIBRATION)
    assert not model.model.layers[0].mlp.up_proj.compose().any()
    assert model.fastlr_report.layer("model.layers.0.mlp.up_proj").error == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": 2.0}, TypeError, r"rank must be an integer, got 2\.0"),
        ({"quantization": "nf3"}, ValueError, "quantization must be one of nf4, int8, got 'nf3'"),
        ({"block_size": 7}, ValueError, "block_size must be one of"),
        ({"quantization": "nf4", "bits": 5}, ValueError, "one of quantization and bits must be"),
        ({"bits": 0}, ValueError, "bits must be a positive number, got 0"),
        ({"bits": 4.2}, ValueError, r"bits must be at least \d+\.\d+ with this rank, got 4\.2"),
        ({"targets": "nothing"}, ValueError, "targets: no linear layer"),
    ],
)
def test_bad_arguments_change_nothing(make_model, tokens, arguments, error, message):
    model = make_model()
    with pytest.raises(error, match=message):
        quantize_plus_low_rank(model, **{"calibration": tokens, **CALIBRATION, **arguments})
    assert not corrected(model)
    with pytest.raises(TypeError, match="model must be"):
        quantize_plus_low_rank(nn.Linear(2, 2))


def test_what_is_missing_is_said_before_the_work(make_model, tokens, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setattr(quantization, "calibrate", None)
    for arguments in ({}, {"bits": 20}):
        with pytest.raises(ImportError, match="pip install bitsandbytes"):
            quantize_plus_low_rank(make_model(), 2, calibration=tokens, **arguments)


def test_an_interrupted_call_changes_nothing(make_model, tokens, logits, monkeypatch):
    model = make_model()
    before = logits(model)
    alternate = quantization_solver.QuantizationProblem.alternate
    calls = itertools.count()

    def interrupted(self, *choice):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return alternate(self, *choice)

    monkeypatch.setattr(quantization_solver.QuantizationProblem, "alternate", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the model is as it was before the call"):
        quantize_plus_low_rank(model, 2, calibration=tokens, **CALIBRATION)
    assert torch.equal(logits(model), before)
