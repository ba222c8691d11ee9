"""`project_files`: a run over files, with the checks before it and the report after it.

    files → blocks of queries → results → one .npy file or Parquet parts, and a manifest

What is done stays done: after an end of any kind the same command goes on behind the last part that
the manifest speaks of. The results are the same bits as those of a run without an end, with the
native backend for whatever blocks they came in.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from headroute import _validate
from headroute.batch import manifest as manifests
from headroute.batch.inputs import find_files, open_source
from headroute.batch.manifest import Manifest
from headroute.batch.others import check_others
from headroute.batch.outputs import check_output, check_outside, is_npy, make_sink
from headroute.batch.parts import carry_out, check_kept, cut, moved_bytes
from headroute.batch.sinks import Sink
from headroute.batch.sources import Opening, Source
from headroute.batch.task import Options, Task
from headroute.router import Router

# Of queries or of results, whichever is wider: enough for every thread to have work, and few enough
# that the blocks on their way are 150 MiB.
BLOCK_BYTES = 16 << 20
PART_BYTES = 128 << 20


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
    bound: float | None  # ‖projected - exact‖ / max ‖answer‖ is at most this; None if not projected
    seconds: float
    rows_per_second: float
    bytes_per_second: float  # read and written


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
            rows are of one numbering, in the order of the files. Where results go to a folder, the
            other columns go there too: those of all files have the same names and types.
        destination: a name that ends in .npy, replaced when the run is complete; or a folder, new
            or empty or of the same run, whose name does not end as that of an input file.
        column: that of the queries: "embedding" by default, "text" in .jsonl.
        model: embeds the texts in .jsonl files, a sentence-transformers name or folder.
        batch_rows: rows computed at a time; 16 MiB by default.
        restart: begin anew, whatever is there of this output's run.
        heads_path: the file that the router is from, which is never overwritten.
        options: those of `headroute.batch.Task`.

    Raises OSError when a file cannot be read or written; ValueError for a file that is not what
    its name says or does not fit the heads, for a bad row, with its file and number, for another
    column that not all files have, with its file and name, for an output that cannot be, and when
    the run that is there is another one, with what differs; TypeError when an input does not hold
    real numbers, and for a single path as inputs.
    """
    started = time.perf_counter()
    task = Task(router, **options)
    if batch_rows is not None:
        batch_rows = _validate.at_least_1(batch_rows, "batch_rows")
    paths = find_files(inputs)
    place = Path(destination)
    check_outside(place, inputs)
    check_output(place, [*paths, *([heads_path] if heads_path else [])])
    opening = Opening(task, column, model, alone=is_npy(place))
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
    float32 = task.output in ("weights", "top-k")  # and nothing is projected
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
        bound=None if float32 else plan.bound,
        seconds=seconds,
        rows_per_second=fresh / seconds,
        bytes_per_second=fresh * moved_bytes(task, jobs) / seconds,
    )


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
