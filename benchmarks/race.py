"""Time contenders in turn, so that ratios of one run can be trusted.

A shared or thermally limited machine drifts by tens of per cent within minutes. Timing one
contender to its end and then the next turns that drift into a ratio. Here every round times each
contender once, in a new random order, and a contender's figure is the median over the rounds: what
drifts, drifts for all.

The worker threads of OpenBLAS, of OpenMP and of onnxruntime go on spinning for some milliseconds
after a call, and would take the CPU from whoever comes next. So each timed lap follows untimed
calls of the same contender, at least one and at least `_SETTLE` seconds of them.
"""

import gc
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Runner = Callable[[], object]

_SETTLE = 0.050  # OpenBLAS's threads spin the longest: 2**26 ticks of the clock, 26 ms at 2.6 GHz
_SHORTEST_LAP = 0.020  # of shorter calls, several make a lap
_MIN_ROUNDS = 7
_MAX_ROUNDS = 31


@dataclass(frozen=True)
class Laps:
    """What a race gave."""

    seconds: dict[str, list[float]]  # a contender's seconds a call, one figure a round
    foreign_load: float | None  # share of the machine that other processes took meanwhile


def race(runners: Mapping[str, Runner], seconds: float) -> Laps:
    """Race for about `seconds`; 0 means one round without settling, for a run that is not timed."""
    order = np.random.default_rng(0)
    calls = {name: _calls_of_a_lap(run) for name, run in runners.items()}
    laps: dict[str, list[float]] = {name: [] for name in runners}
    names = list(runners)
    load = _ForeignLoad()
    start = time.perf_counter()
    for done in range(_MAX_ROUNDS if seconds else 1):
        if done >= _MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name in order.permutation(names):
            if seconds:
                _settle(runners[name])
            laps[name].append(_lap(runners[name], calls[name]))
    return Laps(laps, load.share())


def _lap(run: Runner, calls: int) -> float:
    """Seconds a call, over `calls` calls."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls
    finally:
        if collecting:
            gc.enable()


def _settle(run: Runner) -> None:
    start = time.perf_counter()
    while True:
        run()
        if time.perf_counter() - start >= _SETTLE:
            return


def _calls_of_a_lap(run: Runner) -> int:
    run()
    return math.ceil(_SHORTEST_LAP / max(_lap(run, 1), 1e-7))


class _ForeignLoad:
    """The CPU time that processes other than this one take, as a share of the machine's."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = sum(os.times()[:2])

    def share(self) -> float | None:
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        capacity = (time.perf_counter() - self._start) * (os.cpu_count() or 1)
        foreign = busy - self._busy - (sum(os.times()[:2]) - self._own)
        return min(max(foreign / capacity, 0.0), 1.0)


def _busy_seconds() -> float | None:
    """CPU seconds that all processes have used since boot; None where /proc/stat is missing."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
