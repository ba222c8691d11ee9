// The kernels of this build that this CPU can run, best first.
#pragma once

#include <string>
#include <vector>

#include "projection.h"

namespace headroute {

std::vector<std::string> built_isas();
const std::vector<const Kernel*>& available_kernels();  // never empty; the baseline is last

// The kernel called `name`; throws std::invalid_argument that lists the valid names.
const Kernel& kernel_by_name(const std::string& name);

}  // namespace headroute
