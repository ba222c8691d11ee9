"""How many threads there are, several Python threads at once, and fork after use."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from accuracy import exact, projection_tolerance

import headroute
from headroute import Router, _threads


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(_threads, "_chosen", None)
    for variable in ("HEADROUTE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    _threads._default.cache_clear()
    yield
    _threads._default.cache_clear()


# ---- how many


def test_set_num_threads():
    headroute.set_num_threads(5)
    assert headroute.get_num_threads() == 5
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"num_threads must be at least 1, got {bad}"):
            headroute.set_num_threads(bad)
    with pytest.raises(TypeError, match=r"num_threads must be an integer, got 2\.0"):
        headroute.set_num_threads(2.0)
    assert headroute.get_num_threads() == 5


def test_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert headroute.get_num_threads() == 3
    monkeypatch.setenv("HEADROUTE_NUM_THREADS", " 7 ")
    assert headroute.get_num_threads() == 3  # read once
    _threads._default.cache_clear()
    assert headroute.get_num_threads() == 7


@pytest.mark.parametrize("variable", ["HEADROUTE_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²"])
def test_a_bad_environment(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    message = f"{variable} must be an integer of at least 1, got {value!r}"
    with pytest.raises(ValueError, match=message):
        headroute.get_num_threads()


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("HEADROUTE_NUM_THREADS", "")
    assert headroute.get_num_threads() >= 1


def test_no_more_than_the_affinity_mask():
    if hasattr(os, "sched_getaffinity"):
        assert headroute.get_num_threads() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/host/path\n", {"cpu.max": "50000 100000\n"}, 1),
        (
            "4:cpu,cpuacct:/a\n1:name=systemd:/\n",
            {"cpu/a/cpu.cfs_quota_us": "400000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        (
            "4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            8,
        ),
        ("", {}, 8),
    ],
)
def test_cgroup_quotas(tmp_path, monkeypatch, groups, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, content in {"proc/self/cgroup": groups}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert _threads._usable_cpus(tmp_path) == cpus


# ---- at once


@pytest.fixture
def work(backend, rng):
    """A router, queries that are enough for several threads, and what comes of them."""
    router = Router(rng.standard_normal((70, 64)), rng.standard_normal((70, 32)), backend=backend)
    queries = rng.standard_normal((9000, 64), dtype=np.float32)
    weights, expected = exact(queries, router.centroids, router.answers, 0.1)
    tolerance = projection_tolerance(weights, router.answers, 64, 0.1)
    return router, queries, lambda result: (abs(result - expected) <= tolerance).all()


@pytest.mark.parametrize("num_threads", [1, 2, 3, 16])
def test_any_number_of_threads(work, num_threads):
    router, queries, right = work
    assert right(router.project(queries, num_threads=num_threads))


def test_several_python_threads_at_once(work):
    router, queries, right = work
    start = threading.Barrier(4)

    def run(_):
        start.wait()
        return all(right(router.project(queries, num_threads=2)) for _ in range(3))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [True] * 4


FORK = """
import os, sys
import numpy as np
from headroute import Router
rng = np.random.default_rng(0)
router = Router(rng.standard_normal((70, 64)), rng.standard_normal((70, 32)), backend=sys.argv[1])
queries = rng.standard_normal((9000, 64), dtype=np.float32)
before = router.project(queries, num_threads=2)
child = os.fork()
if child == 0:
    after = router.project(queries, num_threads=2)
    os._exit(0 if abs(after - before).max() < 1e-5 else 1)
_, status = os.waitpid(child, 0)
router.project(queries, num_threads=2)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_after_use(backend):
    command = [sys.executable, "-W", "ignore", "-c", FORK, backend]
    assert subprocess.run(command, timeout=120).returncode == 0
