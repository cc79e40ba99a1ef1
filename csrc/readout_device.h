// The kernels of readout_cuda.h. They use few CUDA features, so that the tests can run them thread
// by thread on a CPU. The threads of a warp are consecutive samples, which read consecutive
// numbers, or consecutive slots.
#pragma once

#include <cstdint>
#include <cstring>

#include "readout_cuda.h"

namespace retinakit::device {

constexpr int kWarp = 32;
constexpr int kChannels = 8;    // channels that a thread sums at a time
constexpr int kPositions = 16;  // positions whose features a block holds at a time
constexpr int kParts = 8;       // parts of the channels, each with its own threads
constexpr int kPart = 4;        // channels of a part at a time

// bfloat16: the upper half of a float.
struct Bfloat16 {
  uint16_t bits;
};

__device__ inline float number(float value) { return value; }
__device__ inline float number(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

__device__ inline void set(float& to, float value) { to = value; }
// Rounds to the nearest, ties to even.
__device__ inline void set(Bfloat16& to, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const bool nan = value != value;
  to.bits = nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct Tile {
  float value[kPositions][kChannels][kWarp];
};

// Sums the features under the mask of this thread's slot, for its sample and the channels from
// `channel` on. All threads of the block must call it.
template <class T>
__device__ void under_mask(const T* features, const Shape& shape, const Masks& masks, int channel,
                           int sample, Tile& tile, float (&sum)[kChannels]) {
  const int slot = blockIdx.x * kSlots + threadIdx.y;
  const bool there = slot < shape.neurons;
  int64_t entry = there ? masks.start[slot] : 0;
  const int64_t end = there ? masks.start[slot + 1] : 0;
  const int64_t first = masks.block_start[blockIdx.x];
  const int64_t positions = masks.block_start[blockIdx.x + 1] - first;
  for (int k = 0; k < kChannels; ++k) sum[k] = 0;
  for (int64_t begin = 0; begin < positions; begin += kPositions) {
    __syncthreads();  // all threads have read the previous tile
    for (int i = threadIdx.y; i < kPositions * kChannels; i += kSlots) {
      const int place = i / kChannels, k = i % kChannels;
      float value = 0;
      if (begin + place < positions && channel + k < shape.channels && sample < shape.batch) {
        const int64_t row = masks.position[first + begin + place];
        value = number(features[(row * shape.channels + channel + k) * shape.batch + sample]);
      }
      tile.value[place][k][threadIdx.x] = value;
    }
    __syncthreads();
    for (; entry < end && masks.place[entry] < begin + kPositions; ++entry) {
      const float weight = masks.value[entry];
      const auto& row = tile.value[masks.place[entry] - begin];
      for (int k = 0; k < kChannels; ++k) sum[k] += weight * row[k][threadIdx.x];
    }
  }
}

// Computes out (batch, neuron). A block has kSlots slots x 32 samples; the grid is (slots,
// samples).
template <class T>
__global__ void __launch_bounds__(kWarp* kSlots)
    read(const T* features, Shape shape, Masks masks, float* out) {
  __shared__ Tile tile;
  const int slot = blockIdx.x * kSlots + threadIdx.y;
  const int sample = blockIdx.y * kWarp + threadIdx.x;
  float total = 0;
  for (int channel = 0; channel < shape.channels; channel += kChannels) {
    float sum[kChannels];
    under_mask(features, shape, masks, channel, sample, tile, sum);
    for (int k = 0; k < kChannels && channel + k < shape.channels; ++k) {
      if (slot < shape.neurons) {
        total += masks.weight[static_cast<int64_t>(slot) * shape.channels + channel + k] * sum[k];
      }
    }
  }
  if (slot < shape.neurons && sample < shape.batch) {
    out[static_cast<int64_t>(sample) * shape.neurons + masks.neuron[slot]] = total;
  }
}

// Computes weight_gradient (slot, channel) from the gradient (slot, batch). Threads are as above;
// the grid is (slots, groups of kChannels channels).
template <class T>
__global__ void __launch_bounds__(kWarp* kSlots)
    weight_gradient(const T* features, Shape shape, Masks masks, const float* gradient,
                    float* weight_gradient) {
  __shared__ Tile tile;
  const int slot = blockIdx.x * kSlots + threadIdx.y;
  const int channel = blockIdx.y * kChannels;
  float total[kChannels] = {};
  for (int begin = 0; begin < shape.batch; begin += kWarp) {
    const int sample = begin + threadIdx.x;
    float sum[kChannels];
    under_mask(features, shape, masks, channel, sample, tile, sum);
    if (slot < shape.neurons && sample < shape.batch) {
      const float here = gradient[static_cast<int64_t>(slot) * shape.batch + sample];
      for (int k = 0; k < kChannels; ++k) total[k] += here * sum[k];
    }
  }
  static_assert(kSlots <= kPositions, "the tile has room for what each thread summed");
  __syncthreads();
  for (int k = 0; k < kChannels; ++k) tile.value[threadIdx.y][k][threadIdx.x] = total[k];
  __syncthreads();
  const int k = threadIdx.x;
  if (k < kChannels && channel + k < shape.channels && slot < shape.neurons) {
    float sum = 0;
    for (int lane = 0; lane < kWarp; ++lane) sum += tile.value[threadIdx.y][k][lane];
    weight_gradient[static_cast<int64_t>(slot) * shape.channels + channel + k] = sum;
  }
}

// Computes mask_gradient (entry,) from the gradient (batch, slot). A block has one position and
// processes 32 entries at a time, each by kParts threads with different channels.
template <class T>
__global__ void __launch_bounds__(kWarp* kParts)
    mask_gradient(const T* features, Shape shape, MasksByPosition masks, const float* gradient,
                  float* mask_gradient) {
  // (sample, channel), padded so that samples are in different banks.
  __shared__ float tile[kWarp][kParts * kPart + 4];
  __shared__ float sums[kParts][kWarp];
  const int64_t position = blockIdx.x;
  const int64_t end = masks.start[position + 1];
  for (int64_t first = masks.start[position]; first < end; first += kWarp) {
    const int64_t entry = first + threadIdx.x;
    const int64_t slot = entry < end ? masks.slot[entry] : 0;
    float total = 0;
    for (int channel = 0; channel < shape.channels; channel += kParts * kPart) {
      float sum[kPart] = {};
      for (int begin = 0; begin < shape.batch; begin += kWarp) {
        __syncthreads();  // all threads have read the previous tile
        for (int k = threadIdx.y; k < kParts * kPart; k += kParts) {
          const int sample = begin + threadIdx.x;
          const int64_t row = position * shape.channels + channel + k;
          const bool there = channel + k < shape.channels && sample < shape.batch;
          tile[threadIdx.x][k] = there ? number(features[row * shape.batch + sample]) : 0.0f;
        }
        __syncthreads();
        const int samples = shape.batch - begin < kWarp ? shape.batch - begin : kWarp;
        for (int i = 0; i < samples; ++i) {
          const float here = gradient[static_cast<int64_t>(begin + i) * shape.neurons + slot];
          for (int k = 0; k < kPart; ++k) sum[k] += here * tile[i][threadIdx.y * kPart + k];
        }
      }
      for (int k = 0; k < kPart; ++k) {
        const int at = channel + threadIdx.y * kPart + k;
        if (at < shape.channels) total += masks.weight[slot * shape.channels + at] * sum[k];
      }
    }
    // The previous entries have been read, because of the barriers in the loops above.
    sums[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y == 0 && entry < end) {
      float sum = 0;
      for (int part = 0; part < kParts; ++part) sum += sums[part][threadIdx.x];
      mask_gradient[entry] = sum;
    }
  }
}

// Computes feature_gradient (position, channel, batch) from the gradient (slot, batch). A block has
// one position and 32 samples with kParts threads each; the grid is (positions, samples).
template <class T>
__global__ void __launch_bounds__(kWarp* kParts)
    feature_gradient(Shape shape, MasksByPosition masks, const float* gradient,
                     T* feature_gradient) {
  const int64_t position = blockIdx.x;
  const int sample = blockIdx.y * kWarp + threadIdx.x;
  if (sample >= shape.batch) return;
  const int64_t end = masks.start[position + 1];
  for (int first = threadIdx.y * kPart; first < shape.channels; first += kParts * kPart) {
    float sum[kPart] = {};
    for (int64_t entry = masks.start[position]; entry < end; ++entry) {
      const int64_t slot = masks.slot[entry];
      const float here = masks.value[entry] * gradient[slot * shape.batch + sample];
      for (int k = 0; k < kPart && first + k < shape.channels; ++k) {
        sum[k] += here * masks.weight[slot * shape.channels + first + k];
      }
    }
    for (int k = 0; k < kPart && first + k < shape.channels; ++k) {
      set(feature_gradient[(position * shape.channels + first + k) * shape.batch + sample],
          sum[k]);
    }
  }
}

}  // namespace retinakit::device
