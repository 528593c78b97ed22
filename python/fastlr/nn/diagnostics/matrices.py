"""The matrices that a module is made of, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from fastlr.nn.compression.targets import matches, patterns_of
from fastlr.nn.compression.windows import CONVOLUTIONS
from fastlr.nn.modules.base import CompressedLinear, composed_weight
from fastlr.nn.modules.dense import FLOAT_DTYPES, high_precision, is_dense_linear
from fastlr.nn.modules.factored_conv import FactoredConv
from fastlr.nn.modules.lipschitz_linear import LipschitzLinear
from fastlr.nn.modules.lipschitz_residual import LipschitzResidual
from fastlr.nn.modules.low_rank_bilinear import LowRankBilinear
from fastlr.nn.modules.low_rank_embedding import LowRankEmbedding

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLES = (*CONVOLUTIONS, nn.Embedding, nn.EmbeddingBag, nn.Bilinear, LipschitzLinear)
_COMPOSED = (FactoredConv, LowRankBilinear, LowRankEmbedding)
# The tensors that a matrix is stored in, and which of their matrices it is.
_Key: TypeAlias = tuple[frozenset[int], str]


@dataclass(frozen=True)
class WeightMatrix:
    """One matrix of a module.

    Attributes
    ----------
    name : str
        The first of its names.
    others : tuple of str
        Other layers with this very weight.
    layer : str
        The class of the layer.
    read : callable
        Returns the matrix, outputs × inputs, in float64.
    """

    name: str
    others: tuple[str, ...]
    layer: str
    read: Callable[[], Tensor]


def weight_matrices(
    module: nn.Module, layers: str | Sequence[str] | None = None
) -> list[WeightMatrix]:
    """All matrices of `module` whose name fits, in the order of its layers; a tied one once.

    Raises
    ------
    ValueError
        If there is none, or a pattern of `layers` matches none.
    TypeError
        If a weight is not of a float dtype (a quantized layer).
    """
    found: dict[_Key, WeightMatrix] = {}
    for key, matrix in _walk("", module):
        first = found.get(key)
        tied = first and replace(first, others=(*first.others, matrix.name))
        found[key] = tied or matrix
    everything = list(found.values())
    if not everything:
        raise ValueError(f"spectra: {type(module).__name__} has no weight that is a matrix")
    if layers is None:
        return everything
    wanted = patterns_of("layers", layers)
    for pattern in wanted:
        if not any(_named(matrix, [pattern]) for matrix in everything):
            names = ", ".join(matrix.name for matrix in everything[:3])
            raise ValueError(f"spectra: no layer matches {pattern!r}; the first ones are {names}")
    return [matrix for matrix in everything if _named(matrix, wanted)]


def _named(matrix: WeightMatrix, patterns: Sequence[str]) -> bool:
    return any(matches(name, patterns) for name in (matrix.name, *matrix.others))


def _walk(prefix: str, module: nn.Module) -> Iterator[tuple[_Key, WeightMatrix]]:
    """Every matrix, with what it is stored in."""
    readers = _readers(module)
    if readers:
        stored = {name: tensor for name, tensor in module.named_parameters() if name != "bias"}
        for name, tensor in stored.items():
            _require_floats(_joined(prefix, name), tensor)
        tensors = frozenset(map(id, stored.values()))
        for part, read in readers.items():
            name = _joined(prefix, part) or "weight"
            yield (tensors, part), WeightMatrix(name, (), type(module).__name__, read)
        return
    for name, tensor in module.named_parameters(recurse=False):
        if tensor.ndim >= 2:
            yield from _stack(_joined(prefix, name), tensor, type(module).__name__)
    for name, child in module.named_children():
        yield from _walk(_joined(prefix, name), child)


def _readers(module: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """How to read the matrices of a layer that is known, by name; "" where it has just one."""
    if isinstance(module, CompressedLinear) or is_dense_linear(module):
        return {"": partial(composed_weight, module)}
    if isinstance(module, _COMPOSED):
        return {"": lambda: module.compose().flatten(1)}
    if isinstance(module, _TRANSPOSED):
        return {"": partial(_transposed, module)}
    if isinstance(module, _TABLES):
        return {"": lambda: high_precision(module.weight).flatten(1)}
    if isinstance(module, LipschitzResidual):
        return {
            "G": lambda: high_precision(module.branch()[0]),
            "W": lambda: high_precision(module.branch()[1]),
        }
    return {}


def _transposed(
    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
) -> Tensor:
    """Outputs × inputs of a transposed convolution, which stores inputs × outputs a group."""
    kernel = high_precision(module.weight)
    groups = kernel.reshape(module.groups, -1, *kernel.shape[1:]).transpose(1, 2)
    return groups.flatten(0, 1).flatten(1)


def _stack(name: str, tensor: Tensor, layer: str) -> Iterator[tuple[_Key, WeightMatrix]]:
    """A parameter of a layer that is not known: its last two dimensions are a matrix."""
    _require_floats(name, tensor)
    slices = tensor.detach().flatten(0, -3) if tensor.ndim > 2 else tensor.detach()[None]
    for index, matrix in enumerate(slices):
        label = f"{name}[{index}]" if len(slices) > 1 else name
        key = frozenset([id(tensor)]), str(index)
        yield key, WeightMatrix(label, (), layer, partial(high_precision, matrix))


def _require_floats(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"spectra: the weight {name!r} has dtype {tensor.dtype}, expected float16, bfloat16, "
            "float32 or float64; dequantize the layer first"
        )
    if tensor.device.type == "meta":
        raise ValueError(f"spectra: the weight {name!r} is on the meta device and has no values")


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name
