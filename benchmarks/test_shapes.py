"""headroute alone, float32 and int16, at the dimensions of other encoders.

τ = 0.1, all threads. All shapes run in one race for each K, so that their GFLOP/s can be compared.
"""

from collections.abc import Callable
from typing import Any

import pytest
from arena import HoldRace, Result, contender
from peers import router_runner
from problem import INT16_TOLERANCE, Problem, Runner

HEADS = (256, 1024)
SHAPES = ((384, 384), (768, 768), (1024, 1024), (384, 1024))  # (d, e)
PRECISIONS = ("float32", "int16")
RACE_SECONDS = 20.0

_OPERATIONS = 12.5e9  # 30 to 60 ms on the machine that this was tuned on
_ROWS = 2016  # two threads get as much work then, and the shapes alone make a difference

Shape = tuple[int, int]


def n_queries(n_heads: int, shape: Shape) -> int:
    return _ROWS * max(1, round(_OPERATIONS / (2 * n_heads * sum(shape) * _ROWS)))


def _name(precision: str, shape: Shape) -> str:
    return "{}-{}x{}".format(precision, *shape)


CONTENDERS = {
    _name(precision, shape): (precision, shape) for shape in SHAPES for precision in PRECISIONS
}


@pytest.fixture(scope="module", params=HEADS, ids="K{}".format)
def problems(request: pytest.FixtureRequest, quick: bool) -> dict[Shape, Problem]:
    k = request.param
    return {
        shape: Problem.random(k, 64 if quick else n_queries(k, shape), *shape) for shape in SHAPES
    }


@pytest.fixture(scope="module")
def result(problems: dict[Shape, Problem], hold_race: HoldRace) -> Result:
    def build(precision: str, problem: Problem) -> Runner:
        runner = router_runner(problem, precision=precision)
        return problem.checked(runner, INT16_TOLERANCE if precision == "int16" else None)

    builders: dict[str, Callable[[], Runner]] = {
        name: lambda precision=precision, shape=shape: build(precision, problems[shape])
        for name, (precision, shape) in CONTENDERS.items()
    }
    return hold_race(builders, RACE_SECONDS)


@pytest.mark.parametrize("contender", [contender(name) for name in CONTENDERS])
def test_shape(
    problems: dict[Shape, Problem], result: Result, contender: str, benchmark: Any
) -> None:
    precision, shape = CONTENDERS[contender]
    problem = problems[shape]
    benchmark.group = f"shapes, K={problem.n_heads}"
    result.replay(benchmark, contender, suite="shapes", precision=precision, **problem.facts)
