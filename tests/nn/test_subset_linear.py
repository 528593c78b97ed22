"""SubsetLinear."""

import copy
import io
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn import SubsetLinear
from fastlr.nn.hf import describe_compressed


def dense(out_features, in_features, bias=True, dtype=torch.float64, seed=0):
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    layer = torch.nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    torch.random.set_rng_state(state)
    return layer


def chosen(size, count, seed):
    """`count` of the numbers below `size`, ascending; None for all."""
    generator = torch.Generator().manual_seed(seed)
    return None if count == size else torch.randperm(size, generator=generator)[:count].sort()[0]


@given(st.data(), st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000), st.booleans())
def test_only_these_rows_and_columns(data, o, i, seed, bias):
    linear = dense(o, i, bias, seed=seed)
    rows = chosen(o, data.draw(st.integers(1, o)), seed)
    columns = chosen(i, data.draw(st.integers(1, i)), seed + 1)
    layer = SubsetLinear.from_dense(linear, rows=rows, columns=columns)
    kept = torch.zeros(o, i, dtype=torch.bool)
    kept[slice(None) if rows is None else rows] = True
    read = torch.zeros(i, dtype=torch.bool)
    read[slice(None) if columns is None else columns] = True
    expected = linear.weight * (kept & read)
    assert torch.equal(layer.compose(), expected)
    assert torch.equal(layer.to_dense().weight, expected)
    assert (layer.bias is not None) == (layer.to_dense().bias is not None) == bias
    assert layer.damage() is None
    inputs = torch.randn(2, 3, i, dtype=torch.float64)
    for x in (inputs, inputs[0, :1], inputs[0, 0], inputs[:0], inputs.mT.contiguous().mT):
        # Sums of at most 20 products, and the bias: 21 roundings of terms of at most size 5.
        torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=0, atol=100 * 2.3e-16)
    output = layer(inputs)
    assert bool((output[..., ~kept.any(1)] == 0).all())


@given(st.integers(2, 20), st.integers(2, 20), st.data())
def test_indices_are_counted_where_there_are_any(o, i, data):
    rows, columns = data.draw(st.integers(1, o)), data.draw(st.integers(1, i))
    for dtype, size in ((torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)):
        layer = SubsetLinear.from_dense(
            dense(o, i, dtype=dtype), rows=chosen(o, rows, 0), columns=chosen(i, columns, 1)
        )
        indices = rows * (rows < o) + columns * (columns < i)
        stored = rows * columns * size + 4 * indices
        assert layer.weight_bytes() == stored
        # Each of the two indices is rounded up.
        assert 0 <= layer.weight_parameters() * size - stored < 2 * size
        assert (layer.row_index is None, layer.column_index is None) == (rows == o, columns == i)


def test_smaller_layers():
    submatrix, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    layer = SubsetLinear.from_submatrix(submatrix, bias, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ submatrix.T + bias, rtol=1e-13, atol=1e-13)
    assert (layer.in_features, layer.out_features, layer.weight_parameters()) == (4, 3, 12)
    assert list(layer.state_dict()) == ["submatrix", "bias", "weight"]
    all_rows = SubsetLinear.from_submatrix(submatrix, rows=torch.arange(3), out_features=3)
    assert all_rows.row_index is None
    placed = SubsetLinear.in_place_of(dense(9, 7), submatrix, bias, rows=torch.tensor([0, 3, 8]))
    assert (placed.in_features, placed.out_features) == (4, 9)
    assert placed.submatrix.dtype == torch.float64
    before = submatrix.clone()
    with torch.no_grad():
        placed.submatrix.zero_()
    assert torch.equal(submatrix, before)


@pytest.mark.parametrize("rows", [None, torch.tensor([0, 2, 5])])
@pytest.mark.parametrize("columns", [None, torch.tensor([1, 6])])
def test_gradients(rows, columns):
    layer = SubsetLinear.from_dense(dense(6, 7), rows=rows, columns=columns)

    def apply(inputs, submatrix, bias):
        return torch.func.functional_call(layer, {"submatrix": submatrix, "bias": bias}, (inputs,))

    inputs = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (inputs, layer.submatrix, layer.bias))
    assert torch.autograd.gradgradcheck(apply, (inputs, layer.submatrix, layer.bias))


def test_training_moves_only_what_is_kept():
    layer = SubsetLinear.from_dense(dense(6, 7), rows=torch.tensor([0, 2]))
    before, bias = layer.compose(), layer.composed_bias()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(20, 7, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    moved = (layer.compose() != before).all(1)
    assert moved.tolist() == [True, False, True, False, False, False]
    assert (layer.composed_bias() != bias).tolist() == moved.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    linear = dense(24, 100, dtype=dtype)
    layer = SubsetLinear.from_dense(linear, rows=chosen(24, 9, 0), columns=chosen(100, 50, 1))
    assert {p.dtype for p in layer.parameters()} == {layer.weight.dtype} == {dtype}
    assert layer.to_dense().weight.dtype == dtype
    inputs = torch.randn(8, 100, generator=torch.Generator().manual_seed(1)).to(dtype)
    output, exact = layer(inputs), layer.double()(inputs.double())
    assert output.dtype == dtype
    # Sums of 50 products in float32, rounded to the type, and again with the bias.
    assert (output - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


def test_casting_and_moving_keep_the_indices():
    layer = SubsetLinear.from_dense(
        dense(6, 13, dtype=torch.float32), rows=chosen(6, 4, 0), columns=chosen(13, 5, 1)
    )
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.row_index.dtype == half.column_index.dtype == torch.int32
    assert torch.equal(half.row_index, layer.row_index)
    x = torch.randn(2, 13)
    expected = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to("cpu")):
        assert torch.equal(again(x), expected)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    for assign in (False, True):
        empty = SubsetLinear(**layer.structure(), device="meta")
        if not assign:
            empty.to_empty(device="cpu")
        stream.seek(0)
        empty.load_state_dict(torch.load(stream), assign=assign)
        assert torch.equal(empty(x), expected)
    assert SubsetLinear(**layer.structure(), device="meta")(x.to("meta")).shape == (2, 6)


def test_the_checkpoint_does_not_load_into_a_dense_layer():
    layer = SubsetLinear.from_dense(dense(6, 4), rows=torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        dense(6, 4).load_state_dict(layer.state_dict(), strict=False)


@pytest.mark.parametrize("bad", [[1, 1, 4], [1, 4, 2], [-1, 2, 3], [1, 2, 6]])
def test_damaged_indices_are_refused(bad):
    model = torch.nn.Sequential(SubsetLinear.from_dense(dense(6, 6), rows=torch.tensor([1, 2, 4])))
    state = model.state_dict()
    state["0.row_index"] = torch.tensor(bad, dtype=torch.int32)
    message = "0 is damaged: the row indices do not ascend from 0 on to below 6"
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)


def test_saved_and_loaded_with_transformers(make_model, prompt, logits, tmp_path):
    from fastlr.nn import load

    model = make_model("llama")
    attention = model.model.layers[1].self_attn
    attention.q_proj = SubsetLinear.from_dense(attention.q_proj, rows=torch.arange(3, 20))
    attention.o_proj = SubsetLinear.from_dense(attention.o_proj, columns=torch.arange(2, 30))
    describe_compressed(model)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.column_index[5] = 0
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.o_proj': the column indices do n"):
        load(tmp_path)


def test_fresh_layers():
    torch.manual_seed(0)
    layer = SubsetLinear(300, 200, rows=150, columns=250)
    assert layer.damage() is None
    # 37,500 uniform entries: the standard deviation of their mean square is 0.5 % of it.
    assert float(layer.submatrix.detach().var()) == pytest.approx(1 / (3 * 250), rel=0.03)
    assert "rows=150, columns=250, bias=True, parameters=37650" in repr(layer)
    layer(torch.randn(3, 300)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    plain = SubsetLinear(3, 2, bias=False)
    assert (plain.bias, plain.row_index, plain.column_index) == (None, None, None)


def test_conv1d_is_transposed():
    from transformers.pytorch_utils import Conv1D

    linear = Conv1D(10, 6)  # ten outputs, six inputs
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    layer = SubsetLinear.from_dense(linear, rows=torch.arange(9))
    x = torch.randn(3, 6)
    assert (layer.out_features, layer.in_features) == (10, 6)
    torch.testing.assert_close(layer(x)[:, :9], linear(x)[:, :9], rtol=1e-5, atol=1e-5)


def test_compiled():
    layer = SubsetLinear.from_dense(dense(6, 13), rows=chosen(6, 4, 0), columns=chosen(13, 5, 1))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = torch.randn(2, 13, dtype=torch.float64)
    results = []
    for module in (layer, compiled):
        x = inputs.clone().requires_grad_()
        output = module(x)
        results.append((output, *torch.autograd.grad(output.square().sum(), (x, layer.submatrix))))
    for eager, graph in zip(*results, strict=True):
        assert torch.equal(eager, graph)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(inputs.float()).dtype == torch.bfloat16


def test_bad_arguments():
    for name in ("rows", "columns"):
        for count in (0, 7):
            with pytest.raises(ValueError, match=f"{name} must be between 1 and 6, got {count}"):
                SubsetLinear(6, 6, **{name: count})
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        SubsetLinear(0, 4)
    with pytest.raises(TypeError, match=r"real float type, got torch\.int64"):
        SubsetLinear(6, 4, dtype=torch.int64)
    linear = dense(4, 4)
    for bad in ([2, 1], [1, 1], [-1, 2], [1, 4]):
        with pytest.raises(ValueError, match="rows must ascend, from 0 on to below 4"):
            SubsetLinear.from_dense(linear, rows=torch.tensor(bad))
    with pytest.raises(TypeError, match=r"columns must be integers, got torch\.bool"):
        SubsetLinear.from_dense(linear, columns=torch.ones(4, dtype=torch.bool))
    for empty in (torch.arange(0), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="columns must be a vector, not empty, got shape"):
            SubsetLinear.from_dense(linear, columns=empty)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Linear or a transformers Conv1D"):
        SubsetLinear.from_dense(torch.nn.Conv1d(3, 3, 1))
    ones = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"submatrix must be a matrix, got shape \(3,\)"):
        SubsetLinear.from_submatrix(ones[:, 0])
    message = "submatrix of shape (3, 4) must have 2 rows, got 3"
    with pytest.raises(ValueError, match=re.escape(message)):
        SubsetLinear.from_submatrix(ones, rows=torch.tensor([0, 1]), out_features=5)
    with pytest.raises(ValueError, match=re.escape("must have 6 columns, got 4")):
        SubsetLinear.from_submatrix(ones, in_features=6)
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\), got \(4,\)"):
        SubsetLinear.from_submatrix(ones, torch.ones(4))
