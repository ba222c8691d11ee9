"""Where results go: one .npy file, or a folder of Parquet files.

    out.npy    .out.npy.partial while it grows, of its full size from the beginning; two columns,
               such as heads and weights, are the fields of one structured array
    out/       part-00000.parquet, part-00001.parquet, … one for each part

Parts come in order, and blocks of a part in order. The output looks finished only after `finish`:
until then a .npy file has another name, and a folder has a manifest that says so.
"""

import contextlib
import io
import math
import os
import re
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from headroute._optional import arrow_library
from headroute.batch.direct_file import BLOCK, DirectFile
from headroute.batch.manifest import Progress
from headroute.batch.task import Field, Results


class Solved(NamedTuple):
    """A block that is ready to be written."""

    results: Results
    others: Any  # pyarrow.RecordBatch of what stood beside the queries, or None


class Sink(Protocol):
    path: Path
    manifest: Path  # where that of the run is
    keeps_manifest: bool  # when the run is complete

    def begun(self) -> bool:
        """Whether there is what a manifest could speak of."""

    def lost(self, done: Progress) -> Path | None:
        """A file of what is done that is not there any more, or not whole."""

    def lock(self) -> None:
        """Make sure that nobody else writes there, until `close` or the end of the process.

        Raises ValueError when somebody does, or has, OSError when nobody can.
        """

    def begin(self, done: Progress) -> None:
        """Go on after what is done, and remove all that came after; or begin anew.

        Raises OSError.
        """

    def write(self, block: Solved) -> None:
        """Add to the part that is being written."""

    def end_part(self) -> None:
        """The next block begins the next part."""

    def keep_part(self) -> None:
        """Bring the first part that has ended to the disk, if it is not there."""

    def finish(self) -> None:
        """Make the output what the user asked for."""

    def close(self) -> None:
        """Whatever happened. `finish` came before, or the run is going on another time."""

    def discard(self) -> None:
        """Remove all that this run has left there."""


class NpySink:
    keeps_manifest = False

    def __init__(self, path: Path, fields: tuple[Field, ...], rows: int) -> None:
        self.path = path
        place = Path(os.path.realpath(path))  # a link stays a link
        self._place = place
        self._partial = place.with_name(f".{place.name}.partial")
        self.manifest = place.with_name(f".{place.name}.manifest")
        self._fields = fields
        self._rows = rows
        self._shape: tuple[int, ...] = (rows,)
        if len(fields) == 1:
            self._dtype, self._shape = fields[0].dtype, (rows, fields[0].width)
        else:
            self._dtype = np.dtype([(f.name, f.dtype, (f.width,)) for f in fields])
        self._row_bytes = self._dtype.itemsize * math.prod(self._shape[1:])
        self._file: DirectFile | None = None

    def begun(self) -> bool:
        # Empty until its manifest is there: one beside an empty file is an older run's, which was
        # killed between the last two steps of `finish`.
        return self._size_now() > 0

    def lost(self, done: Progress) -> Path | None:
        needed = len(self._header()) + done.rows * self._row_bytes
        return self._partial if done.parts and self._size_now() < needed else None

    def _size_now(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def lock(self) -> None:
        self._file = DirectFile(self._partial)
        lock(self._file.fileno(), self.path)

    def begin(self, done: Progress) -> None:
        file, header = self._open_file, self._header()
        size = len(header) + self._rows * self._row_bytes
        file.allocate(size)  # a full disk is known now, not after hours
        file.seek(0)
        file.write(np.frombuffer(header, np.uint8))
        if done.rows:
            file.flush()
            file.seek(len(header) + done.rows * self._row_bytes)
        self._size = size

    def write(self, block: Solved) -> None:
        columns, bad = block.results
        for field, column in zip(self._fields, columns, strict=True):
            column[bad] = field.nothing
        rows: npt.NDArray[Any] = columns[0]
        if len(columns) > 1:
            rows = np.empty(len(columns[0]), self._dtype)
            for field, column in zip(self._fields, columns, strict=True):
                rows[field.name] = column
        self._open_file.write(rows.reshape(-1).view(np.uint8))

    def end_part(self) -> None:
        self._open_file.flush()

    def keep_part(self) -> None:
        self._open_file.sync()

    def finish(self) -> None:
        file = self._open_file
        file.flush()  # of no rows, the header
        file.truncate(self._size)
        os.fsync(file.fileno())
        os.replace(self._partial, self._place)
        self.manifest.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def _open_file(self) -> DirectFile:
        assert self._file is not None, "lock comes first"
        return self._file

    def _header(self) -> bytes:
        """That of a .npy file, of whole blocks: rows then begin where a disk's block does."""
        facts = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": self._shape,
        }
        plain = io.BytesIO()
        np.lib.format.write_array_header_1_0(plain, facts)
        text = plain.getvalue()[10:].rstrip()  # behind magic, version and length
        length = -(-(10 + len(text) + 1) // BLOCK) * BLOCK - 10
        return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"

    def discard(self) -> None:
        for path in (self._partial, self.manifest):
            path.unlink(missing_ok=True)


class ParquetSink:
    keeps_manifest = True

    def __init__(self, folder: Path, fields: tuple[Field, ...]) -> None:
        self.path = folder
        self.manifest = folder / MANIFEST
        self._fields = fields
        self._writer: Any = None
        self._made = False
        self._folder: int | None = None
        self._number = 0
        self._ended: deque[Path] = deque()  # and the one that is being written

    def begun(self) -> bool:
        return True  # the manifest is in the folder

    def lost(self, done: Progress) -> Path | None:
        paths = map(self._part, range(done.parts))
        return next((path for path in paths if not path.exists()), None)

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:05}.parquet"

    def lock(self) -> None:
        arrow_library("pyarrow.parquet")
        self._made = not self.path.exists()
        self.path.mkdir(exist_ok=True)
        self._folder = os.open(self.path, os.O_RDONLY)
        lock(self._folder, self.path)
        for path in self.path.glob("*.parquet"):  # of a cluster's run, which `begin` would leave
            if not _PART.fullmatch(path.name):
                raise ValueError(f"cannot write to {self.path}: {path.name} is not of such a run")

    def begin(self, done: Progress) -> None:
        self._number = done.parts
        for path in self.path.iterdir():
            part = _PART.fullmatch(path.name)
            if part and (part["temporary"] or int(part["number"]) >= done.parts):
                path.unlink()

    def write(self, block: Solved) -> None:
        from headroute.batch.arrow import with_results

        batch = with_results(block.others, self._fields, block.results)
        if self._writer is None:
            path = self._part(self._number).with_suffix(".parquet.tmp")
            self._writer = parquet_writer(path, batch.schema, self._fields)
            self._ended.append(path)
        self._writer.write_batch(batch, row_group_size=batch.num_rows)

    def end_part(self) -> None:
        self._writer.close()
        self._writer = None
        self._number += 1

    def keep_part(self) -> None:
        path = self._ended.popleft()
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, path.with_suffix(""))

    def finish(self) -> None:
        pass

    def close(self) -> None:
        if self._writer is not None:  # its part is of no use; the disk may be full
            with contextlib.suppress(OSError):
                self._writer.close()
            self._ended.pop().unlink(missing_ok=True)
        if self._folder is not None:
            os.close(self._folder)

    def discard(self) -> None:
        self.begin(Progress())
        self.manifest.unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):  # somebody else's files are in it by now
                self.path.rmdir()


MANIFEST = "_headroute.json"  # readers of folders pass over names with an underscore
_PART = re.compile(r"part-(?P<number>\d{5,})\.parquet(?P<temporary>\.tmp)?")


def lock(file: int, path: Path) -> None:
    """Hold an open file or folder for this process alone. ValueError when another one does."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another run is writing to {path}") from None


def parquet_writer(path: Path, schema: Any, fields: tuple[Field, ...]) -> Any:
    """Embeddings do not compress: dictionaries and compression are for the other columns."""
    pa, parquet = arrow_library("pyarrow"), arrow_library("pyarrow.parquet")
    empty = pa.BufferOutputStream()
    parquet.write_table(schema.empty_table(), empty)
    leaves = parquet.ParquetFile(empty.getvalue()).schema
    results = {field.name for field in fields}
    paths = [leaves.column(number).path for number in range(len(leaves))]
    others = [path for path in paths if path.split(".")[0] not in results]
    return parquet.ParquetWriter(
        path,
        schema,
        compression={path: "snappy" if path in others else "none" for path in paths},
        use_dictionary=others,
        write_statistics=others,
    )


def make_sink(place: Path, fields: tuple[Field, ...], rows: int) -> Sink:
    """For a place that `places.check_output` has found right."""
    if place.suffix == ".npy":
        return NpySink(place, fields, rows)
    return ParquetSink(place, fields)
