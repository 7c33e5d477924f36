// SPDX-License-Identifier: Apache-2.0
// The work of one tile of a linear layer on codes: a few rows of x against all columns of the weight.
//
// out[m][n] = finish(bias[n] + sum_k x[m][k] w[k][n]), x unsigned, w signed, sums exact in 32 bits. The weight is
// packed first (pack.h); its form follows from what the instruction set multiplies fastest:
//   kPairs   w as 16-bit pairs; x is spread to 16 bits in each tile
//   kBytes   w as bytes in groups of four; `run` products of a byte of x are added in 16 bits, which the caller must
//            have found to be safe
//   kQuads   the same bytes, added in 32 bits at once
#pragma once

#include <cstddef>
#include <cstdint>

namespace samq {

enum class WeightForm { kPairs, kBytes, kQuads };

struct LinearJob {
  int64_t rows, depth, columns;  // M, K, N
  const uint8_t* x;              // [M][K]
  WeightForm form;
  const void* panels;            // kPairs: int16_t [N / panel][K / 2][panel][2], else int8_t [N / panel][K / 4][panel][4]
  int64_t run;                   // kBytes: groups of four whose sums fit into 16 bits
  const int32_t* bias;           // [N padded to panels]
  const float* scale;            // likewise
  const float* zero;             // likewise, of codes
  float largest_code;            // of codes
  const uint8_t* table;          // [largest_code + 1], null: the codes themselves
  float* out;                    // [M][N] float, or null
  uint8_t* codes;                // [M][N], where out is null
};

constexpr int64_t kLinearRows = 48;

}  // namespace samq
