"""The compiled backend: heads packed once for an instruction set, then one fused pass a call.

A row's result depends on its query, the heads and the instruction set alone: the same bits in any
batch, with any number of threads.
"""

import os
import sys
import warnings

from headroute._backends._units import unit_centroids
from headroute._packed_file import Packed, share
from headroute._validate import Float32
from headroute.files import MappedFile
from headroute.precision import HeadRounding

_UNAVAILABLE: str | None
try:
    from headroute import _core
except ImportError as error:  # installed without a compiler, or built for another Python
    _UNAVAILABLE = f"the compiled kernel is missing ({error}); reinstall with a C++17 compiler"
else:
    _UNAVAILABLE = None

NAME = "native"


def unavailable() -> str | None:
    return _UNAVAILABLE


def build_facts() -> dict[str, object]:
    return {**_core.build_info(), "isa": _chosen_isa()}


def _chosen_isa() -> str:
    """The instruction set that HEADROUTE_ISA forces, else the best of this CPU.

    Raises ValueError for one that is unknown or that this CPU does not have.
    """
    available = _core.build_info()["isas_available"]
    forced = os.environ.get("HEADROUTE_ISA", "")
    if forced and forced not in available:
        raise ValueError(
            f"HEADROUTE_ISA={forced!r} cannot run here; valid on this machine: "
            f"{', '.join(available)}"
        )
    return forced or available[0]


# Sums are cut into chains (`headroute.precision.float32_bound`).
CHAINS = True
HALVES = True


class Heads:
    """Heads packed for one kernel; see `headroute._backends.Heads` for the shapes."""

    def __init__(self, centroids: Float32, answers: Float32) -> None:
        self._use(_core.Engine(unit_centroids(centroids), answers, _chosen_isa()))

    def _use(self, engine: "_core.Engine") -> None:
        self._engine = engine
        # The bound methods of the extension, so that one short query does not pay for a call more.
        self.project = self._engine.project
        self.route = self._engine.route
        self.top_heads = self._engine.top_heads
        self.project_one = self._engine.project_one
        self.route_one = self._engine.route_one

    def project_with_stats(
        self, queries: Float32, temperature: float, out: Float32, stats: Float32, num_threads: int
    ) -> int:
        return self._engine.project(queries, temperature, out, num_threads, stats=stats)

    def info(self) -> dict[str, str | int]:
        return {"isa": self._engine.isa, "packed_bytes": self._engine.packed_bytes}


class SharedHeads(Heads):
    """The same heads, packed in a file beside the router's that all processes map.

    Packed and written if it is not there. With a RuntimeWarning, in memory of this process's own
    if it cannot be written.
    """

    def __init__(self, centroids: Float32, answers: Float32, source: MappedFile) -> None:
        isa = _chosen_isa()
        sizes = (len(centroids), centroids.shape[1], answers.shape[1])
        layout = _core.packed_layout(*sizes, isa)
        key = {**layout, "sizes": list(sizes), "byteorder": sys.byteorder, "of": source.sha256()}
        self._path: str | None = f"{source.path}.{isa}.packed"

        def pack() -> Packed:
            engine = _core.Engine(unit_centroids(centroids), answers, isa)
            return Packed(engine.packed.data, engine.answer_scale)

        try:
            packed = share(self._path, key, layout["packed_bytes"], pack)
        except OSError as error:
            warnings.warn(
                f"packed heads cannot be kept in {self._path} ({error.strerror or error}): "
                "this process has a copy of its own, which no other shares",
                RuntimeWarning,
                stacklevel=5,
            )
            self._path = None
            packed = pack()
        self._use(_core.Engine.from_packed(packed.data, *sizes, packed.answer_scale, isa))

    def info(self) -> dict[str, str | int]:
        return super().info() | ({} if self._path is None else {"packed_file": self._path})


class Int16Heads:
    """Heads packed in 16-bit fixed point; `project` alone, and what its roundings were."""

    def __init__(self, centroids: Float32, answers: Float32) -> None:
        self._engine = _core.Engine(unit_centroids(centroids), answers, _chosen_isa(), "int16")
        self.project = self._engine.project
        self.project_one = self._engine.project_one
        self.rounding = HeadRounding(**self._engine.rounding)
        self.cost = self._engine.int16_cost
        self.packed_bytes = self._engine.packed_bytes


class ScreenedHeads:
    """Heads packed for a search in few bits, and their rows for exact cosines; `project` alone."""

    def __init__(self, centroids: Float32, answers: Float32) -> None:
        self._engine = _core.Engine(unit_centroids(centroids), answers, _chosen_isa(), "screened")
        self.project = self._engine.project
        self.rounding = HeadRounding(**self._engine.rounding)
        self.search_cost = self._engine.search_cost
        self.packed_bytes = self._engine.packed_bytes
