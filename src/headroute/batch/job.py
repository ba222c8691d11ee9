"""A run over files: read | compute | write, each in its own time, part after part.

    files → blocks of queries → results → one .npy file or Parquet parts, and a manifest

What is done stays done: after an end of any kind the same command goes on behind the last part that
the manifest speaks of. The results are the same bits as those of a run without an end, with the
native backend for whatever blocks they came in.
"""

import contextlib
import glob
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import numpy as np

from headroute import _validate
from headroute.batch import manifest as manifests
from headroute.batch.inputs import find_files, open_source, passed_over
from headroute.batch.manifest import Manifest, Progress
from headroute.batch.others import check_others
from headroute.batch.sinks import Sink, Solved, check_output, make_sink
from headroute.batch.sources import Block, Opening, Part, Source
from headroute.batch.task import BadRowError, Columns, Options, Results, Task, solve
from headroute.progress import rows_progress
from headroute.router import Router

# Of queries or of results, whichever is wider: enough for every thread to have work, and few enough
# that the blocks on their way are 150 MiB.
BLOCK_BYTES = 16 << 20
PART_BYTES = 128 << 20

# Blocks that are read ahead, and blocks and parts that are still being written.
_AHEAD = 2


@dataclass(frozen=True)
class ProjectionReport:
    """What one `project_files` did; seconds include reading and writing the files."""

    output: str
    inputs: int  # files
    rows: int
    resumed_rows: int  # of these, done before
    query_dim: int
    answer_dim: int
    zero_queries: int
    null_rows: int
    kind: str  # one of headroute.batch.task.OUTPUTS
    precision: str
    bound: float  # ‖projected - exact‖ / max ‖answer‖ of every row is at most this
    seconds: float
    rows_per_second: float
    bytes_per_second: float  # read and written


class Job(NamedTuple):
    """One part on its way from a file."""

    number: int  # among all parts
    source: Source
    part: Part
    first: int  # among all rows


def project_files(
    router: Router,
    inputs: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    column: str | None = None,
    model: str | None = None,
    batch_rows: int | None = None,
    restart: bool = False,
    heads_path: Path | None = None,
    **options: Unpack[Options],
) -> ProjectionReport:
    """Project the queries of files into one .npy file or a folder of Parquet parts.

    Args:
        inputs: files, folders and patterns: .npy, .npz, .parquet, .arrow, .feather, .jsonl. All
            rows are of one numbering, in the order of the files.
        destination: a name that ends in .npy, replaced when the run is complete; or a folder, new
            or empty or of the same run.
        column: that of the queries: "embedding" by default, "text" in .jsonl.
        model: embeds the texts in .jsonl files, a sentence-transformers name or folder.
        batch_rows: rows computed at a time; 16 MiB by default.
        restart: begin anew, whatever is there of this output's run.
        heads_path: the file that the router is from, which is never overwritten.
        options: those of `headroute.batch.Task`.

    Raises OSError when a file cannot be read or written; ValueError for a file that is not what
    its name says or does not fit the heads, for a bad row, with its file and number, for an output
    that cannot be, and when the run that is there is another one, with what differs; TypeError when
    an input does not hold real numbers.
    """
    started = time.perf_counter()
    task = Task(router, **options)
    if batch_rows is not None:
        batch_rows = _validate.at_least_1(batch_rows, "batch_rows")
    paths = find_files(inputs)
    place = Path(destination)
    check_outside(place, inputs)
    check_output(place, [*paths, *([heads_path] if heads_path else [])])
    opening = Opening(task, column, model, alone=place.suffix == ".npy")
    sources = [open_source(path, opening) for path in paths]
    check_others(sources)
    rows = sum(source.rows for source in sources)
    sink = make_sink(place, task.fields, rows)
    row_bytes = max([task.row_bytes, *(source.row_bytes for source in sources)])
    block_rows = max(1, min(batch_rows or max(1, BLOCK_BYTES // row_bytes), rows))
    part_rows = max(block_rows, PART_BYTES // row_bytes // block_rows * block_rows)
    jobs = list(cut(sources, part_rows))
    identity = {
        **task.identity(),
        "column": column,
        "model": model,
        "rows a part": part_rows,
        "inputs": described(sources),
    }
    run = adopt(sink, identity, restart)
    resumed = run.done.rows
    if not run.complete:
        carry_out(task, sink, run, jobs, block_rows)
    seconds = time.perf_counter() - started
    fresh = rows - resumed
    plan = router.plan(task.temperature)
    float32 = task.output in ("weights", "top-k")
    return ProjectionReport(
        output=str(destination),
        inputs=len(sources),
        rows=rows,
        resumed_rows=resumed,
        query_dim=router.query_dim,
        answer_dim=router.answer_dim,
        zero_queries=run.done.zero_queries,
        null_rows=run.done.null_rows,
        kind=task.output,
        precision="float32" if float32 else plan.precision,
        bound=plan.bound,
        seconds=seconds,
        rows_per_second=fresh / seconds,
        bytes_per_second=fresh * moved_bytes(task, jobs) / seconds,
    )


def check_outside(place: Path, inputs: Sequence[str | os.PathLike[str]]) -> None:
    """ValueError when the next run would find the parts of this one among its inputs."""
    below = place.resolve()
    for folder in map(Path, inputs):
        if place.suffix == ".npy" or not folder.is_dir() or folder.resolve() not in below.parents:
            continue
        if not passed_over(below.relative_to(folder.resolve())):
            raise ValueError(f"{place} is in {folder}, an input: choose another output")


def cut(sources: Sequence[Source], part_rows: int) -> Iterator[Job]:
    number = first = 0
    for source in sources:
        for part in source.parts(part_rows):
            yield Job(number, source, part, first + part.first)
            number += 1
        first += source.rows


def described(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """What a file must have kept for a run to go on."""
    result = []
    for source in sources:
        status = source.path.stat()
        result.append(
            {
                f"{source.path.name}:": {
                    "rows": source.rows,
                    "size": status.st_size,
                    "time of change": status.st_mtime_ns,
                }
            }
        )
    return result


def adopt(sink: Sink, identity: dict[str, Any], restart: bool) -> Manifest:
    """The run that is there, if it is this one; else a new one. ValueError when it is another."""
    found = manifests.load(sink.manifest) if sink.begun() and not restart else None
    if found is None:
        return Manifest(sink.manifest, identity)
    different = manifests.differences(found.identity, identity)
    if different:
        raise ValueError(
            f"{sink.path} was begun by another run: {'; '.join(different[:3])}"
            f"{' …' if len(different) > 3 else ''}; --restart begins anew"
        )
    check_kept(sink, found)
    return found


def check_kept(sink: Sink, run: Manifest) -> None:
    """ValueError unless all that is done is there."""
    lost = sink.lost(run.done)
    if lost is not None:
        raise ValueError(
            f"cannot go on with {sink.path}: {lost.name}, which was done, is not there or not "
            "whole; --restart begins anew"
        )


def carry_out(task: Task, sink: Sink, run: Manifest, jobs: Sequence[Job], block_rows: int) -> None:
    """Do the parts that are left. After an error those that are done stay, if there are any, and a
    note of the error says so.
    """
    before = run.done.parts
    rows = sum(job.part.rows for job in jobs)
    try:
        with said_of(sink.path):
            sink.lock()
        check_kept(sink, run)  # another process may have come to its end before this one's lock
        try:
            with said_of(sink.path):
                run.save()  # before anything of an older run is removed
                remove_temporaries(sink.manifest)
                sink.begin(run.done)
            with rows_progress(rows, run.done.rows, moved_bytes(task, jobs)) as advance:
                do_parts(task, sink, run, jobs[before:], block_rows, advance)
            with said_of(sink.path):
                sink.finish()
                if sink.keeps_manifest:
                    run.complete = True
                    run.save()
        except BaseException as error:
            if run.done.parts:
                way = ", past this row with --on-bad null" if isinstance(error, BadRowError) else ""
                error.add_note(
                    f"the first {run.done.rows:,} of {rows:,} queries are done and kept: "
                    f"the same command goes on from there{way}"
                )
            else:
                sink.discard()
            raise
    finally:
        sink.close()


@contextlib.contextmanager
def said_of(path: Path) -> Iterator[None]:
    """An OSError here is of this path, in the user's words, not of our temporary names."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, reason, str(path)) from error


def remove_temporaries(manifest: Path) -> None:
    """What a killed process left of `replace_file`."""
    for path in manifest.parent.glob(f"{glob.escape(manifest.name)}.*.tmp"):
        path.unlink(missing_ok=True)


class Piece(NamedTuple):
    """What comes out of reading: a block of a part, or, without one, the part's end."""

    job: Job
    first: int  # row among all
    block: Block | None


def pieces_of(jobs: Sequence[Job], block_rows: int) -> Iterator[Piece]:
    for job in jobs:
        first = job.first
        blocks = job.source.blocks(job.part, block_rows)
        while (block := read_block(job.source.path, blocks)) is not None:
            yield Piece(job, first, block)
            first += len(block.queries.rows)
        yield Piece(job, first, None)


def read_block(path: Path, blocks: Iterator[Block]) -> Block | None:
    """The next block, if there is one; what went wrong is said of the file."""
    try:
        return next(blocks, None)
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def do_parts(
    task: Task,
    sink: Sink,
    run: Manifest,
    jobs: Sequence[Job],
    block_rows: int,
    advance: Callable[[int], None],
) -> None:
    """Reading and writing have a thread each; computing is here, with the kernel's threads; and
    what waits for the disk has another.
    """
    done = run.done
    # Memory of results is used again: fresh memory costs as much as writing it. All that a run will
    # ever need is taken now, so that it cannot be missing hours later.
    free = deque(taken(task.empty(block_rows)) for _ in range(_AHEAD + 2))
    with (
        ThreadPoolExecutor(1, "read") as reader,
        Stage("keep", sink.path) as keeper,
        Stage("write", sink.path) as writer,
    ):

        def write(solved: Solved, memory: Columns) -> None:
            sink.write(solved)
            free.append(memory)

        def end_part(done: Progress) -> None:
            sink.end_part()
            keeper.submit(keep_part, sink, run, done)

        for job, first, block in ahead(reader, pieces_of(jobs, block_rows)):
            if block is None:
                done = replace(done, parts=job.number + 1, rows=first)
                writer.submit(end_part, done)
                continue
            memory = free.popleft()
            results = solve_block(task, block, job, first, memory)
            done = replace(
                done,
                null_rows=done.null_rows + len(results.bad),
                zero_queries=done.zero_queries + count_zero_rows(block, results),
            )
            reader.submit(block.release)  # its thread has the time
            writer.submit(write, Solved(results, block.others), memory)
            advance(len(block.queries.rows))


def taken(memory: Columns) -> Columns:
    """The same, no longer a promise of the system's."""
    for column in memory:
        column.fill(0)
    return memory


class Stage:
    """Calls that a thread of its own makes, in order, and none after one that failed.

    At the end of the block all have been made; what went wrong in one is raised there, or before.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._path = path  # what errors are said of
        self._thread = ThreadPoolExecutor(1, name)
        self._calls: deque[Future[None]] = deque()
        self._failure: BaseException | None = None

    def submit(self, call: Callable[..., None], *arguments: object) -> None:
        """Wait until few calls are left; raises what went wrong in one of them."""
        self._wait(_AHEAD)
        self._calls.append(self._thread.submit(self._make, call, arguments))

    def _make(self, call: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            with said_of(self._path):
                call(*arguments)
        except BaseException as failure:
            self._failure = failure
            raise

    def _wait(self, left: int) -> None:
        while len(self._calls) > left:
            self._calls.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait(0)


def keep_part(sink: Sink, run: Manifest, done: Progress) -> None:
    sink.keep_part()
    run.done = done
    run.save()


def ahead(executor: ThreadPoolExecutor, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, made by the executor's thread while earlier ones are in use."""
    coming = deque(executor.submit(next, pieces, None) for _ in range(_AHEAD))
    try:
        while (piece := coming.popleft().result()) is not None:
            coming.append(executor.submit(next, pieces, None))
            yield piece
    finally:
        for future in coming:
            future.cancel()


def solve_block(task: Task, block: Block, job: Job, first: int, memory: Columns) -> Results:
    n = len(block.queries.rows)  # no more than the memory was made for
    try:
        return solve(task, block.queries, tuple(column[:n] for column in memory))
    except BadRowError as error:
        raise error.located(str(job.source.path), first - job.first + job.part.first) from None


def count_zero_rows(block: Block, results: Results) -> int:
    """Rows that are zero throughout. Looks at whole rows only where the first column is zero."""
    rows = block.queries.rows
    with np.errstate(invalid="ignore"):  # a bad row may hold a NaN that warns when it is looked at
        candidates = np.flatnonzero(~rows[:, :1].any(axis=1))
    candidates = np.setdiff1d(candidates, results.bad, assume_unique=True)
    return int(np.count_nonzero(~rows[candidates].any(axis=1)))


def moved_bytes(task: Task, jobs: Sequence[Job]) -> float:
    """Bytes read and written for one row, on average."""
    rows = sum(job.part.rows for job in jobs)
    read = sum(job.source.row_bytes * job.part.rows for job in jobs)
    return task.row_bytes + (read / rows if rows else 0)
