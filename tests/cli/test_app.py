"""The command line itself: help, version, mistyped words, missing packages, Ctrl-C."""

from __future__ import annotations

import builtins
import subprocess
import sys
import warnings

import pytest

import fastlr as library
from fastlr.cli import app, main


def test_help_lists_the_commands(fastlr):
    ran = fastlr("--help")
    assert ran.code == 0
    assert all(word in ran.out for word in ("compress", "evaluate", "inspect", "demo", "doctor"))


def test_no_arguments_print_the_help(fastlr):
    ran = fastlr()
    assert ran.code == 0
    assert "compress" in ran.out


def test_version(fastlr):
    assert fastlr("--version").out == f"fastlr {library.__version__}\n"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["compres"], "compres"),
        (["compress", "a", "b", "--ration", "0.2"], "--ration"),
        (["compress", "a"], "OUT"),
        (["compress", "a", "b", "--method", "magic"], "magic"),
        (["compress", "a", "b", "--form", "round"], "round"),
        (["compress", "a", "b", "--ratio", "much"], "--ratio"),
        (["compress", "a", "b", "--samples", "0"], "--samples"),
        (["evaluate", "a", "b", "--seq-len", "1"], "--seq-len"),
        (["evaluate", "a", "b", "--dtype", "int8"], "int8"),
        (["doctor", "--jsn"], "--jsn"),
    ],
)
def test_a_mistyped_word_is_one_sentence(fastlr, words, names):
    ran = fastlr(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert names in ran.complaint


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_a_missing_extra_is_one_sentence(fastlr, monkeypatch, name):
    true_import = builtins.__import__

    def without(module, *rest, **named):
        if module.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return true_import(module, *rest, **named)

    monkeypatch.delitem(sys.modules, "fastlr.cli.app", raising=False)
    monkeypatch.delattr("fastlr.cli.app", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    if name == "rich":
        monkeypatch.setitem(sys.modules, "typer", None)
        monkeypatch.setattr(
            builtins,
            "__import__",
            lambda module, *rest, **named: without(_renamed(module), *rest, **named),
        )
    ran = fastlr("doctor")
    assert ran.code == 2
    assert f"needs {name}" in ran.complaint
    assert "pip install" in ran.complaint


def _renamed(module: str) -> str:
    return "rich" if module == "typer" else module


def test_missing_transformers_is_one_sentence(fastlr, tiny_model, text_file, monkeypatch):
    from fastlr.cli import errors

    true_find = errors.importlib.util.find_spec
    monkeypatch.setattr(
        errors.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "transformers" else true_find(name, *rest),
    )
    ran = fastlr("evaluate", tiny_model, text_file)
    assert ran.code == 2
    assert "pip install transformers" in ran.complaint


def _replace_doctor(monkeypatch, action):
    from fastlr.cli import doctor

    monkeypatch.setattr(doctor, "diagnose", action)


def test_ctrl_c_is_one_sentence(fastlr, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    _replace_doctor(monkeypatch, interrupted)
    ran = fastlr("doctor")
    assert ran.code == 130
    assert "interrupted" in ran.complaint


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken():
        raise AssertionError("a bug")

    _replace_doctor(monkeypatch, broken)
    with pytest.raises(AssertionError, match="a bug"):
        main(["doctor"])


def test_the_developers_switch_shows_the_traceback(monkeypatch):
    def bad():
        raise ValueError("bad input")

    _replace_doctor(monkeypatch, bad)
    assert main(["doctor"]) == 2
    monkeypatch.setenv("FASTLR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad input"):
        main(["doctor"])


def test_a_warning_is_one_sentence(fastlr, monkeypatch):
    def warned():
        warnings.warn("few tokens", stacklevel=2)
        return []

    _replace_doctor(monkeypatch, warned)
    ran = fastlr("doctor")
    assert ran.code == 0
    assert ran.complaint == "fastlr: warning: few tokens"


def test_the_command_line_loads_nothing_heavy():
    script = (
        "import importlib.util, sys, types\n"
        # The package without its __init__, which loads the core.
        "package = types.ModuleType('fastlr')\n"
        f"package.__path__ = [{library.__path__[0]!r}]\n"
        "sys.modules['fastlr'] = package\n"
        "from fastlr.cli import main\n"
        "assert main(['compress', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastlr.nn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_choices_are_the_librarys():
    from typing import get_args

    from fastlr.nn.compression.allocation import ALLOCATIONS
    from fastlr.nn.compression.methods import METHODS

    assert {method.value for method in app.Method} == {"auto", *METHODS}
    assert set(get_args(app.Form)) == {form for m in METHODS.values() for form in m.forms}
    assert set(get_args(app.Allocation)) == set(ALLOCATIONS)
