// Spike-triggered sums of a two-valued stimulus, packed as one bit a check.
#pragma once

#include <cstdint>

namespace retinakit {

// Checks are packed in tiles of 512, a cache line: bits is (tile, frame, 8 words).
constexpr int64_t kTileWords = 8;
constexpr int64_t kTileChecks = 64 * kTileWords;

// Sets a bit where stimulus (frame, check) is `high`. False if a value is neither high nor low.
template <class T>
bool pack_bits(const T* stimulus, int64_t frames, int64_t checks, T low, T high, uint64_t* bits,
               int threads);

// Adds scale * (bits that are set in the frames of a cell) + offset * (its frames) to
// sums (cell, lag, check). Cell c has the increasing frames[starts[c]] .. frames[starts[c + 1] - 1].
template <class T>
void bit_sums(const uint64_t* bits, int64_t frames_in_bits, int64_t checks, const int64_t* starts,
              const int64_t* frames, int64_t cells, int64_t first_lag, int64_t lags, T scale,
              T offset, T* sums, int threads);

}  // namespace retinakit
