from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# offsets, columns, values, weights, width
_ObservedRows: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None, int]
# U, biases
_RowFactor: TypeAlias = tuple[Tensor, Tensor | None]
# rows, columns, mean, ridge, bias ridge, (objective, training, validation) of every sweep,
# converged
_Completed: TypeAlias = tuple[
    _RowFactor, _RowFactor, float, float, float, list[tuple[float, float, float]], bool
]

class Operator:
    @property
    def shape(self) -> tuple[int, int]: ...
    def matmat(self, X: Tensor) -> Tensor: ...
    def check_finite(self, caller: str) -> None: ...
    def row_mean(self) -> Tensor: ...
    def distance_from_row(self, row: Tensor) -> float | None: ...

def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
def sketch_sparse(
    A: Tensor, kind: str, rows: int, columns: int, seed: int, nonzeros: int, first: int
) -> Tensor: ...
def operator_of_matrix(A: Tensor) -> Operator: ...
def operator_of_functions(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
    matmat: Callable[[Tensor], Tensor],
    rmatmat: Callable[[Tensor], Tensor],
) -> Operator: ...
def operator_of_blocks(
    rows: int | None,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
    of_adjoint: bool,
    iterate: Callable[[], Iterator[Tensor]],
) -> Operator: ...
def randomized_svd(
    A: Operator,
    rank: int,
    oversample: int,
    power_iters: int | None,
    method: str,
    precision: str,
    center: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def adaptive_svd(
    A: Operator,
    tol: float,
    most_rank: int | None,
    oversample: int,
    power_iters: int | None,
    center: bool,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def interpolative(
    A: Operator, rank: int | None, tol: float | None, of_rows: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]: ...
def cur(
    A: Operator, rank: int, columns: Tensor | None, rows: Tensor | None, middle: str, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]: ...
def nystrom(
    A: Operator, rank: int, oversample: int, seed: int
) -> tuple[Tensor, Tensor, Tensor | None, list[float]]: ...
def randomized_eigh(
    A: Operator, rank: int, oversample: int, power_iters: int | None, seed: int
) -> tuple[Tensor, Tensor, Tensor | None, list[float]]: ...
def spectral_norm(
    A: Operator, rtol: float, failure: float, seed: int
) -> tuple[float, float, float, float, int, int]: ...
def frobenius_norm(
    A: Operator, failure: float, seed: int
) -> tuple[float, float, float, float, int, int]: ...
def estimate_rank(
    A: Operator, tol: float | None, most: int | None, seed: int
) -> tuple[int, int, int, float, float, float, int, bool, bool]: ...
def hutchpp(
    A: Operator, products: int, tol: float | None, seed: int
) -> tuple[complex, float, int, int, bool, bool]: ...
def solve_kkt(
    H: Operator,
    A: Operator,
    f: Tensor,
    c: Tensor,
    tol: float,
    most_sketches: int,
    seed: int,
    entries: int,
) -> tuple[Tensor, Tensor, int, int, int, float, bool]: ...
def spectral_density(
    A: Operator, n_vectors: int, steps: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, int]: ...

_Sketch: TypeAlias = tuple[Tensor, Tensor, int]
_Directions: TypeAlias = tuple[Tensor, int, float, float, int]
_Streamed: TypeAlias = tuple[Tensor, Tensor, float, float, float, float, float]

def empty_sketch(columns: int, width: int, dtype: torch.dtype, device: torch.device) -> _Sketch: ...
def one_pass_sketch(
    rows: Tensor, weights: Tensor | None, row0: int, width: int, seed: int, caller: str
) -> _Sketch: ...
def sketches_together(first: _Sketch, weight: float, second: _Sketch) -> _Sketch: ...
def one_pass_svd(
    sketch: _Sketch, rank: int, seed: int, seen: int, dtype: torch.dtype
) -> _Streamed: ...
def empty_frequent_directions(
    columns: int, width: int, dtype: torch.dtype, device: torch.device
) -> _Directions: ...
def append_frequent_directions(
    state: _Directions,
    weight: float,
    rows: Tensor,
    weights: Tensor | None,
    row0: int,
    caller: str,
) -> _Directions: ...
def merge_frequent_directions(
    first: _Directions, weight: float, second: _Directions
) -> _Directions: ...
def frequent_directions_svd(state: _Directions, rank: int, dtype: torch.dtype) -> _Streamed: ...
def copy_of_plain_lines(
    block: object, axis: int, dtype: torch.dtype, width: int, most: int
) -> Tensor | None: ...
def top_eigenvector(
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
    iterate: Callable[[], Iterator[Tensor]],
    most_heavy: int | None,
    seed: int,
) -> tuple[Tensor, float, float, float, float, float, int, int, int, bool]: ...
def lstsq(
    A: Operator,
    B: Tensor,
    method: str,
    sketch: str,
    sketch_rows: int | None,
    nonzeros: int,
    damp: float,
    tol: float | None,
    max_iters: int | None,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, float, int, int, int, int, int, bool, bool]: ...
def observed_rows(
    rows: Tensor, columns: Tensor, values: Tensor, weights: Tensor | None, count: int, width: int
) -> _ObservedRows: ...
def tucker(
    X: Tensor,
    modes: list[int],
    ranks: list[int],
    tol: float | None,
    method: str,
    most_sweeps: int,
    seed: int,
) -> tuple[Tensor, list[Tensor], float, float, list[float], bool]: ...
def sparse_tucker(
    indices: Tensor,
    values: Tensor,
    sizes: list[int],
    ranks: list[int],
    most_sweeps: int,
    seed: int,
) -> tuple[Tensor, list[Tensor], float, float, list[float], bool]: ...
def tucker_sweep(
    X: Tensor, modes: list[int], factors: list[Tensor]
) -> tuple[Tensor, list[Tensor]]: ...
def entry_products(observed: _ObservedRows, U: Tensor, V: Tensor) -> Tensor: ...
def solve_rows(
    observed: _ObservedRows, V: _RowFactor, ridge: float, bias_ridge: float, weighted: bool
) -> _RowFactor: ...
def als(
    observed: _ObservedRows,
    validation: _ObservedRows | None,
    rank: int,
    most_sweeps: int,
    tol: float | None,
    seed: int,
    ridge: float,
    weighted: bool,
    bias_ridge: float | None,
    solver: str,
    start: Tensor | None,
) -> _Completed: ...
def altmin(
    observed: _ObservedRows,
    validation: _ObservedRows | None,
    rank: int,
    most_sweeps: int,
    tol: float,
    seed: int,
    solver: str,
) -> _Completed: ...
