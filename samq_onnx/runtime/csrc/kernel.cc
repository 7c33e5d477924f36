// SPDX-License-Identifier: Apache-2.0
#include "kernel.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace samq {

std::string to_string(const Dims& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

int64_t product(const Dims& dims, size_t first, size_t last) {
  const auto begin = dims.begin() + static_cast<std::ptrdiff_t>(first), end = dims.begin() + static_cast<std::ptrdiff_t>(last);
  if (std::find(begin, end, 0) != end) return 0;
  int64_t total = 1;
  for (auto dim = begin; dim != end; ++dim)
    if (__builtin_mul_overflow(total, *dim, &total))
      throw Failure("a tensor has more elements than 64 bits can count: " + to_string(dims));
  return total;
}

void check(ort::Status* status) {
  if (status == nullptr) return;
  Failure failure(runtime().error_message(status));
  runtime().release_status(status);
  throw failure;
}

float Attributes::number(const char* name) const {
  float value = 0;
  check(runtime().attribute_float(info_, name, &value));
  return value;
}

int64_t Attributes::integer(const char* name, int64_t lowest, int64_t highest) const {
  int64_t value = 0;
  check(runtime().attribute_int(info_, name, &value));
  if (value < lowest || value > highest)
    throw Failure(std::string("attribute ") + name + " must be from " + std::to_string(lowest) + " to " +
                  std::to_string(highest) + ", got " + std::to_string(value));
  return value;
}

int32_t Attributes::tau() const {
  const int64_t value = integer("tau", 1, 16);
  if ((value & (value - 1)) != 0) throw Failure("attribute tau must be 1, 2, 4, 8 or 16, got " + std::to_string(value));
  return static_cast<int32_t>(value);
}

const void* Context::input(size_t index, const char* name, Dims& dims) const {
  const ort::Value* value = nullptr;
  check(runtime().input(context_, index, &value));
  if (value == nullptr) throw Failure(std::string("input ") + name + " is missing");
  ort::ShapeInfo* info = nullptr;
  check(runtime().tensor_shape(value, &info));
  const std::unique_ptr<ort::ShapeInfo, void (*)(ort::ShapeInfo*)> owned(info, runtime().release_shape);
  size_t rank = 0;
  check(runtime().dims_count(info, &rank));
  dims.resize(rank);
  check(runtime().dims(info, dims.data(), rank));
  void* data = nullptr;
  check(runtime().tensor_data(const_cast<ort::Value*>(value), &data));
  return data;
}

float Context::positive(size_t index, const char* name) const {
  const auto value = scalar<float>(index, name);
  if (!(value > 0 && std::isfinite(value)))
    throw Failure(std::string(name) + " must be above 0 and finite, got " + std::to_string(value));
  return value;
}

void* Context::output_data(const Dims& dims) const {
  ort::Value* value = nullptr;
  const bool empty = product(dims, 0, dims.size()) == 0;
  check(runtime().output(context_, 0, dims.data(), dims.size(), &value));
  if (empty) return nullptr;
  void* data = nullptr;
  check(runtime().tensor_data(value, &data));
  return data;
}

}  // namespace samq
