#include "packing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace headroute {

namespace {

// A block's centroids and answers are read once per tile of rows, so they must stay in L2 (1 MiB on the CPUs that
// this was tuned on, with room left for queries, weights and output).
constexpr std::size_t kBlockBytes = 800 * 1024;
// A tile's weights stay in L1: 14 rows × 512 heads × 4 bytes = 28 KiB.
constexpr std::size_t kMaxBlockHeads = 512;

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// [rows, columns] → panels [ceil(columns / panel)][rows][panel], zero beyond the last column.
// Element (r, c) of the source is at from[r * row_step + c * column_step], and multiplied by `factor`.
void pack_panels(const float* from, std::size_t row_step, std::size_t column_step, std::size_t rows,
                 std::size_t columns, std::size_t lanes, float factor, float* to) {
    for (std::size_t first = 0; first < columns; first += 2 * lanes) {
        const std::size_t width = columns - first <= lanes ? lanes : 2 * lanes;
        const std::size_t used = std::min(width, columns - first);
        for (std::size_t r = 0; r < rows; ++r, to += width) {
            for (std::size_t c = 0; c < used; ++c) to[c] = from[r * row_step + (first + c) * column_step] * factor;
            std::fill(to + used, to + width, 0.0f);
        }
    }
}

}  // namespace

void FreeAligned::operator()(float* p) const noexcept { std::free(p); }

AlignedFloats allocate_floats(std::size_t n) {
    if (n > (SIZE_MAX - kHugePage) / sizeof(float)) throw std::bad_alloc();
    const std::size_t bytes = n * sizeof(float);
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    void* p = std::aligned_alloc(alignment, round_up(std::max<std::size_t>(bytes, 1), alignment));
    if (p == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Packed heads are read in full by every tile of rows: 4 KiB pages would miss the TLB at every panel.
    if (alignment == kHugePage) madvise(p, round_up(bytes, alignment), MADV_HUGEPAGE);
#endif
    return AlignedFloats(static_cast<float*>(p));
}

PackedHeads head_layout(std::size_t n_heads, std::size_t query_dim, std::size_t answer_dim, const Kernel& kernel) {
    const std::size_t panel = 2 * kernel.lanes;
    const std::size_t fit = kBlockBytes / sizeof(float) / (query_dim + answer_dim);
    const std::size_t largest = std::clamp(fit / panel * panel, panel, kMaxBlockHeads);
    PackedHeads layout{nullptr, n_heads, query_dim, answer_dim, n_heads, 1, 1.0f};
    if (n_heads > largest) {  // blocks of equal size: a short last one would use its answers' panels badly
        const std::size_t blocks = (n_heads + largest - 1) / largest;
        layout.block_heads = round_up((n_heads + blocks - 1) / blocks, panel);
        layout.n_blocks = (n_heads + layout.block_heads - 1) / layout.block_heads;
    }
    return layout;
}

float answer_scale(const float* answers, std::size_t n_heads, std::size_t answer_dim) {
    double largest = 0.0;
    for (std::size_t i = 0; i < n_heads * answer_dim; ++i)
        largest = std::max(largest, static_cast<double>(std::fabs(answers[i])));
    double scale = 1.0;
    while (largest * static_cast<double>(n_heads) / scale > 0x1p126) scale *= 2.0;
    return static_cast<float>(scale);
}

std::size_t packed_floats(const PackedHeads& layout, const Kernel& kernel) {
    const std::size_t last = layout.n_heads - (layout.n_blocks - 1) * layout.block_heads;
    return (layout.n_blocks - 1) * block_floats(layout, layout.block_heads, kernel.lanes) +
           block_floats(layout, last, kernel.lanes);
}

void pack_heads(const float* centroids, const float* answers, const PackedHeads& layout, const Kernel& kernel,
                float* to) {
    const std::size_t d = layout.query_dim, e = layout.answer_dim;
    for (std::size_t first = 0; first < layout.n_heads; first += layout.block_heads) {
        const std::size_t heads = std::min(layout.block_heads, layout.n_heads - first);
        pack_panels(centroids + first * d, 1, d, d, heads, kernel.lanes, 1.0f, to);
        to += round_up(heads, kernel.lanes) * d;
        pack_panels(answers + first * e, e, 1, heads, e, kernel.lanes, 1.0f / layout.answer_scale, to);
        to += round_up(e, kernel.lanes) * heads;
    }
}

}  // namespace headroute
