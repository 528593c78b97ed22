"""Products of Householder reflectors against explicit ones, and unitary for any vectors."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

import fastlr.linalg as la

REAL = [torch.float32, torch.float64]
DTYPES = [*REAL, torch.complex64, torch.complex128]


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def reflected(V: Tensor) -> Tensor:
    """The whole product, one reflector after the other, in double precision."""
    wide = torch.complex128 if V.is_complex() else torch.float64
    V = V.to(wide)
    Q = torch.eye(len(V), dtype=wide)
    for v in V.mT:
        if bool(v.any()):
            unit = v / v.abs().max()
            unit = unit / unit.norm()
            Q = Q - 2 * (Q @ unit)[:, None] * unit.conj()
    return Q


def departure(Q: Tensor) -> float:
    """‖QᴴQ − I‖₂ / (√k·u), from products with errors that are far below it or measured alike."""
    u, k = roundoff(Q.dtype), Q.shape[-1]
    exact = Q.numpy().astype(np.clongdouble if Q.is_complex() else np.longdouble)
    wide = np.complex128 if Q.is_complex() else np.float64
    E = (exact.conj().T @ exact - np.eye(k)).astype(wide)
    return float(np.linalg.norm(E, 2)) / (math.sqrt(k) * u)


def hard_vectors(m: int, k: int, dtype: torch.dtype) -> dict[str, Tensor]:
    a, b, noise = (random(m, n, dtype=dtype, seed=n) for n in (1, 2, k))
    turn = torch.linspace(0, 3, k, dtype=dtype)
    b = b[:, :1]
    graded = 2.0 ** torch.linspace(-100, 100, k).round()
    gaps = noise.clone()
    gaps[:, ::3] = 0
    return {
        "random": noise,
        "graded": noise * graded,
        "parallel": a + 1e-3 * noise,
        "nearly equal": a + 1e-6 * noise,
        "equal": a.expand(m, k),
        "positive": noise.abs().to(dtype),
        "of a plane": a * turn.cos() + b * turn.sin(),
        "two in turn": torch.where(torch.arange(k) % 2 == 0, a, b),
        "some are zero": gaps,
        "zero": torch.zeros(m, k, dtype=dtype),
        "axes": torch.eye(m, k, dtype=dtype),
        "tiny": noise * (1e-44 if roundoff(dtype) > 1e-10 else 1e-320),
        "huge": noise * (1e37 if roundoff(dtype) > 1e-10 else 1e306),
    }


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "k"), [(1, 1), (5, 3), (40, 40), (150, 70), (300, 33)])
def test_is_the_product_of_the_reflectors(m: int, k: int, dtype: torch.dtype, lower: bool) -> None:
    V = random(m, k, dtype=dtype)
    expected = reflected(V.tril() if lower else V)
    # Each reflector rounds every column once or twice: √k·u each, in a random walk; 10 as in the
    # bound on orthogonality.
    bound = 10 * math.sqrt(k) * roundoff(dtype) * math.sqrt(m)
    for columns in {0, 1, k, m}:
        Q = la.householder_product(V, columns, lower=lower)
        assert Q.shape == (m, columns)
        assert Q.dtype == dtype
        assert (Q - expected[:, :columns]).norm() <= bound
    assert torch.equal(
        la.householder_product(V, lower=lower), la.householder_product(V, k, lower=lower)
    )


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "k"), [(100, 100), (260, 60)])
def test_unitary_for_any_vectors(m: int, k: int, dtype: torch.dtype, lower: bool) -> None:
    for name, V in hard_vectors(m, k, dtype).items():
        Q = la.householder_product(V, lower=lower)
        assert departure(Q) <= 10, name


@pytest.mark.parametrize("dtype", REAL)
def test_vectors_that_turn_slowly_need_twice_the_precision(dtype: torch.dtype) -> None:
    """The negative control: the same block from products in the type of V is not unitary."""
    m = k = 100
    V = hard_vectors(m, k, dtype)["of a plane"]
    U = V / V.norm(dim=0)
    G = U.T @ U
    S = G.triu(1) + torch.diag(G.diagonal() / 2)
    plain = torch.eye(m, dtype=dtype) - U @ torch.linalg.solve_triangular(S, U.T, upper=True)
    assert departure(plain) > 3 * departure(la.householder_product(V))
    assert departure(plain) > 10


@given(m=st.integers(1, 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_applying_is_multiplying(m: int, data: st.DataObject) -> None:
    k, n = data.draw(st.integers(0, m)), data.draw(st.integers(0, 5))
    dtype = data.draw(st.sampled_from(DTYPES))
    lower, adjoint = data.draw(st.booleans()), data.draw(st.booleans())
    V, X = random(m, k, dtype=dtype), random(m, n, dtype=dtype, seed=1)
    Q = la.householder_product(V, m, lower=lower)
    if adjoint:
        Q = Q.mH
    # Both round as k reflectors do, and the product over m terms.
    bound = 20 * (math.sqrt(k) + math.sqrt(m)) * roundoff(dtype) * float(X.norm())
    got = la.householder_apply(V, X, adjoint=adjoint, lower=lower)
    assert (got - Q @ X).norm() <= bound
    Z = X.mT.contiguous()
    right = la.householder_apply(V, Z, adjoint=adjoint, side="right", lower=lower)
    assert right.shape == Z.shape
    assert (right - Z @ Q).norm() <= bound
    back = la.householder_apply(V, got, adjoint=not adjoint, lower=lower)
    assert (back - X).norm() <= bound
    if n:
        x = X[:, 0]
        assert (
            torch.equal(la.householder_apply(V, x, adjoint=adjoint, lower=lower), got[:, 0])
            or (la.householder_apply(V, x, adjoint=adjoint, lower=lower) - got[:, 0]).norm()
            <= bound
        )
        row = la.householder_apply(V, x, adjoint=adjoint, side="right", lower=lower)
        assert (row - x @ Q).norm() <= bound


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(dtype: torch.dtype, lower: bool) -> None:
    views = {
        "transposed": random(2, 70, 90, dtype=dtype).mT,
        "every second column": random(2, 90, 140, dtype=dtype)[..., ::2],
        "every second row": random(2, 180, 70, dtype=dtype)[:, ::2],
        "one batch": random(90, 70, dtype=dtype).expand(2, 90, 70),
        "conjugate": random(2, 90, 70, dtype=dtype).conj(),
    }
    X = random(2, 90, 3, dtype=dtype, seed=1)
    for name, view in views.items():
        results = []
        for V in (view, view.resolve_conj().contiguous()):
            leaf = V.detach().requires_grad_()
            Q = la.householder_product(leaf, lower=lower)
            Y = la.householder_apply(leaf, X, lower=lower)
            (Q.abs().square() * torch.arange(90)[:, None]).sum().backward()
            results.append((Q.detach(), Y.detach(), leaf.grad))
        assert all(map(torch.equal, *results)), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("lower", [False, True])
def test_gradients(dtype: torch.dtype, lower: bool) -> None:
    V = random(2, 40, 35, dtype=dtype).requires_grad_()
    X = random(2, 40, 2, dtype=dtype, seed=1).requires_grad_()
    for columns in (35, 20, 40):
        assert gradcheck(
            lambda V, c=columns: la.householder_product(V, c, lower=lower), V, fast_mode=True
        )
    for adjoint in (False, True):
        assert gradcheck(
            lambda V, X, a=adjoint: la.householder_apply(V, X, adjoint=a, lower=lower),
            (V, X),
            fast_mode=True,
        )
    Z = random(3, 40, dtype=dtype, seed=2).requires_grad_()
    assert gradcheck(
        lambda V, Z: la.householder_apply(V, Z, side="right", lower=lower),
        (V[0], Z),
        fast_mode=True,
    )


def test_gradients_of_one_argument_alone() -> None:
    V, X = random(9, 4, dtype=torch.float64), random(9, 2, dtype=torch.float64, seed=1)
    for adjoint in (False, True):
        of_X = X.clone().requires_grad_()
        la.householder_apply(V, of_X, adjoint=adjoint).sum().backward()
        both = X.clone().requires_grad_()
        of_V = V.clone().requires_grad_()
        la.householder_apply(of_V, both, adjoint=adjoint).sum().backward()
        torch.testing.assert_close(of_X.grad, both.grad)


def test_a_zero_vector_has_no_gradient() -> None:
    V = random(6, 3, dtype=torch.float64)
    V[:, 1] = 0
    V.requires_grad_()
    (la.householder_product(V) * random(6, 3, dtype=torch.float64, seed=1)).sum().backward()
    assert V.grad is not None
    assert bool(torch.isfinite(V.grad).all())
    assert not bool(V.grad[:, 1].any())
    assert bool(V.grad[:, 0].all())


def test_the_gradient_is_orthogonal_to_the_vectors() -> None:
    """Q does not depend on their lengths."""
    V = (random(50, 20, dtype=torch.float64) * 1e30).requires_grad_()
    (la.householder_product(V) * random(50, 20, dtype=torch.float64, seed=1)).sum().backward()
    assert V.grad is not None
    along = (V.grad * V.detach()).sum(0) / (V.grad.norm(dim=0) * V.detach().norm(dim=0))
    # Sums of a thousand terms, of which none is larger than the gradient itself.
    assert float(along.abs().max()) <= 1000 * 2**-53


def test_what_the_gradient_keeps_does_not_grow_with_the_reflectors() -> None:
    """Saved are V, Q, 64 × 64 for a block, and exponents; k steps would keep k matrices."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    V = random(200, 100, dtype=torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        la.householder_product(V)
    assert sum(kept) == 2 * V.numel() + 2 * 64 * 65


@pytest.mark.parametrize("dtype", DTYPES)
def test_lower_reads_the_trapezoid_alone(dtype: torch.dtype) -> None:
    V = random(70, 40, dtype=dtype)
    V.requires_grad_()
    torch.view_as_real(la.householder_product(V, lower=True) + 0j).sum().backward()
    assert V.grad is not None
    assert not bool(V.grad.triu(1).any())
    other = V.detach().tril() + random(70, 40, dtype=dtype, seed=3).triu(1)
    assert torch.equal(
        la.householder_product(V.detach(), lower=True), la.householder_product(other, lower=True)
    )


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("m", "k"), [(60, 60), (90, 40)])
def test_reflectors_of_lapack(m: int, k: int, dtype: torch.dtype) -> None:
    """SciPy's QR gives vectors, and the product of them."""
    A = random(m, k, dtype=dtype).numpy()
    (raw, tau), _ = scipy.linalg.qr(A, mode="raw")
    expected = scipy.linalg.qr(A, mode="economic")[0]
    V = np.tril(np.asarray(raw), -1) + np.eye(m, k, dtype=raw.dtype)
    V[:, tau == 0] = 0  # no reflector
    Q = la.householder_product(V, lower=True)
    assert isinstance(Q, np.ndarray)
    # Two products of k reflectors, each right to 10·√k·u in every column.
    assert np.linalg.norm(Q - expected) <= 20 * math.sqrt(k) * roundoff(dtype) * math.sqrt(k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "k"), [(1, 1), (7, 7), (64, 64), (120, 50)])
def test_vectors_give_the_columns_back(m: int, k: int, dtype: torch.dtype) -> None:
    for Q in (
        torch.linalg.qr(random(m, k, dtype=dtype))[0],
        torch.eye(m, k, dtype=dtype),
        -torch.eye(m, k, dtype=dtype),
        torch.eye(m, dtype=dtype).flip(0)[:, :k],
    ):
        V, phases = la.householder_vectors(Q)
        assert torch.equal(V, V.tril())
        assert torch.equal(V.diagonal(), torch.ones(k, dtype=dtype))
        # Complex ones are a quotient of a number and its length.
        torch.testing.assert_close(phases.abs(), torch.ones_like(phases.abs()))
        back = la.householder_product(V, lower=True) * phases
        # LU with pivots of at least 1 has errors of some u for each of k steps, and so has the
        # product; Q itself is orthonormal to some √k·u.
        assert (back - Q).norm() <= 20 * k * roundoff(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_is_a_loop(dtype: torch.dtype) -> None:
    V, X = random(2, 3, 50, 40, dtype=dtype), random(3, 50, 4, dtype=dtype, seed=1)
    Q, Y = la.householder_product(V), la.householder_apply(V, X)
    assert Y.shape == (2, 3, 50, 4)
    back = la.householder_vectors(Q)
    for i in range(2):
        for j in range(3):
            bound = 20 * math.sqrt(40) * roundoff(dtype)
            assert (Q[i, j] - la.householder_product(V[i, j])).norm() <= bound * math.sqrt(40)
            assert (Y[i, j] - la.householder_apply(V[i, j], X[j])).norm() <= bound * X[j].norm()
            alone = la.householder_vectors(Q[i, j])
            assert torch.equal(back.phases[i, j], alone.phases)
    empty = la.householder_product(V[:0])
    assert empty.shape == (0, 3, 50, 40)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_types(dtype: torch.dtype) -> None:
    V = (10 * random(30, 20, dtype=torch.float32)).to(dtype)
    expected = torch.get_default_dtype() if dtype == torch.int64 else dtype
    Q = la.householder_product(V)
    assert Q.dtype == expected
    assert torch.equal(Q, la.householder_product(V.float()).to(expected))


def test_inputs_are_not_written_to() -> None:
    V, X = random(40, 30, dtype=torch.float64), random(40, 3, dtype=torch.float64)
    V.requires_grad_()
    X.requires_grad_()
    before = V.detach().clone(), X.detach().clone()
    la.householder_product(V).sum().backward()
    la.householder_apply(V, X).sum().backward()
    la.householder_vectors(torch.eye(5))
    assert torch.equal(V, before[0])
    assert torch.equal(X, before[1])


def test_compiles() -> None:
    V = random(20, 10, dtype=torch.float32)
    compiled = torch.compile(
        lambda V: la.householder_product(V, lower=True),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(V), la.householder_product(V, lower=True))


def test_autocast_changes_nothing() -> None:
    V, X = random(20, 10, dtype=torch.float32), random(20, 3, dtype=torch.float32)
    Q, Y = la.householder_product(V), la.householder_apply(V, X)
    V.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = la.householder_product(V)
        got.sum().backward()
        assert torch.equal(la.householder_apply(V, X), Y)
        values = la.randomized_svd(X, 3, seed=0).S
    assert torch.equal(got, Q)
    # Exact singular values of a thin matrix; bfloat16 would be off by 1e-3.
    torch.testing.assert_close(values, torch.linalg.svdvals(X), rtol=1e-5, atol=0)


def test_nothing_to_do() -> None:
    assert la.householder_product(torch.empty(3, 0)).shape == (3, 0)
    assert torch.equal(la.householder_product(torch.empty(3, 0), 3), torch.eye(3))
    assert la.householder_product(torch.empty(0, 0)).shape == (0, 0)
    X = random(3, 2, dtype=torch.float32)
    assert torch.equal(la.householder_apply(torch.empty(3, 0), X), X)
    assert la.householder_apply(torch.ones(3, 2), X[:, :0]).shape == (3, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: la.householder_product(torch.ones(2, 3)),
            ValueError,
            "V must have at most as many columns as rows, got shape (2, 3)",
        ),
        (
            lambda: la.householder_product(torch.ones(3)),
            ValueError,
            "V must have at least 2 dimensions, got shape (3,)",
        ),
        (
            lambda: la.householder_product(torch.ones(3, 2), 4),
            ValueError,
            "columns must be at most the rows of V, 3, got 4",
        ),
        (
            lambda: la.householder_product(torch.ones(3, 2), -1),
            ValueError,
            "columns must be at least 0, got -1",
        ),
        (lambda: la.householder_product(torch.tensor([[1.0], [math.nan]])), ValueError, "V"),
        (
            lambda: la.householder_apply(torch.ones(3, 2), torch.ones(4, 2)),
            ValueError,
            "X must have 3 rows, as V has rows, got shape (4, 2)",
        ),
        (
            lambda: la.householder_apply(torch.ones(3, 2), torch.ones(4, 2), side="right"),
            ValueError,
            "X must have 3 columns",
        ),
        (
            lambda: la.householder_apply(torch.ones(3, 2), torch.ones(3, 2), side="top"),
            ValueError,
            "side must be",
        ),
        (
            lambda: la.householder_apply(torch.ones(3, 2), torch.ones(3, 2).double()),
            TypeError,
            "X must have the dtype of V, torch.float32, got torch.float64",
        ),
        (
            lambda: la.householder_apply(torch.ones(3, 2), np.ones((3, 2))),
            TypeError,
            "both of NumPy or both of torch",
        ),
        (
            lambda: la.householder_apply(torch.ones(2, 3, 2), torch.ones(3, 3, 2)),
            ValueError,
            "batches of V and X must match",
        ),
        (
            lambda: la.householder_vectors(torch.ones(3, 2)),
            ValueError,
            "Q must have orthonormal columns, got an entry of QᴴQ − I of",
        ),
        (lambda: la.householder_vectors(torch.full((3, 2), math.nan)), ValueError, "Q"),
        (
            lambda: la.householder_product(torch.ones(3, 2).to_sparse()),
            TypeError,
            "V must be a dense matrix",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert str(caught.value).startswith("householder_")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    V = random(100, 70, dtype=torch.float64)
    Q = la.householder_product(V.cuda())
    assert (Q.cpu() - la.householder_product(V)).norm() <= 20 * 70 * 2**-53
