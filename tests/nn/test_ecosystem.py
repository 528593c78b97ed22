"""Compressed models in the hands of the tools that people use with transformers."""

import copy
import json

import pytest
import torch

from fastlr.nn import CorrectedLinear, SparseLinear, compensate, compress_llm, load
from fastlr.nn.modules.base import CompressedLinear

METHODS = ["sparse", "svd_llm", "corrected"]
CALIBRATION = {"samples": 8, "seq_len": 24, "progress": False}


@pytest.fixture
def compressed(make_model, tokens):
    """compressed(method, text): a small model, of float32, calibrated on these tokens."""

    def build(method, text=tokens, **changes):
        model = make_model(**changes)
        original = copy.deepcopy(model)
        first = "sparse" if method == "corrected" else method
        compress_llm(model, 0.3, method=first, calibration=text, **CALIBRATION)
        if method == "corrected":
            compensate(model, original, rank=2, calibration=text, **CALIBRATION)
        return model

    return build


@pytest.mark.parametrize("method", METHODS)
def test_transformers_trainer(compressed, tokens, logits, tmp_path, method):
    from transformers import Trainer, TrainingArguments

    model = compressed(method)
    before = copy.deepcopy(model.state_dict())
    windows = tokens[:768].view(32, 24)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in windows]
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear):
            own = [f"{name}.{key}" for key, p in module.named_parameters(recurse=False)]
            assert own
            state = model.state_dict()
            assert all(not torch.equal(state[key], before[key]) for key in own)
    trainer.save_model(str(tmp_path / "tuned"))
    assert torch.equal(logits(load(tmp_path / "tuned")), logits(model.eval()))


@pytest.mark.parametrize("method", METHODS)
def test_device_maps(compressed, logits, tmp_path, method):
    model = compressed(method)
    model.save_pretrained(tmp_path / "saved")
    placed = load(tmp_path / "saved", device_map="auto")
    assert torch.equal(logits(placed), logits(model))
    assert {p.device.type for p in placed.parameters()} == {"cpu"}


@pytest.mark.parametrize("method", METHODS)
def test_a_block_on_disk(compressed, logits, tmp_path, method):
    model = compressed(method)
    model.save_pretrained(tmp_path / "saved")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    placed = load(tmp_path / "saved", device_map=places, offload_folder=tmp_path / "offloaded")
    away = {name for name, p in placed.named_parameters() if p.is_meta}
    assert away
    assert all(name.startswith("model.layers.1.") for name in away)
    assert torch.equal(logits(placed), logits(model))


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing(compressed, tokens, method):
    plain = compressed(method).train()
    batch = tokens[:96].view(4, 24)
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for model in (plain, saving):
        model(batch, labels=batch).loss.backward()
    assert saving.is_gradient_checkpointing
    for (name, wanted), found in zip(plain.named_parameters(), saving.parameters(), strict=True):
        # The same products, done again.
        assert torch.equal(found.grad, wanted.grad), name


TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: k for k, letter in enumerate(["<eos>", *alphabet])}
    built = Tokenizer(models.BPE(vocab=words, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<eos>", bos_token="<eos>")


@pytest.mark.parametrize("method", METHODS)
def test_lm_evaluation_harness(compressed, tokenizer, tmp_path, monkeypatch, method):
    pytest.importorskip("lm_eval", reason="not in the test extra: pip install lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    generator = torch.Generator().manual_seed(4)
    text = torch.randint(len(tokenizer), (400,), generator=generator)
    model = compressed(method, text, vocab_size=len(tokenizer))
    questions = [{"question": f"Is {k} larger than 5? ", "answer": int(k <= 5)} for k in range(12)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in questions))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(TASK.format(name="local_numbers", data=data))

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    results = lm_eval.simple_evaluate(
        harness,
        tasks=["local_numbers"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        verbosity="ERROR",
    )
    right = 0
    for question in questions:
        scores = []
        for answer in ("yes", "no"):
            start = tokenizer(question["question"].rstrip())["input_ids"]
            rest = tokenizer(" " + answer)["input_ids"]
            with torch.no_grad():
                predicted = model(torch.tensor([start + rest])).logits[0].log_softmax(-1)
            scores.append(sum(float(predicted[len(start) + k - 1, t]) for k, t in enumerate(rest)))
        right += scores.index(max(scores)) == question["answer"]
    assert results["results"]["local_numbers"]["acc,none"] == right / len(questions)


def test_the_models_are_what_they_are_called(compressed):
    assert any(isinstance(m, SparseLinear) for m in compressed("sparse").modules())
    corrected = [m for m in compressed("corrected").modules() if isinstance(m, CorrectedLinear)]
    assert any(isinstance(m.base, SparseLinear) for m in corrected)
