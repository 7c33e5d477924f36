// SPDX-License-Identifier: Apache-2.0
// Whether what was made is what was expected; a line that says where it is not.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

namespace samq {

// Bit for bit; what is not a number may be any that is not one. With bounds, as near as these.
template <class T>
bool same(const char* by, const char* what, uint32_t seed, const std::vector<float>& made, const std::vector<T>& expected,
          const std::vector<double>* bounds = nullptr) {
  if (made.size() != expected.size()) {
    std::printf("%s %s: seed %u has %zu values, expected %zu\n", by, what, seed, made.size(), expected.size());
    return false;
  }
  for (size_t i = 0; i < made.size(); ++i) {
    const auto nearest = static_cast<float>(expected[i]);
    if (bounds != nullptr ? std::abs(static_cast<double>(made[i]) - static_cast<double>(expected[i])) <= (*bounds)[i]
                          : std::memcmp(&made[i], &nearest, sizeof(float)) == 0 || (std::isnan(made[i]) && std::isnan(nearest)))
      continue;
    std::printf("%s %s: seed %u, value %zu of %zu is %.9g, expected %.9g\n", by, what, seed, i, made.size(),
                static_cast<double>(made[i]), static_cast<double>(nearest));
    return false;
  }
  return true;
}

}  // namespace samq
