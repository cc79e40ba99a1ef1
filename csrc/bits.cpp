// Positional popcount: numbers are kept bit-sliced, plane k holding bit k of the counts of all
// checks, and carry-save adders add 16 frames at a time (Harley & Seal).
#include "bits.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace retinakit {

namespace {

constexpr int64_t kBlockFrames = 4096;  // of one tile: 256 KB, which the L2 cache holds
constexpr int kBlockPlanes = 13;        // counts of a block go up to kBlockFrames
constexpr int kMaxPlanes = 40;

// low + a + b = low + 2 high, bit by bit.
template <class V>
RETINAKIT_INLINE void add(V& high, V& low, const V a, const V b) {
  const V either = low ^ a;
  high = (low & a) | (either & b);
  low = either ^ b;
}

// Adds x * 2^level to bit-sliced numbers.
template <class V>
RETINAKIT_INLINE void ripple(V* planes, int level, int top, V x) {
  for (int k = level; k < top; ++k) {
    const V carry = planes[k] & x;
    planes[k] ^= x;
    x = carry;
  }
}

// Adds the bits of some frames (one vector of each line) to the bit-sliced `total`.
template <class V>
RETINAKIT_INLINE void count(const uint64_t* lines, const int64_t* frames, int64_t number, V* total,
                            int planes) {
  const V zero = {};
  V plane[kBlockPlanes + 1] = {}, waiting[kBlockPlanes + 1];
  V ones = zero, twos = zero, fours = zero, eights = zero;
  const int64_t groups = (number + 15) / 16;
  for (int64_t group = 0; group < groups; ++group) {
    const V* line[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t at = 16 * group + i;
      line[i] = at < number ? reinterpret_cast<const V*>(lines + frames[at] * kTileWords) : &zero;
    }
    V two_a, two_b, four_a, four_b, eight_a, eight_b, x;
    add(two_a, ones, *line[0], *line[1]);
    add(two_b, ones, *line[2], *line[3]);
    add(four_a, twos, two_a, two_b);
    add(two_a, ones, *line[4], *line[5]);
    add(two_b, ones, *line[6], *line[7]);
    add(four_b, twos, two_a, two_b);
    add(eight_a, fours, four_a, four_b);
    add(two_a, ones, *line[8], *line[9]);
    add(two_b, ones, *line[10], *line[11]);
    add(four_a, twos, two_a, two_b);
    add(two_a, ones, *line[12], *line[13]);
    add(two_b, ones, *line[14], *line[15]);
    add(four_b, twos, two_a, two_b);
    add(eight_b, fours, four_a, four_b);
    add(x, eights, eight_a, eight_b);
    // Two sixteens make a thirty-two, and so on: one adder per group on average.
    int level = 4;
    for (int64_t pairs = group; pairs & 1; pairs >>= 1, ++level) {
      V carry;
      add(carry, plane[level], waiting[level], x);
      x = carry;
    }
    waiting[level] = x;
  }
  plane[0] = ones, plane[1] = twos, plane[2] = fours, plane[3] = eights;
  V carry = zero;
  for (int k = 0; k < planes; ++k) {
    V high, low = k <= kBlockPlanes ? plane[k] : zero;
    add(high, low, total[k], carry);
    total[k] = low;
    carry = high;
  }
  for (int level = 4; groups >> (level - 4); ++level) {
    if (groups >> (level - 4) & 1) ripple(total, level, planes, waiting[level]);
  }
}

// sums += scale * (the bit-sliced numbers) + offset, for the first `width` checks of a line.
template <class T>
RETINAKIT_INLINE void unslice(const uint64_t* planes, int number, int64_t width, T scale, T offset,
                              T* sums) {
  int32_t value[kTileChecks] = {};
  for (int k = 0; k < number; ++k) {
    uint32_t half[2 * kTileWords];
    std::memcpy(half, planes + k * kTileWords, sizeof half);
    for (int w = 0; w < 2 * kTileWords; ++w) {
      for (int b = 0; b < 32; ++b) value[32 * w + b] += (half[w] >> b & 1) << k;
    }
  }
  for (int64_t i = 0; i < width; ++i) sums[i] += scale * static_cast<T>(value[i]) + offset;
}

struct Task {
  const uint64_t* bits;
  int64_t frames_in_bits, checks;
  const int64_t *starts, *frames;
  int64_t cells, first_lag, lags;
};

template <class V, class T>
RETINAKIT_INLINE void tile_sums(const Task& t, int64_t tile, T scale, T offset, T* sums) {
  constexpr int kParts = kTileWords * 8 / sizeof(V);
  int64_t longest = 0;
  for (int64_t c = 0; c < t.cells; ++c) {
    longest = std::max(longest, t.starts[c + 1] - t.starts[c]);
  }
  int planes = 1;
  while (longest >> planes) ++planes;
  // (cell, lag, part, plane)
  std::vector<uint64_t> store(t.cells * t.lags * planes * kTileWords + 8);
  V* totals = reinterpret_cast<V*>(store.data());
  std::vector<int64_t> at(t.starts, t.starts + t.cells);
  const uint64_t* lines = t.bits + tile * t.frames_in_bits * kTileWords;
  for (int64_t end = kBlockFrames; end < t.frames_in_bits + kBlockFrames; end += kBlockFrames) {
    for (int64_t c = 0; c < t.cells; ++c) {
      const int64_t from = at[c];
      int64_t to = from;
      while (to < t.starts[c + 1] && t.frames[to] < end) ++to;
      at[c] = to;
      if (from == to) continue;
      for (int64_t lag = 0; lag < t.lags; ++lag) {
        for (int part = 0; part < kParts; ++part) {
          count<V>(lines + part * (kTileWords / kParts) - (t.first_lag + lag) * kTileWords,
                   t.frames + from, to - from,
                   totals + ((c * t.lags + lag) * kParts + part) * planes, planes);
        }
      }
    }
  }
  const int64_t first = tile * kTileChecks, width = std::min(kTileChecks, t.checks - first);
  for (int64_t c = 0; c < t.cells; ++c) {
    const int64_t number = t.starts[c + 1] - t.starts[c];
    if (number == 0) continue;
    for (int64_t lag = 0; lag < t.lags; ++lag) {
      V gathered[kMaxPlanes * kParts];
      for (int part = 0; part < kParts; ++part) {
        for (int k = 0; k < planes; ++k) {
          gathered[k * kParts + part] = totals[((c * t.lags + lag) * kParts + part) * planes + k];
        }
      }
      unslice<T>(reinterpret_cast<const uint64_t*>(gathered), planes, width, scale,
                 offset * static_cast<T>(number), sums + (c * t.lags + lag) * t.checks + first);
    }
  }
}

#ifdef RETINAKIT_X86
template <class T>
RETINAKIT_TARGET("avx512f,avx512bw")
void tile_sums_512(const Task& task, int64_t tile, T scale, T offset, T* sums) {
  tile_sums<Vector<uint64_t, 64>>(task, tile, scale, offset, sums);
}
template <class T>
RETINAKIT_TARGET("avx2")
void tile_sums_256(const Task& task, int64_t tile, T scale, T offset, T* sums) {
  tile_sums<Vector<uint64_t, 32>>(task, tile, scale, offset, sums);
}
#endif

}  // namespace

template <class T>
void bit_sums(const uint64_t* bits, int64_t frames_in_bits, int64_t checks, const int64_t* starts,
              const int64_t* frames, int64_t cells, int64_t first_lag, int64_t lags, T scale,
              T offset, T* sums, int threads) {
  const Task task{bits, frames_in_bits, checks, starts, frames, cells, first_lag, lags};
  parallel((checks + kTileChecks - 1) / kTileChecks, threads, [&](int64_t from, int64_t to) {
    for (int64_t tile = from; tile < to; ++tile) {
#ifdef RETINAKIT_X86
      if (vector_bits() == 512) {
        tile_sums_512(task, tile, scale, offset, sums);
        continue;
      }
      if (vector_bits() == 256) {
        tile_sums_256(task, tile, scale, offset, sums);
        continue;
      }
#endif
      tile_sums<Vector<uint64_t, 16>>(task, tile, scale, offset, sums);
    }
  });
}

template void bit_sums(const uint64_t*, int64_t, int64_t, const int64_t*, const int64_t*, int64_t,
                       int64_t, int64_t, int64_t, int64_t, int64_t*, int);
template void bit_sums(const uint64_t*, int64_t, int64_t, const int64_t*, const int64_t*, int64_t,
                       int64_t, int64_t, double, double, double*, int);

}  // namespace retinakit
