#include "spike_triggered.h"

#include <algorithm>
#include <vector>

namespace retinakit {

namespace {
// Pixels handled together: two frames' worth of int8 and the int32 sums stay in the L1 cache.
constexpr int64_t kBlock = 2048;
// |count * stimulus| <= kLargeCount * 128, so int32 sums hold this many terms without overflow.
constexpr int64_t kFlush = 4096;
constexpr int32_t kLargeCount = 4095;
}  // namespace

// Compiled for AVX2 and for any processor; the loader chooses.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx2", "default")))
#endif
void spike_triggered_sum(const int8_t* stimulus, int64_t pixels, const int64_t* frames,
                         const int32_t* counts, int64_t spikes, int64_t first_lag, int64_t lags,
                         int64_t* sums) {
  std::vector<int32_t> partial(std::min(kBlock, pixels));
  for (int64_t start = 0; start < pixels; start += kBlock) {
    const int64_t width = std::min(kBlock, pixels - start);
    for (int64_t lag = 0; lag < lags; ++lag) {
      int64_t* total = sums + lag * pixels + start;
      for (int64_t from = 0; from < spikes; from += kFlush) {
        const int64_t to = std::min(from + kFlush, spikes);
        std::fill(partial.begin(), partial.end(), 0);
        for (int64_t i = from; i < to; ++i) {
          const int8_t* frame = stimulus + (frames[i] - first_lag - lag) * pixels + start;
          const int32_t count = counts[i];
          if (count > kLargeCount) {
            for (int64_t p = 0; p < width; ++p) total[p] += int64_t{count} * frame[p];
          } else {
            for (int64_t p = 0; p < width; ++p) partial[p] += count * frame[p];
          }
        }
        for (int64_t p = 0; p < width; ++p) total[p] += partial[p];
      }
    }
  }
}

}  // namespace retinakit
