// SPDX-License-Identifier: Apache-2.0
// samq.LayerNormQuantize: a layer norm over the last axis and the QuantizeLinear that reads it, in one pass over
// memory. Sums are taken in double; the float steps after them are single rounded operations in the order of the
// function body (ops.py).
#pragma once

#include <algorithm>
#include <vector>

#include "cpu.h"
#include "kernel.h"
#include "pack.h"

namespace samq {

class LayerNormQuantize {
 public:
  static constexpr const char* kName = "LayerNormQuantize";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat, ort::kUint8};
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static Dims infer(const std::vector<Dims>& inputs) { return inputs[0]; }

  explicit LayerNormQuantize(const Attributes& attributes)
      : epsilon_(attributes.number("epsilon")),
        largest_code_(static_cast<float>((1 << attributes.integer("bits", 1, 8)) - 1)) {}

  void compute(const Context& context) const {
    const auto x = context.tensor<float>(0, "x");
    const auto weight = context.tensor<float>(1, "weight"), bias = context.tensor<float>(2, "bias");
    const float y_scale = context.positive(3, "y_scale");
    const uint8_t y_zero_point = context.scalar<uint8_t>(4, "y_zero_point");
    if (x.dims.empty() || weight.dims != Dims{x.dims.back()} || bias.dims != weight.dims)
      throw Failure("x must be [.., C], weight and bias [C], got x " + to_string(x.dims) + ", weight " +
                    to_string(weight.dims) + ", bias " + to_string(bias.dims));
    uint8_t* const codes = context.output<uint8_t>(x.dims);
    if (codes == nullptr) return;

    const TileKernels& kernels = tile_kernels();
    const int64_t columns = x.dims.back(), rows = x.size() / columns;
    std::vector<float> gain(static_cast<size_t>(round_up(columns, kernels.panel))), offset(gain.size());
    for (int64_t n = 0; n < columns; ++n) {
      const double step = y_scale;
      gain[static_cast<size_t>(n)] = static_cast<float>(weight.data[n] / step);
      offset[static_cast<size_t>(n)] = static_cast<float>(bias.data[n] / step + y_zero_point);
    }
    const LayerNormJob job{columns, x.data, gain.data(), offset.data(), epsilon_, largest_code_, codes};
    context.parallel_for((rows + kLayerNormRows - 1) / kLayerNormRows, [&](int64_t block) {
      const int64_t first = block * kLayerNormRows;
      kernels.layer_norm_tile(job, first, std::min(kLayerNormRows, rows - first));
    });
  }

 private:
  double epsilon_;
  float largest_code_;
};

}  // namespace samq
