// Bit counting by carry-save adders (Harley & Seal): each vector holds one bit of many numbers.
#pragma once

#include "simd.h"

namespace retinakit {

// Computes low + a + b = low + 2 high for each bit.
template <class V>
RETINAKIT_INLINE void add(V& high, V& low, const V a, const V b) {
  const V either = low ^ a;
  high = (low & a) | (either & b);
  low = either ^ b;
}

// Adds 2^Levels vectors to bit-sliced numbers. get(i, vector) reads vector i, from `first` on;
// planes[k] holds bit k < Levels of the numbers, and `carry` returns bit Levels.
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
