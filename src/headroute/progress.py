"""Progress on stderr: bars where somebody watches; files and pipes get no carriage returns, and of
long work a line a minute.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS_A_LINE = 60.0


def progress_bar(total: int | None, what: str, unit: str, *, shown: bool = True) -> Any:
    """A tqdm bar over `total` things called `unit`, None when nobody knows how many; a context
    manager with .update(n).
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=what,
        unit=f" {unit}",
        unit_scale=total is not None and total >= 10_000,
        file=sys.stderr,
        disable=None if shown else True,  # None: no bar when stderr is not a terminal
        leave=False,  # the summary line that follows says the same
        dynamic_ncols=True,
    )


@contextmanager
def rows_progress(total: int, done: int, row_bytes: float) -> Iterator[Callable[[int], None]]:
    """Give a function that is told of rows as they are done; `done` of them were before.

    Shows rows, rows/s, GB/s (of `row_bytes` a row) and the time left.
    """
    if sys.stderr.isatty():
        with progress_bar(total, "Projecting", "query") as bar:
            bar.initial = bar.n = done
            started = time.monotonic()

            def draw(rows: int) -> None:
                seconds = max(time.monotonic() - started, 1e-9)
                rate = (bar.n + rows - done) * row_bytes / seconds
                bar.set_postfix_str(f"{rate / 1e9:.2f} GB/s", refresh=False)
                bar.update(rows)

            yield draw
        return
    report = MinuteLines(total, done, row_bytes)
    yield report.add


class MinuteLines:
    """A line on stderr every minute."""

    def __init__(
        self, total: int, done: int, row_bytes: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._before, self._done = total, done, done
        self._row_bytes = row_bytes
        self._now = now
        self._started = self._last = now()

    def add(self, rows: int) -> None:
        self._done += rows
        now = self._now()
        if now - self._last < _SECONDS_A_LINE:
            return
        self._last = now
        rate = (self._done - self._before) / (now - self._started)
        left = (self._total - self._done) / rate
        print(
            f"headroute: {self._done:,} of {self._total:,} queries "
            f"({self._done / self._total:.0%}), {rate:,.0f} queries/s, "
            f"{rate * self._row_bytes / 1e9:.2f} GB/s, {duration(left)} left",
            file=sys.stderr,
            flush=True,
        )


def duration(seconds: float) -> str:
    """Such as "45 s", "12 min", "3 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
