#include "reflector_blocks.hpp"

#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "multiversion.hpp"
#include "registers.hpp"
#include "vectors.hpp"

namespace fastlr::kernels {
namespace {

// Rows that are converted to float64 at once, and rows whose products are summed up by one thread.
constexpr int64_t kRows = 64, kShare = 256;
// A tile of a product has so many rows, and columns that fill two registers: 16 of the longest.
constexpr int64_t kTileRows = 4, kTileColumns = 16;

int64_t padded(int64_t width) { return (width + kTileColumns - 1) / kTileColumns * kTileColumns; }

// C += or = A B for a tile of C; entry (r, l) of A at A[r * across + l * along], rows of B and C `stride` apart.
template <typename R, bool Add>
inline __attribute__((always_inline)) void multiply_tile(const double* A, int64_t across, int64_t along,
                                                         const double* B, int64_t steps, int64_t stride, double* C) {
  typename R::Vector sums[kTileRows][2] = {};
  for (int64_t l = 0; l < steps; ++l) {
    const auto first = R::at(B + l * stride), second = R::at(B + l * stride + R::kSize);
    for (int64_t r = 0; r < kTileRows; ++r) {
      const double a = A[r * across + l * along];
      sums[r][0] += a * first;
      sums[r][1] += a * second;
    }
  }
  for (int64_t r = 0; r < kTileRows; ++r)
    for (int64_t part = 0; part < 2; ++part) {
      auto& target = R::at(C + r * stride + part * R::kSize);
      target = Add ? target + sums[r][part] : sums[r][part];
    }
}

// The upper triangle of G += W^T W.
template <typename R>
inline __attribute__((always_inline)) void add_upper(const double* W, int64_t rows, int64_t width, double* G) {
  for (int64_t i = 0; i < width; i += kTileRows)
    for (int64_t j = i / (2 * R::kSize) * (2 * R::kSize); j < width; j += 2 * R::kSize)
      multiply_tile<R, true>(W + i, 1, width, W + j, rows, width, G + i * width + j);
}

// Y = W T for upper triangular T and a multiple of kTileRows rows.
template <typename R>
inline __attribute__((always_inline)) void times_upper(const double* W, int64_t rows, int64_t width, const double* T,
                                                       double* Y) {
  for (int64_t r = 0; r < rows; r += kTileRows)
    for (int64_t j = 0; j < width; j += 2 * R::kSize)
      multiply_tile<R, false>(W + r * width, width, 1, T + j, j + 2 * R::kSize, width, Y + r * width + j);
}

}  // namespace

FASTLR_MULTIVERSION void add_gram(const double* W, int64_t rows, int64_t width, double* G);
void add_gram(const double* W, int64_t rows, int64_t width, double* G) {
  has_registers_of_512_bits() ? add_upper<Registers<double, 64>>(W, rows, width, G)
                              : add_upper<Registers<double, 32>>(W, rows, width, G);
}

FASTLR_MULTIVERSION void multiply_by_upper(const double* W, int64_t rows, int64_t width, const double* T, double* Y);
void multiply_by_upper(const double* W, int64_t rows, int64_t width, const double* T, double* Y) {
  has_registers_of_512_bits() ? times_upper<Registers<double, 64>>(W, rows, width, T, Y)
                              : times_upper<Registers<double, 32>>(W, rows, width, T, Y);
}

// T = S^-1 for upper triangular S; zero below the diagonal.
FASTLR_MULTIVERSION void invert_upper(const double* S, int64_t width, double* T);
void invert_upper(const double* S, int64_t width, double* T) {
  for (int64_t i = width - 1; i >= 0; --i) {
    double* row = T + i * width;
    std::fill(row, row + width, 0.0);
    const double pivot = S[i * width + i];
    row[i] = 1 / pivot;
    for (int64_t l = i + 1; l < width; ++l) {
      const double factor = -S[i * width + l] / pivot;
      const double* below = T + l * width;
      for (int64_t j = l; j < width; ++j) row[j] += factor * below[j];
    }
  }
}

// W = V in float64, or V times a power of two for each column, with zeros to the right of it.
FASTLR_MULTIVERSION void widen(const float* V, int64_t stride, int64_t rows, int64_t columns, const double* scale,
                               int64_t width, double* W);
void widen(const float* V, int64_t stride, int64_t rows, int64_t columns, const double* scale, int64_t width,
           double* W) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < columns; ++j) W[r * width + j] = V[r * stride + j] * scale[j];
    for (int64_t j = columns; j < width; ++j) W[r * width + j] = 0;
  }
}

FASTLR_MULTIVERSION void narrow(const double* W, int64_t rows, int64_t width, int64_t columns, float* U);
void narrow(const double* W, int64_t rows, int64_t width, int64_t columns, float* U) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j) U[r * columns + j] = static_cast<float>(W[r * width + j]);
}

namespace {

// Rows [begin, end) of block i of matrix b, below its first row.
void widen_rows(const ReflectorBlocks& blocks, int64_t i, int64_t b, int64_t begin, int64_t end, const double* scale,
                double* W) {
  const int64_t columns = blocks.width_of(i), width = padded(columns);
  const float* V =
      blocks.V + b * blocks.strides[0] + (blocks.first_row(i) + begin) * blocks.strides[1] + i * blocks.width;
  widen(V, blocks.strides[1], end - begin, columns, scale, width, W);
  if (blocks.lower)
    for (int64_t r = begin; r < std::min(end, columns); ++r)
      std::fill(W + (r - begin) * width + r + 1, W + (r - begin) * width + columns, 0.0);
}

// From the upper triangle of V^T V.
void find_factors(const double* G, int64_t stride, int64_t columns, int64_t width, double* T, int32_t* exponents) {
  std::vector<double> S(width * width), scale(width, 1.0);
  for (int64_t j = 0; j < width; ++j) {
    int e = 0;
    if (j < columns) std::frexp(std::sqrt(G[j * stride + j]), &e);
    exponents[j] = e;
    scale[j] = std::ldexp(1.0, -e);
  }
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = i; j < columns; ++j) S[i * width + j] = G[i * stride + j] * scale[i] * scale[j];
    double& half = S[i * width + i] /= 2;
    if (half == 0) half = 1;  // a zero vector: an identity
  }
  invert_upper(S.data(), width, T);
}

}  // namespace

void reflector_factors_cpu(const ReflectorBlocks& blocks, double* T, int32_t* exponents) {
  const int64_t matrices = blocks.count() * blocks.batch, size = padded(blocks.width) * padded(blocks.width);
  // Shares of the rows of each block, which do not depend on the number of threads.
  std::vector<int64_t> offsets{0};
  for (int64_t at = 0; at < matrices; ++at)
    offsets.push_back(offsets.back() + (blocks.rows - blocks.first_row(at / blocks.batch) + kShare - 1) / kShare);
  std::vector<double> sums(offsets.back() * size);
  const std::vector<double> ones(blocks.width, 1.0);
  at::parallel_for(0, offsets.back(), 1, [&](int64_t begin, int64_t end) {
    VectorBuffer W(kRows * padded(blocks.width) / kVectorSize);
    for (int64_t share = begin; share < end; ++share) {
      const int64_t at = std::upper_bound(offsets.begin(), offsets.end(), share) - offsets.begin() - 1;
      const int64_t i = at / blocks.batch, first = (share - offsets[at]) * kShare;
      const int64_t last = std::min(first + kShare, blocks.rows - blocks.first_row(i));
      for (int64_t row = first; row < last; row += kRows) {
        const int64_t next = std::min(row + kRows, last);
        widen_rows(blocks, i, at % blocks.batch, row, next, ones.data(), W.entries());
        add_gram(W.entries(), next - row, padded(blocks.width_of(i)), sums.data() + share * size);
      }
    }
  });
  at::parallel_for(0, matrices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      double* G = sums.data() + offsets[at] * size;
      for (int64_t share = offsets[at] + 1; share < offsets[at + 1]; ++share)
        for (int64_t entry = 0; entry < size; ++entry) G[entry] += sums[share * size + entry];
      const int64_t columns = blocks.width_of(at / blocks.batch);
      find_factors(G, padded(columns), columns, blocks.width, T + at * blocks.width * blocks.width,
                   exponents + at * blocks.width);
    }
  });
}

void reflector_block_cpu(const ReflectorBlocks& blocks, int64_t i, const double* T, const int32_t* exponents, float* U,
                         float* Y) {
  const int64_t columns = blocks.width_of(i), width = padded(columns), rows = blocks.rows - blocks.first_row(i);
  const int64_t pieces = (rows + kRows - 1) / kRows;
  at::parallel_for(0, blocks.batch * pieces, 1, [&](int64_t begin, int64_t end) {
    VectorBuffer W(kRows * width / kVectorSize), product(kRows * width / kVectorSize);
    VectorBuffer upper(width * width / kVectorSize);
    std::vector<double> scale(columns);
    int64_t matrix = -1;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t b = piece / pieces, at = i * blocks.batch + b;
      if (b != matrix) {
        matrix = b;
        const double* of_block = T + at * blocks.width * blocks.width;
        for (int64_t r = 0; r < columns; ++r)
          std::copy_n(of_block + r * blocks.width, columns, upper.entries() + r * width);
        for (int64_t j = 0; j < columns; ++j) scale[j] = std::ldexp(1.0, -exponents[at * blocks.width + j]);
      }
      const int64_t row = piece % pieces * kRows, next = std::min(row + kRows, rows);
      widen_rows(blocks, i, b, row, next, scale.data(), W.entries());
      multiply_by_upper(W.entries(), (next - row + kTileRows - 1) / kTileRows * kTileRows, width, upper.entries(),
                        product.entries());
      narrow(W.entries(), next - row, width, columns, U + (b * rows + row) * columns);
      narrow(product.entries(), next - row, width, columns, Y + (b * rows + row) * columns);
    }
  });
}

}  // namespace fastlr::kernels
