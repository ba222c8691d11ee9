// The fused kernel, float32. Included once by each isa_*.cpp, which sets the flags and names the result.
//
//   s[n,k] = q[n]·ĉ[k]                    raw dot products: q is not normalised, ‖q‖ goes into the scale
//   w[n,k] = 2^((s[n,k] - m[n]) · c[n])   c = log2(e) / (τ‖q‖),  m = the largest s of the row so far
//   p[n]   = Σ_k w[n,k] a[k] / Σ_k w[n,k]   w is at most 1; a is scaled so that K · |a| cannot overflow
//
// Loop nest of one pass (rows of one thread):
//   pack rows     queries into strips, ‖q‖ and NaN in the same sweep: q crosses memory once
//   for block     a few hundred heads whose centroids and answers stay in L2 together
//     for tile    kRows rows
//       dot       centroid panels of 2 vectors × kRows broadcasts → weights tile (L1)
//       softmax   running maximum, exp2, sum; on the tile, in L1
//       mix       answer panels × weights broadcasts → added to `out` (last block: also divided)
// N×K is never in memory. With one block a pass is one tile, and `out` is written once and never read.
//
// The same bits for the same row, always: each dot product and each weighted sum is added up in one order, whatever
// the tile's height and the row's place in it; block borders depend on K, d, e and the width of a vector alone.
// Accuracy: sums are cut into short chains (kChain, kWeightChain, a block), so that rounding errors grow with the
// chain's length and not with d or K; docs/decisions/0002. Not responsible for: threads, memory, checks of shapes
// (engine.cpp).

#include "projection.h"
#include "vec.h"

namespace {

using namespace headroute;

constexpr std::size_t kPanel = 2 * kLanes;

// Rows of the largest tile: kRows × 2 accumulators, 2 panel vectors and 1 broadcast fill the register file (32
// vectors, 16 on AVX2 and SSE2). More rows also mean fewer bytes of panel from L2 for each multiplication.
#if defined(__AVX512F__)
constexpr std::size_t kRows = 14;
#elif defined(__AVX2__)
constexpr std::size_t kRows = 6;
#elif defined(__SSE2__)
constexpr std::size_t kRows = 5;  // mul and add need a temporary, since there is no FMA
#else
constexpr std::size_t kRows = 12;
#endif
// Tiles for what is left over: 4 rows, and 1 row (a single query) over several panels at once, because 2
// accumulators alone would wait for the latency of the multiply-add.
constexpr std::size_t kFewRows = 4;

// Products of a dot product added up in one chain before that sum is put aside: its rounding error grows with the root
// of this length. OpenBLAS restarts after 192 or 320; 96 gives 0.6 to 0.85 of NumPy's error at τ <= 0.1, one chain of
// 384 gave 1.7 of it. Costs under 1 % (64: 1 to 3 %).
constexpr std::size_t kChain = 96;
// Likewise vectors of weights.
constexpr std::size_t kWeightChain = 16;

HR_INLINE std::size_t tile_rows(std::size_t rest) {
    if (rest == 1) return 1;
    return rest > kRows / 2 ? kRows : kFewRows;
}

HR_INLINE std::size_t min(std::size_t a, std::size_t b) { return a < b ? a : b; }

// acc[row][j] = Σ_k strips[row][k] · panels[k][j] for ROWS rows and VECTORS vectors of columns, k ascending from 0.
//   strips   [depth / 16][ROWS][16]
//   panels   vector j of column k at panels + (j / 2) · panel_stride + k · width + (j % 2) · kLanes,
//            width = kPanel, or kLanes for the half panel (VECTORS == 1)
// Calls at_strip(k) before each whole strip.
template <std::size_t ROWS, std::size_t VECTORS, typename AtStrip>
HR_INLINE void multiply_tile(const float* strips, const float* panels, std::size_t panel_stride, std::size_t depth,
                             vfloat (&acc)[ROWS][VECTORS], AtStrip at_strip) {
    constexpr std::size_t kWidth = VECTORS == 1 ? kLanes : kPanel;
#pragma GCC unroll 16
    for (std::size_t m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
        for (std::size_t j = 0; j < VECTORS; ++j) acc[m][j] = zero();

    const auto step = [&](const float* column, const float* panel) __attribute__((always_inline)) {
        vfloat b[VECTORS];
#pragma GCC unroll 8
        for (std::size_t j = 0; j < VECTORS; ++j) b[j] = load(panel + (j / 2) * panel_stride + (j % 2) * kLanes);
#pragma GCC unroll 16
        for (std::size_t m = 0; m < ROWS; ++m) {
            const vfloat a = splat(column[m * kStrip]);
#pragma GCC unroll 8
            for (std::size_t j = 0; j < VECTORS; ++j) acc[m][j] = fma(a, b[j], acc[m][j]);
        }
    };
    std::size_t start = 0;
    for (; start + kStrip <= depth; start += kStrip) {
        at_strip(start);
#pragma GCC unroll 2
        for (std::size_t k = 0; k < kStrip; ++k) step(strips + k, panels + k * kWidth);
        strips += ROWS * kStrip;
        panels += kStrip * kWidth;
    }
    for (std::size_t k = 0; start + k < depth; ++k) step(strips + k, panels + k * kWidth);
}

// Calls use(column, start, acc) for every tile of `columns` columns and every chain [start, start + chain) of depth:
// full panels, then the half panel if there is one. Calls at_strip(k) at every strip of the first tile.
template <std::size_t ROWS, typename Use, typename AtStrip>
HR_INLINE void multiply(const float* strips, const float* panels, std::size_t depth, std::size_t chain,
                        std::size_t columns, Use use, AtStrip at_strip) {
    constexpr std::size_t kWide = ROWS == 1 ? 8 : ROWS == kFewRows && kLanes == 16 ? 4 : 2;
    const std::size_t padded = round_up(columns, kLanes);
    std::size_t column = 0;
    const auto tile = [&](auto& acc) __attribute__((always_inline)) {
        constexpr std::size_t kVectors = sizeof(acc[0]) / sizeof(vfloat);
        constexpr std::size_t kWidth = kVectors == 1 ? kLanes : kPanel;
        const float* panel = panels + column * depth;
        for (std::size_t start = 0; start < depth; start += chain) {
            const auto strip_of_first = [&](std::size_t k) __attribute__((always_inline)) {
                if (column == 0) at_strip(start + k);
            };
            multiply_tile(strips + start * ROWS, panel + start * kWidth, kPanel * depth, min(chain, depth - start), acc,
                          strip_of_first);
            use(column, start, acc);
        }
        column += kVectors * kLanes;
    };
    if constexpr (kWide > 2) {
        while (column + kWide * kLanes <= padded) {
            vfloat acc[ROWS][kWide];
            tile(acc);
        }
    }
    while (column + kPanel <= padded) {
        vfloat acc[ROWS][2];
        tile(acc);
    }
    if (column < padded) {
        vfloat acc[ROWS][1];
        tile(acc);
    }
}

// What the kernel knows of a tile of rows.
struct Tile {
    std::size_t rows;   // real ones; up to the tile's height, the rest is padding
    float* strips;      // [d / 16][height][16] queries
    float* scale;       // [height] c = log2(e) / (τ‖q‖); 0 for a zero query: all weights equal
    float* maximum;     // [height] m
    float* weight_sum;  // [height] Σ w
};

HR_INLINE bool is_finite(float x) { return x - x == 0.0f; }

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

// Copies one query into its strips, zero beyond the last column; returns ‖q‖². Two accumulators, since one would be
// bound by the latency of the addition.
HR_INLINE float pack_row(const float* query, std::size_t d, float* row, std::size_t row_stride) {
    vfloat even = zero(), odd = zero();
    std::size_t i = 0;
    for (; i + 2 * kStrip <= d; i += 2 * kStrip, row += 2 * row_stride)
        for (std::size_t j = 0; j < kStrip; j += kLanes) {
            const vfloat x = load(query + i + j), y = load(query + i + kStrip + j);
            store(row + j, x);
            store(row + row_stride + j, y);
            even = fma(x, x, even);
            odd = fma(y, y, odd);
        }
    for (; i < d; i += kStrip, row += row_stride) {
        float strip[kStrip] = {};
        __builtin_memcpy(strip, query + i, min(kStrip, d - i) * sizeof(float));
        for (std::size_t j = 0; j < kStrip; j += kLanes) {
            const vfloat x = load(strip + j);
            store(row + j, x);
            even = fma(x, x, even);
        }
    }
    return reduce_add(even + odd);
}

// Copies ROWS queries into strips (zero beyond the last column and the last row) and finds their scale.
// Returns the first bad row, or kNoBadRow.
template <std::size_t ROWS>
HR_INLINE std::size_t pack_rows(const Rows& rows, std::size_t first, std::size_t d, const Tile& tile) {
    constexpr std::size_t kRowStride = ROWS * kStrip;
    std::size_t bad = kNoBadRow;
    for (std::size_t m = 0; m < ROWS; ++m) {
        float* strip = tile.strips + m * kStrip;
        tile.maximum[m] = -__builtin_inff();
        tile.weight_sum[m] = 0.0f;
        tile.scale[m] = 0.0f;
        if (m >= tile.rows) {
            for (std::size_t i = 0; i < d; i += kStrip)
                for (std::size_t j = 0; j < kStrip; j += kLanes) store(strip + i * ROWS + j, zero());
            continue;
        }
        const float* query = rows.queries + static_cast<std::ptrdiff_t>(first + m) * rows.query_stride;
        float norm2 = pack_row(query, d, strip, kRowStride);
        if (!(norm2 > 0x1p-40f && norm2 < 0x1p80f)) {  // also taken by NaN and by a zero query
            norm2 = rescale_row(strip, kRowStride, d);
            if (norm2 < 0.0f) {
                bad = bad == kNoBadRow ? first + m : bad;
                continue;
            }
        }
        if (norm2 > 0.0f) {
            const double scale = rows.log2e_over_temperature / __builtin_sqrt(static_cast<double>(norm2));
            tile.scale[m] = static_cast<float>(scale < 0x1p127 ? scale : 0x1p127);
        }
    }
    return bad;
}

// The queries of the next pass, asked for while this one computes: with few heads memory is the limit. A strip at a
// time, so that the requests never queue up: at K = 16 this takes 25 % off the time, all at once before the tile 14 %
// (d = e = 384, 50,000 queries; at K = 64 it takes 16 and 8 %).
struct Prefetch {
    const float* queries;
    std::ptrdiff_t stride;
    std::size_t n;

    inline __attribute__((always_inline)) void strip(std::size_t k) const {
        for (std::size_t m = 0; m < n; ++m) __builtin_prefetch(queries + static_cast<std::ptrdiff_t>(m) * stride + k);
    }
};

// Raw dot products of a tile with a block's centroids: dots [block / 16][ROWS][16].
template <std::size_t ROWS>
HR_INLINE void dot_block(const float* strips, const float* centroids, std::size_t d, std::size_t heads,
                         const Prefetch& next, float* dots) {
    const auto prefetch = [&](std::size_t k) __attribute__((always_inline)) { next.strip(k); };
    const auto keep = [&](std::size_t column, std::size_t start, auto& acc) __attribute__((always_inline)) {
        constexpr std::size_t kVectors = sizeof(acc[0]) / sizeof(vfloat);
#pragma GCC unroll 16
        for (std::size_t m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
            for (std::size_t j = 0; j < kVectors; ++j) {
                const std::size_t at = column + j * kLanes;
                float* p = dots + at / kStrip * (ROWS * kStrip) + m * kStrip + at % kStrip;
                store(p, start == 0 ? acc[m][j] : load(p) + acc[m][j]);
            }
    };
    multiply<ROWS>(strips, centroids, d, kChain, heads, keep, prefetch);
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

// Online softmax over one block of a tile. decay[row] is what earlier blocks' sums must be multiplied by.
template <std::size_t ROWS>
HR_INLINE void softmax_block(const Tile& tile, float* dots, std::size_t heads, float* decay) {
    for (std::size_t m = 0; m < ROWS; ++m) {
        float* row = dots + m * kStrip;
        const float block_maximum = row_maximum(row, ROWS * kStrip, heads);
        const float before = tile.maximum[m];
        const float maximum = block_maximum > before ? block_maximum : before;
        decay[m] = 1.0f;
        if (tile.weight_sum[m] == 0.0f) {
            decay[m] = 0.0f;  // the first block
        } else if (maximum > before) {
            const vfloat change = exp2_nonpositive(splat((before - maximum) * tile.scale[m]));
            decay[m] = reduce_max(change);
        }
        tile.maximum[m] = maximum;
        const float sum = row_weights(row, ROWS * kStrip, heads, maximum, tile.scale[m]);
        tile.weight_sum[m] = tile.weight_sum[m] * decay[m] + sum;
    }
}

// out = out · decay + weights × answers, then · answer_scale / Σw after the last block.
template <std::size_t ROWS>
HR_INLINE void mix_block(const Tile& tile, const float* weights, const float* answers, std::size_t heads, std::size_t e,
                         float answer_scale, const float* decay, bool first, bool last, float* out) {
    float inverse[ROWS];
    for (std::size_t m = 0; m < ROWS; ++m) inverse[m] = last ? answer_scale / tile.weight_sum[m] : 1.0f;
    const auto write = [&](std::size_t column, std::size_t, auto& acc) __attribute__((always_inline)) {
        constexpr std::size_t kVectors = sizeof(acc[0]) / sizeof(vfloat);
        const bool whole = column + kVectors * kLanes <= e;
        if (whole && tile.rows == ROWS && first && last) {  // the common case, free of branches
#pragma GCC unroll 16
            for (std::size_t m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
                for (std::size_t j = 0; j < kVectors; ++j)
                    store(out + m * e + column + j * kLanes, acc[m][j] * splat(inverse[m]));
            return;
        }
        for (std::size_t m = 0; m < tile.rows; ++m)
#pragma GCC unroll 8
            for (std::size_t j = 0; j < kVectors; ++j) {
                const std::size_t at = column + j * kLanes;
                if (at >= e) break;
                const std::size_t n = min(e - at, kLanes);
                float* p = out + m * e + at;
                vfloat v = acc[m][j];
                if (!first) v = fma(whole ? load(p) : load_partial(p, n, 0.0f), splat(decay[m]), v);
                v *= splat(inverse[m]);
                if (whole)
                    store(p, v);
                else
                    store_partial(p, v, n);
            }
    };
    multiply<ROWS>(weights, answers, heads, heads, e, write, [](std::size_t) {});
}

// Copies n floats past the caches, in whole cache lines wherever `to` starts.
HR_INLINE void stream_copy(float* to, const float* from, std::size_t n) {
    const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(to) % 64 / sizeof(float);
    const std::size_t head = min(misaligned ? kStrip - misaligned : 0, n);
    __builtin_memcpy(to, from, head * sizeof(float));
    std::size_t i = head;
    for (; i + kStrip <= n; i += kStrip)
        for (std::size_t j = 0; j < kStrip; j += kLanes) stream(to + i + j, load(from + i + j));
    __builtin_memcpy(to + i, from + i, (n - i) * sizeof(float));
}

// The scratch of a thread, divided; the sizes are those of scratch_floats().
struct Scratch {
    float* strips;
    float* dots;
    float* tile_out;
    float* scale;
    float* maximum;
    float* weight_sum;
};

HR_INLINE Scratch divide_scratch(const PackedHeads& heads, const Rows& rows) {
    const std::size_t padded = round_up(rows.pass_rows, kRows) + kStrip;
    Scratch s;
    s.strips = rows.scratch;
    s.dots = s.strips + padded * round_up(heads.query_dim, kStrip);
    s.tile_out = s.dots + kRows * round_up(heads.block_heads, 2 * kStrip);
    s.scale = s.tile_out + round_up(kRows * heads.answer_dim, kStrip);
    s.maximum = s.scale + round_up(padded, kStrip);
    s.weight_sum = s.maximum + round_up(padded, kStrip);
    return s;
}

template <std::size_t ROWS>
struct Height {
    static constexpr std::size_t value = ROWS;
};

// Calls use(height, tile, first) for each tile of a pass of n rows; `first` counts from the start of the pass.
template <typename Use>
HR_INLINE void for_each_tile(const Scratch& s, std::size_t n, std::size_t d, Use use) {
    for (std::size_t first = 0; first < n;) {
        const std::size_t height = tile_rows(n - first);
        const Tile tile{min(height, n - first), s.strips + first * round_up(d, kStrip), s.scale + first,
                        s.maximum + first, s.weight_sum + first};
        if (height == kRows)
            use(Height<kRows>{}, tile, first);
        else if (height == kFewRows)
            use(Height<kFewRows>{}, tile, first);
        else
            use(Height<1>{}, tile, first);
        first += tile.rows;
    }
}

struct Block {
    const float* centroids;
    const float* answers;
    std::size_t first;  // head
    std::size_t heads;
};

HR_INLINE Block block_at(const PackedHeads& heads, std::size_t index) {
    const std::size_t first = index * heads.block_heads;
    const std::size_t n = min(heads.block_heads, heads.n_heads - first);
    const float* centroids = heads.data + index * block_floats(heads, heads.block_heads, kLanes);
    return {centroids, centroids + round_up(n, kLanes) * heads.query_dim, first, n};
}

// Packs a pass; returns its first bad row, counted from the start of `rows`, or kNoBadRow.
HR_INLINE std::size_t pack_pass(const PackedHeads& heads, const Rows& rows, const Scratch& s, std::size_t start,
                                std::size_t n) {
    std::size_t bad = kNoBadRow;
    for_each_tile(s, n, heads.query_dim, [&](auto height, const Tile& tile, std::size_t first) {
        const std::size_t found = pack_rows<decltype(height)::value>(rows, start + first, heads.query_dim, tile);
        bad = min(bad, found);
    });
    return bad;
}

// With one block a pass is one tile, and the next one's queries fit into L1 beside it.
HR_INLINE Prefetch next_pass(const PackedHeads& heads, const Rows& rows, std::size_t first) {
    const std::size_t n = heads.n_blocks == 1 ? min(rows.pass_rows, rows.n - first) : 0;
    return {rows.queries + static_cast<std::ptrdiff_t>(first) * rows.query_stride, rows.query_stride, n};
}

std::size_t project(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    const Scratch s = divide_scratch(heads, rows);
    const std::size_t e = heads.answer_dim;
    float decay[kRows];
    for (std::size_t start = 0; start < rows.n; start += rows.pass_rows) {
        const std::size_t n = min(rows.pass_rows, rows.n - start);
        const std::size_t bad = pack_pass(heads, rows, s, start, n);
        if (bad != kNoBadRow) return bad;
        const Prefetch next = next_pass(heads, rows, start + n);
        for (std::size_t b = 0; b < heads.n_blocks; ++b) {
            const Block block = block_at(heads, b);
            const bool first_block = b == 0, last_block = b + 1 == heads.n_blocks;
            for_each_tile(s, n, heads.query_dim, [&](auto height, const Tile& tile, std::size_t first) {
                constexpr std::size_t kHeight = decltype(height)::value;
                float* out = rows.out + (start + first) * e;
                float* target = rows.stream ? s.tile_out : out;
                dot_block<kHeight>(tile.strips, block.centroids, heads.query_dim, block.heads, next, s.dots);
                softmax_block<kHeight>(tile, s.dots, block.heads, decay);
                mix_block<kHeight>(tile, s.dots, block.answers, block.heads, e, heads.answer_scale, decay, first_block,
                                   last_block, target);
                if (rows.stream) stream_copy(out, target, tile.rows * e);
            });
            if (interrupt.requested(interrupt.context)) return kNoBadRow;
        }
    }
    if (rows.stream) stream_fence();
    return kNoBadRow;
}

// The weights themselves: dots of all blocks go to `out`, and one sweep over the finished rows of the pass turns
// them into weights, since the maximum is known only then.
std::size_t route(const PackedHeads& heads, const Rows& rows, const Interrupt& interrupt) noexcept {
    const Scratch s = divide_scratch(heads, rows);
    const std::size_t n_heads = heads.n_heads;
    for (std::size_t start = 0; start < rows.n; start += rows.pass_rows) {
        const std::size_t n = min(rows.pass_rows, rows.n - start);
        float* out = rows.out + start * n_heads;
        const std::size_t bad = pack_pass(heads, rows, s, start, n);
        if (bad != kNoBadRow) return bad;
        const Prefetch next = next_pass(heads, rows, start + n);
        for (std::size_t b = 0; b < heads.n_blocks; ++b) {
            const Block block = block_at(heads, b);
            for_each_tile(s, n, heads.query_dim, [&](auto height, const Tile& tile, std::size_t first) {
                constexpr std::size_t kHeight = decltype(height)::value;
                dot_block<kHeight>(tile.strips, block.centroids, heads.query_dim, block.heads, next, s.dots);
                for (std::size_t m = 0; m < tile.rows; ++m) {
                    float* row = out + (first + m) * n_heads + block.first;
                    for (std::size_t k = 0; k < block.heads; k += kStrip)
                        __builtin_memcpy(row + k, s.dots + k * kHeight + m * kStrip,
                                         min(kStrip, block.heads - k) * sizeof(float));
                }
            });
            if (interrupt.requested(interrupt.context)) return kNoBadRow;
        }
        for (std::size_t row = 0; row < n; ++row) {
            float* w = out + row * n_heads;
            const float maximum = row_maximum(w, kStrip, n_heads);
            double sum = 0.0;
            for (std::size_t k = 0; k < n_heads; k += heads.block_heads)
                sum += row_weights(w + k, kStrip, min(heads.block_heads, n_heads - k), maximum, s.scale[row]);
            const vfloat divisor = splat(static_cast<float>(sum));
            std::size_t k = 0;
            for (; k + kLanes <= n_heads; k += kLanes) store(w + k, load(w + k) / divisor);
            if (k < n_heads) store_partial(w + k, load_partial(w + k, n_heads - k, 0.0f) / divisor, n_heads - k);
        }
    }
    return kNoBadRow;
}

}  // namespace
