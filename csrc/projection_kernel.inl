// The fused kernel, float32. Included by kernel.inl, once for each instruction set.
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
// With one block a tile is finished at once, its results go to `out` from the registers where they can (beside.h), and
// two slots of scratch take turns; with several, every tile of the pass has its slot.
//
// The same bits for the same row, always: each dot product and each weighted sum is added up in one order, whatever
// the tile's height and the row's place in it; block borders depend on K, d, e and the width of a vector alone.
// Accuracy: sums are cut into short chains (kChain, kWeightChain, a block), so that rounding errors grow with the
// chain's length and not with d or K; docs/decisions/0002. Not responsible for: threads, memory, checks of shapes
// (engine.cpp), the product itself (multiply.h), the walk over tiles and blocks
// (tile.h), 16-bit arithmetic (int16_kernel.inl).

#include "beside.h"
#include "best_heads.h"
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
template <typename Query>
class Packer {
   public:
    HR_MEMBER Packer(const Rows& rows, const PackedHeads& heads, const Tile& tile)
        : tile_(tile), d_(tile.rows > 0 ? heads.query_dim : 0), queries_(rows, tile), to_(tile.strips) {
        for (std::size_t i = 0; i < tile.height * kStrip; i += kLanes) store(tile.squares + i, zero());
    }

    HR_MEMBER void line() {
        if (queries_.column() + kStrip > d_) return;
        pack(queries_.here());
        queries_.prefetch(0);
        next();
    }

    HR_MEMBER void rest() {
        while (queries_.column() + kStrip <= d_) line();
        while (queries_.column() < d_) {
            Query strip[kStrip] = {};
            __builtin_memcpy(strip, queries_.here(), (d_ - queries_.column()) * sizeof(Query));
            pack(strip);
            next();
        }
        for (std::size_t column = 0; column < d_; column += kStrip)
            for (std::size_t i = tile_.rows * kStrip; i < tile_.height * kStrip; i += kLanes)
                store(tile_.strips + column * tile_.height + i, zero());
    }

   private:
    HR_MEMBER void next() {
        to_ += kStrip;
        if (queries_.advance(kStrip)) to_ += (tile_.height - tile_.rows) * kStrip;
    }
    HR_MEMBER void pack(const Query* from) {
        float* squares = tile_.squares + queries_.row() * kStrip;
        for (std::size_t j = 0; j < kStrip; j += kLanes) {
            const vfloat x = load_query(from + j);
            store(to_ + j, x);
            store(squares + j, fma(x, x, load(squares + j)));
        }
    }

    const Tile& tile_;
    const std::size_t d_;
    QueryCursor<Query> queries_;
    float* to_;
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
    reset_numbers(tile);
    for (std::size_t m = 0; m < tile.rows; ++m) {
        tile.scale[m] = tile.inverse_norm[m] = 0.0f;
        float norm2 = sum_of_strip(tile.squares + m * kStrip);
        if (!(norm2 > 0x1p-40f && norm2 < 0x1p80f)) {  // also taken by NaN and by a zero query
            norm2 = rescale_row(tile.strips + m * kStrip, tile.height * kStrip, d);
            if (norm2 < 0.0f) return tile.first + m;
        }
        if (norm2 > 0.0f) {
            const double norm = __builtin_sqrt(static_cast<double>(norm2));
            const double scale = rows.log2e_over_temperature / norm;
            tile.scale[m] = static_cast<float>(scale < 0x1p127 ? scale : 0x1p127);
            if (rows.stats != nullptr) tile.inverse_norm[m] = static_cast<float>(1.0 / norm);
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

// Σ w log2(w) of dots that are not yet weights.
HR_INLINE float row_weight_log(const float* row, std::size_t row_stride, std::size_t heads, float maximum,
                               float scale) {
    const vfloat m = splat(maximum), c = splat(scale);
    vfloat sum = zero();
    for (std::size_t k = 0; k < heads; k += kLanes) {
        const float* p = row + k / kStrip * row_stride + k % kStrip;
        const vfloat dots = k + kLanes <= heads ? load(p) : load_partial(p, heads - k, maximum);
        // Not below what exp2 makes 0: 0 times infinity would be NaN.
        const vfloat exponent = max((dots - m) * c, splat(-126.0f));
        sum = fma(exp2_nonpositive(exponent), exponent, sum);  // nothing beyond the end, where the exponent is 0
    }
    return reduce_add(sum);
}

// Online softmax over one block of a tile: raw dots [block / 16][ROWS][16] → weights, in place.
template <std::size_t ROWS>
HR_INLINE void softmax_block(const Tile& tile, float* dots, std::size_t heads, std::size_t e, bool want_log) {
    for (std::size_t m = 0; m < ROWS; ++m) {
        float* row = dots + m * kStrip;
        raise_maximum(tile, m, row_maximum(row, ROWS * kStrip, heads), e);
        if (want_log) tile.weight_log[m] += row_weight_log(row, ROWS * kStrip, heads, tile.maximum[m], tile.scale[m]);
        tile.weight_sum[m] += row_weights(row, ROWS * kStrip, heads, tile.maximum[m], tile.scale[m]);
    }
}

// Raw dot products of a tile with a block. `next` is packed beside the first block's.
template <std::size_t ROWS>
HR_INLINE void dot_block(const PackedHeads& heads, const Rows& rows, const Block<float>& block, const Tile& tile,
                         const Tile& next, float* dots) {
    const auto product = dot_product<ROWS, Float32>(heads, block, tile, kChain, dots);
    if (block.is_first)
        multiply_packing<Packer, ROWS>(product, heads, rows, next);
    else
        multiply_alone<ROWS>(product);
}

HR_INLINE void pack_tile(const PackedHeads& heads, const Rows& rows, const Tile& tile) {
    with_type(rows.queries,
              [&](auto query) __attribute__((always_inline)) { Packer<decltype(query)>(rows, heads, tile).rest(); });
}

HR_INLINE void write_stats(const Rows& rows, const Tile& tile) {
    for (std::size_t m = 0; m < tile.rows; ++m) {
        float* stats = rows.stats + 3 * (tile.first + m);
        stats[0] = tile.maximum[m] * tile.inverse_norm[m];
        stats[1] = tile.weight_sum[m];
        stats[2] = tile.weight_log[m];
    }
}

// One block of a tile, projected.
template <std::size_t ROWS>
HR_INLINE void project_block(const PackedHeads& heads, const Rows& rows, const Block<float>& block, const Tile& tile,
                             const Tile& next, float* weights) {
    const auto dots = dot_product<ROWS, Float32>(heads, block, tile, kChain, weights);
    if (block.is_first)
        multiply_packing<Packer, ROWS>(dots, heads, rows, next);
    else
        multiply_fetching<ROWS>(dots, heads, tile);
    softmax_block<ROWS>(tile, weights, block.heads, heads.answer_dim, rows.stats != nullptr);
    const auto mix = mix_product<Float32>(heads, block, tile, weights, block.heads, nullptr);
    if (!block.is_last) return multiply_asking<ROWS>(mix, heads, rows, block, tile);
    multiply_writing<ROWS>(mix, heads, rows, tile);
    if (rows.stats != nullptr) write_stats(rows, tile);
}

// One block of a tile, its dots copied to `out`; after the last block they are turned into weights, since the maximum
// is known only then.
template <std::size_t ROWS>
HR_INLINE void route_block(const PackedHeads& heads, const Rows& rows, const Block<float>& block, const Tile& tile,
                           const Tile& next, float* dots) {
    const std::size_t n_heads = heads.n_heads;
    dot_block<ROWS>(heads, rows, block, tile, next, dots);
    for (std::size_t m = 0; m < tile.rows; ++m) {
        float* w = reinterpret_cast<float*>(rows.out.data) + (tile.first + m) * n_heads;
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

// One block of a tile: its dots are looked through for the best, then their weights added up.
template <std::size_t ROWS>
HR_INLINE void top_block(const PackedHeads& heads, const Rows& rows, const Block<float>& block, const Tile& tile,
                         const Tile& next, float* dots) {
    dot_block<ROWS>(heads, rows, block, tile, next, dots);
    for (std::size_t m = 0; m < tile.rows; ++m) {
        BestHeads best(rows, tile.first + m, block.first);
        for (std::size_t k = 0; k < block.heads; k += kLanes) {
            const float* p = dots + k / kStrip * ROWS * kStrip + m * kStrip + k % kStrip;
            const std::size_t n = min(kLanes, block.heads - k);
            if (n == kLanes && at_least(load(p), best.least()) == 0) continue;
            for (std::size_t lane = 0; lane < n; ++lane) best.add(p[lane], block.first + k + lane);
        }
    }
    softmax_block<ROWS>(tile, dots, block.heads, 0, false);
    if (!block.is_last) return;
    for (std::size_t m = 0; m < tile.rows; ++m) {
        BestHeads best(rows, tile.first + m, rows.top.k);
        best.sort();
        float* w = best.dots();
        row_weights(w, kStrip, rows.top.k, tile.maximum[m], tile.scale[m]);
        for (std::size_t i = 0; i < rows.top.k; ++i) {
            w[i] /= tile.weight_sum[m];
            if (i > 0 && w[i] > w[i - 1]) w[i] = w[i - 1];  // exp2 may rise by an ulp where its argument falls
        }
    }
}

// Runs one of the three above over all blocks and tiles.
template <typename Compute>
HR_INLINE std::size_t run_float32(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt,
                                  Compute compute) {
    return for_each_tile<float>(
        heads, rows, interrupt, [&](const Tile& tile) { pack_tile(heads, rows, tile); },
        [&](const Tile& tile) { return measure_queries(rows, heads.query_dim, tile); }, compute);
}

std::size_t project(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    float* const weights = tile_weights(heads, rows);
    return run_float32(heads, rows, interrupt,
                       [&](auto height, const Block<float>& block, const Tile& tile, const Tile& next) {
                           project_block<decltype(height)::value>(heads, rows, block, tile, next, weights);
                       });
}

std::size_t route(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    float* const dots = tile_weights(heads, rows);
    return run_float32(heads, rows, interrupt,
                       [&](auto height, const Block<float>& block, const Tile& tile, const Tile& next) {
                           route_block<decltype(height)::value>(heads, rows, block, tile, next, dots);
                       });
}

std::size_t top_heads(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    float* const dots = tile_weights(heads, rows);
    return run_float32(heads, rows, interrupt,
                       [&](auto height, const Block<float>& block, const Tile& tile, const Tile& next) {
                           top_block<decltype(height)::value>(heads, rows, block, tile, next, dots);
                       });
}

// For shared_tile.inl.
struct Float32Steps {
    using Arithmetic = Float32;
    static constexpr std::size_t kDotChain = kChain;

    static std::size_t pack(const PackedHeads& heads, const Rows& rows, const Tile& tile) {
        pack_tile(heads, rows, tile);
        return measure_queries(rows, heads.query_dim, tile);
    }
    template <std::size_t ROWS>
    static void softmax(const PackedHeads& heads, const Rows& rows, const Tile& tile, float* weights, std::size_t n) {
        softmax_block<ROWS>(tile, weights, n, heads.answer_dim, rows.stats != nullptr);
    }
    static Product<Float32> mix(const PackedHeads& heads, const Block<float>& block, const Tile& tile, float* weights) {
        return mix_product<Float32>(heads, block, tile, weights, block.heads, nullptr);
    }
    static void report(const Rows& rows, const Tile& tile) {
        if (rows.stats != nullptr) write_stats(rows, tile);
    }
};

}  // namespace
