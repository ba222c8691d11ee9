"""Which arithmetic a router projects with: chosen for a temperature, packed when first needed.

`headroute.precision` proves and chooses; this file holds the heads of each arithmetic and hands
out what projects. It knows nothing of shapes, dtypes and blocks of what the user passed
(`headroute.router`).
"""

import math

from headroute import _backends, _from_weights
from headroute._certified import Bounds, CertifiedProjection, Kernel, Lazy, MeasuredKernel
from headroute._from_weights import StatsKernel, TopKernel
from headroute._screening import predict
from headroute._validate import Float32
from headroute.files import MappedFile
from headroute.precision import (
    Int16Errors,
    Plan,
    ScreenedErrors,
    Screening,
    choose,
    float32_bound,
    underflow,
)

_MOST_SCREENED_COLUMNS = 65536  # sums of int8 products fit int32

# Temperatures whose plans are remembered: predicting one may take 0.3 s.
_MOST_PLANS = 64

# A screened row that may lose nothing may lose what float32 would not notice.
_LEAST_DROPPED = 2.0**-24


class Arithmetic:
    """The heads of a router in every arithmetic that its backend has.

    Args:
        backend: a module of `headroute._backends`.
        centroids: (K, d); answers: (K, e); both checked, and never changed.
        tolerance: see `headroute.Router`.
        forced: one of `headroute.precision.PRECISIONS`, or None to choose by the tolerance.
        source: the file that the heads are mapped from, if processes are to share them.

    Raises ValueError for a forced precision that the backend does not have.
    """

    def __init__(
        self,
        backend: _backends.Backend,
        centroids: Float32,
        answers: Float32,
        tolerance: float,
        forced: str | None,
        source: MappedFile | None = None,
    ) -> None:
        make_shared = None if source is None else _backends.shared_heads(backend)
        if source is None or make_shared is None:
            self.float32 = backend.Heads(centroids, answers)
        else:
            self.float32 = make_shared(centroids, answers, source)
        self._centroids = centroids
        self._chains = backend.CHAINS
        self._tolerance = tolerance
        self._forced = forced
        self._underflow = underflow(answers)
        self.halves = backend.HALVES
        self._int16: Lazy[_backends.Int16Heads] | None = None
        self._screened: Lazy[_backends.ScreenedHeads] | None = None
        make = _backends.certified_heads(backend)
        if make is not None:
            self._int16 = Lazy(lambda: make[0](centroids, answers))
            self._screened = Lazy(lambda: make[1](centroids, answers))
        elif forced in ("int16", "screened"):
            raise ValueError(f"the {backend.NAME} backend has no {forced} arithmetic")
        self._plans: dict[float, Plan] = {}

    def plan(self, temperature: float) -> Plan:
        plan = self._plans.get(temperature)
        if plan is None:
            plan = choose(
                self._forced,
                self._tolerance,
                temperature,
                self.float32_bound(temperature),
                len(self._centroids),
                None if self._int16 is None else self._int16_errors,
                None if self._screened is None else self._screening,
            )
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[temperature] = plan
        return plan

    def kernel(self, plan: Plan) -> Kernel:
        """What projects by a plan."""
        if plan.precision == "float32":
            return self.float32.project
        if plan.precision == "int16" and not plan.checks_rows:
            assert self._int16 is not None
            return self._int16.get().project
        return self.certified(plan)

    def certified(self, plan: Plan) -> CertifiedProjection:
        """What projects by a plan in less than float32, with a bound for every row."""
        tau = plan.temperature
        if plan.precision == "int16":
            assert self._int16 is not None
            heads, errors = self._int16.get(), self._int16_errors()
            project: MeasuredKernel = heads.project
            bounds: Bounds = lambda account: errors.bounds(account, tau)  # noqa: E731
        else:
            assert self._screened is not None
            screened, dropping = self._screened.get(), self._screened_errors()
            may_drop = max(dropping.may_drop(plan.bound, tau), _LEAST_DROPPED)

            def project(
                queries: Float32, temperature: float, out: Float32, threads: int, account: Float32
            ) -> int:
                return screened.project(queries, temperature, out, threads, account, may_drop)

            bounds = lambda account: dropping.bounds(account, tau)  # noqa: E731
        limit = plan.bound if plan.checks_rows else math.inf
        return CertifiedProjection(
            project,
            bounds,
            limit,
            self.float32.project,
            self.float32_bound(tau),
        )

    @property
    def project_with_stats(self) -> StatsKernel:
        native: StatsKernel | None = getattr(self.float32, "project_with_stats", None)
        return native or _from_weights.project_with_stats(self.float32, self._centroids)

    @property
    def top_heads(self) -> TopKernel:
        native: TopKernel | None = getattr(self.float32, "top_heads", None)
        return native or _from_weights.top_heads(self.float32, len(self._centroids))

    def project_one(self, plan: Plan) -> _backends.ShortWay:
        """The backend's short way for one query by a plan; one that always declines if it has
        none."""
        if plan.precision == "int16" and not plan.checks_rows:
            assert self._int16 is not None
            return self._int16.get().project_one
        if plan.precision == "float32":
            return getattr(self.float32, "project_one", decline)
        return decline

    def info(self) -> dict[str, str | int]:
        """What the backend chose for these heads, and the bytes of what has been packed."""
        info = self.float32.info()
        for name, lazy in (("int16", self._int16), ("screened", self._screened)):
            if lazy is not None and lazy.made is not None:
                info[f"{name}_packed_bytes"] = lazy.made.packed_bytes
        return info

    def float32_bound(self, temperature: float) -> float:
        """What float32 promises, in units of the largest ‖a‖."""
        n_heads, d = self._centroids.shape
        return float32_bound(n_heads, d, temperature, chains=self._chains) + self._underflow

    def _int16_errors(self) -> Int16Errors:
        assert self._int16 is not None
        n_heads, d = self._centroids.shape
        heads = self._int16.get()
        return Int16Errors(heads.rounding, n_heads, d, self._underflow, heads.cost)

    def _screened_errors(self) -> ScreenedErrors:
        assert self._screened is not None
        d = self._centroids.shape[1]
        return ScreenedErrors(self._screened.get().rounding, d, self._underflow)

    def _screening(self, temperature: float) -> Screening | None:
        if self._centroids.shape[1] > _MOST_SCREENED_COLUMNS:
            return None
        assert self._screened is not None
        errors, search_cost = self._screened_errors(), self._screened.get().search_cost
        may_drop = errors.may_drop(self._tolerance, temperature)
        return predict(self._centroids, errors.heads, temperature, may_drop, search_cost)


def decline(query: object, temperature: float, out: object) -> None:
    """The short way of a backend that has none."""
