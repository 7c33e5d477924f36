// SPDX-License-Identifier: Apache-2.0
// Tile kernels for 64-bit Arm with NEON's dot product.
#define SAMQ_ISA neondot
#define SAMQ_LANES 4
#include "tile_body.h"
