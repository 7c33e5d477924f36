// SPDX-License-Identifier: Apache-2.0
// The tile kernel of layer norms (layer_norm_tile.h), written once; tile_*.cc compile it for one instruction set each.
#pragma once

#include <cmath>

#include "layer_norm_tile.h"
#include "simd.h"

namespace samq {
namespace {

// A row is added up in so many parts: element i goes to part i % kParts, and the parts are added as a tree. They are as
// many on every CPU, so that all get the same sums, and enough that additions do not wait for each other.
constexpr int64_t kParts = 16;

template <int64_t Count>
SAMQ_INLINE double tree_sum(const double* x) {
  if constexpr (Count == 1)
    return *x;
  else
    return tree_sum<Count / 2>(x) + tree_sum<Count / 2>(x + Count / 2);
}

// The sum of term(x) over a row, in double.
template <class Term>
SAMQ_INLINE double row_sum(const float* x, int64_t count, const Term& term) {
  Doubles sums[kParts / kDoubleLanes] = {};
  int64_t i = 0;
  for (; i + kParts <= count; i += kParts)
    for (int64_t part = 0; part < kParts; part += kDoubleLanes)
      sums[part / kDoubleLanes] += term(load_doubles(x + i + part));
  double parts[kParts];
  for (int64_t part = 0; part < kParts; part += kDoubleLanes) store(parts + part, sums[part / kDoubleLanes]);
  for (; i < count; ++i) parts[i % kParts] += term(static_cast<double>(x[i]));
  return tree_sum<kParts>(parts);
}

// The codes of a panel of a row.
SAMQ_INLINE void norm_panel(const LayerNormJob& job, const float* x, int64_t column, float mean, float inv,
                            uint8_t* codes) {
  const auto code = [&](int64_t from) __attribute__((always_inline)) {
    const Floats normed = (load(x + from) - mean) * inv;
    const Floats steps = normed * load(job.gain + column + from) + load(job.offset + column + from);
    return smaller(larger(steps, Floats{}), splat(job.largest_code));
  };
  store_halves(codes, to_halves(code(0), code(kLanes)));
}

void layer_norm_tile(const LayerNormJob& job, int64_t first_row, int64_t rows) {
  const auto count = static_cast<double>(job.columns);
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    const float* const x = job.x + row * job.columns;
    uint8_t* const codes = job.codes + row * job.columns;
    const double sum = row_sum(x, job.columns, [](auto value) __attribute__((always_inline)) { return value; });
    const double mean = sum / count;
    const double squares = row_sum(x, job.columns, [mean](auto value) __attribute__((always_inline)) {
      const auto centred = value - mean;
      return centred * centred;
    });
    const auto near_mean = static_cast<float>(mean);
    const auto inv = static_cast<float>(1.0 / std::sqrt(squares / count + job.epsilon));
    int64_t column = 0;
    for (; column + kPanel <= job.columns; column += kPanel)
      norm_panel(job, x + column, column, near_mean, inv, codes + column);
    if (column == job.columns) continue;
    float line[kPanel] = {};
    uint8_t made[kPanel];
    for (int64_t i = column; i < job.columns; ++i) line[i - column] = x[i];
    norm_panel(job, line, column, near_mean, inv, made);
    for (int64_t i = column; i < job.columns; ++i) codes[i] = made[i - column];
  }
}

}  // namespace
}  // namespace samq
