// Operators by their names, for the gradients that are registered in C++.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace fastlr::bindings {

template <typename Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace fastlr::bindings
