// SPDX-License-Identifier: Apache-2.0
// The part of ONNX Runtime's C interface that this library uses, in our own words.
//
// The interface is a table of function pointers that only ever grows at its end, so a function is known by its slot.
// All slots used exist since API version 18 (ONNX Runtime 1.18). abi_check.cc compares this file with the official
// header where one is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace samq::ort {

constexpr uint32_t kApiVersion = 18;

struct Api;
struct CustomOp;
struct CustomOpDomain;
struct InferContext;
struct KernelContext;
struct KernelInfo;
struct SessionOptions;
struct ShapeInfo;
struct Status;
struct Value;

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*version_string)();
};

enum ElementType : int32_t { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt16 = 5, kInt32 = 6 };
enum ErrorCode : int32_t { kInvalidArgument = 2, kRuntimeException = 6 };

// X(slot, name in the official table, our name, result, parameters). Status* is null for success.
#define SAMQ_ORT_FUNCTIONS(X)                                                                                     \
  X(0, CreateStatus, create_status, Status*, (int32_t code, const char* message))                                 \
  X(2, GetErrorMessage, error_message, const char*, (const Status*))                                              \
  X(26, CreateCustomOpDomain, create_domain, Status*, (const char* name, CustomOpDomain** out))                   \
  X(27, CustomOpDomain_Add, domain_add, Status*, (CustomOpDomain*, const CustomOp*))                              \
  X(28, AddCustomOpDomain, add_domain, Status*, (SessionOptions*, CustomOpDomain*))                               \
  X(51, GetTensorMutableData, tensor_data, Status*, (Value*, void** out))                                         \
  X(57, CreateTensorTypeAndShapeInfo, create_shape, Status*, (ShapeInfo** out))                                   \
  X(59, SetDimensions, set_dims, Status*, (ShapeInfo*, const int64_t* dims, size_t count))                        \
  X(61, GetDimensionsCount, dims_count, Status*, (const ShapeInfo*, size_t* out))                                 \
  X(62, GetDimensions, dims, Status*, (const ShapeInfo*, int64_t* out, size_t count))                             \
  X(65, GetTensorTypeAndShape, tensor_shape, Status*, (const Value*, ShapeInfo** out))                            \
  X(85, KernelInfoGetAttribute_float, attribute_float, Status*, (const KernelInfo*, const char* name, float* out)) \
  X(86, KernelInfoGetAttribute_int64, attribute_int, Status*, (const KernelInfo*, const char* name, int64_t* out)) \
  X(90, KernelContext_GetInput, input, Status*, (const KernelContext*, size_t index, const Value** out))          \
  X(91, KernelContext_GetOutput, output, Status*,                                                                 \
    (KernelContext*, size_t index, const int64_t* dims, size_t count, Value** out))                               \
  X(93, ReleaseStatus, release_status, void, (Status*))                                                           \
  X(99, ReleaseTensorTypeAndShapeInfo, release_shape, void, (ShapeInfo*))                                         \
  X(268, ShapeInferContext_GetInputTypeShape, inferred_input, Status*,                                            \
    (const InferContext*, size_t index, ShapeInfo** borrowed))                                                    \
  X(270, ShapeInferContext_SetOutputTypeShape, infer_output, Status*,                                             \
    (const InferContext*, size_t index, const ShapeInfo*))                                                        \
  X(271, SetSymbolicDimensions, set_symbols, Status*, (ShapeInfo*, const char** names, size_t count))             \
  X(274, KernelContext_ParallelFor, parallel_for, Status*,                                                        \
    (const KernelContext*, void (*task)(void* user, size_t index), size_t total, size_t batches, void* user))

// What a library tells the runtime about one operator. The object must outlive every session.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel_v1)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);  // null is the CPU
  int32_t (*input_type)(const CustomOp*, size_t index);
  size_t (*input_count)(const CustomOp*);
  int32_t (*output_type)(const CustomOp*, size_t index);
  size_t (*output_count)(const CustomOp*);
  void (*compute_v1)(void* kernel, KernelContext*);
  void (*destroy_kernel)(void* kernel);
  int32_t (*input_kind)(const CustomOp*, size_t index);   // 0 is required
  int32_t (*output_kind)(const CustomOp*, size_t index);  // 0 is required
  int32_t (*input_memory)(const CustomOp*, size_t index);  // 0 is the default
  int (*variadic_input_minimum)(const CustomOp*);
  int (*variadic_input_same_type)(const CustomOp*);
  int (*variadic_output_minimum)(const CustomOp*);
  int (*variadic_output_same_type)(const CustomOp*);
  Status* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute)(void* kernel, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, InferContext*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int** inputs, int** outputs);
  void (*release_may_inplace)(int* inputs, int* outputs);
  size_t (*alias_map)(int** inputs, int** outputs);
  void (*release_alias_map)(int* inputs, int* outputs);
};

static_assert(sizeof(void*) == 8 && sizeof(CustomOp) == 208, "the interface is described for 64-bit machines");

// The functions, by our names.
struct Functions {
#define SAMQ_DECLARE(slot, official, name, result, parameters) result(*name) parameters;
  SAMQ_ORT_FUNCTIONS(SAMQ_DECLARE)
#undef SAMQ_DECLARE
};

// Reads the functions from the runtime's table.
inline Functions read_functions(const Api* api) {
  const auto* table = reinterpret_cast<void* const*>(api);
  Functions functions;
#define SAMQ_READ(slot, official, name, result, parameters) \
  functions.name = reinterpret_cast<result(*) parameters>(table[slot]);
  SAMQ_ORT_FUNCTIONS(SAMQ_READ)
#undef SAMQ_READ
  return functions;
}

}  // namespace samq::ort
