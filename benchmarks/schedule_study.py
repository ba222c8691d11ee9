"""How parts should be cut: schedule.py's simulation over part sizes, stragglers and failures.

A job of given length runs in parts of several sizes, 50 seeds each; what is shown is the makespan
over the ideal: equal nodes that never fail, infinitely small parts that cost nothing. Not
responsible for: what a part costs (scale.py).
"""

import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from schedule import Scenario, simulate

SEEDS = range(50)
ONE_A_NODE = math.inf  # seconds of a part
GOOD_ENOUGH = 0.03
HOUR = 3600.0
SPREAD = 0.1  # σ of the lognormal speeds of nodes that are not stragglers
REPAIR = 600.0  # seconds
CASES: Mapping[str, tuple[float, float]] = {  # stragglers, hours between a node's failures
    "no stragglers, no failures": (0.0, math.inf),
    "5 % stragglers": (0.05, math.inf),
    "20 % stragglers": (0.2, math.inf),
    "a failure a day": (0.0, 24.0),
    "a failure in 2 hours": (0.0, 2.0),
    "5 % stragglers, a failure a day": (0.05, 24.0),
    "20 % stragglers, a failure in 2 hours": (0.2, 2.0),
}


@dataclass(frozen=True)
class Job:
    """A job, its nodes, and the sizes of parts to try."""

    queries: float
    ns_per_query: float  # of a node
    nodes: int
    overhead_seconds: float  # of a part
    start_seconds: float  # of a process
    sizes: tuple[float, ...]  # seconds of a part on a usual node

    def part_queries(self, size: float) -> float:
        return min(size * 1e9 / self.ns_per_query, self.queries / self.nodes)

    def scenario(self, size: float, case: str, speculate: bool) -> Scenario:
        stragglers, hours = CASES[case]
        parts = math.ceil(self.queries / self.part_queries(size) * (1 - 1e-12))
        return Scenario(
            parts=parts,
            part_seconds=self.queries / parts * self.ns_per_query * 1e-9,
            nodes=self.nodes,
            overhead_seconds=self.overhead_seconds,
            start_seconds=self.start_seconds,
            spread=SPREAD,
            straggler_share=stragglers,
            mtbf_seconds=hours * HOUR,
            repair_seconds=REPAIR,
            speculate=speculate,
        )


class Cell(NamedTuple):
    """Makespan / ideal over SEEDS."""

    low: float  # 5 %
    median: float
    high: float  # 95 %
    wasted: float  # share of the nodes' time on attempts that did not count, median
    bound: float  # median of what no schedule on the same nodes can beat


Study = dict[tuple[str, bool, float], Cell]  # (case, copies, size)


def run(job: Job) -> Study:
    keys = [
        (case, speculate, size)
        for size in job.sizes
        for case in CASES
        for speculate in (False, True)
    ]
    with ProcessPoolExecutor() as pool:
        cells = pool.map(cell, (job.scenario(key[2], key[0], key[1]) for key in keys))
        return dict(zip(keys, cells, strict=True))


def cell(scenario: Scenario) -> Cell:
    outcomes = [simulate(scenario, seed) for seed in SEEDS]
    ratios = [outcome.makespan / scenario.ideal for outcome in outcomes]
    low, median, high = np.quantile(ratios, (0.05, 0.5, 0.95))
    wasted = np.median([o.wasted_seconds / (o.makespan * scenario.nodes) for o in outcomes])
    bound = np.median([o.bound / scenario.ideal for o in outcomes])
    return Cell(float(low), float(median), float(high), float(wasted), float(bound))


def best_size(job: Job, study: Study) -> float:
    """The largest size whose 95 % makespan, with copies, is within GOOD_ENOUGH of the best size's
    in every case; if there is none, the one that loses least."""

    def regret(size: float) -> float:
        return max(
            study[case, True, size].high / min(study[case, True, other].high for other in job.sizes)
            for case in CASES
        )

    good = [size for size in job.sizes if regret(size) <= 1 + GOOD_ENOUGH]
    return max(good) if good else min(job.sizes, key=regret)
