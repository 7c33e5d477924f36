// SPDX-License-Identifier: Apache-2.0
// The work of one tile of a linear layer on codes: a few rows of x against all columns of the weight.
//
// out[m][n] = finish(bias[n] + sum_k x[m][k] w[k][n]), x unsigned, w signed, sums exact in 32 bits.
#pragma once

#include <cstdint>

#include "packed.h"

namespace samq {

struct LinearJob {
  int64_t rows, depth, columns;  // M, K, N
  const uint8_t* x;              // [M][K]
  Packed w;
  const int32_t* bias;   // [N padded to panels]
  const float* scale;    // likewise
  const float* zero;     // likewise, of codes
  float largest_code;    // of codes
  const uint8_t* table;  // [largest_code + 1]; null: the codes themselves
  float* out;            // [M][N] float, or null
  const float* residual;  // [M][N], added to out; or null
  uint8_t* codes;        // [M][N], where out is null
};

constexpr int64_t kLinearRows = 48;

}  // namespace samq
