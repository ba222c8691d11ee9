"""What docs/scale.md measures: the kernel, the disk, Parquet and the start of a process.

Figures are medians over rounds; all data are seeded. Every file is written into one folder and
removed. A GB is 10⁹ bytes. Not responsible for: what follows from the figures (scale_model.py).
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from problem import DIM, Problem
from race import Runner, race

from headroute import Router, aligned_empty, get_num_threads

HEADS = (64, 1_024, 16_384)
TOP = 8  # heads of a top-k result
QUERIES = {64: 50_000, 1_024: 20_160, 16_384: 1_008}  # calls of 15 to 300 ms
KERNELS = ("float32", "float16 files", "int16", "int16, float16 files", "top_heads", "route")
PARQUET = ("float32 list", "float16 list", "float32 binary", "float16 binary")
CHECKS = ((64, "float32"), (64, "float16"), (1_024, "float32"))
CHECK_ROWS = 1_000_000
_ROUNDS = 5
_CHECK_ROUNDS = 3
_PARQUET_ROWS = 50_000
_GIB = 1 << 30
_DISK_GIBS = 12
_BLOCK = 8 << 20  # of a read or write: what a streaming program does
_START = """
import time
began = time.perf_counter()
import sys, numpy, headroute
imported = time.perf_counter()
router = headroute.Router.load(sys.argv[1])
router.project(router.centroids[:1])
print(imported - began, time.perf_counter() - imported)
"""


class Disk(NamedTuple):
    """GB/s, sequential. A disk may be fast for some gigabytes and then slow: the first four are
    medians of what came after most of `gigabytes` had been written."""

    read: float
    write: float  # fsync included
    read_beside: float  # while a file is written
    write_beside: float  # while a file is read
    read_range: tuple[float, float]  # the worst and the best GiB
    write_range: tuple[float, float]
    cached_read: float  # a file in the page cache
    cached_write: float  # into the page cache, no fsync
    gigabytes: float  # of the file


class Start(NamedTuple):
    """Seconds of a new process until its first result."""

    importing: float
    loading: float  # the router's file, packing and one query
    whole: float  # from outside, the interpreter's own start and end included


class Coding(NamedTuple):
    """GB/s of values, one thread, memory to memory."""

    encode: float
    decode: float


class Check(NamedTuple):
    """`headroute project` of a cold file of CHECK_ROWS; seconds."""

    n_heads: int
    dtype: str  # of queries and results
    reading: float  # the queries' bytes alone
    writing: float  # the results' bytes alone
    whole: float
    fastest: float
    slowest: float


class Constants(NamedTuple):
    kernel: dict[tuple[str, int, int], float]  # (of KERNELS, K, threads) → ns a query
    top_mass: dict[int, float]  # K → mean weight that TOP heads have
    disk: Disk
    parquet: dict[str, Coding]
    start: dict[int, Start]
    checks: list[Check]
    threads: int
    foreign_load: float  # share of the CPUs that others took while the kernel was timed, at most


def to_json(found: Constants) -> str:
    document = {name: getattr(found, name) for name in Constants._fields}
    document["kernel"] = [[*key, ns] for key, ns in found.kernel.items()]
    return json.dumps(document, indent=1)


def from_json(text: str) -> Constants:
    document = json.loads(text)
    return Constants(
        kernel={(name, k, threads): ns for name, k, threads, ns in document["kernel"]},
        top_mass={int(k): mass for k, mass in document["top_mass"].items()},
        disk=Disk(*document["disk"]),
        parquet={kind: Coding(*found) for kind, found in document["parquet"].items()},
        start={int(k): Start(*found) for k, found in document["start"].items()},
        checks=[Check(*found) for found in document["checks"]],
        threads=document["threads"],
        foreign_load=document["foreign_load"],
    )


def measure(folder: Path, report: Callable[[str], None]) -> Constants:
    """Measure everything, in about four minutes. Files go into `folder`."""
    threads = get_num_threads()
    kernel: dict[tuple[str, int, int], float] = {}
    top_mass = {}
    start = {}
    foreign_load = 0.0
    for n_heads in HEADS:
        report(f"kernel and start, K = {n_heads:,}")
        problem = Problem.random(n_heads, QUERIES[n_heads])
        figures, load = _kernel(problem, sorted({1, threads}))
        kernel |= {(name, n_heads, count): ns for (name, count), ns in figures.items()}
        foreign_load = max(foreign_load, load)
        router = Router(problem.centroids, problem.answers, temperature=problem.temperature)
        top_mass[n_heads] = float(
            router.top_heads(problem.queries[:1000], TOP).weights.sum(axis=1).mean()
        )
        router.save(folder / f"{n_heads}.safetensors")
        start[n_heads] = _start(folder / f"{n_heads}.safetensors")
    report("Parquet")
    parquet = {kind: _parquet(kind) for kind in PARQUET}
    report("disk")
    disk = _disk(folder)
    report("whole runs")
    checks = list(_checks(folder))
    return Constants(kernel, top_mass, disk, parquet, start, checks, threads, foreign_load)


def _kernel(problem: Problem, counts: list[int]) -> tuple[dict[tuple[str, int], float], float]:
    """ns a query of each of KERNELS by threads, and the foreign load. Projections are checked."""
    options = {"temperature": problem.temperature}
    exact = Router(problem.centroids, problem.answers, **options)
    fast = Router(problem.centroids, problem.answers, precision="int16", **options)
    halves = problem.queries.astype(np.float16)
    out = {
        dtype: aligned_empty((problem.n_queries, DIM), dtype) for dtype in (np.float32, np.float16)
    }
    weights = np.empty((problem.n_queries, problem.n_heads), np.float32)
    largest = float(np.linalg.norm(problem.answers, axis=1).max())
    runners: dict[tuple[str, int], Runner] = {}
    for count in counts:
        for name, run, error in (
            ("float32", (exact, problem.queries, out[np.float32]), problem.tolerance),
            ("float16 files", (exact, halves, out[np.float16]), 0.01 * largest),
            ("int16", (fast, problem.queries, out[np.float32]), fast.plan().bound * largest),
            ("int16, float16 files", (fast, halves, out[np.float16]), 0.01 * largest),
        ):
            router, queries, result = run
            runners[name, count] = problem.checked(
                lambda r=router, q=queries, o=result, n=count: r.project(q, out=o, num_threads=n),
                error,
            )
        runners["top_heads", count] = lambda n=count: exact.top_heads(
            problem.queries, TOP, num_threads=n
        )
        runners["route", count] = lambda n=count: exact.route(
            problem.queries, out=weights, num_threads=n
        )
    laps = race({f"{name}|{count}": run for (name, count), run in runners.items()}, 1.0)
    ns = {
        key: 1e9 * median(laps.seconds["{}|{}".format(*key)]) / problem.n_queries for key in runners
    }
    return ns, laps.foreign_load or 0.0


def _start(path: Path) -> Start:
    laps = []
    for _ in range(_ROUNDS + 1):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _START, path], check=True, capture_output=True, text=True
        )
        importing, loading = map(float, done.stdout.split())
        laps.append(Start(importing, loading, time.perf_counter() - began))
    return Start(*map(median, zip(*laps[1:], strict=True)))


def _parquet(kind: str) -> Coding:
    """A column of vectors, uncompressed and without dictionary, in memory."""
    dtype = np.float16 if "float16" in kind else np.float32
    values = np.random.default_rng(0).standard_normal((_PARQUET_ROWS, DIM), np.float32)
    values = values.astype(dtype)
    if "list" in kind:
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), DIM)
    else:
        binary = pa.binary(values.itemsize * DIM)
        column = pa.Array.from_buffers(binary, len(values), [None, pa.py_buffer(values)])
    table = pa.table({"vector": column})

    def encode() -> pa.Buffer:
        stream = pa.BufferOutputStream()
        pq.write_table(table, stream, compression="none", use_dictionary=False)
        return stream.getvalue()

    encoded = encode()

    def decode() -> pa.Table:
        return pq.read_table(pa.BufferReader(encoded), use_threads=False)

    assert decode().equals(table)
    laps = race({"encode": encode, "decode": decode}, 1.0).seconds
    size = values.nbytes / 1e9
    return Coding(size / median(laps["encode"]), size / median(laps["decode"]))


def _disk(folder: Path) -> Disk:
    """One long file of random bytes, which no layer below can compress, written and read back."""
    one, two = folder / "one", folder / "two"
    status = os.statvfs(folder)
    gibs = int(max(2, min(_DISK_GIBS, status.f_bavail * status.f_frsize / 3 / _GIB)))
    written = list(_written(one, gibs))
    # At once: a disk that throttles by a quota fills it up while it rests.
    _drop(one)
    beside: list[float] = []
    stop = threading.Event()
    reader = threading.Thread(target=lambda: beside.extend(_read(one, stop)))
    reader.start()
    try:
        written_beside = list(_written(two, max(1, gibs // 3)))
    finally:
        stop.set()
        reader.join()
    _drop(one)
    read = list(_read(one))
    one.unlink()
    two.unlink()
    cached_write, cached_read = [], []
    for _ in range(_ROUNDS):
        cached_write += _written(two, 1, sync=False)
        cached_read += _read(two)
        two.unlink()
    last = -max(1, gibs // 2)
    return Disk(
        read=median(read[last:]),
        write=median(written[last:]),
        read_beside=median(beside),
        write_beside=median(written_beside),
        read_range=(min(read), max(read)),
        write_range=(min(written), max(written)),
        cached_read=median(cached_read),
        cached_write=median(cached_write),
        gigabytes=gibs * _GIB / 1e9,
    )


def _written(path: Path, pieces: int, size: int = _GIB, sync: bool = True) -> Iterator[float]:
    """GB/s of each piece of a new file, of so many bytes, a GiB."""
    block = np.random.default_rng(0).bytes(_BLOCK)
    with open(path, "wb", buffering=0) as file:
        for _ in range(pieces):
            began = time.perf_counter()
            for _ in range(size // _BLOCK):
                file.write(block)
            if sync:
                os.fsync(file.fileno())
            yield size / 1e9 / (time.perf_counter() - began)


def _read(path: Path, stop: threading.Event | None = None) -> Iterator[float]:
    """GB/s of each GiB, or until `stop` of each 128 MiB."""
    step = _GIB if stop is None else _GIB // 8
    block = bytearray(_BLOCK)
    with open(path, "rb", buffering=0) as file:
        while stop is None or not stop.is_set():
            began = time.perf_counter()
            for _ in range(step // _BLOCK):
                if file.readinto(block) < _BLOCK:
                    return
            yield step / 1e9 / (time.perf_counter() - began)


def _drop(path: Path) -> None:
    """Put a file on the disk and out of the page cache."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _checks(folder: Path) -> Iterator[Check]:
    """Whole runs of the command on files that are not in the page cache, results on the disk."""
    rng = np.random.default_rng(0)
    queries, result = folder / "queries.npy", folder / "projected.npy"
    for n_heads, dtype in CHECKS:
        array = np.lib.format.open_memmap(queries, "w+", np.dtype(dtype), (CHECK_ROWS, DIM))
        for start in range(0, CHECK_ROWS, 50_000):
            block = array[start : start + 50_000]
            block[:] = rng.standard_normal(block.shape, np.float32)
        size = array.nbytes
        array.flush()
        del array, block
        command = [sys.executable, "-m", "headroute", "project", queries]
        command += ["--router", folder / f"{n_heads}.safetensors", "--json"]
        command += ["--dtype", dtype, "-o", result]
        steps: dict[str, Callable[[], object]] = {
            "reading": lambda: list(_read(queries, threading.Event())),
            "writing": lambda n=size: list(_written(result, 1, n)),
            "whole": lambda c=command: subprocess.run(c, check=True, capture_output=True),
        }
        laps: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(_CHECK_ROUNDS):
            for name, step in steps.items():
                _drop(queries)
                began = time.perf_counter()
                step()
                laps[name].append(time.perf_counter() - began)
                result.unlink(missing_ok=True)
        queries.unlink()
        medians = {name: median(seconds) for name, seconds in laps.items()}
        whole = laps["whole"]
        yield Check(n_heads, dtype, **medians, fastest=min(whole), slowest=max(whole))
