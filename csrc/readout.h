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

// How the neurons read the features. The weight of entry i of the masks is values[order[i]], or
// values[i] where there is no order; feature weights are (channel, neuron).
struct Readers {
  int64_t number;
  const int64_t* neurons;  // of each slot
  const float* feature_weights;
  int64_t rows;  // of the masks
  const int64_t* start;
  const int32_t* index;
  const float* values;
  const int64_t* order;
};

// Fills out (batch, neuron); the masks are (slot, position).
void readout(const float* features, const FeatureShape& shape, const Readers& readers,
             float* out, int threads);

// From the gradient of the output (batch, neuron), fills that of the feature weights and, unless it
// is null, that of the values, which have an order here.
void readout_slot_gradients(const float* features, const FeatureShape& shape,
                            const Readers& readers, const float* gradient, float* of_values,
                            float* of_weights, int threads);

// Likewise the gradient of the features; the masks are (position, slot) here.
void readout_feature_gradient(const FeatureShape& shape, const Readers& readers,
                              const float* gradient, float* of_features, int threads);

}  // namespace retinakit
