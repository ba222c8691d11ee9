"""`headroute project` against the machine: how close whole files come to the disk and the kernel.

    .npy to .npy           `cp` of the same file; the kernel alone on memory
    Parquet to Parquet     pyarrow reading the file and writing it again, unchanged

Inputs are in the page cache, whole processes are timed, and everyone's output is removed before the
next one starts. cp leaves its bytes to the system to write; headroute has them on the disk when it
ends, so one contender syncs after cp.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arena import Result
from race import Laps

from headroute import Router

ROWS, D, HEADS = 5_000_000, 384, 64
BLOCK = 50_000
ROUNDS = 5
FEW_ROWS, MANY_ROWS = 100_000, 10_000_000  # whose peak memory is compared

# As it comes, and without what takes time and saves nothing on embeddings.
REWRITE = """
import sys, pyarrow.parquet as pq
source = pq.ParquetFile(sys.argv[1])
options = {"use_dictionary": False, "compression": "none"} if sys.argv[3] == "plain" else {}
with pq.ParquetWriter(sys.argv[2], source.schema_arrow, **options) as out:
    for group in range(source.num_row_groups):
        out.write_table(source.read_row_group(group))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """On the disk under test: that of the temporary files."""
    folder = tmp_path_factory.mktemp("files")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def rows(quick: bool) -> int:
    return 10_000 if quick else ROWS


@pytest.fixture(scope="module")
def router(place: Path) -> Router:
    random = np.random.default_rng(0)
    made = Router(random.standard_normal((HEADS, D)), random.standard_normal((HEADS, D)))
    made.save(place / "router.safetensors")
    return made


def npy(path: Path, rows: int) -> None:
    block = np.random.default_rng(1).standard_normal((min(BLOCK, rows), D), dtype=np.float32)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, D))
    for start in range(0, rows, len(block)):
        file[start : start + len(block)] = block[: rows - start]
    file.flush()


def parquet(path: Path, rows: int) -> None:
    block = np.random.default_rng(1).standard_normal((min(BLOCK, rows), D), dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), D)
    table = pa.table({"id": np.arange(len(block)), "embedding": vectors})
    with pq.ParquetWriter(path, table.schema) as file:
        for _ in range(0, rows, len(block)):
            file.write_table(table)


# The system's ru_maxrss would have what this process had when it started the other.
PROJECT = """
import sys
from headroute.cli import main
assert main(["project", *sys.argv[1:]]) == 0
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


def project(place: Path, source: str, out: str) -> float:
    """Peak memory of the process, MiB."""
    command = [sys.executable, "-c", PROJECT, place / source]
    command += ["--router", place / "router.safetensors", "-o", place / out]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stderr) / 1024


def peak(place: Path, rows: int) -> float:
    """Of projecting a file of so many rows, zeros that take no disk."""
    source = place / "zeros.npy"
    np.lib.format.open_memmap(source, "w+", np.float32, (rows, D))
    found = project(place, "zeros.npy", "zeros_projected.npy")
    for path in (source, place / "zeros_projected.npy"):
        path.unlink()
    return found


def in_turn(runners: dict[str, Callable[[], object]], out: Path, rounds: int) -> Result:
    """Every runner once a round, in random order, without output of the one before."""
    random = np.random.default_rng(2)
    laps: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds + 1):
        for name in random.permutation(list(runners)):
            started = time.perf_counter()
            runners[name]()
            laps[name].append(time.perf_counter() - started)
            if out.is_dir():
                shutil.rmtree(out)
            out.unlink(missing_ok=True)
            os.sync()
    # The first round brings files into the cache.
    return Result(Laps({name: found[1:] or found for name, found in laps.items()}, None), {})


def copy(source: Path, out: Path, *, synced: bool) -> None:
    subprocess.run(["cp", source, out], check=True)
    if synced:
        subprocess.run(["sync", out], check=True)


def facts(rows: int) -> dict[str, int]:
    return {
        "heads": HEADS,
        "queries": rows,
        "query_dim": D,
        "answer_dim": D,
        "flop": 4 * rows * HEADS * D,
    }


@pytest.fixture(scope="module")
def npy_result(place: Path, router: Router, rows: int, quick: bool) -> Result:
    source, out = place / "q.npy", place / "p.npy"
    npy(source, rows)
    queries = np.load(source, mmap_mode="r")[:200_000].copy()
    projected = np.empty_like(queries)

    def kernel() -> None:
        for start in range(0, rows, len(queries)):
            router.project(queries[: rows - start], out=projected[: rows - start])

    project(place, "q.npy", "p.npy")
    found = np.load(out, mmap_mode="r")
    np.testing.assert_array_equal(found[-1000:], router.project(queries[-1000:]))
    del found
    runners = {
        "headroute": lambda: project(place, "q.npy", "p.npy"),
        "cp": lambda: copy(source, out, synced=False),
        "cp and sync": lambda: copy(source, out, synced=True),
        "kernel": kernel,
    }
    result = in_turn(runners, out, 0 if quick else ROUNDS)
    source.unlink()
    return result


@pytest.fixture(scope="module")
def parquet_result(place: Path, router: Router, rows: int, quick: bool) -> Result:
    source, out = place / "q.parquet", place / "p"
    parquet(source, rows // 4)
    project(place, "q.parquet", "p")
    assert pq.read_table(out, columns=["id"]).num_rows == rows // 4
    shutil.rmtree(out)

    def rewrite(how: str) -> None:
        subprocess.run([sys.executable, "-c", REWRITE, source, out, how], check=True)

    runners = {
        "headroute": lambda: project(place, "q.parquet", "p"),
        "pyarrow": lambda: rewrite("default"),
        "pyarrow-plain": lambda: rewrite("plain"),
    }
    result = in_turn(runners, out, 0 if quick else ROUNDS)
    source.unlink()
    return result


@pytest.fixture(scope="module")
def peaks(place: Path, router: Router, quick: bool) -> dict[str, float]:
    many = FEW_ROWS if quick else MANY_ROWS
    return {"peak_few": peak(place, FEW_ROWS), "peak_many": peak(place, many)}


@pytest.mark.parametrize("contender", ["headroute", "cp", "cp and sync", "kernel"])
def test_npy(
    npy_result: Result, contender: str, benchmark: Any, rows: int, peaks: dict[str, float]
) -> None:
    benchmark.group = ".npy to .npy"
    npy_result.replay(benchmark, contender, suite="npy files", **facts(rows), **peaks)


@pytest.mark.parametrize("contender", ["headroute", "pyarrow", "pyarrow-plain"])
def test_parquet(parquet_result: Result, contender: str, benchmark: Any, rows: int) -> None:
    benchmark.group = "Parquet to Parquet"
    parquet_result.replay(benchmark, contender, suite="parquet files", **facts(rows // 4))
