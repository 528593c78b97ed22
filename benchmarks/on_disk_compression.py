"""A model larger than the memory: a random one of Llama's shape, compressed from disk to disk.

The checkpoint is drawn block by block. What compressing needs is measured in a process of its own:
its peak memory, file pages that the system may drop at any time included. Then the result is
loaded, and generates. By default the shape of the 7-billion-parameter model, with fewer blocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fastlr.nn import compress_on_disk, load
from harness import machine_line, markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where the models go")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--form")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--keep", type=Path, help="checkpoint_dir")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    dense = options.directory / "dense"
    if not (dense / "config.json").is_file():
        draw(dense, options)
    start = time.perf_counter()
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.perf_counter() - start
    model = load(options.directory / "small")
    with torch.no_grad():
        written = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    block = sum(p.numel() * 2 for p in blocks_of(options)[1].parameters())
    row = {
        "parameters": f"{measured['before'] / 1e9:.2f}e9 → {measured['after'] / 1e9:.2f}e9",
        "blocks": options.layers,
        "method": measured["method"],
        "tokens": measured["tokens"],
        "model, GB": f"{measured['bytes'] / 1e9:.2f}",
        "block, GB": f"{block / 1e9:.2f}",
        "peak memory, GB": f"{measured['peak'] / 1e9:.2f}",
        "peak − block": f"{(measured['peak'] - block) / 1e9:.2f}",
        "seconds": f"{seconds:.0f}",
        "generated": written[0, 3:].tolist(),
    }
    print(machine_line(), markdown([row]), sep="\n\n")


def work(options: argparse.Namespace) -> None:
    """Compress, and say what it took as JSON."""
    tokens = torch.randint(
        options.vocabulary,
        (options.samples, options.seq_len),
        generator=torch.Generator().manual_seed(0),
    )
    report = compress_on_disk(
        options.directory / "dense",
        options.directory / "small",
        options.ratio,
        method=options.method,
        form=options.form,
        calibration=tokens,
        samples=options.samples,
        checkpoint_dir=options.keep,
        overwrite=True,
    )
    found = {
        "peak": peak_memory(),
        "before": report.model_before.parameters,
        "after": report.model_after.parameters,
        "bytes": report.model_before.bytes,
        "method": report.method,
        "tokens": report.calibration_tokens,
        "stages": report.seconds,
    }
    print(report.seconds, file=sys.stderr)
    print(json.dumps(found))


def peak_memory() -> int:
    """Bytes, of this process since it began; of Linux, which counts file pages too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def blocks_of(options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """The model without memory, and its first block."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return model, model.model.layers[0]


def draw(directory: Path, options: argparse.Namespace) -> None:
    """Write a random model, a file a block; weights whose singular values fall like a power law."""
    from safetensors.torch import save_file

    model, _ = blocks_of(options)
    directory.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {}
    for name in model.state_dict():
        parts = name.split(".")
        names.setdefault(parts[2] if parts[1] == "layers" else "rest", []).append(name)
    weight_map = {}
    for number, (_, group) in enumerate(names.items(), 1):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        drawn = dict(_drawn(model, group))
        save_file(drawn, directory / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(group, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(directory)


def _drawn(model: nn.Module, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        shape = model.get_parameter(name).shape
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.bfloat16)
            continue
        generator = torch.Generator().manual_seed(hash_of(name))
        scale = torch.arange(1, shape[1] + 1) ** -0.25
        value = torch.randn(shape, generator=generator).mul_(scale / scale.norm())
        yield name, value.to(torch.bfloat16)


def hash_of(name: str) -> int:
    """The same number for a name in every process."""
    return int.from_bytes(name.encode()[-8:], "little") % 2**31 + 131 * sum(name.encode())


if __name__ == "__main__":
    main()
