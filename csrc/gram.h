// Second moments of a two-valued stimulus before spikes, with one bit per check.
#pragma once

#include <cstdint>

namespace retinakit {

// Adds scale * (the number of frames before which features i and j are both high) to sums (feature,
// feature), for features (lag, check) with i <= j. The first lag is `first_lag`, and frames may be
// repeated. The stimulus is (frame, check). Returns false and adds nothing if one of its values is
// neither low nor high.
template <class T>
bool bit_gram(const T* stimulus, int64_t frames_in_stimulus, int64_t checks, T low, T high,
              const int64_t* frames, int64_t number, int64_t first_lag, int64_t lags, double scale,
              double* sums, int threads);

}  // namespace retinakit
