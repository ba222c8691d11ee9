// Lists of heads that may matter to a row, and what a search does with them: append, keep, weigh, sum up, find the
// lightest; a vector at a time, without branches on what is in them. Not responsible for which heads come on a list, or
// what may be dropped from it (screened_kernel.inl).
#pragma once

#include "projection.h"
#include "tile.h"
#include "vec.h"

namespace {

using namespace headroute;

// The candidates of a row: heads and, at first, their screened dots.
struct Candidates {
    float* values;         // [capacity]
    std::uint32_t* heads;  // [capacity], as places in the search order until exact cosines are taken
};

HR_INLINE Candidates candidates_of(const PackedHeads& heads, const Tile& tile, std::size_t m) {
    const std::size_t stride = round_up(candidate_capacity(heads.n_heads), kStrip);
    float* const values = tile.candidates + 2 * m * stride;
    return {values, reinterpret_cast<std::uint32_t*>(values + stride)};
}

// Puts the lanes of `mask` behind the first n of a list, and returns how many there are then. Writes a whole vector.
HR_INLINE std::size_t append(const Candidates& list, std::size_t n, vfloat values, vint heads, unsigned mask) {
#if defined(__AVX512F__)
    const auto m = static_cast<__mmask16>(mask);
    store(list.values + n, (vfloat)_mm512_maskz_compress_ps(m, (__m512)values));
    _mm512_storeu_si512(list.heads + n, _mm512_maskz_compress_epi32(m, (__m512i)heads));
    return n + static_cast<std::size_t>(__builtin_popcount(mask));
#else
    for (; mask != 0; mask &= mask - 1, ++n) {
        const auto lane = static_cast<unsigned>(__builtin_ctz(mask));
        list.values[n] = values[lane];
        list.heads[n] = static_cast<std::uint32_t>(heads[lane]);
    }
    return n;
#endif
}

// Keeps those of a list's n candidates for which by[i] >= least; returns how many. Reads whole vectors.
HR_INLINE std::size_t keep_from(const Candidates& list, const float* by, std::size_t n, float least) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < n; i += kLanes) {
        const unsigned real = n - i < kLanes ? (1u << (n - i)) - 1 : ~0u;
        const vint heads = load(reinterpret_cast<const std::int32_t*>(list.heads + i));
        kept = append(list, kept, load(list.values + i), heads, at_least(load(by + i), least) & real);
    }
    return kept;
}

// 2^x for any x; 0 or infinity where float has no such number.
HR_INLINE float power_of_2(float x) {
    const float p = reduce_max(exp2_nonpositive(splat(x < 0.0f ? x : -x)));
    return x < 0.0f ? p : 1.0f / p;
}

// The first n numbers of a list from i on, a vector of them; `rest` in the lanes behind the last.
HR_INLINE vfloat load_list(const float* list, std::size_t i, std::size_t n, float rest) {
    return n - i < kLanes ? load_partial(list + i, n - i, rest) : load(list + i);
}

// Σ of the numbers of a list below `limit`.
HR_INLINE float sum_below(const float* list, std::size_t n, float limit) {
    vfloat sums[4] = {};
    for (std::size_t i = 0; i < n; i += 4 * kLanes)
#pragma GCC unroll 4
        for (std::size_t j = 0; j < 4; ++j) {
            if (i + j * kLanes >= n) break;
            const vfloat x = load_list(list, i + j * kLanes, n, 0.0f);
            sums[j] += select(x < splat(limit), x, zero());
        }
    return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

HR_INLINE float list_sum(const float* list, std::size_t n) { return sum_below(list, n, __builtin_inff()); }

HR_INLINE float list_maximum(const float* list, std::size_t n) {
    const float lowest = -__builtin_inff();
    vfloat largest = splat(lowest);
    for (std::size_t i = 0; i < n; i += kLanes) largest = max(load_list(list, i, n, lowest), largest);
    return reduce_max(largest);
}

// weights[i] = 2^((values[i] - maximum) · scale), whole vectors; returns their sum.
HR_INLINE float weigh(const float* values, std::size_t n, float maximum, float scale, float* weights) {
    for (std::size_t i = 0; i < n; i += kLanes)
        store(weights + i, exp2_nonpositive((load(values + i) - splat(maximum)) * splat(scale)));
    return list_sum(weights, n);
}

// Of weights of at most about 1, finds the lightest that together weigh at most `budget`: returns the least weight to
// keep, to a quarter of an octave, and adds what all below it weigh to `dropped`.
HR_INLINE float lightest(const float* weights, std::size_t n, float budget, float& dropped) {
    float least = 0.0f, below = 0.0f;
    std::uint32_t at = 95u << 23;  // the bits of 2^-32
    for (std::uint32_t step = 64u << 21; step >= 1u << 21; step /= 2) {
        const std::uint32_t bits = at + step;
        float limit;
        __builtin_memcpy(&limit, &bits, sizeof limit);
        const float mass = sum_below(weights, n, limit);
        if (!(mass <= budget)) continue;
        at = bits;
        least = limit;
        below = mass;
    }
    dropped += below;
    return least;
}

}  // namespace
