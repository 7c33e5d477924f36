// SPDX-License-Identifier: Apache-2.0
// What the operators compute, one number after the other: no vectors, no blocks, no packing. Kernels of every
// instruction set must give the same bits (compare_tiles.cc, run_operators.cc); only attention in float may differ, by
// rounding. Needs -ffp-contract=off: every float operation here rounds for itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace samq::specification {

// ---- rounding ----

// The nearest integer in [0, largest], half to even; 0 for what is not a number.
inline int32_t nearest_code(float steps, float largest) {
  if (!(steps > 0)) return 0;
  return static_cast<int32_t>(std::nearbyint(std::min(steps, largest)));
}

// QuantizeLinear to u8; 0 for what is not a number.
inline uint8_t quantized(float x, float scale, int32_t zero_point) {
  const float steps = x / scale;
  if (std::isnan(steps)) return 0;
  return static_cast<uint8_t>(std::clamp(std::nearbyint(double{steps}) + zero_point, 0.0, 255.0));
}

// The product of 16-bit fractions of 2^15, half up.
inline int32_t rounded_product(int32_t a, int32_t b) { return (a * b + (1 << 14)) >> 15; }

// ---- powers of two ----

// The nearest integer to 2^23 2^-distance, half to even, distance >= 0, by a polynomial for 2^f, |f| <= 1/2.
inline int64_t fixed_power(float distance) {
  const float near = distance < 32.0f ? distance : 32.0f;
  const float n = std::nearbyint(near), f = n - near;
  float power = 0.0013264731f;
  for (const float coefficient : {0.009671513f, 0.055507336f, 0.24022242f, 0.693147f, 1.0f})
    power = power * f + coefficient;
  return static_cast<int64_t>(std::nearbyint(std::ldexp(power, 23 - static_cast<int>(n))));
}

// Steps of `distance` in units of 1 / steps, as a 16-bit number holds them.
inline int32_t short_steps(float distance, int32_t steps) {
  return static_cast<int32_t>(std::min(std::nearbyint(distance * static_cast<float>(steps)), 32768.0f));
}

// The weight of a log code, 2^30 being 1: round(2^30 2^(r / tau)) halved n times, n = ceil(code / tau), r = tau n - code.
inline int64_t log_weight(int32_t code, int32_t tau) {
  const int32_t n = (code + tau - 1) / tau, r = tau * n - code;
  const auto fraction = static_cast<int64_t>(std::nearbyint(std::exp2(30 + static_cast<double>(r) / tau)));
  return fraction >> std::min(n, 63);
}

// The weight of a log code of a row, 2^14 being 1 and the last code 0: round(2^15 2^(-r / tau)), below 2^15, halved n + 1
// times, rounded, n = code div tau, r = code mod tau.
inline int64_t row_log_weight(int32_t code, int32_t tau, int32_t last) {
  const int32_t n = code / tau, r = code % tau;
  if (code == last) return 0;
  const auto fraction = static_cast<int32_t>(std::nearbyint(std::exp2(15 - static_cast<double>(r) / tau)));
  return rounded_product(std::min(fraction, 32767), n < 15 ? (1 << 14) >> n : 0);
}

// The uniform code of a row: largest * 2^-distance, of two terms of the series in 16 octaves, squared four times.
inline int64_t row_uniform_code(float distance, int32_t largest) {
  const int32_t t = -short_steps(distance, 2048);
  int32_t power = rounded_product(rounded_product(t, 7170) + 22650, t) + 32767;
  for (int i = 0; i < 4; ++i) power = rounded_product(power, power);
  return rounded_product(power, largest);
}

// ---- attention ----

// Tables of decomposed relative position: table_h [hq][hk][depth], table_w [wq][wk][depth]. None where hq is 0.
template <class T>
struct RelPos {
  const T* table_h;
  const T* table_w;
  int64_t hq, hk, wq, wk;
};

// rel_h and rel_w of query `row` and key `column`: products of q with a line of either table.
template <class Sum, class T, class Q>
void rel_pos(const RelPos<T>& rel, int64_t depth, int64_t row, int64_t column, const Q& q, Sum& h, Sum& w) {
  const T* const line_h = rel.table_h + (row / rel.wq * rel.hk + column / rel.wk) * depth;
  const T* const line_w = rel.table_w + (row % rel.wq * rel.wk + column % rel.wk) * depth;
  h = w = 0;
  for (int64_t c = 0; c < depth; ++c) {
    h += static_cast<Sum>(q(c)) * line_h[c];
    w += static_cast<Sum>(q(c)) * line_w[c];
  }
}

// Attention on 8-bit codes, of one batch entry.
struct CodeAttention {
  int64_t rows, keys, depth, value_depth;
  const uint8_t* q;  // [rows][depth]
  const uint8_t* k;  // [keys][depth]
  const uint8_t* v;  // [keys][value_depth]
  int32_t q_zero, k_zero, v_zero;
  float scale;             // octaves of one unit of (q - q_zero) . (k - k_zero)
  RelPos<int16_t> rel;
  float scale_h, scale_w;  // octaves of one unit of (q - q_zero) . table
  const int16_t* bias;     // [rows][keys] or null
  float scale_bias;        // octaves of one unit of it
  int32_t tau;             // log codes of 2^(1 / tau); 0: uniform codes
  int32_t largest_code;
  bool by_row;             // codes are relative to the largest of the row, weights are divided by their sum
  float p_scale;           // of other codes
  double out_scale;        // value of a sum of 1; by row, of v
  bool quantize;
  float y_scale;
  int32_t y_zero;
};

// Logits of a row, in octaves.
inline std::vector<float> logits(const CodeAttention& a, int64_t row) {
  const auto q = [&](int64_t c) { return int64_t{a.q[row * a.depth + c]} - a.q_zero; };
  std::vector<float> made;
  for (int64_t j = 0; j < a.keys; ++j) {
    int64_t product = 0;
    for (int64_t c = 0; c < a.depth; ++c) product += q(c) * (a.k[j * a.depth + c] - a.k_zero);
    float rel = 0;
    if (a.rel.hq != 0) {
      int64_t h, w;
      rel_pos(a.rel, a.depth, row, j, q, h, w);
      rel = static_cast<float>(h) * a.scale_h + static_cast<float>(w) * a.scale_w;
    }
    if (a.bias != nullptr) rel = static_cast<float>(a.bias[row * a.keys + j]) * a.scale_bias;
    made.push_back(static_cast<float>(product) * a.scale + rel);
  }
  return made;
}

// What each key of a row weighs.
inline std::vector<int64_t> weights(const CodeAttention& a, const std::vector<float>& logits) {
  const float largest = *std::max_element(logits.begin(), logits.end()), top = static_cast<float>(a.largest_code);
  int64_t powers = 0;
  for (const float x : logits) powers += fixed_power(largest - x);
  const double sum = static_cast<double>(powers) * static_cast<double>(a.p_scale);  // in units of 2^-23
  std::vector<int64_t> made;
  for (const float x : logits) {
    const float distance = largest - x;
    if (a.by_row && a.tau != 0) {
      made.push_back(row_log_weight(std::min(short_steps(distance, a.tau), a.largest_code), a.tau, a.largest_code));
    } else if (a.by_row) {
      made.push_back(row_uniform_code(distance, a.largest_code));
    } else if (a.tau != 0) {
      const auto offset = static_cast<float>(a.tau * std::log2(sum / (1 << 23)));
      made.push_back(log_weight(nearest_code(distance * static_cast<float>(a.tau) + offset, top), a.tau));
    } else {
      made.push_back(nearest_code(static_cast<float>(fixed_power(distance)) * static_cast<float>(1.0 / sum), top));
    }
  }
  return made;
}

// [rows][value_depth]; codes where it quantizes.
inline std::vector<float> attention(const CodeAttention& a) {
  std::vector<float> out;
  for (int64_t row = 0; row < a.rows; ++row) {
    const std::vector<int64_t> given = a.keys != 0 ? weights(a, logits(a, row)) : std::vector<int64_t>{};
    for (int64_t c = 0; c < a.value_depth; ++c) {
      int64_t sum = 0, total = 0;
      for (int64_t j = 0; j < a.keys; ++j) {
        const int64_t weight = given[static_cast<size_t>(j)];
        sum += weight * (a.v[j * a.value_depth + c] - a.v_zero);
        total += weight;
      }
      const double mean = a.by_row && a.keys != 0 ? static_cast<double>(sum) / static_cast<double>(total)
                                                  : static_cast<double>(sum);
      const auto value = static_cast<float>(mean * a.out_scale);
      out.push_back(a.quantize ? quantized(value, a.y_scale, a.y_zero) : value);
    }
  }
  return out;
}

// Attention in float, of one batch entry.
struct FloatAttention {
  int64_t rows, keys, depth, value_depth;
  const float* q;
  const float* k;
  const float* v;
  float scale;
  RelPos<float> rel;
  const float* bias;  // [rows][keys] or null
};

// Its values [rows][value_depth] in double, and how far a kernel may be from each: a logit is off by some float steps of
// the largest logit, a probability by as much of itself, an output by as much of sum p |v|. A power may stay at e^-87.
struct Near {
  std::vector<double> values, bounds;
};

inline Near attention(const FloatAttention& a) {
  constexpr double kBound = 1e-6, kLeast = 1.7e-38;
  Near made;
  for (int64_t row = 0; row < a.rows; ++row) {
    const auto q = [&](int64_t c) { return a.q[row * a.depth + c]; };
    std::vector<double> x;
    double farthest = 0, sum = 0;
    for (int64_t j = 0; j < a.keys; ++j) {
      double product = 0, h = 0, w = 0;
      for (int64_t c = 0; c < a.depth; ++c) product += double{q(c)} * double{a.k[j * a.depth + c]};
      if (a.rel.hq != 0) rel_pos(a.rel, a.depth, row, j, q, h, w);
      if (a.bias != nullptr) h = double{a.bias[row * a.keys + j]};
      x.push_back(product * double{a.scale} + h + w);
      farthest = std::max(farthest, std::abs(x.back()));
    }
    const double largest = a.keys != 0 ? *std::max_element(x.begin(), x.end()) : 0;
    for (double& logit : x) sum += logit = std::exp(logit - largest);
    for (int64_t c = 0; c < a.value_depth; ++c) {
      double value = 0, size = 0, least = 0;
      for (int64_t j = 0; j < a.keys; ++j) {
        const double weighed = x[static_cast<size_t>(j)] / sum * double{a.v[j * a.value_depth + c]};
        value += weighed;
        size += std::abs(weighed);
        least += kLeast * std::abs(double{a.v[j * a.value_depth + c]});
      }
      made.values.push_back(value);
      made.bounds.push_back(kBound * (2 + farthest) * size + least);
    }
  }
  return made;
}

// ---- linear layers ----

struct Linear {
  int64_t rows, depth, columns;
  const uint8_t* x;       // [rows][depth]
  const int8_t* w;        // [depth][columns]
  const int32_t* bias;    // [columns]
  const float* scale;     // [columns]
  const float* residual;  // [rows][columns], added to the output; or null
  const float* zero;      // [columns]: the output is a code; or null
  float largest_code;     // of codes
  const uint8_t* table;   // [largest_code + 1], looked up by the code; or null
};

// [rows][columns]; codes where there is a zero.
inline std::vector<float> linear(const Linear& a) {
  std::vector<float> out;
  for (int64_t m = 0; m < a.rows; ++m)
    for (int64_t n = 0; n < a.columns; ++n) {
      int64_t sum = a.bias[n];
      for (int64_t i = 0; i < a.depth; ++i) sum += a.x[m * a.depth + i] * a.w[i * a.columns + n];
      float value = static_cast<float>(sum) * a.scale[n];
      if (a.residual != nullptr) value += a.residual[m * a.columns + n];
      if (a.zero != nullptr) {
        const int32_t code = nearest_code(value + a.zero[n], a.largest_code);
        value = static_cast<float>(a.table != nullptr ? a.table[code] : code);
      }
      out.push_back(value);
    }
  return out;
}

// ---- layer norms ----

// The sum of `count` = 2^n numbers, as a tree.
inline double tree_sum(const double* x, int64_t count) {
  return count == 1 ? *x : tree_sum(x, count / 2) + tree_sum(x + count / 2, count / 2);
}

// The sum of a row: 16 parts, to which elements go in turn.
inline double row_sum(const std::vector<double>& x) {
  double parts[16] = {};
  for (size_t i = 0; i < x.size(); ++i) parts[i % 16] += x[i];
  return tree_sum(parts, 16);
}

struct LayerNorm {
  int64_t rows, columns;
  const float* x;       // [rows][columns]
  const float* gain;    // [columns]: weight / y_scale
  const float* offset;  // [columns]: bias / y_scale + y_zero_point
  double epsilon;
  float largest_code;
};

// [rows][columns] codes.
inline std::vector<float> layer_norm(const LayerNorm& a) {
  std::vector<float> codes;
  const auto count = static_cast<double>(a.columns);
  for (const float* x = a.x; x != a.x + a.rows * a.columns; x += a.columns) {
    std::vector<double> row(x, x + a.columns);
    const double mean = row_sum(row) / count;
    for (double& value : row) value = (value - mean) * (value - mean);
    const auto inverse = static_cast<float>(1.0 / std::sqrt(row_sum(row) / count + a.epsilon));
    for (int64_t n = 0; n < a.columns; ++n) {
      const float normed = (x[n] - static_cast<float>(mean)) * inverse;
      codes.push_back(static_cast<float>(nearest_code(normed * a.gain[n] + a.offset[n], a.largest_code)));
    }
  }
  return codes;
}

// ---- post-softmax codes alone ----

// The log code of a probability.
inline int32_t log_code(float p, float p_scale, int32_t tau, int32_t largest) {
  const float ratio = p / p_scale;
  const double steps = std::nearbyint(-tau * std::log2(double{ratio}));  // infinite for 0
  return steps > 0 ? static_cast<int32_t>(std::min(steps, static_cast<double>(largest))) : 0;
}

// ---- packed operands (pack.h) ----

// Where element [i][j] of an operand [depth][columns] stands when packed in panels of `panel` columns and groups along
// the depth, which is filled to whole groups.
inline int64_t packed_place(int64_t i, int64_t j, int64_t depth, int64_t panel, int64_t group) {
  const int64_t groups = (depth + group - 1) / group;
  return ((j / panel * groups + i / group) * panel + j % panel) * group + i % group;
}

}  // namespace samq::specification
