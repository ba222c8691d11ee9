// A SIMD vector of floats for the kernels: GCC/Clang vector extensions, with an intrinsic only where the
// extensions have no word for it (fused multiply-add, broadcast load, streaming store).
//
// The width follows from the flags of the file that includes this one. Everything has internal linkage and no
// STL header is included: an inline function compiled for AVX-512 must never be the copy that the linker keeps
// for baseline code. Not responsible for: choosing an instruction set (cpu_features, dispatch).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define HR_INLINE static inline __attribute__((always_inline))
#define HR_MEMBER inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr std::size_t kLanes = 16;
#elif defined(__AVX2__)
constexpr std::size_t kLanes = 8;
#else
constexpr std::size_t kLanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t vint __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t vuint __attribute__((vector_size(4 * kLanes)));
typedef float vfloat_unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

HR_INLINE vfloat load(const float* p) { return *reinterpret_cast<const vfloat_unaligned*>(p); }
HR_INLINE void store(float* p, vfloat v) { *reinterpret_cast<vfloat_unaligned*>(p) = v; }
typedef std::int32_t vint_unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
HR_INLINE vint load(const std::int32_t* p) { return *reinterpret_cast<const vint_unaligned*>(p); }
HR_INLINE void store(std::int32_t* p, vint v) { *reinterpret_cast<vint_unaligned*>(p) = v; }
HR_INLINE vint splat_int(std::int32_t x) { return x - vint{}; }
HR_INLINE vint lane_numbers() {
    vint numbers{};
    for (std::size_t i = 0; i < kLanes; ++i) numbers[i] = static_cast<std::int32_t>(i);
    return numbers;
}
HR_INLINE vfloat to_float(vint v) { return __builtin_convertvector(v, vfloat); }
HR_INLINE vfloat zero() { return vfloat{}; }
HR_INLINE vfloat select(vint mask, vfloat yes, vfloat no) { return mask ? yes : no; }
HR_INLINE vfloat abs(vfloat a) { return (vfloat)((vint)a & 0x7fffffff); }

HR_INLINE bool is_finite(float x) { return x - x == 0.0f; }

// Bit i: whether lane i is at least b.
HR_INLINE unsigned at_least(vfloat a, float b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(b), _CMP_GE_OQ);
#elif defined(__AVX2__)
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, _mm256_set1_ps(b), _CMP_GE_OQ)));
#elif defined(__SSE2__)
    return static_cast<unsigned>(_mm_movemask_ps(_mm_cmpge_ps((__m128)a, _mm_set1_ps(b))));
#elif defined(__aarch64__)
    return vaddvq_u32(vandq_u32(vcgeq_f32((float32x4_t)a, vdupq_n_f32(b)), uint32x4_t{1, 2, 4, 8}));
#else
    unsigned mask = 0;
    for (std::size_t i = 0; i < kLanes; ++i) mask |= static_cast<unsigned>(a[i] >= b) << i;
    return mask;
#endif
}

// Adding this rounds a float of at most 2^22 to the nearest integer, and leaves that integer in the low bits.
constexpr float kRoundBias = 0x1.8p23f;

// The low 16 bits of every lane.
typedef std::int16_t vshort __attribute__((vector_size(2 * kLanes)));
HR_INLINE void store_low_halves(std::int16_t* p, vint v) {
    const vshort low = __builtin_convertvector(v, vshort);
    __builtin_memcpy(p, &low, sizeof low);
}

// a > b ? a : b, also for NaN.
HR_INLINE vfloat max(vfloat a, vfloat b) {
#if defined(__AVX512F__)  // a full mask: GCC 12 warns of the undefined vector in the form without one
    return (vfloat)_mm512_mask_max_ps((__m512)a, 0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vfloat)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vfloat)_mm_max_ps((__m128)a, (__m128)b);
#else
    return select(a > b, a, b);
#endif
}

// The low 8 bits of every lane.
#if defined(__AVX512F__)  // GCC 12 takes the conversion of a vector apart, lane by lane
HR_INLINE void store_low_bytes(std::uint8_t* p, vint v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
}
#else
typedef std::uint8_t vbyte __attribute__((vector_size(kLanes)));
HR_INLINE void store_low_bytes(std::uint8_t* p, vint v) {
    const vbyte low = __builtin_convertvector(v, vbyte);
    __builtin_memcpy(p, &low, sizeof low);
}
#endif

// The first n lanes; the others are `rest`, or not written.
#if defined(__AVX512F__)
HR_INLINE __mmask16 first_lanes(std::size_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
HR_INLINE vfloat load_partial(const float* p, std::size_t n, float rest) {
    return (vfloat)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), first_lanes(n), p);
}
HR_INLINE void store_partial(float* p, vfloat v, std::size_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v); }
#else
HR_INLINE vfloat load_partial(const float* p, std::size_t n, float rest) {
    float lanes[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : rest;
    return load(lanes);
}
HR_INLINE void store_partial(float* p, vfloat v, std::size_t n) {
    float lanes[kLanes];
    store(lanes, v);
    for (std::size_t i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

#if defined(__AVX512F__)
HR_INLINE vfloat splat(float x) { return (vfloat)_mm512_set1_ps(x); }
HR_INLINE vfloat fma(vfloat a, vfloat b, vfloat c) { return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
HR_INLINE void stream(float* p, vfloat v) { _mm512_stream_ps(p, (__m512)v); }  // p 64-byte aligned
#elif defined(__AVX2__)
// Spelled out: `scalar - vector{}` makes GCC rebuild the broadcast from a scalar register, at half the speed.
HR_INLINE vfloat splat(float x) { return (vfloat)_mm256_set1_ps(x); }
HR_INLINE vfloat fma(vfloat a, vfloat b, vfloat c) { return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
HR_INLINE void stream(float* p, vfloat v) { _mm256_stream_ps(p, (__m256)v); }
#elif defined(__SSE2__)
HR_INLINE vfloat splat(float x) { return (vfloat)_mm_set1_ps(x); }
HR_INLINE vfloat fma(vfloat a, vfloat b, vfloat c) { return a * b + c; }  // two roundings: SSE2 has no FMA
HR_INLINE void stream(float* p, vfloat v) { _mm_stream_ps(p, (__m128)v); }
#elif defined(__ARM_NEON)
HR_INLINE vfloat splat(float x) { return (vfloat)vdupq_n_f32(x); }
HR_INLINE vfloat fma(vfloat a, vfloat b, vfloat c) {
    return (vfloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
HR_INLINE void stream(float* p, vfloat v) { store(p, v); }
#else
HR_INLINE vfloat splat(float x) { return x - zero(); }
HR_INLINE vfloat fma(vfloat a, vfloat b, vfloat c) { return a * b + c; }
HR_INLINE void stream(float* p, vfloat v) { store(p, v); }
#endif

// binary16 (IEEE half): a vector of it becomes floats exactly, and floats become it with ties to even, infinite from
// 65,520 on. Whole vectors; `stream_half` needs p aligned to its 2 · kLanes bytes.
typedef std::uint16_t half;
#if defined(__AVX512F__)
HR_INLINE vfloat load_half(const half* p) {
    return (vfloat)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
HR_INLINE __m256i to_half(vfloat v) {
    return _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
HR_INLINE void store_half(half* p, vfloat v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_half(v)); }
HR_INLINE void stream_half(half* p, vfloat v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_half(v)); }
#elif defined(__AVX2__)
HR_INLINE vfloat load_half(const half* p) {
    return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
HR_INLINE __m128i to_half(vfloat v) { return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
HR_INLINE void store_half(half* p, vfloat v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_half(v)); }
HR_INLINE void stream_half(half* p, vfloat v) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_half(v)); }
#elif defined(__ARM_NEON)
HR_INLINE vfloat load_half(const half* p) { return (vfloat)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
HR_INLINE void store_half(half* p, vfloat v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v))); }
HR_INLINE void stream_half(half* p, vfloat v) { store_half(p, v); }
#else
// In integers: SSE2 has no instruction for it.
typedef std::uint16_t vhalf __attribute__((vector_size(2 * kLanes)));
HR_INLINE vfloat load_half(const half* p) {
    vhalf raw;
    __builtin_memcpy(&raw, p, sizeof raw);
    const vint bits = __builtin_convertvector(raw, vint);
    const vint magnitude = (bits & 0x7fff) << 13;
    const vint scaled = (vint)((vfloat)magnitude * splat(0x1p112f));  // the exponents' biases differ by 112
    const vint special = magnitude >= (0x7c00 << 13) ? magnitude | 0x7f800000 : scaled;
    return (vfloat)(special | (bits & 0x8000) << 16);
}
HR_INLINE void store_half(half* p, vfloat v) {
    const vint bits = (vint)v, magnitude = bits & 0x7fffffff;
    // Subnormal: the adder rounds at the last place of 2^-24. Normal: to even, in integers; a carry may make it
    // infinite.
    const vint subnormal = (vint)((vfloat)magnitude + splat(0.5f)) - 0x3f000000;
    const vint normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const vint finite = magnitude < 0x38800000 ? subnormal : normal;
    const vint special = magnitude > 0x7f800000 ? splat_int(0x7e00) : splat_int(0x7c00);
    const vint result = (magnitude >= 0x47800000 ? special : finite) | ((bits >> 16) & 0x8000);
    const vhalf raw = __builtin_convertvector(result, vhalf);
    __builtin_memcpy(p, &raw, sizeof raw);
}
HR_INLINE void stream_half(half* p, vfloat v) { store_half(p, v); }
#endif

#if defined(__AVX512F__)
HR_INLINE vfloat load_half_partial(const half* p, std::size_t n) {
    return (vfloat)_mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(first_lanes(n), p));
}
#else
HR_INLINE vfloat load_half_partial(const half* p, std::size_t n) {
    half lanes[kLanes] = {};
    for (std::size_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load_half(lanes);
}
#endif

// Two int16 for every lane of add_pairs(); NEON takes them from any vector that begins with them.
#if defined(__ARM_NEON)
typedef int16x4_t vpair;
HR_INLINE vpair splat_pair(std::int32_t x) { return vcreate_s16(static_cast<std::uint32_t>(x)); }
#else
typedef vint vpair;
HR_INLINE vpair splat_pair(std::int32_t x) { return splat_int(x); }
#endif

// sum + a[0] · b[0] + a[1] · b[1], of the two int16 in every lane of b.
HR_INLINE vint add_pairs(vpair a, vint b, vint sum) {
#if defined(__AVX512VNNI__)
    return (vint)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (vint)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sum + (vint)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return sum + (vint)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
    const int32x4_t low = vmlal_lane_s16((int32x4_t)sum, vmovn_s32((int32x4_t)b), a, 0);
    return (vint)vmlal_lane_s16(low, vshrn_n_s32((int32x4_t)b, 16), a, 1);
#else
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

#if defined(__AVX512VNNI__)
// sum + Σ a[i] · b[i], of the four uint8 in every lane of a and the four int8 in every lane of b.
HR_INLINE vint add_quads(vint a, vint b, vint sum) {
    return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#endif

HR_INLINE void stream_fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Sum and maximum of the lanes, along one tree: lane i with lane i + half, until one is left.
typedef float vfloat4 __attribute__((vector_size(16)));
typedef float vfloat8 __attribute__((vector_size(32)));

template <typename Combine>
HR_INLINE float reduce(vfloat4 v, Combine combine) {
    const vfloat4 pair = combine(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
    return combine(pair, __builtin_shufflevector(pair, pair, 1, 0, 3, 2))[0];
}
#if defined(__AVX2__)
template <typename Combine>
HR_INLINE float reduce(vfloat8 v, Combine combine) {
    return reduce(combine(__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7)),
                  combine);
}
#endif
#if defined(__AVX512F__)
template <typename Combine>
HR_INLINE float reduce(vfloat v, Combine combine) {
    return reduce(combine(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                          __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)),
                  combine);
}
#endif
HR_INLINE float reduce_add(vfloat v) {
    return reduce(v, [](auto a, auto b) { return a + b; });
}
HR_INLINE float reduce_max(vfloat v) {
    return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

// 2^y for y <= 0; 0 below 2^-125, so that no result is subnormal.
// y = n + f with n the nearest integer, |f| <= 1/2. 2^f by a minimax polynomial of degree 6 (relative error 1.9e-9 on
// [-1/2, 1/2]; with the roundings of the evaluation 1 ulp, measured over all floats of the domain by
// tests/test_kernel.py). n goes to the exponent.
HR_INLINE vfloat exp2_nonpositive(vfloat y) {
    const vfloat smallest = splat(-125.0f);
    const auto polynomial = [](vfloat f) __attribute__((always_inline)) {
        vfloat p = splat(0x1.41d334p-13f);
        p = fma(p, f, splat(0x1.5f456ap-10f));
        p = fma(p, f, splat(0x1.3b2dbcp-7f));
        p = fma(p, f, splat(0x1.c6aed4p-5f));
        p = fma(p, f, splat(0x1.ebfbdap-3f));
        p = fma(p, f, splat(0x1.62e430p-1f));
        return fma(p, f, splat(1.0f));
    };
#if defined(__AVX512F__)
    // Rounding, exponent and cut-off in one instruction each.
    const __mmask16 normal = _mm512_cmp_ps_mask((__m512)y, (__m512)smallest, _CMP_GE_OQ);
    const vfloat n =
        (vfloat)_mm512_mask_roundscale_ps((__m512)y, 0xffff, (__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return (vfloat)_mm512_maskz_scalef_ps(normal, (__m512)polynomial(y - n), (__m512)n);
#else
    const vfloat clamped = max(y, smallest);
    const vfloat biased = clamped + splat(kRoundBias);
    const vfloat p = polynomial(clamped - (biased - splat(kRoundBias)));
    // Unsigned, so that lanes which nobody uses may hold anything.
    return select(y < smallest, zero(), (vfloat)((vuint)p + ((vuint)biased << 23)));
#endif
}

}  // namespace
