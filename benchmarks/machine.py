"""What a figure depends on: CPU, caches, memory, threads, libraries and how they were built."""

import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import headroute

_LIBRARIES = ("headroute", "numpy", "numba", "torch", "onnxruntime", "pytest-benchmark")
_CPU = Path("/sys/devices/system/cpu")


def describe_machine() -> dict[str, Any]:
    """Facts for the report, each None or absent where this system does not tell."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "caches": _caches(),
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor") or "unknown",
        "memory_gib": memory_gib("MemTotal"),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "blas": _blas(),
        "threads": headroute.get_num_threads(),
        "build": headroute.build_info(),
    }


def _cpu_model() -> str:
    fields = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    numbers = (fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return "{} (family {}, model {}, stepping {})".format(fields["model name"], *numbers)


def _caches() -> list[str]:
    """Such as "L1d 48K", of CPU 0."""
    kinds = {"Data": "d", "Instruction": "i"}
    return [
        f"L{_read(index / 'level')}{kinds.get(_read(index / 'type'), '')} {_read(index / 'size')}"
        for index in sorted((_CPU / "cpu0/cache").glob("index*"))
    ]


def memory_gib(field: str) -> float | None:
    """A field of /proc/meminfo, such as MemTotal or MemAvailable."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) / (1 << 20), 1)
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return headroute.__version__ if name == "headroute" else None


def _blas() -> list[str]:
    """NumPy's BLAS, the kernels it chose for this CPU, and its threads."""
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return []
    return [
        f"{pool['internal_api']} {pool['version']}, {pool.get('architecture', 'its own')} kernels, "
        f"{pool['num_threads']} threads"
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
