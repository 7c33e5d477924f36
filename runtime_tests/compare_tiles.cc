// SPDX-License-Identifier: Apache-2.0
// Random and extreme tiles of attention, linear layers and layer norms, and packed operands, by every set of kernels that
// this CPU runs, against specification.h: bit for bit, but attention in float within the bounds given there. Needs no
// ONNX Runtime, so it also runs in an emulator.
//
//   compare_tiles COUNT [SEED]    prints a line for each set of kernels; ends with 1 at the first difference
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "buffer.h"
#include "choose_form.h"
#include "cpu.h"
#include "pack.h"
#include "random.h"
#include "same.h"
#include "specification.h"

namespace {

using samq::Buffer;
using samq::Form;
using samq::Packed;
using samq::Random;
using samq::TileKernels;
namespace specification = samq::specification;

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

// Sizes and tables of one attention tile; T is what its tables hold.
template <class T>
struct Shape {
  int64_t depth, value_depth, rows, keys;
  bool rel_pos;
  int64_t hq, hk, wq, wk;

  Shape(Random& random, bool large)
      : depth(random.one_of<int64_t>({8, 16, 32, 64, 80, 7, 13, 2})),
        value_depth(random.one_of<int64_t>({8, 16, 32, 64, 80, 5})),
        rel_pos(random.in(0, 1) == 1) {
    hq = random.in(1, 6), wq = random.in(1, 8);
    hk = random.one_of<int64_t>({1, 3, 14, 16}), wk = random.one_of<int64_t>({1, 5, 14, 16, 33, 64});
    if (large) {  // sums over all keys leave 32 bits
      rel_pos = false;
      depth = random.one_of<int64_t>({8, 256}), value_depth = 5;
      rows = random.in(1, 3), keys = random.one_of<int64_t>({4096, 33000});
      return;
    }
    rows = rel_pos ? hq * wq : random.in(1, 48);
    keys = rel_pos ? hk * wk : random.one_of<int64_t>({1, 2, 7, 31, 64, 196, 255, 600, 1030});
  }

  samq::RelPos<T> packed(const TileKernels& kernels, const std::vector<T>& h, const std::vector<T>& w) const {
    if (!rel_pos) return {};
    return {h.data(), w.data(), hq, hk, samq::round_up(hk, kernels.panel), wq, wk, samq::round_up(wk, kernels.panel)};
  }
  specification::RelPos<T> plain(const std::vector<T>& h, const std::vector<T>& w) const {
    return {h.data(), w.data(), rel_pos ? hq : 0, hk, wq, wk};
  }
};

template <class Job, class Size, class Tile>
void run_tiles(const Job& job, int64_t rows, Size scratch_size, Tile tile) {
  Buffer<char> scratch(static_cast<int64_t>(scratch_size(job)));
  for (int64_t first = 0; first < rows; first += samq::kTileRows)
    tile(job, 0, first, std::min(samq::kTileRows, rows - first), scratch.data());
}

bool code_attention(const std::vector<const TileKernels*>& sets, uint32_t seed) {
  Random random(seed);
  const bool extreme = random.once_in(16);
  const Shape<int16_t> shape(random, extreme);
  const auto [depth, value_depth, rows, keys, rel_pos, hq, hk, wq, wk] = shape;
  const int32_t widest = random.one_of<int32_t>({255, 255, 63, 15, 1, 0});  // 0: all codes equal
  const int32_t low = extreme ? 255 - widest : random.in(0, 255 - widest);
  const int32_t zero = extreme ? 0 : 255;
  const auto q = random.codes<uint8_t>(rows * depth, low, low + widest);
  const auto k = random.codes<uint8_t>(keys * depth, low, low + widest);
  const auto v = random.codes<uint8_t>(keys * value_depth, low, low + widest);
  const int32_t steepest = random.one_of({32767, 32767, 300, 0});
  const auto h = random.codes<int16_t>(hq * hk * depth, -steepest - 1, steepest);
  const auto w = random.codes<int16_t>(wq * wk * depth, -steepest - 1, steepest);
  specification::CodeAttention given{};
  given.rows = rows, given.keys = keys, given.depth = depth, given.value_depth = value_depth;
  given.q = q.data(), given.k = k.data(), given.v = v.data();
  given.q_zero = random.in(0, zero), given.k_zero = random.in(0, zero), given.v_zero = random.in(0, zero);
  given.rel = shape.plain(h, w);
  given.scale = random.one_of({0.0f, 1e-5f, 1e-3f, 0.1f, 10.0f, 1e15f});  // from all scores equal to one-hot
  given.scale_h = random.one_of({1e-6f, 1e-3f}), given.scale_w = 2e-6f;
  const bool biased = !rel_pos && random.in(0, 1) == 1;
  const auto bias = random.codes<int16_t>(biased ? rows * keys : 0, -steepest - 1, steepest);
  given.bias = biased ? bias.data() : nullptr;
  given.scale_bias = random.one_of({1e-4f, 1e-2f});
  given.tau = random.one_of({0, 0, 0, 1, 2, 4, 8, 16});
  given.largest_code = (1 << random.in(1, 8)) - 1;
  given.by_row = random.in(0, 1) == 1;
  given.p_scale = random.one_of({1.0f, 0.004f, 0.1f, 1e-30f});
  given.out_scale = random.one_of({0.01, 0.01 / (1 << 30)});
  given.quantize = random.in(0, 1) == 1;
  given.y_scale = random.one_of({0.001f, 0.07f, 1e9f, 1e-30f});
  given.y_zero = random.in(0, 255);
  const auto expected = specification::attention(given);

  for (const TileKernels* kernels : sets) {
    samq::CodeJob job{};
    const int32_t centre = low + (widest + 1) / 2, spread = std::max(1, (widest + 1) / 2);
    const Packed form_k = samq::choose_form(*kernels, low + widest, spread);
    const Packed form_v = given.tau != 0 ? Packed{Form::kPairs, 0, 0, nullptr}
                                         : samq::choose_form(*kernels, given.largest_code, spread);
    const int32_t k_centre = form_k.form == Form::kPairs ? given.k_zero : centre;
    const int32_t v_centre = form_v.form == Form::kPairs ? given.v_zero : centre;
    const Operand packed_k(*kernels, form_k.form, form_k.run, k.data(), depth, 1, keys, depth, k_centre);
    const Operand packed_v(*kernels, form_v.form, form_v.run, v.data(), keys, value_depth, value_depth, 1, v_centre);
    const auto table_h = packed_table(*kernels, h, hq, hk, depth), table_w = packed_table(*kernels, w, wq, wk, depth);
    std::vector<int32_t> columns(static_cast<size_t>(samq::round_up(keys, kernels->panel)), 0);
    if (form_k.form != Form::kPairs)
      for (int64_t i = 0; i < keys * depth; ++i)
        columns[static_cast<size_t>(i / depth)] -= given.q_zero * (k[static_cast<size_t>(i)] - given.k_zero);
    job.sizes = {1, rows, keys, depth, value_depth};
    job.q = q.data();
    job.q_zero_point = given.q_zero;
    job.k = packed_k.packed;
    job.v = packed_v.packed;
    job.k_columns = columns.data();
    job.k_row = k_centre - given.k_zero;
    job.v_row = v_centre - given.v_zero;
    job.tau = given.tau;
    job.largest_code = given.largest_code;
    job.by_row = given.by_row;
    job.p_scale = given.p_scale;
    job.out_scale = given.out_scale;
    job.rel = shape.packed(*kernels, table_h, table_w);
    const auto unit = static_cast<float>(!given.by_row ? 1 : given.tau != 0 ? given.tau : samq::kShortSteps);
    job.logit_scale = given.scale * unit;
    job.rel.scale_h = given.scale_h * unit;
    job.rel.scale_w = given.scale_w * unit;
    if (biased) job.bias = {bias.data(), 1, random.in(0, 5), given.scale_bias * unit};
    std::vector<float> out(static_cast<size_t>(rows * value_depth));
    std::vector<uint8_t> codes(out.size());
    job.codes = codes.data();
    job.y_scale = given.y_scale;
    job.y_zero_point = given.y_zero;
    if (!given.quantize) job.out = out.data();
    run_tiles(job, rows, kernels->code_scratch, kernels->code_tile);
    if (given.quantize) std::copy(codes.begin(), codes.end(), out.begin());
    if (!samq::same(kernels->name, "attention on codes", seed, out, expected)) return false;
  }
  return true;
}

bool linear(const std::vector<const TileKernels*>& sets, uint32_t seed) {
  Random random(seed);
  const int64_t rows = random.in(1, samq::kLinearRows), columns = random.one_of<int64_t>({1, 7, 16, 48, 65, 130});
  const int64_t depth = random.one_of<int64_t>({1, 2, 3, 8, 30, 64, 257, 768});
  const int32_t x_widest = random.one_of({255, 255, 63, 15, 0}), w_widest = random.one_of({128, 127, 31, 7, 1, 0});
  const int32_t w_least = random.one_of({-w_widest, std::min(w_widest, 127)}), x_least = random.one_of({0, x_widest});
  const int32_t w_most = random.one_of({w_least, std::min(w_widest, 127)});  // all the largest or least, too
  const auto x = random.codes<uint8_t>(rows * depth, x_least, x_widest);
  const auto w = random.codes<int8_t>(depth * columns, w_least, w_most);
  auto bias = random.codes<int32_t>(columns, -100000, 100000);
  auto scale = random.floats(columns, 1e-3f), zero = random.floats(columns, 200.0f);
  auto residual = random.floats(rows * columns, 100.0f);
  if (random.once_in(4)) random.spoil(scale), random.spoil(zero), random.spoil(residual);
  const auto table = random.codes<uint8_t>(random.one_of({1024, 65536, 1}), 0, 255);
  specification::Linear given{rows, depth, columns, x.data(), w.data(), bias.data(), scale.data(), nullptr, nullptr, 0, nullptr};
  const int32_t kind = random.in(0, 3);
  if (kind == 1) given.residual = residual.data();
  if (kind > 1) given.zero = zero.data(), given.largest_code = static_cast<float>((1 << random.in(1, 8)) - 1);
  if (kind > 2) given.table = table.data(), given.largest_code = static_cast<float>(table.size() - 1);
  const auto expected = specification::linear(given);

  for (const TileKernels* kernels : sets) {
    const auto filled = [&](auto values) {
      values.resize(static_cast<size_t>(samq::round_up(columns, kernels->panel)));
      return values;
    };
    const auto all_bias = filled(bias);
    const auto all_scale = filled(scale), all_zero = filled(zero);
    const Packed form = samq::choose_form(*kernels, x_widest, std::max(w_most, -w_least));
    const Operand packed(*kernels, form.form, form.run, w.data(), depth, columns, columns, 1, 0);
    std::vector<float> out(static_cast<size_t>(rows * columns));
    std::vector<uint8_t> codes(out.size());
    samq::LinearJob job{rows, depth, columns, x.data(), packed.packed, all_bias.data(), all_scale.data(), all_zero.data(),
                        given.largest_code, given.table, nullptr, given.residual, nullptr};
    if (kind > 1)
      job.codes = codes.data();
    else
      job.out = out.data();
    Buffer<char> scratch(static_cast<int64_t>(kernels->linear_scratch(job)));
    kernels->linear_tile(job, 0, rows, scratch.data());
    if (kind > 1) std::copy(codes.begin(), codes.end(), out.begin());
    if (!samq::same(kernels->name, "linear layer", seed, out, expected)) return false;
  }
  return true;
}

bool layer_norm(const std::vector<const TileKernels*>& sets, uint32_t seed) {
  Random random(seed);
  const int64_t rows = random.in(1, samq::kLayerNormRows);
  const int64_t columns = random.one_of<int64_t>({random.in(1, 67), 256, 768, 1280});
  auto x = random.floats(rows * columns, random.one_of({0.0f, 0.01f, 1.0f, 1000.0f}));
  const float centre = random.one_of({0.0f, -3.0f, 1e4f});
  for (float& value : x) value += centre;
  auto gain = random.floats(columns, random.one_of({1.0f, 100.0f})), offset = random.floats(columns, 255.0f);
  if (random.once_in(4)) random.spoil(x), random.spoil(gain), random.spoil(offset);
  const float largest_code = random.one_of({255.0f, 15.0f, 1.0f});
  const double epsilon = random.one_of({1e-6, 1e-5, 0.1, 0.0});
  const auto expected = specification::layer_norm({rows, columns, x.data(), gain.data(), offset.data(), epsilon, largest_code});

  for (const TileKernels* kernels : sets) {
    auto all_gain = gain, all_offset = offset;
    all_gain.resize(static_cast<size_t>(samq::round_up(columns, kernels->panel)));
    all_offset.resize(all_gain.size());
    std::vector<uint8_t> codes(x.size());
    kernels->layer_norm_tile({columns, x.data(), all_gain.data(), all_offset.data(), epsilon, largest_code, codes.data()}, 0, rows);
    if (!samq::same(kernels->name, "layer norm", seed, {codes.begin(), codes.end()}, expected)) return false;
  }
  return true;
}

bool float_attention(const std::vector<const TileKernels*>& sets, uint32_t seed) {
  Random random(seed);
  const Shape<float> shape(random, false);
  const auto [depth, value_depth, rows, keys, rel_pos, hq, hk, wq, wk] = shape;
  const float largest = random.one_of({0.0f, 0.1f, 1.0f, 3.0f, 30.0f});
  const auto q = random.floats(rows * depth, largest), k = random.floats(keys * depth, largest);
  const auto v = random.floats(keys * value_depth, 1.0f);
  const auto h = random.floats(hq * hk * depth, 0.1f), w = random.floats(wq * wk * depth, 0.1f);
  const bool biased = !rel_pos && random.in(0, 1) == 1;
  const auto bias = random.floats(biased ? rows * keys : 0, 3.0f);
  const specification::Near expected = specification::attention(specification::FloatAttention{
      rows, keys, depth, value_depth, q.data(), k.data(), v.data(), 0.125f, shape.plain(h, w),
      biased ? bias.data() : nullptr});

  for (const TileKernels* kernels : sets) {
    const auto table_h = packed_table(*kernels, h, hq, hk, depth), table_w = packed_table(*kernels, w, wq, wk, depth);
    Buffer<float> k_panels(samq::packed_size<1>(depth, keys, kernels->panel));
    Buffer<float> v_panels(samq::packed_size<1>(keys, value_depth, kernels->panel));
    samq::pack<1>(k.data(), depth, 1, keys, depth, 0.0f, kernels->panel, k_panels.data());
    samq::pack<1>(v.data(), keys, value_depth, value_depth, 1, 0.0f, kernels->panel, v_panels.data());
    std::vector<float> out(static_cast<size_t>(rows * value_depth));
    samq::FloatJob job{{1, rows, keys, depth, value_depth}, q.data(), k_panels.data(), v_panels.data(), out.data(), 0.125f, {}, {}};
    job.rel = shape.packed(*kernels, table_h, table_w);
    if (biased) job.bias = {bias.data(), 1, 0};
    run_tiles(job, rows, kernels->float_scratch, kernels->float_tile);
    if (!samq::same(kernels->name, "attention in float", seed, out, expected.values, &expected.bounds)) return false;
  }
  return true;
}

// Elements where they should be, and zeros in the room that is left.
template <int kGroup, class T>
bool packing(int64_t panel, uint32_t seed) {
  Random random(seed);
  const int64_t depth = random.in(1, 37), columns = random.in(1, 70);
  const bool across = random.in(0, 1) == 1;
  const int64_t depth_step = across ? columns : 1, column_step = across ? 1 : depth;
  const auto x = random.codes<uint8_t>(depth * columns, 0, 255);
  const int32_t zero = kGroup == 4 ? 128 : random.in(0, 255);
  std::vector<float> expected(static_cast<size_t>(samq::packed_size<kGroup>(depth, columns, panel)), 0.0f);
  for (int64_t i = 0; i < depth; ++i)
    for (int64_t j = 0; j < columns; ++j)
      expected[static_cast<size_t>(specification::packed_place(i, j, depth, panel, kGroup))] =
          static_cast<float>(x[static_cast<size_t>(i * depth_step + j * column_step)] - zero);
  std::vector<T> made(expected.size(), T{77});
  samq::pack<kGroup>(x.data(), depth, depth_step, columns, column_step, zero, panel, made.data());
  return samq::same("panels", sizeof(T) == 1 ? "of bytes" : sizeof(T) == 2 ? "of pairs" : "of floats", seed,
                    {made.begin(), made.end()}, expected);
}

}  // namespace

int main(int count, char** arguments) {
  const uint32_t tiles = count > 1 ? static_cast<uint32_t>(std::atoi(arguments[1])) : 100;
  const uint32_t first = count > 2 ? static_cast<uint32_t>(std::atoi(arguments[2])) : 1;
  const std::vector<const TileKernels*> sets = samq::all_tile_kernels();
  for (uint32_t seed = first; seed < first + tiles; ++seed) {
    if (!code_attention(sets, seed) || !linear(sets, seed) || !layer_norm(sets, seed) || !float_attention(sets, seed)) return 1;
    for (const TileKernels* kernels : sets)
      if (!packing<1, float>(kernels->panel, seed) || !packing<2, int16_t>(kernels->panel, seed) ||
          !packing<4, int8_t>(kernels->panel, seed))
        return 1;
  }
  for (const TileKernels* kernels : sets)
    std::printf("%s: %u tiles of each kind equal the specification\n", kernels->name, tiles);
  return 0;
}
