"""Walking through a model block by block, with the activations of one block in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.forward_pass import run_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _LastBlockReached(Exception):
    """Ends a forward pass whose remainder nobody needs."""


@dataclass(frozen=True)
class BlockStack:
    """The blocks of a model, of its decoder or its encoder.

    Attributes
    ----------
    name : str
        Where the model keeps them, such as ``model.layers``.
    blocks : list of modules
        In the order in which they run.
    """

    name: str
    blocks: list[nn.Module]

    def block_name(self, index: int) -> str:
        """The full name of a block."""
        return f"{self.name}.{index}"


def find_blocks(model: nn.Module) -> BlockStack:
    """The largest ``nn.ModuleList`` (by parameters) whose modules are all of one class.

    Raises
    ------
    ValueError
        If the model has none.
    """
    candidates = [
        (sum(p.numel() for p in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not candidates:
        raise ValueError(
            f"model must keep its blocks in an nn.ModuleList, got {type(model).__name__}"
        )
    _, name, modules = max(candidates, key=lambda candidate: candidate[0])
    return BlockStack(name, list(modules))


@dataclass
class _Call:
    """What a block is called with, apart from the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        if "hidden_states" in self.kwargs:
            output = block(*self.args, **{**self.kwargs, "hidden_states": hidden})
        else:
            output = block(hidden, *self.args, **self.kwargs)
        return hidden_of(output)


class BlockWalk:
    """Runs batches of tokens through the blocks of a model, one block after the other.

    A first pass over the batches records what every block is called with (masks, positions) and
    the hidden states that enter the first one. Then :meth:`run` sends all batches through the next
    block. So only the hidden states between two blocks are kept, for all batches.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode.
    stack : BlockStack
    batches : sequence of Batch
    on_batch : callable
        Called after each batch of the first pass.

    Attributes
    ----------
    hidden : list of Tensor
        The hidden states between two blocks, of each batch.

    Raises
    ------
    ValueError
        If the blocks do not form a chain, each reading the output of the one before.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stack: BlockStack,
        batches: Sequence[Batch],
        on_batch: Callable[[], None],
    ) -> None:
        self._model = model
        self._stack = stack
        self.hidden: list[Tensor] = []
        self._calls: list[list[_Call]] = []
        # How the blocks hand on hidden states; None where they return more than those.
        self._skip: list[Callable[[Tensor], Any]] | None = None
        for number, batch in enumerate(batches):
            plain = self._record(batch, self._skip)
            if number == 0:
                self._skip = plain
            on_batch()

    def run(self, index: int, on_batch: Callable[[int], None]) -> None:
        """Send every batch through block `index`; `on_batch` hears the number of each, done."""
        for number in range(len(self.hidden)):
            self.advance(index, number)
            on_batch(number)

    def output(self, index: int, number: int) -> Tensor:
        """What block `index` makes of batch `number`; that batch stays where it is."""
        with torch.no_grad():
            return self.through(index, number, self.hidden[number])

    def through(self, index: int, number: int, hidden: Tensor) -> Tensor:
        """What block `index` makes of `hidden`, called as for batch `number`."""
        return self._calls[number][index].run(self._stack.blocks[index], hidden)

    def advance(self, index: int, number: int) -> None:
        """Send batch `number` through block `index`, which must be the next one."""
        self.hidden[number] = self.output(index, number)

    @contextmanager
    def ending_in(self, hidden: Tensor) -> Iterator[None]:
        """Within, the model runs no block: `hidden` is what comes out of the last one.

        ValueError if the blocks return more than hidden states.
        """
        if self._skip is None:
            raise ValueError(
                f"model: the blocks {self._stack.name} of {type(self._model).__name__} return more "
                "than hidden states; gradients cannot be collected block by block"
            )
        *before, last = self._skip
        with _skipping(self._stack.blocks, [*before, lambda _: last(hidden)]):
            yield

    def _record(
        self, batch: Batch, skip: list[Callable[[Tensor], Any]] | None
    ) -> list[Callable[[Tensor], Any]] | None:
        """Run `batch` through the model up to its last block and record every block's arguments.

        With `skip`, the blocks do nothing but hand on the hidden states in the way that they would.
        Without, they run, the chain is checked, and the result is such a list for later batches, or
        None where a block returns more than its hidden states.
        """
        blocks = self._stack.blocks
        calls: list[_Call] = []
        handed_on: list[Callable[[Tensor], Any]] = []
        only_hidden = True
        last_output: Tensor | None = None

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal last_output
            expected = blocks[len(calls)] if len(calls) < len(blocks) else None
            hidden = kwargs.get("hidden_states", args[0] if args else None)
            linked = last_output is None or hidden is last_output
            if block is not expected or not isinstance(hidden, Tensor) or not linked:
                raise ValueError(
                    f"model must run its blocks {self._stack.name} as a chain, each on the hidden "
                    f"states of the one before; {type(self._model).__name__} does not"
                )
            if not calls:
                self.hidden.append(hidden)
            rest = args if "hidden_states" in kwargs else args[1:]
            kept = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            if "hidden_states" in kwargs:
                kept["hidden_states"] = None
            calls.append(_Call(rest, kept))

        def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            nonlocal last_output, only_hidden
            last_output = hidden_of(output)
            handed_on.append(_repeat_structure(output))
            only_hidden = only_hidden and _is_only_hidden(output)
            if len(calls) == len(blocks):
                raise _LastBlockReached

        handles = []
        try:
            for block in blocks:
                handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(block.register_forward_hook(leave))
            with torch.no_grad(), _skipping(blocks, skip):
                run_batch(self._model, batch)
        except _LastBlockReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if len(calls) != len(blocks):
            raise ValueError(
                f"model must run all of its {len(blocks)} blocks {self._stack.name}, "
                f"{type(self._model).__name__} ran {len(calls)}"
            )
        self._calls.append(calls)
        return handed_on if only_hidden else None


@contextmanager
def _skipping(
    blocks: Sequence[nn.Module], skip: list[Callable[[Tensor], Any]] | None
) -> Iterator[None]:
    """Replace what the blocks compute by handing on their input (nothing where skip is None)."""
    if skip is None:
        yield
        return
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, repeat in zip(blocks, skip, strict=True):
            block.forward = _hand_on(repeat)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is not None:
                block.forward = forward
            else:
                block.__dict__.pop("forward", None)


def _hand_on(repeat: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return repeat(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    return forward


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns."""
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor):
        raise ValueError(
            f"model: a block must return its hidden states, got {type(output).__name__}"
        )
    return hidden


def _is_only_hidden(output: Any) -> bool:
    return not isinstance(output, tuple) or all(item is None for item in output[1:])


def _repeat_structure(output: Any) -> Callable[[Tensor], Any]:
    if isinstance(output, tuple):
        rest = output[1:]
        return lambda hidden: (hidden, *rest)
    return lambda hidden: hidden
