// Work split over a few threads, each taking one range of the items.
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

// The OpenMP threads that torch works with, if they can be found. Threads of our own would share
// the cores with those, which go on spinning for a while after each of torch's steps.
class SharedThreads {
 public:
  SharedThreads() {
#ifdef __linux__
    // In a forked process, OpenMP would wait for threads that only the parent has.
    if (getpid() != first_process) return;
    find(start_, "GOMP_parallel");  // GNU's, which the runtimes of LLVM and Intel have too
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
      // They may be fewer than was asked for.
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
