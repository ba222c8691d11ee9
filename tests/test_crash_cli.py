"""kill -9 in the middle of `headroute import` and `headroute train`.

Afterwards the database is as it was before the command or as it is after it, and the same command,
run again, completes.
"""

import hashlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")

CLUSTERS, QUESTIONS = 300, 10
TIMES = 10  # kills of each command at random times

# The command with an encoder that needs no model: a run takes half a second, not five.
COMMAND = """
import hashlib, sys
import numpy as np
from headroute import cli, loading

class Encoder:
    dimension, where = 64, "test"

    def encode_queries(self, texts, progress=None):
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
        return np.stack([np.random.default_rng(s).standard_normal(64, np.float32) for s in seeds])

    encode_documents = encode_queries

loading.Encoder = lambda model: Encoder()
sys.exit(cli.main(sys.argv[1:]))
"""


def start(folder: Path, command: str) -> subprocess.Popen:
    arguments = {"import": ["import", "faq.csv"], "train": ["train", "--validate"]}[command]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(folder: Path, command: str) -> float:
    """Run to the end and return the seconds it took."""
    begin = time.perf_counter()
    with start(folder, command) as running:
        _, err = running.communicate()
    assert (running.returncode, err) == (0, "")
    return time.perf_counter() - begin


def state(folder: Path) -> str | None:
    """A digest of all rows (but not their times) and vector files; None without tables."""
    digest = hashlib.sha256()
    path = folder / "lda.db"
    if not path.exists():
        return None
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master ORDER BY name")]
        tables = [name for name in tables if not name.startswith(("sqlite_", "idx_"))]
        if not tables:
            return None
        for table in tables:
            columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
            kept = ", ".join(sorted(columns - {"created_at", "started_at", "completed_at"}))
            for row in db.execute(f"SELECT {kept} FROM {table} ORDER BY {kept}") if kept else ():
                digest.update(repr((table, row)).replace(str(folder), "").encode())
        for (name,) in db.execute(
            "SELECT vector_path FROM embeddings WHERE entity_type = 'answer'"
            " UNION SELECT centroid_path FROM cluster_heads"
            " UNION SELECT answer_emb_path FROM cluster_heads ORDER BY 1"
        ):
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


@pytest.fixture
def folder_before(tmp_path) -> Callable[[str], Path]:
    """folder_before(command) -> a new folder in the state that the command starts from"""

    def make(command: str) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        with open(folder / "faq.csv", "w") as file:
            file.write("question,answer,cluster_id\n")
            for i in range(CLUSTERS):
                for j in range(QUESTIONS):
                    file.write(f"question {j} about {i},the answer to {i},cluster {i}\n")
        if command == "train":
            complete(folder, "import")
        return folder

    return make


def check(folder: Path, command: str, before: str | None, after: str | None) -> None:
    assert state(folder) in (before, after)
    complete(folder, command)
    assert state(folder) == after


@pytest.mark.parametrize("command", ["import", "train"])
def test_killed_at_any_time(folder_before, command) -> None:
    whole = folder_before(command)
    before = state(whole)
    seconds = complete(whole, command)
    after = state(whole)
    assert before != after
    rng = random.Random(1)
    for number in range(TIMES):
        folder = folder_before(command)
        # Spread over the run, most of it in the second half: before that Python is still importing.
        wait = seconds * (0.3 + 0.7 * (number + rng.random()) / TIMES)
        with start(folder, command) as running:
            time.sleep(wait)
            running.kill()
        check(folder, command, before, after)


@pytest.mark.parametrize("command", ["import", "train"])
def test_killed_inside_the_transaction(folder_before, command) -> None:
    whole = folder_before(command)
    before = state(whole)
    complete(whole, command)
    after = state(whole)
    folder = folder_before(command)
    with start(folder, command) as running:
        # SQLite's journal is there from the first write to the commit.
        while not any((folder / f"lda.db{suffix}").exists() for suffix in ("-journal", "-wal")):
            assert running.poll() is None, "the transaction was over before it was seen"
        running.kill()
    assert running.returncode == -signal.SIGKILL
    check(folder, command, before, after)
