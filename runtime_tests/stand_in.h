// SPDX-License-Identifier: Apache-2.0
// A stand-in for ONNX Runtime, as far as ort_abi.h describes it: tensors whose memory ends where they end, a ParallelFor
// on threads of its own, calls that fail when asked to. Sanitizers see all of it, which they do not of the real one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ort_abi.h"

namespace samq::ort {

struct Status {
  int32_t code;
  std::string message;
};
struct ShapeInfo {
  std::vector<int64_t> dims;
  size_t symbols = 0;
};
struct Value {
  int32_t type = 0;
  ShapeInfo shape;
  std::shared_ptr<char[]> data;
};
struct CustomOpDomain {
  std::string name;
  std::vector<const CustomOp*> ops;
};
struct SessionOptions {
  std::vector<CustomOpDomain*> domains;
};
struct KernelInfo {
  std::map<std::string, float> floats;
  std::map<std::string, int64_t> ints;
};
struct KernelContext {
  const std::vector<Value>* inputs;
  Value output;  // type given
  size_t threads;
};
struct InferContext {
  std::vector<ShapeInfo> inputs, outputs;
};

}  // namespace samq::ort

namespace samq::stand_in {

using ort::Status;

inline size_t element_size(int32_t type) {
  switch (type) {
    case ort::kUint8:
    case ort::kInt8: return 1;
    case ort::kInt16: return 2;
    default: return 4;
  }
}

inline size_t element_count(const std::vector<int64_t>& dims) {
  size_t count = 1;
  for (const int64_t dim : dims) count *= static_cast<size_t>(dim);
  return count;
}

// The call that fails: so many go well before it. Negative: none does. Atomics are relaxed all over here, so that they
// put no order between threads that the operators do not put there themselves.
inline std::atomic<int64_t> calls_before_failure{-1};
// Whether this thread runs a task of ParallelFor.
inline thread_local bool in_task = false;

inline Status* failure() {
  if (calls_before_failure.load(std::memory_order_relaxed) < 0) return nullptr;
  if (calls_before_failure.fetch_sub(1, std::memory_order_relaxed) != 0) return nullptr;
  return new Status{1, "asked to fail"};
}

// The call's own work, unless it is to fail.
template <class Body>
Status* unless_failing(const Body& body) {
  if (Status* const status = failure()) return status;
  return body();
}

inline Status* create_status(int32_t code, const char* message) { return new Status{code, message}; }
inline const char* error_message(const Status* status) { return status->message.c_str(); }
inline void release_status(Status* status) { delete status; }
inline void release_shape(ort::ShapeInfo* shape) { delete shape; }

inline Status* create_domain(const char* name, ort::CustomOpDomain** out) {
  return unless_failing([&] { return *out = new ort::CustomOpDomain{name, {}}, nullptr; });
}
inline Status* domain_add(ort::CustomOpDomain* domain, const ort::CustomOp* op) {
  return unless_failing([&] { return domain->ops.push_back(op), nullptr; });
}
inline Status* add_domain(ort::SessionOptions* options, ort::CustomOpDomain* domain) {
  return unless_failing([&] { return options->domains.push_back(domain), nullptr; });
}

inline Status* tensor_data(ort::Value* value, void** out) {
  return unless_failing([&] { return *out = value->data.get(), nullptr; });
}
inline Status* tensor_shape(const ort::Value* value, ort::ShapeInfo** out) {
  return unless_failing([&] { return *out = new ort::ShapeInfo(value->shape), nullptr; });
}
inline Status* create_shape(ort::ShapeInfo** out) {
  return unless_failing([&] { return *out = new ort::ShapeInfo, nullptr; });
}
inline Status* set_dims(ort::ShapeInfo* shape, const int64_t* dims, size_t count) {
  return unless_failing([&] { return shape->dims.assign(dims, dims + count), nullptr; });
}
inline Status* set_symbols(ort::ShapeInfo* shape, const char**, size_t count) {
  return unless_failing([&] { return shape->symbols = count, nullptr; });
}
inline Status* dims_count(const ort::ShapeInfo* shape, size_t* out) {
  return unless_failing([&] { return *out = shape->dims.size(), nullptr; });
}
inline Status* dims(const ort::ShapeInfo* shape, int64_t* out, size_t count) {
  return unless_failing([&] { return std::copy_n(shape->dims.begin(), count, out), nullptr; });
}

template <class T>
Status* attribute(const std::map<std::string, T>& attributes, const char* name, T* out) {
  return unless_failing([&]() -> Status* {
    const auto found = attributes.find(name);
    if (found == attributes.end()) return new Status{1, std::string("no attribute ") + name};
    *out = found->second;
    return nullptr;
  });
}
inline Status* attribute_float(const ort::KernelInfo* info, const char* name, float* out) {
  return attribute(info->floats, name, out);
}
inline Status* attribute_int(const ort::KernelInfo* info, const char* name, int64_t* out) {
  return attribute(info->ints, name, out);
}

inline Status* input(const ort::KernelContext* context, size_t index, const ort::Value** out) {
  return unless_failing([&] { return *out = &context->inputs->at(index), nullptr; });
}
inline Status* output(ort::KernelContext* context, size_t, const int64_t* dims, size_t count, ort::Value** out) {
  return unless_failing([&] {
    ort::Value& made = context->output;
    made.shape.dims.assign(dims, dims + count);
    const size_t bytes = element_count(made.shape.dims) * element_size(made.type);
    made.data.reset(new char[bytes]);
    std::memset(made.data.get(), 0x5A, bytes);
    return *out = &made, nullptr;
  });
}

inline Status* inferred_input(const ort::InferContext* context, size_t index, ort::ShapeInfo** borrowed) {
  return unless_failing([&] { return *borrowed = const_cast<ort::ShapeInfo*>(&context->inputs.at(index)), nullptr; });
}
// Early versions want as many names as dimensions.
inline Status* infer_output(const ort::InferContext* context, size_t, const ort::ShapeInfo* shape) {
  return unless_failing([&]() -> Status* {
    if (shape->symbols != shape->dims.size()) return new Status{1, "symbolic and integer dimensions differ in number"};
    return const_cast<ort::InferContext*>(context)->outputs.assign(1, *shape), nullptr;
  });
}

// Every thread takes its share of the tasks, so that all of them run some.
inline Status* parallel_for(const ort::KernelContext* context, void (*task)(void*, size_t), size_t total, size_t, void* user) {
  return unless_failing([&] {
    const auto work = [=](size_t first) {
      in_task = true;
      for (size_t i = first; i < total; i += context->threads) task(user, i);
      in_task = false;
    };
    std::vector<std::thread> others;
    for (size_t i = 1; i < std::min(context->threads, total); ++i) others.emplace_back(work, i);
    work(0);
    for (std::thread& other : others) other.join();
    return nullptr;
  });
}

// The table, with a function in each slot that ort_abi.h names and none elsewhere.
inline const ort::Api* get_api(uint32_t version) {
  using namespace ort;
  constexpr size_t kSlots = 512;
  static void* table[kSlots] = {};
#define SAMQ_FILL(slot, official, name, result, parameters)           \
  {                                                                   \
    static_assert((slot) < kSlots);                                   \
    result(*function) parameters = stand_in::name;                    \
    table[slot] = reinterpret_cast<void*>(function);                  \
  }
  SAMQ_ORT_FUNCTIONS(SAMQ_FILL)
#undef SAMQ_FILL
  return version == ort::kApiVersion ? reinterpret_cast<const ort::Api*>(table) : nullptr;
}

inline const char* version_string() { return "stand-in"; }

}  // namespace samq::stand_in
