"""Weights as sparse combinations of atoms: the start, the fits and the pursuit."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn.compression import Gram, LayerProblem, solve
from fastlr.nn.compression.dictionary_solver import (
    Combination,
    Targets,
    better_rows,
    largest_of_rows,
    pursue,
    start,
    with_best_atoms,
    with_best_coefficients,
)
from fastlr.nn.compression.dictionary_start import Ranked, row_by_row, with_return
from fastlr.nn.compression.layer_report import relative_error
from fastlr.nn.compression.methods import METHODS, cospadi, rocket
from fastlr.nn.compression.methods.dictionary import Sizes, nodes

U = torch.finfo(torch.float64).eps
KINDS = ["plain", "singular", "outlier", "duplicated"]
METHOD = {
    "rocket": (rocket.importance, with_return, rocket.refine),
    "cospadi": (cospadi.magnitude, row_by_row, cospadi.refine),
}
SIZES = st.integers(1, 12)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs_of(kind, columns, seed):
    """60 tokens: fewer directions than channels, some a thousand times larger, or repeated."""
    X = draw(60, columns, seed=seed + 1) @ draw(columns, columns, seed=seed + 2)
    if kind == "singular":
        X = X[: max(columns // 2, 1)]
    if kind == "outlier":
        X[:, :: max(columns // 2, 1)] *= 1e3
    if kind == "duplicated":
        X[:, columns // 2 :] = X[:, : columns - columns // 2]
    return X


def problem(o, i, kind="plain", seed=0):
    """W, G, all low-rank solutions, and the targets, in float64."""
    W, gram = draw(o, i, seed=seed), Gram.of(inputs_of(kind, i, seed))
    solution = solve(W, gram)
    return W, gram, solution, Targets.of(solution, torch.float64)


def ranked_of(name, solution, atoms):
    scores = METHOD[name][0](solution)
    return Ranked.of(scores, solution.basis.square() * solution.energies).first(atoms)


def started(name, solution, targets, atoms, nonzeros):
    ranked = ranked_of(name, solution, atoms)
    kept = METHOD[name][1](ranked, nonzeros)
    return start(solution, targets, ranked.mask(kept)), ranked.lost(kept)


def composed(targets, found):
    return found.coefficients @ found.atoms[:, targets.seen :] * targets.scale


@given(st.sampled_from(sorted(METHOD)), SIZES, SIZES, st.sampled_from(KINDS), st.data())
def test_the_error_of_the_start_is_known(name, o, i, kind, data):
    seed = data.draw(st.integers(0, 10**6))
    atoms = data.draw(st.integers(1, min(o, i)))
    nonzeros = data.draw(st.integers(0, o * atoms))
    W, gram, solution, targets = problem(o, i, kind, seed)
    found, lost = started(name, solution, targets, atoms, nonzeros)
    # The eigenvectors of W G Wᵀ are right to the rounding of its largest eigenvalue, and so are
    # energies, which are relative to it: sums of 144 of them, of condition 144 at most.
    assert targets.error(found) == pytest.approx(lost, abs=1e4 * U)
    assert relative_error(W, composed(targets, found), gram) == pytest.approx(lost, abs=1e5 * U)


@given(st.sampled_from(sorted(METHOD)), SIZES, SIZES, st.data())
def test_the_number_of_coefficients_is_exact(name, o, i, data):
    atoms = data.draw(st.integers(1, min(o, i)))
    nonzeros = data.draw(st.integers(0, o * atoms))
    _, _, solution, targets = problem(o, i, seed=data.draw(st.integers(0, 10**6)))
    found, _ = started(name, solution, targets, atoms, nonzeros)
    assert int(found.mask.sum()) == nonzeros
    refined = METHOD[name][2](targets, found)
    assert int(refined.mask.sum()) == nonzeros
    assert not bool(refined.coefficients[~refined.mask].any())
    if name == "cospadi":
        rows = refined.mask.sum(1)
        assert int(rows.max()) == -(-nonzeros // o)
        assert int(rows.min()) == nonzeros // o
        assert torch.equal(rows, found.mask.sum(1))
    else:
        assert torch.equal(refined.mask, found.mask)


def test_first_atoms_alone_are_as_if_sorted_alone():
    scores, energies = draw(7, 9).abs(), draw(7, 9, seed=1).square()
    scores[2] = 0.5  # ties
    whole = Ranked.of(scores, energies)
    for atoms in (9, 6, 1):
        alone = Ranked.of(scores[:, :atoms], energies[:, :atoms])
        found = whole.first(8).first(atoms) if atoms < 8 else whole.first(atoms)
        for name in ("scores", "energies", "columns"):
            assert torch.equal(getattr(found, name), getattr(alone, name))
        assert found.total == whole.total
        kept = alone.scores > 0.4
        assert torch.equal(found.mask(kept), scores[:, :atoms] > 0.4)


def test_rows_lose_a_little_too_much_and_the_best_of_it_returns():
    scores = draw(40, 50).abs()
    ranked = Ranked.of(scores, scores.square())
    mask = ranked.mask(with_return(ranked, 40 * 25))
    rows = mask.sum(1)
    # 0.5 % less than 25 is 24 in each row, and 40 are left for all.
    assert int(rows.min()) == 24
    assert int(rows.max()) > 25
    second = scores.masked_fill(largest_of_rows(scores, torch.full((40,), 24)), -1)
    assert float(second[mask].max()) >= float(second[mask & (second > 0)].min())
    assert float(second[mask & (second > 0)].min()) >= float(second[~mask].max())


def test_importance_is_what_the_publication_says():
    """With a square root of G and its inverse, neither of which is used."""
    W, gram, solution, _ = problem(7, 5)
    root = torch.linalg.cholesky(gram.matrix)
    _, _, atoms = torch.linalg.svd(W @ root, full_matrices=False)
    lengths = (atoms @ torch.linalg.inv(root)).norm(dim=1)
    expected = (W @ root @ atoms.T).abs() * lengths.sqrt()
    found = rocket.importance(solution)
    # Up to one factor, since energies are relative. Of a G of condition 1e4 the root has some 1e2.
    ratio = found / expected
    assert float(ratio.max() / ratio.min() - 1) <= 1e6 * U


def test_one_more_goes_to_the_rows_with_the_most_energy():
    scores = draw(9, 6).abs()
    ranked = Ranked.of(scores, scores.square())
    mask = ranked.mask(row_by_row(ranked, 9 * 3 + 4))
    third = scores.sort(1, descending=True).values[:, 3]
    assert sorted(third[mask.sum(1) == 4].tolist()) == third.sort().values[-4:].tolist()
    assert bool((scores.masked_fill(~mask, 9).amin(1) > scores.masked_fill(mask, 0).amax(1)).all())


@pytest.mark.parametrize("name", sorted(METHOD))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (1, 5), (5, 1)])
def test_all_coefficients_of_all_atoms_are_exact(shape, kind, name):
    W, _, solution, targets = problem(*shape, kind)
    most = min(shape)
    found, lost = started(name, solution, targets, most, shape[0] * most)
    assert lost <= 1e3 * U
    for exact in (found, METHOD[name][2](targets, found)):
        # On all inputs, those that were never seen too. S is orthonormal to begin with; what is
        # added to it and to the atoms are roundings, of sums of at most 12 terms.
        assert (composed(targets, exact) - W).norm() <= 1e4 * U * W.norm()


@given(SIZES, SIZES, st.sampled_from(KINDS), st.data())
def test_the_best_atoms_are_least_squares(o, i, kind, data):
    atoms = data.draw(st.integers(1, min(o, i)))
    nonzeros = data.draw(st.integers(0, o * atoms))
    seed = data.draw(st.integers(0, 10**6))
    W, _, solution, targets = problem(o, i, kind, seed)
    found, _ = started("rocket", solution, targets, atoms, nonzeros)
    fitted = with_best_atoms(targets, found)
    S, V = found.coefficients, targets.outputs
    least = (V - S @ torch.linalg.pinv(S) @ V).square().sum()
    # The damping, 16·k·u ≤ 192·u of columns of length one, costs less than that share of the atoms,
    # whose images in the outputs have length one at most.
    assert float(least) - 1e3 * U <= targets.error(fitted) <= targets.error(found) + 1e3 * U
    singular = torch.linalg.svdvals(S / S.norm(dim=0).clamp(min=1e-300))
    if float(singular.min()) > 1e-3:
        assert targets.error(fitted) <= float(least) + 1e-6
        plain = torch.linalg.pinv(S) @ W
        assert (fitted.atoms[:, targets.seen :] * targets.scale - plain).norm() <= 1e-6 * W.norm()
    unused = ~found.mask.any(0)
    assert torch.equal(fitted.atoms[unused], found.atoms[unused])


@given(SIZES, SIZES, st.sampled_from(KINDS), st.data())
def test_the_best_coefficients_are_least_squares(o, i, kind, data):
    atoms = data.draw(st.integers(1, min(o, i)))
    nonzeros = data.draw(st.integers(1, o * atoms))
    seed = data.draw(st.integers(0, 10**6))
    _, _, solution, targets = problem(o, i, kind, seed)
    found, _ = started("rocket", solution, targets, atoms, nonzeros)
    bent = found.atoms + 0.2 * draw(*found.atoms.shape, seed=seed) * found.atoms.norm() / atoms
    found = Combination(found.coefficients, found.mask, bent)
    before, after = targets.error(found), targets.error(with_best_coefficients(targets, found))
    least = 0.0
    for row, mask in zip(targets.outputs, found.mask, strict=True):
        A = bent[mask, : targets.seen].T
        least += float((row - A @ torch.linalg.pinv(A) @ row).square().sum())
    assert after >= least - 1e3 * U * (1 + before)
    # The steps end where one of them lowers the error by less than 1 %.
    assert after <= least + 0.5 * (before - least) + 1e3 * U * (1 + before)


def textbook(row, atoms, count):
    """Orthogonal matching pursuit of one row, one atom at a time; the squared error."""
    chosen, left = [], row
    for _ in range(count):
        scores = (atoms @ left).abs() / atoms.norm(dim=1)
        scores[chosen] = -1
        chosen.append(int(scores.argmax()))
        A = atoms[chosen].T
        left = row - A @ torch.linalg.lstsq(A, row[:, None]).solution[:, 0]
    return float(left.square().sum())


def best_of_all(row, atoms, count):
    """The least squared error of any `count` atoms."""
    errors = []
    for chosen in itertools.combinations(range(len(atoms)), count):
        A = atoms[list(chosen)].T
        errors.append((row - A @ torch.linalg.pinv(A) @ row).square().sum())
    return float(min(errors))


def targets_like(rows, columns, seed):
    """V of norm one and no W beside it."""
    V = draw(rows, columns, seed=seed)
    return Targets(V / V.norm(), columns, 1.0)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6), st.integers(1, 4), st.data())
def test_pursuit_of_orthonormal_atoms_is_the_best_of_all(rows, count, seed, stages, data):
    targets = targets_like(rows, 6, seed)
    Q, _ = torch.linalg.qr(draw(6, 6, seed=seed + 1))
    counts = torch.tensor(data.draw(st.lists(st.integers(0, count), min_size=rows, max_size=rows)))
    found = pursue(targets, 3 * Q, counts, stages)
    assert torch.equal(found.mask.sum(1), counts)
    pairs = zip(targets.outputs, counts.tolist(), strict=True)
    best = sum(best_of_all(row, Q, number) for row, number in pairs)
    # One step of conjugate gradients is exact; sums of 6 terms of numbers below one.
    assert targets.error(found) == pytest.approx(best, abs=1e3 * U)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10**6))
def test_pursuit_of_one_atom_is_the_best_of_all(rows, atoms, seed):
    targets = targets_like(rows, 4, seed)
    A = draw(atoms, 4, seed=seed + 1) * 10 ** draw(atoms, 1, seed=seed + 2)
    found = pursue(targets, A, torch.ones(rows, dtype=torch.int64), 1)
    best = sum(best_of_all(row, A, 1) for row in targets.outputs)
    # Atoms are brought to one length, so one step is exact; a few roundings of numbers below one.
    assert targets.error(found) == pytest.approx(best, abs=1e3 * U)


def test_a_stage_for_each_atom_is_the_textbook_pursuit():
    targets = targets_like(60, 8, 0)
    A = torch.linalg.qr(draw(8, 8, seed=1))[0] + 0.15 * draw(8, 8, seed=2)
    expected = sum(textbook(row, A, 4) for row in targets.outputs)
    counts = torch.full((60,), 4)
    found = [targets.error(pursue(targets, A, counts, stages)) for stages in (4, 2, 1)]
    # Fits end where a step gains less than 1 %: four of them leave 4 % at most.
    assert expected * 0.98 <= found[0] <= 1.04 * expected
    assert found[0] < found[1] < found[2]
    assert sum(best_of_all(row, A, 4) for row in targets.outputs) <= found[0]


def test_atoms_without_length_or_twice_the_same():
    targets = targets_like(5, 4, 0)
    A = draw(6, 4, seed=1)
    A[1], A[4] = 0, A[3]
    found = pursue(targets, A, torch.full((5,), 6), 3)
    assert int(found.mask.sum()) == 30
    assert bool(torch.isfinite(found.coefficients).all())
    # Four different atoms of four columns: nothing has to be left over.
    assert targets.error(found) < 0.05
    some = pursue(targets, A, torch.full((5,), 3), 3)
    assert not bool(some.mask[:, 1].any())
    again = with_best_atoms(targets, found)
    assert targets.error(again) <= targets.error(found) + 1e2 * U


def test_of_two_combinations_each_row_has_the_better_one():
    targets = targets_like(8, 5, 0)
    A = draw(4, 5, seed=1)
    found = [
        with_best_coefficients(targets, Combination(torch.zeros(8, 4).double(), mask, A))
        for mask in (draw(8, 4, seed=2) > 0, draw(8, 4, seed=3) > 0)
    ]
    best = better_rows(targets, *found)
    errors = [targets.residuals(one).square().sum(1) for one in (*found, best)]
    assert torch.equal(errors[2], torch.minimum(*errors[:2]))
    assert 0 < int((errors[0] < errors[1]).sum()) < 8


@given(
    st.sampled_from(sorted(METHOD)),
    st.integers(2, 24),
    st.integers(2, 24),
    st.sampled_from(KINDS),
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(0, 10**6),
)
def test_no_refinement_raises_the_error(name, o, i, kind, dtype, seed):
    W, gram, solution, _ = problem(o, i, kind, seed)
    targets = Targets.of(solution, dtype)
    atoms = max(min(o, i) // 2, 1)
    found, lost = started(name, solution, targets, atoms, -(-o * atoms // 2))
    refined = METHOD[name][2](targets, found)
    # ‖V‖ = 1: sums of 24 products in each of 576 entries.
    rounding = 24 * 24 * torch.finfo(dtype).eps
    assert targets.error(refined) <= lost + rounding
    # The atoms as the inputs see them belong to those that the outputs see. In float32 an outlier a
    # thousand times as large makes of their rounding what it is: 1e6·u of squares.
    scale = 1e6 if dtype == torch.float32 else 1e10
    measured = relative_error(W, composed(targets, refined).double(), gram)
    assert measured == pytest.approx(targets.error(refined), abs=scale * rounding**2, rel=1e-2)


@pytest.mark.parametrize("name", sorted(METHOD))
def test_each_step_of_a_refinement_helps(name):
    _, _, solution, targets = problem(60, 40)
    found, lost = started(name, solution, targets, 20, 600)
    steps = [targets.error(found)]
    if name == "rocket":
        for _ in range(2):
            found = with_best_atoms(targets, found)
            steps.append(targets.error(found))
            found = with_best_coefficients(targets, found)
            steps.append(targets.error(found))
    else:
        counts = found.mask.sum(1)
        for _ in range(3):
            found = with_best_atoms(targets, found)
            steps.append(targets.error(found))
            found = better_rows(targets, found, pursue(targets, found.atoms, counts, 4))
            steps.append(targets.error(found))
        found = with_best_atoms(targets, found)
        steps.append(targets.error(found))
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == len(steps)
    assert steps[0] == pytest.approx(lost, abs=1e4 * U)
    start_again, _ = started(name, solution, targets, 20, 600)
    assert targets.error(METHOD[name][2](targets, start_again)) == steps[-1]


def test_a_dictionary_is_learned_where_there_is_one():
    """Rows made of 2 of 16 atoms: low rank of the same size loses much more."""
    mask = largest_of_rows(draw(400, 16, seed=1), torch.full((400,), 2))
    W = (draw(400, 16) * mask) @ draw(16, 24, seed=2)
    solution = solve(W)
    targets = Targets.of(solution, torch.float64)
    errors = {}
    for name, (_, _, refine) in METHOD.items():
        found, _ = started(name, solution, targets, 16, 800)
        found = refine(targets, found)
        errors[name] = targets.error(found)
    low_rank = solution.relative_error((16 * 24 + 800 + 400 * 2 // 8) // 424)
    assert errors["cospadi"] < 0.8 * errors["rocket"] < 0.8 * 0.6 * low_rank
    for _ in range(10):
        found = cospadi.refine(targets, found)
    assert targets.error(found) < 1e-6 * low_rank


@pytest.mark.parametrize("name", sorted(METHOD))
def test_nothing_to_fit(name):
    zero = torch.zeros(6, 4, dtype=torch.float64)
    for W, G in ((zero, torch.eye(4).double()), (draw(6, 4), torch.zeros(4, 4).double())):
        linear = torch.nn.Linear(4, 6, bias=False, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(W)
        candidates = METHODS[name].prepare(LayerProblem("a", linear, Gram(G)), "dictionary", 1)
        assert not bool(candidates.errors.any())
        module = candidates.build(candidates.within(15))
        assert bool(torch.isfinite(module.compose()).all())
        assert relative_error(W, module.compose(), Gram(G)) == 0


SHAPES = [(576, 576), (192, 576), (1536, 576), (576, 1536)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (32, 16), (1, 7), (7, 1), (1, 1)])
def test_sizes(shape, dtype):
    rows, columns = shape
    sizes = Sizes.of(rows, columns, dtype)
    if rows == 1:
        # The dictionary alone is as large as the dense layer.
        assert not len(sizes.numbers)
        assert not nodes(rows, columns, sizes)
        return
    mask_bytes = rows * -(-sizes.atoms // 8)
    beside = sizes.atoms * columns + -(-mask_bytes // dtype.itemsize)
    assert torch.equal(sizes.numbers, beside + sizes.nonzeros)
    assert bool((sizes.numbers.diff() > 0).all())
    assert int(sizes.numbers[-1]) < rows * columns
    assert bool((sizes.nonzeros <= rows * sizes.atoms).all())
    share = sizes.nonzeros / (rows * sizes.atoms)
    inner = (sizes.atoms > 40) & (sizes.atoms < min(shape))
    # One atom more or less, with the 8 or more bits that it may begin, is columns + rows numbers.
    slack = (columns + rows) / (rows * sizes.atoms)
    assert bool(((share - 0.5).abs() <= slack)[inner].all())
    if shape in SHAPES:
        for ratio in (0.2, 0.3, 0.5, 0.7):
            budget = (1 - ratio) * rows * columns
            assert int(sizes.numbers[sizes.numbers <= budget].max()) >= 0.999 * budget
        # Where the errors are computed.
        found = nodes(rows, columns, sizes)
        assert 32 <= len(found) <= 96
        assert found == sorted(found, key=lambda node: (node.atoms, node.nonzeros))


@pytest.mark.parametrize("name", sorted(METHOD))
@pytest.mark.parametrize("shape", [(48, 36), (36, 48)])
def test_candidates_are_what_they_say(shape, name):
    W, gram, solution, targets = problem(*shape)
    linear = torch.nn.Linear(*reversed(shape), dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(W)
    candidates = METHODS[name].prepare(LayerProblem("a", linear, gram), "dictionary", 1)
    assert candidates.total == pytest.approx(solution.total)
    assert bool((candidates.errors.diff() <= 0).all())
    last = len(candidates.sizes) - 1
    assert candidates.build(last) is None
    assert (int(candidates.sizes[last]), float(candidates.errors[last])) == (W.numel(), 0.0)
    for ratio in (0.1, 0.3, 0.5, 0.8):
        index = candidates.within((1 - ratio) * W.numel())
        module = candidates.build(index)
        assert module.weight_parameters() == int(candidates.sizes[index])
        assert torch.equal(module.bias, linear.bias)
        # The start has about half of the coefficients; up to those of one atom more or less.
        limit = shape[0] * module.atoms
        most, lost, least = (
            started(name, solution, targets, module.atoms, min(module.nonzeros + change, limit))[1]
            for change in (-sum(shape), 0, sum(shape))
        )
        assert least <= float(candidates.relative_errors[index]) <= most
        assert relative_error(W, module.compose(), gram) < lost


@pytest.mark.parametrize("name", sorted(METHOD))
@pytest.mark.parametrize("shape", [(48, 36), (36, 48)])
def test_at_half_of_the_coefficients_the_error_is_exact(shape, name, monkeypatch):
    W, gram, _, _ = problem(*shape)
    linear = torch.nn.Linear(*reversed(shape), bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(W)
    monkeypatch.setattr(
        f"fastlr.nn.compression.methods.{name}.refine", lambda targets, found: found
    )
    candidates = METHODS[name].prepare(LayerProblem("a", linear, gram), "dictionary", 1)
    sizes = Sizes.of(*shape, torch.float64)
    found = nodes(*shape, sizes)
    assert len(found) > 20
    for node in found:
        size = int(sizes.beside[node.atoms - 1]) + node.nonzeros
        index = candidates.within(size)
        module = candidates.build(index)
        assert (module.atoms, module.nonzeros) == (node.atoms, node.nonzeros)
        # As for the start itself, and W is stored once more rounded.
        expected = pytest.approx(float(candidates.relative_errors[index]), abs=1e5 * U)
        assert relative_error(W, module.compose(), gram) == expected


def test_without_inputs_the_weight_itself_counts():
    linear = torch.nn.Linear(20, 30, dtype=torch.float64)
    for name in METHOD:
        found, expected = (
            METHODS[name].prepare(LayerProblem("a", linear, gram), "dictionary", 1)
            for gram in (None, Gram(torch.eye(20).double()))
        )
        assert not found.compared
        assert expected.compared
        torch.testing.assert_close(found.errors, expected.errors)
        index = found.within(300)
        error = relative_error(linear.weight, found.build(index).compose(), None)
        assert error < float(found.relative_errors[index])
