// SPDX-License-Identifier: Apache-2.0
// Tile kernels for x86 with AVX2 and FMA.
#define SAMQ_ISA avx2
#define SAMQ_LANES 8
#include "tile_body.h"
