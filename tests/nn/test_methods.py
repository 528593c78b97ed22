"""Every method is the best in its own norm, and predicts its error in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn import DictionaryLinear, SparseLinear, load
from fastlr.nn.compression import (
    Candidates,
    Gram,
    LayerGroup,
    LayerProblem,
    Method,
    compress_llm,
    register_method,
)
from fastlr.nn.compression.methods import METHODS, default_method
from fastlr.nn.compression.methods.sparse import DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS
from fastlr.nn.compression.methods.two_sided import loss_weights, prepare
from fastlr.nn.modules.base import composed_weight

U = torch.finfo(torch.float64).eps
LOW_RANK = ["svd", "svd_llm", "asvd", "fwsvd", "afm", "two_sided"]


def problem(o=12, i=9, seed=0, tokens=50):
    """A layer with inputs of very different sizes, a mean, and uneven gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    linear = torch.nn.Linear(i, o, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(draw(o, i))
        linear.bias.copy_(draw(o))
    inputs = (draw(tokens, i) @ draw(i, i) + 2 * draw(i)) * 10 ** draw(i)
    gradients = draw(tokens, o) @ draw(o, o) * 10 ** draw(o)
    return LayerProblem("layer", linear, Gram.of(inputs), Gram.of(gradients))


def norms(layer):
    """The (left, right) weights of each method, from the definitions."""
    G, H = layer.inputs.matrix, layer.gradients.matrix
    tokens = layer.inputs.tokens
    mean = layer.inputs.total / tokens
    eye_o, eye_i = (torch.eye(size, dtype=torch.float64) for size in layer.shape)
    damped = [
        M / tokens + d * (M / tokens).trace() / len(M) * torch.eye(len(M), dtype=torch.float64)
        for M, d in ((H, 0.1), (G, 0.01))
    ]
    return {
        "svd": (eye_o, eye_i),
        "svd_llm": (eye_o, G),
        "asvd": (eye_o, torch.diag(layer.inputs.magnitude / tokens)),
        "fwsvd": (torch.diag(H.diagonal()), eye_i),
        "afm": (eye_o, G / tokens - torch.outer(mean, mean)),
        "two_sided": (damped[0], damped[1]),
    }


def error(difference, left, right):
    return float(((left @ difference @ right) * difference).sum())


@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_the_best_of_its_rank_in_its_own_norm(shape, method):
    layer = problem(*shape)
    left, right = norms(layer)[method]
    found = {name: METHODS[name].prepare(layer, "factored", 1) for name in LOW_RANK}
    index, rank = 3, 4
    errors = {}
    for name, candidates in found.items():
        assert int(candidates.ranks[index]) == rank
        weight = composed_weight(candidates.build(index))
        assert int(torch.linalg.matrix_rank(weight)) <= rank
        errors[name] = error(layer.weight - weight, left, right)
    whole = error(layer.weight, left, right)
    # Weights of condition 1e4 or more, whose errors are sums of 108 terms.
    assert errors[method] == pytest.approx(float(found[method].errors[index]), rel=1e6 * U * 1e3)
    assert found[method].total == pytest.approx(whole, rel=1e4 * U * 1e3)
    for name, other in errors.items():
        assert errors[method] <= other * (1 + 1e-9)
        if name != method:
            assert errors[method] < 0.999 * other  # the control: norms do differ


@given(st.integers(0, 10**6))
def test_no_random_candidate_is_better_than_two_sided(seed):
    layer = problem(6, 5, seed=1)
    left, right = norms(layer)["two_sided"]
    candidates = prepare(layer, "factored", 1)
    best = error(layer.weight - composed_weight(candidates.build(1)), left, right)
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64))
    # The best coefficients for a random basis: weighted least squares.
    coefficients = torch.linalg.solve(basis.T @ left @ basis, basis.T @ left @ layer.weight)
    assert best <= error(layer.weight - basis @ coefficients, left, right) * (1 + 1e-9)


def test_sparse_is_near_its_prediction_and_no_worse_than_its_mask():
    layer = problem(24, 20, tokens=400)
    left, right = loss_weights(layer, DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS)
    candidates = METHODS["sparse"].prepare(layer, "sparse", 1)
    assert candidates.total == pytest.approx(error(layer.weight, left, right))
    index = candidates.within(0.6 * 480)
    module = candidates.build(index)
    assert module.weight_parameters() == int(candidates.sizes[index]) <= 0.6 * 480
    weight = module.compose()
    reached = error(layer.weight - weight, left, right)
    masked = error(layer.weight * (weight == 0), left, right)
    assert reached < 0.98 * masked
    # Single zeros interact: the prediction is no bound, but of the right size.
    assert 0.2 < reached / float(candidates.errors[index]) < 5
    assert float(candidates.errors[-1]) == 0
    assert candidates.build(len(candidates.sizes) - 1) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "architecture"), [("rocket", "llama"), ("cospadi", "gpt2")])
def test_dictionaries_keep_the_budget_and_load(
    make_model, tokens, logits, tmp_path, method, architecture, dtype
):
    from transformers import AutoModelForCausalLM

    make_model(architecture, dtype).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=dtype)
    dense = logits(model)
    options = {"calibration": tokens, "samples": 12, "seq_len": 24, "progress": False}
    compress_llm(model, 0.3, method=method, **options)
    report = model.fastlr_report
    expected = "knapsack" if method == "rocket" else "uniform"
    assert (report.form, report.allocation) == ("dictionary", expected)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, DictionaryLinear)}
    assert 0 < len(layers) <= len(report.layers)
    assert {layer.name for layer in report.layers if layer.form == "dictionary"} == set(layers)
    for name, module in layers.items():
        assert module.weight_parameters() == report.layer(name).parameters_after
        # In float32 the fit helps; the bits of bfloat16 are another error.
        if dtype == torch.float32:
            assert report.layer(name).output_error < report.layer(name).predicted_error
    # The budget is rounded down to whole numbers, for each layer alone where it is uniform.
    budget = 0.7 * report.parameters_before
    assert budget - len(report.layers) - 1 <= report.parameters_after <= budget
    assert 0 < (logits(model) - dense).norm() < dense.norm()
    model.save_pretrained(tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.equal(logits(again), logits(model))
    assert sum(isinstance(m, DictionaryLinear) for m in again.modules()) == len(layers)


def test_dictionaries_lose_less_than_low_rank_of_the_same_size(make_model, tokens):
    errors = {}
    for method, form in (("rocket", None), ("cospadi", None), ("svd_llm", "factored")):
        options = {"calibration": tokens, "samples": 12, "seq_len": 24, "progress": False}
        model = make_model("llama")
        compress_llm(model, 0.3, method=method, form=form, allocation="uniform", **options)
        errors[method] = model.fastlr_report.mean_output_error
    assert errors["cospadi"] < errors["rocket"] < 0.7 * errors["svd_llm"]


def test_the_default_depends_on_what_masks_cost():
    assert default_method(0.2, torch.float32) == "sparse"
    assert default_method(0.87, torch.float32) == "sparse"
    assert default_method(0.88, torch.float32) == "two_sided"
    assert default_method(0.74, torch.bfloat16) == "sparse"
    assert default_method(0.76, torch.bfloat16) == "two_sided"


def test_a_method_of_ones_own(make_model, tokens, monkeypatch):
    monkeypatch.setattr("fastlr.nn.compression.methods.METHODS", dict(METHODS))
    register_method("mine", Method(METHODS["svd_llm"].prepare, inputs=True))
    options = {"calibration": tokens, "samples": 4, "seq_len": 16, "progress": False}
    report = compress_llm(make_model("llama"), 0.3, method="mine", **options).fastlr_report
    assert report.method == "mine"
    with pytest.raises(ValueError, match="name 'mine' is taken"):
        register_method("mine", Method(METHODS["svd"].prepare))
    with pytest.raises(ValueError, match="name 'auto' is taken"):
        register_method("auto", Method(METHODS["svd"].prepare))


def test_layers_can_be_compressed_together(make_model, monkeypatch):
    monkeypatch.setattr("fastlr.nn.compression.methods.METHODS", dict(METHODS))

    # Each pair of up and gate is one group, of which either both lose all entries but one or none.
    def join(model, problems, ratio, form):
        together = {}
        for problem in problems:
            place, _, kind = problem.name.rpartition(".")
            name = f"{place}.pair" if kind in ("up_proj", "gate_proj") else problem.name
            together.setdefault(name, []).append(problem)
        return [group_of(name, tuple(members)) for name, members in together.items()]

    def group_of(name, members):
        entries = sum(problem.entries for problem in members)

        def build(index):
            if index or len(members) == 1:
                return None
            return {p.name: SparseLinear.from_dense(p.linear, 1 / p.entries) for p in members}

        sizes = torch.tensor([sum(one_entry(p) for p in members), entries])
        errors = torch.tensor([1.0, 0.0], dtype=torch.float64)
        offered = Candidates(sizes, errors, 1.0, build)
        return LayerGroup(name, members, lambda form, multiple: offered)

    def one_entry(problem):
        return 1 + SparseLinear.mask_numbers(*problem.shape, torch.float32)

    register_method("pairs", Method(METHODS["svd"].prepare, forms=("sparse",), join=join))
    model = make_model("llama")
    with pytest.warns(UserWarning, match="ratio=0.5 is not reached"):
        compress_llm(model, 0.5, method="pairs", progress=False)
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            smaller = name.endswith(("up_proj", "gate_proj"))
            assert isinstance(module, SparseLinear if smaller else torch.nn.Linear)
    reports = model.fastlr_report.layers
    assert len(reports) == sum(name.endswith("_proj") for name, _ in model.named_modules())
