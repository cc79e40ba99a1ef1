// Spike-triggered sums of small-integer stimuli.
#pragma once

#include <cstdint>

namespace retinakit {

// sums[lag, p] += counts[i] * stimulus[frames[i] - first_lag - lag, p] for every i, with exact
// integer arithmetic. Every frame must have its full history within the stimulus.
void spike_triggered_sum(const int8_t* stimulus, int64_t pixels, const int64_t* frames,
                         const int32_t* counts, int64_t spikes, int64_t first_lag, int64_t lags,
                         int64_t* sums);

}  // namespace retinakit
