// The first layer of a network of clips: filters in space and time of a two-valued stimulus.
#pragma once

#include <cstdint>

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

// Filters, with the type as the last axis of kTypes: space (y, x, type), time (lag, type).
struct ClipFilters {
  const float *space, *space_bias, *time, *time_bias;
  int64_t side_y, side_x, stride, lags;
};

// The part of the result that is computed: rows and columns from the first, and frames from
// `first` on. The result is (clip, frame - first, row, column, type).
struct ClipPart {
  int64_t rows, columns, first;
};

// Dropout, the same for the same seed: each value is kept if a random number of 16 bits is below
// `below`, and is then multiplied by 65536 / below. Nothing is dropped with 65536.
struct ClipDropout {
  uint64_t seed;
  uint32_t below;
};

struct ClipGradients {
  float *space, *space_bias, *time, *time_bias;
};

// out = ReLU(dropout(time * dropout(space * clips + space_bias) + time_bias)).
void filter_bit_clips(const BitClips& clips, const ClipFilters& filters, const ClipPart& part,
                      const ClipDropout& dropout, float* out, int threads);

// The gradients of the filters, from the gradient of the result and the result itself.
void bit_clips_gradients(const BitClips& clips, const ClipFilters& filters, const ClipPart& part,
                         const ClipDropout& dropout, const float* out, const float* gradient,
                         const ClipGradients& gradients, int threads);

}  // namespace retinakit
