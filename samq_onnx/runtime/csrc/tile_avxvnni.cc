// SPDX-License-Identifier: Apache-2.0
// Tile kernels for x86 with AVX2, FMA and AVX-VNNI.
#define SAMQ_ISA avxvnni
#define SAMQ_LANES 8
#include "tile_body.h"
