"""Queries in Parquet files and in files of Arrow's own format: a column of lists of numbers.

A part is made of whole row groups, or of whole record batches.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headroute.batch.arrow import check_columns, take_queries
from headroute.batch.sources import Block, Opening, Part, said_of_file


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
            self.others = check_schema(path, file.schema_arrow, opening)
        self.rows = metadata.num_rows
        self.row_bytes = opening.task.router.query_dim * 4

    def _open(self) -> Any:
        try:
            return pq.ParquetFile(self.path, buffer_size=4 << 20, pre_buffer=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{self.path} is not a Parquet file: {error}") from None

    def parts(self, part_rows: int) -> list[Part]:
        return whole_grains(self._group_rows, part_rows)

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
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
        with self._read(pa.memory_map(str(path))) as reader:
            self.others = check_schema(path, reader.schema, opening)
            self._batch_rows = [
                reader.get_batch(number).num_rows for number in range(reader.num_record_batches)
            ]
        self.rows = sum(self._batch_rows)
        self.row_bytes = opening.task.router.query_dim * 4

    def _read(self, file: Any) -> Any:
        try:
            return pa.ipc.open_file(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path} is not a file in Arrow's file format: {error}") from None

    def parts(self, part_rows: int) -> list[Part]:
        return whole_grains(self._batch_rows, part_rows)

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
        # Not mapped: pages of the whole file would count as this process's memory.
        with self._read(pa.OSFile(str(self.path))) as reader:
            for number in part.grains:
                batch = reader.get_batch(number)
                if self._alone:
                    batch = batch.select([self._column])
                for first in range(0, batch.num_rows, block_rows):
                    piece = batch.slice(first, block_rows)
                    yield Block(*take_queries(piece, self._column, self._task))


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


def check_schema(path: Path, schema: pa.Schema, opening: Opening) -> pa.Schema | None:
    """The other columns, if they are wanted. ValueError or TypeError unless there is a column of
    lists of numbers, and the others can stand beside the results.
    """
    column = opening.vectors_column()
    if opening.alone and column in schema.names:
        schema = pa.schema([field for field in schema if field.name == column])
    with said_of_file(path):
        place = check_columns(schema, column, opening.task)
    return None if opening.alone else schema.remove(place)
