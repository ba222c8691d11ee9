// The contract between the engine (which owns memory and threads) and the kernels (which only compute).
//
// Plain structs of pointers and sizes; nothing here knows Python, allocates or throws. Every instruction
// set exports one Kernel; all of them are compiled from projection_kernel.inl.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headroute {

// Operands that are broadcast (queries, weights) are stored in strips of 16 columns, [column / 16][row][16]:
// a tile then reaches all of its rows from one pointer with constant displacements (14 row pointers do not
// fit in 16 integer registers), and rows 4 KiB apart do not fall into the same L1 set.
constexpr std::size_t kStrip = 16;

constexpr std::size_t round_up(std::size_t n, std::size_t step) { return (n + step - 1) / step * step; }

// Heads as a kernel reads them. Block b covers heads [b * block_heads, …) and is one contiguous run:
//   centroids  [ceil(heads / panel)][query_dim][panel]   then   answers  [ceil(answer_dim / panel)][heads][panel]
// A panel is 2 vectors wide; a last panel that would be at most half full is stored 1 vector wide. Columns
// beyond the end are zero. Centroids have unit norm.
struct PackedHeads {
    const float* data;        // 64-byte aligned
    std::size_t n_heads;      // K
    std::size_t query_dim;    // d
    std::size_t answer_dim;   // e
    std::size_t block_heads;  // a function of K, d, e and the ISA alone, so that bits depend on nothing else
    std::size_t n_blocks;
    float answer_scale;  // a power of 2: the packed answers times this are the answers
};

// A run of rows, computed by one thread.
struct Rows {
    const float* queries;         // [n, d]
    std::ptrdiff_t query_stride;  // floats between two rows
    std::size_t n;
    std::size_t pass_rows;  // rows that go through all blocks together; a multiple of the kernel's max_rows
    float* out;             // [n, e] projected, or [n, K] weights; C-contiguous
    double log2e_over_temperature;
    bool stream;     // write `out` past the caches (project only): it is larger than they are
    float* scratch;  // scratch_floats() floats, 64-byte aligned
};

// Polled between blocks of heads; true means stop: the call was interrupted.
struct Interrupt {
    bool (*requested)(void* context);
    void* context;
};

constexpr std::size_t kNoBadRow = SIZE_MAX;

struct Kernel {
    const char* name;
    std::size_t lanes;     // floats in a vector; a panel is 2 vectors
    std::size_t max_rows;  // rows of the largest tile
    // Both return the first row with a NaN or infinity, or kNoBadRow; the rows of `out` are then unspecified.
    std::size_t (*project)(const PackedHeads&, const Rows&, const Interrupt&) noexcept;
    std::size_t (*route)(const PackedHeads&, const Rows&, const Interrupt&) noexcept;
};

// Floats in a block of `heads` heads.
constexpr std::size_t block_floats(const PackedHeads& h, std::size_t heads, std::size_t lanes) {
    return round_up(heads, lanes) * h.query_dim + round_up(h.answer_dim, lanes) * heads;
}

// Floats between two rows of sums: whole panels, and one strip more, so that rows are never a multiple of 4 KiB apart.
constexpr std::size_t sum_stride(std::size_t answer_dim) { return round_up(answer_dim, 2 * kStrip) + kStrip; }

// A tile's slot: queries in strips, sums, squares, and three numbers a row. Every part is 64-byte aligned.
constexpr std::size_t slot_floats(const PackedHeads& h, std::size_t max_rows) {
    return max_rows * (round_up(h.query_dim, kStrip) + sum_stride(h.answer_dim) + kStrip) + 3 * kStrip;
}

// With one block a tile is finished before the one after next begins. With several, every tile of a pass stays;
// the rows after its last whole tile may make two small ones, which are one more than a whole tile would be.
constexpr std::size_t tile_slots(const PackedHeads& h, std::size_t pass_rows, std::size_t max_rows) {
    return h.n_blocks == 1 ? 2 : pass_rows / max_rows + 1;
}

// Scratch of one thread: the slots, and one tile of weights.
constexpr std::size_t scratch_floats(const PackedHeads& h, std::size_t pass_rows, std::size_t max_rows) {
    return tile_slots(h, pass_rows, max_rows) * slot_floats(h, max_rows) +
           max_rows * round_up(h.block_heads, 2 * kStrip);
}

}  // namespace headroute
