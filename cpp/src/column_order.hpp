// Numbers of columns in an order.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <numeric>
#include <vector>

namespace fastlr {

inline std::vector<int64_t> as_they_are(int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

inline at::Tensor index_tensor(at::ArrayRef<int64_t> numbers, at::Device device) {
  return at::tensor(numbers, at::kLong).to(device);
}

}  // namespace fastlr
