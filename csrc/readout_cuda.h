// The factorized readout with sparse masks on a GPU (see readout.h), with a plain C++ interface.
// Only in builds with nvcc.
//
// Features are (position, channel, batch) here. Sums are deterministic, without atomic additions.
#pragma once

#include <cstdint>

namespace retinakit::device {

constexpr int kSlots = 16;  // per block; they share the features under any of their masks

struct Shape {
  int batch, channels, positions, neurons;
};

// The masks by slot, and the positions of all masks of each block of slots.
struct Masks {
  const int64_t* start;        // (slot + 1,), the entries of each slot
  const float* value;          // (entry,)
  const int32_t* place;        // (entry,), index among the positions of its block
  const int64_t* block_start;  // (block + 1,), the positions of each block
  const int32_t* position;     // the positions of all blocks
  const float* weight;         // (slot, channel)
  const int64_t* neuron;       // (slot,)
};

// The masks by position.
struct MasksByPosition {
  const int64_t* start;  // (position + 1,)
  const int32_t* slot;   // (entry,)
  const float* value;    // (entry,)
  const float* weight;   // (slot, channel)
};

// The device, the stream, and the type of the features and their gradient: float or bfloat16.
struct Launch {
  int device;
  uintptr_t stream;
  bool bfloat16;
};

// Computes out (batch, neuron).
void launch_read(const Launch& launch, const void* features, const Shape& shape,
                 const Masks& masks, float* out);
// Computes weight_gradient (slot, channel) from the gradient (slot, batch).
void launch_weight_gradient(const Launch& launch, const void* features, const Shape& shape,
                            const Masks& masks, const float* gradient, float* weight_gradient);
// Computes mask_gradient (entry,), by position, from the gradient (batch, slot).
void launch_mask_gradient(const Launch& launch, const void* features, const Shape& shape,
                          const MasksByPosition& masks, const float* gradient,
                          float* mask_gradient);
// Computes feature_gradient (position, channel, batch) from the gradient (slot, batch).
void launch_feature_gradient(const Launch& launch, const Shape& shape,
                             const MasksByPosition& masks, const float* gradient,
                             void* feature_gradient);

}  // namespace retinakit::device
