"""Projection on a Ray cluster, with Ray Data.

    read → map → write        files, blocks of rows → pool of actors, one router each → files

Each row is computed as on one machine, by `headroute.batch.arrow`; which order the rows come in, in
which files, is Ray's business: results are matched by their other columns. A block that is lost
with a node is computed again from its files. Ray is imported only when something here is called.
"""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from headroute import _validate
from headroute._optional import library
from headroute._threads import get_num_threads
from headroute.batch import manifest as manifests
from headroute.batch.inputs import SUFFIXES, find_files
from headroute.batch.manifest import Manifest
from headroute.batch.sinks import MANIFEST, lock
from headroute.batch.task import BadRowError, Options, Task
from headroute.router import Router

if TYPE_CHECKING:
    import pyarrow as pa

_COMMITTED = ".parquet"
_PENDING = ".pending.parquet"
_RAISED = re.compile(
    r"^(?P<kind>ValueError|TypeError): (?P<message>.*)\n+The above exception was the direct cause",
    re.MULTILINE,
)


@dataclass(frozen=True)
class ClusterReport:
    """What one `project_files` did; seconds include the start of a local Ray."""

    output: str
    inputs: int  # files
    rows: int
    resumed_rows: int  # of these, done before
    query_dim: int
    answer_dim: int
    kind: str  # one of headroute.batch.task.OUTPUTS
    nodes: int  # that were alive at the beginning
    nodes_lost: int  # of these, until the end
    seconds: float
    rows_per_second: float


def project(
    dataset: Any,
    router: Router | str | os.PathLike[str],
    column: str = "embedding",
    *,
    num_cpus: int = 1,
    actors: int | tuple[int, int] | None = None,
    batch_rows: int | None = None,
    id_column: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Unpack[Options],
) -> Any:
    """Return the Ray dataset with the results in place of the queries, and all other columns.

    It is lazy, as all of Ray Data: the work is done when it is written or iterated.

    Args:
        dataset: a `ray.data.Dataset`, whose `column` holds lists of numbers of length d, or Ray's
            tensors.
        router: goes to the actors through the object store; or the path of its file, which every
            node must see.
        num_cpus: of an actor, and the number of its threads.
        actors: how many, or the least and the most; by default from one to as many as leave CPUs
            for reading and writing, also when the largest node has died. With more the job may wait
            for ever after that, as an actor can be started again nowhere.
        batch_rows: rows computed at a time; a block by default.
        id_column: integers or strings, never null, another one for each row. Needed for a
            checkpoint; also names the row in errors.
        checkpoint: a folder that every node sees, where Ray notes which rows are written, so that
            the same script goes on where it was. Ray does that for read → map → write alone, and
            for one `write` a checkpoint; it is a setting of `dataset.context`, which datasets made
            from one another share.
        options: those of `headroute.batch.Task`, but for num_threads.

    Raises, when the columns of the dataset are known without running it, what
    `headroute.batch.project_record_batch` raises for them; else Ray raises it for the first block,
    as it does for bad rows. ValueError when Ray is not installed, or too old for checkpoints, when
    the actors leave no CPU of the cluster to read and write with, and for an id column that is
    missing or of another type; OSError when the router's file cannot be read.
    """
    ray = _ray()
    arrow = _arrow()
    if "num_threads" in options:
        raise ValueError("num_threads is the num_cpus of an actor: leave it out")
    num_cpus = _validate.num_threads(num_cpus)
    path = None if isinstance(router, Router) else os.path.abspath(router)
    task = Task(router if isinstance(router, Router) else Router.load(router), **options)
    _check_id_column(id_column, column, checkpoint)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None and isinstance(schema.base_schema, arrow.pa.Schema):
        arrow.check_columns(schema.base_schema, column, task)
        _check_id_type(schema.base_schema, id_column)
    fewest, most = _pool(ray, actors, num_cpus, spare=2 if checkpoint else 1)
    if checkpoint is not None:
        dataset.context.checkpoint_config = _checkpoint_config(ray, checkpoint, id_column)
    return dataset.map_batches(
        Projector,
        fn_constructor_args=(ray.put((path or router, options)), column, num_cpus, id_column),
        batch_format="pyarrow",
        batch_size=batch_rows,
        compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
        num_cpus=num_cpus,
        udf_modifying_row_count=False,
    )


class Projector:
    """What an actor does: a router that is packed once, and blocks one after the other."""

    def __init__(self, given: Any, column: str, num_threads: int, id_column: str | None) -> None:
        router, options = _ray().get(given)
        if not isinstance(router, Router):
            router = Router.load(router)
        self._task = Task(router, num_threads=num_threads, **options)
        self._column = column
        self._id_column = id_column

    def __call__(self, table: "pa.Table") -> "pa.Table":
        arrow = _arrow()
        _check_id_type(table.schema, self._id_column)
        # A table without rows has no batches either, but columns.
        batches = table.to_batches() or [arrow.pa.RecordBatch.from_pylist([], table.schema)]
        return arrow.pa.Table.from_batches([self._project(batch) for batch in batches])

    def _project(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        name = self._id_column
        if name is not None and (nulls := batch.column(name).null_count):
            raise ValueError(f"id column {name!r} has {nulls} nulls: ids must name every row")
        try:
            return _arrow().project_with(self._task, batch, self._column)
        except BadRowError as error:  # its place is in a block, which tells the user nothing
            who = (
                "a query (an id column would name it)"
                if name is None
                else f"the query with {name} {batch.column(name)[error.place]}"
            )
            raise ValueError(f"column {self._column!r}: {who} {error.fault}") from None


def project_files(
    router: Router,
    inputs: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    column: str = "embedding",
    address: str | None = None,
    num_cpus: int = 1,
    actors: int | tuple[int, int] | None = None,
    batch_rows: int | None = None,
    id_column: str | None = None,
    restart: bool = False,
    **options: Unpack[Options],
) -> ClusterReport:
    """Project the queries of Parquet files into a folder of Parquet files, on a Ray cluster.

    Every node must see the files and the folder under the same paths, and have headroute installed.
    With an id column, Ray notes in the folder `destination`.checkpoint which rows are written:
    after an end of any kind the same call goes on with the others, and inputs that were added since
    are done too. The folder is kept, and may be removed together with the results.

    Args:
        inputs: .parquet files, and folders and patterns of them.
        destination: a folder, new or empty, or of the same run when there is an id column; its name
            does not end as that of a file of queries.
        address: of the cluster, host:port or "auto"; by default a Ray of this machine alone is
            started, and ended afterwards. Where Ray is already initialised, that cluster is used.
        column, num_cpus, actors, batch_rows, id_column: see `project`.
        restart: begin anew; the folder's Parquet files are removed.
        options: those of `headroute.batch.Task`, but for num_threads.

    Raises OSError when a file cannot be read; ConnectionError when there is no cluster at the
    address; ValueError and TypeError for what `project` raises them for, for bad rows, for inputs
    that are none, a single path or not Parquet files, and for a destination that cannot be;
    RuntimeError when the results do not have as many rows as the inputs, which several rows of the
    same id may cause.
    """
    started = time.perf_counter()
    _ray()
    _arrow()
    task = Task(router, **options)
    paths = find_files(inputs)
    rows = _count_rows(paths)
    place = Path(os.path.abspath(destination))
    checkpoint = place.with_name(f"{place.name}.checkpoint") if id_column is not None else None
    _check_id_column(id_column, column, checkpoint)
    identity = {"task": task.identity(), "column": column, "id column": id_column}
    with _own_folder(place, paths):
        run, resumed = _adopt(place, checkpoint, identity, restart)
        with (
            _kept_or_removed(run, checkpoint),
            _footer_readers(paths),
            _cluster(address) as ray,
            _plain_errors(ray),
        ):
            nodes = _alive(ray)
            # Rows as the files have them: folders named column=value add no columns.
            dataset = ray.data.read_parquet([*map(os.path.abspath, paths)], partitioning=None)
            projected = project(
                dataset,
                router,
                column,
                num_cpus=num_cpus,
                actors=actors,
                batch_rows=batch_rows,
                id_column=id_column,
                checkpoint=checkpoint,
                **options,
            )
            run.save()
            projected.write_parquet(str(place))
            lost = len(nodes - _alive(ray))
        written = _count_rows(_parquet_files(place))
        if written != rows:
            raise RuntimeError(
                f"{place} has {written:,} rows, the inputs have {rows:,}"
                + (f": is every {id_column!r} another one?" if id_column is not None else "")
            )
        run.complete = True
        run.save()
    seconds = time.perf_counter() - started
    return ClusterReport(
        output=str(destination),
        inputs=len(paths),
        rows=rows,
        resumed_rows=resumed,
        query_dim=router.query_dim,
        answer_dim=router.answer_dim,
        kind=task.output,
        nodes=len(nodes),
        nodes_lost=lost,
        seconds=seconds,
        rows_per_second=(rows - resumed) / seconds,
    )


def _ray() -> Any:
    """Ray, with its `data`. ValueError without the extra."""
    ray = library("ray", "headroute.ray", "ray")
    library("ray.data", "headroute.ray", "ray")
    return ray


def _arrow() -> Any:
    library("pyarrow", "headroute.ray", "ray")
    from headroute.batch import arrow

    return arrow


def _check_id_column(
    id_column: str | None, column: str, checkpoint: str | os.PathLike[str] | None
) -> None:
    if checkpoint is not None and id_column is None:
        raise ValueError("a checkpoint needs an id_column")
    if id_column is not None and id_column == column:
        raise ValueError(f"column {column!r} holds the queries: ids must be in another one")


def _check_id_type(schema: "pa.Schema", id_column: str | None) -> None:
    """ValueError unless the column is there, and holds what Ray finds again by binary search."""
    if id_column is None:
        return
    types = _arrow().pa.types
    if schema.names.count(id_column) != 1:
        raise ValueError(f"there must be one id column {id_column!r}: {', '.join(schema.names)}")
    kind = schema.field(id_column).type
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise ValueError(f"id column {id_column!r} must hold integers or strings, got {kind}")


def _pool(
    ray: Any, actors: int | tuple[int, int] | None, num_cpus: int, spare: int
) -> tuple[int, int]:
    """The least and the most actors. ValueError when the least would wait for ever, or make Ray's
    own tasks wait, which need `spare` CPUs.
    """
    cpus = sorted(
        int(node["Resources"].get("CPU", 0))
        for node in ray.nodes()
        if node["Alive"]  # the dead keep their entry
    )

    def places(cpus: Sequence[int]) -> int:
        return min(sum(n // num_cpus for n in cpus), (sum(cpus) - spare) // num_cpus)

    if actors is None:
        # What an actor made is lost with its node, and only the same actor makes it again: it needs
        # a place on the nodes that are left, or the job waits for ever.
        fewest, most = 1, max(1, places(cpus[:-1] if places(cpus[:-1]) > 0 else cpus))
    else:
        fewest, most = (actors, actors) if isinstance(actors, int) else actors
    fewest, most = (_validate.at_least_1(n, "actors") for n in (fewest, most))
    if fewest > most:
        raise ValueError(f"actors must be the least and the most, got {actors!r}")
    if fewest > places(cpus):
        raise ValueError(
            f"{fewest} actors of {num_cpus} CPUs do not fit: the cluster's nodes have "
            f"{' + '.join(map(str, cpus))} CPUs, and Ray needs {spare} to read and write with"
        )
    return fewest, most


def _checkpoint_config(ray: Any, path: str | os.PathLike[str], id_column: str | None) -> Any:
    try:
        from ray.data.checkpoint import CheckpointConfig
    except ImportError:
        raise ValueError(
            f"Ray {ray.__version__} has no checkpoints: pip install 'headroute[ray]'"
        ) from None
    given = os.fspath(path)
    return CheckpointConfig(
        id_column=id_column,
        checkpoint_path=given if "://" in given else os.path.abspath(given),
        # Ray would remove it at the end, and the next run would write every row a second time.
        delete_checkpoint_on_success=False,
    )


@contextmanager
def _footer_readers(paths: Sequence[Path]) -> Iterator[None]:
    """As many processes that read footers as the files keep busy, unless the user has said how
    many: Ray 2.60 starts 32 for any Parquet files, 3 GB of memory.
    """
    variable = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
    if variable in os.environ:
        yield
        return
    os.environ[variable] = str(min(32, 1 + len(paths) // 100))
    try:
        yield
    finally:
        del os.environ[variable]


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected; disconnected afterwards if it was not before."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    with redirect_stdout(sys.stderr):  # where Ray prints that a node has died
        try:
            if address is None:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                # Logical CPUs: what reads and writes beside the actors waits most of the time.
                cpus = get_num_threads() + 2
                ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
            else:
                ray.init(address, **quiet)
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _plain_errors(ray: Any) -> Iterator[None]:
    """What an actor raised for bad input, as it was there: Ray keeps no more of it than a text."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raised = _RAISED.search(str(error))
        if raised is None:
            raise
        kind = TypeError if raised["kind"] == "TypeError" else ValueError
        raise kind(raised["message"]) from None


def _alive(ray: Any) -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@contextmanager
def _own_folder(place: Path, inputs: Sequence[Path]) -> Iterator[None]:
    """The folder of the results, made and held for this process alone."""
    if not place.parent.is_dir():
        raise ValueError(f"cannot write {place}: there is no folder {place.parent}")
    if place.suffix.lower() in SUFFIXES or (place.exists() and not place.is_dir()):
        raise ValueError(f"cannot write {place}: results of a cluster go to a folder")
    for path in inputs:
        if place.resolve() in path.resolve().parents:
            raise ValueError(f"{path} is an input in the output's folder: choose another output")
    made = not place.exists()
    place.mkdir(exist_ok=True)
    file = os.open(place, os.O_RDONLY)
    try:
        lock(file, place)
        yield
    finally:
        os.close(file)
        if made and not any(place.iterdir()):
            place.rmdir()


def _adopt(
    place: Path, checkpoint: Path | None, identity: dict[str, Any], restart: bool
) -> tuple[Manifest, int]:
    """The run whose results are there, if this one can go on with it, and the rows that it has;
    else a new one. ValueError when it can not.
    """
    noted = _parquet_files(checkpoint) if checkpoint is not None else []
    if restart and (place / MANIFEST).exists():  # else these are not our files
        for path in [*_parquet_files(place), *noted, place / MANIFEST]:
            path.unlink()
        noted = []
    found = manifests.load(place / MANIFEST)
    if found is None:
        if any(place.iterdir()):
            raise ValueError(f"cannot write to {place}: the folder is not empty, and not of a run")
        if noted:
            raise ValueError(
                f"{checkpoint} speaks of rows that are not in {place}: remove it, or restart"
            )
        return Manifest(place / MANIFEST, identity), 0
    different = manifests.differences(found.identity, identity)
    if different:
        raise ValueError(f"{place} was begun by another run: {'; '.join(different[:3])}")
    if checkpoint is None:
        raise ValueError(
            f"{place} has results of this run: without an id column it cannot go on, only restart"
        )
    if _parquet_files(place) and not noted:
        raise ValueError(f"{place} has results, and {checkpoint} does not say of which rows")
    return Manifest(place / MANIFEST, identity), _count_rows(_settle(noted))


@contextmanager
def _kept_or_removed(run: Manifest, checkpoint: Path | None) -> Iterator[None]:
    """After an error, a note of what stays; nothing stays of a run that has written nothing."""
    try:
        yield
    except BaseException as error:
        if not _parquet_files(run.path.parent):
            run.path.unlink(missing_ok=True)
        elif checkpoint is not None:
            error.add_note("what is written is kept: the same call goes on with the rest")
        else:
            error.add_note(f"part of the results is in {run.path.parent}: restart begins anew")
        raise


def _settle(noted: Sequence[Path]) -> list[Path]:
    """Take back what is in doubt, and return the notes that hold.

    Ray notes the rows of a file as pending, writes the file, and then renames the note. When a
    write that was complete is done again, because its node died before it could say so, and that
    is cut short too, both notes are there: Ray would remove the file for the pending one, and leave
    its rows out for the other. Without the other they are done again.
    """
    names = {path.name for path in noted}
    held = []
    for path in noted:
        if path.name.endswith(_PENDING):
            continue
        if f"{path.name.removesuffix(_COMMITTED)}{_PENDING}" in names:
            path.unlink()
        else:
            held.append(path)
    return held


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) if folder.is_dir() else []


def _count_rows(paths: Sequence[Path]) -> int:
    """Of Parquet files, by their footers. ValueError for a file that is none."""
    parquet = library("pyarrow.parquet", "headroute.ray", "ray")
    rows = 0
    for path in paths:
        try:
            rows += parquet.read_metadata(path).num_rows
        except _arrow().pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a Parquet file: {error}") from None
    return rows
