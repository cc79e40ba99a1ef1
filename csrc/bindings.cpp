// The Python module retinakit._kernels. Functions take NumPy arrays; none knows torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>

#include "simulation.h"
#include "spike_triggered.h"
#ifdef RETINAKIT_CUDA
#include "device.h"
#endif

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

namespace {

void spike_triggered_sum(const Array<int8_t>& stimulus, const Array<int64_t>& frames,
                         const Array<int32_t>& counts, int64_t first_lag, Array<int64_t>& sums) {
  if (stimulus.ndim() != 2 || sums.ndim() != 2 || sums.shape(1) != stimulus.shape(1)) {
    throw std::invalid_argument("stimulus must be (frame, pixel) and sums (lag, pixel)");
  }
  if (frames.ndim() != 1 || counts.ndim() != 1 || frames.size() != counts.size()) {
    throw std::invalid_argument("frames and counts must be of one length");
  }
  const int64_t lags = sums.shape(0), oldest = first_lag + lags - 1;
  for (py::ssize_t i = 0; i < frames.size(); ++i) {
    const int64_t frame = frames.data()[i];
    if (frame - oldest < 0 || frame - first_lag >= stimulus.shape(0)) {
      throw std::out_of_range("a spike lacks its history in the stimulus");
    }
  }
  int64_t* out = sums.mutable_data();
  py::gil_scoped_release release;
  retinakit::spike_triggered_sum(stimulus.data(), stimulus.shape(1), frames.data(), counts.data(),
                                 frames.size(), first_lag, lags, out);
}

// The rows of a sparse matrix whose indices are below `columns`.
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
  const int64_t per_group = sizeof(T) == 1 && T(-1) > 0 ? 1 : 8;  // values: a byte of bits, or 8
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

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels of retinakit";
  m.def("spike_triggered_sum", &spike_triggered_sum, py::arg("stimulus").noconvert(),
        py::arg("frames").noconvert(), py::arg("counts").noconvert(), py::arg("first_lag"),
        py::arg("sums").noconvert(),
        "Adds counts[i] * stimulus[frames[i] - first_lag - lag] to sums[lag].");
  define_simulate<uint8_t>(m);
  define_simulate<int8_t>(m);
  define_simulate<float>(m);
#ifdef RETINAKIT_CUDA
  m.attr("cuda") = true;
  m.def("cuda_device_count", &retinakit::cuda_device_count);
  m.def("cuda_toolkit_version", &retinakit::cuda_toolkit_version);
#else
  m.attr("cuda") = false;
#endif
}
