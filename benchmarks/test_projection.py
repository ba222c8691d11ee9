"""Projection of many queries: headroute, also in int16, beside its peers, from 16 to 16,384 heads.

d = e = 384, τ = 0.1, all threads. The peers come twice: called once on everything, as headroute is,
and fed in blocks that fit the caches. NumPy's own 2048³ product and the machine's ceilings run in
every race, so that their figures are those of the same minutes.

One number of heads: `pytest benchmarks -k K256` (for 16 heads `-k K16-`, which K16384 lacks).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from arena import HoldRace, Result, contender
from ceilings import ARITHMETICS, COPY, ceiling, ceiling_contenders
from peers import BF16_PEERS, PEERS, block_rows, router_runner, sgemm_runner
from problem import INT16_TOLERANCE, Problem, Runner

HEADS = (16, 64, 256, 1024, 4096, 16384)
SGEMM = 2048
CEILINGS = (*ARITHMETICS, COPY)
RACE_SECONDS = 60.0  # a race takes at least 7 rounds, however long they last


def n_queries(n_heads: int) -> int:
    return 50_000 if n_heads < 16384 else 3_125


def _contenders() -> dict[str, tuple[Callable[[Problem], Runner], tuple[str, ...]]]:
    """Name → (builder of its runner, packages that it needs)."""
    found: dict[str, tuple[Callable[[Problem], Runner], tuple[str, ...]]] = {
        "headroute": (router_runner, ()),
        "numba": (partial(router_runner, backend="numba"), ("numba",)),
        "int16": (partial(router_runner, precision="int16"), ()),
    }
    for name, (build, packages) in (PEERS | BF16_PEERS).items():
        found[name] = (lambda p, build=build: build(p, p.n_queries), packages)
        found[f"{name}-blocks"] = (
            lambda p, build=build: build(p, block_rows(p.n_heads)),
            packages,
        )
    return found


CONTENDERS = _contenders()


@pytest.fixture(scope="module", params=HEADS, ids="K{}".format)
def problem(request: pytest.FixtureRequest, quick: bool) -> Problem:
    return Problem.random(request.param, 64 if quick else n_queries(request.param))


@pytest.fixture(scope="module")
def result(problem: Problem, hold_race: HoldRace) -> Result:
    tolerances = {"int16": INT16_TOLERANCE} | {
        f"{name}{way}": problem.bf16_tolerance for name in BF16_PEERS for way in ("", "-blocks")
    }
    builders: dict[str, Callable[[], Runner]] = {
        name: lambda build=build, name=name: problem.checked(build(problem), tolerances.get(name))
        for name, (build, _) in CONTENDERS.items()
    }
    machine: dict[str, Callable[[], Any]] = {
        f"ceiling-{name}": lambda name=name: ceiling(name).run for name in CEILINGS
    }
    machine["sgemm"] = lambda: sgemm_runner(SGEMM)
    return hold_race(builders | machine, RACE_SECONDS)


@pytest.mark.parametrize(
    "contender", [contender(name, *packages) for name, (_, packages) in CONTENDERS.items()]
)
def test_projection(problem: Problem, result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = f"projection, K={problem.n_heads}"
    result.replay(benchmark, contender, suite="projection", **problem.facts)


@pytest.mark.parametrize("contender", ["sgemm"])
def test_sgemm(problem: Problem, result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = f"NumPy's {SGEMM}³ sgemm, in the race of K={problem.n_heads}"
    facts = {"heads": problem.n_heads, "queries": 1, "flop": 2 * SGEMM**3}
    result.replay(benchmark, contender, suite="sgemm", **facts)


@pytest.mark.parametrize("contender", ceiling_contenders(*CEILINGS))
def test_ceiling(problem: Problem, result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = f"ceilings, in the race of K={problem.n_heads}"
    facts = ceiling(contender.removeprefix("ceiling-")).facts(problem.n_heads)
    result.replay(benchmark, contender, **facts)
