"""Spectra of all weights of a module, and of what its blocks make of a text."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.solver import require_finite
from fastlr.nn.diagnostics.decay import (
    effective_rank,
    energy_rank,
    numerical_rank,
    singular_values,
    stable_rank,
    tail_exponent,
)
from fastlr.nn.diagnostics.farms import farms_exponent
from fastlr.nn.diagnostics.hidden_states import block_nuclear_norms
from fastlr.nn.diagnostics.matrices import WeightMatrix, weight_matrices
from fastlr.nn.diagnostics.report import MatrixSpectrum, SpectraReport
from fastlr.nn.evaluate import evaluation_mode
from fastlr.nn.progress import Progress


def spectra(
    module: nn.Module,
    inputs: Tensor | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    seq_len: int = 512,
    windows: int | None = None,
    aspect_ratio: float = 1.0,
    samples: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> SpectraReport:
    """How fast the singular values of every weight of a module fall, and how heavy their tails are.

    Parameters
    ----------
    module : torch.nn.Module
        Any. Of layers of this package the weight that they stand for is taken, of embeddings the
        table, of convolutions out_channels × (in_channels/groups · places of the kernel); of other
        parameters with two dimensions or more, the matrices of the last two. A weight of several
        layers is taken once. Nothing is changed.
    inputs : Tensor of shape (n,) or (1, n), optional
        Token ids, for a causal language model of transformers: its hidden states are measured too.
    layers : str or sequence of str, optional
        Only layers of these names (``"q_proj"``), ends of names (``"mlp.up_proj"``) or patterns
        (``"model.layers.1?.*"``).
    seq_len : int
        `inputs` are cut into windows of so many tokens, without the tail.
    windows : int, optional
        Use only the first `windows` windows.
    aspect_ratio : float
        Long over short side of the submatrices of FARMS, at least 1.
    samples : int
        How many submatrices, of each matrix.
    seed : int
        Of their rows and columns; the same for each matrix, whichever others there are.
    progress : bool, default False
        Show a progress bar on stderr.

    Returns
    -------
    SpectraReport
        ``matrices``, a :class:`MatrixSpectrum` each; tables (``print(report)``, ``summary()``),
        ``to_dict()``, ``to_html()``, ``plot(path)``.

    Raises
    ------
    TypeError
        If a weight is of no float dtype, or `inputs` are given with another module than a language
        model, or are no integer tensor.
    ValueError
        If the module has no matrix, a pattern of `layers` matches none, a weight has an entry that
        is not finite, the inputs do not fit the model, or a number is out of range.

    Notes
    -----
    All in float64: a weight in bfloat16 is exact there, what rounding adds to a singular value is
    about u‖W‖, far below the weights' own rounding, and the zeros of a layer of low rank are seen
    as zeros. Singular values come from a bidiagonalization, since a Gram matrix cannot show those
    below √u‖W‖: about 2·m·n² − 2n³/3 flops, m ≥ n, the one cost that counts (submatrices of aspect
    ratio 1 take a quarter of that at most for ten samples). One weight is in memory in float64 at a
    time.

    The tail exponent is 1 + k/Σ_{i≤k} log(λ_i/λ_{k+1}) with k the half of the eigenvalues λ = σ²
    above rounding [1]_, [2]_: for samples of a Pareto density λ^(−α) it has the standard error
    (α − 1)/√k. Random matrices without any structure have exponents, too, which depend on their
    aspect ratio; FARMS [3]_ takes that out: the eigenvalues of submatrices of one aspect ratio are
    put together, a sample of their mean density, and that has the exponent. Here rows and columns
    of the submatrices are drawn at random, half as many as the largest submatrix has, not cut out
    by a sliding window, so that the order of neurons does not matter.

    The matrix nuclear-norm [4]_ of a block's hidden states X, tokens × width, rows centred by their
    mean and scaled to length 1: Σ_{j≤D} ‖x_j‖₂/tokens over the D = min(tokens, width) largest
    columns, in place of the nuclear norm, averaged over the windows. Without an SVD, one pass.

    References
    ----------
    .. [1] B. M. Hill, "A simple general approach to inference about the tail of a distribution",
       Annals of Statistics 3 (1975).
    .. [2] C. H. Martin, M. W. Mahoney, "Implicit self-regularization in deep neural networks:
       evidence from random matrix theory and implications for learning", JMLR 22 (2021).
    .. [3] Y. Hu and others, "Eigenspectrum analysis of neural networks without aspect ratio bias",
       arXiv 2506.06280 (2025).
    .. [4] Y. Li, T. Xia, Y. Chang, Y. Wu, "Large language model evaluation via Matrix
       Nuclear-Norm", arXiv 2410.10672 (2024).

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import spectra
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 8))
    >>> _ = torch.nn.init.orthogonal_(model[0].weight)
    >>> report = spectra(model)
    >>> round(report.matrix("0").effective_rank, 3), round(report.matrix("0").stable_rank, 3)
    (64.0, 64.0)
    >>> report.matrix("1").shape, report.matrix("1").rank_90 < 8
    ((8, 64), True)
    """
    if not aspect_ratio >= 1 or math.isinf(aspect_ratio):
        raise ValueError(f"spectra: aspect_ratio must be at least 1, got {aspect_ratio}")
    if samples < 1:
        raise ValueError(f"spectra: samples must be at least 1, got {samples}")
    started = time.perf_counter()
    chosen = weight_matrices(module, layers)
    norms: dict[str, float] = {}
    tokens = 0
    # Reading a weight of a parametrized layer in training can change its state.
    with Progress(progress) as bar, evaluation_mode(module), torch.no_grad():
        if inputs is not None:
            language_model: Any = module
            norms, tokens = block_nuclear_norms(language_model, inputs, seq_len, windows, bar)
        bar.stage("Spectra", len(chosen))
        found = []
        for matrix in chosen:
            found.append(_spectrum(matrix, aspect_ratio, samples, seed))
            bar.step(matrix.name)
    return SpectraReport(
        type(module).__name__,
        tuple(found),
        norms,
        tokens,
        aspect_ratio,
        samples,
        seed,
        time.perf_counter() - started,
    )


def _spectrum(matrix: WeightMatrix, ratio: float, samples: int, seed: int) -> MatrixSpectrum:
    dense = matrix.read()
    require_finite(f"spectra: the weight of layer {matrix.name!r}", dense)
    rows, columns = dense.shape
    values = singular_values(dense)
    largest = float(values[0]) if len(values) else 0.0
    above = values[: numerical_rank(values, (rows, columns))] / (largest or 1)
    return MatrixSpectrum(
        matrix.name,
        (rows, columns),
        matrix.layer,
        matrix.others,
        effective_rank(values),
        stable_rank(values),
        energy_rank(values, 0.9),
        energy_rank(values, 0.99),
        largest,
        tail_exponent(above.square()),
        farms_exponent(dense, ratio, samples, seed),
        values,
    )
