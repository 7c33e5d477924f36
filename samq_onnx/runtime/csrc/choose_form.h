// SPDX-License-Identifier: Apache-2.0
// The form in which a right operand of given codes is multiplied fastest.
#pragma once

#include <algorithm>

#include "tile.h"

namespace samq {

// For left operands up to `left` and right operands up to `right` in magnitude. Fills form and run.
inline Packed choose_form(const TileKernels& kernels, int32_t left, int32_t right) {
  constexpr int32_t kLargestShort = 32767;
  constexpr int32_t kLongestRun = 64;  // groups added in 16 bits; more gain nothing
  constexpr int32_t kShortestRun = 2;  // with fewer, pairs are as fast
  Packed packed{};
  packed.form = kernels.wide_form;
  packed.run = std::min(kLongestRun, kLargestShort / (2 * std::max(1, left * right)));
  if (kernels.has_bytes && packed.run >= kShortestRun) packed.form = Form::kBytes;
  return packed;
}

}  // namespace samq
