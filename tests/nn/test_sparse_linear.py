"""SparseLinear."""

import copy
import io
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.linalg.bit_mask import unpack_mask
from fastlr.nn import SparseLinear


def dense(out_features, in_features, bias=True, dtype=torch.float64, seed=0):
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    layer = torch.nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    torch.random.set_rng_state(state)
    return layer


@given(st.integers(1, 20), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000), st.booleans())
def test_the_largest_entries_are_kept_as_they_are(o, i, density, seed, bias):
    linear = dense(o, i, bias, seed=seed)
    layer = SparseLinear.from_dense(linear, density)
    weight, kept = linear.weight.detach(), unpack_mask(layer.mask, i)
    count = round(density * o * i)
    assert layer.nonzeros == len(layer.values) == int(kept.sum()) == count
    assert torch.equal(layer.compose(), weight * kept)
    assert torch.equal(layer.to_dense().weight, weight * kept)
    if 0 < count < o * i:
        assert weight[kept].abs().min() >= weight[~kept].abs().max()
    inputs = torch.randn(2, 3, i, dtype=torch.float64)
    for x in (inputs, inputs[0, :1], inputs[0, 0], inputs[:0], inputs.mT.contiguous().mT):
        torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-12, atol=1e-12)


def test_no_entry_and_every_entry():
    linear = dense(5, 9)
    none, every = SparseLinear.from_dense(linear, 0), SparseLinear.from_dense(linear, 1)
    x = torch.randn(1, 9, dtype=torch.float64)
    assert torch.equal(none(x)[0], linear.bias)
    none(x).sum().backward()
    assert none.values.grad.shape == (0,)
    assert torch.equal(every.to_dense().weight, linear.weight)
    assert none.damage() is None
    assert none.to_dense().weight.dtype == torch.float64
    again = SparseLinear(**none.structure())
    again.load_state_dict(none.state_dict())


@given(st.integers(1, 20), st.integers(1, 40), st.floats(0, 1))
def test_the_mask_is_counted(o, i, density):
    for dtype, size in ((torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)):
        layer = SparseLinear.from_dense(dense(o, i, dtype=dtype), density)
        stored = layer.values.numel() * size + layer.mask.numel()
        assert layer.weight_bytes() == stored
        assert layer.mask.numel() == o * -(-i // 8)
        assert 0 <= layer.weight_parameters() * size - stored < size


@pytest.mark.parametrize("tokens", [1, 3, 30])
def test_gradients(tokens):
    layer = SparseLinear.from_dense(dense(6, 13), 0.6)

    def apply(inputs, values, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (inputs,))

    inputs = torch.randn(tokens, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (inputs, layer.values, layer.bias))
    assert torch.autograd.gradgradcheck(apply, (inputs, layer.values, layer.bias))


def test_training_moves_only_what_is_kept():
    layer = SparseLinear.from_dense(dense(6, 13), 0.5)
    before, kept = layer.compose(), unpack_mask(layer.mask, 13)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(20, 13, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert bool(((layer.compose() != before) == kept).all())


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype, tokens):
    linear = dense(24, 100, dtype=dtype)
    layer = SparseLinear.from_dense(linear, 0.7)
    assert {p.dtype for p in layer.parameters()} == {layer.weight.dtype} == {dtype}
    assert layer.to_dense().weight.dtype == dtype
    inputs = torch.randn(tokens, 100, generator=torch.Generator().manual_seed(1)).to(dtype)
    output, exact = layer(inputs), layer.double()(inputs.double())
    assert output.dtype == dtype
    # Sums of 100 products in float32, rounded to the type, and again with the bias.
    assert (output - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


def test_casting_and_moving_keep_the_bits():
    layer = SparseLinear.from_dense(dense(6, 13, dtype=torch.float32), 0.5)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.mask.dtype == torch.uint8
    assert torch.equal(half.mask, layer.mask)
    x = torch.randn(2, 13)
    expected = layer(x)
    half.float()(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to("cpu")):
        assert torch.equal(again(x), expected)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    for assign in (False, True):
        empty = SparseLinear(**layer.structure(), device="meta")
        if not assign:
            empty.to_empty(device="cpu")
        empty.load_state_dict(torch.load(stream), assign=assign)
        stream.seek(0)
        assert torch.equal(empty(x), expected)
    assert SparseLinear(**layer.structure(), device="meta")(x.to("meta")).shape == (2, 6)


def test_the_checkpoint_does_not_load_into_a_dense_layer():
    layer = SparseLinear.from_dense(dense(6, 4, dtype=torch.float32), 0.5)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        dense(6, 4).load_state_dict(layer.state_dict(), strict=False)


def test_a_damaged_mask_is_refused():
    model = torch.nn.Sequential(SparseLinear.from_dense(dense(6, 13), 0.5))
    state = copy.deepcopy(model.state_dict())
    count = model[0].nonzeros
    state["0.mask"][2, 0] ^= 1
    message = rf"0 is damaged: the mask keeps \d+ entries, but there are {count} values"
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match="mask keeps"):
        model(torch.ones(1, 13, dtype=torch.float64))
    state["0.mask"][2, 0] ^= 1
    model.load_state_dict(state)
    state["0.mask"][2, 1] |= 1 << 7
    with pytest.raises(RuntimeError, match="0 is damaged: the mask has bits set behind its last"):
        model.load_state_dict(state)
    layer = SparseLinear.from_dense(dense(6, 13), 0.5)
    other = SparseLinear.from_dense(dense(6, 13), 0.4)
    with pytest.raises(RuntimeError, match="size mismatch for values"):
        layer.load_state_dict(other.state_dict())


def test_conv1d_is_transposed():
    from transformers.pytorch_utils import Conv1D

    linear = Conv1D(10, 6)  # ten outputs, six inputs
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    x = torch.randn(3, 6)
    layer = SparseLinear.from_dense(linear, 1)
    assert (layer.out_features, layer.in_features) == (10, 6)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-5, atol=1e-5)
    mask = torch.rand(10, 6) < 0.5
    other = SparseLinear.in_place_of(linear, torch.full((10, 6), 2.0, dtype=torch.float64), mask)
    assert other.values.dtype == torch.float32
    assert torch.equal(other.compose(), 2.0 * mask)
    assert torch.equal(other.bias, linear.bias)


def test_any_weight_and_mask():
    weight, mask = torch.randn(4, 9, dtype=torch.float64), torch.rand(4, 9) < 0.5
    layer = SparseLinear.from_weight(weight, mask, dtype=torch.float64)
    assert layer.bias is None
    assert torch.equal(layer.compose(), weight * mask)
    before = weight.clone()
    with torch.no_grad():
        layer.values.zero_()
    assert torch.equal(weight, before)


def test_fresh_layers():
    torch.manual_seed(0)
    layer = SparseLinear(300, 200, 20_000)
    assert layer.damage() is None
    # 60,000 entries of which a third are kept: the variance of their squares is 4.4 times that of
    # uniform ones, and 2 % is six times its standard deviation.
    assert float(layer.compose().var()) == pytest.approx(1 / (3 * 300), rel=0.05)
    columns = unpack_mask(layer.mask, 300).sum(0)
    assert int(columns.min()) > 0
    assert "nonzeros=20000, bias=True, parameters=20200" in repr(layer)
    layer(torch.randn(3, 300)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert SparseLinear(3, 2, 6, bias=False).bias is None


@pytest.mark.parametrize("tokens", [1, 30])
def test_compiled(tokens):
    layer = SparseLinear.from_dense(dense(6, 13), 0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = torch.randn(tokens, 13, dtype=torch.float64)
    results = []
    for module in (layer, compiled):
        x = inputs.clone().requires_grad_()
        output = module(x)
        results.append((output, *torch.autograd.grad(output.square().sum(), (x, layer.values))))
    for eager, graph in zip(*results, strict=True):
        assert torch.equal(eager, graph)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer.float()(inputs.float())
        assert half.dtype == torch.bfloat16
        assert torch.equal(compiled(inputs.float()), half)


def test_bad_arguments():
    with pytest.raises(ValueError, match=re.escape("out_features·in_features = 24, got 25")):
        SparseLinear(6, 4, 25)
    with pytest.raises(ValueError, match="nonzeros must be between 0"):
        SparseLinear(6, 4, -1)
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        SparseLinear(0, 4, 1)
    with pytest.raises(TypeError, match=r"real float type, got torch\.int64"):
        SparseLinear(6, 4, 1, dtype=torch.int64)
    for density in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="density must be between 0 and 1"):
            SparseLinear.from_dense(dense(4, 4), density)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Linear or a transformers Conv1D"):
        SparseLinear.from_dense(torch.nn.Conv1d(3, 3, 1), 0.5)
    ones = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"of one shape, got shapes \(4, 3\) and \(3, 3\)"):
        SparseLinear.from_weight(ones, torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask must be bool, got torch\.float32"):
        SparseLinear.from_weight(ones, ones)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        SparseLinear.from_weight(ones, ones > 0, torch.ones(3))
    bad = dense(4, 4)
    with torch.no_grad():
        bad.weight[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"weight must be finite, got nan at index \(2, 1\)"):
        SparseLinear.from_dense(bad, 0.5)
