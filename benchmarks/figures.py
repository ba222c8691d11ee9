"""A run's JSON, read for the report: the figures of every race.

Times are medians; a ratio divides two medians of one race, so it outlives a slow hour of the
machine. Not responsible for: what is compared with what (tables.py, plots.py).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

PEERS = ("numpy", "torch-eager", "torch-sdpa", "torch-compile", "onnxruntime")
BF16_PEERS = ("torch-eager-bf16", "torch-sdpa-bf16")


@dataclass(frozen=True)
class Figure:
    """One contender in one race."""

    seconds: float  # median of a call
    queries: int
    flop: int  # of a call; of a copy, bytes
    facts: dict[str, Any]  # what else the benchmark said of it

    @property
    def ns_per_query(self) -> float:
        return self.seconds / self.queries * 1e9

    @property
    def gflops(self) -> float:
        return self.flop / self.seconds / 1e9

    def intensity(self, head_bytes: int) -> float:
        """Operations for each byte that a call cannot do without: queries in, results out, both
        float32, and the heads, of so many bytes a number, once."""
        width = self.facts["query_dim"] + self.facts["answer_dim"]
        return self.flop / (width * (4 * self.queries + head_bytes * self.facts["heads"]))


Race = dict[str, Figure]


class Run:
    """The figures of a run, or of several: suite → heads → contender. A race of a later run takes
    the place of an earlier one's, so that ratios are of one run always.
    """

    def __init__(self, *documents: dict[str, Any]) -> None:
        self.machine: dict[str, Any] = documents[0]["machine_info"]["headroute"]
        self.times = [document["datetime"][:16].replace("T", " ") for document in documents]
        self.foreign_load = 0.0
        self._suites: dict[str, dict[int, Race]] = {}
        for document in documents:
            suites: dict[str, dict[int, Race]] = {}
            for entry in document["benchmarks"]:
                facts = entry["extra_info"]
                race = suites.setdefault(facts["suite"], {}).setdefault(facts["heads"], {})
                race[facts["contender"]] = Figure(
                    entry["stats"]["median"], facts["queries"], facts["flop"], facts
                )
                self.foreign_load = max(self.foreign_load, facts["foreign_load"] or 0.0)
            for suite, races in suites.items():
                self._suites.setdefault(suite, {}).update(races)

    def races(self, suite: str, *needed: str) -> Iterator[tuple[int, Race]]:
        """A suite's races by number of heads, those in which everyone `needed` took part."""
        for heads, race in sorted(self._suites.get(suite, {}).items()):
            if race.keys() >= set(needed):
                yield heads, race

    def against_peers(
        self, suite: str, names: Iterable[str], *needed: str
    ) -> Iterator[tuple[int, Race, str]]:
        """(heads, race, the best of the peers `names`) for those races that had any of them."""
        for heads, race in self.races(suite, *needed):
            peers = [name for name in names if name in race]
            if peers:
                yield heads, race, min(peers, key=lambda name: race[name].seconds)

    def ceiling(self, name: str, heads: int) -> float | None:
        """A ceiling in the race of so many heads: GFLOP/s, GB/s of a copy."""
        race = self._suites.get("ceilings", {}).get(heads, {})
        figure = race.get(f"ceiling-{name}")
        return None if figure is None else figure.gflops

    def usual_ceiling(self, name: str) -> float | None:
        """The median of a ceiling over all races."""
        found = [self.ceiling(name, heads) for heads, _ in self.races("ceilings")]
        known = [ceiling for ceiling in found if ceiling is not None]
        return median(known) if known else None
