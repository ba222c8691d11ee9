"""Files of queries: found, described, cut into parts, and read in blocks of rows.

    .npy, .npz         an array (N, d) of real numbers; of an .npz the member called `column`
    .parquet           a column of lists of numbers; a part is made of whole row groups
    .arrow, .feather   Arrow's file format, the same; a part is made of whole record batches
    .jsonl             a column of texts, which are embedded on the way

A part is what is done whole or not at all. Blocks of a part are read in order, by one thread; none
is larger than asked for but where a file has no finer grain.
"""

import bisect
import contextlib
import errno
import functools
import glob
import mmap
import os
import sys
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from headroute._optional import library
from headroute.batch.task import Queries, Task
from headroute.loading import load_encoder


class Part(NamedTuple):
    """A run of rows of one file; `grains` are its row groups, batches, or what the file has."""

    first: int  # row in the file
    rows: int
    grains: range


def nothing() -> None:
    pass


class Block(NamedTuple):
    """Queries on their way, and what stands beside them in the file."""

    queries: Queries
    others: Any = None  # pyarrow.RecordBatch without the queries, or None
    release: Callable[[], None] = nothing  # to be called when the queries are not needed any more


class Source(Protocol):
    path: Path
    rows: int
    row_bytes: int  # of a query, about

    def parts(self, part_rows: int) -> list[Part]:
        """Parts of about so many rows, that cover the file."""

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
        """Raises ValueError, TypeError or OSError for what cannot be read."""


@dataclass(frozen=True)
class Opening:
    """What the files of one run have in common."""

    task: Task
    column: str | None = None  # None: "embedding", "text", or the only member
    model: str | None = None  # embeds texts
    alone: bool = False  # nobody wants what stands beside the queries

    def vectors_column(self) -> str:
        return self.column or "embedding"


SUFFIXES = (".npy", ".npz", ".parquet", ".arrow", ".feather", ".jsonl")


def find_files(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that paths, folders and glob patterns stand for; those of a folder or pattern in
    the order of their names.

    Raises FileNotFoundError for nothing there, ValueError for a folder or pattern without a file
    that can be read, and for a file that is named twice.
    """
    found: list[Path] = []
    for given in [os.fspath(item) for item in inputs]:
        path = Path(given)
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES
                and file.is_file()
                and not passed_over(file.relative_to(path))
            )
        elif path.exists():
            files = [path]
        elif glob.has_magic(given):
            files = sorted(map(Path, glob.glob(given, recursive=True)))
        else:
            raise FileNotFoundError(2, os.strerror(2), given)
        if not files:
            raise ValueError(f"{given}: no file there ends in {', '.join(SUFFIXES)}")
        found += files
    seen: set[str] = set()
    for file in found:
        real = os.path.realpath(file)
        if real in seen:
            raise ValueError(f"{file} is among the inputs twice")
        seen.add(real)
    return found


def passed_over(path: Path) -> bool:
    """Whether a path below a folder of inputs is none of them, by a name on the way."""
    return any(part[0] in "._" for part in path.parts)


def open_source(path: Path, opening: Opening) -> Source:
    """Raises ValueError, TypeError or OSError for a file that cannot hold queries of this task."""
    try:
        make = _KINDS[path.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"{path}: the name of an input ends in one of {', '.join(SUFFIXES)}"
        ) from None
    if not path.is_file():
        raise ValueError(f"{path} is not a plain file")
    try:
        return make(path, opening)
    except (ValueError, TypeError, OSError) as error:  # a damaged file; libraries do not name it
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from None


def even_parts(rows: int, part_rows: int) -> list[Part]:
    return [
        Part(first, min(part_rows, rows - first), range(0)) for first in range(0, rows, part_rows)
    ]


class NpySource:
    """A .npy file in either order, mapped: its rows are computed from where the system has them."""

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


class ParquetSource:
    """A column of a Parquet file."""

    def __init__(self, path: Path, opening: Opening) -> None:
        self.path = path
        self._task, self._column = opening.task, opening.vectors_column()
        self._columns = [self._column] if opening.alone else None
        with self._open() as file:
            metadata = file.metadata
            self._group_rows = [
                metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)
            ]
            check_schema(path, file.schema_arrow, self._column, opening)
        self.rows = metadata.num_rows
        self.row_bytes = opening.task.router.query_dim * 4

    def _open(self) -> Any:
        pa, parquet = arrow_library("pyarrow"), arrow_library("pyarrow.parquet")
        try:
            return parquet.ParquetFile(self.path, buffer_size=4 << 20, pre_buffer=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{self.path} is not a Parquet file: {error}") from None

    def parts(self, part_rows: int) -> list[Part]:
        return whole_grains(self._group_rows, part_rows)

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
        from headroute.batch.arrow import take_queries

        with self._open() as file:
            groups = list(part.grains)
            for batch in file.iter_batches(block_rows, row_groups=groups, columns=self._columns):
                yield Block(*take_queries(batch, self._column, self._task))


class ArrowSource:
    """A column of a file in Arrow's file format, also known as Feather 2."""

    def __init__(self, path: Path, opening: Opening) -> None:
        self.path = path
        self._task, self._column = opening.task, opening.vectors_column()
        self._alone = opening.alone
        pa = arrow_library("pyarrow")
        with self._read(pa.memory_map(str(path))) as reader:
            check_schema(path, reader.schema, self._column, opening)
            self._batch_rows = [
                reader.get_batch(number).num_rows for number in range(reader.num_record_batches)
            ]
        self.rows = sum(self._batch_rows)
        self.row_bytes = opening.task.router.query_dim * 4

    def _read(self, file: Any) -> Any:
        pa = arrow_library("pyarrow")
        try:
            return pa.ipc.open_file(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path} is not a file in Arrow's file format: {error}") from None

    def parts(self, part_rows: int) -> list[Part]:
        return whole_grains(self._batch_rows, part_rows)

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
        from headroute.batch.arrow import take_queries

        # Not mapped: pages of the whole file would count as this process's memory.
        with self._read(arrow_library("pyarrow").OSFile(str(self.path))) as reader:
            for number in part.grains:
                batch = reader.get_batch(number)
                if self._alone:
                    batch = batch.select([self._column])
                for first in range(0, batch.num_rows, block_rows):
                    piece = batch.slice(first, block_rows)
                    yield Block(*take_queries(piece, self._column, self._task))


class JsonlSource:
    """Texts in a file of one JSON object a line; blank lines do not count. Other columns are of one
    type in the whole file, and null where an object does not have them; times stay texts.
    """

    def __init__(self, path: Path, opening: Opening) -> None:
        self.path = path
        self._column = opening.column or "text"
        self._dim = opening.task.router.query_dim
        if opening.model is None:
            raise ValueError(f"{path} holds texts: say which --model embeds them")
        self._model = opening.model
        self._ends = line_ends(path)
        self.rows = len(self._ends)
        self.row_bytes = self._dim * 4
        self._schema = self._find_schema(opening)

    def parts(self, part_rows: int) -> list[Part]:
        return even_parts(self.rows, part_rows)

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
        with open(self.path, "rb") as file:
            for first, n in steps(part, block_rows):
                yield self._block(self._parse(file, first, n, self._schema))

    def _find_schema(self, opening: Opening) -> Any:
        """The columns of all objects, with the types that hold what is in any of them."""
        from headroute.batch.arrow import check_names

        pa = arrow_library("pyarrow")
        schema, first = pa.schema([]), 0
        with open(self.path, "rb") as file:
            while first < self.rows:
                start = self._ends[first - 1] if first else 0
                end = max(first + 1, bisect.bisect_right(self._ends, start + _JSON_BYTES))
                found = self._parse(file, first, end - first).schema
                found = pa.schema([(field.name, without_times(field.type)) for field in found])
                try:
                    schema = pa.unify_schemas([schema, found], promote_options="permissive")
                except (ValueError, TypeError) as error:
                    raise ValueError(
                        f"{self.path}: in objects {first} to {end - 1}: {error}"
                    ) from None
                first = end
        if not self.rows:
            return schema
        if self._column not in schema.names:
            raise ValueError(
                f"{self.path}: there is no {self._column!r}, only {', '.join(schema.names)}: "
                "name it with --column"
            )
        place = schema.get_field_index(self._column)
        type_ = schema.field(place).type
        if not (pa.types.is_string(type_) or pa.types.is_null(type_)):
            raise TypeError(f"{self.path}: {self._column!r} must be texts, got {type_}")
        texts = pa.field(self._column, pa.string())
        if opening.alone:
            return pa.schema([texts])
        schema = schema.set(place, texts)
        with said_of_file(self.path):
            check_names(schema.names, opening.task)
            check_storable(schema)
        return schema

    def _parse(self, file: IO[bytes], first: int, n: int, schema: Any = None) -> Any:
        """Objects as a table, of the types that they have, or of a schema, as far as they fit."""
        pa, json = arrow_library("pyarrow"), arrow_library("pyarrow.json")
        start = self._ends[first - 1] if first else 0
        file.seek(start)
        lines = file.read(self._ends[first + n - 1] - start)
        where = f"in objects {first} to {first + n - 1}"
        rule = "infer" if schema is None else "ignore"
        try:
            table = json.read_json(
                pa.BufferReader(lines),
                json.ReadOptions(block_size=max(len(lines), 1)),
                json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=rule),
            )
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path}: not one JSON object a line, {where}: {error}") from None
        if table.num_rows != n:
            raise ValueError(
                f"{self.path}: {n} lines hold {table.num_rows} objects, {where}: one object a line"
            )
        return table

    def _block(self, table: Any) -> Block:
        texts = table.column(self._column).to_pylist()
        faults = {place: "is null" for place, text in enumerate(texts) if text is None}
        rows = np.zeros((len(texts), self._dim), np.float32)
        given = [place for place in range(len(texts)) if place not in faults]
        vectors = load_encoder(self._model).encode_queries([texts[place] for place in given])
        if vectors.shape[1:] != (self._dim,):
            raise ValueError(
                f"{self.path}: embeddings have {vectors.shape[1]} columns, the heads expect "
                f"{self._dim}: embedded with another model?"
            )
        rows[given] = vectors
        return Block(Queries(rows, faults), table.combine_chunks().to_batches()[0])


# Of a file of JSON lines, to find the types in it.
_JSON_BYTES = 16 << 20


def without_times(type_: Any) -> Any:
    """A type that was found in JSON, with times as the texts that they are there."""
    pa = arrow_library("pyarrow")
    if pa.types.is_temporal(type_):
        return pa.string()
    if pa.types.is_list(type_):
        return pa.list_(without_times(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, without_times(field.type)) for field in type_])
    return type_


_KINDS: dict[str, Callable[[Path, Opening], Source]] = {
    ".npy": NpySource,
    ".npz": NpzSource,
    ".parquet": ParquetSource,
    ".arrow": ArrowSource,
    ".feather": ArrowSource,
    ".jsonl": JsonlSource,
}


def line_ends(path: Path) -> "array[int]":
    """Where each line ends that is not blank, with the blank lines after it: 8 bytes a line."""
    ends, position = array("q"), 0
    with open(path, "rb") as file:
        for line in file:
            position += len(line)
            if not line.isspace():
                ends.append(position)
            elif ends:
                ends[-1] = position
    return ends


def steps(part: Part, block_rows: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of the blocks of a part."""
    for first in range(part.first, part.first + part.rows, block_rows):
        yield first, min(block_rows, part.first + part.rows - first)


def whole_grains(grain_rows: Sequence[int], part_rows: int) -> list[Part]:
    """Parts of whole grains, each of `part_rows` at least but for the last."""
    parts: list[Part] = []
    first, start, rows = 0, 0, 0
    for grain, n in enumerate(grain_rows):
        rows += n
        if rows >= part_rows or (grain == len(grain_rows) - 1 and rows):
            parts.append(Part(first, rows, range(start, grain + 1)))
            first, start, rows = first + rows, grain + 1, 0
    return parts


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


def check_schema(path: Path, schema: Any, column: str, opening: Opening) -> None:
    """ValueError or TypeError unless there is such a column of lists of numbers, and the others can
    stand beside the results.
    """
    from headroute.batch.arrow import check_columns

    pa = arrow_library("pyarrow")
    if opening.alone and column in schema.names:
        schema = pa.schema([field for field in schema if field.name == column])
    with said_of_file(path):
        check_columns(schema, column, opening.task)
        if not opening.alone:
            check_storable(schema)


def check_storable(schema: Any) -> None:
    """ValueError unless a Parquet file can have these columns."""
    pa, parquet = arrow_library("pyarrow"), arrow_library("pyarrow.parquet")
    try:
        parquet.write_table(schema.empty_table(), pa.BufferOutputStream())
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"a column cannot go to Parquet files: {error}") from None


@contextlib.contextmanager
def said_of_file(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None


def arrow_library(module: str) -> Any:
    return library(module, "reading or writing Parquet, Arrow or JSON lines", "arrow")
