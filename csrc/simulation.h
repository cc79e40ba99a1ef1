// Simulated subunit cells: computes rates and spikes from the stimulus in one pass.
#pragma once

#include <cstdint>

#include "sparse_rows.h"

namespace retinakit {

enum class Nonlinearity : int { identity, rectify, softplus, exponential };
enum class Spikes : int { none, binary, poisson };

struct SubunitCells {
  // The groups of 8 pixels that are read. Columns of `spatial` count the pixels of these groups.
  const int32_t* groups;
  int64_t group_count;
  SparseRows spatial;     // (subunit, pixel)
  const float* temporal;  // (subunit, lag)
  int64_t lags;
  Nonlinearity nonlinearity;  // of the subunits
  SparseRows output;          // (cell, subunit)
  const float* threshold;     // (cell,)
  const float* gain;          // (cell,)
  Nonlinearity output_nonlinearity;
};

// The stimulus (frame, pixel) from frame `first` of the movie on. Bits have 8 pixels per byte, the
// lowest bit first; 1 is +1 and 0 is -1.
template <typename T>
struct Movie {
  const T* values;
  int64_t pitch;  // values per frame
  int64_t first;
};

struct Drawing {
  Spikes spikes;
  uint64_t seed;
  int64_t repeats;
};

// Computes rate (frame, cell) and counts (repeat, frame, cell) of the frames from `start` to
// `stop`, of `frames` in total. The movie must reach back to frame max(0, start - lags + 1), and
// `start` must be a multiple of 4. The result of a frame does not depend on `start`.
void simulate(const SubunitCells& cells, const Movie<uint8_t>& bits, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts);
void simulate(const SubunitCells& cells, const Movie<int8_t>& movie, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts);
void simulate(const SubunitCells& cells, const Movie<float>& movie, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts);

}  // namespace retinakit
