"""Loading a saved model in a process that knows nothing but its directory.

``python -m fastlr.cli.reload`` reads one JSON object from stdin and answers with one on stdout;
the demo uses it to prove that what it saved is what it measured.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Question:
    """What the new process is to do.

    Attributes
    ----------
    directory : str
        The saved model.
    tokens : list of int
        The input for the logits.
    prompt : str
        The text to continue, by `new_tokens` tokens.
    new_tokens : int
        Length of the continuation.
    threads : int
        How many threads to compute with: another number may round differently.
    """

    directory: str
    tokens: list[int]
    prompt: str
    new_tokens: int
    threads: int


@dataclass(frozen=True)
class Answer:
    """What it found."""

    logits_sha256: str
    continuation: str


def ask_new_process(question: Question) -> Answer:
    """Load the model in a new Python process.

    Raises
    ------
    OSError
        If that process fails.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "fastlr.cli.reload"],
        input=json.dumps(asdict(question)),
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"{question.directory} does not load in a new process: {last}")
    return Answer(**json.loads(finished.stdout))


def logits_sha256(model: PreTrainedModel, tokens: list[int]) -> str:
    """Return a fingerprint of the logits, bit by bit."""
    import torch

    with torch.no_grad():
        inputs = torch.tensor([tokens], device=model.device)
        logits = model(input_ids=inputs, use_cache=False).logits
    bits = logits.cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(bits.numpy().tobytes()).hexdigest()


def _answer(question: Question) -> Answer:
    import torch

    import fastlr.nn
    from fastlr.cli.generation import continuation
    from fastlr.cli.models import find_model, load_tokenizer

    torch.set_num_threads(question.threads)
    # First, since it also silences transformers: stdout and stderr carry the answer only.
    tokenizer = load_tokenizer(find_model(question.directory))
    model = fastlr.nn.load(Path(question.directory))
    text = continuation(model, tokenizer, question.prompt, question.new_tokens)
    return Answer(logits_sha256(model, question.tokens), text)


if __name__ == "__main__":
    print(json.dumps(asdict(_answer(Question(**json.load(sys.stdin))))))
