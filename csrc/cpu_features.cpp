// CPUID says what the CPU has; XGETBV says which registers the operating system saves at a context switch. Both must
// agree: a hypervisor or an old kernel may leave AVX-512 visible in CPUID and its registers unsaved.
#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace headroute {

#if defined(__x86_64__)
namespace {

bool bit(unsigned value, int index) { return (value >> index & 1) != 0; }

unsigned saved_registers() {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Linux saves tiles for processes that ask for it, once; it may refuse, where a signal stack is too small for them.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace

CpuFeatures detect_cpu_features() {
    CpuFeatures features{};
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
    const bool osxsave = bit(ecx, 27), avx = bit(ecx, 28);
    const bool fma_f16c = bit(ecx, 12) && bit(ecx, 29);
    if (!osxsave || !avx) return features;
    const unsigned saved = saved_registers();
    const bool ymm_saved = (saved & 0x06) == 0x06, zmm_saved = (saved & 0xE6) == 0xE6;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
    features.avx2 = bit(ebx, 5) && fma_f16c && ymm_saved;
    const bool f = bit(ebx, 16), dq = bit(ebx, 17), bw = bit(ebx, 30), vl = bit(ebx, 31);
    features.avx512 = features.avx2 && f && dq && bw && vl && zmm_saved;
    features.avx512vnni = features.avx512 && bit(ecx, 11);
    const bool tile = bit(edx, 24), int8 = bit(edx, 25), tiles_saved = (saved & 0x60000) == 0x60000;
    features.amx = features.avx512vnni && tile && int8 && tiles_saved && may_use_tiles();
    return features;
}
#else
CpuFeatures detect_cpu_features() { return {}; }
#endif

}  // namespace headroute
