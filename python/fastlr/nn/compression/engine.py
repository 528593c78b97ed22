"""Compressing a language model: calibrate, compress, replace."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastlr.nn import hf
from fastlr.nn.compression.blocks import find_blocks
from fastlr.nn.compression.calibration import Batch, Calibration, calibration_batches
from fastlr.nn.compression.experts import Unfused, unfused_experts
from fastlr.nn.compression.heal import HealReport, Student
from fastlr.nn.compression.interrupt import interrupt_deferred
from fastlr.nn.compression.model_files import ModelFiles
from fastlr.nn.compression.model_kind import (
    METHOD_WITHOUT_LOSS,
    require_accepted,
    require_no_loss,
)
from fastlr.nn.compression.report import CompressionReport, ModelSize
from fastlr.nn.compression.run import CompressionRun, collect
from fastlr.nn.compression.settings import Settings
from fastlr.nn.compression.statistics import Statistics
from fastlr.nn.compression.targets import find_targets
from fastlr.nn.evaluate import evaluation_mode
from fastlr.nn.modules.replace import replace_modules
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNCHANGED = "compress_llm was interrupted; the model is as it was before the call"
COMPLETED = "compress_llm was interrupted after its last step; the model is fully compressed"


def compress_llm(
    model: PreTrainedModel,
    ratio: float = 0.2,
    *,
    method: str = "auto",
    form: str | None = None,
    allocation: str | Mapping[str, float] | None = None,
    max_layer_ratio: float | None = None,
    rank_multiple: int = 1,
    propagation: float | str | None = None,
    refit: bool = False,
    heal_steps: int = 0,
    calibration: Calibration | Statistics = None,
    tokenizer: Any = None,
    samples: int = 64,
    seq_len: int = 512,
    targets: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] = ("lm_head",),
    seed: int = 0,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """Replace the linear layers of a language model by smaller ones.

    The numbers that may be stored are spent where they keep the most of the model: its loss is
    modelled by the second moments of every layer's inputs and of the loss's gradients at its
    outputs, on calibration text. Without any data the model writes that text itself.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder-only causal language model of any float dtype, changed in place. One that was read
        from a GGUF file can be saved afterwards. With `targets`, also an encoder (BERT, MiniLM,
        RoBERTa, …) or another model of tokens without a language modelling head: by the methods
        that need no gradients, without `heal_steps` and with a `calibration`.
    ratio : float, default 0.2
        The share of the numbers of the compressed layers' weights to remove, between 0 and 1. What
        is stored beside values (which entries are kept, one bit each) is counted in numbers of the
        model's dtype.
    method : str, default "auto"
        What the new weights are. "auto" is "sparse", or "two_sided" where the masks would take up
        more than a quarter of what is to be left (above a ratio of 0.875, or 0.75 in half types),
        or "svd_llm" for a model without a language modelling head, which has no loss:

        - "sparse": the entries that the loss can spare are left out, and the others, refitted, make
          up for them. The most accurate; a layer needs fewer bytes, and with AVX-512 mostly
          less time for a few tokens at once.
        - "two_sided": of low rank, with both the inputs and the gradients as weights.
        - "svd_llm": of low rank, with the inputs as weights: the least error of the layer's output.
        - "saes": "svd_llm" with `propagation` "adaptive"; "basis_sharing": "svd_llm" with a common
          basis of two layers where that is predicted to be better; "afm" ("lord"): "svd_llm" about
          the mean of the inputs, with a bias.
        - "rocket", "cospadi": sparse combinations of the rows of a dictionary, chosen once or
          learned.
        - "sub_moe": of a mixture of experts, those that do the same are stored once, where that is
          predicted to be better than a lower rank of each; other layers as "svd_llm".
        - "modegpt": smaller layers: MLPs with fewer hidden units, heads with fewer dimensions.
        - "asvd": of low rank, inputs scaled by their mean size; "fwsvd": rows weighted by their
          Fisher information; "svd": the least error of the weight, "welore" with ranks by one
          threshold.

        Or a name given to :func:`fastlr.nn.compression.register_method`.
    form : str, optional
        How a weight of rank r is stored: "interpolative" (the default), as r of its rows or columns
        and what gives the others, in r·(o + i) − r² numbers (:class:`InterpolativeLinear`);
        "factored", as two factors, in r·(o + i) (:class:`LowRankLinear`); "dense", recomposed in
        the dense shape, with the ranks of "interpolative", which saves nothing and serves for
        measuring. Other methods have a form of their own: "sparse" (:class:`SparseLinear`),
        "dictionary" (:class:`DictionaryLinear`), "structured" (:class:`SubsetLinear`).
    allocation : str or mapping, optional
        How the budget is shared between the layers. By default "loss" for "sparse" and "two_sided":
        the least predicted increase of the model's loss, with predictions that are first corrected
        by measuring two layers of each type; and "uniform", the same `ratio` everywhere, for the
        others. Also "knapsack" (least sum of relative errors, none far above their mean; that of
        "rocket"), "product" (the largest product of the shares of energy that layers keep; that of
        :func:`fastlr.nn.compress`), "block_influence" (more from the blocks that change the hidden
        states least; that of "modegpt"), "svd_llm_v2", and of low-rank methods "d_rank" and
        "welore", as published; or a mapping from names or patterns of layers to the share to remove
        from each.
    max_layer_ratio : float, optional
        The most to remove from any layer, at least `ratio`.
    rank_multiple : int, default 1
        Only multiples of it are used as ranks.
    propagation : float between 0 and 1 or "adaptive", optional
        Compress each block for the inputs that it gets from the compressed blocks before it, and
        take this part of the correction that brings the outputs back to those of the dense model:
        half of it helps; all of it can be far too much over many blocks. "adaptive" takes, of five
        parts up to a half, that of which the new weight keeps the largest share. None
        (the default, but for "saes") uses the inputs of the dense model. The sizes of the layers
        are those found without it.
    refit : bool, default False
        With `propagation` and a form of low rank: the second factor of each layer, and its bias,
        by least squares against the outputs of the dense model.
    heal_steps : int, default 0
        Steps of distillation afterwards: the new layers and the norms learn to predict what the
        dense model predicts on the calibration text. The state that does best on a part of it that
        is held out is kept.
    calibration : optional
        None: the model samples its own text (no data needed; with method "svd", which needs none,
        nothing is calibrated). A str or path: a UTF-8 text file. A list of strings: texts.
        A 1-D tensor: a stream of tokens. All of these are cut into `samples` windows of `seq_len`
        tokens, non-overlapping and at random. A 2-D tensor: windows, `samples` of its rows are
        used. A mapping with ``input_ids`` and perhaps ``attention_mask`` and ``token_type_ids``, as
        a tokenizer returns it: one batch. Any other iterable: batches, each a token tensor or such
        a mapping; all are used, without the positions that the mask leaves out (except in layers
        that see the tokens in another arrangement, such as routed experts).
        A :class:`~fastlr.nn.compression.Statistics` of :func:`fastlr.nn.compression.calibrate`:
        nothing is run again.
    tokenizer : transformers tokenizer, optional
        Needed for text.
    samples, seq_len : int, default 64 and 512
        How much calibration text.
    targets : str or list of str, optional
        Names, ends of names ("q_proj", "mlp.up_proj") or patterns ("model.layers.1?.*") of the
        layers to compress. Only ``nn.Linear`` and ``Conv1D`` layers inside the decoder blocks can
        be, and those of experts ("mlp.experts.3.gate_up"); by default all of those, and of a model
        without a language modelling head none: "*" stands for all.
    ignore : str or list of str, default ("lm_head",)
        The same, of layers to leave alone.
    seed : int, default 0
        Of the choice of windows and of the self-written text. Torch's global generator is neither
        used nor changed.
    checkpoint_dir : str or path, optional
        A directory for what has been computed: the moments of each block, the errors by size, each
        new layer. The same call with the same directory goes on where an earlier one was stopped,
        in whatever way, and ends with the same bits (on the same machine, with as many threads);
        another ratio or method is calibrated only for what it needs beyond. Healing begins anew.
        What belongs to another model, other text or other settings is left alone; delete the
        directory when it is no longer needed. One process at a time.
    progress : bool, default True
        Show block, layer and time left on stderr (plain lines where rich is not installed).

    Returns
    -------
    transformers.PreTrainedModel
        `model` itself, with ``model.fastlr_report``, a :class:`CompressionReport`.

    Raises
    ------
    TypeError
        If `model` is no transformers model, or `calibration` none of the accepted kinds.
    ValueError
        If `model` is an encoder-decoder, or has no language modelling head and no `targets` are
        given, or something is asked for that needs one; if it is compressed already, holds NaN or
        infinity, or has no matching layer; if an argument is out of range or names nothing known;
        if a calibration text cannot be read, is empty or too short, or comes without a tokenizer.
    KeyboardInterrupt
        On Ctrl-C. Its message says which of the two states the model is in: as it was, or fully
        compressed. There is no other.

    Warns
    -----
    UserWarning
        If the ratio is not reached because the smallest layers of the method are larger; for
        experts that are not kept as transformers does, and so stay dense; for a
        layer whose input never occurred (an expert that was never chosen): it is compressed by its
        weight alone, and its report says so.

    Notes
    -----
    Without `propagation` the layers' inputs are those of the dense model. With it, three more
    forward passes through the blocks, 4·tokens·i² flops a layer, and the hidden states of both
    models in memory.

    Without gradients, one forward pass through the blocks (and one more of the first batch); with
    them ("sparse", "two_sided", "fwsvd") one forward and one backward pass, in which no parameter
    gets a gradient. Gram matrices take tokens·(i² + o²) multiply-adds a layer. Then an
    eigenproblem of size min(o, i) a layer for low rank, and for the interpolative form two
    interpolative decompositions; for "sparse" two Cholesky factors, two sorts of the entries, and
    at most twelve conjugate gradient steps of 2·o·i·(o + i) flops. A step of `heal_steps` is two
    forward passes and a backward pass over some 2048 tokens.

    With `checkpoint_dir` gradients are collected block by block, which runs each block once more
    forward. On disk: 8·i² bytes for every distinct input of width i and 8·o² for the gradients at
    the outputs of a layer, the new layers, and during the calibration the hidden states between two
    blocks, with gradients between all blocks.

    Memory beside the dense model: where the budget is shared by "uniform" and no gradients are
    needed, the hidden states of the calibration text between two blocks and one block's Gram
    matrices; otherwise those of all layers, 8·(i² + o²) bytes each. And the new weights, which
    replace the dense ones all at once at the end.

    See the documentation's pages on the theory for the formulas, and :doc:`/quality` for what is
    measured. "svd_llm" is [1]_; the loss model is that of [2]_.

    References
    ----------
    .. [1] X. Wang, Y. Zheng, Z. Wan, M. Zhang, "SVD-LLM: Truncation-aware singular value
       decomposition for large language model compression", ICLR 2025.
    .. [2] J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate
       curvature", ICML 2015.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compress_llm
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    >>> model = compress_llm(model, 0.3, calibration=torch.arange(64), seq_len=16, samples=4,
    ...                      progress=False)
    >>> report = model.fastlr_report
    >>> len(report.layers), 0.3 <= report.ratio_achieved < 0.31
    (14, True)
    >>> sum(type(module).__name__ == "SparseLinear" for module in model.modules()) > 10
    True
    """
    settings = checked_settings(
        model,
        targets,
        calibration,
        heal_steps,
        ratio,
        method,
        form=form,
        allocation=allocation,
        cap=max_layer_ratio,
        multiple=rank_multiple,
        propagation=propagation,
        refit=refit,
    )

    def files() -> ModelFiles | None:
        return None if checkpoint_dir is None else ModelFiles.of(checkpoint_dir, model)

    text = Text(calibration, tokenizer, samples, seq_len, seed)
    wanted = Layers(targets, ignore)
    compress_to(settings, model, text, wanted, files, heal_steps=heal_steps, progress=progress)
    return model


def checked_settings(
    model: PreTrainedModel,
    targets: str | Sequence[str] | None,
    calibration: Calibration | Statistics,
    heal_steps: int,
    ratio: float,
    method: str,
    **others: Any,
) -> Settings:
    """The settings of a compression; TypeError or ValueError where they do not fit the model.

    `others` are the other arguments of :meth:`Settings.of`, but for the dtype.
    """
    if not isinstance(heal_steps, int) or heal_steps < 0:
        raise ValueError(f"heal_steps must be an integer of at least 0, got {heal_steps!r}")
    causal = require_accepted(model, targets)
    chosen = METHOD_WITHOUT_LOSS if method == "auto" and not causal else method
    settings = Settings.of(ratio, chosen, dtype=model.dtype, **others)
    if not causal:
        require_no_loss(model, settings, heal_steps, calibration)
    require_unquantized(model)
    return settings


def compress_to(
    settings: Settings,
    model: PreTrainedModel,
    text: Text,
    wanted: Layers,
    open_files: Callable[[], ModelFiles | None],
    *,
    heal_steps: int = 0,
    progress: bool = True,
    after_reading: Callable[[], None] = lambda: None,
) -> None:
    """What :func:`compress_llm` does once its arguments are checked.

    `after_reading` is called whenever a layer's weight or a block has been read through.
    """
    start = time.perf_counter()
    with unfused_experts(model) as experts:
        stack = find_blocks(model)
        blocks = find_targets(model, stack, wanted.targets, wanted.ignore, after_reading)
        files = open_files()

        student: Student | None = None
        healed: HealReport | None = None
        run = CompressionRun(settings, files)
        try:
            with Progress(progress) as bar, evaluation_mode(model):
                if isinstance(text.calibration, Statistics):
                    run.from_statistics(model, stack, blocks, text.calibration, bar)
                elif text.calibration is None and not settings.needs_calibration:
                    run.from_statistics(model, stack, blocks, None, bar)
                else:
                    batches = text.batches(model, files, bar)
                    run.seconds["calibration"] = time.perf_counter() - start
                    run.from_batches(model, stack, blocks, batches, bar)
                if heal_steps:
                    student, healed = run.heal(model, heal_steps, seed=text.seed, bar=bar)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(UNCHANGED) from None

        run.warn_of_excess()
        with interrupt_deferred(COMPLETED):
            _install(model, run, experts, student, healed)
            run.seconds["total"] = time.perf_counter() - start


@dataclass(frozen=True)
class Layers:
    """Which layers are wanted, as the user says it."""

    targets: str | Sequence[str] | None
    ignore: str | Sequence[str]


@dataclass(frozen=True)
class Text:
    """What the user says of the calibration text."""

    calibration: Calibration | Statistics
    tokenizer: Any
    samples: int
    seq_len: int
    seed: int

    def batches(
        self, model: PreTrainedModel, files: ModelFiles | None, bar: Progress
    ) -> list[Batch]:
        """The tokens; those that the model writes itself are kept in `files`."""
        calibration = self.calibration
        assert not isinstance(calibration, Statistics)

        def read() -> list[Batch]:
            return calibration_batches(
                model,
                calibration,
                tokenizer=self.tokenizer,
                samples=self.samples,
                seq_len=self.seq_len,
                seed=self.seed,
                bar=bar,
            )

        if files is None or calibration is not None:
            return read()
        return files.text((self.samples, self.seq_len, self.seed), read)


def _install(
    model: PreTrainedModel,
    run: CompressionRun,
    experts: Unfused,
    student: Student | None,
    healed: HealReport | None,
) -> None:
    """Put the new layers into the model, and a description and a report of them beside."""
    before = ModelSize.of(model)
    replace_modules(model, run.replacements)
    experts.settle()
    if student is not None:
        student.install(model)
    hf.describe_compressed(model)
    settings = run.settings
    report = CompressionReport(
        settings.name,
        settings.form,
        settings.allocation if isinstance(settings.allocation, str) else "given",
        settings.ratio,
        run.reports,
        before,
        ModelSize.of(model),
        run.tokens,
        run.seconds,
        run.predictions,
        healed,
    )
    # Not a module or a tensor: typing knows no other attributes of a module.
    model.__dict__["fastlr_report"] = report


def calibrate(
    model: PreTrainedModel,
    calibration: Calibration = None,
    *,
    tokenizer: Any = None,
    samples: int = 64,
    seq_len: int = 512,
    targets: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] = ("lm_head",),
    seed: int = 0,
    gradients: bool = False,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Statistics:
    """The calibration half of :func:`fastlr.nn.compress_llm`, for use with several settings.

    Parameters
    ----------
    model, calibration, tokenizer, samples, seq_len, targets, ignore, seed, checkpoint_dir, progress
        As in :func:`fastlr.nn.compress_llm`. `model` is not changed.
    gradients : bool, default False
        Also the moments of the loss's gradients at the layers' outputs, for the methods "fwsvd",
        "two_sided" and "sparse": one backward pass.

    Returns
    -------
    Statistics
        To be passed as ``calibration=`` to `compress_llm`, with `model` or a copy of it.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastlr.nn.compress_llm`.

    Notes
    -----
    All Gram matrices are in memory at once, or with `checkpoint_dir` in files that are read when
    they are used: 8·i² bytes for every distinct input of width i, and 8·o² for every layer with o
    outputs where `gradients` are asked for.

    Examples
    --------
    >>> import copy, torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from fastlr.nn import compress_llm
    >>> from fastlr.nn.compression import calibrate
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=1, num_attention_heads=4))
    >>> statistics = calibrate(model, torch.arange(64), seq_len=16, samples=4, progress=False)
    >>> errors = {}
    >>> for method in ("svd", "svd_llm"):
    ...     copied = compress_llm(copy.deepcopy(model), 0.3, method=method, calibration=statistics,
    ...                           progress=False)
    ...     errors[method] = copied.fastlr_report.mean_output_error
    >>> errors["svd_llm"] < errors["svd"]
    True
    """
    start = time.perf_counter()
    if not require_accepted(model, targets) and (gradients or calibration is None):
        wanted = "gradients must be False" if gradients else "calibration must be given"
        raise ValueError(
            f"{wanted}: {type(model).__name__} has no head that predicts tokens, from which the "
            "loss and a model's own text come"
        )
    require_unquantized(model)
    with unfused_experts(model), Progress(progress) as bar, evaluation_mode(model):
        stack = find_blocks(model)
        blocks = find_targets(model, stack, targets, ignore)
        files = None if checkpoint_dir is None else ModelFiles.of(checkpoint_dir, model)
        text = Text(calibration, tokenizer, samples, seq_len, seed)
        batches = text.batches(model, files, bar)
        statistics = collect(model, stack, blocks, batches, bar, gradients=gradients, files=files)
    statistics.seconds = time.perf_counter() - start
    return statistics


def require_unquantized(model: PreTrainedModel, argument: str = "model") -> None:
    """Raise ValueError if the weights of `model` are in a quantized format."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or hf.is_dequantized_gguf(model):
        return
    kind = quantizer.quantization_config.quant_method
    name = getattr(kind, "value", kind)
    raise ValueError(
        f"{argument} must have dense float weights, it is quantized with {name}; load it "
        "dequantized"
    )
