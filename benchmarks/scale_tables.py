"""The tables of docs/scale.md, from constants, assumptions and the model. Not responsible for: the
words around them (scale.py)."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from problem import DIM
from scale_constants import CHECK_ROWS, HEADS, PARQUET, TOP, Constants
from scale_model import (
    Parts,
    Rate,
    Storage,
    Work,
    break_even,
    line,
    rate,
    seconds,
    seconds_on_nodes,
)
from schedule_study import CASES, ONE_A_NODE, Job, Study

COUNTS = tuple(10.0**power for power in range(6, 12))


class Format(NamedTuple):
    """What is read, computed and written of a query."""

    name: str
    read_bytes: int
    kernel: str  # of scale_constants.KERNELS
    write_bytes: int | None  # None: 4 bytes a head

    def work(self, measured: Constants, n_heads: int) -> Work:
        ns = measured.kernel[self.kernel, n_heads, measured.threads]
        return Work(self.read_bytes, self.written(n_heads), ns)

    def written(self, n_heads: int) -> int:
        return 4 * n_heads if self.write_bytes is None else self.write_bytes


FLOAT32 = Format("float32", 4 * DIM, "float32", 4 * DIM)
HALF = Format("16-bit", 2 * DIM, "int16, float16 files", 2 * DIM)
MAIN = (FLOAT32, HALF)
FORMATS = (
    *MAIN,
    Format(f"float32 in, top {TOP} heads out", 4 * DIM, "top_heads", 8 * TOP),
    Format("float32 in, all weights out", 4 * DIM, "route", None),
)


def local_disk(measured: Constants) -> Storage:
    """What seemed faster beside the other direction, as it may while a quota lasts, was not."""
    disk = measured.disk
    beside = (min(disk.read, disk.read_beside), min(disk.write, disk.write_beside))
    return Storage("local disk", disk.read, disk.write, *beside)


def rates(measured: Constants, storage: Storage) -> dict[tuple[int, str], Rate]:
    return {
        (k, form.name): rate(form.work(measured, k), storage) for k in HEADS for form in FORMATS
    }


def counts_table(
    measured: Constants, storage: Storage, nodes: int = 1, parts: Parts | None = None
) -> str:
    """Time over N, with what it waits for."""
    each = rates(measured, storage)
    columns = [(k, form.name) for k in HEADS for form in MAIN]
    rows = []
    for n in COUNTS:
        cells = []
        for k, name in columns:
            start = measured.start[k].whole
            if parts is None:
                found = seconds(n, each[k, name], start)
            else:
                found = seconds_on_nodes(n, nodes, each[k, name], start, parts)
            cells.append(f"{duration(found)} {each[k, name].limit[0]}")
        rows.append([power(n), *cells])
    return table(["N", *(f"K = {k:,}, {name}" for k, name in columns)], rows)


def rate_table(measured: Constants, storages: Sequence[Storage], n: float) -> str:
    """Time of n queries on one machine, storage by storage."""
    columns = [(k, form.name) for k in HEADS for form in MAIN]
    rows = []
    for storage in storages:
        each = rates(measured, storage)
        cells = [
            f"{duration(seconds(n, each[key], measured.start[key[0]].whole))} {each[key].limit[0]}"
            for key in columns
        ]
        rows.append([storage.name, *cells])
    return table(["storage", *(f"K = {k:,}, {name}" for k, name in columns)], rows)


def kernel_line(measured: Constants, form: Format) -> tuple[float, float]:
    """(a, b) of ns = a + b K on all threads, through K = 64 and 1,024."""
    low, high = HEADS[:2]
    ns = [measured.kernel[form.kernel, k, measured.threads] for k in (low, high)]
    return line((low, high), (ns[0], ns[1]))


def crossing(measured: Constants, form: Format, storage: Storage) -> int:
    a, b = kernel_line(measured, form)
    return break_even(form.read_bytes, form.written(0), storage, a, b)


def break_even_table(measured: Constants, storages: Sequence[Storage]) -> str:
    forms = FORMATS[:3]
    rows = []
    for storage in storages:
        cells = [f"{crossing(measured, form, storage):,}" for form in forms]
        rows.append([storage.name, *cells])
    return table(["storage of a node", *(form.name for form in forms)], rows)


def format_table(measured: Constants, storages: Sequence[Storage], n: float) -> str:
    """What a result costs in bytes and time."""
    heads = HEADS[:2]
    titles = [f"{s.name}, K = {k:,}" for s in storages for k in heads]
    rows = []
    for form in FORMATS:
        size = f"{form.written(0):,}" if form.write_bytes is not None else "4 K"
        cells = [
            f"{duration(n * rate(form.work(measured, k), s).ns * 1e-9)} "
            f"{rate(form.work(measured, k), s).limit[0]}"
            for s in storages
            for k in heads
        ]
        stored = " / ".join(f"{n * w / 1e12:.3g}" for w in sorted({form.written(k) for k in heads}))
        rows.append([form.name, f"{form.read_bytes:,}", size, stored, *cells])
    return table(["format", "B in", "B out", "TB written", *titles], rows)


def parquet_table(measured: Constants) -> str:
    rows = []
    for kind in PARQUET:
        coding = measured.parquet[kind]
        size = DIM * (2 if "float16" in kind else 4)
        ns = (size / coding.encode + size / coding.decode) / measured.threads
        form = HALF if "float16" in kind else FLOAT32
        a, b = kernel_line(measured, form)
        rows.append(
            [
                kind,
                f"{coding.encode:.2f}",
                f"{coding.decode:.2f}",
                f"{ns:,.0f}",
                f"{max(1, (ns - a) / b):,.0f}",
            ]
        )
    title = "as much as the kernel at K ="
    return table(["column", "encode, GB/s", "decode, GB/s", "both, ns a query", title], rows)


def node_hours_table(
    measured: Constants, storage: Storage, n: float, prices: tuple[float, float]
) -> str:
    rows = []
    for (k, name), each in rates(measured, storage).items():
        if name in {form.name for form in MAIN}:
            hours = n * each.ns * 1e-9 / 3600
            cost = " to ".join(f"{hours * price:,.2f}" for price in prices)
            rows.append([f"{k:,}", name, f"{each.ns:,.0f}", f"{hours:,.2f}", cost])
    return table(["K", "format", "ns a query", "node-hours", "dollars"], rows)


def check_table(measured: Constants) -> str:
    """Whole runs, beside the model with the disk's rates of the same minute."""
    rows = []
    for check in measured.checks:
        kernel = "float32" if check.dtype == "float32" else "float16 files"
        ns = measured.kernel[kernel, check.n_heads, measured.threads]
        start = measured.start[check.n_heads].whole
        steps = (check.reading, CHECK_ROWS * ns * 1e-9, check.writing)
        model, in_turn = start + max(steps), start + sum(steps)
        rows.append(
            [
                f"{check.n_heads:,}",
                check.dtype,
                *(f"{step:.2f}" for step in steps),
                f"{model:.2f}",
                f"{in_turn:.2f}",
                f"{check.whole:.2f} ({check.fastest:.2f} to {check.slowest:.2f})",
                f"{100 * (check.whole / model - 1):+.0f} %",
                f"{100 * (check.whole / in_turn - 1):+.0f} %",
            ]
        )
    titles = ["K", "files", "read", "compute", "write", "model", "sum", "measured"]
    return table([*titles, "off the model", "off the sum"], rows)


def kernel_table(measured: Constants) -> str:
    names = {
        "float32": "float32",
        "float16 files": "float16 in and out, float32 arithmetic",
        "int16": "float32 in and out, int16 arithmetic",
        "int16, float16 files": "float16 in and out, int16 arithmetic (16-bit)",
        "top_heads": f"top {TOP} heads, float32",
        "route": "all weights, float32",
    }
    counts = sorted({1, measured.threads})
    columns = [(k, count) for k in HEADS for count in counts]
    rows = [
        [title, *(f"{measured.kernel[name, k, count]:,.0f}" for k, count in columns)]
        for name, title in names.items()
    ]
    threads = {1: "1 thread"} | {c: f"{c} threads" for c in counts if c > 1}
    return table(["ns a query", *(f"K = {k:,}, {threads[c]}" for k, c in columns)], rows)


def start_table(measured: Constants) -> str:
    rows = [
        [f"{k:,}", *(f"{value:.2f}" for value in measured.start[k])]
        for k in HEADS
        if k in measured.start
    ]
    return table(["K", "import, s", "load and pack, s", "whole process, s"], rows)


def schedule_table(job: Job, study: Study) -> str:
    rows = []
    for case in CASES:
        for copies in (False, True):
            cells = [study[case, copies, size] for size in job.sizes]
            rows.append(
                [
                    case,
                    "yes" if copies else "no",
                    *(f"{c.median:.2f} ({c.low:.2f} to {c.high:.2f})" for c in cells),
                    f"{cells[0].bound:.2f}",
                ]
            )
    return table(["case", "copies", *(part_title(size) for size in job.sizes), "bound"], rows)


def part_title(size: float) -> str:
    return "one a node" if size == ONE_A_NODE else f"{size:,.0f} s"


def duration(value: float) -> str:
    """Such as "3.4 h"."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if value / size < limit:
            return f"{value / size:.3g} {unit}"
    return f"{value / 86400:,.1f} d"


def power(n: float) -> str:
    """Such as "3·10⁶"."""
    digits, exponent = f"{n:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = [f"| {' | '.join(titles)} |", f"| --- |{' ---: |' * (len(titles) - 1)}"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])
