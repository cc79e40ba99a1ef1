// The Python module retinakit._kernels. Functions take NumPy arrays or the addresses of tensors and
// do not depend on torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <tuple>

#include "bits.h"
#include "clips.h"
#include "gram.h"
#include "readout.h"
#include "simd.h"
#include "simulation.h"
#include "take.h"
#include "sparse.h"
#ifdef RETINAKIT_CUDA
#include "device.h"
#include "readout_cuda.h"
#endif

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

namespace {

void check(bool fine, const char* message) {
  if (!fine) throw std::invalid_argument(message);
}

// Checks that the frames of each cell increase and have their history in the `available` frames.
void check_frames(const Array<int64_t>& starts, const Array<int64_t>& frames, int64_t cells,
                  int64_t available, int64_t first_lag, int64_t lags) {
  check(starts.ndim() == 1 && starts.size() == cells + 1 && frames.ndim() == 1 &&
            starts.data()[0] >= 0 && starts.data()[cells] <= frames.size(),
        "starts must be (cell + 1) positions in frames");
  check(first_lag >= 0, "first_lag must not be negative");
  for (int64_t c = 0; c < cells; ++c) {
    const int64_t from = starts.data()[c], to = starts.data()[c + 1];
    check(from <= to, "starts must increase");
    for (int64_t i = from; i < to; ++i) {
      const int64_t frame = frames.data()[i];
      check(i == from || frame > frames.data()[i - 1], "frames of a cell must increase");
      if (frame - first_lag - lags + 1 < 0 || frame >= available) {
        throw std::out_of_range("a spike lacks its history in the stimulus");
      }
    }
  }
}

// Checks that there is a nonnegative count for each frame, and that the sum of a cell fits 31 bits.
void check_counts(const Array<int64_t>& starts, const Array<int64_t>& counts, int64_t frames,
                  int64_t cells) {
  check(counts.ndim() == 1 && counts.size() == frames, "frames and counts must be of one length");
  for (int64_t c = 0; c < cells; ++c) {
    int64_t total = 0;
    for (int64_t i = starts.data()[c]; i < starts.data()[c + 1]; ++i) {
      const int64_t count = counts.data()[i];
      check(count >= 0, "counts must not be negative");
      total += std::min<int64_t>(count, INT32_MAX);
      check(total < INT32_MAX, "a cell has more than 2^31 - 1 spikes");
    }
  }
}

template <class T, class Sum>
bool bits(const Array<T>& stimulus, T low, T high, const Array<int64_t>& starts,
          const Array<int64_t>& frames, const Array<int64_t>& counts, int64_t first_lag,
          Array<Sum>& sums, int threads) {
  check(stimulus.ndim() == 2 && sums.ndim() == 3 && sums.shape(2) == stimulus.shape(1),
        "stimulus must be (frame, check) and sums (cell, lag, check)");
  const int64_t cells = sums.shape(0), lags = sums.shape(1);
  check_frames(starts, frames, cells, stimulus.shape(0), first_lag, lags);
  check_counts(starts, counts, frames.size(), cells);
  Sum* out = sums.mutable_data();
  py::gil_scoped_release release;
  return retinakit::bit_sums(stimulus.data(), stimulus.shape(0), stimulus.shape(1), low, high,
                             {starts.data(), frames.data(), counts.data(), cells}, first_lag, lags,
                             out, threads);
}

template <class T>
bool gram(const Array<T>& stimulus, T low, T high, const Array<int64_t>& frames, int64_t first_lag,
          int64_t lags, double scale, Array<double>& sums, int threads) {
  check(stimulus.ndim() == 2 && frames.ndim() == 1 && sums.ndim() == 2 && lags > 0 &&
            sums.shape(0) == sums.shape(1) && sums.shape(0) == lags * stimulus.shape(1),
        "stimulus must be (frame, check) and sums (lag and check, lag and check)");
  check(first_lag >= 0, "first_lag must not be negative");
  for (int64_t i = 0; i < frames.size(); ++i) {
    const int64_t latest = frames.data()[i] - first_lag;
    if (latest - lags + 1 < 0 || latest >= stimulus.shape(0)) {
      throw std::out_of_range("a spike lacks its history in the stimulus");
    }
  }
  double* out = sums.mutable_data();
  py::gil_scoped_release release;
  return retinakit::bit_gram(stimulus.data(), stimulus.shape(0), stimulus.shape(1), low, high,
                             frames.data(), frames.size(), first_lag, lags, scale, out, threads);
}

template <class Stimulus, class Weight, class Sum>
void sparse(const Array<Stimulus>& stimulus, const Array<int64_t>& starts,
            const Array<int64_t>& frames, const Array<Weight>& weights, int64_t first_lag,
            Array<Sum>& sums, int threads) {
  check(stimulus.ndim() == 2 && sums.ndim() == 3 && sums.shape(2) == stimulus.shape(1),
        "stimulus must be (frame, pixel) and sums (cell, lag, pixel)");
  check(weights.ndim() == 1 && weights.size() == frames.size(),
        "frames and weights must be of one length");
  const int64_t cells = sums.shape(0), lags = sums.shape(1);
  check_frames(starts, frames, cells, stimulus.shape(0), first_lag, lags);
  if constexpr (std::is_integral_v<Weight>) {
    for (int64_t i = 0; i < frames.size(); ++i) {
      check(weights.data()[i] >= 0, "counts must not be negative");
    }
  }
  Sum* out = sums.mutable_data();
  py::gil_scoped_release release;
  retinakit::sparse_sums(stimulus.data(), stimulus.shape(0), stimulus.shape(1), starts.data(),
                         frames.data(), weights.data(), cells, first_lag, lags, out, threads);
}

template <class T, class Sum>
void define_bits(py::module_& m) {
  m.def("bit_sums", &bits<T, Sum>, py::arg("stimulus").noconvert(), py::arg("low"),
        py::arg("high"), py::arg("starts").noconvert(), py::arg("frames").noconvert(),
        py::arg("counts").noconvert(), py::arg("first_lag"), py::arg("sums").noconvert(),
        py::arg("threads"),
        "Adds the sum of count * stimulus before the frames of each cell; false, and nothing is "
        "added, if the stimulus has a value besides low and high.");
}

template <class T>
void define_gram(py::module_& m) {
  m.def("bit_gram", &gram<T>, py::arg("stimulus").noconvert(), py::arg("low"), py::arg("high"),
        py::arg("frames").noconvert(), py::arg("first_lag"), py::arg("lags"), py::arg("scale"),
        py::arg("sums").noconvert(), py::arg("threads"),
        "Adds scale * (the frames before which both features are high) on and above the diagonal; "
        "false, and nothing is added, if the stimulus has a value besides low and high.");
}

template <class Stimulus, class Weight, class Sum>
void define_sparse(py::module_& m) {
  m.def("sparse_sums", &sparse<Stimulus, Weight, Sum>, py::arg("stimulus").noconvert(),
        py::arg("starts").noconvert(), py::arg("frames").noconvert(),
        py::arg("weights").noconvert(), py::arg("first_lag"), py::arg("sums").noconvert(),
        py::arg("threads"), "Adds the sum of weight * stimulus before the frames of each cell.");
}

// The rows of a sparse matrix, after checking that its indices are below `columns`.
retinakit::SparseRows sparse_rows(const Array<int64_t>& start, const Array<int32_t>& index,
                                  const Array<float>& weight, int64_t columns) {
  const int64_t rows = start.size() - 1, entries = index.size();
  const int64_t* bounds = start.data();
  const int32_t* columns_of = index.data();
  if (rows < 0 || bounds[0] != 0 || bounds[rows] != entries || weight.size() != entries ||
      !std::is_sorted(bounds, bounds + rows + 1) ||
      !std::all_of(columns_of, columns_of + entries,
                   [=](int32_t i) { return i >= 0 && i < columns; })) {
    throw std::invalid_argument("not the rows of a sparse matrix");
  }
  return {rows, bounds, columns_of, weight.data()};
}

template <typename T>
void simulate(const Array<T>& stimulus, int64_t first, int64_t start, int64_t stop,
              const Array<int32_t>& groups, const Array<int64_t>& spatial_start,
              const Array<int32_t>& spatial_index, const Array<float>& spatial_weight,
              const Array<float>& temporal, const Array<int64_t>& output_start,
              const Array<int32_t>& output_index, const Array<float>& output_weight,
              const Array<float>& threshold, const Array<float>& gain, int nonlinearity,
              int output_nonlinearity, int spikes, uint64_t seed, Array<float>& rate,
              Array<uint8_t>& counts) {
  if (stimulus.ndim() != 2 || temporal.ndim() != 2 || rate.ndim() != 2 || counts.ndim() != 3) {
    throw std::invalid_argument("an array has the wrong number of dimensions");
  }
  const int64_t pitch = stimulus.shape(1), lags = temporal.shape(1);
  const int64_t per_group = sizeof(T) == 1 && T(-1) > 0 ? 1 : 8;  // values per byte of bits, or 8
  if (lags < 1 || first < 0 || start % 4 || start > stop || stop > rate.shape(0) ||
      first > std::max<int64_t>(0, start - lags + 1) || stop - first > stimulus.shape(0) ||
      !std::all_of(groups.data(), groups.data() + groups.size(),
                   [=](int64_t g) { return g >= 0 && g * per_group < pitch; })) {
    throw std::out_of_range("the stimulus does not hold these frames and pixels");
  }
  const retinakit::SubunitCells cells{
      groups.data(),
      groups.size(),
      sparse_rows(spatial_start, spatial_index, spatial_weight, groups.size() * 8),
      temporal.data(),
      lags,
      static_cast<retinakit::Nonlinearity>(nonlinearity),
      sparse_rows(output_start, output_index, output_weight, temporal.shape(0)),
      threshold.data(),
      gain.data(),
      static_cast<retinakit::Nonlinearity>(output_nonlinearity)};
  const int64_t frames = rate.shape(0), count = cells.output.rows;
  if (cells.spatial.rows != temporal.shape(0) || rate.shape(1) != count ||
      threshold.size() != count || gain.size() != count || counts.shape(1) != frames ||
      counts.shape(2) != count) {
    throw std::invalid_argument("the arrays are not of the same subunits, cells and frames");
  }
  const retinakit::Drawing drawing{static_cast<retinakit::Spikes>(spikes), seed, counts.shape(0)};
  float* rates = rate.mutable_data();
  uint8_t* drawn = counts.mutable_data();
  const retinakit::Movie<T> movie{stimulus.data(), pitch, first};
  py::gil_scoped_release release;
  retinakit::simulate(cells, movie, start, stop, frames, drawing, rates, drawn);
}

template <typename T>
void define_simulate(py::module_& m) {
  m.def("simulate", &simulate<T>, py::arg("stimulus").noconvert(), py::arg("first"),
        py::arg("start"), py::arg("stop"), py::arg("groups").noconvert(),
        py::arg("spatial_start").noconvert(), py::arg("spatial_index").noconvert(),
        py::arg("spatial_weight").noconvert(), py::arg("temporal").noconvert(),
        py::arg("output_start").noconvert(), py::arg("output_index").noconvert(),
        py::arg("output_weight").noconvert(), py::arg("threshold").noconvert(),
        py::arg("gain").noconvert(), py::arg("nonlinearity"), py::arg("output_nonlinearity"),
        py::arg("spikes"), py::arg("seed"), py::arg("rate").noconvert(),
        py::arg("counts").noconvert(),
        "Rates and spike counts of subunit cells, in the frames from start to stop.");
}

// The readout works on the memory of torch: on addresses of contiguous tensors, whose types and
// shapes are checked in retinakit.layers.readout_kernels.
template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Addresses = std::array<uintptr_t, 6>;  // start, index, values, order, weights, neurons

retinakit::Readers readers_of(int64_t number, int64_t rows, const Addresses& addresses) {
  const auto [start, index, values, order, weights, neurons] = addresses;
  return {number,
          at<const int64_t>(neurons),
          at<const float>(weights),
          rows,
          at<const int64_t>(start),
          at<const int32_t>(index),
          at<const float>(values),
          at<const int64_t>(order)};
}

void define_readout(py::module_& m) {
  using Shape = std::array<int64_t, 4>;  // batch, channels, positions, neurons
  const auto shape_of = [](const Shape& s) { return retinakit::FeatureShape{s[0], s[1], s[2]}; };
  m.def(
      "take",
      [](uintptr_t values, uintptr_t index, int64_t number, uintptr_t result, int threads) {
        py::gil_scoped_release release;
        retinakit::take(at<const float>(values), at<const int64_t>(index), number,
                        at<float>(result), threads);
      },
      "result[i] = values[index[i]].");
  m.def(
      "readout",
      [=](const Shape& shape, uintptr_t features, const Addresses& readers, uintptr_t out,
          int threads) {
        py::gil_scoped_release release;
        retinakit::readout(at<const float>(features), shape_of(shape),
                           readers_of(shape[3], shape[3], readers), at<float>(out), threads);
      },
      "The output (batch, neuron).");
  m.def(
      "readout_slot_gradients",
      [=](const Shape& shape, uintptr_t features, const Addresses& readers, uintptr_t gradient,
          uintptr_t of_values, uintptr_t of_weights, int threads) {
        py::gil_scoped_release release;
        retinakit::readout_slot_gradients(at<const float>(features), shape_of(shape),
                                          readers_of(shape[3], shape[3], readers),
                                          at<const float>(gradient), at<float>(of_values),
                                          at<float>(of_weights), threads);
      },
      "The gradients of the values (0: not this one) and of the weights.");
  m.def(
      "readout_feature_gradient",
      [=](const Shape& shape, const Addresses& readers, uintptr_t gradient, uintptr_t of_features,
          int threads) {
        py::gil_scoped_release release;
        retinakit::readout_feature_gradient(shape_of(shape),
                                            readers_of(shape[3], shape[2], readers),
                                            at<const float>(gradient), at<float>(of_features),
                                            threads);
      },
      "The gradient of the features.");
}

// As for the readout, on addresses that retinakit.layers.bit_clips checks.
void define_clips(py::module_& m) {
  using Clips = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, float>;
  using Addresses = std::vector<uintptr_t>;  // space, space_bias, time, time_bias, and the pools
  using FilterSizes = std::array<int64_t, 4>;
  using PoolSizes = std::array<int64_t, 5>;
  using Firsts = std::vector<int64_t>;
  using Dropout = std::pair<uint64_t, uint32_t>;
  const auto job_of = [](const Clips& clips, const Addresses& weights, const FilterSizes& f,
                         const PoolSizes& p, const Firsts& firsts, const Dropout& dropout) {
    const auto& [bits, number, frames, pitch, height, width, low, high] = clips;
    retinakit::ClipJob job{
        {at<const uint8_t>(bits), number, frames, pitch, height, width, low, high},
        {at<const float>(weights[0]), at<const float>(weights[1]), at<const float>(weights[2]),
         at<const float>(weights[3]), f[0], f[1], f[2], f[3]},
        {p[0], p[1], p[2], p[3], p[4]},
        {},
        {dropout.first, dropout.second}};
    for (size_t i = 0; i < firsts.size(); ++i) {
      job.pools.push_back({at<const float>(weights.at(4 + i)), firsts[i]});
    }
    return job;
  };
  m.attr("clip_types") = retinakit::kTypes;
  m.attr("clip_widest") = retinakit::kWidest;
  m.attr("clip_longest") = retinakit::kLongest;
  m.def(
      "dropout_factors",
      [](uint64_t seed, uint32_t below, int64_t number, uintptr_t factors) {
        py::gil_scoped_release release;
        retinakit::dropout_factors({seed, below}, number, at<float>(factors));
      },
      "The factors of dropout.");
  m.def(
      "pool_bit_clips",
      [=](const Clips& clips, const Addresses& weights, const FilterSizes& f, const PoolSizes& p,
          const Firsts& firsts, const Dropout& dropout, const Addresses& out, int threads) {
        py::gil_scoped_release release;
        std::vector<float*> results;
        for (const uintptr_t address : out) results.push_back(at<float>(address));
        retinakit::pool_bit_clips(job_of(clips, weights, f, p, firsts, dropout), results, threads);
      },
      "The outputs (clip, row, column, frame, output) of each pool of rectified filters.");
  m.def(
      "pool_bit_clips_gradients",
      [=](const Clips& clips, const Addresses& weights, const FilterSizes& f, const PoolSizes& p,
          const Firsts& firsts, const Dropout& dropout, const Addresses& gradients,
          const Addresses& of, int threads) {
        py::gil_scoped_release release;
        std::vector<const float*> given;
        for (const uintptr_t address : gradients) given.push_back(at<const float>(address));
        retinakit::ClipGradients result{
            at<float>(of[0]), at<float>(of[1]), at<float>(of[2]), at<float>(of[3]), {}};
        for (size_t i = 4; i < of.size(); ++i) result.pools.push_back(at<float>(of[i]));
        retinakit::pool_bit_clips_gradients(job_of(clips, weights, f, p, firsts, dropout), given,
                                            result, threads);
      },
      "The gradients of filters and pools.");
}

#ifdef RETINAKIT_CUDA
namespace gpu = retinakit::device;

void define_readout_on_gpu(py::module_& m) {
  using Launch = std::tuple<int, uintptr_t, bool>;  // device, stream, whether bfloat16
  using Shape = std::array<int, 4>;                 // batch, channels, positions, neurons
  using Masks = std::array<uintptr_t, 7>;
  using MasksByPosition = std::array<uintptr_t, 4>;
  const auto launch_of = [](const Launch& launch) {
    return std::apply([](auto... parts) { return gpu::Launch{parts...}; }, launch);
  };
  const auto shape_of = [](const Shape& s) { return gpu::Shape{s[0], s[1], s[2], s[3]}; };
  const auto masks_of = [](const Masks& a) {
    return gpu::Masks{at<const int64_t>(a[0]), at<const float>(a[1]),   at<const int32_t>(a[2]),
                      at<const int64_t>(a[3]), at<const int32_t>(a[4]), at<const float>(a[5]),
                      at<const int64_t>(a[6])};
  };
  const auto by_position_of = [](const MasksByPosition& a) {
    return gpu::MasksByPosition{at<const int64_t>(a[0]), at<const int32_t>(a[1]),
                                at<const float>(a[2]), at<const float>(a[3])};
  };
  m.def("readout_on_gpu", [=](const Launch& launch, const Shape& shape, uintptr_t features,
                              const Masks& masks, uintptr_t out) {
    gpu::launch_read(launch_of(launch), at<void>(features), shape_of(shape), masks_of(masks),
                     at<float>(out));
  });
  m.def("readout_weight_gradient_on_gpu",
        [=](const Launch& launch, const Shape& shape, uintptr_t features, const Masks& masks,
            uintptr_t gradient, uintptr_t out) {
          gpu::launch_weight_gradient(launch_of(launch), at<void>(features), shape_of(shape),
                                      masks_of(masks), at<const float>(gradient), at<float>(out));
        });
  m.def("readout_mask_gradient_on_gpu",
        [=](const Launch& launch, const Shape& shape, uintptr_t features,
            const MasksByPosition& masks, uintptr_t gradient, uintptr_t out) {
          gpu::launch_mask_gradient(launch_of(launch), at<void>(features), shape_of(shape),
                                    by_position_of(masks), at<const float>(gradient),
                                    at<float>(out));
        });
  m.def("readout_feature_gradient_on_gpu",
        [=](const Launch& launch, const Shape& shape, const MasksByPosition& masks,
            uintptr_t gradient, uintptr_t out) {
          gpu::launch_feature_gradient(launch_of(launch), shape_of(shape), by_position_of(masks),
                                       at<const float>(gradient), at<void>(out));
        });
}
#endif

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels of retinakit";
  m.attr("vector_bits") = retinakit::vector_bits();
  define_bits<int8_t, int64_t>(m);
  define_bits<uint8_t, int64_t>(m);
  define_bits<float, double>(m);
  define_bits<double, double>(m);
  define_gram<int8_t>(m);
  define_gram<uint8_t>(m);
  define_gram<float>(m);
  define_gram<double>(m);
  define_sparse<int8_t, int64_t, int64_t>(m);
  define_sparse<uint8_t, int64_t, int64_t>(m);
  define_sparse<float, float, double>(m);
  define_sparse<double, double, double>(m);
  define_simulate<uint8_t>(m);
  define_simulate<int8_t>(m);
  define_simulate<float>(m);
  define_readout(m);
  define_clips(m);
#ifdef RETINAKIT_CUDA
  m.attr("cuda") = true;
  define_readout_on_gpu(m);
  m.def("cuda_device_count", &retinakit::cuda_device_count);
  m.def("cuda_toolkit_version", &retinakit::cuda_toolkit_version);
#else
  m.attr("cuda") = false;
#endif
}
