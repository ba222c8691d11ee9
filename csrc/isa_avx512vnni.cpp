// AVX-512 with VNNI, which multiplies and adds up pairs of int16 in one instruction: Intel since Cascade Lake (2019),
// AMD since Zen 4.
#include "int16_kernel.inl"
#include "projection_kernel.inl"
#include "screened_kernel.inl"

namespace headroute {
extern const Kernel kernel_avx512vnni;
const Kernel kernel_avx512vnni = {"avx512vnni", kLanes, kRows,         Screen::kValues,
                                  project,      route,  project_int16, project_screened};
}  // namespace headroute
