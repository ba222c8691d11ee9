"""What only the compiled kernels promise, on every instruction set of the machine: the same bits
whatever the batch, nothing written outside `out`, Ctrl-C, an exponential of known accuracy."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from headroute import Router, aligned_empty, available_backends, build_info

if "native" not in available_backends():
    pytest.skip(build_info()["unavailable"]["native"], allow_module_level=True)

ISAS = build_info()["native"]["isas_available"]


def make(rng, n, n_heads, d, e, temperature=0.05, precision=None):
    router = Router(
        rng.standard_normal((n_heads, d)),
        rng.standard_normal((n_heads, e)),
        temperature=temperature,
        precision=precision,
    )
    return router, rng.standard_normal((n, d), dtype=np.float32)


def project_into(router, queries, dtype):
    return router.project(queries, out=np.empty((len(queries), router.answer_dim), dtype))


# One block and several (K > 512, or K·(d + e) > 200 Ki), whole panels and parts.
SHAPES = [(1, 384, 384), (16, 384, 384), (33, 17, 5), (300, 384, 385), (513, 3, 2), (1100, 65, 31)]


@pytest.mark.parametrize(("n_heads", "d", "e"), SHAPES)
def test_same_bits_in_any_batch(isa, rng, n_heads, d, e):
    router, queries = make(rng, 211, n_heads, d, e)
    for method in (router.project, router.route):
        whole = method(queries, num_threads=1)
        for threads in (2, 3, 7):
            assert (method(queries, num_threads=threads) == whole).all()
        for size in (1, 2, 3, 4, 5, 7, 13, 14, 15, 100):
            parts = [method(queries[i : i + size]) for i in range(0, len(queries), size)]
            assert (np.concatenate(parts) == whole).all(), size
        order = rng.permutation(len(queries))
        assert (method(queries[order]) == whole[order]).all()
        assert (method(queries[::-1]) == whole[::-1]).all()


@pytest.mark.parametrize("precision", ["float32", "int16"])
def test_same_bits_with_heads_larger_than_the_caches(isa, rng, precision):
    """Each thread then has one share of the rows."""
    heads = rng.standard_normal((2, 2300, 1900), dtype=np.float32)
    router = Router(*heads, temperature=0.05, precision=precision)
    queries = rng.standard_normal((127, 1900), dtype=np.float32)
    whole = router.project(queries, num_threads=1)
    for threads in (2, 3, 7):
        assert (router.project(queries, num_threads=threads) == whole).all(), threads
    assert (
        np.vstack([router.project(queries[i : i + 9]) for i in range(0, 127, 9)]) == whole
    ).all()


@pytest.mark.parametrize("e", [7, 16, 17, 32, 500])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("precision", ["float32", "int16"])
def test_same_bits_past_the_caches(isa, rng, e, dtype, precision):
    """Output above 16 MiB goes past the caches: the same bits wherever `out` starts, also where
    rows are whole cache lines, share one, or a line has more than two of them."""
    n = (17 << 20) // (e * np.dtype(dtype).itemsize)
    router, queries = make(rng, n, 5, 8, e, precision=precision)
    parts = np.array_split(queries, 9)
    small = np.concatenate([project_into(router, part, dtype) for part in parts])
    memory = aligned_empty((n * e + 16,), dtype)
    for offset in (0, 1, 5, 15):
        out = memory[offset : offset + small.size].reshape(small.shape)
        memory[:] = np.nan
        assert (router.project(queries, out=out) == small).all()
        assert np.isnan(memory[:offset]).all()
        assert np.isnan(memory[offset + small.size :]).all()


@pytest.mark.parametrize("n", [1, 50])
def test_subnormal_answers_are_as_good_as_any(isa, rng, n):
    """Products with weights must not be rounded to what is left of float32 down there."""
    centroids, queries = rng.standard_normal((300, 16)), rng.standard_normal((n, 16))
    answers = (rng.standard_normal((300, 40)) * 1e-39).astype(np.float32)
    router = Router(centroids, answers, temperature=0.5)
    exact = Router(centroids, answers.astype(np.float64) * 2.0**100, temperature=0.5)
    exact = np.asarray(exact.project(queries), np.float64) * 2.0**-100
    np.testing.assert_allclose(router.project(queries), exact, rtol=0, atol=1.01 * 2.0**-149)


def test_a_column_of_tiny_answers_costs_nothing(isa, rng):
    """all-MiniLM-L6-v2 has columns of 1e-33; times small weights they made calls 5 times as long on
    CPUs that are slow at subnormal numbers."""
    centroids = rng.standard_normal((512, 64))
    plain = rng.standard_normal((512, 64))
    tiny = plain.copy()
    tiny[:, ::16] = 1e-33
    routers = [Router(centroids, answers, temperature=0.008) for answers in (plain, tiny)]
    queries = rng.standard_normal((2000, 64), dtype=np.float32)
    seconds = np.empty((9, 2))
    for lap in seconds:
        for i, router in enumerate(routers):
            started = time.perf_counter()
            router.project(queries, num_threads=1)
            lap[i] = time.perf_counter() - started
    best_plain, best_tiny = seconds.min(axis=0)
    assert best_tiny < 2 * best_plain


@pytest.mark.parametrize(("n_heads", "d", "e"), SHAPES)
@pytest.mark.parametrize("n", [1, 4, 13, 29])
def test_writes_out_and_nothing_else(isa, rng, n, n_heads, d, e):
    router, queries = make(rng, n, n_heads, d, e)
    for method, width in ((router.project, e), (router.route, n_heads)):
        memory = np.full(n * width + 64, 7.0, np.float32)
        out = memory[32 : 32 + n * width].reshape(n, width)
        out[:] = np.nan
        method(queries, out=out)
        assert np.isfinite(out).all()
        assert (memory[:32] == 7).all()
        assert (memory[32 + n * width :] == 7).all()


def test_several_blocks_with_the_best_head_anywhere(isa, rng):
    """The running maximum may rise in any block; what came before is scaled down."""
    n_heads, d = 1500, 16
    router, _ = make(rng, 1, n_heads, d, 8, temperature=0.002)
    best = np.array([0, 1, 511, 512, 700, 1023, 1024, 1499])
    projected = router.project(router.centroids[best])
    exact = Router(
        router.centroids, router.answers, temperature=0.002, backend="reference"
    ).project(router.centroids[best])
    # A logit is off by at most 2 (6 √d + 8) u / τ (tests/accuracy.py), a weight by that factor.
    tolerance = 4 * (6 * np.sqrt(d) + 8) * 2.0**-24 / 0.002 * np.abs(router.answers).max()
    np.testing.assert_allclose(projected, exact, rtol=0, atol=tolerance)


def test_first_bad_row_of_all_threads(isa, rng):
    router, queries = make(rng, 30_000, 64, 32, 32)
    queries[[29_000, 12_345, 17_000], 5] = np.nan
    for threads in (1, 2, 5):
        with pytest.raises(ValueError, match="query 12345 has a NaN or infinity in it"):
            router.project(queries, num_threads=threads)


def test_isa_is_the_one_asked_for(isa, rng):
    router, _ = make(rng, 1, 3, 4, 5)
    assert router.backend_info["isa"] == isa


def test_unknown_isa(monkeypatch, rng):
    monkeypatch.setenv("HEADROUTE_ISA", "avx1024")
    with pytest.raises(ValueError, match=r"HEADROUTE_ISA='avx1024'.*valid.*baseline"):
        make(rng, 1, 3, 4, 5)


def test_isa_in_a_fresh_process():
    for name in ISAS:
        run = subprocess.run(
            [
                sys.executable,
                "-c",
                "import headroute; print(headroute.Router([[1]], [[1]]).backend_info['isa'])",
            ],
            env={**os.environ, "HEADROUTE_ISA": name},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == name


def test_extension_is_safe_on_its_own():
    """Python checks first; whoever goes round it gets an exception, never a crash."""
    from headroute import _core

    eye = np.eye(3, dtype=np.float32)
    engine = _core.Engine(eye, eye)
    out = np.empty((3, 3), np.float32)
    with pytest.raises(TypeError):
        engine.project(eye.astype(np.float64), 0.1, out, 1)
    for queries, temperature, target in (
        (eye[:, :2], 0.1, out),
        (eye[:, ::-1], 0.1, out),
        (eye[0], 0.1, out),
        (eye, 0.0, out),
        (eye, 0.1, out[:2]),
        (eye, 0.1, out.T),
    ):
        with pytest.raises(ValueError, match=r"must be|must have"):
            engine.project(queries, temperature, target, 1)
    with pytest.raises(ValueError, match="no kernel 'mmx'"):
        _core.Engine(eye, eye, "mmx")
    with pytest.raises(ValueError, match="same number of rows"):
        _core.Engine(eye, eye[:2])


# Prints the extra memory of a call in MiB. In a process of its own: what other tests freed comes
# back in pages of 2 MiB.
EXTRA_MEMORY = """
import sys
from pathlib import Path

import numpy as np
from headroute import Router

method, precision, *sizes = sys.argv[1:]
n, n_heads, d, e = map(int, sizes)
rng = np.random.default_rng(0)
queries = rng.standard_normal((n, d), np.float32)
router = Router(
    rng.standard_normal((n_heads, d), np.float32),
    rng.standard_normal((n_heads, e), np.float32),
    temperature=0.01,
    tolerance=0.01,
    precision=precision,
)
getattr(router, method)(queries[:1])  # packs
out = np.ones((n, e if method == "project" else n_heads), np.float32)

def peak():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024

Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = peak()
getattr(router, method)(queries, out=out, num_threads=2)
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of the process"
)
@pytest.mark.parametrize(
    ("method", "precision"),
    [("project", "float32"), ("route", "float32"), ("project", "int16"), ("project", "screened")],
)
@pytest.mark.parametrize(
    ("n", "n_heads", "d", "e"), [(400, 20_000, 96, 96), (20_000, 700, 384, 1024)]
)
def test_extra_memory_of_a_call(isa, method, precision, n, n_heads, d, e):
    """At most 8 MiB a thread, whatever N and K: what tracemalloc cannot see."""
    command = [sys.executable, "-c", EXTRA_MEMORY, method, precision, n, n_heads, d, e]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    # A thread's stack and the allocator's rounding are in the figure too.
    assert float(done.stdout) <= 2 * 8 + 1


def test_ctrl_c_ends_a_long_call():
    """About a minute of work is interrupted within a second, and the process lives on."""
    script = """
        import os, signal, threading, time, numpy as np, headroute
        heads = np.random.default_rng(0).standard_normal((4096, 384))
        router = headroute.Router(heads, heads)
        queries = np.broadcast_to(heads[:1].astype(np.float32), (2_000_000, 384))
        out = np.empty(queries.shape, np.float32)
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.perf_counter()
        try:
            router.project(queries, out=out)
        except KeyboardInterrupt:
            print(time.perf_counter() - start, router.project(queries[:3]).shape)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    seconds, shape = run.stdout.split(maxsplit=1)
    assert 0.6 < float(seconds) < 1.7
    assert shape.strip() == "(3, 384)"


def test_a_daemon_thread_may_outlive_the_interpreter():
    """Python ends such a thread when it asks for the GIL again; that must not abort the process."""
    script = """
        import threading, time, numpy as np, headroute
        heads = np.random.default_rng(0).standard_normal((4096, 384))
        router = headroute.Router(heads, heads)
        queries = np.broadcast_to(heads[:1].astype(np.float32), (100_000, 384))
        out = np.empty(queries.shape, np.float32)
        threading.Thread(target=lambda: router.project(queries, out=out), daemon=True).start()
        time.sleep(0.2)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")


AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
FLAGS = {
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "amx": [*AVX512, "-mavx512vnni"],  # one text for both
    "avx512": AVX512,
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
}


@pytest.mark.parametrize("num_threads", [10**6, 2**62, 2**63, 2**64, 10**30])
def test_absurd_numbers_of_threads(isa, rng, num_threads):
    router, queries = make(rng, 3000, 64, 64, 64)
    expected = router.project(queries, num_threads=1)
    assert (router.project(queries, num_threads=num_threads) == expected).all()


def test_a_single_row_of_a_record(isa, rng):
    """Its row stride is no multiple of an element, and does not matter."""
    router, queries = make(rng, 9, 5, 8, 3)
    records = np.zeros(9, dtype=[("flag", "i1"), ("vector", "f4", (8,))])
    records["vector"] = queries
    expected = router.project(queries)
    assert (router.project(records["vector"]) == expected).all()
    for i in range(9):
        assert (router.project(records["vector"][i : i + 1]) == expected[i]).all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles a program")
def test_exp2_over_all_floats(isa, tmp_path):
    """Faithful to 1 ulp with fused multiply-add; 1.3 ulp without (its last step rounds twice)."""
    source = Path(__file__).with_name("exp2_ulp.cpp")
    program = tmp_path / "exp2_ulp"
    subprocess.run(
        [
            "g++",
            "-O2",
            "-std=c++17",
            "-ffp-contract=off",
            "-Wno-psabi",
            *FLAGS[isa],
            source,
            "-o",
            program,
        ],
        check=True,
    )
    worst, _, nonzero = subprocess.run(
        [program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(worst) <= (1.3 if isa == "baseline" else 1.0)
    assert nonzero == "0"
