"""The best low-rank approximation through the inputs' second moments."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn.compression import Gram, solve

U = torch.finfo(torch.float64).eps
SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


def problem(shape, seed, tokens=200, decay=0.6):
    """A weight and strongly correlated inputs (tokens × i)."""
    rng = np.random.default_rng(seed)
    o, i = shape
    weight = torch.from_numpy(rng.standard_normal((o, i)))
    mixing = rng.standard_normal((i, i)) * decay ** np.arange(i)
    return weight, torch.from_numpy(rng.standard_normal((tokens, i)) @ mixing)


def output_energy(weight, inputs):
    return float((inputs @ weight.T).square().sum())


def reference_energies(weight, inputs):
    """Squared singular values of the outputs W X themselves, without any Gram matrix."""
    outputs = (inputs @ weight.T).numpy()
    values = scipy.linalg.svd(outputs, compute_uv=False) ** 2
    return np.pad(values, (0, max(0, min(weight.shape) - len(values))))[: min(weight.shape)]


@given(SHAPES, st.integers(0, 10_000), st.integers(1, 60))
def test_certificate_and_optimality(shape, seed, tokens):
    weight, inputs = problem(shape, seed, tokens)
    total = output_energy(weight, inputs)
    solution = solve(weight, Gram.of(inputs))
    best = reference_energies(weight, inputs)
    # G and C are sums of products with relative error (i + o + tokens)·u; an eigenvalue moves by at
    # most the norm of the error.
    tolerance = 4 * (sum(shape) + tokens) * U
    for rank in range(1, min(shape) + 1):
        truncated = solution.truncate(rank)
        measured = output_energy(weight - truncated.basis @ truncated.projected, inputs) / total
        assert abs(measured - truncated.relative_error) <= tolerance
        assert abs(measured - best[rank:].sum() / total) <= tolerance
        identity = torch.eye(rank, dtype=torch.float64)
        orthogonality = (truncated.basis.T @ truncated.basis - identity).norm()
        assert orthogonality <= 10 * rank * U


@given(SHAPES, st.integers(0, 10_000))
def test_full_rank_gives_the_weight_back(shape, seed):
    weight, inputs = problem(shape, seed, tokens=max(1, shape[1] // 3))
    truncated = solve(weight, Gram.of(inputs)).truncate(min(shape))
    error = (truncated.basis @ truncated.projected - weight).norm() / weight.norm()
    assert error <= 20 * max(shape) * U  # two products with orthonormal factors


@given(SHAPES, st.integers(0, 10_000), st.integers(-600, 600))
def test_scale_of_the_gram_matrix_changes_nothing(shape, seed, exponent):
    weight, inputs = problem(shape, seed)
    gram = Gram.of(inputs).matrix
    one, other = solve(weight, gram), solve(weight, gram * 2.0**exponent)
    torch.testing.assert_close(one.energies, other.energies, rtol=0, atol=0)
    torch.testing.assert_close(one.basis, other.basis, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_whitened_svd_is_the_same_optimum(shape):
    """The textbook route, through a Cholesky factor and its inverse, where they exist."""
    weight, inputs = problem(shape, seed=1, tokens=500, decay=0.95)
    gram = inputs.T @ inputs
    root = scipy.linalg.cholesky(gram.numpy(), lower=True)
    left, values, right = scipy.linalg.svd(weight.numpy() @ root, full_matrices=False)
    rank = 5
    textbook = (left[:, :rank] * values[:rank]) @ right[:rank] @ np.linalg.inv(root)
    truncated = solve(weight, gram).truncate(rank)
    ours = truncated.basis @ truncated.projected
    condition = np.linalg.cond(root)
    gap = (values[rank - 1] ** 2 - values[rank] ** 2) / values[0] ** 2
    # Eigenvectors are determined to rounding / gap, the inverse of the root costs its condition.
    bound = 10 * sum(shape) * U * (condition + 1 / gap)
    assert np.linalg.norm(textbook - ours.numpy()) <= bound * np.linalg.norm(textbook)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_plain_truncation_is_worse_on_correlated_inputs(shape):
    """The negative control: without the Gram matrix the output error is not the least."""
    weight, inputs = problem(shape, seed=2)
    aware = solve(weight, Gram.of(inputs)).truncate(4)
    blind = solve(weight).truncate(4)
    errors = [
        output_energy(weight - cut.basis @ cut.projected, inputs) / output_energy(weight, inputs)
        for cut in (aware, blind)
    ]
    assert errors[1] > 2 * errors[0]
    plain = [(weight - cut.basis @ cut.projected).norm() for cut in (aware, blind)]
    assert plain[1] < plain[0]


@pytest.mark.parametrize("shape", [(10, 16), (16, 10)])
def test_without_gram_it_is_the_singular_value_decomposition(shape):
    weight, _ = problem(shape, seed=3)
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    solution = solve(weight)
    expected = values**2 / (values**2).sum()
    np.testing.assert_allclose(solution.energies.numpy(), expected, rtol=0, atol=4 * sum(shape) * U)
    assert solution.total == pytest.approx((values**2).sum(), rel=sum(shape) * U)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_dead_channels_and_repeated_tokens(shape):
    """Inputs 0 to 3 never fire and all tokens are among three: five directions are silent."""
    weight, inputs = problem(shape, seed=4, tokens=3)
    inputs = inputs.repeat(7, 1)
    inputs[:, :4] = 0
    solution = solve(weight, Gram.of(inputs))
    truncated = solution.truncate(3)
    error = output_energy(weight - truncated.basis @ truncated.projected, inputs)
    assert error <= sum(shape) * U * output_energy(weight, inputs)
    assert bool((solution.energies[3:] == 0).all())


@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_silent_directions_are_ranked_by_weight(shape):
    """Beyond the energetic directions the plain error falls as fast as it can."""
    weight, inputs = problem(shape, seed=5, tokens=2)
    solution = solve(weight, Gram.of(inputs))
    kept = solution.basis[:, :2]
    remainder = weight - kept @ (kept.T @ weight)
    values = torch.linalg.svdvals(remainder)
    for rank in range(2, min(shape)):
        basis = solution.basis[:, :rank]
        error = float((weight - basis @ (basis.T @ weight)).square().sum())
        best = float(values[rank - 2 :].square().sum())
        assert error == pytest.approx(best, abs=10 * sum(shape) * U * float(weight.square().sum()))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_no_energy_at_all(shape):
    weight, _ = problem(shape, seed=6)
    silent = solve(weight, torch.zeros(shape[1], shape[1]))
    plain = solve(weight)
    assert silent.total == 0
    assert silent.truncate(2).relative_error == 0
    for rank in (2, 5):
        ours, best = silent.truncate(rank), plain.truncate(rank)
        difference = ours.basis @ ours.projected - best.basis @ best.projected
        gap_free = 1e-10  # distinct singular values of a random matrix: gaps far above rounding
        assert difference.norm() <= gap_free * weight.norm()
    nothing = solve(torch.zeros(shape))
    assert torch.isfinite(nothing.basis).all()
    assert nothing.truncate(3).relative_error == 0


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_extreme_scales(shape, scale):
    weight, inputs = problem(shape, seed=7)
    gram = Gram.of(inputs).matrix
    one, other = solve(weight, gram), solve(weight * scale, gram)
    torch.testing.assert_close(one.energies, other.energies, rtol=1e-12, atol=1e-14)


def test_gram_is_the_sum_of_outer_products():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 1000, 7, generator=generator, dtype=torch.float32)
    gram = Gram.of(inputs)
    rows = inputs.reshape(-1, 7).double()
    torch.testing.assert_close(gram.matrix, rows.T @ rows, rtol=5000 * U, atol=5000 * U * 5000)
    assert gram.tokens == 5000
    wide = torch.randn(3, 2000, generator=generator)  # more columns than a block has
    expected = wide.double().T @ wide.double()
    torch.testing.assert_close(Gram.of(wide).matrix, expected, rtol=1e-14, atol=1e-13)
    gram.add(Gram.of(inputs))
    torch.testing.assert_close(gram.matrix, 2 * rows.T @ rows, rtol=1e-12, atol=1e-10)


def test_float64_accumulation_is_needed():
    """The negative control of the accumulation: in float32 a weak direction drowns."""
    strong, weak = torch.tensor([[1e4, 1e4]]).repeat(500, 1), torch.tensor([[1.0, -1.0]])
    inputs = torch.cat((strong, weak))
    values = torch.linalg.eigvalsh(Gram.of(inputs).matrix)
    assert float(values[0]) == pytest.approx(2.0, rel=1e-3)
    single = torch.linalg.eigvalsh((inputs.T @ inputs).double())
    assert abs(float(single[0]) - 2.0) > 0.5


@given(SHAPES, st.integers(0, 10_000))
def test_weighted_outputs(shape, seed):
    """‖H^½ (W − W')X‖ is what was predicted, and the least, at every rank."""
    weight, inputs = problem(shape, seed)
    gradients = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal((90, shape[0])))
    gradients[:, 0] *= 30
    solution = solve(weight, Gram.of(inputs), left=Gram.of(gradients))

    def energy(change):
        return float((gradients @ change @ inputs.T).square().sum())

    values = scipy.linalg.svdvals((gradients @ weight @ inputs.T).numpy()) ** 2
    # As above, with another Gram matrix.
    tolerance = 4 * (sum(shape) + 290) * U
    assert solution.total == pytest.approx(energy(weight), rel=tolerance)
    for rank in range(1, min(shape) + 1):
        cut = solution.truncate(rank)
        measured = energy(weight - cut.basis @ cut.projected) / energy(weight)
        assert abs(measured - cut.relative_error) <= 10 * tolerance
        assert abs(measured - values[rank : min(shape)].sum() / values.sum()) <= 10 * tolerance


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_outputs_that_do_not_count(shape):
    """The negative control of the weights: outputs with weight zero are given up first."""
    weight, inputs = problem(shape, seed=8)
    left = torch.eye(shape[0])
    left[3:] = 0
    seen = solve(weight, Gram.of(inputs), left=left).truncate(3)
    blind = solve(weight, Gram.of(inputs)).truncate(3)
    errors = [
        output_energy((weight - cut.basis @ cut.projected)[:3], inputs) for cut in (seen, blind)
    ]
    assert errors[0] <= 1e-12 * output_energy(weight, inputs) < errors[1]
    everything = solve(weight, Gram.of(inputs), left=left).truncate(min(shape))
    gap = (everything.basis @ everything.projected - weight).norm()
    assert gap <= 1e4 * U * weight.norm()  # an oblique projection: the root of a condition of 1e6


def test_energies_of_a_scaled_left_weight():
    weight, inputs = problem((7, 5), seed=9)
    left = torch.eye(7) + 0.1
    one = solve(weight, Gram.of(inputs), left=left)
    other = solve(weight, Gram.of(inputs), left=left.double() * 2.0**301)
    torch.testing.assert_close(one.energies, other.energies, rtol=0, atol=0)
    assert other.total == pytest.approx(one.total * 2.0**301, rel=4 * U)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_named(bad):
    weight = torch.ones(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match=r"weight has the value (nan|inf) at index \(1, 2\)"):
        solve(weight)
    gram = torch.eye(4)
    gram[0, 3] = bad
    with pytest.raises(ValueError, match=r"gram has the value (nan|inf) at index \(0, 3\)"):
        solve(torch.ones(3, 4), gram)
    with pytest.raises(ValueError, match=r"left has the value (nan|inf) at index \(0, 3\)"):
        solve(torch.ones(4, 3), left=gram)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="gram must be 4×4"):
        solve(torch.ones(3, 4), torch.eye(3))
    with pytest.raises(ValueError, match="left must be 3×3"):
        solve(torch.ones(3, 4), left=torch.eye(4))
    with pytest.raises(ValueError, match="must be square"):
        solve(torch.ones(3, 4), torch.ones(4, 3))
    with pytest.raises(ValueError, match="non-empty matrix"):
        solve(torch.ones(0, 4))
    with pytest.raises(ValueError, match="rank must be between 1 and 3, got 4"):
        solve(torch.ones(3, 4)).truncate(4)
