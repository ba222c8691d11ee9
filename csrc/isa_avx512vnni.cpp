// AVX-512 with VNNI, which multiplies and adds up pairs of int16 in one instruction: Intel since Cascade Lake (2019),
// AMD since Zen 4.
#include "kernel.inl"

namespace headroute {
extern const Kernel kernel_avx512vnni;
const Kernel kernel_avx512vnni = make_kernel("avx512vnni");
}  // namespace headroute
