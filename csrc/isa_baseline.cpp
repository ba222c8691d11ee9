// What every CPU of the architecture has: SSE2 on x86-64, NEON on aarch64. No flags.
#include "kernel.inl"

namespace headroute {
extern const Kernel kernel_baseline;
const Kernel kernel_baseline = make_kernel("baseline");
}  // namespace headroute
