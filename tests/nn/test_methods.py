"""Every method is the best in its own norm, and predicts its error in it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn import SparseLinear
from fastlr.nn.compress import (
    Candidates,
    Gram,
    LayerGroup,
    LayerProblem,
    Method,
    compress_llm,
    register_method,
)
from fastlr.nn.compress.methods import METHODS, default_method
from fastlr.nn.compress.methods.sparse import DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS
from fastlr.nn.compress.methods.two_sided import loss_weights, prepare
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


def test_the_default_depends_on_what_masks_cost():
    assert default_method(0.2, torch.float32) == "sparse"
    assert default_method(0.87, torch.float32) == "sparse"
    assert default_method(0.88, torch.float32) == "two_sided"
    assert default_method(0.74, torch.bfloat16) == "sparse"
    assert default_method(0.76, torch.bfloat16) == "two_sided"


def test_a_method_of_ones_own(make_model, tokens, monkeypatch):
    monkeypatch.setattr("fastlr.nn.compress.methods.METHODS", dict(METHODS))
    register_method("mine", Method(METHODS["svd_llm"].prepare, inputs=True))
    options = {"calibration": tokens, "samples": 4, "seq_len": 16, "progress": False}
    report = compress_llm(make_model("llama"), 0.3, method="mine", **options).fastlr_report
    assert report.method == "mine"
    with pytest.raises(ValueError, match="name 'mine' is taken"):
        register_method("mine", Method(METHODS["svd"].prepare))
    with pytest.raises(ValueError, match="name 'auto' is taken"):
        register_method("auto", Method(METHODS["svd"].prepare))


def test_layers_can_be_compressed_together(make_model, tokens):
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
