"""Hypothesis strategies and matrices: with a known spectrum, random, hard."""

import math

import numpy as np
import scipy.linalg
import torch
from hypothesis import strategies as st

import fastlr.linalg as la

dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(min_value=-(2**63), max_value=2**64 - 1)


def with_spectrum(m: int, n: int, values, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    """An m × n matrix with the given leading singular values (zeros beyond them)."""
    rng = np.random.default_rng(seed)
    values = np.asarray(values, dtype=np.float64)
    left = scipy.linalg.qr(rng.standard_normal((m, len(values))), mode="economic")[0]
    right = scipy.linalg.qr(rng.standard_normal((n, len(values))), mode="economic")[0]
    return torch.from_numpy((left * values) @ right.T).to(dtype)


def gaussian(*shape, dtype=torch.float64, seed=0):
    """Independent normal entries."""
    real = la.random_matrix(*shape, seed=seed, dtype=dtype.to_real())
    if not dtype.is_complex:
        return real
    return torch.complex(real, la.random_matrix(*shape, seed=seed + 100, dtype=dtype.to_real()))


def kahan(n, angle=1.2):
    """Its columns have equal lengths, and QR with pivoting leaves them where they are."""
    c, s = math.cos(angle), math.sin(angle)
    upper = np.eye(n) - c * np.triu(np.ones((n, n)), 1)
    return torch.from_numpy(s ** np.arange(n)[:, None] * upper)


def hermitian(values, dtype=torch.float64, seed=0):
    """A Hermitian matrix with these eigenvalues."""
    n = len(values)
    rng = np.random.default_rng(seed)
    G = rng.standard_normal((n, n)) + 1j * dtype.is_complex * rng.standard_normal((n, n))
    Q = scipy.linalg.qr(G if dtype.is_complex else G.real)[0]
    A = (Q * np.asarray(values, dtype=np.float64)) @ Q.conj().T
    return torch.from_numpy((A + A.conj().T) / 2).to(dtype)


@st.composite
def spectra(draw, size: int):
    """Flat, stepped, one outlier, clustered, graded or decaying singular values."""
    kind = draw(st.sampled_from(["flat", "step", "outlier", "clustered", "graded", "decaying"]))
    index = np.arange(size)
    match kind:
        case "flat":
            return np.ones(size)
        case "step":
            return np.where(index < draw(st.integers(1, size)), 1.0, 1e-3)
        case "outlier":
            return np.where(index == 0, 1e3, 1.0)
        case "clustered":
            return 1.0 / (1 + index // 5)
        case "graded":
            return 10.0 ** (-draw(st.floats(1, 40)) * index / size)
        case "decaying":
            return 1.0 / (1.0 + index)


@st.composite
def matrices(draw, max_size: int = 60, dtype=dtypes):
    """A matrix of any shape up to max_size with one of the spectra above."""
    m = draw(st.integers(1, max_size))
    n = draw(st.integers(1, max_size))
    values = draw(spectra(min(m, n)))
    return with_spectrum(m, n, values, draw(dtype), draw(st.integers(0, 2**31)))
