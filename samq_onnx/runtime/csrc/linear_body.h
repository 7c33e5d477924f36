// SPDX-License-Identifier: Apache-2.0
// The tile kernel of linear layers (linear_tile.h), written once; tile_*.cc compile it for one instruction set each.
#pragma once

#include <cstring>

#include "linear_tile.h"
#include "multiply.h"

namespace samq {
namespace {

#if SAMQ_LANES == 4 || defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr WeightForm kWideForm = WeightForm::kQuads;
constexpr bool kHasBytes = false;
#else
constexpr WeightForm kWideForm = WeightForm::kPairs;
constexpr bool kHasBytes = true;
#endif

// Four bytes of x from p, of which `left` are there; the others zero.
SAMQ_INLINE int32_t four_bytes(const uint8_t* p, int64_t left) {
  int32_t bytes = 0;
  std::memcpy(&bytes, p, static_cast<size_t>(left < 4 ? left : 4));
  return bytes;
}

// c [R][panel] = a [R][K] . b [groups][panel][4]; K / 4 whole groups, and one more when K % 4.
template <int R>
SAMQ_INLINE void multiply_quads(const uint8_t* a, int64_t lda, const int8_t* b, int64_t depth, int32_t* c) {
  Ints low[R] = {}, high[R] = {};
  const auto step = [&](const auto& bytes) __attribute__((always_inline)) {
    const Ints b_low = load_ints(b), b_high = load_ints(b + 4 * kLanes);
    b += 4 * kPanel;
    for (int r = 0; r < R; ++r) {
      const Ints x = splat_int(bytes(a + r * lda));
      low[r] = add_quad_products(low[r], x, b_low);
      high[r] = add_quad_products(high[r], x, b_high);
    }
    a += 4;
  };
  for (int64_t i = 0; i < depth / 4; ++i) step([](const uint8_t* p) { return *reinterpret_cast<const IntInMemory*>(p); });
  if (depth % 4) step([depth](const uint8_t* p) { return four_bytes(p, depth % 4); });
  for (int r = 0; r < R; ++r) {
    store_ints(c + r * kPanel, low[r]);
    store_ints(c + r * kPanel + kLanes, high[r]);
  }
}

#if SAMQ_LANES > 4
// The same where sums over `run` groups fit into 16 bits. The 16-bit sums take the registers, c the rest.
template <int R>
SAMQ_INLINE void multiply_bytes(const uint8_t* a, int64_t lda, const int8_t* b, int64_t depth, int64_t run, int32_t* c) {
  const Ints ones = splat_int(0x00010001);
  for (int64_t i = 0; i < R * kPanel; i += kLanes) store_ints(c + i, Ints{});
  const auto add_run = [&](int64_t groups, const auto& bytes) __attribute__((always_inline)) {
    Ints low[R] = {}, high[R] = {};
    for (; groups > 0; --groups, a += 4, b += 4 * kPanel) {
      const Ints b_low = load_ints(b), b_high = load_ints(b + 4 * kLanes);
      for (int r = 0; r < R; ++r) {
        const Ints x = splat_int(bytes(a + r * lda));
        add_byte_products(low[r], x, b_low);
        add_byte_products(high[r], x, b_high);
      }
    }
    for (int r = 0; r < R; ++r) {
      int32_t* const at = c + r * kPanel;
      store_ints(at, add_pair_products(load_ints(at), low[r], ones));
      store_ints(at + kLanes, add_pair_products(load_ints(at + kLanes), high[r], ones));
    }
  };
  const int64_t groups = depth / 4;
  for (int64_t from = 0; from < groups; from += run)
    add_run(from + run < groups ? run : groups - from,
            [](const uint8_t* p) { return *reinterpret_cast<const IntInMemory*>(p); });
  if (depth % 4) add_run(1, [depth](const uint8_t* p) { return four_bytes(p, depth % 4); });
}
#endif

// Rows [0, R) of one panel: sums -> out or codes.
template <int R>
void finish(const LinearJob& job, int64_t first_row, int64_t column, const int32_t* c) {
  const int64_t count = job.columns - column < kPanel ? job.columns - column : kPanel;
  for (int64_t r = 0; r < R; ++r, c += kPanel) {
    Floats y[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t n = column + half * kLanes;
      y[half] = to_floats(load_ints(c + half * kLanes) + load_ints(job.bias + n)) * load(job.scale + n);
    }
    const int64_t at = (first_row + r) * job.columns + column;
    if (job.out != nullptr) {
      if (count == kPanel) {
        store(job.out + at, y[0]);
        store(job.out + at + kLanes, y[1]);
      } else {
        float line[kPanel];
        store(line, y[0]);
        store(line + kLanes, y[1]);
        for (int64_t i = 0; i < count; ++i) job.out[at + i] = line[i];
      }
      continue;
    }
    int32_t line[kPanel];
    for (int half = 0; half < 2; ++half)
      store_ints(line + half * kLanes,
                 to_code(y[half] + load(job.zero + column + half * kLanes), job.largest_code));
    uint8_t* const codes = job.codes + at;
    if (job.table != nullptr)
      for (int64_t i = 0; i < count; ++i) codes[i] = job.table[line[i]];
    else
      for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(line[i]);
  }
}

// One register tile: R rows from first_row on, whose 16-bit form is `spread`, against the panel at `column`.
template <int R>
void linear_rows(const LinearJob& job, int64_t first_row, int64_t column, const int16_t* spread, int64_t lda) {
  int32_t c[R * kPanel];
  const uint8_t* const x = job.x + first_row * job.depth;
  if (job.form == WeightForm::kPairs) {
    const auto* const b = static_cast<const int16_t*>(job.panels) + column * lda;
    multiply<R>(spread, lda, b, lda / 2, c, kPanel, false);
  } else {
    const auto* const b = static_cast<const int8_t*>(job.panels) + column * ((job.depth + 3) / 4 * 4);
#if SAMQ_LANES > 4
    if (job.form == WeightForm::kBytes) {
      multiply_bytes<R>(x, job.depth, b, job.depth, job.run, c);
      return finish<R>(job, first_row, column, c);
    }
#endif
    multiply_quads<R>(x, job.depth, b, job.depth, c);
  }
  finish<R>(job, first_row, column, c);
}

size_t linear_scratch(const LinearJob& job) {
  return job.form == WeightForm::kPairs ? static_cast<size_t>(kLinearRows * padded(job.depth, 2)) * sizeof(int16_t) : 0;
}

void linear_tile(const LinearJob& job, int64_t first_row, int64_t rows, void* scratch) {
  const int64_t lda = padded(job.depth, 2);
  auto* const spread = static_cast<int16_t*>(scratch);
  if (job.form == WeightForm::kPairs)
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* const from = job.x + (first_row + r) * job.depth;
      int16_t* const to = spread + r * lda;
      for (int64_t i = 0; i < job.depth; ++i) to[i] = from[i];
      if (job.depth % 2) to[job.depth] = 0;
    }
  for (int64_t column = 0; column < job.columns; column += kPanel) {
    int64_t r = 0;
    for (; r + kRegisterRows <= rows; r += kRegisterRows)
      linear_rows<kRegisterRows>(job, first_row + r, column, spread + r * lda, lda);
    const int16_t* const rest = spread + r * lda;
    switch (rows - r) {
      case 5: linear_rows<5>(job, first_row + r, column, rest, lda); break;
      case 4: linear_rows<4>(job, first_row + r, column, rest, lda); break;
      case 3: linear_rows<3>(job, first_row + r, column, rest, lda); break;
      case 2: linear_rows<2>(job, first_row + r, column, rest, lda); break;
      case 1: linear_rows<1>(job, first_row + r, column, rest, lda); break;
      default: break;
    }
  }
}

}  // namespace
}  // namespace samq
