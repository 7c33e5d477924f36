// SPDX-License-Identifier: Apache-2.0
// samq.QLinear, QLinearResidual, QLinearQuantize and QLinearLut: linear layers on codes. Sums are exact, and the float
// steps after them are single rounded operations in the order of the function bodies (ops.py).
//
// The weight is packed in every run: it costs a 1/M part of the products, and the packed form is freed again.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu.h"
#include "kernel.h"
#include "packed_codes.h"

namespace samq {

// What the forms share: inputs x, w, bias, scale.
class Linear {
 public:
  Linear(const Context& context, const TileKernels& kernels);
  // Fills an input of N elements or one to whole panels.
  std::vector<float> per_column(const Context& context, size_t index, const char* name) const;
  Dims output_dims() const;
  void run(const Context& context);  // with job.out or job.codes set

  LinearJob job{};

 private:
  const TileKernels& kernels_;
  Tensor<uint8_t> x_;
  Tensor<int8_t> w_;
  Tensor<int32_t> bias_;
  std::vector<float> scale_;
};

// Shape of x [.., K] times w [K, N]; empty if not known.
Dims linear_output(const Dims& x, const Dims& w);

class QLinear {
 public:
  static constexpr const char* kName = "QLinear";
  static constexpr ort::ElementType kInputs[] = {ort::kUint8, ort::kInt8, ort::kInt32, ort::kFloat};
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static Dims infer(const std::vector<Dims>& inputs) { return linear_output(inputs[0], inputs[1]); }

  explicit QLinear(const Attributes&) {}

  void compute(const Context& context) const {
    Linear linear(context, tile_kernels());
    linear.job.out = context.output<float>(linear.output_dims());
    linear.run(context);
  }
};

class QLinearResidual {
 public:
  static constexpr const char* kName = "QLinearResidual";
  static constexpr ort::ElementType kInputs[] = {ort::kUint8, ort::kInt8,
                                                 ort::kInt32, ort::kFloat, ort::kFloat};
  static constexpr ort::ElementType kOutput = ort::kFloat;
  static Dims infer(const std::vector<Dims>& inputs) { return linear_output(inputs[0], inputs[1]); }

  explicit QLinearResidual(const Attributes&) {}

  void compute(const Context& context) const {
    Linear linear(context, tile_kernels());
    const auto residual = context.tensor<float>(4, "residual");
    if (residual.dims != linear.output_dims())
      throw Failure("residual must have the shape of the output, " + to_string(linear.output_dims()) + ", got " +
                    to_string(residual.dims));
    linear.job.residual = residual.data;
    linear.job.out = context.output<float>(linear.output_dims());
    linear.run(context);
  }
};

class QLinearQuantize {
 public:
  static constexpr const char* kName = "QLinearQuantize";
  static constexpr ort::ElementType kInputs[] = {ort::kUint8, ort::kInt8,
                                                 ort::kInt32, ort::kFloat, ort::kFloat};
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static Dims infer(const std::vector<Dims>& inputs) { return linear_output(inputs[0], inputs[1]); }

  explicit QLinearQuantize(const Attributes& attributes)
      : largest_code_(static_cast<float>((1 << attributes.integer("bits", 1, 8)) - 1)) {}

  void compute(const Context& context) const {
    Linear linear(context, tile_kernels());
    const std::vector<float> zero = linear.per_column(context, 4, "y_zero");
    linear.job.zero = zero.data();
    linear.job.largest_code = largest_code_;
    linear.job.codes = context.output<uint8_t>(linear.output_dims());
    linear.run(context);
  }

 private:
  float largest_code_;
};

class QLinearLut {
 public:
  static constexpr const char* kName = "QLinearLut";
  static constexpr ort::ElementType kInputs[] = {ort::kUint8, ort::kInt8, ort::kInt32,
                                                 ort::kFloat, ort::kFloat, ort::kUint8};
  static constexpr ort::ElementType kOutput = ort::kUint8;
  static Dims infer(const std::vector<Dims>& inputs) { return linear_output(inputs[0], inputs[1]); }

  explicit QLinearLut(const Attributes&) {}

  void compute(const Context& context) const {
    Linear linear(context, tile_kernels());
    const std::vector<float> zero = linear.per_column(context, 4, "y_zero");
    const auto table = context.tensor<uint8_t>(5, "table");
    if (table.size() < 1 || table.size() > kLargestTable)
      throw Failure("table must have from 1 to 65536 entries, got shape " + to_string(table.dims));
    linear.job.zero = zero.data();
    linear.job.largest_code = static_cast<float>(table.size() - 1);
    linear.job.table = table.data;
    linear.job.codes = context.output<uint8_t>(linear.output_dims());
    linear.run(context);
  }

 private:
  static constexpr int64_t kLargestTable = 65536;
};

}  // namespace samq
