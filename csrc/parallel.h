// Splits work over a few threads, each with one range of the items.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#ifdef __linux__
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace retinakit {

#ifdef __linux__
inline const pid_t first_process = getpid();
#endif

// Uses the OpenMP threads of torch, if its runtime is found. The threads of torch keep spinning for
// a while after each operation, and additional threads would compete with them for the cores.
class SharedThreads {
 public:
  SharedThreads() {
#ifdef __linux__
    // In a forked process, OpenMP would wait for threads that exist only in the parent.
    if (getpid() != first_process) return;
    find(start_, "GOMP_parallel");  // also exported by the runtimes of LLVM and Intel
    find(own_number_, "omp_get_thread_num");
    find(number_, "omp_get_num_threads");
#endif
  }

  bool found() const { return start_ && own_number_ && number_; }

  // Calls work(i) for each i from 0 to `ranges`.
  template <class Work>
  void run(int64_t ranges, const Work& work) const {
    struct Call {
      const SharedThreads& threads;
      int64_t ranges;
      const Work& work;
    } call{*this, ranges, work};
    const auto member = [](void* data) {
      const Call& call = *static_cast<const Call*>(data);
      // There may be fewer threads than requested.
      const int number = call.threads.number_();
      for (int64_t i = call.threads.own_number_(); i < call.ranges; i += number) call.work(i);
    };
    start_(member, &call, static_cast<unsigned>(ranges), 0);
  }

 private:
#ifdef __linux__
  template <class Function>
  static void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  }
#endif
  void (*start_)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*own_number_)() = nullptr;
  int (*number_)() = nullptr;
};

// Calls work(from, to) on consecutive ranges that cover 0..items.
template <class Work>
void parallel(int64_t items, int threads, const Work& work) {
  const int64_t ranges = std::max<int64_t>(1, std::min<int64_t>(threads, items));
  const auto range = [&work, items, ranges](int64_t i) {
    work(items * i / ranges, items * (i + 1) / ranges);
  };
  if (ranges == 1) return range(0);
  const SharedThreads shared;
  if (shared.found()) return shared.run(ranges, range);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < ranges; ++i) others.emplace_back(range, i);
  range(0);
  for (auto& other : others) other.join();
}

}  // namespace retinakit
