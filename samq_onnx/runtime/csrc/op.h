// SPDX-License-Identifier: Apache-2.0
// Turns a kernel class into the runtime's description of an operator. A kernel class has
//   static constexpr const char* kName;
//   static constexpr ort::ElementType kInputs[];          // one entry an input
//   static constexpr ort::ElementType kOutput;
//   static Dims infer(const std::vector<Dims>& inputs);   // output shape; -1: unknown
//   explicit Kernel(const Attributes&);
//   void compute(const Context&) const;                   // may run on several threads at once
#pragma once

#include <exception>
#include <iterator>
#include <memory>
#include <new>
#include <vector>

#include "kernel.h"

namespace samq {

// Runs `body`; what it throws becomes a Status.
template <class Body>
ort::Status* guarded(const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return runtime().create_status(ort::kInvalidArgument, failure.what());
  } catch (const std::bad_alloc&) {
    return runtime().create_status(ort::kRuntimeException, "out of memory");
  } catch (const std::exception& error) {
    return runtime().create_status(ort::kRuntimeException, error.what());
  }
}

template <class Kernel>
void infer_shape(ort::InferContext* context) {
  std::vector<Dims> inputs(std::size(Kernel::kInputs));
  for (size_t i = 0; i < inputs.size(); ++i) {
    ort::ShapeInfo* borrowed = nullptr;
    check(runtime().inferred_input(context, i, &borrowed));
    size_t rank = 0;
    check(runtime().dims_count(borrowed, &rank));
    inputs[i].resize(rank);
    check(runtime().dims(borrowed, inputs[i].data(), rank));
  }
  const Dims dims = Kernel::infer(inputs);
  if (dims.empty()) return;  // unknown rank
  for (const int64_t dim : dims)
    if (dim < 0) return;  // unknown; the runtime would take -1 for a number
  ort::ShapeInfo* info = nullptr;
  check(runtime().create_shape(&info));
  const std::unique_ptr<ort::ShapeInfo, void (*)(ort::ShapeInfo*)> owned(info, runtime().release_shape);
  check(runtime().set_dims(info, dims.data(), dims.size()));
  std::vector<const char*> names(dims.size(), "");  // none; ONNX Runtime 1.20 wants as many as dimensions
  check(runtime().set_symbols(info, names.data(), names.size()));
  check(runtime().infer_output(context, 0, info));
}

// The description of operator Kernel, for the life of the process.
template <class Kernel>
const ort::CustomOp* op() {
  using ort::CustomOp;
  static const CustomOp described = [] {
    CustomOp made{};
    made.version = ort::kApiVersion;
    made.name = [](const CustomOp*) { return Kernel::kName; };
    made.execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
    made.input_type = [](const CustomOp*, size_t i) -> int32_t { return Kernel::kInputs[i]; };
    made.input_count = [](const CustomOp*) { return std::size(Kernel::kInputs); };
    made.output_type = [](const CustomOp*, size_t) -> int32_t { return Kernel::kOutput; };
    made.output_count = [](const CustomOp*) -> size_t { return 1; };
    made.input_kind = [](const CustomOp*, size_t) -> int32_t { return 0; };
    made.output_kind = [](const CustomOp*, size_t) -> int32_t { return 0; };
    made.input_memory = [](const CustomOp*, size_t) -> int32_t { return 0; };
    made.create_kernel = [](const CustomOp*, const ort::Api*, const ort::KernelInfo* info, void** kernel) {
      return guarded([&] { *kernel = new Kernel(Attributes(info)); });
    };
    made.compute = [](void* kernel, ort::KernelContext* context) {
      return guarded([&] { static_cast<const Kernel*>(kernel)->compute(Context(context)); });
    };
    made.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    made.infer_shape = [](const CustomOp*, ort::InferContext* context) {
      return guarded([&] { infer_shape<Kernel>(context); });
    };
    return made;
  }();
  return &described;
}

}  // namespace samq
