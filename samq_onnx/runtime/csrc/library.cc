// SPDX-License-Identifier: Apache-2.0
// The entry point that ONNX Runtime looks for, and the list of operators.
#include <cstdio>

#include "attention.h"
#include "cpu.h"
#include "layer_norm_quantize.h"
#include "linear.h"
#include "log_quantize.h"
#include "op.h"
#include "q_attention.h"
#include "shift_lut_matmul.h"

#define SAMQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace samq {
namespace {

ort::Functions functions;

ort::CustomOpDomain* make_domain() {
  ort::CustomOpDomain* domain = nullptr;
  check(runtime().create_domain("samq", &domain));
  const ort::CustomOp* const ops[] = {
      op<Attention<Terms::kNone>>(),
      op<Attention<Terms::kRelPos>>(),
      op<Attention<Terms::kBias>>(),
      op<QAttention<LogCodes, Terms::kNone, false>>(),
      op<QAttention<LogCodes, Terms::kNone, true>>(),
      op<QAttention<LogCodes, Terms::kRelPos, false>>(),
      op<QAttention<LogCodes, Terms::kRelPos, true>>(),
      op<QAttention<LogCodes, Terms::kBias, false>>(),
      op<QAttention<LogCodes, Terms::kBias, true>>(),
      op<QAttention<UniformCodes, Terms::kNone, false>>(),
      op<QAttention<UniformCodes, Terms::kNone, true>>(),
      op<QAttention<UniformCodes, Terms::kRelPos, false>>(),
      op<QAttention<UniformCodes, Terms::kRelPos, true>>(),
      op<QAttention<UniformCodes, Terms::kBias, false>>(),
      op<QAttention<UniformCodes, Terms::kBias, true>>(),
      op<QAttention<LogRowCodes, Terms::kNone, false>>(),
      op<QAttention<LogRowCodes, Terms::kNone, true>>(),
      op<QAttention<LogRowCodes, Terms::kRelPos, false>>(),
      op<QAttention<LogRowCodes, Terms::kRelPos, true>>(),
      op<QAttention<LogRowCodes, Terms::kBias, false>>(),
      op<QAttention<LogRowCodes, Terms::kBias, true>>(),
      op<QAttention<UniformRowCodes, Terms::kNone, false>>(),
      op<QAttention<UniformRowCodes, Terms::kNone, true>>(),
      op<QAttention<UniformRowCodes, Terms::kRelPos, false>>(),
      op<QAttention<UniformRowCodes, Terms::kRelPos, true>>(),
      op<QAttention<UniformRowCodes, Terms::kBias, false>>(),
      op<QAttention<UniformRowCodes, Terms::kBias, true>>(),
      op<LayerNormQuantize>(),
      op<LogQuantize>(),
      op<ShiftLutMatMul>(),
      op<QLinear>(),
      op<QLinearResidual>(),
      op<QLinearQuantize>(),
      op<QLinearLut>(),
  };
  for (const ort::CustomOp* one : ops) check(runtime().domain_add(domain, one));
  return domain;
}

}  // namespace

const ort::Functions& runtime() { return functions; }

}  // namespace samq

SAMQ_EXPORT samq::ort::Status* RegisterCustomOps(samq::ort::SessionOptions* options, const samq::ort::ApiBase* base) {
  using namespace samq;
  static const bool ready = [base] {
    const ort::Api* api = base->get_api(ort::kApiVersion);
    if (api != nullptr) functions = ort::read_functions(api);
    return api != nullptr;
  }();
  if (!ready) {  // too old to make a Status with; models still run, by their function bodies
    std::fprintf(stderr, "samq: ONNX Runtime %s is too old for the native kernels, 1.18 is needed\n",
                 base->version_string());
    return nullptr;
  }
  return guarded([options] {
    static ort::CustomOpDomain* const domain = make_domain();  // sessions point into it: never released
    check(runtime().add_domain(options, domain));
  });
}

// Whether this CPU multiplies u8 by s8 without saturating (x86 with VNNI).
SAMQ_EXPORT int samq_has_vnni() { return samq::has_vnni(); }

// Name of the instruction set that the attention kernels were chosen for.
SAMQ_EXPORT const char* samq_instruction_set() { return samq::tile_kernels().name; }
