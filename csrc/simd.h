// One source for several instruction sets: code is a template over the vector type and is inlined
// into functions that are compiled for one instruction set each. The processor decides at run time
// which of them is called.
#pragma once

#include <algorithm>
#include <cstdlib>

#if defined(__x86_64__) && defined(__GNUC__)
#define RETINAKIT_X86 1
#define RETINAKIT_TARGET(name) __attribute__((target(name)))
#endif
#define RETINAKIT_INLINE inline __attribute__((always_inline))

namespace retinakit {

template <class T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};
template <class T, int Bytes>
using Vector = typename VectorOf<T, Bytes>::type;

// The bits of the widest vectors of this processor: 512, 256 or 128. The environment variable
// RETINAKIT_VECTOR_BITS can lower it, which the tests use.
inline int vector_bits() {
  static const int bits = [] {
    int widest = 128;
#ifdef RETINAKIT_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      widest = 256;
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        widest = 512;
      }
    }
#endif
    const char* wish = std::getenv("RETINAKIT_VECTOR_BITS");
    return wish ? std::min(widest, std::atoi(wish)) : widest;
  }();
  return bits;
}

}  // namespace retinakit
