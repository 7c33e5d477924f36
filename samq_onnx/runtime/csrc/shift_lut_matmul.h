// SPDX-License-Identifier: Apache-2.0
// samq.ShiftLutMatMul: log codes times v in integers (PTQ4SAM eq. 10-13). The plain form of what the QAttention tiles
// do; kept simple, as the reference that they are read against.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "kernel.h"

namespace samq {

class ShiftLutMatMul {
 public:
  static constexpr const char* kName = "ShiftLutMatMul";
  static constexpr ort::ElementType kInputs[] = {ort::kUint8, ort::kUint8, ort::kFloat, ort::kFloat, ort::kUint8};
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static Dims infer(const std::vector<Dims>& inputs) {
    if (inputs[0].empty() || inputs[1].empty()) return {};
    Dims out = inputs[0];
    out.back() = inputs[1].back();
    return out;
  }

  explicit ShiftLutMatMul(const Attributes& attributes) {
    const int64_t tau = attributes.tau();
    const int64_t largest = (1 << attributes.integer("bits", 1, 8)) - 1;
    for (int64_t code = 0; code < 256; ++code) {
      const int64_t c = std::min(code, largest);
      const int64_t n = (c + tau - 1) / tau, r = tau * n - c;
      const auto entry = static_cast<int64_t>(std::nearbyint(kOne * std::exp2(static_cast<double>(r) / static_cast<double>(tau))));
      weights_[static_cast<size_t>(code)] = entry >> std::min<int64_t>(n, 63);
    }
  }

  void compute(const Context& context) const {
    const auto codes = context.tensor<uint8_t>(0, "codes");
    const auto v = context.tensor<uint8_t>(1, "v");
    const size_t rank = codes.dims.size();
    bool fits = rank >= 2 && v.dims.size() == rank;
    for (size_t i = 0; fits && i + 2 < rank; ++i) fits = codes.dims[i] == v.dims[i];
    if (!fits || codes.dims[rank - 1] != v.dims[rank - 2])
      throw Failure("codes [..., M, N] and v [..., N, d] do not fit: " + to_string(codes.dims) + ", " + to_string(v.dims));
    const double scale = static_cast<double>(context.scalar<float>(2, "p_scale")) * context.scalar<float>(3, "v_scale") / kOne;
    const int64_t zero = context.scalar<uint8_t>(4, "v_zero_point");
    const int64_t rows = codes.dims[rank - 2], keys = codes.dims[rank - 1], depth = v.dims[rank - 1];
    float* const out = context.output<float>(infer({codes.dims, v.dims}));
    if (out == nullptr) return;

    context.parallel_for(product(codes.dims, 0, rank - 1), [&](int64_t row) {
      const uint8_t* const values = v.data + row / rows * keys * depth;
      std::vector<int64_t> sums(static_cast<size_t>(depth), 0);
      for (int64_t j = 0; j < keys; ++j) {
        const int64_t weight = weights_[codes.data[row * keys + j]];
        for (int64_t c = 0; c < depth; ++c) sums[static_cast<size_t>(c)] += weight * (values[j * depth + c] - zero);
      }
      for (int64_t c = 0; c < depth; ++c)
        out[row * depth + c] = static_cast<float>(static_cast<double>(sums[static_cast<size_t>(c)]) * scale);
    });
  }

 private:
  static constexpr double kOne = 1 << 30;
  std::array<int64_t, 256> weights_;
};

}  // namespace samq
