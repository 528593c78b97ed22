"""What may be given as calibration, and what comes out."""

import warnings

import pytest
import torch

from fastlr.nn.compression.calibration import calibration_batches, random_windows


class Letters:
    """A tokenizer: one token a character."""

    def __call__(self, text, add_special_tokens=True, verbose=True):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) % 90 for letter in text]}


@pytest.fixture
def model(make_model):
    return make_model("llama", layers=1)


def all_rows(batches):
    return torch.cat([batch.input_ids for batch in batches])


def test_a_stream_is_cut_into_windows_that_do_not_overlap():
    stream = torch.arange(1000)
    windows = random_windows(stream, 7, 60, seed=1)
    assert windows.shape == (7, 60)
    assert torch.equal(windows, windows[:, :1] + torch.arange(60))  # contiguous text
    assert windows.unique().numel() == windows.numel()
    assert not torch.equal(windows, random_windows(stream, 7, 60, seed=2))
    assert torch.equal(windows, random_windows(stream, 7, 60, seed=1))


def test_too_few_windows_are_a_warning_none_an_error():
    with pytest.warns(UserWarning, match="holds 3 windows of 30 tokens, fewer than samples=5"):
        assert random_windows(torch.arange(100), 5, 30, 0).shape == (3, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random_windows(torch.arange(100), 3, 30, 0)
    with pytest.raises(ValueError, match="at least seq_len = 101 tokens, got 100"):
        random_windows(torch.arange(100), 3, 101, 0)


def test_file_list_and_stream_agree(model, tmp_path):
    text = "the quick brown fox jumps over the lazy dog. " * 20
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    options = {"tokenizer": Letters(), "samples": 4, "seq_len": 32, "seed": 3}
    from_path = calibration_batches(model, path, **options)
    from_name = calibration_batches(model, str(path), **options)
    from_list = calibration_batches(model, [text[:100], text[100:]], **options)
    tokens = torch.tensor(Letters()(text, add_special_tokens=False)["input_ids"])
    from_stream = calibration_batches(model, tokens, **options)
    for other in (from_name, from_list, from_stream):
        assert torch.equal(all_rows(from_path), all_rows(other))
    assert all_rows(from_path).shape == (4, 32)


def test_batches_of_the_users_own(model):
    mask = torch.ones(2, 5, dtype=torch.int64)
    mask[1, 3:] = 0
    items = [
        torch.arange(6),
        torch.arange(10, dtype=torch.int32).reshape(2, 5),
        {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": mask},
    ]
    batches = calibration_batches(model, (item for item in items))
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(1, 6), (2, 5), (2, 5)]
    assert [batch.tokens() for batch in batches] == [6, 10, 8]
    (single,) = calibration_batches(model, items[2])
    assert torch.equal(single.attention_mask, mask)


def test_rows_of_a_matrix_are_windows(model):
    rows = torch.arange(40).reshape(8, 5)
    assert torch.equal(all_rows(calibration_batches(model, rows, samples=8)), rows)
    some = all_rows(calibration_batches(model, rows, samples=3))
    assert some.shape == (3, 5)
    assert all(any(torch.equal(row, candidate) for candidate in rows) for row in some)


@pytest.mark.parametrize("architecture", ["llama", "qwen", "gpt2"])
def test_self_calibration_is_deterministic_and_leaves_the_generator_alone(make_model, architecture):
    model = make_model(architecture)
    state = torch.random.get_rng_state()
    one = all_rows(calibration_batches(model, None, samples=6, seq_len=20, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again = all_rows(calibration_batches(model, None, samples=6, seq_len=20, seed=4))
    assert torch.equal(one, again)
    assert one.shape == (6, 20)
    other = all_rows(calibration_batches(model, None, samples=6, seq_len=20, seed=5))
    assert not torch.equal(one, other)


def test_self_calibration_begins_with_bos_where_there_is_one(make_model):
    with_bos = all_rows(calibration_batches(make_model("llama"), None, samples=6, seq_len=4))
    assert with_bos[:, 0].tolist() == [1] * 6
    without = all_rows(calibration_batches(make_model("qwen"), None, samples=6, seq_len=4))
    assert len(without[:, 0].unique()) > 1


def test_self_calibration_samples_the_model(make_model):
    """Each token is drawn from what the model predicts: a model of one mind says one thing."""
    model = make_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(1e4)  # logits so far apart that sampling is greedy
    windows = all_rows(calibration_batches(model, None, samples=4, seq_len=12, seed=0))
    with torch.no_grad():
        best = model(windows).logits.argmax(-1)
    assert torch.equal(windows[:, 1:], best[:, :-1])


def test_bad_calibration(model, tmp_path):
    def fails(kind, match, calibration, **options):
        with pytest.raises(kind, match=match):
            calibration_batches(model, calibration, **options)

    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\xfa")
    tokens = torch.arange(90)
    fails(ValueError, "is empty", empty, tokenizer=Letters())
    fails(ValueError, "is not UTF-8 text", binary, tokenizer=Letters())
    fails(ValueError, "cannot read the text file .*No such file", tmp_path / "no.txt")
    fails(ValueError, "cannot read the text file .*directory", tmp_path)
    fails(ValueError, "can only be used with a tokenizer", ["some text"])
    fails(ValueError, "samples must be at least 1, got 0", tokens, samples=0)
    fails(ValueError, "seq_len must be at least 1, got -1", tokens, seq_len=-1)
    fails(ValueError, "at least seq_len = 91 tokens, got 90", tokens, seq_len=91)
    fails(ValueError, "at most 256, the model's longest context, got 257", None, seq_len=257)
    fails(ValueError, "at most 256", torch.zeros(300, dtype=torch.int64), seq_len=257)
    fails(
        ValueError,
        "between 0 and 95, the model's vocabulary, got 96",
        tokens + 7,
        seq_len=30,
        samples=3,
    )
    fails(ValueError, "vocabulary, got -1", tokens - 1, seq_len=90, samples=1)
    fails(TypeError, r"tokens must be integers, got a tensor of torch\.float32", tokens.float())
    fails(TypeError, "must be None, a path .* got int", 3)
    fails(TypeError, "must be None, a path .* got bytes", b"text")
    fails(ValueError, "must not be empty", [])
    fails(TypeError, "a batch must be a token tensor or a mapping .* got list", [[1, 2]])
    fails(ValueError, "must have the key 'input_ids', got", [{"ids": tokens}])
    fails(ValueError, r"got shape \(0,\)", [tokens[:0]])
    fails(ValueError, r"got shape \(2, 3, 15\)", tokens.reshape(2, 3, 15))
