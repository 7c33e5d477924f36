// SPDX-License-Identifier: Apache-2.0
// The tile kernel of linear layers (linear_tile.h), written once; tile_*.cc compile it for one instruction set each.
#pragma once

#include <cstddef>

#include "linear_tile.h"
#include "multiply.h"

namespace samq {
namespace {

// Sums of row `row` and the panel at `column` -> out or codes.
SAMQ_INLINE void finish(const LinearJob& job, int64_t row, int64_t column, Panel<Ints> sums) {
  const int64_t count = job.columns - column < kPanel ? job.columns - column : kPanel;
  const int64_t at = row * job.columns + column;
  const Floats low = to_floats(sums.low) * load(job.scale + column);
  const Floats high = to_floats(sums.high) * load(job.scale + column + kLanes);
  if (job.out != nullptr) {
    float line[kPanel];
    const bool whole = count == kPanel;
    float* const to = whole ? job.out + at : line;
    store(to, whole && job.residual != nullptr ? low + load(job.residual + at) : low);
    store(to + kLanes, whole && job.residual != nullptr ? high + load(job.residual + at + kLanes) : high);
    if (!whole)
      for (int64_t i = 0; i < count; ++i)
        job.out[at + i] = job.residual != nullptr ? line[i] + job.residual[at + i] : line[i];
    return;
  }
  int32_t line[kPanel];
  store_ints(line, to_code(low + load(job.zero + column), job.largest_code));
  store_ints(line + kLanes, to_code(high + load(job.zero + column + kLanes), job.largest_code));
  uint8_t* const codes = job.codes + at;
  if (job.table != nullptr)
    for (int64_t i = 0; i < count; ++i) codes[i] = job.table[line[i]];
  else
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(line[i]);
}

// Rows of x are multiplied where they are, unless they have to be spread to 16 bits or filled to whole groups.
bool in_place(const LinearJob& job) { return job.w.form != Form::kPairs && job.w.depth == job.depth; }

size_t linear_scratch(const LinearJob& job) {
  return in_place(job) ? 0 : static_cast<size_t>(kLinearRows * job.w.depth) * sizeof(int16_t);
}

template <class T>
SAMQ_INLINE const void* spread(const LinearJob& job, const uint8_t* x, int64_t rows, T* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < job.depth; ++i) to[r * job.w.depth + i] = x[r * job.depth + i];
    for (int64_t i = job.depth; i < job.w.depth; ++i) to[r * job.w.depth + i] = 0;
  }
  return to;
}

void linear_tile(const LinearJob& job, int64_t first_row, int64_t rows, void* scratch) {
  const void* x = job.x + first_row * job.depth;
  const int64_t row = job.w.form == Form::kPairs ? job.w.depth * 2 : job.w.depth;  // bytes
  if (job.w.form == Form::kPairs)
    x = spread(job, static_cast<const uint8_t*>(x), rows, static_cast<int16_t*>(scratch));
  else if (!in_place(job))
    x = spread(job, static_cast<const uint8_t*>(x), rows, static_cast<uint8_t*>(scratch));
  for (int64_t column = 0; column < job.columns; column += kPanel)
    in_register_tiles(rows, [&](auto count, int64_t r) {
      multiply<decltype(count)::value>(
          static_cast<const char*>(x) + r * row, job.w.depth, job.w, column, 0, job.depth,
          [&](int) __attribute__((always_inline)) { return load_panel(job.bias + column); },
          [&](int i, Panel<Ints> sums)
              __attribute__((always_inline)) { finish(job, first_row + r + i, column, sums); });
    });
}

}  // namespace
}  // namespace samq
