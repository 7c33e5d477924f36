// SPDX-License-Identifier: Apache-2.0
// Operands in the order that tile.h reads them: panels of `panel` columns, missing columns and pair halves zero.
// T is float, or int16_t for 8-bit codes with their zero point taken off; Group is how many neighbours along the
// depth stand together: 1 for float, 2 for int16_t.
#pragma once

#include <algorithm>
#include <cstdint>

namespace samq {

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Elements of a packed [depth x columns] operand.
template <int Group>
int64_t packed_size(int64_t depth, int64_t columns, int64_t panel) {
  return round_up(depth, Group) * round_up(columns, panel);
}

// b[i][j] = x[i * depth_step + j * column_step] - zero, for i < depth, j < columns
// -> out [columns / panel][depth / Group][panel][Group]
template <int Group, class Out, class In, class Zero>
void pack(const In* x, int64_t depth, int64_t depth_step, int64_t columns, int64_t column_step, Zero zero, int64_t panel,
          Out* out) {
  for (int64_t from = 0; from < columns; from += panel, out += round_up(depth, Group) * panel) {
    const int64_t count = std::min(panel, columns - from);
    if (count < panel || depth % Group) std::fill_n(out, round_up(depth, Group) * panel, Out{0});
    for (int64_t i = 0; i < depth; i += Group) {
      const In* const group = x + i * depth_step + from * column_step;
      Out* const to = out + i * panel;
      const auto copy = [&](int64_t rows) {
        for (int64_t j = 0; j < count; ++j)
          for (int64_t g = 0; g < rows; ++g)
            to[j * Group + g] = static_cast<Out>(group[g * depth_step + j * column_step] - zero);
      };
      if (depth - i >= Group)
        copy(Group);
      else
        copy(depth - i);
    }
  }
}

}  // namespace samq
