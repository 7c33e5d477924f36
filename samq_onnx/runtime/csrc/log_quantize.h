// SPDX-License-Identifier: Apache-2.0
// samq.LogQuantize: a post-softmax value to its log code (PTQ4SAM eq. 8).
#pragma once

#include <algorithm>
#include <cmath>

#include "kernel.h"

namespace samq {

class LogQuantize {
 public:
  static constexpr const char* kName = "LogQuantize";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat};
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static Dims infer(const std::vector<Dims>& inputs) { return inputs[0]; }

  explicit LogQuantize(const Attributes& attributes)
      : tau_(static_cast<double>(attributes.tau())),
        largest_(static_cast<double>((1 << attributes.integer("bits", 1, 8)) - 1)) {}

  void compute(const Context& context) const {
    const auto p = context.tensor<float>(0, "p");
    const float p_scale = context.scalar<float>(1, "p_scale");
    uint8_t* const codes = context.output<uint8_t>(p.dims);
    if (codes == nullptr) return;
    constexpr int64_t kBlock = 16384;
    context.parallel_for((p.size() + kBlock - 1) / kBlock, [&](int64_t block) {
      const int64_t end = std::min(p.size(), (block + 1) * kBlock);
      for (int64_t i = block * kBlock; i < end; ++i) codes[i] = code(p.data[i] / p_scale);
    });
  }

 private:
  uint8_t code(float ratio) const {
    const double steps = std::nearbyint(-tau_ * std::log2(static_cast<double>(ratio)));  // half to even; 0 gives infinity
    return static_cast<uint8_t>(std::min(std::max(0.0, steps), largest_));
  }

  double tau_, largest_;
};

}  // namespace samq
