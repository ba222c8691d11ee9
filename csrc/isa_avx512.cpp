// AVX-512 F, BW, DQ, VL: Intel since Skylake-X (2017), AMD since Zen 4.
#include "kernel.inl"

namespace headroute {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = make_kernel("avx512");
}  // namespace headroute
