"""Streams of rows: against the SVD of all rows, with the bounds that the state itself gives."""

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, orthonormality_error, singular_values, tail_norm, unit_roundoff
from strategies import spectra, with_spectrum

METHODS = ("one_pass", "frequent_directions")
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def decaying(m, n, dtype=torch.float64, seed=0):
    """Gaussian rows whose columns fall off as 1 / j."""
    A = la.random_matrix(m, n, seed=seed, dtype=dtype.to_real())
    if dtype.is_complex:
        A = torch.complex(A, la.random_matrix(m, n, seed=seed + 1, dtype=dtype.to_real()))
    return A / torch.arange(1, n + 1)


def streamed(blocks, rank, **options):
    options.setdefault("seed", 0)
    stream = la.StreamingSVD(rank, **options)
    for block in blocks:
        stream.update(block)
    return stream


def projection_error(A, Vh):
    """‖A − A Vhᴴ Vh‖_F in float64."""
    A, Vh = exact(A), exact(Vh)
    return float(np.linalg.norm(A - A @ Vh.conj().T @ Vh))


def assert_within_bounds(stream, A):
    S, Vh = result = stream.result()
    assert stream.n_seen == result.info.n_seen == len(A)
    # 10·√k·u is the library's promise of orthonormality.
    assert orthonormality_error(torch.as_tensor(Vh).mH) <= 10
    assert projection_error(A, Vh) <= result.info.error
    assert result.info.error_estimate <= result.info.error
    exact_values = singular_values(A)[: len(S)]
    exact_values = np.pad(exact_values, (0, len(S) - len(exact_values)))
    # S itself is rounded to the type of A.
    rounding = 4 * unit_roundoff(torch.as_tensor(Vh)) * exact_values[0] ** 2
    differences = np.abs(exact(S) ** 2 - exact_values**2)
    assert differences.max() <= stream.error_bound + rounding


def assert_same(one, other, A):
    """Two states of the same rows: sums over them in another order."""
    # Sums of m products in blocks, in the type of A: √m·u of ‖A‖_F², with a factor of 10.
    rounding = 10 * math.sqrt(len(A)) * unit_roundoff(A) * float(A.norm()) ** 2
    first, second = (exact(state.result().S) ** 2 for state in (one, other))
    assert np.abs(first - second).max() <= rounding


@pytest.mark.parametrize("oversample", [None, 12])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_svd_of_all_rows(dtype, method, oversample):
    A = decaying(400, 60, dtype)
    stream = streamed(A.split(70), 5, method=method, oversample=oversample)
    assert_within_bounds(stream, A)
    S, Vh = stream.result()
    assert (S.dtype, Vh.dtype) == (dtype.to_real(), dtype)
    assert projection_error(A, Vh) <= 1.05 * tail_norm(A, 5)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_rank_leaves_out_is_in_the_error(method):
    A = with_spectrum(100, 60, [8, 7, 6, 5, 4, 3, 2, 1])
    stream = streamed([A], 3, method=method, oversample=8)  # the sketch itself misses nothing
    assert_within_bounds(stream, A)
    assert stream.result().info.error_estimate >= 0.5 * tail_norm(A, 3)


def test_a_width_of_all_columns_is_the_svd():
    A = decaying(400, 60)
    result = streamed(A.split(90), 5).result()
    # Squares are summed: √u·S[0] is where values vanish, those here are far above.
    np.testing.assert_allclose(result.S, singular_values(A)[:5], rtol=100 * unit_roundoff(A))
    assert result.info.failure_probability == 0.0
    np.testing.assert_allclose(result.info.error, tail_norm(A, 5), rtol=1e-10)


@given(data=st.data(), method=st.sampled_from(METHODS), seed=st.integers(0, 1000))
def test_any_split_order_and_merge_tree(data, method, seed):
    n = data.draw(st.integers(6, 30))
    A = with_spectrum(80, n, data.draw(spectra(n)), seed=seed)
    rank = data.draw(st.integers(1, 4))
    options = {"method": method, "oversample": data.draw(st.sampled_from([None, 2])), "seed": seed}
    cuts = sorted(data.draw(st.lists(st.integers(0, 80), max_size=8)))
    pieces = list(A.tensor_split(cuts))
    stream = streamed(pieces, rank, **options)
    assert_within_bounds(stream, A)

    leaves = [streamed([piece], rank, **options) for piece in data.draw(st.permutations(pieces))]
    while len(leaves) > 1:
        first, second = leaves.pop(), leaves.pop(data.draw(st.integers(0, len(leaves) - 1)))
        first.merge(second)
        leaves.append(first)
    assert_within_bounds(leaves[0], A)
    if method == "one_pass":
        assert_same(leaves[0], stream, A)
        assert_same(streamed([A], rank, **options), stream, A)


def adversarial_streams(count):
    """Rows that grow, shrink, take turns, or come back when they were forgotten."""
    generator = np.random.default_rng(0)
    for index in range(count):
        m, n = generator.integers(1, 40), generator.integers(3, 10)
        A = generator.standard_normal((m, n))
        match index % 6:
            case 0:
                A *= np.geomspace(1, 1e3, m)[:, None]
            case 1:
                A *= np.geomspace(1, 1e-3, m)[:, None]
            case 2:
                A = np.eye(n)[np.arange(m) % n] * (1 + 1e-3 * np.arange(m)[:, None])
            case 3:
                A = np.outer(generator.standard_normal(m), generator.standard_normal(n))
            case 4:
                A = np.eye(n)[np.sort(generator.integers(0, n, m))]
            case 5:
                A[generator.random(m) < 0.7] = 0
        yield A


def test_frequent_directions_keep_their_bound():
    slack = 0
    for A in adversarial_streams(3000):
        m, n = A.shape
        rank, oversample = 1, int(m % 3)
        stream = streamed(
            np.array_split(A, 3), rank, method="frequent_directions", oversample=oversample
        )
        width = min(rank + oversample, n)
        B = stream.state_dict()["sketch"][0].numpy()
        lost = np.linalg.eigvalsh(A.T @ A - B.T @ B)
        values = np.linalg.svd(A, compute_uv=False) ** 2
        # Products of 40 rows and 10 columns and LAPACK's eigenvalues: some 50·u·‖A‖₂² each.
        rounding = 200 * 2.0**-53 * values[0]
        assert lost[0] >= -rounding
        assert lost[-1] <= stream.error_bound + rounding
        # The state adds an allowance for rounding at every shrinking.
        promised = min(values[k:].sum() / (width + 1 - k) for k in range(width + 1))
        assert stream.error_bound <= promised + 40 * rounding
        slack = max(slack, stream.error_bound - lost[-1])
    assert slack > 0  # a bound of something that was lost, not of nothing


def test_truncation_without_shrinking_would_break_the_bound():
    """The negative control: rows that are cut off lose what they stand for."""
    A = np.repeat(np.eye(4), [9, 9, 9, 30], axis=0)[:, [3, 0, 1, 2]]
    stream = streamed([A], 1, method="frequent_directions", oversample=1)
    B = np.zeros((0, 4))
    for row in A:
        _, S, Vh = np.linalg.svd(np.vstack([B, row]), full_matrices=False)
        B = (S[:, None] * Vh)[:2]
    assert np.linalg.norm(A.T @ A - B.T @ B, 2) > stream.error_bound


@pytest.mark.parametrize("oversample", [None, 12])
def test_errors_hold_with_their_probability(oversample):
    A = decaying(300, 60)
    below = 0
    for seed in range(200):
        result = streamed([A], 5, oversample=oversample, seed=seed).result()
        below += projection_error(A, result.Vh) > result.info.error
    # 200 trials of probability 0.01: more than 7 are as unlikely as 0.1 %.
    assert below <= 7


@pytest.mark.parametrize("oversample", [None, 8])
@pytest.mark.parametrize("method", METHODS)
def test_forgetting_is_the_svd_of_weighted_rows(method, oversample):
    A, decay = decaying(90, 40), 0.97
    weights = decay ** torch.arange(89, -1, -1, dtype=A.dtype)
    weighted = weights[:, None] * A
    options = {"method": method, "oversample": oversample, "decay": decay}
    stream = streamed(A.split(17), 4, **options)
    assert_within_bounds(stream, weighted)
    head, tail = streamed([A[:50]], 4, **options), streamed(A[50:].split(9), 4, **options)
    head.merge(tail)
    assert_within_bounds(head, weighted)
    if method == "one_pass":
        assert_same(stream, streamed([weighted], 4, oversample=oversample), weighted)
        assert_same(stream, head, weighted)
        # The control: forgetting is seen.
        S = streamed([A], 4, oversample=oversample).result().S
        assert S[0] > 1.2 * stream.result().S[0]


@pytest.mark.parametrize("oversample", [None, 8])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decay", [1.0, 0.99])
def test_sparse_blocks(method, oversample, decay):
    A = scipy.sparse.random(150, 40, 0.1, format="csr", random_state=0)
    options = {"method": method, "oversample": oversample, "decay": decay}
    dense = streamed([A[:90].toarray(), A[90:].toarray()], 4, **options)
    coo = torch.from_numpy(A[90:].toarray()).to_sparse()
    for blocks in ([A[:90], A[90:]], [A[:90].tocoo(), coo], [A[:90].tocsc(), A[90:].toarray()]):
        assert_same(streamed(blocks, 4, **options), dense, torch.from_numpy(A.toarray()))


@pytest.mark.parametrize("method", METHODS)
def test_float32_against_float64(method):
    A = decaying(500, 50)
    options = {"method": method, "oversample": 10}
    wide, narrow = streamed([A], 5, **options), streamed([A.float()], 5, **options)
    S = narrow.result().S.double()
    # Both stand for nearly the same matrix; what they miss is in their bounds.
    difference = (S**2 - wide.result().S ** 2).abs().max()
    assert difference <= narrow.error_bound + wide.error_bound
    if method == "frequent_directions":
        # Deterministic: rounding of the entries of A alone, u of each.
        np.testing.assert_allclose(S, wide.result().S, rtol=10 * unit_roundoff(A.float()))


@pytest.mark.parametrize("oversample", [None, 8])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "power"), [(torch.float64, 200), (torch.float32, 30)])
def test_scale(method, oversample, dtype, power):
    A = decaying(100, 40, dtype)
    expected = streamed(A.split(30), 4, method=method, oversample=oversample).result()
    for exponent in (-3 * power, 3 * power):  # powers of two, which round nothing
        scale = 2.0**exponent
        blocks = (A * scale).split(30)
        S, Vh = result = streamed(blocks, 4, method=method, oversample=oversample).result()
        # Squares below the range are cut off in one and not in the other.
        rtol = 100 * unit_roundoff(A)
        torch.testing.assert_close(S / scale, expected.S, rtol=rtol, atol=0.0)
        torch.testing.assert_close(Vh, expected.Vh, rtol=0.0, atol=1e3 * unit_roundoff(A))
        np.testing.assert_allclose(result.info.error / scale, expected.info.error, rtol=1e-3)


@pytest.mark.parametrize("oversample", [None, 8])
@pytest.mark.parametrize("method", METHODS)
def test_scale_changes_within_a_stream(method, oversample):
    small, large = decaying(50, 40, seed=1) * 1e-200, decaying(50, 40, seed=2) * 1e150
    zero = torch.zeros(3, 40, dtype=torch.float64)
    options = {"method": method, "oversample": oversample}
    expected = streamed([large], 4, **options).result().S
    for blocks in ([small, large], [large, small], [zero, large, zero], [large, zero, small]):
        stream = streamed(blocks, 4, **options)
        assert_within_bounds(stream, torch.cat(blocks))
        # Frequent directions shrink at other rows where there are more of them.
        rtol = 100 * unit_roundoff(large) if method == "one_pass" else 0.05
        torch.testing.assert_close(stream.result().S, expected, rtol=rtol, atol=0.0)
    only = streamed([zero, small, zero], 4, **options).result().S
    expected = streamed([small * 1e200], 4, **options).result().S / 1e200
    torch.testing.assert_close(only, expected, rtol=rtol, atol=0.0)


@pytest.mark.parametrize("oversample", [None, 3])
@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_any_height(method, oversample):
    A = decaying(60, 20)
    options = {"method": method, "oversample": oversample}
    rows = streamed([A[:0], *A.split(1)[:30], *A[30:], A[:0]], 4, **options)
    assert_within_bounds(rows, A)
    assert rows.n_seen == 60
    nothing = streamed([A[:0]], 4, **options)
    S, Vh = nothing.result()
    assert S.tolist() == [0.0] * 4
    assert orthonormality_error(Vh.mH) <= 10
    assert nothing.error_bound == 0.0


@pytest.mark.parametrize("oversample", [None, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_fewer_directions_than_the_rank(method, oversample, rows):
    for dtype in (torch.float32, torch.float64):
        A = decaying(rows, 20, dtype)
        blocks = [torch.zeros(2, 20, dtype=dtype), A, A, torch.zeros(2, 20, dtype=dtype)]
        stream = streamed(blocks, 5, method=method, oversample=oversample)
        assert_within_bounds(stream, torch.cat(blocks))
        assert stream.result().S[rows:].tolist() == [0.0] * (5 - rows)


def test_kinds_and_dtypes():
    A = np.arange(60.0).reshape(20, 3)
    assert isinstance(streamed([A], 2).result().Vh, np.ndarray)
    assert isinstance(streamed([A], 2).result(out="torch").Vh, torch.Tensor)
    assert streamed([A.astype(int)], 2).result().Vh.dtype == np.float64
    half = streamed([torch.from_numpy(A).half()], 2).result()
    assert half.Vh.dtype == half.S.dtype == torch.float16
    np.testing.assert_allclose(half.S, singular_values(A)[:2], rtol=2.0**-10)
    assert not streamed([torch.ones(3, 3, requires_grad=True)], 2).result().S.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_memory_and_inputs(method):
    A = decaying(64, 30)
    before = A.clone()
    stream = streamed([A], 3, method=method, oversample=4)
    size = len(pickle.dumps(stream))
    for _ in range(50):
        stream.update(A)
        stream.result()
    assert abs(len(pickle.dumps(stream)) - size) < 100
    assert torch.equal(A, before)


@pytest.mark.parametrize("oversample", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_is_uninterrupted(method, oversample, tmp_path):
    A = decaying(120, 30, torch.float32)
    options = {"method": method, "oversample": oversample, "decay": 0.999}
    stream = streamed(A.split(13), 3, **options)
    stopped = streamed(A[:65].split(13), 3, **options)
    stopped.result()  # looking does not touch
    stopped.save(tmp_path / "state")
    torch.save(stopped.state_dict(), tmp_path / "dict")
    from_dict = la.StreamingSVD(1)
    from_dict.load_state_dict(torch.load(tmp_path / "dict", weights_only=True))
    for again in (
        la.StreamingSVD.load(tmp_path / "state"),
        pickle.loads(pickle.dumps(stopped)),
        copy.deepcopy(stopped),
        from_dict,
        stopped.to("cpu"),
    ):
        for block in A[65:].split(13):
            again.update(block)
        assert all(map(torch.equal, again.result(), stream.result()))
        assert again.error_bound == stream.error_bound
    assert {path.name for path in tmp_path.iterdir()} == {"state", "dict"}


def test_a_state_dict_is_a_copy():
    A = decaying(40, 10)
    stream = streamed([A[:5]], 3, method="frequent_directions")
    state = stream.state_dict()
    stream.update(A[5:9])
    other = la.StreamingSVD(3)
    other.load_state_dict(state)  # its checksum still holds
    other.update(A[5:9])
    other.load_state_dict(state)
    assert other.n_seen == 5


def test_damaged_state_files_are_refused(tmp_path):
    path = tmp_path / "state"
    streamed([decaying(40, 30)], 3).save(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"StreamingSVD.load: .*state"):
            la.StreamingSVD.load(path)
    refused, expected = 0, streamed([decaying(40, 30)], 3).result().S
    for position in range(50, len(whole), 997):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            loaded = la.StreamingSVD.load(path)
        except ValueError:
            refused += 1
        else:  # a byte of the archive that holds nothing of the state
            assert torch.equal(loaded.result().S, expected)
    assert refused >= len(range(50, len(whole), 997)) // 2
    with pytest.raises(FileNotFoundError):
        la.StreamingSVD.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("sketch"), "state must be a dict with"),
        (lambda state: state.update(more=1), "state must be a dict with"),
        (lambda state: state.update(kind="IncrementalSVD"), "one of IncrementalSVD"),
        (lambda state: state.update(rank=4), "altered"),
        (lambda state: state["sketch"][0].mul_(2), "altered"),
    ],
)
def test_altered_states_are_refused(change, message):
    stream = streamed([decaying(40, 30)], 3)
    state = stream.state_dict()
    change(state)
    before = stream.result()
    with pytest.raises(ValueError, match=message):
        stream.load_state_dict(state)
    assert torch.equal(stream.result().S, before.S)


@pytest.mark.parametrize("oversample", [None, 4])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_is_named_and_leaves_the_state(method, oversample, sparse, bad):
    A = decaying(40, 30)
    stream = streamed([A], 3, method=method, oversample=oversample)
    before = pickle.dumps(stream)
    rows = torch.zeros(9, 30, dtype=A.dtype)
    rows[3, 5], rows[2, 8], rows[7, 1] = 1.0, bad, bad
    with pytest.raises(ValueError, match=rf"rows must be finite, got {bad} at index \(42, 8\)"):
        stream.update(rows.to_sparse_csr() if sparse else rows)
    assert pickle.dumps(stream) == before


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.ones(2, 4), ValueError, "rows must have 3 columns as those before, got 4"),
        (torch.ones(2, 3).double(), TypeError, "rows must have the dtype of those before"),
        (torch.ones(4), ValueError, "rows must have 3 columns as those before, got 4"),
        (torch.ones(1, 2, 3), ValueError, "rows must have 2 dimensions"),
        ("rows", TypeError, "rows must be a NumPy array or torch tensor"),
    ],
)
def test_wrong_blocks(rows, error, message):
    stream = streamed([torch.eye(3)], 2)
    with pytest.raises(error, match=f"StreamingSVD.update: {message}"):
        stream.update(rows)
    assert stream.n_seen == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "rank must be at least 1, got 0"),
        ((2.5,), TypeError, "rank must be an integer, got 2.5"),
        ((4, 3), ValueError, "rank must be at most n_cols = 3, got 4"),
        ((1, 0), ValueError, "n_cols must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=f"StreamingSVD: {message}"):
        la.StreamingSVD(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.0}, r"decay must be in \(0, 1\], got 0.0"),
        ({"decay": 1.5}, r"decay must be in \(0, 1\], got 1.5"),
        ({"oversample": -1}, "oversample must be at least 0, got -1"),
        (
            {"method": "onepass"},
            "method must be 'one_pass' or 'frequent_directions', got 'onepass'",
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        la.StreamingSVD(3, **options)


def test_no_rows_yet():
    with pytest.raises(ValueError, match="no block of rows has come yet"):
        la.StreamingSVD(3).result()
    assert la.StreamingSVD(3, 5).error_bound == 0.0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"decay": 0.5}, "decay"),
        ({"oversample": 3}, "oversample"),
        ({"method": "frequent_directions"}, "method"),
    ],
)
def test_states_that_do_not_belong_together(options, name):
    A = decaying(40, 30)
    stream = streamed([A], 3)
    with pytest.raises(ValueError, match=f"merge: other must have {name}"):
        stream.merge(streamed([A], 3, **options))
    for other, different in ((streamed([A], 2), "rank"), (streamed([A[:, :9]], 3), "n_cols")):
        with pytest.raises(ValueError, match=f"merge: other must have {different}"):
            stream.merge(other)
    with pytest.raises(ValueError, match="merge: other must have dtype"):
        stream.merge(streamed([A.float()], 3))
    with pytest.raises(TypeError, match="other must be a StreamingSVD, got int"):
        stream.merge(3)
    assert stream.n_seen == 40


@pytest.mark.parametrize("method", METHODS)
def test_merging_with_a_state_without_rows(method):
    A = decaying(40, 30)
    full, fresh = streamed([A], 3, method=method), la.StreamingSVD(3, method=method, seed=0)
    full.merge(la.StreamingSVD(3, method=method, seed=0))
    fresh.merge(full)
    assert torch.equal(fresh.result().S, full.result().S)
    fresh.update(A)
    assert (full.n_seen, fresh.n_seen) == (40, 80)
    narrow = la.StreamingSVD(3, 20, method=method, seed=0)
    with pytest.raises(ValueError, match="other must have n_cols 20, got 30"):
        narrow.merge(full)


# ---- streaming_svd ----


@pytest.fixture
def shards(tmp_path):
    A = decaying(90, 30, torch.float32).numpy()
    for index, part in enumerate(np.array_split(A, 4)):
        np.save(tmp_path / f"shard_{index}.npy", part)
    (tmp_path / "notes.txt").write_text("not a shard")
    return tmp_path, A


@pytest.mark.parametrize("method", METHODS)
def test_sources_agree(shards, method):
    folder, A = shards
    np.save(folder.parent / "whole.npy", A)
    sources = {
        "array": A,
        "directory": folder,
        "paths": sorted(folder.glob("*.npy")),
        "file": folder.parent / "whole.npy",
        "memmap": np.load(folder.parent / "whole.npy", mmap_mode="r"),
        "iterator": iter(np.array_split(A, 7)),
        "list": [A[:20], A[20:]],
    }
    expected = streamed([A], 3, method=method).result()
    for name, source in sources.items():
        S, Vh = result = la.streaming_svd(source, 3, method=method, seed=0)
        assert isinstance(Vh, np.ndarray), name
        assert result.info.n_seen == 90, name
        if method == "one_pass":
            # Squares are summed in another order, in float32: √m·u of ‖A‖_F² over 2·S[2].
            np.testing.assert_allclose(S, expected.S, rtol=100 * 2.0**-24, err_msg=name)
        assert projection_error(A, Vh) <= result.info.error


def test_torch_and_sparse_sources():
    A = decaying(50, 20)
    assert isinstance(la.streaming_svd([A[:30], A[30:]], 3).Vh, torch.Tensor)
    assert isinstance(la.streaming_svd(A.to_sparse_csr(), 3).Vh, torch.Tensor)
    assert isinstance(la.streaming_svd(scipy.sparse.csr_array(A.numpy()), 3).Vh, np.ndarray)
    integers = la.streaming_svd(iter([np.eye(9, dtype=int), np.eye(9, dtype=int)]), 3)
    assert integers.S.dtype == np.float64
    np.testing.assert_allclose(integers.S, math.sqrt(2), rtol=1e-14)


def test_progress(shards):
    folder, _ = shards
    calls = []
    la.streaming_svd(folder, 3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(23, 90), (46, 90), (68, 90), (90, 90)]
    calls.clear()
    la.streaming_svd(iter([np.eye(4)] * 2), 3, progress=lambda *call: calls.append(call))
    assert calls == [(4, None), (8, None)]


def test_the_reader_has_a_thread_of_its_own(shards, threads):
    folder, A = shards
    seen = []

    def look(done, rows):
        seen.append(torch.get_num_threads())

    def fail(done, rows):
        raise KeyError

    for number in (1, 2, 3):
        with threads(number):
            la.streaming_svd(folder, 2, progress=look)
            with pytest.raises(KeyError):
                la.streaming_svd(folder, 2, progress=fail)
            assert torch.get_num_threads() == number
            assert set(seen) == {max(1, number - 1)}
            seen.clear()
            # Nothing is read ahead of what is in memory.
            la.streaming_svd([A], 2, progress=look)
            assert set(seen) == {number}
            seen.clear()


def test_threads_do_not_show_but_for_rounding(threads):
    # More rows than two threads visit before they wait for each other.
    A = la.random_matrix(20_000, 30, seed=0, dtype=torch.float32)
    results = []
    for number in (1, 2, 2):
        with threads(number):
            results.append(la.streaming_svd(A, 3, oversample=5, seed=0))
    assert all(torch.equal(one, two) for one, two in zip(*results[1:], strict=True))
    # Sums of the same products in another order, and these in double precision.
    torch.testing.assert_close(results[0].S, results[1].S, rtol=8 * unit_roundoff(A), atol=0)
    assert results[0].info.error == pytest.approx(results[1].info.error, rel=1e-6)


def test_wrong_sources(tmp_path):
    with pytest.raises(ValueError, match="directory without"):
        la.streaming_svd(tmp_path, 3)
    with pytest.raises(FileNotFoundError):
        la.streaming_svd(tmp_path / "none.npy", 3)
    with pytest.raises(ValueError, match="rows must be finite, got nan at index"):
        la.streaming_svd([np.eye(4), np.full((2, 4), np.nan)], 3)
