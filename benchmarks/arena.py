"""What a benchmark's test works with: its contenders, and the laps of their race on a clock of
pytest-benchmark's own kind."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from peers import missing
from race import Laps, Runner


class ReplayClock:
    """A timer that shows the time of recorded laps instead of the wall's."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


CLOCK = ReplayClock()


def contender(name: str, *packages: str, unless: str | None = None) -> Any:
    """A parameter that is skipped when a package is missing, or for the reason `unless`."""
    absent = missing(packages)
    reason = unless or f"{' and '.join(absent)} not installed"
    skipped = unless is not None or bool(absent)
    return pytest.param(name, marks=pytest.mark.skipif(skipped, reason=reason))


class Result:
    """A finished race: laps of those who finished, the exception of those who could not."""

    def __init__(self, laps: Laps, failures: dict[str, Exception]) -> None:
        self._laps = laps
        self._failures = failures

    def replay(self, benchmark: Any, name: str, **facts: Any) -> None:
        """Give the laps of `name` to pytest-benchmark, with `facts` for the report."""
        if name in self._failures:
            raise self._failures[name]
        laps = self._laps.seconds[name]
        seconds = iter(laps)
        benchmark.extra_info.update(
            {"contender": name, "foreign_load": self._laps.foreign_load, **facts}
        )
        benchmark.pedantic(lambda: CLOCK.advance(next(seconds)), rounds=len(laps))


# hold(builders, seconds): a race of about that many seconds. Each builder returns a runner whose
# result it has found right.
HoldRace = Callable[[Mapping[str, Callable[[], Runner]], float], Result]
