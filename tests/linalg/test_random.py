import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr import _core
from strategies import dtypes, seeds

KINDS = ("gaussian", "uniform", "sign")


# Known-answer vectors published with Random123 (kat_vectors, philox4x32 10).
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert _core.philox4x32_10(counter, key) == words


@given(
    seed=seeds,
    rows=st.integers(0, 40),
    columns=st.integers(0, 150),
    row0=st.integers(0, 11),
    column0=st.integers(0, 70),
    kind=st.sampled_from(KINDS),
    dtype=dtypes,
)
def test_window_of_a_larger_matrix_has_the_same_bits(
    seed, rows, columns, row0, column0, kind, dtype
):
    whole = la.random_matrix(51, 220, kind=kind, seed=seed, dtype=dtype)
    window = la.random_matrix(
        rows, columns, kind=kind, seed=seed, dtype=dtype, row_offset=row0, column_offset=column0
    )
    assert torch.equal(window, whole[row0 : row0 + rows, column0 : column0 + columns])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thread_count_does_not_change_the_bits(kind, dtype, threads):
    drawn = []
    for number in (1, 2, 3):
        with threads(number):
            drawn.append(la.random_matrix(3001, 33, kind=kind, seed=5, dtype=dtype))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_offsets_beyond_32_bits_are_different_rows():
    near = la.random_matrix(4, 4, seed=1)
    far = la.random_matrix(4, 4, seed=1, row_offset=4 * 2**32)
    assert not torch.equal(near, far)


def test_gaussians_are_the_box_muller_transform_of_the_words():
    seed, rows, columns = 0x123456789ABCDEF0, 8, 5
    drawn = la.random_matrix(rows, columns, seed=seed, dtype=torch.float64).numpy()
    for group in range(rows // 2):
        for column in range(columns):
            words = _core.philox4x32_10((group, 0, column, 1), (seed & 0xFFFFFFFF, seed >> 32))
            uniform = ((words[1] >> 1) + (words[0] >> 10) * 2.0**-22) * 2.0**-31 + 2.0**-54
            low30 = (words[3] << 2) & 0xFFFFFFFF
            signed = low30 - 2**32 if low30 >= 2**31 else low30
            eighth = (signed + (words[2] >> 10) * 2.0**-20) * 2.0**-31
            angle = math.pi / 2 * (words[3] >> 30) + math.pi / 4 * eighth
            radius = math.sqrt(-2 * math.log(uniform))
            # The radius is below 9 and the series are good to a few u: 32 u in all is generous.
            assert drawn[2 * group, column] == pytest.approx(
                radius * math.cos(angle), abs=32 * 2.0**-53 * 9
            )
            assert drawn[2 * group + 1, column] == pytest.approx(
                radius * math.sin(angle), abs=32 * 2.0**-53 * 9
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions(dtype):
    # Fixed seed, so the p-values are constants: far from 0 unless the distribution is wrong.
    normal = la.random_matrix(400, 500, seed=3, dtype=dtype).double().numpy().ravel()
    assert scipy.stats.kstest(normal, "norm").pvalue > 1e-3
    uniform = la.random_matrix(400, 500, kind="uniform", seed=3, dtype=dtype).double().numpy()
    assert uniform.min() > 0
    assert uniform.max() <= 1
    assert scipy.stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    sign = la.random_matrix(400, 500, kind="sign", seed=3, dtype=dtype).numpy()
    assert set(np.unique(sign)) == {-1.0, 1.0}
    # 200 000 fair signs: the mean has standard deviation 0.0022.
    assert abs(sign.mean(dtype=np.float64)) < 5 * 0.0022


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_and_columns_are_uncorrelated(dtype):
    G = la.random_matrix(2000, 60, seed=11, dtype=dtype).double()
    correlation = (G.T @ G / 2000 - torch.eye(60, dtype=torch.float64)).abs().max()
    # Off-diagonal entries have deviation 1/√2000 = 0.022, diagonal ones √2 of it; 1830 of them.
    assert correlation < 6 * math.sqrt(2 / 2000)


def test_seeds_and_kinds_differ():
    drawn = [la.random_matrix(20, 20, seed=s) for s in (0, 1, -1, 2**63)]
    drawn.append(la.random_matrix(20, 20, kind="uniform", seed=0))
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert not torch.equal(first, second)


def test_negative_seed_is_its_64_bit_pattern():
    assert torch.equal(la.random_matrix(3, 3, seed=-1), la.random_matrix(3, 3, seed=2**64 - 1))


def test_seed_from_a_generator_and_from_torch_default():
    one = la.random_matrix(5, 5, seed=torch.Generator().manual_seed(9))
    two = la.random_matrix(5, 5, seed=torch.Generator().manual_seed(9))
    assert torch.equal(one, two)
    generator = torch.Generator().manual_seed(9)
    la.random_matrix(5, 5, seed=generator)
    assert not torch.equal(one, la.random_matrix(5, 5, seed=generator))
    torch.manual_seed(4)
    first = la.random_matrix(5, 5)
    torch.manual_seed(4)
    assert torch.equal(first, la.random_matrix(5, 5))
    assert not torch.equal(first, la.random_matrix(5, 5))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"rows": -1}, ValueError, "non-negative, got -1"),
        ({"rows": 2.5}, TypeError, "rows must be an integer, got 2.5"),
        ({"kind": "cauchy"}, ValueError, "'gaussian', 'uniform' or 'sign', got 'cauchy'"),
        ({"dtype": torch.int32}, TypeError, "float32 or float64, got torch.int32"),
        ({"seed": 2**64}, ValueError, "seed must fit 64 bits"),
        ({"seed": "1"}, TypeError, "seed must be an int"),
        ({"seed": True}, TypeError, "seed must be an int"),
        ({"row_offset": -4}, ValueError, "row_offset must be non-negative, got -4"),
        ({"column_offset": 2**32}, ValueError, "columns below 2\\^32"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        la.random_matrix(**({"rows": 2, "columns": 2} | arguments))
