"""Where the interpreter's torch keeps its headers and libraries, without importing it.

Prints CMake `set` commands. `find_package(Torch)` is not used: with a CUDA build of torch it stops
on machines without a CUDA toolkit. torch is not imported either: the headers and libraries of a
CUDA build are enough to compile against, on machines where its own CUDA libraries are missing.
"""

import importlib.util
import runpy
from pathlib import Path


def torch_root() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("torch is not installed for this interpreter")
    return Path(spec.origin).parent


def torch_version() -> tuple[str, str]:
    """Return the release of torch and the CUDA version it was built with, empty for a CPU build."""
    version = runpy.run_path(str(torch_root() / "version.py"))
    return version["__version__"].split("+")[0], version["cuda"] or ""


if __name__ == "__main__":
    # The directories that torch.utils.cpp_extension.include_paths and library_paths name.
    root = torch_root()
    include = [root / "include", root / "include" / "torch" / "csrc" / "api" / "include"]
    release, cuda = torch_version()
    print(f'set(FASTLR_TORCH_VERSION "{release}")')
    print(f'set(FASTLR_TORCH_CUDA "{cuda}")')
    print(f'set(FASTLR_TORCH_INCLUDE_DIRS "{";".join(path.as_posix() for path in include)}")')
    print(f'set(FASTLR_TORCH_LIBRARY_DIRS "{(root / "lib").as_posix()}")')
    # Where wheels keep the OpenMP runtime that torch was linked with.
    openmp = [root / "lib" / "libgomp*.so*", root.parent / "torch.libs" / "libgomp*.so*"]
    print(f'set(FASTLR_TORCH_OPENMP "{";".join(path.as_posix() for path in openmp)}")')
