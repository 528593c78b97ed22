"""Finding and loading MODEL: a directory that transformers can read, or a ``.gguf`` file."""

from __future__ import annotations

import os
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.errors import require_transformers, sentence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)


@dataclass(frozen=True)
class ModelSource:
    """A model on disk.

    Attributes
    ----------
    directory : Path
        Where it lies.
    gguf : str or None
        The name of its GGUF file in that directory, None for a directory of transformers.
    """

    directory: Path
    gguf: str | None

    @property
    def path(self) -> Path:
        """The path as a user would write it."""
        return self.directory / self.gguf if self.gguf else self.directory


def find_model(name: str) -> ModelSource:
    """Turn what the user typed into a model on disk.

    Raises
    ------
    ValueError
        If there is none; the message says what was expected.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise ValueError(
            f"there is no model at {name}: expected a directory with a config.json or a .gguf "
            "file on this machine (fastlr downloads nothing by name)"
        )
    if path.is_file():
        return _gguf(path)
    if (path / "config.json").is_file():
        return ModelSource(path, None)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _gguf(files[0])
    if files:
        raise ValueError(
            f"{name} holds several .gguf files ({', '.join(file.name for file in files)}); "
            "give the path of one"
        )
    raise ValueError(f"{name} holds neither a config.json nor a .gguf file")


def _gguf(path: Path) -> ModelSource:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file")
    return ModelSource(path.parent, path.name)


def load_model(source: ModelSource, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Load a causal language model in evaluation mode.

    Parameters
    ----------
    source : ModelSource
        From `find_model`.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        ``"auto"`` keeps the stored type, and float32 for a GGUF file, whose stored types are
        not for computing.
    device : str
        Where to put it, in torch's words.

    Raises
    ------
    ValueError
        If it cannot be read, or if weights are missing: transformers would fill them with
        random numbers and go on.
    """
    prepare_transformers(source)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    # Importing it registers fastlr's own saved models with transformers.
    import fastlr.nn  # noqa: F401

    options = _options(source)
    options["dtype"] = _chosen_dtype(source, dtype)
    try:
        target = torch.device(device)
        # Unpacking a GGUF file draws a bar that no switch of transformers hides.
        with redirect_stderr(StringIO()):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.directory, output_loading_info=True, **options
            )
        model, report = loaded
        absent = sorted(report["missing_keys"])
        if absent or report["mismatched_keys"]:
            raise ValueError(f"weights are missing or have another shape ({', '.join(absent[:3])})")
        model = model.to(target)
    # What broken files raise inside transformers: a missing key, a short read, a bad shape.
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{source.path} cannot be loaded as a causal language model: {sentence(error)}"
        ) from error
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def load_shapes(source: ModelSource, dtype: str = "auto") -> PreTrainedModel:
    """The model without its weights, on the meta device: all but what it knows.

    Raises
    ------
    ValueError
        If there is no config of a causal language model, it is not dense, or a safetensors file is
        cut off.
    """
    prepare_transformers(source)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fastlr.nn import hf

    try:
        if source.gguf is None and any(source.directory.glob("*.safetensors")):
            hf.check_directory(source.directory, "MODEL")
        config: Any = AutoConfig.from_pretrained(source.directory, **_options(source))
        quantized = getattr(config, "quantization_config", None)
        if quantized is not None:
            kind = dict(quantized).get("quant_method", "another tool")
            what = "compressed already" if kind == "fastlr" else f"quantized with {kind}"
            raise ValueError(f"it is {what}, and a dense model is needed")
        chosen = _chosen_dtype(source, dtype)
        stored = config.dtype if chosen == "auto" else getattr(torch, chosen)
        with torch.device("meta"):
            automatic: Any = AutoModelForCausalLM
            model = automatic.from_config(config, dtype=stored or _stored_dtype(source.directory))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{source.path} cannot be read as a causal language model: {sentence(error)}"
        ) from error
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def _chosen_dtype(source: ModelSource, dtype: str) -> str:
    """`dtype`, but float32 for "auto" of a GGUF file."""
    return "float32" if source.gguf and dtype == "auto" else dtype


def _stored_dtype(directory: Path) -> torch.dtype | None:
    """Of the first weights, as transformers finds it where the config does not say."""
    from fastlr.nn import hf
    from fastlr.nn.compression.mapped_tensors import MappedTensors

    for name in hf.weight_files(directory, "MODEL"):
        if (directory / name).is_file():
            tensors = MappedTensors(directory / name).tensors.values()
            return next((t.dtype for t in tensors if t.is_floating_point()), None)
    return None


def has_tokenizer(source: ModelSource) -> bool:
    """Whether a tokenizer lies beside the model."""
    if source.gguf:
        return True
    return any((source.directory / name).is_file() for name in _TOKENIZER_FILES)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to the model.

    Raises
    ------
    ValueError
        If the directory holds none, or one that cannot be read.
    """
    if not has_tokenizer(source):
        raise ValueError(f"{source.path} holds no tokenizer, and text cannot be read without one")
    prepare_transformers(source)
    from transformers import AutoTokenizer

    try:
        with redirect_stderr(StringIO()):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source.directory, **_options(source)
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"the tokenizer of {source.path} cannot be loaded: {sentence(error)}"
        ) from error
    return tokenizer


def _options(source: ModelSource) -> dict[str, Any]:
    options: dict[str, Any] = {"local_files_only": True}
    if source.gguf:
        options["gguf_file"] = source.gguf
    return options


def prepare_transformers(source: ModelSource) -> None:
    """Check that transformers can read such a model, and keep it quiet and offline."""
    require_transformers(gguf=source.gguf is not None)
    # Read when huggingface_hub is imported: a model that lies on disk asks nobody.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    untyped: Any = logging
    untyped.set_verbosity_error()
    untyped.disable_progress_bar()
