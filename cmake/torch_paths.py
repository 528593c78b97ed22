"""Print where the interpreter's torch keeps its headers and libraries, as CMake `set` commands.

`find_package(Torch)` is not used: with a CUDA build of torch it stops on machines without a CUDA
toolkit.
"""

import torch
from torch.utils.cpp_extension import include_paths, library_paths


def cmake_list(values: list[str]) -> str:
    return ";".join(value.replace("\\", "/") for value in values)


print(f'set(FASTLR_TORCH_VERSION "{torch.__version__.split("+")[0]}")')
print(f'set(FASTLR_TORCH_CUDA "{torch.version.cuda or ""}")')
print(f"set(FASTLR_TORCH_CXX11_ABI {int(torch.compiled_with_cxx11_abi())})")
print(f'set(FASTLR_TORCH_INCLUDE_DIRS "{cmake_list(include_paths())}")')
print(f'set(FASTLR_TORCH_LIBRARY_DIRS "{cmake_list(library_paths())}")')
