// SPDX-License-Identifier: Apache-2.0
#include "packed_codes.h"

#include <limits>
#include <mutex>

namespace samq {
namespace {

constexpr int64_t kBlock = 65536;    // codes that one task looks through

}  // namespace

template <class T>
CodeRange code_range(const Context& context, const TileKernels& kernels, const Tensor<T>& codes) {
  constexpr int32_t kLowest = std::numeric_limits<T>::min();  // taken off: of unsigned bytes every CPU finds many at once
  if (!kernels.has_bytes) return {kLowest, kLowest + 255};
  if (codes.size() == 0) return {0, 1};
  uint8_t lowest = 255, highest = 1 - kLowest;
  std::mutex mutex;
  context.parallel_for((codes.size() + kBlock - 1) / kBlock, [&](int64_t block) {
    const int64_t end = std::min(codes.size(), (block + 1) * kBlock);
    uint8_t low = 255, high = 0;
    for (int64_t i = block * kBlock; i < end; ++i) {
      const auto code = static_cast<uint8_t>(codes.data[i] - kLowest);
      low = std::min(low, code);
      high = std::max(high, code);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    lowest = std::min(lowest, low);
    highest = std::max(highest, high);
  });
  return {lowest + kLowest, highest + kLowest};
}

template CodeRange code_range(const Context&, const TileKernels&, const Tensor<uint8_t>&);
template CodeRange code_range(const Context&, const TileKernels&, const Tensor<int8_t>&);

PackedCodes::PackedCodes(const Context& context, const TileKernels& kernels, const Tensor<uint8_t>& codes, int64_t room,
                         int64_t depth, int64_t depth_step, int64_t columns, int64_t column_step, int32_t zero_point,
                         int32_t left, bool narrow)
    : centre(zero_point),
      packed([&] {
        if (!narrow) return Packed{Form::kPairs, 0, 0, nullptr};
        const CodeRange range = code_range(context, kernels, codes);
        const int32_t middle = range.middle();
        const Packed made = choose_form(kernels, left, std::max(range.highest - middle, middle - range.lowest));
        if (made.form != Form::kPairs) centre = middle;
        return made;
      }()),
      step(packed.form == Form::kPairs ? packed_size<2>(depth, columns, kernels.panel)
                                       : packed_size<4>(depth, columns, kernels.panel)),
      codes_(codes.data),
      depth_(depth),
      depth_step_(depth_step),
      columns_(columns),
      column_step_(column_step),
      panel_(kernels.panel),
      pairs_(packed.form == Form::kPairs ? room * step : 0),
      bytes_(packed.form == Form::kPairs ? 0 : room * step) {
  const bool pairs = packed.form == Form::kPairs;
  packed.depth = round_up(depth, pairs ? 2 : 4);
  packed.data = pairs ? static_cast<const void*>(pairs_.data()) : bytes_.data();
}

void PackedCodes::pack(const Context& context, int64_t first, int64_t count) {
  context.parallel_for(count, [&](int64_t entry) {
    const uint8_t* const from = codes_ + (first + entry) * depth_ * columns_;
    const int64_t at = entry * step;
    if (packed.form == Form::kPairs)
      samq::pack<2>(from, depth_, depth_step_, columns_, column_step_, centre, panel_, pairs_.data() + at);
    else
      samq::pack<4>(from, depth_, depth_step_, columns_, column_step_, centre, panel_, bytes_.data() + at);
  });
}

}  // namespace samq
