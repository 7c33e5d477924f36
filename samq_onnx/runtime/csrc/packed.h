// SPDX-License-Identifier: Apache-2.0
// The right operand of an integer product, packed in panels of columns (pack.h), and the form it takes.
#pragma once

#include <cstdint>

namespace samq {

// What stands beside each other along the depth, and how products are added; the left operand is u8, or for kPairs its
// 16-bit form.
enum class Form {
  kPairs,  // two 16-bit numbers; products are added in 32 bits
  kBytes,  // four signed bytes; `run` groups of products are added in 16 bits, which must be safe, then in 32
  kQuads,  // four signed bytes; products are added in 32 bits
};

struct Packed {
  Form form;
  int64_t depth;     // padded to whole groups
  int64_t run;       // of kBytes
  const void* data;  // [columns / panel][depth / group][panel][group] int16_t or int8_t
};

}  // namespace samq
