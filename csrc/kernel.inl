// Everything that is compiled for an instruction set, and the table of it. Included by each isa_*.cpp, which sets the
// flags and names the result; isa_amx.cpp adds to another kernel, and includes what it needs.
#include "int16_kernel.inl"
#include "projection_kernel.inl"
#include "screened_kernel.inl"
#include "shared_tile.inl"

namespace {

constexpr headroute::Kernel make_kernel(const char* name) {
    constexpr headroute::Int16Kernel int16 = {
        kRows, 1, 1, kIntChain, kWeightTotal, 0.55f, project_int16, shared_kernel<Int16Steps>()};
    return {name, kLanes, kRows, project, route, top_heads, shared_kernel<Float32Steps>(), kScreened, int16, int16, 0};
}

}  // namespace
