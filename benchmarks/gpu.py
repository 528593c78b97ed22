"""Build fastlr for the GPU of this machine, check it against the CPU, time it against the floor.

Prints one table with a row for each case and exits with 0 if all agree, 1 if one does not, and 2
where there is no GPU to test. A new kernel adds itself: a function with `@case` that yields
`Outcome`s.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import add_options, machine_line, markdown, seconds_of

ROOT = Path(__file__).resolve().parent.parent
GIBIBYTE = 1 << 30


@dataclass(frozen=True)
class Outcome:
    """One row: what was compared, and what was timed.

    Attributes
    ----------
    name : str
    error : float
        The largest error found; its unit is part of `name` or explained by `limit`.
    limit : float
        The error that is still right; 0 asks for equal bits.
    seconds, floor : float, optional
        Of the routine, and of the memory traffic or the products that it cannot avoid.
    """

    name: str
    error: float
    limit: float
    seconds: float | None = None
    floor: float | None = None

    @property
    def agrees(self) -> bool:
        """False for NaN too."""
        return self.error <= self.limit

    def row(self) -> dict[str, Any]:
        """The cells of the table."""
        timed = self.seconds is not None and self.floor is not None
        return {
            "": self.name,
            "agrees": "yes" if self.agrees else "NO",
            "error": self.error,
            "limit": self.limit,
            "time": self.seconds,
            "floor time": self.floor,
            "time / floor": self.seconds / self.floor if timed else None,
        }


Case = Callable[[Any, int], Iterator[Outcome]]
CASES: list[Case] = []


def case(function: Case) -> Case:
    """Add a function of (fastlr.linalg, repeats) to the cases."""
    CASES.append(function)
    return function


# ---- floors ----


def copy_bandwidth(repeats: int) -> float:
    """Bytes a second that a copy within the GPU's memory reads and writes."""
    source = torch.empty(GIBIBYTE, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * GIBIBYTE / seconds_of(lambda: target.copy_(source), repeats)


# ---- cases ----


@case
def random_bits(la: Any, repeats: int) -> Iterator[Outcome]:
    """Windows of every kind: the bits must be those of the CPU."""
    windows = [(1, 1, 0, 0), (257, 33, 3, 5), (1001, 64, 2**33 + 1, 7), (5, 1000, 2, 2**32 - 1001)]
    dtypes = (torch.float32, torch.float64)
    for kind, dtype in itertools.product(("gaussian", "uniform", "sign"), dtypes):
        different = 0
        for window, seed in itertools.product(windows, (0, -1, 2**63 + 12345)):
            rows, columns, row, column = window
            options = {
                "kind": kind,
                "seed": seed,
                "row_offset": row,
                "column_offset": column,
                "dtype": dtype,
            }
            cpu = la.random_matrix(rows, columns, **options)
            cuda = la.random_matrix(rows, columns, device="cuda", **options).cpu()
            integers = torch.int32 if dtype == torch.float32 else torch.int64
            different += int((cpu.view(integers) != cuda.view(integers)).sum())
        yield Outcome(f"random_matrix {kind} {_short(dtype)}: different bits", different, 0)


@case
def random_speed(la: Any, repeats: int) -> Iterator[Outcome]:
    """Filling 1 GiB: the floor writes the bytes once, at the speed of a copy."""
    floor = GIBIBYTE / copy_bandwidth(repeats)
    for kind, dtype in itertools.product(
        ("gaussian", "uniform", "sign"), (torch.float32, torch.float64)
    ):
        columns = 128
        rows = GIBIBYTE // (columns * dtype.itemsize)
        options = {"kind": kind, "seed": 1, "dtype": dtype}
        fill = partial(la.random_matrix, rows, columns, device="cuda", **options)
        last = la.random_matrix(3, columns, row_offset=rows - 3, **options)
        different = int((fill()[-3:].cpu() != last).sum())
        yield Outcome(
            f"fill 1 GiB {kind} {_short(dtype)}: different entries in the last rows",
            different,
            0,
            seconds_of(fill, repeats),
            floor,
        )


@case
def sketch(la: Any, repeats: int) -> Iterator[Outcome]:
    """A Ω and Ωᵀ A: equal to rounding; the floor is the product alone."""
    for dtype, (rows, columns, size) in itertools.product(
        (torch.float32, torch.float64), [(16384, 8192, 128), (1000, 100003, 37)]
    ):
        A = la.random_matrix(rows, columns, seed=1, dtype=dtype, device="cuda")
        for axis, inner in enumerate((rows, columns)):
            omega = la.random_matrix(inner, size, seed=2, dtype=dtype, device="cuda")
            got = la.sketch(A, size, axis=axis, seed=2)
            expected = la.sketch(A.cpu(), size, axis=axis, seed=2)
            yield Outcome(
                f"sketch {rows}×{columns} to {size}, axis {axis}, {_short(dtype)}: relative",
                _relative(got, expected),
                # Each of the two sums of `inner` terms has a relative error of about u·√inner.
                4 * _roundoff(dtype) * inner**0.5,
                seconds_of(partial(la.sketch, A, size, axis=axis, seed=2), repeats),
                seconds_of(partial(torch.mm, A if axis else A.T, omega), repeats),
            )


@case
def structured_sketches(la: Any, repeats: int) -> Iterator[Outcome]:
    """Sparse signs and Hadamard transforms: equal to rounding; the floor reads A once."""
    bandwidth = copy_bandwidth(repeats)
    rows, columns, size = 200_003, 300, 1200
    for kind, dtype in itertools.product(
        ("sparse_sign", "countsketch", "srht"), (torch.float32, torch.float64)
    ):
        A = la.random_matrix(rows, columns, seed=1, dtype=dtype, device="cuda")
        S = la.SketchOperator(kind, size, rows, seed=2)
        Y = la.random_matrix(size, columns, seed=3, dtype=dtype, device="cuda")
        floor = A.numel() * dtype.itemsize / bandwidth
        for name, product, operand in (("", S.apply, A), (", adjoint", S.adjoint, Y)):
            yield Outcome(
                f"{kind}{name} {rows}×{columns} to {size}, {_short(dtype)}: relative",
                _relative(product(operand), product(operand.cpu())),
                # Sums of up to `rows` terms of random signs.
                4 * _roundoff(dtype) * rows**0.5,
                seconds_of(partial(product, operand), repeats),
                floor,
            )


@case
def orthonormalize(la: Any, repeats: int) -> Iterator[Outcome]:
    """‖QᵀQ − I‖ / (√k·u), at most 10; the floor is two Gram matrices and two products."""
    rows, columns = 65536, 128
    for dtype in (torch.float32, torch.float64):
        Y = la.random_matrix(rows, columns, seed=1, dtype=dtype, device="cuda")
        square = la.random_matrix(columns, columns, seed=2, dtype=dtype, device="cuda")
        deficient = torch.cat((Y[:, :40], Y[:, :40], torch.zeros_like(Y[:, :10])), 1)

        def products(Y: Tensor = Y, square: Tensor = square) -> None:
            for _ in range(2):
                Y.T @ Y
                Y @ square

        yield Outcome(
            f"orthonormalize {rows}×{columns} {_short(dtype)}: ‖QᵀQ − I‖ / (√k·u)",
            _departure(la.orthonormalize(Y)),
            10.0,
            seconds_of(partial(la.orthonormalize, Y), repeats),
            seconds_of(products, repeats),
        )
        yield Outcome(
            f"orthonormalize, rank 40 of 90, {_short(dtype)}: ‖QᵀQ − I‖ / (√k·u)",
            _departure(la.orthonormalize(deficient)),
            10.0,
        )


@case
def randomized_svd(la: Any, repeats: int) -> Iterator[Outcome]:
    """Singular values against the CPU's for the same seed; the floor is the six products."""
    rows, columns, rank, width = 32768, 16384, 118, 128
    options = {"power_iters": 2, "seed": 0}
    for dtype in (torch.float32, torch.float64):
        left = la.random_matrix(rows, width, seed=1, dtype=dtype, device="cuda") / rows**0.5
        right = la.random_matrix(columns, width, seed=2, dtype=dtype, device="cuda") / columns**0.5
        decay = torch.arange(1, width + 1, dtype=dtype, device="cuda") ** -0.5
        A = (left * decay) @ right.T
        A += la.random_matrix(rows, columns, seed=3, dtype=dtype, device="cuda") * 1e-5
        small = A[:2000, :1000].contiguous()
        got, expected = (la.randomized_svd(X, 20, **options) for X in (small, small.cpu()))
        yield Outcome(
            f"randomized_svd 2000×1000 {_short(dtype)}: singular values, relative",
            _relative(got.S, expected.S),
            # Each is right to a few √n·u of the largest one.
            4 * 1000**0.5 * _roundoff(dtype),
        )
        thin = la.random_matrix(columns, width, seed=4, dtype=dtype, device="cuda")
        tall = la.random_matrix(rows, width, seed=5, dtype=dtype, device="cuda")

        def products(A: Tensor = A, thin: Tensor = thin, tall: Tensor = tall) -> None:
            for _ in range(3):
                A @ thin
                A.T @ tall

        yield Outcome(
            f"randomized_svd {rows}×{columns}, rank {rank}, {_short(dtype)}: ‖UᵀU − I‖ / (√k·u)",
            _departure(la.randomized_svd(A, rank, **options).U),
            10.0,
            seconds_of(partial(la.randomized_svd, A, rank, **options), repeats),
            seconds_of(products, repeats),
        )


@case
def interpolative(la: Any, repeats: int) -> Iterator[Outcome]:
    """An exact rank is reproduced, and no coefficient exceeds 2."""
    for dtype in (torch.float32, torch.float64):
        left = la.random_matrix(2000, 30, seed=1, dtype=dtype, device="cuda")
        A = left @ la.random_matrix(30, 1000, seed=2, dtype=dtype, device="cuda")
        for axis in (0, 1):
            indices, coefficients = la.interpolative(A, 30, axis=axis, seed=0)
            chosen = A.index_select(axis, indices)
            product = chosen @ coefficients if axis else coefficients @ chosen
            yield Outcome(
                f"interpolative axis {axis} {_short(dtype)}: relative error at exact rank",
                _relative(product, A),
                # The bound √(1 + 4k(n − k)) on the growth, once for each of k = 30 products.
                30 * (1 + 4 * 30 * 2000) ** 0.5 * _roundoff(dtype),
            )
            yield Outcome(
                f"interpolative axis {axis} {_short(dtype)}: largest coefficient",
                float(coefficients.abs().max()),
                2.0 * (1 + 1e-5),
            )


@case
def complete(la: Any, repeats: int) -> Iterator[Outcome]:
    """Ratings by alternating least squares, every method of the rows; the floor is k² flops each.

    As many flops of a matrix product as the Gram matrices of all rows and all columns have.
    """
    users, items, count, rank, sweeps = 100_000, 20_000, 10_000_000, 32, 4
    rows, columns = (
        (la.random_matrix(count, 1, kind="uniform", seed=seed)[:, 0].double() * size)
        .long()
        .clamp(max=size - 1)
        .cuda()
        for seed, size in ((1, users), (2, items))
    )
    U, V = (
        la.random_matrix(size, 8, seed=seed, device="cuda")
        for seed, size in ((3, users), (4, items))
    )
    values = (U[rows] * V[columns]).sum(1)
    values += 0.5 * la.random_matrix(count, 1, seed=5, device="cuda")[:, 0]
    few = (rows < 2000) & (columns < 1000)
    side = int((2 * sweeps * count * rank**2 / 2) ** (1 / 3))
    square = la.random_matrix(side, side, seed=6, device="cuda")
    options: dict[str, Any] = {"method": "als", "ridge": 2.0, "tol": 0, "seed": 0}
    for solver in ("cholesky", "cg"):
        one, other = (
            la.complete(
                *(part[few].to(device) for part in (rows, columns, values)),
                (2000, 1000),
                rank,
                solver=solver,
                max_sweeps=3,
                **options,
            ).dense()
            for device in ("cuda", "cpu")
        )
        fit = partial(
            la.complete,
            *(rows, columns, values, (users, items), rank),
            solver=solver,
            max_sweeps=sweeps,
            **options,
        )
        yield Outcome(
            f"complete, {solver}, 2000×1000, float32: predictions, relative",
            _relative(one, other),
            # Conjugate gradients stop by a rule that rounding decides; rows solved exactly differ
            # by the rounding of three sweeps of problems that the ridge keeps conditioned.
            (1e-2 if solver == "cg" else 1e4 * 2 * _roundoff(torch.float32)),
            seconds_of(fit, repeats),
            seconds_of(partial(torch.mm, square, square), repeats),
        )


@case
def tucker(la: Any, repeats: int) -> Iterator[Outcome]:
    """Sweeps and sequential truncation; the floor is one product with vectors of a mode."""
    size, rank = 200, 20
    factors = [la.random_matrix(size, rank, seed=mode) for mode in range(3)]
    exact = torch.einsum("ia,ja,ka->ijk", *factors)
    noisy = exact + 0.1 * la.random_matrix(size, size * size, seed=3).reshape(exact.shape)
    on_gpu, vectors = noisy.cuda(), factors[0].cuda()
    product = partial(torch.mm, on_gpu.reshape(size, -1).mT, vectors)
    for method in ("hooi", "st_hosvd"):
        options = {"method": method, "max_sweeps": 3, "seed": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", la.ConvergenceWarning)
            errors = [la.tucker(X, rank, **options).info.error for X in (on_gpu, noisy)]
            seconds = seconds_of(partial(la.tucker, on_gpu, rank, **options), repeats)
        yield Outcome(
            f"tucker, {method}, 200³ to 20³, float32: errors, relative",
            abs(errors[0] - errors[1]) / errors[1],
            # A minimum is flat: rounding moves the error by its square, and its measure by u.
            1e3 * _roundoff(torch.float32),
            seconds,
            seconds_of(product, repeats),
        )


@case
def householder(la: Any, repeats: int) -> Iterator[Outcome]:
    """A product of reflectors and its gradient; the floor is their flops in one product."""
    size = 1024
    for dtype in (torch.float32, torch.float64):
        V = la.random_matrix(size, size, seed=1, dtype=dtype).cuda().requires_grad_()
        weights = la.random_matrix(size, size, seed=2, dtype=dtype).cuda()

        def both(V: Tensor = V, weights: Tensor = weights) -> None:
            torch.autograd.grad((la.householder_product(V, lower=True) * weights).sum(), V)

        # 4/3 n³ flops and three times as many for the gradient.
        flops = torch.empty(8 * size // 3, size, dtype=dtype, device="cuda").normal_()
        wide = la.householder_product(V.detach(), lower=True).double()
        eye = torch.eye(size, dtype=torch.float64, device="cuda")
        departure = float(torch.linalg.matrix_norm(wide.T @ wide - eye, 2))
        yield Outcome(
            f"householder_product, {size}², {_short(dtype)}: orthogonality / (√k·u)",
            departure / (size**0.5 * _roundoff(dtype)),
            10,
            seconds_of(both, repeats),
            seconds_of(partial(torch.mm, flops, weights), repeats),
        )


@case
def sparse_linear(la: Any, repeats: int) -> Iterator[Outcome]:
    """Products, expansion and gradients of kept entries; the floor is the dense product."""
    from fastlr.linalg.bit_mask import pack_mask, sparse_expand, sparse_linear

    rows, columns = 4096, 4099
    kept = la.random_matrix(rows, columns, kind="uniform", seed=1) < 0.77
    for dtype in (torch.float32, torch.bfloat16):
        weight = (la.random_matrix(rows, columns, seed=2) * kept).to(dtype)
        on_cpu = weight[kept], pack_mask(kept)
        values, mask = (tensor.cuda() for tensor in on_cpu)
        different = int((sparse_expand(values, mask, columns).cpu() != weight).sum())
        yield Outcome(f"sparse_expand {_short(dtype)}: different entries", different, 0)
        dense = weight.cuda()
        for tokens in (1, 8, 100):
            inputs = la.random_matrix(tokens, columns, seed=3).to(dtype)
            results = []
            for X, v, bits in ((inputs.cuda(), values, mask), (inputs, *on_cpu)):
                v = v.clone().requires_grad_()
                output = sparse_linear(X, v, bits)
                results.append((output.detach(), torch.autograd.grad(output.sum(), v)[0]))
            (got, gradient), (expected, exact) = results
            apply = partial(sparse_linear, inputs.cuda(), values, mask)
            yield Outcome(
                f"sparse_linear, {tokens} tokens, {_short(dtype)}: relative",
                max(_relative(got, expected), _relative(gradient, exact)),
                # Sums of 4099 products in float32; bfloat16 is rounded once on either side.
                4 * (_roundoff(dtype) if dtype == torch.bfloat16 else 4099**0.5 * 2**-24),
                seconds_of(apply, repeats),
                seconds_of(partial(torch.nn.functional.linear, inputs.cuda(), dense), repeats),
            )


# ---- errors ----


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _relative(got: Tensor, expected: Tensor) -> float:
    exact = expected.cpu().double()
    return float((got.cpu().double() - exact).norm() / exact.norm())


def _departure(Q: Tensor) -> float:
    wide, size = Q.double(), Q.shape[1]
    gram = wide.T @ wide - torch.eye(size, dtype=torch.float64, device=Q.device)
    return float(gram.norm()) / (size**0.5 * _roundoff(Q.dtype))


# ---- the script ----


def build() -> None:
    """Install this working tree against the torch that runs, without downloading anything."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--force-reinstall", str(ROOT)], check=True, stdout=sys.stderr)
    importlib.invalidate_caches()


def why_not() -> str:
    """Why this machine cannot run the benchmark; empty if it can."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is a CPU build: nothing to measure"
    if not torch.cuda.is_available():
        return "torch sees no GPU on this machine: nothing to measure"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-build", action="store_true", help="use the fastlr that is installed")
    add_options(parser, repeats=7)
    options = parser.parse_args()
    if reason := why_not():
        print(f"gpu.py: {reason}", file=sys.stderr)
        return 2
    if not options.no_build:
        build()
    fastlr = importlib.import_module("fastlr")
    if not fastlr.build_info()["cuda"]:
        print("gpu.py: fastlr has no CUDA kernels; build it where nvcc is", file=sys.stderr)
        return 2

    outcomes = [
        outcome for function in CASES for outcome in function(fastlr.linalg, options.repeats)
    ]
    rows = [outcome.row() for outcome in outcomes]
    if options.json:
        print(json.dumps({"machine": machine_line(), "rows": rows}, indent=2))
    else:
        print(machine_line(), markdown(rows), sep="\n\n")
    return 0 if all(outcome.agrees for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
