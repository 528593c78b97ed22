"""kill -9 at random points of a compression, resumed each time: are the files the same?

Once uninterrupted, then killed at as many random times as asked for, each later than the one
before as the finished files grow in number. The model is read from and written to disk by
compress_on_disk, or with --in-memory by compress_llm.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from fastlr.nn import compress_llm, compress_on_disk
from fastlr.nn.evaluate import tokenize
from harness import machine_line, markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a directory, or a .gguf with --in-memory")
    parser.add_argument("text", type=Path)
    parser.add_argument("directory", type=Path, help="where everything goes")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options, *options.worker)
        return
    place = options.directory
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    start = time.perf_counter()
    once = started(place / "once", place / "expected")
    if once.wait():
        sys.exit("the uninterrupted run failed")
    seconds = time.perf_counter() - start
    files = count(place / "once")
    draw = random.Random(options.seed)
    # Moments by the number of finished files: spread over the whole run, whatever its stages take.
    moments = sorted(draw.randrange(files + 1) for _ in range(options.kills))
    killed = 0
    start = time.perf_counter()
    while True:
        process = started(place / "often", place / "found")
        while process.poll() is None:
            if killed < len(moments) and count(place / "often") >= moments[killed]:
                time.sleep(draw.uniform(0, 2))
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
                print(f"killed {killed} with {count(place / 'often')} files", file=sys.stderr)
            time.sleep(0.05)
        if process.wait() == 0:
            break
        if process.returncode != -signal.SIGKILL:
            sys.exit("a resumed run failed")
    names = sorted(path.name for path in (place / "expected").iterdir())
    same = names == sorted(path.name for path in (place / "found").iterdir()) and all(
        (place / "expected" / name).read_bytes() == (place / "found" / name).read_bytes()
        for name in names
    )
    row = {
        "kills": killed,
        "files in checkpoint_dir": files,
        "uninterrupted, s": f"{seconds:.0f}",
        "with kills, s": f"{time.perf_counter() - start:.0f}",
        "identical": "yes" if same else "NO",
    }
    print(machine_line(), markdown([row]), sep="\n\n")
    sys.exit(not same)


def started(checkpoint: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(checkpoint), str(out)]
    return subprocess.Popen(command)


def count(directory: Path) -> int:
    return sum(1 for _ in directory.rglob("*.safetensors"))


def work(options: argparse.Namespace, checkpoint: Path, out: Path) -> None:
    """One run, from wherever the checkpoint is."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = options.model
    given = {} if where.is_dir() else {"gguf_file": where.name}
    source = where if where.is_dir() else where.parent
    tokenizer = AutoTokenizer.from_pretrained(source, **given)
    tokens = tokenize(options.text.read_text(encoding="utf-8"), tokenizer)
    settings = {
        "method": options.method,
        "calibration": tokens,
        "samples": options.samples,
        "seq_len": options.seq_len,
        "checkpoint_dir": checkpoint,
        "progress": False,
    }
    if options.in_memory:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **given)
        compress_llm(model, options.ratio, **settings).save_pretrained(out)
    else:
        compress_on_disk(where, out, options.ratio, **settings)


if __name__ == "__main__":
    main()
