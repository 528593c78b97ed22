// What the streaming algorithms ask of a block of rows.
#pragma once

#include <functional>

#include <fastlr/streaming_svd.hpp>

namespace fastlr {

// The largest magnitude of an entry; raises ValueError with the first index, counted from row0, that is not finite.
double finite_magnitude(const RowBlock& block, const char* caller);

// Visits the rows in order, dense, weighted and times 2^exponent, at most `height` at a time.
using DenseVisitor = std::function<void(const at::Tensor& rows)>;
void visit_dense(const RowBlock& block, int64_t height, int64_t exponent, const DenseVisitor& visit);

// The same by several threads, of which each visits shares of its own in order: they wait for each other once for many
// products, and not in every one.
using SharedVisitor = std::function<void(int64_t share, const at::Tensor& rows)>;
void visit_dense(const RowBlock& block, int64_t height, int64_t exponent, int64_t shares, const SharedVisitor& visit);

}  // namespace fastlr
