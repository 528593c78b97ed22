"""``fastlr doctor``."""

from __future__ import annotations

import json
import subprocess
import sys

import fastlr as library
from fastlr.cli import doctor


def test_a_sound_installation(fastlr):
    ran = fastlr("doctor")
    assert ran.code == 0, ran.out
    assert "self-test" in ran.out
    assert "broken" not in ran.out


def test_for_machines(fastlr):
    result = json.loads(fastlr("doctor", "--json").out)
    assert result["broken"] is False
    names = [finding["name"] for finding in result["findings"]]
    assert {"torch", "cpu", "threads", "gpu", "core", "blas"} <= set(names)


def test_a_core_for_another_torch_is_broken():
    code = (
        "import sys, fastlr._build_info as info; info.TORCH_VERSION = '1.0.0'\n"
        "from fastlr.cli import main; sys.exit(main(['doctor', '--json']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    broken = [f for f in json.loads(ran.stdout)["findings"] if f["status"] == "broken"]
    assert [finding["name"] for finding in broken] == ["core"]
    assert "compiled against torch 1.0.0" in broken[0]["value"]
    assert "Traceback" not in ran.stderr


def test_a_missing_package_is_a_note(fastlr, monkeypatch):
    monkeypatch.setattr(doctor, "_EXTRAS", ("no-such-package-of-fastlr",))
    ran = fastlr("doctor")
    assert ran.code == 0
    assert "pip install no-such-package-of-fastlr" in " ".join(ran.out.split())


def test_wrong_arithmetic_is_broken(fastlr, monkeypatch):
    import torch

    class Wrong:
        S = torch.zeros(3, dtype=torch.float64)

    monkeypatch.setattr(library.linalg, "randomized_svd", lambda *a, **k: Wrong)
    assert fastlr("doctor").code == 1
