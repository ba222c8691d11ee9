"""Fixtures of the benchmarks: hold a race, hand each contender's laps to pytest-benchmark.

pytest-benchmark times one test after the other, and the machine drifts meanwhile. So the first
test of a race runs the race with everyone who takes part (see race.py), and each test then replays
its own laps on a clock of its own: statistics, groups, comparison and JSON are pytest-benchmark's.
A contender deselected with -k does not run; one that raises or is wrong fails its own test alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from arena import CLOCK, HoldRace, Result
from machine import describe_machine
from race import Runner, race

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))
            item.add_marker(pytest.mark.timeout(0))  # one test holds the race for all its group
            # What libraries under comparison warn of while they compile is not ours to fix.
            item.add_marker(pytest.mark.filterwarnings("default"))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["headroute"] = describe_machine()


@pytest.fixture(scope="module")
def hold_race(request: pytest.FixtureRequest, quick: bool) -> HoldRace:
    """A function hold(builders, seconds) that holds a race of about that many seconds.

    Each builder returns a runner whose result it has found right. Those whose tests are not
    selected are left out.
    """

    def hold(builders: Mapping[str, Callable[[], Runner]], seconds: float) -> Result:
        runners: dict[str, Runner] = {}
        failures: dict[str, Exception] = {}
        for name in _selected(request):
            try:
                runners[name] = builders[name]()
            except Exception as error:
                failures[name] = error
        return Result(race(runners, 0.0 if quick else seconds), failures)

    return hold


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """True when nothing is timed, so that few queries will do."""
    return bool(request.config.getoption("benchmark_disable"))


def _selected(request: pytest.FixtureRequest) -> list[str]:
    """Contenders of this module that run at all: selected, and with their packages there."""
    names = [
        item.callspec.params["contender"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and not any(mark.args[0] for mark in item.iter_markers("skipif"))
    ]
    return list(dict.fromkeys(names))
