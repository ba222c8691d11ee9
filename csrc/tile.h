// A tile of rows on its way through the kernels: where its queries, numbers and sums are, its two products with a block
// of heads, and in which order tiles and blocks meet. Shared by every precision; not responsible for what is multiplied
// (the kernels' own files), how (multiply.h), or what is done beside it (beside.h).
#pragma once

#include "multiply.h"
#include "projection.h"
#include "vec.h"

namespace {

using namespace headroute;

// A tile of rows on its way through the kernel: which rows, and where they are in the thread's scratch.
struct Tile {
    std::size_t first;       // counted from the start of `Rows`
    std::size_t rows;        // real ones, 0 when there are none left; up to `height` the rest is padding
    std::size_t height;      // kRows, kFewRows or 1
    float* strips;           // [elements of d / 16][height][16] queries, as elements of the precision
    float* sums;             // [height][sum_stride(e)] Σ w a so far
    float* squares;          // [height][16] Σ q², of roundings in int16, to be added up; screened: then its Search
    float* scale;            // [height] c, from dots to exponents of 2; 0 for a zero query: all weights equal
    float* maximum;          // [height] m
    float* weight_sum;       // [height] Σ w
    float* weight_log;       // [height] Σ w log2(w); with Rows::stats only
    float* inverse_norm;     // [height] 1 / ‖q‖, 0 for a zero query; with Rows::stats only
    float* query_rounding;   // [height] ‖q̂ - its rounding‖; not in float32
    float* weight_rounding;  // [height] Σ |w - its rounding|; int16 only
    float* candidates;       // [height] lists of candidates.h; screened only
};

// The tile of `n` rows from `first` on, n <= height, at a place in the scratch.
HR_INLINE Tile make_tile(const PackedHeads& heads, float* scratch, std::size_t slot, std::size_t first, std::size_t n,
                         std::size_t height) {
    Tile tile{};
    tile.first = first;
    tile.rows = n;
    tile.height = height;
    tile.strips = scratch + slot * slot_floats(heads, kRows);
    tile.sums = tile.strips + kRows * round_up(elements(heads, heads.query_dim), kStrip);
    tile.squares = tile.sums + kRows * sum_stride(heads.answer_dim);
    tile.scale = tile.squares + kRows * kStrip;
    tile.maximum = tile.scale + kMostRows;
    tile.weight_sum = tile.maximum + kMostRows;
    tile.weight_log = tile.weight_sum + kMostRows;
    tile.inverse_norm = tile.weight_log + kMostRows;
    tile.query_rounding = tile.inverse_norm + kMostRows;
    tile.weight_rounding = tile.query_rounding + kMostRows;
    tile.candidates = tile.weight_rounding + kMostRows;
    return tile;
}

// A tile's numbers before its first block.
HR_INLINE void reset_numbers(const Tile& tile) {
    for (std::size_t m = 0; m < tile.height; ++m) {
        tile.maximum[m] = -__builtin_inff();
        tile.weight_sum[m] = tile.weight_log[m] = tile.weight_rounding[m] = 0.0f;
    }
    for (std::size_t m = tile.rows; m < tile.height; ++m) tile.scale[m] = 0.0f;
}

// The tile that begins with row `first` of a pass that ends before row `end`.
HR_INLINE Tile tile_at(const PackedHeads& heads, const Rows& rows, std::size_t slot, std::size_t first,
                       std::size_t end) {
    const std::size_t rest = end - first;
    const std::size_t height = rest == 1 ? 1 : rest > kRows / 2 ? kRows : kFewRows;
    return make_tile(heads, rows.scratch, slot, first, min(rest, height), height);
}

// A vector of queries, from either type of them; the partial one has zeros behind its first n lanes.
HR_INLINE vfloat load_query(const float* p) { return load(p); }
HR_INLINE vfloat load_query(const half* p) { return load_half(p); }
HR_INLINE vfloat load_query_partial(const float* p, std::size_t n) { return load_partial(p, n, 0.0f); }
HR_INLINE vfloat load_query_partial(const half* p, std::size_t n) { return load_half_partial(p, n); }

// Calls use(Value{}) with the type of the queries, or of `out`.
template <typename Byte, typename Use>
HR_INLINE void with_type(const Matrix<Byte>& matrix, Use use) {
    if (matrix.half)
        use(half{});
    else
        use(float{});
}

// The queries of a tile, a strip of one row at a time: down the rows, then to the next columns.
template <typename Value>
class QueryCursor {
   public:
    HR_MEMBER QueryCursor(const Rows& rows, const Tile& tile)
        : n_rows_(tile.rows),
          stride_(rows.query_stride),
          // The rows of the tile after this one are asked for now: a tile's time before they are read.
          ahead_(tile.first + 2 * tile.rows <= rows.n ? static_cast<std::ptrdiff_t>(tile.rows) * stride_ : 0),
          first_(reinterpret_cast<const Value*>(rows.queries.data) + static_cast<std::ptrdiff_t>(tile.first) * stride_),
          at_(first_) {}

    // Where the cursor is, and the beginning of any row.
    HR_MEMBER const Value* here() const { return at_; }
    HR_MEMBER const Value* row(std::size_t m) const { return first_ + static_cast<std::ptrdiff_t>(m) * stride_; }
    HR_MEMBER void prefetch(std::size_t column) const {
        __builtin_prefetch(at_ + ahead_ + column, 0, kRows == 32 ? 2 : 3);
    }
    // To the next row; true if that is the first one again, `width` columns further.
    HR_MEMBER bool advance(std::size_t width) {
        at_ += stride_;
        if (++row_ < n_rows_) return false;
        row_ = 0;
        column_ += width;
        at_ = first_ + column_;
        return true;
    }
    HR_MEMBER std::size_t row() const { return row_; }
    HR_MEMBER std::size_t column() const { return column_; }

   private:
    const std::size_t n_rows_;
    const std::ptrdiff_t stride_, ahead_;
    const Value* const first_;
    const Value* at_;
    std::size_t row_ = 0, column_ = 0;
};

template <typename Element>
struct Block {
    const Element* centroids;
    const Element* answers;
    std::size_t first;  // head
    std::size_t heads;
    bool is_first, is_last;
};

template <typename Element>
HR_INLINE Block<Element> block_at(const PackedHeads& heads, std::size_t index) {
    const std::size_t first = index * heads.block_heads;
    const std::size_t n = min(heads.block_heads, heads.n_heads - first);
    const Element* centroids =
        static_cast<const Element*>(heads.data) + index * block_elements(heads, heads.block_heads, kLanes);
    return {
        centroids, centroids + centroid_elements(heads, n, kLanes), first, n, index == 0, index + 1 == heads.n_blocks};
}

// The sum of the 16 floats of a row in a strip.
HR_INLINE float sum_of_strip(const float* row) {
    vfloat sum = zero();
    for (std::size_t j = 0; j < kStrip; j += kLanes) sum += load(row + j);
    return reduce_add(sum);
}

// The maximum of a row of dots. `row` points at its first strip.
HR_INLINE float row_maximum(const float* row, std::size_t row_stride, std::size_t heads) {
    const float lowest = -__builtin_inff();
    vfloat largest = splat(lowest);
    std::size_t k = 0;
    for (; k + kLanes <= heads; k += kLanes) largest = max(load(row + k / kStrip * row_stride + k % kStrip), largest);
    if (k < heads) largest = max(load_partial(row + k / kStrip * row_stride + k % kStrip, heads - k, lowest), largest);
    return reduce_max(largest);
}

// Lets the maximum of row m be at least `maximum`; what earlier blocks summed up shrinks accordingly.
HR_INLINE void raise_maximum(const Tile& tile, std::size_t m, float maximum, std::size_t e) {
    const float before = tile.maximum[m];
    if (!(maximum > before)) return;
    tile.maximum[m] = maximum;
    if (!(tile.weight_sum[m] > 0.0f)) return;  // the first block
    const float exponent = (before - maximum) * tile.scale[m];
    const vfloat decay = exp2_nonpositive(splat(exponent));
    const float factor = reduce_max(decay);
    // Σ w log2(w) of weights that are all `factor` of what they were.
    tile.weight_log[m] = factor > 0.0f ? factor * (tile.weight_log[m] + exponent * tile.weight_sum[m]) : 0.0f;
    tile.weight_sum[m] *= factor;
    tile.weight_rounding[m] *= factor;
    float* sums = tile.sums + m * sum_stride(e);
    for (std::size_t i = 0; i < e; i += kLanes) store(sums + i, load(sums + i) * decay);
}

// Writes what Rows::account wants of a finished tile; int16 only.
HR_INLINE void write_account(const Rows& rows, const Tile& tile) {
    if (rows.account == nullptr) return;
    for (std::size_t m = 0; m < tile.rows; ++m) {
        float* account = rows.account + 2 * (tile.first + m);
        account[0] = tile.query_rounding[m];
        account[1] = tile.weight_rounding[m] / tile.weight_sum[m];
    }
}

HR_INLINE float* tile_weights(const PackedHeads& heads, const Rows& rows) {
    return rows.scratch + tile_slots(heads, rows.pass_rows, kRows) * slot_floats(heads, kRows);
}

// Products of a block with a tile. First its cosines: dots [block / 16][ROWS][16].
template <std::size_t ROWS, typename Arithmetic>
HR_INLINE Product<Arithmetic> dot_product(const PackedHeads& heads, const Block<typename Arithmetic::Element>& block,
                                          const Tile& tile, std::size_t chain, float* dots) {
    return {reinterpret_cast<const typename Arithmetic::Element*>(tile.strips),
            block.centroids,
            elements(heads, heads.query_dim),
            chain,
            block.heads,
            Target{dots, kStrip, ROWS * kStrip, false, nullptr}};
}

// Then its weights [block / 16][ROWS][16] times its answers, added to the sums.
template <typename Arithmetic>
HR_INLINE Product<Arithmetic> mix_product(const PackedHeads& heads, const Block<typename Arithmetic::Element>& block,
                                          const Tile& tile, const typename Arithmetic::Element* weights,
                                          std::size_t chain, const float* scales) {
    return {
        weights, block.answers,    elements(heads, block.heads),
        chain,   heads.answer_dim, Target{tile.sums, sum_stride(heads.answer_dim), kStrip, !block.is_first, scales}};
}

// Calls compute(Constant<tile height>).
template <typename Compute>
HR_INLINE void with_height(const Tile& tile, Compute compute) {
    if (tile.height == kRows)
        compute(Constant<kRows>{});
    else if (tile.height == kFewRows)
        compute(Constant<kFewRows>{});
    else
        compute(Constant<1>{});
}

// Calls compute(Constant<tile height>, block, tile, next tile) for every block and tile of every pass. A pass's first
// tile is packed here, whole, the others by compute() beside the tile before. measure(tile) finishes a packed tile's
// numbers, and returns its first row with a NaN or infinity.
template <typename Element, typename Pack, typename Measure, typename Compute>
HR_INLINE std::size_t for_each_tile(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt, Pack pack,
                                    Measure measure, Compute compute) {
    for (std::size_t start = 0; start < rows.n; start += rows.pass_rows) {
        const std::size_t end = min(start + rows.pass_rows, rows.n);
        for (std::size_t b = 0; b < heads.n_blocks; ++b) {
            const auto block = block_at<Element>(heads, b);
            std::size_t slot = 0, first = start;
            if (block.is_first) pack(tile_at(heads, rows, slot, first, end));
            while (first < end) {
                // Made anew: a copy would be loaded in one piece while its parts are still on their way to the cache.
                const Tile tile = tile_at(heads, rows, slot, first, end);
                if (block.is_first) {
                    const std::size_t bad = measure(tile);
                    if (bad != kNoBadRow) return bad;
                }
                first += tile.rows;
                slot = slot + 1 < tile_slots(heads, rows.pass_rows, kRows) ? slot + 1 : 0;
                const Tile next = tile_at(heads, rows, slot, first, end);
                with_height(tile, [&](auto height) { compute(height, block, tile, next); });
            }
            if (interrupt.requested(interrupt.context)) return kNoBadRow;
        }
    }
    if (rows.stream) stream_fence();
    return kNoBadRow;
}

}  // namespace
