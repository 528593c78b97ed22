"""Matrices of kept entries: the bits, the five operators, their gradients."""

import itertools
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.linalg.bit_mask import pack_mask, sparse_expand, sparse_linear, unpack_mask

OPS = torch.ops.fastlr
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Columns at and around bytes, vectors and words, and rows enough for two tasks.
SHAPES = [(3, 1), (5, 8), (4, 15), (6, 16), (3, 63), (7, 64), (5, 65), (9, 200), (130, 577)]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def kept_entries(o, i, density, dtype=torch.float64, seed=0):
    """A boolean matrix and a dense one that is zero elsewhere."""
    kept = torch.rand(o, i, generator=generator(seed)) < density
    weight = torch.randn(o, i, dtype=torch.float64, generator=generator(seed + 1)).to(dtype)
    return kept, weight * kept


@given(st.integers(0, 9), st.integers(0, 80), st.floats(0, 1), st.integers(0, 99))
def test_packing_and_expanding_are_exact(o, i, density, seed):
    kept, weight = kept_entries(o, i, density, seed=seed)
    mask = pack_mask(kept)
    assert mask.dtype == torch.uint8
    assert mask.shape == (o, (i + 7) // 8)
    assert torch.equal(unpack_mask(mask, i), kept)
    if i % 8 and o:
        assert not bool((mask[:, -1] >> i % 8).any())  # bits behind the last column
    values = weight[kept]
    assert torch.equal(sparse_expand(values, mask, i), weight)
    assert torch.equal(OPS.sparse_gather(weight, mask, len(values)), values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0, 0.1, 0.5, 0.9, 1])
def test_products_are_those_of_the_dense_matrix(dtype, shape, density):
    o, i = shape
    kept, weight = kept_entries(o, i, density, dtype)
    mask, values = pack_mask(kept), weight[kept]
    assert torch.equal(sparse_expand(values, mask, i), weight)
    assert torch.equal(OPS.sparse_gather(weight, mask, len(values)), values)
    u = torch.finfo(dtype).eps
    for tokens in (0, 1, 2, 3, 5, 8, 9, 33):
        X = torch.randn(tokens, i, dtype=torch.float64, generator=generator(2)).to(dtype)
        Y = torch.randn(tokens, o, dtype=torch.float64, generator=generator(3)).to(dtype)
        x, y, w = X.double(), Y.double(), weight.double()
        for found, reference, scale in (
            (sparse_linear(X, values, mask), x @ w.T, x.abs() @ w.T.abs()),
            (OPS.sparse_linear_adjoint(Y, values, mask, i), y @ w, y.abs() @ w.abs()),
            (
                OPS.sparse_products(Y, X, mask, len(values)),
                (y.T @ x)[kept],
                (y.T.abs() @ x.abs())[kept],
            ),
        ):
            assert found.dtype == dtype
            # A sum of n products is right to n·u times the sum of their magnitudes; in lanes, to
            # √n·u and ten for chance. Half types are summed up in float32 and rounded once.
            limit = 10 * u * (max(o, i, tokens) if u < 1e-5 else 1) ** 0.5 * scale
            assert bool(((found.double() - reference).abs() <= limit).all())


@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_gradients_of_every_order(tokens):
    o, i = 5, 11
    kept, weight = kept_entries(o, i, 0.6)
    mask, values = pack_mask(kept), weight[kept].requires_grad_()
    X = torch.randn(tokens, i, dtype=torch.float64, generator=generator(4)).requires_grad_()
    Y = torch.randn(tokens, o, dtype=torch.float64, generator=generator(5)).requires_grad_()
    W = weight.clone().requires_grad_()
    for function, inputs in (
        (lambda X, v: sparse_linear(X, v, mask), (X, values)),
        (lambda Y, v: OPS.sparse_linear_adjoint(Y, v, mask, i), (Y, values)),
        (lambda Y, X: OPS.sparse_products(Y, X, mask, len(values)), (Y, X)),
        (lambda v: sparse_expand(v, mask, i).square(), (values,)),
        (lambda W: OPS.sparse_gather(W, mask, len(values)).square(), (W,)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_blocks_and_threads(threads):
    # Two blocks of rows that are expanded at once, of 1047 and 13 rows.
    kept, weight = kept_entries(1060, 1001, 0.7)
    mask, values = pack_mask(kept), weight[kept]
    X = torch.randn(16, 1001, dtype=torch.float64, generator=generator(6))
    Y = torch.randn(16, 1060, dtype=torch.float64, generator=generator(7))
    results = []
    for number in (1, 2):
        with threads(number):
            results.append(
                [
                    sparse_expand(values, mask, 1001),
                    OPS.sparse_gather(weight, mask, len(values)),
                    sparse_linear(X[:1], values, mask),
                    sparse_linear(X[:4], values, mask),
                    sparse_linear(X, values, mask),
                    OPS.sparse_linear_adjoint(Y, values, mask, 1001),
                    OPS.sparse_products(Y, X, mask, len(values)),
                ]
            )
    one, two = results
    for a, b in itertools.islice(zip(one, two, strict=True), 4):
        assert torch.equal(a, b)  # a row is one thread's
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    references = (X @ weight.T, Y @ weight, (Y.T @ X)[kept])
    for a, b in zip(one[4:], references, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)  # 1001 terms of size 1 to 10: 10⁴·u
    torch.testing.assert_close(one[3], references[0][:4], rtol=0, atol=1e-11)


@pytest.mark.parametrize("tokens", [1, 40])
def test_bits_behind_the_last_column_count_for_nothing(tokens):
    kept, weight = kept_entries(7, 13, 0.5)
    mask, values = pack_mask(kept), weight[kept]
    more = mask.clone()
    more[:, -1] |= 0b11000000
    X = torch.randn(tokens, 13, dtype=torch.float64)
    assert torch.equal(sparse_linear(X, values, more), sparse_linear(X, values, mask))
    assert torch.equal(sparse_expand(values, more, 13), weight)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_lesser_processors_give_the_same(capability):
    """The loops that this processor would not choose, in a process that is told to."""
    code = """
    import torch
    from fastlr.linalg.bit_mask import pack_mask, sparse_expand, sparse_linear
    assert torch.backends.cpu.get_cpu_capability() != "AVX512"
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for i in (1, 7, 8, 9, 63, 64, 65, 200):
            for density in (0, 0.3, 0.9, 1):
                kept = torch.rand(5, i) < density
                weight = torch.randn(5, i).to(dtype) * kept
                mask, values, X = pack_mask(kept), weight[kept], torch.randn(3, i).to(dtype)
                assert torch.equal(sparse_expand(values, mask, i), weight)
                found, exact = sparse_linear(X, values, mask), X.double() @ weight.double().T
                # 200 products of size 1 and their rounded sum.
                assert float((found - exact).abs().max()) <= 100 * torch.finfo(dtype).eps
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_errors():
    kept, weight = kept_entries(7, 13, 0.5)
    mask, values = pack_mask(kept), weight[kept]
    X, count = torch.ones(2, 13, dtype=torch.float64), len(values)
    for call in (
        lambda: sparse_expand(values[:-1], mask, 13),
        lambda: sparse_linear(X, values[:-1], mask),
        lambda: OPS.sparse_gather(weight, mask, count - 1),
        lambda: OPS.sparse_linear_adjoint(X[:, :7], values[:-1], mask, 13),
        lambda: OPS.sparse_products(X[:, :7], X, mask, count - 1),
    ):
        with pytest.raises(ValueError, match=f"mask keeps {count} entries, got {count - 1} values"):
            call()
    more = torch.cat((values, values[:1]))
    for tokens in (1, 40):
        with pytest.raises(ValueError, match=f"keeps {count} entries, got {count + 1} values"):
            sparse_linear(X[:1].expand(tokens, 13), more, mask)
    with pytest.raises(ValueError, match="sparse_expand: mask must have a row of 3 bytes for 17"):
        sparse_expand(values, mask, 17)
    with pytest.raises(TypeError, match="sparse_linear: mask must be uint8, got Char"):
        sparse_linear(X, values, mask.to(torch.int8))
    with pytest.raises(TypeError, match="sparse_linear: X must be Double, got Float"):
        sparse_linear(X.float(), values, mask)
    with pytest.raises(TypeError, match=r"values must be float16, .* got Long"):
        sparse_expand(values.long(), mask, 13)
    with pytest.raises(ValueError, match="Y must have 7 entries in its last dimension"):
        OPS.sparse_linear_adjoint(X, values, mask, 13)
    with pytest.raises(ValueError, match="as many rows as mask"):
        OPS.sparse_gather(weight[1:], mask, count)
    for call in (
        lambda: OPS.sparse_products(X[:, :7], X, mask.to("meta"), count),
        lambda: sparse_linear(X, values, mask.to("meta")),
    ):
        with pytest.raises(ValueError, match="must be on one device, got cpu and meta"):
            call()
    with pytest.raises(ValueError, match="values must have 1 dimension"):
        sparse_expand(values[None], mask, 13)
