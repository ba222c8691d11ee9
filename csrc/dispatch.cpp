// HEADROUTE_HAVE_* come from the build: a kernel is in the table when its file was compiled.
#include "dispatch.h"

#include <stdexcept>

#include "cpu_features.h"

namespace headroute {

#if defined(HEADROUTE_HAVE_AVX512VNNI)
extern const Kernel kernel_avx512vnni;
#endif
#if defined(HEADROUTE_HAVE_AMX)
extern const Int16Kernel kernel_amx_int16;
extern const ScreenedKernel kernel_amx_screened;
#endif
#if defined(HEADROUTE_HAVE_AVX512)
extern const Kernel kernel_avx512;
#endif
#if defined(HEADROUTE_HAVE_AVX2)
extern const Kernel kernel_avx2;
#endif
extern const Kernel kernel_baseline;

namespace {

struct Entry {
    const Kernel* kernel;
    bool runs_here;
};

#if defined(HEADROUTE_HAVE_AMX)
const Kernel& kernel_amx() {
    static const Kernel kernel = [] {
        Kernel amx = kernel_avx512vnni;
        amx.name = "amx";
        amx.int16_of_many = kernel_amx_int16;
        amx.screened = kernel_amx_screened;
        amx.many_heads = 64;  // fewer leave tiles too empty: 0.55 of VNNI's speed at K = 16, 1.1 at 64, 2 at 256
        return amx;
    }();
    return kernel;
}
#endif

std::vector<Entry> kernel_table() {
    [[maybe_unused]] static const CpuFeatures cpu = detect_cpu_features();
    return {
#if defined(HEADROUTE_HAVE_AMX)
        {&kernel_amx(), cpu.amx},
#endif
#if defined(HEADROUTE_HAVE_AVX512VNNI)
        {&kernel_avx512vnni, cpu.avx512vnni},
#endif
#if defined(HEADROUTE_HAVE_AVX512)
        {&kernel_avx512, cpu.avx512},
#endif
#if defined(HEADROUTE_HAVE_AVX2)
        {&kernel_avx2, cpu.avx2},
#endif
        {&kernel_baseline, true},
    };
}

}  // namespace

std::vector<std::string> built_isas() {
    std::vector<std::string> names;
    for (const Entry& entry : kernel_table()) names.emplace_back(entry.kernel->name);
    return names;
}

const std::vector<const Kernel*>& available_kernels() {
    static const std::vector<const Kernel*> kernels = [] {
        std::vector<const Kernel*> result;
        for (const Entry& entry : kernel_table())
            if (entry.runs_here) result.push_back(entry.kernel);
        return result;
    }();
    return kernels;
}

const Kernel& kernel_by_name(const std::string& name) {
    std::string valid;
    for (const Kernel* kernel : available_kernels()) {
        if (kernel->name == name) return *kernel;
        valid += (valid.empty() ? "" : ", ") + std::string(kernel->name);
    }
    throw std::invalid_argument("no kernel '" + name + "' on this machine; valid: " + valid);
}

}  // namespace headroute
