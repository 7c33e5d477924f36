// SPDX-License-Identifier: Apache-2.0
// samq.QAttention, samq.UniformAttention and their RelPos forms: attention on 8-bit codes. All sums are integers, and
// what is float takes single rounded steps in the order of the function bodies (ops.py), so both give the same bits.
#pragma once

#include <optional>

#include "attention_inputs.h"
#include "cpu.h"
#include "run_tiles.h"

namespace samq {

template <bool kRelPos>
struct QAttentionTypes {
  static constexpr ort::ElementType kInputs[] = {ort::kUint8, ort::kFloat, ort::kUint8, ort::kUint8, ort::kFloat,
                                                 ort::kUint8,  ort::kUint8,  ort::kFloat, ort::kUint8, ort::kFloat};
};
template <>
struct QAttentionTypes<true> {
  static constexpr ort::ElementType kInputs[] = {ort::kUint8, ort::kFloat, ort::kUint8, ort::kUint8,
                                                 ort::kFloat, ort::kUint8,  ort::kUint8,  ort::kFloat,
                                                 ort::kUint8,  ort::kFloat, ort::kInt16, ort::kFloat,
                                                 ort::kInt16, ort::kFloat};
};

// Post-softmax codes p_scale * 2^(-c / tau), weighted by shift and table with 30 fractional bits.
struct LogCodes {
  static constexpr const char* kName = "QAttention";
  static constexpr const char* kRelPosName = "QAttentionRelPos";
  static constexpr double kUnit = 1.0 / (1 << 30);
  static int32_t tau(const Attributes& attributes) {
    const int64_t tau = attributes.integer("tau", 1, 16);
    if ((tau & (tau - 1)) != 0) throw Failure("attribute tau must be 1, 2, 4, 8 or 16, got " + std::to_string(tau));
    return static_cast<int32_t>(tau);
  }
};

// Post-softmax codes p_scale * c.
struct UniformCodes {
  static constexpr const char* kName = "UniformAttention";
  static constexpr const char* kRelPosName = "UniformAttentionRelPos";
  static constexpr double kUnit = 1.0;
  static int32_t tau(const Attributes&) { return 0; }
};

template <class Codes, bool kRelPos>
class QAttention : public QAttentionTypes<kRelPos> {
 public:
  static constexpr const char* kName = kRelPos ? Codes::kRelPosName : Codes::kName;
  static constexpr ort::ElementType kOutput = ort::kFloat;
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
    job.sizes = attention_sizes(q.dims, k.dims, v.dims);
    job.q = q.data;
    job.q_zero_point = context.scalar<uint8_t>(2, "q_zero_point");
    const auto q_scale = context.scalar<float>(1, "q_scale");
    job.logit_scale = q_scale * context.scalar<float>(4, "k_scale") * scale_ * kOctaves;
    std::optional<RelPosTables<int16_t>> tables;
    if constexpr (kRelPos) {
      tables.emplace(context.tensor<int16_t>(10, "table_h"), context.tensor<int16_t>(12, "table_w"), job.sizes,
                     kernels.panel);
      job.rel = tables->view();
      job.rel.scale_h = q_scale * context.scalar<float>(11, "table_h_scale") * kOctaves;
      job.rel.scale_w = q_scale * context.scalar<float>(13, "table_w_scale") * kOctaves;
    }
    job.tau = tau_;
    job.largest_code = largest_code_;
    job.p_scale = context.scalar<float>(9, "p_scale");
    if (!(job.p_scale > 0)) throw Failure("p_scale must be above 0, got " + std::to_string(job.p_scale));
    job.out_scale = static_cast<double>(job.p_scale) * context.scalar<float>(7, "v_scale") * Codes::kUnit;
    const auto k_zero = static_cast<int16_t>(context.scalar<uint8_t>(5, "k_zero_point"));
    const auto v_zero = static_cast<int16_t>(context.scalar<uint8_t>(8, "v_zero_point"));
    job.out = context.output<float>(attention_output(q.dims, v.dims));
    run_tiles<2, int16_t>(context, kernels.panel, k.data, k_zero, v.data, v_zero, job, kernels.code_scratch,
                          kernels.code_tile);
  }

 private:
  static constexpr float kOctaves = 1.44269504f;  // log2 e
  float scale_;
  int32_t tau_, largest_code_;
};

}  // namespace samq
