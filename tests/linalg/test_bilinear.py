"""Self-calibration: against the truth, and against a dense decomposition of the whole system."""

import itertools
import math
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, unit_roundoff

MODELS = ["repeated", "diverse", "snapshots"]
METHODS = ["lstsq", "spectral"]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
# p, m, n: fewer unknowns of the signals than sensors and more, which is what the elimination goes
# by; six matrices and then three in the second.
SHAPES = [(4, 30, 5), (9, 24, 9)]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Problem:
    """Gaussian designs and signals, gains of 1 with a deviation of 0.3, relative noise."""

    def __init__(self, model, p, m, n, dtype=torch.float64, noise=0.0, seed=0):
        self.model = model
        self.A = draw(*([m, n] if model == "snapshots" else [p, m, n]), dtype=dtype, seed=seed)
        self.x = draw(*([n] if model == "repeated" else [p, n]), dtype=dtype, seed=seed + 1)
        self.d = 1 + 0.3 * draw(m, dtype=dtype, seed=seed + 2)
        clean = measurements(self.A, self.d, self.x, model)
        self.E = noise * draw(p, m, dtype=dtype, seed=seed + 3) * clean.abs().square().mean().sqrt()
        self.Y = clean + self.E

    def solve(self, method, constraint=None):
        return la.bilinear_lstsq(
            self.A, self.Y, model=self.model, method=method, constraint=constraint
        )


def measurements(A, d, x, model):
    if model == "snapshots":
        return d * (x @ A.mT)
    return d * (A @ (x if model == "repeated" else x[..., None])).reshape(len(A), -1)


def system(A, Y, model):
    """The dense matrix M of M z = 0, and the units of z in which its columns average to one."""
    A, Y = exact(A), exact(Y)
    p, m = Y.shape
    n = A.shape[-1]
    M = np.zeros((p * m, m + (n if model == "repeated" else p * n)), A.dtype)
    for index in range(p):
        rows = slice(index * m, (index + 1) * m)
        first = m if model == "repeated" else m + index * n
        M[rows, :m] = np.diag(Y[index])
        M[rows, first : first + n] = -(A if model == "snapshots" else A[index])
    lengths = np.sqrt(np.square(np.abs(M)).sum(0))
    averages = [np.sqrt(np.mean(part**2)) for part in (lengths[:m], lengths[m:])]
    units = 1 / np.repeat(averages, [m, M.shape[1] - m])
    return M * units, units


def joined(d, x):
    return np.concatenate([1 / exact(d), exact(x).ravel()])


def sine(a, b):
    """Of the angle between two vectors."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(np.linalg.norm(a - b * np.vdot(b, a)))


def mean_is_one(problem):
    size = len(problem.d) + problem.x.numel()
    w = torch.zeros(size, dtype=problem.A.dtype)
    w[: len(problem.d)] = 1 / len(problem.d)
    return w, 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_recovery(model, method, dtype, shape):
    problem = Problem(model, *shape, dtype=dtype)
    d, x = result = problem.solve(method)
    assert (d.dtype, x.dtype) == (dtype, dtype)
    assert d.shape == problem.d.shape
    assert x.shape == problem.x.shape
    # Backward errors of some u·‖M‖_F turn the answer by that over σ; ten of them.
    allowed = 10 * unit_roundoff(problem.A) * result.info.condition
    assert sine(joined(d, x), joined(problem.d, problem.x)) <= allowed
    assert result.info.residual <= 10 * math.sqrt(len(joined(d, x))) * unit_roundoff(problem.A)
    assert result.info.ambiguity <= allowed
    assert result.info.converged
    assert (result.info.model, result.info.method) == (model, method)
    # The parts go together: diag(d) A x is what was measured.
    error = (measurements(problem.A, d, x, model) - problem.Y).norm() / problem.Y.norm()
    assert float(error) <= allowed


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [1e-6, 1e-2])
@pytest.mark.parametrize("weights", ["default", "random"])
def test_the_answer_is_that_of_the_dense_system(model, method, dtype, shape, noise, weights):
    problem = Problem(model, *shape, dtype=dtype, noise=noise)
    M, units = system(problem.A, problem.Y, model)
    m, size = shape[1], M.shape[1]
    values = np.linalg.svd(M, compute_uv=False)
    values = np.concatenate([values, np.zeros(size - len(values))])
    w = np.repeat([1.0, 0.0], [m, size - m])
    if weights == "random":
        w = joined(problem.d, problem.x) + exact(draw(size, dtype=dtype, seed=8))
    result = problem.solve(method, (torch.from_numpy(w), 1) if weights == "random" else None)
    if method == "spectral":
        expected, sigma = np.linalg.svd(M)[2][-1].conj(), values[-2]
        # Singular vectors turn by u·‖M‖ over the gap.
        turned = math.sqrt(size) / (values[-2] - values[-1])
    else:
        rows = np.vstack([M, w.conj() * units / np.linalg.norm(w * units)])
        expected = np.linalg.lstsq(rows, np.eye(len(rows))[-1], rcond=None)[0]
        sigma = np.linalg.svd(rows, compute_uv=False)[-1]
        turned = math.sqrt(size) / sigma
    found = joined(result.d, result.x) / units
    assert sine(found, expected) <= 20 * math.sqrt(size) * 2.0**-53 * turned
    misfit = np.linalg.norm(M @ expected) / np.linalg.norm(expected)
    # An estimate of σ from above that had settled to 1e-3 a step.
    assert result.info.ambiguity == pytest.approx(misfit / sigma, rel=0.05)
    assert result.info.condition == pytest.approx(math.sqrt(size) / sigma, rel=0.05)
    left = np.linalg.norm(np.tile(1 / exact(result.d), shape[0]) * exact(problem.Y).ravel())
    residual = np.linalg.norm(M @ found) / left
    assert result.info.residual == pytest.approx(residual, rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_bounded_by_the_noise(model, shape):
    for seed in range(10):
        problem = Problem(model, *shape, dtype=torch.complex128, noise=1e-3, seed=10 * seed)
        M, units = system(problem.A, problem.Y, model)
        truth = joined(problem.d, problem.x) / units
        # M truth = E/d: the truth nearly fits, and only the last singular vector does so better.
        misfit = np.linalg.norm(exact(problem.E / problem.d)) / np.linalg.norm(truth)
        assert np.linalg.norm(M @ truth) == pytest.approx(misfit * np.linalg.norm(truth))
        values = np.linalg.svd(M, compute_uv=False)
        second = values[-2] if len(M) >= M.shape[1] else values[-1]
        found = problem.solve("spectral")
        assert sine(joined(*found) / units, truth) <= misfit / second
        w = np.zeros(M.shape[1])
        w[: shape[1]] = 1 / math.sqrt(shape[1])
        bordered = np.linalg.svd(np.vstack([M, w]), compute_uv=False)[-1]
        found = problem.solve("lstsq")
        assert sine(joined(*found) / units, truth) <= misfit / bordered
        # What is stated without the truth: of p·m equations, N − 1 fit noise as well as data.
        free = M.shape[0] / (M.shape[0] - M.shape[1] + 1)
        error = sine(joined(*found) / units, truth)
        assert error <= found.info.ambiguity * math.sqrt(free) * 1.5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_errors_are_proportional_to_the_noise(model, method):
    errors = []
    for noise in (1e-2, 1e-4, 1e-6):
        problem = Problem(model, 4, 30, 5, noise=noise)
        errors.append(sine(joined(*problem.solve(method)), joined(problem.d, problem.x)))
    # The first order in the noise; the second is a part of 1e-2·condition/√N of it, below 10 %.
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_forms_agree(model, shape):
    # "lstsq" is (MᴴM)⁻¹w, one step from w towards the singular vector: what w has at right angles
    # to it is damped by (σ_N/σ_{N−1})².
    for noise in (0, 1e-4, 1e-2):
        problem = Problem(model, *shape, noise=noise)
        M, units = system(problem.A, problem.Y, model)
        V = np.linalg.svd(M)[2]
        w = np.zeros(M.shape[1])
        w[: shape[1]] = 1
        part = abs(V[-1] @ w) / np.linalg.norm(w)
        one, other = (problem.solve(method, mean_is_one(problem)) for method in METHODS)
        damping = (other.info.ambiguity * 1.05) ** 2
        rounding = 20 * 2.0**-53 * one.info.condition
        angle = sine(joined(*one) / units, joined(*other) / units)
        assert angle <= damping * math.sqrt(1 - part**2) / part + rounding
        if noise == 1e-2:
            assert angle > rounding  # two forms indeed


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_scales(dtype):
    problem = Problem("diverse", 4, 30, 5, dtype=dtype, noise=1e-3)
    plain, spectral = (problem.solve(method) for method in METHODS)
    assert abs((1 / plain.d).mean() - 1) <= 30 * 2.0**-53 * float((1 / plain.d).abs().max())
    gains = 1 / spectral.d
    assert float(gains.abs().square().mean()) == pytest.approx(1, abs=30 * 2.0**-53)
    largest = gains[gains.abs().argmax()]
    assert abs(largest - largest.abs()) <= 4 * 2.0**-53 * abs(largest)
    # Any constraint: on a gain, on the signal, on both.
    for seed, c in itertools.product(range(3), (1, -2.5)):
        w = draw(50, dtype=dtype, seed=seed)
        w[:30] *= seed != 1
        w[30:] *= seed != 2
        for method in METHODS:
            found = problem.solve(method, (w, c))
            z = torch.from_numpy(joined(*found))
            assert abs(torch.vdot(w, z) - c) <= 50 * 2.0**-53 * float(w.norm() * z.norm())
            if method == "spectral":  # only scaled
                assert sine(joined(*found), joined(*spectral)) <= 1e-10
    # NumPy's constraints are as good.
    again = la.bilinear_lstsq(
        problem.A.numpy(), problem.Y.numpy(), model="diverse", constraint=(w.numpy(), c)
    )
    assert isinstance(again.d, np.ndarray)
    assert np.array_equal(again.x, problem.solve("lstsq", (w, c)).x.numpy())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_the_units_do_not_matter(model, method):
    problem = Problem(model, 4, 30, 5, noise=1e-3)
    plain = problem.solve(method)
    # Rounding of the units, magnified.
    allowed = 100 * 2.0**-53 * plain.info.condition
    for a, y in [(1e-200, 1), (1, 1e200), (1e150, 1e-100), (1e200, 1e200), (3, 7)]:
        found = la.bilinear_lstsq(a * problem.A, y * problem.Y, model=model, method=method)
        assert (found.d / plain.d - 1).abs().max() <= allowed
        assert (found.x * (a / y) - plain.x).abs().max() <= allowed * plain.x.abs().max()
        assert found.info.ambiguity == pytest.approx(plain.info.ambiguity, rel=1e-6)
    single = Problem(model, 4, 30, 5, dtype=torch.float32)
    found = la.bilinear_lstsq(1e-30 * single.A, 1e-30 * single.Y, model=model, method=method)
    assert sine(joined(*found), joined(single.d, single.x)) <= (
        10 * 2.0**-24 * found.info.condition
    )


@pytest.mark.parametrize("model", MODELS)
def test_sensors_by_blocks(model, monkeypatch):
    problem = Problem(model, 4, 30, 5, noise=1e-3)
    whole = problem.solve("lstsq")
    monkeypatch.setattr("fastlr.linalg.bilinear._BLOCK", 1)
    found = problem.solve("lstsq")
    allowed = 10 * 2.0**-53 * whole.info.condition
    assert sine(joined(*found), joined(*whole)) <= allowed
    assert found.info.ambiguity == pytest.approx(whole.info.ambiguity, rel=1e-6)


def test_gains_of_very_different_size():
    # Weak sensors weigh less, and lose as many digits; the others none.
    problem = Problem("repeated", 4, 30, 5)
    gains = torch.logspace(-4, 4, 30, dtype=torch.float64)
    Y = gains * problem.Y
    for method in METHODS:
        found = la.bilinear_lstsq(problem.A, Y, model="repeated", method=method)
        ratio = found.d / (problem.d * gains)
        # 1/d spans eight decades, and its largest entries have full precision.
        assert (ratio / ratio[0] - 1).abs().max() <= 1e-16 * found.info.condition * 1e8


def test_masks_and_fourier_transforms():
    # Blind deconvolution of diverse inputs: the spectrum of an unknown filter, codes of ±1.
    m, n, p = 64, 12, 4
    codes = torch.randint(0, 2, (p, m, 1), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    basis = torch.linalg.qr(draw(m, n))[0].to(torch.float64)
    A = torch.fft.fft(codes.double() * basis, dim=1, norm="ortho")
    taps = torch.zeros(m, dtype=torch.float64)
    taps[:5] = torch.tensor([1.0, 0.6, -0.3, 0.2, 0.1])
    d, x = torch.fft.fft(taps), draw(p, n, seed=3)
    Y = torch.stack(
        [
            torch.fft.fft(
                torch.fft.ifft(torch.fft.fft(codes[index, :, 0] * (basis @ x[index])) * d),
                norm="ortho",
            )
            for index in range(p)
        ]
    )
    for method in METHODS:
        found = la.bilinear_lstsq(A, Y, model="diverse", method=method)
        allowed = 10 * 2.0**-53 * found.info.condition
        assert sine(joined(*found), joined(d, x)) <= allowed
    # And one signal through several masks, by random phases.
    angles = 2 * math.pi * la.random_matrix(m, 1, kind="uniform", seed=0, dtype=torch.float64)[:, 0]
    phases = torch.polar(torch.ones_like(angles), angles)
    Y = phases * (A @ x[0].to(A.dtype))
    for method in METHODS:
        found = la.bilinear_lstsq(A, Y, model="repeated", method=method)
        allowed = 10 * 2.0**-53 * found.info.condition
        assert sine(joined(*found), joined(phases, x[0])) <= 10 * allowed


@settings(max_examples=30)
@given(
    model=st.sampled_from(MODELS),
    method=st.sampled_from(METHODS),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
    p=st.integers(1, 6),
    m=st.integers(1, 12),
    n=st.integers(1, 8),
)
def test_any_shape(model, method, dtype, p, m, n):
    problem = Problem(model, p, m, n, dtype=dtype)
    unknowns = m + problem.x.numel()
    if p * m < unknowns - 1:
        with pytest.raises(ValueError, match=f"{p * m} measurements cannot .* {unknowns - 1} are"):
            problem.solve(method)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        d, x = found = problem.solve(method, mean_is_one(problem))
    M, units = system(problem.A, problem.Y, model)
    values = np.concatenate([np.linalg.svd(M, compute_uv=False), [0.0, 0.0]])[:unknowns]
    # Unique where there is one zero and no more: then it is found, and otherwise it is said.
    if values[-2] > 1e-6:
        assert found.info.converged
        allowed = 50 * 2.0**-53 * math.sqrt(unknowns) / values[-2]
        # The constraint may be at nearly right angles to a z of few entries.
        truth = joined(problem.d, problem.x)
        slant = np.linalg.norm(truth / units) / abs(np.mean(truth[:m] / units[:m]) * math.sqrt(m))
        assert sine(joined(d, x) / units, truth / units) <= allowed * max(1, slant)
    elif values[-2] < 1e-12:
        assert not found.info.converged
        assert found.info.ambiguity == 1
        assert found.info.condition == math.inf


def parallel_snapshots():
    """The same signal in every snapshot, but for its size: any gains would do."""
    problem = Problem("snapshots", 4, 30, 5)
    x = torch.tensor([1.0, 2.0, -1.0, 0.5]).double()[:, None] * problem.x[0]
    return problem.A, measurements(problem.A, problem.d, x, "snapshots"), "snapshots"


def disconnected():
    """Half of the sensors see one half of the signal: two factors are free."""
    problem = Problem("repeated", 4, 30, 6)
    problem.A[:, :15, :3] = 0
    problem.A[:, 15:, 3:] = 0
    return problem.A, measurements(problem.A, problem.d, problem.x, "repeated"), "repeated"


def dependent(model, shape, factor=1):
    problem = Problem(model, *shape)
    problem.A[..., -1] = factor * problem.A[..., 0]
    return problem.A, measurements(problem.A, problem.d, problem.x, model), model


def noise_alone():
    return draw(4, 30, 6), draw(4, 30, seed=1), "repeated"


AMBIGUOUS = {
    "parallel snapshots": parallel_snapshots,
    "disconnected": disconnected,
    "noise alone": noise_alone,
    **{
        f"dependent columns, {model}, {shape}, {factor}": partial(dependent, model, shape, factor)
        for model, shape, factor in itertools.product(MODELS, SHAPES, [1, 0])
    },
}


@pytest.mark.parametrize("name", AMBIGUOUS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_data_that_do_not_determine_the_answer(name, method, noise):
    A, Y, model = AMBIGUOUS[name]()
    Y = Y + noise * draw(*Y.shape, seed=5)
    with pytest.warns(la.ConvergenceWarning, match="the data do not determine d and x"):
        found = la.bilinear_lstsq(A, Y, model=model, method=method)
    assert not found.info.converged
    assert found.info.ambiguity > 0.25
    assert found.d.isfinite().all()
    assert found.x.isfinite().all()


def test_a_constraint_at_right_angles_to_the_answer():
    problem = Problem("repeated", 4, 30, 5)
    z = torch.from_numpy(joined(problem.d, problem.x))
    w = draw(35, seed=9)
    w -= z * (w @ z) / (z @ z)
    for method in METHODS:
        with pytest.raises(ValueError, match="w of the constraint is orthogonal to the answer"):
            problem.solve(method, (w, 1))


def test_no_warning_without_cause(recwarn):
    for model, method in itertools.product(MODELS, METHODS):
        Problem(model, 4, 30, 5, noise=1e-2).solve(method)
    assert not recwarn.list


def test_kinds_and_dtypes():
    problem = Problem("repeated", 4, 30, 5)
    expected = problem.solve("lstsq")
    before = problem.A.clone(), problem.Y.clone()
    for A, Y in [
        (problem.A.mT.contiguous().mT, problem.Y.T.contiguous().T),
        (problem.A.requires_grad_(), problem.Y),
    ]:
        found = la.bilinear_lstsq(A, Y, model="repeated")
        assert (found.d - expected.d).abs().max() <= 2.0**-53 * 10 * expected.info.condition
        assert not found.d.requires_grad
    assert torch.equal(problem.A, before[0])
    assert torch.equal(problem.Y, before[1])
    # The wider of two types.
    found = la.bilinear_lstsq(before[0].float(), before[1].to(torch.complex128), model="repeated")
    assert found.x.dtype == torch.complex128
    halves = la.bilinear_lstsq(before[0].half(), before[1].half(), model="repeated")
    assert halves.d.dtype == halves.x.dtype == torch.float16
    # Rounding to 11 bits is noise of 2⁻¹¹, a condition of some 30 on top.
    assert (halves.d.double() / expected.d - 1).abs().max() <= 2.0**-11 * expected.info.condition
    found = la.bilinear_lstsq(np.ones((2, 3, 1), dtype=int), np.ones((2, 3)), model="repeated")
    assert found.d.tolist() == pytest.approx([1, 1, 1])
    # Conjugated views are what they stand for.
    other = Problem("snapshots", 4, 30, 5, dtype=torch.complex128)
    found = la.bilinear_lstsq(other.A.conj(), other.Y.conj(), model="snapshots")
    assert sine(joined(*found), joined(other.d.conj(), other.x.conj())) <= 1e-13
    copied = pickle.loads(pickle.dumps(expected))
    assert torch.equal(copied.x, expected.x)
    assert copied.info == expected.info


ONES = torch.ones(3, 4, 2)


@pytest.mark.parametrize(
    ("A", "Y", "options", "error", "words"),
    [
        (ONES, ONES[..., 0], {"model": "blind"}, ValueError, "model must be one of repeated, d"),
        (ONES, ONES[..., 0], {"method": "svd"}, ValueError, "method must be one of lstsq, spectra"),
        (ONES[0], ONES[..., 0], {}, ValueError, r"A must have shape \(p, m, n\) for 'repeated'"),
        (ONES, ONES[..., 0], {"model": "snapshots"}, ValueError, r"A must have shape \(m, n\)"),
        (ONES, ONES[:2, :, 0], {}, ValueError, r"Y must have shape \(3, 4\) for an A of shape"),
        (ONES[0], ONES[:, 0], {"model": "snapshots"}, ValueError, r"Y must have shape \(3, 4\)"),
        (ONES[..., :0], ONES[..., 0], {}, ValueError, "A must not be empty"),
        (torch.ones(1, 4, 2), torch.ones(1, 4), {}, ValueError, "4 measurements .* 6 unknowns"),
        (ONES, ONES[..., 0].numpy(), {}, TypeError, "both be NumPy arrays or both tensors"),
        (ONES.index_fill(1, torch.tensor(2), 0), ONES[..., 0], {}, ValueError, "sensor 2 .* in A"),
        (ONES, ONES[..., 0] * torch.arange(4), {}, ValueError, "sensor 0 has nothing .* in Y"),
        (
            torch.ones(3, 9, 2) * torch.tensor([1.0, 0.0, 1.0])[:, None, None],
            torch.ones(3, 9),
            {"model": "diverse"},
            ValueError,
            r"A\[1\] must not be zero",
        ),
        (
            ONES * math.nan,
            ONES[..., 0],
            {},
            ValueError,
            r"A must be finite, got nan at .*\(0, 0, 0",
        ),
        (ONES, ONES[..., 0] / 0, {}, ValueError, r"Y must be finite, got inf at index \(0, 0\)"),
        (ONES, ONES[..., 0], {"constraint": 1}, ValueError, r"constraint must be a pair \(w, c\)"),
        (
            ONES,
            ONES[..., 0],
            {"constraint": (ONES[0, 0], 1)},
            ValueError,
            r"have shape \(6,\), got",
        ),
        (ONES, ONES[..., 0], {"constraint": (torch.zeros(6), 1)}, ValueError, "w .* not be zero"),
        (
            ONES,
            ONES[..., 0],
            {"constraint": (torch.ones(6), 0)},
            ValueError,
            "c .* not zero, got 0",
        ),
        (ONES, ONES[..., 0], {"constraint": (torch.ones(6), 1j)}, TypeError, "must be real where"),
        (ONES.to_sparse(), ONES[..., 0], {}, TypeError, "A must be a dense matrix"),
    ],
)
def test_bad_input(A, Y, options, error, words):
    with pytest.raises(error, match="bilinear_lstsq: .*" + words):
        la.bilinear_lstsq(A, Y, **{"model": "repeated", **options})
