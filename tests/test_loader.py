import subprocess
import sys

import pytest
import torch

import fastlr
from fastlr._loader import check_torch


def test_versions_are_those_of_the_packages():
    info = fastlr.build_info()
    assert info["version"] == fastlr.__version__
    assert info["torch_running"] == torch.__version__
    assert info["torch_built"].split(".")[:2] == torch.__version__.split(".")[:2]


@pytest.mark.parametrize("running", ["2.13.0", "2.13.1+cpu", "2.13.0+cu130"])
def test_same_minor_version_is_accepted(running):
    check_torch("2.13.0", running, cuda_built=False, cuda_running="cu" in running)


@pytest.mark.parametrize("running", ["2.12.1", "2.14.0+cpu", "3.13.0", "2.1.3"])
def test_other_version_names_both_and_the_remedy(running):
    with pytest.raises(ImportError) as error:
        check_torch("2.13.0", running, cuda_built=False, cuda_running=False)
    message = str(error.value)
    assert "torch 2.13.0" in message
    assert f"torch {running}" in message
    assert "pip install" in message


def test_cuda_core_needs_cuda_torch():
    with pytest.raises(ImportError, match=r"with CUDA, but the installed torch .* is a CPU build"):
        check_torch("2.13.0", "2.13.0+cpu", cuda_built=True, cuda_running=False)


def test_wheel_requires_the_torch_minor_it_was_built_against():
    from importlib.metadata import requires

    major, minor = fastlr.build_info()["torch_built"].split(".")[:2]
    assert f"torch=={major}.{minor}.*" in requires("fastlr")


def test_a_core_for_another_torch_stops_the_import_before_the_library_is_opened():
    code = (
        "import fastlr._build_info as info; info.TORCH_VERSION = '1.0.0'\n"
        "import sys, fastlr\n"
        "try: fastlr.linalg\n"
        "except ImportError as error: print(error, 'fastlr._core' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "compiled against torch 1.0.0" in result.stdout
    assert result.stdout.strip().endswith("False")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_the_kernels_run_on_torchs_threads():
    # at::parallel_for is a serial loop in a core compiled without OpenMP, and then no test of
    # independence from the number of threads can fail. Nothing here but the kernel that draws
    # starts a thread, and it must start torch's: the core brings no OpenMP runtime of its own.
    code = (
        "import os, torch\n"
        "tasks = lambda: len(os.listdir('/proc/self/task'))\n"
        "openmp = lambda: sorted({line.split()[-1] for line in open('/proc/self/maps')"
        " if 'omp' in line.split('/')[-1]})\n"
        "of_torch = openmp()\n"
        "import fastlr.linalg as la\n"
        "torch.set_num_threads(2)\n"
        "before = tasks()\n"
        "la.random_matrix(4096, 64, seed=1)\n"
        "print(tasks() - before, openmp() == of_torch)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["1", "True"]
