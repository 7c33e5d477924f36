// SPDX-License-Identifier: Apache-2.0
// Tile kernels for x86 with AVX-512 F, BW, DQ, VL and VNNI.
#define SAMQ_ISA avx512vnni
#define SAMQ_LANES 16
#include "tile_body.h"
