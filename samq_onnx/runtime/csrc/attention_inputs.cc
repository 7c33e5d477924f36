// SPDX-License-Identifier: Apache-2.0
#include "attention_inputs.h"

#include <cmath>

#include "pack.h"

namespace samq {
namespace {

constexpr int64_t kLargestDepth = 32768;  // products of 8-bit codes summed over it stay below 2^31
constexpr int64_t kLargestTableDepth = 256;  // products of 8-bit by 16-bit codes likewise
constexpr float kLargestUnit = 18446744073709551616.0f;  // 2^64: logits of 32-bit sums stay far below the largest float

void require(bool holds, const std::string& message) {
  if (!holds) throw Failure(message);
}

}  // namespace

void check_attention(const Dims& q, const Dims& k, const Dims& v) {
  const size_t rank = q.size();
  const std::string got = "q " + to_string(q) + ", k " + to_string(k) + ", v " + to_string(v);
  require(rank >= 3 && k.size() == rank && v.size() == rank, "q, k and v must have one rank of at least 3, got " + got);
  for (size_t i = 0; i + 2 < rank; ++i)
    require(k[i] == q[i] && v[i] == q[i], "q, k and v must have equal leading dimensions, got " + got);
  require(q[rank - 1] == k[rank - 1], "q and k must have equal last dimensions, got " + got);
  require(k[rank - 2] == v[rank - 2], "k and v must have equally many rows, got " + got);
  require(q[rank - 1] <= kLargestDepth, "the last dimension of q may be at most 32768, got " + got);
}

Sizes attention_sizes(const Dims& q, const Dims& k, const Dims& v) {
  const size_t rank = q.size();
  return {product(q, 0, rank - 2), q[rank - 2], k[rank - 2], q[rank - 1], v[rank - 1]};
}

float logit_unit(float octaves, const char* name) {
  require(std::abs(octaves) <= kLargestUnit, std::string(name) + " must be finite and far from the largest float");
  return octaves;
}

Dims attention_output(const Dims& q, const Dims& v) {
  if (q.empty() || v.empty()) return {};
  Dims out = q;
  out.back() = v.back();
  return out;
}

namespace {

void check_table(const Dims& table, const char* name, int64_t depth) {
  require(table.size() == 3 && table[2] == depth,
          std::string(name) + " must be [queries, keys, " + std::to_string(depth) + "], got " + to_string(table));
}

}  // namespace

template <class T>
Bias<T> fitting_bias(const Tensor<T>& bias, const Dims& q, const Dims& k) {
  const size_t rank = q.size();
  const int64_t batch = product(q, 0, rank - 2);
  const std::string wanted = "[groups, " + std::to_string(q[rank - 2]) + ", " + std::to_string(k[rank - 2]) + "]";
  require(bias.dims.size() == 3 && bias.dims[1] == q[rank - 2] && bias.dims[2] == k[rank - 2],
          "bias must be " + wanted + ", got " + to_string(bias.dims));
  const int64_t groups = bias.dims[0];
  require(groups == 0 ? batch == 0 : batch % groups == 0,
          "the groups of bias must divide a batch of " + std::to_string(batch) + ", got " + std::to_string(groups));
  return {bias.data, groups, 0};
}

template Bias<float> fitting_bias(const Tensor<float>&, const Dims&, const Dims&);
template Bias<int16_t> fitting_bias(const Tensor<int16_t>&, const Dims&, const Dims&);

template <class T>
void RelPosTables<T>::check(const Dims& table_h, const Dims& table_w, const Dims& q, const Dims& k) {
  const size_t rank = q.size();
  const int64_t rows = q[rank - 2], depth = q[rank - 1], keys = k[rank - 2];
  require(kGroup == 1 || depth <= kLargestTableDepth,
          "relative position takes a last dimension of q of at most 256, got " + std::to_string(depth));
  check_table(table_h, "table_h", depth);
  check_table(table_w, "table_w", depth);
  const std::string got = "table_h " + to_string(table_h) + ", table_w " + to_string(table_w);
  require(product({table_h[0], table_w[0]}, 0, 2) == rows,
          "the tables must be for " + std::to_string(rows) + " queries, got " + got);
  require(product({table_h[1], table_w[1]}, 0, 2) == keys,
          "the tables must be for " + std::to_string(keys) + " keys, got " + got);
}

template <class T>
int64_t RelPosTables<T>::size(const Tensor<T>& table, int64_t panel) {
  return table.dims[0] * packed_size<kGroup>(table.dims[2], table.dims[1], panel);
}

template <class T>
void RelPosTables<T>::pack_table(const Tensor<T>& table, int64_t panel, T* out) {
  const int64_t keys = table.dims[1], depth = table.dims[2];
  for (int64_t i = 0; i < table.dims[0]; ++i)
    pack<kGroup>(table.data + i * keys * depth, depth, 1, keys, depth, T{0}, panel,
                 out + i * packed_size<kGroup>(depth, keys, panel));
}

template <class T>
RelPosTables<T>::RelPosTables(const Tensor<T>& table_h, const Tensor<T>& table_w, int64_t panel)
    : h_(size(table_h, panel)), w_(size(table_w, panel)) {
  const int64_t hq = table_h.dims[0], hk = table_h.dims[1], wq = table_w.dims[0], wk = table_w.dims[1];
  pack_table(table_h, panel, h_.data());
  pack_table(table_w, panel, w_.data());
  view_ = {h_.data(), w_.data(), hq, hk, round_up(hk, panel), wq, wk, round_up(wk, panel)};
}

template class RelPosTables<float>;
template class RelPosTables<int16_t>;

}  // namespace samq
