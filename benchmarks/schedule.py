"""A job on many nodes, simulated: equal parts in one queue, nodes of unequal speed that fail.

A node whose process has started takes the next part of the queue, again and again. It is slower
than others by a factor that it keeps. When it fails, its part goes back to the front of the queue;
after the repair it starts anew. A part that is done stays done: its result is in a file of its own.
With `speculate`, a node that finds the queue empty starts a second copy of the part that has run
for longest; whoever is done first counts, and the other is stopped.

Not simulated: a network or a store that all nodes share and fill, a coordinator that fails,
failures of many nodes at once. Pure functions of a scenario and a seed; seconds throughout.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STRAGGLER_LEAST = 2.0  # a straggler's slowdown is Pareto from here
STRAGGLER_SHAPE = 1.5  # of which a third is above 4, a tenth above 9
STRAGGLER_MOST = 20.0  # slower than that is a node that a health check takes out

_DONE, _FAILED, _UP = range(3)


@dataclass(frozen=True)
class Scenario:
    """A job and the nodes it runs on."""

    parts: int
    part_seconds: float  # of one part on a node of slowdown 1
    nodes: int = 100
    overhead_seconds: float = 0.0  # beside, for every attempt: to list, open, wait, commit
    start_seconds: float = 0.0  # of a process, at the beginning and after a repair
    spread: float = 0.0  # σ of the lognormal slowdowns, median 1, of all nodes
    straggler_share: float = 0.0  # of the nodes are slower by a Pareto factor beside
    mtbf_seconds: float = math.inf  # mean time that a node is up, exponential
    repair_seconds: float = 600.0  # from a failure until the node can start a process
    speculate: bool = False

    @property
    def ideal(self) -> float:
        """The makespan of equal nodes that never fail, on parts as small as you like, for free."""
        return self.start_seconds + self.parts * self.part_seconds / self.nodes


class Outcome(NamedTuple):
    makespan: float
    bound: float  # no schedule on nodes of these slowdowns is faster, failures or not
    accepted: npt.NDArray[np.int64]  # (parts,) how often each was: once
    attempts: int
    failures: int
    wasted_seconds: float  # of nodes, on attempts that were lost or came second


def simulate(scenario: Scenario, seed: int) -> Outcome:
    """Run a scenario once. The same seed gives the same slowdowns whatever else is changed."""
    return _Simulation(scenario, np.random.default_rng(seed)).run()


def slowdowns(scenario: Scenario, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(nodes,) by what factor each is slower than the nominal one."""
    usual = np.exp(scenario.spread * rng.standard_normal(scenario.nodes))
    pareto = STRAGGLER_LEAST * (1 + rng.pareto(STRAGGLER_SHAPE, scenario.nodes))
    slow = rng.permutation(scenario.nodes) < round(scenario.straggler_share * scenario.nodes)
    return usual * np.where(slow, np.minimum(pareto, STRAGGLER_MOST), 1.0)


class _Simulation:
    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        self.scenario, self.rng = scenario, rng
        slow = slowdowns(scenario, rng)
        one_part = scenario.part_seconds + scenario.overhead_seconds
        self.seconds: list[float] = (one_part * slow).tolist()  # of an attempt, by node
        self.bound = scenario.start_seconds + max(
            scenario.parts * one_part / (1 / slow).sum(), min(self.seconds)
        )
        self.waiting = deque(range(scenario.parts))
        self.part: list[int | None] = [None] * scenario.nodes  # that a node works on
        self.begun = [0.0] * scenario.nodes
        self.attempt = [0] * scenario.nodes  # its number: the end of an older one is void
        self.idle: set[int] = set()
        self.running: dict[int, list[int]] = {}  # part → nodes
        self.accepted = np.zeros(scenario.parts, np.int64)
        self.attempts, self.failures, self.wasted = 0, 0, 0.0
        self.events: list[tuple[float, int, int, int, int]] = []  # time, tie, kind, node, attempt
        self.ties = 0

    def run(self) -> Outcome:
        for node in range(self.scenario.nodes):
            self._at(self.scenario.start_seconds, _UP, node)
        left = self.scenario.parts
        now = 0.0
        while left:
            now, _, kind, node, attempt = heapq.heappop(self.events)
            if kind == _DONE and attempt == self.attempt[node]:
                left -= 1
                self._done(now, node)
            elif kind == _FAILED:
                self._failed(now, node)
            elif kind == _UP:
                if self.scenario.mtbf_seconds < math.inf:
                    self._at(now + self.rng.exponential(self.scenario.mtbf_seconds), _FAILED, node)
                self._give_work(now, node)
        return Outcome(now, self.bound, self.accepted, self.attempts, self.failures, self.wasted)

    def _at(self, time: float, kind: int, node: int) -> None:
        self.ties += 1
        heapq.heappush(self.events, (time, self.ties, kind, node, self.attempt[node]))

    def _give_work(self, now: float, node: int) -> None:
        part = self.waiting.popleft() if self.waiting else self._to_copy()
        if part is None:
            self.idle.add(node)
            return
        self.idle.discard(node)
        self.part[node], self.begun[node] = part, now
        self.attempts += 1
        self.running.setdefault(part, []).append(node)
        self._at(now + self.seconds[node], _DONE, node)

    def _to_copy(self) -> int | None:
        """The part that has run for longest of those that run once."""
        if not self.scenario.speculate:
            return None
        once = [nodes[0] for nodes in self.running.values() if len(nodes) == 1]
        return self.part[min(once, key=self.begun.__getitem__)] if once else None

    def _done(self, now: float, node: int) -> None:
        part = self.part[node]
        assert part is not None
        self.accepted[part] += 1
        nodes = self.running.pop(part)
        for other in nodes:
            self._stop(other)
            if other != node:
                self.wasted += now - self.begun[other]
        for other in nodes:
            self._give_work(now, other)

    def _failed(self, now: float, node: int) -> None:
        self.failures += 1
        self.idle.discard(node)
        part = self.part[node]
        self._stop(node)
        self._at(now + self.scenario.repair_seconds + self.scenario.start_seconds, _UP, node)
        if part is None:
            return
        self.wasted += now - self.begun[node]
        self.running[part].remove(node)
        if not self.running[part]:
            del self.running[part]
            self.waiting.appendleft(part)
        if self.idle:  # also when the part has a copy, which may now be copied again
            self._give_work(now, min(self.idle))

    def _stop(self, node: int) -> None:
        self.part[node] = None
        self.attempt[node] += 1
