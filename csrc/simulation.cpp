#include "simulation.h"

#include <algorithm>
#include <cstring>
#include <vector>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// No fused multiply-add: the Numba version rounds after every product and must give equal spikes.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

// Helpers are inlined into functions that are compiled for several instruction sets.
#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

namespace retinakit {

namespace {

constexpr int64_t kGroup = 8;  // pixels that are transposed together
constexpr int64_t kChunk = 32;  // frames that are summed in registers
// Bytes of the pixels of a block, which fit the L2 cache.
constexpr int64_t kTile = 1 << 19;
// Frames per block. Rows whose length is a power of 2 would map to the same L1 cache lines.
constexpr int64_t kLongest = 2016;

// --- The stimulus of a block, from (frame, pixel) to (pixel, frame) ---

// Number of frames that fill a register of 16 bytes.
template <typename T>
constexpr int64_t kFrames = 16 / sizeof(T);

// Transposes kFrames frames of 8 pixels.
INLINE void transpose(const int8_t* from, int64_t pitch, int8_t* to, int64_t stride) {
#if defined(__SSE2__)
  __m128i a[16], b[8];
  for (int i = 0; i < 16; ++i)
    a[i] = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i * pitch));
  // Each step interleaves frames i and i + half. After four steps, a register has the frames of
  // one pixel.
  for (int i = 0; i < 8; ++i) b[i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 4]);
    a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 4]);
  }
  // a[2i + h]: pixels 4h to 4h + 3, of frames i, i + 4, i + 8, i + 12.
  for (int h = 0; h < 2; ++h) {
    __m128i c[4];
    for (int i = 0; i < 2; ++i) {
      c[2 * i] = _mm_unpacklo_epi8(a[2 * i + h], a[2 * (i + 2) + h]);
      c[2 * i + 1] = _mm_unpackhi_epi8(a[2 * i + h], a[2 * (i + 2) + h]);
    }
    for (int q = 0; q < 2; ++q) {
      int8_t* row = to + (4 * h + 2 * q) * stride;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row), _mm_unpacklo_epi8(c[q], c[2 + q]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + stride), _mm_unpackhi_epi8(c[q], c[2 + q]));
    }
  }
#else
  for (int64_t p = 0; p < kGroup; ++p)
    for (int64_t t = 0; t < kFrames<int8_t>; ++t) to[p * stride + t] = from[t * pitch + p];
#endif
}

INLINE void transpose(const float* from, int64_t pitch, float* to, int64_t stride) {
#if defined(__SSE2__)
  for (int64_t p = 0; p < kGroup; p += 4) {
    const float* f = from + p;
    __m128 a = _mm_loadu_ps(f), b = _mm_loadu_ps(f + pitch);
    __m128 c = _mm_loadu_ps(f + 2 * pitch), d = _mm_loadu_ps(f + 3 * pitch);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    float* row = to + p * stride;
    _mm_storeu_ps(row, a);
    _mm_storeu_ps(row + stride, b);
    _mm_storeu_ps(row + 2 * stride, c);
    _mm_storeu_ps(row + 3 * stride, d);
  }
#else
  for (int64_t p = 0; p < kGroup; ++p)
    for (int64_t t = 0; t < kFrames<float>; ++t) to[p * stride + t] = from[t * pitch + p];
#endif
}

template <typename T>
INLINE void fill(const Movie<T>& movie, const SubunitCells& cells, int64_t frame, int64_t frames,
                 T* tile, int64_t stride) {
  // Few frames at a time, so that memory is read in few streams.
  for (int64_t t = 0; t < frames; t += kFrames<T>) {
    const T* from = movie.values + (frame + t - movie.first) * movie.pitch;
    for (int64_t g = 0; g < cells.group_count; ++g) {
      const int64_t pixel = cells.groups[g] * kGroup;
      T* to = tile + g * kGroup * stride + t;
      if (t + kFrames<T> <= frames && pixel + kGroup <= movie.pitch) {
        transpose(from + pixel, movie.pitch, to, stride);
      } else {
        const int64_t last = std::min(kGroup, movie.pitch - pixel);
        for (int64_t p = 0; p < last; ++p)
          for (int64_t i = 0; i < std::min(kFrames<T>, frames - t); ++i)
            to[p * stride + i] = from[i * movie.pitch + pixel + p];
      }
    }
  }
}

INLINE void fill(const Movie<uint8_t>& bits, const SubunitCells& cells, int64_t frame,
                 int64_t frames, int8_t* tile, int64_t stride) {
  uint8_t column[kLongest];
  const uint8_t* from = bits.values + (frame - bits.first) * bits.pitch;
  for (int64_t g = 0; g < cells.group_count; ++g) {
    for (int64_t t = 0; t < frames; ++t) column[t] = from[t * bits.pitch + cells.groups[g]];
    for (int64_t p = 0; p < kGroup; ++p) {
      int8_t* row = tile + (g * kGroup + p) * stride;
      const uint8_t bit = uint8_t(1 << p);
      for (int64_t t = 0; t < frames; ++t) row[t] = (column[t] & bit) ? 1 : -1;
    }
  }
}

// --- Arithmetic on rows of frames ---

// Eight frames: one register with AVX2, two without.
typedef float Vector __attribute__((vector_size(32)));

INLINE void load(const float* from, Vector& to) { std::memcpy(&to, from, sizeof to); }

INLINE void load(const int8_t* from, Vector& to) {
  typedef int32_t Integers __attribute__((vector_size(32)));
  Integers integers;
  for (int i = 0; i < 8; ++i) integers[i] = from[i];
  to = __builtin_convertvector(integers, Vector);
}

// sum[t] = Σ_k weight[k] · row(k)[t], for a multiple of kChunk frames. The sums over space, time
// and subunits are all computed here, in the order of k.
template <typename Row>
INLINE void weighted_sum(int64_t terms, const float* weight, Row row, int64_t frames, float* sum) {
  for (int64_t t = 0; t < frames; t += kChunk) {
    Vector a = {}, b = {}, c = {}, d = {}, value;
    for (int64_t k = 0; k < terms; ++k) {
      const auto* values = row(k) + t;
      load(values, value);
      a += weight[k] * value;
      load(values + 8, value);
      b += weight[k] * value;
      load(values + 16, value);
      c += weight[k] * value;
      load(values + 24, value);
      d += weight[k] * value;
    }
    std::memcpy(sum + t, &a, sizeof a);
    std::memcpy(sum + t + 8, &b, sizeof b);
    std::memcpy(sum + t + 16, &c, sizeof c);
    std::memcpy(sum + t + 24, &d, sizeof d);
  }
}

INLINE float positive(float x) { return x > 0 ? x : 0; }

// e^x with relative error 2e-7 (Cephes): 2^n e^r with |r| <= ln(2) / 2, clipped to float32's range.
INLINE float exponential(float x) {
  x = x > -87.0f ? x : -87.0f;
  x = x < 88.0f ? x : 88.0f;
  const int32_t n = int32_t(x * 1.44269504f + 128.5f) - 128;
  const float whole = float(n);
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = (y * (r * r) + r) + 1.0f;
  const int32_t bits = (n + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

// log(1 + e^x) = max(x, 0) + log(1 + e), with e = e^-|x| and log(1 + e) = 2 artanh(e / (2 + e)).
INLINE float softplus(float x) {
  const float e = exponential(x > 0 ? -x : x);
  const float z = e / (2.0f + e);
  const float s = z * z;
  float y = 1.0f / 15;
  y = y * s + 1.0f / 13;
  y = y * s + 1.0f / 11;
  y = y * s + 1.0f / 9;
  y = y * s + 1.0f / 7;
  y = y * s + 1.0f / 5;
  y = y * s + 1.0f / 3;
  y = y * s + 1.0f;
  return positive(x) + (2.0f * z) * y;
}

INLINE void apply(Nonlinearity nonlinearity, int64_t frames, float* x) {
  switch (nonlinearity) {
    case Nonlinearity::identity:
      break;
    case Nonlinearity::rectify:
      for (int64_t t = 0; t < frames; ++t) x[t] = positive(x[t]);
      break;
    case Nonlinearity::softplus:
      for (int64_t t = 0; t < frames; ++t) x[t] = softplus(x[t]);
      break;
    case Nonlinearity::exponential:
      for (int64_t t = 0; t < frames; ++t) x[t] = exponential(x[t]);
      break;
  }
}

// --- Spikes ---

// Philox 4x32-10 (Salmon et al. 2011): four random words from a counter and a key. The counter is
// (frame / 4, cell, repeat, 0), so a draw does not depend on earlier draws.
INLINE void philox(uint64_t seed, uint32_t first, uint32_t cell, uint32_t repeat, int64_t frames,
                   uint32_t* words) {
  for (int64_t i = 0; i < frames / 4; ++i) {
    uint32_t a = first + uint32_t(i), b = cell, c = repeat, d = 0;
    uint32_t k = uint32_t(seed), l = uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint64_t x = uint64_t(a) * 0xD2511F53u, y = uint64_t(c) * 0xCD9E8D57u;
      a = uint32_t(y >> 32) ^ b ^ k;
      b = uint32_t(y);
      c = uint32_t(x >> 32) ^ d ^ l;
      d = uint32_t(x);
      k += 0x9E3779B9u;
      l += 0xBB67AE85u;
    }
    words[4 * i] = a;
    words[4 * i + 1] = b;
    words[4 * i + 2] = c;
    words[4 * i + 3] = d;
  }
}

// The inverse of the Poisson distribution function.
INLINE uint8_t poisson(float rate, double uniform) {
  if (uniform < 1.0 - double(rate)) return 0;  // <= exp(-rate)
  double probability = double(exponential(-rate)), below = probability;
  int count = 0;
  while (uniform >= below && count < 255) {
    ++count;
    probability = probability * double(rate) / double(count);
    below = below + probability;
  }
  return uint8_t(count);
}

INLINE void draw(Spikes spikes, const float* rate, const uint32_t* words, int64_t frames,
                 uint8_t* counts) {
  // 31 bits, because processors convert signed integers.
  constexpr double kUnit = 1.0 / 2147483648.0;
  if (spikes == Spikes::binary) {
    for (int64_t t = 0; t < frames; ++t)
      counts[t] = double(int32_t(words[t] >> 1)) * kUnit < double(rate[t]);
  } else {
    for (int64_t t = 0; t < frames; ++t)
      counts[t] = rate[t] > 0 ? poisson(rate[t], double(int32_t(words[t] >> 1)) * kUnit) : 0;
  }
}

// --- The simulation, block by block ---

int64_t rounded_up(int64_t frames) { return (frames + kChunk - 1) / kChunk * kChunk; }

template <typename T>
struct TileOf {
  using Type = T;
};
template <>
struct TileOf<uint8_t> {
  using Type = int8_t;
};

template <typename T>
INLINE void run(const SubunitCells& cells, const Movie<T>& movie, int64_t start, int64_t stop,
                int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts) {
  using Value = typename TileOf<T>::Type;
  const int64_t rows = std::max<int64_t>(1, cells.group_count * kGroup);
  const int64_t fitting = kTile / (rows * int64_t{sizeof(Value)}) / kChunk * kChunk;
  const int64_t block = std::min(std::max(fitting, kChunk), kLongest);
  const int64_t history = cells.lags - 1, length = history + block;
  const int64_t subunits = cells.spatial.rows, count = cells.output.rows;
  std::vector<Value> tile(rows * block);
  std::vector<float> drive(subunits * length), active(subunits * block), row(block);
  std::vector<uint32_t> words(block);
  std::vector<uint8_t> drawn(block);

  // The first frames are history: their sums are needed, but not their rates.
  int64_t frame = std::max<int64_t>(movie.first, start - history);
  while (frame < stop) {
    const bool past = frame < start;
    const int64_t now = std::min(block, (past ? start : stop) - frame), padded = rounded_up(now);
    fill(movie, cells, frame, now, tile.data(), block);
    for (int64_t s = 0; s < subunits; ++s) {
      const int64_t entry = cells.spatial.start[s];
      const int32_t* index = cells.spatial.index + entry;
      const Value* values = tile.data();
      weighted_sum(
          cells.spatial.start[s + 1] - entry, cells.spatial.weight + entry,
          [=](int64_t k) { return values + index[k] * block; }, padded,
          drive.data() + s * length + history);
    }
    if (!past) {
      for (int64_t s = 0; s < subunits; ++s) {
        const float* newest = drive.data() + s * length + history;
        float* out = active.data() + s * block;
        weighted_sum(
            cells.lags, cells.temporal + s * cells.lags, [=](int64_t lag) { return newest - lag; },
            padded, out);
        apply(cells.nonlinearity, padded, out);
      }
      for (int64_t c = 0; c < count; ++c) {
        const int64_t entry = cells.output.start[c];
        const int32_t* index = cells.output.index + entry;
        const float* values = active.data();
        weighted_sum(
            cells.output.start[c + 1] - entry, cells.output.weight + entry,
            [=](int64_t k) { return values + index[k] * block; }, padded, row.data());
        for (int64_t t = 0; t < padded; ++t) row[t] -= cells.threshold[c];
        apply(cells.output_nonlinearity, padded, row.data());
        for (int64_t t = 0; t < padded; ++t) row[t] *= cells.gain[c];
        for (int64_t t = 0; t < now; ++t) rate[(frame + t) * count + c] = row[t];
        for (int64_t repeat = 0; drawing.spikes != Spikes::none && repeat < drawing.repeats;
             ++repeat) {
          philox(drawing.seed, uint32_t(frame / 4), uint32_t(c), uint32_t(repeat), padded,
                 words.data());
          draw(drawing.spikes, row.data(), words.data(), padded, drawn.data());
          uint8_t* out = counts + (repeat * frames + frame) * count + c;
          for (int64_t t = 0; t < now; ++t) out[t * count] = drawn[t];
        }
      }
    }
    for (int64_t s = 0; s < subunits; ++s) {
      float* oldest = drive.data() + s * length;
      std::memmove(oldest, oldest + now, history * sizeof(float));
    }
    frame += now;
  }
}

}  // namespace

FOR_EVERY_PROCESSOR
void simulate(const SubunitCells& cells, const Movie<uint8_t>& bits, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts) {
  run(cells, bits, start, stop, frames, drawing, rate, counts);
}

FOR_EVERY_PROCESSOR
void simulate(const SubunitCells& cells, const Movie<int8_t>& movie, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts) {
  run(cells, movie, start, stop, frames, drawing, rate, counts);
}

FOR_EVERY_PROCESSOR
void simulate(const SubunitCells& cells, const Movie<float>& movie, int64_t start, int64_t stop,
              int64_t frames, const Drawing& drawing, float* rate, uint8_t* counts) {
  run(cells, movie, start, stop, frames, drawing, rate, counts);
}

}  // namespace retinakit
