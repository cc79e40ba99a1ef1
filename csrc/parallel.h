// Work split over a few threads, each taking one range of the items.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace retinakit {

// Calls work(from, to) on consecutive ranges that cover 0..items.
template <class Work>
void parallel(int64_t items, int threads, const Work& work) {
  const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(threads, items));
  std::vector<std::thread> others;
  for (int64_t i = 1; i < workers; ++i) {
    others.emplace_back([&work, i, items, workers] {
      work(items * i / workers, items * (i + 1) / workers);
    });
  }
  work(0, items / workers);
  for (auto& other : others) other.join();
}

}  // namespace retinakit
