# Targets fastlr::torch and fastlr::torch_cuda from the headers and libraries of the interpreter's torch, found
# by torch_paths.py beside this file. Needs the Python interpreter found before.
#
# at::parallel_for is a template that is compiled with its caller: a serial loop, unless OpenMP is on there.
# Its threads must be those of torch (at::set_num_threads sets them), so the OpenMP runtime that torch
# brings is the one to link; a system's own serves where it has the same name.

execute_process(COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/torch_paths.py
  OUTPUT_VARIABLE paths RESULT_VARIABLE failed ERROR_VARIABLE message)
if(failed)
  message(FATAL_ERROR "fastlr needs torch in ${Python_EXECUTABLE}:\n${message}")
endif()
file(WRITE ${CMAKE_BINARY_DIR}/torch_paths.cmake "${paths}")
include(${CMAKE_BINARY_DIR}/torch_paths.cmake)
if(FASTLR_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "fastlr needs torch 2.11 or later, ${Python_EXECUTABLE} has ${FASTLR_TORCH_VERSION}")
endif()
message(STATUS "torch ${FASTLR_TORCH_VERSION} (CUDA: ${FASTLR_TORCH_CUDA}) of ${Python_EXECUTABLE}")

function(fastlr_find_torch_library name)
  find_library(FASTLR_LIB_${name} ${name} PATHS ${FASTLR_TORCH_LIBRARY_DIRS} NO_DEFAULT_PATH REQUIRED)
endfunction()

fastlr_find_torch_library(torch)
fastlr_find_torch_library(torch_cpu)
fastlr_find_torch_library(c10)
fastlr_find_torch_library(torch_python)

if(NOT TARGET fastlr::torch)
  add_library(fastlr::torch INTERFACE IMPORTED)
  target_include_directories(fastlr::torch SYSTEM INTERFACE ${FASTLR_TORCH_INCLUDE_DIRS})
  target_link_libraries(fastlr::torch INTERFACE ${FASTLR_LIB_torch} ${FASTLR_LIB_torch_cpu} ${FASTLR_LIB_c10})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    file(GLOB FASTLR_OPENMP ${FASTLR_TORCH_OPENMP})
    list(APPEND FASTLR_OPENMP gomp)
    list(GET FASTLR_OPENMP 0 FASTLR_OPENMP)
    message(STATUS "OpenMP: ${FASTLR_OPENMP}")
    target_compile_options(fastlr::torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
    target_link_libraries(fastlr::torch INTERFACE ${FASTLR_OPENMP})
  else()
    # Another compiler's OpenMP calls another runtime, and two in one process disturb each other.
    message(WARNING "fastlr's own kernels run on one thread when compiled by ${CMAKE_CXX_COMPILER_ID}; GCC gives them torch's threads")
  endif()
endif()
if(NOT TARGET fastlr::torch_python)
  add_library(fastlr::torch_python INTERFACE IMPORTED)
  target_link_libraries(fastlr::torch_python INTERFACE ${FASTLR_LIB_torch_python})
endif()
if(FASTLR_TORCH_CUDA AND NOT TARGET fastlr::torch_cuda)
  fastlr_find_torch_library(torch_cuda)
  fastlr_find_torch_library(c10_cuda)
  add_library(fastlr::torch_cuda INTERFACE IMPORTED)
  target_link_libraries(fastlr::torch_cuda INTERFACE ${FASTLR_LIB_torch_cuda} ${FASTLR_LIB_c10_cuda})
endif()
