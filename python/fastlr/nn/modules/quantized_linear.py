"""A linear layer whose weight is stored in 4 or 8 bits an entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.modules.base import CompressedLinear, check_bias
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision

# Bits of an entry.
FORMATS = {"nf4": 4, "int8": 8}
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024)
_SCALE_BITS = 32
_MOST_INT8 = 127


class QuantizedLinear(CompressedLinear):
    """A linear layer whose weight has few values, times a scale for every block of entries.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    quantization : str, default "nf4"
        "nf4": 16 values that are equally frequent among normally distributed entries, rounded and
        read by bitsandbytes, which must be installed; "int8": 255 values at equal distances.
    block_size : int, default 64
        How many entries, row by row, share a scale: 32, 64, 128, …, or 1024.
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the tensors are created.
    dtype : torch.dtype, optional
        Of inputs and outputs: float16, bfloat16, float32 or float64.

    Attributes
    ----------
    codes : Tensor, uint8 or int8
        Which value each entry has: two entries a byte for "nf4", one for "int8". The last block is
        filled up with zeros. A buffer, not a parameter: it is not trained.
    scales : Tensor of shape (⌈o·i/block_size⌉,), int32
        The largest magnitude of each block for "nf4", the distance of two values for "int8": the
        bits of a float32, which no cast of the model rounds.
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive, or the quantization or the block size is not one of the above.
    TypeError
        If the dtype is not a real float type.
    ImportError
        For "nf4", if bitsandbytes is not installed.

    See Also
    --------
    fastlr.nn.quantize_plus_low_rank : layers like this with a correction of low rank beside each.

    Notes
    -----
    4 or 8 bits an entry, and 32 a block: 4.5 or 8.5 bits with blocks of 64. Every call makes the
    dense weight, in the dtype of the layer (float32 for float64), and takes the time of a dense
    layer more than that. Gradients reach the inputs and the bias.

    The values of "nf4" are those of [1]_.

    References
    ----------
    .. [1] T. Dettmers, A. Pagnoni, A. Holtzman, L. Zettlemoyer, "QLoRA: Efficient finetuning of
       quantized LLMs", NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import QuantizedLinear
    >>> dense = torch.nn.Linear(96, 64)
    >>> layer = QuantizedLinear.from_dense(dense, "int8")
    >>> layer.weight_bytes()  # of 24576
    6528
    >>> error = torch.dist(layer.compose(), dense.weight.double()) / dense.weight.norm()
    >>> bool(error < 0.01)
    True
    """

    form = "quantized"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        quantization: str = "nf4",
        block_size: int = 64,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check_quantization(type(self).__name__, quantization, block_size)
        require_quantizer(quantization)
        self.quantization = quantization
        self.block_size = block_size
        blocks = -(-in_features * out_features // block_size)
        size = blocks * block_size * FORMATS[quantization] // 8
        kind = torch.uint8 if quantization == "nf4" else torch.int8
        self.register_buffer("codes", torch.zeros(size, dtype=kind, device=device))
        self.register_buffer("scales", torch.zeros(blocks, dtype=torch.int32, device=device))
        self.codes: Tensor
        self.scales: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to a ``… × in_features`` tensor."""
        return nn.functional.linear(input, self._read(self.weight.dtype), self.bias)

    def compose(self) -> Tensor:
        return high_precision(self._read(torch.float32))

    @classmethod
    def from_dense(
        cls, linear: nn.Module, quantization: str = "nf4", block_size: int = 64
    ) -> QuantizedLinear:
        """A dense layer, every entry rounded to the nearest value.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64.
        quantization, block_size
            As above.

        Returns
        -------
        QuantizedLinear
            A new layer, of the dtype and on the device of `linear`, which is not changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer.
        ValueError
            As above, or if a weight is not finite in float32.
        ImportError
            For "nf4", if bitsandbytes is not installed.
        """
        layer = cls.in_place_of(linear, dense_weight(linear), quantization, block_size)
        return layer.train(linear.training)

    @classmethod
    def in_place_of(
        cls, linear: nn.Module, weight: Tensor, quantization: str, block_size: int
    ) -> QuantizedLinear:
        """`weight` rounded, with the bias, the dtype and the device of a dense layer."""
        dense = dense_weight(linear)
        return cls.from_weight(
            weight,
            quantization,
            block_size,
            dense_bias(linear),
            dtype=dense.dtype,
            device=dense.device,
        )

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        quantization: str = "nf4",
        block_size: int = 64,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> QuantizedLinear:
        """The layer with a given weight, rounded.

        Parameters
        ----------
        weight : Tensor of shape (o, i)
        quantization, block_size
            As above.
        bias : Tensor of shape (o,), optional
        dtype, device : optional
            Of the new layer; by default the default float type, and the device of `weight`.

        Raises
        ------
        ValueError
            As above; if `weight` is no matrix, an entry is not finite in float32, or the bias does
            not fit.
        ImportError
            For "nf4", if bitsandbytes is not installed.
        """
        if weight.ndim != 2:
            raise ValueError(
                f"{cls.__name__}: weight must be a matrix, got shape {tuple(weight.shape)}"
            )
        check_quantization(cls.__name__, quantization, block_size)
        check_bias(cls.__name__, bias, len(weight))
        narrow = weight.detach().to(torch.float32)
        if not bool(narrow.isfinite().all()):
            raise ValueError(f"{cls.__name__}: weight must be finite in float32")
        layer = cls.unfilled(
            weight.shape[1],
            weight.shape[0],
            quantization,
            block_size,
            bias is not None,
            device=device if device is not None else weight.device,
            dtype=dtype,
        )
        with torch.no_grad():
            codes, scales = _rounded(narrow, quantization, block_size)
            layer.codes.copy_(codes)
            layer.scales.copy_(scales.view(torch.int32))
            layer._store_bias(bias)
        return layer

    def numbers_beside(self) -> int:
        """What the codes and scales take up, in numbers of the layer's dtype."""
        return -(-(self.codes.nbytes + self.scales.nbytes) // self.weight.element_size())

    def flops(self) -> int:
        """Of the dense product, and one for each entry that is read."""
        return 3 * self.in_features * self.out_features

    def damage(self) -> str | None:
        scales = self.scales.view(torch.float32)
        if bool(scales.isfinite().all()) and not bool((scales < 0).any()):
            return None
        return "a scale is negative or not finite"

    def _size(self) -> dict[str, Any]:
        return {"quantization": self.quantization, "block_size": self.block_size}

    def _read(self, dtype: torch.dtype) -> Tensor:
        """The weight."""
        # bitsandbytes knows no float64.
        narrow = torch.float32 if dtype is torch.float64 else dtype
        scales = self.scales.view(torch.float32)
        if self.quantization == "nf4":
            blocks = _read_nf4(self.codes, scales, self.block_size, narrow)
        else:
            blocks = self.codes.view(-1, self.block_size).to(narrow) * scales.to(narrow)[:, None]
        entries = blocks.flatten()[: self.out_features * self.in_features]
        return entries.view(self.out_features, self.in_features).to(dtype)


def check_quantization(owner: str, quantization: str, block_size: int) -> None:
    """Raise ValueError for one that is not known."""
    if quantization not in FORMATS:
        raise ValueError(
            f"{owner}: quantization must be one of {', '.join(FORMATS)}, got {quantization!r}"
        )
    if block_size not in BLOCK_SIZES:
        raise ValueError(
            f"{owner}: block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got "
            f"{block_size!r}"
        )


def require_quantizer(quantization: str) -> None:
    """Raise ImportError if what rounds to it, and reads it, is not installed."""
    if quantization == "nf4":
        _bitsandbytes()


def stored_bits(entries: int, quantization: str, block_size: int) -> int:
    """What so many entries take up, with their scales."""
    blocks = -(-entries // block_size)
    return blocks * (block_size * FORMATS[quantization] + _SCALE_BITS)


def _rounded(weight: Tensor, quantization: str, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of a float32 matrix."""
    entries = nn.functional.pad(weight.flatten(), (0, -weight.numel() % block_size))
    blocks = entries.view(-1, block_size)
    if quantization == "nf4":
        codes, state = _bitsandbytes().quantize_4bit(
            blocks, blocksize=block_size, quant_type=quantization
        )
        return codes.flatten(), state.absmax
    steps = blocks.abs().amax(1) / _MOST_INT8
    codes = (blocks / torch.where(steps > 0, steps, 1.0)[:, None]).round()
    return codes.flatten().to(torch.int8), steps


def _read_nf4(codes: Tensor, scales: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    """The entries, a block in each row."""
    functional = _bitsandbytes()
    # So many columns that rows are blocks: kernels for the CPU of bitsandbytes 0.50 read weights
    # wrongly whose rows are no whole number of blocks.
    state = functional.QuantState(
        scales,
        shape=torch.Size((len(scales), block_size)),
        code=functional.get_4bit_type("nf4", device=scales.device),
        blocksize=block_size,
        quant_type="nf4",
        dtype=dtype,
    )
    entries: Tensor = functional.dequantize_4bit(codes.unsqueeze(1), state)
    return entries


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise ImportError(
            "layers in nf4 are rounded and read by bitsandbytes; install with: "
            "pip install bitsandbytes"
        ) from error
    return bitsandbytes.functional
