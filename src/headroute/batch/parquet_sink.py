"""Results in a folder of Parquet files: part-00000.parquet and so on, one for each part.

A manifest in the folder says how many parts there are, and whether that is all.
"""

import contextlib
import os
import re
from collections import deque
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headroute.batch.arrow import with_results
from headroute.batch.manifest import Progress
from headroute.batch.sinks import MANIFEST, Solved, lock
from headroute.batch.task import Field

_PART = re.compile(r"part-(?P<number>\d{5,})\.parquet(?P<temporary>\.tmp)?")


class ParquetSink:
    keeps_manifest = True

    def __init__(self, folder: Path, fields: tuple[Field, ...]) -> None:
        self.path = folder
        self.manifest = folder / MANIFEST
        self._fields = fields
        self._writer: Any = None  # pq.ParquetWriter of the part that is being written
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


def parquet_writer(path: Path, schema: pa.Schema, fields: tuple[Field, ...]) -> pq.ParquetWriter:
    """Embeddings do not compress: dictionaries and compression are for the other columns."""
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.ParquetFile(empty.getvalue()).schema
    results = {field.name for field in fields}
    paths = [leaves.column(number).path for number in range(len(leaves))]
    others = [path for path in paths if path.split(".")[0] not in results]
    return pq.ParquetWriter(
        path,
        schema,
        compression={path: "snappy" if path in others else "none" for path in paths},
        use_dictionary=others,
        write_statistics=others,
    )
