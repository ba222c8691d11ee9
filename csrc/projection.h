// The contract between the engine (which owns memory and threads) and the kernels (which only compute).
//
// Plain structs of pointers and sizes; nothing here knows Python, allocates or throws. Every instruction
// set exports one Kernel, compiled from kernel.inl, or what it adds to another's (isa_amx.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace headroute {

// Operands that are broadcast (queries, weights) are stored in strips of 16 columns, [column / 16][row][16]:
// a tile then reaches all of its rows from one pointer with constant displacements (14 row pointers do not
// fit in 16 integer registers), and rows 4 KiB apart do not fall into the same L1 set.
constexpr std::size_t kStrip = 16;

constexpr std::size_t divide_up(std::size_t n, std::size_t by) { return (n + by - 1) / by; }
constexpr std::size_t round_up(std::size_t n, std::size_t step) { return divide_up(n, step) * step; }

enum class Precision { float32, int16, screened };

// int16: products that are added up in int32 before the sum becomes a float. A short chain has a small norm, so its
// values may be large and their rounding is small; the price of 128 is 2 % of the products' time (64: 5 %).
constexpr std::size_t kIntChain = 128;
constexpr std::size_t kLargestInt16 = 32767;

// Heads of an int16 block, at most.
constexpr std::size_t kInt16BlockHeads = 256;

// Rows of the largest tile of any kernel.
constexpr std::size_t kMostRows = 32;

// Heads as a kernel reads them. Elements are 4 bytes: a float, a pair of int16 or four int8. Block b covers heads
// [b * block_heads, …) and is one contiguous run of elements:
//   centroids  [ceil(heads / panel)][elements(query_dim)][panel]
//   answers    [ceil(answer_dim / panel)][elements(heads)][panel]     (not when screened)
// Elements along a row are its values, `values` an element. Where whole tiles are multiplied they come in 16s, with
// zeros behind the last; in two planes, 64 values are 16 elements of their low bytes, unsigned, and 16 of their high
// bytes.
// A panel is 2 vectors wide, or 1 for tiles; a last panel that would be at most half full is stored 1 vector
// wide. What is beyond the end is zero.
struct PackedHeads {
    const void* data;  // 64-byte aligned
    Precision precision;
    std::size_t values;       // in an element: 1 for float32, 2 or 4 for int16, 4 or 2 for screened
    std::size_t planes;       // 2: int16 as bytes; else 1
    std::size_t step;         // elements come in multiples of it: kStrip for tiles, else 1
    std::size_t n_heads;      // K
    std::size_t query_dim;    // d
    std::size_t answer_dim;   // e
    std::size_t block_heads;  // a function of K, d, e, precision and the ISA alone, so that bits depend on nothing else
    std::size_t n_blocks;
    // float32: centroids ĉ of unit norm; answers a / answer_scale, answer_scale a power of 2.
    // else:    centroids (ĉ - μ) · centroid_scale and answers a / answer_scale, rounded; μ, the mean of the centroids,
    //          adds the same to all cosines of a query, which softmax does not see.
    float answer_scale;
    double centroid_scale;
    // Pairs of int16: [ceil(d / kIntChain)]; a query may be scaled so far that no ‖q16‖² over the columns of a
    // chain exceeds the chain's 1 / inverse_limit: then |q16 · c16| < 2^31 over the chain for every head
    // (Cauchy-Schwarz).
    const float* inverse_limits;
    // screened: the largest ‖ĉ - μ‖ and the largest error of its rounding; what is to be subtracted from a head's dots
    // [K], in that order; and the rows themselves, ĉ [K + 1, row_stride] with zeros beyond d, the last one μ, and a [K,
    // e].
    double centroid_norm, centroid_rounding;
    const float* dot_offsets;
    const std::uint32_t* search_order;  // [K] the heads as they are packed: similar ones, often neighbours, far apart
    const float* centroid_rows;
    const float* answer_rows;
};

constexpr std::size_t row_stride(std::size_t query_dim) { return round_up(query_dim, kStrip); }

// screened: heads that a row may keep before it is left to the dense kernel. Reading a centroid or an answer costs 40
// ns, a head of a dense row 14 ns; K / 4 to K / 8 are equally fast at K = 15,000, τ = 0.03.
constexpr std::size_t kept_limit(std::size_t n_heads) {
    const std::size_t limit = n_heads / 4;
    return limit < 64 ? 64 : limit > 4096 ? 4096 : limit;
}

// A matrix of float32, or of binary16 (IEEE half). Byte: char or const char.
template <typename Byte>
struct Matrix {
    Byte* data;
    bool half;

    Matrix from(std::ptrdiff_t element) const { return {data + element * (half ? 2 : 4), half}; }
};

// The k heaviest heads of rows, heaviest first; of equal ones the first.
struct Top {
    std::int64_t* heads;  // [n, k]
    std::size_t k;
};

// A run of rows, computed by one thread.
struct Rows {
    Matrix<const char> queries;   // [n, d]
    std::ptrdiff_t query_stride;  // elements between two rows
    std::size_t n;
    std::size_t pass_rows;  // rows that go through all blocks together; a multiple of the kernel's max_rows
    Matrix<char> out;       // C-contiguous: [n, e] projected; float32: [n, K] weights, or [n, k] of the heaviest heads
    double log2e_over_temperature;
    bool stream;  // write `out` past the caches (project only): it is larger than they are
    // [n][3], or null; project in float32 only: the largest cosine; Σ w; Σ w log2(w), w = 1 for that cosine's head.
    float* stats;
    Top top;  // top_heads only
    // [n][2], or null. int16: ‖q̂ - its rounding‖, and Σ |w - its rounding| / Σ w. screened, never null: the part
    // of the weight that was dropped, at most, or infinity where too many heads would have to be kept and `out` is
    // unspecified; and how many were kept.
    float* account;
    double may_drop;  // screened: the part of its weight that a row may lose
    float* scratch;   // scratch_floats() floats, 64-byte aligned
};

// Polled between blocks of heads; true means stop: the call was interrupted.
struct Interrupt {
    bool (*requested)(void* context);
    void* context;
};

constexpr std::size_t kNoBadRow = SIZE_MAX;

// One tile of a few rows by several threads, in the order of the batched kernels: shared_tile.inl. `rows` are those of
// the tile, with a slot as scratch; dots are [n_blocks][weight_floats()].
struct SharedKernel {
    std::size_t (*begin)(const PackedHeads&, const Rows&) noexcept;  // returns the first bad row, or kNoBadRow
    void (*dots)(const PackedHeads&, const Rows&, float* dots, std::size_t block) noexcept;
    // Panels [panel, end_panel) of the result; scratch: shared_scratch_floats().
    void (*finish)(const PackedHeads&, const Rows&, const float* dots, std::size_t panel, std::size_t end_panel,
                   float* scratch, const Interrupt&) noexcept;
};

// int16 as an instruction set does it best. No more than `weight_chain` heads have their weights rounded together,
// to integers of which the largest is, or all add up to, about `weight_total`.
struct Int16Kernel {
    std::size_t max_rows;  // rows of the largest tile
    std::size_t planes, step;
    std::size_t weight_chain;
    float weight_total;
    float cost;  // of a row beside float32, at K = 256 and above
    std::size_t (*project)(const PackedHeads&, const Rows&, const Interrupt&) noexcept;
    SharedKernel shared;
};

// The search of screened heads: `values` is 4 where the CPU multiplies int8, else 2.
struct ScreenedKernel {
    std::size_t max_rows;
    std::size_t values, step;
    float largest;  // value of an element
    float origin;   // what is added to those of queries, to make them unsigned
    float cost;     // of a head that is only searched, beside one of a float32 row: measured at K = 15,000
    std::size_t (*project)(const PackedHeads&, const Rows&, const Interrupt&) noexcept;
};

struct Kernel {
    const char* name;
    std::size_t lanes;     // floats in a vector; a panel is 2 vectors
    std::size_t max_rows;  // rows of the largest tile
    // They return the first row with a NaN or infinity, or kNoBadRow; the rows of `out` are then unspecified.
    std::size_t (*project)(const PackedHeads&, const Rows&, const Interrupt&) noexcept;
    std::size_t (*route)(const PackedHeads&, const Rows&, const Interrupt&) noexcept;
    std::size_t (*top_heads)(const PackedHeads&, const Rows&, const Interrupt&) noexcept;
    SharedKernel shared_float32;
    ScreenedKernel screened;
    Int16Kernel int16_of_few, int16_of_many;  // by the number of heads
    std::size_t many_heads;

    const Int16Kernel& int16(std::size_t n_heads) const { return n_heads < many_heads ? int16_of_few : int16_of_many; }
    std::size_t tile_rows(const PackedHeads& heads) const {
        return heads.precision == Precision::int16      ? int16(heads.n_heads).max_rows
               : heads.precision == Precision::screened ? screened.max_rows
                                                        : max_rows;
    }
};

// `n` values in elements.
constexpr std::size_t elements(const PackedHeads& h, std::size_t n) {
    return h.planes * round_up(divide_up(n, h.values), h.step);
}

// Elements in a block of `heads` heads: its centroids, and all of it.
constexpr std::size_t centroid_elements(const PackedHeads& h, std::size_t heads, std::size_t lanes) {
    return round_up(heads, lanes) * elements(h, h.query_dim);
}
constexpr std::size_t block_elements(const PackedHeads& h, std::size_t heads, std::size_t lanes) {
    return centroid_elements(h, heads, lanes) +
           (h.precision == Precision::screened ? 0 : round_up(h.answer_dim, lanes) * elements(h, heads));
}

// Floats between two rows of sums: whole panels, and one strip more, so that rows are never a multiple of 4 KiB apart.
constexpr std::size_t sum_stride(std::size_t answer_dim) { return round_up(answer_dim, 2 * kStrip) + kStrip; }

// screened: heads that a row may have in its list while they are still being searched, 2 numbers each.
constexpr std::size_t candidate_capacity(std::size_t n_heads) { return 2 * kept_limit(n_heads); }

// Numbers that a tile has of its rows, 8 of each.
constexpr std::size_t kSlotNumbers = 8 * kMostRows;

// A tile's slot: queries in strips, sums, squares, and numbers; screened: candidates. Every part is 64-byte aligned.
constexpr std::size_t slot_floats(const PackedHeads& h, std::size_t max_rows) {
    return max_rows * (round_up(elements(h, h.query_dim), kStrip) + sum_stride(h.answer_dim) + kStrip) + kSlotNumbers +
           (h.precision == Precision::screened ? 2 * max_rows * round_up(candidate_capacity(h.n_heads), kStrip) : 0);
}

// With one block a tile is finished before the one after next begins. With several, every tile of a pass stays; the
// rows after its last whole tile may make two small ones, one more than a whole tile would be, where a small one is not
// half as high.
constexpr std::size_t tile_slots(const PackedHeads& h, std::size_t pass_rows, std::size_t max_rows) {
    return h.n_blocks == 1 ? 2 : pass_rows / max_rows + (max_rows == kMostRows ? 0 : 1);
}

// One tile of weights; then, with int16, the same rounded, and a scale for every row and chain.
constexpr std::size_t weight_floats(const PackedHeads& h, std::size_t max_rows) {
    return max_rows * round_up(h.block_heads, 2 * kStrip);
}
constexpr std::size_t rounded_weights(const PackedHeads& h, std::size_t max_rows) {
    return h.precision == Precision::int16 ? max_rows * round_up(elements(h, h.block_heads), kStrip) : 0;
}
constexpr std::size_t weight_scales(const PackedHeads& h, std::size_t max_rows) {
    return h.precision == Precision::int16 ? round_up(divide_up(h.block_heads, kIntChain) * max_rows, kStrip) : 0;
}

// screened: a query, padded, for the exact cosines; and what a list weighs.
constexpr std::size_t search_floats(const PackedHeads& h) {
    return h.precision == Precision::screened
               ? row_stride(h.query_dim) + round_up(candidate_capacity(h.n_heads), kStrip)
               : 0;
}

// A shared tile: a slot, and the dots of all blocks. Then the scratch of one thread at it.
constexpr std::size_t shared_tile_floats(const PackedHeads& h, std::size_t max_rows) {
    return slot_floats(h, max_rows) + h.n_blocks * weight_floats(h, max_rows);
}
constexpr std::size_t shared_scratch_floats(const PackedHeads& h, std::size_t max_rows) {
    return slot_floats(h, max_rows) + weight_floats(h, max_rows) + rounded_weights(h, max_rows) +
           weight_scales(h, max_rows);
}

// Scratch of one thread: the slots, and the weights of one tile.
constexpr std::size_t scratch_floats(const PackedHeads& h, std::size_t pass_rows, std::size_t max_rows) {
    return tile_slots(h, pass_rows, max_rows) * slot_floats(h, max_rows) + weight_floats(h, max_rows) +
           rounded_weights(h, max_rows) + weight_scales(h, max_rows) + search_floats(h);
}

}  // namespace headroute
