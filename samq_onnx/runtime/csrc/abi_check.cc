// SPDX-License-Identifier: Apache-2.0
// Compares ort_abi.h with the official header. CMake compiles this file only where it finds that header.
#include "ort_abi.h"

#include <onnxruntime_c_api.h>

#define SAMQ_CHECK(slot, official, name, result, parameters) \
  static_assert(offsetof(OrtApi, official) == (slot) * sizeof(void*), #official " has another slot");
namespace samq::ort {
SAMQ_ORT_FUNCTIONS(SAMQ_CHECK)
}
#undef SAMQ_CHECK

#define SAMQ_MEMBER(ours, official) \
  static_assert(offsetof(samq::ort::CustomOp, ours) == offsetof(OrtCustomOp, official), #official " has moved");
SAMQ_MEMBER(name, GetName)
SAMQ_MEMBER(input_type, GetInputType)
SAMQ_MEMBER(output_count, GetOutputTypeCount)
SAMQ_MEMBER(destroy_kernel, KernelDestroy)
SAMQ_MEMBER(input_memory, GetInputMemoryType)
SAMQ_MEMBER(create_kernel, CreateKernelV2)
SAMQ_MEMBER(compute, KernelComputeV2)
SAMQ_MEMBER(infer_shape, InferOutputShapeFn)
SAMQ_MEMBER(start_version, GetStartVersion)
SAMQ_MEMBER(release_alias_map, ReleaseAliasMap)
#undef SAMQ_MEMBER

#define SAMQ_VALUE(ours, official) \
  static_assert(static_cast<int>(samq::ort::ours) == static_cast<int>(official), #official " has another value");
SAMQ_VALUE(kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
SAMQ_VALUE(kUint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
SAMQ_VALUE(kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8)
SAMQ_VALUE(kInt16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16)
SAMQ_VALUE(kInvalidArgument, ORT_INVALID_ARGUMENT)
SAMQ_VALUE(kRuntimeException, ORT_RUNTIME_EXCEPTION)
#undef SAMQ_VALUE
