"""TuckerTensor: what is done with a core and factors is what is done with the whole tensor."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from references import orthonormality_error, unit_roundoff
from strategies import gaussian

SHAPE, RANKS, OTHER = (5, 2, 6), (3, 2, 4), (2, 2, 1)


def normal(*shape, dtype=torch.float64, seed=0):
    return gaussian(math.prod(shape), 1, dtype=dtype, seed=seed).reshape(shape)


def tensor(ranks=RANKS, batch=(), dtype=torch.float64, seed=0, without=1):
    """Random, without a factor for one of its modes."""
    factors = [
        None if mode == without else normal(*batch, n, r, dtype=dtype, seed=seed + mode + 1)
        for mode, (n, r) in enumerate(zip(SHAPE, ranks, strict=True))
    ]
    return la.TuckerTensor(normal(*batch, *ranks, dtype=dtype, seed=seed), factors)


def close(got, expected, size=1.0):
    """To the rounding of some products of a handful of terms, of numbers around `size`."""
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    assert got.shape == expected.shape
    unit = unit_roundoff(expected) if expected.dtype.is_floating_point else unit_roundoff(got)
    assert float((got - expected).abs().max()) <= 1e3 * unit * size


BATCHES = pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])


def by_definition(T):
    letters = "abcdefg"
    core, factors = T
    d = len(factors)
    inner, outer = letters[:d], "ijklmno"[:d]
    given = [(F, a, i) for F, a, i in zip(factors, inner, outer, strict=True) if F is not None]
    bare = {a: a for a, F in zip(inner, factors, strict=True) if F is None}
    result = "".join(bare.get(a, i) for a, i in zip(inner, outer, strict=True))
    terms = ",".join([f"...{inner}", *(f"...{i}{a}" for _, a, i in given)])
    return torch.einsum(f"{terms}->...{result}", core, *(F for F, _, _ in given))


@BATCHES
@DTYPES
def test_full(batch, dtype):
    T = tensor(batch=batch, dtype=dtype)
    assert T.shape == (*batch, *SHAPE)
    assert T.ndim == len(batch) + 3
    assert T.batch_dims == len(batch)
    assert T.ranks == RANKS
    assert T.size == math.prod(batch) * (24 + 15 + 24)
    assert T.info is None
    close(T.full(), by_definition(T), 10)


@BATCHES
@DTYPES
def test_arithmetic(batch, dtype):
    T, S = tensor(batch=batch, dtype=dtype), tensor(OTHER, batch, dtype, seed=7)
    F, G = T.full(), S.full()
    close((T + S).full(), F + G, 10)
    assert (T + S).ranks == (5, 2, 5)  # added along the mode without factors
    close((T - S).full(), F - G, 10)
    close((-T).full(), -F, 10)
    close((T * S).full(), F * G, 100)
    close((2 * T).full(), 2 * F, 10)
    close((T * np.float64(0.5)).full(), F / 2, 10)
    close((np.float64(0.5) * T).full(), F / 2, 10)
    close((T / 4).full(), F / 4, 10)
    whole = tensor(OTHER, batch, dtype, seed=7, without=None)
    close((T + whole).full(), F + whole.full(), 10)
    assert (T + whole).ranks == (5, 4, 5)
    if dtype.is_complex:
        close((T * (1 + 2j)).full(), F * (1 + 2j), 30)


@BATCHES
@DTYPES
def test_numbers(batch, dtype):
    T, S = tensor(batch=batch, dtype=dtype), tensor((2, 2, 6), batch, dtype, seed=7, without=2)
    F, G = T.full().flatten(len(batch)), S.full().flatten(len(batch))
    norms, products = torch.linalg.vector_norm(F, dim=-1), (F.conj() * G).sum(-1)
    for got, expected in ((T.norm(), norms), (T.inner(S), products)):
        if not batch:
            assert isinstance(got, float | complex)
        close(torch.as_tensor(got, dtype=expected.dtype), expected, 1000)


@BATCHES
def test_entries(batch):
    T = tensor(batch=batch)
    places = torch.tensor([[0, 1, 5], [4, 0, 2], [3, 1, 0], [3, 1, 0]])
    F = T.full()
    close(T.at(places), F[..., places[:, 0], places[:, 1], places[:, 2]], 10)
    close(T.at(places.tolist()), T.at(places))
    assert T.at(places[:0]).shape == (*batch, 0)


def test_many_entries_come_in_blocks(monkeypatch):
    T = tensor()
    places = torch.cartesian_prod(*(torch.arange(n) for n in SHAPE))
    whole = T.at(places)
    close(whole, T.full().flatten(), 10)
    monkeypatch.setattr("fastlr.linalg.tucker_tensor._BLOCK", 100)  # four entries
    close(T.at(places), whole, 10)


@BATCHES
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_mode_dot(batch, dtype):
    T = tensor(batch=batch, dtype=dtype)
    F = T.full()
    for mode, letters in enumerate("abc"):
        A = normal(7, SHAPE[mode], dtype=dtype, seed=9)
        result = "abc".replace(letters, "d")
        close(T.mode_dot(A, mode).full(), torch.einsum(f"...abc,d{letters}->...{result}", F, A), 30)
        close(T.mode_dot(A, mode - 3).full(), T.mode_dot(A, mode).full(), 30)
        less = result.replace("d", "")
        expected = torch.einsum(f"...abc,{letters}->...{less}", F, A[0])
        close(T.mode_dot(A[0], mode).full(), expected, 30)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), lead=st.sampled_from([(), (3,)]))
def test_parts(data, lead):
    T = tensor(batch=lead)
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
    got = got.full() if isinstance(got, la.TuckerTensor) else got
    assert got.shape == expected.shape
    if expected.numel():
        close(got, expected, 10)


@DTYPES
def test_rounding_undoes_sums(dtype):
    T = tensor(dtype=dtype)
    total = T + T - 3 * T
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    small = total.rounded(tol=tol)
    assert small.ranks == RANKS
    close(small.full(), -T.full(), 30)
    assert all(orthonormality_error(F) <= 10 for F in small.factors)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), tol=st.floats(0.01, 0.9))
def test_rounding_keeps_a_tolerance(seed, tol):
    T = tensor(seed=seed)
    small = T.rounded(tol=tol)
    assert float((small.full() - T.full()).norm()) <= tol * T.norm() * (1 + 1e-12)
    assert all(a <= b for a, b in zip(small.ranks, T.ranks, strict=True))


@BATCHES
def test_rounding_to_ranks(batch):
    T = tensor(batch=batch)
    one = T.rounded((2, 1, 2))
    assert one.ranks == (2, 1, 2)
    full, whole = one.full(), T.full()
    for index in np.ndindex(*batch):
        best = la.tucker(whole[index], (2, 1, 2), method="st_hosvd")
        assert float((full[index] - whole[index]).norm()) == pytest.approx(best.info.error)
    # There are no more than that.
    close(T.rounded(100).full(), whole, 10)


def test_numpy_stays_numpy():
    T = tensor(dtype=torch.float32)
    N = la.TuckerTensor(T.core.numpy(), [None if F is None else F.numpy() for F in T.factors])
    for got in (N.core, N.full(), N.at([[0, 0, 0]]), N[0, 0, 0], (N + N).full(), N.rounded(1).core):
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float32
    assert np.array_equal(N.full(), T.full().numpy())
    integers = la.TuckerTensor(np.ones((1, 1), int), [np.ones((2, 1), int)] * 2)
    assert integers.full().dtype == np.float64
    half = la.TuckerTensor(T.core.half(), [None if F is None else F.half() for F in T.factors])
    assert half.full().dtype == torch.float16


def test_copies_and_files(tmp_path):
    T = la.tucker(normal(8, 9, 10), (2, 3, 4), modes=(0, 1, 2), seed=0)
    T.save(tmp_path / "tensor")
    for other in (
        la.TuckerTensor.load(tmp_path / "tensor"),
        pickle.loads(pickle.dumps(T)),
        copy.deepcopy(T),
        T.to("cpu"),
    ):
        assert torch.equal(other.full(), T.full())
        assert other.info == T.info
    damaged = (tmp_path / "tensor").read_bytes()
    (tmp_path / "damaged").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(ValueError, match=r"^TuckerTensor\.load"):
        la.TuckerTensor.load(tmp_path / "damaged")
    core, factors = T
    assert torch.equal(core, T.core)
    assert len(factors) == 3
    assert repr(T) == "TuckerTensor(shape=(8, 9, 10), ranks=(2, 3, 4), dtype=float64)"


def test_nothing_is_written_to():
    core, factors = normal(2, 2), [normal(4, 2, seed=1), normal(3, 2, seed=2)]
    before = [X.clone() for X in (core, *factors)]
    T = la.TuckerTensor(core, factors)
    _ = T + T, T * T, T * 2, T[1:, 0], T.rounded(1), T.at([[0, 0]]), T.norm()
    assert all(torch.equal(X, Y) for X, Y in zip((core, *factors), before, strict=True))


T = tensor()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: la.TuckerTensor(T.core, T.factors[:0]), ValueError, "one for each dimension"),
        (lambda: la.TuckerTensor(T.core[0, 0], T.factors), ValueError, "one for each dimension"),
        (
            lambda: la.TuckerTensor(T.core, [T.core] * 3),
            ValueError,
            r"factors\[0\] must have shape",
        ),
        (
            lambda: la.TuckerTensor(T.core, [T.factors[0][:, :2], None, None]),
            ValueError,
            r"factors\[0\] must have shape \(n, 3\)",
        ),
        (
            lambda: la.TuckerTensor(T.core, [T.factors[0].float(), None, None]),
            TypeError,
            "dtype of the core",
        ),
        (
            lambda: la.TuckerTensor(T.core, [T.factors[0].numpy(), None, None]),
            TypeError,
            "all of NumPy or all of torch",
        ),
        (lambda: T.at([[0, 0]]), ValueError, r"shape \(p, 3\)"),
        (lambda: T.at([[0, 0, 6]]), ValueError, "from 0 to 5, got 6"),
        (lambda: T.at([[0.5, 0, 0]]), TypeError, "integer"),
        (lambda: T[0, 0, 0, 0], IndexError, "3 dimensions"),
        (lambda: T[7], IndexError, "out of range"),
        (lambda: T[0.5], TypeError, "integer"),
        (lambda: T[..., ...], IndexError, "one Ellipsis"),
        (lambda: T.mode_dot(normal(2, 3), 0), ValueError, r"shape \(p, 5\)"),
        (lambda: T.mode_dot(normal(2, 5), 3), ValueError, "from -3 to 2"),
        (lambda: T.mode_dot(np.ones((2, 5)), 0), TypeError, "NumPy or torch"),
        (lambda: T.rounded(), ValueError, "ranks or tol"),
        (lambda: T.rounded(0), ValueError, "at least 1"),
        (lambda: T.rounded((1, 2)), ValueError, "each of 3 modes"),
        (lambda: T.rounded(tol=2), ValueError, "between 0 and 1"),
        (lambda: tensor(batch=(2,)).rounded(tol=0.1), ValueError, "one tensor"),
        (lambda: T + T[1:], ValueError, "same shape"),
        (lambda: T + 1, TypeError, "unsupported operand"),
        (lambda: T + tensor(dtype=torch.float32), ValueError, "same dtype"),
        (lambda: T.inner(tensor(batch=(2,))), ValueError, "same shape"),
        (lambda: T * "a", TypeError, "real number"),
        (lambda: T * 2j, TypeError, "real number"),
        (lambda: T / 0, ZeroDivisionError, "zero"),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()
