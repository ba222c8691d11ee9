// What every CPU of the architecture has: SSE2 on x86-64, NEON on aarch64. No flags.
#include "int16_kernel.inl"
#include "projection_kernel.inl"
#include "screened_kernel.inl"

namespace headroute {
extern const Kernel kernel_baseline;
const Kernel kernel_baseline = {"baseline", kLanes, kRows,         Screen::kValues,
                                project,    route,  project_int16, project_screened};
}  // namespace headroute
