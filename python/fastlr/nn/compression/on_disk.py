"""Compressing a language model that is larger than the memory, from one directory to another."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastlr.nn import hf
from fastlr.nn.compression.blocks import find_blocks
from fastlr.nn.compression.calibration import Calibration
from fastlr.nn.compression.engine import Layers, Text, checked_settings, compress_to
from fastlr.nn.compression.gguf_files import GgufFile
from fastlr.nn.compression.mapped_model import MappedModel
from fastlr.nn.compression.model_files import ModelFiles
from fastlr.nn.compression.report import CompressionReport
from fastlr.nn.compression.shards import write_shards
from fastlr.nn.output import atomic_directory, check_output
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of the files beside the weights: those of tokenizers, and how to generate.
_COPIED = (".json", ".jinja", ".model", ".txt")


def compress_on_disk(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    ratio: float = 0.2,
    *,
    method: str = "auto",
    form: str | None = None,
    allocation: str | Mapping[str, float] | None = None,
    max_layer_ratio: float | None = None,
    rank_multiple: int = 1,
    propagation: float | str | None = None,
    refit: bool = False,
    calibration: Calibration = None,
    tokenizer: Any = None,
    samples: int = 64,
    seq_len: int = 512,
    targets: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] = ("lm_head",),
    seed: int = 0,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> CompressionReport:
    """Compress a saved language model of any size, with little more than one block in memory.

    What :func:`fastlr.nn.compress_llm` does to a model in memory, and with the same results.

    Parameters
    ----------
    source : str or path
        A directory with a ``config.json`` and safetensors files, as ``save_pretrained`` leaves it,
        or a GGUF file of a language model that transformers reads.
    out : str or path
        The directory to write: the compressed model in one file a block, its config, and from
        `source` what belongs to a tokenizer. It appears when it is complete.
    ratio, method, form, allocation, max_layer_ratio, rank_multiple, propagation, refit
        As in :func:`fastlr.nn.compress_llm`.
    calibration, tokenizer, samples, seq_len, targets, ignore, seed, progress
        As in :func:`fastlr.nn.compress_llm`.
    checkpoint_dir : str or path, optional
        As in :func:`fastlr.nn.compress_llm`. By default a directory beside `out` that is deleted
        at the end, whatever that is.
    dtype : torch.dtype, optional
        What a GGUF file, whose types are not for computing, is unpacked to; float32 by default. A
        directory keeps its own.
    overwrite : bool, default False
        Whether a model that is saved at `out` may be replaced.

    Returns
    -------
    CompressionReport

    Raises
    ------
    TypeError, ValueError
        As :func:`fastlr.nn.compress_llm`; if `source` is no complete checkpoint of safetensors
        files and no GGUF file, or `dtype` is given for a directory; if `out` is not empty and may
        not be replaced.
    OSError
        If a file cannot be written. What was at `out` before is still there.

    Notes
    -----
    Weights, moments and new layers are views of files, that the system reads when they are used
    and need not keep. In memory are one block and what is computed from it: its Gram matrices,
    8·i² bytes for each distinct input of width i and, for methods with gradients, 8·o² for each
    layer with o outputs; some six copies of the largest weight in float64; and the hidden states
    of the calibration text between two blocks, with gradients as often again.

    The disk holds what `checkpoint_dir` is said to need, and the compressed model once more while
    it is written; beside, as long as it takes, what is stored in another way than transformers
    keeps it: experts that are stored one by one, or all of a GGUF file. Each block is read from
    disk or the system's cache about once for every pass, and for each 1024 tokens that the
    predictions of "loss" are measured on.

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compress_on_disk, load
    >>> place = Path(tempfile.mkdtemp())
    >>> LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=2, num_attention_heads=4)).save_pretrained(place / "dense")
    >>> report = compress_on_disk(place / "dense", place / "small", 0.3, seq_len=16, samples=4,
    ...     calibration=torch.arange(64), progress=False)
    >>> report.ratio_achieved >= 0.3, type(load(place / "small")).__name__
    (True, 'LlamaForCausalLM')
    """
    source, out = Path(source), Path(out)
    check_output(out, overwrite=overwrite, model=source)
    saved = _saved(source, dtype)
    settings = checked_settings(
        saved.outline(),
        targets,
        calibration,
        0,
        ratio,
        method,
        form=form,
        allocation=allocation,
        cap=max_layer_ratio,
        multiple=rank_multiple,
        propagation=propagation,
        refit=refit,
    )
    text = Text(calibration, tokenizer, samples, seq_len, seed)
    # Made before any work: a place that cannot be written costs no waiting.
    with (
        atomic_directory(out) as partial,
        _beside(out) as scratch,
        _checkpoint(checkpoint_dir, out) as directory,
    ):
        stored = _mapped(saved, scratch / "unpacked", progress)
        model = stored.build(scratch / "converted")

        def files() -> ModelFiles:
            return ModelFiles.keyed(directory, stored.key(), stored.release)

        with stored.released_after_blocks(model):
            compress_to(
                settings,
                model,
                text,
                Layers(targets, ignore),
                files,
                progress=progress,
                after_reading=stored.release,
            )
        _write(model, partial, stored)
        _copy_beside(stored.directory, partial)
    report: CompressionReport = model.__dict__["fastlr_report"]
    return report


@contextmanager
def _checkpoint(given: str | os.PathLike[str] | None, out: Path) -> Iterator[Path]:
    """The directory for what is computed; without one of the user's, for the time being."""
    if given is not None:
        yield Path(given)
        return
    with _beside(out) as directory:
        yield directory


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A directory for the time being."""
    out = Path(os.path.abspath(out))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.work-", dir=out.parent) as directory:
        yield Path(directory)


def _saved(source: Path, dtype: torch.dtype | None) -> MappedModel | GgufFile:
    if source.is_file():
        return GgufFile(source, torch.float32 if dtype is None else dtype)
    if not source.is_dir():
        raise ValueError(f"compress_on_disk: there is no directory or file {str(source)!r}")
    hf.check_directory(source, "compress_on_disk")
    if dtype is not None:
        raise ValueError(f"dtype is for GGUF files, a directory keeps its own, got {dtype}")
    return MappedModel(source)


def _mapped(saved: MappedModel | GgufFile, unpacked: Path, progress: bool) -> MappedModel:
    """The model as views of files, which a GGUF file is unpacked to."""
    if isinstance(saved, MappedModel):
        return saved
    with Progress(progress) as bar:
        saved.unpack(unpacked, bar)
    return MappedModel(unpacked)


def _write(model: PreTrainedModel, directory: Path, stored: MappedModel) -> None:
    """Save the model, each block in a file of its own."""
    state = model.state_dict()
    shards = _shards(model, state)

    def parts() -> Iterator[dict[str, Tensor]]:
        for names in shards:
            yield {name: state[name].contiguous() for name in names}
            stored.release()

    write_shards(model, model.dtype, parts(), len(shards), directory)
    generation: Any = model.generation_config
    if generation is not None:
        generation.save_pretrained(directory)


def _shards(model: PreTrainedModel, state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of the tensors of each file: what is outside the blocks, then the blocks."""
    stack = find_blocks(model)
    prefixes = [f"{stack.block_name(index)}." for index in range(len(stack.blocks))]
    block_of = {prefix: number for number, prefix in enumerate(prefixes, 1)}
    shards: list[list[str]] = [[] for _ in range(len(prefixes) + 1)]
    seen: set[tuple[int, torch.Size]] = set()
    depth = stack.name.count(".") + 2
    for name, tensor in state.items():
        place = tensor.data_ptr(), tensor.shape
        # Of tied tensors the first one is saved, as transformers does.
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        prefix = ".".join(name.split(".")[:depth]) + "."
        shards[block_of.get(prefix, 0)].append(name)
    return shards


def _copy_beside(source: Path, out: Path) -> None:
    """Copy what belongs to the tokenizer, and how to generate."""
    for path in source.iterdir():
        named = path.suffix in _COPIED and not path.name.endswith(".index.json")
        if path.is_file() and named and path.name != "config.json":
            shutil.copyfile(path, out / path.name)
