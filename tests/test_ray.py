"""headroute.ray on a cluster of three nodes, on this machine and its loopback address alone.

Each node has 4 logical CPUs, and an actor takes 3: no node has two, and the CPUs that are left read
and write. What a job does is compared by id with the same run on one machine. Jobs that
are to be hit in the middle run in a process of their own, with a router that takes its time and
leaves a mark for every block, by the name of its node.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headroute
import headroute.batch.task
import headroute.ray
from headroute import Router
from headroute.batch.manifest import Manifest
from headroute.batch.sinks import MANIFEST
from headroute.batch.task import Task
from headroute.cli import main

ray = pytest.importorskip("ray")

pytestmark = [
    # Ray copies its settings one by one, those that it deprecates too.
    pytest.mark.filterwarnings(f"ignore:{name} is deprecated:DeprecationWarning:ray.data.context")
    for name in ("`use_push_based_shuffle`", "`use_polars`", "`use_arrow_tensor_v2`")
]

FILES, ROWS, D, E = 24, 500, 64, 64
# Of Ray: about one file, and more than the 100 kB that the driver keeps for itself: what a node
# makes is lost with it.
BLOCK_BYTES = 140_000
JOB = """
import json, pathlib, sys, time, uuid
import ray, headroute, headroute.ray

_, address, router, inputs, output, marks = sys.argv

class Slow(headroute.Router):
    __slots__ = ()

    def project(self, queries, **options):
        if len(queries):
            time.sleep(0.3)
            node = ray.get_runtime_context().get_node_id()
            pathlib.Path(marks, f"{node}.{uuid.uuid4()}").touch()
        return super().project(queries, **options)

ray.data.DataContext.get_current().target_max_block_size = %d
report = headroute.ray.project_files(
    Slow.load(router), [inputs], output, address=address, num_cpus=3, actors=ACTORS, id_column="id"
)
print(json.dumps(vars(report)))
"""


@pytest.fixture(scope="module")
def cluster():
    """Three nodes; the driver is on the first."""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="hr")  # paths of sockets are at most 107 bytes long
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Where Ray notes the latest cluster; it takes for granted that the folder is there.
        patch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        # For processes that connect from now on, and for this one: keep to 127.0.0.1, which Ray
        # replaces by this machine's address in its network otherwise.
        patch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        cluster = Cluster()
        try:
            common = {
                "node_ip_address": "127.0.0.1",
                "object_store_memory": 80 << 20,
                "include_dashboard": False,
            }
            system = {
                "idle_worker_killing_time_threshold_ms": 60_000,  # they take seconds to start
                "health_check_initial_delay_ms": 1000,
                "health_check_period_ms": 500,
                "health_check_timeout_ms": 2000,
                "health_check_failure_threshold": 3,
            }
            cluster.add_node(num_cpus=4, temp_dir=folder, _system_config=system, **common)
            for _ in range(2):
                cluster.add_node(num_cpus=4, temp_dir=folder, **common)
            ray.init(cluster.address, log_to_driver=False, logging_level="warning")
            context = ray.data.DataContext.get_current()
            context.target_max_block_size = BLOCK_BYTES
            context.enable_progress_bars = False
            # Of the actors that leave out what is done: one is enough, each takes seconds to start.
            config = ray.data.checkpoint.CheckpointConfig
            patch.setattr(config, "CHECKPOINT_ACTOR_POOL_MAX_SIZE", 1)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def heads():
    rng = np.random.default_rng(5)
    return Router(rng.standard_normal((40, D)), rng.standard_normal((40, E)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    rng = np.random.default_rng(6)
    for number in range(FILES):
        ids = np.arange(ROWS) + number * ROWS
        queries = rng.standard_normal((ROWS, D), dtype=np.float32)
        pq.write_table(table_of(ids, queries), folder / f"{number:03}.parquet")
    return folder


@pytest.fixture(scope="module")
def expected(heads, inputs, tmp_path_factory):
    """The same by one machine, by id."""
    folder = tmp_path_factory.mktemp("single") / "out"
    headroute.batch.project_files(heads, [inputs], folder)
    return by_id(folder)


def table_of(ids, queries):
    lists = pa.FixedSizeListArray.from_arrays(queries.reshape(-1), queries.shape[1])
    return pa.table({"id": ids, "text": [f"question {i}" for i in ids], "embedding": lists})


def by_id(folder):
    """All rows of a folder of results, in the order of their ids."""
    paths = sorted(Path(folder).glob("*.parquet"))
    return pa.concat_tables(map(pq.read_table, paths)).sort_by("id").combine_chunks()


def start_job(cluster, heads, inputs, tmp_path, actors):
    heads.save(tmp_path / "heads.safetensors")
    marks = tmp_path / "marks"
    marks.mkdir()
    arguments = [cluster.address, tmp_path / "heads.safetensors", inputs, tmp_path / "out", marks]
    script = (JOB % BLOCK_BYTES).replace("ACTORS", str(actors))
    with open(tmp_path / "log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=log,
        )


def wait_until(condition, job, tmp_path):
    limit = time.monotonic() + 60
    while not condition():
        assert job.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < limit, (tmp_path / "log").read_text()
        time.sleep(0.05)


def marked_nodes(tmp_path):
    """How many blocks each node has projected."""
    names = [name.split(".")[0] for name in os.listdir(tmp_path / "marks")]
    return {name: names.count(name) for name in names}


def test_the_bits_of_one_machine(cluster, heads, inputs, expected, tmp_path):
    out = tmp_path / "out"
    report = headroute.ray.project_files(heads, [inputs], out, num_cpus=3, actors=3)
    assert (report.rows, report.resumed_rows, report.inputs) == (FILES * ROWS, 0, FILES)
    assert (report.nodes, report.nodes_lost) == (3, 0)
    assert len(list(out.glob("*.parquet"))) > 3  # more than one block was on its way
    assert by_id(out).equals(expected)


def test_a_bad_row_is_named(cluster, heads, tmp_path):
    queries = np.ones((ROWS, D), np.float32)
    queries[77, 3] = np.nan
    table = table_of(np.arange(ROWS), queries)
    pq.write_table(table, tmp_path / "in.parquet")
    arguments = ([tmp_path / "in.parquet"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"^column 'embedding': a query \(an id column would"):
        headroute.ray.project_files(heads, *arguments, actors=1)
    message = "^column 'embedding': the query with text question 77 has a NaN or infinity in it$"
    with pytest.raises(ValueError, match=message) as caught:
        headroute.ray.project_files(heads, *arguments, actors=1, id_column="text")
    assert type(caught.value) is ValueError
    report = headroute.ray.project_files(
        heads, *arguments, actors=1, id_column="text", on_bad="null"
    )
    assert report.rows == ROWS
    projected = by_id(tmp_path / "out")["projected"]
    assert np.flatnonzero(projected.is_null()).tolist() == [77]


def test_what_is_known_before(cluster, heads, inputs, tmp_path):
    """No job is started for what cannot be."""
    dataset = ray.data.read_parquet(str(inputs))
    with pytest.raises(ValueError, match="there must be one column 'vector', found no column"):
        headroute.ray.project(dataset, heads, "vector")
    with pytest.raises(ValueError, match=r"64 numbers a row, the heads expect 5: embedded with"):
        headroute.ray.project(dataset, Router(np.eye(5), np.eye(5)))
    with pytest.raises(ValueError, match=r"4 actors of 3 CPUs .* have 4 \+ 4 \+ 4 CPUs, .* 1 to"):
        headroute.ray.project(dataset, heads, num_cpus=3, actors=4)
    with pytest.raises(ValueError, match=r"id column 'projected'"):
        headroute.ray.project(dataset, heads, id_column="projected")
    with pytest.raises(ValueError, match="a checkpoint needs an id_column"):
        headroute.ray.project(dataset, heads, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="num_threads is the num_cpus of an actor"):
        headroute.ray.project(dataset, heads, num_threads=2)
    with pytest.raises(FileNotFoundError):
        headroute.ray.project(dataset, tmp_path / "no.safetensors")


# All of these queries are one block to Ray, so that one of the two actors has nothing to do.
@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors:UserWarning")
def test_the_example_of_the_document(cluster, heads, inputs, expected, tmp_path, monkeypatch):
    """With a folder here in place of the one that all nodes see."""
    text = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- test:ray -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    shutil.copytree(inputs, tmp_path / "queries")
    heads.save(tmp_path / "heads.safetensors")
    monkeypatch.setenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "1")
    exec(code.replace("/shared", str(tmp_path)), {})
    assert by_id(tmp_path / "projected").equals(expected)


def test_killed_job_goes_on(cluster, heads, inputs, expected, tmp_path):
    out, notes = tmp_path / "out", tmp_path / "out.checkpoint"
    job = start_job(cluster, heads, inputs, tmp_path, actors=2)
    try:
        wait_until(lambda: len(committed(notes)) >= 3, job, tmp_path)
    finally:
        job.send_signal(signal.SIGKILL)
        job.communicate()
    report = headroute.ray.project_files(heads, [inputs], out, num_cpus=3, actors=1, id_column="id")
    assert 0 < report.resumed_rows < report.rows == FILES * ROWS
    assert by_id(out).equals(expected)
    report = headroute.ray.project_files(heads, [inputs], out, num_cpus=3, actors=1, id_column="id")
    assert report.resumed_rows == report.rows
    assert by_id(out).equals(expected)


def committed(notes):
    return [path for path in notes.glob("*.parquet") if not path.name.endswith(".pending.parquet")]


class NoCluster:
    """Where a run must be refused before Ray is started."""

    def __getattr__(self, name):
        pytest.fail(f"Ray was asked for {name}")


@pytest.fixture
def alone(monkeypatch, tmp_path, heads):
    """A call that has files in, and must not get as far as Ray."""
    monkeypatch.setattr(headroute.ray, "_ray", NoCluster)
    pq.write_table(table_of(np.arange(3), np.ones((3, D), np.float32)), tmp_path / "in.parquet")

    def call(out="out", **options):
        headroute.ray.project_files(heads, [tmp_path / "in.parquet"], tmp_path / out, **options)

    return call


def test_folder_of_somebody_else(alone, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.parquet").write_bytes(b"mine")
    for restart in (False, True):
        with pytest.raises(ValueError, match="the folder is not empty, and not of a run"):
            alone(restart=restart)
    assert (tmp_path / "out" / "mine.parquet").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["out.parquet", "out.NPY"])
def test_names_of_files_are_no_folders(alone, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: results of a cluster go to a folder"):
        alone(name)
    assert not (tmp_path / name).exists()


def test_inputs_that_are_not_parquet(alone, tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"in.parquet is not a Parquet file"):
        alone()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, "begun by another run: task temperature was 0.1, is 0.5"),
        ({"id_column": "text"}, "begun by another run: id column was id, is text"),
        ({"id_column": None}, "begun by another run: id column was id, is None"),
        ({}, "out has results, and .*out.checkpoint does not say of which rows"),
    ],
)
def test_run_that_is_another(alone, heads, tmp_path, options, message):
    identity = {"task": Task(heads).identity(), "column": "embedding", "id column": "id"}
    (tmp_path / "out").mkdir()
    Manifest(tmp_path / "out" / MANIFEST, identity).save()
    shutil.copy(tmp_path / "in.parquet", tmp_path / "out" / "a.parquet")
    with pytest.raises(ValueError, match=message):
        alone(**{"id_column": "id", **options})


def test_run_of_another_version(alone, heads, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(headroute.batch.task, "__version__", "99.0")
        identity = {"task": Task(heads).identity(), "column": "embedding", "id column": "id"}
    (tmp_path / "out").mkdir()
    Manifest(tmp_path / "out" / MANIFEST, identity).save()
    with pytest.raises(ValueError, match=r"another run: task headroute version was 99.0, is "):
        alone(id_column="id")


def test_note_in_doubt_is_taken_back(tmp_path):
    """One that is pending, of rows that had been written before."""
    for name in ("a_000001", "a_000001.pending", "a_000002", "a_000003.pending"):
        (tmp_path / f"{name}.parquet").touch()
    held = headroute.ray._settle(sorted(tmp_path.iterdir()))
    assert [path.name for path in held] == ["a_000002.parquet"]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a_000001.pending.parquet", "a_000002.parquet", "a_000003.pending.parquet"]


def test_a_node_dies(cluster, heads, inputs, expected, tmp_path):
    job = start_job(cluster, heads, inputs, tmp_path, actors=2)
    try:
        wait_until(lambda: len(marked_nodes(tmp_path)) == 2, job, tmp_path)
        victim = next(
            node for node in cluster.worker_nodes if node.node_id in marked_nodes(tmp_path)
        )
        cluster.remove_node(victim, allow_graceful=False)
        before = marked_nodes(tmp_path)
        assert job.poll() is None
        output, _ = job.communicate(timeout=100)
        after = marked_nodes(tmp_path)
    finally:
        job.kill()
        job.communicate()
    assert job.returncode == 0, (tmp_path / "log").read_text()
    report = json.loads(output)
    assert (report["nodes"], report["nodes_lost"]) == (3, 1)
    # A worker outlives its node for a moment: what it does then is done again elsewhere.
    others = after.keys() - {victim.node_id}
    assert sum(after[name] - before.get(name, 0) for name in others) > 0  # there was work left
    assert by_id(tmp_path / "out").equals(expected)


@pytest.mark.parametrize(
    ("nodes", "num_cpus", "expected"),
    [
        ([2], 1, (1, 1)),
        ([1], 1, (1, 1)),  # refused
        ([8], 3, (1, 2)),
        ([2, 3, 3], 2, (1, 2)),  # 3 at most, one less when a node has died
        ([4, 4, 4, 4], 1, (1, 11)),
        ([16, 2], 1, (1, 1)),
    ],
)
def test_actors_that_a_cluster_can_lose_a_node_of(nodes, num_cpus, expected):
    class Nodes:
        @staticmethod
        def nodes():
            dead = {"Alive": False, "Resources": {"CPU": 64}}
            return [dead, *({"Alive": True, "Resources": {"CPU": n}} for n in nodes)]

    if nodes == [1]:
        with pytest.raises(ValueError, match="1 actors of 1 CPUs do not fit"):
            headroute.ray._pool(Nodes, None, num_cpus, 1)
    else:
        assert headroute.ray._pool(Nodes, None, num_cpus, 1) == expected


def test_the_command(cluster, heads, inputs, tmp_path, capsys) -> None:
    """In this process Ray is initialised, so that the command takes the cluster of the test."""
    heads.save(tmp_path / "heads.safetensors")
    few = sorted(inputs.iterdir())[:2]
    command = ["project", *map(str, few), "--router", f"{tmp_path}/heads.safetensors"]
    command += ["-o", f"{tmp_path}/out", "--engine", "ray", "--threads", "3", "--output", "top-k"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["kind"], report["nodes"]) == (2 * ROWS, "top-k", alive_nodes())
    table = pq.read_table(tmp_path / "out")
    assert table.num_rows == 2 * ROWS
    assert {"top_heads", "top_weights"} < set(table.column_names)
    assert main([*command, "--temperature", "0.2"]) == 2
    assert "was begun by another run" in capsys.readouterr().err
    assert main([word for word in command if word not in ("--engine", "ray")]) == 2
    assert "was begun by another run" in capsys.readouterr().err
    assert main([*command[:1], f"{tmp_path}/heads.safetensors", *command[3:]]) == 2
    assert "heads.safetensors is not a Parquet file" in capsys.readouterr().err


def alive_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())
