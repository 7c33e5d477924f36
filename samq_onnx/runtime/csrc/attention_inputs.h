// SPDX-License-Identifier: Apache-2.0
// What the attention operators have in common: shape checks, output shapes, relative-position tables.
#pragma once

#include <type_traits>
#include <vector>

#include "buffer.h"
#include "kernel.h"
#include "tile.h"

namespace samq {

// Failure if q [..., M, d], k [..., N, d], v [..., N, dv] do not fit together.
void check_attention(const Dims& q, const Dims& k, const Dims& v);

// Their sizes, where the output has elements.
Sizes attention_sizes(const Dims& q, const Dims& k, const Dims& v);

// Shape of the output, empty if not known.
Dims attention_output(const Dims& q, const Dims& v);

// The octaves that one unit of a sum adds to a logit; Failure unless all logits stay finite with them.
float logit_unit(float octaves, const char* name);

// What is added to the scores: nothing, decomposed relative position of two tables, or a constant.
enum class Terms { kNone, kRelPos, kBias };
constexpr const char* kTermNames[] = {"", "RelPos", "Bias"};

// The view of a bias [groups, M, N] that tiles take; Failure if it does not fit q and k.
template <class T>
Bias<T> fitting_bias(const Tensor<T>& bias, const Dims& q, const Dims& k);

// Packed tables of decomposed relative position, float or int16_t codes, and the view of them that tiles take.
template <class T>
class RelPosTables {
 public:
  // Failure if table_h [Hq, Hk, d], table_w [Wq, Wk, d] do not fit q and k.
  static void check(const Dims& table_h, const Dims& table_w, const Dims& q, const Dims& k);
  // Packs tables that fit.
  RelPosTables(const Tensor<T>& table_h, const Tensor<T>& table_w, int64_t panel);
  const RelPos<T>& view() const { return view_; }

 private:
  static constexpr int kGroup = std::is_same_v<T, float> ? 1 : 2;
  static int64_t size(const Tensor<T>& table, int64_t panel);
  static void pack_table(const Tensor<T>& table, int64_t panel, T* out);

  Buffer<T> h_, w_;
  RelPos<T> view_;
};

}  // namespace samq
