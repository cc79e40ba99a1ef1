// Positional popcount: counts are bit-sliced, that is, plane k holds bit k of the counts of all
// checks, and carry-save adders add 16 or 64 frames at a time.
#include "bits.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <vector>

#include "adder.h"
#include "parallel.h"
#include "simd.h"

namespace retinakit {

namespace {

constexpr int64_t kBlockFrames = 4096;  // of one tile: 256 KB, which fit the L2 cache
constexpr int64_t kGroupTiles = 8;      // read together: long runs of memory are read faster
constexpr int kMaxPlanes = 31;
constexpr int kSparePlanes = 6;         // planes that are used for any number of spikes
constexpr int64_t kLineBytes = 8 * kTileWords;

// Adds x * 2^level to bit-sliced numbers.
template <class V>
RETINAKIT_INLINE void ripple(V* planes, int level, int top, V x) {
  for (int k = level; k < top; ++k) {
    const V carry = planes[k] & x;
    planes[k] ^= x;
    x = carry;
  }
}

// Adds the bits of a multiple of 16 lines to the bit-sliced `total`.
template <class V>
RETINAKIT_INLINE void count(const char* lines, const int64_t* offsets, int64_t number, V* total,
                            int planes) {
  int64_t at = 0;
  const auto line = [&](int i, V& bits) {
    bits = *reinterpret_cast<const V*>(lines + offsets[at + i]);
  };
  V low[6], carry;
  std::copy(total, total + 6, low);
  for (; at + 64 <= number; at += 64) {
    add_all<6>(carry, low, 0, line);
    ripple(total, 6, planes, carry);
  }
  std::copy(low, low + 6, total);
  for (; at < number; at += 16) {
    add_all<4>(carry, low, 0, line);
    ripple(total, 4, planes, carry);
  }
  std::copy(low, low + 4, total);
}

// The bits of each byte as eight bytes of 0 or 1, the lowest bit first.
struct Spread {
  uint64_t of[256];
  constexpr Spread() : of() {
    for (int byte = 0; byte < 256; ++byte) {
      for (int bit = 0; bit < 8; ++bit) of[byte] |= uint64_t(byte >> bit & 1) << (8 * bit);
    }
  }
};
constexpr Spread kSpread;

// sums += scale * (the bit-sliced numbers) + offset, for the first `width` checks of a line. Each
// eight planes give one byte of each number.
template <class T>
RETINAKIT_INLINE void unslice(const uint64_t* planes, int number, int64_t width, T scale, T offset,
                              T* sums) {
  int32_t value[kTileChecks] = {};
  for (int first = 0; first < number; first += 8) {
    uint64_t eights[kTileChecks / 8] = {};
    for (int k = first; k < std::min(first + 8, number); ++k) {
      uint8_t bytes[kTileChecks / 8];
      std::memcpy(bytes, planes + k * kTileWords, sizeof bytes);
      for (int i = 0; i < kTileChecks / 8; ++i) eights[i] |= kSpread.of[bytes[i]] << (k - first);
    }
    uint8_t part[kTileChecks];
    std::memcpy(part, eights, sizeof part);
    for (int i = 0; i < kTileChecks; ++i) value[i] |= int32_t{part[i]} << first;
  }
  for (int64_t i = 0; i < width; ++i) sums[i] += scale * static_cast<T>(value[i]) + offset;
}

int bits_of(int64_t number) {
  int bits = 0;
  while (number >> bits) ++bits;
  return bits;
}

template <class T>
struct Task {
  const T* stimulus;
  int64_t frames, checks;
  T low, high;
  Responses responses;
  int64_t first_lag, lags;
  int planes;
};

// The offsets, in bytes, of the lines of some responses. They are in lists whose lengths are
// multiples of 16, padded with `empty`. The responses in list k count 2^k times.
class Lists {
 public:
  void fill(const Responses& r, int64_t from, int64_t to, int64_t shift, int64_t empty) {
    const int64_t *frames = r.frames, *counts = r.counts;
    int64_t total = 0, largest = 0;
    for (int64_t i = from; i < to; ++i) {
      total += counts[i];
      largest = std::max(largest, counts[i]);
    }
    for (auto& list : lists_) list.clear();
    if (total <= 2 * (to - from)) {  // few spikes per frame: each frame is listed `count` times
      for (int64_t i = from; i < to; ++i) {
        for (int64_t k = 0; k < counts[i]; ++k) push(0, frames[i] + shift);
      }
    } else {  // many spikes per frame: by the binary digits of the counts
      for (int power = 0; largest >> power; ++power) {
        for (int64_t i = from; i < to; ++i) {
          if (counts[i] >> power & 1) push(power, frames[i] + shift);
        }
      }
    }
    for (auto& list : lists_) {
      while (list.size() % 16) list.push_back(empty * kLineBytes);
    }
  }
  int number() const { return static_cast<int>(lists_.size()); }
  const std::vector<int64_t>& operator[](int power) const { return lists_[power]; }

 private:
  void push(int power, int64_t line) {
    if (power >= number()) lists_.resize(power + 1);
    lists_[power].push_back(line * kLineBytes);
  }
  std::vector<std::vector<int64_t>> lists_;
};

// Counts the bits of neighbouring tiles, with totals (cell, lag, part of a line, plane) for each.
// Returns false if the stimulus has a third value.
template <class V, class T>
RETINAKIT_INLINE bool group_totals(const Task<T>& t, int64_t first_tile, int64_t tiles,
                                   std::vector<uint64_t>* totals) {
  constexpr int kParts = kLineBytes / sizeof(V);
  const Responses& r = t.responses;
  const int planes = t.planes + kSparePlanes;
  // For each tile, the lines of a block with its history, and empty lines for the padding of lists.
  const int64_t history = t.first_lag + t.lags - 1, used = history + kBlockFrames;
  const int64_t empty = used + t.lags - 1, rows = empty + 1;
  std::vector<uint64_t> memory((tiles * rows + 1) * kTileWords);
  uint64_t* lines = memory.data();
  lines += (-reinterpret_cast<uintptr_t>(lines) & (kLineBytes - 1)) / sizeof(uint64_t);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    totals[tile].assign(r.cells * t.lags * planes * kTileWords, 0);
  }

  const int64_t first = first_tile * kTileChecks;
  const int64_t width = std::min(tiles * kTileChecks, t.checks - first);
  std::vector<int64_t> at(r.starts, r.starts + r.cells), spikes(r.cells);
  Lists lists;
  for (int64_t begin = 0; begin < t.frames; begin += kBlockFrames) {
    const int64_t end = std::min(begin + kBlockFrames, t.frames);
    for (int64_t tile = 0; begin > 0 && tile < tiles; ++tile) {
      uint64_t* oldest = lines + tile * rows * kTileWords;
      std::memmove(oldest, oldest + kBlockFrames * kTileWords, history * kLineBytes);
    }
    if (!pack_tiles(t.stimulus + begin * t.checks + first, end - begin, t.checks, width, t.low,
                    t.high, lines + history * kTileWords, rows * kTileWords)) {
      return false;
    }
    for (int64_t c = 0; c < r.cells; ++c) {
      const int64_t from = at[c];
      int64_t to = from;
      while (to < r.starts[c + 1] && r.frames[to] < end) ++to;
      at[c] = to;
      if (from == to) continue;
      lists.fill(r, from, to, history - begin - t.first_lag, empty);
      spikes[c] = std::accumulate(r.counts + from, r.counts + to, spikes[c]);
      const int top = bits_of(spikes[c]);  // higher planes are still 0
      for (int power = 0; power < lists.number(); ++power) {
        const auto& list = lists[power];
        for (int64_t tile = 0; tile < (list.empty() ? 0 : tiles); ++tile) {
          auto* total = reinterpret_cast<V*>(totals[tile].data()) + c * t.lags * kParts * planes;
          const auto* newest = reinterpret_cast<const char*>(lines + tile * rows * kTileWords);
          for (int64_t lag = 0; lag < t.lags; ++lag) {
            for (int part = 0; part < kParts; ++part, total += planes) {
              count<V>(newest - lag * kLineBytes + part * sizeof(V), list.data(), list.size(),
                       total + power, top - power);
            }
          }
        }
      }
    }
  }
  return true;
}

// Adds sign * sum of (low + (high - low) * bit), from the totals of a tile.
template <class V, class T, class Sum>
RETINAKIT_INLINE void add_totals(const Task<T>& t, int64_t tile,
                                 const std::vector<uint64_t>& totals, Sum sign, Sum* sums) {
  constexpr int kParts = kLineBytes / sizeof(V);
  const auto* total = reinterpret_cast<const V*>(totals.data());
  const Sum low = sign * static_cast<Sum>(t.low), high = sign * static_cast<Sum>(t.high);
  const int stride = t.planes + kSparePlanes;
  const int64_t first = tile * kTileChecks, width = std::min(kTileChecks, t.checks - first);
  for (int64_t c = 0; c < t.responses.cells; ++c) {
    int64_t spikes = 0;
    for (int64_t i = t.responses.starts[c]; i < t.responses.starts[c + 1]; ++i) {
      spikes += t.responses.counts[i];
    }
    for (int64_t lag = 0; lag < (spikes ? t.lags : 0); ++lag) {
      V gathered[kMaxPlanes * kParts];
      for (int part = 0; part < kParts; ++part) {
        for (int k = 0; k < t.planes; ++k) {
          gathered[k * kParts + part] = total[((c * t.lags + lag) * kParts + part) * stride + k];
        }
      }
      unslice<Sum>(reinterpret_cast<const uint64_t*>(gathered), t.planes, width, high - low,
                   low * static_cast<Sum>(spikes), sums + (c * t.lags + lag) * t.checks + first);
    }
  }
}

#define RETINAKIT_TILE(name, target, bytes)                                              \
  template <class T>                                                                     \
  target bool totals_##name(const Task<T>& task, int64_t first_tile, int64_t tiles,      \
                            std::vector<uint64_t>* totals) {                             \
    return group_totals<Vector<uint64_t, bytes>>(task, first_tile, tiles, totals);       \
  }                                                                                      \
  template <class T, class Sum>                                                          \
  target void add_##name(const Task<T>& task, int64_t tile,                              \
                         const std::vector<uint64_t>& totals, Sum sign, Sum* sums) {     \
    add_totals<Vector<uint64_t, bytes>>(task, tile, totals, sign, sums);                 \
  }

RETINAKIT_TILE(128, , 16)
#ifdef RETINAKIT_X86
RETINAKIT_TILE(256, RETINAKIT_TARGET("avx2"), 32)
RETINAKIT_TILE(512, RETINAKIT_TARGET("avx512f,avx512bw"), 64)
#endif

}  // namespace

template <class T, class Sum>
bool bit_sums(const T* stimulus, int64_t frames, int64_t checks, T low, T high,
              const Responses& responses, int64_t first_lag, int64_t lags, Sum* sums,
              int threads) {
  int64_t most = 0;
  for (int64_t c = 0; c < responses.cells; ++c) {
    int64_t spikes = 0;
    for (int64_t i = responses.starts[c]; i < responses.starts[c + 1]; ++i) {
      spikes += responses.counts[i];
    }
    most = std::max(most, spikes);
  }
  const int planes = std::max(1, bits_of(most));
  const Task<T> task{stimulus, frames, checks, low, high, responses, first_lag, lags, planes};
  auto totals_here = totals_128<T>;
  auto add_here = add_128<T, Sum>;
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) {
    totals_here = vector_bits() == 512 ? totals_512<T> : totals_256<T>;
    add_here = vector_bits() == 512 ? add_512<T, Sum> : add_256<T, Sum>;
  }
#endif
  const int64_t tiles = (checks + kTileChecks - 1) / kTileChecks;
  std::vector<int64_t> added(tiles);  // number of tiles added, by first tile
  std::atomic<bool> fine{true};
  using Totals = std::vector<std::vector<uint64_t>>;
  const auto add_group = [&](int64_t tile, int64_t number, Sum sign, Totals& totals) {
    if (!totals_here(task, tile, number, totals.data())) return false;
    for (int64_t i = 0; i < number; ++i) add_here(task, tile + i, totals[i], sign, sums);
    return true;
  };
  parallel(tiles, threads, [&](int64_t from, int64_t to) {
    Totals totals(kGroupTiles);
    for (int64_t tile = from; tile < to && fine; tile += kGroupTiles) {
      const int64_t number = std::min(kGroupTiles, to - tile);
      if (add_group(tile, number, 1, totals)) {
        added[tile] = number;
      } else {
        fine = false;
      }
    }
  });
  if (fine) return true;
  // A third value is rare. The sums added before it was found are computed again and subtracted.
  Totals totals(kGroupTiles);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    if (added[tile]) add_group(tile, added[tile], -1, totals);
  }
  return false;
}

#define RETINAKIT_BIT_SUMS(T, Sum)                                                              \
  template bool bit_sums(const T*, int64_t, int64_t, T, T, const Responses&, int64_t, int64_t, \
                         Sum*, int);
RETINAKIT_BIT_SUMS(int8_t, int64_t)
RETINAKIT_BIT_SUMS(uint8_t, int64_t)
RETINAKIT_BIT_SUMS(float, double)
RETINAKIT_BIT_SUMS(double, double)

}  // namespace retinakit
