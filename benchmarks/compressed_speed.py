"""Speed and memory of saved models beside the dense one that they were made from.

One token after another with a cache, and 8 windows of 256 tokens at once, with the logits of the
last tokens only. The floor of a row is the dense model's time times the share of its
multiplications by weights that the row's model has; the head's count for single tokens alone. The
memory is what one forward pass of the windows adds at its peak, as Linux reports it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlr.nn import load
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.dense import is_dense_linear
from harness import Case, Session
from wikitext_compression import load as load_dense

WINDOWS, LENGTH = 8, 256
NEW_TOKENS = 24


def main() -> None:
    options = {"dense": "", "smaller": "", "dtype": "float32"}
    with Session(__doc__, repeats=5, options=options) as session, torch.inference_mode():
        given = session.options
        models = {"dense": load_dense(given.dense, given.dtype)[0]}
        for path in filter(None, given.smaller.split(",")):
            models[Path(path).name] = load(path, dtype=getattr(torch, given.dtype)).eval()
        windows = torch.randint(models["dense"].config.vocab_size, (WINDOWS, LENGTH))
        for title, run in (
            (f"{NEW_TOKENS} tokens, one after another", generated),
            (f"{WINDOWS} windows of {LENGTH} tokens", forward),
        ):
            head = run is generated
            products = {name: multiplications(model, head) for name, model in models.items()}
            cases = [
                Case(
                    name,
                    bound(run, model, windows),
                    quality=facts(model, products[name], bound(forward, model, windows)),
                    floors=products[name] / products["dense"],
                )
                for name, model in models.items()
            ]
            session.table(title, cases[1:], floor=cases[0])


def bound(run: Callable[[Any, Tensor], Any], model: Any, windows: Tensor) -> Callable[[], Any]:
    return lambda: run(model, windows)


def generated(model: Any, windows: Tensor) -> Tensor:
    """Written after four tokens, so that almost all steps are of one token."""
    written: Tensor = model.generate(
        windows[:1, :4], max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    return written


def forward(model: Any, windows: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=windows, use_cache=False, logits_to_keep=1).logits
    return logits


def facts(
    model: Any, products: int, run: Callable[[], Any]
) -> Callable[[Any], dict[str, str | int]]:
    parameters = sum(p.numel() for p in model.parameters())
    return lambda _: {
        "parameters": parameters,
        "multiplications a token": products,
        "activations": f"{added_memory(run) / 1e6:.0f} MB",
    }


def multiplications(model: Any, head: bool) -> int:
    """Of all linear layers, for one token."""
    found = model.lm_head.weight.numel() if head else 0
    for module in model.model.modules():
        if isinstance(module, CompressedLinear):
            found += module.flops() // 2
        elif is_dense_linear(module):
            found += module.weight.numel()
    return found


def added_memory(run: Callable[[], Any]) -> int:
    """Bytes at the peak of a call above those before; of Linux."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024


if __name__ == "__main__":
    # What is freed goes back to the system, so that its memory tells what is in use.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    main()
