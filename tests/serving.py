"""Processes that serve from one router's file, for tests/test_serving.py; run as a script.

    python tests/serving.py prefork PATH           a server of forked workers that loses one
    python tests/serving.py prefork-memory PATH N   Pss of such a server alone, and with N workers
    python tests/serving.py spawned PATH N         N spawned processes that load it at once
    python tests/serving.py spawned-memory PATH N  Pss of 1 and N of those, before and after it

A process of its own, because forking is safe only where no other thread runs. What was measured
goes to stdout as JSON. Every process that is started here is ended here.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path

import numpy as np

from headroute import Router, set_num_threads

WORKERS = 4
_SECONDS = 60  # until a process that does not answer is an error


def queries(d: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((9, d)).astype(np.float32)


def pss(pids: list[int]) -> int:
    """Bytes of memory of processes; of what several map, each has its share (Linux)."""
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return kilobytes << 10


@contextmanager
def started(processes):
    """Processes, each ended by its own id when the block is left."""
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def receive(connection: Connection):
    if not connection.poll(_SECONDS):
        raise TimeoutError("a worker does not answer")
    return connection.recv()


def serve(router: Router, listener: Listener) -> None:
    """A worker: the queries of a connection, projected."""
    while True:
        with listener.accept() as connection:
            rows = np.frombuffer(connection.recv_bytes(), np.float32).reshape(-1, router.query_dim)
            connection.send((os.getpid(), router.project(rows).tobytes()))


def ask(listener: Listener, rows: np.ndarray) -> tuple[int, bytes]:
    with Client(listener.address) as connection:
        connection.send_bytes(rows.tobytes())
        return receive(connection)


def answered_by(listener: Listener, rows: np.ndarray, expected: bytes, n: int) -> set[int]:
    """The ids of the workers that answered, once n of them have; all answers must be right."""
    pids: set[int] = set()
    for _ in range(2000):
        pid, projected = ask(listener, rows)
        assert projected == expected
        pids.add(pid)
        if len(pids) == n:
            return pids
    raise AssertionError(f"only {len(pids)} of {n} workers answer")


def prefork(path: str) -> dict[str, object]:
    router = Router.load(path, mmap=True)
    rows = queries(router.query_dim)
    expected = Router.load(path).project(rows).tobytes()
    context = multiprocessing.get_context("fork")

    def worker(listener: Listener):
        process = context.Process(target=serve, args=(router, listener))
        process.start()
        return process

    with Listener(("127.0.0.1", 0), backlog=64) as listener, started([]) as workers:
        workers += [worker(listener) for _ in range(WORKERS)]
        first = answered_by(listener, rows, expected, WORKERS)
        assert first == {process.pid for process in workers}
        os.kill(workers[0].pid, signal.SIGKILL)
        dead = wait([process.sentinel for process in workers], _SECONDS)
        assert dead == [workers[0].sentinel]
        workers[0].join()
        workers[0] = worker(listener)
        second = answered_by(listener, rows, expected, WORKERS)
        return {"kept": len(first & second), "new": len(second - first)}


def prefork_memory(path: str, n: int) -> dict[str, object]:
    set_num_threads(1)  # as where there are as many workers as CPUs; each thread has memory
    router = Router.load(path, mmap=True)
    rows = queries(router.query_dim)
    expected = router.project(rows).tobytes()
    one = pss([os.getpid()])
    context = multiprocessing.get_context("fork")
    with Listener(("127.0.0.1", 0), backlog=64) as listener, started([]) as workers:
        for _ in range(n):
            workers.append(context.Process(target=serve, args=(router, listener)))
            workers[-1].start()
        answered_by(listener, rows, expected, n)
        return {"one": one, "all": pss([os.getpid(), *(process.pid for process in workers)])}


def load_when_told(path: str, mapped: bool, connection: Connection) -> None:
    """A spawned worker: imports and everything else that has nothing to do with heads, then the
    router."""
    set_num_threads(1)
    small = np.ones((2, 2), np.float32)
    Router(small, small).project(small)
    connection.send(os.getpid())
    connection.recv()
    router = Router.load(path, mmap=mapped)
    projected = router.project(queries(router.query_dim))
    connection.send((hashlib.sha256(projected).hexdigest(), router.backend_info))
    connection.recv()


@contextmanager
def spawned_workers(path: str, n: int, mapped: bool):
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(n)]
    with started([]) as workers:
        for _, theirs in pipes:
            workers.append(context.Process(target=load_when_told, args=(path, mapped, theirs)))
            workers[-1].start()
        yield [ours for ours, _ in pipes]


def spawned(path: str, n: int) -> dict[str, object]:
    with spawned_workers(path, n, True) as connections:
        for connection in connections:
            receive(connection)
        for connection in connections:
            connection.send("load")
        results = [receive(connection) for connection in connections]
        return {"hashes": [result[0] for result in results], "infos": [r[1] for r in results]}


def spawned_memory(path: str, n: int) -> dict[str, object]:
    result: dict[str, object] = {}
    for mapped in (True, False):
        for count in (1, n):
            for cache in Path(path).parent.glob("*.packed"):
                cache.unlink()  # so that the one that packs is among those that are measured
            with spawned_workers(path, count, mapped) as connections:
                pids = [receive(connection) for connection in connections]
                without = pss(pids)
                for connection in connections:
                    connection.send("load")
                for connection in connections:
                    receive(connection)
                result[f"{'mapped' if mapped else 'read'} {count}"] = (without, pss(pids))
    return result


if __name__ == "__main__":
    command, path, *count = sys.argv[1:]
    function = globals()[command.replace("-", "_")]
    print(json.dumps(function(path, *map(int, count))))
