// SPDX-License-Identifier: Apache-2.0
// Memory that kernels need while they run: aligned buffers, and scratch that the tasks of a parallel loop share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace samq {

// Uninitialised memory of `count` T, aligned to a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T) + kAlign, kAlignment))) {}
  ~Buffer() { ::operator delete(data_, kAlignment); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }

 private:
  static constexpr size_t kAlign = 64;
  static constexpr std::align_val_t kAlignment{kAlign};
  T* data_;
};

// Blocks of equal size, one for each task that runs at the same time.
class ScratchPool {
 public:
  explicit ScratchPool(size_t bytes) : bytes_(bytes) {}
  ~ScratchPool() {
    for (Buffer<char>* block : all_) delete block;
  }
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;

  // A block for the life of this object.
  class Lease {
   public:
    explicit Lease(ScratchPool& pool) : pool_(pool), block_(pool.acquire()) {}
    ~Lease() {
      const std::lock_guard<std::mutex> lock(pool_.mutex_);
      pool_.free_.push_back(block_);  // has room: see acquire
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    void* data() const { return block_->data(); }

   private:
    ScratchPool& pool_;
    Buffer<char>* block_;
  };

 private:
  Buffer<char>* acquire() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) {
      all_.reserve(all_.size() + 1);
      free_.reserve(all_.size() + 1);
      all_.push_back(new Buffer<char>(static_cast<int64_t>(bytes_)));
      return all_.back();
    }
    Buffer<char>* block = free_.back();
    free_.pop_back();
    return block;
  }

  size_t bytes_;
  std::mutex mutex_;
  std::vector<Buffer<char>*> all_, free_;
};

}  // namespace samq
