"""One query, called from Python: what a search box feels of routing.

d = e = 384, τ = 0.1. NumPy comes twice: as people write it, and with everything prepared and the
softmax without its maximum. A lap is many calls, so a call's share of the clock is small.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from arena import HoldRace, Result, contender
from peers import PEERS, router_runner
from problem import INT16_TOLERANCE, Float32, Problem, Runner

from headroute import Router

HEADS = (16, 64, 256, 1024, 16384)
RACE_SECONDS = 6.0


def headroute(
    problem: Problem, precision: str | None = None, num_threads: int | None = None
) -> Runner:
    router = Router(
        problem.centroids, problem.answers, temperature=problem.temperature, precision=precision
    )
    query = problem.queries[0]
    if num_threads is None:
        return lambda: router.project(query)[np.newaxis]
    return lambda: router.project(query, num_threads=num_threads)[np.newaxis]


def numpy_plain(problem: Problem) -> Runner:
    """Unit centroids prepared; the softmax with its maximum."""
    centroids = np.ascontiguousarray(problem.keys().T) * np.float32(problem.temperature)
    temperature = np.float32(problem.temperature)
    answers, query = problem.answers, problem.queries[0]

    def run() -> Float32:
        logits = centroids @ (query / np.linalg.norm(query)) / temperature
        weights = np.exp(logits - logits.max())
        return (weights / weights.sum() @ answers)[np.newaxis]

    return run


def numpy_best(problem: Problem) -> Runner:
    """`dot` costs less than `@`; the norm and the sum go in late, on the shorter side."""
    keys, answers, query = (
        np.ascontiguousarray(problem.keys().T),
        problem.answers,
        problem.queries[0],
    )
    exp, add, sqrt = np.exp, np.add.reduce, np.sqrt

    def run() -> Float32:
        weights = keys.dot(query)
        weights /= sqrt(query.dot(query))
        exp(weights, weights)
        projected = weights.dot(answers)
        projected /= add(weights)
        return projected[np.newaxis]

    return run


CONTENDERS: dict[str, tuple[Callable[[Problem], Runner], tuple[str, ...]]] = {
    "headroute": (headroute, ()),
    "int16": (partial(headroute, precision="int16"), ()),
    "1-thread": (partial(headroute, num_threads=1), ()),
    "numba": (lambda p: router_runner(p, backend="numba"), ("numba",)),
    "numpy": (numpy_plain, ()),
    "numpy-best": (numpy_best, ()),
    "torch-eager": (lambda p: PEERS["torch-eager"][0](p, 1), ("torch",)),
    "onnxruntime": (lambda p: PEERS["onnxruntime"][0](p, 1), ("onnx", "onnxruntime")),
}


@pytest.fixture(scope="module", params=HEADS, ids="K{}".format)
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem.random(request.param, 1)


@pytest.fixture(scope="module")
def result(problem: Problem, hold_race: HoldRace) -> Result:
    builders: dict[str, Callable[[], Runner]] = {
        name: lambda build=build, name=name: problem.checked(
            build(problem), INT16_TOLERANCE if name == "int16" else None
        )
        for name, (build, _) in CONTENDERS.items()
    }
    return hold_race(builders, RACE_SECONDS)


@pytest.mark.parametrize(
    "contender", [contender(name, *packages) for name, (_, packages) in CONTENDERS.items()]
)
def test_single_query(problem: Problem, result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = f"one query, K={problem.n_heads}"
    result.replay(benchmark, contender, suite="single", **problem.facts)
