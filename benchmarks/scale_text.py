"""The words of docs/scale.md around its tables.

Numbers in sentences come from the same places as those in the tables, so that no run can make them
differ.
"""

import textwrap
import time

from machine import describe_machine
from scale_constants import CHECK_ROWS, HEADS, TOP, Constants
from scale_model import Assumed, Storage, rate, seconds, seconds_on_nodes
from scale_tables import (
    FLOAT32,
    HALF,
    break_even_table,
    check_table,
    counts_table,
    crossing,
    duration,
    format_table,
    kernel_line,
    kernel_table,
    local_disk,
    node_hours_table,
    parquet_table,
    part_title,
    power,
    rate_table,
    schedule_table,
    start_table,
    table,
)
from schedule import STRAGGLER_LEAST, STRAGGLER_MOST, STRAGGLER_SHAPE
from schedule_study import GOOD_ENOUGH, REPAIR, SEEDS, SPREAD, Job, Study, best_size

HOW = """pip install -c constraints.txt ".[plot]" "pyarrow>=20"
python benchmarks/scale.py -o docs/scale.md"""

_ING = {"read": "reading", "write": "writing", "compute": "computing"}
_DAILY = "5 % stragglers, a failure a day"
_ROUGH = "20 % stragglers, a failure in 2 hours"
_CALM = "no stragglers, no failures"


def document(
    measured: Constants, assumed: Assumed, job: Job, study: Study, pictures: tuple[str, str]
) -> str:
    disk, usual = local_disk(measured), assumed.usual_store
    stores = assumed.stores
    parts, prices = assumed.parts, assumed.prices
    part = best_size(job, study)
    return f"""# What many queries cost

A model of 10⁶ to 10¹¹ queries, from constants that were measured on one machine, and assumptions, which are named as such.
d = e = 384. "float32" reads and writes float32; "16-bit" reads and writes float16 and computes in int16,
off by about 1e-4 of the largest answer (docs/tolerance.md). A GB is 10⁹ bytes, a node one machine like this one, with {measured.threads} cores. All of this page is the output of one command:

```sh
{HOW}
```

## The answer

{answer(measured, assumed, job, study, part)}

![GB/s that keep the kernel busy]({pictures[0]})

## One machine

Time of N queries and what it waits for: **r**eading, **c**omputing or **w**riting. Local disk, at the rates that it keeps up
(measured below):

{counts_table(measured, disk)}

An object store with {usual.name} for each node and direction (assumed):

{counts_table(measured, usual)}

10⁹ queries over the bandwidth; all but the local disk assumed. A fast local NVMe is the row of 3 GB/s:

{rate_table(measured, [disk, *stores], 1e9)}

## {assumed.nodes} nodes

Object store with {usual.name} for each node, parts of {parts.seconds:g} s, or shorter so that a node has {parts.least_each} of at least {parts.least_seconds:g} s,
{parts.overhead_seconds} s of overhead a part, one part as the tail; equal nodes, no failures. What failures and stragglers add is
simulated below. Nodes are there already: booting them is not counted.

{counts_table(measured, usual, assumed.nodes, parts)}

The work of 10⁹ queries in node-hours, whatever the number of nodes, and at {prices[0]:.2f} to {prices[1]:.2f} dollars an hour (assumed):

{node_hours_table(measured, usual, 1e9, prices)}

## Where computing overtakes the storage

    K* = (max(bytes read / read rate, bytes written / write rate) - a) / b

{break_even_words(measured, disk)}

{break_even_table(measured, [disk, *stores])}

{cores_words(measured)}

## What the result costs

10⁹ queries. "TB written" is for K = {HEADS[0]} / {HEADS[1]:,} where it depends on K.

{format_table(measured, [disk, usual], 1e9)}

{result_words(measured)}

Parquet is work for the same cores. One column of 384 numbers a row, uncompressed, no dictionary, one thread, in memory;
"both" is decoding the queries and encoding as many results on all threads, and comes on top of the kernel's time:

{parquet_table(measured)}

{parquet_words(measured)}

## A schedule for {assumed.nodes} nodes

{power(job.queries)} queries, K = {assumed.job_heads:,}, float32, {usual.name}: {duration(job.scenario(part, _CALM, False).ideal)} if nothing ever went wrong.
Makespan / ideal, median and 5 to 95 % of {len(SEEDS)} simulated runs, over the time that a usual node takes for one part. "Copies": nodes that find the queue empty start the longest-running part a second time. "Bound":
what no schedule on these nodes can beat, even without failures; below 1 where nodes happen to be faster than usual.

{schedule_table(job, study)}

![Makespan over part size]({pictures[1]})

{schedule_words(assumed, job, study, part)}

## Does the model hold?

`headroute project` of {CHECK_ROWS:,} rows from .npy to .npy on the local disk, the queries not in the page cache, the results synced. The disk's
rates change from minute to minute, so the same bytes are read alone and written alone (with a sync) just before each run, and
the model gets these. Seconds, medians of three; in brackets the fastest and the slowest run:

{check_table(measured)}

{check_words(measured)}

## How it was measured

{machine_words(measured)}

Kernel, in memory that is used again, results checked against float64, medians of at least seven rounds in random order
(`benchmarks/race.py`); other processes took at most {100 * measured.foreign_load:.0f} % of the CPUs meanwhile:

{kernel_table(measured)}

Disk and page cache, sequential, blocks of 8 MiB of random bytes:

{disk_table(measured)}

{disk_words(measured)}

A new process: `import headroute`, then `Router.load`, packing and a first query, medians of five:

{start_table(measured)}

Assumed, not measured:

{assumptions_table(assumed)}

## Limits

- The disk is what this virtual machine is given. Whether an NVMe is behind it, and what caches the host keeps, cannot be seen
  from inside.
- {assumed.nodes} nodes are this machine times {assumed.nodes}: nobody else in the store, no limit of all nodes together, no part of the job that
  one node must do alone. Nodes with more cores need as much more bandwidth.
- Listing, requests and retries of an object store are the overhead of a part, and the processor time of its client (TLS,
  checksums) is not in the model; neither is the price of its requests and of what it keeps.
- Failures are independent. A zone that fails takes many nodes at once.
- Compute is taken to be the kernel alone. Page faults and copies of streaming cost cores time too: that is in the whole runs
  above, not in the tables.
- Made-up queries, which lie around heads. Time does not depend on the values, except with a tolerance at low temperature,
  where heads are left out (docs/tolerance.md).
"""


def answer(measured: Constants, assumed: Assumed, job: Job, study: Study, part: float) -> str:
    disk, usual, parts = local_disk(measured), assumed.usual_store, assumed.parts
    lines = []
    for k in HEADS:
        words = []
        for form in (FLOAT32, HALF):
            each = rate(form.work(measured, k), disk)
            time_needed = duration(seconds(1e9, each, measured.start[k].whole))
            words.append(f"{time_needed} in {form.name}, limited by {_ING[each.limit]}")
        lines.append(
            f"- 10⁹ queries at K = {k:,} on this machine and its disk: {'; '.join(words)}."
        )
    on_nodes = []
    for k in HEADS:
        each = rate(FLOAT32.work(measured, k), usual)
        took = seconds_on_nodes(1e11, assumed.nodes, each, measured.start[k].whole, parts)
        on_nodes.append(f"{duration(took)} at K = {k:,}")
    lines.append(
        f"- 10¹¹ queries on {assumed.nodes} such nodes with an object store at {usual.name} each (assumed), float32: "
        f"{', '.join(on_nodes)}."
    )
    lines.append(
        f"- Computing takes over from K = {crossing(measured, FLOAT32, disk):,} on this disk, and from "
        f"{crossing(measured, FLOAT32, usual):,} at {usual.name}; 16-bit: {crossing(measured, HALF, disk):,} and "
        f"{crossing(measured, HALF, usual):,}. Below that, halving the bytes halves the time, and a faster kernel changes nothing; "
        "above it, the other way round."
    )
    cell = study[_DAILY, True, part]
    lines.append(
        f"- Parts of about {part_title(part)} ({power(job.part_queries(part))} queries at K = {assumed.job_heads:,}), and copies of the last "
        f"ones: with {_DAILY} and node, a job of {duration(job.scenario(part, _DAILY, True).ideal)} takes {100 * (cell.median - 1):.0f} % longer "
        f"than ideal (95 %: {100 * (cell.high - 1):.0f} %; simulated)."
    )
    return "\n".join(wrapped(text) for text in lines)


def break_even_words(measured: Constants, disk: Storage) -> str:
    """The lines, and how straight they are."""
    words = []
    for form in (FLOAT32, HALF):
        a, b = kernel_line(measured, form)
        last = HEADS[-1]
        off = measured.kernel[form.kernel, last, measured.threads] / (a + b * last) - 1
        words.append(f"{a:,.0f} + {b:.2f} K ns in {form.name} ({100 * off:+.0f} % at K = {last:,})")
    return wrapped(
        f"where a + b K is the kernel's time, through its measured points at K = {HEADS[0]} and {HEADS[1]:,}: {', '.join(words)}. "
        f"Below K = {HEADS[0]} the line is a guess. On the local disk, reading and writing disturb each other, and the longer of the two finishes alone. Results are as wide "
        "as the queries, but for the last column, where reading alone counts."
    )


def cores_words(measured: Constants) -> str:
    _, b = kernel_line(measured, FLOAT32)
    per_core = b * measured.threads
    return wrapped(
        f"For other nodes, only bandwidth for each core counts: a head costs a core {per_core:.1f} ns here, and a float32 query is "
        f"{FLOAT32.read_bytes:,} bytes each way, so K* ≈ {FLOAT32.read_bytes / per_core:,.0f} / (GB/s for each core). 16 cores that share 3 GB/s "
        f"are at K* ≈ {FLOAT32.read_bytes / per_core * 16 / 3:,.0f}, not where the two cores of the table are."
    )


def result_words(measured: Constants) -> str:
    masses = ", ".join(f"{100 * measured.top_mass[k]:.0f} % at K = {k:,}" for k in HEADS)
    return wrapped(
        f"float16 halves the bytes and is rounded once. All weights are exact, since every projection is Σ w a of the same answers, "
        f"and smaller than the projection while K < e. The top {TOP} are not a projection: at τ = 0.1 they have {masses} of the weight "
        "in these made-up queries. 8 bytes a head are an index and a weight of 4 bytes each, which is less than `top_heads` "
        "returns (12). What is written also has to be kept, and read by whoever comes next."
    )


def parquet_words(measured: Constants) -> str:
    lists, binary = measured.parquet["float32 list"], measured.parquet["float32 binary"]
    return wrapped(
        f"Parquet has no type for a vector: pyarrow writes a list column with the levels of each number. The same bytes as fixed-size "
        f"binary, {4 * 384} a row, are encoded {binary.encode / lists.encode:.0f} and decoded {binary.decode / lists.decode:.0f} times as fast. "
        "For large jobs take that, .npy or Arrow's own files."
    )


def schedule_words(assumed: Assumed, job: Job, study: Study, part: float) -> str:
    small, large = job.sizes[0], job.sizes[-1]
    return wrapped(
        f"Recommended: parts of {part_title(part)} and copies. It is the largest size whose 95 % is within {100 * GOOD_ENOUGH:.0f} % of the best size's in "
        f"every case. Smaller parts pay the overhead ({assumed.parts.overhead_seconds:g} s) more often: {study[_CALM, True, small].median:.2f} for "
        f"{part_title(small)} on quiet nodes. Larger ones wait for the last part on the slowest node, and lose more with a node: one part a node is "
        f"the obvious way to cut a job, and takes {study[_DAILY, False, large].median:.1f} times the ideal with {_DAILY}, "
        f"{study[_DAILY, True, large].median:.1f} with copies. With parts of {part_title(part)} it is {study[_DAILY, False, part].median:.2f} and "
        f"{study[_DAILY, True, part].median:.2f}; with {_ROUGH}, {study[_ROUGH, True, part].median:.2f}, where the slow nodes alone make "
        f"{study[_ROUGH, True, part].bound:.2f} the bound. Attempts that did not count take {100 * study[_DAILY, False, part].wasted:.1f} % of "
        f"the nodes' time without copies, {100 * study[_DAILY, True, part].wasted:.1f} % with."
    )


def check_words(measured: Constants) -> str:
    return wrapped(
        "The model is the start and the largest of the three: a pipeline that overlaps them. The command does overlap them, but a file "
        "of this size is 12 parts: filling and draining the pipeline counts; and page faults, copies and the threads that read and write "
        "take time of the two cores that compute. Files that are in the page cache come closer (docs/benchmarks.md). Where one of "
        "the three is much larger than the others, it matters little."
    )


def wrapped(text: str) -> str:
    """Lines of at most 125 characters; those of an item are indented."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(
        text, 125, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def disk_table(measured: Constants) -> str:
    disk = measured.disk
    rows = [
        [name, f"{alone:.2f}", f"{extremes[0]:.2f} to {extremes[1]:.2f}", f"{beside:.2f}"]
        for name, alone, extremes, beside in (
            ("read", disk.read, disk.read_range, disk.read_beside),
            ("write", disk.write, disk.write_range, disk.write_beside),
        )
    ]
    titles = ["GB/s", "sustained", "worst and best GiB", "beside the other"]
    cached = (
        f"Page cache, files of 1 GiB, one thread: read {disk.cached_read:.1f} GB/s, write "
        f"{disk.cached_write:.1f} GB/s."
    )
    return f"{table(titles, rows)}\n\n{cached}"


def disk_words(measured: Constants) -> str:
    return wrapped(
        f"One file of {measured.disk.gigabytes:.0f} GB, written GiB by GiB with an fsync after each; then, at once, posix_fadvise(DONTNEED), and it is "
        "read while another one is written; then dropped again and read alone. Such disks are fast for some GB and then throttled, "
        "so the model takes sustained rates: medians of the second half of the file. Disks of virtual machines also have bad hours."
    )


def machine_words(measured: Constants) -> str:
    facts = describe_machine()
    native = facts["build"]["native"] or {}
    versions = ", ".join(
        f"{name} {facts['libraries'][name]}"
        for name in ("headroute", "numpy")
        if name in facts["libraries"]
    )
    return "\n".join(
        [
            f"- CPU: {facts['cpu']}, {facts['cpus']} CPUs, {', '.join(facts['caches'])}",
            f"- memory: {facts['memory_gib']} GiB; {facts['system']}, Python {facts['python']}",
            f"- {versions}; kernel: ISA {native.get('isa')}, {measured.threads} threads",
            f"- date: {time.strftime('%Y-%m-%d')}",
        ]
    )


def assumptions_table(assumed: Assumed) -> str:
    parts, prices = assumed.parts, assumed.prices
    rows = [
        [
            "a node's bandwidth to the object store, each way, GB/s",
            f"{assumed.usual_rate:g}",
            f"{assumed.rates[0]:g} to {assumed.rates[-1]:g}",
        ],
        [
            "overhead of a part: requests until the first byte, commit, s",
            f"{parts.overhead_seconds:g}",
            f"{assumed.overheads[0]:g} to {assumed.overheads[1]:g}",
        ],
        ["price of a node-hour, dollars", "", f"{prices[0]:.2f} to {prices[1]:.2f}"],
        ["speeds of nodes: σ of a lognormal", f"{SPREAD:g}", ""],
        [
            f"slowdown of a straggler: Pareto from {STRAGGLER_LEAST:g}, shape {STRAGGLER_SHAPE:g}, at most {STRAGGLER_MOST:g}; share of nodes",
            "5 %",
            "0 to 20 %",
        ],
        ["mean time between a node's failures, exponential, h", "24", "2 to ∞"],
        ["repair of a node, s", f"{REPAIR:g}", ""],
    ]
    return table(["assumption", "taken", "range shown"], rows)
