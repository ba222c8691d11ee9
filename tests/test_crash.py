"""kill -9 while the database is written: it is then as it was before, or as it is after.

A worker process forks a child for each attempt. The child kills itself at a given step, a step
being an SQL statement or an operation on a file; or the worker kills it after a given time, which
also hits the inside of a commit.
"""

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from headroute.database import Database, DatabaseError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

STEPS = 40  # so many of a command's steps (about 70 to 220) are tried,
TIMES = 15  # and so many times

WORKER = '''
import json, os, signal, sqlite3, sys, time
import numpy as np
from headroute.database import Database
from headroute.qa_files import ClusterRecord

MODEL = "model"


def clusters(numbers, edition):
    return [
        ClusterRecord(
            f"cluster {i}",
            "source",
            [("default", f"answer {i} of edition {edition if i % 3 else 1}")],
            [(f"question {j} on {i}, edition {edition if j else 1}", None) for j in range(3)],
        )
        for i in numbers
    ]


def vectors(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)


def import_new(path):
    with Database.create(path) as db:
        db.import_clusters(clusters(range(6), 1), "qa")


def import_changed(path):
    with Database.open(path) as db:
        db.import_clusters(clusters(range(2, 8), 2), "qa")


def store_embeddings(path):
    with Database.open(path) as db:
        ids = [i for i, _ in db.texts_without_embedding(MODEL, "answer")]
        db.store_embeddings(MODEL, "answer", ids, vectors(len(ids), 1))


def store_heads(path):
    with Database.open(path) as db:
        ids = [c.cluster_id for c in db.clusters()]
        k = len(ids)
        db.store_projection(MODEL, "heads", 0.1, ids, vectors(k, 2), vectors(k, 3), [3] * k)


def train(path):
    with Database.open(path) as db, db.transaction():
        ids = [i for i, _ in db.texts_without_embedding(MODEL, "question")]
        db.store_embeddings(MODEL, "question", ids, vectors(len(ids), 1))
        ids = [i for i, _ in db.texts_without_embedding(MODEL, "answer")]
        db.store_embeddings(MODEL, "answer", ids, vectors(len(ids), 1))
        ids = [c.cluster_id for c in db.clusters()]
        k = len(ids)
        db.store_projection(MODEL, "heads", 0.1, ids, vectors(k, 2), vectors(k, 3), [3] * k)


def run(command, path, last):
    """Run a command, say how many steps it had, and be killed before the last one given."""
    steps = 0

    def step(*_):
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(event, _):
        if event in ("open", "os.listdir", "os.mkdir", "os.remove", "os.rename"):
            step()

    def connect(*args, **options):
        connection = real_connect(*args, **options)
        connection.set_trace_callback(step)
        return connection

    real_connect, sqlite3.connect = sqlite3.connect, connect
    sys.addaudithook(on_event)
    globals()[command](path)
    os.write(1, f"{steps} ".encode())


for line in sys.stdin:
    command, path, last, seconds = json.loads(line)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run(command, path, last)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)  # not waited for yet: the number is still the child's
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(1, f"{status}\\n".encode())
'''


class Worker:
    def __init__(self, script: Path):
        script.write_text(WORKER)
        self.process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )

    def run(self, command, path, last=0, seconds=None):
        """Run a command; it is killed before its step `last`, or after some seconds.

        Returns how many steps it had, 0 if it was killed.
        """
        self.process.stdin.write(json.dumps([command, str(path), last, seconds]) + "\n")
        self.process.stdin.flush()
        *steps, status = map(int, self.process.stdout.readline().split())
        assert status in (0, -9)
        return steps[0] if status == 0 else 0

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait() == 0


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    worker = Worker(tmp_path_factory.mktemp("worker") / "worker.py")
    yield worker
    worker.close()


def state(path):
    """All rows of all tables; nothing when there is no database yet.

    Without times, and without the folder in paths: a copied database is at home after a first
    transaction of its own, which changes no vector.
    """
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = {}
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            rows = connection.execute(f"SELECT * FROM {table}")
            kept = [i for i, column in enumerate(rows.description) if column[0][-3:] != "_at"]
            tables[table] = sorted(
                re.sub(r"'[^']*/embeddings/", "'", repr([row[i] for i in kept])) for row in rows
            )
        return tables


def check_files(path, *, complete):
    """Rows that name a file of this folder find their vector in it.

    `complete`: all do so, and no other file is there.
    """
    with closing(sqlite3.connect(path)) as connection:
        stored = dict(
            connection.execute(
                "SELECT path, vector FROM headroute_vectors WHERE path NOT LIKE '%/question_%'"
            )
        )
    folder = path.parent / "embeddings"
    for name, vector in stored.items():
        if Path(name).parent == folder:
            assert np.load(name).tobytes() == vector
    if complete:
        assert {str(file) for file in folder.glob("*")} == stored.keys()


BEFORE = {
    "import_new": [],
    "import_changed": ["import_new", "train"],
    "store_embeddings": ["import_new"],
    "store_heads": ["import_new", "train"],
    "train": ["import_new", "train", "import_changed"],
}


@pytest.mark.parametrize(
    ("command", "copied"), [(command, False) for command in BEFORE] + [("train", True)]
)
def test_killed_at_any_point(worker, tmp_path, command, copied):
    """`copied`: the database was made in another folder, and some files did not come along."""
    made, start = tmp_path / "made", tmp_path / "start"
    made.mkdir()
    for earlier in BEFORE[command]:
        assert worker.run(earlier, made / "lda.db")
    before = state(made / "lda.db")
    shutil.copytree(made, start)
    folder = tmp_path / "copy" if copied else made
    path = folder / "lda.db"
    if copied:
        for file in start.glob("embeddings/*_centroid.npy"):
            file.unlink()
        shutil.copytree(start, folder)

    begin = time.perf_counter()
    steps = worker.run(command, path)
    duration = time.perf_counter() - begin
    after = state(path)
    assert after != before
    check_files(path, complete=True)

    rng = random.Random(command)
    attempts = [(step, None) for step in sorted(rng.sample(range(1, steps + 1), STEPS))]
    attempts += [(steps, None)]
    attempts += [(0, rng.uniform(0, duration)) for _ in range(TIMES)]
    seen = []
    for attempt in attempts:
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        done = worker.run(command, path, *attempt)
        assert not (done and attempt[0])  # the last step, too, is before the end
        # The first to open it reads alone: it must find its way past a journal all the same.
        problem = ""
        try:
            with Database.open(path, read_only=True) as db:
                assert all(c.question_ids and c.answer_ids for c in db.clusters())
                if db.summary()["projections"]:
                    assert db.projection().centroids.shape[1] == 16
            check_files(path, complete=False)
        except DatabaseError as error:
            problem = str(error)
        if problem:
            assert before == {}
            assert re.search("no such database|the database is empty", problem)
        now = state(path)
        assert now in (before, after), attempt
        seen.append(now == before)

        assert worker.run(command, path), attempt
        check_files(path, complete=True)
        if now == before:
            assert state(path) == after, attempt
    assert any(seen)
    assert not all(seen)
