"""Convolutions fitted to the windows of their inputs: Tucker and spatial splits of `compress`."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastlr.nn import LowRankConv2d, compress, plan
from fastlr.nn.compression import features, partial_outputs
from fastlr.nn.compression.partial_outputs import has_partial_outputs
from fastlr.nn.compression.windows import has_small_windows, windows

U = torch.finfo(torch.float64).eps


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(n, channels, *places, seed=0):
    """Smooth, with dependent channels of falling size, not negative, and a mean."""
    x = draw(n, channels, *places, seed=seed)
    for axis in range(2, x.dim()):
        x = x + 0.7 * x.roll(1, axis)
    mix = draw(channels, channels, seed=seed + 1) * 0.7 ** torch.arange(channels)
    return torch.einsum("ij,nj...->ni...", mix, x).relu() + 1


def filled(layer, seed=0):
    layer = layer.double()
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            values = draw(*parameter.shape, seed=seed + number)
            parameter.copy_(values / math.sqrt(parameter[0].numel()))
    return layer


LAYERS = {
    "1d": (lambda: nn.Conv1d(5, 8, 4, padding="same", dilation=3), (9, 5, 14)),
    "valid": (lambda: nn.Conv1d(6, 7, 3, padding="valid"), (9, 6, 12)),
    "2d": (lambda: nn.Conv2d(6, 10, (3, 2), stride=(2, 1), padding=(2, 1)), (8, 6, 9, 7)),
    "no bias": (lambda: nn.Conv2d(4, 9, 3, bias=False), (8, 4, 9, 7)),
    "groups": (
        lambda: nn.Conv2d(6, 8, 3, groups=2, padding=1, padding_mode="reflect"),
        (8, 6, 7, 7),
    ),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding_mode="circular"), (8, 4, 7, 7)),
    "3d": (lambda: nn.Conv3d(3, 6, 2, dilation=2, padding=(0, 1, 2)), (3, 3, 5, 4, 3)),
    "few": (lambda: nn.Conv2d(6, 8, 3), (1, 6, 4, 5)),
}


@pytest.fixture(params=["fitted", "partial"])
def kind(request, monkeypatch):
    """As of short windows, and as of long ones."""
    if request.param == "partial":
        for module in (features, partial_outputs):
            monkeypatch.setattr(module, "has_small_windows", lambda _: False)
    return request.param


every = pytest.mark.parametrize("name", LAYERS)


@every
def test_a_convolution_is_a_product_with_windows(name):
    make, shape = LAYERS[name]
    layer, x = filled(make()), images(*shape)
    with torch.no_grad():
        expected = layer(x).movedim(1, -1).flatten(0, -2)
        found = torch.cat(list(windows(layer, x)))
    weight = layer.weight.detach().reshape(layer.groups, layer.out_channels // layer.groups, -1)
    product = torch.einsum("ngi,goi->ngo", found, weight).flatten(1)
    if layer.bias is not None:
        product = product + layer.bias.detach()
    # Sums of as many terms as a window has numbers.
    bound = found.shape[2] * U * weight.norm() * found.norm()
    assert torch.dist(product, expected) <= bound


@every
def test_predicted_errors_are_those_that_are_measured(name, kind):
    make, shape = LAYERS[name]
    layer, x = filled(make()), images(*shape)
    planned = plan(layer, x, tol=0.5)[""]
    offer = planned.offer
    assert set(offer.forms) == {
        "tucker",
        "channel",
        *["spatial"] * (kind == "fitted" and x.dim() > 3),
    }
    with torch.no_grad():
        y = layer(x)
    dims = (0, *range(2, y.dim()))
    spread = (y - y.mean(dims, keepdim=True)).square().sum()
    assert offer.total == pytest.approx(float(spread), rel=1e-9)
    for index in range(0, len(offer.sizes), 7):
        new = offer.make(index)
        with torch.no_grad():
            z = new(x)
        measured = float((z - y).square().sum() / spread)
        # Sums of n products with covariances of size `spread`, of outputs rounded to u‖y‖.
        rounding = 1e3 * U * float(y.square().sum() / spread)
        assert offer.error(index) == pytest.approx(measured, rel=1e-6, abs=rounding)
        kept = sum(p.numel() for p in new.parameters())
        assert offer.sizes[index] == kept - (0 if layer.bias is None else layer.bias.numel())
        # The bias takes up the mean.
        away = (z - y).mean(dims).abs().max()
        assert away <= 1e3 * U * float(y.abs().max())


@every
def test_full_rank_is_the_dense_kernel(name, kind):
    make, shape = LAYERS[name]
    layer, x = filled(make()), images(*shape)
    offer = plan(layer, x, tol=0.5)[""].offer
    for form in set(offer.forms):
        last = max(index for index, other in enumerate(offer.forms) if other == form)
        new = offer.make(last)
        # Products with orthogonal matrices: √n·u, and a factor.
        assert torch.dist(new.compose(), layer.weight) <= 1e3 * U * layer.weight.norm()
        assert offer.error(last) <= 1e3 * U


@every
def test_no_size_has_more_error_than_with_fewer_channels_alone(name, kind):
    make, shape = LAYERS[name]
    layer, x = filled(make()), images(*shape)
    with torch.no_grad():
        y = layer(x).movedim(1, -1).reshape(-1, layer.groups, layer.out_channels // layer.groups)
    energies = torch.linalg.svdvals((y - y.mean(0)).transpose(0, 1)).square().sum(0)
    planned = plan(layer, x, tol=0.5)[""]
    candidates, _ = planned.front()
    o, n = y.shape[2], layer.weight[0].numel()
    for rank in range(1, min(o, n) + 1):
        size = rank * layer.groups * (o + n) + (0 if layer.bias is not None else y[0].numel())
        if size < layer.weight.numel():
            best = float(candidates.relative_errors[candidates.within(size)])
            # An eigenproblem of the covariance, with as much white noise as 2^-40 of the weight.
            assert best <= float(energies[rank:].sum() / energies.sum()) * (1 + 1e-6) + 1e-11


@given(
    seed=st.integers(0, 99),
    ranks=st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 3, 4, 6, 8])),
)
def test_better_than_the_kernel_alone(seed, ranks):
    """In the data's norm, than the nearest kernel of the same ranks with its own best bias."""
    layer, x = filled(nn.Conv2d(8, 10, 3, padding=1), seed), images(9, 8, 7, 7, seed=seed)
    dims = (0, 2, 3)
    with torch.no_grad():
        y = layer(x)
        away = LowRankConv2d.from_dense(layer, ranks)(x) - y
    away = away - away.mean(dims, keepdim=True)
    spread = (y - y.mean(dims, keepdim=True)).square().sum()
    planned = plan(layer, x, ranks={"": ranks})[""]
    assert (planned.form, planned.rank) == ("tucker", ranks)
    # Rounding alone where both are exact.
    assert planned.predicted_error <= float(away.square().sum() / spread) + 1e3 * U


@pytest.mark.parametrize("seed", range(3))
def test_few_windows_are_not_fitted_too_closely(seed):
    """The error on other inputs is near to that of many windows.

    Neither an interpolation of 49 windows of 72 numbers nor a kernel without a fit are.
    """
    layer, data = filled(nn.Conv2d(8, 10, 3), seed), images(30, 8, 9, 9, seed=seed)
    other = data[10:]
    with torch.no_grad():
        y = layer(other)

    def error(count):
        new = compress(copy.deepcopy(layer), data[:count], ranks={"": (8, 6)})
        with torch.no_grad():
            return float((new(other) - y).square().sum())

    assert error(1) <= 2 * error(10)


def test_a_large_mean_does_not_count():
    layer, x = filled(nn.Conv2d(6, 8, 3)), images(9, 6, 8, 8)
    far = x + 1e6 * draw(6, 1, 1, seed=5)
    for ratio in (0.5, 0.8):
        here, there = (plan(layer, data, ratio=ratio)[""] for data in (x, far))
        assert here.form == there.form
        # Inputs of 1e6 are rounded to 1e6·u.
        assert there.predicted_error == pytest.approx(here.predicted_error, rel=1e-6, abs=1e-13)


def test_inputs_without_a_batch(kind):
    layer, x = filled(nn.Conv2d(6, 8, 3)), images(1, 6, 8, 8)
    together = plan(layer, x, ratio=0.6)[""]
    alone = plan(layer, x[0], ratio=0.6)[""]
    assert (alone.form, alone.rank) == (together.form, together.rank)
    # The same sums.
    assert alone.predicted_error == pytest.approx(together.predicted_error, rel=1e-12)


def test_long_windows_are_not_collected():
    for wide, small in ((965, True), (966, False)):  # 3 · 965 numbers: 8 · 2895² ≤ 2^26
        assert has_small_windows(nn.Conv1d(wide, 2, 3)) == small
    assert not has_small_windows(nn.Conv2d(4, 8, 1))
    assert not has_small_windows(nn.Linear(4, 8))
    assert has_partial_outputs(nn.Conv1d(966, 724, 3))  # 8 · 16 · 724² ≤ 2^26
    layer = nn.Conv1d(966, 725, 3)
    assert not has_partial_outputs(layer)
    offer = plan(layer, images(2, 966, 5).float(), tol=0.5)[""].offer
    assert set(offer.forms) == {"channel"}


def test_nothing_is_smaller_than_one_place_of_one_channel():
    planned = plan(nn.Conv1d(4, 4, 3, groups=4), torch.ones(2, 4, 5), tol=0.1)[""]
    assert planned.rank is None
    assert "no fewer numbers" in planned.note
