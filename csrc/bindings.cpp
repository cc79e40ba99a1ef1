// The Python module retinakit._kernels. Functions take NumPy arrays; none knows torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

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

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled kernels of retinakit";
  m.def("spike_triggered_sum", &spike_triggered_sum, py::arg("stimulus").noconvert(),
        py::arg("frames").noconvert(), py::arg("counts").noconvert(), py::arg("first_lag"),
        py::arg("sums").noconvert(),
        "Adds counts[i] * stimulus[frames[i] - first_lag - lag] to sums[lag].");
#ifdef RETINAKIT_CUDA
  m.attr("cuda") = true;
  m.def("cuda_device_count", &retinakit::cuda_device_count);
  m.def("cuda_toolkit_version", &retinakit::cuda_toolkit_version);
#else
  m.attr("cuda") = false;
#endif
}
