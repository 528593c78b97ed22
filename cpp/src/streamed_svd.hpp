// The result of a stream in the type and the scale of its rows.
#pragma once

#include <fastlr/streaming_svd.hpp>

namespace fastlr {

// Of the triplets, in double precision, for A * 2^exponent. The largest entry of every right vector is made real and
// positive.
StreamedSvd as_streamed(StreamedSvd svd, int64_t exponent, at::ScalarType type);

}  // namespace fastlr
