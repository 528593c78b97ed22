"""Spectra of the weights and hidden states of a module."""

import copy
import importlib.util
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastlr import nn as fnn
from fastlr.nn import figures, spectra
from fastlr.nn.diagnostics import decay
from fastlr.nn.diagnostics.farms import farms_exponent, submatrix_size
from fastlr.nn.diagnostics.hidden_states import matrix_nuclear_norm
from fastlr.nn.diagnostics.kinds import depth, kinds

U = torch.finfo(torch.float64).eps
seeds = st.integers(0, 2**31)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight)
    return layer


def orthogonal(n, seed=0):
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def one(module, **options):
    matrices = spectra(module, **options).matrices
    assert len(matrices) == 1
    return matrices[0]


# Ranks


@given(st.integers(1, 40), seeds)
def test_an_orthogonal_matrix_has_full_ranks(n, seed):
    found = one(linear(orthogonal(n, seed)))
    # Singular values are 1 to within n·u, squares to 2n·u; ranks are n times such ratios.
    assert found.effective_rank == pytest.approx(n, rel=8 * n * U)
    assert found.stable_rank == pytest.approx(n, rel=8 * n * U)
    assert found.rank_90 == math.ceil(n * 9 / 10)
    assert found.rank_99 == math.ceil(n * 99 / 100)


@given(st.integers(1, 30), st.integers(1, 30), seeds)
def test_a_matrix_of_rank_one_has_ranks_one(m, n, seed):
    found = one(linear(random(m, 1, seed=seed) @ random(1, n, seed=seed + 1)))
    # The other energies are (n·u)² at most.
    assert found.effective_rank == pytest.approx(1, abs=1e-12)
    assert found.stable_rank == pytest.approx(1, abs=1e-12)
    assert (found.rank_90, found.rank_99) == (1, 1)
    assert math.isnan(found.alpha)  # one eigenvalue has no tail


@given(st.integers(2, 20), st.integers(2, 20), seeds, st.floats(-250, 250))
def test_ranks_and_exponents_do_not_depend_on_scale_and_rotation(m, n, seed, power):
    matrix = random(m, n, seed=seed) @ torch.diag(0.7 ** torch.arange(n).double())
    before = one(linear(matrix))
    turned = orthogonal(m, seed + 1) @ matrix @ orthogonal(n, seed + 2)
    after = one(linear(turned * 10.0**power))
    # The turns move singular values by some n·u of the largest.
    assert after.effective_rank == pytest.approx(before.effective_rank, rel=1e-11)
    assert after.stable_rank == pytest.approx(before.stable_rank, rel=1e-11)
    assert (after.rank_90, after.rank_99) == (before.rank_90, before.rank_99)
    # The least singular value is 0.7**20·1e-3 or so: known to 1e-9 relatively, and so is its log.
    assert after.alpha == pytest.approx(before.alpha, rel=1e-8)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_ranks_are_their_definitions(values):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    shares = [v * v / math.fsum(w * w for w in values) for v in sigma.tolist()]
    entropy = -math.fsum(p * math.log(p) for p in shares)
    assert decay.effective_rank(sigma) == pytest.approx(math.exp(entropy), rel=1e-12)
    assert decay.stable_rank(sigma) == pytest.approx(1 / shares[0], rel=1e-12)
    for share in (0.5, 0.9, 0.99):
        rank = decay.energy_rank(sigma, share)
        assert math.fsum(shares[:rank]) >= share - 1e-12
        assert math.fsum(shares[: rank - 1]) < share + 1e-12


@pytest.mark.parametrize(("share", "step"), [(0.9, 10), (0.99, 100)])
def test_equal_energies_are_counted_exactly(share, step):
    for count in range(step, 10 * step, step):  # 1 − 0.9 is below 1/10 in floating point
        values = torch.ones(count, dtype=torch.float64)
        assert decay.energy_rank(values, share) == count - count // step


def test_the_stable_rank_is_not_above_the_effective_one():
    for seed in range(20):
        found = one(linear(random(12, 20, seed=seed)))
        assert 1 <= found.stable_rank <= found.effective_rank <= 12


def test_a_zero_matrix_has_ranks_zero():
    found = one(linear(torch.zeros(5, 4)))
    assert (found.effective_rank, found.stable_rank, found.rank_90, found.norm) == (0, 0, 0, 0)
    assert math.isnan(found.alpha)
    assert math.isnan(found.alpha_farms)


# Singular values


@pytest.mark.parametrize("shape", [(30, 30), (50, 20), (20, 50), (1, 9), (9, 1)])
def test_singular_values_are_scipys_down_to_rounding(shape):
    m, n = shape
    k = min(shape)
    sigma = torch.logspace(0, -12, k, dtype=torch.float64)
    matrix = orthogonal(m, 1)[:, :k] * sigma @ orthogonal(n, 2)[:, :k].T
    found = one(linear(matrix)).singular_values
    expected = scipy.linalg.svdvals(matrix.numpy())
    # Each of the two is backward stable: off by max(m, n)·u of the largest at most.
    tolerance = 2 * max(shape) * U * expected[0]
    assert np.abs(found.numpy() - expected).max() <= tolerance
    if k > 1:  # a Gram matrix would not do
        gram = matrix.mT @ matrix if m >= n else matrix @ matrix.mT
        squared = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
        assert np.abs(squared.numpy() - expected).max() > 10 * tolerance


# Tails


@pytest.mark.parametrize("index", [0.5, 1.0, 3.0])
def test_hill_of_pareto_samples(index):
    count = 20_000
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    samples = (1 - uniform) ** (-1 / index)  # P(X > x) = x^−index, density ~ x^−(1 + index)
    error = index / math.sqrt(count // 2)  # of the sum of exponential logarithms
    assert decay.tail_exponent(samples) == pytest.approx(1 + index, abs=4 * error)
    assert decay.tail_exponent(samples**0.9) != pytest.approx(1 + index, abs=4 * error)
    assert decay.tail_exponent(samples * 1e30) == pytest.approx(decay.tail_exponent(samples))


def test_hill_by_hand():
    found = decay.tail_exponent(torch.tensor([1.0, 8.0, 2.0, 4.0]).double())
    assert found == pytest.approx(1 + 2 / (math.log(8 / 2) + math.log(4 / 2)))
    assert math.isnan(decay.tail_exponent(torch.tensor([3.0])))
    assert decay.tail_exponent(torch.ones(6)) == math.inf


def marchenko_pastur(ratio, count):
    """Hill's exponent of random matrices with sides long / short = ratio, and how far it is off.

    The exponent is that of infinitely many eigenvalues. Those of a random matrix are rigid: of
    `count` of them the median, where the tail begins, is where the density has it up to one spacing
    (from counting) and a fluctuation with a standard deviation of √log(count)/π spacings (O'Rourke
    2010), of which four are allowed. A spacing of log λ is 1/(count·p(λ)·λ), and 1/(α − 1), the
    mean of log λ above it, is off by as much.
    """
    c = 1 / ratio
    low, high = (1 - math.sqrt(c)) ** 2, (1 + math.sqrt(c)) ** 2
    angle = (np.arange(400_000) + 0.5) * (math.pi / 2) / 400_000
    x = low + (high - low) * np.sin(angle) ** 2
    # √((b − x)(x − a))/(2πc·x) dx, without the square roots at the ends.
    mass = (high - low) ** 2 * (np.sin(angle) * np.cos(angle)) ** 2 / (math.pi * c * x)
    mass /= mass.sum()
    upper = np.cumsum(mass) > 0.5
    median = x[upper][0]
    exponent = 1 + 0.5 / float((mass[upper] * np.log(x[upper] / median)).sum())
    spacing = 2 * math.pi * c / (count * math.sqrt((high - median) * (median - low)))
    return exponent, (exponent - 1) ** 2 * spacing * (1 + 4 * math.sqrt(math.log(count)) / math.pi)


@pytest.mark.parametrize("shape", [(256, 256), (512, 256), (200, 800), (1600, 160)])
def test_farms_of_random_matrices_does_not_depend_on_the_shape(shape):
    matrix = random(*shape, seed=7)
    expected, spread = marchenko_pastur(1.0, min(submatrix_size(shape, 1.0)))
    assert farms_exponent(matrix, 1.0, 10, seed=0) == pytest.approx(expected, abs=spread)
    # The plain exponent is that of the shape, and no other.
    ratio = max(shape) / min(shape)
    of_shape, narrow = marchenko_pastur(ratio, min(shape))
    plain = one(linear(matrix), samples=1).alpha
    assert plain == pytest.approx(of_shape, abs=narrow)
    if ratio > 1:
        assert abs(plain - expected) > 2 * max(spread, narrow)


def test_farms_of_another_aspect_ratio():
    for shape in [(256, 256), (200, 800)]:
        expected, spread = marchenko_pastur(2.0, min(submatrix_size(shape, 2.0)))
        found = farms_exponent(random(*shape, seed=7), 2.0, 10, seed=0)
        assert found == pytest.approx(expected, abs=spread)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(1, 4))
def test_submatrices_fit_and_have_the_ratio(m, n, ratio):
    rows, columns = submatrix_size((m, n), ratio)
    assert 1 <= rows <= m
    assert 1 <= columns <= n
    long, short = max(rows, columns), min(rows, columns)
    if short > 1:
        assert abs(long - ratio * short) <= 0.5 + 1e-9
        assert (rows >= columns) == (m >= n) or long == short


def test_the_seed_decides_and_nothing_else_does():
    model = nn.Sequential(linear(random(40, 30)), linear(random(30, 50, seed=1)))
    state = torch.random.get_rng_state()
    first = spectra(model, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again = spectra(model, seed=3)
    assert again.matrices == first.matrices
    other = spectra(model, seed=4)
    assert other.matrix("0").alpha_farms != first.matrix("0").alpha_farms
    assert other.matrix("0").alpha == first.matrix("0").alpha
    # Nor do the other layers.
    assert spectra(model, layers="1", seed=3).matrices[0] == first.matrices[1]


# Which matrices


COMPRESSED = {
    "low_rank": lambda: fnn.LowRankLinear.from_dense(nn.Linear(24, 16), 5),
    "interpolative": lambda: fnn.InterpolativeLinear.from_dense(nn.Linear(24, 16), 5),
    "cur": lambda: fnn.CURLinear.from_dense(nn.Linear(24, 16), 5),
    "sparse": lambda: fnn.SparseLinear.from_dense(nn.Linear(24, 16), density=0.5),
    "kronecker": lambda: fnn.KroneckerLinear.from_dense(nn.Linear(24, 16), (4, 6), terms=2),
    "diagonal": lambda: fnn.LowRankPlusDiagonal.from_dense(nn.Linear(16, 16), 3),
    "conv": lambda: fnn.LowRankConv2d.from_dense(nn.Conv2d(6, 8, 3), (4, 3)),
    "embedding": lambda: fnn.LowRankEmbedding.from_dense(nn.Embedding(40, 12), 4),
    "bilinear": lambda: fnn.LowRankBilinear.from_dense(nn.Bilinear(5, 6, 4), 2),
}


@pytest.mark.parametrize("kind", list(COMPRESSED))
def test_a_compressed_layer_is_the_matrix_that_it_stands_for(kind):
    torch.manual_seed(0)
    layer = COMPRESSED[kind]()
    found = one(nn.Sequential(layer))
    exact = layer.compose().flatten(1).detach()
    assert found.shape == tuple(exact.shape)
    assert found.layer == type(layer).__name__
    expected = scipy.linalg.svdvals(exact.numpy())
    # Both are backward stable.
    tolerance = 2 * max(exact.shape) * U * expected[0]
    assert np.abs(found.singular_values.numpy() - expected).max() <= tolerance
    if kind in ("low_rank", "interpolative", "cur", "embedding"):
        # Beyond its rank there is rounding in float64, not in the layer's float32.
        assert found.singular_values[layer.rank] < 1e-13 * found.norm


def test_convolutions_are_outputs_by_inputs():
    conv = nn.Conv2d(6, 4, (3, 2), groups=2)
    assert one(conv).shape == (4, 3 * 6)
    assert one(conv).norm == pytest.approx(
        float(torch.linalg.matrix_norm(conv.weight.detach().double().reshape(4, 18), 2))
    )
    up = nn.ConvTranspose1d(4, 6, 3, groups=2)  # stored 4 × 3 × 3
    rows = [up.weight[2 * (o // 3) : 2 * (o // 3) + 2, o % 3].reshape(-1) for o in range(6)]
    expected = torch.linalg.svdvals(torch.stack(rows).detach().double())
    assert torch.allclose(one(up).singular_values, expected)


def test_matrices_of_unknown_modules():
    attention = spectra(nn.MultiheadAttention(8, 2))
    assert {m.name: m.shape for m in attention.matrices} == {
        "in_proj_weight": (24, 8),
        "out_proj": (8, 8),
    }
    assert len(spectra(nn.LSTM(4, 6, num_layers=2)).matrices) == 4

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 5, 4))
            self.norm = nn.LayerNorm(4)

    report = spectra(nn.Sequential(Experts()))
    assert [m.name for m in report.matrices] == ["0.up[0]", "0.up[1]", "0.up[2]"]
    assert list(report.by_kind()) == ["up"]
    exact = report.matrices[1].singular_values
    assert exact.shape == (4,)


def test_a_residual_block_with_a_lipschitz_constant_has_two_matrices():
    block = fnn.LipschitzResidual(6, 9, lipschitz=2)
    G, W = block.branch()
    report = spectra(nn.Sequential(block))
    assert [m.name for m in report.matrices] == ["0.G", "0.W"]
    for found, exact in zip(report.matrices, (G, W), strict=True):
        assert torch.allclose(
            found.singular_values, torch.linalg.svdvals(exact.detach().double()), rtol=1e-6
        )


def test_a_tied_weight_counts_once(make_model):
    report = spectra(make_model("llama", tie=True))
    assert report.matrix("lm_head") is report.matrix("model.embed_tokens")
    assert report.matrix("lm_head").others == ("lm_head",)
    assert len(report.matrices) == 1 + 2 * 7
    assert len(spectra(make_model("llama")).matrices) == 2 + 2 * 7


def test_a_conv1d_of_transformers_is_transposed(make_model):
    report = spectra(make_model("gpt2"))
    assert report.matrix("transformer.h.1.mlp.c_fc").shape == (128, 32)
    assert set(report.by_kind()) == {
        "wte", "wpe", "c_attn", "attn.c_proj", "c_fc", "mlp.c_proj",
    }  # fmt: skip


def test_layers_are_chosen_by_name(make_model):
    model = make_model("llama")
    assert {m.name.rpartition(".")[2] for m in spectra(model, layers="q_proj").matrices} == {
        "q_proj"
    }
    chosen = spectra(model, layers=["model.layers.1.*", "lm_head"]).matrices
    assert [m.depth for m in chosen] == [1] * 7 + [None]
    with pytest.raises(ValueError, match="no layer matches 'z_proj'; the first ones are model"):
        spectra(model, layers=["q_proj", "z_proj"])


def test_kinds_and_depths():
    names = ["a.0.q", "a.1.q", "b.0.q", "head", "5", "a.7.experts.3.up"]
    assert kinds(names) == ["a.q", "a.q", "b.q", "head", "layers", "up"]
    assert [depth(name) for name in names] == [0, 1, 0, None, 5, 7]


# What is refused, and what is left alone


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(value):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    with torch.no_grad():
        model[1].weight[2, 1] = value
    with pytest.raises(ValueError, match=rf"layer '1' has the value {value} at index \(2, 1\)"):
        spectra(model)


@pytest.mark.parametrize("module", [nn.Sequential(), nn.LayerNorm(5), nn.ReLU()])
def test_a_module_without_matrices_is_refused(module):
    with pytest.raises(ValueError, match="has no weight that is a matrix"):
        spectra(module)


def test_other_refusals():
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"aspect_ratio must be at least 1, got 0\.5"):
        spectra(layer, aspect_ratio=0.5)
    with pytest.raises(ValueError, match="aspect_ratio"):
        spectra(layer, aspect_ratio=math.nan)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        spectra(layer, samples=0)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"'0.weight' has dtype torch.int8.*dequantize"):
        spectra(nn.Sequential(layer))
    with pytest.raises(ValueError, match="meta device"):
        spectra(nn.Linear(4, 4, device="meta"))


def test_bfloat16_weights_are_exact():
    layer = nn.Linear(30, 20).bfloat16()
    found, exact = one(layer), one(linear(layer.weight.detach().double()))
    assert torch.equal(found.singular_values, exact.singular_values)
    assert found.alpha_farms == exact.alpha_farms


@pytest.mark.parametrize(
    "layer", [nn.Embedding(30, 20), nn.Conv1d(4, 30, 5), nn.Bilinear(4, 5, 30), nn.Linear(20, 30)]
)
def test_float64_weights_are_not_rounded(layer):
    weight = random(30, 20)
    layer.double().weight.data = weight.reshape(layer.weight.shape)
    assert torch.equal(one(layer).singular_values, decay.singular_values(weight))


def test_nothing_is_changed():
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)), nn.BatchNorm1d(5), nn.Linear(5, 4)
    ).train()
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    report = spectra(model)
    assert len(report.matrices) == 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


# Hidden states


def test_the_nuclear_norm_is_its_definition():
    states = random(12, 7, seed=3)
    rows = (states - states.mean(0)).numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    columns = sorted((np.linalg.norm(rows[:, j]) for j in range(7)), reverse=True)
    assert matrix_nuclear_norm(states) == pytest.approx(sum(columns) / 12, rel=1e-13)
    few = states[:3]  # three tokens: the three largest of seven columns
    rows = (few - few.mean(0)).numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    columns = sorted((np.linalg.norm(rows[:, j]) for j in range(7)), reverse=True)
    assert matrix_nuclear_norm(few) == pytest.approx(sum(columns[:3]) / 3, rel=1e-13)


def test_the_nuclear_norm_is_one_where_columns_are_orthogonal():
    # ± unit vectors: centred, of length 1, with orthogonal columns.
    states = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    exact = float(torch.linalg.matrix_norm(states, "nuc"))
    assert matrix_nuclear_norm(states) == pytest.approx(exact / 10)
    assert matrix_nuclear_norm(states) == pytest.approx(math.sqrt(5 / 10))


@given(st.integers(2, 20), st.integers(1, 20), seeds)
def test_the_nuclear_norm_is_within_its_bound(tokens, width, seed):
    found = matrix_nuclear_norm(random(tokens, width, seed=seed))
    assert 0 <= found <= math.sqrt(min(tokens, width) / tokens) * (1 + 100 * U)


def test_equal_states_have_nuclear_norm_zero():
    assert matrix_nuclear_norm(torch.ones(4, 6)) == 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_nuclear_norms_are_of_the_blocks_outputs(make_model, tokens, architecture):
    model = make_model(architecture)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    report = spectra(model, tokens[:70], seq_len=20)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    name = "model.layers" if architecture == "llama" else "transformer.h"
    assert list(report.nuclear_norms) == [f"{name}.0", f"{name}.1"]
    assert report.tokens == 60
    expected = 0.0
    for window in tokens[:60].reshape(3, 20):
        with torch.no_grad():
            states = model(window[None], output_hidden_states=True).hidden_states
        expected += matrix_nuclear_norm(states[1][0]) / 3
    assert report.nuclear_norms[f"{name}.0"] == pytest.approx(expected, rel=1e-5)
    first = spectra(model, tokens[None, :70], seq_len=20, windows=1)
    assert first.tokens == 20
    assert first.nuclear_norms[f"{name}.0"] != pytest.approx(expected, rel=1e-3)
    assert "hidden states of 2 blocks on 60 tokens" in report.summary()


def test_inputs_that_do_not_fit_are_refused(make_model, tokens):
    with pytest.raises(TypeError, match="need a language model of transformers, got Linear"):
        spectra(nn.Linear(3, 3), tokens)
    model = make_model("llama")
    with pytest.raises(ValueError, match=r"spectra: tokens must fill .* 60, got 40 tokens"):
        spectra(model, tokens[:40], seq_len=60)
    with pytest.raises(ValueError, match="spectra: token ids must be between 0 and 95"):
        spectra(model, torch.full((40,), 96), seq_len=20)
    with pytest.raises(TypeError, match="spectra: tokens must be a tensor of integers"):
        spectra(model, tokens.double(), seq_len=20)


# The report


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    tower = nn.ModuleList(
        [
            nn.ModuleDict({"up": nn.Linear(12, 30), "<b>": nn.Linear(30, 12)}),
            nn.ModuleDict({"up": nn.Linear(12, 30), "<b>": nn.Linear(30, 12)}),
        ]
    )
    return spectra(nn.ModuleDict({"tower": tower, "head": nn.Linear(12, 9)}))


def test_the_report_as_a_table_and_as_numbers(report):
    printed = str(report)
    assert all(matrix.name in printed for matrix in report.matrices)
    rows = report.summary().splitlines()
    assert [row.split()[0] for row in rows] == ["layers", "up", "<b>", "head"]
    assert len({len(row) for row in rows}) == 1
    mean = (report.matrices[0].effective_rank + report.matrices[2].effective_rank) / 2
    assert rows[1].split()[1:4] == ["2", "30×12", f"{mean:.1f}"]
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [m["name"] for m in plain["matrices"]] == [m.name for m in report.matrices]
    assert "singular_values" not in plain["matrices"][0]
    full = report.to_dict(spectra=True)["matrices"][0]["singular_values"]
    assert full == report.matrices[0].singular_values.tolist()
    with pytest.raises(KeyError):
        report.matrix("absent")


def test_the_page_is_well_formed_and_escapes_names(report):
    page = replace(report, nuclear_norms={"<b>.0": 0.5}, tokens=10).to_html()
    body = page.removeprefix("<!DOCTYPE html>\n")
    tree = ElementTree.fromstring(body)  # XML, too: every element is closed
    assert len(tree.findall(".//polyline")) == len(report.matrices)
    assert "tower.0.&lt;b&gt;" in page
    assert "&lt;b&gt;.0" in page
    assert "on 10 tokens" in page
    assert {cell.text for cell in tree.iter("b")} == {"5", "1,548", f"{report.seconds:.1f} s"}
    for line in tree.findall(".//polyline"):
        points = [tuple(map(float, p.split(","))) for p in line.get("points").split()]
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        assert [y for _, y in points] == sorted(y for _, y in points)  # downwards on the screen
        assert all(0 <= x <= 120 and 0 <= y <= 28 for x, y in points)


def test_a_plot_has_a_chart_a_kind_and_a_line_a_matrix(report, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "spectra.png"
    figure = report.plot(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    charts = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(charts) == ["up", "<b>", "head"]
    lines = charts["up"].get_lines()
    assert len(lines) == 2
    assert lines[0].get_color() != lines[1].get_color()
    values = report.matrices[0].singular_values
    assert np.allclose(lines[0].get_ydata(), values / values[0])
    assert charts["head"].get_lines()[0].get_color() == "black"  # it is in no block
    assert any(axis.get_ylabel() == "block" for axis in figure.axes)
    alone = spectra(nn.Linear(5, 4)).plot()
    assert not any(axis.get_ylabel() == "block" for axis in alone.axes)


def test_a_plot_without_matplotlib_says_what_to_install(report, monkeypatch):
    true_find = importlib.util.find_spec
    monkeypatch.setattr(
        figures.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else true_find(name, *rest),
    )
    with pytest.raises(ImportError, match="pip install matplotlib"):
        report.plot()
