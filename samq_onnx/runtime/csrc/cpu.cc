// SPDX-License-Identifier: Apache-2.0
#include "cpu.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace samq {

#if defined(__x86_64__)
namespace {

bool has_avx512_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1) && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}

bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) && __builtin_cpu_supports("avx2");
}

}  // namespace

bool has_vnni() { return has_avx512_vnni() || has_avx_vnni(); }
#else
bool has_vnni() { return false; }
#endif

const TileKernels& tile_kernels() {
  static const TileKernels& chosen = []() -> const TileKernels& {
#if defined(__x86_64__)
    const char* asked = std::getenv("SAMQ_ISA");
    const auto allowed = [asked](const char* name) { return asked == nullptr || std::strcmp(asked, name) == 0; };
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && has_avx512_vnni() && allowed("avx512vnni")) return avx512vnni_tile_kernels();
    if (avx512 && allowed("avx512")) return avx512_tile_kernels();
    if (avx2 && has_avx_vnni() && allowed("avxvnni")) return avxvnni_tile_kernels();
    if (avx2 && allowed("avx2")) return avx2_tile_kernels();
#endif
    return baseline_tile_kernels();
  }();
  return chosen;
}

}  // namespace samq
