"""Low-rank numerical linear algebra for PyTorch.

`fastlr.linalg` holds the decompositions, `fastlr.nn` the compressed layers and `compress_llm`.
"""

from importlib.metadata import version as _version
from pathlib import Path as _Path

from fastlr._loader import build_info, load_core
from fastlr._loader import core_path as _core_path

load_core()

from fastlr import _ops as _ops  # noqa: E402  (its operators exist once the core is loaded)
from fastlr import linalg as linalg  # noqa: E402
from fastlr import nn as nn  # noqa: E402

__version__ = _version("fastlr")

#: For CMake's CMAKE_PREFIX_PATH: ``find_package(fastlr)`` then finds the C++ library.
cmake_prefix_path = str(_Path(_core_path()).parent / "lib" / "cmake")

__all__ = ["__version__", "build_info", "cmake_prefix_path", "linalg", "nn"]
