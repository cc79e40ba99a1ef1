// Spike-triggered sums of a stimulus of numbers, reading only the frames before responses.
#pragma once

#include <cstdint>

namespace retinakit {

// Adds weights[i] * stimulus[frames[i] - first_lag - lag] to sums (cell, lag, pixel), for the i of
// each cell, starts[c] .. starts[c + 1] - 1, whose frames increase. Eight-bit stimuli take whole
// weights and are summed exactly; floating-point ones are summed in their own precision within a
// block of frames, and in double precision across blocks.
template <class Stimulus, class Weight, class Sum>
void sparse_sums(const Stimulus* stimulus, int64_t frames_in_stimulus, int64_t pixels,
                 const int64_t* starts, const int64_t* frames, const Weight* weights,
                 int64_t cells, int64_t first_lag, int64_t lags, Sum* sums, int threads);

}  // namespace retinakit
