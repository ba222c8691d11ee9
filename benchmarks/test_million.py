"""A million heads, few queries: what the router costs to make and to hold, and what a query costs.

d = e = 384, float32, all threads. τ = 0.05, so that the head that a query lies around has about
half of its weight; at 0.1 it would have a thousandth, and a wrong result would be small enough to
pass. The float32 ceiling runs in the same race.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arena import HoldRace, Result, contender
from ceilings import ceiling, ceiling_contenders
from machine import memory_gib
from problem import Problem, Runner

from headroute import Router

HEADS = 1_000_000
QUERIES = 112  # 8 tiles of the AVX-512 kernels
TEMPERATURE = 0.05
NEEDED_GIB = 14  # heads as they come, as the router holds them and as they are packed: 10
RACE_SECONDS = 20.0

MADE: dict[str, Any] = {}  # what making the router cost


def million(n_heads: int) -> Runner:
    """headroute, once its result is right; its own copy of the heads is the only one that stays."""
    problem = Problem.random(n_heads, QUERIES, temperature=TEMPERATURE)
    wall, cpu = time.perf_counter(), os.times()
    router = Router(problem.centroids, problem.answers, temperature=TEMPERATURE)
    MADE.update(
        problem.facts,
        seconds_made=time.perf_counter() - wall,
        system_seconds_made=os.times().system - cpu.system,
        head_bytes=router.centroids.nbytes + router.answers.nbytes,
        packed_bytes=router.backend_info.get("packed_bytes"),
    )
    queries, out = problem.queries, np.empty((QUERIES, router.answer_dim), np.float32)
    return problem.checked(lambda: router.project(queries, out=out))


@pytest.fixture(scope="module")
def result(hold_race: HoldRace, quick: bool) -> Result:
    available = memory_gib("MemAvailable")
    if not quick and available is not None and available < NEEDED_GIB:
        pytest.skip(f"{available} GiB of memory are free, {NEEDED_GIB} are needed")
    builders: dict[str, Callable[[], Any]] = {
        "headroute": lambda: million(1000 if quick else HEADS),
        "ceiling-float32": lambda: ceiling("float32").run,
    }
    return hold_race(builders, RACE_SECONDS)


@pytest.mark.parametrize("contender", [contender("headroute")])
def test_million(result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = "a million heads"
    result.replay(benchmark, contender, suite="million", **MADE)


@pytest.mark.parametrize("contender", ceiling_contenders("float32"))
def test_ceiling(result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = "a million heads"
    result.replay(benchmark, contender, **ceiling("float32").facts(HEADS))
