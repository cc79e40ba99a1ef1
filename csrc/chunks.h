// A sparse matrix whose entries are ordered for access from the L1 cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "sparse_rows.h"

namespace retinakit {

// The rows of a matrix in blocks.
struct Blocks {
  static constexpr int64_t kMost = 64;  // rows per block

  int64_t rows, size;

  explicit Blocks(int64_t rows, int64_t size = kMost) : rows(rows), size(size) {}

  int64_t number() const { return (rows + size - 1) / size; }
  int64_t begin(int64_t block) const { return block * size; }
  int64_t end(int64_t block) const { return std::min(begin(block) + size, rows); }
};

// The entries of a matrix by blocks of rows. The entries of a row are divided into chunks, and the
// chunks of a block are ordered by their first columns, so that consecutive chunks access memory
// that is close together. The last chunk of a row is padded with its last entry and weight 0.
class Chunks {
 public:
  static constexpr int kEntries = 8;  // per chunk

  struct Chunk {
    int32_t row;  // within the block
    int32_t index[kEntries];
    float weight[kEntries];
  };

  Chunks(const SparseRows& matrix, int64_t columns, const Blocks& blocks, int threads)
      : matrix_(matrix), blocks_(blocks), start_(blocks.number() + 1) {
    for (int64_t block = 0; block < blocks.number(); ++block) {
      start_[block + 1] = start_[block];
      for (int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
        start_[block + 1] += (matrix.start[row + 1] - matrix.start[row] + kEntries - 1) / kEntries;
      }
    }
    chunks_.resize(start_.back());
    first_.resize(start_.back());
    parallel(blocks.number(), threads, [&](int64_t from, int64_t to) {
      std::vector<int64_t> next(columns + 1);
      for (int64_t block = from; block < to; ++block) sort(block, next);
    });
  }

  int64_t number() const { return start_.back(); }
  int64_t begin(int64_t block) const { return start_[block]; }
  int64_t end(int64_t block) const { return start_[block + 1]; }
  const Chunk& operator[](int64_t chunk) const { return chunks_[chunk]; }

  // Reorders numbers (chunk, kEntries) into the order of the matrix's entries.
  void by_entry(const float* numbers, float* result, int threads) const {
    parallel(blocks_.number(), threads, [=](int64_t from, int64_t to) {
      for (int64_t block = from; block < to; ++block) {
        for (int64_t i = begin(block); i < end(block); ++i) {
          const int64_t row = blocks_.begin(block) + chunks_[i].row;
          const int64_t left = matrix_.start[row + 1] - first_[i];
          std::copy_n(numbers + i * kEntries, std::min<int64_t>(kEntries, left),
                      result + first_[i]);
        }
      }
    });
  }

 private:
  // Fills the chunks of a block. `next` has room for columns + 1 numbers.
  void sort(int64_t block, std::vector<int64_t>& next) {
    const auto each = [&](auto&& work) {
      for (int64_t row = blocks_.begin(block); row < blocks_.end(block); ++row) {
        const int64_t end = matrix_.start[row + 1];
        for (int64_t i = matrix_.start[row]; i < end; i += kEntries) work(row, i, end);
      }
    };
    std::fill(next.begin(), next.end(), 0);
    each([&](int64_t, int64_t i, int64_t) { ++next[matrix_.index[i] + 1]; });
    next[0] = start_[block];
    for (size_t column = 1; column < next.size(); ++column) next[column] += next[column - 1];
    each([&](int64_t row, int64_t i, int64_t end) {
      const int64_t place = next[matrix_.index[i]]++;
      first_[place] = i;
      Chunk& chunk = chunks_[place];
      chunk.row = static_cast<int32_t>(row - blocks_.begin(block));
      for (int j = 0; j < kEntries; ++j) {
        const bool there = i + j < end;
        chunk.index[j] = matrix_.index[there ? i + j : end - 1];
        chunk.weight[j] = there ? matrix_.weight[i + j] : 0.0f;
      }
    });
  }

  SparseRows matrix_;
  Blocks blocks_;
  std::vector<int64_t> start_;  // (block + 1,)
  std::vector<Chunk> chunks_;
  std::vector<int64_t> first_;  // first entry of each chunk
};

}  // namespace retinakit
