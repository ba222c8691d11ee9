"""Each instruction set of the machine, one thread and all, beside NumPy with all its threads.

d = e = 384, τ = 0.1, 50,000 queries.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
from arena import HoldRace, Result, contender
from peers import numpy_peer, router_runner
from problem import Problem, Runner

from headroute import build_info, get_num_threads

HEADS = (64, 256, 1024)
RACE_SECONDS = 15.0


def router(isa: str, num_threads: int) -> Callable[[Problem], Runner]:
    def build(problem: Problem) -> Runner:
        before = os.environ.get("HEADROUTE_ISA")
        os.environ["HEADROUTE_ISA"] = isa  # read when the router is made
        try:
            return router_runner(problem, backend="native", num_threads=num_threads)
        finally:
            if before is None:
                del os.environ["HEADROUTE_ISA"]
            else:
                os.environ["HEADROUTE_ISA"] = before

    return build


_NATIVE = build_info()["native"]
CONTENDERS: dict[str, Callable[[Problem], Runner]] = {
    f"{isa}-{threads}": router(isa, threads)
    for isa in (_NATIVE["isas_available"] if isinstance(_NATIVE, dict) else ())
    if isa != "amx"  # float32 is avx512vnni's own
    for threads in sorted({1, get_num_threads()})
} | {"numpy": lambda problem: numpy_peer(problem, problem.n_queries)}


@pytest.fixture(scope="module", params=HEADS, ids="K{}".format)
def problem(request: pytest.FixtureRequest, quick: bool) -> Problem:
    return Problem.random(request.param, 64 if quick else 50_000)


@pytest.fixture(scope="module")
def result(problem: Problem, hold_race: HoldRace) -> Result:
    builders: dict[str, Callable[[], Runner]] = {
        name: lambda build=build: problem.checked(build(problem))
        for name, build in CONTENDERS.items()
    }
    return hold_race(builders, RACE_SECONDS)


@pytest.mark.parametrize("contender", [contender(name) for name in CONTENDERS])
def test_instruction_set(problem: Problem, result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = f"instruction sets and threads, K={problem.n_heads}"
    result.replay(benchmark, contender, suite="isas", **problem.facts)
