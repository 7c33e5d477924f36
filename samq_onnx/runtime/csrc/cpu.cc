// SPDX-License-Identifier: Apache-2.0
#include "cpu.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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

std::vector<const TileKernels*> all_tile_kernels() {
  std::vector<const TileKernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && has_avx512_vnni()) found.push_back(&avx512vnni_tile_kernels());
  if (avx512) found.push_back(&avx512_tile_kernels());
  if (avx2 && has_avx_vnni()) found.push_back(&avxvnni_tile_kernels());
  if (avx2) found.push_back(&avx2_tile_kernels());
#elif defined(__aarch64__) && defined(__APPLE__)
  found.push_back(&neondot_tile_kernels());  // every Apple CPU has it
#elif defined(__aarch64__) && defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(&neondot_tile_kernels());
#endif
  found.push_back(&baseline_tile_kernels());
  return found;
}

const TileKernels& tile_kernels() {
  static const TileKernels& chosen = []() -> const TileKernels& {
    const std::vector<const TileKernels*> all = all_tile_kernels();
    const char* const asked = std::getenv("SAMQ_ISA");
    if (asked == nullptr) return *all.front();
    for (const TileKernels* kernels : all)
      if (std::strcmp(asked, kernels->name) == 0) return *kernels;
    return *all.back();
  }();
  return chosen;
}

}  // namespace samq
