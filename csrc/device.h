// What the CUDA runtime sees. Only in builds with nvcc.
#pragma once

namespace retinakit {

// Number of usable GPUs; 0 without a driver.
int cuda_device_count();
// Version of the CUDA toolkit that the kernels were compiled with, as 1000 * major + 10 * minor.
int cuda_toolkit_version();

}  // namespace retinakit
