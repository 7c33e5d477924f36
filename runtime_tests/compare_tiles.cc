// SPDX-License-Identifier: Apache-2.0
// Random tiles of attention, linear layers and layer norms, by every set of kernels that this CPU runs, against the
// baseline: float attention within kFloatBound, the others bit for bit. Needs no ONNX Runtime, so it also runs in an
// emulator.
//
//   compare_tiles COUNT [SEED]    prints a line for each set of kernels; ends with 1 at the first difference
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "buffer.h"
#include "choose_form.h"
#include "cpu.h"
#include "pack.h"

namespace {

using samq::Buffer;
using samq::Form;
using samq::Packed;
using samq::TileKernels;

constexpr double kFloatBound = 1e-5;  // of the largest value: sums of up to 80 products, added in another order

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int32_t in(int64_t lowest, int64_t highest) {
    return static_cast<int32_t>(lowest + static_cast<int64_t>(engine_() % static_cast<uint64_t>(highest - lowest + 1)));
  }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[in(0, static_cast<int64_t>(choices.size()) - 1)];
  }
  template <class T>
  std::vector<T> codes(int64_t count, int64_t lowest, int64_t highest) {
    std::vector<T> made(static_cast<size_t>(count));
    for (T& x : made) x = static_cast<T>(in(lowest, highest));
    return made;
  }
  std::vector<float> floats(int64_t count, float largest) {
    std::vector<float> made(static_cast<size_t>(count));
    for (float& x : made) x = largest * (static_cast<float>(engine_() % 20001) - 10000) / 10000;
    return made;
  }

 private:
  std::mt19937 engine_;
};

// A packed right operand b[i][j] = x[i * depth_step + j * column_step] - centre.
class Operand {
 public:
  template <class T>
  Operand(const TileKernels& kernels, Form form, int64_t run, const T* x, int64_t depth, int64_t depth_step,
          int64_t columns, int64_t column_step, int32_t centre)
      : step(form == Form::kPairs ? samq::packed_size<2>(depth, columns, kernels.panel)
                                  : samq::packed_size<4>(depth, columns, kernels.panel)),
        data_(step * 2) {
    packed = {form, samq::round_up(depth, form == Form::kPairs ? 2 : 4), run, data_.data()};
    if (form == Form::kPairs)
      samq::pack<2>(x, depth, depth_step, columns, column_step, centre, kernels.panel,
                    reinterpret_cast<int16_t*>(data_.data()));
    else
      samq::pack<4>(x, depth, depth_step, columns, column_step, centre, kernels.panel,
                    reinterpret_cast<int8_t*>(data_.data()));
  }
  int64_t step;
  Packed packed;

 private:
  Buffer<char> data_;
};

template <class T>
std::vector<T> packed_table(const TileKernels& kernels, const std::vector<T>& table, int64_t queries, int64_t keys,
                            int64_t depth) {
  constexpr int kGroup = sizeof(T) == 2 ? 2 : 1;
  const int64_t size = samq::packed_size<kGroup>(depth, keys, kernels.panel);
  std::vector<T> made(static_cast<size_t>(queries * size));
  for (int64_t i = 0; i < queries; ++i)
    samq::pack<kGroup>(table.data() + i * keys * depth, depth, int64_t{1}, keys, depth, T{0}, kernels.panel,
                       made.data() + i * size);
  return made;
}

// Sizes, q and tables of one attention tile; T is what its tables hold.
template <class T>
struct Shape {
  int64_t depth, value_depth, rows, keys;
  bool rel_pos;
  int64_t hq, hk, wq, wk;

  explicit Shape(Random& random)
      : depth(random.one_of<int64_t>({8, 16, 32, 64, 80, 7, 13, 2})),
        value_depth(random.one_of<int64_t>({8, 16, 32, 64, 80, 5})),
        rel_pos(random.in(0, 1) == 1) {
    hq = random.in(1, 6), wq = random.in(1, 8);
    hk = random.one_of<int64_t>({1, 3, 14, 16}), wk = random.one_of<int64_t>({1, 5, 14, 16, 33, 64});
    rows = rel_pos ? hq * wq : random.in(1, 48);
    keys = rel_pos ? hk * wk : random.one_of<int64_t>({1, 2, 7, 31, 64, 196, 255, 600, 1030});
  }

  samq::RelPos<T> view(const TileKernels& kernels, const std::vector<T>& h, const std::vector<T>& w) const {
    if (!rel_pos) return {};
    return {h.data(), w.data(), hq, hk, samq::round_up(hk, kernels.panel), wq, wk, samq::round_up(wk, kernels.panel)};
  }
};

template <class Job, class Size, class Tile>
void run_tiles(const Job& job, int64_t rows, Size scratch_size, Tile tile) {
  Buffer<char> scratch(static_cast<int64_t>(scratch_size(job)));
  for (int64_t first = 0; first < rows; first += samq::kTileRows)
    tile(job, 0, first, std::min(samq::kTileRows, rows - first), scratch.data());
}

std::vector<float> code_attention(const TileKernels& kernels, uint32_t seed) {
  Random random(seed);
  const Shape<int16_t> shape(random);
  const auto [depth, value_depth, rows, keys, rel_pos, hq, hk, wq, wk] = shape;
  const int32_t widest = random.one_of<int32_t>({255, 255, 63, 15, 1});  // extreme, too: all codes equal
  const int32_t low = random.in(0, 255 - widest);
  const auto q = random.codes<uint8_t>(rows * depth, low, low + widest);
  const auto k = random.codes<uint8_t>(keys * depth, low, low + widest);
  const auto v = random.codes<uint8_t>(keys * value_depth, low, low + widest);
  const int32_t q_zero = random.in(0, 255), k_zero = random.in(0, 255), v_zero = random.in(0, 255);
  const auto h = random.codes<int16_t>(hq * hk * depth, -32767, 32767), w = random.codes<int16_t>(wq * wk * depth, -32767, 32767);
  samq::CodeJob job{};
  job.largest_code = (1 << random.one_of({8, 6, 4, 2})) - 1;
  job.tau = random.one_of({0, 0, 1, 2, 4, 16});
  job.by_row = random.in(0, 1) == 1;
  job.logit_scale = random.one_of({0.0f, 1e-5f, 1e-3f, 0.1f, 10.0f});  // from all scores equal to one-hot
  job.p_scale = random.one_of({1.0f, 0.004f, 0.1f});
  job.out_scale = 0.01;
  const int32_t centre = low + (widest + 1) / 2;
  const Packed form_k = samq::choose_form(kernels, low + widest, std::max(1, (widest + 1) / 2));
  const Packed form_v = job.tau != 0 ? Packed{Form::kPairs, 0, 0, nullptr}
                                     : samq::choose_form(kernels, job.largest_code, std::max(1, (widest + 1) / 2));
  const int32_t k_centre = form_k.form == Form::kPairs ? k_zero : centre;
  const int32_t v_centre = form_v.form == Form::kPairs ? v_zero : centre;
  const Operand packed_k(kernels, form_k.form, form_k.run, k.data(), depth, 1, keys, depth, k_centre);
  const Operand packed_v(kernels, form_v.form, form_v.run, v.data(), keys, value_depth, value_depth, 1, v_centre);
  const auto table_h = packed_table(kernels, h, hq, hk, depth), table_w = packed_table(kernels, w, wq, wk, depth);
  std::vector<int32_t> columns(static_cast<size_t>(samq::round_up(keys, kernels.panel)), 0);
  if (form_k.form != Form::kPairs)
    for (int64_t i = 0; i < keys * depth; ++i)
      columns[static_cast<size_t>(i / depth)] -= q_zero * (k[static_cast<size_t>(i)] - k_zero);
  std::vector<float> out(static_cast<size_t>(rows * value_depth));
  job.sizes = {1, rows, keys, depth, value_depth};
  job.q = q.data();
  job.q_zero_point = q_zero;
  job.k = packed_k.packed;
  job.v = packed_v.packed;
  job.k_columns = columns.data();
  job.k_row = k_centre - k_zero;
  job.v_row = v_centre - v_zero;
  job.rel = shape.view(kernels, table_h, table_w);
  job.rel.scale_h = 1e-6f;
  job.rel.scale_w = 2e-6f;
  if (job.by_row)
    for (float* const scale : {&job.logit_scale, &job.rel.scale_h, &job.rel.scale_w})
      *scale *= static_cast<float>(job.tau != 0 ? job.tau : samq::kShortSteps);
  std::vector<uint8_t> codes(out.size());
  job.codes = codes.data();
  job.y_scale = random.one_of({0.001f, 0.07f, 1e9f});
  job.y_zero_point = random.in(0, 255);
  const bool quantize = random.in(0, 1) == 1;
  if (!quantize) job.out = out.data();
  run_tiles(job, rows, kernels.code_scratch, kernels.code_tile);
  if (quantize) std::copy(codes.begin(), codes.end(), out.begin());
  return out;
}

std::vector<float> linear(const TileKernels& kernels, uint32_t seed) {
  Random random(seed);
  const int64_t rows = random.in(1, samq::kLinearRows), columns = random.one_of<int64_t>({1, 7, 16, 48, 65, 130});
  const int64_t depth = random.one_of<int64_t>({1, 2, 3, 8, 30, 64, 257, 768});
  const int32_t x_widest = random.one_of({255, 255, 63, 15}), w_widest = random.one_of({128, 127, 31, 7, 1});
  const auto x = random.codes<uint8_t>(rows * depth, random.one_of({0, x_widest}), x_widest);  // all the largest, too
  const auto w = random.codes<int8_t>(depth * columns, random.one_of({-w_widest, std::min(w_widest, 127)}),
                                      std::min(w_widest, 127));
  const int64_t padded = samq::round_up(columns, kernels.panel);
  auto bias = random.codes<int32_t>(columns, -100000, 100000);
  auto scale = random.floats(columns, 1e-3f), zero = random.floats(columns, 200.0f);
  bias.resize(static_cast<size_t>(padded)), scale.resize(static_cast<size_t>(padded)), zero.resize(static_cast<size_t>(padded));
  const Packed form = samq::choose_form(kernels, x_widest, w_widest);
  const Operand packed(kernels, form.form, form.run, w.data(), depth, columns, columns, 1, 0);
  const auto table = random.codes<uint8_t>(1024, 0, 255);
  std::vector<float> out(static_cast<size_t>(rows * columns));
  std::vector<uint8_t> codes(out.size());
  samq::LinearJob job{rows, depth, columns, x.data(), packed.packed, bias.data(), scale.data(), zero.data(), 255.0f,
                      nullptr, nullptr, nullptr, codes.data()};
  const auto residual = random.floats(rows * columns, 100.0f);
  const int32_t kind = random.in(0, 2);
  if (kind == 0) job.out = out.data(), job.residual = random.in(0, 1) == 0 ? residual.data() : nullptr;
  if (kind == 1) job.table = table.data(), job.largest_code = 1023.0f;
  Buffer<char> scratch(static_cast<int64_t>(kernels.linear_scratch(job)));
  kernels.linear_tile(job, 0, rows, scratch.data());
  if (kind != 0) std::copy(codes.begin(), codes.end(), out.begin());
  return out;
}

std::vector<float> layer_norm(const TileKernels& kernels, uint32_t seed) {
  Random random(seed);
  const int64_t rows = random.in(1, samq::kLayerNormRows);
  const int64_t columns = random.one_of<int64_t>({random.in(1, 67), 256, 768, 1280});
  auto x = random.floats(rows * columns, random.one_of({0.0f, 0.01f, 1.0f, 1000.0f}));
  const float centre = random.one_of({0.0f, -3.0f, 1e4f});
  for (float& value : x) value += centre;
  const int64_t padded = samq::round_up(columns, kernels.panel);
  auto gain = random.floats(columns, random.one_of({1.0f, 100.0f})), offset = random.floats(columns, 255.0f);
  gain.resize(static_cast<size_t>(padded)), offset.resize(static_cast<size_t>(padded));
  const float largest_code = random.one_of({255.0f, 15.0f});
  std::vector<uint8_t> codes(x.size());
  kernels.layer_norm_tile({columns, x.data(), gain.data(), offset.data(), 1e-6, largest_code, codes.data()}, 0, rows);
  return {codes.begin(), codes.end()};
}

std::vector<float> float_attention(const TileKernels& kernels, uint32_t seed) {
  Random random(seed);
  const Shape<float> shape(random);
  const auto [depth, value_depth, rows, keys, rel_pos, hq, hk, wq, wk] = shape;
  const float largest = random.one_of({0.0f, 0.1f, 1.0f, 3.0f});
  const auto q = random.floats(rows * depth, largest), k = random.floats(keys * depth, largest);
  const auto v = random.floats(keys * value_depth, 1.0f);
  const auto h = random.floats(hq * hk * depth, 0.1f), w = random.floats(wq * wk * depth, 0.1f);
  const auto table_h = packed_table(kernels, h, hq, hk, depth), table_w = packed_table(kernels, w, wq, wk, depth);
  Buffer<float> k_panels(samq::packed_size<1>(depth, keys, kernels.panel));
  Buffer<float> v_panels(samq::packed_size<1>(keys, value_depth, kernels.panel));
  samq::pack<1>(k.data(), depth, 1, keys, depth, 0.0f, kernels.panel, k_panels.data());
  samq::pack<1>(v.data(), keys, value_depth, value_depth, 1, 0.0f, kernels.panel, v_panels.data());
  std::vector<float> out(static_cast<size_t>(rows * value_depth));
  samq::FloatJob job{{1, rows, keys, depth, value_depth}, q.data(), k_panels.data(), v_panels.data(), out.data(), 0.125f, {}};
  job.rel = shape.view(kernels, table_h, table_w);
  run_tiles(job, rows, kernels.float_scratch, kernels.float_tile);
  return out;
}

// Whether all values are as near to the expected ones as `bound`, of the largest of them.
bool same(const char* what, const TileKernels& kernels, uint32_t seed, double bound, const std::vector<float>& made,
          const std::vector<float>& expected) {
  double largest = 1e-30;
  for (const float x : expected) largest = std::max(largest, std::fabs(static_cast<double>(x)));
  for (size_t i = 0; i < made.size(); ++i) {
    const double distance = std::fabs(static_cast<double>(made[i]) - static_cast<double>(expected[i]));
    if (bound == 0 ? std::memcmp(&made[i], &expected[i], sizeof(float)) == 0 : distance <= bound * largest) continue;
    std::printf("%s %s: seed %u, value %zu of %zu is %.9g, expected %.9g\n", kernels.name, what, seed, i, made.size(),
                static_cast<double>(made[i]), static_cast<double>(expected[i]));
    return false;
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  const uint32_t tiles = count > 1 ? static_cast<uint32_t>(std::atoi(arguments[1])) : 100;
  const uint32_t first = count > 2 ? static_cast<uint32_t>(std::atoi(arguments[2])) : 1;
  const TileKernels& baseline = samq::baseline_tile_kernels();
  for (const TileKernels* kernels : samq::all_tile_kernels()) {
    for (uint32_t seed = first; seed < first + tiles; ++seed)
      if (!same("attention on codes", *kernels, seed, 0, code_attention(*kernels, seed), code_attention(baseline, seed)) ||
          !same("linear layer", *kernels, seed, 0, linear(*kernels, seed), linear(baseline, seed)) ||
          !same("layer norm", *kernels, seed, 0, layer_norm(*kernels, seed), layer_norm(baseline, seed)) ||
          !same("attention in float", *kernels, seed, kFloatBound, float_attention(*kernels, seed),
                float_attention(baseline, seed)))
        return 1;
    std::printf("%s: %u tiles of each kind equal the baseline's\n", kernels->name, tiles);
    std::fflush(stdout);
  }
  return 0;
}
