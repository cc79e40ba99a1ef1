#include "sparse.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace retinakit {

namespace {

constexpr int64_t kLineBytes = 64;      // bytes of a frame processed together: a cache line
constexpr int64_t kGroupLines = 8;      // read together: long runs of memory are read faster
constexpr int64_t kBlockFrames = 4096;  // lines of 256 KB together, which fit the L2 cache
constexpr int64_t kPartFrames = 256;    // 16 KB, which fit the L1 cache
constexpr int64_t kPartBytes = 256 * 1024;  // partial sums, which also fit the L2 cache
constexpr int64_t kLargestTerms = 128;  // 128 * 255 fits 16 bits: no overflow before a flush

template <class Stimulus, class Weight>
struct Task {
  const Stimulus* stimulus;
  int64_t frames_in_stimulus, pixels;
  const int64_t *starts, *frames;
  const Weight* weights;
  int64_t cells, first_lag, lags;
};

// The type of the sums of a block, and the number of lags whose sums are in registers together.
template <class Stimulus>
using Partial = std::conditional_t<sizeof(Stimulus) == 1, int16_t, Stimulus>;

// Adds weight * line for `Lags` consecutive lags, with the sums in registers.
template <int Bytes, int Lags, class Stimulus, class Weight>
RETINAKIT_INLINE void lag_sums(const Stimulus* lines, const int64_t* frames, const Weight* weights,
                               int64_t number, Partial<Stimulus>* sums) {
  using P = Partial<Stimulus>;
  constexpr int64_t line = kLineBytes / sizeof(Stimulus);
  constexpr int lanes = Bytes / sizeof(P), parts = line / lanes;
  using VS = Vector<Stimulus, lanes * sizeof(Stimulus)>;
  using VP = Vector<P, Bytes>;
  VP sum[Lags][parts];
  auto* kept = reinterpret_cast<VP*>(sums);
#pragma GCC unroll 64
  for (int i = 0; i < Lags * parts; ++i) sum[i / parts][i % parts] = kept[i];
  for (int64_t i = 0; i < number; ++i) {
    const Stimulus* at = lines + frames[i] * line;
    asm("" : "+r"(at));  // one register; all lags are at constant offsets from it
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
#pragma GCC unroll 64
  for (int i = 0; i < Lags * parts; ++i) kept[i] = sum[i / parts][i % parts];
}

// The same for all lags, in groups.
template <int Bytes, int Lags, class Stimulus, class Weight>
RETINAKIT_INLINE void all_lag_sums(const Stimulus* lines, const int64_t* frames,
                                   const Weight* weights, int64_t number, int64_t lags,
                                   Partial<Stimulus>* sums) {
  constexpr int64_t line = kLineBytes / sizeof(Stimulus);
  int64_t lag = 0;
  for (; lag + Lags <= lags; lag += Lags) {
    lag_sums<Bytes, Lags>(lines - lag * line, frames, weights, number, sums + lag * line);
  }
  for (; lag < lags; ++lag) {
    lag_sums<Bytes, 1>(lines - lag * line, frames, weights, number, sums + lag * line);
  }
}

// The sums of one line, (cell, lag, pixel of the line), which are flushed to the total sums.
template <class Stimulus, class Weight, class Sum>
class LineSums {
 public:
  using P = Partial<Stimulus>;
  static constexpr int64_t kLine = kLineBytes / sizeof(Stimulus);

  LineSums(const Task<Stimulus, Weight>& task, Sum* sums)
      : task_(task), sums_(sums), partial_(task.cells * task.lags * kLine), terms_(task.cells) {}

  // The first pixel of the line.
  void start(int64_t first) {
    first_ = first;
    width_ = std::min(kLine, task_.pixels - first);
  }

  // Adds responses i of a cell, whose frames are counted from `lines` on.
  template <int Bytes, int Lags>
  RETINAKIT_INLINE void add(int64_t cell, const Stimulus* lines, int64_t from, int64_t to) {
    const auto& t = task_;
    P* sums = partial_.data() + cell * t.lags * kLine;
    if constexpr (sizeof(Stimulus) > 1) {
      all_lag_sums<Bytes, Lags>(lines, t.frames + from, t.weights + from, to - from, t.lags, sums);
      return;
    }
    for (int64_t i = from; i < to;) {
      int64_t last = i;
      while (last < to && terms_[cell] + t.weights[last] <= kLargestTerms) {
        terms_[cell] += t.weights[last++];
      }
      all_lag_sums<Bytes, Lags>(lines, t.frames + i, t.weights + i, last - i, t.lags, sums);
      i = last;
      if (i == to) break;
      flush(cell);
      if (t.weights[i] > kLargestTerms) {  // a single count too large for 16-bit sums
        for (int64_t lag = 0; lag < t.lags; ++lag) {
          const Stimulus* frame = lines + (t.frames[i] - lag) * kLine;
          Sum* out = sums_ + (cell * t.lags + lag) * t.pixels + first_;
          for (int64_t p = 0; p < width_; ++p) out[p] += static_cast<Sum>(t.weights[i]) * frame[p];
        }
        ++i;
      }
    }
  }

  RETINAKIT_INLINE void flush(int64_t cell) {
    P* from = partial_.data() + cell * task_.lags * kLine;
    for (int64_t lag = 0; lag < task_.lags; ++lag) {
      Sum* to = sums_ + (cell * task_.lags + lag) * task_.pixels + first_;
      for (int64_t p = 0; p < width_; ++p) to[p] += static_cast<Sum>(from[lag * kLine + p]);
    }
    std::fill_n(from, task_.lags * kLine, P{});
    terms_[cell] = 0;
  }

 private:
  const Task<Stimulus, Weight>& task_;
  Sum* sums_;
  std::vector<P> partial_;
  std::vector<int64_t> terms_;
  int64_t first_ = 0, width_ = 0;
};

// Computes the sums of neighbouring lines. Blocks of frames of these lines are copied. Each line is
// then processed in parts that stay in the L1 cache while the responses of all cells are added.
template <int Bytes, int Lags, class Stimulus, class Weight, class Sum>
RETINAKIT_INLINE void group_sums(const Task<Stimulus, Weight>& t, int64_t first, int64_t lines,
                                 Sum* sums) {
  constexpr int64_t line = kLineBytes / sizeof(Stimulus);
  const int64_t history = t.first_lag + t.lags - 1, rows = history + kBlockFrames;
  std::vector<Stimulus> memory((lines * rows + 1) * line);
  // Lines are aligned, because a line across two cache lines takes twice as long.
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  Stimulus* block = memory.data() + (-address & (kLineBytes - 1)) / sizeof(Stimulus);
  LineSums<Stimulus, Weight, Sum> line_sums(t, sums);
  const bool small = t.cells * t.lags * kLineBytes <= kPartBytes;
  const int64_t part_frames = small ? kPartFrames : kBlockFrames;
  std::vector<int64_t> at(t.starts, t.starts + t.cells), here;
  for (int64_t begin = 0; begin < t.frames_in_stimulus; begin += kBlockFrames) {
    const int64_t end = std::min(begin + kBlockFrames, t.frames_in_stimulus);
    for (int64_t n = 0; begin > 0 && n < lines; ++n) {
      Stimulus* oldest = block + n * rows * line;
      std::memmove(oldest, oldest + kBlockFrames * line, history * kLineBytes);
    }
    const int64_t width = std::min(lines * line, t.pixels - first);
    for (int64_t frame = begin; frame < end; ++frame) {
      const Stimulus* from = t.stimulus + frame * t.pixels + first;
      Stimulus* to = block + (frame - begin + history) * line;
      int64_t n = 0;
      for (; (n + 1) * line <= width; ++n) {
        __builtin_prefetch(from + t.pixels + n * line);
        std::memcpy(to + n * rows * line, from + n * line, kLineBytes);
      }
      if (n < lines) {
        std::memcpy(to + n * rows * line, from + n * line,
                    (width - n * line) * sizeof(Stimulus));
      }
    }
    for (int64_t n = 0; n < lines; ++n) {
      here = at;
      line_sums.start(first + n * line);
      const Stimulus* newest = block + (n * rows + history - begin - t.first_lag) * line;
      for (int64_t part = begin; part < end; part += part_frames) {
        const int64_t part_end = std::min(part + part_frames, end);
        for (int64_t c = 0; c < t.cells; ++c) {
          const int64_t from = here[c];
          int64_t to = from;
          while (to < t.starts[c + 1] && t.frames[to] < part_end) ++to;
          here[c] = to;
          if (from < to) line_sums.template add<Bytes, Lags>(c, newest, from, to);
        }
      }
      for (int64_t c = 0; c < t.cells; ++c) {
        if (here[c] > at[c]) line_sums.flush(c);
      }
    }
    at = here;
  }
}

#ifdef RETINAKIT_X86
template <class Stimulus, class Weight, class Sum>
RETINAKIT_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma")
void group_sums_512(const Task<Stimulus, Weight>& task, int64_t first, int64_t lines, Sum* sums) {
  group_sums<64, 10>(task, first, lines, sums);
}
template <class Stimulus, class Weight, class Sum>
RETINAKIT_TARGET("avx2,fma")
void group_sums_256(const Task<Stimulus, Weight>& task, int64_t first, int64_t lines, Sum* sums) {
  group_sums<32, sizeof(Stimulus) == 1 ? 2 : 5>(task, first, lines, sums);
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
    for (int64_t n = from; n < to; n += kGroupLines) {
      const int64_t first = n * line, lines = std::min(kGroupLines, to - n);
#ifdef RETINAKIT_X86
      if (vector_bits() == 512) {
        group_sums_512(task, first, lines, sums);
        continue;
      }
      if (vector_bits() == 256) {
        group_sums_256(task, first, lines, sums);
        continue;
      }
#endif
      group_sums<16, 1>(task, first, lines, sums);
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
