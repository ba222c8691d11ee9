"""The registry of backends: which there are, which can run here and why the others cannot.

A backend is one module with the members of `Backend`. It is imported only when it is asked for,
because numba alone takes longer to import than everything else together.
"""

import importlib
import platform
import warnings
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np

from headroute import _threads
from headroute._validate import Float32
from headroute.files import MappedFile
from headroute.precision import HeadRounding

# Best first: `backend="auto"` takes the first that can run.
_MODULES = {"native": "native", "numba": "jit", "reference": "reference"}


class Heads(Protocol):
    """Heads made ready for many calls. Everything it is given has been checked.

    `queries` is float32 (n, d), n >= 1, unit column stride, any row stride, perhaps read-only.
    `out` is float32, C-contiguous, (n, e) for `project` and (n, K) for `route`; queries, and the
    `out` of `project`, may be float16 too where the backend says `HALVES`. Both return the
    index of the first row with a NaN or infinity, or -1; `out` is unspecified unless it is -1. A
    zero query gets uniform weights. A finite row whose squared norm over- or underflows float32
    gets the exact result.

    A backend may also have `project_one` and `route_one` (query, temperature, out), unchecked: the
    result for one query (d,) that needs nothing done to it, or None to be called the usual way. And
    it may have `top_heads` and `project_with_stats`, in place of those of
    `headroute._from_weights`.
    """

    def project(
        self, queries: Float32, temperature: float, out: Float32, num_threads: int
    ) -> int: ...

    def route(
        self, queries: Float32, temperature: float, out: Float32, num_threads: int
    ) -> int: ...

    def info(self) -> dict[str, str | int]:
        """What was chosen for these heads, such as {"isa": "avx512"}."""


class Int16Heads(Protocol):
    """Heads in 16-bit fixed point, of a backend that has them.

    `project` is that of `Heads`; with `account`, float32 (n, 2), it also writes what
    `headroute.precision.Int16Errors.bounds` needs to know of every query. `cost` is about what a
    row takes beside float32.
    """

    rounding: HeadRounding
    cost: float
    packed_bytes: int

    def project(
        self,
        queries: Float32,
        temperature: float,
        out: Float32,
        num_threads: int,
        account: Float32 | None = None,
    ) -> int: ...

    def project_one(self, query: object, temperature: float, out: object) -> Float32 | None: ...


class ScreenedHeads(Protocol):
    """Heads that are searched in few bits, and projected from those that matter.

    `project` writes to `account`, float32 (n, 2), what `headroute.precision.ScreenedErrors.bounds`
    needs to know of every query. It may lose `may_drop` of a query's weight; a row whose first
    number is infinite is left unspecified. `search_cost` is about what a head that is only
    searched takes beside one of a float32 row.
    """

    rounding: HeadRounding
    search_cost: float
    packed_bytes: int

    def project(
        self,
        queries: Float32,
        temperature: float,
        out: Float32,
        num_threads: int,
        account: Float32,
        may_drop: float,
    ) -> int: ...


ShortWay = Callable[[object, float, object], Float32 | None]
MakeInt16Heads = Callable[[Float32, Float32], Int16Heads]  # arguments as of _MakeHeads
MakeScreenedHeads = Callable[[Float32, Float32], ScreenedHeads]


class _MakeHeads(Protocol):
    def __call__(self, centroids: Float32, answers: Float32) -> Heads:
        """Centroids (K, d) and answers (K, e): C-contiguous, finite, not normalised, none zero."""


# The same, beside the router's file that they are mapped from.
MakeSharedHeads = Callable[[Float32, Float32, MappedFile], Heads]


class Backend(Protocol):
    """What a backend's module has; the native one also `Int16Heads`, `ScreenedHeads` and
    `SharedHeads`."""

    NAME: str
    CHAINS: bool  # whether its sums are short chains: `headroute.precision.float32_bound`
    HALVES: bool  # whether it reads and writes float16 itself
    Heads: _MakeHeads

    def unavailable(self) -> str | None:
        """None when the backend can run here, else the reason in one line."""

    def build_facts(self) -> dict[str, object]:
        """How it was built, such as {"compiler": …, "isas_available": […]}."""


def _load(name: str) -> tuple[Backend | None, str]:
    """Return (backend, "") when it can run here, else (None, why not)."""
    try:
        backend = cast(Backend, importlib.import_module(f"{__name__}.{_MODULES[name]}"))
    except ImportError as error:
        return None, str(error)
    reason = backend.unavailable()
    return (backend, "") if reason is None else (None, reason)


def available_backends() -> list[str]:
    """Return the names of the backends that can run here, best first."""
    return [name for name in _MODULES if _load(name)[0] is not None]


def find(name: str) -> Backend:
    """Return a backend, the best one for "auto".

    Raises ValueError, with the names that would do, for one that does not exist or cannot run here.
    Warns when "auto" has to do without the compiled kernel: nobody should wonder why it is slow.
    """
    reasons: dict[str, str] = {}
    for candidate in _MODULES if name == "auto" else (name,):
        backend, reason = _load(candidate) if candidate in _MODULES else (None, "no such backend")
        if backend is not None:
            if "native" in reasons:
                message = f"using the {candidate} backend, which is slower: {reasons['native']}"
                warnings.warn(message, RuntimeWarning, stacklevel=3)
            return backend
        reasons[candidate] = reason
    valid = ", ".join(["auto", *available_backends()])
    raise ValueError(f"backend {name!r} cannot be used ({reasons[name]}); valid here: {valid}")


def certified_heads(backend: Backend) -> tuple[MakeInt16Heads, MakeScreenedHeads] | None:
    """What makes a backend's heads in other arithmetic, or None if it has float32 alone."""
    make_int16: MakeInt16Heads | None = getattr(backend, "Int16Heads", None)
    make_screened: MakeScreenedHeads | None = getattr(backend, "ScreenedHeads", None)
    return None if make_int16 is None or make_screened is None else (make_int16, make_screened)


def shared_heads(backend: Backend) -> MakeSharedHeads | None:
    """What makes heads that processes share, or None if every process of a backend has its own."""
    make: MakeSharedHeads | None = getattr(backend, "SharedHeads", None)
    return make


def build_info() -> dict[str, object]:
    """Return what this installation is made of, for bug reports.

    Keys: version, python, numpy, threads (what a call uses by default), backend (what "auto"
    chooses), one key a backend with its build facts or None, and unavailable, which gives the
    reason for each None.
    """
    from headroute import __version__

    loaded = {name: _load(name) for name in _MODULES}
    return {
        "version": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": _threads.get_num_threads(),
        "backend": available_backends()[0],
        **{name: backend and backend.build_facts() for name, (backend, _) in loaded.items()},
        "unavailable": {name: reason for name, (_, reason) in loaded.items() if reason},
    }
