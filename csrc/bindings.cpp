// The Python module retinakit._kernels. Functions take NumPy arrays; none knows torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "bits.h"
#include "simd.h"
#include "sparse.h"
#ifdef RETINAKIT_CUDA
#include "device.h"
#endif

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

namespace {

void check(bool fine, const char* message) {
  if (!fine) throw std::invalid_argument(message);
}

// Each cell's frames increase, and every one has its history among `available` frames.
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

template <class T>
bool pack(const Array<T>& stimulus, T low, T high, Array<uint64_t>& bits, int threads) {
  check(stimulus.ndim() == 2 && bits.ndim() == 3, "stimulus must be (frame, check)");
  const int64_t frames = stimulus.shape(0), checks = stimulus.shape(1);
  check(checks > 0 && bits.shape(0) == (checks + retinakit::kTileChecks - 1) /
                                           retinakit::kTileChecks &&
            bits.shape(1) == frames && bits.shape(2) == retinakit::kTileWords,
        "bits must be (tile, frame, 8)");
  uint64_t* out = bits.mutable_data();
  py::gil_scoped_release release;
  return retinakit::pack_bits(stimulus.data(), frames, checks, low, high, out, threads);
}

template <class T>
void bits(const Array<uint64_t>& bits, const Array<int64_t>& starts, const Array<int64_t>& frames,
          int64_t first_lag, T scale, T offset, Array<T>& sums, int threads) {
  check(bits.ndim() == 3 && sums.ndim() == 3, "sums must be (cell, lag, check)");
  const int64_t cells = sums.shape(0), lags = sums.shape(1), checks = sums.shape(2);
  check(bits.shape(0) == (checks + retinakit::kTileChecks - 1) / retinakit::kTileChecks &&
            bits.shape(2) == retinakit::kTileWords,
        "bits must be (tile, frame, 8)");
  check_frames(starts, frames, cells, bits.shape(1), first_lag, lags);
  T* out = sums.mutable_data();
  py::gil_scoped_release release;
  retinakit::bit_sums(bits.data(), bits.shape(1), checks, starts.data(), frames.data(), cells,
                      first_lag, lags, scale, offset, out, threads);
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

template <class T>
void define_pack(py::module_& m) {
  m.def("pack_bits", &pack<T>, py::arg("stimulus").noconvert(), py::arg("low"), py::arg("high"),
        py::arg("bits").noconvert(), py::arg("threads"),
        "Packs a stimulus (frame, check) of two values; false if there is a third.");
}

template <class T>
void define_bits(py::module_& m) {
  m.def("bit_sums", &bits<T>, py::arg("bits").noconvert(), py::arg("starts").noconvert(),
        py::arg("frames").noconvert(), py::arg("first_lag"), py::arg("scale"), py::arg("offset"),
        py::arg("sums").noconvert(), py::arg("threads"),
        "Adds the sum of scale * bit + offset before the frames of each cell.");
}

template <class Stimulus, class Weight, class Sum>
void define_sparse(py::module_& m) {
  m.def("sparse_sums", &sparse<Stimulus, Weight, Sum>, py::arg("stimulus").noconvert(),
        py::arg("starts").noconvert(), py::arg("frames").noconvert(),
        py::arg("weights").noconvert(), py::arg("first_lag"), py::arg("sums").noconvert(),
        py::arg("threads"), "Adds the sum of weight * stimulus before the frames of each cell.");
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels of retinakit";
  m.attr("vector_bits") = retinakit::vector_bits();
  define_pack<int8_t>(m);
  define_pack<uint8_t>(m);
  define_pack<float>(m);
  define_pack<double>(m);
  define_bits<int64_t>(m);
  define_bits<double>(m);
  define_sparse<int8_t, int64_t, int64_t>(m);
  define_sparse<uint8_t, int64_t, int64_t>(m);
  define_sparse<float, float, double>(m);
  define_sparse<double, double, double>(m);
#ifdef RETINAKIT_CUDA
  m.attr("cuda") = true;
  m.def("cuda_device_count", &retinakit::cuda_device_count);
  m.def("cuda_toolkit_version", &retinakit::cuda_toolkit_version);
#else
  m.attr("cuda") = false;
#endif
}
