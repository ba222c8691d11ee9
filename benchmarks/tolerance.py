"""Draws docs/tolerance.png: how fast a tolerance makes headroute, on CLINC150's 15,000 heads.

    python benchmarks/tolerance.py -o docs/tolerance.png

For each temperature, tolerances from 1e-4 to 0.1; each is timed in turn with float32, and its time
is given beside float32's. A row takes the plan that the router makes for itself.
"""

import argparse
from pathlib import Path

import numpy as np
from clinc import embed_questions
from plots import finish, new_axes
from problem import Runner
from race import race

from headroute import Router

TEMPERATURES = (0.01, 0.02, 0.05, 0.1)
TOLERANCES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
COLOURS = ("#c1121f", "#e07a5f", "#457b9d", "#1d3557")
MARKERS = {"float32": "o", "int16": "s", "screened": "^"}
SECONDS = 25.0


def measure(temperature: float, train: np.ndarray, test: np.ndarray) -> list[tuple[float, str]]:
    """(float32's time over ours, arithmetic) for every tolerance."""
    out = np.empty((len(test), train.shape[1]), np.float32)
    runners: dict[str, Runner] = {}
    plans = {}
    for tolerance in (0.0, *TOLERANCES):
        router = Router(train, train, temperature=temperature, tolerance=tolerance)
        plans[tolerance] = router.plan().precision
        runners[str(tolerance)] = lambda router=router: router.project(test, out=out)
    laps = race(runners, SECONDS).seconds
    medians = {name: float(np.median(seconds)) for name, seconds in laps.items()}
    return [(medians["0.0"] / medians[str(t)], plans[t]) for t in TOLERANCES]


def draw(lines: dict[float, list[tuple[float, str]]], path: Path) -> None:
    """One line a temperature, one mark a tolerance, by the arithmetic that was chosen."""
    figure, axes = new_axes()
    label_at = float("inf")
    for (temperature, points), colour in zip(lines.items(), COLOURS, strict=True):
        axes.plot(TOLERANCES, [speed for speed, _ in points], color=colour, linewidth=1.4)
        for tolerance, (speed, precision) in zip(TOLERANCES, points, strict=True):
            axes.plot(tolerance, speed, MARKERS[precision], color=colour, markersize=5)
        label_at = min(points[-1][0], label_at - 0.35)  # names that do not touch
        axes.text(TOLERANCES[-1] * 1.2, label_at, f"τ = {temperature}", color=colour, va="center")
    for precision, marker in MARKERS.items():
        axes.plot([], [], marker, color="#555555", label=precision)
    axes.legend(frameon=False, loc="upper left")
    axes.set_xscale("log")
    axes.set_xlim(TOLERANCES[0] / 1.3, TOLERANCES[-1] * 3)
    axes.set_ylim(0)
    axes.set_xlabel("tolerance: guaranteed ‖error‖ / longest answer")
    finish(figure, axes, "Speed beside float32, 15,000 heads (higher is better)", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    train, test = embed_questions()
    draw({t: measure(t, train, test) for t in TEMPERATURES}, options.output)


if __name__ == "__main__":
    main()
