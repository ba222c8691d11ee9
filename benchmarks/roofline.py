"""The roofline: how much of what the machine can do is done.

A call cannot be faster than its multiply-adds, nor than moving the bytes that it cannot do without:
queries in, results out, heads once. So its ceiling is min(multiply-adds a second, operations a byte
times bytes a second), both measured in the call's own race (ceilings.py). Operations are those of
the two matrix products, 2 for each product of two numbers; norms and softmax are not counted.
"""

from dataclasses import dataclass

from figures import Run
from tables import table

HEAD_BYTES = {"float32": 4, "int16": 2}  # of one number, packed
CONTENDERS = {"float32": "headroute", "int16": "int16"}  # arithmetic → headroute's name in a race


@dataclass(frozen=True)
class Point:
    """headroute in one race."""

    heads: int
    arithmetic: str
    intensity: float  # operations a byte
    gops: float
    ceiling: float  # GOP/s
    by_memory: bool  # the ceiling is the bandwidth's


def points(run: Run) -> list[Point]:
    """By heads, then arithmetic."""
    found = []
    for heads, race in run.races("projection"):
        for arithmetic, name in CONTENDERS.items():
            bandwidth = run.ceiling("copy", heads)
            multiply_adds = run.ceiling(arithmetic, heads)
            if name in race and bandwidth is not None and multiply_adds is not None:
                figure = race[name]
                intensity = figure.intensity(HEAD_BYTES[arithmetic])
                by_memory = bandwidth * intensity < multiply_adds
                ceiling = min(bandwidth * intensity, multiply_adds)
                found.append(Point(heads, arithmetic, intensity, figure.gflops, ceiling, by_memory))
    return found


def roofline_table(run: Run) -> str:
    rows = [
        [
            f"{p.heads:,}",
            p.arithmetic,
            f"{p.intensity:,.0f}",
            f"{p.gops:.0f}",
            f"{p.ceiling:.0f}{' (memory)' if p.by_memory else ''}",
            f"**{p.gops / p.ceiling:.2f}**",
        ]
        for p in points(run)
    ]
    header = ["K", "arithmetic", "operations a byte", "measured, GOP/s", "ceiling, GOP/s", "share"]
    return table(header, rows)
