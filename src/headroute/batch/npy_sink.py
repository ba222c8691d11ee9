"""Results in one .npy file: .out.npy.partial while it grows, of its full size from the beginning.

Two columns, such as heads and weights, are the fields of one structured array.
"""

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headroute.batch.direct_file import BLOCK, DirectFile
from headroute.batch.manifest import Progress
from headroute.batch.sinks import Solved, lock
from headroute.batch.task import Field


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
