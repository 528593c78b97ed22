"""Corrections of low rank for quantized and pruned models."""

import copy
import itertools

import numpy as np
import pytest
import torch
from four_bits import bitsandbytes
from torch import nn
from torch.nn.utils import prune

from fastlr.nn import CorrectedLinear, SparseLinear, compensate, load
from fastlr.nn.compression import calibrate
from fastlr.nn.compression.rank_budget import shared_ranks
from fastlr.nn.hf import describe_compressed
from fastlr.nn.modules.applied_weight import applied_weight
from fastlr.nn.modules.dense import dense_weight, is_conv1d, is_dense_linear
from fastlr.nn.modules.replace import replace_modules

U64 = 2.0**-53
CALIBRATION = {"samples": 12, "seq_len": 24, "progress": False}


def linears(model):
    return {
        name: module
        for name, module in model.named_modules()
        if is_dense_linear(module) and name != "lm_head"
    }


def coarse(model, levels=3):
    """A copy with weights rounded to few values in each row."""
    lossy = copy.deepcopy(model)
    with torch.no_grad():
        for module in linears(lossy).values():
            step = module.weight.abs().amax(-1, keepdim=True) / levels
            module.weight.copy_((module.weight / step).round() * step)
    return lossy


def replaced(model, build):
    """A copy with `build(layer)` in the place of every linear layer of the blocks."""
    lossy = copy.deepcopy(model)
    replace_modules(lossy, {name: build(module) for name, module in linears(lossy).items()})
    return lossy


def tail(lost, weight, gram, rank):
    """The least relative error, by the singular values of (W − Ŵ)G^½."""
    values, vectors = np.linalg.eigh(gram.numpy())
    root = vectors * np.sqrt(np.maximum(values, 0))
    singular = np.linalg.svd(lost.numpy() @ root, compute_uv=False)
    return (singular[rank:] ** 2).sum() / ((weight.numpy() @ root) ** 2).sum()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_error_is_the_least_of_its_rank(make_model, tokens, architecture):
    original = make_model(architecture, torch.float64)
    lossy = coarse(original)
    before = {name: dense_weight(m).clone() for name, m in linears(lossy).items()}
    statistics = calibrate(lossy, tokens, **CALIBRATION)
    compensate(lossy, original, rank=5, calibration=statistics, progress=False)
    assert len(lossy.fastlr_report.layers) == len(before) > 7
    for report in lossy.fastlr_report.layers:
        weight = dense_weight(original.get_submodule(report.name))
        gram = statistics.grams[report.name].matrix
        least = tail(weight - before[report.name], weight, gram, 5)
        # Products with a Gram matrix: some i·u of the whole, relative to what is left of it.
        tol = 100 * max(report.shape) * U64
        assert abs(report.error_after - least) <= tol
        assert abs(report.predicted_error - least) <= tol
        assert 0 < report.error_after < 0.8 * report.error_before


def test_the_reported_error_is_that_of_the_layers_outputs(make_model, tokens):
    original = make_model()
    lossy = coarse(original)
    name = "model.layers.1.mlp.down_proj"
    windows = tokens[:480].view(20, 24)
    seen = []
    layer = lossy.get_submodule(name)
    with layer.register_forward_pre_hook(lambda m, args: seen.append(args[0])), torch.no_grad():
        lossy(windows)
    compensate(lossy, original, rank=6, calibration={"input_ids": windows}, progress=False)
    inputs = torch.cat(seen).double()
    corrected = copy.deepcopy(lossy.get_submodule(name)).double()
    wanted = inputs @ original.get_submodule(name).weight.double().T
    with torch.no_grad():
        off = (corrected(inputs) - wanted).square().sum() / wanted.square().sum()
    # Float32 inputs are those of another batch split: some √n·u each, of a few per cent of error.
    assert float(off) == pytest.approx(lossy.fastlr_report.layer(name).error_after, rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2"])
def test_full_rank_gives_the_original_back(make_model, tokens, logits, architecture):
    original = make_model(architecture, torch.float64)
    lossy = coarse(original)
    far = torch.dist(logits(lossy), logits(original))
    compensate(lossy, original, rank=10**6, calibration=tokens, **CALIBRATION)
    assert all(report.rank == min(report.shape) for report in lossy.fastlr_report.layers)
    # Two blocks of random weights, six times the default: rounding grows by less than 1e5.
    assert torch.dist(logits(lossy), logits(original)) <= 1e5 * U64 * far


def test_weighting_by_inputs_is_what_helps_them(make_model, tokens):
    original = make_model(dtype=torch.float64)
    statistics = calibrate(original, tokens, **CALIBRATION)
    errors = {}
    for weighted in (True, False):
        lossy = coarse(original)
        used = copy.copy(statistics)
        used.grams = statistics.grams if weighted else {}
        if weighted:
            compensate(lossy, original, rank=4, calibration=used, progress=False)
        else:
            with pytest.warns(UserWarning, match="never occurred"):
                compensate(lossy, original, rank=4, calibration=used, progress=False)
        for name, gram in statistics.grams.items():
            weight = dense_weight(original.get_submodule(name))
            lost = weight - lossy.get_submodule(name).compose()
            errors.setdefault(name, []).append(float(((lost @ gram.matrix) * lost).sum()))
    assert all(weighted < plain for weighted, plain in errors.values())


def test_a_ratio_is_kept_and_shared_better_than_evenly(make_model, tokens):
    original = make_model()
    lossy = coarse(original)
    with torch.no_grad():  # one layer is much worse than the others
        lossy.model.layers[0].mlp.up_proj.weight.mul_(0.5)
    statistics = calibrate(original, tokens, **CALIBRATION)
    shared = compensate(
        copy.deepcopy(lossy), original, ratio=0.2, calibration=statistics, progress=False
    ).fastlr_report
    even = compensate(
        copy.deepcopy(lossy), original, rank=3, calibration=statistics, progress=False
    ).fastlr_report
    assert even.ratio < shared.ratio <= 0.2
    # The next direction of the largest layer would not have fitted in.
    assert shared.numbers > 0.2 * sum(np.prod(r.shape) for r in shared.layers) - (32 + 72)
    assert shared.layer("model.layers.0.mlp.up_proj").rank > 8
    assert shared.mean_error_after < 0.8 * even.mean_error_after


def test_shared_ranks_are_the_best():
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        gains = {
            name: torch.rand(4, generator=generator).double().sort(descending=True).values
            for name in "abc"
        }
        costs = dict.fromkeys("abc", 3)
        for numbers in (0, 2, 3, 10, 20, 100):
            ranks = shared_ranks(gains, costs, numbers)
            best = max(
                sum(float(gains[n][:r].sum()) for n, r in zip("abc", tried, strict=True))
                for tried in itertools.product(range(5), repeat=3)
                if 3 * sum(tried) <= numbers
            )
            assert 3 * sum(ranks.values()) <= numbers
            # Sums of at most 12 numbers below 1, in another order.
            assert sum(float(gains[n][:r].sum()) for n, r in ranks.items()) >= best - 24 * U64


def test_shared_ranks_count_what_a_direction_costs():
    gains = {"large": torch.tensor([3.0]), "small": torch.tensor([2.0, 2.0, 2.0])}
    assert shared_ranks(gains, {"large": 10, "small": 3}, 10) == {"large": 0, "small": 3}


def test_shared_ranks_spend_what_is_left_on_what_fits():
    gains = {"large": torch.tensor([9.0, 8.0]), "small": torch.tensor([0.2, 0.1, 0.0])}
    assert shared_ranks(gains, {"large": 10, "small": 2}, 15) == {"large": 1, "small": 2}


def quantizers():
    def four_bits(layer):
        bnb = bitsandbytes()
        new = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, quant_type="nf4"
        )
        new.load_state_dict(layer.state_dict())
        return new.to("cpu")

    def eight_bits(layer):
        bnb = pytest.importorskip("bitsandbytes", reason="quantizes to eight bits")
        new = bnb.nn.Linear8bitLt(
            layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False
        )
        new.load_state_dict(layer.state_dict())
        return new.to("cpu")

    def torchao(layer):
        quantization = pytest.importorskip("torchao.quantization", reason="quantizes to 8 bits")
        wrapped = nn.Sequential(layer)
        quantization.quantize_(wrapped, quantization.Int8WeightOnlyConfig())
        return wrapped[0]

    def pruned(layer):
        prune.l1_unstructured(layer, "weight", 0.5)
        return layer

    def parametrized(layer):
        nn.utils.parametrize.register_parametrization(layer, "weight", Rounded())
        return layer

    def sparse(layer):
        return SparseLinear.from_dense(layer, 0.5)

    return [four_bits, eight_bits, torchao, pruned, parametrized, sparse]


class Rounded(nn.Module):
    def forward(self, weight):
        return (weight * 8).round() / 8


@pytest.mark.parametrize("quantize", quantizers(), ids=lambda f: f.__name__)
def test_every_kind_of_layer_is_corrected(make_model, tokens, logits, quantize):
    original = make_model("qwen")  # with biases
    lossy = replaced(original, quantize)
    far = torch.dist(logits(lossy), logits(original))
    base = lossy.model.layers[0].mlp.up_proj
    compensate(lossy, original, rank=8, calibration=tokens, **CALIBRATION)
    corrected = lossy.model.layers[0].mlp.up_proj
    assert type(corrected) is CorrectedLinear
    assert corrected.base is base
    report = lossy.fastlr_report
    assert report.mean_error_after < 0.8 * report.mean_error_before
    assert torch.dist(logits(lossy), logits(original)) < 0.9 * far
    # The layers of bitsandbytes do not load their own state; the correction is beside it.
    twin = copy.deepcopy(corrected)
    nn.init.zeros_(twin.B)
    own = {key: value for key, value in corrected.state_dict().items() if key in ("A", "B")}
    twin.load_state_dict(own, strict=False)
    inputs = torch.randn(3, 32)
    assert torch.equal(twin(inputs), corrected(inputs))


def test_the_weight_of_a_layer_with_a_large_bias_in_a_half_type():
    class Opaque(nn.Linear):
        pass

    layer = Opaque(700, 40).to(torch.bfloat16)
    with torch.no_grad():
        layer.bias.add_(100)
    # More than a chunk of unit vectors; not a bit is lost.
    assert torch.equal(applied_weight(layer, torch.bfloat16), layer.weight.double())


def test_a_layer_that_is_not_linear_is_refused(make_model, tokens):
    class Rectified(nn.Linear):
        def forward(self, input):
            return super().forward(input).relu()

    original = make_model()
    lossy = copy.deepcopy(original)
    lossy.model.layers[1].mlp.down_proj.__class__ = Rectified
    with pytest.raises(ValueError, match=r"layer 'model.layers.1.mlp.down_proj': a Rectified must"):
        compensate(lossy, original, rank=2, calibration=tokens, **CALIBRATION)
    assert not any(isinstance(module, CorrectedLinear) for module in lossy.modules())


SAVED = [
    ("llama", torch.float32, None),
    ("llama", torch.bfloat16, "sparse"),
    ("qwen", torch.float16, None),
    ("gpt2", torch.float32, None),
    ("gpt2", torch.float32, "sparse"),
]


@pytest.mark.parametrize(("architecture", "dtype", "base"), SAVED)
def test_saved_and_loaded(make_model, tokens, logits, tmp_path, architecture, dtype, base):
    from transformers import AutoModelForCausalLM

    # Loading first: a cast by .to() also rounds the rotary frequencies, which loading does not.
    make_model(architecture, dtype).save_pretrained(tmp_path / "dense")
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=dtype)
    if base == "sparse":
        lossy = replaced(original, lambda layer: SparseLinear.from_dense(layer, 0.5))
        describe_compressed(lossy)
    else:
        lossy = coarse(original)
    compensate(lossy, original, ratio=0.1, calibration=tokens, **CALIBRATION)
    lossy.save_pretrained(tmp_path / "corrected")
    again = load(tmp_path / "corrected", dtype=dtype)
    corrected = [m for m in again.modules() if isinstance(m, CorrectedLinear)]
    assert corrected
    assert all(is_conv1d(m.base) for m in corrected) == (architecture == "gpt2" and base is None)
    assert torch.equal(logits(again), logits(lossy))


def test_over_another_quantizer_nothing_useless_is_saved(make_model, tokens, tmp_path):
    bitsandbytes()
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    original = make_model()
    original.save_pretrained(tmp_path / "dense")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    lossy = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", quantization_config=settings, device_map="cpu"
    )
    compensate(lossy, original, rank=2, calibration=tokens, **CALIBRATION)
    assert lossy.fastlr_report.layers[0].base == "Linear4bit"
    assert lossy.config.quantization_config.quant_method == "bitsandbytes"
    with pytest.raises(ValueError, match=r"save the corrections with fastlr\.nn\.to_peft"):
        lossy.save_pretrained(tmp_path / "lossy")
    assert not list((tmp_path / "lossy").glob("*"))


def test_training_moves_the_correction(make_model, tokens):
    original = make_model()
    lossy = coarse(original).requires_grad_(False)
    compensate(lossy, original, rank=2, calibration=tokens, **CALIBRATION)
    lossy(tokens[None, :24], labels=tokens[None, :24]).loss.backward()
    layer = lossy.model.layers[0].self_attn.q_proj
    assert layer.base.weight.grad is None
    assert layer.A.grad.abs().max() > 0
    assert layer.B.grad.abs().max() > 0


def test_factors_of_half_types_are_balanced():
    left, right = torch.randn(20, 3), torch.randn(3, 30) * 2.0**-20
    layer = CorrectedLinear.around(nn.Linear(30, 20).half(), left, right)
    columns, rows = layer.B.detach().double().norm(dim=0), layer.A.detach().double().norm(dim=1)
    assert bool((columns < 2.01 * rows).all() and (rows < 2.01 * columns).all())
    exact = left.double() @ right.double()
    # Two roundings to 11 bits; without the balance, A would have no digits left.
    assert torch.dist(layer.correction(), exact) <= 2 * 2.0**-11 * exact.norm() * 3**0.5


def test_a_new_layer_does_what_its_base_does():
    base = nn.Linear(7, 5)
    layer = CorrectedLinear(base, 2)
    inputs = torch.randn(3, 7)
    assert torch.equal(layer(inputs), base(inputs))
    assert torch.equal(layer.to_dense().bias, base.bias)
    assert layer.weight_parameters() == 35 + 24
    assert layer.flops() == 2 * 59
    assert layer.weight_bytes() == 4 * 59


def test_errors_and_nothing_changed(make_model, tokens):
    original = make_model()
    lossy = coarse(original)
    state = copy.deepcopy(lossy.state_dict())
    cases = [
        (lossy, original, {}, ValueError, "one of rank and ratio must be given"),
        (lossy, original, {"rank": 1, "ratio": 0.1}, ValueError, "one of rank and ratio"),
        (lossy, original, {"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        (lossy, original, {"rank": 1.5}, TypeError, "rank must be an integer, got 1.5"),
        (lossy, original, {"ratio": 1.0}, ValueError, "ratio must be between 0 and 1"),
        (nn.Linear(2, 2), original, {"rank": 1}, TypeError, "model must be a causal"),
        (lossy, nn.Linear(2, 2), {"rank": 1}, TypeError, "original must be a causal"),
        (copy.deepcopy(original), original, {"rank": 1}, ValueError, "no layer's weight differs"),
        (make_model(layers=1), original, {"rank": 1}, ValueError, "has no layer 'model.layers.1"),
        (make_model("llama", intermediate_size=40), original, {"rank": 1}, ValueError, "must map"),
        (lossy, original, {"rank": 1, "targets": "q_prj"}, ValueError, "targets: no linear layer"),
    ]
    for model, dense, arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            compensate(model, dense, calibration=tokens, **arguments, **CALIBRATION)
    assert lossy.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in lossy.state_dict().items())

    compensate(lossy, original, rank=1, calibration=tokens, **CALIBRATION)
    with pytest.raises(ValueError, match="is corrected already"):
        compensate(lossy, original, rank=1, calibration=tokens, **CALIBRATION)
    with pytest.raises(ValueError, match="original must be dense"):
        compensate(coarse(original), lossy, rank=1, calibration=tokens, **CALIBRATION)


def test_ctrl_c_leaves_the_model_as_it_was(make_model, tokens, monkeypatch):
    from fastlr.nn.compression import compensation

    original = make_model()
    lossy = coarse(original)
    calls, solve = itertools.count(), compensation.solve

    def interrupted(*arguments):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return solve(*arguments)

    monkeypatch.setattr(compensation, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt, match="as it was before"):
        compensate(lossy, original, rank=2, calibration=tokens, **CALIBRATION)
    assert not any(isinstance(module, CorrectedLinear) for module in lossy.modules())
    assert not hasattr(lossy, "fastlr_report")


def test_the_report_is_a_table(make_model, tokens):
    original = make_model()
    lossy = compensate(coarse(original), original, rank=2, calibration=tokens, **CALIBRATION)
    text = str(lossy.fastlr_report)
    assert "model.layers.1.mlp.down_proj" in text
    assert len(text.splitlines()) == 3 + 1 + 14
    described = lossy.fastlr_report.to_dict()
    assert described["layers"][0]["rank"] == 2
    assert described["calibration_tokens"] == 12 * 24
