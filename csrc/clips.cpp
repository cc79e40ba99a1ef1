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
constexpr int64_t kPoolBlock = 11;   // frames whose outputs of a pool are computed together
constexpr int64_t kPad = 13;         // zeros before and after the frames of a place

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

// The part of the filters' map that the pools use.
int64_t map_rows(const ClipJob& job) {
  return (job.sizes.rows - 1) * job.sizes.stride + job.sizes.side_y;
}
int64_t map_columns(const ClipJob& job) {
  return (job.sizes.columns - 1) * job.sizes.stride + job.sizes.side_x;
}
// The number of rows of the stimulus that are used.
int64_t stimulus_rows(const ClipJob& job) {
  return (map_rows(job) - 1) * job.filters.stride + job.filters.side_y;
}

Windows windows_of(const ClipJob& job, int64_t clip) {
  const BitClips& clips = job.clips;
  const ClipFilters& filters = job.filters;
  const int64_t rows = stimulus_rows(job), columns = map_columns(job);
  const int64_t limit = (columns - 1) * filters.stride + filters.side_x;
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
        for (; column < columns && column * filters.stride <= pixel; ++column) {
          const uint64_t code = word_at(frame.data(), begin + column * filters.stride) & mask;
          found.window.push_back({static_cast<uint16_t>(column), static_cast<uint16_t>(code)});
        }
        if (column == columns) break;
        pixel = column * filters.stride;
      }
    }
  }
  found.start.push_back(static_cast<int32_t>(found.window.size()));
  return found;
}

RETINAKIT_INLINE Floats load(const float* from) {
  return *reinterpret_cast<const Floats*>(from);  // which needs no alignment; see Vector
}

RETINAKIT_INLINE void store(float* to, const Floats& value) {
  *reinterpret_cast<Floats*>(to) = value;
}

// Keeps the compiler from carrying values over to the next iteration of a loop, in registers that
// the sums need.
RETINAKIT_INLINE void load_again() {
#ifdef __GNUC__
  asm volatile("" ::: "memory");
#endif
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

int64_t number_of_codes(const ClipJob& job) { return int64_t{1} << job.filters.side_x; }

// The sums of a kernel's rows over the pixels of each code: (kernel row, code, type).
void make_table(const ClipJob& job, float* table) {
  const float contrast = job.clips.high - job.clips.low;
  const int64_t codes = number_of_codes(job), width = job.filters.side_x;
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

// Numbers, 0 at first, whose vectors do not cross the lines of the cache.
struct Numbers {
  struct alignas(64) Line {
    float value[64 / sizeof(float)];
  };
  int64_t size;
  std::vector<Line> lines;

  explicit Numbers(int64_t number)
      : size(number), lines((number * sizeof(float) + sizeof(Line) - 1) / sizeof(Line)) {}
  RETINAKIT_INLINE float* data() { return reinterpret_cast<float*>(lines.data()); }
};

// Frames of some places (place, frame, type), with zeros before and after the frames of each.
struct Courses {
  int64_t pitch;  // of a place
  Numbers value;

  Courses(int64_t places, int64_t frames)
      : pitch((kPad + frames + kPad) * kTypes), value(places * pitch) {}
  RETINAKIT_INLINE float* at(int64_t place, int64_t frame) {
    return value.data() + place * pitch + (kPad + frame) * kTypes;
  }
};

// The memory of a thread.
struct Scratch {
  Courses maps;                         // of one row, filtered in space
  Courses rectified, slopes;            // of one row, filtered in time
  std::vector<Courses> pooled;          // of all places of a clip, or their gradients
  Numbers table, histogram;             // (kernel row, code, type)
  Numbers turned;                       // the kernels (pool, y, x, output, type)
  std::vector<double> time, pools;      // sums of gradients
  double space_bias[kTypes] = {}, time_bias[kTypes] = {};
  Windows windows;

  Scratch(const ClipJob& job, bool backward)
      : maps(map_columns(job), job.clips.frames),
        rectified(map_columns(job), job.clips.frames),
        slopes(backward ? map_columns(job) : 0, job.clips.frames),
        table(job.filters.side_y * number_of_codes(job) * kTypes),
        histogram(backward ? table.size : 0),
        turned(backward ? kernel_size(job) * job.pools.size() : 0),
        time(job.filters.lags * kTypes),
        pools(kernel_size(job) * job.pools.size()) {
    for (size_t i = 0; i < job.pools.size(); ++i) {
      pooled.emplace_back(job.sizes.rows * job.sizes.columns, job.clips.frames);
    }
    make_table(job, table.data());
    if (!backward) return;
    float* next = turned.data();
    for (const Pool& pool : job.pools) {
      for (int64_t pixel = 0; pixel < job.sizes.side_y * job.sizes.side_x; ++pixel) {
        for (int64_t o = 0; o < kTypes; ++o) {
          for (int64_t i = 0; i < kTypes; ++i) {
            *next++ = pool.weight[(pixel * kTypes + i) * kTypes + o];
          }
        }
      }
    }
  }

  static int64_t kernel_size(const ClipJob& job) {
    return job.sizes.side_y * job.sizes.side_x * kTypes * kTypes;
  }
};

// The first frame of the filters' output that is used.
RETINAKIT_INLINE int64_t first_frame(const ClipJob& job) {
  int64_t first = job.clips.frames;
  for (const Pool& pool : job.pools) first = std::min(first, pool.first);
  return first;
}

RETINAKIT_INLINE uint32_t place_of(const ClipJob& job, int64_t clip, int64_t y, int64_t x) {
  return static_cast<uint32_t>(((clip * map_rows(job) + y) * map_columns(job) + x) *
                               job.clips.frames);
}

// The spatially filtered frames of one row of the map, before dropout.
RETINAKIT_INLINE void filter_in_space(const ClipJob& job, int64_t y, Scratch& scratch) {
  const int64_t frames = job.clips.frames, rows = stimulus_rows(job), codes = number_of_codes(job);
  Floats base = load(job.filters.space_bias);
  for (int64_t i = 0; i < job.filters.side_y * job.filters.side_x; ++i) {
    base += job.clips.low * load(job.filters.space + i * kTypes);
  }
  for (int64_t x = 0; x < map_columns(job); ++x) {
    for (int64_t f = 0; f < frames; ++f) store(scratch.maps.at(x, f), base);
  }
  const Windows& windows = scratch.windows;
  for (int64_t f = 0; f < frames; ++f) {
    for (int64_t row = 0; row < job.filters.side_y; ++row) {
      const int32_t* at = windows.start.data() + f * rows + y * job.filters.stride + row;
      const float* table = scratch.table.data() + row * codes * kTypes;
      for (int32_t i = at[0]; i < at[1]; ++i) {
        const Window window = windows.window[i];
        float* place = scratch.maps.at(window.column, f);
        store(place, load(place) + load(table + window.code * kTypes));
      }
    }
  }
}

// The rectified output of one row of the map. Dropout is applied to scratch.maps.
RETINAKIT_INLINE void filter_row(const ClipJob& job, int64_t clip, int64_t y, Scratch& scratch) {
  filter_in_space(job, y, scratch);
  const Random random(job.dropout);
  const bool drops = job.dropout.below < 65536;
  const int64_t frames = job.clips.frames, lags = job.filters.lags, first = first_frame(job);
  const Floats bias = load(job.filters.time_bias);
  alignas(64) float factor[(kLongest + kPad) * kTypes];  // after the temporal filter
  for (int64_t x = 0; x < map_columns(job); ++x) {
    if (drops) {
      const uint32_t place = place_of(job, clip, y, x);
      for (int64_t f = 0; f < frames; ++f) {
        const Words hash = random.at(place + static_cast<uint32_t>(f));
        float* value = scratch.maps.at(x, f);
        store(value, load(value) * random.before(hash));
        store(factor + f * kTypes, random.after(hash));
      }
    }
    for (int64_t t = first; t < frames; t += kFrameBlock) {
      Floats sum[kFrameBlock];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kFrameBlock; ++j) sum[j] = bias;
      const int64_t last = std::min(lags, t + kFrameBlock);
      const float *filter = job.filters.time, *from = scratch.maps.at(x, t);
      for (int64_t lag = 0; lag < last; ++lag, from -= kTypes) {
        load_again();
        const Floats weight = load(filter + lag * kTypes);
#pragma GCC unroll 16
        for (int64_t j = 0; j < kFrameBlock; ++j) sum[j] += weight * load(from + j * kTypes);
      }
      float* result = scratch.rectified.at(x, t);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kFrameBlock; ++j) {
        if (t + j < frames) {
          Floats value = sum[j];
          if (drops) value *= load(factor + (t + j) * kTypes);
          store(result + j * kTypes, value > 0 ? value : value * 0);
        }
      }
    }
  }
}

// Calls work(row of the pools, row of their kernels) for those that a row of the map belongs to.
template <class Work>
RETINAKIT_INLINE void for_pool_rows(const PoolSizes& sizes, int64_t y, const Work& work) {
  const int64_t from = y < sizes.side_y ? 0 : (y - sizes.side_y) / sizes.stride + 1;
  for (int64_t row = from; row < sizes.rows && row * sizes.stride <= y; ++row) {
    work(row, y - row * sizes.stride);
  }
}

// sum[j] += Σ_i weight[i] · from[j][i], for consecutive frames j.
RETINAKIT_INLINE void add_products(Floats* sum, const float* weight, const float* from) {
  for (int64_t i = 0; i < kTypes; ++i) {
    const Floats of_input = load(weight + i * kTypes);
#pragma GCC unroll 16
    for (int64_t j = 0; j < kPoolBlock; ++j) sum[j] += of_input * from[j * kTypes + i];
  }
}

RETINAKIT_INLINE void pool_row(const ClipJob& job, int64_t y, Scratch& scratch) {
  const PoolSizes& sizes = job.sizes;
  for_pool_rows(sizes, y, [&](int64_t row, int64_t kernel_row) __attribute__((always_inline)) {
    for (size_t p = 0; p < job.pools.size(); ++p) {
      const Pool& pool = job.pools[p];
      for (int64_t column = 0; column < sizes.columns; ++column) {
        for (int64_t t = pool.first; t < job.clips.frames; t += kPoolBlock) {
          float* total = scratch.pooled[p].at(row * sizes.columns + column, t);
          Floats sum[kPoolBlock];
#pragma GCC unroll 16
          for (int64_t j = 0; j < kPoolBlock; ++j) sum[j] = load(total + j * kTypes);
          for (int64_t x = 0; x < sizes.side_x; ++x) {
            add_products(sum,
                         pool.weight + (kernel_row * sizes.side_x + x) * kTypes * kTypes,
                         scratch.rectified.at(column * sizes.stride + x, t));
          }
#pragma GCC unroll 16
          for (int64_t j = 0; j < kPoolBlock; ++j) store(total + j * kTypes, sum[j]);
        }
      }
    }
  });
}

RETINAKIT_INLINE void forward_clip(const ClipJob& job, int64_t clip, Scratch& scratch,
                                   const std::vector<float*>& out) {
  scratch.windows = windows_of(job, clip);
  for (Courses& courses : scratch.pooled) {
    std::fill_n(courses.value.data(), courses.value.size, 0.0f);
  }
  for (int64_t y = 0; y < map_rows(job); ++y) {
    filter_row(job, clip, y, scratch);
    pool_row(job, y, scratch);
  }
  const int64_t places = job.sizes.rows * job.sizes.columns;
  for (size_t p = 0; p < out.size(); ++p) {
    const int64_t first = job.pools[p].first, length = (job.clips.frames - first) * kTypes;
    for (int64_t place = 0; place < places; ++place) {
      std::copy_n(scratch.pooled[p].at(place, first), length,
                  out[p] + (clip * places + place) * length);
    }
  }
}

// The gradients of the kernels, and of the rectified output of one row.
RETINAKIT_INLINE void unpool_row(const ClipJob& job, int64_t y, Scratch& scratch) {
  const PoolSizes& sizes = job.sizes;
  const int64_t frames = job.clips.frames, kernel = Scratch::kernel_size(job);
  constexpr int64_t square = kTypes * kTypes;
  for (int64_t x = 0; x < map_columns(job); ++x) {
    const int64_t from = x < sizes.side_x ? 0 : (x - sizes.side_x) / sizes.stride + 1;
    for (int64_t t = first_frame(job); t < frames; t += kPoolBlock) {
      Floats sum[kPoolBlock] = {};
      for_pool_rows(sizes, y, [&](int64_t row, int64_t kernel_row) __attribute__((always_inline)) {
        for (int64_t column = from; column < sizes.columns && column * sizes.stride <= x;
             ++column) {
          const int64_t pixel = kernel_row * sizes.side_x + x - column * sizes.stride;
          for (size_t p = 0; p < job.pools.size(); ++p) {
            if (t + kPoolBlock <= job.pools[p].first) continue;
            add_products(sum, scratch.turned.data() + p * kernel + pixel * square,
                         scratch.pooled[p].at(row * sizes.columns + column, t));
          }
        }
      });
      float* slope = scratch.slopes.at(x, t);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kPoolBlock; ++j) {
        if (t + j < frames) store(slope + j * kTypes, sum[j]);
      }
    }
  }
  for_pool_rows(sizes, y, [&](int64_t row, int64_t kernel_row) __attribute__((always_inline)) {
    for (size_t p = 0; p < job.pools.size(); ++p) {
      for (int64_t x = 0; x < sizes.side_x; ++x) {
        Floats sum[kTypes] = {};
        for (int64_t column = 0; column < sizes.columns; ++column) {
          const float* input = scratch.rectified.at(column * sizes.stride + x, 0);
          const float* gradient = scratch.pooled[p].at(row * sizes.columns + column, 0);
          for (int64_t t = job.pools[p].first; t < frames; ++t) {
            const Floats of_output = load(gradient + t * kTypes);
#pragma GCC unroll 8
            for (int64_t i = 0; i < kTypes; ++i) sum[i] += of_output * input[t * kTypes + i];
          }
        }
        double* total =
            scratch.pools.data() + p * kernel + (kernel_row * sizes.side_x + x) * square;
        for (int64_t i = 0; i < kTypes; ++i) {
          for (int64_t o = 0; o < kTypes; ++o) total[i * kTypes + o] += sum[i][o];
        }
      }
    }
  });
}

// The gradients of the filters, from scratch.slopes.
RETINAKIT_INLINE void unfilter_row(const ClipJob& job, int64_t clip, int64_t y, Scratch& scratch) {
  const Random random(job.dropout);
  const bool drops = job.dropout.below < 65536;
  const int64_t frames = job.clips.frames, lags = job.filters.lags, first = first_frame(job);
  const float scale = 65536.0f / job.dropout.below;
  Floats of_time_bias = {}, of_space_bias = {};
  alignas(64) float of_time[(kLongest + kLagBlock) * kTypes] = {};
  for (int64_t x = 0; x < map_columns(job); ++x) {
    // The result of values that were dropped is 0, and its gradient is not propagated.
    for (int64_t t = first; t < frames; ++t) {
      const Floats scaled = load(scratch.slopes.at(x, t)) * scale;
      const Floats value = load(scratch.rectified.at(x, t)) > 0 ? scaled : scaled * 0;
      of_time_bias += value;
      store(scratch.slopes.at(x, t), value);
    }
    for (int64_t lag = 0; lag < std::min(lags, frames); lag += kLagBlock) {
      Floats sum[kLagBlock] = {};
      const int64_t start = std::max(first, lag);
      const float *slope = scratch.slopes.at(x, 0), *from = scratch.maps.at(x, start - lag);
      for (int64_t t = start; t < frames; ++t, from += kTypes) {
        load_again();
        const Floats weight = load(slope + t * kTypes);
#pragma GCC unroll 16
        for (int64_t j = 0; j < kLagBlock; ++j) sum[j] += weight * load(from - j * kTypes);
      }
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLagBlock; ++j) {
        float* total = of_time + (lag + j) * kTypes;
        store(total, load(total) + sum[j]);
      }
    }
    const uint32_t place = place_of(job, clip, y, x);
    for (int64_t f = 0; f < frames; f += kFrameBlock) {
      Floats sum[kFrameBlock] = {};
      const int64_t last = std::min(lags, frames - f);
      const int64_t begin = std::max<int64_t>(0, first - f - kFrameBlock + 1);
      const float *filter = job.filters.time, *from = scratch.slopes.at(x, f + begin);
      for (int64_t lag = begin; lag < last; ++lag, from += kTypes) {
        load_again();
        const Floats weight = load(filter + lag * kTypes);
#pragma GCC unroll 16
        for (int64_t j = 0; j < kFrameBlock; ++j) sum[j] += weight * load(from + j * kTypes);
      }
#pragma GCC unroll 16
      for (int64_t j = 0; j < kFrameBlock; ++j) {
        if (f + j < frames) {
          Floats value = sum[j];
          if (drops) value *= random.before(random.at(place + static_cast<uint32_t>(f + j)));
          of_space_bias += value;
          store(scratch.maps.at(x, f + j), value);  // the gradient takes the place of the map
        }
      }
    }
  }
  const int64_t rows = stimulus_rows(job), codes = number_of_codes(job);
  const Windows& windows = scratch.windows;
  for (int64_t f = 0; f < frames; ++f) {
    for (int64_t row = 0; row < job.filters.side_y; ++row) {
      const int32_t* at = windows.start.data() + f * rows + y * job.filters.stride + row;
      float* histogram = scratch.histogram.data() + row * codes * kTypes;
      for (int32_t i = at[0]; i < at[1]; ++i) {
        const Window window = windows.window[i];
        float* bin = histogram + window.code * kTypes;
        store(bin, load(bin) + load(scratch.maps.at(window.column, f)));
      }
    }
  }
  for (int64_t i = 0; i < lags * kTypes; ++i) scratch.time[i] += of_time[i];
  for (int64_t i = 0; i < kTypes; ++i) {
    scratch.space_bias[i] += of_space_bias[i];
    scratch.time_bias[i] += of_time_bias[i];
  }
}

RETINAKIT_INLINE void backward_clip(const ClipJob& job, int64_t clip, Scratch& scratch,
                                    const std::vector<const float*>& gradients) {
  scratch.windows = windows_of(job, clip);
  const int64_t places = job.sizes.rows * job.sizes.columns;
  for (size_t p = 0; p < gradients.size(); ++p) {
    const int64_t first = job.pools[p].first, length = (job.clips.frames - first) * kTypes;
    for (int64_t place = 0; place < places; ++place) {
      std::copy_n(gradients[p] + (clip * places + place) * length, length,
                  scratch.pooled[p].at(place, first));
    }
  }
  for (int64_t y = 0; y < map_rows(job); ++y) {
    filter_row(job, clip, y, scratch);
    unpool_row(job, y, scratch);
    unfilter_row(job, clip, y, scratch);
  }
}

RETINAKIT_INLINE void write_factors(const ClipDropout& dropout, int64_t number, float* factors) {
  const Random random(dropout);
  uint32_t place = 0;
  for (; number >= 2 * kTypes; number -= 2 * kTypes, factors += 2 * kTypes) {
    const Words hash = random.at(place++);
    store(factors, random.before(hash));
    store(factors + kTypes, random.after(hash));
  }
  const Words hash = random.at(place);
  for (int64_t i = 0; i < number; ++i) {
    const Floats rest = i < kTypes ? random.before(hash) : random.after(hash);
    factors[i] = rest[i % kTypes];
  }
}

void write_factors_any(const ClipDropout& dropout, int64_t number, float* factors) {
  write_factors(dropout, number, factors);
}

#ifdef RETINAKIT_X86
RETINAKIT_TARGET("avx2,fma")
void write_factors_256(const ClipDropout& dropout, int64_t number, float* factors) {
  write_factors(dropout, number, factors);
}
#endif

using Outputs = std::vector<float*>;
using Gradients = std::vector<const float*>;

void forward_any(const ClipJob& job, int64_t clip, Scratch& scratch, const Outputs& out) {
  forward_clip(job, clip, scratch, out);
}
void backward_any(const ClipJob& job, int64_t clip, Scratch& scratch, const Gradients& gradients) {
  backward_clip(job, clip, scratch, gradients);
}

#ifdef RETINAKIT_X86
RETINAKIT_TARGET("avx2,fma")
void forward_256(const ClipJob& job, int64_t clip, Scratch& scratch, const Outputs& out) {
  forward_clip(job, clip, scratch, out);
}
RETINAKIT_TARGET("avx2,fma")
void backward_256(const ClipJob& job, int64_t clip, Scratch& scratch, const Gradients& gradients) {
  backward_clip(job, clip, scratch, gradients);
}
#endif

auto forward_here() {
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) return forward_256;
#endif
  return forward_any;
}

auto backward_here() {
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) return backward_256;
#endif
  return backward_any;
}

}  // namespace

void dropout_factors(const ClipDropout& dropout, int64_t number, float* factors) {
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) return write_factors_256(dropout, number, factors);
#endif
  write_factors_any(dropout, number, factors);
}

void pool_bit_clips(const ClipJob& job, const std::vector<float*>& out, int threads) {
  const auto forward = forward_here();
  parallel(job.clips.clips, threads, [&](int64_t from, int64_t to) {
    Scratch scratch(job, false);
    for (int64_t clip = from; clip < to; ++clip) forward(job, clip, scratch, out);
  });
}

void pool_bit_clips_gradients(const ClipJob& job, const std::vector<const float*>& gradients,
                              const ClipGradients& result, int threads) {
  const auto backward = backward_here();
  const int64_t clips = job.clips.clips;
  const int64_t number = std::max<int64_t>(1, std::min<int64_t>(threads, clips));
  std::vector<std::unique_ptr<Scratch>> scratch(number);
  parallel(number, threads, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      scratch[i] = std::make_unique<Scratch>(job, true);
      for (int64_t clip = clips * i / number; clip < clips * (i + 1) / number; ++clip) {
        backward(job, clip, *scratch[i], gradients);
      }
    }
  });
  const ClipFilters& filters = job.filters;
  const int64_t pixels = filters.side_y * filters.side_x, codes = number_of_codes(job);
  const int64_t kernel = Scratch::kernel_size(job);
  std::vector<double> space(pixels * kTypes), time(filters.lags * kTypes),
      pools(kernel * job.pools.size());
  double space_bias[kTypes] = {}, time_bias[kTypes] = {};
  for (const auto& one : scratch) {
    for (int64_t i = 0; i < kTypes; ++i) {
      space_bias[i] += one->space_bias[i];
      time_bias[i] += one->time_bias[i];
    }
    for (size_t i = 0; i < time.size(); ++i) time[i] += one->time[i];
    for (size_t i = 0; i < pools.size(); ++i) pools[i] += one->pools[i];
    for (int64_t row = 0; row < filters.side_y; ++row) {
      for (int64_t code = 1; code < codes; ++code) {
        const float* bin = one->histogram.data() + (row * codes + code) * kTypes;
        for (int64_t pixel = 0; pixel < filters.side_x; ++pixel) {
          if (code >> pixel & 1) {
            double* total = space.data() + (row * filters.side_x + pixel) * kTypes;
            for (int64_t i = 0; i < kTypes; ++i) total[i] += bin[i];
          }
        }
      }
    }
  }
  const double low = job.clips.low, contrast = job.clips.high - job.clips.low;
  for (int64_t i = 0; i < pixels * kTypes; ++i) {
    result.space[i] = static_cast<float>(contrast * space[i] + low * space_bias[i % kTypes]);
  }
  std::copy(time.begin(), time.end(), result.time);
  std::copy_n(space_bias, kTypes, result.space_bias);
  std::copy_n(time_bias, kTypes, result.time_bias);
  for (size_t p = 0; p < job.pools.size(); ++p) {
    std::copy_n(pools.data() + p * kernel, kernel, result.pools[p]);
  }
}

}  // namespace retinakit
