"""Bugs that the tests of the kernels must find: each is one place of a kernel's source, changed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old`, which stands once in csrc/cuda/<file>, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    test: str


def _of(test: str, file: str, *mutations: tuple[str, str, str]) -> list[Mutation]:
    return [Mutation(name, file, old, new, test) for name, old, new in mutations]


MUTATIONS = [
    *_of(
        "test_all_reduce",
        "peers.cuh",
        ("a flag is awaited without acquire", "ld_acquire_sys(flag)", "ld_relaxed_sys(flag)"),
        ("a wait does not look at the epoch", "looks % kEpochEvery == 0 &&", "false &&"),
        (
            "a block does not meet after its waits",
            "    __syncthreads();\n    uint32_t any",
            "    uint32_t any",
        ),
        (
            "a sum begins at the reader's own rank",
            "    int rank = c;\n#pragma",
            "    int rank = peers.rank;\n#pragma",
        ),
    ),
    *_of(
        "test_all_reduce",
        "all_reduce.cuh",
        (
            "a phase's flag is raised without release",
            "st_release_sys(&flags_of(args, thread)",
            "st_relaxed_sys(&flags_of(args, thread)",
        ),
        (
            "a phase's flag is raised before the block has met",
            "    __syncthreads();\n    const int thread",
            "    const int thread",
        ),
        ("a rank awaits its first peer alone", "all_came(thread >= peers.size ||", "all_came(thread != 0 ||"),
        ("every call uses the same slots", "number % 2 * args.half_bytes", "0 * args.half_bytes"),
        (
            "a call is counted by its own blocks alone",
            "block < kMaxBlocks; block += gridDim.x)",
            "block < gridDim.x; block += gridDim.x)",
        ),
        (
            "the sums of the other ranks are not awaited",
            "return meet(args, call, kGather, lost);",
            "return true;",
        ),
        (
            "a segment's flag is raised without release",
            "st_release_sys(&ring_flags(args, after)->pushed",
            "st_relaxed_sys(&ring_flags(args, after)->pushed",
        ),
        (
            "a slot is given back without release",
            "st_release_sys(&ring_flags(args, before)->taken",
            "st_relaxed_sys(&ring_flags(args, before)->taken",
        ),
        (
            "a slot is filled before it is given back",
            "came = reached(peers, &flags->taken[block], pushed + 1 - kRingSlots);",
            "came = true;",
        ),
        ("a slot is filled one segment early", "pushed + 1 - kRingSlots", "pushed - kRingSlots"),
        (
            "a segment's flag is raised before the block has met",
            "            __syncthreads();\n            if (step > 0) ++received;",
            "            if (step > 0) ++received;",
        ),
    ),
    *_of(
        "test_all_reduce_add_rms_norm",
        "add_rms_norm.cuh",
        (
            "the sums of warps are read before all are there",
            "= value;\n    __syncthreads();",
            "= value;",
        ),
        (
            "the sums of warps are written while the last ones are read",
            "    __syncthreads();  // the last call's sums have been read\n",
            "",
        ),
    ),
    *_of(
        "test_all_reduce_add_rms_norm",
        "all_reduce_add_rms_norm.cuh",
        ("a row is split between blocks", "two_shot<X, true>", "two_shot<X, false>"),
    ),
    *_of(
        "test_add_rms_norm",
        "all_reduce_add_rms_norm.cuh",
        ("a sum is added before it is rounded", "    unpack<T>(pack<T>(sum), sum);\n", ""),
    ),
    *_of(
        "test_add_rms_norm",
        "add_rms_norm.cuh",
        ("what is normalised is not what is stored", "        unpack<T>(bits, values);\n", ""),
    ),
    *_of(
        "test_matmul",
        "tile.cuh",
        (
            "a slice is read before its copy has come",
            "cp_async_wait<Tile::kStages - 2>",
            "cp_async_wait<Tile::kStages - 1>",
        ),
        (
            "a slice is read before others' copies have come",
            "            __syncthreads();  // everybody's copies",
            "            // everybody's copies",
        ),
        (
            "the next tile's slices overwrite those that are read",
            "        }\n        __syncthreads();\n    }",
            "        }\n    }",
        ),
    ),
    *_of(
        "test_matmul_all_reduce",
        "matmul_all_reduce.cuh",
        (
            "a pushed tile's flag is raised without release",
            "st_release_sys(&flags(rank)->arrived[tile]",
            "st_relaxed_sys(&flags(rank)->arrived[tile]",
        ),
        ("every call pushes to the same slots", "call % 2 * args.half_bytes", "0 * args.half_bytes"),
        (
            "a call in shots is counted by its own blocks alone",
            "block < kMaxBlocks; block += gridDim.x)",
            "block < gridDim.x; block += gridDim.x)",
        ),
    ),
    *_of(
        "test_matmul_all_reduce",
        "matmul_all_reduce_one_shot.cuh",
        (
            "a pushed tile's flag is raised before the block has met",
            "        __syncthreads();\n        if (thread < peers.size) shots.raise",
            "        if (thread < peers.size) shots.raise",
        ),
    ),
    *_of(
        "test_matmul_all_reduce",
        "matmul_all_reduce_two_shot.cuh",
        (
            "a part's flag is raised before the block has met",
            "        __syncthreads();\n        if (threadIdx.x == 0) shots.raise",
            "        if (threadIdx.x == 0) shots.raise",
        ),
        ("an owner does not await the parts", "!is_peer || shots.has_come(tile, thread)", "true"),
        (
            "an owner awaits one rank's part alone",
            "shots.has_come(tile, thread)",
            "shots.has_come(tile, next_rank(peers, peers.rank))",
        ),
        ("an owner's own part is not rounded", "                unpack<T>(pack<T>(own), own);\n", ""),
        (
            "a sum's flag is raised before the block has met",
            "        __syncthreads();\n        if (is_peer) shots.raise",
            "        if (is_peer) shots.raise",
        ),
        ("a sum is not awaited", "threadIdx.x != 0 || shots.has_come(tile, owner)", "true"),
        (
            "sums lie where parts still do",
            "static_cast<long long>(parts) * peers.size + tile",
            "static_cast<long long>(parts) + tile",
        ),
    ),
    *_of(
        "test_matmul_all_reduce",
        "matmul_all_reduce_ring.cuh",
        (
            "a partial tile's flag is raised without release",
            "st_release_sys(&flags(after)->pushed",
            "st_relaxed_sys(&flags(after)->pushed",
        ),
        (
            "a tile's slot is given back without release",
            "st_release_sys(&flags(before)->taken",
            "st_relaxed_sys(&flags(before)->taken",
        ),
        (
            "a sum's flag is raised without release",
            "st_release_sys(&flags(thread)->finished",
            "st_relaxed_sys(&flags(thread)->finished",
        ),
        (
            "a tile's slot is filled before it is given back",
            "came = reached(args.peers, &flags(rank)->taken[block], pushes + 1 - kTileSlots);",
            "came = true;",
        ),
        ("a tile's slot is filled one tile early", "pushes + 1 - kTileSlots", "pushes - kTileSlots"),
        (
            "a tile's flags are raised before the block has met",
            "        __syncthreads();\n        if (takes) ++receipts;",
            "        if (takes) ++receipts;",
        ),
        ("a part goes around unrounded", "        round_part<Tile>(sums);\n", ""),
        (
            "every round's sums use one slot",
            "static_cast<int>(round % 2)) * kSumSlotBytes",
            "0) * kSumSlotBytes",
        ),
        ("sums are collected a round late", "collected < index / size - 1", "collected < index / size - 2"),
    ),
]
