// A sparse matrix in compressed rows.
#pragma once

#include <cstdint>

namespace retinakit {

// Row r has weight[i] at column index[i], for i from start[r] to start[r + 1] - 1.
struct SparseRows {
  int64_t rows;
  const int64_t* start;
  const int32_t* index;
  const float* weight;
};

}  // namespace retinakit
