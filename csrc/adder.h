// Counting bits by carry-save adders (Harley & Seal): each vector holds one bit of many numbers.
#pragma once

#include "simd.h"

namespace retinakit {

// low + a + b = low + 2 high, bit by bit.
template <class V>
RETINAKIT_INLINE void add(V& high, V& low, const V a, const V b) {
  const V either = low ^ a;
  high = (low & a) | (either & b);
  low = either ^ b;
}

// Adds 2^Levels vectors, which get(i, vector) yields from i = first on, to numbers of which
// planes[k] holds bit k < Levels; `carry` is bit Levels.
template <int Levels, class V, class Get>
RETINAKIT_INLINE void add_all(V& carry, V* planes, int first, const Get& get) {
  if constexpr (Levels == 0) {
    get(first, carry);
  } else {
    V a, b;
    add_all<Levels - 1>(a, planes, first, get);
    add_all<Levels - 1>(b, planes, first + (1 << (Levels - 1)), get);
    add(carry, planes[Levels - 1], a, b);
  }
}

}  // namespace retinakit
