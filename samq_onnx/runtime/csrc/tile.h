// SPDX-License-Identifier: Apache-2.0
// The work of one tile of an attention map: a few query rows against all keys. The map itself is never held.
//
// Operands are packed first (pack.h), once for all tiles: panels of `panel` columns, so that inner loops run over
// whole vectors. N is padded to whole panels, and depths of integer operands to pairs, with zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layer_norm_tile.h"
#include "linear_tile.h"

namespace samq {

// rel_h and rel_w: table_h as [hq][hk / panel][d][panel], table_w likewise; of codes d / 2 pairs. Absent when hq is 0.
template <class T>
struct RelPos {
  const T* table_h;
  const T* table_w;
  int64_t hq, hk, hk_padded, wq, wk, wk_padded;
  float scale_h = 1, scale_w = 1;  // logits of one unit of q . table
};

// A constant term of logits: data [groups][M][N], float or int16_t codes; batch entry b gets that of (first + b) modulo
// groups. Absent when groups is 0.
template <class T>
struct Bias {
  const T* data;
  int64_t groups, first;
  float scale = 1;  // logits of one unit
};

struct Sizes {
  int64_t batch, rows, keys, depth, value_depth;  // B, M, N, d, dv
};

// softmax(scale q kT + rel) v in float; with a bias in the place of rel where there is one.
struct FloatJob {
  Sizes sizes;
  const float* q;         // [B][M][d]
  const float* k_panels;  // [B][N / panel][d][panel]
  const float* v_panels;  // [B][dv / panel][N][panel]
  float* out;             // [B][M][dv]
  float scale;
  RelPos<float> rel;
  Bias<float> bias;
};

// The same on 8-bit codes. Probabilities are coded, and every sum is taken in integers.
struct CodeJob {
  Sizes sizes;
  const uint8_t* q;         // [B][M][d]
  Packed k, v;              // [d x N] and [N x dv] of batch entry 0: codes less a centre
  int64_t k_step, v_step;   // elements from one batch entry to the next
  // The product of q and k, each less its zero point, is what the packed operand gives plus k_columns [B][N padded]
  // plus k_row times the sum of the row of q; for kPairs, which takes q less its zero point, both are 0. That of the
  // post-softmax codes and v is what the packed operand gives plus v_row times the sum of the codes.
  const int32_t* k_columns;
  int32_t k_row, v_row;
  float* out;               // [B][M][dv], or null
  uint8_t* codes;           // [B][M][dv], where out is null: quantized with
  float y_scale;
  int32_t y_zero_point;
  int32_t q_zero_point;
  // Octaves of one unit of (q - zero point) . (k - zero point). By row the unit of logits is 1 / tau octaves, or, of
  // uniform codes, 1 / kShortSteps.
  float logit_scale;
  RelPos<int16_t> rel;
  Bias<int16_t> bias;
  int32_t tau;  // log codes of 2^(1 / tau); 0: uniform codes
  int32_t largest_code;
  bool by_row;       // codes are relative to the largest of the row, and what they weigh is divided by their sum
  float p_scale;     // of other codes
  double out_scale;  // value of accumulator 1; by row, of v
};

constexpr int32_t kShortSteps = 2048;  // in an octave, of 16-bit logits
constexpr int64_t kTileRows = 24;

// One instruction set's implementation. A tile is `rows` <= kTileRows rows of batch entry `batch` from `first_row` on;
// `scratch` holds *_scratch bytes, aligned to 64. None of these throws.
struct TileKernels {
  const char* name;
  int64_t panel;
  size_t (*float_scratch)(const FloatJob&);
  void (*float_tile)(const FloatJob&, int64_t batch, int64_t first_row, int64_t rows, void* scratch);
  size_t (*code_scratch)(const CodeJob&);
  void (*code_tile)(const CodeJob&, int64_t batch, int64_t first_row, int64_t rows, void* scratch);
  Form wide_form;  // of codes of any width
  bool has_bytes;  // kBytes is there, and faster
  size_t (*linear_scratch)(const LinearJob&);
  void (*linear_tile)(const LinearJob&, int64_t first_row, int64_t rows, void* scratch);
  void (*layer_norm_tile)(const LayerNormJob&, int64_t first_row, int64_t rows);
};

const TileKernels& baseline_tile_kernels();
const TileKernels& avx2_tile_kernels();
const TileKernels& avxvnni_tile_kernels();
const TileKernels& avx512_tile_kernels();
const TileKernels& avx512vnni_tile_kernels();
const TileKernels& neondot_tile_kernels();

}  // namespace samq
