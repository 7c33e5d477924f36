// SPDX-License-Identifier: Apache-2.0
// A library of operators that stands in front of another one and counts the calls that it makes of ONNX Runtime: it hands
// on the runtime's table, with a counting function in each slot that ort_abi.h names and nothing in any other.
#include <dlfcn.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "ort_abi.h"

#define SAMQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace samq::ort;

constexpr size_t kSlots = 512;

void* real[kSlots];     // the runtime's functions
void* counting[kSlots];  // what is handed on
std::atomic<int64_t> calls[kSlots];
Status* (*register_behind)(SessionOptions*, const ApiBase*) = nullptr;
const ApiBase* base_in_front = nullptr;

template <size_t kSlot, class Function>
struct Counting;
template <size_t kSlot, class Result, class... Parameters>
struct Counting<kSlot, Result (*)(Parameters...)> {
  static Result call(Parameters... given) {
    calls[kSlot].fetch_add(1, std::memory_order_relaxed);
    return reinterpret_cast<Result (*)(Parameters...)>(real[kSlot])(given...);
  }
};

const Api* get_api(uint32_t version) {
  const auto* const table = reinterpret_cast<void* const*>(base_in_front->get_api(version));
  if (table == nullptr) return nullptr;
#define SAMQ_COUNT(slot, official, name, result, parameters)  \
  static_assert((slot) < kSlots);                             \
  real[slot] = table[slot];                                   \
  counting[slot] = reinterpret_cast<void*>(Counting<slot, result(*) parameters>::call);
  SAMQ_ORT_FUNCTIONS(SAMQ_COUNT)
#undef SAMQ_COUNT
  return reinterpret_cast<const Api*>(counting);
}

const char* version_string() { return base_in_front->version_string(); }

}  // namespace

// Names the library behind this one; 0 if it cannot be loaded.
SAMQ_EXPORT int stand_before(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return 0;
  register_behind = reinterpret_cast<decltype(register_behind)>(dlsym(library, "RegisterCustomOps"));
  return register_behind != nullptr;
}

SAMQ_EXPORT Status* RegisterCustomOps(SessionOptions* options, const ApiBase* base) {
  static const ApiBase ours{get_api, version_string};
  base_in_front = base;
  return register_behind(options, &ours);
}

// The official name of the function in a slot; null where ort_abi.h names none.
SAMQ_EXPORT const char* slot_name(size_t slot) {
  switch (slot) {
#define SAMQ_NAME(number, official, name, result, parameters) \
  case number: return #official;
    SAMQ_ORT_FUNCTIONS(SAMQ_NAME)
#undef SAMQ_NAME
    default: return nullptr;
  }
}

SAMQ_EXPORT size_t slot_count() { return kSlots; }
SAMQ_EXPORT int64_t slot_calls(size_t slot) { return calls[slot].load(std::memory_order_relaxed); }
