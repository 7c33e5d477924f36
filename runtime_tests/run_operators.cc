// SPDX-License-Identifier: Apache-2.0
// All operators of the library, in a stand-in for ONNX Runtime (stand_in.h), each node by two callers at once whose
// parallel loops have three threads, against specification.h. Then what must be refused: shapes that do not fit, calls of
// the runtime that fail, memory that is not there. Made for sanitizers, which see every byte and thread of it.
//
//   run_operators COUNT [SEED]    ends with 1 at the first difference; SAMQ_ISA chooses the instruction set
#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>
#include <thread>

#include "random.h"
#include "same.h"
#include "specification.h"
#include "stand_in.h"

extern "C" samq::ort::Status* RegisterCustomOps(samq::ort::SessionOptions*, const samq::ort::ApiBase*);
extern "C" const char* samq_instruction_set();

namespace {

std::atomic<bool> no_memory_in_tasks{false};

}  // namespace

// What buffers are made by.
void* operator new(size_t bytes, std::align_val_t alignment) {
  const auto align = static_cast<size_t>(alignment);
  void* const made = samq::stand_in::in_task && no_memory_in_tasks.load(std::memory_order_relaxed)
                         ? nullptr
                         : std::aligned_alloc(align, (bytes + align - 1) / align * align);
  if (made == nullptr) throw std::bad_alloc();
  return made;
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }

namespace {

using samq::Random;
namespace ort = samq::ort;
namespace specification = samq::specification;
using Dims = std::vector<int64_t>;

constexpr float kLog2E = 1.44269504f;
constexpr size_t kCallers = 2, kThreads = 3;

template <class T>
constexpr int32_t kType = std::is_same_v<T, float>     ? ort::kFloat
                          : std::is_same_v<T, uint8_t> ? ort::kUint8
                          : std::is_same_v<T, int8_t>  ? ort::kInt8
                          : std::is_same_v<T, int16_t> ? ort::kInt16
                                                       : ort::kInt32;

// A node, its inputs, and what its output should be.
struct Node {
  std::string op;
  ort::KernelInfo attributes;
  std::vector<ort::Value> inputs;
  Dims dims;
  std::vector<float> expected;
  std::vector<double> bounds;  // of float attention

  template <class T>
  const T* add(Dims dims, const std::vector<T>& x) {
    ort::Value& made = inputs.emplace_back();
    made.type = kType<T>;
    made.shape.dims = std::move(dims);
    made.data.reset(new char[x.size() * sizeof(T)]);
    std::copy_n(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(T), made.data.get());
    return reinterpret_cast<const T*>(made.data.get());
  }
  template <class T>
  T add(T x) {
    return *add(Dims{}, std::vector<T>{x});
  }
};

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

int64_t product(const Dims& dims) { return static_cast<int64_t>(samq::stand_in::element_count(dims)); }

Dims joined(Dims dims, std::initializer_list<int64_t> more) {
  dims.insert(dims.end(), more);
  return dims;
}

int64_t size(Random& random, bool empty) { return random.one_of<int64_t>({1, 2, 5, 8, 16, 23, 33, 48, empty ? 0 : 64}); }

// Sizes of an attention.
struct Shape {
  Dims leading;
  int64_t hq, wq, hk, wk, rows, keys, depth, value_depth;

  Shape(Random& random, bool rel_pos, bool empty) {
    leading = random.one_of<Dims>({{1}, {2}, {3}, {2, 2}, {1, 3}});
    const bool nothing = empty && random.once_in(8);
    hq = size(random, nothing) % 9, wq = size(random, nothing) % 9, hk = size(random, nothing) % 17, wk = size(random, nothing);
    if (!nothing) hq += hq == 0, wq += wq == 0, hk += hk == 0;
    rows = rel_pos ? hq * wq : size(random, nothing);
    keys = rel_pos ? hk * wk : random.one_of<int64_t>({size(random, nothing), 300});
    depth = size(random, nothing), value_depth = size(random, nothing);
  }
  int64_t batch() const { return product(leading); }
  Dims q() const { return joined(leading, {rows, depth}); }
  Dims k() const { return joined(leading, {keys, depth}); }
  Dims v() const { return joined(leading, {keys, value_depth}); }
  Dims out() const { return joined(leading, {rows, value_depth}); }
};

// Codes of some range.
std::vector<uint8_t> some_codes(Random& random, int64_t count) {
  const int32_t widest = random.one_of({255, 63, 15, 1}), low = random.in(0, 255 - widest);
  return random.codes<uint8_t>(count, low, low + widest);
}

// How many entries of a batch have a bias of their own.
int64_t groups_of(Random& random, int64_t batch) {
  const int64_t groups = random.in(1, static_cast<int32_t>(batch));
  return batch % groups == 0 ? groups : batch;
}

void attention_on_codes(Random& random, Node& node, bool empty) {
  const bool rel_pos = contains(node.op, "RelPos"), log = node.op[0] != 'U';
  Shape shape(random, rel_pos, empty);
  if (!rel_pos && empty && random.once_in(200)) {  // its operands are packed in parts
    shape.leading = {2};
    shape.rows = 2, shape.keys = 33000, shape.depth = 256, shape.value_depth = 8;
  }
  specification::CodeAttention given{};
  given.rows = shape.rows, given.keys = shape.keys, given.depth = shape.depth, given.value_depth = shape.value_depth;
  given.by_row = contains(node.op, "Row");
  given.quantize = contains(node.op, "Quantize");
  const auto zero_point = [&] { return node.add(static_cast<uint8_t>(random.in(0, 255))); };
  const auto scale = [&](float largest) { return node.add(largest / static_cast<float>(random.in(1, 999))); };
  const int64_t batch = shape.batch();
  const uint8_t* q = node.add(shape.q(), some_codes(random, batch * shape.rows * shape.depth));
  const float q_scale = scale(1.0f);
  given.q_zero = zero_point();
  const uint8_t* k = node.add(shape.k(), some_codes(random, batch * shape.keys * shape.depth));
  const float k_scale = scale(1.0f);
  given.k_zero = zero_point();
  const uint8_t* v = node.add(shape.v(), some_codes(random, batch * shape.keys * shape.value_depth));
  const float v_scale = scale(1.0f);
  given.v_zero = zero_point();
  given.p_scale = given.by_row ? 0 : scale(log ? 1.0f : 0.1f);
  if (rel_pos) {
    const auto table = [&](int64_t queries, int64_t keys) {
      return node.add({queries, keys, shape.depth}, random.codes<int16_t>(queries * keys * shape.depth, -32768, 32767));
    };
    given.rel.table_h = table(shape.hq, shape.hk);
    given.scale_h = q_scale * scale(1e-3f) * kLog2E;
    given.rel.table_w = table(shape.wq, shape.wk);
    given.scale_w = q_scale * scale(1e-3f) * kLog2E;
    given.rel.hq = shape.hq, given.rel.hk = shape.hk, given.rel.wq = shape.wq, given.rel.wk = shape.wk;
  }
  const int64_t groups = contains(node.op, "Bias") ? groups_of(random, batch) : 0;
  const int64_t map = shape.rows * shape.keys;
  const int16_t* bias = nullptr;
  if (groups != 0) {
    bias = node.add({groups, shape.rows, shape.keys}, random.codes<int16_t>(groups * map, -32768, 32767));
    given.scale_bias = scale(1e-2f) * kLog2E;
  }
  if (given.quantize) given.y_scale = scale(1.0f), given.y_zero = zero_point();
  const float factor = node.attributes.floats["scale"] = 0.01f * static_cast<float>(random.in(1, 50));
  given.scale = q_scale * k_scale * factor * kLog2E;
  given.largest_code = (1 << (node.attributes.ints["bits"] = random.in(1, 8))) - 1;
  if (log) node.attributes.ints["tau"] = given.tau = 1 << random.in(0, 4);
  given.out_scale = given.by_row ? v_scale : static_cast<double>(given.p_scale) * v_scale * (log ? 1.0 / (1 << 30) : 1.0);
  node.dims = shape.out();
  for (int64_t b = 0; b < batch; ++b) {
    given.q = q + b * shape.rows * shape.depth;
    given.k = k + b * shape.keys * shape.depth;
    given.v = v + b * shape.keys * shape.value_depth;
    given.bias = groups != 0 ? bias + b % groups * map : nullptr;
    const auto made = specification::attention(given);
    node.expected.insert(node.expected.end(), made.begin(), made.end());
  }
}

void attention_in_float(Random& random, Node& node, bool empty) {
  const bool rel_pos = contains(node.op, "RelPos");
  const Shape shape(random, rel_pos, empty);
  const int64_t batch = shape.batch();
  const auto add = [&](const Dims& dims, float largest) { return node.add(dims, random.floats(product(dims), largest)); };
  const float* q = add(shape.q(), 1.0f);
  const float* k = add(shape.k(), 1.0f);
  const float* v = add(shape.v(), 3.0f);
  specification::FloatAttention given{shape.rows, shape.keys, shape.depth, shape.value_depth, q, k, v, 0.3f, {}, nullptr};
  if (rel_pos) {
    given.rel.table_h = add({shape.hq, shape.hk, shape.depth}, 0.3f);
    given.rel.table_w = add({shape.wq, shape.wk, shape.depth}, 0.3f);
    given.rel.hq = shape.hq, given.rel.hk = shape.hk, given.rel.wq = shape.wq, given.rel.wk = shape.wk;
  }
  const int64_t groups = contains(node.op, "Bias") ? groups_of(random, batch) : 0;
  const float* const bias = groups != 0 ? add({groups, shape.rows, shape.keys}, 3.0f) : nullptr;
  node.attributes.floats["scale"] = given.scale;
  node.dims = shape.out();
  for (int64_t b = 0; b < batch; ++b) {
    given.q = q + b * shape.rows * shape.depth;
    given.k = k + b * shape.keys * shape.depth;
    given.v = v + b * shape.keys * shape.value_depth;
    if (groups != 0) given.bias = bias + b % groups * shape.rows * shape.keys;
    const auto made = specification::attention(given);
    node.expected.insert(node.expected.end(), made.values.begin(), made.values.end());
    node.bounds.insert(node.bounds.end(), made.bounds.begin(), made.bounds.end());
  }
}

void linear(Random& random, Node& node, bool empty) {
  const bool large = random.once_in(3);  // several tasks look for the range of its codes
  const Dims leading = large ? Dims{200} : random.one_of<Dims>({{size(random, empty)}, {2, size(random, empty)}, {}});
  const int64_t rows = product(leading), depth = large ? 400 : size(random, empty), columns = size(random, empty);
  specification::Linear given{};
  given.rows = rows, given.depth = depth, given.columns = columns;
  given.x = node.add(joined(leading, {depth}), some_codes(random, rows * depth));
  const int32_t widest = random.one_of({127, 31, 7, 0});
  given.w = node.add({depth, columns}, random.codes<int8_t>(depth * columns, -widest - 1, widest));
  given.bias = node.add({columns}, random.codes<int32_t>(columns, -5000, 5000));
  std::array<std::vector<float>, 2> filled;  // scale and zero of each column
  const auto add = [&](size_t which, float largest) {
    const bool one = random.once_in(4);
    auto x = random.floats(one ? 1 : columns, largest);
    if (random.once_in(8)) random.spoil(x);
    filled[which].assign(static_cast<size_t>(columns), one ? x[0] : 0.0f);
    if (!one) filled[which] = x;
    node.add(one ? Dims{} : Dims{columns}, x);
    return filled[which].data();
  };
  given.scale = add(0, 1e-2f);
  if (node.op == "QLinearResidual") {
    auto residual = random.floats(rows * columns, 10.0f);
    if (random.once_in(8)) random.spoil(residual);
    given.residual = node.add(joined(leading, {columns}), residual);
  } else if (node.op != "QLinear") {
    given.zero = add(1, 200.0f);
  }
  if (node.op == "QLinearQuantize")
    given.largest_code = static_cast<float>((1 << (node.attributes.ints["bits"] = random.in(1, 8))) - 1);
  if (node.op == "QLinearLut") {
    const auto table = random.codes<uint8_t>(random.one_of({1, 2, 256, 4096, 65536}), 0, 255);
    given.table = node.add({static_cast<int64_t>(table.size())}, table);
    given.largest_code = static_cast<float>(table.size() - 1);
  }
  node.dims = joined(leading, {columns});
  node.expected = specification::linear(given);
}

void layer_norm(Random& random, Node& node, bool empty) {
  const Dims leading = random.one_of<Dims>({{size(random, empty)}, {3, 40}, {}});
  const int64_t rows = product(leading), columns = size(random, empty);
  auto x = random.floats(rows * columns, random.one_of({0.01f, 1.0f, 1000.0f}));
  auto weight = random.floats(columns, 1.5f), bias = random.floats(columns, 1.0f);
  if (random.once_in(8)) random.spoil(x), random.spoil(weight), random.spoil(bias);
  specification::LayerNorm given{rows, columns, node.add(joined(leading, {columns}), x), nullptr, nullptr, 0, 0};
  node.add({columns}, weight), node.add({columns}, bias);
  const double step = node.add(1.0f / static_cast<float>(random.in(1, 99)));
  const uint8_t zero = node.add(static_cast<uint8_t>(random.in(0, 255)));
  for (float& value : weight) value = static_cast<float>(value / step);
  for (float& value : bias) value = static_cast<float>(value / step + zero);
  given.gain = weight.data(), given.offset = bias.data();
  given.epsilon = node.attributes.floats["epsilon"] = random.one_of({1e-6f, 1e-5f, 0.1f, 0.0f});
  given.largest_code = static_cast<float>((1 << (node.attributes.ints["bits"] = random.in(1, 8))) - 1);
  node.dims = joined(leading, {columns});
  node.expected = specification::layer_norm(given);
}

void log_quantize(Random& random, Node& node, bool empty) {
  const Dims dims = random.one_of<Dims>({{}, {size(random, empty), 7}, {3, 200, 60}});
  auto p = random.floats(product(dims), 1.0f);
  for (float& x : p) x = x * x * x * x;
  random.spoil(p);
  node.add(dims, p);
  const float p_scale = node.add(random.one_of({0.9f, 0.1f, 1.0f}));
  const int32_t tau = 1 << random.in(0, 4), bits = random.in(1, 8);
  node.attributes.ints = {{"tau", tau}, {"bits", bits}};
  node.dims = dims;
  for (const float x : p) node.expected.push_back(static_cast<float>(specification::log_code(x, p_scale, tau, (1 << bits) - 1)));
}

void shift_lut_matmul(Random& random, Node& node, bool empty) {
  const Dims leading = random.one_of<Dims>({{}, {2}, {2, 3}});
  const int64_t batch = product(leading), rows = size(random, empty), keys = size(random, empty), width = size(random, empty);
  const auto codes = some_codes(random, batch * rows * keys), v = some_codes(random, batch * keys * width);
  node.add(joined(leading, {rows, keys}), codes), node.add(joined(leading, {keys, width}), v);
  const float p_scale = node.add(0.3f), v_scale = node.add(0.02f);
  const int32_t zero = node.add(static_cast<uint8_t>(random.in(0, 255)));
  const int32_t tau = 1 << random.in(0, 4), largest = (1 << (node.attributes.ints["bits"] = random.in(1, 8))) - 1;
  node.attributes.ints["tau"] = tau;
  node.dims = joined(leading, {rows, width});
  for (int64_t row = 0; row < batch * rows; ++row)
    for (int64_t c = 0; c < width; ++c) {
      int64_t sum = 0;
      for (int64_t j = 0; j < keys; ++j)
        sum += specification::log_weight(std::min<int32_t>(codes[static_cast<size_t>(row * keys + j)], largest), tau) *
               (v[static_cast<size_t>((row / rows * keys + j) * width + c)] - zero);
      const double scale = static_cast<double>(p_scale) * v_scale / (1 << 30);
      node.expected.push_back(static_cast<float>(static_cast<double>(sum) * scale));
    }
}

// A node of an operator; without a draw for it the program fails.
Node draw(const std::string& op, uint32_t seed, bool empty) {
  Random random(seed);
  Node node;
  node.op = op;
  const auto fill = op == "Attention" || op == "AttentionRelPos" || op == "AttentionBias" ? attention_in_float
                    : contains(op, "Attention")                  ? attention_on_codes
                    : contains(op, "QLinear")                    ? linear
                    : op == "LayerNormQuantize"                  ? layer_norm
                    : op == "LogQuantize"                        ? log_quantize
                    : op == "ShiftLutMatMul"                     ? shift_lut_matmul
                                                                 : nullptr;
  if (fill == nullptr) {
    std::printf("operator %s is not run here\n", op.c_str());
    std::exit(1);
  }
  fill(random, node, empty);
  return node;
}

struct Ended {
  std::string error;  // empty: none
  Dims inferred, dims;
  std::vector<float> out;
};

std::string text(ort::Status* status) {
  const std::string message = status == nullptr ? "" : status->message;
  delete status;
  return message;
}

// Runs a node on a kernel.
Ended computed(const ort::CustomOp& op, void* kernel, const Node& node) {
  Ended end;
  ort::KernelContext context{&node.inputs, {}, kThreads};
  context.output.type = op.output_type(&op, 0);
  end.error = text(op.compute(kernel, &context));
  const ort::Value& made = context.output;
  end.dims = made.shape.dims;
  if (!end.error.empty()) return end;
  const auto count = static_cast<size_t>(product(end.dims));
  if (made.type == ort::kUint8) {
    const auto* const codes = reinterpret_cast<const uint8_t*>(made.data.get());
    end.out.assign(codes, codes + count);
  } else {
    const auto* const values = reinterpret_cast<const float*>(made.data.get());
    end.out.assign(values, values + count);
  }
  return end;
}

// Makes a kernel, infers a shape and runs the node, by so many callers at once.
std::vector<Ended> run(const ort::CustomOp& op, const Node& node, size_t callers) {
  std::vector<Ended> ends(callers);
  void* kernel = nullptr;
  if (ort::Status* const status = op.create_kernel(&op, nullptr, &node.attributes, &kernel)) {
    ends.assign(callers, {text(status), {}, {}, {}});
    return ends;
  }
  ort::InferContext shapes;
  for (const ort::Value& value : node.inputs) shapes.inputs.push_back(value.shape);
  const std::string error = text(op.infer_shape(&op, &shapes));
  std::vector<std::thread> others;
  for (size_t i = 1; i < callers; ++i) others.emplace_back([&, i] { ends[i] = computed(op, kernel, node); });
  ends[0] = computed(op, kernel, node);
  for (std::thread& other : others) other.join();
  if (!error.empty()) ends[0].error = error;
  if (!shapes.outputs.empty()) ends[0].inferred = shapes.outputs[0].dims;
  op.destroy_kernel(kernel);
  return ends;
}

bool failed(const Node& node, uint32_t seed, const std::string& why) {
  std::printf("%s %s: seed %u: %s\n", samq_instruction_set(), node.op.c_str(), seed, why.c_str());
  return false;
}

// Whether a node gives what it should.
bool right(const ort::CustomOp& op, uint32_t seed) {
  const Node node = draw(op.name(&op), seed, true);
  if (op.input_count(&op) != node.inputs.size()) return failed(node, seed, "has another number of inputs");
  for (size_t i = 0; i < node.inputs.size(); ++i)
    if (op.input_type(&op, i) != node.inputs[i].type) return failed(node, seed, "has an input of another type");
  const auto ends = run(op, node, kCallers);
  if (!node.dims.empty() && ends[0].inferred != node.dims) return failed(node, seed, "infers another shape");
  for (const Ended& end : ends) {
    if (!end.error.empty()) return failed(node, seed, end.error);
    if (end.dims != node.dims) return failed(node, seed, "has another shape");
    if (!samq::same(samq_instruction_set(), node.op.c_str(), seed, end.out, node.expected,
                    node.bounds.empty() ? nullptr : &node.bounds))
      return false;
  }
  return true;
}

// A node with a changed input or attribute: it may end as it likes, but it must end, and leave memory alone.
void damaged(const ort::CustomOp& op, uint32_t seed) {
  Node node = draw(op.name(&op), seed, true);
  Random random(seed);
  ort::Value& value = node.inputs[static_cast<size_t>(random.in(0, static_cast<int64_t>(node.inputs.size()) - 1))];
  Dims& dims = value.shape.dims;
  const size_t axis = dims.empty() ? 0 : static_cast<size_t>(random.in(0, static_cast<int64_t>(dims.size()) - 1));
  const int32_t how = random.in(0, 5);
  if (how == 0 || dims.empty()) dims.insert(dims.begin(), random.in(0, 2));
  else if (how == 1) dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(axis));
  else if (how == 2) dims[axis] += 1;
  else if (how == 3) dims[axis] = std::max<int64_t>(0, dims[axis] - 1);
  else if (how == 4) dims[axis] = 0;
  else if (auto& ints = node.attributes.ints; !ints.empty()) ints.begin()->second = random.one_of({0, 9, 3, -1, 17});
  const auto bytes = static_cast<int64_t>(samq::stand_in::element_size(value.type)) * product(dims);
  value.data.reset(new char[static_cast<size_t>(bytes)]);
  for (int64_t i = 0; i < bytes; ++i) value.data[i] = static_cast<char>(value.type == ort::kFloat ? i % 64 : random.in(0, 255));
  run(op, node, 1);
}

// Every call of the runtime fails once; each time the operator must say so, and leave nothing behind.
bool says_failures(const ort::CustomOp& op, uint32_t seed) {
  const Node node = draw(op.name(&op), seed, false);
  auto& left = samq::stand_in::calls_before_failure;
  for (int64_t call = 0;; ++call) {
    left = call;
    const Ended end = run(op, node, 1)[0];
    if (left >= 0) {  // there was no such call
      left = -1;
      return call > 0 || failed(node, seed, "calls nothing");
    }
    if (!contains(end.error, "asked to fail")) return failed(node, seed, "does not say that call " + std::to_string(call) + " failed");
  }
}

// Memory that tasks ask for is not there.
bool says_lack_of_memory(const ort::CustomOp& op, uint32_t seed) {
  const Node node = draw(op.name(&op), seed, false);
  no_memory_in_tasks = true;
  const Ended end = run(op, node, 1)[0];
  no_memory_in_tasks = false;
  const bool asks = contains(node.op, "Attention") || contains(node.op, "QLinear");
  return (asks == contains(end.error, "bad_alloc")) || failed(node, seed, "without memory it ends with: " + end.error);
}

}  // namespace

int main(int count, char** arguments) {
  const uint32_t nodes = count > 1 ? static_cast<uint32_t>(std::atoi(arguments[1])) : 10;
  const uint32_t first = count > 2 ? static_cast<uint32_t>(std::atoi(arguments[2])) : 1;
  const ort::ApiBase base{samq::stand_in::get_api, samq::stand_in::version_string};
  ort::SessionOptions options, more;
  samq::stand_in::calls_before_failure = 0;
  const bool refused = contains(text(RegisterCustomOps(&options, &base)), "asked to fail");
  const std::string error = text(RegisterCustomOps(&options, &base)) + text(RegisterCustomOps(&more, &base));
  if (!refused || !error.empty() || options.domains.size() != 1 || options.domains != more.domains) {
    std::printf("the library cannot be registered as it should: %s\n", error.c_str());
    return 1;
  }
  const auto& ops = options.domains[0]->ops;
  for (const ort::CustomOp* op : ops) {
    if (!says_failures(*op, first) || !says_lack_of_memory(*op, first)) return 1;
    for (uint32_t seed = first; seed < first + nodes; ++seed) {
      if (!right(*op, seed)) return 1;
      damaged(*op, seed);
    }
  }
  std::printf("%s: %u nodes of each of %zu operators equal the specification\n", samq_instruction_set(), nodes, ops.size());
  return 0;
}
