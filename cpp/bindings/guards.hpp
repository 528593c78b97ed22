// What holds while the core computes, whoever calls it.
#pragma once

#include <pybind11/pybind11.h>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <utility>

namespace fastlr::bindings {

// Some callers of compiled graphs exclude torch's handling of lazily conjugated views, which the algorithms rely on.
// And autocast must not lower the products within an algorithm.
class AsWritten {
  static c10::DispatchKeySet views() {
    return c10::DispatchKeySet({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});
  }
  c10::impl::LocalDispatchKeySet tls_ = c10::impl::tls_local_dispatch_key_set();
  c10::impl::ForceDispatchKeyGuard guard_{tls_.included_, (tls_.excluded_ - views()) | c10::autocast_dispatch_keyset};
};

// Of the functions that Python calls: they release its lock.
using Released = pybind11::call_guard<pybind11::gil_scoped_release, AsWritten>;

// The kernel of an operator of torch.
template <auto kernel>
struct Guarded;

template <typename Result, typename... Arguments, Result (*kernel)(Arguments...)>
struct Guarded<kernel> {
  static Result call(Arguments... arguments) {
    const AsWritten guard;
    return kernel(std::forward<Arguments>(arguments)...);
  }
};

}  // namespace fastlr::bindings
