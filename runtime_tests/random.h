// SPDX-License-Identifier: Apache-2.0
// Random numbers of a seed, the same on every machine, extremes among them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <random>
#include <vector>

namespace samq {

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int32_t in(int64_t lowest, int64_t highest) {
    return static_cast<int32_t>(lowest + static_cast<int64_t>(engine_() % static_cast<uint64_t>(highest - lowest + 1)));
  }
  bool once_in(int32_t n) { return in(1, n) == 1; }
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
  // Some of the numbers become infinite, none, huge, tiny or 0.
  void spoil(std::vector<float>& x) {
    using Limits = std::numeric_limits<float>;
    if (x.empty()) return;
    for (int32_t count = in(1, 5); count > 0; --count)
      x[static_cast<size_t>(in(0, static_cast<int64_t>(x.size()) - 1))] =
          one_of({Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), Limits::max(), Limits::lowest(),
                  Limits::denorm_min(), 0.0f, -0.0f});
  }

 private:
  std::mt19937 engine_;
};

}  // namespace samq
