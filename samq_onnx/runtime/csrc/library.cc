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
      op<Attention<false>>(),
      op<Attention<true>>(),
      op<QAttention<LogCodes, false, false>>(),
      op<QAttention<LogCodes, false, true>>(),
      op<QAttention<LogCodes, true, false>>(),
      op<QAttention<LogCodes, true, true>>(),
      op<QAttention<UniformCodes, false, false>>(),
      op<QAttention<UniformCodes, false, true>>(),
      op<QAttention<UniformCodes, true, false>>(),
      op<QAttention<UniformCodes, true, true>>(),
      op<QAttention<LogRowCodes, false, false>>(),
      op<QAttention<LogRowCodes, false, true>>(),
      op<QAttention<LogRowCodes, true, false>>(),
      op<QAttention<LogRowCodes, true, true>>(),
      op<QAttention<UniformRowCodes, false, false>>(),
      op<QAttention<UniformRowCodes, false, true>>(),
      op<QAttention<UniformRowCodes, true, false>>(),
      op<QAttention<UniformRowCodes, true, true>>(),
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
