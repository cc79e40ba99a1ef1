#include <atomic>
#include <cstring>

#include "bits.h"
#include "parallel.h"
#include "simd.h"
#ifdef RETINAKIT_X86
#include <immintrin.h>
#endif

namespace retinakit {

namespace {

// 64 bytes that are 0 or 255 as one word; the multiplication gathers the top bits of 8 bytes.
RETINAKIT_INLINE uint64_t word_of(const uint8_t* bytes) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * i, 8);
    word |= (((eight & 0x0101010101010101u) * 0x0102040810204080u) >> 56) << (8 * i);
  }
  return word;
}

template <class T>
RETINAKIT_INLINE bool pack_frame(const T* values, int64_t checks, T low, T high, uint64_t* out,
                                 int64_t stride) {
  uint8_t known = 255;
  for (int64_t start = 0; start < checks; start += 64) {
    uint8_t set[64] = {};
    const int64_t count = std::min<int64_t>(64, checks - start);
    for (int64_t i = 0; i < count; ++i) {
      const T value = values[start + i];
      set[i] = value == high ? 255 : 0;
      known &= static_cast<uint8_t>(set[i] | (value == low ? 255 : 0));
    }
    out[start / kTileChecks * stride + start % kTileChecks / 64] = word_of(set);
  }
  return known;
}

#ifdef RETINAKIT_X86
RETINAKIT_TARGET("avx2")
bool pack_frame_avx2(const int8_t* values, int64_t checks, int8_t low, int8_t high, uint64_t* out,
                     int64_t stride) {
  const __m256i lows = _mm256_set1_epi8(low), highs = _mm256_set1_epi8(high);
  __m256i known = _mm256_set1_epi8(-1);
  int64_t start = 0;
  for (; start + 64 <= checks; start += 64) {
    const auto* from = reinterpret_cast<const __m256i*>(values + start);
    const __m256i a = _mm256_loadu_si256(from), b = _mm256_loadu_si256(from + 1);
    const __m256i set_a = _mm256_cmpeq_epi8(a, highs), set_b = _mm256_cmpeq_epi8(b, highs);
    known = _mm256_and_si256(known, _mm256_or_si256(set_a, _mm256_cmpeq_epi8(a, lows)));
    known = _mm256_and_si256(known, _mm256_or_si256(set_b, _mm256_cmpeq_epi8(b, lows)));
    const uint64_t first = static_cast<uint32_t>(_mm256_movemask_epi8(set_a));
    const uint64_t second = static_cast<uint32_t>(_mm256_movemask_epi8(set_b));
    out[start / kTileChecks * stride + start % kTileChecks / 64] = first | second << 32;
  }
  bool fine = _mm256_movemask_epi8(known) == -1;
  if (start < checks) {
    // The rest begins in the middle of a tile; the words before it are done.
    uint64_t word = 0;
    for (int64_t i = start; i < checks; ++i) {
      fine = fine && (values[i] == low || values[i] == high);
      word |= uint64_t{values[i] == high} << (i - start);
    }
    out[start / kTileChecks * stride + start % kTileChecks / 64] = word;
  }
  return fine;
}

template <class T>
RETINAKIT_TARGET("avx2")
bool pack_wide_frame_avx2(const T* values, int64_t checks, T low, T high, uint64_t* out,
                          int64_t stride) {
  return pack_frame(values, checks, low, high, out, stride);
}
#endif

template <class T>
bool pack_any_frame(const T* values, int64_t checks, T low, T high, uint64_t* out,
                    int64_t stride) {
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) {
    if constexpr (sizeof(T) == 1) {
      return pack_frame_avx2(reinterpret_cast<const int8_t*>(values), checks,
                             static_cast<int8_t>(low), static_cast<int8_t>(high), out, stride);
    } else {
      return pack_wide_frame_avx2(values, checks, low, high, out, stride);
    }
  }
#endif
  return pack_frame(values, checks, low, high, out, stride);
}

}  // namespace

template <class T>
bool pack_bits(const T* stimulus, int64_t frames, int64_t checks, T low, T high, uint64_t* bits,
               int threads) {
  const int64_t tiles = (checks + kTileChecks - 1) / kTileChecks;
  const int64_t stride = frames * kTileWords, used = (checks + 63) / 64 - (tiles - 1) * kTileWords;
  std::atomic<bool> fine{true};
  parallel(frames, threads, [&](int64_t from, int64_t to) {
    for (int64_t frame = from; frame < to && fine; ++frame) {
      uint64_t* out = bits + frame * kTileWords;
      uint64_t* last = out + (tiles - 1) * stride;
      std::fill(last + used, last + kTileWords, 0);
      if (!pack_any_frame(stimulus + frame * checks, checks, low, high, out, stride)) fine = false;
    }
  });
  return fine;
}

template bool pack_bits(const int8_t*, int64_t, int64_t, int8_t, int8_t, uint64_t*, int);
template bool pack_bits(const uint8_t*, int64_t, int64_t, uint8_t, uint8_t, uint64_t*, int);
template bool pack_bits(const float*, int64_t, int64_t, float, float, uint64_t*, int);
template bool pack_bits(const double*, int64_t, int64_t, double, double, uint64_t*, int);

}  // namespace retinakit
