// SPDX-License-Identifier: Apache-2.0
#include "linear.h"

#include <algorithm>

namespace samq {
namespace {

constexpr int64_t kLargestDepth = 32768;  // products of 8-bit codes summed over it stay below 2^31

}  // namespace

Dims linear_output(const Dims& x, const Dims& w) {
  if (x.empty() || w.size() != 2) return {};
  Dims out = x;
  out.back() = w[1];
  return out;
}

Linear::Linear(const Context& context, const TileKernels& kernels)
    : kernels_(kernels),
      x_(context.tensor<uint8_t>(0, "x")),
      w_(context.tensor<int8_t>(1, "w")),
      bias_(context.tensor<int32_t>(2, "bias")) {
  const std::string got = "x " + to_string(x_.dims) + ", w " + to_string(w_.dims) + ", bias " + to_string(bias_.dims);
  if (x_.dims.empty() || w_.dims.size() != 2 || x_.dims.back() != w_.dims[0])
    throw Failure("x must be [.., K] and w [K, N], got " + got);
  if (bias_.dims != Dims{w_.dims[1]}) throw Failure("bias must be [N], got " + got);
  if (w_.dims[0] > kLargestDepth) throw Failure("the last dimension of x may be at most 32768, got " + got);
  job.depth = w_.dims[0];
  job.columns = w_.dims[1];
  job.x = x_.data;
  scale_ = per_column(context, 3, "scale");
  job.scale = scale_.data();
}

std::vector<float> Linear::per_column(const Context& context, size_t index, const char* name) const {
  const auto given = context.tensor<float>(index, name);
  if (given.size() != 1 && given.size() != job.columns)
    throw Failure(std::string(name) + " must hold one number or one for each of " + std::to_string(job.columns) +
                  " columns, got shape " + to_string(given.dims));
  std::vector<float> made(static_cast<size_t>(round_up(job.columns, kernels_.panel)), 0.0f);
  for (int64_t n = 0; n < job.columns; ++n) made[static_cast<size_t>(n)] = given.data[given.size() == 1 ? 0 : n];
  return made;
}

Dims Linear::output_dims() const { return linear_output(x_.dims, w_.dims); }

void Linear::run(const Context& context) {
  if (job.out == nullptr && job.codes == nullptr) return;
  job.rows = product(x_.dims, 0, x_.dims.size() - 1);
  const int64_t panel = kernels_.panel, padded = round_up(job.columns, panel), panels = padded / panel;

  std::vector<int32_t> bias(static_cast<size_t>(padded), 0);
  std::copy_n(bias_.data, job.columns, bias.begin());
  job.bias = bias.data();

  const CodeRange range = code_range(context, kernels_, w_);
  job.w = choose_form(kernels_, code_range(context, kernels_, x_).highest, std::max(range.highest, -range.lowest));
  const bool pairs = job.w.form == Form::kPairs;
  job.w.depth = round_up(job.depth, pairs ? 2 : 4);
  const int64_t panel_size = job.w.depth * panel;
  Buffer<int16_t> shorts((pairs ? 1 : 0) * panels * panel_size);
  Buffer<int8_t> bytes((pairs ? 0 : 1) * panels * panel_size);
  context.parallel_for(panels, [&](int64_t p) {
    const int8_t* const from = w_.data + p * panel;
    const int64_t count = std::min(panel, job.columns - p * panel);
    if (pairs)
      pack<2>(from, job.depth, job.columns, count, 1, 0, panel, shorts.data() + p * panel_size);
    else
      pack<4>(from, job.depth, job.columns, count, 1, 0, panel, bytes.data() + p * panel_size);
  });
  job.w.data = pairs ? static_cast<const void*>(shorts.data()) : bytes.data();

  ScratchPool pool(kernels_.linear_scratch(job));
  context.parallel_for((job.rows + kLinearRows - 1) / kLinearRows, [&](int64_t block) {
    const ScratchPool::Lease scratch(pool);
    const int64_t first = block * kLinearRows;
    kernels_.linear_tile(job, first, std::min(kLinearRows, job.rows - first), scratch.data());
  });
}

}  // namespace samq
