#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "readout_device.h"

namespace retinakit::device {

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

unsigned blocks(int64_t items, int of) { return static_cast<unsigned>((items + of - 1) / of); }

// Launches a kernel, unless the grid is empty.
template <class... Parameters, class... Arguments>
void start(const Launch& launch, dim3 grid, dim3 threads, void (*kernel)(Parameters...),
           Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  check(cudaSetDevice(launch.device));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.stream = reinterpret_cast<cudaStream_t>(launch.stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Calls work(number) with a number of the type of the features.
template <class Work>
void with_type(const Launch& launch, const Work& work) {
  launch.bfloat16 ? work(Bfloat16{}) : work(float{});
}

}  // namespace

void launch_read(const Launch& launch, const void* features, const Shape& shape,
                 const Masks& masks, float* out) {
  const dim3 grid(blocks(shape.neurons, kSlots), blocks(shape.batch, kWarp));
  with_type(launch, [&](auto number) {
    using T = decltype(number);
    start(launch, grid, dim3(kWarp, kSlots), read<T>, static_cast<const T*>(features), shape,
          masks, out);
  });
}

void launch_weight_gradient(const Launch& launch, const void* features, const Shape& shape,
                            const Masks& masks, const float* gradient, float* out) {
  const dim3 grid(blocks(shape.neurons, kSlots), blocks(shape.channels, kChannels));
  with_type(launch, [&](auto number) {
    using T = decltype(number);
    start(launch, grid, dim3(kWarp, kSlots), weight_gradient<T>, static_cast<const T*>(features),
          shape, masks, gradient, out);
  });
}

void launch_mask_gradient(const Launch& launch, const void* features, const Shape& shape,
                          const MasksByPosition& masks, const float* gradient, float* out) {
  const dim3 grid(blocks(shape.positions, 1));
  with_type(launch, [&](auto number) {
    using T = decltype(number);
    start(launch, grid, dim3(kWarp, kParts), mask_gradient<T>, static_cast<const T*>(features),
          shape, masks, gradient, out);
  });
}

void launch_feature_gradient(const Launch& launch, const Shape& shape,
                             const MasksByPosition& masks, const float* gradient, void* out) {
  const dim3 grid(blocks(shape.positions, 1), blocks(shape.batch, kWarp));
  with_type(launch, [&](auto number) {
    using T = decltype(number);
    start(launch, grid, dim3(kWarp, kParts), feature_gradient<T>, shape, masks, gradient,
          static_cast<T*>(out));
  });
}

}  // namespace retinakit::device
