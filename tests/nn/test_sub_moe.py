"""The method "sub_moe": experts that do the same are stored once."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastlr.nn import (
    BorrowedLinear,
    InterpolativeLinear,
    LowRankLinear,
    RoutedExperts,
    compress_llm,
    export_dense,
    load,
)
from fastlr.nn.compression import Gram, LayerProblem, Statistics, calibrate
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.clustering import clusters
from fastlr.nn.compression.expert_similarity import expert_similarities
from fastlr.nn.compression.methods.sub_moe import _Merged

U = 2.0**-53
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 6,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
EXPERTS = "model.layers.{}.mlp.experts"


def text(*shape):
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(1))


def model_of(architecture="mixtral", alike=(), noise=0.0, dtype=torch.float32):
    """A mixture; experts of each tuple in `alike` differ by `noise` of their size."""
    config = AutoConfig.for_model(architecture, **SIZES)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for layer in range(2):
            for parameter in model.get_submodule(EXPERTS.format(layer)).parameters():
                parameter.normal_(std=0.3)
                for first, *others in alike:
                    for other in others:
                        parameter[other] = parameter[first] + noise * 0.3 * torch.randn_like(
                            parameter[first]
                        )
    torch.random.set_rng_state(state)
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def compressed(model, ratio=0.45, **options):
    given = {"calibration": text(16, 32), "targets": "*experts*", "progress": False, **options}
    return compress_llm(model, ratio, method="sub_moe", **given)


# ---- clusters ----


def similarity_of(vectors):
    return vectors @ vectors.T


def test_clusters_are_those_of_k_means_on_the_vectors():
    generator = torch.Generator().manual_seed(0)
    for trial in range(20):
        vectors = torch.randn(9, 4, generator=generator, dtype=torch.float64)
        for count in range(1, 10):
            found = clusters(similarity_of(vectors), count)
            assert sorted(m for cluster in found for m in cluster) == list(range(9))
            assert all(found)
            # Nobody is nearer to another cluster's mean: a fixed point of Lloyd's iteration.
            means = torch.stack([vectors[cluster].mean(0) for cluster in found])
            squares = torch.cdist(vectors, means).square()
            for index, cluster in enumerate(found):
                assert (squares[cluster, index] <= squares[cluster].min(1).values + 1e-10).all()
            assert trial or clusters(similarity_of(vectors), count) == found


def test_clusters_of_groups_that_are_far_apart():
    generator = torch.Generator().manual_seed(0)
    truth = [[0, 3, 5], [1, 2], [4, 6, 7]]
    vectors = torch.zeros(8, 6, dtype=torch.float64)
    for place, members in enumerate(truth):
        vectors[members, place] = 1
    vectors += 0.05 * torch.randn(8, 6, generator=generator, dtype=torch.float64)
    assert sorted(clusters(similarity_of(vectors), 3)) == truth
    equal = torch.ones(4, 4, dtype=torch.float64)  # all the same: still as many, none empty
    assert all(clusters(equal, 3))


def test_similarities_are_cosines_of_outputs():
    model = model_of(alike=[(0, 4)], dtype=torch.float64)
    for layer in range(2):
        name = EXPERTS.format(layer)
        model.set_submodule(name, RoutedExperts(model.get_submodule(name)))
    experts = model.get_submodule(EXPERTS.format(0))
    seen = []
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model, text(1, 24))
    handle.remove()
    outputs = [experts.run_expert(e, seen[0]).detach() for e in range(6)]
    expected = torch.tensor(
        [[float(torch.cosine_similarity(a, b).mean()) for a in outputs] for b in outputs]
    )
    # Padding, which is left out, would count without the mask.
    ids = torch.cat((text(1, 24), torch.full((1, 8), 5)), 1)
    mask = torch.cat((torch.ones(1, 24), torch.zeros(1, 8)), 1)
    found = expert_similarities(model, {"here": experts}, [Batch(ids, mask)])["here"]
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)  # float32 list
    assert found[0, 4] > 1 - 1e-12
    other = expert_similarities(model, {"here": experts}, [Batch(ids)])["here"]
    assert (other - found).abs().max() > 1e-3


# ---- merging ----


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)], ids=str)
def test_merged_layers_and_their_errors(shape):
    """W' = P Σ f W with the projector of the joint singular vectors, and Σ ‖(W − W')X‖²."""
    generator = torch.Generator().manual_seed(0)
    members = []
    for index in range(3):
        linear = torch.nn.Linear(shape[1], shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.normal_(generator=generator)
        inputs = torch.randn(20 + 10 * index, shape[1], generator=generator, dtype=torch.float64)
        members.append(LayerProblem(f"e.{index}.down", linear, Gram.of(inputs)))
    found = _Merged.of(members)
    counts = torch.tensor([20, 30, 40], dtype=torch.float64) / 90
    mean = sum(f * p.weight for f, p in zip(counts.tolist(), members, strict=True))
    wide = shape[0] <= shape[1]
    stacked = torch.cat([p.weight if wide else p.weight.T for p in members], 1)
    left = torch.linalg.svd(stacked).U
    for rank in range(1, min(shape) + 1):
        projector = left[:, :rank] @ left[:, :rank].T
        expected = projector @ mean if wide else mean @ projector
        layers = found.layers(rank)
        lender = layers["e.0.down"]
        # An SVD, a projection and an interpolation of a 10 × 6 matrix, some 1e4 roundings.
        assert (lender.compose() - expected).norm() <= 1e5 * U * mean.norm()
        assert [type(layers[f"e.{n}.down"]) for n in (1, 2)] == [BorrowedLinear] * 2
        lost = sum(
            float(((p.weight - expected) @ p.inputs.matrix).mul(p.weight - expected).sum())
            for p in members
        )
        assert abs(float(found.errors[rank]) - lost) <= 1e5 * U * found.total
        bias = sum(f * p.linear.bias for f, p in zip(counts.tolist(), members, strict=True))
        assert (lender.bias - bias).abs().max() <= 10 * U * bias.abs().max()


def test_experts_that_are_the_same_are_stored_once_without_loss():
    model, tokens = model_of(alike=[(0, 2, 5), (1, 4)]), text(2, 16)
    expected = logits(model, tokens)
    report = compressed(model, 0.5).fastlr_report
    assert 0.5 <= report.ratio_achieved < 0.51
    # Three of six experts, whole: some products of 64 terms in two blocks.
    scale = float(expected.abs().max())
    assert (logits(model, tokens) - expected).abs().max() <= 4000 * 2.0**-24 * scale
    for layer in range(2):
        experts = model.get_submodule(EXPERTS.format(layer))
        lenders = [
            e
            for e in range(6)
            if isinstance(experts.get_submodule(f"{e}.down"), InterpolativeLinear)
        ]
        assert lenders == [0, 1, 3]
        for borrower, lender in ((2, 0), (5, 0), (4, 1)):
            borrowed = experts.get_submodule(f"{borrower}.gate_up")
            assert borrowed.lender is experts.get_submodule(f"{lender}.gate_up")


def test_experts_that_are_not_alike_are_not_merged():
    model = model_of()
    compressed(model, 0.2)
    assert not [m for m in model.modules() if isinstance(m, BorrowedLinear)]


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_saved_loaded_generating_and_exported(architecture, tmp_path):
    model = model_of(architecture, alike=[(0, 2), (1, 4)], noise=0.1)
    tokens = text(2, 16)
    report = compressed(model, targets=None).fastlr_report
    borrowers = [m for m in model.modules() if isinstance(m, BorrowedLinear)]
    assert borrowers
    assert 0.45 <= report.ratio_achieved < 0.5
    kept = [report.layer(f"{EXPERTS.format(0)}.{e}.down").parameters_after for e in range(6)]
    assert 0 in kept
    stored = sum(m.weight_parameters() for m in model.modules() if hasattr(m, "weight_parameters"))
    dense = sum(r.parameters_after for r in report.layers if r.form == "dense")
    assert stored + dense == report.parameters_after
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(tokens, **options), model.generate(tokens, **options))
    copied = copy.deepcopy(loaded)
    assert torch.equal(logits(copied, tokens), logits(model, tokens))
    loaded.train()(tokens, labels=tokens).loss.backward()
    before = logits(model, tokens)
    plain = export_dense(model)
    assert not [m for m in plain.modules() if isinstance(m, BorrowedLinear | RoutedExperts)]
    scale = float(before.abs().max())
    assert (logits(plain, tokens) - before).abs().max() <= 4000 * 2.0**-24 * scale


def test_healed():
    model = model_of(alike=[(0, 2), (1, 4)], noise=0.1)
    healed = compressed(model, heal_steps=3).fastlr_report.heal
    assert healed.after <= healed.before


def test_an_expert_that_is_never_chosen_is_compressed_alone_and_named():
    model = model_of(alike=[(0, 3)])
    for layer in range(2):
        gate = model.model.layers[layer].mlp.gate
        with torch.no_grad():
            gate.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(2))
    with_all = calibrate(model, text(16, 32), targets="*experts*", progress=False)
    grams = {n: g for n, g in with_all.grams.items() if ".experts.3." not in n}
    statistics = Statistics(grams, with_all.tokens, batches=with_all.batches)
    with pytest.warns(UserWarning, match=r"experts.3.\w+': .*never"):
        report = compressed(model, 0.3, calibration=statistics).fastlr_report
    never = {layer.name for layer in report.layers if "never" in layer.note}
    assert f"{EXPERTS.format(0)}.3.down" in never
    # Though it is the same as another one.
    assert isinstance(model.get_submodule(f"{EXPERTS.format(0)}.3.down"), InterpolativeLinear)


def test_one_sentence():
    from transformers import LlamaConfig, LlamaForCausalLM

    dense = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
    )
    with pytest.raises(ValueError, match=r"needs a mixture of .* LlamaForCausalLM has none"):
        compressed(dense, targets=None)
    with pytest.raises(ValueError, match="needs a mixture of experts"):
        compressed(model_of(), targets="down")  # halves of experts
    statistics = calibrate(model_of(), text(4, 16), targets="*experts*", progress=False)
    statistics.batches.clear()
    with pytest.raises(ValueError, match="no text to run through the experts"):
        compressed(model_of(), calibration=statistics)


def test_borrowed_layers():
    lender = LowRankLinear.from_dense(torch.nn.Linear(12, 8), rank=3)
    layer = BorrowedLinear.of(lender)
    assert torch.equal(layer.compose(), lender.compose())
    assert layer.flops() == lender.flops()
    assert torch.equal(layer.to_dense().bias, lender.bias)
    with pytest.raises(TypeError, match="a compressed layer with numbers of its own, got Borrowed"):
        BorrowedLinear(12, 8).borrow(layer)
    with pytest.raises(ValueError, match=r"must be \(12, 8, False\), the lender has \(12, 8, True"):
        BorrowedLinear(12, 8, bias=False).borrow(lender)
    with pytest.raises(RuntimeError, match="must borrow another one first"):
        BorrowedLinear(12, 8)(torch.ones(1, 12))
