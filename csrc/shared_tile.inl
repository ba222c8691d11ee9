// Few queries against many heads: one tile of rows by several threads. Included by kernel.inl and isa_amx.cpp.
//
//   begin    one thread packs the queries
//   dots     any thread, any block of heads: the tile's cosines with it, to where all threads can read them
//   finish   when all blocks are done, any thread, any whole panels of the result: through all blocks in order, as the
//            batched kernels go (running maximum, weights, sums), for these columns alone
//
// No sum is cut in another place or added up in another order than in projection_kernel.inl and int16_kernel.inl, so
// the bits are theirs. The price is a softmax in every thread, a hundredth of the products. Not responsible for who
// does what when (engine.cpp).

#include "fixed_packer.h"
#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "writer.h"

namespace {

using namespace headroute;

// What differs between the precisions is in their kernels' Steps: how a tile is packed, the two products, and what is
// between them.

HR_INLINE Tile whole_tile(const PackedHeads& heads, float* scratch, std::size_t n) {
    return make_tile(heads, scratch, 0, 0, n, n == 1 ? 1 : n <= kFewRows ? kFewRows : kRows);
}

template <typename Steps>
std::size_t shared_begin(const PackedHeads& heads, const Rows& rows) noexcept {
    return Steps::pack(heads, rows, whole_tile(heads, rows.scratch, rows.n));
}

template <typename Steps>
void shared_dots(const PackedHeads& heads, const Rows& rows, float* dots, std::size_t index) noexcept {
    using Element = typename Steps::Arithmetic::Element;
    const Tile tile = whole_tile(heads, rows.scratch, rows.n);
    const Block<Element> block = block_at<Element>(heads, index);
    float* const to = dots + index * weight_floats(heads, kRows);
    with_height(tile, [&](auto height) {
        constexpr std::size_t ROWS = decltype(height)::value;
        multiply_alone<ROWS>(dot_product<ROWS, typename Steps::Arithmetic>(heads, block, tile, Steps::kDotChain, to));
    });
}

// Writes a row's columns [from, to) of the result.
HR_INLINE void write_columns(const PackedHeads& heads, const Rows& rows, const Tile& tile, std::size_t m,
                             std::size_t from, std::size_t to) {
    const float* sums = tile.sums + m * sum_stride(heads.answer_dim) + from;
    const float factor = heads.answer_scale / tile.weight_sum[m];
    with_type(rows.out, [&](auto value) __attribute__((always_inline)) {
        auto* out = reinterpret_cast<decltype(value)*>(rows.out.data) + (tile.first + m) * heads.answer_dim;
        put_scaled(out + from, sums, to - from, factor);
    });
}

template <typename Steps>
void shared_finish(const PackedHeads& heads, const Rows& rows, const float* dots, std::size_t panel,
                   std::size_t end_panel, float* scratch, const Interrupt& interrupt) noexcept {
    using Element = typename Steps::Arithmetic::Element;
    const std::size_t e = heads.answer_dim, from = panel * kPanel, to = min(end_panel * kPanel, e);
    // Sums and numbers of this thread's own; what was measured is taken over.
    const Tile shared = whole_tile(heads, rows.scratch, rows.n);
    const Tile tile = whole_tile(heads, scratch, rows.n);
    __builtin_memset(tile.sums, 0, tile.height * sum_stride(e) * sizeof(float));
    __builtin_memcpy(tile.scale, shared.scale, kSlotNumbers * sizeof(float));
    float* const weights = scratch + slot_floats(heads, kRows);
    with_height(tile, [&](auto height) {
        constexpr std::size_t ROWS = decltype(height)::value;
        for (std::size_t b = 0; b < heads.n_blocks; ++b) {
            if (b % 64 == 63 && interrupt.requested(interrupt.context)) return;
            const Block<Element> block = block_at<Element>(heads, b);
            const std::size_t used = ROWS * round_up(block.heads, kStrip);
            __builtin_memcpy(weights, dots + b * weight_floats(heads, kRows), used * sizeof(float));
            Steps::template softmax<ROWS>(heads, rows, tile, weights, block.heads);
            auto mix = Steps::mix(heads, block, tile, weights);
            mix.panels += from * mix.depth;
            mix.columns = to - from;
            mix.target.data += from;
            multiply_alone<ROWS>(mix);
        }
        for (std::size_t m = 0; m < tile.rows; ++m) write_columns(heads, rows, tile, m, from, to);
        if (from == 0) Steps::report(rows, tile);
    });
}

template <typename Steps>
constexpr SharedKernel shared_kernel() {
    return {shared_begin<Steps>, shared_dots<Steps>, shared_finish<Steps>};
}

}  // namespace
