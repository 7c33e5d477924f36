// SPDX-License-Identifier: Apache-2.0
// Register tiles: a few rows of one operand times one packed panel (pack.h) of the other.
#pragma once

#include "simd.h"

namespace samq {
namespace {

constexpr int64_t kRegisterRows = 6;  // rows that a register tile holds: 12 accumulators of 16 registers

constexpr int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// c [R][panel] (+)= a [R][depth] . b [depth][panel]
template <int R>
SAMQ_INLINE void multiply(const float* a, int64_t lda, const float* b, int64_t depth, float* c, int64_t ldc, bool add) {
  Floats low[R], high[R];
  for (int r = 0; r < R; ++r) {
    low[r] = add ? load(c + r * ldc) : Floats{};
    high[r] = add ? load(c + r * ldc + kLanes) : Floats{};
  }
  for (int64_t i = 0; i < depth; ++i, b += kPanel) {
    const Floats b_low = load(b), b_high = load(b + kLanes);
    for (int r = 0; r < R; ++r) {
      const Floats x = splat(a[r * lda + i]);
      low[r] = multiply_add(x, b_low, low[r]);
      high[r] = multiply_add(x, b_high, high[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    store(c + r * ldc, low[r]);
    store(c + r * ldc + kLanes, high[r]);
  }
}

// c [R][panel] = a [R][pairs][2] . b [pairs][panel][2], exact
template <int R>
SAMQ_INLINE void multiply(const int16_t* a, int64_t lda, const int16_t* b, int64_t pairs, int32_t* c, int64_t ldc, bool) {
  Ints low[R] = {}, high[R] = {};
  for (int64_t i = 0; i < pairs; ++i, b += 2 * kPanel) {
    const Ints b_low = load_ints(b), b_high = load_ints(b + 2 * kLanes);
    for (int r = 0; r < R; ++r) {
      const Ints x = splat_int(*reinterpret_cast<const IntInMemory*>(a + r * lda + 2 * i));
      low[r] = add_pair_products(low[r], x, b_low);
      high[r] = add_pair_products(high[r], x, b_high);
    }
  }
  for (int r = 0; r < R; ++r) {
    store_ints(c + r * ldc, low[r]);
    store_ints(c + r * ldc + kLanes, high[r]);
  }
}

// All rows of one panel, in groups of kRegisterRows.
template <class In, class Out>
SAMQ_INLINE void multiply_rows(int64_t rows, const In* a, int64_t lda, const In* b, int64_t depth, Out* c, int64_t ldc,
                               bool add = false) {
  for (; rows >= kRegisterRows; rows -= kRegisterRows, a += kRegisterRows * lda, c += kRegisterRows * ldc)
    multiply<kRegisterRows>(a, lda, b, depth, c, ldc, add);
  switch (rows) {
    case 5: return multiply<5>(a, lda, b, depth, c, ldc, add);
    case 4: return multiply<4>(a, lda, b, depth, c, ldc, add);
    case 3: return multiply<3>(a, lda, b, depth, c, ldc, add);
    case 2: return multiply<2>(a, lda, b, depth, c, ldc, add);
    case 1: return multiply<1>(a, lda, b, depth, c, ldc, add);
    default: return;
  }
}

}  // namespace
}  // namespace samq
