// What the machine can do at most, in the words that the kernels use: the multiply-adds of vec.h from registers alone,
// and a copy of arrays that no cache holds. benchmarks/ceilings.py compiles this for the instruction set in use and
// times the calls.
//
// Every function works on `threads` threads at once and returns how much was done: operations, 2 for each product of
// two numbers, or bytes.
#include "../csrc/vec.h"
#if defined(__AMX_INT8__)
#include "../csrc/amx_multiply.h"
#endif

#include <thread>
#include <vector>

namespace {

// Sums that do not wait for each other: a multiply-add takes 4 or 5 cycles, and two may begin in each. With their
// operands they fit 16 registers.
constexpr std::size_t kSums = 12;

#if defined(__SSE2__)
#define HR_ANY_REGISTER "+x"
#else
#define HR_ANY_REGISTER "+w"  // NEON
#endif

// From here on the compiler knows nothing about v, so that no product is taken out of a loop or used twice.
template <typename Vector>
HR_INLINE void hide(Vector& v) {
    asm volatile("" : HR_ANY_REGISTER(v));
}

// work(thread) on all threads.
template <typename Work>
void on_threads(std::size_t threads, Work work) {
    std::vector<std::thread> others;
    for (std::size_t t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
}

// `steps` times kSums multiply-adds. Never inlined: beside the code that starts threads, GCC keeps the sums in memory,
// which halves the speed.
template <typename Vector, typename MultiplyAdd>
__attribute__((noinline)) void add_up(std::size_t steps, const Vector* operands, MultiplyAdd multiply_add) {
    Vector a = operands[0], b = operands[1], sums[kSums];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kSums; ++i) sums[i] = Vector{};
    for (std::size_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
        for (std::size_t i = 0; i < kSums; ++i) {
            hide(b);
            sums[i] = multiply_add(a, b, sums[i]);
        }
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kSums; ++i) hide(sums[i]);
}

// Operations of add_up() on all threads; a multiply-add is of `values` products in every lane.
template <typename Vector, typename MultiplyAdd>
double multiply_adds(std::size_t steps, std::size_t threads, std::size_t values, Vector a, Vector b,
                     MultiplyAdd multiply_add) {
    const Vector operands[] = {a, b};
    on_threads(threads, [&](std::size_t) { add_up(steps, operands, multiply_add); });
    return 2.0 * static_cast<double>(values * kLanes * kSums * steps * threads);
}

}  // namespace

// The products of an integer's lane cancel, so that no sum overflows.
extern "C" double float32_operations(std::size_t steps, std::size_t threads) {
    const auto multiply_add = [](vfloat a, vfloat b, vfloat sum)
                                  __attribute__((always_inline)) { return fma(a, b, sum); };
    return multiply_adds(steps, threads, 1, splat(0x1.8p-3f), splat(0x1.4p-2f), multiply_add);
}

#if defined(__AMX_INT8__)
namespace {

// Products of tiles of bytes, an eighth of the steps: 16 × 16 sums of 64 products each, on four tiles in turn.
double tile_operations(std::size_t steps, std::size_t threads) {
    steps /= 8;
    on_threads(threads, [=](std::size_t) {
        configure_tiles(kTileRows);
        for (std::size_t step = 0; step < steps; ++step) {
            HR_TILE_PRODUCT("tdpbssd", 0, kHighRows);
            HR_TILE_PRODUCT("tdpbssd", 1, kHighRows);
            HR_TILE_PRODUCT("tdpbssd", 2, kHighRows);
            HR_TILE_PRODUCT("tdpbssd", 3, kHighRows);
        }
        release_tiles();
    });
    return 2.0 * 4 * kTileRows * kStrip * kTileBytes * static_cast<double>(steps * threads);
}

}  // namespace

extern "C" double int8_operations(std::size_t steps, std::size_t threads) { return tile_operations(steps, threads); }
// Four products of bytes for one of int16.
extern "C" double int16_operations(std::size_t steps, std::size_t threads) {
    return tile_operations(steps, threads) / 4;
}
#else
extern "C" double int16_operations(std::size_t steps, std::size_t threads) {
    const auto multiply_add = [](vint a, vint b, vint sum)
                                  __attribute__((always_inline)) { return add_pairs(a, b, sum); };
    return multiply_adds(steps, threads, 2, splat_int(0x12341234), splat_int(static_cast<std::int32_t>(0xfa990567)),
                         multiply_add);  // 0x1234 · 0x567 and -0x1234 · 0x567
}

#if defined(__AVX512VNNI__)
extern "C" double int8_operations(std::size_t steps, std::size_t threads) {
    const auto multiply_add = [](vint a, vint b, vint sum)
                                  __attribute__((always_inline)) { return add_quads(a, b, sum); };
    return multiply_adds(steps, threads, 4, splat_int(0x07070909), splat_int(static_cast<std::int32_t>(0xfd03fb05)),
                         multiply_add);  // 9 · 5, 9 · -5, 7 · 3 and 7 · -3
}
#endif
#endif

// Copies n floats, of which `to` is 64-byte aligned, past the caches. Bytes read and written; what is less than a line
// of every thread is left out.
extern "C" double copied_bytes(const float* from, float* to, std::size_t n, std::size_t threads) {
    const std::size_t share = n / threads / 16 * 16;
    on_threads(threads, [=](std::size_t thread) {
        for (std::size_t i = thread * share; i < (thread + 1) * share; i += kLanes) stream(to + i, load(from + i));
        stream_fence();
    });
    return 2.0 * sizeof(float) * static_cast<double>(share * threads);
}
