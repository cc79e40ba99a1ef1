// The first two convolutions of a network of clips: filters in space and time of a two-valued
// stimulus, and spatial kernels over their rectified output.
#pragma once

#include <cstdint>
#include <vector>

namespace retinakit {

constexpr int64_t kTypes = 8;      // filters that are computed together
constexpr int64_t kWidest = 12;    // of the spatial kernels, in pixels
constexpr int64_t kLongest = 256;  // of the temporal filters and of clips, in frames

// Clips of frames (clip, frame, byte), with one bit for each pixel of (y, x), the lowest bit first.
struct BitClips {
  const uint8_t* bits;
  int64_t clips, frames, pitch;  // bytes of a frame
  int64_t height, width;
  float low, high;  // the values of the bits 0 and 1
};

// Filters of the stimulus, with the type as the last axis of kTypes: space (y, x, type), time (lag,
// type).
struct ClipFilters {
  const float *space, *space_bias, *time, *time_bias;
  int64_t side_y, side_x, stride, lags;
};

// The size of the kernels over the rectified output, and of their maps.
struct PoolSizes {
  int64_t side_y, side_x, stride, rows, columns;
};

// Kernels (y, x, type, output) of kTypes outputs. The result has the frames from `first` on.
struct Pool {
  const float* weight;
  int64_t first;
};

// Dropout, the same for the same seed: each value is kept if a random number of 16 bits is below
// `below`, and is then multiplied by 65536 / below. Nothing is dropped with 65536.
struct ClipDropout {
  uint64_t seed;
  uint32_t below;
};

// The factors of values: 0 if they are dropped.
void dropout_factors(const ClipDropout& dropout, int64_t number, float* factors);

struct ClipJob {
  BitClips clips;
  ClipFilters filters;
  PoolSizes sizes;
  std::vector<Pool> pools;
  ClipDropout dropout;
};

// The result of each pool (clip, row, column, frame - first, output):
// weight · ReLU(dropout(time * dropout(space · clips + space_bias) + time_bias)).
void pool_bit_clips(const ClipJob& job, const std::vector<float*>& out, int threads);

struct ClipGradients {
  float *space, *space_bias, *time, *time_bias;
  std::vector<float*> pools;
};

// The gradients of filters and kernels, from those of the results.
void pool_bit_clips_gradients(const ClipJob& job, const std::vector<const float*>& gradients,
                              const ClipGradients& result, int threads);

}  // namespace retinakit
