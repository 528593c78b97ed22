"""Open the C++ core, after making sure that it was compiled against the torch that runs."""

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from fastlr import _build_info

_REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall <fastlr's source folder>"

#: For CMake's CMAKE_PREFIX_PATH: ``find_package(fastlr)`` then finds the C++ library.
cmake_prefix_path = str(Path(str(_build_info.__file__)).parent / "lib" / "cmake")


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def check_torch(built: str, running: str, cuda_built: bool, cuda_running: bool) -> None:
    """Raise ImportError where a core built against torch `built` cannot run with torch `running`.

    torch keeps its C++ ABI within a minor version only; a core with CUDA kernels needs a torch
    with CUDA.
    """
    if _minor(built) != _minor(running):
        raise ImportError(
            f"fastlr was compiled against torch {built}, but torch {running} is installed; install "
            f"torch {'.'.join(map(str, _minor(built)))}.* or rebuild fastlr with: {_REBUILD}"
        )
    if cuda_built and not cuda_running:
        raise ImportError(
            f"fastlr was compiled against torch {built} with CUDA, but the installed torch "
            f"{running} is a CPU build; install torch with CUDA or rebuild fastlr with: {_REBUILD}"
        )


def load_core() -> None:
    """Check the versions and load the extension module, which registers `torch.ops.fastlr`."""
    import torch

    check_torch(
        _build_info.TORCH_VERSION,
        torch.__version__,
        bool(_build_info.CUDA_ARCHITECTURES),
        torch.version.cuda is not None,
    )
    try:
        importlib.import_module("fastlr._core")
    except ImportError as error:
        raise ImportError(
            f"fastlr's compiled core cannot be loaded ({error}); rebuild it with: {_REBUILD}"
        ) from error


def build_info() -> dict[str, Any]:
    """What the core was compiled with and what it would run on; the core itself is not loaded.

    Returns
    -------
    dict
        Keys `version`, `torch_built`, `torch_running`, `cuda` (the architectures compiled for,
        an empty list for a CPU build), `compiler`, `cpu_capability` and `blas`.

    Examples
    --------
    >>> import fastlr
    >>> sorted(fastlr.build_info())
    ['blas', 'compiler', 'cpu_capability', 'cuda', 'torch_built', 'torch_running', 'version']
    """
    import torch

    return {
        "version": importlib.metadata.version("fastlr"),
        "torch_built": _build_info.TORCH_VERSION,
        "torch_running": torch.__version__,
        "cuda": [arch for arch in _build_info.CUDA_ARCHITECTURES.split(";") if arch],
        "compiler": _build_info.COMPILER,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _blas_name(),
    }


def _blas_name() -> str:
    import torch

    settings = torch.__config__.show()
    _, found, rest = settings.partition("BLAS_INFO=")
    return rest.split(",")[0] if found else "unknown"
