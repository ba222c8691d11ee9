// The fused kernel in 16-bit fixed point, for those who accept a bound on the error. Included by
// kernel.inl.
//
//   q16 = round(q · S)        S, one a row, as large as int16 and the chains' limits allow: about 75,000 / ‖q‖
//   c16 = round((ĉ - μ) · S_c)
//   s[n,k] = Σ q16 · c16      int32 within a chain of kIntChain columns, where it is exact; chains are added as floats
//   w[n,k] = 2^((s - m) · c)  float32, as are m and Σw;  c = log2(e) / (τ ‖q‖ S S_c)
//   w16 = round(w · kWeightTotal / Σ w)   over a chain of kIntChain heads: |Σ w16 · a16| < 2^31
//   p[n] = Σ_chains (Σ w / kWeightTotal) (Σ w16 · a16) / Σ_k w[n,k]
//
// The loop nest is that of projection_kernel.inl, at twice the multiply-adds a second. No sum in integers can
// overflow: for cosines by Cauchy-Schwarz over the norms that were measured when the heads were packed, for sums of
// answers because Σ |w16| is at most kWeightTotal + kIntChain / 2. What all roundings together may do to a projected
// query is derived in src/headroute/precision.py; the two parts of it that depend on the query are measured here, on
// demand. Not responsible for: limits and scales of the heads (packing.cpp).

#include "beside.h"
#include "fixed_packer.h"
#include "multiply.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

// What the rounded weights of a chain add up to, nearly. The largest may be the only one, and must fit an int16.
constexpr float kWeightTotal = 32760.0f;

constexpr std::size_t kPairStrip = 2 * kStrip;  // int16 in a row of a strip

constexpr std::size_t kChainPairs = kIntChain / 2;

template <typename Query>
using PairPacker = FixedPacker<Int16Pairs, Query>;

// A tile's weights on their way from the first product to the second.
struct Int16Weights {
    float* dots;          // [block / 16][ROWS][16]; then weights
    std::int32_t* pairs;  // [block / 2 / 16][ROWS][16]
    float* scales;        // [chain][ROWS]: pairs times these are weights
};

// The dots of one chain of a row → weights; returns their sum.
HR_INLINE float chain_weights(float* row, std::size_t row_stride, std::size_t heads, float maximum, float scale) {
    const vfloat m = splat(maximum), c = splat(scale);
    vfloat sum = zero();
    std::size_t k = 0;
    for (; k + kLanes <= heads; k += kLanes) {
        float* p = row + k / kStrip * row_stride + k % kStrip;
        const vfloat w = exp2_nonpositive((load(p) - m) * c);
        store(p, w);
        sum += w;
    }
    if (k < heads) {
        float* p = row + k / kStrip * row_stride + k % kStrip;
        store_partial(p, exp2_nonpositive((load_partial(p, heads - k, maximum) - m) * c), heads - k);
        const vfloat w = load_partial(p, heads - k, 0.0f);
        store(p, w);
        sum += w;
    }
    return reduce_add(sum);
}

// Online softmax over one block of a tile: raw dots → weights in pairs and their scales.
template <std::size_t ROWS>
HR_INLINE void softmax_int16(const Tile& tile, const Int16Weights& weights, std::size_t heads, std::size_t e,
                             bool want_rounding) {
    const vfloat bias = splat(kRoundBias);
    for (std::size_t m = 0; m < ROWS; ++m)
        raise_maximum(tile, m, row_maximum(weights.dots + m * kStrip, ROWS * kStrip, heads), e);
    for (std::size_t start = 0; start < heads; start += kIntChain) {
        const std::size_t n = min(kIntChain, heads - start);
        float* const scales = weights.scales + start / kIntChain * ROWS;
        float factors[ROWS];
        for (std::size_t m = 0; m < ROWS; ++m) {
            float* chain = weights.dots + m * kStrip + start * ROWS;
            const float sum = chain_weights(chain, ROWS * kStrip, n, tile.maximum[m], tile.scale[m]);
            tile.weight_sum[m] += sum;
            // A chain of next to nothing beside a sum of at least 1 is nothing.
            factors[m] = sum > 0x1p-100f ? kWeightTotal / sum : 0.0f;
            scales[m] = sum * (1.0f / kWeightTotal);
        }
        for (std::size_t m = 0; m < ROWS; ++m) {
            const float* chain = weights.dots + m * kStrip + start * ROWS;
            const float factor = factors[m];
            std::int16_t* to = reinterpret_cast<std::int16_t*>(weights.pairs) + start * ROWS + m * kPairStrip;
            vfloat errors = zero();
            for (std::size_t k = 0; k < n; k += kLanes) {
                const vfloat w = load(chain + k / kStrip * ROWS * kStrip + k % kStrip);
                const vfloat biased = fma(w, splat(factor), bias);
                store_low_halves(to + k / kPairStrip * ROWS * kPairStrip + k % kPairStrip, (vint)biased);
                if (want_rounding) errors += abs(fma(w, splat(factor), bias - biased));
            }
            if (want_rounding) tile.weight_rounding[m] += reduce_add(errors) * scales[m];
        }
    }
}

HR_INLINE Int16Weights int16_weights(const PackedHeads& heads, float* scratch) {
    float* const pairs = scratch + weight_floats(heads, kRows);
    return {scratch, reinterpret_cast<std::int32_t*>(pairs), pairs + rounded_weights(heads, kRows)};
}

// One block of a tile, projected.
template <std::size_t ROWS>
HR_INLINE void project_block_int16(const PackedHeads& heads, const Rows& rows, const Block<std::int32_t>& block,
                                   const Tile& tile, const Tile& next, const Int16Weights& weights) {
    const auto dots = dot_product<ROWS, Int16Pairs>(heads, block, tile, kChainPairs, weights.dots);
    if (block.is_first)
        multiply_packing<PairPacker, ROWS>(dots, heads, rows, next);
    else
        multiply_fetching<ROWS>(dots, heads, tile);
    softmax_int16<ROWS>(tile, weights, block.heads, heads.answer_dim, rows.account != nullptr);
    const auto mix = mix_product<Int16Pairs>(heads, block, tile, weights.pairs, kChainPairs, weights.scales);
    if (!block.is_last) return multiply_asking<ROWS>(mix, heads, rows, block, tile);
    const QueriesAhead ahead(rows, heads, next, true, mix.depth * divide_up(mix.columns, kPanel));
    multiply_writing<ROWS>(mix, heads, rows, tile, ahead);
    write_account(rows, tile);
}

std::size_t project_int16(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    const Int16Weights weights = int16_weights(heads, tile_weights(heads, rows));
    return for_each_tile<std::int32_t>(
        heads, rows, interrupt, [&](const Tile& tile) { pack_fixed<Int16Pairs>(heads, rows, tile); }, begin_fixed,
        [&](auto height, const Block<std::int32_t>& block, const Tile& tile, const Tile& next) {
            project_block_int16<decltype(height)::value>(heads, rows, block, tile, next, weights);
        });
}

// For shared_tile.inl.
struct Int16Steps {
    using Arithmetic = Int16Pairs;
    static constexpr std::size_t kDotChain = kChainPairs;

    static std::size_t pack(const PackedHeads& heads, const Rows& rows, const Tile& tile) {
        pack_fixed<Int16Pairs>(heads, rows, tile);
        return begin_fixed(tile);
    }
    template <std::size_t ROWS>
    static void softmax(const PackedHeads& heads, const Rows& rows, const Tile& tile, float* dots, std::size_t n) {
        softmax_int16<ROWS>(tile, int16_weights(heads, dots), n, heads.answer_dim, rows.account != nullptr);
    }
    static Product<Int16Pairs> mix(const PackedHeads& heads, const Block<std::int32_t>& block, const Tile& tile,
                                   float* dots) {
        const Int16Weights weights = int16_weights(heads, dots);
        return mix_product<Int16Pairs>(heads, block, tile, weights.pairs, kChainPairs, weights.scales);
    }
    static void report(const Rows& rows, const Tile& tile) { write_account(rows, tile); }
};

}  // namespace
