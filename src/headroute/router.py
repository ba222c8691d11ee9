"""Router: the calls on heads that never change.

    q̂ = q / ‖q‖     ĉ_k = c_k / ‖c_k‖     w = softmax(q̂ · ĉ / τ)     p = Σ_k w_k a_k

This file checks what comes in and makes what goes out. Which arithmetic computes it is said by
_arithmetic.py, and which row was bad by _run.py.
"""

from typing import Any, Literal, NamedTuple, Self, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt

from headroute import _validate, prediction, ranking
from headroute._ready_heads import ReadyHeads
from headroute._run import AnyKernel, Run
from headroute._threads import get_num_threads
from headroute._validate import Float32
from headroute.memory import aligned_empty
from headroute.precision import Plan
from headroute.prediction import Calibration, Prediction
from headroute.ranking import RankedDocuments
from headroute.stats import Stats, stats_of


class TopHeads(NamedTuple):
    """The heads that weigh most for each query, best first."""

    indices: npt.NDArray[np.int64]  # (N, k), or (k,) for one query
    weights: Float32  # the same shape: weights of the softmax over all heads


class _Options(TypedDict, total=False):
    temperature: float | None
    out: npt.NDArray[Any] | None
    num_threads: int | None


class Router(ReadyHeads):
    """Multi-head routing over fixed heads.

    Args:
        centroids: (K, d) real numbers, K >= 1, finite, no zero row; only their directions count.
        answers: (K, e) real numbers, finite. e may differ from d.
        temperature: default τ of the calls, positive and finite.
        names: one str a group; "0", "1", … by default.
        groups: (K,) integers, the group of each head, without gaps: several heads may speak for one
            group. By default every head is a group of its own.
        backend: "auto" (the best that can run here) or one of `available_backends()`.
        tolerance: the largest ‖projected - exact‖ / max_k ‖a_k‖ to accept from `project`, for any
            query. Above what float32 promises it may buy speed: `plan()` says what it bought.
        precision: "float32", "int16" or "screened" forces that arithmetic, whatever the tolerance.
        calibration: scores of in-scope queries, which `predict` needs to abstain; see `calibrate`.
        training: how the heads were trained, for those who ask later; nothing depends on it.

    Both arrays are copied as float32. A router cannot be changed, and may be used from several
    threads at once.

    Raises TypeError for arrays that are not real numbers, and ValueError for wrong shapes, for
    heads with a NaN, an infinity or a zero centroid (named by number), for a backend that cannot
    run here, and for a precision that the backend does not have.

    Queries of every call are (N, d) or one (d,), real numbers. float32 with unit column stride, of
    any row stride, memory-mapped or read-only, is used in place, and so is float16 by the native
    backend; anything else (float64, integers, Fortran order, foreign byte order) is converted in
    blocks of at most 4 MiB. A zero query is equally far from every head and gets uniform weights.
    """

    __slots__ = ()

    def plan(self, temperature: float | None = None) -> Plan:
        """Say which arithmetic `project` uses at a temperature (the router's by default), and why.

        Its `bound` holds for every finite query: ‖projected - exact‖ <= bound · max_k ‖a_k‖.
        """
        tau = self._temperature if temperature is None else _validate.temperature(temperature)
        return self._arithmetic.plan(tau)

    @overload
    def project(
        self,
        queries: npt.ArrayLike,
        *,
        return_bound: Literal[False] = False,
        stats: Literal[False] = False,
        **options: Unpack[_Options],
    ) -> Float32: ...

    @overload
    def project(
        self,
        queries: npt.ArrayLike,
        *,
        return_bound: Literal[True],
        stats: Literal[False] = False,
        **options: Unpack[_Options],
    ) -> tuple[Float32, Float32]: ...

    @overload
    def project(
        self,
        queries: npt.ArrayLike,
        *,
        return_bound: Literal[False] = False,
        stats: Literal[True],
        **options: Unpack[_Options],
    ) -> tuple[Float32, Stats]: ...

    @overload
    def project(
        self,
        queries: npt.ArrayLike,
        *,
        return_bound: Literal[True],
        stats: Literal[True],
        **options: Unpack[_Options],
    ) -> tuple[Float32, Float32, Stats]: ...

    def project(
        self,
        queries: npt.ArrayLike,
        *,
        temperature: float | None = None,
        out: npt.NDArray[Any] | None = None,
        num_threads: int | None = None,
        return_bound: bool = False,
        stats: bool = False,
    ) -> Any:
        """Return p = Σ_k w_k a_k for every query: (N, e) float32, (e,) for one query of shape (d,).

        Args:
            queries: (N, d) or (d,).
            temperature: τ of this call, instead of the router's.
            out: where to write, and what to return: float32, or float16 (infinite from 65,520 on),
                of the result's shape, C-contiguous, clear of the queries' memory. Fastest in
                memory of `headroute.aligned_empty`.
            num_threads: threads of this call, instead of `get_num_threads()`.
            return_bound: return (projected, bound); bound, (N,) or (), is certainly not below
                ‖projected - exact‖ / max_k ‖a_k‖, before rounding to a float16 `out`.
            stats: return (projected, Stats), or (projected, bound, Stats): see
                `headroute.Stats`. They come from the same pass, which is then float32's.

        Raises TypeError for queries that are not real numbers, and ValueError for a wrong shape, an
        unfit `out` (before anything is written), or a query with a NaN or infinity, named by its
        number; `out` is then unspecified.
        """
        plain = not (return_bound or stats)
        if plain and temperature is None and num_threads is None:
            short = self._project_one(queries, self._temperature, out)
            if short is not None:
                return short
        array = _validate.queries(queries, self.query_dim)
        tau, threads = self._options(temperature, num_threads)
        shape = (*array.shape[:-1], self.answer_dim)
        if out is None:
            out = aligned_empty(shape)
        else:
            _validate.output(out, shape, array, halves=True)
        rows, projected = np.atleast_2d(array), np.atleast_2d(out)
        arithmetic = self._arithmetic
        plan = arithmetic.plan(tau)
        run = Run(rows, tau, threads, halves=arithmetic.halves)
        if plain:
            run(arithmetic.kernel(plan), projected)
            return out
        result: list[Any] = [out]
        bound = np.full(len(rows), arithmetic.float32_bound(tau))
        if stats:
            raw = np.empty((len(rows), 3), np.float32)
            run(arithmetic.project_with_stats, projected, raw)
            result.append(stats_of(raw, tau, array.shape[:-1]))
        elif plan.precision == "float32":
            run(arithmetic.float32.project, projected)
        else:
            run(arithmetic.certified(plan).with_bounds, projected, bound)
        if return_bound:
            rounded = np.nextafter(bound.astype(np.float32), np.float32(np.inf))
            result.insert(1, rounded.reshape(array.shape[:-1]))
        return tuple(result)

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
        array = _validate.queries(queries, self.query_dim)
        options = self._options(temperature, num_threads)
        shape = (*array.shape[:-1], self.n_heads)
        if out is None:
            out = np.empty(shape, np.float32)
        else:
            _validate.output(out, shape, array, halves=False)
        arithmetic = self._arithmetic
        run = Run(np.atleast_2d(array), *options, halves=arithmetic.halves)
        run(arithmetic.float32.route, np.atleast_2d(out))
        return out

    def route_groups(
        self,
        queries: npt.ArrayLike,
        *,
        temperature: float | None = None,
        num_threads: int | None = None,
    ) -> Float32:
        """Return the weights of the groups, the sums of their heads': (N, G) float32, (G,) for one
        query of shape (d,).

        Arguments and errors are those of `project`.
        """
        weights = self.route(queries, temperature=temperature, num_threads=num_threads)
        sums = self._groups.sums(np.atleast_2d(weights))
        return sums.reshape(*weights.shape[:-1], self.n_groups)

    def top_heads(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        temperature: float | None = None,
        num_threads: int | None = None,
    ) -> TopHeads:
        """Return the k heads of most weight for every query, best first.

        The weights are those of the softmax over all K heads. Indices are int64 and weights
        float32, both (N, k), or (k,) for one query. The native backend finds them in one pass and
        orders them by cosine, the others by weight, which float32 may round to the same number;
        equal ones go by lower index. The N×K weights are never held.

        Raises ValueError for k outside 1..K, and what `project` raises.
        """
        array = _validate.queries(queries, self.query_dim)
        k = _validate.top_k(k, self.n_heads, "heads")
        options = self._options(temperature, num_threads)
        rows = np.atleast_2d(array)
        indices = np.empty((len(rows), k), np.int64)
        weights = np.empty((len(rows), k), np.float32)
        run = Run(rows, *options, halves=self._arithmetic.halves)
        run(self._arithmetic.top_heads, indices, weights)
        shape = (*array.shape[:-1], k)
        return TopHeads(indices.reshape(shape), weights.reshape(shape))

    def predict(
        self,
        queries: npt.ArrayLike,
        *,
        abstain: float | None = None,
        num_threads: int | None = None,
    ) -> Prediction:
        """Return the group of most weight for every query, its score, and whether to answer.

        Args:
            abstain: α in (0, 1): refuse queries whose score is that of the lowest α of the
                calibration's. Of in-scope queries like those at most α are refused, on average over
                calibrations, however few they are. None refuses nothing. Training questions are
                calibrated by when their groups have others: queries of groups with one question
                may be refused more often.

        The score is the calibration's; without one, the best cosine. It is higher for queries more
        in scope. All at the router's own temperature. Group is int64, score float32 and abstained
        bool, all (N,), or () for one query.

        Raises ValueError for a level without a calibration, and what `project` raises.
        """
        threshold = prediction.threshold_of(self._calibration, abstain)
        array = _validate.queries(queries, self.query_dim)
        kind = prediction.score_of(self._calibration)
        group, score = self._judge(np.atleast_2d(array), kind, num_threads)
        shape = array.shape[:-1]
        return Prediction(
            group.reshape(shape), score.reshape(shape), (score < threshold).reshape(shape)
        )

    def calibrate(
        self,
        queries: npt.ArrayLike,
        *,
        score: str | None = None,
        num_threads: int | None = None,
    ) -> Self:
        """Return a router with the same heads whose `predict` can abstain.

        Args:
            queries: (m, d) in-scope queries that the heads were not trained on, like those to come.
            score: one of `headroute.prediction.SCORES`; by default that of the calibration in
                place, or else the best cosine.

        Raises ValueError for an unknown score or for no queries, and what `project` raises.
        """
        kind = prediction.score_of(self._calibration, score)
        array = _validate.queries(queries, self.query_dim)
        if array.ndim != 2 or len(array) == 0:
            raise ValueError(f"calibration needs (m, d) queries, m >= 1, got shape {array.shape}")
        scores = self._judge(array, kind, num_threads)[1]
        typical = self._calibration.typical if self._calibration else None
        return self._with_calibration(Calibration(kind, "held-out", np.sort(scores), typical))

    def _judge(
        self, rows: npt.NDArray[Any], score: str, num_threads: int | None
    ) -> tuple[npt.NDArray[np.int64], Float32]:
        """Groups and scores, both (n,), of checked queries (n, d)."""
        tau, threads = self._options(None, num_threads)
        typical = self._calibration.typical if self._calibration else None

        def route(part: slice, weights: Float32) -> None:
            run = Run(rows[part], tau, threads, halves=self._arithmetic.halves)
            run(self._arithmetic.float32.route, weights, first_row=part.start)

        return prediction.judge(rows, route, self._centroids, self._groups, tau, score, typical)

    def score_answers(
        self,
        queries: npt.ArrayLike,
        documents: npt.ArrayLike,
        k: int,
        *,
        temperature: float | None = None,
        num_threads: int | None = None,
    ) -> RankedDocuments:
        """Return the k documents of the largest dot product with every query's projection, best
        first; equal scores by lower index.

        Args:
            documents: (D, e) real numbers, finite. Normalise them to rank by cosine: the length of
                the projection is the same for all documents of a query.

        With fewer heads than columns the projections are never formed: the answers' products with
        the documents are made once. Scores are those of the projections up to float32 rounding.
        The products are NumPy's, whose last bits depend on the place in a batch: documents that are
        the same may score an ulp apart. Neither N×D nor N×K is held at once.

        Raises ValueError for k outside 1..D, and what `project` raises.
        """
        array = _validate.queries(queries, self.query_dim)
        columns = _validate.documents(documents, self.answer_dim)
        k = _validate.top_k(k, len(columns), "documents")
        tau, threads = self._options(temperature, num_threads)
        rows = np.atleast_2d(array)
        right, of_weights = ranking.documents_side(len(rows), self._answers, columns)
        arithmetic = self._arithmetic
        kernel: AnyKernel = (
            arithmetic.float32.route if of_weights else arithmetic.kernel(arithmetic.plan(tau))
        )

        def left(part: slice) -> Float32:
            result = np.empty((len(rows[part]), len(right)), np.float32)
            run = Run(rows[part], tau, threads, halves=arithmetic.halves)
            run(kernel, result, first_row=part.start)
            return result

        shape = (*array.shape[:-1], k)
        indices, scores = ranking.rank(left, len(rows), right, k)
        return RankedDocuments(indices.reshape(shape), scores.reshape(shape))

    def _options(self, temperature: float | None, num_threads: int | None) -> tuple[float, int]:
        return (
            self._temperature if temperature is None else _validate.temperature(temperature),
            get_num_threads() if num_threads is None else _validate.num_threads(num_threads),
        )
