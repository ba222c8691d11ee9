// AVX-512 F, BW, DQ, VL: Intel since Skylake-X (2017), AMD since Zen 4.
#include "int16_kernel.inl"
#include "projection_kernel.inl"
#include "screened_kernel.inl"

namespace headroute {
extern const Kernel kernel_avx512;
const Kernel kernel_avx512 = {"avx512", kLanes, kRows,         Screen::kValues,
                              project,  route,  project_int16, project_screened};
}  // namespace headroute
