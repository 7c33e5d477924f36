// SPDX-License-Identifier: Apache-2.0
// The tile kernels, written once; tile_*.cc compile them for one instruction set each.
#pragma once

#include "linear_body.h"
#include "multiply.h"
#include "simd.h"
#include "tile.h"

namespace samq {
namespace {

constexpr int64_t kFloatChunk = 512;   // keys of one pass of A V: a panel's part stays in the first cache
constexpr double kPowerUnit = 1.0 / (1 << 23);  // of fixed_power
constexpr int64_t kPowerChunk = 128;   // panels whose fixed-point powers are added in 32 bits: 128 * 2^23 < 2^31
constexpr int64_t kCodeChunk = 256;    // the same in integers: 256 * 2^15 * 255 < 2^31

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
  float* h;     // [hk_padded]
  float* w;     // [wk_padded]
  float* bias;  // [N padded + lanes]
};

template <class T>
RelPosScratch take_rel_pos(Scratch& scratch, const RelPos<T>& rel, const Sizes& sizes) {
  if (rel.hq == 0) return {};
  return {scratch.take<float>(rel.hk_padded), scratch.take<float>(rel.wk_padded),
          scratch.take<float>(padded(sizes.keys, kPanel) + kLanes)};
}

// out [keys] = scale * q . table
void table_row(const float* q, const float* table, int64_t depth, int64_t keys, float scale, float* out) {
  for (int64_t j = 0; j < keys; j += kPanel) multiply<1>(q, depth, table + j * depth, depth, out + j, 0, false);
  for (int64_t j = 0; j < keys; j += kLanes) store(out + j, load(out + j) * scale);
}

// The same of codes, depth even: the product is exact.
void table_row(const int16_t* q, const int16_t* table, int64_t depth, int64_t keys, float scale, float* out) {
  for (int64_t j = 0; j < keys; j += kPanel) {
    int32_t products[kPanel];
    multiply<1>(q, depth, table + j * depth, depth / 2, products, 0, false);
    for (int64_t i = 0; i < kPanel; i += kLanes) store(out + j + i, to_floats(load_ints(products + i)) * scale);
  }
}

// bias[y' wk + x'] = rel_h[y, y'] + rel_w[x, x'] of query row (y, x), whose q is given
template <class T>
void rel_pos_bias(const RelPos<T>& rel, int64_t depth, int64_t row, const T* q, const RelPosScratch& made) {
  table_row(q, rel.table_h + row / rel.wq * depth * rel.hk_padded, depth, rel.hk_padded, rel.scale_h, made.h);
  table_row(q, rel.table_w + row % rel.wq * depth * rel.wk_padded, depth, rel.wk_padded, rel.scale_w, made.w);
  for (int64_t y = 0; y < rel.hk; ++y) {  // a last vector runs into the next row, which is written after it
    const Floats h = splat(made.h[y]);
    float* const line = made.bias + y * rel.wk;
    for (int64_t x = 0; x < rel.wk; x += kLanes) store(line + x, h + load(made.w + x));
  }
}

// x = logit(x, bias) in place, -inf in the padding; the largest. Without bias, the logit is that of a zero.
template <class Logit>
SAMQ_INLINE float make_logits(float* x, int64_t keys, const float* bias, const Logit& logit) {
  const int64_t end = padded(keys, kPanel);
  Floats best = splat(-__builtin_inff());
  for (int64_t i = keys; i < end; ++i) x[i] = 0;
  for (int64_t i = 0; i < keys; i += kLanes) {
    const Floats y = bias != nullptr ? logit(x + i, load(bias + i)) : logit(x + i, Floats{});
    store(x + i, y);
    if (i + kLanes <= keys) best = larger(y, best);
  }
  float largest = largest_of(best);
  for (int64_t i = keys / kLanes * kLanes; i < keys; ++i) largest = x[i] > largest ? x[i] : largest;
  for (int64_t i = keys; i < end; ++i) x[i] = -__builtin_inff();
  return largest;
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
          take_rel_pos(scratch, job.rel, job.sizes)};
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
  for (int64_t j = 0; j < line; j += kPanel) multiply_rows(rows, q, depth, k + j * depth, depth, made.x + j, line);

  float sums[kTileRows];
  for (int64_t r = 0; r < rows; ++r) {
    float* const x = made.x + r * line;
    if (job.rel.hq != 0) rel_pos_bias(job.rel, depth, first_row + r, q + r * depth, made.rel);
    const float largest = make_logits(x, keys, made.rel.bias, [&job](const float* p, Floats bias) {
      return multiply_add(load(p), splat(job.scale), bias);
    });
    sums[r] = make_powers(x, keys, largest);
  }

  const float* const v = job.v_panels + batch * width * keys;
  for (int64_t from = 0; from < keys; from += kFloatChunk) {
    const int64_t count = keys - from < kFloatChunk ? keys - from : kFloatChunk;
    for (int64_t c = 0; c < width; c += kPanel)
      multiply_rows(rows, made.x + from, line, v + c * keys + from * kPanel, count, made.out + c, width, from != 0);
  }
  float* const out = job.out + (batch * all_rows + first_row) * value_depth;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < value_depth; ++c) out[r * value_depth + c] = made.out[r * width + c] / sums[r];
}

// ---- codes ----

struct CodeScratch {
  float* x;           // [rows][N]: products (int32), then logits, then, for uniform codes, powers (int32)
  int16_t* q;         // [rows][d]: q - zero point
  int16_t* weights;   // [planes][rows][chunk], or, where v is not in pairs, uint8_t
  int32_t* products;  // [planes * rows][dv]
  int64_t* sums;      // [rows][dv]
  RelPosScratch rel;
};

CodeScratch take_code(Scratch& scratch, const CodeJob& job) {
  const int64_t width = padded(job.sizes.value_depth, kPanel);
  return {scratch.take<float>(kTileRows * padded(job.sizes.keys, kPanel)),
          scratch.take<int16_t>(kTileRows * padded(job.sizes.depth, 2)),
          scratch.take<int16_t>(2 * kTileRows * kCodeChunk),
          scratch.take<int32_t>(2 * kTileRows * width),
          scratch.take<int64_t>(kTileRows * width),
          take_rel_pos(scratch, job.rel, job.sizes)};
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

// weights [1 plane][rows][chunk] of keys [from, from + count), 2^14 being 1 and the last code 0; adds up those of each row
SAMQ_INLINE void row_log_weights(const CodeJob& job, const LogWeights& table, const CodeScratch& made, int64_t rows,
                                 int64_t from, int64_t count, const float* largest, int64_t* sums) {
  const int64_t line = padded(job.sizes.keys, kPanel);
  const float steps = static_cast<float>(job.tau), top = static_cast<float>(job.largest_code);
  for (int64_t r = 0; r < rows; ++r) {
    const float* const x = made.x + r * line + from;
    Ints total = {};
    for (int64_t i = 0; i < count; i += kLanes) {  // keys of the padding have the last code
      const Ints code = to_code((largest[r] - load(x + i)) * steps, top);
      const Ints weight = (LogWeights::weight(code, table) + 32768) >> 16;
      const Ints kept = code == job.largest_code ? splat_int(0) : weight;
      total += kept;
      store_shorts(made.weights + r * kCodeChunk + i, kept);
    }
    for (int64_t i = 0; i < kLanes; ++i) sums[r] += total[i];
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

// weights [1 plane][rows][chunk]: the uniform codes themselves; adds up those of each row
template <class T>
SAMQ_INLINE void uniform_weights(const CodeJob& job, const CodeScratch& made, int64_t rows, int64_t from, int64_t count,
                                 const float* factors, T* weights, int64_t* sums) {
  const int64_t line = padded(job.sizes.keys, kPanel);
  for (int64_t r = 0; r < rows; ++r) {
    Ints total = {};
    for (int64_t i = 0; i < count; i += kLanes) {  // keys of the padding have codes 0
      const Floats p = to_floats(load_ints(made.x + r * line + from + i)) * factors[r];
      const Ints code = to_code(p, static_cast<float>(job.largest_code));
      total += code;
      if constexpr (sizeof(T) == 1)
        store_bytes(weights + r * kCodeChunk + i, code);
      else
        store_shorts(weights + r * kCodeChunk + i, code);
    }
    for (int64_t i = 0; i < kLanes; ++i) sums[r] += total[i];
  }
}

// The operand `elements` further on.
Packed entry(Packed packed, int64_t elements) {
  const int64_t size = packed.form == Form::kPairs ? sizeof(int16_t) : sizeof(int8_t);
  packed.data = static_cast<const char*>(packed.data) + elements * size;
  return packed;
}

void code_tile(const CodeJob& job, int64_t batch, int64_t first_row, int64_t rows, void* memory) {
  const auto [unused_batch, all_rows, keys, depth, value_depth] = job.sizes;
  (void)unused_batch;
  const int64_t line = padded(keys, kPanel), width = padded(value_depth, kPanel);
  const int64_t depth_pairs = padded(depth, 2) / 2;
  Scratch scratch{static_cast<char*>(memory)};
  const CodeScratch made = take_code(scratch, job);

  const uint8_t* const q = job.q + (batch * all_rows + first_row) * depth;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < depth; ++c)
      made.q[r * 2 * depth_pairs + c] = static_cast<int16_t>(q[r * depth + c] - job.q_zero_point);
    if (depth % 2) made.q[r * 2 * depth_pairs + depth] = 0;
  }
  int32_t* const products = reinterpret_cast<int32_t*>(made.x);
  const int32_t* const columns = job.k_columns + batch * line;
  const Packed k = entry(job.k, batch * job.k_step), v = entry(job.v, batch * job.v_step);
  int32_t corrections[kTileRows] = {};
  for (int64_t r = 0; r < rows; ++r) {
    int32_t sum = 0;
    for (int64_t c = 0; c < depth; ++c) sum += q[r * depth + c];
    corrections[r] = sum * job.k_row;
  }
  for (int64_t j = 0; j < line; j += kPanel)
    in_register_tiles(rows, [&](auto count, int64_t r) {
      constexpr int kRows = decltype(count)::value;
      int32_t* const c = products + r * line + j;
      for (int i = 0; i < kRows; ++i) {
        store_ints(c + i * line, load_ints(columns + j) + corrections[r + i]);
        store_ints(c + i * line + kLanes, load_ints(columns + j + kLanes) + corrections[r + i]);
      }
      if (k.form == Form::kPairs)
        add_products<kRows>(made.q + r * 2 * depth_pairs, 2 * depth_pairs, k, j, 0, depth, c, line);
      else
        add_products<kRows>(q + r * depth, depth, k, j, 0, depth, c, line);
    });

  // Softmax: code = round(tau (largest - x) + tau log2(sum p_scale)), or round(power / (sum p_scale)). By row it is
  // round(tau (largest - x)), which needs no powers, or round(power times the largest code).
  float largest[kTileRows], factors[kTileRows];
  for (int64_t r = 0; r < rows; ++r) {
    float* const x = made.x + r * line;
    if (job.rel.hq != 0)
      rel_pos_bias(job.rel, 2 * depth_pairs, first_row + r, made.q + r * 2 * depth_pairs, made.rel);
    largest[r] = make_logits(x, keys, made.rel.bias, [&job](const float* p, Floats bias) {
      return to_floats(load_ints(p)) * job.logit_scale + bias;
    });
    const auto scaled = [&job](int64_t sum) { return static_cast<double>(sum) * static_cast<double>(job.p_scale); };
    if (job.by_row && job.tau != 0) {
      factors[r] = 0;
    } else if (job.by_row) {
      sum_powers<true>(x, keys, largest[r]);  // for the powers alone
      factors[r] = static_cast<float>(job.largest_code * kPowerUnit);
    } else if (job.tau != 0) {
      const double sum = scaled(sum_powers<false>(x, keys, largest[r])) * kPowerUnit;
      factors[r] = static_cast<float>(job.tau * __builtin_log2(sum));
    } else {
      factors[r] = static_cast<float>(1.0 / scaled(sum_powers<true>(x, keys, largest[r])));
    }
  }

  const LogWeights table(job.tau != 0 ? job.tau : 1);
  const int64_t planes = job.tau != 0 && !job.by_row ? 2 : 1;
  const bool pairs = v.form == Form::kPairs;
  auto* const bytes = reinterpret_cast<uint8_t*>(made.weights);
  int64_t code_sums[kTileRows] = {};
  for (int64_t i = 0; i < rows * width; ++i) made.sums[i] = 0;
  for (int64_t from = 0; from < keys; from += kCodeChunk) {
    const int64_t count = keys - from < kCodeChunk ? keys - from : kCodeChunk;
    if (job.tau != 0 && job.by_row)
      row_log_weights(job, table, made, rows, from, count, largest, code_sums);
    else if (job.tau != 0)
      log_weights(job, table, made, rows, from, count, largest, factors);
    else if (pairs)
      uniform_weights(job, made, rows, from, count, factors, made.weights, code_sums);
    else
      uniform_weights(job, made, rows, from, count, factors, bytes, code_sums);
    for (int64_t i = 0; i < planes * rows * width; ++i) made.products[i] = 0;
    for (int64_t c = 0; c < width; c += kPanel) {
      if (pairs)
        add_rows(planes * rows, made.weights, kCodeChunk, v, c, from, count, made.products + c, width);
      else
        add_rows(rows, bytes, kCodeChunk, v, c, from, count, made.products + c, width);
    }
    if (planes == 2) {
      const int32_t* const low = made.products + rows * width;
      for (int64_t i = 0; i < rows * width; ++i) made.sums[i] += static_cast<int64_t>(made.products[i]) * 65536 + low[i];
    } else {
      for (int64_t i = 0; i < rows * width; ++i) made.sums[i] += made.products[i];
    }
  }
  float* const out = job.out + (batch * all_rows + first_row) * value_depth;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < value_depth; ++c) {
      const int64_t sum = made.sums[r * width + c] + code_sums[r] * job.v_row;
      const double value = static_cast<double>(sum);
      const double weighed = job.by_row ? value / static_cast<double>(code_sums[r]) : value;
      out[r * value_depth + c] = static_cast<float>(weighed * job.out_scale);
    }
}

}  // namespace

#define SAMQ_NAME_(isa) isa##_tile_kernels
#define SAMQ_NAME(isa) SAMQ_NAME_(isa)
#define SAMQ_TEXT_(isa) #isa
#define SAMQ_TEXT(isa) SAMQ_TEXT_(isa)

const TileKernels& SAMQ_NAME(SAMQ_ISA)() {
  static const TileKernels kernels{SAMQ_TEXT(SAMQ_ISA), kPanel, float_scratch, float_tile, code_scratch, code_tile,
                                   kWideForm, kHasBytes, linear_scratch, linear_tile};
  return kernels;
}

}  // namespace samq
