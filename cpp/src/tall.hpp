// Matrices with many more rows than columns, worked on in blocks of rows that stay in the cache, shared out among the
// threads. Leading dimensions are a batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <utility>

namespace fastlr {

// Into how many shares of consecutive rows the work is split, for blocks of `height` rows of a tensor like `like`:
// one to a thread, one alone where there is too little of it or where another level is parallel already.
int64_t row_shares(const at::Tensor& like, int64_t rows, int64_t height);

// Visits blocks of at most `height` rows; the blocks of a share come in order, shares may run at the same time. What a
// visitor needs for a block is allocated before, for each share: memory that is given back after every block comes with
// a page fault for the next one.
using RowVisitor = std::function<void(int64_t share, int64_t row0, int64_t height)>;
void for_row_blocks(int64_t rows, int64_t height, int64_t shares, const RowVisitor& visit);

// Rows of a block of `bytes_per_row` that fill a part of the cache.
int64_t cached_rows(int64_t bytes_per_row);

// Y T, of the type of Y.
at::Tensor tall_product(const at::Tensor& Y, const at::Tensor& T);

// Y <- Y + Y C
void tall_add_product_(at::Tensor& Y, const at::Tensor& C);

// YᴴY in the precision of Y.
at::Tensor quick_gram(const at::Tensor& Y);

// YᴴY in double precision, free of the bias that long sums of equal signs gather in a product (a column of m ones
// is off by up to m u / 4): float32 is accumulated in float64; float64 in short sums, and the diagonal, whose terms are
// all positive, pairwise.
at::Tensor accurate_gram(const at::Tensor& Y);

// The smallest and the largest entry of each column of a real Y.
std::pair<at::Tensor, at::Tensor> column_extremes(const at::Tensor& Y);

// From a Gram matrix G = YᴴY = RᴴR, Cholesky's upper triangular R: T = R^-1, so that Y T is orthonormal. G is scaled
// to a unit diagonal first: columns of very different size then cost no accuracy.
struct CholeskyFactors {
  at::Tensor R, T;
  at::Tensor valid;          // bool: false where the factorization breaks down
  at::Tensor amplification;  // of rounding errors in the columns of Y, relative to their lengths, by T: 1 for
                             // orthogonal columns; in the Frobenius norm
};
CholeskyFactors cholesky_factors(const at::Tensor& G, double shift = 0.0);

}  // namespace fastlr
