// Simulated cells made of subunits: from the stimulus to the rate and the spikes in one pass.
#pragma once

#include <cstdint>

#include "sparse_rows.h"

namespace retinakit {

enum class Nonlinearity : int { identity, rectify, softplus, exponential };
enum class Spikes : int { none, binary, poisson };

struct SubunitCells {
  // Pixels come in groups of 8; only these groups are read, and `spatial` counts within them.
  const int32_t* groups;
  int64_t group_count;
  SparseRows spatial;     // (subunit, pixel)
  const float* temporal;  // (subunit, lag)
  int64_t lags;
  Nonlinearity nonlinearity;  // of a subunit
  SparseRows output;          // (cell, subunit)
  const float* threshold;     // (cell,)
  const float* gain;          // (cell,)
  Nonlinearity output_nonlinearity;
};

// The stimulus (frame, pixel) from frame `first` of the movie on. Bits: 8 pixels a byte, the
// lowest bit first; 1 is +1 and 0 is -1.
template <typename T>
struct Movie {
  const T* values;
  int64_t pitch;  // values in a frame
  int64_t first;
};

struct Drawing {
  Spikes spikes;
  uint64_t seed;
  int64_t repeats;
};

// rate (frame, cell) and counts (repeat, frame, cell) of the frames from `start` to `stop`, of
// `frames` in the whole. The movie reaches back to frame max(0, start - lags + 1), and `start` is
// a multiple of 4. What a frame gets does not depend on where its block starts.
void simulate(const SubunitCells& cells, const Movie<uint8_t>& bits, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts);
void simulate(const SubunitCells& cells, const Movie<int8_t>& movie, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts);
void simulate(const SubunitCells& cells, const Movie<float>& movie, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts);

}  // namespace retinakit
