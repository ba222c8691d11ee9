"""What headroute does beside plain float32 projection, each against how it would be done without.

d = e = 384, τ = 0.1, all threads: float16 queries and results against float32 ones, also in int16;
statistics against the projection alone; the 10 heaviest heads against all weights and NumPy's
partition.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arena import HoldRace, Result, contender
from peers import router_runner
from problem import INT16_TOLERANCE, Float32, Problem, Runner

from headroute import Router, aligned_empty

HEADS = (16, 64, 1024, 16384)
TOP = 10
RACE_SECONDS = 12.0


def _router(problem: Problem) -> Router:
    return Router(problem.centroids, problem.answers, temperature=problem.temperature)


def float16(problem: Problem) -> Runner:
    """Checked by itself: the float32 result of the same queries, rounded once."""
    router, queries = _router(problem), problem.queries.astype(np.float16)
    out = aligned_empty((problem.n_queries, router.answer_dim), np.float16)
    expected = router.project(queries.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(router.project(queries, out=out), expected)
    return lambda: router.project(queries, out=out)


def float16_int16(problem: Problem) -> Runner:
    """Checked by itself: off by no more than int16 and one rounding to float16 explain."""
    router = Router(
        problem.centroids, problem.answers, temperature=problem.temperature, precision="int16"
    )
    queries = problem.queries.astype(np.float16)
    out = aligned_empty((problem.n_queries, router.answer_dim), np.float16)
    expected = _router(problem).project(queries.astype(np.float32))
    np.testing.assert_allclose(
        router.project(queries, out=out), expected, rtol=2**-11, atol=INT16_TOLERANCE
    )
    return lambda: router.project(queries, out=out)


def stats(problem: Problem) -> Runner:
    router = _router(problem)
    out = aligned_empty((problem.n_queries, router.answer_dim))
    return problem.checked(lambda: router.project(problem.queries, out=out, stats=True)[0])


def top_heads(problem: Problem) -> Callable[[], object]:
    """Checked by itself, as `partition` is: by NumPy's own weights of the heads found."""
    router = _router(problem)
    _check_top(problem, router.top_heads(problem.queries, TOP).weights)
    return lambda: router.top_heads(problem.queries, TOP)


def partition(problem: Problem) -> Callable[[], object]:
    router = _router(problem)
    weights = np.empty((problem.n_queries, problem.n_heads), np.float32)

    def run() -> tuple[np.ndarray, Float32]:
        router.route(problem.queries, out=weights)
        found = np.argpartition(weights, -TOP, axis=1)[:, -TOP:]
        best = np.take_along_axis(weights, found, axis=1)
        order = np.argsort(-best, axis=1)
        return tuple(np.take_along_axis(array, order, axis=1) for array in (found, best))

    _check_top(problem, run()[1])
    return run


def _check_top(problem: Problem, weights: Float32) -> None:
    rows = slice(0, 20)
    queries = problem.queries[rows].astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = np.exp(queries @ problem.keys().astype(np.float64))
    exact /= exact.sum(axis=1, keepdims=True)
    expected = -np.sort(-exact, axis=1)[:, :TOP]
    np.testing.assert_allclose(weights[rows], expected, rtol=1e-4, atol=1e-7)


CONTENDERS: dict[str, Callable[[Problem], Callable[[], object]]] = {
    "headroute": lambda problem: problem.checked(router_runner(problem)),
    "float16": float16,
    "float16-int16": float16_int16,
    "stats": stats,
    "top_heads": top_heads,
    "partition": partition,
}


@pytest.fixture(scope="module", params=HEADS, ids="K{}".format)
def problem(request: pytest.FixtureRequest, quick: bool) -> Problem:
    n_heads: int = request.param
    return Problem.random(n_heads, 64 if quick else min(50_000, 16_000_000 // n_heads))


@pytest.fixture(scope="module")
def result(problem: Problem, hold_race: HoldRace) -> Result:
    builders: dict[str, Callable[[], Any]] = {
        name: lambda build=build: build(problem) for name, build in CONTENDERS.items()
    }
    return hold_race(builders, RACE_SECONDS)


@pytest.mark.parametrize("contender", [contender(name) for name in CONTENDERS])
def test_call(problem: Problem, result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = f"calls, K={problem.n_heads}"
    result.replay(benchmark, contender, suite="calls", **problem.facts)
