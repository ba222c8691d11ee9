// The fused kernel in 16-bit fixed point on AMX tiles. Included by isa_amx.cpp.
//
//   q16, c16  as in int16_kernel.inl, but as large as int16 allows: sums of bytes cannot overflow, so no chain limits
//             the norm of a row
//   s[n,k]  = Σ q16 · c16          exact in integers, then one float32
//   w16     = round(2^((s - b) · c) · 65535)      b the largest s of the block: the heaviest head has all 16 bits
//   p[n]    = Σ_blocks 2^((b - m) · c) (Σ w16 · a16) / Σ_k w[n,k]
//
// The loop nest and what is done beside the products are those of projection_kernel.inl, on tiles of 32 rows: two of
// AMX, of which the second finds its panels in L1. Multiplying takes 3 cycles for a row and a head of 384 + 384
// columns, all else less than 1 (docs/decisions/0016). Not responsible for the product itself (amx_multiply.h), limits
// and scales of the heads (packing.cpp), bounds (src/headroute/precision.py).

#include "amx_multiply.h"
#include "beside.h"
#include "fixed_packer.h"
#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

constexpr float kWeightTotal = 65535.0f;

// Columns that are added up before the sums become floats, in elements: 255 · 255 · 32,768 < 2^31.
constexpr std::size_t kByteChain = 32768 / 64 * 2 * kStrip;

using Dots = BytePlanes<true>;
using Mix = BytePlanes<false>;

template <typename Query>
using PlanePacker = FixedPacker<Dots, Query>;

// A tile's weights on their way from the first product to the second.
struct PlaneWeights {
    float* dots;          // [block / 16][ROWS][16]
    std::int32_t* bytes;  // [block / 64][low, high][ROWS][16]: 64 bytes
    float* scales;        // [ROWS]: bytes times these are weights
};

HR_INLINE PlaneWeights plane_weights(const PackedHeads& heads, float* scratch) {
    float* const bytes = scratch + weight_floats(heads, kRows);
    return {scratch, reinterpret_cast<std::int32_t*>(bytes), bytes + rounded_weights(heads, kRows)};
}

// Online softmax over one block of a tile: dots → weights in bytes and their scales.
template <std::size_t ROWS>
HR_INLINE void softmax_planes(const Tile& tile, const PlaneWeights& weights, std::size_t heads, std::size_t e,
                              bool want_rounding) {
    constexpr std::size_t kPlane = ROWS * kTileBytes;
    const vfloat bias = splat(kRoundBias), total = splat(kWeightTotal);
    for (std::size_t m = 0; m < ROWS; ++m) {
        const float* row = weights.dots + m * kStrip;
        const float largest = row_maximum(row, ROWS * kStrip, heads);
        raise_maximum(tile, m, largest, e);
        const vfloat b = splat(largest), c = splat(tile.scale[m]);
        std::uint8_t* to = reinterpret_cast<std::uint8_t*>(weights.bytes) + m * kTileBytes;
        vfloat sum = zero(), errors = zero();
        const auto weigh = [&](vfloat dots, std::size_t k) __attribute__((always_inline)) {
            const vfloat w = exp2_nonpositive((dots - b) * c);
            const vfloat biased = fma(w, total, bias);
            Mix::store(to + k, kPlane, (vint)biased);
            sum += w;
            if (want_rounding) errors += abs(fma(w, total, bias - biased));
        };
        std::size_t first = 0;
        for (; first + kTileBytes <= heads; first += kTileBytes, row += kTileBytes * ROWS, to += Mix::kPlanes * kPlane)
            for (std::size_t k = 0; k < kTileBytes; k += kLanes) weigh(load(row + k * ROWS), k);
        for (std::size_t k = 0; first < heads && k < kTileBytes; k += kLanes) {
            const std::size_t n = min(heads - min(heads, first + k), kLanes);
            weigh(load_partial(row + k * ROWS, n, -__builtin_inff()), k);
        }
        const float below = (largest - tile.maximum[m]) * tile.scale[m];
        const float factor = below < 0.0f ? reduce_max(exp2_nonpositive(splat(below))) : 1.0f;
        tile.weight_sum[m] += reduce_add(sum) * factor;
        weights.scales[m] = factor * (1.0f / kWeightTotal);
        if (want_rounding) tile.weight_rounding[m] += reduce_add(errors) * weights.scales[m];
    }
}

// One block of a tile, projected.
template <std::size_t ROWS>
HR_INLINE void project_block_planes(const PackedHeads& heads, const Rows& rows, const Block<std::int32_t>& block,
                                    const Tile& tile, const Tile& next, const PlaneWeights& weights) {
    const auto dots = dot_product<ROWS, Dots>(heads, block, tile, kByteChain, weights.dots);
    if (block.is_first)
        multiply_packing<PlanePacker, ROWS>(dots, heads, rows, next);
    else
        multiply_fetching<ROWS>(dots, heads, tile);
    softmax_planes<ROWS>(tile, weights, block.heads, heads.answer_dim, rows.account != nullptr);
    const auto mix = mix_product<Mix>(heads, block, tile, weights.bytes, kByteChain, weights.scales);
    if (!block.is_last) return multiply_alone<ROWS>(mix);
    multiply_writing<ROWS>(mix, heads, rows, tile);
    write_account(rows, tile);
}

std::size_t project_planes(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    const PlaneWeights weights = plane_weights(heads, tile_weights(heads, rows));
    return for_each_tile<std::int32_t>(
        heads, rows, interrupt, [&](const Tile& tile) { pack_fixed<Dots>(heads, rows, tile); }, begin_fixed,
        [&](auto height, const Block<std::int32_t>& block, const Tile& tile, const Tile& next) {
            project_block_planes<decltype(height)::value>(heads, rows, block, tile, next, weights);
        });
}

// For shared_tile.inl.
struct PlaneSteps {
    using Arithmetic = Dots;
    static constexpr std::size_t kDotChain = kByteChain;

    static std::size_t pack(const PackedHeads& heads, const Rows& rows, const Tile& tile) {
        pack_fixed<Dots>(heads, rows, tile);
        return begin_fixed(tile);
    }
    template <std::size_t ROWS>
    static void softmax(const PackedHeads& heads, const Rows& rows, const Tile& tile, float* dots, std::size_t n) {
        softmax_planes<ROWS>(tile, plane_weights(heads, dots), n, heads.answer_dim, rows.account != nullptr);
    }
    static Product<Mix> mix(const PackedHeads& heads, const Block<std::int32_t>& block, const Tile& tile, float* dots) {
        const PlaneWeights weights = plane_weights(heads, dots);
        return mix_product<Mix>(heads, block, tile, weights.bytes, kByteChain, weights.scales);
    }
    static void report(const Rows& rows, const Tile& tile) { write_account(rows, tile); }
};

}  // namespace
