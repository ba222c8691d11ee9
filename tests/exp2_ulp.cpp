// Prints the largest error, in ulp, of exp2_nonpositive() over every float in [-125, -2^-26], and the number of results
// below -125 that are not 0. Compiled by test_kernel.py with the flags of one instruction set.
#include "../csrc/vec.h"

#include <cmath>
#include <cstdio>
#include <cstring>

int main() {
    double worst = 0;
    float at = 0;
    std::uint32_t first, last;
    const float small = -0x1p-26f, large = -125.0f;
    std::memcpy(&first, &small, 4);
    std::memcpy(&last, &large, 4);
    for (std::uint32_t bits = first; bits <= last; bits += kLanes) {
        float y[kLanes], got[kLanes];
        for (std::uint32_t i = 0; i < kLanes; ++i) {
            const std::uint32_t b = bits + i <= last ? bits + i : last;
            std::memcpy(&y[i], &b, 4);
        }
        store(got, exp2_nonpositive(load(y)));
        for (std::size_t i = 0; i < kLanes; ++i) {
            const double want = std::exp2(static_cast<double>(y[i]));
            const double ulp = std::ldexp(1.0, std::ilogb(want) - 23);
            const double error = std::fabs(got[i] - want) / ulp;
            if (error > worst) worst = error, at = y[i];
        }
    }
    int nonzero = 0;
    for (float y = -125.5f; y > -3e38f; y *= 1.1f) nonzero += reduce_max(exp2_nonpositive(splat(y))) != 0.0f;
    nonzero += reduce_max(exp2_nonpositive(splat(-INFINITY))) != 0.0f;
    std::printf("%.3f %a %d\n", worst, at, nonzero);
}
