"""The C++ package: a libtorch program finds it with find_package(fastlr), builds and runs."""

import subprocess
import sys
from pathlib import Path

import pytest

import fastlr

SOURCES = Path(__file__).parents[1] / "cpp" / "tests"


@pytest.mark.skipif(not SOURCES.is_dir(), reason="cpp/tests is not beside the tests")
def test_libtorch_program(tmp_path):
    def run(*command):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run(
        "cmake",
        "-S",
        SOURCES,
        "-B",
        tmp_path,
        f"-DCMAKE_PREFIX_PATH={fastlr.cmake_prefix_path}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Debug",
    )
    run("cmake", "--build", tmp_path)
    assert "passed" in run(tmp_path / "test_core")
