// The factorized readout with sparse masks (Klindt et al. 2017, eqs. 2 to 4) and its gradients:
//   out[b,n] = sum over k and p of weights[k,n] * features[b,k,p] * masks[p,n].
// Neurons are processed in an order in which neighbouring masks follow each other. A "slot" is a
// place in this order, and `neurons` has its neuron. The order of each sum does not depend on the
// number of threads.
#pragma once

#include <cstdint>

#include "sparse_rows.h"

namespace retinakit {

struct FeatureShape {
  int64_t batch, channels, positions;
};

// The masks and weights of the neurons. The value of entry i of the masks is values[order[i]], or
// values[i] if there is no order; feature weights are (channel, neuron).
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

// Computes out (batch, neuron). The masks are (slot, position).
void readout(const float* features, const FeatureShape& shape, const Readers& readers,
             float* out, int threads);

// Computes the gradient of the feature weights from that of the output (batch, neuron), and, unless
// it is null, the gradient of the values. The values must have an order.
void readout_slot_gradients(const float* features, const FeatureShape& shape,
                            const Readers& readers, const float* gradient, float* of_values,
                            float* of_weights, int threads);

// Computes the gradient of the features. The masks are (position, slot) here.
void readout_feature_gradient(const FeatureShape& shape, const Readers& readers,
                              const float* gradient, float* of_features, int threads);

}  // namespace retinakit
