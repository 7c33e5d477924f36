// SPDX-License-Identifier: Apache-2.0
// What this CPU can do, and the tile kernels for it.
#pragma once

#include <vector>

#include "tile.h"

namespace samq {

bool has_vnni();

// Those that this CPU runs, the widest first, the baseline last.
std::vector<const TileKernels*> all_tile_kernels();

// The widest tile kernels that this CPU runs, chosen once. The environment variable SAMQ_ISA (baseline, avx2,
// avxvnni, avx512, avx512vnni, neondot) asks for narrower ones, for tests and measurements.
const TileKernels& tile_kernels();

}  // namespace samq
