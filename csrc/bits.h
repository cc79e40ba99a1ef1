// Spike-triggered sums of a two-valued stimulus, with one bit per check.
#pragma once

#include <cstdint>

namespace retinakit {

// Checks are packed in tiles of 512: each frame of a tile is a line of 8 words, a cache line.
constexpr int64_t kTileWords = 8;
constexpr int64_t kTileChecks = 64 * kTileWords;

// Packs `checks` values of each frame into one line per tile. Frames begin `pitch` values apart,
// and the lines of consecutive tiles `stride` words apart. A bit is set where a value is `high`,
// the lowest bit first. Returns false if a value is neither high nor low.
template <class T>
bool pack_tiles(const T* values, int64_t frames, int64_t pitch, int64_t checks, T low, T high,
                uint64_t* lines, int64_t stride);

// The responses of cells: cell c has the increasing frames[starts[c]] .. frames[starts[c + 1] - 1]
// and a count for each.
struct Responses {
  const int64_t *starts, *frames, *counts;
  int64_t cells;
};

// Adds counts[i] * stimulus[frames[i] - first_lag - lag] to sums (cell, lag, check), for all i of
// each cell. The stimulus is (frame, check). Returns false and adds nothing if one of its values is
// neither low nor high.
template <class T, class Sum>
bool bit_sums(const T* stimulus, int64_t frames, int64_t checks, T low, T high,
              const Responses& responses, int64_t first_lag, int64_t lags, Sum* sums, int threads);

}  // namespace retinakit
