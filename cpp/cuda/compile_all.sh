#!/usr/bin/env bash
# Compile every .cu to an object in the folder $1, against the torch of `python`, without a GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
# All that a CPU build of torch lacks of the headers is this generated file.
mkdir -p "$out/stub/c10/cuda/impl"
echo '#pragma once' >"$out/stub/c10/cuda/impl/cuda_cmake_macros.h"
torch=$(python -c 'import os, torch; print(os.path.dirname(torch.__file__))')
for source in "$here"/*.cu; do
  nvcc -std=c++20 -fmad=false --Werror all-warnings -c "$source" -o "$out/$(basename "$source").o" \
    -I"$here/../include" -isystem "$torch/include" -isystem "$out/stub" \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
  echo "compiled $(basename "$source")"
done
