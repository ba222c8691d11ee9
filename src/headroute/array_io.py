"""Project a .npy file of queries into a .npy file, both memory-mapped, in blocks of rows.

    queries.npy (N, d), any real dtype, C or Fortran order  →  projected.npy (N, e) float32, float16

Memory stays constant: pages that were read or written are given back after each block. (In Fortran
order a block has pages from all over the file; the system can take these back when it needs them.)
The result is written under a temporary name beside the output and renamed when it is complete, so
that an output is never half a result. Which queries are refused is the router's business.
"""

import contextlib
import mmap
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from headroute.progress import progress_bar
from headroute.router import Router

BLOCK_BYTES = (
    16 << 20
)  # of queries or of results, whichever is wider: large enough for every thread to have work


@dataclass(frozen=True)
class ProjectionReport:
    """What one `project_file` did; seconds include reading and writing the files."""

    output: str
    rows: int
    query_dim: int
    answer_dim: int
    zero_queries: int
    precision: str
    bound: float  # ‖projected - exact‖ / max ‖answer‖ of every row is at most this
    seconds: float
    rows_per_second: float


def project_file(
    router: Router,
    queries_path: Path,
    output_path: Path,
    *,
    heads_path: Path | None = None,
    temperature: float | None = None,
    num_threads: int | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> ProjectionReport:
    """Project every row of `queries_path` (N, d) and leave the result (N, e) at `output_path`, as
    float32 or float16.

    An existing output is replaced, but for the queries themselves and the file that the router came
    from, `heads_path`.

    Raises OSError when a file cannot be read or written; ValueError when the input is not a .npy
    file of two dimensions, does not fit the heads or has a NaN or infinity (the message has its
    row), or when the output is an input or no plain file; TypeError when the input does not hold
    real numbers. The output is untouched then.
    """
    start_time = time.perf_counter()
    queries = open_queries(queries_path)
    check_output(output_path, [path for path in (queries_path, heads_path) if path])
    rows, query_dim = queries.shape
    router.project(
        queries[:0], temperature=temperature, num_threads=num_threads
    )  # every check but the rows' own
    zero_queries = 0
    with (
        new_npy(Path(os.path.realpath(output_path)), (rows, router.answer_dim), dtype) as projected,
        progress_bar(rows, "Projecting", "query") as bar,
    ):
        for block in row_blocks(rows, max(query_dim * queries.itemsize, router.answer_dim * 4)):
            try:
                router.project(
                    queries[block],
                    temperature=temperature,
                    out=projected[block],
                    num_threads=num_threads,
                )
            except ValueError as error:
                raise located(error, queries[block], block.start, queries_path) from None
            zero_queries += count_zero_rows(queries[block])
            for array in (queries, projected):
                give_back_pages(array)
            bar.update(block.stop - block.start)
    plan = router.plan(temperature)
    seconds = time.perf_counter() - start_time
    return ProjectionReport(
        output=str(output_path),
        rows=rows,
        query_dim=query_dim,
        answer_dim=router.answer_dim,
        zero_queries=zero_queries,
        precision=plan.precision,
        bound=plan.bound,
        seconds=seconds,
        rows_per_second=rows / seconds,
    )


def open_queries(path: Path) -> np.memmap:
    """A read-only map (N, d) of a .npy file. ValueError when it is not one."""
    try:
        queries = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(f"{path} is not a .npy file of numbers: {error}") from None
    if queries.ndim != 2:
        raise ValueError(
            f"{path} has shape {queries.shape}, expected two dimensions: (queries, dimension)"
        )
    return queries


def check_output(output_path: Path, inputs: Sequence[Path]) -> None:
    """ValueError when the output cannot be written there, or is an input (through links too)."""
    if not output_path.parent.is_dir():
        raise ValueError(f"cannot write {output_path}: there is no folder {output_path.parent}")
    if output_path.is_dir():
        raise ValueError(f"cannot write {output_path}: it is a folder")
    if output_path.exists() and not output_path.is_file():
        raise ValueError(f"cannot write {output_path}: it is not a plain file")
    for path in inputs:
        if output_path.exists() and os.path.samefile(path, output_path):
            raise ValueError(f"{output_path} is an input: choose another output")


@contextlib.contextmanager
def new_npy(path: Path, shape: tuple[int, int], dtype: npt.DTypeLike) -> Iterator[np.memmap]:
    """A map of `shape`; it becomes the file `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:  # from before the file is there, so that Ctrl-C leaves none behind
        try:
            with open(temporary, "xb") as file:
                nothing = np.empty((0, 0), dtype)
                header = np.lib.format.header_data_from_array_1_0(nothing)
                np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
                file.flush()
                size = file.tell() + nothing.itemsize * shape[0] * shape[1]
                if hasattr(os, "posix_fallocate"):
                    # On a full disk, writing through the map would be a SIGBUS; this is an OSError.
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
        except OSError as error:  # in the user's words, not of our temporary name
            raise OSError(error.errno, error.strerror, str(path)) from None
        array = np.lib.format.open_memmap(temporary, mode="r+")
        yield array
        array.flush()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def row_blocks(rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices that cover range(rows), each of at most BLOCK_BYTES (at least one row)."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def located(error: ValueError, block: NDArray[np.generic], start: int, path: Path) -> ValueError:
    """The error with the row's number in the file, if a row of the block caused it."""
    bad = ~np.isfinite(block).all(axis=1)
    if not bad.any():
        return error
    return ValueError(f"{path}: query {start + int(bad.argmax())} has a NaN or infinity in it")


def count_zero_rows(block: NDArray[np.generic]) -> int:
    """Rows that are zero throughout. Looks at whole rows only where the first column is zero."""
    candidates = block[:, :1].any(axis=1)
    return int(np.count_nonzero(~block[~candidates].any(axis=1)))


def give_back_pages(array: np.memmap) -> None:
    """Drop the map's pages from this process; what was written to them stays in the file."""
    pages = array.base
    if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
