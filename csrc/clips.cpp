#include "clips.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "parallel.h"
#include "simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed to inlined functions only
#endif

namespace retinakit {

namespace {

// A vector has the values of all types at one place.
using Floats = Vector<float, kTypes * sizeof(float)>;
using Words = Vector<uint32_t, kTypes * sizeof(uint32_t)>;

constexpr int64_t kFrameBlock = 13;  // frames that are filtered in time together
constexpr int64_t kLagBlock = 11;    // lags whose gradients are computed together
constexpr int64_t kPad = 13;         // zeros before and after the frames of a place

constexpr int64_t kRoom = kPad + kLongest + kFrameBlock + kPad;

// A window of a kernel's width in one row of one frame that is not all low.
struct Window {
  uint16_t column;  // of the map
  uint16_t code;    // bits of the window, the first pixel lowest
};

// The windows of a clip, by frame and row of the stimulus.
struct Windows {
  std::vector<Window> window;
  std::vector<int32_t> start;  // (frame, row), and the end
};

uint64_t word_at(const uint8_t* bytes, int64_t bit) {
  uint64_t word;
  std::memcpy(&word, bytes + (bit >> 3), sizeof word);  // x86 and ARM are little-endian
  return word >> (bit & 7);
}

Windows windows_of(const BitClips& clips, const ClipFilters& filters, const ClipPart& part,
                   int64_t clip) {
  const int64_t rows = (part.rows - 1) * filters.stride + filters.side_y;
  const int64_t limit = (part.columns - 1) * filters.stride + filters.side_x;
  const uint64_t mask = (uint64_t{1} << filters.side_x) - 1;
  constexpr int64_t valid = 57;  // bits of a word at any position
  std::vector<uint8_t> frame(clips.pitch + sizeof(uint64_t));
  Windows found;
  found.start.reserve(clips.frames * rows + 1);
  for (int64_t f = 0; f < clips.frames; ++f) {
    std::memcpy(frame.data(), clips.bits + (clip * clips.frames + f) * clips.pitch, clips.pitch);
    for (int64_t row = 0; row < rows; ++row) {
      found.start.push_back(static_cast<int32_t>(found.window.size()));
      const int64_t begin = row * clips.width;
      int64_t pixel = 0, column = 0;
      while (pixel < limit) {
        uint64_t word = word_at(frame.data(), begin + pixel) & ((uint64_t{1} << valid) - 1);
        const int64_t rest = limit - pixel;
        if (rest < valid) word &= (uint64_t{1} << rest) - 1;
        if (word == 0) {
          pixel += valid;
          continue;
        }
        pixel += __builtin_ctzll(word);
        // The first window that contains the pixel, if there is one between the strides.
        const int64_t first =
            pixel < filters.side_x ? 0 : (pixel - filters.side_x) / filters.stride + 1;
        column = std::max(column, first);
        for (; column < part.columns && column * filters.stride <= pixel; ++column) {
          const uint64_t code = word_at(frame.data(), begin + column * filters.stride) & mask;
          found.window.push_back({static_cast<uint16_t>(column), static_cast<uint16_t>(code)});
        }
        if (column == part.columns) break;
        pixel = column * filters.stride;
      }
    }
  }
  found.start.push_back(static_cast<int32_t>(found.window.size()));
  return found;
}

struct Job {
  BitClips clips;
  ClipFilters filters;
  ClipPart part;
  ClipDropout dropout;
  std::vector<Windows> windows;  // of each clip
  int64_t codes() const { return int64_t{1} << filters.side_x; }
  int64_t tiles() const { return clips.clips * part.rows; }
};

Job job_of(const BitClips& clips, const ClipFilters& filters, const ClipPart& part,
           const ClipDropout& dropout, int threads) {
  Job job{clips, filters, part, dropout, std::vector<Windows>(clips.clips)};
  parallel(clips.clips, threads, [&](int64_t from, int64_t to) {
    for (int64_t clip = from; clip < to; ++clip) {
      job.windows[clip] = windows_of(clips, filters, part, clip);
    }
  });
  return job;
}

RETINAKIT_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

RETINAKIT_INLINE void store(float* to, const Floats& value) {
  std::memcpy(to, &value, sizeof value);
}

// A hash of the place by which values are dropped: the low half before the temporal filter, the
// high half after it.
struct Random {
  uint32_t key, other_key, below;
  Words lane, factor;

  explicit RETINAKIT_INLINE Random(const ClipDropout& dropout)
      : key(static_cast<uint32_t>(dropout.seed)),
        other_key(static_cast<uint32_t>(dropout.seed >> 32)),
        below(dropout.below) {
    const float scale = 65536.0f / dropout.below;
    uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    for (int i = 0; i < kTypes; ++i) {
      lane[i] = i;
      factor[i] = bits;
    }
  }

  RETINAKIT_INLINE Words at(uint32_t place) const {
    Words x = (lane + place * static_cast<uint32_t>(kTypes)) ^ key;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= other_key;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
  }

  // The factors of values: 0 if dropped.
  RETINAKIT_INLINE Floats kept(const Words& half) const {
    return (Floats)(((Words)(half < below)) & factor);
  }
  RETINAKIT_INLINE Floats before(const Words& x) const { return kept(x & 0xffffu); }
  RETINAKIT_INLINE Floats after(const Words& x) const { return kept(x >> 16); }
};

// The sums of a kernel's rows over the pixels of each code: (kernel row, code, type).
void make_table(const Job& job, float* table) {
  const float contrast = job.clips.high - job.clips.low;
  const int64_t codes = job.codes(), width = job.filters.side_x;
  for (int64_t row = 0; row < job.filters.side_y; ++row) {
    float* of_row = table + row * codes * kTypes;
    std::fill_n(of_row, kTypes, 0.0f);
    for (int64_t code = 1; code < codes; ++code) {
      const int64_t pixel = __builtin_ctzll(code);
      const float* weight = job.filters.space + (row * width + pixel) * kTypes;
      const float* rest = of_row + (code & (code - 1)) * kTypes;
      for (int64_t i = 0; i < kTypes; ++i) of_row[code * kTypes + i] = rest[i] + contrast * weight[i];
    }
  }
}

// The memory of a thread.
struct Scratch {
  std::vector<float> maps, gradients;         // (column, frame, type), of one row
  std::vector<float> table, histogram;        // (kernel row, code, type)
  std::vector<double> time;                   // (lag, type)
  double space_bias[kTypes] = {}, time_bias[kTypes] = {};

  Scratch(const Job& job, bool backward)
      : maps(job.part.columns * job.clips.frames * kTypes),
        gradients(backward ? job.part.columns * job.clips.frames * kTypes : 0),
        table(job.filters.side_y * job.codes() * kTypes),
        histogram(backward ? table.size() : 0),
        time(backward ? job.filters.lags * kTypes : 0) {
    make_table(job, table.data());
  }
};

// The spatially filtered frames of one row of the map, before dropout.
RETINAKIT_INLINE void filter_in_space(const Job& job, int64_t clip, int64_t y, Scratch& scratch) {
  const int64_t frames = job.clips.frames, rows_seen = (job.part.rows - 1) * job.filters.stride +
                                                       job.filters.side_y;
  Floats base = load(job.filters.space_bias);
  for (int64_t i = 0; i < job.filters.side_y * job.filters.side_x; ++i) {
    base += job.clips.low * load(job.filters.space + i * kTypes);
  }
  float* maps = scratch.maps.data();
  for (int64_t i = 0; i < job.part.columns * frames; ++i) store(maps + i * kTypes, base);
  const Windows& windows = job.windows[clip];
  for (int64_t f = 0; f < frames; ++f) {
    for (int64_t row = 0; row < job.filters.side_y; ++row) {
      const int32_t* at = windows.start.data() + f * rows_seen + y * job.filters.stride + row;
      const float* table = scratch.table.data() + row * job.codes() * kTypes;
      for (int32_t i = at[0]; i < at[1]; ++i) {
        const Window window = windows.window[i];
        float* place = maps + (window.column * frames + f) * kTypes;
        store(place, load(place) + load(table + window.code * kTypes));
      }
    }
  }
}

// Some consecutive frames of one place, with zeros before and after them.
struct Course {
  alignas(64) float value[kRoom * kTypes];

  RETINAKIT_INLINE explicit Course(int64_t frames) {
    std::fill_n(value, kPad * kTypes, 0.0f);
    std::fill_n(value + (kPad + frames) * kTypes, (kFrameBlock + kPad) * kTypes, 0.0f);
  }
  RETINAKIT_INLINE float* at(int64_t frame) { return value + (kPad + frame) * kTypes; }
  RETINAKIT_INLINE const float* at(int64_t frame) const { return value + (kPad + frame) * kTypes; }
};

RETINAKIT_INLINE uint32_t place_of(const Job& job, int64_t clip, int64_t y, int64_t x) {
  return static_cast<uint32_t>(((clip * job.part.rows + y) * job.part.columns + x) *
                               job.clips.frames);
}

RETINAKIT_INLINE void forward_row(const Job& job, int64_t clip, int64_t y, Scratch& scratch,
                                  float* out) {
  filter_in_space(job, clip, y, scratch);
  const Random random(job.dropout);
  const bool drops = job.dropout.below < 65536;
  const int64_t frames = job.clips.frames, lags = job.filters.lags, first = job.part.first;
  const int64_t pitch = job.part.rows * job.part.columns * kTypes;  // of a frame of the result
  const Floats bias = load(job.filters.time_bias);
  Course course(frames);
  for (int64_t x = 0; x < job.part.columns; ++x) {
    const float* maps = scratch.maps.data() + x * frames * kTypes;
    const uint32_t place = place_of(job, clip, y, x);
    alignas(64) float factor[kLongest * kTypes];  // after the temporal filter
    for (int64_t f = 0; f < frames; ++f) {
      Floats value = load(maps + f * kTypes);
      if (drops) {
        const Words hash = random.at(place + static_cast<uint32_t>(f));
        value *= random.before(hash);
        store(factor + f * kTypes, random.after(hash));
      }
      store(course.at(f), value);
    }
    float* result = out + ((clip * (frames - first) * job.part.rows + y) * job.part.columns + x) *
                              kTypes;
    for (int64_t t = first; t < frames; t += kFrameBlock) {
      Floats sum[kFrameBlock];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kFrameBlock; ++j) sum[j] = bias;
      const int64_t last = std::min(lags, t + kFrameBlock);
      for (int64_t lag = 0; lag < last; ++lag) {
        const Floats weight = load(job.filters.time + lag * kTypes);
        const float* from = course.at(t - lag);
#pragma GCC unroll 16
        for (int64_t j = 0; j < kFrameBlock; ++j) sum[j] += weight * load(from + j * kTypes);
      }
#pragma GCC unroll 16
      for (int64_t j = 0; j < kFrameBlock; ++j) {
        if (t + j < frames) {
          Floats value = sum[j];
          if (drops) value *= load(factor + (t + j) * kTypes);
          store(result + (t + j - first) * pitch, value > 0 ? value : value * 0);
        }
      }
    }
  }
}

RETINAKIT_INLINE void backward_row(const Job& job, int64_t clip, int64_t y, Scratch& scratch,
                                   const float* out, const float* gradient) {
  filter_in_space(job, clip, y, scratch);
  const Random random(job.dropout);
  const bool drops = job.dropout.below < 65536;
  const int64_t frames = job.clips.frames, lags = job.filters.lags, first = job.part.first;
  const int64_t columns = job.part.columns;
  const float scale = 65536.0f / job.dropout.below;
  // Values that were dropped have the result 0, and its gradient is not propagated.
  Floats of_time_bias = {};
  for (int64_t t = first; t < frames; ++t) {
    const int64_t at =
        (((clip * (frames - first) + t - first) * job.part.rows + y) * columns) * kTypes;
    for (int64_t x = 0; x < columns; ++x) {
      const Floats result = load(out + at + x * kTypes);
      const Floats scaled = load(gradient + at + x * kTypes) * scale;
      const Floats value = result > 0 ? scaled : scaled * 0;
      of_time_bias += value;
      store(scratch.gradients.data() + (x * frames + t) * kTypes, value);
    }
  }
  Course course(frames), slope(frames);
  for (int64_t t = 0; t < first; ++t) store(slope.at(t), Floats{});
  Floats of_space_bias = {};
  float of_time[kLongest * kTypes] = {};
  for (int64_t x = 0; x < columns; ++x) {
    float* maps = scratch.maps.data() + x * frames * kTypes;
    const uint32_t place = place_of(job, clip, y, x);
    alignas(64) float factor[kLongest * kTypes];  // before the temporal filter
    for (int64_t f = 0; f < frames; ++f) {
      Floats value = load(maps + f * kTypes);
      if (drops) {
        const Floats kept = random.before(random.at(place + static_cast<uint32_t>(f)));
        value *= kept;
        store(factor + f * kTypes, kept);
      }
      store(course.at(f), value);
    }
    const float* of_place = scratch.gradients.data() + x * frames * kTypes;
    std::copy(of_place + first * kTypes, of_place + frames * kTypes, slope.at(first));
    for (int64_t lag = 0; lag < std::min(lags, frames); lag += kLagBlock) {
      Floats sum[kLagBlock] = {};
      for (int64_t t = std::max(first, lag); t < frames; ++t) {
        const Floats weight = load(slope.at(t));
        const float* from = course.at(t - lag);
#pragma GCC unroll 16
        for (int64_t j = 0; j < kLagBlock; ++j) sum[j] += weight * load(from - j * kTypes);
      }
      const int64_t number = std::min(kLagBlock, lags - lag);
      for (int64_t j = 0; j < number; ++j) {
        float* total = of_time + (lag + j) * kTypes;
        store(total, load(total) + sum[j]);
      }
    }
    for (int64_t f = 0; f < frames; f += kFrameBlock) {
      Floats sum[kFrameBlock] = {};
      const int64_t last = std::min(lags, frames - f);
      const int64_t begin = std::max<int64_t>(0, first - f - kFrameBlock + 1);
      for (int64_t lag = begin; lag < last; ++lag) {
        const Floats weight = load(job.filters.time + lag * kTypes);
        const float* from = slope.at(f + lag);
#pragma GCC unroll 16
        for (int64_t j = 0; j < kFrameBlock; ++j) sum[j] += weight * load(from + j * kTypes);
      }
#pragma GCC unroll 16
      for (int64_t j = 0; j < kFrameBlock; ++j) {
        if (f + j < frames) {
          Floats value = sum[j];
          if (drops) value *= load(factor + (f + j) * kTypes);
          of_space_bias += value;
          store(maps + (f + j) * kTypes, value);  // the gradient takes the place of the map
        }
      }
    }
  }
  const int64_t rows_seen = (job.part.rows - 1) * job.filters.stride + job.filters.side_y;
  const Windows& windows = job.windows[clip];
  for (int64_t f = 0; f < frames; ++f) {
    for (int64_t row = 0; row < job.filters.side_y; ++row) {
      const int32_t* at = windows.start.data() + f * rows_seen + y * job.filters.stride + row;
      float* histogram = scratch.histogram.data() + row * job.codes() * kTypes;
      for (int32_t i = at[0]; i < at[1]; ++i) {
        const Window window = windows.window[i];
        float* bin = histogram + window.code * kTypes;
        store(bin, load(bin) +
                       load(scratch.maps.data() + (window.column * frames + f) * kTypes));
      }
    }
  }
  for (int64_t i = 0; i < lags * kTypes; ++i) scratch.time[i] += of_time[i];
  for (int64_t i = 0; i < kTypes; ++i) {
    scratch.space_bias[i] += of_space_bias[i];
    scratch.time_bias[i] += of_time_bias[i];
  }
}

using ForwardRow = void (*)(const Job&, int64_t, int64_t, Scratch&, float*);
using BackwardRow = void (*)(const Job&, int64_t, int64_t, Scratch&, const float*, const float*);

void forward_any(const Job& job, int64_t clip, int64_t y, Scratch& scratch, float* out) {
  forward_row(job, clip, y, scratch, out);
}
void backward_any(const Job& job, int64_t clip, int64_t y, Scratch& scratch, const float* out,
                  const float* gradient) {
  backward_row(job, clip, y, scratch, out, gradient);
}

#ifdef RETINAKIT_X86
RETINAKIT_TARGET("avx2,fma")
void forward_256(const Job& job, int64_t clip, int64_t y, Scratch& scratch, float* out) {
  forward_row(job, clip, y, scratch, out);
}
RETINAKIT_TARGET("avx2,fma")
void backward_256(const Job& job, int64_t clip, int64_t y, Scratch& scratch, const float* out,
                  const float* gradient) {
  backward_row(job, clip, y, scratch, out, gradient);
}
#endif

ForwardRow forward_here() {
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) return forward_256;
#endif
  return forward_any;
}

BackwardRow backward_here() {
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) return backward_256;
#endif
  return backward_any;
}

}  // namespace

void filter_bit_clips(const BitClips& clips, const ClipFilters& filters, const ClipPart& part,
                      const ClipDropout& dropout, float* out, int threads) {
  const Job job = job_of(clips, filters, part, dropout, threads);
  const ForwardRow forward = forward_here();
  parallel(job.tiles(), threads, [&](int64_t from, int64_t to) {
    Scratch scratch(job, false);
    for (int64_t tile = from; tile < to; ++tile) {
      forward(job, tile / part.rows, tile % part.rows, scratch, out);
    }
  });
}

void bit_clips_gradients(const BitClips& clips, const ClipFilters& filters, const ClipPart& part,
                         const ClipDropout& dropout, const float* out, const float* gradient,
                         const ClipGradients& gradients, int threads) {
  const Job job = job_of(clips, filters, part, dropout, threads);
  const BackwardRow backward = backward_here();
  const int64_t tiles = job.tiles();
  const int64_t number = std::max<int64_t>(1, std::min<int64_t>(threads, tiles));
  std::vector<std::unique_ptr<Scratch>> scratch(number);
  parallel(number, threads, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      scratch[i] = std::make_unique<Scratch>(job, true);
      for (int64_t tile = tiles * i / number; tile < tiles * (i + 1) / number; ++tile) {
        backward(job, tile / part.rows, tile % part.rows, *scratch[i], out, gradient);
      }
    }
  });
  const int64_t pixels = filters.side_y * filters.side_x;
  std::vector<double> space(pixels * kTypes), time(filters.lags * kTypes);
  double space_bias[kTypes] = {}, time_bias[kTypes] = {};
  for (const auto& one : scratch) {
    for (int64_t i = 0; i < kTypes; ++i) {
      space_bias[i] += one->space_bias[i];
      time_bias[i] += one->time_bias[i];
    }
    for (size_t i = 0; i < time.size(); ++i) time[i] += one->time[i];
    for (int64_t row = 0; row < filters.side_y; ++row) {
      for (int64_t code = 1; code < job.codes(); ++code) {
        const float* bin = one->histogram.data() + (row * job.codes() + code) * kTypes;
        for (int64_t pixel = 0; pixel < filters.side_x; ++pixel) {
          if (code >> pixel & 1) {
            double* total = space.data() + (row * filters.side_x + pixel) * kTypes;
            for (int64_t i = 0; i < kTypes; ++i) total[i] += bin[i];
          }
        }
      }
    }
  }
  const double contrast = clips.high - clips.low;
  for (int64_t i = 0; i < pixels * kTypes; ++i) {
    gradients.space[i] =
        static_cast<float>(contrast * space[i] + clips.low * space_bias[i % kTypes]);
  }
  std::copy(time.begin(), time.end(), gradients.time);
  std::copy_n(space_bias, kTypes, gradients.space_bias);
  std::copy_n(time_bias, kTypes, gradients.time_bias);
}

}  // namespace retinakit
