"""HouseholderProjector: the truncated SVD to begin with, and orthonormal directions ever after."""

import copy
import io
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastlr.nn import HouseholderProjector, LowRankLinear
from references import orthonormality_error, unit_roundoff

DTYPES = [torch.float32, torch.float64]
RANK = 3


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(o, i, dtype=torch.float64, seed=0, bias=True):
    linear = nn.Linear(i, o, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(draw(o, i, seed=seed) / math.sqrt(i))
        if bias:
            linear.bias.copy_(draw(o, seed=seed + 1))
    return linear


def truncated(linear, rank):
    """The dense layer with the best weight of that rank, rounded once."""
    U, S, Vh = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
    other = copy.deepcopy(linear)
    with torch.no_grad():
        other.weight.copy_(U[:, :rank] * S[:rank] @ Vh[:rank])
    return other


def moved(layer, seed=0):
    """Any parameters, as training might leave them."""
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.add_(draw(*parameter.shape, seed=97 * seed + index))
    return layer


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, and its outputs to variance 1."""

    def __init__(self, latent, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3))
        self.modulation = nn.Linear(latent, i)
        nn.init.normal_(self.modulation.weight, std=latent**-0.5)
        nn.init.ones_(self.modulation.bias)

    def forward(self, x, w):
        scales = self.modulation(w).to(self.weight.dtype)
        kernels = self.weight * scales[:, None, :, None, None]
        kernels = kernels / kernels.square().sum((2, 3, 4), keepdim=True).add(1e-8).sqrt()
        n, o, i = kernels.shape[:3]
        grouped = x.reshape(1, n * i, *x.shape[2:])
        y = F.conv2d(grouped, kernels.reshape(n * o, i, 3, 3), padding=1, groups=n)
        return F.leaky_relu(y.reshape(n, o, *x.shape[2:]), 0.2)


class Generator(nn.Module):
    """A small StyleGAN: a mapping network, a constant, modulated convolutions, 16 × 16 pixels."""

    def __init__(self, latent=20, channels=(12, 10, 8)):
        super().__init__()
        self.mapping = nn.Sequential(
            nn.Linear(latent, latent), nn.LeakyReLU(0.2), nn.Linear(latent, latent)
        )
        self.constant = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        sizes = zip(channels, [*channels[1:], channels[-1]], strict=True)
        self.convs = nn.ModuleList(ModulatedConv(latent, i, o) for i, o in sizes)
        self.to_rgb = nn.Conv2d(channels[-1], 3, 1)
        nn.init.normal_(self.to_rgb.weight)

    def forward(self, w):
        """Images of a latent vector for each sample, or of one for each layer of it."""
        styles = w if isinstance(w, list) else [w] * len(self.convs)
        x = self.constant.expand(len(styles[0]), -1, -1, -1)
        for index, (conv, style) in enumerate(zip(self.convs, styles, strict=True)):
            x = conv(F.interpolate(x, scale_factor=2) if index else x, style)
        return self.to_rgb(x)

    def with_modulations(self, change):
        """A copy in which every modulation layer is what `change` makes of it."""
        other = copy.deepcopy(self)
        for conv in other.convs:
            conv.modulation = change(conv.modulation)
        return other

    def modulations(self):
        return [conv.modulation for conv in self.convs]


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Generator()


@pytest.fixture
def latents(generator):
    with torch.no_grad():
        return generator.mapping(2 * draw(6, 20, dtype=torch.float32, seed=5))


def project(linear):
    return HouseholderProjector.from_dense(linear, RANK)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_generator_begins_as_the_truncated_one(generator, latents, dtype):
    cut = generator.with_modulations(lambda linear: truncated(linear, RANK))
    exact = generator.double().with_modulations(lambda linear: truncated(linear, RANK))
    expected = exact(latents.double())
    # What float32 makes of the same weights, in units of u. The projectors round as much more as
    # three products for one do.
    size = torch.dist(cut(latents).double(), expected) / unit_roundoff(latents)
    projected = generator.to(dtype).with_modulations(project)
    error = torch.dist(projected(latents.to(dtype)).double(), expected)
    assert error <= 10 * size * unit_roundoff(latents.to(dtype))
    # The negative control: the whole layers make other images.
    assert torch.dist(generator.double()(latents.double()), expected) > 0.01 * expected.norm()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    ],
    ids=["SGD", "Adam"],
)
def test_fine_tuning_keeps_the_directions_orthonormal(generator, latents, make):
    with torch.no_grad():
        images = generator(latents)

    def tune(model):
        optimizer = make([p for layer in model.modulations() for p in layer.parameters()])
        losses = []
        for _ in range(200):
            optimizer.zero_grad()
            loss = (model(latents) - images).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    projected = generator.with_modulations(project)
    before = copy.deepcopy(projected.modulations())
    losses = tune(projected)
    assert losses[-1] < 0.5 * losses[0]
    for layer, old in zip(projected.modulations(), before, strict=True):
        V, was = layer.directions(RANK).detach(), old.directions(RANK).detach()
        assert orthonormality_error(V) <= 10
        assert torch.dist(V, was) > 0.01
        # Products of U and V, each orthonormal to 10·√r·u, and the given values between them.
        values = torch.linalg.svdvals(layer.compose())
        u = unit_roundoff(V)
        assert (values[:RANK] - old.S).norm() <= 20 * RANK * u * old.S.norm()
        assert values[RANK:].norm() <= 20 * RANK * u * old.S.norm()
        assert torch.equal(layer.S, old.S)
        assert torch.equal(layer.phases, old.phases)

    # The negative control: the factors of a layer of low rank do not stay what they were.
    plain = generator.with_modulations(lambda linear: project(linear).to_low_rank())
    tune(plain)
    for layer in plain.modulations():
        rows = F.normalize(layer.A.detach())
        assert orthonormality_error(rows.mT) > 1e4


@torch.no_grad()
def test_in_a_generator_only_directions_move_the_image(generator, latents):
    generator, latents = generator.double(), latents.double()
    projected = generator.with_modulations(lambda linear: moved(project(linear)))
    images = projected(latents)
    layers = projected.modulations()
    every = torch.cat([layer.directions(RANK) for layer in layers], 1)
    # 9 of 20 dimensions matter.
    basis = torch.linalg.qr(every)[0]
    away = draw(6, 20, seed=1)
    away -= away @ basis @ basis.mT
    assert torch.dist(projected(latents + away), images) <= 1e-12 * images.norm()
    assert torch.dist(generator(latents + away), generator(latents)) > 0.1 * images.norm()
    # In one layer: each direction changes the scales in a way of its own, by its singular value.
    for index, layer in enumerate(layers):
        changes = []
        for S, direction in zip(layer.S, layer.directions(RANK).mT, strict=True):
            styles = [latents] * len(layers)
            styles[index] = latents + 0.5 * direction
            assert torch.dist(projected(styles), images) > 1e-3 * images.norm()
            changes.append((layer(styles[index]) - layer(latents))[0] / (0.5 * S))
        # A difference of numbers about as large, divided by 0.5·S.
        assert orthonormality_error(torch.stack(changes, 1)) <= 1e3


@given(
    o=st.integers(1, 40),
    i=st.integers(1, 40),
    part=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_layers_begin_as_the_truncated_ones(o, i, part, dtype, seed):
    rank = 1 + int(part * (min(o, i) - 1))
    linear = dense(o, i, dtype, seed)
    layer = HouseholderProjector.from_dense(linear, rank)
    linear = linear.double()
    u, size = unit_roundoff(layer.of_V), torch.linalg.matrix_norm(linear.weight, 2)
    best = truncated(linear, rank)
    # Rounded vectors of U and V, and reflectors that round √r·u each.
    assert torch.dist(layer.compose(), best.weight) <= 40 * rank * u * size
    x = draw(5, i, seed=seed + 2).to(dtype)
    bound = 40 * (rank + math.sqrt(i)) * u * (size * x.norm() + linear.bias.norm())
    assert torch.dist(layer(x), best(x.double())) <= bound
    values = torch.linalg.svdvals(linear.weight)[:rank]
    # Found in float64 by another driver, and rounded once.
    assert (layer.S - values).abs().max() <= (u + 40 * 2**-53) * size
    assert orthonormality_error(layer.directions(rank).detach()) <= 10
    for k in range(1, rank + 1):
        assert torch.equal(layer.directions(k), layer.directions(rank)[:, :k])


@given(o=st.integers(1, 30), i=st.integers(1, 30), seed=st.integers(0, 1000))
def test_a_direction_does_what_its_triple_says(o, i, seed):
    rank = min(o, i, 4)
    layer = moved(HouseholderProjector.from_dense(dense(o, i, seed=seed), rank), seed)
    V = layer.directions(rank).detach()
    at = draw(i, seed=seed)
    answers = (layer(at + 3 * V.mT) - layer(at)).mT / 3
    U = answers.detach() / layer.S
    # A difference of numbers of size ‖W‖·‖at‖ + ‖b‖, divided by the smallest value.
    size = float(layer.S[0] * (at.norm() + 3) + layer.bias.detach().norm())
    rounding = 100 * unit_roundoff(at) * size / float(layer.S[-1])
    assert torch.dist(U.mT @ U, torch.eye(rank, dtype=torch.float64)) <= rounding
    assert torch.dist(U * layer.S @ V.mT, layer.compose()) <= rounding * float(layer.S[0])
    away = draw(i, seed=seed + 1)
    away -= V @ (V.mT @ away)
    assert torch.dist(layer(at + away), layer(at)) <= rounding * float(layer.S[-1]) * 10


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e30), (torch.float64, 1e200)])
@torch.no_grad()
def test_scaled_weights(dtype, scale):
    linear = dense(9, 7, dtype)
    expected = HouseholderProjector.from_dense(linear, 3)
    weight = linear.weight.clone()
    for factor in (scale, 1 / scale):
        linear.weight.copy_(weight * factor)
        layer = HouseholderProjector.from_dense(linear, 3)
        u = unit_roundoff(weight)
        assert (layer.S / factor - expected.S).norm() <= 10 * u * expected.S.norm()
        # Directions up to signs; gaps of singular values are some tenth of them.
        cosines = (layer.directions(3).double() * expected.directions(3).double()).sum(0)
        assert (1 - cosines.abs()).abs().max() <= 100 * u


@torch.no_grad()
def test_weights_of_zeros_and_of_lower_rank():
    linear = dense(6, 8)
    linear.weight.zero_()
    layer = HouseholderProjector.from_dense(linear, 4)
    x = draw(3, 8)
    assert torch.equal(layer(x), linear.bias.expand(3, 6))
    assert orthonormality_error(layer.directions(4)) <= 10
    linear.weight.copy_(torch.outer(draw(6), draw(8, seed=1)))
    layer = HouseholderProjector.from_dense(linear, 6)
    assert orthonormality_error(layer.directions(6)) <= 10
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-12, atol=1e-13)
    assert (layer.S[1:] <= 1e-14 * layer.S[0]).all()


def test_singular_values_that_are_written():
    layer = moved(HouseholderProjector.from_dense(dense(9, 7), 4))
    V = layer.directions(4).detach()
    with torch.no_grad():
        layer.S.copy_(torch.tensor([1.0, 4.0, 2.0, 4.0]))
    # By value, and in order where they are equal.
    assert torch.equal(layer.directions(4), V[:, [1, 3, 2, 0]])
    layer.S.fill_(1)
    assert torch.equal(layer.directions(4), V)
    W = layer.compose()
    torch.testing.assert_close(W @ W.mT @ W, W, rtol=0, atol=1e-14)  # a partial isometry


def test_gradients_reach_vectors_and_bias_alone():
    layer = HouseholderProjector.from_dense(dense(6, 5), 3)
    assert {name for name, _ in layer.named_parameters()} == {"of_U", "of_V", "bias"}
    x = draw(4, 5).requires_grad_()

    def run(of_U, of_V, bias, x):
        return torch.func.functional_call(layer, {"of_U": of_U, "of_V": of_V, "bias": bias}, x)

    assert torch.autograd.gradcheck(run, (layer.of_U, layer.of_V, layer.bias, x))
    V = layer.directions(2)
    (V * draw(5, 2)).sum().backward()
    assert layer.of_V.grad.any()
    assert layer.of_U.grad is None


@pytest.mark.parametrize("bias", [True, False])
def test_to_low_rank_and_dense(bias):
    linear = dense(6, 9, bias=bias).eval()
    layer = moved(HouseholderProjector.from_dense(linear, 4))
    assert not layer.training
    low = layer.to_low_rank()
    assert isinstance(low, LowRankLinear)
    assert (low.rank, low.training, low.bias is not None) == (4, False, bias)
    x = draw(3, 9)
    torch.testing.assert_close(low(x), layer(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(layer.to_dense()(x), layer(x), rtol=1e-13, atol=1e-13)
    assert orthonormality_error(low.B.detach()) <= 10
    with torch.no_grad():
        low.B.zero_()
    assert layer.of_U.any()
    assert HouseholderProjector.from_dense(linear.float(), 4).to_low_rank().A.dtype == (
        torch.float32
    )


def test_under_autocast():
    layer = HouseholderProjector.from_dense(dense(12, 9, torch.float32), 4)
    x = draw(5, 9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, V = layer(x), layer.directions(4)
        low.float().square().sum().backward()
    assert low.dtype == torch.bfloat16
    # Inputs, factors, coefficients and outputs are rounded.
    size = layer.S[0] * x.norm() + layer.bias.norm() * math.sqrt(5)
    assert torch.dist(low.float(), layer(x)) <= 5 * unit_roundoff(low) * size
    assert V.dtype == torch.float32
    assert orthonormality_error(V.detach()) <= 10
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in layer.parameters())


def test_saved_copied_and_compiled():
    layer = moved(HouseholderProjector.from_dense(dense(6, 8, torch.float32), 3))
    x = draw(7, 8, dtype=torch.float32)
    expected = layer(x)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    again = HouseholderProjector(**layer.structure())
    again.load_state_dict(torch.load(stream))
    for other in (again, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
        assert torch.equal(other.directions(3), layer.directions(3))
        moved(other)
        assert torch.equal(layer(x), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    directions = torch.compile(layer.directions, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(directions(2), layer.directions(2))
    assert layer(x[None, :0]).shape == (1, 0, 6)
    assert layer(x[0]).shape == (6,)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        nn.Linear(8, 6).load_state_dict(layer.state_dict(), strict=False)
    assert HouseholderProjector(8, 6, 2, device="meta")(x.to("meta")).shape == (7, 6)


def test_fresh_layers():
    torch.manual_seed(0)
    layer = HouseholderProjector(60, 50, 20, dtype=torch.float64)
    assert orthonormality_error(layer.directions(20).detach()) <= 10
    # All singular values are one: ‖W‖_F² = r·S² exactly, and 1/(3i) an entry.
    variance = layer.compose().square().mean()
    assert float(variance) == pytest.approx(1 / (3 * 60), rel=1e-13)
    assert not layer.bias.any()
    assert "in_features=60, out_features=50, rank=20, bias=True" in repr(layer)
    assert layer.weight_parameters() == 20 * 110


def test_bad_arguments():
    with pytest.raises(ValueError, match=re.escape("HouseholderProjector: rank must be between 1")):
        HouseholderProjector(4, 5, 5)
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        HouseholderProjector(0, 4, 1)
    with pytest.raises(TypeError, match=r"dtype must be float32 or float64, got torch\.bfloat16"):
        HouseholderProjector(4, 4, 1, dtype=torch.bfloat16)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=f"rank must be between 1 and .* = 4, got {rank}"):
            HouseholderProjector.from_dense(dense(5, 4), rank)
    with pytest.raises(TypeError, match=r"float32 or float64, got torch\.float16"):
        HouseholderProjector.from_dense(dense(5, 4, torch.float16), 2)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Linear .*, got Conv2d"):
        HouseholderProjector.from_dense(nn.Conv2d(1, 1, 1), 1)
    linear = dense(5, 4)
    with torch.no_grad():
        linear.weight[2, 1] = math.inf
    with pytest.raises(
        ValueError, match=re.escape("weight must be finite, got inf at index (2, 1")
    ):
        HouseholderProjector.from_dense(linear, 2)
    layer = HouseholderProjector(4, 5, 3)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k must be between 1 and the rank, 3, got {k}"):
            layer.directions(k)
    for wrong in (2.0, True, None):
        with pytest.raises(TypeError, match="k must be an integer, got"):
            layer.directions(wrong)
