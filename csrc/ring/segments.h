// How the columns of a [rows, D] matrix are cut: into chunks by D and the number of ranks alone, for the
// order of the sum; and these into segments, by what is worth a flag.
//
// Columns go in panels of 16, the unit of a packed weight. Chunk c has panels [c P / R, (c + 1) P / R). A
// chunk is cut into segments of equal size (the last may be smaller). Partial sums lie segment after segment,
// each contiguous: [rows][columns of the segment], so that a segment is read and written in one stream.
//
// Kernels of every ISA include this, so nothing here may be emitted out of line: hence always_inline.
#pragma once

#include <cstdint>

#include "ops.h"
#include "ring/shared_region.h"

namespace fastserve {

// Below that, a flag costs more than the work that it lets start early.
constexpr int32_t kMinSegmentBytes = 8 * 1024;
constexpr int32_t kMinSegmentPanels = 4;  // a matmul's tile; fewer only where threads would have none

struct Segment {
    int32_t idx;  // its flag, and its place in the symmetric buffer
    int32_t chunk;
    int32_t panel_begin, panel_end;
    int32_t column_begin, column_end;  // column_end is cut at D
    [[gnu::always_inline]] int32_t ld() const { return (panel_end - panel_begin) * kPanel; }
};

class Segments {
  public:
    // team_threads: of a rank, about; each should have a segment of every chunk, several ones two.
    [[gnu::always_inline]] Segments(int32_t d, int32_t num_ranks, int32_t rows, int32_t team_threads)
        : d_(d), num_ranks_(num_ranks), num_panels_((d + kPanel - 1) / kPanel) {
        const int32_t chunk_panels = (num_panels_ + num_ranks - 1) / num_ranks;  // of the largest
        const int32_t row_bytes = kPanel * static_cast<int32_t>(sizeof(float)) * (rows > 0 ? rows : 1);
        const int32_t worth_a_flag = kMinSegmentPanels + kMinSegmentBytes / row_bytes;
        const int32_t wanted = team_threads > 1 ? 2 * team_threads : 1;
        const int32_t shared_out = (chunk_panels + wanted - 1) / wanted;
        const int32_t limit = kMaxSegments / num_ranks;
        const int32_t fewest = (chunk_panels + limit - 1) / limit;
        panels_ = worth_a_flag < shared_out ? worth_a_flag : shared_out;
        if (panels_ < fewest) panels_ = fewest;
        if (panels_ < 1) panels_ = 1;
    }

    [[gnu::always_inline]] int32_t num_panels() const { return num_panels_; }
    [[gnu::always_inline]] int32_t chunk_begin(int32_t chunk) const {
        return static_cast<int32_t>(static_cast<int64_t>(chunk) * num_panels_ / num_ranks_);
    }
    [[gnu::always_inline]] int32_t in_chunk(int32_t chunk) const {
        return (chunk_begin(chunk + 1) - chunk_begin(chunk) + panels_ - 1) / panels_;
    }
    [[gnu::always_inline]] int32_t count() const {
        int32_t total = 0;
        for (int32_t chunk = 0; chunk < num_ranks_; ++chunk) total += in_chunk(chunk);
        return total;
    }

    // The i-th segment of a chunk.
    [[gnu::always_inline]] Segment at(int32_t chunk, int32_t i) const {
        Segment segment;
        segment.chunk = chunk;
        segment.idx = chunk * (kMaxSegments / num_ranks_) + i;
        const int32_t end = chunk_begin(chunk + 1);
        segment.panel_begin = chunk_begin(chunk) + i * panels_;
        segment.panel_end = segment.panel_begin + panels_ < end ? segment.panel_begin + panels_ : end;
        segment.column_begin = segment.panel_begin * kPanel;
        segment.column_end = segment.panel_end * kPanel < d_ ? segment.panel_end * kPanel : d_;
        return segment;
    }

    // The i-th segment, 0 <= i < count(), in the order of the ring for `rank`: chunks rank - 1, rank - 2,
    // ..., rank.
    [[gnu::always_inline]] Segment in_ring_order(int32_t rank, int32_t i) const {
        for (int32_t hop = 0;; ++hop) {
            const int32_t chunk = (rank + 2 * num_ranks_ - 1 - hop) % num_ranks_;
            if (i < in_chunk(chunk)) return at(chunk, i);
            i -= in_chunk(chunk);
        }
    }

  private:
    int32_t d_, num_ranks_, num_panels_;
    int32_t panels_;  // of a segment
};

}  // namespace fastserve
