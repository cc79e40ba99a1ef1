// Gathers entries of an array.
#pragma once

#include <algorithm>
#include <cstdint>

#include "parallel.h"

namespace retinakit {

// result[i] = values[index[i]]. The entry `kAhead` places later is prefetched.
inline void take(const float* values, const int64_t* index, int64_t number, float* result,
                 int threads) {
  constexpr int64_t kAhead = 32;
  parallel(number, threads, [=](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      __builtin_prefetch(values + index[std::min(i + kAhead, to - 1)]);
      result[i] = values[index[i]];
    }
  });
}

}  // namespace retinakit
