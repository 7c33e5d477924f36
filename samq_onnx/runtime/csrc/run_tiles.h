// SPDX-License-Identifier: Apache-2.0
// Packs k and v of every batch entry, then runs every tile, both on the session's threads.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "kernel.h"
#include "pack.h"
#include "tile.h"

namespace samq {

// Runs every tile of a job whose operands are packed.
template <class Job, class Tile>
void run_tiles(const Context& context, const Job& job, size_t (*scratch_size)(const Job&), const Tile& tile) {
  const Sizes& sizes = job.sizes;
  const int64_t tiles = (sizes.rows + kTileRows - 1) / kTileRows;
  ScratchPool pool(scratch_size(job));
  context.parallel_for(sizes.batch * tiles, [&](int64_t index) {
    const ScratchPool::Lease scratch(pool);
    const int64_t first = index % tiles * kTileRows;
    tile(job, index / tiles, first, std::min(kTileRows, sizes.rows - first), scratch.data());
  });
}

// Fills job.k_panels and job.v_panels. Group and the element types are those of pack().
template <int Group, class Packed, class In, class Job, class Tile>
void run_tiles(const Context& context, int64_t panel, const In* k, Packed k_zero, const In* v, Packed v_zero, Job& job,
               size_t (*scratch_size)(const Job&), const Tile& tile) {
  const Sizes& sizes = job.sizes;
  const int64_t k_size = packed_size<Group>(sizes.depth, sizes.keys, panel);
  const int64_t v_size = packed_size<Group>(sizes.keys, sizes.value_depth, panel);
  Buffer<Packed> k_panels(sizes.batch * k_size), v_panels(sizes.batch * v_size);
  context.parallel_for(sizes.batch, [&](int64_t b) {
    pack<Group>(k + b * sizes.keys * sizes.depth, sizes.depth, 1, sizes.keys, sizes.depth, k_zero, panel,
                k_panels.data() + b * k_size);
    pack<Group>(v + b * sizes.keys * sizes.value_depth, sizes.keys, sizes.value_depth, sizes.value_depth, 1, v_zero, panel,
                v_panels.data() + b * v_size);
  });
  job.k_panels = k_panels.data();
  job.v_panels = v_panels.data();

  run_tiles(context, job, scratch_size, tile);
}

}  // namespace samq
