"""Progress of long work: a bar for who watches, a line a minute for a file."""

import io
import sys
import time

import pytest

from headroute.progress import MinuteLines, duration, rows_progress


def test_a_line_a_minute(capsys) -> None:
    now = [0.0]
    lines = MinuteLines(10_000, 1_000, row_bytes=2e6, now=lambda: now[0])
    for seconds in (30, 59, 61, 100, 122):
        now[0] = seconds
        lines.add(500)
    out, err = capsys.readouterr()
    assert out == ""
    # 1,500 rows of this run in 61 s, 2,500 in 122 s.
    assert err.splitlines() == [
        "headroute: 2,500 of 10,000 queries (25%), 25 queries/s, 0.05 GB/s, 5 min left",
        "headroute: 3,500 of 10,000 queries (35%), 20 queries/s, 0.04 GB/s, 5 min left",
    ]


def test_short_work_says_nothing(capsys) -> None:
    with rows_progress(10, 0, 8.0) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_a_bar_for_a_terminal(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with rows_progress(40_000, 10_000, 1e6) as advance:
        for _ in range(3):
            time.sleep(0.15)  # bars are drawn ten times a second at most
            advance(10_000)
    shown = terminal.getvalue()
    assert "Projecting" in shown
    assert "GB/s" in shown
    assert "40.0k/40.0k" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (130, "2 min"), (3905, "1 h 05 min")]
)
def test_duration(seconds, text) -> None:
    assert duration(seconds) == text
