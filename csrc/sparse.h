// Spike-triggered sums of a stimulus of any values, from the frames before responses.
#pragma once

#include <cstdint>

namespace retinakit {

// Adds weights[i] * stimulus[frames[i] - first_lag - lag] to sums (cell, lag, pixel), for i from
// starts[c] to starts[c + 1] - 1 of each cell c, whose frames must increase. Eight-bit stimuli need
// integer weights and are summed exactly. Floating-point stimuli are summed in their own precision
// within a block of frames, and in double precision across blocks.
template <class Stimulus, class Weight, class Sum>
void sparse_sums(const Stimulus* stimulus, int64_t frames_in_stimulus, int64_t pixels,
                 const int64_t* starts, const int64_t* frames, const Weight* weights,
                 int64_t cells, int64_t first_lag, int64_t lags, Sum* sums, int threads);

}  // namespace retinakit
