"""Tiles of AMX belong to a thread as registers do, and to a process only if it asks for them."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from headroute import Router, build_info

NATIVE = build_info()["native"] or {"isas_available": []}
pytestmark = pytest.mark.skipif("amx" not in NATIVE["isas_available"], reason="no AMX here")


@pytest.fixture
def amx(monkeypatch):
    monkeypatch.setenv("HEADROUTE_ISA", "amx")


def test_somebody_else_uses_the_tiles(amx, rng):
    """A signal handler runs between two blocks of heads, and multiplies matrices with tiles of its
    own shape."""
    torch = pytest.importorskip("torch")
    router = Router(
        rng.standard_normal((3000, 384)), rng.standard_normal((3000, 384)), precision="int16"
    )
    queries = rng.standard_normal((40_000, 384)).astype(np.float32)
    expected = router.project(queries, num_threads=1)
    matrix = torch.randn(33, 70).bfloat16()
    calls = []

    def handler(*_):
        calls.append(float((matrix @ matrix.T).float().sum()))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        projected = router.project(queries, num_threads=1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(calls) > 1
    assert (projected == expected).all()


def test_a_child_may_use_them(amx, rng):
    router = Router(rng.standard_normal((90, 40)), rng.standard_normal((90, 7)), precision="int16")
    queries = rng.standard_normal((50, 40)).astype(np.float32)
    expected = router.project(queries)
    child = os.fork()
    if child == 0:
        os._exit(0 if (router.project(queries) == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_process_that_may_not_have_them():
    """Linux refuses tiles where a signal stack could not hold them: the next kernel is taken."""
    script = """
        import ctypes

        class Stack(ctypes.Structure):
            _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

        size = 6144
        memory = ctypes.create_string_buffer(size)
        stack = Stack(ctypes.addressof(memory), 0, size)
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0

        import numpy as np
        from headroute import Router, build_info

        assert "amx" not in build_info()["native"]["isas_available"]
        router = Router(np.eye(80), np.eye(80), precision="int16")
        assert router.backend_info["isa"] == "avx512vnni"
        assert router.project(np.eye(80)[3]).argmax() == 3
    """
    environment = {name: v for name, v in os.environ.items() if name != "HEADROUTE_ISA"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
