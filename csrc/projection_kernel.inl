// The fused kernel, float32. Included once by each isa_*.cpp, which sets the flags and names the result.
//
//   s[n,k] = q[n]·ĉ[k]                    raw dot products: q is not normalised, ‖q‖ goes into the scale
//   w[n,k] = 2^((s[n,k] - m[n]) · c[n])   c = log2(e) / (τ‖q‖),  m = the largest s of the row so far
//   p[n]   = Σ_k w[n,k] a[k] / Σ_k w[n,k]   w is at most 1; a is scaled so that K · |a| cannot overflow
//
// Loop nest of one pass (rows of one thread):
//   for block     a few hundred heads whose centroids and answers stay in L2 together
//     for tile    kRows rows
//       dot       centroid panels of 2 vectors × kRows broadcasts → weights tile (L1)
//                   beside it (first block): the next tile's queries are packed into strips, and squared for ‖q‖
//       softmax   running maximum, exp2, sum; on the tile, in L1
//       mix       answer panels × weights broadcasts → sums of the tile
//                   beside it (last block): the panel before is divided by Σw and written to `out`
// N×K is never in memory; q and `out` cross memory once. What is done beside a product costs little, because a
// product is bound by its multiply-adds and the CPU runs a line of loads and stores between two of them; done in one
// piece before or after, the same work took 25 % of the time at K = 16 (docs/decisions/0008).
// With one block a tile is finished at once, and two slots of scratch take turns; with several, every tile of the
// pass has its slot.
//
// The same bits for the same row, always: each dot product and each weighted sum is added up in one order, whatever
// the tile's height and the row's place in it; block borders depend on K, d, e and the width of a vector alone.
// Accuracy: sums are cut into short chains (kChain, kWeightChain, a block), so that rounding errors grow with the
// chain's length and not with d or K; docs/decisions/0002. Not responsible for: threads, memory, checks of shapes
// (engine.cpp), the product itself (multiply.h), the walk over tiles and blocks
// (tile.h), 16-bit arithmetic (int16_kernel.inl).

#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

// Products of a dot product added up in one chain before that sum is put aside: its rounding error grows with the root
// of this length. OpenBLAS restarts after 192 or 320; 96 gives 0.6 to 0.85 of NumPy's error at τ <= 0.1, one chain of
// 384 gave 1.7 of it. Costs under 1 % (64: 1 to 3 %).
constexpr std::size_t kChain = 96;
// Likewise vectors of weights.
constexpr std::size_t kWeightChain = 16;

// Copies a tile's queries into its strips and sums up their squares, 16 columns of one row at a time.
class Packer {
   public:
    using Element = float;

    HR_MEMBER Packer(const Rows& rows, const PackedHeads& heads, const Tile& tile)
        : tile_(tile),
          d_(tile.rows > 0 ? heads.query_dim : 0),
          stride_(rows.query_stride),
          first_row_(rows.queries + static_cast<std::ptrdiff_t>(tile.first) * stride_),
          // The rows of the tile after this one are asked for now: a tile's time before they are read.
          ahead_(tile.first + 2 * tile.rows <= rows.n ? static_cast<std::ptrdiff_t>(tile.rows) * stride_ : 0) {
        for (std::size_t i = 0; i < tile.height * kStrip; i += kLanes) store(tile.squares + i, zero());
        begin_strip();
    }

    HR_MEMBER void line() {
        if (column_ + kStrip > d_) return;
        pack(from_);
        __builtin_prefetch(from_ + ahead_);
        from_ += stride_;
        to_ += kStrip;
        if (++row_ == tile_.rows) {
            column_ += kStrip;
            begin_strip();
        }
    }

    HR_MEMBER void rest() {
        while (column_ + kStrip <= d_) line();
        if (column_ < d_)
            for (; row_ < tile_.rows; ++row_, from_ += stride_, to_ += kStrip) {
                float strip[kStrip] = {};
                __builtin_memcpy(strip, from_, (d_ - column_) * sizeof(float));
                pack(strip);
            }
        for (std::size_t column = 0; column < d_; column += kStrip)
            for (std::size_t i = tile_.rows * kStrip; i < tile_.height * kStrip; i += kLanes)
                store(tile_.strips + column * tile_.height + i, zero());
    }

   private:
    HR_MEMBER void begin_strip() {
        row_ = 0;
        from_ = first_row_ + column_;
        to_ = tile_.strips + column_ * tile_.height;
    }
    HR_MEMBER void pack(const float* from) {
        float* squares = tile_.squares + row_ * kStrip;
        for (std::size_t j = 0; j < kStrip; j += kLanes) {
            const vfloat x = load(from + j);
            store(to_ + j, x);
            store(squares + j, fma(x, x, load(squares + j)));
        }
    }

    const Tile& tile_;
    const std::size_t d_;
    const std::ptrdiff_t stride_;
    const float* const first_row_;
    const std::ptrdiff_t ahead_;
    const float* from_ = nullptr;
    float* to_ = nullptr;
    std::size_t row_ = 0, column_ = 0;
};

// A query whose squared norm is not comfortably inside float32. Scales its strips by a power of 2, which no cosine
// sees, until the largest element is about 1. Returns the new ‖row‖², or -1 if there is a NaN or infinity. Rare, so
// plain and slow.
__attribute__((noinline)) float rescale_row(float* row, std::size_t row_stride, std::size_t d) {
    float largest = 0.0f;
    for (std::size_t i = 0; i < d; ++i) {
        const float x = row[i / kStrip * row_stride + i % kStrip];
        if (!is_finite(x)) return -1.0f;
        largest = x > largest ? x : -x > largest ? -x : largest;
    }
    while (largest != 0.0f && (largest < 0x1p-16f || largest > 0x1p16f)) {
        const float factor = largest < 1.0f ? 0x1p16f : 0x1p-16f;
        largest *= factor;
        for (std::size_t i = 0; i < d; ++i) row[i / kStrip * row_stride + i % kStrip] *= factor;
    }
    double norm2 = 0.0;
    for (std::size_t i = 0; i < d; ++i) {
        const double x = row[i / kStrip * row_stride + i % kStrip];
        norm2 += x * x;
    }
    return static_cast<float>(norm2);
}

// Finds the scale of every row of a packed tile. Returns its first row with a NaN or infinity, or kNoBadRow.
HR_INLINE std::size_t measure_queries(const Rows& rows, std::size_t d, const Tile& tile) {
    for (std::size_t m = 0; m < tile.height; ++m) {
        tile.maximum[m] = -__builtin_inff();
        tile.weight_sum[m] = 0.0f;
        tile.weight_rounding[m] = 0.0f;
        tile.scale[m] = 0.0f;
        if (m >= tile.rows) continue;
        float norm2 = sum_of_strip(tile.squares + m * kStrip);
        if (!(norm2 > 0x1p-40f && norm2 < 0x1p80f)) {  // also taken by NaN and by a zero query
            norm2 = rescale_row(tile.strips + m * kStrip, tile.height * kStrip, d);
            if (norm2 < 0.0f) return tile.first + m;
        }
        if (norm2 > 0.0f) {
            const double scale = rows.log2e_over_temperature / __builtin_sqrt(static_cast<double>(norm2));
            tile.scale[m] = static_cast<float>(scale < 0x1p127 ? scale : 0x1p127);
        }
    }
    return kNoBadRow;
}

// Dots → weights in place; returns their sum.
HR_INLINE float row_weights(float* row, std::size_t row_stride, std::size_t heads, float maximum, float scale) {
    const vfloat m = splat(maximum), c = splat(scale);
    vfloat sum = zero();
    for (std::size_t start = 0; start < heads; start += kWeightChain * kLanes) {
        const std::size_t end = min(start + kWeightChain * kLanes, heads);
        vfloat chain = zero();
        std::size_t k = start;
        for (; k + kLanes <= end; k += kLanes) {
            float* p = row + k / kStrip * row_stride + k % kStrip;
            const vfloat w = exp2_nonpositive((load(p) - m) * c);
            store(p, w);
            chain += w;
        }
        if (k < end) {
            float* p = row + k / kStrip * row_stride + k % kStrip;
            store_partial(p, exp2_nonpositive((load_partial(p, end - k, maximum) - m) * c), end - k);
            chain += load_partial(p, end - k, 0.0f);
        }
        sum += chain;
    }
    return reduce_add(sum);
}

// Online softmax over one block of a tile: raw dots [block / 16][ROWS][16] → weights, in place.
template <std::size_t ROWS>
HR_INLINE void softmax_block(const Tile& tile, float* dots, std::size_t heads, std::size_t e) {
    for (std::size_t m = 0; m < ROWS; ++m) {
        float* row = dots + m * kStrip;
        raise_maximum(tile, m, row_maximum(row, ROWS * kStrip, heads), e);
        tile.weight_sum[m] += row_weights(row, ROWS * kStrip, heads, tile.maximum[m], tile.scale[m]);
    }
}

// Raw dot products of a tile with a block's centroids: dots [block / 16][ROWS][16]. Beside them `next` is packed (first
// block), or `later` is called.
template <std::size_t ROWS, typename Later>
HR_INLINE void dot_block(const PackedHeads& heads, const Rows& rows, const Block<float>& block, const Tile& tile,
                         const Tile& next, float* dots, Later later) {
    const auto product = [&](auto beside) __attribute__((always_inline)) {
        multiply<Float32, ROWS>(tile.strips, block.centroids, heads.query_dim, kChain, block.heads,
                                Target{dots, kStrip, ROWS * kStrip, false, nullptr}, beside, [](std::size_t) {});
    };
    if (block.is_first) {
        Packer packer(rows, heads, next);  // not passed on by reference: docs/decisions/0008
        product([&]() __attribute__((always_inline)) { packer.line(); });
        packer.rest();
    } else {
        product(later);
    }
}

// One block of a tile, projected.
template <std::size_t ROWS>
HR_INLINE void project_block(const PackedHeads& heads, const Rows& rows, const Block<float>& block, const Tile& tile,
                             const Tile& next, float* weights) {
    const std::size_t e = heads.answer_dim;
    SumsAhead sums_ahead(tile, ROWS * sum_stride(e));
    dot_block<ROWS>(heads, rows, block, tile, next, weights,
                    [&]() __attribute__((always_inline)) { sums_ahead.line(); });
    softmax_block<ROWS>(tile, weights, block.heads, e);
    const Target sums{tile.sums, sum_stride(e), kStrip, !block.is_first, nullptr};
    if (block.is_last) {
        Writer writer(rows, heads, tile);
        multiply<Float32, ROWS>(
            weights, block.answers, block.heads, block.heads, e, sums,
            [&]() __attribute__((always_inline)) { writer.row(); },
            [&](std::size_t columns) __attribute__((always_inline)) { writer.ready(columns); });
        writer.rest();
        writer.ends();
    } else {
        multiply<Float32, ROWS>(weights, block.answers, block.heads, block.heads, e, sums, nothing, [](std::size_t) {});
    }
}

// One block of a tile, its dots copied to `out`; after the last block they are turned into weights, since the maximum
// is known only then.
template <std::size_t ROWS>
HR_INLINE void route_block(const PackedHeads& heads, const Rows& rows, const Block<float>& block, const Tile& tile,
                           const Tile& next, float* dots) {
    const std::size_t n_heads = heads.n_heads;
    dot_block<ROWS>(heads, rows, block, tile, next, dots, nothing);
    for (std::size_t m = 0; m < tile.rows; ++m) {
        float* w = rows.out + (tile.first + m) * n_heads;
        for (std::size_t k = 0; k < block.heads; k += kStrip)
            __builtin_memcpy(w + block.first + k, dots + k * ROWS + m * kStrip,
                             min(kStrip, block.heads - k) * sizeof(float));
        if (!block.is_last) continue;
        const float maximum = row_maximum(w, kStrip, n_heads);
        double sum = 0.0;
        for (std::size_t k = 0; k < n_heads; k += heads.block_heads)
            sum += row_weights(w + k, kStrip, min(heads.block_heads, n_heads - k), maximum, tile.scale[m]);
        const vfloat divisor = splat(static_cast<float>(sum));
        std::size_t k = 0;
        for (; k + kLanes <= n_heads; k += kLanes) store(w + k, load(w + k) / divisor);
        if (k < n_heads) store_partial(w + k, load_partial(w + k, n_heads - k, 0.0f) / divisor, n_heads - k);
    }
}

std::size_t project(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    float* const weights = tile_weights(heads, rows);
    return for_each_tile<Packer>(
        heads, rows, interrupt, [&](const Tile& tile) { return measure_queries(rows, heads.query_dim, tile); },
        [&](auto height, const Block<float>& block, const Tile& tile, const Tile& next) {
            project_block<decltype(height)::value>(heads, rows, block, tile, next, weights);
        });
}

std::size_t route(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    float* const dots = tile_weights(heads, rows);
    return for_each_tile<Packer>(
        heads, rows, interrupt, [&](const Tile& tile) { return measure_queries(rows, heads.query_dim, tile); },
        [&](auto height, const Block<float>& block, const Tile& tile, const Tile& next) {
            route_block<decltype(height)::value>(heads, rows, block, tile, next, dots);
        });
}

}  // namespace
