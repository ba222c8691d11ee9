"""Turns a run's JSON into docs/benchmarks.md and its pictures: this file has the words around them.

    pytest benchmarks --benchmark-json=run.json
    python benchmarks/report.py run.json -o docs/benchmarks.md \\
        --plot docs/benchmarks.png --roofline docs/roofline.png

A section whose table would be empty is left out.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tables
from figures import Run
from plots import draw_roofline, draw_times
from roofline import roofline_table

HOW = (
    'pip install -c constraints.txt ".[bench]"\n'
    "pytest benchmarks --benchmark-json=run.json\n"
    "python benchmarks/report.py run.json -o docs/benchmarks.md \\\n"
    "    --plot docs/benchmarks.png --roofline docs/roofline.png"
)


@dataclass(frozen=True)
class Section:
    title: str
    table: Callable[[Run], str]
    before: str = ""
    after: str = ""

    def text(self, run: Run, picture: str) -> str:
        """With a picture below its title; empty when its table is."""
        made = self.table(run)
        parts = (f"## {self.title}", picture, self.before, made, self.after)
        return "\n\n".join(part for part in parts if part) if made else ""


SECTIONS = (
    Section(
        "Many queries",
        tables.projection_table,
        """ns a query; d = e = 384, τ = 0.1, N = 50,000 (3,125 at K = 16,384), results written into memory that is used again. Every
peer is called once on everything, as headroute is. The last column is against bfloat16, whose rows are off by 1e-3 to 3e-3 of
the largest answer where float32's are off by 1e-7.""",
    ),
    Section(
        "The same, with the peers fed in blocks",
        tables.blocks_table,
        """A careful user can feed a library 256 to 2,048 rows at a time, so that its logits stay in cache. No library does that by
itself; it is the harder comparison, and below 1 we lose.""",
    ),
    Section(
        "int16",
        tables.int16_table,
        """The same queries with `precision="int16"`; 2 operations for each product of 16-bit numbers. No row is further off than
its bound (docs/tolerance.md); a row of these is off by at most 1e-4 of the largest answer. Peers are those above and the
two in bfloat16, which are off by 30 times as much.""",
    ),
    Section(
        "Leaving out heads",
        tables.screening_table,
        """CLINC150 with all-MiniLM-L6-v2: the 15,000 training questions are heads and answers, the 4,500 test questions queries;
`tolerance=1e-3`. Errors are ‖projected - exact‖ / max ‖a‖ over all rows, against float64. Peers have no tolerance.""",
    ),
    Section(
        "Other shapes",
        tables.shapes_table,
        """headroute alone, GOP/s, and in brackets the share of what it has at d = e = 384. All shapes of a K in one race, N such
that a call takes 30 to 60 ms, and a multiple of 2,016, which two threads can share evenly.""",
    ),
    Section(
        "A million heads",
        tables.million_table,
        """d = e = 384, float32, τ = 0.05, N queries a call. Making the router copies the heads, takes their norms and packs them, on
one thread; the system's part is mostly memory handed out for the first time. A GB is 10⁹ bytes.""",
    ),
    Section(
        "Whole files",
        lambda run: "\n\n".join(filter(None, (tables.files_table(run), tables.peak_text(run)))),
        """`headroute project`, whole processes, d = e = 384, K = 64, τ = 0.1, inputs in the page cache. GB/s of bytes read and written.
For .npy the share is that of the slower of `cp` and the kernel alone on memory; for Parquet that of the faster of two ways
in which pyarrow reads the file and writes it again: as it comes, and without dictionaries and compression. headroute's
bytes are on the disk when it ends, cp's need not be.""",
    ),
    Section(
        "Against the machine",
        tables.sgemm_table,
        after="""NumPy's own figure depends on which kernels its BLAS chooses for the CPU, named above: a BLAS that does not know the CPU
may take AVX2 kernels where AVX-512 ones would be twice as fast.""",
    ),
    Section(
        "Roofline",
        roofline_table,
        """What the machine can do at most, measured in the same races by loops of nothing but the kernel's multiply-adds, and by a
copy past the caches. An operation is one of the 2 of each product of numbers in the two matrix products; a byte one that
a call cannot do without: queries in and results out in float32, the packed heads once. The ceiling is the lower of the
two, (memory) where that is the bandwidth's.""",
    ),
    Section(
        "One query",
        tables.single_table,
        """µs a call from Python, d = e = 384. `numpy` is the formula as people write it, unit centroids prepared; `numpy-best` has
everything prepared, folds the temperature into the centroids and leaves out the maximum. headroute takes one thread for
one query below 5 million multiply-adds (6,500 heads), all of them above; onnxruntime and NumPy's BLAS take two sooner.""",
    ),
    Section(
        "Other calls",
        tables.calls_table,
        """µs a query, d = e = 384, τ = 0.1, N up to 50,000. The best heads are those of `top_heads`, and of `route` into memory that is
used again with NumPy's argpartition, which holds N×K weights and does not care for ties. "float16, int16" is float16 in and out
with `precision="int16"`; what that adds to float16's own error is in docs/decisions/0017.""",
    ),
    Section(
        "Instruction sets and threads",
        tables.isa_table,
        "Forced with `HEADROUTE_ISA`; NumPy has all threads.",
    ),
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
        "run": ", parts again ".join(run.times),
        "other processes": f"at most {run.foreign_load:.0%} of the CPUs during a race",
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def document(run: Run, times: str, roofline: str) -> str:
    """Markdown around two pictures, which are Markdown or empty."""
    intro = f"""# Benchmarks

One run, its tables and pictures written by `benchmarks/report.py`. To run it again, on an idle machine:

```sh
{HOW}
```

Every contender's result is compared with a float64 reference before it is timed. The contenders of a race are timed in
turn, in random order, at least 7 rounds, each after untimed calls of its own for 50 ms; figures are medians. What each
peer does at its best, and what was tried for it, is in `benchmarks/peers.py`.

{machine_lines(run)}"""
    pictures = {"Roofline": roofline}
    sections = [section.text(run, pictures.get(section.title, "")) for section in SECTIONS]
    return "\n\n".join(part for part in (intro, times, *sections) if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        help="JSON of pytest benchmarks --benchmark-json=…; then of parts that were run again",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="Markdown to write")
    parser.add_argument("--plot", type=Path, help="PNG to write: time a query over K")
    parser.add_argument("--roofline", type=Path, help="PNG to write: GOP/s below the ceilings")
    options = parser.parse_args()
    run = Run(*(json.loads(path.read_text()) for path in options.runs))
    times = roofline = ""
    if options.plot and draw_times(run, options.plot):
        times = f"![ns per query over K]({options.plot.name})"
    if options.roofline and draw_roofline(run, options.roofline):
        roofline = f"![GOP/s over operations a byte]({options.roofline.name})"
    options.output.write_text(document(run, times, roofline))


if __name__ == "__main__":
    main()
