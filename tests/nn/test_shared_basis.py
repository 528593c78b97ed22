"""Layers that share a basis, and the method that joins them."""

import copy
import pickle

import pytest
import torch

from fastlr.nn import LowRankLinear, SharedBasisLinear, compress_llm, load
from fastlr.nn.compression import Gram, LayerProblem
from fastlr.nn.compression.methods import basis_sharing
from fastlr.nn.modules.base import composed_weight

U = torch.finfo(torch.float64).eps


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(shared, dtype=torch.float64, bias=True, rank=3):
    """Two layers, 5 × 7, with random factors."""
    dense = [torch.nn.Linear(7, 5, bias=bias, dtype=dtype) for _ in range(2)]
    basis = draw(0, rank, 7) if shared == "inputs" else draw(0, 5, rank)
    rest = [draw(k, 5, rank) if shared == "inputs" else draw(k, rank, 7) for k in (1, 2)]
    return dense, basis, rest, SharedBasisLinear.in_place_of(dense, basis, rest, shared)


@pytest.mark.parametrize("shared", ["inputs", "outputs"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_map_is_that_of_the_factors(shared, bias):
    dense, basis, rest, layers = pair(shared, bias=bias)
    inputs = draw(9, 4, 7)
    for linear, own, layer in zip(dense, rest, layers, strict=True):
        weight = own @ basis if shared == "inputs" else basis @ own
        expected = inputs @ weight.T + (linear.bias if bias else 0)
        with torch.no_grad():
            found = layer(inputs)
        # Two products with inner dimensions 7 and 3.
        size = inputs.norm() * weight.norm()
        assert (found - expected).norm() <= 20 * U * (size + expected.norm())
        assert torch.equal(layer.compose(), weight)
        assert (layer.to_dense().weight - weight).norm() == 0
        assert composed_weight(layer).shape == (5, 7)


@pytest.mark.parametrize("shared", ["inputs", "outputs"])
def test_the_basis_is_stored_once(shared):
    _, basis, rest, layers = pair(shared)
    stored = [layer.weight_parameters() for layer in layers]
    assert stored == [basis.numel() + rest[0].numel(), rest[1].numel()]
    assert [layer.weight_bytes() for layer in layers] == [8 * number for number in stored]
    model = torch.nn.ModuleList(layers)
    assert sum(p.numel() for p in model.parameters()) == sum(stored) + 10
    assert sorted(model.state_dict()) == [
        "0.basis",
        "0.bias",
        "0.coefficients",
        "0.weight",
        "1.bias",
        "1.coefficients",
        "1.weight",
    ]


def test_what_happens_to_the_lender_happens_to_the_borrower():
    _, _, _, layers = pair("inputs")
    model = torch.nn.ModuleList(layers)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[1].lender is other[0]
        assert other[1].lender is not layers[0]
    model.to(torch.float32)
    assert model[1](torch.ones(7)).dtype == torch.float32
    with torch.no_grad():
        layers[0].basis.zero_()
    assert not layers[1].compose().any()
    layers[1](torch.ones(1, 7)).sum().backward()
    assert layers[0].basis.grad.any()


def test_gradients_of_both_add_up():
    _, basis, rest, layers = pair("outputs", bias=False)
    inputs = draw(3, 4, 7)
    (layers[0](inputs).square().sum() + layers[1](inputs).square().sum()).backward()
    leaf = basis.clone().requires_grad_()
    sum(((inputs @ own.T) @ leaf.T).square().sum() for own in rest).backward()
    # Sums of eight products with inner dimensions of at most 7.
    assert (layers[0].basis.grad - leaf.grad).norm() <= 100 * U * leaf.grad.norm()


def test_mistakes():
    with pytest.raises(ValueError, match='shared must be "inputs" or "outputs", got \'both\''):
        SharedBasisLinear(7, 5, 3, "both")
    with pytest.raises(ValueError, match="rank must be between 1 and 5 = out_features, got 6"):
        SharedBasisLinear(7, 5, 6, "outputs")
    assert SharedBasisLinear(7, 5, 6, "inputs").rank == 6
    alone = SharedBasisLinear(7, 5, 3, "inputs", lends=False)
    with pytest.raises(RuntimeError, match="must borrow one first"):
        alone(torch.ones(7))
    with pytest.raises(ValueError, match="borrow: the lender must have a basis"):
        alone.borrow(alone)
    for other, name in (
        (SharedBasisLinear(7, 5, 2, "inputs"), "rank must be 3, the lender has 2"),
        (SharedBasisLinear(8, 5, 3, "inputs"), "in_features must be 7, the lender has 8"),
        (
            SharedBasisLinear(7, 5, 3, "outputs"),
            "shared must be 'inputs', the lender has 'outputs'",
        ),
    ):
        with pytest.raises(ValueError, match=name):
            alone.borrow(other)
    alone.borrow(SharedBasisLinear(7, 9, 3, "inputs"))  # the other side may differ
    assert alone(torch.ones(7)).shape == (5,)
    dense = [torch.nn.Linear(7, 5)]
    with pytest.raises(ValueError, match=r"factors must compose to shape \(5, 7\), got shapes"):
        SharedBasisLinear.in_place_of(dense, torch.ones(3, 6), [torch.ones(5, 3)], "inputs")


def problems(shared, alike, o=8, i=10, tokens=60):
    """Two layers of one kind, whose weights have a common row (column) space, or nothing."""
    side = "q_proj" if shared == "inputs" else "o_proj"
    found = []
    for k in range(2):
        linear = torch.nn.Linear(i, o, bias=False, dtype=torch.float64)
        own = draw(10 + k, o, 3) if shared == "inputs" else draw(10 + k, 3, i)
        seed = 20 if alike else 20 + k
        common = draw(seed, 3, i) if shared == "inputs" else draw(seed, o, 3)
        with torch.no_grad():
            linear.weight.copy_(own @ common if shared == "inputs" else common @ own)
            linear.weight.add_(0.01 * draw(30 + k, o, i))
        inputs = draw(40 + k, tokens, i)
        found.append(LayerProblem(f"blocks.{k}.{side}", linear, Gram.of(inputs)))
    return found


@pytest.mark.parametrize("shared", ["inputs", "outputs"])
def test_layers_are_joined_where_it_helps(shared):
    alike = basis_sharing.join(torch.nn.Module(), problems(shared, True), 0.45, "factored")
    assert [len(group.members) for group in alike] == [2]
    assert alike[0].name == "+".join(p.name for p in alike[0].members)
    different = basis_sharing.join(torch.nn.Module(), problems(shared, False), 0.45, "factored")
    assert [len(group.members) for group in different] == [1, 1]
    unknown = [LayerProblem(p.name, p.linear) for p in problems(shared, True)]
    assert len(basis_sharing.join(torch.nn.Module(), unknown, 0.45, "factored")) == 2
    three = [*problems(shared, True), LayerProblem("blocks.2.x", torch.nn.Linear(3, 3))]
    assert len(basis_sharing.join(torch.nn.Module(), three, 0.45, "factored")) == 2


@pytest.mark.parametrize("shared", ["inputs", "outputs"])
def test_the_joint_basis_is_the_best_one(shared):
    members = problems(shared, True)
    (group,) = basis_sharing.join(torch.nn.Module(), members, 0.45, "factored")
    candidates = group.prepare("factored", 1)
    weights = [p.weight for p in members]
    grams = [p.inputs.matrix for p in members]
    if shared == "inputs":
        grams = [grams[0] + grams[1]] * 2

    def error(approximations):
        return sum(
            ((w - a) @ g * (w - a)).sum()
            for w, a, g in zip(weights, approximations, grams, strict=True)
        )

    # Sums of 60 products and an eigenproblem of order 10 or less.
    allowed = 1e4 * U * candidates.total
    for index, size in enumerate(candidates.sizes[:-1].tolist()):
        modules = candidates.build(index)
        assert sum(m.weight_parameters() for m in modules.values()) == size
        composed = [modules[p.name].compose() for p in members]
        assert abs(error(composed) - candidates.errors[index]) <= allowed
        rank = modules[members[0].name].rank
        for seed in range(20):
            # The best coefficients for a basis near the best one, and for any other.
            away = 10.0 ** -(seed % 4)
            lender = modules[members[0].name]
            basis = lender.basis.detach() + away * draw(seed, *lender.basis.shape)
            others = []
            for w, g in zip(weights, grams, strict=True):
                if shared == "inputs":
                    others.append(w @ g @ basis.T @ torch.linalg.pinv(basis @ g @ basis.T) @ basis)
                else:
                    others.append(basis @ torch.linalg.pinv(basis) @ w)
            assert error(others) >= candidates.errors[index] - allowed
        assert rank == index + 1
    assert candidates.build(len(candidates.sizes) - 1) == {}
    assert candidates.errors[-1] <= allowed


@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2"])
def test_compressed_models_are_saved_and_loaded(make_model, tokens, tmp_path, logits, architecture):
    model = make_model(architecture)
    # Blocks that are alike, so that there is something to share.
    first, second = (dict(block.named_parameters()) for block in _blocks(model))
    with torch.no_grad():
        for name, parameter in second.items():
            parameter.copy_(first[name] + 0.01 * parameter)
    options = {"method": "basis_sharing", "form": "factored", "progress": False}
    compress_llm(model, 0.5, calibration=tokens, samples=8, seq_len=24, **options)
    borrowers = [m for m in model.modules() if isinstance(m, SharedBasisLinear) and m.basis is None]
    assert borrowers
    report = model.fastlr_report
    assert 0.5 <= report.ratio_achieved < 0.6
    assert {layer.form for layer in report.layers} >= {"shared_basis"}
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    for one, other in zip(model.modules(), loaded.modules(), strict=True):
        assert type(one) is type(other)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), logits(model))


def _blocks(model):
    body = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    return list(body)


def test_a_pair_that_gains_nothing_is_as_with_svd_llm(make_model, tokens):
    found = []
    for method in ("basis_sharing", "svd_llm"):
        model = make_model("llama", torch.float64)
        compress_llm(
            model, 0.2, method=method, calibration=tokens, samples=8, seq_len=24, progress=False
        )
        found.append(model)
    names = [n for n, m in found[1].named_modules() if hasattr(m, "skeleton")]
    for name in names:
        one, other = (model.get_submodule(name) for model in found)
        if not isinstance(one, SharedBasisLinear):
            assert not isinstance(one, LowRankLinear)
            # The same sums, in the same order or block by block.
            assert (one.compose() - other.compose()).norm() <= 1e6 * U * other.compose().norm()


def test_healing_trains_the_shared_basis_once(make_model, tokens):
    model = make_model("llama")
    first, second = (dict(block.named_parameters()) for block in _blocks(model))
    with torch.no_grad():
        for name, parameter in second.items():
            parameter.copy_(first[name] + 0.01 * parameter)
    options = {"method": "basis_sharing", "form": "factored", "progress": False, "heal_steps": 4}
    compress_llm(model, 0.5, calibration=tokens, samples=16, seq_len=24, **options)
    healed = model.fastlr_report.heal
    assert healed.after <= healed.before
    borrower = next(
        m for m in model.modules() if isinstance(m, SharedBasisLinear) and m.basis is None
    )
    assert any(borrower.lender is m for m in model.modules())
