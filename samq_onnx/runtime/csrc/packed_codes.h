// SPDX-License-Identifier: Apache-2.0
// Codes on their way to a product: their range decides the form that they are packed in.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "choose_form.h"
#include "cpu.h"
#include "kernel.h"
#include "pack.h"

namespace samq {

struct CodeRange {
  int32_t lowest, highest;
  int32_t middle() const { return (lowest + highest + 1) / 2; }
};

// The range of codes u8 or s8, up to 1 at least; that of all codes where the kernels multiply them alike.
template <class T>
CodeRange code_range(const Context& context, const TileKernels& kernels, const Tensor<T>& codes);

// k or v of some batch entries at a time.
class PackedCodes {
 public:
  // Operand b[i][j] = codes[i * depth_step + j * column_step], i < depth, j < columns, entries depth * columns apart,
  // with room for `room` entries; `left` is the largest left operand. Without `narrow` the form is kPairs.
  PackedCodes(const Context& context, const TileKernels& kernels, const Tensor<uint8_t>& codes, int64_t room,
              int64_t depth, int64_t depth_step, int64_t columns, int64_t column_step, int32_t zero_point, int32_t left,
              bool narrow);

  // Packs `count` entries, from entry `first` on.
  void pack(const Context& context, int64_t first, int64_t count);

  int32_t centre;  // what is taken off the codes: the zero point for kPairs
  Packed packed;
  int64_t step;  // elements from one entry to the next

 private:
  const uint8_t* codes_;
  int64_t depth_, depth_step_, columns_, column_step_, panel_;
  Buffer<int16_t> pairs_;
  Buffer<int8_t> bytes_;
};

}  // namespace samq
