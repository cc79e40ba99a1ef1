// A Gram matrix by popcount: a feature is a row of bits, one per spike, and the product of two
// features is the number of bits that are set in both.
#include "gram.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "adder.h"
#include "bits.h"
#include "parallel.h"
#include "simd.h"

namespace retinakit {

namespace {

constexpr int64_t kBlockSpikes = 16384;  // 2 KB of a row
constexpr int64_t kSide = 64;            // rows that fit the L2 cache
constexpr int64_t kNearRows = 8;         // rows that fit the L1 cache

// Rows begin on cache lines and have a whole number of vectors.
struct alignas(64) Line {
  uint64_t word[kTileWords];
};

struct Rows {
  uint64_t* bits;
  int64_t number, words;
};

// Transposes 64 x 64 bits by swapping squares of decreasing size across the diagonal.
void transpose(uint64_t* word) {
  uint64_t right = 0x00000000ffffffffu;
  for (int size = 32; size; size >>= 1, right ^= right << size) {
    for (int square = 0; square < 64; square += 2 * size) {
      for (int i = square; i < square + size; ++i) {
        const uint64_t change = (word[i] >> size ^ word[i + size]) & right;
        word[i] ^= change << size;
        word[i + size] ^= change;
      }
    }
  }
}

// Writes one word of every row, for up to 64 spikes; bit i is that of frames[i]. The stimulus is
// packed in lines (tile, frame).
void fill_word(const Line* lines, int64_t frames_in_stimulus, int64_t checks,
               const int64_t* frames, int64_t spikes, int64_t first_lag, int64_t lags,
               const Rows& rows, int64_t word) {
  for (int64_t lag = 0; lag < lags; ++lag) {
    for (int64_t check = 0; check < checks; check += 64) {
      const Line* tile = lines + check / kTileChecks * frames_in_stimulus;
      uint64_t square[64] = {};
      for (int64_t i = 0; i < spikes; ++i) {
        square[i] = tile[frames[i] - first_lag - lag].word[check % kTileChecks / 64];
      }
      transpose(square);
      uint64_t* out = rows.bits + (lag * checks + check) * rows.words + word;
      const int64_t height = std::min<int64_t>(64, checks - check);
      for (int64_t i = 0; i < height; ++i) out[i * rows.words] = square[i];
    }
  }
}

template <class V>
RETINAKIT_INLINE int64_t popcount(const V& bits) {
  uint64_t words[sizeof(V) / 8];
  std::memcpy(words, &bits, sizeof words);
  int64_t sum = 0;
  for (const uint64_t word : words) sum += __builtin_popcountll(word);
  return sum;
}

// The number of bits that are set in both rows.
template <class V>
RETINAKIT_INLINE int64_t common_bits(const uint64_t* a, const uint64_t* b, int64_t words) {
  const V *x = reinterpret_cast<const V*>(a), *y = reinterpret_cast<const V*>(b);
  const int64_t vectors = words / static_cast<int64_t>(sizeof(V) / 8);
  V planes[4] = {}, carry;
  int64_t sum = 0, at = 0;
  const auto both = [&](int i, V& bits) { bits = x[at + i] & y[at + i]; };
  for (; at + 16 <= vectors; at += 16) {
    add_all<4>(carry, planes, 0, both);
    sum += 16 * popcount(carry);
  }
  for (; at + 4 <= vectors; at += 4) {
    add_all<2>(carry, planes, 0, both);
    sum += 4 * popcount(carry);
  }
  for (; at < vectors; ++at) sum += popcount<V>(x[at] & y[at]);
  if (vectors >= 4) sum += popcount(planes[0]) + 2 * popcount(planes[1]);
  if (vectors >= 16) sum += 4 * popcount(planes[2]) + 8 * popcount(planes[3]);
  return sum;
}

// Adds the products of rows top .. top + kSide and rows left .. left + kSide to the sums.
template <class V>
RETINAKIT_INLINE void square_gram(const Rows& rows, int64_t top, int64_t left, double scale,
                                double* sums) {
  const int64_t bottom = std::min(top + kSide, rows.number);
  const int64_t right = std::min(left + kSide, rows.number);
  for (int64_t near = left; near < right; near += kNearRows) {
    const int64_t end = std::min(near + kNearRows, right);
    for (int64_t i = top; i < std::min(bottom, end); ++i) {
      for (int64_t j = std::max(near, i); j < end; ++j) {
        const int64_t common = common_bits<V>(rows.bits + i * rows.words,
                                              rows.bits + j * rows.words, rows.words);
        sums[i * rows.number + j] += scale * static_cast<double>(common);
      }
    }
  }
}

#ifdef RETINAKIT_X86
RETINAKIT_TARGET("avx512f,avx512bw,popcnt")
void square_gram_512(const Rows& rows, int64_t top, int64_t left, double scale, double* sums) {
  square_gram<Vector<uint64_t, 64>>(rows, top, left, scale, sums);
}
RETINAKIT_TARGET("avx2,popcnt")
void square_gram_256(const Rows& rows, int64_t top, int64_t left, double scale, double* sums) {
  square_gram<Vector<uint64_t, 32>>(rows, top, left, scale, sums);
}
#endif

void any_square_gram(const Rows& rows, int64_t top, int64_t left, double scale, double* sums) {
#ifdef RETINAKIT_X86
  if (vector_bits() == 512) return square_gram_512(rows, top, left, scale, sums);
  if (vector_bits() == 256) return square_gram_256(rows, top, left, scale, sums);
#endif
  square_gram<Vector<uint64_t, 16>>(rows, top, left, scale, sums);
}

}  // namespace

template <class T>
bool bit_gram(const T* stimulus, int64_t frames_in_stimulus, int64_t checks, T low, T high,
              const int64_t* frames, int64_t number, int64_t first_lag, int64_t lags, double scale,
              double* sums, int threads) {
  const int64_t tiles = (checks + kTileChecks - 1) / kTileChecks;
  const std::unique_ptr<Line[]> lines(new Line[tiles * frames_in_stimulus]);
  std::atomic<bool> fine{true};
  parallel(frames_in_stimulus, threads, [&](int64_t from, int64_t to) {
    if (!pack_tiles(stimulus + from * checks, to - from, checks, checks, low, high,
                    lines[from].word, frames_in_stimulus * kTileWords)) {
      fine = false;
    }
  });
  if (!fine) return false;

  const int64_t features = lags * checks, squares = (features + kSide - 1) / kSide;
  const int64_t longest = (std::min(number, kBlockSpikes) + 511) / 512;
  const std::unique_ptr<Line[]> bits(new Line[features * longest]);
  for (int64_t begin = 0; begin < number; begin += kBlockSpikes) {
    const int64_t spikes = std::min(number - begin, kBlockSpikes);
    const Rows rows{bits[0].word, features, (spikes + 511) / 512 * kTileWords};
    parallel(rows.words, threads, [&](int64_t from, int64_t to) {
      for (int64_t word = from; word < to; ++word) {
        fill_word(lines.get(), frames_in_stimulus, checks, frames + begin + 64 * word,
                  std::clamp<int64_t>(spikes - 64 * word, 0, 64), first_lag, lags, rows, word);
      }
    });
    // The squares on and above the diagonal are (top, left) with 0 <= top <= left.
    parallel(squares * (squares + 1) / 2, threads, [&](int64_t from, int64_t to) {
      int64_t left = 0, top = from;
      while (top > left) top -= ++left;
      for (int64_t square = from; square < to; ++square) {
        any_square_gram(rows, top * kSide, left * kSide, scale, sums);
        if (++top > left) top = 0, ++left;
      }
    });
  }
  return true;
}

#define RETINAKIT_BIT_GRAM(T)                                                                  \
  template bool bit_gram(const T*, int64_t, int64_t, T, T, const int64_t*, int64_t, int64_t, \
                         int64_t, double, double*, int);
RETINAKIT_BIT_GRAM(int8_t)
RETINAKIT_BIT_GRAM(uint8_t)
RETINAKIT_BIT_GRAM(float)
RETINAKIT_BIT_GRAM(double)

}  // namespace retinakit
