// Properties of the CUDA runtime. Only in builds with nvcc.
#pragma once

namespace retinakit {

// The number of usable GPUs; 0 without a driver.
int cuda_device_count();
// The CUDA toolkit that compiled the kernels, as 1000 * major + 10 * minor.
int cuda_toolkit_version();

}  // namespace retinakit
