"""Layers compressed for the inputs of the compressed model, and the second factor refitted."""

import copy
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn import InterpolativeLinear, LowRankLinear, compress_llm
from fastlr.nn.compression import calibrate, propagation
from fastlr.nn.compression import run as run_module
from fastlr.nn.compression.propagation import MIXTURES, PairedInputs
from fastlr.nn.compression.refit import refit
from fastlr.nn.modules.base import CompressedLinear, composed_weight
from fastlr.nn.modules.dense import dense_weight, is_dense_linear

U = torch.finfo(torch.float64).eps


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(propagation, "DAMPING", 0.0)


def pair_of(generator, tokens=60, i=7, independent=7, mean=1.0):
    """Inputs of the dense model, and those that errors have made of them; as rows."""
    exact = draw(generator, tokens, independent) @ draw(generator, independent, i) + mean
    inexact = exact @ (torch.eye(i) + 0.3 * draw(generator, i, i)) + 0.2
    if independent < i:  # all in one proper subspace
        inexact = exact * 1.1
    return exact, inexact


@given(st.integers(0, 10_000), st.integers(2, 7), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_correction_is_least_squares(seed, independent, scale):
    generator = torch.Generator().manual_seed(seed)
    exact, inexact = pair_of(generator, independent=independent)
    exact, inexact = exact * scale, inexact * scale
    weight = draw(generator, 5, 7)
    pair = PairedInputs.of(exact, inexact)
    with mock.patch.object(propagation, "DAMPING", 0.0):
        found = weight + pair.correction(weight)
    reached = (exact @ weight.T - inexact @ found.T).norm()
    best = torch.linalg.lstsq(inexact, exact @ weight.T, driver="gelsd").solution
    # The moments are exact to tokens·U, and H⁺ leaves out what is below 7·U of its norm: errors of
    # the root of that, relative to the outputs.
    allowed = 100 * U**0.5 * (exact @ weight.T).norm()
    assert reached <= (exact @ weight.T - inexact @ best).norm() + allowed


@pytest.mark.parametrize("form", ["interpolative", "factored"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_refit_leaves_an_error_orthogonal_to_what_the_second_factor_sees(
    form, bias, shape, undamped
):
    generator = torch.Generator().manual_seed(1)
    o, i = shape
    exact, inexact = pair_of(generator, i=i, independent=i)
    dense = torch.nn.Linear(i, o, bias=bias, dtype=torch.float64)
    weight = dense.weight.detach()
    pair = PairedInputs.of(exact, inexact)
    sides = ["rows", "columns"] if form == "interpolative" else [None]
    for side in sides:
        if side is None:
            layer = LowRankLinear.from_dense(dense, 3)
        else:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            layer = InterpolativeLinear.from_factors(
                left[:, :3],
                values[:3, None] * right[:3],
                dense.bias,
                side=side,
                dtype=torch.float64,
            )
        before = copy.deepcopy(layer)
        refit(layer, weight, pair)

        def error(layer):
            with torch.no_grad():
                return layer(inexact) - dense(exact)

        left_over, z = error(layer), _seen(layer, inexact)
        if side == "rows":  # the skeleton's own rows are not refitted
            left_over = left_over[:, layer.order.argsort()[layer.rank :]]
        # Normal equations solved by a pseudo-inverse: errors of U times the condition of Σ z zᵀ.
        moments = z.T @ z
        condition = float(torch.linalg.cond(moments))
        allowed = 1e3 * U * condition * z.norm() * (exact @ weight.T).norm()
        assert (left_over.T @ z).norm() <= allowed
        if bias:
            # The mean of every output is that of the dense layer.
            size = (exact @ weight.T).norm()
            assert error(layer).mean(0).norm() <= 1e3 * U * condition * size
        assert error(layer).norm() < error(before).norm()


def _seen(layer, inputs):
    """What the second factor is applied to; with a bias, means are taken off."""
    with torch.no_grad():
        if isinstance(layer, LowRankLinear):
            z = inputs @ layer.A.T
        elif layer.side == "rows":
            z = inputs @ layer.skeleton.T
        else:
            ordered = inputs[:, layer.order.long()]
            z = ordered[:, : layer.rank] + ordered[:, layer.rank :] @ layer.coefficients.T
    return z if layer.bias is None else z - z.mean(0)


def test_damping_leaves_alone_what_hardly_occurs():
    # One direction a thousand times weaker than the others, with an error of its own size: fitted
    # exactly it gets a correction as large as the weight.
    generator = torch.Generator().manual_seed(2)
    inexact = draw(generator, 200, 6)
    inexact[:, 0] *= 1e-3
    exact = inexact.clone()
    exact[:, 1] += inexact[:, 0]  # what W x_f − W x depends on is the weak direction
    weight = draw(generator, 5, 6)
    pair = PairedInputs.of(exact, inexact)
    damped = pair.correction(weight).norm()
    with mock.patch.object(propagation, "DAMPING", 0.0):
        full = pair.correction(weight).norm()
    assert full > 0.5 * weight[:, 1].norm()
    # λ / (λ + δ) of it, λ some 1e-6 and δ 1e-2 of the mean.
    assert damped < 1e-3 * full


def compress(model, ratio=0.4, **options):
    return compress_llm(model, ratio, **{"progress": False, **options})


def linears(model):
    return {n: m for n, m in model.named_modules() if is_dense_linear(m) and n != "lm_head"}


def inputs_of(model, batch):
    """Layer name → the rows that enter it."""
    found, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear) or is_dense_linear(module):

            def listen(_, args, name=name):
                found[name] = args[0].reshape(-1, args[0].shape[-1])

            handles.append(module.register_forward_pre_hook(listen))
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2"])
def test_each_layer_is_the_best_for_the_outputs_of_the_dense_model(
    make_model, tokens, architecture, undamped
):
    # The first layer of the second block reads what the compressed first block made: no weight of
    # its rank comes nearer to the dense model's outputs (reduced rank regression).
    dense = make_model(architecture, torch.float64)
    windows = tokens[:1440].reshape(60, 24)
    model = compress(
        copy.deepcopy(dense), method="svd_llm", form="factored", propagation=1, calibration=windows
    )
    name = next(n for n in linears(dense) if ".1." in n)
    weight = dense_weight(dense.get_submodule(name))
    module = model.get_submodule(name)
    exact, inexact = inputs_of(dense, windows)[name], inputs_of(model, windows)[name]
    wanted = exact @ weight.T
    best = torch.linalg.lstsq(inexact, wanted, driver="gelsd").solution
    fitted = inexact @ best
    tail = torch.linalg.svdvals(fitted)[module.rank :].square().sum()
    optimum = (wanted - fitted).square().sum() + tail
    reached = (wanted - inexact @ composed_weight(module).T).square().sum()
    # Sums of 1440 products, an inverse of a Gram matrix: errors of √U relative to the whole.
    assert abs(reached - optimum) <= U**0.5 * wanted.square().sum()
    assert optimum > 1e-3 * wanted.square().sum()
    plain = compress(copy.deepcopy(dense), method="svd_llm", form="factored", calibration=windows)
    before = (wanted - inexact @ composed_weight(plain.get_submodule(name)).T).square().sum()
    assert reached < 0.99 * before


def test_the_first_block_is_as_without(make_model, tokens):
    windows = tokens[:480].reshape(20, 24)
    found = {}
    for mixture in (None, 0.0, 1.0):
        model = make_model("llama", torch.float64)
        compress(model, method="svd_llm", propagation=mixture, calibration=windows)
        found[mixture] = model
    for name in linears(make_model("llama")):
        one, other = (composed_weight(found[p].get_submodule(name)) for p in (None, 0.0))
        # Sums of 480 products in another order, times the condition of the eigenvectors.
        same = (one - other).norm() <= 1e6 * U * one.norm()
        assert same == (".0." in name)
    changed = composed_weight(found[1.0].get_submodule("model.layers.1.mlp.up_proj"))
    assert not torch.equal(
        changed, composed_weight(found[0.0].get_submodule("model.layers.1.mlp.up_proj"))
    )


@pytest.mark.parametrize("method", ["sparse", "two_sided", "svd_llm", "svd"])
def test_sizes_are_those_without(make_model, tokens, method):
    reports = []
    for mixture in (None, "adaptive"):
        model = make_model("llama")
        options = {"propagation": mixture, "samples": 8, "seq_len": 24}
        compress(model, method=method, calibration=tokens, **options)
        reports.append(model.fastlr_report)
    for one, other in zip(*(report.layers for report in reports), strict=True):
        assert (one.name, one.parameters_after) == (other.name, other.parameters_after)
        assert other.note == "left dense" or "of the propagated error taken up" in other.note


def test_saes_takes_the_mixture_that_keeps_the_most(make_model, tokens):
    windows = tokens[:480].reshape(20, 24)
    kept = {}
    assert max(MIXTURES) == 0.5
    for mixture in (*MIXTURES, "adaptive"):
        model = make_model("llama", torch.float64)
        compress(model, method="saes", propagation=mixture, calibration=windows)
        # The second block's first layers see the same inputs only if the first block is the same:
        # nothing has been lost before it, so that no mixture changes it.
        kept[mixture] = model.fastlr_report.layer("model.layers.1.self_attn.q_proj")
    best = min(kept[mixture].predicted_error for mixture in MIXTURES)
    assert kept["adaptive"].predicted_error == pytest.approx(best, rel=1e-6)
    assert len({round(kept[mixture].predicted_error, 12) for mixture in MIXTURES}) > 1


def test_padding_does_not_count(make_model, tokens):
    windows = tokens[:480].reshape(20, 24)
    padded = torch.cat((windows, windows[:, :8]), 1)
    mask = torch.ones_like(padded)
    mask[:, 24:] = 0
    found = []
    for calibration in (windows, {"input_ids": padded, "attention_mask": mask}):
        model = make_model("llama", torch.float64)
        compress(model, method="svd_llm", propagation=1, calibration=calibration)
        found.append(model)
    for name in linears(make_model("llama")):
        one, other = (composed_weight(model.get_submodule(name)) for model in found)
        assert (one - other).norm() <= 1e6 * U * one.norm()  # sums in another order, as above


def test_layers_left_dense_and_statistics_given(make_model, tokens):
    model = make_model("llama")
    statistics = calibrate(model, tokens, samples=8, seq_len=24, progress=False)
    names = list(linears(model))
    shares = {name: 0.5 if ".1." in name else 0.0 for name in names}
    compress(
        model,
        0.25,
        method="svd_llm",
        allocation=shares,
        propagation=0.5,
        refit=True,
        calibration=statistics,
    )
    for name in names:
        assert isinstance(model.get_submodule(name), CompressedLinear) == (".1." in name)
    statistics.batches.clear()
    with pytest.raises(ValueError, match="propagation: there is no calibration text"):
        compress(make_model("llama"), method="saes", calibration=statistics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"propagation": 1.5}, 'propagation must be None, "adaptive" or between 0 and 1, got 1.5'),
        ({"propagation": True}, "propagation must be .* got True"),
        ({"propagation": "much"}, "propagation must be .* got 'much'"),
        ({"refit": True, "method": "svd_llm"}, "refit needs propagation"),
        ({"refit": True, "propagation": 1.0}, "refit needs .* form='sparse'"),
        ({"refit": True, "propagation": 1.0, "method": "svd", "form": "dense"}, "form='dense'"),
    ],
)
def test_mistakes(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        compress(make_model("llama"), calibration=torch.arange(96), **options)


def test_an_interruption_leaves_the_model_as_it_was(make_model, tokens, logits, monkeypatch):
    model = make_model("llama")
    before = logits(model)
    modules = dict(model.named_modules())
    built = []

    def stop(*args, **options):
        built.append(args)
        if len(built) == 9:  # in the second block: the first one was put in and taken out
            raise KeyboardInterrupt
        return refit(*args, **options)

    monkeypatch.setattr(run_module, "refit", stop)
    with pytest.raises(KeyboardInterrupt, match="the model is as it was before the call"):
        compress(
            model, method="svd_llm", propagation=1.0, refit=True, calibration=tokens, seq_len=24
        )
    assert dict(model.named_modules()) == modules
    assert torch.equal(logits(model), before)
