#include <algorithm>
#include <cstring>

#include "bits.h"
#include "simd.h"
#ifdef RETINAKIT_X86
#include <immintrin.h>
#endif

namespace retinakit {

namespace {

// Packs 64 bytes of 0 or 255 into one word; the multiplication gathers the top bits of 8 bytes.
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
RETINAKIT_INLINE bool pack_word(const T* values, int64_t count, T low, T high, uint64_t& word) {
  uint8_t known = 255, set[64] = {};
  for (int64_t i = 0; i < count; ++i) {
    set[i] = values[i] == high ? 255 : 0;
    known &= static_cast<uint8_t>(set[i] | (values[i] == low ? 255 : 0));
  }
  word = word_of(set);
  return known;
}

// The word that holds the checks from `check` on.
RETINAKIT_INLINE uint64_t* word_at(uint64_t* lines, int64_t stride, int64_t frame, int64_t check) {
  return lines + check / kTileChecks * stride + frame * kTileWords + check % kTileChecks / 64;
}

template <class T>
RETINAKIT_INLINE bool pack_all(const T* values, int64_t frames, int64_t pitch, int64_t checks,
                               T low, T high, uint64_t* lines, int64_t stride) {
  bool fine = true;
  for (int64_t frame = 0; frame < frames && fine; ++frame) {
    for (int64_t check = 0; check < checks; check += 64) {
      const int64_t count = std::min<int64_t>(64, checks - check);
      fine &= pack_word(values + frame * pitch + check, count, low, high,
                        *word_at(lines, stride, frame, check));
    }
  }
  return fine;
}

#ifdef RETINAKIT_X86
template <class T>
RETINAKIT_TARGET("avx2")
bool pack_wide_avx2(const T* values, int64_t frames, int64_t pitch, int64_t checks, T low, T high,
                    uint64_t* lines, int64_t stride) {
  return pack_all(values, frames, pitch, checks, low, high, lines, stride);
}

RETINAKIT_TARGET("avx2")
bool pack_bytes_avx2(const int8_t* values, int64_t frames, int64_t pitch, int64_t checks,
                     int8_t low, int8_t high, uint64_t* lines, int64_t stride) {
  const __m256i lows = _mm256_set1_epi8(low), highs = _mm256_set1_epi8(high);
  __m256i known = _mm256_set1_epi8(-1);
  bool fine = true;
  for (int64_t frame = 0; frame < frames; ++frame) {
    const int8_t* row = values + frame * pitch;
    int64_t check = 0;
    for (; check + 64 <= checks; check += 64) {
      _mm_prefetch(row + pitch + check, _MM_HINT_T0);
      const auto* from = reinterpret_cast<const __m256i*>(row + check);
      const __m256i a = _mm256_loadu_si256(from), b = _mm256_loadu_si256(from + 1);
      const __m256i set_a = _mm256_cmpeq_epi8(a, highs), set_b = _mm256_cmpeq_epi8(b, highs);
      known = _mm256_and_si256(known, _mm256_or_si256(set_a, _mm256_cmpeq_epi8(a, lows)));
      known = _mm256_and_si256(known, _mm256_or_si256(set_b, _mm256_cmpeq_epi8(b, lows)));
      const uint64_t first = static_cast<uint32_t>(_mm256_movemask_epi8(set_a));
      const uint64_t second = static_cast<uint32_t>(_mm256_movemask_epi8(set_b));
      *word_at(lines, stride, frame, check) = first | second << 32;
    }
    if (check < checks) {
      fine &= pack_word(row + check, checks - check, low, high,
                        *word_at(lines, stride, frame, check));
    }
  }
  return fine && _mm256_movemask_epi8(known) == -1;
}
#endif

}  // namespace

template <class T>
bool pack_tiles(const T* values, int64_t frames, int64_t pitch, int64_t checks, T low, T high,
                uint64_t* lines, int64_t stride) {
  // The words beyond the last check.
  const int64_t words = (checks + 63) / 64, left = -words & (kTileWords - 1);
  for (int64_t frame = 0; left && frame < frames; ++frame) {
    std::fill_n(word_at(lines, stride, frame, 64 * words), left, 0);
  }
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) {
    if constexpr (sizeof(T) == 1) {
      return pack_bytes_avx2(reinterpret_cast<const int8_t*>(values), frames, pitch, checks,
                             static_cast<int8_t>(low), static_cast<int8_t>(high), lines, stride);
    } else {
      return pack_wide_avx2(values, frames, pitch, checks, low, high, lines, stride);
    }
  }
#endif
  return pack_all(values, frames, pitch, checks, low, high, lines, stride);
}

#define RETINAKIT_PACK(T) \
  template bool pack_tiles(const T*, int64_t, int64_t, int64_t, T, T, uint64_t*, int64_t);
RETINAKIT_PACK(int8_t)
RETINAKIT_PACK(uint8_t)
RETINAKIT_PACK(float)
RETINAKIT_PACK(double)

}  // namespace retinakit
