"""Router: heads that never change, made ready once, and the calls on them.

    q̂ = q / ‖q‖     ĉ_k = c_k / ‖c_k‖     w = softmax(q̂ · ĉ / τ)     p = Σ_k w_k a_k

This file checks what comes in, cuts it into blocks and says which row was bad. The arithmetic is
the backend's.
"""

import json
import math
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt

from headroute import _backends, _validate
from headroute._certified import Bounds, CertifiedProjection, Lazy, MeasuredKernel
from headroute._screening import predict
from headroute._threads import get_num_threads
from headroute._validate import Float32
from headroute.precision import (
    PRECISIONS,
    Int16Errors,
    Plan,
    ScreenedErrors,
    Screening,
    choose,
    float32_bound,
    underflow,
)

# float32 bytes of weights that top_heads holds at once; selecting the best needs about three times
# as much again.
_TOP_BLOCK_BYTES = 1 << 20

_MOST_SCREENED_COLUMNS = 65536  # sums of int8 products fit int32

# Temperatures whose plans are remembered.
_MOST_PLANS = 64

# A screened row that may lose nothing may lose what float32 would not notice.
_LEAST_DROPPED = 2.0**-24

_Kernel = Callable[[Float32, float, Float32, int], int]
_ShortWay = Callable[[object, float, object], Float32 | None]

_FILE_FORMAT = "headroute-router"
_FILE_VERSION = "1"


class TopHeads(NamedTuple):
    """The heads that weigh most for each query, best first."""

    indices: npt.NDArray[np.int64]  # (N, k), or (k,) for one query
    weights: Float32  # the same shape: weights of the softmax over all heads


class Router:
    """Multi-head routing over fixed heads.

    Args:
        centroids: (K, d) real numbers, K >= 1, finite, no zero row; only their directions count.
        answers: (K, e) real numbers, finite. e may differ from d.
        temperature: default τ of the calls, positive and finite.
        names: one str a head; "0", "1", … by default.
        backend: "auto" (the best that can run here) or one of `available_backends()`.
        tolerance: the largest ‖projected - exact‖ / max_k ‖a_k‖ to accept from `project`, for any
            query. Above what float32 promises it may buy speed: `plan()` says what it bought.
        precision: "float32", "int16" or "screened" forces that arithmetic, whatever the tolerance.

    Both arrays are copied as float32. A router cannot be changed, and may be used from several
    threads at once.

    Raises TypeError for arrays that are not real numbers, and ValueError for wrong shapes, for
    heads with a NaN, an infinity or a zero centroid (named by number), for a backend that cannot
    run here, and for a precision that the backend does not have.

    Queries of every call are (N, d) or one (d,), real numbers. float32 with unit column stride, of
    any row stride, memory-mapped or read-only, is used in place; anything else (float64, float16,
    integers, Fortran order, foreign byte order) is converted in blocks of at most 4 MiB. A zero
    query is equally far from every head and gets uniform weights.
    """

    __slots__ = (
        "_answers",
        "_backend",
        "_centroids",
        "_chains",
        "_forced",
        "_heads",
        "_int16",
        "_names",
        "_plans",
        "_project_one",
        "_requested",
        "_route_one",
        "_screened",
        "_temperature",
        "_tolerance",
        "_underflow",
    )

    def __init__(
        self,
        centroids: npt.ArrayLike,
        answers: npt.ArrayLike,
        *,
        temperature: float = 0.1,
        names: Sequence[str] | None = None,
        backend: str = "auto",
        tolerance: float = 0.0,
        precision: str | None = None,
    ) -> None:
        checked = _validate.centroids(centroids)
        self._centroids = _read_only(_validate.float32_rows(checked))
        self._answers = _read_only(
            _validate.float32_answers(_validate.answers(answers, len(checked)))
        )
        self._temperature = _validate.temperature(temperature)
        self._names = _validate.head_names(names, len(checked))
        chosen = _backends.find(backend)
        self._requested = backend
        self._backend = chosen.NAME
        self._chains = chosen.CHAINS
        self._underflow = underflow(self._answers)
        self._heads = chosen.Heads(self._centroids, self._answers)
        self._tolerance = _validate.tolerance(tolerance)
        self._forced = _validate.precision(precision, PRECISIONS)
        self._int16: Lazy[_backends.Int16Heads] | None = None
        self._screened: Lazy[_backends.ScreenedHeads] | None = None
        make = _backends.certified_heads(chosen)
        if make is not None:
            arrays = self._centroids, self._answers
            self._int16 = Lazy(lambda: make[0](*arrays))
            self._screened = Lazy(lambda: make[1](*arrays))
        elif precision in ("int16", "screened"):
            raise ValueError(f"the {chosen.NAME} backend has no {precision} arithmetic")
        # A backend may have a short way for a single query that needs nothing done to it.
        self._route_one: _ShortWay = getattr(self._heads, "route_one", _none)
        self._project_one: _ShortWay = getattr(self._heads, "project_one", _none)
        self._plans: dict[float, Plan] = {}  # by temperature: predicting one may take 0.3 s
        plan = self.plan()
        if plan.checks_rows:
            self._project_one = _none
        elif plan.precision == "int16":
            assert self._int16 is not None
            self._project_one = self._int16.get().project_one

    @property
    def temperature(self) -> float:
        """The default temperature τ."""
        return self._temperature

    @property
    def tolerance(self) -> float:
        """The largest ‖projected - exact‖ / max_k ‖a_k‖ that `project` may be off by."""
        return self._tolerance

    @property
    def centroids(self) -> Float32:
        """(K, d) float32, read-only, as given: not normalised."""
        return self._centroids

    @property
    def answers(self) -> Float32:
        """(K, e) float32, read-only."""
        return self._answers

    @property
    def names(self) -> tuple[str, ...]:
        """One name a head."""
        return self._names

    @property
    def n_heads(self) -> int:
        """K."""
        return len(self._centroids)

    @property
    def query_dim(self) -> int:
        """d."""
        return int(self._centroids.shape[1])

    @property
    def answer_dim(self) -> int:
        """e."""
        return int(self._answers.shape[1])

    @property
    def backend(self) -> str:
        """The name of the backend in use."""
        return self._backend

    @property
    def backend_info(self) -> dict[str, str | int]:
        """What the backend chose for these heads, such as {"isa": "avx512"}."""
        info = self._heads.info()
        for name, lazy in (("int16", self._int16), ("screened", self._screened)):
            if lazy is not None and lazy.made is not None:
                info[f"{name}_packed_bytes"] = lazy.made.packed_bytes
        return info

    def plan(self, temperature: float | None = None) -> Plan:
        """Say which arithmetic `project` uses at a temperature (the router's by default), and why.

        Its `bound` holds for every finite query: ‖projected - exact‖ <= bound · max_k ‖a_k‖.
        """
        tau = self._temperature if temperature is None else _validate.temperature(temperature)
        plan = self._plans.get(tau)
        if plan is None:
            plan = choose(
                self._forced,
                self._tolerance,
                tau,
                self._float32_bound(tau),
                self.n_heads,
                None if self._int16 is None else self._int16_errors,
                None if self._screened is None else self._screening,
            )
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[tau] = plan
        return plan

    def _float32_bound(self, temperature: float) -> float:
        bound = float32_bound(self.n_heads, self.query_dim, temperature, chains=self._chains)
        return bound + self._underflow

    def _int16_errors(self) -> Int16Errors:
        assert self._int16 is not None
        rounding = self._int16.get().rounding
        return Int16Errors(rounding, self.n_heads, self.query_dim, self._underflow)

    def _screened_errors(self) -> ScreenedErrors:
        assert self._screened is not None
        return ScreenedErrors(self._screened.get().rounding, self.query_dim, self._underflow)

    def _screening(self, temperature: float) -> Screening | None:
        if self.query_dim > _MOST_SCREENED_COLUMNS:
            return None
        errors = self._screened_errors()
        return predict(
            self._centroids,
            errors.heads,
            temperature,
            errors.may_drop(self._tolerance, temperature),
        )

    def _kernel(self, plan: Plan, return_bound: bool) -> _Kernel:
        """What projects by a plan: a CertifiedProjection if rows must be accounted for."""
        tau = plan.temperature
        if plan.precision == "int16":
            assert self._int16 is not None
            heads, errors = self._int16.get(), self._int16_errors()
            if not (return_bound or plan.checks_rows):
                return heads.project
            project: MeasuredKernel = heads.project
            bounds: Bounds = lambda rounding: errors.bounds(rounding, tau)  # noqa: E731
        elif plan.precision == "screened":
            assert self._screened is not None
            screened, dropping = self._screened.get(), self._screened_errors()
            may_drop = max(dropping.may_drop(plan.bound, tau), _LEAST_DROPPED)

            def project(
                queries: Float32, temperature: float, out: Float32, threads: int, rounding: Float32
            ) -> int:
                return screened.project(queries, temperature, out, threads, rounding, may_drop)

            bounds = lambda rounding: dropping.bounds(rounding, tau)  # noqa: E731
        else:
            return self._heads.project
        limit = plan.bound if plan.checks_rows else math.inf
        return CertifiedProjection(
            project,
            bounds,
            limit,
            self._heads.project,
            self._float32_bound(tau),
            keep_bounds=return_bound,
        )

    @overload
    def project(
        self,
        queries: npt.ArrayLike,
        *,
        temperature: float | None = None,
        out: Float32 | None = None,
        num_threads: int | None = None,
        return_bound: Literal[False] = False,
    ) -> Float32: ...

    @overload
    def project(
        self,
        queries: npt.ArrayLike,
        *,
        temperature: float | None = None,
        out: Float32 | None = None,
        num_threads: int | None = None,
        return_bound: Literal[True],
    ) -> tuple[Float32, Float32]: ...

    def project(
        self,
        queries: npt.ArrayLike,
        *,
        temperature: float | None = None,
        out: Float32 | None = None,
        num_threads: int | None = None,
        return_bound: bool = False,
    ) -> Float32 | tuple[Float32, Float32]:
        """Return p = Σ_k w_k a_k for every query: (N, e) float32, (e,) for one query of shape (d,).

        Args:
            queries: (N, d) or (d,).
            temperature: τ of this call, instead of the router's.
            out: where to write: float32, of the result's shape, C-contiguous, clear of the queries'
                memory.
            num_threads: threads of this call, instead of `get_num_threads()`.
            return_bound: return (projected, bound); bound, (N,) or (), is certainly not below
                ‖projected - exact‖ / max_k ‖a_k‖.

        Raises TypeError for queries that are not real numbers, and ValueError for a wrong shape, an
        unfit `out` (before anything is written), or a query with a NaN or infinity, named by its
        number; `out` is then unspecified.
        """
        if temperature is None and num_threads is None and not return_bound:
            short = self._project_one(queries, self._temperature, out)
            if short is not None:
                return short
        width = self._answers.shape[1]
        plan = self.plan(temperature)
        kernel = self._kernel(plan, return_bound)
        projected = self._run(kernel, width, queries, temperature, out, num_threads)
        if not return_bound:
            return projected
        bound = np.full(projected.shape[:-1], plan.bound)
        if isinstance(kernel, CertifiedProjection) and kernel.bounds:
            bound = np.concatenate(kernel.bounds).reshape(bound.shape)
        return projected, np.nextafter(bound.astype(np.float32), np.float32(np.inf))

    def route(
        self,
        queries: npt.ArrayLike,
        *,
        temperature: float | None = None,
        out: Float32 | None = None,
        num_threads: int | None = None,
    ) -> Float32:
        """Return the weights w = softmax(s / τ) of every query: (N, K) float32, (K,) for one query
        of shape (d,).

        Arguments and errors are those of `project`.
        """
        if temperature is None and num_threads is None:
            short = self._route_one(queries, self._temperature, out)
            if short is not None:
                return short
        width = self._centroids.shape[0]
        return self._run(self._heads.route, width, queries, temperature, out, num_threads)

    def top_heads(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        temperature: float | None = None,
        num_threads: int | None = None,
    ) -> TopHeads:
        """Return the k heads of most weight for every query, best first; equal weights by lower
        index.

        The weights are those of the softmax over all K heads. Indices are int64 and weights
        float32, both (N, k), or (k,) for one query. The N×K weights are never held at once.

        Raises ValueError for k outside 1..K, and what `project` raises.
        """
        array = _validate.queries(queries, self.query_dim)
        k = _validate.top_k(k, self.n_heads)
        options = self._options(temperature, num_threads)
        rows = np.atleast_2d(array)
        indices = np.empty((len(rows), k), np.int64)
        weights = np.empty((len(rows), k), np.float32)
        step = max(1, _TOP_BLOCK_BYTES // (4 * self.n_heads))
        buffer = np.empty((min(step, len(rows)), self.n_heads), np.float32)
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            part = buffer[: len(rows[block])]
            _fill(self._heads.route, rows[block], part, options, first_row=start)
            indices[block], weights[block] = _best(part, k)
        shape = (*array.shape[:-1], k)
        return TopHeads(indices.reshape(shape), weights.reshape(shape))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the router to one safetensors file: tensors `centroids` and `answers`, the rest in
        its header.

        The file appears whole or not at all: it is written beside its place, flushed to disk and
        moved there.
        """
        from safetensors.numpy import save

        metadata = {
            "format": _FILE_FORMAT,
            "version": _FILE_VERSION,
            "temperature": repr(self._temperature),
            "names": json.dumps(self._names),
        }
        content = save({"centroids": self._centroids, "answers": self._answers}, metadata)
        path = os.fspath(path)
        temporary = f"{path}.{secrets.token_hex(4)}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        tolerance: float = 0.0,
        precision: str | None = None,
    ) -> Self:
        """Read a router that `save` wrote; tolerance and precision are not in the file.

        Raises OSError when the file cannot be opened, and ValueError, with the path, when it is not
        a router's file.
        """
        from safetensors import SafetensorError, safe_open

        _backends.find(backend)  # a backend that cannot run here is not the file's fault
        with open(
            path, "rb"
        ):  # nor is a missing file or permission, which safe_open reports as if it were
            pass
        try:
            with safe_open(os.fspath(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                if (metadata.get("format"), metadata.get("version")) != (
                    _FILE_FORMAT,
                    _FILE_VERSION,
                ):
                    raise ValueError(
                        f"its header does not say {_FILE_FORMAT}, version {_FILE_VERSION}"
                    )
                return cls(
                    file.get_tensor("centroids"),
                    file.get_tensor("answers"),
                    temperature=float(metadata["temperature"]),
                    names=json.loads(metadata["names"]),
                    backend=backend,
                    tolerance=tolerance,
                    precision=precision,
                )
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{os.fspath(path)} is not a router's file: {error}") from error

    def __repr__(self) -> str:
        return (
            f"Router(n_heads={self.n_heads}, query_dim={self.query_dim}, "
            f"answer_dim={self.answer_dim}, temperature={self._temperature!r}, "
            f"backend={self._backend!r})"
        )

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[..., "Router"], tuple[Any, ...]]:
        # The backend as it was asked for: "auto" may be another one where this is unpickled.
        return _rebuild, (
            self._centroids,
            self._answers,
            self._temperature,
            self._names,
            self._requested,
            self._tolerance,
            self._forced,
        )

    def _run(
        self,
        kernel: _Kernel,
        width: int,
        queries: npt.ArrayLike,
        temperature: float | None,
        out: Float32 | None,
        num_threads: int | None,
    ) -> Float32:
        array = _validate.queries(queries, self._centroids.shape[1])
        options = self._options(temperature, num_threads)
        shape = (*array.shape[:-1], width)
        if out is None:
            out = np.empty(shape, np.float32)
        else:
            _validate.output(out, shape, array)
        if array.ndim == 2:
            _fill(kernel, array, out, options)
        else:
            _fill(kernel, array[np.newaxis], out[np.newaxis], options)
        return out

    def _options(self, temperature: float | None, num_threads: int | None) -> tuple[float, int]:
        return (
            self._temperature if temperature is None else _validate.temperature(temperature),
            get_num_threads() if num_threads is None else _validate.num_threads(num_threads),
        )


def _fill(
    kernel: _Kernel,
    rows: npt.NDArray[Any],
    out: Float32,
    options: tuple[float, int],
    first_row: int = 0,
) -> None:
    """Run checked queries (n, d) through a backend into out.

    `first_row` is the number of rows[0] in the whole input.
    """
    temperature, threads = options
    start, bad = 0, -1
    if len(rows) == 0:
        return
    if _validate.is_float32_rows(rows):
        bad = kernel(rows, temperature, out, threads)
    else:
        for start, block in _validate.float32_blocks(rows):
            bad = kernel(block, temperature, out[start : start + len(block)], threads)
            if bad >= 0:
                break
    if bad >= 0:
        raise ValueError(f"query {first_row + start + bad} has a NaN or infinity in it")


def _none(query: object, temperature: float, out: object) -> None:
    """The short way of a backend that has none."""


def _read_only(array: Float32) -> Float32:
    # A view: unlike the array itself, it cannot be made writeable again.
    array.setflags(write=False)
    return array.view()


def _rebuild(
    centroids: Float32,
    answers: Float32,
    temperature: float,
    names: tuple[str, ...],
    backend: str,
    tolerance: float,
    precision: str | None,
) -> Router:
    return Router(
        centroids,
        answers,
        temperature=temperature,
        names=names,
        backend=backend,
        tolerance=tolerance,
        precision=precision,
    )


def _best(weights: Float32, k: int) -> tuple[npt.NDArray[np.int64], Float32]:
    """The k largest of each row of weights (n, K), in order.

    Equal ones go by lower index, which argpartition cannot promise.
    """
    kth = np.partition(weights, -k, axis=1)[:, -k, np.newaxis]
    above = weights > kth
    equal = weights == kth
    places = k - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= places))
    indices = np.nonzero(chosen)[1].reshape(len(weights), k)
    values = np.take_along_axis(weights, indices, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(values, order, axis=1)
