"""The method modegpt: fewer hidden units, and fewer dimensions of the heads."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fastlr.nn import InterpolativeLinear, SubsetLinear, compress_llm, load
from fastlr.nn.compression import Gram, LayerProblem, Statistics, calibrate
from fastlr.nn.compression.blocks import find_blocks
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.influence import block_influences
from fastlr.nn.compression.layer_report import relative_error, weight_size
from fastlr.nn.compression.methods import METHODS
from fastlr.nn.compression.methods.modegpt import _DAMPING, unit_candidates
from fastlr.nn.compression.structure import Mlp
from fastlr.nn.modules.base import composed_weight
from fastlr.nn.modules.replace import replace_modules
from fastlr.nn.progress import Progress

U = torch.finfo(torch.float64).eps


def parts_of(model, *batches):
    """The groups that a model falls into, each with its candidates, by the ends of their names."""
    statistics = calibrate(model, list(batches), progress=False)
    problems = [
        LayerProblem(name, module, statistics.grams.get(name))
        for name, module in model.named_modules()
        if name in statistics.grams
    ]
    groups = METHODS["modegpt"].groups(model, problems, 0.3, "structured")
    return {group.name: (group, group.prepare("structured", 1)) for group in groups}


@contextmanager
def outputs_of(model, *names):
    """Lists of the outputs of some layers, by name, filled while the model runs."""
    seen = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen[name].append(first_of(output))
        )
        for name in names
    ]
    yield seen
    for handle in handles:
        handle.remove()


def first_of(output):
    return (output[0] if isinstance(output, tuple) else output).detach()


@pytest.fixture
def batch(tokens):
    return tokens[:320].view(10, 32)


# Of the hidden units h = a(x) of a small MLP.


def mlp_of(hidden, bias=True, seed=0):
    """Layers up (n × 7) and down (5 × n), and the moments of given hidden units, tokens × n."""
    units = hidden.shape[1]
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    up = torch.nn.Linear(7, units, bias=bias, dtype=torch.float64)
    down = torch.nn.Linear(units, 5, bias=bias, dtype=torch.float64)
    torch.random.set_rng_state(state)
    inputs = Gram(torch.eye(7))
    maker, reader = LayerProblem("up", up, inputs), LayerProblem("down", down, Gram.of(hidden))
    return Mlp((maker,), reader)


def hidden_units(tokens=60, units=20, rank=12, seed=0):
    """Correlated ones of uneven sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = draw(tokens, rank) * 2.0 ** -torch.arange(rank)
    return (common @ draw(rank, units) + 0.1 * draw(tokens, units)) * 2.0 ** draw(units)


def squares(mlp, hidden, new, kept):
    """Σ ‖W h − W' h_J‖², from the hidden units themselves."""
    difference = hidden @ mlp.reader.weight.T - hidden[:, kept] @ new.T
    return float(difference.square().sum())


def kept_units(candidates, index, layers):
    """J, from where the rows of the new layer lie in the dense one."""
    restored = candidates.restored(index, "up", layers["up"].compose())
    return restored.any(1).nonzero().flatten()


@pytest.mark.parametrize("count", [1, 6, 13, 19])
def test_the_reader_is_the_best_for_the_units_that_are_kept(count):
    hidden = hidden_units()
    mlp = mlp_of(hidden)
    candidates = unit_candidates(mlp)
    layers = candidates.build(count - 1)
    kept = kept_units(candidates, count - 1, layers)
    assert len(kept) == count == layers["up"].out_features == layers["down"].in_features
    assert torch.equal(layers["up"].compose(), mlp.makers[0].weight[kept])
    assert torch.equal(layers["up"].bias, mlp.makers[0].linear.bias[kept])
    assert torch.equal(layers["down"].bias, mlp.reader.linear.bias)

    weight = mlp.reader.weight
    best, *_ = np.linalg.lstsq(hidden[:, kept].numpy(), (hidden @ weight.T).numpy(), rcond=None)
    best = torch.from_numpy(best.T.copy())
    reached = squares(mlp, hidden, layers["down"].compose(), kept)
    least = squares(mlp, hidden, best, kept)
    energies = hidden.square().sum(0)
    dropped = torch.ones(20, dtype=torch.bool)
    dropped[kept] = False
    # What the damping adds to the error of the least squares solution: its share of the energies
    # of the units that are dropped, and of the coefficients that stand for them.
    added = weight[:, dropped].square() @ energies[dropped]
    added = float(added.sum() + ((best - weight[:, kept]).square() @ energies[kept]).sum())
    # Sums of 60·5 squares, from a Gram matrix of condition 2²⁴ or less.
    rounding = 300 * 2**24 * U * least + 1e3 * U * candidates.total
    assert least - rounding <= reached <= float(candidates.errors[count - 1]) + rounding
    assert float(candidates.errors[count - 1]) <= least + _DAMPING * added + rounding
    assert candidates.total == pytest.approx(float((hidden @ weight.T).square().sum()), rel=1e-9)


def test_the_units_are_better_than_random_ones():
    hidden = hidden_units(units=40)
    mlp = mlp_of(hidden)
    candidates = unit_candidates(mlp)
    generator = torch.Generator().manual_seed(1)
    for count in (4, 8, 16):
        at_random = []
        for _ in range(40):
            kept = torch.randperm(40, generator=generator)[:count]
            best = torch.linalg.lstsq(hidden[:, kept], hidden @ mlp.reader.weight.T).solution.T
            at_random.append(squares(mlp, hidden, best, kept))
        assert float(candidates.errors[count - 1]) < float(np.quantile(at_random, 0.25))


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param(hidden_units(tokens=7), id="fewer tokens than units"),
        pytest.param(hidden_units() * (torch.arange(20) % 3 > 0), id="dead units"),
        pytest.param(hidden_units(units=10).repeat(1, 2), id="copies"),
        pytest.param(torch.zeros(3, 20, dtype=torch.float64), id="all dead"),
        pytest.param(hidden_units() * 1e-6 ** (torch.arange(20) % 4), id="sizes"),
    ],
)
def test_singular_moments(hidden):
    mlp = mlp_of(hidden)
    candidates = unit_candidates(mlp)
    rank = int(torch.linalg.matrix_rank(hidden))
    alive = int(hidden.any(0).sum())
    for index in range(19):
        layers = candidates.build(index)
        kept = kept_units(candidates, index, layers)
        new = layers["down"].compose()
        reached = squares(mlp, hidden, new, kept)
        # The damping, of all units, is a bound of what the prediction leaves open.
        slack = 1e3 * _DAMPING * candidates.total
        assert reached <= float(candidates.errors[index]) + slack
        assert float(new.abs().max()) < 1e6
        if index + 1 >= alive:
            assert reached <= slack
    assert float(candidates.errors[-1]) == 0
    assert bool((candidates.errors.diff() <= 0).all())
    assert rank <= alive


@pytest.mark.parametrize("factor", [2.0**300, 2.0**-300, 1e3])
def test_the_scale_of_the_moments_does_not_matter(factor):
    mlp = mlp_of(hidden_units())
    scaled = LayerProblem("down", mlp.reader.linear, Gram(mlp.reader.inputs.matrix * factor))
    first, second = unit_candidates(mlp), unit_candidates(Mlp(mlp.makers, scaled))
    torch.testing.assert_close(second.relative_errors, first.relative_errors, rtol=1e-9, atol=1e-14)
    for index in (3, 12):
        for name, layer in first.build(index).items():
            other = second.build(index)[name].compose()
            torch.testing.assert_close(other, layer.compose(), rtol=1e-7, atol=1e-7)


# Of whole models.


@pytest.mark.parametrize("architecture", ["llama", "qwen", "opt"])
def test_what_is_redundant_goes_without_a_trace(architecture, make_model, batch, prompt, logits):
    model = make_model(architecture, torch.float64)
    attention = {"opt": "model.decoder.layers.1.self_attn"}.get(
        architecture, "model.layers.1.self_attn"
    )
    layers = dict(model.get_submodule(attention).named_children())
    query, key, value = (layers[name] for name in ("q_proj", "k_proj", "v_proj"))
    block = model.get_submodule(attention.rpartition(".")[0])
    heads, width = len(key.weight) // 8, 8
    with torch.no_grad():
        # Half of the pairs of the queries, half of those of the keys at another place: one in four
        # is left, or one in two where all are single.
        for tensor in (query.weight, query.bias):
            if tensor is not None:
                tensor.view(-1, width, *tensor.shape[1:])[:, [1, 5]] = 0
        for tensor in (key.weight, key.bias):
            if tensor is not None:
                tensor.view(-1, width, *tensor.shape[1:])[:, [2, 6]] = 0
        # Values of three dimensions in each head.
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(heads, width, 3, generator=generator, dtype=torch.float64)
        by_head = value.weight.view(heads, width, -1)
        by_head.copy_(mixing @ by_head[:, :3])
        if value.bias is not None:
            value.bias.copy_((mixing @ torch.ones(3, dtype=torch.float64)).flatten())
        # A third of the hidden units are never active.
        units = next(layer for layer in block.modules() if is_reader(layer, block)).in_features
        for layer in block.modules():
            if isinstance(layer, torch.nn.Linear) and layer.out_features == units:
                layer.weight[: units // 3] = 0
                if layer.bias is not None:
                    layer.bias[: units // 3] = 0
    expected = logits(model)
    for name, (group, candidates) in parts_of(model, batch, prompt).items():
        if not name.startswith(attention.rpartition(".")[0]):
            continue
        smaller = copy.deepcopy(model)
        # The smallest one that is as good as the dense layers.
        index = int((candidates.relative_errors > 1e-8).sum())
        layers = candidates.build(index)
        assert set(layers) == {problem.name for problem in group.members}, name
        kept = int(candidates.sizes[index]) / group.entries
        # Of queries and keys 4 of 8, of values 3 of 8, of units two thirds; and indices.
        limit = 0.52 if "q_proj" in name else 0.4 if "v_proj" in name else 2 / 3
        assert kept <= limit
        replace_modules(smaller, layers)
        # The damping is 2⁻³² of the outputs of a layer, and logits of size 10 follow it.
        torch.testing.assert_close(logits(smaller), expected, rtol=0, atol=1e-6)
        # The control: one step further there is one.
        replace_modules(smaller, candidates.build(index - 1))
        assert float((logits(smaller) - expected).abs().max()) > 1e-5


def is_reader(layer, block):
    """Whether it reads the hidden units of the block's MLP: the widest input that there is."""
    widest = max(m.in_features for m in block.modules() if isinstance(m, torch.nn.Linear))
    return isinstance(layer, torch.nn.Linear) and layer.in_features == widest


@pytest.mark.parametrize("architecture", ["llama", "qwen", "opt"])
def test_queries_and_keys_are_masked_by_their_worth(architecture, make_model, batch, logits):
    model = make_model(architecture, torch.float64)
    pairs = 1 if architecture == "opt" else 2
    for name, (group, candidates) in parts_of(model, batch).items():
        if not name.endswith("q_proj+k_proj"):
            continue
        names = [problem.name for problem in group.members]
        with outputs_of(model, *names) as seen, torch.no_grad():
            model(batch)
        # Moments of the outputs themselves, by query head, key head and dimension.
        of_query, of_key = (
            torch.cat(seen[n]).flatten(0, 1).square().sum(0).view(-1, pairs, 8 // pairs).sum(1)
            for n in names
        )
        sharing = len(of_query) // len(of_key)
        worth = of_query.view(-1, sharing, 8 // pairs).sum(1) * of_key
        assert candidates.total == pytest.approx(float(worth.sum()), rel=1e-10)
        for count in (1, 8 // pairs - 1):
            layers = candidates.build(count - 1)
            kept = [layers[n].compose().any(1).view(-1, pairs, 8 // pairs) for n in names]
            for rows in kept:
                assert bool((rows == rows[:, :1]).all())
                assert bool((rows[:, 0].sum(1) == count).all())
            chosen = kept[1][:, 0]
            assert torch.equal(kept[0][:, 0], chosen.repeat_interleave(sharing, dim=0))
            for own, taken in zip(worth, chosen, strict=True):
                assert float(own[taken].min()) >= float(own[~taken].max())
            lost = float((worth * ~chosen).sum())
            assert float(candidates.errors[count - 1]) == pytest.approx(lost, rel=1e-10)

            masked, smaller = copy.deepcopy(model), copy.deepcopy(model)
            with torch.no_grad():
                for n in names:
                    dense = masked.get_submodule(n)
                    dropped = ~layers[n].compose().any(1)
                    dense.weight[dropped] = 0
                    if dense.bias is not None:
                        dense.bias[dropped] = 0
            replace_modules(smaller, layers)
            # The same sums in another order: logits of size 10 from some 2⁸ additions in a row.
            torch.testing.assert_close(logits(smaller), logits(masked), rtol=0, atol=1e4 * U)


@pytest.mark.parametrize("architecture", ["llama", "qwen", "opt"])
def test_values_are_the_best_of_their_norm(architecture, make_model, batch):
    model = make_model(architecture, torch.float64)
    parts = parts_of(model, batch)
    name = next(name for name in parts if "v_proj+" in name)
    group, candidates = parts[name]
    values, output = group.members
    heads = values.shape[0] // 8
    weight, inputs = values.weight, values.inputs
    gram = inputs.matrix
    if values.linear.bias is not None:
        weight = torch.cat((weight, values.linear.bias.detach()[:, None]), 1)
        total = inputs.total[:, None]
        gram = torch.cat((torch.cat((gram, total), 1), torch.cat((total.T, total[:1] * 0), 1)))
        gram[-1, -1] = inputs.tokens
    root = torch.linalg.cholesky(gram + 1e-14 * gram.diagonal().mean() * torch.eye(len(gram)))
    read = output.weight.view(32, heads, -1, 8)
    generator = torch.Generator().manual_seed(0)
    for rank in (1, 4):
        layers = candidates.build(rank - 1)
        new = layers[values.name]
        affine = new.compose()
        if new.bias is not None:
            affine = torch.cat((affine, new.composed_bias()[:, None]), 1)
        new_read = layers[output.name].compose().view(32, heads, -1, 8)
        reached = least = at_random = 0.0
        for head in range(heads):
            dense, own = weight.view(heads, 8, -1)[head], affine.view(heads, 8, -1)[head]
            assert not own[rank:].any()
            stacked = read[:, head].reshape(-1, 8)
            difference = stacked @ dense - new_read[:, head].reshape(-1, 8) @ own
            reached += float(((difference @ gram) * difference).sum())
            whole = stacked @ dense @ root
            least += float(torch.linalg.svdvals(whole)[rank:].square().sum())
            basis, _ = torch.linalg.qr(torch.randn(8, rank, generator=generator).double())
            wrong = whole - stacked @ basis @ torch.linalg.lstsq(stacked @ basis, whole).solution
            at_random += float(wrong.square().sum())
        # The root is off by 1e-14 of the mean energy.
        assert reached == pytest.approx(least, rel=1e-9)
        assert float(candidates.errors[rank - 1]) == pytest.approx(least, rel=1e-9)
        assert reached < 0.9 * at_random


@pytest.mark.parametrize("architecture", ["llama", "qwen", "opt"])
def test_the_report_has_the_error_of_the_attention_s_output(architecture, make_model, batch):
    model = make_model(architecture, torch.float64)
    parts = parts_of(model, batch)
    # In the first block, where nothing else has changed the inputs.
    name = next(name for name in parts if "v_proj+" in name)
    group, candidates = parts[name]
    values, output = group.members
    layers = candidates.build(3)
    smaller = copy.deepcopy(model)
    replace_modules(smaller, layers)
    found = []
    for one in (model, smaller):
        with outputs_of(one, output.name) as seen, torch.no_grad():
            one(batch)
        bias = 0 if output.linear.bias is None else output.linear.bias.detach()
        found.append(torch.cat(seen[output.name]) - bias)
    measured = float((found[0] - found[1]).square().sum() / found[0].square().sum())
    reported = {
        p.name: relative_error(
            p.weight,
            candidates.restored(3, p.name, composed_weight(layers[p.name])),
            p.inputs,
        )
        for p in group.members
    }
    assert reported[output.name] == pytest.approx(measured, rel=1e-9)
    assert 0 < measured < 1
    assert 0 < reported[values.name] < 1


@pytest.mark.parametrize("architecture", ["llama", "qwen"])
def test_one_token_over_and_over(architecture, make_model):
    model = make_model(architecture, torch.float64)
    same = torch.full((2, 20), 7)
    with torch.no_grad():
        expected = model(same).logits
    for name, (_, candidates) in parts_of(model, same).items():
        assert bool(torch.isfinite(candidates.errors).all())
        if "q_proj" in name:
            continue  # a product of many dimensions, of which none may go
        smaller = copy.deepcopy(model)
        # One kept dimension of each head, or unit, is enough for the one input that there is.
        index = 0 if "v_proj" in name else int((candidates.relative_errors > 1e-8).sum())
        replace_modules(smaller, candidates.build(index))
        with torch.no_grad():
            found = smaller(same).logits
        # As where nothing is lost: the damping of the units shows.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_scale_of_all_moments_does_not_matter(make_model, batch):
    model = make_model("llama", torch.float64)
    statistics = calibrate(model, [batch], progress=False)
    found = []
    for factor in (1.0, 1e3, 2.0**200):
        problems = [
            LayerProblem(name, model.get_submodule(name), Gram(gram.matrix * factor))
            for name, gram in statistics.grams.items()
        ]
        found.append(METHODS["modegpt"].groups(model, problems, 0.3, "structured"))
    for groups in zip(*found, strict=True):
        first, *others = (group.prepare("structured", 1) for group in groups)
        index = len(first.sizes) // 2
        for other in others:
            errors = first.relative_errors
            torch.testing.assert_close(other.relative_errors, errors, rtol=1e-9, atol=1e-12)
            for name, layer in first.build(index).items():
                same = other.build(index)[name]
                # Bases of values may differ in their signs, what they stand for does not.
                weights = (c.restored or restored_as_it_is for c in (first, other))
                pair = [
                    w(index, name, m.compose()) for w, m in zip(weights, (layer, same), strict=True)
                ]
                torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-7)


def restored_as_it_is(index, name, weight):
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen", "opt", "gpt2"])
def test_all_that_is_stored_is_counted(architecture, dtype, make_model, batch):
    model = make_model(architecture, dtype)
    for name, (group, candidates) in parts_of(model, batch).items():
        sizes = candidates.sizes.tolist()
        assert sizes[-1] == group.entries
        for index in {0, len(sizes) // 2, len(sizes) - 2}:
            layers = candidates.build(index)
            layers = layers if isinstance(layers, dict) else {name: layers}
            assert sum(weight_size(layer)[0] for layer in layers.values()) == sizes[index]
            assert {p.dtype for layer in layers.values() for p in layer.parameters()} == {dtype}
        assert not candidates.build(len(sizes) - 1)


@pytest.mark.parametrize("architecture", ["llama", "qwen", "opt", "gpt2"])
def test_saved_and_loaded(architecture, make_model, batch, prompt, logits, tmp_path):
    from transformers import AutoModelForCausalLM

    make_model(architecture).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    widest = max(len(p) for name, p in model.named_parameters() if "norm" not in name)
    options = {"calibration": [batch], "allocation": "uniform", "progress": False}
    report = compress_llm(model, 0.3, method="modegpt", **options).fastlr_report
    assert (report.method, report.form) == ("modegpt", "structured")
    # One of four pairs of a head is a quarter of its queries and keys: the budget is coarse here.
    assert 0.3 <= report.ratio_achieved < 0.36
    smaller = [m for m in model.modules() if isinstance(m, SubsetLinear)]
    assert len(smaller) == (4 if architecture == "gpt2" else len(report.layers))
    assert any(layer.row_index is None and layer.column_index is None for layer in smaller)
    assert widest >= 72 or architecture == "qwen"
    for layer in report.layers:
        module = model.get_submodule(layer.name)
        assert layer.parameters_after == module.weight_parameters()
        assert layer.output_error is not None
        assert 0 < layer.output_error < 1
    model.save_pretrained(tmp_path / "small")
    loaded = load(tmp_path / "small")
    assert torch.equal(logits(loaded), logits(model))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    generated = model.generate(prompt, **options)
    assert generated.shape == (1, prompt.shape[1] + 6)
    assert torch.equal(loaded.generate(prompt, **options), generated)


def test_new_layers_can_be_healed(make_model, batch):
    model = make_model("llama")
    compress_llm(model, 0.4, method="modegpt", calibration=[batch], heal_steps=4, progress=False)
    healed = model.fastlr_report.heal
    assert healed.after <= healed.before


def _changed(kind, **changes):
    """A tiny model of another architecture of transformers."""
    import transformers

    settings = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**{**settings, **changes})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


UNKNOWN = "it is in no structure that is recognised"


@pytest.mark.parametrize(
    ("kind", "changes", "alone", "why"),
    [
        ("Qwen3", {"head_dim": 8}, ("q_proj", "k_proj"), "go through q_norm, k_norm"),
        ("Phi", {}, ("q_proj", "k_proj"), "is of a part of each head"),
        ("Cohere", {}, ("q_proj", "k_proj"), "is not of the two halves of a head"),
        ("Olmo", {"clip_qkv": 3.0}, ("q_proj", "k_proj", "v_proj", "o_proj"), UNKNOWN),
        # Norms between values and output, and of the hidden units.
        ("BitNet", {}, ("q", "k", "v", "o", "gate", "up", "down"), UNKNOWN),
    ],
)
def test_what_does_not_fit_is_compressed_alone(kind, changes, alone, why, batch):
    model = _changed(kind, **changes)
    compress_llm(model, 0.3, method="modegpt", calibration=[batch], progress=False)
    for layer in model.fastlr_report.layers:
        module = model.get_submodule(layer.name)
        if layer.name.rpartition(".")[2].startswith(alone):
            assert isinstance(module, InterpolativeLinear)
            assert layer.note == f"compressed alone, by svd_llm: {layer.note.partition(': ')[2]}"
            assert layer.note.endswith(why)
        else:
            assert isinstance(module, SubsetLinear)
            assert layer.note == ""


@pytest.mark.parametrize(
    ("targets", "structured"),
    [
        (["up_proj", "down_proj"], ()),
        (["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"], ("mlp",)),
        (["self_attn.*_proj", "*.self_attn.?_proj", "up_proj"], ("self_attn",)),
    ],
)
def test_only_a_part_of_a_structure(targets, structured, make_model, batch):
    model = make_model("llama")
    if "self_attn.*_proj" in targets:
        targets = targets[1:]
    compress_llm(model, 0.3, method="modegpt", targets=targets, calibration=[batch], progress=False)
    for layer in model.fastlr_report.layers:
        fits = any(f".{part}." in layer.name for part in structured)
        expected = SubsetLinear if fits else InterpolativeLinear
        assert isinstance(model.get_submodule(layer.name), expected), layer.name


def test_layers_that_never_ran_are_compressed_alone(make_model):
    model = make_model("llama")
    problems = [
        LayerProblem(name, module)
        for name, module in model.named_modules()
        if name.endswith("_proj")
    ]
    groups = METHODS["modegpt"].groups(model, problems, 0.3, "structured")
    assert sorted(group.name for group in groups) == sorted(p.name for p in problems)
    for group in groups:
        assert isinstance(group.prepare("structured", 1).build(0), InterpolativeLinear)


def test_the_share_of_one_kind(make_model, batch):
    model = make_model("llama")
    shares = {"q_proj+k_proj": 0.0, "*.v_proj+o_proj": 0.0, "*.gate_proj+up_proj+down_proj": 0.5}
    compress_llm(
        model,
        0.3,
        method="modegpt",
        allocation=shares,
        calibration=[batch],
        progress=False,
    )
    for layer in model.fastlr_report.layers:
        assert layer.form == ("structured" if ".mlp." in layer.name else "dense")
        if ".mlp." in layer.name:
            assert layer.parameters_after == 0.5 * layer.parameters_before


def test_cut_candidates_are_put_back_too():
    candidates = unit_candidates(mlp_of(hidden_units()))
    cut = candidates.cut(60, 120)
    assert cut.sizes.tolist() == [60, 72, 84, 96, 108, 120]  # 7 + 5 numbers a unit
    new = cut.build(2)["down"].compose()
    restored = cut.restored(2, "down", new)
    assert torch.equal(restored, candidates.restored(6, "down", new))
    assert int(restored.any(0).sum()) == 7


# The influence of the blocks.


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_influence_is_one_minus_the_cosine(architecture, make_model, batch):
    model = make_model(architecture, torch.float64)
    stack = find_blocks(model)
    mask = torch.ones_like(batch)
    mask[::2, :9] = 0
    batches = [Batch(batch), Batch(batch.flip(0), mask)]
    cosines = [[], []]
    with torch.no_grad():
        for one in batches:
            names = [stack.block_name(k) for k in range(2)]
            with outputs_of(model, *names) as seen:
                states = model(
                    one.input_ids, attention_mask=one.attention_mask, output_hidden_states=True
                ).hidden_states
            states = [states[0], *(s[0] for s in seen.values())]
            keep = torch.ones_like(batch) if one.attention_mask is None else one.attention_mask
            for k in range(2):
                both = (states[k] * states[k + 1]).sum(-1)
                lengths = states[k].norm(dim=-1) * states[k + 1].norm(dim=-1)
                cosines[k].append((both / lengths)[keep != 0])
    found = block_influences(model, stack, batches, Progress(False))
    for influence, values in zip(found, cosines, strict=True):
        # A mean of 550 cosines.
        assert influence == pytest.approx(1 - float(torch.cat(values).mean()), abs=1e3 * U)
        assert 0 < influence < 1


def test_the_block_that_does_least_loses_most(make_model, batch):
    model = make_model("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[0].get_submodule(name).weight.mul_(0.3)
    compress_llm(model, 0.3, method="modegpt", calibration=[batch], progress=False)
    left = [
        sum(r.parameters_after for r in model.fastlr_report.layers if f".layers.{k}." in r.name)
        for k in range(2)
    ]
    assert left[0] < 0.8 * left[1]
    assert model.fastlr_report.allocation == "block_influence"
    assert model.fastlr_report.seconds["measuring"] > 0


def test_statistics_without_their_tokens(make_model, batch):
    model = make_model("llama")
    statistics = calibrate(model, [batch], progress=False)
    alone = Statistics(statistics.grams, statistics.tokens)
    with pytest.raises(ValueError, match='allocation="block_influence" needs calibration text'):
        compress_llm(model, 0.3, method="modegpt", calibration=alone, progress=False)
    compress_llm(
        model, 0.3, method="modegpt", allocation="uniform", calibration=alone, progress=False
    )
