// AVX2 and FMA: Intel since Haswell (2013), AMD since Zen.
#include "int16_kernel.inl"
#include "projection_kernel.inl"
#include "screened_kernel.inl"

namespace headroute {
extern const Kernel kernel_avx2;
const Kernel kernel_avx2 = {"avx2", kLanes, kRows, Screen::kValues, project, route, project_int16, project_screened};
}  // namespace headroute
