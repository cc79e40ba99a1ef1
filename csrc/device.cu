#include <cuda_runtime.h>

#include "device.h"

namespace retinakit {

int cuda_device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

int cuda_toolkit_version() { return CUDART_VERSION; }

}  // namespace retinakit
