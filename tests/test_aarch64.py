"""The kernel of aarch64, cross-compiled and run under emulation, within the bounds that hold on
every instruction set. On an Arm machine all other tests run on it; here no other test does."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from accuracy import assert_within, exact, projection_tolerance, weight_tolerance

from headroute._backends._units import unit_centroids
from headroute.precision import (
    HeadRounding,
    Int16Errors,
    ScreenedErrors,
    float32_bound,
    underflow,
)

COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
PACKAGES = "g++-aarch64-linux-gnu and qemu-user-static (Debian's names)"
HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
# As in CMakeLists.txt.
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-DHEADROUTE_HAVE_BASELINE"]
FLAGS += ["-Wall", "-Wextra", "-Wshadow", "-Wno-psabi", "-Werror"]
ISA_FLAGS = ["-fno-exceptions", "-fno-math-errno", "-fno-schedule-insns"]

SIZES = (1, 2, 3, 15, 16, 17, 31, 33, 65, 300, 513, 1100)
ROWS = (1, 2, 5, 12, 13, 29, 211)
TEMPERATURES = (0.01, 0.1, 10.0)
MAY_DROP = 1e-3
MOST_TOP = 7
# Several blocks of heads, tiles shared by threads, output larger than the caches; at the first
# temperature, where a search pays.
LARGE = ((1100, 65, 31, 211), (1100, 300, 513, 12), (1100, 513, 300, 29), (2, 3, 513, 8300))


class Case(NamedTuple):
    centroids: np.ndarray  # float32 (K, d)
    answers: np.ndarray  # float32 (K, e)
    queries: np.ndarray  # float32 (N, d)
    temperature: float
    ordinary: np.ndarray  # bool (N,): neither zero nor of an awkward length
    bad_row: int  # -1 if there is none

    @property
    def top(self):
        return min(len(self.centroids), MOST_TOP)


class Projected(NamedTuple):
    """What the kernel says of a case in one precision."""

    bad_row: int
    heads: HeadRounding
    out: np.ndarray  # float32 (N, e)
    account: np.ndarray  # float32 (N, 2)


class Results(NamedTuple):
    float32: Projected
    int16: Projected
    screened: Projected
    weights: np.ndarray  # float32 (N, K)
    top_weights: np.ndarray  # float32 (N, k)
    top_heads: np.ndarray  # int64 (N, k)


def make_case(rng, n_heads, d, e, n, temperature):
    """A quarter of the heads are there twice; every second query is near a head."""
    centroids = rng.standard_normal((n_heads, d))
    quarter = n_heads // 4
    centroids[n_heads - quarter :] = centroids[:quarter]
    queries = rng.standard_normal((n, d))
    some = centroids[rng.integers(n_heads, size=(n + 1) // 2)]
    queries[::2] += 2 * np.sqrt(d) * some / np.linalg.norm(some, axis=1, keepdims=True)
    queries *= np.exp(rng.uniform(-5, 5, (n, 1)))
    ordinary = np.ones(n, bool)
    if n >= 5:
        queries[1:4] *= np.array([0, 1e-30, 1e30])[:, None]
        ordinary[1:4] = False
    return Case(
        centroids.astype(np.float32),
        rng.standard_normal((n_heads, e)).astype(np.float32),
        queries.astype(np.float32),
        temperature,
        ordinary,
        -1,
    )


def make_cases():
    rng = np.random.default_rng(64)
    sizes = [
        (n_heads, SIZES[5 * i % 12], SIZES[(7 * i + i // 12) % 12], n)
        for i, (n_heads, n) in enumerate(product(SIZES, ROWS))
    ]
    # Emulation does about 200 million multiply-adds a second.
    sizes = [(k, d, e, n) for k, d, e, n in sizes if k * n * (d + e) < 6e6]
    for values, column in zip((SIZES, SIZES, SIZES, ROWS), zip(*sizes, strict=True), strict=True):
        assert set(values) <= set(column)
    for i, size in enumerate(sizes):
        yield make_case(rng, *size, TEMPERATURES[i % 3])
    for size in LARGE:
        yield make_case(rng, *size, TEMPERATURES[0])
    for (n_heads, d, e, n), bad_row in (
        ((3, 17, 2, 1), 0),
        ((33, 65, 31, 29), 17),
        (LARGE[0], 100),
    ):
        case = make_case(rng, n_heads, d, e, n, 0.1)
        case.queries[bad_row, d // 2] = np.nan
        case.queries[bad_row + 1 :, d - 1] = -np.inf
        yield case._replace(bad_row=bad_row)


def write_case(file, case):
    sizes = (*case.centroids.shape, case.answers.shape[1], len(case.queries), case.top)
    file.write(np.array(sizes, np.uint64).tobytes())
    file.write(np.array([case.temperature, MAY_DROP]).tobytes())
    for array in (unit_centroids(case.centroids), case.answers, case.queries):
        file.write(array.tobytes())


def read_results(file, case):
    def read(dtype, *shape):
        values = np.fromfile(file, dtype, count=int(np.prod(shape)))
        return values.reshape(shape)

    n, n_heads = len(case.queries), len(case.centroids)
    projected = [
        Projected(
            int(read(np.int64, 1)[0]),
            HeadRounding(*read(np.float64, 7)),
            read(np.float32, n, case.answers.shape[1]),
            read(np.float32, n, 2),
        )
        for _ in range(3)
    ]
    return Results(
        *projected,
        read(np.float32, n, n_heads),
        read(np.float32, n, case.top),
        read(np.int64, n, case.top),
    )


def compile_program(folder):
    def run(*arguments):
        subprocess.run([COMPILER, *FLAGS, *arguments], check=True)

    def compile_object(source):
        extra = ISA_FLAGS if source.name.startswith("isa_") else []
        run(*extra, "-I", CSRC, "-c", source, "-o", folder / f"{source.stem}.o")

    sources = [s for s in CSRC.glob("*.cpp") if s.stem != "bindings" and not s.match("isa_*.cpp")]
    # The slowest first.
    sources = [CSRC / "isa_baseline.cpp", HERE / "aarch64" / "check.cpp", *sources]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_object, sources))
    run("-static", *folder.glob("*.o"), "-o", folder / "check")
    return folder / "check"


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Cases and their results; the program has compared the bits of all ways to compute a row."""
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if emulator is None or shutil.which(COMPILER) is None:
        reason = f"needs {COMPILER} and {EMULATORS[0]}, of the packages {PACKAGES}"
        if os.environ.get("HEADROUTE_REQUIRE_AARCH64") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("aarch64")
    program = compile_program(folder)
    cases = list(make_cases())
    with open(folder / "cases", "wb") as file:
        for case in cases:
            write_case(file, case)
    run = subprocess.run(
        [emulator, program, folder / "cases", folder / "results"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{len(cases)} cases\n"
    with open(folder / "results", "rb") as file:
        results = [read_results(file, case) for case in cases]
        assert file.read() == b""
    return list(zip(cases, results, strict=True))


@pytest.fixture(scope="module")
def finite(judged):
    """Those without a bad row, each with its projections in float64."""
    return [
        (case, results, *exact(case.queries, case.centroids, case.answers, case.temperature))
        for case, results in judged
        if case.bad_row < 0
    ]


def name(case):
    return (*case.centroids.shape, *case.answers.shape[1:], len(case.queries), case.temperature)


def assert_rows_within(case, projected, expected, bounds):
    """Every row's error within its bound, in units of the largest ‖a‖."""
    unit = np.linalg.norm(case.answers.astype(np.float64), axis=1).max()
    error = np.linalg.norm(projected - expected, axis=1) / unit
    bad = np.flatnonzero(~(error <= bounds))
    message = f"{name(case)}: rows {bad} are off by {error[bad]}, bound {np.max(bounds, initial=0)}"
    assert len(bad) == 0, message


def test_float32(finite):
    for case, results, weights, expected in finite:
        n_heads, d = case.centroids.shape
        bound = float32_bound(n_heads, d, case.temperature, chains=True) + underflow(case.answers)
        assert_rows_within(case, results.float32.out, expected, bound)
        likely = projection_tolerance(weights, case.answers, d, case.temperature)
        assert_within(results.float32.out, expected, likely)
        assert_within(results.weights, weights, weight_tolerance(weights, d, case.temperature))


def test_int16(finite):
    for case, results, _, expected in finite:
        _, heads, out, account = results.int16
        errors = Int16Errors(heads, *case.centroids.shape, underflow(case.answers), cost=1.0)
        bounds = errors.bounds(account, case.temperature)
        assert (bounds <= errors.worst(case.temperature)).all(), name(case)
        assert_rows_within(case, out, expected, bounds)


def test_screened(finite):
    n_done = 0
    for case, results, _, expected in finite:
        n_heads, d = case.centroids.shape
        _, heads, out, account = results.screened
        errors = ScreenedErrors(heads, d, underflow(case.answers))
        dropped = account[:, 0]
        done = np.isfinite(dropped)
        assert (dropped[done] <= MAY_DROP).all(), name(case)
        if n_heads <= 64:  # a list has room for all of them
            assert done[case.ordinary].all(), name(case)
        else:
            n_done += done.sum()
        bounds = errors.bounds(account[done], case.temperature)
        assert_rows_within(case, out[done], expected[done], bounds)
    assert n_done > 100


def test_top_heads(finite):
    for case, results, weights, _ in finite:
        tolerance = weight_tolerance(weights, case.centroids.shape[1], case.temperature)
        heads, top_weights = results.top_heads, results.top_weights
        assert all(len(set(row)) == case.top for row in heads.tolist()), name(case)
        own, allowed = (np.take_along_axis(a, heads, axis=1) for a in (weights, tolerance))
        assert_within(top_weights, own, allowed)
        heaviest = -np.sort(-weights, axis=1)[:, : case.top]
        assert_within(top_weights, heaviest, -np.sort(-tolerance, axis=1)[:, : case.top])


def test_bad_rows(judged):
    for case, results in judged:
        for projected in results[:3]:
            assert projected.bad_row == case.bad_row, name(case)
