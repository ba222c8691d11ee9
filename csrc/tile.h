// A tile of rows on its way through the kernels: where its queries, numbers and sums are, in which order tiles and
// blocks of heads meet, and how finished columns leave. Shared by every precision; not responsible for what is
// multiplied (projection_kernel.inl, int16_kernel.inl) or how (multiply.h).
#pragma once

#include "multiply.h"
#include "projection.h"
#include "vec.h"

namespace {

using namespace headroute;

// A tile of rows on its way through the kernel: which rows, and where they are in the thread's scratch.
struct Tile {
    std::size_t slot;
    std::size_t first;       // counted from the start of `Rows`
    std::size_t rows;        // real ones, 0 when there are none left; up to `height` the rest is padding
    std::size_t height;      // kRows, kFewRows or 1
    float* strips;           // [elements of d / 16][height][16] queries; int16: pairs
    float* sums;             // [height][sum_stride(e)] Σ w a so far
    float* squares;          // [height][16] Σ q², to be added up; float32 only
    float* scale;            // [height] c, from dots to exponents of 2; 0 for a zero query: all weights equal
    float* maximum;          // [height] m
    float* weight_sum;       // [height] Σ w
    float* query_rounding;   // [height] and
    float* weight_rounding;  // [height] as in Rows::rounding, the second not yet divided; int16 only
    float* candidates;       // screened_kernel.inl
};

// The tile that begins with row `first` of a pass that ends before row `end`.
HR_INLINE Tile tile_at(const PackedHeads& heads, const Rows& rows, std::size_t slot, std::size_t first,
                       std::size_t end) {
    const std::size_t rest = end - first;
    const std::size_t height = rest == 1 ? 1 : rest > kRows / 2 ? kRows : kFewRows;
    Tile tile{};
    tile.slot = slot;
    tile.first = first;
    tile.rows = min(rest, height);
    tile.height = height;
    tile.strips = rows.scratch + slot * slot_floats(heads, kRows);
    tile.sums = tile.strips + kRows * round_up(elements(heads, heads.query_dim), kStrip);
    tile.squares = tile.sums + kRows * sum_stride(heads.answer_dim);
    tile.scale = tile.squares + kRows * kStrip;
    tile.maximum = tile.scale + kStrip;
    tile.weight_sum = tile.maximum + kStrip;
    tile.query_rounding = tile.weight_sum + kStrip;
    tile.weight_rounding = tile.query_rounding + kStrip;
    tile.candidates = tile.weight_rounding + kStrip;
    return tile;
}

HR_INLINE Tile tile_after(const PackedHeads& heads, const Rows& rows, const Tile& tile, std::size_t end) {
    const std::size_t slot = tile.slot + 1 < tile_slots(heads, rows.pass_rows, kRows) ? tile.slot + 1 : 0;
    return tile_at(heads, rows, slot, tile.first + tile.rows, end);
}

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
    const vfloat decay = exp2_nonpositive(splat((before - maximum) * tile.scale[m]));
    tile.weight_sum[m] *= reduce_max(decay);
    tile.weight_rounding[m] *= reduce_max(decay);
    float* sums = tile.sums + m * sum_stride(e);
    for (std::size_t i = 0; i < e; i += kLanes) store(sums + i, load(sums + i) * decay);
}

// Asks for a tile's sums, which were last touched a pass of rows ago and are in L3: 2 to 3 % at K = 1,024.
class SumsAhead {
   public:
    HR_MEMBER SumsAhead(const Tile& tile, std::size_t n) : from_(tile.sums), end_(tile.sums + n) {}
    HR_MEMBER void line() {
        if (from_ >= end_) return;
        __builtin_prefetch(from_);
        from_ += kStrip;
    }

   private:
    const float* from_;
    const float* const end_;
};

// to = from · factor for the few floats at the ends of a row.
HR_INLINE void scale_few(float* to, const float* from, std::size_t n, float factor) {
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vfloat4 v;
        __builtin_memcpy(&v, from + i, sizeof v);
        v *= factor;
        __builtin_memcpy(to + i, &v, sizeof v);
    }
    for (; i < n; ++i) to[i] = from[i] * factor;
}

// Writes finished columns of a tile to `out`, a row at a time: sums · answer_scale / Σw. Past the caches, if
// rows.stream says so, and then in whole cache lines wherever `out` starts: a line may have to wait for the next panel.
class Writer {
   public:
    HR_MEMBER Writer(const Rows& rows, const PackedHeads& heads, const Tile& tile)
        : e_(heads.answer_dim),
          stream_(rows.stream),
          rows_(tile.rows),
          sums_(tile.sums),
          out_(rows.out + tile.first * e_),
          row_(rows_) {
        for (std::size_t m = 0; m < rows_; ++m) factor_[m] = heads.answer_scale / tile.weight_sum[m];
    }

    // Columns up to `columns` are complete in all rows.
    HR_MEMBER void ready(std::size_t columns) {
        rest();
        written_ = ready_;
        ready_ = columns;
        row_ = 0;
    }

    HR_MEMBER void row() {
        if (row_ == rows_) return;
        const float* from = sums_ + row_ * sum_stride(e_);
        float* to = out_ + row_ * e_;
        const vfloat f = splat(factor_[row_++]);
        const std::size_t head = head_of(to);
        for (std::size_t i = head + (written_ < head ? 0 : (written_ - head) / kStrip * kStrip); i + kStrip <= ready_;
             i += kStrip)
            for (std::size_t j = 0; j < kStrip; j += kLanes) {
                const vfloat v = load(from + i + j) * f;
                if (stream_)
                    stream(to + i + j, v);
                else
                    store(to + i + j, v);
            }
    }

    HR_MEMBER void rest() {
        while (row_ < rows_) row();
    }

    // What is less than a line, at both ends of every row.
    HR_MEMBER void ends() const {
        for (std::size_t m = 0; m < rows_; ++m) {
            const float* from = sums_ + m * sum_stride(e_);
            float* to = out_ + m * e_;
            const std::size_t head = head_of(to), tail = head + (e_ - head) / kStrip * kStrip;
            scale_few(to, from, head, factor_[m]);
            scale_few(to + tail, from + tail, e_ - tail, factor_[m]);
        }
    }

   private:
    // Floats of a row before its first whole line.
    HR_MEMBER std::size_t head_of(const float* row) const {
        const std::size_t misaligned = stream_ ? reinterpret_cast<std::uintptr_t>(row) % 64 / sizeof(float) : 0;
        return misaligned == 0 ? 0 : min(kStrip - misaligned, e_);
    }

    const std::size_t e_;
    const bool stream_;
    const std::size_t rows_;
    const float* const sums_;
    float* const out_;
    float factor_[kRows];
    std::size_t row_;
    std::size_t written_ = 0, ready_ = 0;  // columns
};

HR_INLINE void nothing() {}

HR_INLINE float* tile_weights(const PackedHeads& heads, const Rows& rows) {
    return rows.scratch + tile_slots(heads, rows.pass_rows, kRows) * slot_floats(heads, kRows);
}

// Calls compute(Constant<tile height>, block, tile, next tile) for every block and tile of every pass. A pass's first
// tile is packed here, whole, the others by compute() beside the tile before. measure(tile) finishes a packed tile's
// numbers, and returns its first row with a NaN or infinity.
template <typename Packer, typename Measure, typename Compute>
HR_INLINE std::size_t for_each_tile(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt,
                                    Measure measure, Compute compute) {
    for (std::size_t start = 0; start < rows.n; start += rows.pass_rows) {
        const std::size_t end = min(start + rows.pass_rows, rows.n);
        for (std::size_t b = 0; b < heads.n_blocks; ++b) {
            const auto block = block_at<typename Packer::Element>(heads, b);
            Tile next = tile_at(heads, rows, 0, start, end);
            if (block.is_first) Packer(rows, heads, next).rest();
            while (next.rows > 0) {
                const Tile tile = next;
                if (block.is_first) {
                    const std::size_t bad = measure(tile);
                    if (bad != kNoBadRow) return bad;
                }
                next = tile_after(heads, rows, tile, end);
                if (tile.height == kRows)
                    compute(Constant<kRows>{}, block, tile, next);
                else if (tile.height == kFewRows)
                    compute(Constant<kFewRows>{}, block, tile, next);
                else
                    compute(Constant<1>{}, block, tile, next);
            }
            if (interrupt.requested(interrupt.context)) return kNoBadRow;
        }
    }
    if (rows.stream) stream_fence();
    return kNoBadRow;
}

}  // namespace
