"""Low-rank numerical linear algebra for PyTorch.

`fastlr.linalg` holds the decompositions, `fastlr.nn` the compressed layers and `compress_llm`.
"""

from importlib.metadata import version as _version

from fastlr._loader import build_info, load_core

load_core()

from fastlr import _ops as _ops  # noqa: E402  (its operators exist once the core is loaded)
from fastlr import linalg as linalg  # noqa: E402
from fastlr import nn as nn  # noqa: E402

__version__ = _version("fastlr")

__all__ = ["__version__", "build_info", "linalg", "nn"]
