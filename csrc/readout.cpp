#include "readout.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>

#include "chunks.h"
#include "parallel.h"
#include "simd.h"
#include "take.h"

// GCC has this since version 12, and Clang in all versions.
#define SHUFFLE __builtin_shufflevector

namespace retinakit {

namespace {

constexpr int64_t kLanes = 8;    // consecutive samples of the batch, a group
constexpr int64_t kColumns = 8;  // per tile; a column is one channel of one group
constexpr int64_t kBlock = 64;   // positions that are transposed together in the L1 cache
constexpr int64_t kMany = 25;    // a matrix is read in chunks if one in kMany entries is not 0
constexpr int64_t kAhead = 128;  // positions that are prefetched ahead of packing
constexpr int64_t kSlabBytes = 4 << 20;  // of tiles, if several threads share them

using Lanes = Vector<float, kLanes * sizeof(float)>;

constexpr int64_t kTileBytes = 400 << 10;  // largest size of a tile, for the L2 cache

// The values of a tile at one position, or of one slot: (column, lane).
template <int Columns>
struct alignas(64) Some {
  float value[Columns * kLanes];
};
using Row = Some<kColumns>;

// Memory that is not initialised.
template <class T>
std::unique_ptr<T[]> allocate(int64_t size) {
  return std::unique_ptr<T[]>(new T[size]);
}

// The masks and weights of the slots, in the order in which the entries are processed.
struct Slots {
  int64_t number;
  SparseRows masks;      // (slot, position) or (position, slot)
  const float* weights;  // (slot, channel)
  const int64_t* neurons;
};

// Copies the values and weights of the neurons in the order of the slots.
class PackedSlots {
 public:
  PackedSlots(const Readers& readers, int64_t channels, int threads)
      : weights_(allocate<float>(readers.number * channels)) {
    parallel(readers.number, threads, [&](int64_t from, int64_t to) {
      for (int64_t channel = 0; channel < channels; ++channel) {
        const float* of_channel = readers.feature_weights + channel * readers.number;
        for (int64_t slot = from; slot < to; ++slot) {
          weights_[slot * channels + channel] = of_channel[readers.neurons[slot]];
        }
      }
    });
    const float* values = readers.values;
    if (readers.order) {
      const int64_t entries = readers.start[readers.rows];
      values_ = allocate<float>(entries);
      take(values, readers.order, entries, values_.get(), threads);
      values = values_.get();
    }
    slots_ = {readers.number,
              {readers.rows, readers.start, readers.index, values},
              weights_.get(),
              readers.neurons};
  }

  const Slots& slots() const { return slots_; }

 private:
  std::unique_ptr<float[]> values_, weights_;
  Slots slots_;
};

int64_t groups_of(const FeatureShape& shape) { return (shape.batch + kLanes - 1) / kLanes; }

RETINAKIT_INLINE Lanes& lanes(float* at) { return *reinterpret_cast<Lanes*>(at); }
RETINAKIT_INLINE const Lanes& lanes(const float* at) {
  return *reinterpret_cast<const Lanes*>(at);
}

RETINAKIT_INLINE void transpose(Lanes (&row)[8]) {
  Lanes two[8], four[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    two[i] = SHUFFLE(row[i], row[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    two[i + 1] = SHUFFLE(row[i], row[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const Lanes &a = two[i + j], &b = two[i + j + 2];
      four[i + 2 * j] = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      four[i + 2 * j + 1] = SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    row[i] = SHUFFLE(four[i], four[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    row[i + 4] = SHUFFLE(four[i], four[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// The sums of eight vectors.
RETINAKIT_INLINE void sums(const Lanes (&of)[8], Lanes& result) {
  Lanes two[4], four[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    two[i] = SHUFFLE(of[2 * i], of[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14) +
             SHUFFLE(of[2 * i], of[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    four[i] = SHUFFLE(two[2 * i], two[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14) +
              SHUFFLE(two[2 * i], two[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
  }
  result = SHUFFLE(four[0], four[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           SHUFFLE(four[0], four[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

// The column of index `column` among all columns.
struct Column {
  int64_t group, channel;

  Column(int64_t column, const FeatureShape& shape)
      : group(column / shape.channels), channel(column % shape.channels) {}

  // Whether the next column belongs to the next group.
  RETINAKIT_INLINE bool next(const FeatureShape& shape) {
    if (++channel < shape.channels) return false;
    channel = 0;
    ++group;
    return true;
  }
};

// Packs the features of `width` columns from `first` on, for positions from `begin` to `end`.
// Samples beyond the batch and columns beyond the width are 0.
template <int Columns>
RETINAKIT_INLINE void pack(const float* features, const FeatureShape& shape, const float* zeros,
                           int64_t first, int64_t width, int64_t begin, int64_t end,
                           Some<Columns>* rows) {
  Column column(first, shape);
  for (int64_t i = 0; i < Columns; ++i, column.next(shape)) {
    const float* sample[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t b = column.group * kLanes + lane;
      const bool there = i < width && b < shape.batch;
      sample[lane] =
          there ? features + (b * shape.channels + column.channel) * shape.positions : zeros;
    }
    int64_t p = begin;
    for (; p + kLanes <= end; p += kLanes) {
      if (p % (2 * kLanes) == 0) {
        for (int64_t lane = 0; lane < kLanes; ++lane) __builtin_prefetch(sample[lane] + p + kAhead);
      }
      Lanes square[kLanes];
#pragma GCC unroll 8
      for (int lane = 0; lane < kLanes; ++lane) square[lane] = lanes(sample[lane] + p);
      transpose(square);
#pragma GCC unroll 8
      for (int j = 0; j < kLanes; ++j) lanes(rows[p + j].value + i * kLanes) = square[j];
    }
    for (; p < end; ++p) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        rows[p].value[i * kLanes + lane] = sample[lane][p];
      }
    }
  }
}

// The inverse of packing, from rows that begin at position `begin`.
RETINAKIT_INLINE void unpack(const Row* rows, const FeatureShape& shape, int64_t first,
                             int64_t width, int64_t begin, int64_t end, float* features) {
  Column column(first, shape);
  for (int64_t i = 0; i < width; ++i, column.next(shape)) {
    const int64_t samples = std::min(kLanes, shape.batch - column.group * kLanes);
    float* to = features +
                (column.group * kLanes * shape.channels + column.channel) * shape.positions + begin;
    const int64_t pitch = shape.channels * shape.positions, number = end - begin;
    int64_t p = 0;
    for (; p + kLanes <= number; p += kLanes) {
      Lanes square[kLanes];
#pragma GCC unroll 8
      for (int j = 0; j < kLanes; ++j) square[j] = lanes(rows[p + j].value + i * kLanes);
      transpose(square);
      for (int64_t lane = 0; lane < samples; ++lane) lanes(to + lane * pitch + p) = square[lane];
    }
    for (; p < number; ++p) {
      for (int64_t lane = 0; lane < samples; ++lane) {
        to[lane * pitch + p] = rows[p].value[i * kLanes + lane];
      }
    }
  }
}

// The rows that the gradients of a slot need in a tile.
struct Part {
  Row outer;  // the gradient of the output times the weights
  Row under;  // the sum of the rows under the mask
};

// Adds the scalar products of `Number` <= 8 rows with part.outer to `products`, and the rows times
// the weights to part.under.
template <int Number>
RETINAKIT_INLINE void add_entries(const Row* rows, const int32_t* index, const float* weight,
                                  Part& part, float* products) {
  constexpr int kSome = std::min(Number, 4);  // rows that fit the registers
  Lanes product[8] = {};
#pragma GCC unroll 2
  for (int some = 0; some < Number; some += kSome) {
    const float* row[kSome];
#pragma GCC unroll 4
    for (int i = 0; i < kSome; ++i) {
      row[i] = rows[index[some + i]].value;
    }
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      const Lanes outer = lanes(part.outer.value + j * kLanes);
      Lanes under = lanes(part.under.value + j * kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kSome; ++i) {
        const Lanes at = lanes(row[i] + j * kLanes);
        product[some + i] += outer * at;
        under += weight[some + i] * at;
      }
      lanes(part.under.value + j * kLanes) = under;
    }
  }
  Lanes total;
  sums(product, total);
#pragma GCC unroll 8
  for (int i = 0; i < Number; ++i) products[i] += total[i];
}

// Writes the outputs (slot, lane) of a group, and resets them to 0.
RETINAKIT_INLINE void write_outputs(float* outputs, const FeatureShape& shape, const Slots& slots,
                                    int64_t group, float* out) {
  const int64_t number = slots.number;
  const int64_t samples = std::min(kLanes, shape.batch - group * kLanes);
  out += group * kLanes * number;
  for (int64_t slot = 0; slot < number; ++slot, outputs += kLanes) {
    float* to = out + slots.neurons[slot];
    for (int64_t lane = 0; lane < samples; ++lane) to[lane * number] = outputs[lane];
    lanes(outputs) = Lanes{};
  }
}

// The chunks of a matrix, if at least one in `many` entries is not 0.
std::optional<Chunks> chunks_of(const SparseRows& matrix, int64_t columns, int64_t many,
                                const Blocks& blocks, int threads) {
  if (matrix.start[matrix.rows] * many < matrix.rows * columns) return std::nullopt;
  return std::optional<Chunks>(std::in_place, matrix, columns, blocks, threads);
}

// For each matrix row of a block, the sum over its entries of weight times the row in `rows`.
template <int Columns>
RETINAKIT_INLINE void sum_block(const Some<Columns>* rows, const SparseRows& matrix,
                                const Blocks& blocks, const Chunks* chunks, int64_t block,
                                Some<Columns>* sums) {
  const int64_t begin = blocks.begin(block), end = blocks.end(block);
  if (!chunks) {
    for (int64_t row = begin; row < end; ++row) {
      Lanes sum[Columns] = {};
      for (int64_t i = matrix.start[row]; i < matrix.start[row + 1]; ++i) {
        const float* at = rows[matrix.index[i]].value;
        const Lanes weight = matrix.weight[i] - Lanes{};
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) sum[j] += weight * lanes(at + j * kLanes);
      }
#pragma GCC unroll 8
      for (int j = 0; j < Columns; ++j) lanes(sums[row - begin].value + j * kLanes) = sum[j];
    }
    return;
  }
  std::fill_n(sums, end - begin, Some<Columns>{});
  for (int64_t i = chunks->begin(block); i < chunks->end(block); ++i) {
    const Chunks::Chunk& chunk = (*chunks)[i];
    float* at = sums[chunk.row].value;
    Lanes sum[Columns];
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) sum[j] = lanes(at + j * kLanes);
#pragma GCC unroll 8
    for (int k = 0; k < Chunks::kEntries; ++k) {
      const float* row = rows[chunk.index[k]].value;
      const Lanes weight = chunk.weight[k] - Lanes{};
#pragma GCC unroll 8
      for (int j = 0; j < Columns; ++j) sum[j] += weight * lanes(row + j * kLanes);
    }
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) lanes(at + j * kLanes) = sum[j];
  }
}

// Computes the output of the groups from `from` to `to`.
template <int Columns>
RETINAKIT_INLINE void group_outputs(const float* features, const FeatureShape& shape,
                                    const Slots& slots, const Chunks* chunks, int64_t from,
                                    int64_t to, float* out) {
  const int64_t number = slots.number, end = to * shape.channels;
  const auto zeros = std::make_unique<float[]>(shape.positions);
  const auto rows = allocate<Some<Columns>>(shape.positions);
  const Blocks blocks(number);
  Some<Columns> sums[Blocks::kMost];
  // A ring of outputs (group, slot, lane), for the groups that one tile can have.
  const int64_t held = (Columns - 2) / shape.channels + 2;
  const auto outputs = std::make_unique<float[]>(held * number * kLanes);
  const auto outputs_of = [&](int64_t group) {
    return outputs.get() + group % held * number * kLanes;
  };
  for (int64_t first = from * shape.channels; first < end; first += Columns) {
    const int64_t width = std::min<int64_t>(Columns, end - first);
    float* output[Columns];
    int64_t channel[Columns];
    Column column(first, shape);
    for (int64_t i = 0; i < width; ++i, column.next(shape)) {
      output[i] = outputs_of(column.group);
      channel[i] = column.channel;
    }
    for (int64_t begin = 0; begin < shape.positions; begin += kBlock) {
      pack(features, shape, zeros.get(), first, width, begin,
           std::min(begin + kBlock, shape.positions), rows.get());
    }
    for (int64_t block = 0; block < blocks.number(); ++block) {
      sum_block(rows.get(), slots.masks, blocks, chunks, block, sums);
      for (int64_t slot = blocks.begin(block); slot < blocks.end(block); ++slot) {
        const float* sum = sums[slot - blocks.begin(block)].value;
        const float* weights = slots.weights + slot * shape.channels;
        Lanes total = lanes(output[0] + slot * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < Columns; ++i) {
          if (i == width) break;
          if (i > 0 && output[i] != output[i - 1]) {
            lanes(output[i - 1] + slot * kLanes) = total;
            total = lanes(output[i] + slot * kLanes);
          }
          total += weights[channel[i]] * lanes(sum + i * kLanes);
        }
        lanes(output[width - 1] + slot * kLanes) = total;
      }
    }
    for (int64_t group = first / shape.channels; group < column.group; ++group) {
      write_outputs(outputs_of(group), shape, slots, group, out);
    }
  }
}

// The columns of a tile: the offset of the first slot in the gradient of the output (group, slot,
// lane), and the channel.
struct Tile {
  int64_t width, gradient[kColumns], channel[kColumns];
  bool one_group;  // and consecutive channels

  Tile(int64_t first, int64_t width, const FeatureShape& shape, int64_t slots) : width(width) {
    Column column(first, shape);
    one_group = width == kColumns && column.channel + kColumns <= shape.channels;
    for (int64_t i = 0; i < width; ++i, column.next(shape)) {
      gradient[i] = column.group * slots * kLanes;
      channel[i] = column.channel;
    }
  }
};

// The gradient of the output of a slot times its weights, for each column.
RETINAKIT_INLINE void outer_product(const Tile& tile, const float* gradient, const float* weights,
                                    Row& outer) {
  if (tile.width == kColumns) {
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) {
      lanes(outer.value + i * kLanes) =
          weights[tile.channel[i]] * lanes(gradient + tile.gradient[i]);
    }
  } else {
    for (int64_t i = 0; i < kColumns; ++i) {
      const bool there = i < tile.width;
      lanes(outer.value + i * kLanes) =
          there ? weights[tile.channel[i]] * lanes(gradient + tile.gradient[i]) : Lanes{};
    }
  }
}

// Adds the contribution of a tile to the gradient of the weights of a slot, from the sum of the
// features under the mask.
RETINAKIT_INLINE void add_weight_gradient(const Tile& tile, const Row& under,
                                          const float* gradient, float* of_weights) {
  Lanes product[kColumns], total;
#pragma GCC unroll 8
  for (int j = 0; j < kColumns; ++j) {
    const Lanes of_output = j < tile.width ? lanes(gradient + tile.gradient[j]) : Lanes{};
    product[j] = of_output * lanes(under.value + j * kLanes);
  }
  sums(product, total);
  if (tile.one_group) {
    lanes(of_weights + tile.channel[0]) += total;
  } else {
    for (int64_t j = 0; j < tile.width; ++j) of_weights[tile.channel[j]] += total[j];
  }
}

// Adds the contribution of one tile to the gradients of the slots of some blocks. With chunks, the
// gradient of the masks is (chunk, entry).
RETINAKIT_INLINE void add_slot_gradients(const Row* rows, const FeatureShape& shape,
                                         const Slots& slots, const Blocks& blocks,
                                         const Chunks* chunks, const float* gradient,
                                         int64_t first, int64_t width, int64_t from, int64_t to,
                                         float* mask_gradient, float* weight_gradient) {
  const Tile tile(first, width, shape, slots.number);
  const SparseRows& masks = slots.masks;
  const auto start = [&](int64_t slot, Part& part) {
    const float* weights = slots.weights + slot * shape.channels;
    outer_product(tile, gradient + slot * kLanes, weights, part.outer);
    part.under = Row{};
  };
  const auto finish = [&](int64_t slot, const Row& under) {
    add_weight_gradient(tile, under, gradient + slot * kLanes,
                        weight_gradient + slot * shape.channels);
  };
  for (int64_t block = from; block < to; ++block) {
    const int64_t begin = blocks.begin(block), end = blocks.end(block);
    if (!mask_gradient) {
      Row under[Blocks::kMost];
      sum_block(rows, masks, blocks, chunks, block, under);
      for (int64_t slot = begin; slot < end; ++slot) finish(slot, under[slot - begin]);
      continue;
    }
    if (chunks) {
      Part parts[Blocks::kMost];
      for (int64_t slot = begin; slot < end; ++slot) start(slot, parts[slot - begin]);
      for (int64_t i = chunks->begin(block); i < chunks->end(block); ++i) {
        const Chunks::Chunk& chunk = (*chunks)[i];
        add_entries<Chunks::kEntries>(rows, chunk.index, chunk.weight, parts[chunk.row],
                                      mask_gradient + i * Chunks::kEntries);
      }
      for (int64_t slot = begin; slot < end; ++slot) finish(slot, parts[slot - begin].under);
      continue;
    }
    for (int64_t slot = begin; slot < end; ++slot) {
      Part part;
      start(slot, part);
      int64_t i = masks.start[slot];
      const auto add = [&](auto number) {
        constexpr int kNumber = decltype(number)::value;
        for (; i + kNumber <= masks.start[slot + 1]; i += kNumber) {
          add_entries<kNumber>(rows, masks.index + i, masks.weight + i, part, mask_gradient + i);
        }
      };
      add(std::integral_constant<int, 8>());
      add(std::integral_constant<int, 4>());
      add(std::integral_constant<int, 1>());
      finish(slot, part.under);
    }
  }
}

// Computes the gradient of the features of one tile. `outer` has room for every slot.
RETINAKIT_INLINE void tile_feature_gradient(const FeatureShape& shape, const Slots& slots,
                                            const Chunks* chunks, const float* gradient,
                                            int64_t first, int64_t width, Row* outer,
                                            float* feature_gradient) {
  const Tile tile(first, width, shape, slots.number);
  for (int64_t slot = 0; slot < slots.number; ++slot) {
    const float* weights = slots.weights + slot * shape.channels;
    outer_product(tile, gradient + slot * kLanes, weights, outer[slot]);
  }
  const Blocks blocks(shape.positions);
  Row sums[Blocks::kMost];
  for (int64_t block = 0; block < blocks.number(); ++block) {
    sum_block(outer, slots.masks, blocks, chunks, block, sums);
    unpack(sums, shape, first, width, blocks.begin(block), blocks.end(block), feature_gradient);
  }
}

#ifdef RETINAKIT_X86
template <auto Work, class... Arguments>
RETINAKIT_TARGET("avx2,fma")
void run_256(Arguments... arguments) {
  Work(arguments...);
}
#endif

// Calls the version of a function above that is compiled for the vectors of this processor.
template <auto Work, class... Arguments>
void run(Arguments... arguments) {
#ifdef RETINAKIT_X86
  if (vector_bits() >= 256) return run_256<Work>(arguments...);
#endif
  Work(arguments...);
}

// The gradient (batch, neuron) as (group, slot, lane).
std::unique_ptr<float[]> pack_gradient(const float* gradient, const FeatureShape& shape,
                                       const Slots& slots, int threads) {
  const FeatureShape neurons{shape.batch, 1, slots.number};
  auto packed = allocate<float>(groups_of(shape) * slots.number * kLanes);
  parallel(groups_of(shape), threads, [&](int64_t from, int64_t to) {
    const auto zeros = std::make_unique<float[]>(slots.number);
    const auto rows = allocate<Some<1>>(slots.number);
    for (int64_t group = from; group < to; ++group) {
      run<pack<1>>(gradient, neurons, static_cast<const float*>(zeros.get()), group, int64_t{1},
                   int64_t{0}, slots.number, rows.get());
      float* at = packed.get() + group * slots.number * kLanes;
      for (int64_t slot = 0; slot < slots.number; ++slot) {
        lanes(at + slot * kLanes) = lanes(rows[slots.neurons[slot]].value);
      }
    }
  });
  return packed;
}

}  // namespace

void readout(const float* features, const FeatureShape& shape, const Readers& readers,
             float* out, int threads) {
  const PackedSlots packed(readers, shape.channels, threads);
  const Slots& slots = packed.slots();
  const bool fits = shape.positions * static_cast<int64_t>(sizeof(Row)) <= kTileBytes;
  const auto chunks = chunks_of(slots.masks, shape.positions, fits ? kMany : kMany / 2,
                                Blocks(slots.number), threads);
  const Chunks* used = chunks ? &*chunks : nullptr;
  // Half as many columns need more steps, but columns outside the L2 cache take longer.
  const bool whole = used || fits;
  parallel(groups_of(shape), threads, [&](int64_t from, int64_t to) {
    if (whole) {
      run<group_outputs<kColumns>>(features, shape, slots, used, from, to, out);
    } else {
      run<group_outputs<kColumns / 2>>(features, shape, slots, used, from, to, out);
    }
  });
}

void readout_slot_gradients(const float* features, const FeatureShape& shape,
                            const Readers& readers, const float* gradient, float* of_values,
                            float* of_weights, int threads) {
  const PackedSlots packed(readers, shape.channels, threads);
  const Slots& slots = packed.slots();
  const int64_t number = slots.number, columns = groups_of(shape) * shape.channels;
  const int64_t entries = of_values ? slots.masks.start[number] : 0;
  const auto value_gradient = std::make_unique<float[]>(entries);
  const auto weight_gradient = std::make_unique<float[]>(number * shape.channels);
  // At least one per thread.
  const Blocks blocks(number, std::clamp<int64_t>(number / threads, 1, Blocks::kMost));
  const auto chunks = chunks_of(slots.masks, shape.positions, kMany, blocks, threads);
  const Chunks* used = chunks ? &*chunks : nullptr;
  const bool in_chunks = used && of_values;
  const auto of_chunks =
      std::make_unique<float[]>(in_chunks ? chunks->number() * Chunks::kEntries : 0);
  float* of_masks = !of_values ? nullptr : in_chunks ? of_chunks.get() : value_gradient.get();
  const auto packed_gradient = pack_gradient(gradient, shape, slots, threads);
  const auto zeros = std::make_unique<float[]>(shape.positions);
  // With one thread, the packed tile is still in the L2 cache.
  const int64_t tile_bytes = std::max<int64_t>(1, shape.positions * sizeof(Row));
  const int64_t tiles = threads > 1 ? std::max<int64_t>(1, kSlabBytes / tile_bytes) : 1;
  const auto rows = allocate<Row>(std::min(tiles, columns) * shape.positions);
  for (int64_t slab = 0; slab < columns; slab += tiles * kColumns) {
    const int64_t end = std::min(slab + tiles * kColumns, columns);
    parallel((end - slab + kColumns - 1) / kColumns, threads, [&](int64_t from, int64_t to) {
      for (int64_t tile = from; tile < to; ++tile) {
        const int64_t first = slab + tile * kColumns;
        for (int64_t begin = 0; begin < shape.positions; begin += kBlock) {
          run<pack<kColumns>>(features, shape, static_cast<const float*>(zeros.get()), first,
                              std::min(kColumns, end - first), begin,
                              std::min(begin + kBlock, shape.positions),
                              rows.get() + tile * shape.positions);
        }
      }
    });
    parallel(blocks.number(), threads, [&](int64_t from, int64_t to) {
      for (int64_t first = slab; first < end; first += kColumns) {
        const Row* tile = rows.get() + (first - slab) / kColumns * shape.positions;
        run<add_slot_gradients>(tile, shape, slots, blocks, used,
                                static_cast<const float*>(packed_gradient.get()), first,
                                std::min(kColumns, end - first), from, to, of_masks,
                                weight_gradient.get());
      }
    });
  }
  if (in_chunks) chunks->by_entry(of_chunks.get(), value_gradient.get(), threads);
  parallel(entries, threads, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) of_values[readers.order[i]] = value_gradient[i];
  });
  parallel(number, threads, [&](int64_t from, int64_t to) {
    for (int64_t channel = 0; channel < shape.channels; ++channel) {
      float* of_channel = of_weights + channel * number;
      for (int64_t slot = from; slot < to; ++slot) {
        of_channel[slots.neurons[slot]] = weight_gradient[slot * shape.channels + channel];
      }
    }
  });
}

void readout_feature_gradient(const FeatureShape& shape, const Readers& readers,
                              const float* gradient, float* of_features, int threads) {
  const PackedSlots packed(readers, shape.channels, threads);
  const Slots& slots = packed.slots();
  const int64_t number = slots.number, columns = groups_of(shape) * shape.channels;
  const auto packed_gradient = pack_gradient(gradient, shape, slots, threads);
  const auto chunks = chunks_of(slots.masks, number, kMany, Blocks(shape.positions), threads);
  const Chunks* used = chunks ? &*chunks : nullptr;
  parallel((columns + kColumns - 1) / kColumns, threads, [&](int64_t from, int64_t to) {
    const auto outer = allocate<Row>(number);
    for (int64_t tile = from; tile < to; ++tile) {
      run<tile_feature_gradient>(shape, slots, used,
                                 static_cast<const float*>(packed_gradient.get()), tile * kColumns,
                                 std::min(kColumns, columns - tile * kColumns), outer.get(),
                                 of_features);
    }
  });
}

}  // namespace retinakit
