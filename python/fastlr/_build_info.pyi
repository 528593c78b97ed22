# Written by CMake next to the extension module.
TORCH_VERSION: str
CUDA_ARCHITECTURES: str
COMPILER: str
