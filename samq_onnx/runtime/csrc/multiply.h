// SPDX-License-Identifier: Apache-2.0
// Register tiles: a few rows of one operand times one packed panel (pack.h) of the other.
#pragma once

#include <type_traits>

#include "packed.h"
#include "simd.h"

namespace samq {
namespace {

constexpr int64_t kRegisterRows = 6;  // rows that a register tile holds: 12 accumulators of 16 registers

// Before a loop over those rows: GCC keeps accumulators in registers only where every loop over them is unrolled early.
#define SAMQ_UNROLLED _Pragma("GCC unroll 6")

constexpr int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// What stands in a row of a register tile: a panel.
template <class Vector>
struct Panel {
  Vector low, high;
};

SAMQ_INLINE Panel<Floats> load_panel(const float* p) { return {load(p), load(p + kLanes)}; }
SAMQ_INLINE Panel<Ints> load_panel(const int32_t* p) { return {load_ints(p), load_ints(p + kLanes)}; }
SAMQ_INLINE void store_panel(float* p, Panel<Floats> x) {
  store(p, x.low);
  store(p + kLanes, x.high);
}
SAMQ_INLINE void store_panel(int32_t* p, Panel<Ints> x) {
  store_ints(p, x.low);
  store_ints(p + kLanes, x.high);
}

// Of every product below: start(r) is the panel that row r begins with, finish(r, panel) takes what it ends with.
// These two add to memory, c [R][panel].
template <class T>
SAMQ_INLINE auto from_memory(const T* c, int64_t ldc) {
  return [=](int r) __attribute__((always_inline)) { return load_panel(c + r * ldc); };
}
template <class T>
SAMQ_INLINE auto to_memory(T* c, int64_t ldc) {
  return [=](int r, auto panel) __attribute__((always_inline)) { store_panel(c + r * ldc, panel); };
}
template <class Vector>
SAMQ_INLINE auto from_zero() {
  return [](int) __attribute__((always_inline)) { return Panel<Vector>{}; };
}

// a [R][depth] . b [depth][panel]
template <int R, class Start, class Finish>
SAMQ_INLINE void multiply(const float* a, int64_t lda, const float* b, int64_t depth, const Start& start,
                          const Finish& finish) {
  Floats low[R], high[R];
  SAMQ_UNROLLED for (int r = 0; r < R; ++r) {
    const Panel<Floats> first = start(r);
    low[r] = first.low;
    high[r] = first.high;
  }
  for (int64_t i = 0; i < depth; ++i, b += kPanel) {
    const Floats b_low = load(b), b_high = load(b + kLanes);
    SAMQ_UNROLLED for (int r = 0; r < R; ++r) {
      const Floats x = splat(a[r * lda + i]);
      low[r] = multiply_add(x, b_low, low[r]);
      high[r] = multiply_add(x, b_high, high[r]);
    }
  }
  SAMQ_UNROLLED for (int r = 0; r < R; ++r) finish(r, Panel<Floats>{low[r], high[r]});
}

// The form that this instruction set multiplies fastest, and whether narrow codes are faster as kBytes.
#if SAMQ_LANES == 4 || defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr Form kWideForm = Form::kQuads;
constexpr bool kHasBytes = false;
#else
constexpr Form kWideForm = Form::kPairs;
constexpr bool kHasBytes = true;
#endif

// a [R][pairs][2] . b [pairs][panel][2], exact
template <int R, class Start, class Finish>
SAMQ_INLINE void multiply(const int16_t* a, int64_t lda, const int16_t* b, int64_t pairs, const Start& start,
                          const Finish& finish) {
  Ints low[R], high[R];
  SAMQ_UNROLLED for (int r = 0; r < R; ++r) {
    const Panel<Ints> first = start(r);
    low[r] = first.low;
    high[r] = first.high;
  }
  for (int64_t i = 0; i < pairs; ++i, b += 2 * kPanel) {
    const Ints b_low = load_ints(b), b_high = load_ints(b + 2 * kLanes);
    SAMQ_UNROLLED for (int r = 0; r < R; ++r) {
      const Ints x = splat_int(*reinterpret_cast<const IntInMemory*>(a + r * lda + 2 * i));
      low[r] = add_pair_products(low[r], x, b_low);
      high[r] = add_pair_products(high[r], x, b_high);
    }
  }
  SAMQ_UNROLLED for (int r = 0; r < R; ++r) finish(r, Panel<Ints>{low[r], high[r]});
}

// a [R][groups][4] . b [groups][panel][4], exact
template <int R, class Start, class Finish>
SAMQ_INLINE void multiply_quads(const uint8_t* a, int64_t lda, const int8_t* b, int64_t groups, const Start& start,
                                const Finish& finish) {
  constexpr int32_t kOffset = kSignedQuads ? 128 : 0;  // that the products go without; made up for at the end
  constexpr auto kOffsets = static_cast<int32_t>(kOffset * 0x01010101u);
  Ints low[R], high[R], sum_low{}, sum_high{};
  SAMQ_UNROLLED for (int r = 0; r < R; ++r) {
    const Panel<Ints> first = start(r);
    low[r] = first.low;
    high[r] = first.high;
  }
  for (; groups > 0; --groups, a += 4, b += 4 * kPanel) {
    const Ints b_low = load_ints(b), b_high = load_ints(b + 4 * kLanes);
    SAMQ_UNROLLED for (int r = 0; r < R; ++r) {
      const Ints x = splat_int(*reinterpret_cast<const IntInMemory*>(a + r * lda)) ^ kOffsets;
      low[r] = add_quad_products(low[r], x, b_low);
      high[r] = add_quad_products(high[r], x, b_high);
    }
    if constexpr (kSignedQuads) {
      sum_low = add_quad_products(sum_low, splat_int(0x01010101), b_low);
      sum_high = add_quad_products(sum_high, splat_int(0x01010101), b_high);
    }
  }
  SAMQ_UNROLLED for (int r = 0; r < R; ++r)
    finish(r, Panel<Ints>{low[r] + sum_low * kOffset, high[r] + sum_high * kOffset});
}

#if SAMQ_LANES > 4
// The same where sums over `run` groups fit into 16 bits; these take the registers, wider ones wait in memory. GCC does
// not see that they are read only after they are written.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
template <int R, class Start, class Finish>
SAMQ_INLINE void multiply_bytes(const uint8_t* a, int64_t lda, const int8_t* b, int64_t groups, int64_t run,
                                const Start& start, const Finish& finish) {
  const Ints ones = splat_int(0x00010001);
  int32_t sums[R * kPanel];
  int64_t from = 0;
  do {
    Ints low[R] = {}, high[R] = {};
    const int64_t end = from + run < groups ? from + run : groups;
    for (int64_t i = from; i < end; ++i, a += 4, b += 4 * kPanel) {
      const Ints b_low = load_ints(b), b_high = load_ints(b + 4 * kLanes);
      SAMQ_UNROLLED for (int r = 0; r < R; ++r) {
        const Ints x = splat_int(*reinterpret_cast<const IntInMemory*>(a + r * lda));
        add_byte_products(low[r], x, b_low);
        add_byte_products(high[r], x, b_high);
      }
    }
    SAMQ_UNROLLED for (int r = 0; r < R; ++r) {
      Panel<Ints> sum = from == 0 ? start(r) : load_panel(sums + r * kPanel);
      sum.low = add_pair_products(sum.low, low[r], ones);
      sum.high = add_pair_products(sum.high, high[r], ones);
      if (end < groups)
        store_panel(sums + r * kPanel, sum);
      else
        finish(r, sum);
    }
    from = end;
  } while (from < groups);
}
#pragma GCC diagnostic pop
#endif

// a [R][depth] . the panel of b at `column`, rows [from, from + depth) of it; `from` in whole groups.
// a holds 16-bit numbers for kPairs, u8 otherwise, and has whole groups in every row; b is zero where depth ends in one.
template <int R, class Start, class Finish>
SAMQ_INLINE void multiply(const void* a, int64_t lda, const Packed& b, int64_t column, int64_t from, int64_t depth,
                          const Start& start, const Finish& finish) {
  const int64_t at = column * b.depth + from * kPanel;
  if (b.form == Form::kPairs)
    return multiply<R>(static_cast<const int16_t*>(a), lda, static_cast<const int16_t*>(b.data) + at, (depth + 1) / 2,
                       start, finish);
  const auto* const bytes = static_cast<const uint8_t*>(a);
  const auto* const panel = static_cast<const int8_t*>(b.data) + at;
#if SAMQ_LANES > 4
  if (b.form == Form::kBytes)
    return multiply_bytes<R>(bytes, lda, panel, (depth + 3) / 4, b.run, start, finish);
#endif
  multiply_quads<R>(bytes, lda, panel, (depth + 3) / 4, start, finish);
}

// body(number of rows as a type, first row) for all rows, kRegisterRows at a time.
template <class Body>
SAMQ_INLINE void in_register_tiles(int64_t rows, const Body& body) {
  int64_t r = 0;
  for (; r + kRegisterRows <= rows; r += kRegisterRows) body(std::integral_constant<int, kRegisterRows>{}, r);
  switch (rows - r) {
    case 5: return body(std::integral_constant<int, 5>{}, r);
    case 4: return body(std::integral_constant<int, 4>{}, r);
    case 3: return body(std::integral_constant<int, 3>{}, r);
    case 2: return body(std::integral_constant<int, 2>{}, r);
    case 1: return body(std::integral_constant<int, 1>{}, r);
    default: return;
  }
}

}  // namespace
}  // namespace samq
