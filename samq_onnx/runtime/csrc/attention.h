// SPDX-License-Identifier: Apache-2.0
// samq.Attention, AttentionRelPos and AttentionBias: softmax(scale q kT + rel_h + rel_w, or + bias) v in float, without
// the map.
#pragma once

#include <iterator>
#include <optional>

#include "attention_inputs.h"
#include "cpu.h"
#include "run_tiles.h"

namespace samq {

template <Terms kTerms>
struct AttentionTypes {
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
};
template <>
struct AttentionTypes<Terms::kRelPos> {
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat};
};
template <>
struct AttentionTypes<Terms::kBias> {
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat};
};

template <Terms kTerms>
class Attention : public AttentionTypes<kTerms> {
  static constexpr bool kRelPos = kTerms == Terms::kRelPos;

 public:
  static constexpr const char* kName = kRelPos                   ? "AttentionRelPos"
                                       : kTerms == Terms::kBias ? "AttentionBias"
                                                                : "Attention";
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static Dims infer(const std::vector<Dims>& inputs) { return attention_output(inputs[0], inputs[2]); }

  explicit Attention(const Attributes& attributes) : scale_(attributes.number("scale")) {}

  void compute(const Context& context) const {
    const auto q = context.tensor<float>(0, "q"), k = context.tensor<float>(1, "k"), v = context.tensor<float>(2, "v");
    const TileKernels& kernels = tile_kernels();
    FloatJob job{};
    check_attention(q.dims, k.dims, v.dims);
    Tensor<float> table_h, table_w;
    if constexpr (kRelPos) {
      table_h = context.tensor<float>(3, "table_h"), table_w = context.tensor<float>(4, "table_w");
      RelPosTables<float>::check(table_h.dims, table_w.dims, q.dims, k.dims);
    }
    if constexpr (kTerms == Terms::kBias) job.bias = fitting_bias(context.tensor<float>(3, "bias"), q.dims, k.dims);
    job.out = context.output<float>(attention_output(q.dims, v.dims));
    if (job.out == nullptr) return;
    job.sizes = attention_sizes(q.dims, k.dims, v.dims);
    if (job.sizes.keys == 0) {
      std::fill_n(job.out, job.sizes.batch * job.sizes.rows * job.sizes.value_depth, 0.0f);
      return;
    }
    std::optional<RelPosTables<float>> tables;
    if constexpr (kRelPos) job.rel = tables.emplace(table_h, table_w, kernels.panel).view();
    job.q = q.data;
    job.scale = scale_;
    run_tiles<1, float>(context, kernels.panel, k.data, 0.0f, v.data, 0.0f, job, kernels.float_scratch, kernels.float_tile);
  }

 private:
  float scale_;
};

}  // namespace samq
