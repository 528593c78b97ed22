"""The contract that every registered operator keeps; an operator without samples fails."""

import pytest
import torch

import fastlr
import fastlr.linalg  # registers the operators
import fastlr.linalg as la
from fastlr.linalg.bit_mask import pack_mask
from references import unit_roundoff

OPS = torch.ops.fastlr


def matrix(m, n, dtype=torch.float64):
    return torch.randn(m, n, dtype=dtype, generator=torch.Generator().manual_seed(m + 100 * n))


def reflectors(V, lower):
    """V and its factors."""
    return V, *torch.ops.fastlr.householder_product(V, 0, lower)[1:]


def svd_gradients(m, n, dtype=torch.float64):
    """A matrix, three of its singular triplets, and a gradient for each factor."""
    A = matrix(m, n, dtype)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    factors = U[:, :3].contiguous(), S[:3].contiguous(), Vh[:3].contiguous()
    return (A, *factors, *(factor.square() for factor in factors))


def joint_factors(count, m, w, dtype=torch.float64):
    """Orthonormal bases, singular values, and the rest and norm of each matrix."""
    U = torch.stack([torch.linalg.qr(matrix(m, w + j, dtype))[0][:, :w] for j in range(count)])
    S = 0.5 ** torch.arange(w, dtype=torch.float64).expand(count, w)
    return U, S.contiguous(), torch.full((count,), 0.1).double(), 1 + torch.arange(count).double()


def incremental(n, rank, added, dtype=torch.float64):
    """The core of a matrix of n columns, and its right factor's adjoint above some rows."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    right = torch.linalg.qr(matrix(n, rank, dtype)).Q
    core = torch.diag(1.0 / torch.arange(1, rank + 1)).to(wide)
    return core, torch.cat([right.mH, matrix(added, n, dtype)])


def weight(n, dtype=torch.float64):
    """A positive definite matrix."""
    A = matrix(n, 2 * n, dtype)
    return A @ A.mH


def sparse(o, i, density, dtype=torch.float64):
    """The kept entries of a matrix, and their bits."""
    kept = matrix(i, o).T.abs() < torch.special.ndtri(torch.tensor((1 + density) / 2))
    return matrix(o, i, dtype)[kept], pack_mask(kept)


def low_rank(tokens, o, i, r, dtype=torch.float64):
    """Inputs of a layer, its two factors and its bias."""
    X, A, B = matrix(tokens, i, dtype), matrix(r, i, dtype), matrix(o, r, dtype)
    return X, A, B, matrix(o, 1, dtype)[:, 0]


def interpolative_layer(tokens, o, i, r, of_rows, dtype=torch.float64):
    """Inputs of a layer, its skeleton, its coefficients, its order and its bias."""
    skeleton, coefficients = ((r, i), (o - r, r)) if of_rows else ((o, r), (r, i - r))
    order = torch.arange(o if of_rows else i, dtype=torch.int32).roll(2).contiguous()
    factors = matrix(*skeleton, dtype), matrix(*coefficients, dtype)
    return matrix(tokens, i, dtype), *factors, order, matrix(o, 1, dtype)[:, 0]


def nonnegative_rows(m, k, dtype=torch.float64):
    """A nonnegative matrix, a Gram matrix, and right-hand sides."""
    return matrix(m, k, dtype).abs(), weight(k, dtype) / (2 * k), matrix(m + 1, k, dtype)[1:]


SKETCHES = ("gaussian", "rademacher", "sparse_sign", "countsketch", "srht", "uniform")


# name -> (samples: argument tuples, the first a matrix unless there is none; differentiable)
SAMPLES = {
    "random_matrix": (
        [
            (5, 7, kind, 3, 1, 2, dtype, torch.device("cpu"))
            for kind in ("gaussian", "uniform", "sign")
            for dtype in (torch.float32, torch.float64)
        ],
        False,
    ),
    "sketch_apply": (
        [
            (matrix(30, 5, dtype), kind, 8, 40, 1, 1 if kind == "countsketch" else 3, 4)
            for kind in SKETCHES
            for dtype in (torch.float64, torch.float32, torch.complex128)
        ],
        True,
    ),
    "sketch_adjoint": (
        [
            (matrix(8, 5, dtype), kind, 8, 40, 1, 1 if kind == "countsketch" else 3, 4, 30)
            for kind in SKETCHES
            for dtype in (torch.float64, torch.float32, torch.complex128)
        ],
        True,
    ),
    "gaussian_product": (
        [
            (matrix(6, 5), 5, 4, 1, False),
            (matrix(6, 4), 5, 4, 1, True),
            (matrix(6, 5, torch.float32), 5, 4, 1, False),
        ],
        True,
    ),
    "orthonormalize": ([(matrix(9, 4),), (matrix(4, 9, torch.float32),)], False),
    "randomized_svd": (
        [
            (matrix(30, 20), 3, 4, None, "subspace", "full", False, 0),
            (matrix(20, 30, torch.float32), 3, 4, 2, "krylov", "full", True, 0),
            (matrix(8, 6), 5, 10, None, "subspace", "full", False, 0),
            (matrix(30, 20, torch.complex128), 3, 4, 1, "subspace", "full", False, 0),
            (matrix(30, 20).expand(2, 3, 30, 20), 3, 4, None, "single_pass", "full", False, 0),
            (matrix(20, 30), 3, 4, None, "nystrom", "full", False, 0),
        ],
        True,
    ),
    "adaptive_svd": (
        [
            (matrix(60, 50), 0.5, None, 4, None, False, 0),
            (matrix(50, 60, torch.complex64), 0.5, 30, 4, 1, True, 0),
        ],
        True,
    ),
    "svd_backward": (
        [
            (*svd_gradients(30, 20), False),
            (*svd_gradients(20, 30, torch.complex128), True),
            (*svd_gradients(8, 6, torch.float32)[:5], None, None, False),
        ],
        False,
    ),
    "interpolative": (
        [
            (matrix(30, 20), 3, None, False, 0),
            (matrix(30, 20), 3, None, True, 0),
            (matrix(6, 8, torch.float32), 6, None, False, 0),
            (matrix(8, 6), 6, None, False, 0),
            (matrix(30, 20, torch.complex64), 6, None, True, 0),
            (matrix(30, 20), None, 0.3, False, 0),
            (torch.stack([matrix(30, 20), matrix(30, 20)]), 3, None, True, 0),
        ],
        False,
    ),
    "pivoted_qr": (
        [
            (matrix(30, 20), None, 0.0, None, 0),
            (matrix(20, 30, torch.complex64), 6, 0.0, 2.0, 0),
            (matrix(100, 20, torch.float32), None, 0.0, None, 0),
            (matrix(30, 20), None, 0.3, None, 0),
            (torch.stack([matrix(30, 20), matrix(30, 20)]), 7, 0.0, None, 0),
        ],
        False,
    ),
    "cur": (
        [
            (matrix(30, 20), 4, None, None, "projection", 0),
            (matrix(20, 30, torch.complex64), 4, None, None, "intersection", 0),
            (matrix(6, 8, torch.float32), 4, torch.tensor([5, 0, 7, 2]), None, "intersection", 0),
            (matrix(8, 6), 2, torch.tensor([5, 0]), torch.tensor([1, 7]), "projection", 0),
        ],
        False,
    ),
    "joint_factors": (
        [
            ([matrix(12, 9), matrix(12, 4)], 5, 1, 0, "test"),
            ([matrix(6, 20, torch.complex64)], 10, 0, 0, "test"),
        ],
        False,
    ),
    "joint_bounds": (
        [
            (*joint_factors(3, 12, 5), 3, 1e-16),
            (*joint_factors(2, 8, 8, torch.complex128), 8, 1e-16),
        ],
        False,
    ),
    "cluster_matrices": (
        [
            (*joint_factors(4, 12, 5, dtype), 3, 0.5, 1e-16, bound)
            for bound in ("weyl", "residual", "estimate")
            for dtype in (torch.float64, torch.complex128)
        ],
        False,
    ),
    "incremental_append": (
        [
            (*incremental(20, 0, 6), 5, 0.0, [0.0, 0.0, 0.0]),
            (*incremental(20, 4, 6), 5, 0.0, [0.1, 0.2, 0.3]),
            (*incremental(20, 4, 3, torch.complex64), 9, 0.0, 3 * [0.0]),
            (*incremental(8, 4, 9, torch.float32), 9, 0.5, 3 * [0.0]),
        ],
        False,
    ),
    "incremental_compose": (
        [
            (
                [
                    matrix(5, 3),
                ],
            ),
            ([matrix(5, 3), matrix(3, 4), matrix(6, 4), matrix(4, 2), matrix(1, 2)],),
        ],
        False,
    ),
    "incremental_compress": (
        [
            (matrix(9, 4), matrix(4, 4), matrix(8, 4), 0, 3, 0.0, [0.1, 0.2, 0.3]),
            (matrix(9, 2), matrix(2, 2), matrix(8, 2), 3, 3, 0.0, [0.0, 0.0, 0.0]),
        ],
        False,
    ),
    "weighted_low_rank": (
        [
            (matrix(12, 9), None, None, None, None, None, None, None),
            (matrix(9, 12), weight(9), None, weight(12), None, None, 4, None),
            (
                matrix(12, 9, torch.complex64),
                None,
                None,
                weight(9, torch.complex128),
                None,
                0.1 * torch.ones(9),
                3,
                None,
            ),
            (matrix(12, 9), torch.ones(12), None, *torch.linalg.eigh(weight(9)), None, None, 0.5),
        ],
        False,
    ),
    "householder_product": (
        [
            (matrix(90, 70), 35, False),
            (matrix(9, 4, torch.complex128), 6, True),
            (matrix(5, 5, torch.float32).expand(2, 3, 5, 5), 5, True),
        ],
        True,
    ),
    "householder_apply": (
        [
            (matrix(40, 35), matrix(40, 2), False, False),
            (matrix(9, 4, torch.complex64), matrix(9, 3, torch.complex64), True, True),
        ],
        True,
    ),
    "householder_backward": (
        [
            (*reflectors(matrix(9, 4), lower), matrix(9, 3), matrix(9, 3), adjoint, lower, False)
            for adjoint in (False, True)
            for lower in (False, True)
        ],
        False,
    ),
    "householder_vectors": ([(torch.eye(6, 4, dtype=torch.float64).flip(0),)], False),
    "nonnegative_rows": (
        [
            (*nonnegative_rows(19, 5), 0.1, 4, 0.01),
            (*nonnegative_rows(8, 12, torch.float32), 0.0, 20, 0.0),
            (*nonnegative_rows(3, 2), 0.5, 0, 0.0),
        ],
        False,
    ),
    "sparse_expand": (
        [(*sparse(5, 11, 0.6), 11), (*sparse(4, 70, 0.3, torch.float32), 70)],
        True,
    ),
    "sparse_gather": (
        [
            (matrix(o, i, dtype), mask, len(values))
            for o, i, dtype in [(5, 11, torch.float64), (4, 70, torch.float32)]
            for values, mask in [sparse(o, i, 0.6)]
        ],
        True,
    ),
    "sparse_linear": (
        [
            (matrix(3, 11), *sparse(5, 11, 0.6)),
            (matrix(20, 11), *sparse(5, 11, 0.6)),
            (matrix(3, 70).expand(2, 3, 70), *sparse(4, 70, 0.3)),
            (matrix(3, 150, torch.float32), *sparse(7, 150, 0.8, torch.float32)),
        ],
        True,
    ),
    "sparse_linear_adjoint": (
        [
            (matrix(3, 5), *sparse(5, 11, 0.6), 11),
            (matrix(20, 7, torch.float32), *sparse(7, 150, 0.8, torch.float32), 150),
        ],
        True,
    ),
    "low_rank_linear": (
        [
            low_rank(3, 5, 11, 2),
            low_rank(20, 5, 11, 2),
            (*low_rank(20, 7, 6, 6, torch.float32)[:3], None),
        ],
        True,
    ),
    "low_rank_linear_backward": (
        [
            (matrix(3, 5), *low_rank(3, 5, 11, 2)[:3], [True, True, True]),
            (matrix(20, 5), *low_rank(20, 5, 11, 2)[:3], [False, False, True]),
        ],
        False,
    ),
    "interpolative_linear": (
        [
            (*interpolative_layer(3, 5, 11, 2, True), True),
            (*interpolative_layer(20, 5, 11, 2, False), False),
            (*interpolative_layer(20, 7, 6, 6, True, torch.float32)[:4], None, True),
        ],
        True,
    ),
    "interpolative_linear_backward": (
        [
            (matrix(3, 5), *interpolative_layer(3, 5, 11, 2, of_rows)[:4], of_rows, wanted)
            for of_rows in (True, False)
            for wanted in ([True, True, True], [False, True, False])
        ],
        False,
    ),
    "sparse_products": (
        [
            (matrix(3, o), matrix(3, i), mask, len(values))
            for o, i in [(5, 11), (4, 70)]
            for values, mask in [sparse(o, i, 0.6)]
        ],
        True,
    ),
}
# For finite differences, where the samples are approximations: factors to rounding, by a dense SVD.
EXACT = {
    "randomized_svd": [(matrix(8, 6), 5, 10, None, "subspace", "full", False, 0)],
    "adaptive_svd": [(matrix(8, 6), 0.5, None, 4, None, False, 0)],
}
# A matrix without entries, where the operator has an answer for one.
EMPTY = {
    "gaussian_product": (torch.empty(0, 5), 5, 4, 1, False),
    "sketch_apply": (torch.empty(0, 5), "srht", 2, 4, 1, 1, 0),
    "sketch_adjoint": (torch.empty(2, 0), "sparse_sign", 2, 4, 1, 1, 0, 4),
    "orthonormalize": (torch.empty(0, 3),),
    "householder_product": (torch.empty(3, 0), 2, False),
    "householder_apply": (torch.empty(3, 0), torch.ones(3, 2), False, False),
    "householder_backward": (
        *reflectors(torch.empty(3, 0), False),
        torch.ones(3, 2),
        torch.ones(3, 2),
        False,
        False,
        False,
    ),
    "householder_vectors": (torch.empty(3, 0),),
    "nonnegative_rows": (torch.empty(0, 3), torch.eye(3), torch.empty(0, 3), 0.0, 2, 0.0),
    "randomized_svd": (torch.empty(4, 0), 1, 0, None, "subspace", "full", False, 0),
}

registered = sorted(
    name.removeprefix("fastlr::").partition(".")[0]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("fastlr::")
)
cases = [
    pytest.param(name, sample, id=f"{name}-{i}")
    for name, (samples, _) in SAMPLES.items()
    for i, sample in enumerate(samples)
]
matrix_cases = [case for case in cases if isinstance(case.values[1][0], torch.Tensor)]


def run(name, sample):
    result = getattr(OPS, name)(*sample)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def assert_equal_to_rounding(one, two, A):
    for a, b in zip(one, two, strict=True):
        # The samples are 30 × 20 at most, with gaps between their singular values: 10⁴·u covers
        # the condition of the singular vectors.
        torch.testing.assert_close(a, b, rtol=1e4 * unit_roundoff(A), atol=1e4 * unit_roundoff(A))


def test_every_operator_has_samples():
    assert registered == sorted(SAMPLES)


@pytest.mark.parametrize(("name", "sample"), cases)
def test_opcheck(name, sample):
    torch.library.opcheck(getattr(OPS, name).default, sample)


# Of layers: they take their products in the lower type, as a dense layer does.
LOWERED = ("sparse_linear", "low_rank_linear", "interpolative_linear")


@pytest.mark.parametrize(
    ("name", "sample"), [case for case in cases if case.values[0] not in LOWERED]
)
def test_autocast_changes_nothing(name, sample):
    expected = run(name, sample)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(name, sample)
    for a, b in zip(got, expected, strict=True):
        # Memory that is laid out otherwise may add up otherwise: rounding, and no bfloat16.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_autocast_changes_nothing_behind_the_operators():
    X = matrix(20, 60, torch.float32).abs()
    calls = (
        lambda: la.tucker(X.reshape(20, 6, 10), 3, seed=0).core,
        lambda: la.lstsq(X.mT, X[0])[0],
        lambda: la.streaming_svd(X, 5, seed=0)[1],
    )
    for call in calls:
        expected = call()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = call()
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (_, smooth) in SAMPLES.items() if smooth])
def test_gradcheck(name):
    for sample in EXACT.get(name, SAMPLES[name][0]):
        if sample[0].dtype == torch.float64:
            A = sample[0].clone().requires_grad_()
            assert torch.autograd.gradcheck(lambda X, s=sample: run(name, (X, *s[1:])), A)


@pytest.mark.parametrize("name", [n for n, (s, smooth) in SAMPLES.items() if not smooth])
def test_not_differentiable_is_an_error_not_a_zero(name):
    for sample in SAMPLES[name][0]:
        if isinstance(sample[0], torch.Tensor):
            A = sample[0].clone().requires_grad_()
            outputs = [out for out in run(name, (A, *sample[1:])) if out.requires_grad]
            assert outputs
            with pytest.raises(RuntimeError, match="is not differentiable"):
                sum(out.abs().sum() for out in outputs).backward()


@pytest.mark.parametrize(("name", "sample"), matrix_cases)
def test_input_is_not_written_to(name, sample):
    before = sample[0].clone()
    run(name, sample)
    assert torch.equal(sample[0], before)


@pytest.mark.parametrize(("name", "sample"), matrix_cases)
def test_non_contiguous_input(name, sample):
    A, expected = sample[0], run(name, sample)
    views = [A.repeat_interleave(3, -1)[..., ::3]]
    if A.ndim > 1:
        views[0] = A.repeat_interleave(2, -2).repeat_interleave(3, -1)[..., ::2, ::3]
        views.append(A.mT.contiguous().mT)
    for view in views:
        assert_equal_to_rounding(run(name, (view, *sample[1:])), expected, A)


@pytest.mark.parametrize(("name", "sample"), matrix_cases)
def test_thread_count(name, sample, threads):
    with threads(1):
        one = run(name, sample)
    with threads(2):
        two = run(name, sample)
    assert_equal_to_rounding(one, two, sample[0])


@pytest.mark.parametrize("name", EMPTY)
def test_empty_input(name):
    for out in run(name, EMPTY[name]):
        assert not out.isnan().any()
    torch.library.opcheck(getattr(OPS, name).default, EMPTY[name], test_utils="test_schema")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "sample"), matrix_cases)
def test_cuda_agrees_with_the_cpu(name, sample):
    if not fastlr.build_info()["cuda"]:
        pytest.skip("fastlr was built without CUDA kernels")
    if name.startswith("sketch_") and sample[1] in ("sparse_sign", "countsketch", "srht"):
        pytest.skip("these sketches run on the CPU only")
    of_layer = name.startswith(("sparse_", "low_rank_", "interpolative_linear"))
    moved = len(sample) if of_layer else 1
    on_device = [x.cuda() if isinstance(x, torch.Tensor) else x for x in sample[:moved]]
    on_device = run(name, (*on_device, *sample[moved:]))
    assert_equal_to_rounding([out.cpu() for out in on_device], run(name, sample), sample[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_draws_have_the_bits_of_the_cpu():
    if not fastlr.build_info()["cuda"]:
        pytest.skip("fastlr was built without CUDA kernels")
    for sample in SAMPLES["random_matrix"][0]:
        on_device = OPS.random_matrix(*sample[:-1], torch.device("cuda"))
        assert torch.equal(on_device.cpu(), OPS.random_matrix(*sample))
