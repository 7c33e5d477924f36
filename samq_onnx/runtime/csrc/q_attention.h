// SPDX-License-Identifier: Apache-2.0
// samq.QAttention, UniformAttention, LogRowAttention, UniformRowAttention, with RelPos or Bias and Quantize: attention on
// 8-bit codes, to float or quantized. All sums are integers, and what is float takes single rounded steps in the order of the
// function bodies (ops.py), so both give the same bits.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <vector>

#include "attention_inputs.h"
#include "cpu.h"
#include "packed_codes.h"
#include "run_tiles.h"

namespace samq {

// Codes, scale and zero point of q, k and v; p_scale unless codes are relative to their row; tables or bias, with scales;
// scale and zero point of the output where it is quantized.
template <bool kRow, Terms kTerms, bool kQuantize>
struct QAttentionTypes {
  static constexpr auto make() {
    constexpr ort::ElementType operands[] = {ort::kUint8, ort::kFloat, ort::kUint8};
    constexpr ort::ElementType tables[] = {ort::kInt16, ort::kFloat};
    constexpr int further = kTerms == Terms::kRelPos ? 4 : kTerms == Terms::kBias ? 2 : 0;
    std::array<ort::ElementType, 9 + !kRow + further + 2 * kQuantize> types{};
    size_t count = 0;
    for (; count < 9; ++count) types[count] = operands[count % 3];
    if (!kRow) types[count++] = ort::kFloat;
    for (int i = 0; i < further; ++i) types[count++] = tables[i % 2];
    for (int i = 0; i < 2 * kQuantize; ++i) types[count++] = operands[1 + i];
    return types;
  }
  static constexpr auto kInputs = make();
};

// Post-softmax codes p_scale * 2^(-c / tau), weighted by shift and table with 30 fractional bits.
struct LogCodes {
  static constexpr const char* kName = "QAttention";
  static constexpr bool kRow = false;
  static constexpr double kUnit = 1.0 / (1 << 30);
  static int32_t tau(const Attributes& attributes) { return attributes.tau(); }
};

// Post-softmax codes p_scale * c.
struct UniformCodes {
  static constexpr const char* kName = "UniformAttention";
  static constexpr bool kRow = false;
  static constexpr double kUnit = 1.0;
  static int32_t tau(const Attributes&) { return 0; }
};

// Post-softmax codes 2^(-c / tau), the last one 0, of the largest of the row, and divided by their sum.
struct LogRowCodes {
  static constexpr const char* kName = "LogRowAttention";
  static constexpr bool kRow = true;
  static int32_t tau(const Attributes& attributes) { return attributes.tau(); }
};

// Post-softmax codes c of the largest of the row, and divided by their sum.
struct UniformRowCodes {
  static constexpr const char* kName = "UniformRowAttention";
  static constexpr bool kRow = true;
  static int32_t tau(const Attributes&) { return 0; }
};

constexpr std::array<char, 64> joined(std::initializer_list<const char*> parts) {
  std::array<char, 64> made{};
  size_t count = 0;
  for (const char* part : parts)
    for (; *part != 0; ++part) made[count++] = *part;
  return made;
}

template <class Codes, Terms kTerms, bool kQuantize>
class QAttention : public QAttentionTypes<Codes::kRow, kTerms, kQuantize> {
  static constexpr bool kRelPos = kTerms == Terms::kRelPos;
  static constexpr auto kJoined =
      joined({Codes::kName, kTermNames[static_cast<int>(kTerms)], kQuantize ? "Quantize" : ""});

 public:
  static constexpr const char* kName = kJoined.data();
  static constexpr ort::ElementType kOutput = kQuantize ? ort::kUint8 : ort::kFloat;
  static Dims infer(const std::vector<Dims>& inputs) { return attention_output(inputs[0], inputs[6]); }

  explicit QAttention(const Attributes& attributes)
      : scale_(attributes.number("scale")),
        tau_(Codes::tau(attributes)),
        largest_code_((1 << attributes.integer("bits", 1, 8)) - 1) {}

  void compute(const Context& context) const {
    const auto q = context.tensor<uint8_t>(0, "q");
    const auto k = context.tensor<uint8_t>(3, "k"), v = context.tensor<uint8_t>(6, "v");
    const TileKernels& kernels = tile_kernels();
    CodeJob job{};
    check_attention(q.dims, k.dims, v.dims);
    job.q = q.data;
    job.q_zero_point = context.scalar<uint8_t>(2, "q_zero_point");
    const auto q_scale = context.scalar<float>(1, "q_scale");
    // logits in the steps that codes by row are made of: a power of two, so that multiplying by it changes no digit
    // of what stays finite
    const auto unit = static_cast<float>(!Codes::kRow ? 1 : tau_ != 0 ? tau_ : kShortSteps);
    const auto k_scale = context.scalar<float>(4, "k_scale");
    job.logit_scale = logit_unit(q_scale * k_scale * scale_ * kOctaves, "q_scale * k_scale * scale") * unit;
    Tensor<int16_t> table_h, table_w;
    float scale_h = 0, scale_w = 0;
    constexpr int first_term = Codes::kRow ? 9 : 10;
    if constexpr (kTerms == Terms::kBias) {
      job.bias = fitting_bias(context.tensor<int16_t>(first_term, "bias"), q.dims, k.dims);
      job.bias.scale = logit_unit(context.scalar<float>(first_term + 1, "bias_scale") * kOctaves, "bias_scale") * unit;
    }
    if constexpr (kRelPos) {
      constexpr int first = first_term;
      table_h = context.tensor<int16_t>(first, "table_h"), table_w = context.tensor<int16_t>(first + 2, "table_w");
      RelPosTables<int16_t>::check(table_h.dims, table_w.dims, q.dims, k.dims);
      const auto h = context.scalar<float>(first + 1, "table_h_scale"), w = context.scalar<float>(first + 3, "table_w_scale");
      scale_h = logit_unit(q_scale * h * kOctaves, "q_scale * table_h_scale") * unit;
      scale_w = logit_unit(q_scale * w * kOctaves, "q_scale * table_w_scale") * unit;
    }
    job.tau = tau_;
    job.largest_code = largest_code_;
    job.by_row = Codes::kRow;
    job.out_scale = context.scalar<float>(7, "v_scale");
    if constexpr (!Codes::kRow) {
      job.p_scale = context.positive(9, "p_scale");
      job.out_scale = static_cast<double>(job.p_scale) * job.out_scale * Codes::kUnit;
    }
    const int32_t k_zero = context.scalar<uint8_t>(5, "k_zero_point"), v_zero = context.scalar<uint8_t>(8, "v_zero_point");
    const Dims dims = attention_output(q.dims, v.dims);
    if constexpr (kQuantize) {
      constexpr size_t last = std::size(QAttention::kInputs) - 1;
      job.y_scale = context.positive(last - 1, "y_scale");
      job.y_zero_point = context.scalar<uint8_t>(last, "y_zero_point");
      job.codes = context.output<uint8_t>(dims);
    } else {
      job.out = context.output<float>(dims);
    }
    if (job.codes == nullptr && job.out == nullptr) return;
    job.sizes = attention_sizes(q.dims, k.dims, v.dims);
    const auto [batch, rows, keys, depth, value_depth] = job.sizes;
    if (keys == 0) {
      const auto value = static_cast<float>(0.0 * job.out_scale);  // what no sum stands for
      const int64_t count = batch * rows * value_depth;
      if (job.out != nullptr)
        std::fill_n(job.out, count, value);
      else
        std::fill_n(job.codes, count, static_cast<uint8_t>(std::isnan(value) ? 0 : job.y_zero_point));
      return;
    }
    std::optional<RelPosTables<int16_t>> tables;
    if constexpr (kRelPos) {
      job.rel = tables.emplace(table_h, table_w, kernels.panel).view();
      job.rel.scale_h = scale_h;
      job.rel.scale_w = scale_w;
    }
    const int64_t line = round_up(keys, kernels.panel);
    const int64_t entry = line * (depth + 1) + keys * round_up(value_depth, kernels.panel);
    const int64_t room = std::max<int64_t>(1, std::min(batch, kRoom / entry));
    PackedCodes packed_k(context, kernels, k, room, depth, 1, keys, depth, k_zero, code_range(context, kernels, q).highest,
                         true);
    PackedCodes packed_v(context, kernels, v, room, keys, value_depth, value_depth, 1, v_zero, largest_code_, tau_ == 0);
    job.k = packed_k.packed;
    job.v = packed_v.packed;
    job.k_step = packed_k.step;
    job.v_step = packed_v.step;
    job.k_row = packed_k.centre - k_zero;
    job.v_row = packed_v.centre - v_zero;
    // sum (q - zq) (k - zk) = sum q (k - c) + (c - zk) sum q - zq sum (k - zk)
    std::vector<int32_t> columns(static_cast<size_t>(room * line), 0);
    job.k_columns = columns.data();
    for (int64_t first = 0; first < batch; first += room) {
      job.sizes.batch = std::min(room, batch - first);
      job.bias.first = first;
      packed_k.pack(context, first, job.sizes.batch);
      packed_v.pack(context, first, job.sizes.batch);
      if (job.k.form != Form::kPairs)
        context.parallel_for(job.sizes.batch * keys, [&, keys = keys, depth = depth](int64_t row) {
          int32_t sum = 0;
          for (int64_t c = 0; c < depth; ++c) sum += k.data[(first * keys + row) * depth + c] - k_zero;
          columns[static_cast<size_t>(row / keys * line + row % keys)] = -job.q_zero_point * sum;
        });
      run_tiles(context, job, kernels.code_scratch, kernels.code_tile);
      job.q += job.sizes.batch * rows * depth;
      if (job.out != nullptr)
        job.out += job.sizes.batch * rows * value_depth;
      else
        job.codes += job.sizes.batch * rows * value_depth;
    }
  }

 private:
  static constexpr float kOctaves = 1.44269504f;  // log2 e
  static constexpr int64_t kRoom = 1 << 23;  // codes of k and v, filled to panels, that are packed at a time
  float scale_;
  int32_t tau_, largest_code_;
};

}  // namespace samq
