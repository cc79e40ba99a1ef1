// The factorized readout with sparse masks (Klindt et al. 2017, eqs. 2 to 4) and its gradients:
//   out[b,n] = sum over k and p of weights[k,n] * features[b,k,p] * masks[p,n].
// Neurons are gone through in an order of neighbouring masks: "slot" is a place in this order, and
// `neurons` tells which neuron it is. All sums have one order, whatever the number of threads.
#pragma once

#include <cstdint>

#include "sparse_rows.h"

namespace retinakit {

struct FeatureShape {
  int64_t batch, channels, positions;
};

// How each slot is read from the features: weights are (slot, channel), masks (slot, position).
struct Slots {
  SparseRows masks;
  const float* weights;
  const int64_t* neurons;
};

// Fills out (batch, neuron).
void readout(const float* features, const FeatureShape& shape, const Slots& slots,
             float* out, int threads);

// From the gradient of the output (batch, neuron), fills that of the weights (slot, channel) and,
// unless it is null, that of the masks' entries.
void readout_slot_gradients(const float* features, const FeatureShape& shape, const Slots& slots,
                            const float* gradient, float* mask_gradient, float* weight_gradient,
                            int threads);

// Likewise the gradient of the features; the masks are (position, slot) here, of `number` slots.
void readout_feature_gradient(const FeatureShape& shape, const Slots& slots, int64_t number,
                              const float* gradient, float* feature_gradient, int threads);

}  // namespace retinakit
