// AMX tiles of bytes, beside AVX-512 with VNNI: Intel since Sapphire Rapids (2023). int16 and the search of screened
// heads; the rest of this kernel is that of avx512vnni (dispatch.cpp).
#include "amx_kernel.inl"
#include "screened_kernel.inl"
#include "shared_tile.inl"

namespace headroute {
extern const ScreenedKernel kernel_amx_screened;
const ScreenedKernel kernel_amx_screened = kScreened;
extern const Int16Kernel kernel_amx_int16;
const Int16Kernel kernel_amx_int16 = {
    kRows,          BytePlanes<true>::kPlanes,  kStrip, kInt16BlockHeads, kWeightTotal, 0.27f,
    project_planes, shared_kernel<PlaneSteps>()};
}  // namespace headroute
