"""Low-rank numerical linear algebra for PyTorch.

`fastlr.linalg` holds the decompositions, `fastlr.nn` the compressed layers and `compress_llm`. Both
are imported when they are first used, and with them torch and the compiled core: so `import fastlr`
is quick, and `fastlr doctor` runs where the core does not.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from fastlr._loader import build_info, cmake_prefix_path
from fastlr._transformers import register_on_import as _register_on_import

if TYPE_CHECKING:
    from fastlr import linalg as linalg
    from fastlr import nn as nn
    from fastlr.linalg import ConvergenceWarning as ConvergenceWarning

__version__ = _version("fastlr")

__all__ = ["ConvergenceWarning", "__version__", "build_info", "cmake_prefix_path", "linalg", "nn"]


def __getattr__(name: str) -> Any:
    if name in ("linalg", "nn"):
        return _import_module(f"fastlr.{name}")
    if name == "ConvergenceWarning":
        return _import_module("fastlr.linalg").ConvergenceWarning
    raise AttributeError(f"module 'fastlr' has no attribute {name!r}")


_register_on_import()
