"""How many threads a call may use.

`set_num_threads` wins; otherwise the environment (`HEADROUTE_NUM_THREADS`, then `OMP_NUM_THREADS`);
otherwise the CPUs that this process may really run on: its affinity mask, cut down to its cgroup's
CPU quota (containers often see all of the host's CPUs in the mask and may use two of them).
"""

import functools
import math
import os
from pathlib import Path

from headroute import _validate

_chosen: int | None = None


def set_num_threads(n: int) -> None:
    """Set the number of threads of calls that do not say `num_threads=`, for the whole process.

    Raises TypeError for anything but an integer and ValueError for n < 1.
    """
    global _chosen
    _chosen = _validate.num_threads(n)


def get_num_threads() -> int:
    """Return the number of threads of calls that do not say `num_threads=`.

    Raises ValueError when `HEADROUTE_NUM_THREADS` or `OMP_NUM_THREADS` decides it and is not an
    integer >= 1.
    """
    return _chosen if _chosen is not None else _default()


# Read once: a call on one query takes microseconds, and these files and variables do not change
# under a running process.
@functools.cache
def _default() -> int:
    for variable in ("HEADROUTE_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "").strip()
        if value:
            return _environment_count(variable, value)
    return _usable_cpus(Path("/"))


def _environment_count(variable: str, value: str) -> int:
    # OpenMP allows a list, one number a nesting level: the outermost is ours.
    first = value.split(",")[0].strip() if variable == "OMP_NUM_THREADS" else value
    if not first.isdecimal() or int(first) < 1:
        raise ValueError(f"{variable} must be an integer of at least 1, got {value!r}")
    return int(first)


def _usable_cpus(root: Path) -> int:
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity mask to read
        cpus = os.cpu_count() or 1
    # A quota of 1.5 CPUs keeps two threads busy three quarters of the time; one thread would leave
    # a third unused.
    quota = _cgroup_quota(root)
    return cpus if quota >= cpus else max(1, math.ceil(quota))


def _cgroup_quota(root: Path) -> float:
    """CPUs that the cgroups (v1 or v2) of this process allow; infinity without a limit."""
    quota = math.inf
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # Every ancestor limits too. Inside a container the path may be the host's, and only the
        # mount itself is there.
        group = Path(path.lstrip("/"))
        for level in (group, *group.parents):
            quota = min(quota, _quota_of(mount / level))
    return quota


def _quota_of(folder: Path) -> float:
    limit = _read(folder / "cpu.max").split()
    if not limit:
        limit = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        allowed, period = (int(field) for field in limit)
    except ValueError:  # "max 100000" in v2, no such file in v1
        return math.inf
    return allowed / period if allowed > 0 and period > 0 else math.inf  # v1 says -1 for no limit


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
