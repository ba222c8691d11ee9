"""The machine's ceilings: multiply-adds from registers alone, and a copy that no cache holds.

ceilings.cpp is compiled with the system's C++ compiler, $CXX if that is set, for the instruction
set in use and with the kernel's flags, so that its multiply-adds are the kernel's. A ceiling takes
part in the races as a contender does: machines drift, and a share of a ceiling means something only
if both are of the same minutes.
"""

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from arena import contender
from race import Runner

from headroute import build_info, get_num_threads

_HERE = Path(__file__).parent
_NATIVE: Any = build_info()["native"]

ARITHMETICS = ("float32", "int16", "int8")
COPY = "copy"

_STEPS = 5_000_000  # 12 multiply-adds of a vector: about 15 ms
_COPIED_FLOATS = 1 << 25  # 128 MiB: more than caches hold


class Ceiling(NamedTuple):
    run: Runner
    work: int  # of a call: operations, 2 for each product; bytes read and written

    def facts(self, n_heads: int) -> dict[str, Any]:
        """For the report, from the race of so many heads."""
        return {"suite": "ceilings", "heads": n_heads, "queries": 1, "flop": self.work}


@cache
def ceiling(name: str) -> Ceiling:
    """The ceiling of one of ARITHMETICS, or of COPY."""
    run = _copy() if name == COPY else _multiply_adds(name)
    return Ceiling(run, int(run()))


def _multiply_adds(arithmetic: str) -> Callable[[], float]:
    count = _function(f"{arithmetic}_operations", ctypes.c_size_t, ctypes.c_size_t)
    return lambda: count(_STEPS, get_num_threads())


def _copy() -> Callable[[], float]:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    copied = _function("copied_bytes", pointer, pointer, size, size)
    # In pages of their own, for streaming stores must be aligned.
    source, target = (
        np.frombuffer(mmap.mmap(-1, 4 * _COPIED_FLOATS), np.float32) for _ in range(2)
    )
    source.fill(1.0)
    return lambda: copied(source.ctypes.data, target.ctypes.data, _COPIED_FLOATS, get_num_threads())


def ceiling_contenders(*names: str) -> list[Any]:
    """Parameters "ceiling-float32" and so on, skipped where they cannot be measured."""
    return [contender(f"ceiling-{name}", unless=_unavailable(name)) for name in names]


def _unavailable(name: str) -> str | None:
    """Why a ceiling cannot be measured here."""
    if _NATIVE is None or "isa" not in _NATIVE:
        return "ceilings are those of the native kernel, which is not built"
    if _compiler() is None:
        return "no C++ compiler"
    if name == "int8" and "-mavx512vnni" not in _isa_flags():
        return f"{_NATIVE['isa']} has no products of int8"
    return None


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def _isa_flags() -> list[str]:
    """Those of CMakeLists.txt for the instruction set in use; the baseline has none."""
    text = (_HERE.parent / "CMakeLists.txt").read_text()
    sets = dict(re.findall(r"set\((\w+) ((?:\$|-m).*)\)", text))
    flags = sets.get(_NATIVE["isa"], "")
    return re.sub(r"\$\{(\w+)\}", lambda found: sets[found[1]], flags).split()


@cache
def _library() -> ctypes.CDLL:
    compiler = _compiler()
    assert compiler is not None
    flags = [*_NATIVE["flags"].split(), "-std=c++17", "-Wno-psabi", *_isa_flags()]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "ceilings.so")
        command = [compiler, *flags, "-shared", "-fPIC", "-pthread", _HERE / "ceilings.cpp"]
        subprocess.run([*command, "-o", path], check=True)
        return ctypes.CDLL(str(path))


def _function(name: str, *arguments: Any) -> Callable[..., float]:
    function = getattr(_library(), name)
    function.argtypes, function.restype = arguments, ctypes.c_double
    return cast("Callable[..., float]", function)
