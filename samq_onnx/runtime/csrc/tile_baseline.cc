// SPDX-License-Identifier: Apache-2.0
// Tile kernels for every CPU (SSE2 on x86-64).
#define SAMQ_ISA baseline
#define SAMQ_LANES 4
#include "tile_body.h"
