"""The pictures of docs/benchmarks.md. Each says whether the run had anything to draw."""

from pathlib import Path
from typing import Any

from figures import BF16_PEERS, PEERS, Run
from roofline import HEAD_BYTES, points

OURS, BACKEND, PEER = "#c1121f", "#e07a5f", "#8d99ae"
INT16, INT8, TEXT = "#1d3557", "#457b9d", "#555555"


def draw_times(run: Run, path: Path) -> bool:
    """ns a query over K, both axes logarithmic, each line named at its end."""
    races = list(run.races("projection"))
    everyone = ("headroute", "int16", "numba", *PEERS, *BF16_PEERS)
    names = [name for name in everyone if any(name in race for _, race in races)]
    if not names:
        return False
    colours = {"headroute": OURS, "int16": INT16, "numba": BACKEND}
    titles = {"int16": "headroute, int16", "numba": "numba backend"}
    figure, axes = new_axes()
    ends = []
    for name in names:
        marks = [(k, race[name].ns_per_query) for k, race in races if name in race]
        x, y = zip(*marks, strict=True)
        ours = name in ("headroute", "int16")
        colour = colours.get(name, PEER)
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=2.6 if ours else 1.2,
            linestyle="--" if name in BF16_PEERS else "-",
            marker="o",
            markersize=5 if ours else 3,
        )
        ends.append((y[0], name, colour))
    # Names at the left ends, where the lines are apart, pushed down until they do not touch.
    ceiling = float("inf")
    for y, name, colour in sorted(ends, reverse=True):
        ceiling = min(y, ceiling / 1.36)
        axes.text(
            13.5,
            ceiling,
            titles.get(name, name),
            color=colour,
            ha="right",
            va="center",
            fontsize=9,
            fontweight="bold" if name in ("headroute", "int16") else "normal",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=ceiling / 1.3)
    heads = [k for k, _ in races]
    axes.set_xticks(heads, [f"{k:,}" for k in heads])
    axes.set_xlim(2.6, heads[-1] * 1.25)
    axes.set_xlabel("heads K")
    finish(
        figure,
        axes,
        f"Nanoseconds a query, {run.machine['threads']} threads, d = e = 384 (lower is better)",
        path,
    )
    return True


def draw_roofline(run: Run, path: Path) -> bool:
    """GOP/s over operations a byte, both axes logarithmic, below the machine's ceilings."""
    ours = points(run)
    bandwidth = run.usual_ceiling("copy")
    if not ours or bandwidth is None:
        return False
    figure, axes = new_axes()
    left, right = 2.0, 4 * max(point.intensity for point in ours)
    colours = {"float32": OURS, "int16": INT16, "int8": INT8}
    highest = 0.0
    for name, colour in colours.items():
        ceiling = run.usual_ceiling(name)
        if ceiling is not None:
            highest = max(highest, ceiling)
            axes.plot([ceiling / bandwidth, right], [ceiling] * 2, color=colour, linewidth=1.2)
            label = f"{name} multiply-adds, {ceiling:.0f} GOP/s"
            axes.text(right, ceiling * 1.04, label, color=colour, ha="right", fontsize=9)
    edge = [left, highest / bandwidth]
    axes.plot(edge, [x * bandwidth for x in edge], color=TEXT, linewidth=1.2)
    label = f"memory, {bandwidth:.0f} GB/s"
    axes.text(left * 1.15, left * bandwidth, label, color=TEXT, va="center", fontsize=9)

    peers = [
        (race["headroute"].intensity(HEAD_BYTES["float32"]), race[best].gflops, heads)
        for heads, race, best in run.against_peers("projection", PEERS, "headroute")
    ]
    marks = {
        name: [(p.intensity, p.gops, p.heads) for p in ours if p.arithmetic == name]
        for name in ("int16", "float32")
    }
    for name, group in marks.items():
        marker, size = {"int16": ("s", 9), "float32": ("o", 7)}[name]  # both seen where they meet
        _scatter(axes, group, colours[name], marker, size, f"headroute, {name}")
    _scatter(axes, peers, PEER, "D", 7, "best peer, float32")
    _name_heads(axes, marks["int16"])
    _name_heads(axes, peers or marks["float32"])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    lowest = min(y for _, y, _ in (*marks["int16"], *marks["float32"], *peers))
    axes.set_ylim(lowest / 1.5, highest * 1.25)
    axes.set_xlabel("operations a byte: of queries, results and heads, each moved once")
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    threads = run.machine["threads"]
    title = f"GOP/s below the machine's ceilings, {threads} threads, d = e = 384"
    finish(figure, axes, title, path)
    return True


Mark = tuple[float, float, int]  # operations a byte, GOP/s, K


def _scatter(axes: Any, marks: list[Mark], colour: str, marker: str, size: int, label: str) -> None:
    if marks:
        x, y, _ = zip(*marks, strict=True)
        style = {"linestyle": "", "markeredgecolor": "white", "marker": marker, "markersize": size}
        axes.plot(x, y, color=colour, label=label, **style)


def _name_heads(axes: Any, marks: list[Mark]) -> None:
    """K below each mark, away from a neighbour that is near; the first to its right, since at 16
    heads float32 is close below int16."""
    marks = sorted(marks)
    for i, (x, y, heads) in enumerate(marks):
        near_left = i > 0 and x < 2 * marks[i - 1][0]
        near_right = i + 1 < len(marks) and marks[i + 1][0] < 2 * x
        axes.annotate(
            f"{heads:,}" if i else f"K = {heads:,}",
            (x, y),
            xytext=(7, 0) if i == 0 else (4 if near_left else -4 if near_right else 0, -7),
            textcoords="offset points",
            ha="left" if near_left or i == 0 else "right" if near_right else "center",
            va="top" if i else "center",
            color=TEXT,
            fontsize=8,
        )


def new_axes() -> tuple[Any, Any]:
    """An empty figure and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 4.8), dpi=150)


def finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    """Give a picture the look of all of them, and write it."""
    axes.set_title(title, loc="left", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(path)
