"""What is computed for every query of a batch, as columns of numbers.

    projected   p                                     (N, e)
    weights     w                                     (N, K)
    top-k       the heads of most weight              top_heads (N, k), top_weights (N, k)
    answers     the documents nearest the projection  answers (N, k), answer_scores (N, k)

Where queries come from and where results go is the business of the other files here.
"""

import hashlib
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from headroute import __version__, _validate
from headroute._backends.reference import unit
from headroute.memory import aligned_empty
from headroute.router import Router

OUTPUTS = ("projected", "weights", "top-k", "answers")
DTYPES = ("float32", "float16")
ON_BAD = ("raise", "null")


Columns = tuple[npt.NDArray[Any], ...]  # one (n, width) a field


class Field(NamedTuple):
    """One column of results."""

    name: str
    dtype: np.dtype[Any]
    width: int  # numbers a query

    @property
    def nothing(self) -> float | int:
        """What stands for a query without a result where nulls cannot."""
        return np.nan if self.dtype.kind == "f" else -1


class Options(TypedDict, total=False):
    """Arguments of `Task` but for the router."""

    output: str
    dtype: str
    k: int
    temperature: float | None
    num_threads: int | None
    on_bad: str
    documents: npt.ArrayLike | None
    document_ids: npt.ArrayLike | None


class Task:
    """What to compute, by which router. Immutable.

    Args:
        output: one of OUTPUTS.
        dtype: of projections and weights, "float32" or "float16".
        k: heads or answers a query, for "top-k" and "answers".
        temperature, num_threads: see `Router.project`.
        on_bad: "raise" an error for a query that is null, of another length, or has a NaN, an
            infinity or a null in it; or give it a row of "null".
        documents: (D, e) what "answers" ranks, by cosine; the answers of the heads by default.
        document_ids: (D,) integers that stand for them in the results; 0 … D - 1 by default.

    Raises ValueError and TypeError for options that cannot be.
    """

    def __init__(
        self,
        router: Router,
        *,
        output: str = "projected",
        dtype: str = "float32",
        k: int = 5,
        temperature: float | None = None,
        num_threads: int | None = None,
        on_bad: str = "raise",
        documents: npt.ArrayLike | None = None,
        document_ids: npt.ArrayLike | None = None,
    ) -> None:
        self.router = router
        self.output = _validate.one_of(output, "output", OUTPUTS)
        self.on_bad = _validate.one_of(on_bad, "on_bad", ON_BAD)
        self.temperature = (
            router.temperature if temperature is None else _validate.temperature(temperature)
        )
        self._threads = None if num_threads is None else _validate.num_threads(num_threads)
        self._dtype = np.dtype(_validate.one_of(dtype, "dtype", DTYPES))
        if output == "top-k":
            self._k = _validate.top_k(k, router.n_heads, "heads")
        elif output == "answers":
            given = _validate.real_array(
                router.answers if documents is None else documents, "documents"
            )
            self._documents = _validate.documents(
                unit(np.asarray(given, np.float64)), router.answer_dim
            )
            n = len(self._documents)
            ids = np.arange(n) if document_ids is None else np.asarray(document_ids)
            if ids.shape != (n,):
                raise ValueError(f"{n} documents but ids of shape {ids.shape}")
            if ids.dtype.kind not in "iu":
                raise TypeError(f"document_ids must be integers, got dtype {ids.dtype}")
            self._ids = ids.astype(np.int64)
            self._k = _validate.top_k(k, n, "documents")

    @property
    def fields(self) -> tuple[Field, ...]:
        """The columns of the results."""
        if self.output == "projected":
            return (Field("projected", self._dtype, self.router.answer_dim),)
        if self.output == "weights":
            return (Field("weights", self._dtype, self.router.n_heads),)
        if self.output == "top-k":
            return (
                Field("top_heads", np.dtype(np.int32), self._k),
                Field("top_weights", self._dtype, self._k),
            )
        return (
            Field("answers", np.dtype(np.int64), self._k),
            Field("answer_scores", np.dtype(np.float32), self._k),
        )

    @property
    def row_bytes(self) -> int:
        """Of the results of one query."""
        return sum(field.dtype.itemsize * field.width for field in self.fields)

    def identity(self) -> dict[str, str | int | float]:
        """What the bits of the results depend on, the queries apart."""
        router = self.router
        facts: dict[str, str | int | float] = {
            "headroute version": __version__,
            "router": hashlib.sha256(router.to_bytes()).hexdigest(),
            "backend": router.backend,
            "instruction set": router.backend_info.get("isa", ""),
            "precision": router.plan(self.temperature).precision,
            "tolerance": router.tolerance,
            "temperature": self.temperature,
            "output": self.output,
            "dtype": str(self._dtype),
        }
        if self.output in ("top-k", "answers"):
            facts["k"] = self._k
        if self.output == "answers":
            content = self._documents.tobytes() + self._ids.tobytes()
            facts["documents"] = hashlib.sha256(content).hexdigest()
        return facts

    def empty(self, n: int) -> Columns:
        """Memory for the results of n queries, one array (n, width) a field."""
        return tuple(aligned_empty((n, field.width), field.dtype) for field in self.fields)

    def run(self, queries: npt.NDArray[Any], out: Columns) -> None:
        """Write the results of queries (n, d) to what `empty(n)` returned.

        Raises what `Router.project` raises.
        """
        router, threads, tau = self.router, self._threads, self.temperature
        if self.output == "projected":
            router.project(queries, temperature=tau, out=out[0], num_threads=threads)
        elif self.output == "weights" and out[0].dtype == np.float32:
            router.route(queries, temperature=tau, out=out[0], num_threads=threads)
        elif self.output == "weights":
            out[0][...] = router.route(queries, temperature=tau, num_threads=threads)
        elif self.output == "top-k":
            top = router.top_heads(queries, self._k, temperature=tau, num_threads=threads)
            out[0][...], out[1][...] = top.indices, top.weights
        else:
            ranked = router.score_answers(
                queries, self._documents, self._k, temperature=tau, num_threads=threads
            )
            out[0][...], out[1][...] = self._ids[ranked.indices], ranked.scores


class Queries(NamedTuple):
    """Some queries, as a file or a table has them."""

    rows: npt.NDArray[Any]  # (n, d) real numbers; what a bad row holds does not matter
    faults: dict[int, str]  # what is wrong with a row, by its place: "is null"


class Results(NamedTuple):
    columns: Columns
    bad: npt.NDArray[np.intp]  # places of the rows that have no result


def solve(task: Task, queries: Queries, out: Columns | None = None) -> Results:
    """Run a task; bad rows are a BadRowError, or have no result, as the task has it.

    Results are written to `out`, if given, what `task.empty` returned for so many rows.

    Raises what `Router.project` raises for all rows alike, such as a wrong dimension.
    """
    rows, faults = queries
    columns = task.empty(len(rows)) if out is None else out
    if not faults:
        try:
            task.run(rows, columns)
            return Results(columns, np.empty(0, np.intp))
        except ValueError:
            if np.isfinite(rows).all():
                raise
    faults = faults | {
        int(place): "has a NaN or infinity in it"
        for place in np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if int(place) not in faults
    }
    bad = np.array(sorted(faults), np.intp)
    if task.on_bad == "raise":
        raise BadRowError(int(bad[0]), faults[int(bad[0])])
    rows = rows.copy()
    rows[bad] = 0
    task.run(rows, columns)
    return Results(columns, bad)


class BadRowError(ValueError):
    """A query that has no result: its place, and what is wrong with it."""

    def __init__(self, place: int, fault: str, where: str = "") -> None:
        super().__init__(place, fault, where)
        self.place = place
        self.fault = fault
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}query {self.place} {self.fault}"

    def located(self, where: str, first: int) -> "BadRowError":
        """The same, with the place counted from the beginning of a file or table."""
        return BadRowError(self.place + first, self.fault, f"{where}: ")
