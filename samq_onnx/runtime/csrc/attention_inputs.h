// SPDX-License-Identifier: Apache-2.0
// What the attention operators have in common: shape checks, output shapes, relative-position tables.
#pragma once

#include <vector>

#include "buffer.h"
#include "kernel.h"
#include "tile.h"

namespace samq {

// Sizes of q [..., M, d], k [..., N, d], v [..., N, dv]; Failure if they do not fit together.
Sizes attention_sizes(const Dims& q, const Dims& k, const Dims& v);

// Shape of the output, empty if not known.
Dims attention_output(const Dims& q, const Dims& v);

// Packed tables of decomposed relative position, and the view of them that tiles take.
class RelPosTables {
 public:
  // table_h [Hq, Hk, d], table_w [Wq, Wk, d]; Failure if they do not fit the sizes.
  RelPosTables(const Tensor<float>& table_h, const Tensor<float>& table_w, const Sizes& sizes, int64_t panel);
  const RelPos& view() const { return view_; }

 private:
  Buffer<float> h_, w_;
  RelPos view_;
};

}  // namespace samq
