"""The parts of a run, one after the other: read | compute | write, each in its own time.

Whatever ends a run, its manifest speaks of parts that are on the disk, and of no others.
"""

import glob
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headroute.batch.manifest import Manifest, Progress
from headroute.batch.sinks import Sink, Solved
from headroute.batch.sources import Block, Part, Source
from headroute.batch.stages import AHEAD, Stage, ahead, said_of
from headroute.batch.task import BadRowError, Columns, Results, Task, solve
from headroute.progress import rows_progress


class Job(NamedTuple):
    """One part on its way from a file."""

    number: int  # among all parts
    source: Source
    part: Part
    first: int  # among all rows


def cut(sources: Sequence[Source], part_rows: int) -> Iterator[Job]:
    number = first = 0
    for source in sources:
        for part in source.parts(part_rows):
            yield Job(number, source, part, first + part.first)
            number += 1
        first += source.rows


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


def check_kept(sink: Sink, run: Manifest) -> None:
    """ValueError unless all that is done is there."""
    lost = sink.lost(run.done)
    if lost is not None:
        raise ValueError(
            f"cannot go on with {sink.path}: {lost.name}, which was done, is not there or not "
            "whole; --restart begins anew"
        )


def remove_temporaries(manifest: Path) -> None:
    """What a killed process left of `replace_file`."""
    for path in manifest.parent.glob(f"{glob.escape(manifest.name)}.*.tmp"):
        path.unlink(missing_ok=True)


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
    free = deque(taken(task.empty(block_rows)) for _ in range(AHEAD + 2))
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


def keep_part(sink: Sink, run: Manifest, done: Progress) -> None:
    sink.keep_part()
    run.done = done
    run.save()


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
