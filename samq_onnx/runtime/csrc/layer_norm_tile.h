// SPDX-License-Identifier: Apache-2.0
// The work of one tile of a layer norm that gives codes: a few whole rows.
//
// codes[m][n] = nearest(gain[n] (x[m][n] - mean_m) inv_m + offset[n]), clamped to [0, largest_code]
#pragma once

#include <cstdint>

namespace samq {

struct LayerNormJob {
  int64_t columns;
  const float* x;       // [M][N]
  const float* gain;    // [N padded to panels]
  const float* offset;  // likewise
  double epsilon;
  float largest_code;
  uint8_t* codes;  // [M][N]
};

constexpr int64_t kLayerNormRows = 16;

}  // namespace samq
