from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

class Operator:
    @property
    def shape(self) -> tuple[int, int]: ...
    def matmat(self, X: Tensor) -> Tensor: ...
    def check_finite(self, caller: str) -> None: ...
    def row_mean(self) -> Tensor: ...
    def distance_from_row(self, row: Tensor) -> float | None: ...

def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
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
def spectral_density(
    A: Operator, n_vectors: int, steps: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, int]: ...
def top_eigenvector(
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
    iterate: Callable[[], Iterator[Tensor]],
    most_heavy: int | None,
    seed: int,
) -> tuple[Tensor, float, float, float, float, float, int, int, int, bool]: ...
