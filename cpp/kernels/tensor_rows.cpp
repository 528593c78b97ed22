#include "tensor_rows.hpp"

#include <algorithm>

#include "multiversion.hpp"
#include "row_shares.hpp"

namespace fastlr::kernels {
namespace {

// out[i * width + j] (+)= left[i] * right[j]
template <bool Add, typename T>
inline __attribute__((always_inline)) void outer(const T* __restrict left, int64_t height, const T* __restrict right,
                                                 int64_t width, T* __restrict out) {
  for (int64_t i = 0; i < height; ++i)
    for (int64_t j = 0; j < width; ++j) {
      const T product = left[i] * right[j];
      out[i * width + j] = Add ? out[i * width + j] + product : product;
    }
}

// `products`: room for those of all factors but the last.
template <typename T>
inline __attribute__((always_inline)) void add_entry(const TensorRows<T>& rows, int64_t entry, T* products, T* out) {
  const size_t last = rows.factors.size() - 1;
  products[0] = rows.values[entry];
  int64_t height = 1;
  for (size_t m = 0; m < last; ++m) {
    const int64_t width = rows.ranks[m];
    outer<false>(products, height, rows.factors[m] + rows.indices[m][entry] * width, width, products + height);
    products += height;
    height *= width;
  }
  const int64_t width = rows.ranks[last];
  outer<true>(products, height, rows.factors[last] + rows.indices[last][entry] * width, width, out);
}

template <typename T>
inline __attribute__((always_inline)) void add_rows(const TensorRows<T>& rows, int64_t begin, int64_t end, int64_t size,
                                                    T* products, T* out) {
  for (int64_t i = begin; i < end; ++i) {
    std::fill_n(out + i * size, size, T(0));
    for (int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e)
      add_entry(rows, rows.order[e], products, out + i * size);
  }
}

FASTLR_MULTIVERSION void add(const TensorRows<float>& rows, int64_t begin, int64_t end, int64_t size, float* products,
                             float* out);
void add(const TensorRows<float>& rows, int64_t begin, int64_t end, int64_t size, float* products, float* out) {
  add_rows(rows, begin, end, size, products, out);
}

FASTLR_MULTIVERSION void add(const TensorRows<double>& rows, int64_t begin, int64_t end, int64_t size, double* products,
                             double* out);
void add(const TensorRows<double>& rows, int64_t begin, int64_t end, int64_t size, double* products, double* out) {
  add_rows(rows, begin, end, size, products, out);
}

}  // namespace

template <typename T>
void tensor_rows_cpu(const TensorRows<T>& rows, T* out) {
  int64_t size = 1, room = 1;
  for (const int64_t rank : rows.ranks) room += size *= rank;
  for_row_shares(rows.offsets, rows.count, /*own=*/1, /*flops=*/2 * size, [&](int64_t begin, int64_t end) {
    std::vector<T> products(static_cast<size_t>(room));
    add(rows, begin, end, size, products.data(), out);
  });
}

template void tensor_rows_cpu(const TensorRows<float>&, float*);
template void tensor_rows_cpu(const TensorRows<double>&, double*);

}  // namespace fastlr::kernels
