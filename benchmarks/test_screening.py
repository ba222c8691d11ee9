"""Leaving out heads that do not matter, on real text: CLINC150's 15,000 training questions as heads
and as answers, its 4,500 test questions as queries, tolerance 1e-3, from τ = 0.01 to 0.1.

Every row of what headroute returns is compared with float64, and with the bound that it gives for
that row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arena import HoldRace, Result, contender
from clinc import DATA, embed_questions
from peers import PEERS
from problem import Float32, Problem, Runner

from headroute import Router

TEMPERATURES = (0.01, 0.02, 0.03, 0.1)
TOLERANCE = 1e-3
RACE_SECONDS = 30.0

pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA.name} beside the project")


@pytest.fixture(scope="session")
def questions(quick: bool) -> tuple[Float32, Float32]:
    """Unit embeddings of the training and the test questions."""
    pytest.importorskip("sentence_transformers")
    return embed_questions(25 if quick else 1)


@pytest.fixture(scope="module", params=TEMPERATURES, ids="tau{}".format)
def problem(request: pytest.FixtureRequest, questions: tuple[Float32, Float32]) -> Problem:
    train, test = questions
    return Problem(train, train, test, request.param)


def tolerant(problem: Problem) -> Runner:
    """headroute with a tolerance, once no row is further off than its bound."""
    router = Router(
        problem.centroids,
        problem.answers,
        temperature=problem.temperature,
        tolerance=TOLERANCE,
    )
    projected, bound = router.project(problem.queries, return_bound=True)
    error = np.linalg.norm(projected - problem.expected(), axis=1)
    error /= np.linalg.norm(problem.answers, axis=1).max()
    assert (error <= bound).all()
    assert bound.max() <= max(TOLERANCE, router.plan().bound) * (1 + 1e-6)
    ACCOUNTS[problem.temperature] = {
        "plan": router.plan().precision,
        "largest_error": float(error.max()),
        "largest_bound": float(bound.max()),
    }
    out = np.empty_like(projected)
    return lambda: router.project(problem.queries, out=out)


def float32(problem: Problem) -> Runner:
    router = Router(problem.centroids, problem.answers, temperature=problem.temperature)
    out = np.empty((problem.n_queries, router.answer_dim), np.float32)
    return lambda: router.project(problem.queries, out=out)


ACCOUNTS: dict[float, dict[str, Any]] = {}
CONTENDERS: dict[str, tuple[Callable[[Problem], Runner], tuple[str, ...]]] = {
    "tolerant": (tolerant, ()),
    "headroute": (float32, ()),
} | {
    name: (lambda p, build=build: build(p, p.n_queries), packages)
    for name, (build, packages) in PEERS.items()
}


@pytest.fixture(scope="module")
def result(problem: Problem, hold_race: HoldRace) -> Result:
    builders: dict[str, Callable[[], Runner]] = {
        name: lambda build=build, name=name: problem.checked(
            build(problem), TOLERANCE if name == "tolerant" else None
        )
        for name, (build, _) in CONTENDERS.items()
    }
    return hold_race(builders, RACE_SECONDS)


@pytest.mark.parametrize(
    "contender", [contender(name, *packages) for name, (_, packages) in CONTENDERS.items()]
)
def test_screening(problem: Problem, result: Result, contender: str, benchmark: Any) -> None:
    benchmark.group = f"CLINC150, tau={problem.temperature}"
    facts = problem.facts | (ACCOUNTS[problem.temperature] if contender == "tolerant" else {})
    result.replay(benchmark, contender, suite=f"screening {problem.temperature}", **facts)
