"""DictionaryLinear."""

import copy
import io
import math
import pickle
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr.linalg.bit_mask import unpack_mask
from fastlr.nn import DictionaryLinear, LowRankLinear, SparseLinear
from fastlr.nn.compression import Gram


def factors(o, i, k, density=0.5, seed=0, dtype=torch.float64):
    """D, S, the mask and a bias."""
    generator = torch.Generator().manual_seed(seed)
    D = torch.randn(k, i, generator=generator, dtype=torch.float64).to(dtype)
    S = torch.randn(o, k, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(o, k, generator=generator) < density
    bias = torch.randn(o, generator=generator, dtype=torch.float64).to(dtype)
    return D, S, mask, bias


def layer_of(o, i, k, density=0.5, seed=0, dtype=torch.float64):
    return DictionaryLinear.from_factors(*factors(o, i, k, density, seed, dtype), dtype=dtype)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30), st.floats(0, 1), st.integers(0))
def test_the_layer_is_the_product_of_its_factors(o, i, k, density, seed):
    D, S, mask, bias = factors(o, i, k, density, seed % 2**32)
    layer = DictionaryLinear.from_factors(D, S, mask, bias, dtype=torch.float64)
    assert (layer.atoms, layer.nonzeros) == (k, int(mask.sum()))
    assert torch.equal(layer.dictionary, D)
    assert torch.equal(layer.values, S[mask])
    assert torch.equal(unpack_mask(layer.mask, k), mask)
    assert torch.equal(layer.bias, bias)
    weight = (S * mask) @ D
    # Sums of k products, in any order.
    bound = 4 * k * torch.finfo(torch.float64).eps * (S.abs() @ D.abs())
    assert bool(((layer.compose() - weight).abs() <= bound).all())
    inputs = torch.randn(2, 3, i, dtype=torch.float64)
    for x in (inputs, inputs[0, :1], inputs[0, 0], inputs[:0], inputs.mT.contiguous().mT):
        torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-11, atol=1e-11)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30), st.floats(0, 1))
def test_all_that_is_stored_is_counted(o, i, k, density):
    for dtype, size in ((torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)):
        layer = layer_of(o, i, k, density, dtype=dtype)
        stored = (layer.dictionary.numel() + layer.values.numel()) * size + layer.mask.numel()
        assert layer.mask.numel() == o * -(-k // 8)
        assert layer.weight_bytes() == stored
        assert 0 <= layer.weight_parameters() * size - stored < size
        beside = DictionaryLinear.mask_numbers(o, k, dtype)
        assert layer.weight_parameters() == k * i + layer.nonzeros + beside


def test_no_coefficient_and_every_one():
    none, every = layer_of(5, 9, 4, 0), layer_of(5, 9, 4, 1.1)
    x = torch.randn(1, 9, dtype=torch.float64)
    assert torch.equal(none(x)[0], none.bias)
    none(x).sum().backward()
    assert none.values.grad.shape == (0,)
    assert not bool(none.dictionary.grad.any())
    assert every.nonzeros == 20
    again = DictionaryLinear(**none.structure())
    again.load_state_dict(none.state_dict())


@pytest.mark.parametrize("tokens", [1, 3, 30])
def test_gradients(tokens):
    layer = layer_of(6, 7, 5)

    def apply(inputs, dictionary, values, bias):
        parameters = {"dictionary": dictionary, "values": values, "bias": bias}
        return torch.func.functional_call(layer, parameters, (inputs,))

    inputs = torch.randn(tokens, 7, dtype=torch.float64, requires_grad=True)
    arguments = (inputs, layer.dictionary, layer.values, layer.bias)
    assert torch.autograd.gradcheck(apply, arguments)
    assert torch.autograd.gradgradcheck(apply, arguments)


def test_training_keeps_the_zeros():
    layer = layer_of(6, 13, 5)
    before, mask = copy.deepcopy(layer), layer.mask.clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(20, 13, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert torch.equal(layer.mask, mask)
    for name, parameter in layer.named_parameters():
        assert bool((parameter != getattr(before, name)).all())


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype, tokens):
    layer = layer_of(24, 100, 30, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {layer.weight.dtype} == {dtype}
    assert layer.to_dense().weight.dtype == dtype
    inputs = torch.randn(tokens, 100, generator=torch.Generator().manual_seed(1)).to(dtype)
    output, exact = layer(inputs), layer.double()(inputs.double())
    assert output.dtype == dtype
    # D x, the sums over 15 atoms and the bias are each rounded to the type, u apart.
    assert (output - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


def test_casting_and_moving_keep_the_bits():
    layer = layer_of(6, 13, 11, dtype=torch.float32)
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
    for assign in (False, True):
        stream.seek(0)
        empty = DictionaryLinear(**layer.structure(), device="meta")
        if not assign:
            empty.to_empty(device="cpu")
        empty.load_state_dict(torch.load(stream), assign=assign)
        assert torch.equal(empty(x), expected)
    assert DictionaryLinear(**layer.structure(), device="meta")(x.to("meta")).shape == (2, 6)


def test_the_checkpoint_does_not_load_into_another_layer():
    layer = layer_of(6, 4, 3)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        torch.nn.Linear(4, 6).load_state_dict(layer.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        SparseLinear(4, 6, layer.nonzeros).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for dictionary"):
        DictionaryLinear(4, 6, 2, 5).load_state_dict(layer.state_dict())


def test_a_damaged_mask_is_refused():
    model = torch.nn.Sequential(layer_of(6, 13, 5))
    state = copy.deepcopy(model.state_dict())
    count = model[0].nonzeros
    state["0.mask"][2, 0] ^= 1
    message = rf"0 is damaged: the mask keeps \d+ entries, but there are {count} values"
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)
    state["0.mask"][2, 0] ^= 1
    model.load_state_dict(state)
    state["0.mask"][2, 0] |= 1 << 7
    with pytest.raises(RuntimeError, match="bits set behind its last column, 4"):
        model.load_state_dict(state)


def test_in_place_of_a_conv1d():
    from transformers.pytorch_utils import Conv1D

    linear = Conv1D(10, 6)  # ten outputs, six inputs
    torch.nn.init.normal_(linear.bias)
    D, S, mask, _ = factors(10, 6, 4)
    layer = DictionaryLinear.in_place_of(linear, D, S, mask)
    assert (layer.out_features, layer.in_features) == (10, 6)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert torch.equal(layer.bias, linear.bias)
    torch.testing.assert_close(layer.compose(), (S * mask) @ D, rtol=1e-5, atol=1e-5)


def test_the_layer_has_memory_of_its_own():
    D, S, mask, bias = factors(5, 6, 3)
    layer = DictionaryLinear.from_factors(D, S, mask, bias, dtype=torch.float64)
    before = [tensor.clone() for tensor in (D, S, bias)]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert all(torch.equal(*pair) for pair in zip(before, (D, S, bias), strict=True))


def test_fresh_layers():
    torch.manual_seed(0)
    layer = DictionaryLinear(300, 200, atoms=100, nonzeros=8000)
    assert layer.damage() is None
    # The variance of one row's entries varies with its 40 or so atoms, by 1/√40 or more, and that
    # of the mean over 200 rows by 2 %: 10 % is some five standard deviations.
    assert float(layer.compose().var()) == pytest.approx(1 / (3 * 300), rel=0.1)
    assert "atoms=100, nonzeros=8000, bias=True, parameters=38200" in repr(layer)
    assert not bool(layer.bias.any())
    layer(torch.randn(3, 300)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert DictionaryLinear(3, 2, 5, 6, bias=False).bias is None


@pytest.mark.parametrize("tokens", [1, 30])
def test_compiled(tokens):
    layer = layer_of(6, 13, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = torch.randn(tokens, 13, dtype=torch.float64)
    results = []
    for module in (layer, compiled):
        x = inputs.clone().requires_grad_()
        output = module(x)
        inner = (x, layer.dictionary, layer.values)
        results.append((output, *torch.autograd.grad(output.square().sum(), inner)))
    for eager, graph in zip(*results, strict=True):
        assert torch.equal(eager, graph)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(inputs.float()).dtype == torch.bfloat16


def test_bad_arguments():
    with pytest.raises(ValueError, match=re.escape("out_features·atoms = 12, got 13")):
        DictionaryLinear(6, 4, 3, 13)
    with pytest.raises(ValueError, match="nonzeros must be between 0"):
        DictionaryLinear(6, 4, 3, -1)
    with pytest.raises(ValueError, match="atoms must be at least 1, got 0"):
        DictionaryLinear(6, 4, 0, 0)
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        DictionaryLinear(0, 4, 1, 1)
    with pytest.raises(TypeError, match=r"real float type, got torch\.int64"):
        DictionaryLinear(6, 4, 1, 1, dtype=torch.int64)
    D, S, mask, bias = factors(4, 6, 3)
    build = DictionaryLinear.from_factors
    with pytest.raises(ValueError, match=r"coefficients and mask must be .* \(4, 3\) and \(3, 4\)"):
        build(D, S, mask.T)
    with pytest.raises(ValueError, match=r"dictionary must have 3 rows.*got shape \(2, 6\)"):
        build(D[:2], S, mask)
    with pytest.raises(ValueError, match=r"dictionary must have 3 rows.*got shape \(3,\)"):
        build(D[:, 0], S, mask)
    with pytest.raises(TypeError, match=r"mask must be bool, got torch\.float64"):
        build(D, S, S)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        build(D, S, mask, bias[:3])
    D[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"dictionary must be finite, got nan at index \(2, 1\)"):
        build(D, S, mask)
    S[1, 2] = float("inf")
    with pytest.raises(ValueError, match=r"coefficients must be finite, got inf at index \(1, 2\)"):
        build(D, S, mask)


def dense(o, i, dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    linear = torch.nn.Linear(i, o, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn / math.sqrt(i))
    return linear


def error_of(layer, linear, inputs=None):
    """‖(W − W')X‖/‖WX‖, from the products themselves."""
    weight = linear.weight.detach().double()
    off = layer.compose() - weight
    if inputs is not None:
        off, weight = off @ inputs.T, weight @ inputs.T
    return float(off.norm() / weight.norm())


def stored_bytes(layer):
    """What a checkpoint holds of the weight."""
    state = layer.state_dict()
    return sum(t.numel() * t.element_size() for name, t in state.items() if name != "bias")


@given(st.integers(1, 12), st.integers(1, 12), st.data())
@settings(max_examples=40)
def test_from_dense_has_the_size_that_is_asked_for(o, i, data):
    atoms = data.draw(st.integers(1, min(o, i)))
    nonzeros = data.draw(st.integers(1, o * atoms))
    for dtype in (torch.float64, torch.bfloat16):
        linear = dense(o, i, dtype, seed=atoms)
        layer = DictionaryLinear.from_dense(linear, atoms, nonzeros)
        assert (layer.atoms, layer.nonzeros) == (atoms, nonzeros)
        assert layer.damage() is None
        size = dtype.itemsize
        exact = (atoms * i + nonzeros) * size + o * -(-atoms // 8)
        assert layer.weight_bytes() == stored_bytes(layer) == exact
        assert {p.dtype for p in layer.parameters()} == {dtype}
        assert torch.equal(layer.bias, linear.bias)
        rows = unpack_mask(layer.mask, atoms).sum(1)
        assert int(rows.max() - rows.min()) <= 1
        assert all(bool(p.isfinite().all()) for p in layer.parameters())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_all_atoms_and_coefficients_are_exact(o, i, seed):
    linear = dense(o, i, seed=seed)
    k = min(o, i)
    layer = DictionaryLinear.from_dense(linear, k, o * k)
    # No combination is fitted worse than the principal components, which are exact to rounding.
    assert error_of(layer, linear) <= 1e-12


@given(st.floats(0, 0.95), st.integers(2, 16), st.integers(2, 16))
@settings(max_examples=40)
def test_a_ratio_is_used_up(ratio, o, i):
    linear = dense(o, i)
    kept = (1 - ratio) * o * i
    smallest = i + 1 + DictionaryLinear.mask_numbers(o, 1, torch.float64)
    if smallest > kept:
        with pytest.raises(ValueError, match="ratio and tol must leave an atom"):
            DictionaryLinear.from_dense(linear, ratio=ratio)
        return
    layer = DictionaryLinear.from_dense(linear, ratio=ratio)
    assert layer.weight_parameters() <= kept
    # All that is left goes to coefficients, as long as the atoms have room for them.
    assert layer.weight_parameters() == math.floor(kept) or layer.nonzeros >= o * layer.atoms // 2


def test_better_than_low_rank_in_as_many_numbers():
    linear = dense(48, 40)
    layer = DictionaryLinear.from_dense(linear, ratio=0.3)
    low = LowRankLinear.from_dense(linear, ratio=0.3)
    assert layer.weight_parameters() <= 0.7 * 48 * 40
    assert error_of(layer, linear) < 0.9 * error_of(low, linear)


def test_a_gram_matrix_tells_what_counts():
    linear = dense(20, 16)
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(60, 16, generator=generator, dtype=torch.float64)
    inputs = inputs * 0.6 ** torch.arange(16)
    errors = [
        error_of(DictionaryLinear.from_dense(linear, 8, 80, gram=gram), linear, inputs)
        for gram in (Gram.of(inputs), inputs.T @ inputs, None)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-8)
    assert errors[0] < 0.7 * errors[2]


@pytest.mark.parametrize("tol", [0.7, 0.4, 0.2])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_tolerance_is_kept(tol, calibrated):
    linear = dense(20, 16)
    inputs = torch.randn(60, 16, dtype=torch.float64) * 0.8 ** torch.arange(16)
    seen = inputs if calibrated else None
    gram = inputs.T @ inputs if calibrated else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = DictionaryLinear.from_dense(linear, tol=tol, gram=gram)
    assert error_of(layer, linear, seen) <= tol * (1 + 1e-9)
    # The next smaller size, by its number of numbers, does not keep it.
    smaller = 1 - (layer.weight_parameters() - 1) / (20 * 16)
    assert (
        error_of(DictionaryLinear.from_dense(linear, ratio=smaller, gram=gram), linear, seen) > tol
    )


def test_a_tolerance_that_no_size_meets_is_told():
    with pytest.warns(la.ConvergenceWarning, match="DictionaryLinear: tol=1e-06 not met"):
        DictionaryLinear.from_dense(dense(9, 8), tol=1e-6)


def test_from_dense_keeps_the_mode_the_dense_layer_and_the_scale():
    linear = dense(9, 8).eval()
    before = copy.deepcopy(linear.state_dict())
    layer = DictionaryLinear.from_dense(linear, 4, 18)
    assert not layer.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in linear.state_dict().items())
    assert DictionaryLinear.from_dense(dense(9, 8, bias=False), 4, 18).bias is None
    for factor in (2.0**300, 2.0**-300):
        with torch.no_grad():
            linear.weight.copy_(before["weight"] * factor)
        other = DictionaryLinear.from_dense(linear, 4, 18)
        assert torch.equal(other.mask, layer.mask)
        torch.testing.assert_close(other.compose() / factor, layer.compose(), rtol=0, atol=1e-12)
    with torch.no_grad():
        linear.weight.zero_()
    assert not bool(DictionaryLinear.from_dense(linear, 4, 18).compose().any())


def test_bad_sizes():
    linear = dense(6, 4)
    make = DictionaryLinear.from_dense
    for given_of in ({}, {"atoms": 1, "nonzeros": 2, "tol": 0.1}, {"ratio": 0.5, "tol": 0.1}):
        with pytest.raises(ValueError, match="one of atoms, ratio and tol must be given"):
            make(linear, **given_of)
    with pytest.raises(ValueError, match="atoms and nonzeros must be given together, got atoms=2"):
        make(linear, 2)
    for atoms in (0, 5):
        with pytest.raises(ValueError, match=f"atoms must be between 1 and 4, got {atoms}"):
            make(linear, atoms, 1)
    for nonzeros in (0, 13):
        with pytest.raises(ValueError, match=f"nonzeros must be between 1 and 12, got {nonzeros}"):
            make(linear, 2, nonzeros)
    with pytest.raises(TypeError, match=r"atoms must be an integer, got 2\.0"):
        make(linear, 2.0, 3)
    for wrong in (1, -0.5, math.nan):
        with pytest.raises(ValueError, match="ratio and tol must leave an atom"):
            make(linear, ratio=wrong)
        with pytest.raises(ValueError, match=r"tol must be in \[0, 1\)"):
            make(linear, tol=wrong)
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear"):
        make(torch.nn.Conv1d(3, 3, 1), 1, 1)
    with torch.no_grad():
        linear.weight[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"nan at index \(2, 1\)"):
        make(linear, 1, 2)
