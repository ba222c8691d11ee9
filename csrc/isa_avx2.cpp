// AVX2 and FMA: Intel since Haswell (2013), AMD since Zen.
#include "kernel.inl"

namespace headroute {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = make_kernel("avx2");
}  // namespace headroute
