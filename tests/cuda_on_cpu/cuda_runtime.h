// What our kernels need of CUDA, on a CPU: each thread of a block is a fiber, and __syncthreads
// passes on to the next one. Blocks come one after the other.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x, y;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};

inline dim3 threadIdx, blockIdx;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace cuda_on_cpu {

constexpr size_t kStackBytes = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool done;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline Fiber* running;
inline std::function<void()> kernel;

inline void run_fiber() {
  kernel();
  running->done = true;
}

// Runs all threads of a block up to their next barrier. False once they have all ended; a barrier
// that only some of them reach may hang a GPU, and ends the program here.
inline bool run_to_barrier(const dim3& threads) {
  size_t ended = 0;
  for (size_t i = 0; i < fibers.size(); ++i) {
    running = &fibers[i];
    threadIdx = dim3(i % threads.x, i / threads.x);
    swapcontext(&scheduler, &running->context);
    ended += running->done;
  }
  if (ended && ended < fibers.size()) {
    std::fputs("only some of the threads reached a barrier\n", stderr);
    std::abort();
  }
  return !ended;
}

}  // namespace cuda_on_cpu

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*function)(Parameters...),
                               Arguments... arguments) {
  using namespace cuda_on_cpu;
  kernel = [=] { function(arguments...); };
  fibers = std::vector<Fiber>(config->blockDim.x * config->blockDim.y);
  for (unsigned y = 0; y < config->gridDim.y; ++y) {
    for (unsigned x = 0; x < config->gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      for (auto& fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = &scheduler;
        fiber.done = false;
        makecontext(&fiber.context, run_fiber, 0);
      }
      while (run_to_barrier(config->blockDim)) {
      }
    }
  }
  return cudaSuccess;
}

inline void __syncthreads() {
  swapcontext(&cuda_on_cpu::running->context, &cuda_on_cpu::scheduler);
}
