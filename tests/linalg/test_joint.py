"""Bounds of joint SVDs and the clusters that they decide, against SciPy's SVD of all together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, orthonormality_error, singular_values, tail_norm, unit_roundoff
from strategies import matrices, seeds, spectra, with_spectrum

BOUNDS = ("weyl", "residual", "estimate")
ALL_DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def truth(family, rank, axis=1):
    """‖A − A_rank‖_F / ‖A‖_F of all matrices together, scaled so that squares are in range."""
    A = np.concatenate([exact(part) for part in family], axis=axis)
    largest = np.abs(A).max(initial=0.0)
    if largest == 0:
        return 0.0
    return tail_norm(A / largest, rank) / float(np.linalg.norm(A / largest))


@st.composite
def families(draw, max_height=30):
    """Matrices of the same rows; some share a subspace, and sizes differ by orders."""
    m = draw(st.integers(1, max_height))
    dtype = draw(st.sampled_from(ALL_DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    shared = rng.standard_normal((m, draw(st.integers(1, 4))))
    noise = draw(st.sampled_from([0.0, 1e-6, 0.1]))
    family = []
    for _ in range(draw(st.integers(1, 6))):
        n = draw(st.integers(1, 20))
        if draw(st.booleans()):
            A = shared @ rng.standard_normal((shared.shape[1], n)) + noise * rng.standard_normal(
                (m, n)
            )
        else:
            values = draw(spectra(min(m, n)))
            A = with_spectrum(m, n, values, seed=draw(st.integers(0, 2**31))).numpy()
        if dtype.is_complex:
            A = A * np.exp(1j * rng.uniform(0, 6, n))
        family.append(torch.from_numpy(A * 10.0 ** draw(st.integers(-3, 3))).to(dtype))
    return family


def drawn_rank(data, family):
    most = min(family[0].shape[0], sum(A.shape[1] for A in family))
    return data.draw(st.integers(1, most), label="rank")


# ---- bounds ----


@given(family=families(), data=st.data(), seed=seeds)
def test_bounds_are_above_the_truth_and_in_order(family, data, seed):
    rank = drawn_rank(data, family)
    settings = data.draw(st.sampled_from([(0, 0), (2, 0), (10, 2)]))
    found = la.joint_svd_bounds(
        family, rank, oversample=settings[0], power_iters=settings[1], seed=seed
    )
    assert 1 >= found.weyl >= found.residual >= found.estimate
    # 1e-15: the rounding of the reference, whose singular values are off by u·σ₁.
    assert found.estimate >= truth(family, rank) - 1e-15
    assert found.norm == pytest.approx(np.linalg.norm([np.linalg.norm(exact(A)) for A in family]))


@given(family=families(), data=st.data())
def test_full_factors_give_the_formulas(family, data):
    """With as many columns as there are the first is Weyl's formula, and the last the truth."""
    rank, m = drawn_rank(data, family), family[0].shape[0]
    found = la.joint_svd_bounds(family, rank, oversample=m, seed=0)
    values = np.zeros((len(family), m))
    for j, A in enumerate(family):
        values[j, : min(A.shape)] = singular_values(A)
    values = -np.sort(-values, axis=0)
    # Of the k-th values the largest is captured.
    weyl = math.hypot(np.linalg.norm(values[1:]), np.linalg.norm(values[0, rank:]))
    # 20·√w·u is added for rounding; w = m here. As much again is rounding that there is.
    near = 40 * math.sqrt(m) * unit_roundoff(family[0])
    assert found.weyl == pytest.approx(min(1, weyl / np.linalg.norm(values)), abs=near)
    assert found.estimate == pytest.approx(truth(family, rank), abs=near)


def test_the_residual_bound_is_that_of_the_best_basis():
    family = planted(groups=2, each=2)
    A = np.concatenate([exact(part) for part in family], 1)
    outside = []
    for part in family:
        U = np.linalg.svd(exact(part))[0][:, :4]
        outside.append(np.linalg.norm(A - U @ (U.T @ A)) / np.linalg.norm(A))
    # Full factors; a gap of 100 between the singular values behind U.
    assert la.joint_svd_bounds(family, 4, oversample=46, seed=0).residual == pytest.approx(
        min(outside), rel=1e-10
    )


@given(A=matrices(max_size=30), data=st.data())
def test_a_single_matrix_has_three_equal_bounds(A, data):
    rank = data.draw(st.integers(1, min(A.shape)))
    found = la.joint_svd_bounds([A], rank, oversample=30, seed=0)
    assert found.weyl == pytest.approx(found.estimate, abs=1e-7)
    near = 20 * math.sqrt(30) * unit_roundoff(A)
    assert found.estimate == pytest.approx(truth([A], rank), abs=near + 1e-15)


def test_the_order_is_that_of_what_the_bounds_see():
    """Equal matrices: their spectra do not show it, their bases do."""
    A = with_spectrum(40, 30, np.r_[np.ones(5), np.full(25, 1e-3)])
    found = la.joint_svd_bounds([A] * 4, 5, oversample=35, seed=0)
    assert found.weyl == pytest.approx(math.sqrt(3 / 4), rel=1e-4)
    assert found.residual == pytest.approx(truth([A], 5), rel=1e-6)
    # Half of a space each: no basis of one will do, both together do.
    Q = torch.linalg.qr(la.random_matrix(40, 6, seed=1, dtype=torch.float64))[0]
    halves = [Q[:, :3] @ la.random_matrix(3, 9, seed=2, dtype=torch.float64), Q[:, 3:]]
    found = la.joint_svd_bounds(halves, 6, seed=0)
    assert found.residual > 0.1
    assert found.estimate < 1e-13


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_nothing_cancels(dtype):
    """Exactly low rank: the bound is some u, where ‖A‖² − captured would leave √u."""
    space = la.random_matrix(60, 4, seed=0, dtype=dtype.to_real())
    phases = torch.exp(1j * torch.arange(30)) if dtype.is_complex else torch.ones(30)
    family = [
        (space @ la.random_matrix(4, 30, seed=j, dtype=dtype.to_real())).to(dtype)
        * phases.to(dtype)
        for j in range(1, 9)
    ]
    found = la.joint_svd_bounds(family, 4, seed=0)
    u = unit_roundoff(family[0])
    # 20·√14·u are added; the products of the test are themselves rounded to a few u.
    assert truth(family, 4) <= found.estimate <= 100 * u < 0.1 * math.sqrt(u)
    merged = la.cluster_matrices(family, 150 * u, rank=4, seed=0)
    assert merged.clusters == [list(range(8))]
    assert truth(family, 4) <= merged.predicted_errors[0] <= 150 * u


def test_better_factors_make_tighter_bounds():
    """The negative control: poor sketches give valid bounds too, and loose ones."""
    family = [with_spectrum(60, 50, 0.9 ** np.arange(50), seed=j) for j in range(3)]
    poor = la.joint_svd_bounds(family, 5, oversample=0, power_iters=0, seed=0)
    good = la.joint_svd_bounds(family, 5, oversample=30, power_iters=3, seed=0)
    correct = truth(family, 5)
    assert poor.estimate > 1.01 * good.estimate
    assert correct <= good.estimate <= 1.001 * correct


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        (torch.float64, 2.0**664),
        (torch.float64, 2.0**-664),
        (torch.float32, 2.0**100),
        (torch.complex64, 2.0**-100),
    ],
)
def test_scale(dtype, factor):
    family = [with_spectrum(30, 20, 0.5 ** np.arange(20), seed=j).to(dtype) for j in range(4)]
    plain = la.joint_svd_bounds(family, 5, seed=0)
    large = la.joint_svd_bounds([A * factor for A in family], 5, seed=0)
    # A power of two: the steps in lower precision round alike, and sums are of a few terms.
    for name in BOUNDS:
        assert getattr(large, name) == pytest.approx(
            getattr(plain, name), rel=100 * unit_roundoff(family[0])
        )
    assert large.norm == pytest.approx(plain.norm * factor, rel=1e-5)


def test_tiny_matrices_beside_huge_ones_form_clusters_of_their_own():
    spaces = [with_spectrum(30, 3, np.ones(3), seed=j) for j in range(2)]
    family = [
        1e180 ** (1 if j < 3 else -1) * spaces[j // 3] @ with_spectrum(3, 9, np.ones(3), seed=9 + j)
        for j in range(6)
    ]
    # A tiny matrix costs a huge one nothing: the clusters of equal sizes come first, but then they
    # do merge, since the error is relative to the cluster.
    found = la.cluster_matrices(family[3:], 0.01, seed=0)
    assert found.clusters == [[0, 1, 2]]
    assert found.errors[0] < 1e-12
    assert truth([A * 1e180 for A in family[3:]], 3) <= found.predicted_errors[0] < 1e-12
    everything = la.cluster_matrices(family, 0.01, seed=0)
    assert all(error <= 0.01 for error in everything.errors)


# ---- clusters ----


def planted(groups=3, each=4, m=50, rank=4, noise=0.01, dtype=torch.float64, n=25):
    """Matrices j, j + groups, j + 2 groups … lie near the same space of dimension `rank`."""
    family = []
    for j in range(groups * each):
        space = with_spectrum(m, rank, np.ones(rank), seed=j % groups).numpy()
        rng = np.random.default_rng(100 + j)
        A = space @ rng.standard_normal((rank, n)) + noise / math.sqrt(m) * rng.standard_normal(
            (m, n)
        )
        if dtype.is_complex:
            A = A * np.exp(1j * np.arange(n))
        family.append(torch.from_numpy(A).to(dtype))
    return family


@pytest.mark.parametrize("bound", ["residual", "estimate"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_planted_groups_are_found(bound, dtype):
    family = planted(dtype=dtype)
    found = la.cluster_matrices(family, 0.05, bound=bound, rank=4, seed=0)
    assert found.clusters == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert found.labels.tolist() == [0, 1, 2] * 4
    for members, basis, predicted in zip(
        found.clusters, found.bases, found.predicted_errors, strict=True
    ):
        assert basis.dtype == dtype
        assert orthonormality_error(basis) <= 10
        assert truth([family[j] for j in members], 4) <= predicted <= 0.05


def test_decisions_below_what_a_gram_matrix_sees():
    """Spaces 1e-9 apart: the eigenvalues behind the candidates are off by 1e-16, errors by 1e-8."""
    space, other = (la.random_matrix(50, 4, seed=j, dtype=torch.float64) for j in range(2))
    family = [
        (space + 1e-9 * (j % 2) * other) @ la.random_matrix(4, 25, seed=10 + j, dtype=torch.float64)
        for j in range(6)
    ]
    for bound in ("residual", "estimate"):
        found = la.cluster_matrices(family, 1e-11, bound=bound, rank=4, seed=0)
        assert found.clusters == [[0, 2, 4], [1, 3, 5]]
        # 20·√14·u are added.
        assert max(found.predicted_errors) < 1e-13
        assert la.cluster_matrices(family, 1e-8, bound=bound, rank=4, seed=0).clusters == [
            [*range(6)]
        ]


def test_the_rank_is_that_which_single_matrices_need():
    family = planted(rank=7, groups=2)
    found = la.cluster_matrices(family, 0.05, seed=0)
    assert found.rank == 7
    assert len(found.clusters) == 2
    # With fewer, the matrices of a group do not meet the tolerance, and nothing is merged.
    assert len(la.cluster_matrices(family, 0.05, rank=5, seed=0).clusters) == len(family)
    # More than the first guess of 10 columns.
    assert la.cluster_matrices(planted(rank=23, groups=1, n=40), 0.05, seed=0).rank == 23


def test_weyl_merges_what_is_small_beside_something_large():
    large, small = (
        with_spectrum(30, 20, np.ones(3), seed=0),
        with_spectrum(30, 20, np.ones(3), seed=1),
    )
    found = la.cluster_matrices([large, 0.01 * small, large], 0.05, bound="weyl", rank=3, seed=0)
    assert found.clusters == [[0, 1], [2]]
    # The other two see that the large ones are equal.
    for bound in ("residual", "estimate"):
        found = la.cluster_matrices([large, 0.01 * small, large], 0.05, bound=bound, rank=3, seed=0)
        assert found.clusters == [[0, 1, 2]]


@given(
    family=families(max_height=20),
    tol=st.sampled_from([1e-9, 1e-3, 0.1, 0.5, 0.9]),
    bound=st.sampled_from(BOUNDS),
    ranked=st.booleans(),
    data=st.data(),
    seed=seeds,
)
def test_clusters_keep_the_tolerance(family, tol, bound, ranked, data, seed):
    rank = drawn_rank(data, family) if ranked else None
    found = la.cluster_matrices(family, tol, bound=bound, rank=rank, oversample=3, seed=seed)
    assert sorted(j for members in found.clusters for j in members) == list(range(len(family)))
    # The rounding of the measurement: products of the dtype, a few √m·u.
    near = 40 * math.sqrt(20) * unit_roundoff(family[0])
    for label, members in enumerate(found.clusters):
        assert [j for j, each in enumerate(found.labels.tolist()) if each == label] == members
        cluster = [family[j] for j in members]
        predicted = found.predicted_errors[label]
        assert predicted >= truth(cluster, found.rank) - 1e-15
        if len(members) > 1:
            assert predicted <= tol
        assert found.errors[label] <= predicted + near
        approximated = [found.bases[label] @ found.coefficients[j] for j in members]
        difference = np.concatenate(
            [exact(a) - exact(b) for a, b in zip(cluster, approximated, strict=True)], 1
        )
        norm = np.linalg.norm(np.concatenate([exact(A) for A in cluster], 1))
        assert np.linalg.norm(difference) / max(norm, 1e-300) == pytest.approx(
            found.errors[label], abs=near
        )


@pytest.mark.parametrize("bound", BOUNDS)
def test_more_is_merged_with_a_larger_tolerance(bound):
    family = planted(noise=0.3)
    counts = [
        len(la.cluster_matrices(family, tol, bound=bound, rank=4, seed=0).clusters)
        for tol in (0.01, 0.4, 0.99)
    ]
    assert counts[0] == len(family) > counts[1] >= counts[2] or bound == "weyl"
    assert counts[0] >= counts[1] >= counts[2]
    assert counts[2] < len(family)


@pytest.mark.parametrize("bound", BOUNDS)
def test_order_axis_and_kind_do_not_matter(bound):
    family = planted()
    found = la.cluster_matrices(family, 0.05, bound=bound, rank=4, seed=3)
    order = np.random.default_rng(0).permutation(len(family))
    shuffled = la.cluster_matrices([family[j] for j in order], 0.05, bound=bound, rank=4, seed=3)
    assert {frozenset(order[members]) for members in shuffled.clusters} == {
        frozenset(members) for members in found.clusters
    }
    stacked = la.cluster_matrices([A.mT for A in family], 0.05, bound=bound, rank=4, axis=0, seed=3)
    assert stacked.clusters == found.clusters
    for label, part in zip(stacked.labels.tolist(), stacked.coefficients, strict=True):
        assert part.shape == (25, 4)
        assert stacked.bases[label].shape == (4, 50)
    assert (
        torch.dist(stacked.coefficients[0] @ stacked.bases[0], family[0].mT)
        <= 0.05 * family[0].norm()
    )
    arrays = la.cluster_matrices([A.numpy() for A in family], 0.05, bound=bound, rank=4, seed=3)
    assert isinstance(arrays.labels, np.ndarray)
    assert isinstance(arrays.bases[0], np.ndarray)
    np.testing.assert_array_equal(arrays.coefficients[5], found.coefficients[5].numpy())


def test_a_seed_gives_the_same_result_and_another_one_different_factors():
    family = planted()
    one, same, other = (la.joint_svd_bounds(family, 3, seed=seed) for seed in (0, 0, 1))
    assert one == same != other


def test_integers_half_precision_and_a_batch():
    family = torch.arange(48).reshape(3, 4, 4)
    assert la.joint_svd_bounds(family, 2, seed=0).estimate < 1e-5
    halves = [A.half() for A in planted()]
    found = la.cluster_matrices(halves, 0.05, rank=4, seed=0)
    assert found.bases[0].dtype == torch.float16
    assert len(found.clusters) == 3


@pytest.mark.parametrize("bound", BOUNDS)
def test_matrices_of_zeros_and_without_columns(bound):
    A = with_spectrum(20, 8, np.ones(8))
    family = [torch.zeros(20, 5, dtype=A.dtype), A, A[:, :0]]
    found = la.cluster_matrices(family, 0.1, bound=bound, rank=8, seed=0)
    assert found.clusters == [[0, 1, 2]]
    assert torch.equal(found.coefficients[0], torch.zeros(8, 5, dtype=A.dtype))
    assert found.coefficients[2].shape == (8, 0)
    assert found.errors[0] < 1e-14
    zeros = la.cluster_matrices(family[::2], 0.1, bound=bound, rank=3, seed=0)
    assert zeros.predicted_errors == zeros.errors == [0.0]
    assert orthonormality_error(zeros.bases[0]) <= 10
    nothing = la.joint_svd_bounds(family[::2], 3, seed=0)
    assert (nothing.weyl, nothing.estimate, nothing.norm) == (0, 0, 0)
    assert la.joint_svd_bounds([torch.ones(0, 4)], 1, seed=0).norm == 0
    assert la.cluster_matrices([torch.ones(0, 4)], 0.1, bound=bound, seed=0).clusters == [[0]]


def test_inputs_are_not_written_to():
    family = planted()
    before = [A.clone() for A in family]
    la.cluster_matrices(family, 0.05, seed=0)
    la.joint_svd_bounds(family, 3, seed=0)
    assert all(torch.equal(A, B) for A, B in zip(family, before, strict=True))


def bad(index, value):
    family = [torch.ones(4, 3), torch.ones(4, 2)]
    family[1][index] = value
    return family


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: la.joint_svd_bounds([], 1),
            ValueError,
            "joint_svd_bounds: matrices must not be empty",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(4, 3), torch.ones(5, 3)], 1),
            ValueError,
            r"matrices\[1\] must have the 4 rows of matrices\[0\], got 5",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(3, 4), torch.ones(3, 5)], 1, axis=0),
            ValueError,
            r"matrices\[1\] must have the 4 columns of matrices\[0\], got 5",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(4, 3), torch.ones(4, 3).double()], 1),
            TypeError,
            r"matrices\[1\] must be of the dtype and kind of matrices\[0\]",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(4, 3), np.ones((4, 3), np.float32)], 1),
            TypeError,
            "NumPy",
        ),
        (
            lambda: la.joint_svd_bounds(torch.ones(4, 3), 1),
            ValueError,
            r"matrices\[0\] must have 2",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(9, 3)] * 2, 7),
            ValueError,
            r"rank must be between 1 and min\(m, n\) = 6 of all matrices together, got 7",
        ),
        (lambda: la.cluster_matrices([torch.ones(4, 3)], 0.1, rank=0), ValueError, "got 0"),
        (
            lambda: la.cluster_matrices([torch.ones(4, 3)], 1.0),
            ValueError,
            "tol must be between 0 and 1",
        ),
        (
            lambda: la.cluster_matrices([torch.ones(4, 3)], math.nan),
            ValueError,
            "tol must be between",
        ),
        (
            lambda: la.cluster_matrices([torch.ones(4, 3)], 0.1, bound="wyel"),
            ValueError,
            """bound must be "weyl", "residual" or "estimate", got 'wyel'""",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(4, 3)], 1, axis=2),
            ValueError,
            "axis must be 0 or 1",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(4, 3)], 1, oversample=-1),
            ValueError,
            "oversample",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(4, 3)], 1, power_iters=-1),
            ValueError,
            "power_iters",
        ),
        (
            lambda: la.joint_svd_bounds([torch.ones(4, 3)], 1.5),
            TypeError,
            "rank must be an integer",
        ),
        (
            lambda: la.joint_svd_bounds(bad((2, 1), math.nan), 1),
            ValueError,
            r"joint_svd_bounds: matrices\[1\] must be finite, got nan at index \(2, 1\)",
        ),
        (
            lambda: la.cluster_matrices(bad((3, 0), math.inf), 0.1),
            ValueError,
            r"cluster_matrices: matrices\[1\] must be finite, got inf at index \(3, 0\)",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
