"""Queries in .npy and .npz files: an array (N, d) of real numbers, with nothing beside it."""

import errno
import functools
import mmap
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from headroute.batch.sources import Block, Opening, Part, even_parts, said_of_file, steps
from headroute.batch.task import Queries, Task


class NpySource:
    """A .npy file in either order, mapped: its rows are computed from where the system has them."""

    others = None

    def __init__(self, path: Path, opening: Opening) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._shape, fortran, self._dtype = read_header(file)
                self._start = file.tell()
        except ValueError as error:
            raise ValueError(f"{path} is not a .npy file of numbers: {error}") from None
        self._order: Literal["F", "C"] = "F" if fortran else "C"
        self.rows, self.row_bytes = check_array(path, self._shape, self._dtype, opening.task)
        if self._start + self.rows * self.row_bytes > path.stat().st_size:
            raise ValueError(f"{path} is not a .npy file of numbers: it ends before its last row")

    def parts(self, part_rows: int) -> list[Part]:
        return even_parts(self.rows, part_rows)

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
        array = np.memmap(self.path, self._dtype, "r", self._start, self._shape, self._order)
        pages = array.base
        assert isinstance(pages, mmap.mmap)
        before = self._start % mmap.ALLOCATIONGRANULARITY  # bytes of the map before the first row
        for first, n in steps(part, block_rows):
            span = (0, len(pages))  # in Fortran order a block has pages from all over the file
            if self._order == "C":
                end = before + (first + n) * self.row_bytes
                start = (before + first * self.row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
                span = (start, end - start)
                read_now(pages, *span)
            yield Block(
                Queries(array[first : first + n], {}),
                release=functools.partial(give_back, pages, *span),
            )


# What reading a damaged .zip file raises; RuntimeError for one with a password, or an unknown way.
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


class NpzSource:
    """A member of an .npz file, compressed or not."""

    others = None

    def __init__(self, path: Path, opening: Opening) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                self._member = choose_member(path, names, opening.column)
                with archive.open(self._member) as file:
                    self._shape, fortran, self._dtype = read_header(file)
                    self._start = file.tell()
        except _BAD_ZIP as error:
            raise ValueError(f"{path} is not an .npz file: {error}") from None
        self.rows, self.row_bytes = check_array(path, self._shape, self._dtype, opening.task)
        if fortran:
            raise ValueError(f"{path}: {self._member} is in Fortran order: save it in C order")

    def parts(self, part_rows: int) -> list[Part]:
        return even_parts(self.rows, part_rows)

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
        try:
            file = self._at(self._start + part.first * self.row_bytes)
            for _, n in steps(part, block_rows):
                yield Block(Queries(read_rows(file, n, self._shape[1], self._dtype), {}))
        except _BAD_ZIP as error:
            raise ValueError(f"{self.path}: {error}") from None
        if part.first + part.rows == self.rows:
            file.close()

    def _at(self, position: int) -> IO[bytes]:
        """The member, open there. It stays open from part to part: to get somewhere in it, all that
        is before must be read.
        """
        if self._file is None or self._file.closed or self._file.tell() != position:
            with zipfile.ZipFile(self.path) as archive:
                self._file = archive.open(self._member)  # stays open when the archive is closed
            self._file.seek(position)
        return self._file


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype of a .npy file. ValueError when it is none."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def check_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], task: Task
) -> tuple[int, int]:
    """Rows, and bytes of one, of an array that may be queries."""
    if len(shape) != 2:
        raise ValueError(f"{path} has shape {shape}, expected two dimensions: (queries, dimension)")
    with said_of_file(path):
        task.router.project(np.empty((0, shape[1]), dtype))  # every check but the rows' own
    return shape[0], shape[1] * dtype.itemsize


# Linux: read the pages of a map from the disk, and make them this process's, all at once.
_MADV_POPULATE_READ = 22


def read_now(pages: mmap.mmap, start: int, length: int) -> None:
    """Have a part of a map read here and now, not when its pages are first touched.

    Raises OSError when its file has become shorter.
    """
    if sys.platform == "linux":
        try:
            pages.madvise(_MADV_POPULATE_READ, start, length)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Linux before 5.14 does not know it
                raise


def give_back(pages: mmap.mmap, start: int, length: int) -> None:
    """Drop pages from this process; the system may keep them."""
    if hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED, start, length)


def read_rows(file: IO[bytes], n: int, d: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The next n rows of an open file, (n, d). OSError when it ends before."""
    rows = np.empty((n, d), dtype)
    left = memoryview(rows.reshape(-1).view(np.uint8).data)
    while len(left):
        got = file.readinto(left)  # type: ignore[attr-defined]
        if not got:
            raise OSError(f"{file.name}: it has become shorter while it was read")
        left = left[got:]
    return rows


def choose_member(path: Path, names: Sequence[str], column: str | None) -> str:
    """The member of an .npz file that holds the queries."""
    if column is not None and f"{column}.npy" in names:
        return f"{column}.npy"
    if column is None and len(names) == 1:
        return names[0]
    listed = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
    raise ValueError(f"{path} holds {listed}: choose the queries with --column")
