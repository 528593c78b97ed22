"""compress and plan: any module, by its features on inputs or by its weights alone."""

import copy
import math
import re
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastlr.nn import (
    CompressionReport,
    InterpolativeLinear,
    LowRankBilinear,
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankEmbedding,
    LowRankLinear,
    compress,
    plan,
)
from fastlr.nn.compression import PlannedLayer

U = torch.finfo(torch.float64).eps


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def correlated(*shape, seed=0):
    """Vectors along the second dimension with a mean and a falling spectrum."""
    d = shape[1]
    mix = draw(d, d, seed=seed + 1) * 0.7 ** torch.arange(d, dtype=torch.float64)
    x = draw(*shape, seed=seed).transpose(1, -1) @ mix.mT + 3 * draw(d, seed=seed + 2)
    return x.transpose(1, -1).contiguous()


def filled(module, seed=0):
    """The module in float64 with weights that do not depend on torch's generator."""
    module = module.double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            values = draw(*parameter.shape, seed=seed + number)
            parameter.copy_(values / math.sqrt(parameter[0].numel()))
    return module


LAYERS = {
    "wide": (lambda: nn.Linear(12, 7), lambda: correlated(40, 12)),
    "tall": (lambda: nn.Linear(7, 12), lambda: correlated(40, 7)),
    "no bias": (lambda: nn.Linear(12, 20, bias=False), lambda: correlated(40, 12)),
    "few inputs": (lambda: nn.Linear(12, 20), lambda: correlated(5, 12)),
    "sequence": (lambda: nn.Linear(9, 8), lambda: correlated(6, 9, 5).transpose(1, 2)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1), lambda: correlated(9, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 10, 3, stride=2, bias=False), lambda: correlated(5, 4, 9, 7)),
    "groups": (
        lambda: nn.Conv2d(6, 12, 3, groups=2, padding="same", padding_mode="reflect"),
        lambda: correlated(5, 6, 7, 7),
    ),
    "conv3d": (lambda: nn.Conv3d(3, 6, 2, dilation=2), lambda: correlated(3, 3, 5, 5, 5)),
}
every = pytest.mark.parametrize("name", LAYERS)


def features(layer, output):
    """The outputs as vectors of each group, n × g × o."""
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, 1, output.shape[-1])
    return output.movedim(1, -1).reshape(-1, layer.groups, layer.out_channels // layer.groups)


def behind(planned, rank):
    """Choose this rank of the outputs alone, behind the whole weight."""
    offer = planned.offer
    (index,) = (
        index
        for index, form in enumerate(offer.forms)
        if form in ("interpolative", "channel") and offer.rank(index) == rank
    )
    planned.take(index)


@every
def test_features_are_the_principal_components_of_the_outputs(name):
    make, inputs = LAYERS[name]
    layer, x = filled(make()), inputs()
    with torch.no_grad():
        y = features(layer, layer(x))
    centred = y - y.mean(0)
    energies = torch.linalg.svdvals(centred.transpose(0, 1)).square().sum(0)
    total = float(energies.sum())
    planned = plan(layer, x, ratio=0.1)[""]
    limit = planned.offer.rank(len(planned.offer.sizes) - 1)
    for rank in range(1, limit + 1):
        behind(planned, rank)
        tail = float(energies[rank:].sum()) / total
        # An eigenproblem of the covariance, and as much white noise as the weight of 2^-40 makes.
        assert planned.predicted_error == pytest.approx(tail, rel=1e-6, abs=1e-11)
    if name == "few inputs":
        return
    for rank in (1, limit // 2, limit):
        whole = plan(copy.deepcopy(layer), x, ratio=0.1)
        behind(whole[""], rank)
        new = whole.apply()
        assert new.rank == rank
        with torch.no_grad():
            found = features(layer, new(x))
        error = float((found - y).square().sum()) / total
        assert error == pytest.approx(float(energies[rank:].sum()) / total, rel=1e-6, abs=1e-11)
        # The bias takes up the mean: products of o terms, of the size of the mean.
        assert (found.mean(0) - y.mean(0)).norm() <= 1e3 * U * (1 + y.mean(0).norm()) * x.norm()
        (report,) = new.fastlr_report.layers
        assert report.output_error == pytest.approx(error, rel=1e-6, abs=1e-11)
        counted = sum(p.numel() for p in new.parameters())
        bias = 0 if layer.bias is None else layer.bias.numel()
        assert report.parameters_after == counted - bias
    # Every direction: the very same weight.
    assert torch.dist(new.to_dense().weight, layer.weight) <= 1e-12 * layer.weight.norm()


KINDS = {
    "linear": lambda: nn.Linear(24, 16),
    "conv1d": lambda: nn.Conv1d(8, 12, 5, groups=2),
    "conv2d": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "conv3d": lambda: nn.Conv3d(6, 8, 2),
    "embedding": lambda: nn.Embedding(60, 16, padding_idx=3),
    "bilinear": lambda: nn.Bilinear(12, 10, 4),
}
NEW = {
    "linear": InterpolativeLinear,
    "conv1d": LowRankConv1d,
    "conv2d": LowRankConv2d,
    "conv3d": LowRankConv3d,
    "embedding": LowRankEmbedding,
    "bilinear": LowRankBilinear,
}


@pytest.mark.parametrize("name", KINDS)
@given(ratio=st.floats(0.05, 0.7), seed=st.integers(0, 99))
def test_weights_without_inputs(name, ratio, seed):
    layer = filled(KINDS[name](), seed)
    planned = plan(layer, ratio=ratio)
    one = planned[""]
    assert planned.method == "weights"
    assert one.parameters_after <= (1 - ratio) * layer.weight.numel()
    predicted, size = one.predicted_error, one.parameters_after
    new = planned.apply()
    assert type(new) is NEW[name]
    bias = getattr(layer, "bias", None)
    kept = sum(p.numel() for p in new.parameters()) - (0 if bias is None else bias.numel())
    assert kept == size
    with torch.no_grad():
        error = float((new.compose() - layer.weight).square().sum() / layer.weight.square().sum())
    # The Tucker split only gets better than the truncation that was foreseen.
    below = 0.0 if one.form == "tucker" else 1 - 1e-9
    assert below * predicted - 1e-12 <= error <= predicted * (1 + 1e-9) + 1e-12
    (report,) = new.fastlr_report.layers
    assert report.weight_error == pytest.approx(error, abs=1e-14)
    assert report.output_error is None


@pytest.mark.parametrize("method", ["features", "weights"])
@pytest.mark.parametrize("tol", [0.05, 0.4])
def test_tolerance(method, tol):
    model = small_cnn()
    x = correlated(6, 3, 12, 12)
    new = compress(copy.deepcopy(model), x, tol=tol, method=method)
    for report in new.fastlr_report.layers:
        error = report.output_error if method == "features" else report.weight_error
        assert error <= tol**2 * (1 + 1e-6)
        if report.form != "dense":
            assert report.parameters_after < report.parameters_before


def small_cnn():
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3, groups=16),
            nn.Flatten(),
            nn.Linear(16 * 64, 20),
            nn.Dropout(0.5),
            nn.Linear(20, 5),
        )
    )


@pytest.mark.parametrize("allocation", [None, "uniform", {"6": 0.8, "0": 0.0}])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_the_ratio_of_a_model_is_kept(allocation, with_inputs):
    model, x = small_cnn(), correlated(20, 3, 12, 12)
    before = {name: p.clone() for name, p in model.named_parameters()}
    planned = plan(model, x if with_inputs else None, ratio=0.5, allocation=allocation)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert planned.parameters_after <= 0.5 * planned.parameters_before
    text = str(planned)
    assert all(name in text for name in planned)
    new = planned.apply()
    assert new is model
    report = new.fastlr_report
    assert isinstance(report, CompressionReport)
    assert report.parameters_after == planned.parameters_after
    assert report.ratio == 0.5
    dense = sum(p.numel() for p in before.values())
    assert report.model_before.parameters == dense
    assert report.model_after.parameters == sum(p.numel() for p in new.parameters())
    saved = dense - report.model_after.parameters
    assert saved == planned.parameters_before - planned.parameters_after
    assert new(x).shape == (20, 5)
    assert "batches" in str(report)
    assert report.to_json()


def test_the_report_as_a_page():
    model = nn.Sequential()
    model.add_module("<b>&", nn.Linear(32, 64))
    report = compress(model, ratio=0.3).fastlr_report
    page = ElementTree.fromstring(report.to_html().partition("\n")[2])
    head, row = page.find(".//table")
    cells = ["".join(cell.itertext()) for cell in row]
    assert len(cells) == len(head)
    (layer,) = report.layers
    assert cells[0] == "<b>&"
    assert f"2,048 → {layer.parameters_after:,}" in cells
    assert f"{layer.weight_error:.2e}" in cells


def test_features_see_what_the_weights_do_not():
    """Inputs in a subspace: nothing is lost by half of the numbers, and almost all without them."""
    layer = filled(nn.Linear(32, 32))
    x = correlated(200, 4) @ draw(4, 32, seed=9)
    expected = layer(x)
    by_features = compress(copy.deepcopy(layer), x, ratio=0.5)
    by_weights = compress(copy.deepcopy(layer), x, ratio=0.5, method="weights")
    spread = torch.dist(expected, expected.mean(0))
    # √(u) of a covariance's eigenvectors.
    assert torch.dist(by_features(x), expected) <= 1e-7 * spread
    assert torch.dist(by_weights(x), expected) >= 0.1 * spread
    report = by_weights.fastlr_report.layers[0]
    measured = torch.dist(by_weights(x), expected) / expected.norm()
    assert report.output_error == pytest.approx(float(measured.detach()) ** 2, rel=1e-6)


def test_a_large_mean_is_not_a_feature():
    layer, x = filled(nn.Linear(16, 16)), correlated(100, 16)
    far = x + 1e6 * draw(16, seed=5)
    here, there = (plan(layer, data, ratio=0.5)[""] for data in (x, far))
    for rank in (1, 4, 8):
        here.choose(rank=rank)
        there.choose(rank=rank)
        # Outputs of 1e6 are rounded to 1e6·u.
        assert there.predicted_error == pytest.approx(here.predicted_error, rel=1e-6, abs=1e-15)


def test_embeddings_weigh_tokens_as_often_as_they_occur():
    table = filled(nn.Embedding(50, 12))
    tokens = torch.tensor([[1, 1, 1, 2], [3, 1, 2, 4]])
    new = compress(table, tokens, ranks={"": 4})
    # Four different tokens: their rows are exact.
    assert torch.dist(new(tokens), table(tokens)) <= 1e-13 * table(tokens).norm()
    assert new.fastlr_report.layers[0].output_error <= 1e-26
    often = torch.cat((tokens.flatten().repeat(5), torch.arange(50)))
    cut = compress(table, often, ranks={"": 2})
    (report,) = cut.fastlr_report.layers
    energies = torch.linalg.svdvals(table(often).detach()).square()
    tail = float(energies[2:].sum() / energies.sum())
    # An SVD: √n·u.
    assert report.predicted_error == pytest.approx(tail, rel=1e-12)
    assert report.output_error == pytest.approx(tail, rel=1e-12)


def test_directions_without_energy_go_by_the_weight():
    layer, x = filled(nn.Linear(12, 12)), correlated(5, 12)
    with torch.no_grad():
        y = layer(x)
    seen = torch.linalg.svd((y - y.mean(0)).mT).U[:, :4]
    weight = layer.weight.detach()
    unseen = torch.linalg.svdvals(weight - seen @ (seen.mT @ weight)).square()
    planned = plan(layer, x, ratio=0.1)[""]
    for rank in (4, 5, 8, 11):
        planned.choose(rank=rank)
        new = planned.build()[""]
        error = (new.compose() - weight).square().sum()
        # The covariance is rounded to 2^-53 of its trace, 2^-13 of what ranks these directions:
        # angles of that size among them, which count by their squares, times 12² pairs.
        difference = float(error - unseen[rank - 4 :].sum())
        assert abs(difference) <= 1e-5 * float(unseen.sum())


@pytest.mark.parametrize("with_inputs", [False, True])
def test_zero_weights(with_inputs):
    layer = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        layer.weight.zero_()
    x = torch.ones(2, 4, 5, 5)
    new = compress(copy.deepcopy(layer), x if with_inputs else None, ratio=0.3)
    assert torch.dist(new(x), layer(x)) <= 1e-6
    assert new.fastlr_report.layers[0].weight_error == 0


@pytest.mark.parametrize("bias", [False, True])
def test_tied_tables_stay_tied(bias):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(40, 16)
            self.body = nn.Linear(16, 16)
            self.head = nn.Linear(16, 40, bias=bias)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.body(self.embedding(tokens)))

    model = Model()
    tokens = torch.arange(40)[None]
    kept = model.head.bias
    planned = plan(model, tokens, ratio=0.4, targets="embedding")
    assert list(planned) == ["embedding"]
    new = planned.apply()
    assert new.head.B is new.embedding.A
    assert new.head.A is new.embedding.B
    assert (new.head.bias is None) == (not bias)
    assert not bias or torch.equal(new.head.bias, kept)
    assert planned.parameters_after == new.embedding.A.numel() + new.embedding.B.numel()
    assert torch.equal(new.head.compose(), new.embedding.compose())
    assert new(tokens).shape == (1, 40, 40)
    # With the table to be left alone, so is the projection.
    with pytest.raises(ValueError, match="its weight is that of 'embedding', too"):
        plan(Model(), ratio=0.4, targets="head")


def test_one_layer_in_two_places_stays_one():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    planned = plan(model, torch.ones(2, 16), ratio=0.3)
    assert list(planned) == ["0"]
    new = planned.apply()
    assert new[0] is new[2]
    assert isinstance(new[0], InterpolativeLinear)


def test_what_cannot_be_replaced_is_left_alone_with_a_reason():
    class Reader(nn.Linear):
        def forward(self, x):
            return super().forward(x) + self.weight.sum()

    hooked = nn.Linear(8, 8)
    hooked.register_forward_hook(lambda *_: None)
    twin, other = nn.Linear(8, 8), nn.Linear(8, 8)
    other.weight = twin.weight
    model = nn.ModuleDict(
        {
            "reader": Reader(8, 8),
            "hooked": hooked,
            "twin": twin,
            "other": other,
            "orthogonal": nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)),
            "normed": nn.Embedding(9, 8, max_norm=1.0),
            "plain": nn.Linear(8, 8),
        }
    )
    planned = plan(model, ratio=0.2)
    reasons = {name: layer.note for name, layer in planned.items()}
    assert "may do more than a Linear" in reasons["reader"]
    assert "has hooks" in reasons["hooked"]
    assert "that of 'other', too" in reasons["twin"]
    assert "max_norm" in reasons["normed"]
    assert not reasons["plain"]
    new = planned.apply()
    assert isinstance(new["plain"], InterpolativeLinear)
    assert [type(new[name]) for name in ("reader", "hooked")] == [Reader, nn.Linear]
    assert type(new["orthogonal"]).__name__ == "ParametrizedLinear"
    with pytest.raises(ValueError, match="'reader' cannot be compressed"):
        planned["reader"].choose(rank=1)


@pytest.mark.parametrize("with_inputs", [False, True])
def test_transformer_encoders_in_their_fast_path(with_inputs):
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(block, 2).eval()
    x = draw(3, 5, 16, dtype=torch.float32)
    new = compress(copy.deepcopy(model), x if with_inputs else None, ratio=0.3)
    assert len(new.fastlr_report.layers) == 4
    assert isinstance(new.layers[0].linear1, InterpolativeLinear)
    assert type(new.layers[0].self_attn.out_proj) is type(model.layers[0].self_attn.out_proj)
    with torch.no_grad():
        fast = new(x)
    assert torch.dist(fast, new(x)) <= 1e-5 * fast.norm()
    full = compress(copy.deepcopy(model), x, tol=1e-5)
    with torch.no_grad():
        assert torch.dist(full(x), model(x)) <= 1e-4 * model(x).norm()


def test_layers_that_inputs_never_reach_stay():
    model = nn.ModuleDict({"used": nn.Linear(8, 8), "unused": nn.Linear(8, 8)})
    planned = plan(model, torch.ones(3, 8), ratio=0.2, forward=lambda m, x: m["used"](x))
    assert planned["unused"].rank is None
    assert "never called" in planned["unused"].note
    assert planned["used"].rank is not None


def test_kinds_of_inputs():
    layer, x = filled(nn.Linear(12, 8)), correlated(30, 12)
    expected = plan(layer, x, ranks={"": 3})[""].predicted_error
    loader = DataLoader(TensorDataset(x, torch.zeros(30)), batch_size=7)
    for inputs in (
        [x],
        loader,
        list(loader),
        x.split(4),
        iter(x.split(4)),
        {"input": x},
        [{"input": part} for part in x.split(11)],
    ):
        planned = plan(layer, inputs, ranks={"": 3})
        assert planned[""].predicted_error == pytest.approx(expected, rel=1e-10)
        report = planned.apply().fastlr_report.layers[0]
        assert report.output_error == pytest.approx(expected, rel=1e-8)
    bilinear = filled(nn.Bilinear(6, 5, 3))
    pairs = [(draw(4, 6), draw(4, 5)), (draw(2, 6), draw(2, 5))]
    new = compress(bilinear, pairs, ranks={"": 5}, forward=lambda m, pair: m(*pair))
    assert new.fastlr_report.layers[0].output_error <= 1e-26


def test_state_of_the_model_is_kept():
    model = small_cnn().to(torch.bfloat16).train()
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    model[6].eval()
    state = torch.random.get_rng_state()
    new = compress(model, correlated(4, 3, 12, 12).to(torch.bfloat16), ratio=0.4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert new.training
    assert new[7].training
    assert not new[6].training
    assert all(not p.requires_grad for p in new[0].parameters())
    assert all(p.requires_grad for p in new[6].parameters())
    copied = copy.deepcopy(new)
    copied.load_state_dict(new.state_dict())
    again = compress(new, ranks={"8": 2})  # the rest, without the new layers' own convolutions
    assert again.fastlr_report.model_after.parameters < sum(p.numel() for p in copied.parameters())


def test_plans_can_be_changed_and_applied_once():
    model, x = small_cnn(), correlated(9, 3, 12, 12)
    planned = plan(model, x, tol=0.2)
    planned["0"].keep_dense()
    planned["2"].choose(ratio=0.5)
    assert planned["2"].parameters_after <= 0.5 * 16 * 16 * 9
    planned["6"].choose(tol=0.5)
    assert planned["6"].predicted_error <= 0.25
    planned["8"].choose(rank=2)
    assert planned["8"].rank == 2
    assert isinstance(planned["8"], PlannedLayer)
    for wrong in ({}, {"rank": 2, "tol": 0.1}):
        with pytest.raises(ValueError, match="one of rank, ratio and tol must be given"):
            planned["8"].choose(**wrong)
    with pytest.raises(ValueError, match=r"rank must be between 1 and .* 5, .* got 6"):
        planned["8"].choose(rank=6)
    with pytest.raises(ValueError, match=r"ratio must leave the 24 numbers of rank 1 .* got 0\.9"):
        planned["8"].choose(ratio=0.9)
    with pytest.raises(ValueError, match=r"tol must be in \[0, 1\) for '8', got 2"):
        planned["8"].choose(tol=2)
    new = planned.apply()
    assert type(new[0]) is nn.Conv2d
    assert new[8].rank == 2
    with pytest.raises(ValueError, match="applied already"):
        planned.apply()


def test_tucker_ranks_are_pairs():
    layer = filled(nn.Conv2d(8, 12, 3))
    new = compress(layer, ranks={"": (5, 4)})
    assert (new.split, new.rank) == ("tucker", (5, 4))
    assert new.fastlr_report.layers[0].rank == (5, 4)


def test_factored_form():
    assert isinstance(compress(nn.Linear(32, 32), ratio=0.5, form="factored"), LowRankLinear)


@pytest.mark.parametrize("when", [0, 3])
def test_an_interrupt_changes_nothing(when):
    model = small_cnn()
    before = copy.deepcopy(model.state_dict())
    calls = 0

    def forward(module, batch):
        nonlocal calls
        calls += 1
        if calls > when:
            raise KeyboardInterrupt
        module(batch)

    batches = list(correlated(4, 3, 12, 12).split(2))
    with pytest.raises(KeyboardInterrupt, match="as it was before the call"):
        compress(model, batches, ratio=0.5, forward=forward)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_arguments():
    model, x = small_cnn(), correlated(4, 3, 12, 12)
    for given_of in ({}, {"ratio": 0.5, "tol": 0.1}, {"tol": 0.1, "ranks": {"8": 1}}):
        with pytest.raises(ValueError, match="one of ratio, tol and ranks must be given"):
            compress(model, x, **given_of)
    for wrong in (0, 1, -1, math.nan, "half", True):
        for key in ("ratio", "tol"):
            with pytest.raises(ValueError, match=f"{key} must be between 0 and 1, both excluded"):
                compress(model, x, **{key: wrong})
    for arguments, message in (
        ({"method": "magic"}, 'method must be "auto", "features" or "weights", got \'magic\''),
        ({"form": "dense"}, 'form must be "interpolative" or "factored", got \'dense\''),
        (
            {"allocation": "loss"},
            "allocation must be one of knapsack, product, uniform or a mapping, got 'loss'",
        ),
        ({"targets": "nothing"}, "targets: no layer that can be compressed matches 'nothing'"),
        ({"ignore": "*"}, "no layer of Sequential is left to compress"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            compress(model, x, ratio=0.5, **arguments)
    with pytest.raises(ValueError, match="needs inputs"):
        compress(model, ratio=0.5, method="features")
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got list"):
        compress([model], ratio=0.5)
    with pytest.raises(TypeError, match="ranks must be a mapping"):
        compress(model, ranks=3)
    with pytest.raises(ValueError, match=r"ranks: no layer .* matches 'nothing'"):
        compress(model, ranks={"nothing": 3})
    with pytest.raises(TypeError, match="inputs must be a tensor, a mapping or batches"):
        compress(model, 3, ratio=0.5)
    with pytest.raises(TypeError, match=r"a batch must be a tensor, .* got str"):
        compress(model, ["a"], ratio=0.5)
    with pytest.raises(ValueError, match="inputs must hold a batch, got none"):
        compress(model, [], ratio=0.5)
    with pytest.raises(ValueError, match="no layer of ReLU is left"):
        compress(nn.ReLU(), ratio=0.5)
    x[1, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match=r"batch 0 .* makes features of layer '0' .* not finite"):
        compress(model, x, ratio=0.5)
    with torch.no_grad():
        model[2].weight[1, 2, 0, 1] = math.nan
    with pytest.raises(ValueError, match=r"layer '2' has the value nan at index \(1, 2, 0, 1\)"):
        compress(model, ratio=0.5)


def test_new_models_compile_and_export():
    model, x = small_cnn().eval(), correlated(4, 3, 12, 12)
    new = compress(model, x, ratio=0.4)
    expected = new(x)
    found = torch.compile(new, fullgraph=True, backend="aot_eager")(x)
    exported = torch.export.export(new, (x,)).module()(x)
    for got in (found, exported):
        assert torch.dist(got, expected) <= 1e-12 * expected.norm()
