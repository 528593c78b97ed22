"""Directories that appear complete or not at all."""

from __future__ import annotations

import pytest

from fastlr.nn.output import atomic_directory, check_output, write_bytes, write_text


def test_the_directory_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "deep" / "out"
    with atomic_directory(out) as partial:
        (partial / "a").write_text("1")
        assert not out.exists()
    assert [file.name for file in out.iterdir()] == ["a"]
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_leaves_nothing(tmp_path, error):
    def fail_half_way():
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_directory(out):
        raise KeyboardInterrupt
    assert (out / "old").read_text() == "1"
    assert list(tmp_path.iterdir()) == [out]


def test_replacing_removes_the_old_files(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with atomic_directory(out) as partial:
        (partial / "new").write_text("2")
    assert [file.name for file in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


def test_what_may_be_written(tmp_path):
    check_output(tmp_path / "new", overwrite=False)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=False)
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "config.json").write_text("{}")
    check_output(saved, overwrite=True)
    with pytest.raises(ValueError, match="--overwrite"):
        check_output(saved, overwrite=False)
    with pytest.raises(ValueError, match="does not hold a saved model"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        check_output(saved / "config.json", overwrite=True)
    for model in (saved, saved / "model.gguf"):
        with pytest.raises(ValueError, match="choose another directory"):
            check_output(saved, overwrite=True, model=model)


def test_a_text_file_is_replaced_whole(tmp_path):
    path = tmp_path / "page.html"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"newer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"newer"
    assert list(path.parent.iterdir()) == [path]
