// SPDX-License-Identifier: Apache-2.0
#include "attention_inputs.h"

#include "pack.h"

namespace samq {
namespace {

constexpr int64_t kLargestDepth = 32768;  // products of 8-bit codes summed over it stay below 2^31
constexpr int64_t kLargestTableDepth = 256;  // products of 8-bit by 16-bit codes likewise

void require(bool holds, const std::string& message) {
  if (!holds) throw Failure(message);
}

}  // namespace

Sizes attention_sizes(const Dims& q, const Dims& k, const Dims& v) {
  const size_t rank = q.size();
  const std::string got = "q " + to_string(q) + ", k " + to_string(k) + ", v " + to_string(v);
  require(rank >= 3 && k.size() == rank && v.size() == rank, "q, k and v must have one rank of at least 3, got " + got);
  for (size_t i = 0; i + 2 < rank; ++i)
    require(k[i] == q[i] && v[i] == q[i], "q, k and v must have equal leading dimensions, got " + got);
  require(q[rank - 1] == k[rank - 1], "q and k must have equal last dimensions, got " + got);
  require(k[rank - 2] == v[rank - 2], "k and v must have equally many rows, got " + got);
  require(q[rank - 1] <= kLargestDepth, "the last dimension of q may be at most 32768, got " + got);
  return {product(q, 0, rank - 2), q[rank - 2], k[rank - 2], q[rank - 1], v[rank - 1]};
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
int64_t RelPosTables<T>::size(const Tensor<T>& table, int64_t panel) {
  if (table.dims.size() != 3) return 0;  // refused below
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
RelPosTables<T>::RelPosTables(const Tensor<T>& table_h, const Tensor<T>& table_w, const Sizes& sizes, int64_t panel)
    : h_(size(table_h, panel)), w_(size(table_w, panel)) {
  require(kGroup == 1 || sizes.depth <= kLargestTableDepth,
          "relative position takes a last dimension of q of at most 256, got " + std::to_string(sizes.depth));
  check_table(table_h.dims, "table_h", sizes.depth);
  check_table(table_w.dims, "table_w", sizes.depth);
  const int64_t hq = table_h.dims[0], hk = table_h.dims[1], wq = table_w.dims[0], wk = table_w.dims[1];
  const std::string got = "table_h " + to_string(table_h.dims) + ", table_w " + to_string(table_w.dims);
  require(hq * wq == sizes.rows, "the tables must be for " + std::to_string(sizes.rows) + " queries, got " + got);
  require(hk * wk == sizes.keys, "the tables must be for " + std::to_string(sizes.keys) + " keys, got " + got);
  pack_table(table_h, panel, h_.data());
  pack_table(table_w, panel, w_.data());
  view_ = {h_.data(), w_.data(), hq, hk, round_up(hk, panel), wq, wk, round_up(wk, panel)};
}

template class RelPosTables<float>;
template class RelPosTables<int16_t>;

}  // namespace samq
