// SPDX-License-Identifier: Apache-2.0
// What a kernel sees of the runtime: attributes when it is made, tensors and a parallel loop when it runs.
// Mistakes are thrown as Failure and become a Status at the boundary (op.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "ort_abi.h"

namespace samq {

using Dims = std::vector<int64_t>;

class Failure : public std::exception {
 public:
  explicit Failure(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// "[2, 3, 4]"
std::string to_string(const Dims& dims);

// Product of dims[first..last), 0 if one of them is 0, however large the others; Failure if it does not fit.
int64_t product(const Dims& dims, size_t first, size_t last);

// The runtime's functions; set once by RegisterCustomOps.
const ort::Functions& runtime();

// Throws what a Status says, and releases it.
void check(ort::Status* status);

class Attributes {
 public:
  explicit Attributes(const ort::KernelInfo* info) : info_(info) {}
  float number(const char* name) const;
  // An integer in [lowest, highest]; otherwise Failure.
  int64_t integer(const char* name, int64_t lowest, int64_t highest) const;
  // How many steps log codes have in an octave: 1, 2, 4, 8 or 16; otherwise Failure.
  int32_t tau() const;

 private:
  const ort::KernelInfo* info_;
};

template <class T>
struct Tensor {
  const T* data;
  Dims dims;
  int64_t size() const { return product(dims, 0, dims.size()); }
};

class Context {
 public:
  explicit Context(ort::KernelContext* context) : context_(context) {}

  template <class T>
  Tensor<T> tensor(size_t index, const char* name) const {
    Tensor<T> made;
    made.data = static_cast<const T*>(input(index, name, made.dims));
    return made;
  }

  // The only element of an input.
  template <class T>
  T scalar(size_t index, const char* name) const {
    const Tensor<T> made = tensor<T>(index, name);
    if (made.size() != 1) throw Failure(std::string(name) + " must hold one number, got shape " + to_string(made.dims));
    return made.data[0];
  }

  // The only element of an input; Failure unless it is above 0 and finite.
  float positive(size_t index, const char* name) const;

  // Memory of the output. Null if it has no element: then nothing is left to do, whatever the sizes of the inputs.
  template <class T>
  T* output(const Dims& dims) const {
    return static_cast<T*>(output_data(dims));
  }

  // Runs body(index) for each index below total on the session's threads; a Failure of any of them is thrown here.
  template <class Body>
  void parallel_for(int64_t total, const Body& body) const {
    if (total == 0) return;
    struct Job {
      const Body& body;
      std::atomic<bool> failed{false};
      std::string message;
    } job{body, {}, {}};
    const auto task = [](void* user, size_t index) noexcept {
      Job& shared = *static_cast<Job*>(user);
      try {
        shared.body(static_cast<int64_t>(index));
      } catch (const std::exception& error) {
        if (!shared.failed.exchange(true)) shared.message = error.what();
      }
    };
    check(runtime().parallel_for(context_, task, static_cast<size_t>(total), 0, &job));
    if (job.failed) throw Failure(job.message);
  }

 private:
  const void* input(size_t index, const char* name, Dims& dims) const;
  void* output_data(const Dims& dims) const;

  ort::KernelContext* context_;
};

}  // namespace samq
