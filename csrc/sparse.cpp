#include "sparse.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace retinakit {

namespace {

constexpr int64_t kLineBytes = 64;       // of one frame at a time: a cache line
constexpr int64_t kBlockFrames = 2048;   // of such lines: 128 KB
constexpr int64_t kLargestTerms = 128;   // 128 * 255 fits 16 bits: no overflow before a flush

template <class Stimulus, class Weight>
struct Task {
  const Stimulus* stimulus;
  int64_t frames_in_stimulus, pixels;
  const int64_t *starts, *frames;
  const Weight* weights;
  int64_t cells, first_lag, lags;
};

// The type in which a block is summed, and the lags whose sums stay in registers together.
template <class Stimulus>
using Partial = std::conditional_t<sizeof(Stimulus) == 1, int16_t, Stimulus>;

// Adds weight * line for `Lags` consecutive lags, the sums being held in registers.
template <int Bytes, int Lags, class Stimulus, class Weight, class Sum>
RETINAKIT_INLINE void lag_sums(const Stimulus* lines, const int64_t* frames, const Weight* weights,
                               int64_t number, int64_t width, int64_t stride, Sum* sums) {
  using P = Partial<Stimulus>;
  constexpr int64_t line = kLineBytes / sizeof(Stimulus);
  constexpr int lanes = Bytes / sizeof(P), parts = line / lanes;
  using VS = Vector<Stimulus, lanes * sizeof(Stimulus)>;
  using VP = Vector<P, Bytes>;
  VP sum[Lags][parts] = {};
  for (int64_t i = 0; i < number; ++i) {
    const Stimulus* at = lines + frames[i] * line;
    const P weight = static_cast<P>(weights[i]);
    const VP weights_here = weight - VP{};
#pragma GCC unroll 16
    for (int lag = 0; lag < Lags; ++lag) {
#pragma GCC unroll 16
      for (int part = 0; part < parts; ++part) {
        const VS values = *reinterpret_cast<const VS*>(at - lag * line + part * lanes);
        sum[lag][part] += weights_here * __builtin_convertvector(values, VP);
      }
    }
  }
  for (int lag = 0; lag < Lags; ++lag) {
    P flat[line];
    std::memcpy(flat, sum[lag], sizeof flat);
    Sum* out = sums + lag * stride;
    if (width == line) {
      for (int64_t p = 0; p < line; ++p) out[p] += static_cast<Sum>(flat[p]);
    } else {
      for (int64_t p = 0; p < width; ++p) out[p] += static_cast<Sum>(flat[p]);
    }
  }
}

// The same for all lags, in groups.
template <int Bytes, int Lags, class Stimulus, class Weight, class Sum>
RETINAKIT_INLINE void all_lag_sums(const Stimulus* lines, const int64_t* frames,
                                   const Weight* weights, int64_t number, int64_t lags,
                                   int64_t width, int64_t stride, Sum* sums) {
  constexpr int64_t line = kLineBytes / sizeof(Stimulus);
  int64_t lag = 0;
  for (; lag + Lags <= lags; lag += Lags) {
    lag_sums<Bytes, Lags>(lines - lag * line, frames, weights, number, width, stride,
                          sums + lag * stride);
  }
  for (; lag < lags; ++lag) {
    lag_sums<Bytes, 1>(lines - lag * line, frames, weights, number, width, stride,
                       sums + lag * stride);
  }
}

template <int Bytes, int Lags, class Stimulus, class Weight, class Sum>
RETINAKIT_INLINE void line_sums(const Task<Stimulus, Weight>& t, int64_t first, Sum* sums) {
  constexpr int64_t line = kLineBytes / sizeof(Stimulus);
  const int64_t width = std::min(line, t.pixels - first), history = t.first_lag + t.lags - 1;
  std::vector<Stimulus> buffer((kBlockFrames + history + 1) * line);
  // Lines that straddle two cache lines would cost twice.
  const auto address = reinterpret_cast<uintptr_t>(buffer.data());
  Stimulus* block = buffer.data() + (kLineBytes - address % kLineBytes) % kLineBytes /
                                        sizeof(Stimulus);
  std::vector<int64_t> at(t.starts, t.starts + t.cells);
  for (int64_t begin = 0; begin < t.frames_in_stimulus; begin += kBlockFrames) {
    const int64_t end = std::min(begin + kBlockFrames, t.frames_in_stimulus);
    const int64_t oldest = std::max<int64_t>(0, begin - history);
    for (int64_t frame = oldest; frame < end; ++frame) {
      const Stimulus* from = t.stimulus + frame * t.pixels + first;
      Stimulus* to = block + (frame - oldest) * line;
      if (width == line) {
        std::memcpy(to, from, kLineBytes);
      } else {
        std::memcpy(to, from, width * sizeof(Stimulus));
      }
    }
    const Stimulus* lines = block - (oldest + t.first_lag) * line;
    for (int64_t c = 0; c < t.cells; ++c) {
      Sum* out = sums + c * t.lags * t.pixels + first;
      int64_t i = at[c];
      const int64_t last = t.starts[c + 1];
      while (i < last && t.frames[i] < end) {
        int64_t to = i;
        if constexpr (sizeof(Stimulus) == 1) {
          int64_t terms = 0;
          while (to < last && t.frames[to] < end && terms + t.weights[to] <= kLargestTerms) {
            terms += t.weights[to++];
          }
          if (to == i) {  // one count that is too large for 16 bits
            for (int64_t lag = 0; lag < t.lags; ++lag) {
              const Stimulus* frame = lines + (t.frames[i] - lag) * line;
              for (int64_t p = 0; p < width; ++p) {
                out[lag * t.pixels + p] += static_cast<Sum>(t.weights[i]) * frame[p];
              }
            }
            ++i;
            continue;
          }
        } else {
          while (to < last && t.frames[to] < end) ++to;
        }
        all_lag_sums<Bytes, Lags>(lines, t.frames + i, t.weights + i, to - i, t.lags, width,
                                  t.pixels, out);
        i = to;
      }
      at[c] = i;
    }
  }
}

#ifdef RETINAKIT_X86
template <class Stimulus, class Weight, class Sum>
RETINAKIT_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma")
void line_sums_512(const Task<Stimulus, Weight>& task, int64_t first, Sum* sums) {
  line_sums<64, 10>(task, first, sums);
}
template <class Stimulus, class Weight, class Sum>
RETINAKIT_TARGET("avx2,fma")
void line_sums_256(const Task<Stimulus, Weight>& task, int64_t first, Sum* sums) {
  line_sums<32, sizeof(Stimulus) == 1 ? 2 : 5>(task, first, sums);
}
#endif

}  // namespace

template <class Stimulus, class Weight, class Sum>
void sparse_sums(const Stimulus* stimulus, int64_t frames_in_stimulus, int64_t pixels,
                 const int64_t* starts, const int64_t* frames, const Weight* weights,
                 int64_t cells, int64_t first_lag, int64_t lags, Sum* sums, int threads) {
  constexpr int64_t line = kLineBytes / sizeof(Stimulus);
  const Task<Stimulus, Weight> task{stimulus, frames_in_stimulus, pixels, starts, frames,
                                    weights,  cells,              first_lag, lags};
  parallel((pixels + line - 1) / line, threads, [&](int64_t from, int64_t to) {
    for (int64_t first = from * line; first < to * line; first += line) {
#ifdef RETINAKIT_X86
      if (vector_bits() == 512) {
        line_sums_512(task, first, sums);
        continue;
      }
      if (vector_bits() == 256) {
        line_sums_256(task, first, sums);
        continue;
      }
#endif
      line_sums<16, 1>(task, first, sums);
    }
  });
}

template void sparse_sums(const int8_t*, int64_t, int64_t, const int64_t*, const int64_t*,
                          const int64_t*, int64_t, int64_t, int64_t, int64_t*, int);
template void sparse_sums(const uint8_t*, int64_t, int64_t, const int64_t*, const int64_t*,
                          const int64_t*, int64_t, int64_t, int64_t, int64_t*, int);
template void sparse_sums(const float*, int64_t, int64_t, const int64_t*, const int64_t*,
                          const float*, int64_t, int64_t, int64_t, double*, int);
template void sparse_sums(const double*, int64_t, int64_t, const int64_t*, const int64_t*,
                          const double*, int64_t, int64_t, int64_t, double*, int);

}  // namespace retinakit
