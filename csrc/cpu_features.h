// What this CPU and its operating system can run, as plain bools.
#pragma once

namespace headroute {

struct CpuFeatures {
    bool avx2;    // AVX2 and FMA, and the OS saves ymm registers
    bool avx512;  // AVX-512 F, BW, DQ, VL, and the OS saves zmm and mask registers
    bool avx512vnni;
    bool amx;  // VNNI and tiles of bytes, which the OS saves for this process
};

CpuFeatures detect_cpu_features();

}  // namespace headroute
