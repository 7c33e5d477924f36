// SPDX-License-Identifier: Apache-2.0
// The tile kernels, written once; tile_*.cc compile them for one instruction set each.
#pragma once

#include "layer_norm_body.h"
#include "linear_body.h"
#include "multiply.h"
#include "simd.h"
#include "tile.h"

namespace samq {
namespace {

constexpr int64_t kLogitChunk = 128;   // keys whose terms of relative position are in the first cache at a time
constexpr int64_t kFloatChunk = 512;   // keys of one pass of A V: a panel's part stays in the first cache
constexpr double kPowerUnit = 1.0 / (1 << 23);  // of fixed_power
constexpr int64_t kPowerChunk = 128;   // panels whose fixed-point powers are added in 32 bits: 128 * 2^23 < 2^31
constexpr int64_t kCodeChunk = 256;    // the same in integers
// Keys whose weighted codes are added in 32 bits: those of two planes weigh up to 2^15, by row 2^14, uniform codes 255.
constexpr int64_t kSpan = kCodeChunk, kRowSpan = 512, kUniformSpan = 32768;
static_assert(kSpan * (1 << 15) * 255 <= INT32_MAX && kRowSpan * (1 << 14) * 255 <= INT32_MAX &&
              kUniformSpan * 255 * 255 <= INT32_MAX);

// Hands out parts of the scratch memory; with a null base it only adds up their sizes.
struct Scratch {
  char* base;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    char* const at = base + used;
    used += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base == nullptr ? nullptr : reinterpret_cast<T*>(at);
  }
};

struct RelPosScratch {
  float* h;     // [rows][hk_padded]
  float* w;     // [rows][wk_padded + lanes]
  float* bias;  // [rows][kLogitChunk + lanes], or one line of zeros
  int64_t bias_line;  // 0 for that
};

template <class T>
RelPosScratch take_rel_pos(Scratch& scratch, const RelPos<T>& rel, const Bias<T>& bias) {
  constexpr int64_t kLine = kLogitChunk + kLanes;
  if (bias.groups != 0) return {nullptr, nullptr, scratch.take<float>(kTileRows * kLine), kLine};
  if (rel.hq == 0) return {nullptr, nullptr, scratch.take<float>(kLine), 0};
  return {scratch.take<float>(kTileRows * rel.hk_padded), scratch.take<float>(kTileRows * (rel.wk_padded + kLanes)),
          scratch.take<float>(kTileRows * kLine), kLine};
}

// out [keys] = scale * q . table
void table_row(const float* q, const float* table, int64_t depth, int64_t keys, float scale, float* out) {
  for (int64_t j = 0; j < keys; j += kPanel)
    multiply<1>(q, depth, table + j * depth, depth, from_zero<Floats>(), [&](int, Panel<Floats> sums) {
      store_panel(out + j, {sums.low * scale, sums.high * scale});
    });
}

// The same of codes, depth even: the product is exact.
void table_row(const int16_t* q, const int16_t* table, int64_t depth, int64_t keys, float scale, float* out) {
  for (int64_t j = 0; j < keys; j += kPanel)
    multiply<1>(q, depth, table + j * depth, depth / 2, from_zero<Ints>(), [&](int, Panel<Ints> sums) {
      store_panel(out + j, {to_floats(sums.low) * scale, to_floats(sums.high) * scale});
    });
}

// rel_h and rel_w of query row `row` = (y, x), the tile's r-th, whose q is given
template <class T>
void rel_pos_row(const RelPos<T>& rel, int64_t depth, int64_t row, int64_t r, const T* q, const RelPosScratch& made) {
  table_row(q, rel.table_h + row / rel.wq * depth * rel.hk_padded, depth, rel.hk_padded, rel.scale_h,
            made.h + r * rel.hk_padded);
  table_row(q, rel.table_w + row % rel.wq * depth * rel.wk_padded, depth, rel.wk_padded, rel.scale_w,
            made.w + r * (rel.wk_padded + kLanes));
}

// The lines of a tile in a constant term, from that of its first row on.
template <class T>
const T* bias_lines(const Bias<T>& bias, const Sizes& sizes, int64_t batch, int64_t first_row) {
  if (bias.groups == 0) return nullptr;
  return bias.data + ((bias.first + batch) % bias.groups * sizes.rows + first_row) * sizes.keys;
}

// A constant term, as it is given.
template <class T>
struct Lines {
  const T* data;  // of the tile's first row, or null
  int64_t keys;
  float scale;
};

// bias[r][i] = rel_h[y'] + rel_w[x'] of the tile's r-th row and key from + i = (y', x'), or what the lines hold there, or
// 0 without these terms; -inf in the padding.
template <class T>
SAMQ_INLINE void make_bias(const RelPos<T>& rel, const Lines<T>& lines, int64_t rows, int64_t from, int64_t count,
                           const RelPosScratch& made) {
  for (int64_t r = 0; r < (made.bias_line == 0 ? 1 : rows); ++r) {
    float* const bias = made.bias + r * made.bias_line;
    if (lines.data != nullptr)
      for (int64_t i = 0; i < count; ++i)
        bias[i] = static_cast<float>(lines.data[r * lines.keys + from + i]) * lines.scale;
    else if (rel.hq == 0)
      for (int64_t i = 0; i < count; i += kLanes) store(bias + i, Floats{});
    else
      for (int64_t at = 0, y = from / rel.wk, x = from % rel.wk; at < count; ++y, x = 0) {
        const int64_t length = rel.wk - x < count - at ? rel.wk - x : count - at;
        const Floats h = splat(made.h[r * rel.hk_padded + y]);
        const float* const w = made.w + r * (rel.wk_padded + kLanes) + x;
        // a last vector runs into the next line, which is written after it
        for (int64_t i = 0; i < length; i += kLanes) store(bias + at + i, h + load(w + i));
        at += length;
      }
    for (int64_t i = count; i < padded(count, kPanel); ++i) bias[i] = -__builtin_inff();
  }
}

// x [rows][keys], padded to panels with -inf: logit(products, bias) of the products that multiply_panel(count of rows as
// a type, first row, column, finish) hands to finish; the largest of each row.
template <class T, class Multiply, class Logit>
SAMQ_INLINE void all_logits(const RelPos<T>& rel, const Lines<T>& lines, const RelPosScratch& made, int64_t rows,
                            int64_t keys, float* x, float* largest, const Multiply& multiply_panel,
                            const Logit& logit) {
  const int64_t line = padded(keys, kPanel), bias_line = made.bias_line;
  Floats best[kTileRows];
  for (int64_t r = 0; r < rows; ++r) best[r] = splat(-__builtin_inff());
  for (int64_t from = 0; from < keys; from += kLogitChunk) {
    const int64_t count = keys - from < kLogitChunk ? keys - from : kLogitChunk;
    make_bias(rel, lines, rows, from, count, made);
    for (int64_t i = 0; i < count; i += kPanel)
      in_register_tiles(rows, [&](auto register_rows, int64_t r) __attribute__((always_inline)) {
        const float* const bias = made.bias + r * bias_line + i;
        float* const to = x + r * line + from + i;
        Floats* const highest = best + r;
        multiply_panel(register_rows, r, from + i, [=](int at, auto products) __attribute__((always_inline)) {
          const Panel<Floats> added = load_panel(bias + at * bias_line);
          const Panel<Floats> y{logit(products.low, added.low), logit(products.high, added.high)};
          store_panel(to + at * line, y);
          highest[at] = larger(larger(y.low, y.high), highest[at]);
        });
      });
  }
  for (int64_t r = 0; r < rows; ++r) largest[r] = largest_of(best[r]);
}

// ---- float ----

// x = e^(x - largest) in place; the sum
SAMQ_INLINE float make_powers(float* x, int64_t keys, float largest) {
  Floats total[2] = {};
  for (int64_t i = 0; i < padded(keys, kPanel); i += kPanel) {
    for (int half = 0; half < 2; ++half) {
      float* const at = x + i + half * kLanes;
      const Floats power = exp_of(load(at) - largest);
      total[half] += power;
      store(at, power);
    }
  }
  return sum_of(total[0] + total[1]);
}

struct FloatScratch {
  float *x, *out;
  RelPosScratch rel;
};

FloatScratch take_float(Scratch& scratch, const FloatJob& job) {
  return {scratch.take<float>(kTileRows * padded(job.sizes.keys, kPanel)),
          scratch.take<float>(kTileRows * padded(job.sizes.value_depth, kPanel)),
          take_rel_pos(scratch, job.rel, job.bias)};
}

size_t float_scratch(const FloatJob& job) {
  Scratch scratch{nullptr};
  take_float(scratch, job);
  return scratch.used;
}

void float_tile(const FloatJob& job, int64_t batch, int64_t first_row, int64_t rows, void* memory) {
  const auto [unused_batch, all_rows, keys, depth, value_depth] = job.sizes;
  (void)unused_batch;
  const int64_t line = padded(keys, kPanel), width = padded(value_depth, kPanel);
  Scratch scratch{static_cast<char*>(memory)};
  const FloatScratch made = take_float(scratch, job);
  const float* const q = job.q + (batch * all_rows + first_row) * depth;
  const float* const k = job.k_panels + batch * line * depth;
  if (job.rel.hq != 0)
    for (int64_t r = 0; r < rows; ++r) rel_pos_row(job.rel, depth, first_row + r, r, q + r * depth, made.rel);
  float largest[kTileRows], sums[kTileRows];
  all_logits(
      job.rel, Lines<float>{bias_lines(job.bias, job.sizes, batch, first_row), keys, job.bias.scale}, made.rel, rows, keys,
      made.x, largest,
      [&](auto count, int64_t r, int64_t j, const auto& finish) __attribute__((always_inline)) {
        multiply<decltype(count)::value>(q + r * depth, depth, k + j * depth, depth, from_zero<Floats>(), finish);
      },
      [scale = splat(job.scale)](Floats sums, Floats bias) { return multiply_add(sums, scale, bias); });
  for (int64_t r = 0; r < rows; ++r) sums[r] = make_powers(made.x + r * line, keys, largest[r]);

  const float* const v = job.v_panels + batch * width * keys;
  for (int64_t from = 0; from < keys; from += kFloatChunk) {
    const int64_t count = keys - from < kFloatChunk ? keys - from : kFloatChunk;
    for (int64_t c = 0; c < width; c += kPanel)
      in_register_tiles(rows, [&](auto register_rows, int64_t r) {
        float* const sums = made.out + r * width + c;
        multiply<decltype(register_rows)::value>(
            made.x + r * line + from, line, v + c * keys + from * kPanel, count,
            [&](int i) { return from == 0 ? Panel<Floats>{} : load_panel(sums + i * width); }, to_memory(sums, width));
      });
  }
  float* const out = job.out + (batch * all_rows + first_row) * value_depth;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < value_depth; ++c) out[r * value_depth + c] = made.out[r * width + c] / sums[r];
}

// ---- codes ----

struct CodeScratch {
  float* x;           // [rows][N]: logits, then, for uniform codes with a scale, powers (int32)
  int16_t* q;         // [rows][d padded to pairs]: q - zero point
  uint8_t* bytes;     // [rows][d padded to quads]: q, unless it has whole quads
  int16_t* weights;   // [planes][rows][chunk], or, where v is not in pairs, uint8_t
  int32_t* products;  // [planes * rows][dv]
  int64_t* sums;      // [rows][dv]
  RelPosScratch rel;
};

CodeScratch take_code(Scratch& scratch, const CodeJob& job) {
  const int64_t width = padded(job.sizes.value_depth, kPanel);
  return {scratch.take<float>(kTileRows * padded(job.sizes.keys, kPanel)),
          scratch.take<int16_t>(kTileRows * padded(job.sizes.depth, 2)),
          scratch.take<uint8_t>(job.sizes.depth % 4 == 0 ? 0 : kTileRows * padded(job.sizes.depth, 4)),
          scratch.take<int16_t>(2 * kTileRows * kCodeChunk),
          scratch.take<int32_t>(2 * kTileRows * width),
          scratch.take<int64_t>(kTileRows * width),
          take_rel_pos(scratch, job.rel, job.bias)};
}

size_t code_scratch(const CodeJob& job) {
  Scratch scratch{nullptr};
  take_code(scratch, job);
  return scratch.used;
}

// sum of the fixed-point powers 2^(x - largest); keeps them in x, as int32, if Keep
template <bool Keep>
SAMQ_INLINE int64_t sum_powers(float* x, int64_t keys, float largest) {
  const int64_t end = padded(keys, kPanel);
  int64_t sum = 0;
  for (int64_t from = 0; from < end; from += kPowerChunk * kPanel) {
    const int64_t to = from + kPowerChunk * kPanel < end ? from + kPowerChunk * kPanel : end;
    Ints total[2] = {};
    for (int64_t i = from; i < to; i += kPanel) {
      for (int half = 0; half < 2; ++half) {
        float* const at = x + i + half * kLanes;
        const Ints power = fixed_power(largest - load(at));
        total[half] += power;
        if (Keep) store_ints(reinterpret_cast<int32_t*>(at), power);
      }
    }
    for (int64_t i = 0; i < kLanes; ++i) sum += static_cast<int64_t>(total[0][i]) + total[1][i];
  }
  return sum;
}

// Weight of a log code, 2^30 being 1: table[r] >> n with n = ceil(c / tau), r = tau n - c.
struct LogWeights {
  alignas(64) int32_t table[kTableSize];
  int32_t tau, shift;  // tau = 2^shift

  explicit LogWeights(int32_t step) : table{}, tau(step), shift(0) {
    while (1 << shift < tau) ++shift;
    static constexpr int32_t kSixteenths[kTableSize] = {  // 2^30 * 2^(i / 16)
        1073741824, 1121280436, 1170923762, 1222764986, 1276901417, 1333434672,
        1392470869, 1454120821, 1518500250, 1585730000, 1655936265, 1729250827,
        1805811301, 1885761398, 1969251188, 2056437387};
    for (int32_t i = 0; i < tau; ++i) table[i] = kSixteenths[i * (kTableSize / tau)];
  }

  SAMQ_INLINE Ints weight(Ints code, const LogWeights& w) {
    const Ints n = (code + (w.tau - 1)) >> w.shift;
    const Ints r = (n << w.shift) - code;
    return look_up(w.table, r) >> (n > 31 ? splat_int(31) : n);
  }
};

// Likewise in 16 bits, 2^14 being 1 and the last code 0: fractions[c mod tau] halved c / tau times, rounded. Codes come
// with a minus.
struct ShortLogWeights {
  int16_t fractions[kTableSize];  // of 2^15
  Halves last;
  int32_t shift = 0;

  ShortLogWeights(int32_t tau, int32_t largest_code) : fractions{}, last(splat_half(-largest_code)) {
    while (1 << shift < tau) ++shift;
    static constexpr int16_t kSixteenths[kTableSize] = {  // 2^15 * 2^(-i / 16), below 2^15
        32767, 31379, 30048, 28774, 27554, 26386, 25268, 24196, 23170, 22188, 21247, 20347, 19484, 18658, 17867, 17109};
    for (int32_t i = 0; i < tau; ++i) fractions[i] = kSixteenths[i * (kTableSize / tau)];
  }

  static constexpr int16_t kHalvings[kTableSize] = {  // and one more
      16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 0};
  static constexpr int16_t kMost = kTableSize - 1;
};

// weights [1 plane][rows][chunk] of keys [from, from + count), from the logits in x; adds those of each row to its sums
SAMQ_INLINE void row_log_weights(const CodeJob& job, const ShortLogWeights& w, const CodeScratch& made, int64_t rows,
                                 int64_t from, int64_t count, const float* largest, Ints* sums) {
  const int64_t line = padded(job.sizes.keys, kPanel);
  const HalfTable fractions(w.fractions), halvings(ShortLogWeights::kHalvings);
  const Halves last = w.last, fraction = splat_half((1 << w.shift) - 1), most = splat_half(ShortLogWeights::kMost);
  for (int64_t r = 0; r < rows; ++r) {
    const float* const x = made.x + r * line + from;
    Ints total = sums[r];
    for (int64_t i = 0; i < count; i += kPanel) {  // keys of the padding have the last code
      const Panel<Floats> y = load_panel(x + i);
      const Halves found = to_halves(y.low - largest[r], y.high - largest[r]);
      const Halves code = -(found > last ? found : last), n = code >> w.shift;
      const Halves weight = rounded_products(fractions(code & fraction), halvings(n < most ? n : most));
      const Halves kept = code == -last ? Halves{} : weight;
      total = add_pair_products(total, (Ints)kept, splat_int(0x00010001));
      store_halves(made.weights + r * kCodeChunk + i, kept);
    }
    sums[r] = total;
  }
}

// weights [2 planes][rows][chunk] of keys [from, from + count): W = 65536 plane0 + plane1
SAMQ_INLINE void log_weights(const CodeJob& job, const LogWeights& table, const CodeScratch& made, int64_t rows,
                             int64_t from, int64_t count, const float* largest, const float* offsets) {
  const int64_t line = padded(job.sizes.keys, kPanel);
  const float steps = static_cast<float>(job.tau), top = static_cast<float>(job.largest_code);
  for (int64_t r = 0; r < rows; ++r) {
    const float* const x = made.x + r * line + from;
    int16_t* const high = made.weights + r * kCodeChunk;
    int16_t* const low = high + rows * kCodeChunk;
    for (int64_t i = 0; i < count; i += kLanes) {
      const Ints code = to_code((largest[r] - load(x + i)) * steps + offsets[r], top);
      const Ints weight = LogWeights::weight(code, table);
      store_shorts(high + i, (weight + 32768) >> 16);
      store_shorts(low + i, weight);  // its lower half, as a signed number
    }
  }
}

// weights [1 plane][rows][chunk]: the uniform codes themselves, from the fixed-point powers in x; adds those of each
// row to its sums. T is int16_t or uint8_t.
template <class T>
SAMQ_INLINE void uniform_weights(const CodeJob& job, const CodeScratch& made, int64_t rows, int64_t from, int64_t count,
                                 const float* factors, T* weights, Ints* sums) {
  const int64_t line = padded(job.sizes.keys, kPanel);
  const auto top = static_cast<float>(job.largest_code);
  for (int64_t r = 0; r < rows; ++r) {
    const float* const x = made.x + r * line + from;
    Ints total = sums[r];
    for (int64_t i = 0; i < count; i += kLanes) {  // keys of the padding have codes 0
      const Ints code = to_code(to_floats(load_ints(x + i)) * factors[r], top);
      total += code;
      if constexpr (sizeof(T) == 1)
        store_bytes(weights + r * kCodeChunk + i, code);
      else
        store_shorts(weights + r * kCodeChunk + i, code);
    }
    sums[r] = total;
  }
}

// The same by row, from the logits in x, in 16-bit arithmetic.
template <class T>
SAMQ_INLINE void row_uniform_weights(const CodeJob& job, const CodeScratch& made, int64_t rows, int64_t from,
                                     int64_t count, const float* largest, T* weights, Ints* sums) {
  const int64_t line = padded(job.sizes.keys, kPanel);
  const Halves top = splat_half(job.largest_code);
  for (int64_t r = 0; r < rows; ++r) {
    const float* const x = made.x + r * line + from;
    Halves total = {};  // of at most kCodeChunk / kPanel codes
    for (int64_t i = 0; i < count; i += kPanel) {
      const Panel<Floats> y = load_panel(x + i);
      const Halves code = rounded_products(short_power(to_halves(y.low - largest[r], y.high - largest[r])), top);
      total += code;
      store_halves(weights + r * kCodeChunk + i, code);
    }
    sums[r] = add_pair_products(sums[r], (Ints)total, splat_int(0x00010001));
  }
}

// The operand `elements` further on.
Packed entry(Packed packed, int64_t elements) {
  const int64_t size = packed.form == Form::kPairs ? sizeof(int16_t) : sizeof(int8_t);
  packed.data = static_cast<const char*>(packed.data) + elements * size;
  return packed;
}

// Fills x with logits in octaves, finds the largest of each row.
SAMQ_INLINE void code_logits(const CodeJob& job, const CodeScratch& made, int64_t batch, int64_t first_row, int64_t rows,
                             float* largest) {
  const int64_t depth = job.sizes.depth, step = padded(depth, 2), line = padded(job.sizes.keys, kPanel);
  const uint8_t* const q = job.q + (batch * job.sizes.rows + first_row) * depth;
  int32_t corrections[kTileRows] = {};
  for (int64_t r = 0; r < rows; ++r) {
    int32_t sum = 0;
    for (int64_t c = 0; c < depth; ++c) {
      made.q[r * step + c] = static_cast<int16_t>(q[r * depth + c] - job.q_zero_point);
      sum += q[r * depth + c];
    }
    if (depth % 2) made.q[r * step + depth] = 0;
    corrections[r] = sum * job.k_row;
    if (job.rel.hq != 0) rel_pos_row(job.rel, step, first_row + r, r, made.q + r * step, made.rel);
  }
  const int64_t quads = padded(depth, 4);
  if (depth != quads)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < quads; ++c) made.bytes[r * quads + c] = c < depth ? q[r * depth + c] : 0;
  const uint8_t* const bytes = depth != quads ? made.bytes : q;
  const int32_t* const columns = job.k_columns + batch * line;
  const Packed k = entry(job.k, batch * job.k_step);
  const bool pairs = k.form == Form::kPairs;
  const void* const left = pairs ? static_cast<const void*>(made.q) : bytes;
  const int64_t left_step = pairs ? step : quads, left_row = pairs ? step * 2 : quads;  // numbers, bytes
  all_logits(
      job.rel,
      Lines<int16_t>{bias_lines(job.bias, job.sizes, batch, first_row), job.sizes.keys, job.bias.scale}, made.rel, rows,
      job.sizes.keys, made.x, largest,
      [&](auto count, int64_t r, int64_t j, const auto& finish) __attribute__((always_inline)) {
        multiply<decltype(count)::value>(
            static_cast<const char*>(left) + r * left_row, left_step, k, j, 0, depth,
            [&](int i) __attribute__((always_inline)) {
              const Panel<Ints> column = load_panel(columns + j);
              return Panel<Ints>{column.low + corrections[r + i], column.high + corrections[r + i]};
            },
            finish);
      },
      [scale = splat(job.logit_scale)](Ints sums, Floats bias) { return to_floats(sums) * scale + bias; });
}

// code = round(tau (largest - x) + tau log2(sum p_scale)), or round(power / (sum p_scale)); the second term, or factor,
// of a row whose logits are in x. Uniform codes leave the powers there.
SAMQ_INLINE float row_factor(const CodeJob& job, float* x, float largest) {
  const auto scaled = [&job](int64_t sum) { return static_cast<double>(sum) * static_cast<double>(job.p_scale); };
  if (job.tau == 0) return static_cast<float>(1.0 / scaled(sum_powers<true>(x, job.sizes.keys, largest)));
  const double sum = scaled(sum_powers<false>(x, job.sizes.keys, largest)) * kPowerUnit;
  return static_cast<float>(job.tau * __builtin_log2(sum));
}

void code_tile(const CodeJob& job, int64_t batch, int64_t first_row, int64_t rows, void* memory) {
  const auto [unused_batch, all_rows, keys, unused_depth, value_depth] = job.sizes;
  (void)unused_batch;
  (void)unused_depth;
  const int64_t line = padded(keys, kPanel), width = padded(value_depth, kPanel);
  Scratch scratch{static_cast<char*>(memory)};
  const CodeScratch made = take_code(scratch, job);
  float largest[kTileRows], factors[kTileRows];
  code_logits(job, made, batch, first_row, rows, largest);
  if (!job.by_row)
    for (int64_t r = 0; r < rows; ++r) factors[r] = row_factor(job, made.x + r * line, largest[r]);

  const LogWeights table(job.tau != 0 ? job.tau : 1);
  const ShortLogWeights short_table(job.tau != 0 ? job.tau : 1, job.largest_code);
  const Packed v = entry(job.v, batch * job.v_step);
  const int64_t planes = job.tau != 0 && !job.by_row ? 2 : 1;
  const int64_t span = job.tau == 0 ? kUniformSpan : job.by_row ? kRowSpan : kSpan;
  const bool pairs = v.form == Form::kPairs;
  auto* const bytes = reinterpret_cast<uint8_t*>(made.weights);
  Ints span_sums[kTileRows] = {};
  int64_t code_sums[kTileRows] = {};
  for (int64_t i = 0; i < rows * width; ++i) made.sums[i] = 0;
  for (int64_t from = 0; from < keys; from += kCodeChunk) {
    const int64_t count = keys - from < kCodeChunk ? keys - from : kCodeChunk;
    const auto uniform = [&](auto* weights) __attribute__((always_inline)) {
      if (job.by_row)
        row_uniform_weights(job, made, rows, from, count, largest, weights, span_sums);
      else
        uniform_weights(job, made, rows, from, count, factors, weights, span_sums);
    };
    if (job.tau != 0 && job.by_row)
      row_log_weights(job, short_table, made, rows, from, count, largest, span_sums);
    else if (job.tau != 0)
      log_weights(job, table, made, rows, from, count, largest, factors);
    else if (pairs)
      uniform(made.weights);
    else
      uniform(bytes);
    if (from % span == 0)
      for (int64_t i = 0; i < planes * rows * width; ++i) made.products[i] = 0;
    const int64_t left_row = pairs ? 2 * kCodeChunk : kCodeChunk;  // bytes
    for (int64_t c = 0; c < width; c += kPanel)
      in_register_tiles(planes * rows, [&](auto register_rows, int64_t r) {
        int32_t* const products = made.products + r * width + c;
        multiply<decltype(register_rows)::value>(reinterpret_cast<const char*>(made.weights) + r * left_row, kCodeChunk,
                                                 v, c, from, count, from_memory(products, width),
                                                 to_memory(products, width));
      });
    if ((from + kCodeChunk) % span != 0 && from + kCodeChunk < keys) continue;
    for (int64_t r = 0; r < rows; ++r) {
      code_sums[r] += sum_of(span_sums[r]);
      span_sums[r] = Ints{};
    }
    if (planes == 2) {
      const int32_t* const low = made.products + rows * width;
      for (int64_t i = 0; i < rows * width; ++i) made.sums[i] += static_cast<int64_t>(made.products[i]) * 65536 + low[i];
    } else {
      for (int64_t i = 0; i < rows * width; ++i) made.sums[i] += made.products[i];
    }
  }
  auto* const values = reinterpret_cast<float*>(made.products);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) {
      const int64_t sum = made.sums[r * width + c] + code_sums[r] * job.v_row;
      const double value = static_cast<double>(sum);
      const double weighed = job.by_row ? value / static_cast<double>(code_sums[r]) : value;
      values[r * width + c] = static_cast<float>(weighed * job.out_scale);
    }
  if (job.out == nullptr)
    for (int64_t i = 0; i < rows * width; i += kLanes)
      store_ints(made.products + i, quantized(load(values + i), job.y_scale, job.y_zero_point));
  const int64_t first = (batch * all_rows + first_row) * value_depth;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < value_depth; ++c) {
      const int64_t at = first + r * value_depth + c;
      if (job.out != nullptr)
        job.out[at] = values[r * width + c];
      else
        job.codes[at] = static_cast<uint8_t>(made.products[r * width + c]);
    }
}

}  // namespace

#define SAMQ_NAME_(isa) isa##_tile_kernels
#define SAMQ_NAME(isa) SAMQ_NAME_(isa)
#define SAMQ_TEXT_(isa) #isa
#define SAMQ_TEXT(isa) SAMQ_TEXT_(isa)

const TileKernels& SAMQ_NAME(SAMQ_ISA)() {
  static const TileKernels kernels{SAMQ_TEXT(SAMQ_ISA), kPanel, float_scratch, float_tile, code_scratch, code_tile,
                                   kWideForm, kHasBytes, linear_scratch, linear_tile, layer_norm_tile};
  return kernels;
}

}  // namespace samq
