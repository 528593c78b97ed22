"""CPTensor: what is done with weights and factors is what is done with the whole tensor."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from references import unit_roundoff
from strategies import gaussian

SHAPE = (5, 3, 6)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])


def tensor(rank=3, dtype=torch.float64, seed=0, shape=SHAPE):
    """Random, with weights of any sign (or complex)."""
    factors = [gaussian(n, rank, dtype=dtype, seed=seed + k) for k, n in enumerate(shape, 1)]
    return la.CPTensor(gaussian(1, rank, dtype=dtype, seed=seed)[0], factors)


def close(got, expected, size=1.0):
    """To the rounding of sums of some terms, of numbers around `size`."""
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= 1e3 * unit_roundoff(expected) * size


def by_definition(T):
    weights, factors = T
    letters = "ijklm"[: len(factors)]
    terms = ",".join(["a", *(f"{i}a" for i in letters)])
    return torch.einsum(f"{terms}->{letters}", weights, *factors)


@DTYPES
@pytest.mark.parametrize("shape", [SHAPE, (4,), (4, 5), (2, 3, 4, 5)])
def test_full(shape, dtype):
    T = tensor(dtype=dtype, shape=shape)
    assert T.shape == shape
    assert T.ndim == len(shape)
    assert T.rank == 3
    assert T.size == 3 + 3 * sum(shape)
    assert T.info is None
    close(T.full(), by_definition(T), 10)


@DTYPES
def test_arithmetic(dtype):
    T, S = tensor(dtype=dtype), tensor(2, dtype, seed=7)
    F, G = T.full(), S.full()
    close((T + S).full(), F + G, 10)
    assert (T + S).rank == 5
    close((T - S).full(), F - G, 10)
    close((-T).full(), -F, 10)
    close((T * S).full(), F * G, 100)
    assert (T * S).rank == 6
    close((2 * T).full(), 2 * F, 10)
    close((T * np.float64(0.5)).full(), F / 2, 10)
    close((np.float64(0.5) * T).full(), F / 2, 10)
    close((T / 4).full(), F / 4, 10)
    if dtype.is_complex:
        close((T * (1 + 2j)).full(), F * (1 + 2j), 30)


@DTYPES
def test_numbers(dtype):
    T, S = tensor(dtype=dtype), tensor(2, dtype, seed=7)
    F, G = T.full(), S.full()
    assert isinstance(T.norm(), float)
    assert T.norm() == pytest.approx(float(F.norm()), rel=100 * unit_roundoff(F))
    product = T.inner(S)
    assert isinstance(product, complex if dtype.is_complex else float)
    assert abs(product - (F.conj() * G).sum().item()) <= 1e3 * unit_roundoff(F) * T.norm()
    # What cancels is known to √u of the weights.
    assert (T - T).norm() <= 1e-7 * T.norm() * 10


@DTYPES
def test_real_weights_of_complex_factors(dtype):
    factors = [gaussian(n, 2, dtype=dtype, seed=n) for n in SHAPE]
    T = la.CPTensor(torch.tensor([2.0, -1.0], dtype=dtype.to_real()), factors)
    assert T.weights.dtype == dtype.to_real()
    same = la.CPTensor(T.weights.to(dtype), factors)
    close(T.full(), same.full(), 10)
    close((T + same).full(), 2 * same.full(), 10)
    close(T[1].full(), same.full()[1], 10)


@DTYPES
def test_normalized(dtype):
    T = tensor(4, dtype)
    N = T.normalized()
    close(N.full(), T.full(), 10)
    assert N.weights.dtype == dtype.to_real()
    assert bool((N.weights > 0).all())
    assert bool((N.weights.diff() <= 0).all())
    for mode, F in enumerate(N.factors):
        close(torch.linalg.vector_norm(F, dim=0), torch.ones(4, dtype=dtype.to_real()))
        largest = F.gather(0, F.abs().argmax(0, keepdim=True))[0]
        if mode < 2:
            close(largest, largest.abs().to(dtype))
            assert bool((largest.real > 0).all())
    zero = la.CPTensor(torch.tensor([0.0, 3.0]), [torch.ones(2, 2), torch.ones(3, 2)])
    weights, factors = zero.normalized()
    assert weights[1] == 0
    assert factors[0][:, 1].tolist() == [1, 0]
    assert not torch.isnan(zero.normalized().full()).any()


@DTYPES
def test_entries(dtype, monkeypatch):
    T = tensor(dtype=dtype)
    places = torch.cartesian_prod(*(torch.arange(n) for n in SHAPE))
    close(T.at(places), T.full().flatten(), 10)
    close(T.at(places.tolist()), T.at(places))
    assert T.at(places[:0]).shape == (0,)
    whole = T.at(places)
    monkeypatch.setattr("fastlr.linalg.cp_tensor._BLOCK", 12)  # four entries
    assert torch.equal(T.at(places), whole)


@DTYPES
def test_mode_dot(dtype):
    T = tensor(dtype=dtype)
    F = T.full()
    for mode, letter in enumerate("abc"):
        A = gaussian(7, SHAPE[mode], dtype=dtype, seed=9)
        result = "abc".replace(letter, "d")
        expected = torch.einsum(f"abc,d{letter}->{result}", F, A)
        close(T.mode_dot(A, mode).full(), expected, 30)
        close(T.mode_dot(A, mode - 3).full(), expected, 30)
        close(T.mode_dot(A[0], mode).full(), expected.select(mode, 0), 30)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_parts(data):
    T = tensor()
    F = T.full()
    index = []
    for n in T.shape:
        ends = st.one_of(st.none(), st.integers(-n - 1, n + 1))
        steps = st.sampled_from([None, 1, 2, -1, -2])
        part = st.one_of(st.integers(-n, n - 1), st.builds(slice, ends, ends, steps))
        index.append(data.draw(part))
    kept = data.draw(st.integers(0, len(index)))
    where = data.draw(st.sampled_from(["all", "first", "last"]))
    key = {
        "all": tuple(index),
        "first": tuple(index[:kept]),
        "last": (Ellipsis, *index[len(index) - kept :]),
    }[where]
    expected = torch.from_numpy(np.array(F.numpy()[key]))
    got = T[key]
    got = got.full() if isinstance(got, la.CPTensor) else got
    assert got.shape == expected.shape
    if expected.numel():
        close(got, expected, 10)


def test_numpy_stays_numpy():
    T = tensor(dtype=torch.float32)
    N = la.CPTensor(T.weights.numpy(), [F.numpy() for F in T.factors])
    for got in (N.weights, N.full(), N.at([[0, 0, 0]]), N[0, 0, 0], (N + N).full(), N[1:].full()):
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float32
    assert np.array_equal(N.full(), T.full().numpy())
    integers = la.CPTensor(np.ones(1, int), [np.ones((2, 1), int)] * 2)
    assert integers.full().dtype == np.float64
    half = la.CPTensor(T.weights.half(), [F.half() for F in T.factors])
    assert half.full().dtype == torch.float16


def test_copies_and_files(tmp_path):
    T = la.cp(tensor().full(), 3, seed=0)
    T.save(tmp_path / "tensor")
    for other in (
        la.CPTensor.load(tmp_path / "tensor"),
        pickle.loads(pickle.dumps(T)),
        copy.deepcopy(T),
        T.to("cpu"),
    ):
        assert torch.equal(other.full(), T.full())
        assert other.info == T.info
    damaged = (tmp_path / "tensor").read_bytes()
    (tmp_path / "damaged").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(ValueError, match=r"^CPTensor\.load"):
        la.CPTensor.load(tmp_path / "damaged")
    weights, factors = T
    assert torch.equal(weights, T.weights)
    assert len(factors) == 3
    assert repr(T) == "CPTensor(shape=(5, 3, 6), rank=3, dtype=float64)"


def test_nothing_is_written_to():
    weights = torch.tensor([2.0, -1.0])
    factors = [gaussian(n, 2, dtype=torch.float32, seed=n) for n in SHAPE]
    before = [X.clone() for X in (weights, *factors)]
    T = la.CPTensor(weights, factors)
    _ = T + T, T * T, T * 2, T[1:, 0], T.normalized(), T.at([[0, 0, 0]]), T.norm(), -T
    assert all(torch.equal(X, Y) for X, Y in zip((weights, *factors), before, strict=True))


T = tensor()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: la.CPTensor(T.weights, []), ValueError, "one for each mode, got none"),
        (
            lambda: la.CPTensor(T.weights[:2], T.factors),
            ValueError,
            r"factors\[0\] must have shape \(n, 2\)",
        ),
        (
            lambda: la.CPTensor(T.weights[:, None], T.factors),
            ValueError,
            r"weights of shape \(3, 1\)",
        ),
        (
            lambda: la.CPTensor(T.weights, [T.factors[0], T.factors[1].float()]),
            TypeError,
            "one dtype",
        ),
        (lambda: la.CPTensor(T.weights.float(), T.factors), TypeError, "dtype of the factors"),
        (
            lambda: la.CPTensor(T.weights, [F.numpy() for F in T.factors]),
            TypeError,
            "all of NumPy or all of torch",
        ),
        (lambda: T.at([[0, 0]]), ValueError, r"CPTensor.at: indices must have shape \(p, 3\)"),
        (lambda: T.at([[0, 0, 6]]), ValueError, "from 0 to 5, got 6"),
        (lambda: T.at([[0.5, 0, 0]]), TypeError, "integer"),
        (lambda: T[0, 0, 0, 0], IndexError, "CPTensor: 3 dimensions"),
        (lambda: T[7], IndexError, "out of range"),
        (lambda: T[0.5], TypeError, "integer"),
        (lambda: T[..., ...], IndexError, "one Ellipsis"),
        (lambda: T.mode_dot(gaussian(2, 3), 0), ValueError, r"shape \(p, 5\)"),
        (lambda: T.mode_dot(gaussian(2, 5), 3), ValueError, "from -3 to 2"),
        (lambda: T.mode_dot(np.ones((2, 5)), 0), TypeError, "NumPy or torch"),
        (lambda: T[0, 0].mode_dot(gaussian(1, 6)[0], 0), ValueError, "for the last mode"),
        (lambda: T + T[1:], ValueError, r"CPTensor.\+: both tensors must have the same shape"),
        (lambda: T + 1, TypeError, "unsupported operand"),
        (lambda: T - 1, TypeError, "unsupported operand"),
        (lambda: T + tensor(dtype=torch.float32), ValueError, "same dtype"),
        (lambda: T.inner(T[1:]), ValueError, "same shape"),
        (lambda: T * "a", TypeError, "real number"),
        (lambda: T * 2j, TypeError, "real number"),
        (lambda: T / 0, ZeroDivisionError, "zero"),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_norms_of_small_and_large_numbers():
    # Weights and columns of any size: the square of the norm must not overflow.
    for scale in (1e-200, 1e200):
        assert (T * scale).norm() == pytest.approx(T.norm() * scale, rel=1e-12)
        assert math.isfinite((T * scale).normalized().norm())
