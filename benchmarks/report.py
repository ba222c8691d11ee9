"""Turns a run's JSON into the tables and the picture of docs/benchmarks.md.

    pytest benchmarks --benchmark-json=run.json
    python benchmarks/report.py run.json -o docs/benchmarks.md --plot docs/benchmarks.png

Times are medians; a ratio divides two medians of one race, so it outlives a slow hour of the machine.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = ("numpy", "torch-eager", "torch-sdpa", "torch-compile", "onnxruntime")
# What we set out to reach: the best peer's time over ours, one call on everything, two threads.
TARGETS = {16: 1.8, 64: 1.6, 256: 1.25, 1024: 1.25, 4096: 1.15, 16384: 1.15}
INT16_TARGETS = {16: 2.5, 64: 2.8, 256: 2.5, 1024: 2.5, 4096: 2.4, 16384: 2.3}
# Leaving out heads: our own float32 time, and the best peer's, over ours.
SCREENING_TARGETS = {0.01: (5.0, 6.0), 0.02: (4.0, 5.0), 0.03: (2.5, 0.0), 0.1: (0.95, 0.0)}
SINGLE_TARGETS = {64: 0.5, 1024: 0.8}  # our time over NumPy's, one query
HOW = (
    'pip install -c constraints.txt ".[bench]"\n'
    "pytest benchmarks --benchmark-json=run.json\n"
    "python benchmarks/report.py run.json -o docs/benchmarks.md --plot docs/benchmarks.png"
)


@dataclass(frozen=True)
class Figure:
    """One contender in one race."""

    seconds: float  # median of a call
    queries: int
    flop: int
    facts: dict[str, Any]  # what else the benchmark said of it

    @property
    def ns_per_query(self) -> float:
        return self.seconds / self.queries * 1e9

    @property
    def gflops(self) -> float:
        return self.flop / self.seconds / 1e9


class Run:
    """The figures of a run: suite → heads → contender."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.machine: dict[str, Any] = document["machine_info"]["headroute"]
        self.date: str = document["datetime"][:10]
        self.foreign_load = 0.0
        self.suites: dict[str, dict[int, dict[str, Figure]]] = {}
        for entry in document["benchmarks"]:
            facts = entry["extra_info"]
            race = self.suites.setdefault(facts["suite"], {}).setdefault(facts["heads"], {})
            race[facts["contender"]] = Figure(
                entry["stats"]["median"], facts["queries"], facts["flop"], facts
            )
            self.foreign_load = max(self.foreign_load, facts["foreign_load"] or 0.0)

    def races(self, suite: str) -> Iterator[tuple[int, dict[str, Figure]]]:
        yield from sorted(self.suites.get(suite, {}).items())


def best_peer(race: dict[str, Figure], names: Iterable[str]) -> str:
    return min((name for name in names if name in race), key=lambda name: race[name].seconds)


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def verdict(ok: bool, target: float, sign: str) -> str:
    return f"{sign} {target:g}: {'met' if ok else '**missed**'}"


def projection_table(run: Run) -> str:
    rows = []
    for heads, race in run.races("projection"):
        ours = race["headroute"]
        best = best_peer(race, PEERS)
        ratio = race[best].seconds / ours.seconds
        rows.append(
            [f"{heads:,}", f"**{ours.ns_per_query:,.0f}** ({ours.gflops:.0f})"]
            + [
                f"{race[name].ns_per_query:,.0f}" if name in race else ""
                for name in ("numba", *PEERS)
            ]
            + [f"**{ratio:.2f}** ({best})", verdict(ratio >= TARGETS[heads], TARGETS[heads], "≥")]
        )
    return table(
        ["K", "headroute (GFLOP/s)", "numba backend", *PEERS, "best peer / headroute", "target"],
        rows,
    )


def blocks_table(run: Run) -> str:
    names = [f"{name}-blocks" for name in PEERS]
    rows = []
    for heads, race in run.races("projection"):
        best = best_peer(race, names)
        rows.append(
            [f"{heads:,}", f"{race['headroute'].ns_per_query:,.0f}"]
            + [f"{race[name].ns_per_query:,.0f}" if name in race else "" for name in names]
            + [f"{race[best].seconds / race['headroute'].seconds:.2f} ({best})"]
        )
    return table(["K", "headroute", *names, "best / headroute"], rows)


def int16_table(run: Run) -> str:
    rows = []
    for heads, race in run.races("projection"):
        ours, best = race["int16"], best_peer(race, PEERS)
        ratio = race[best].seconds / ours.seconds
        rows.append(
            [
                f"{heads:,}",
                f"**{ours.ns_per_query:,.0f}** ({ours.gflops:.0f})",
                f"{race['headroute'].ns_per_query:,.0f}",
                f"{race['headroute'].seconds / ours.seconds:.2f}",
                f"**{ratio:.2f}** ({best})",
                verdict(ratio >= INT16_TARGETS[heads], INT16_TARGETS[heads], "≥"),
            ]
        )
    header = ["K", "int16 (GOP/s)", "float32", "float32 / int16", "best peer / int16", "target"]
    return table(header, rows)


def screening_table(run: Run) -> str:
    rows = []
    for temperature, (own, peer) in SCREENING_TARGETS.items():
        for _, race in run.races(f"screening {temperature}"):
            ours, best = race["tolerant"], best_peer(race, PEERS)
            to_own = race["headroute"].seconds / ours.seconds
            to_best = race[best].seconds / ours.seconds
            target = f"{own:g} and {peer:g}" if peer else f"{own:g}"
            met = to_own >= own and to_best >= peer
            rows.append(
                [
                    f"{temperature:g}",
                    str(ours.facts["plan"]),
                    f"**{ours.ns_per_query / 1e3:.1f}**",
                    f"{race['headroute'].ns_per_query / 1e3:.1f}",
                    f"{race[best].ns_per_query / 1e3:.1f} ({best})",
                    f"**{to_own:.2f}**",
                    f"**{to_best:.2f}**",
                    f"≥ {target}: {'met' if met else '**missed**'}",
                    f"{ours.facts['largest_error']:.1e}",
                    f"{ours.facts['largest_bound']:.1e}",
                ]
            )
    header = ["τ", "plan", "tolerance 1e-3, µs", "float32, µs", "best peer, µs"]
    header += ["float32 / ours", "best peer / ours", "target", "largest error", "largest bound"]
    return table(header, rows)


def sgemm_table(run: Run) -> str:
    products = dict(run.races("sgemm"))
    rows = [
        [f"{heads:,}", f"{race['headroute'].gflops:.0f}", f"{products[heads]['sgemm'].gflops:.0f}"]
        for heads, race in run.races("projection")
        if heads in products
    ]
    return table(["K", "headroute, GFLOP/s", "NumPy's 2048³ sgemm, GFLOP/s"], rows)


def single_table(run: Run) -> str:
    names = ("numba", "numpy", "numpy-best", "torch-eager", "onnxruntime")
    rows = []
    for heads, race in run.races("single"):
        ours = race["headroute"].seconds
        share = ours / race["numpy"].seconds
        target = SINGLE_TARGETS.get(heads)
        rows.append(
            [f"{heads:,}", f"**{ours * 1e6:.1f}**"]
            + [f"{race[name].seconds * 1e6:.1f}" if name in race else "" for name in names]
            + [f"{share:.2f}", f"{ours / race['numpy-best'].seconds:.2f}"]
            + ["" if target is None else verdict(share <= target, target, "≤")]
        )
    header = ["K", "headroute", *names, "headroute / numpy", "headroute / numpy-best", "target"]
    return table(header, rows)


def isa_table(run: Run) -> str:
    rows = []
    for heads, race in run.races("isas"):
        isas = dict.fromkeys(name.rsplit("-", 1)[0] for name in race if name != "numpy")
        most = max(int(name.rsplit("-", 1)[1]) for name in race if name != "numpy")
        for isa in isas:
            one, all_ = race[f"{isa}-1"], race[f"{isa}-{most}"]
            rows.append(
                [
                    f"{heads:,}",
                    isa,
                    f"{one.gflops:.0f}",
                    f"{all_.gflops:.0f}",
                    f"{one.seconds / all_.seconds:.2f}",
                    f"{race['numpy'].seconds / all_.seconds:.2f}",
                ]
            )
    return table(
        ["K", "ISA", "1 thread, GFLOP/s", "all threads", "all / 1", "NumPy's time / ours"], rows
    )


def machine_lines(run: Run) -> str:
    m = run.machine
    native = m["build"]["native"] or {}
    libraries = ", ".join(f"{name} {v}" for name, v in m["libraries"].items() if v)
    lines = {
        "CPU": f"{m['cpu']}, {m['cpus']} CPUs, {', '.join(m['caches'])}, governor {m['governor']}",
        "memory": f"{m['memory_gib']} GiB",
        "system": f"{m['system']}, Python {m['python']}",
        "libraries": libraries,
        "NumPy's BLAS": "; ".join(m["blas"]),
        "kernel": f"{native.get('compiler')}, {native.get('flags')}, ISA {native.get('isa')}",
        "threads": f"{m['threads']}",
        "date": run.date,
        "other processes": f"at most {run.foreign_load:.0%} of the CPUs during a race",
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def document(run: Run, picture: str | None) -> str:
    image = f"\n![ns per query over K]({picture})\n" if picture else ""
    return f"""# Benchmarks

One run, its tables and picture written by `benchmarks/report.py`. To run it again, on an idle machine:

```sh
{HOW}
```

Every contender's result is compared with a float64 reference before it is timed. The contenders of a race are timed in
turn, in random order, at least 7 rounds, each after untimed calls of its own for 50 ms; figures are medians. What each
peer does at its best, and what was tried for it, is in `benchmarks/peers.py`.

{machine_lines(run)}
{image}
## Many queries

ns a query; d = e = 384, τ = 0.1, N = 50,000 (3,125 at K = 16,384), results written into memory that is used again. Every
peer is called once on everything, as headroute is.

{projection_table(run)}

## The same, with the peers fed in blocks

A careful user can feed a library 256 to 2,048 rows at a time, so that its logits stay in cache. No library does that by
itself; it is the harder comparison, and below 1 we lose.

{blocks_table(run)}

## int16

The same queries with `precision="int16"`; 2 operations for each product of 16-bit numbers. No row is further off than
its bound (docs/tolerance.md); a row of these is off by about 1e-4 of the largest answer.

{int16_table(run)}

## Leaving out heads

CLINC150 with all-MiniLM-L6-v2: the 15,000 training questions are heads and answers, the 4,500 test questions queries;
`tolerance=1e-3`. Errors are ‖projected - exact‖ / max ‖a‖ over all rows, against float64. Peers have no tolerance.

{screening_table(run)}

## Against the machine

{sgemm_table(run)}

NumPy's own figure depends on which kernels its BLAS chooses for the CPU, named above: a BLAS that does not know the CPU
may take AVX2 kernels where AVX-512 ones would be twice as fast.

## One query

µs a call from Python, d = e = 384. `numpy` is the formula as people write it, unit centroids prepared; `numpy-best` has
everything prepared, folds the temperature into the centroids and leaves out the maximum. headroute takes one thread for
one query; onnxruntime and NumPy's BLAS take two when there are many heads, and win there.

{single_table(run)}

## Instruction sets and threads

Forced with `HEADROUTE_ISA`; NumPy has all threads.

{isa_table(run)}
"""


def plot(run: Run, path: Path) -> None:
    """ns a query over K, both axes logarithmic, each line named at its end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [
        name
        for name in ("headroute", "numba", *PEERS)
        if any(name in r for _, r in run.races("projection"))
    ]
    colours = {"headroute": "#c1121f", "numba": "#e07a5f"}
    figure, axes = plt.subplots(figsize=(8, 4.8), dpi=150)
    ends = []
    for name in names:
        points = [
            (k, race[name].ns_per_query) for k, race in run.races("projection") if name in race
        ]
        x, y = zip(*points, strict=True)
        ours = name == "headroute"
        colour = colours.get(name, "#8d99ae")
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=2.6 if ours else 1.2,
            marker="o",
            markersize=5 if ours else 3,
        )
        ends.append((y[0], name, colour))
    # Names at the left ends, where the lines are apart, pushed down until they do not touch.
    ceiling = float("inf")
    for y, name, colour in sorted(ends, reverse=True):
        ceiling = min(y, ceiling / 1.36)
        weight = "bold" if name == "headroute" else "normal"
        label = {"headroute": "headroute", "numba": "numba backend"}.get(name, name)
        axes.text(
            13.5,
            ceiling,
            label,
            color=colour,
            ha="right",
            va="center",
            fontsize=9,
            fontweight=weight,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    heads = [k for k, _ in run.races("projection")]
    axes.set_xticks(heads, [f"{k:,}" for k in heads])
    axes.set_xlim(2.6, heads[-1] * 1.25)
    axes.set_xlabel("heads K")
    axes.set_title(
        f"Nanoseconds a query, {run.machine['threads']} threads, d = e = 384 (lower is better)",
        loc="left",
        fontsize=10,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="JSON of pytest benchmarks --benchmark-json=…")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Markdown to write")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    options = parser.parse_args()
    run = Run(json.loads(options.run.read_text()))
    if options.plot:
        plot(run, options.plot)
    options.output.write_text(document(run, options.plot.name if options.plot else None))


if __name__ == "__main__":
    main()
