"""Queries as texts, in files of one JSON object a line; they are embedded when they are read."""

import bisect
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.json

from headroute.batch.arrow import check_names
from headroute.batch.sources import Block, Opening, Part, even_parts, said_of_file, steps
from headroute.batch.task import Queries
from headroute.loading import load_encoder


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
        self.others = self._schema if self.rows and not opening.alone else None

    def parts(self, part_rows: int) -> list[Part]:
        return even_parts(self.rows, part_rows)

    def blocks(self, part: Part, block_rows: int) -> Iterator[Block]:
        with open(self.path, "rb") as file:
            for first, n in steps(part, block_rows):
                yield self._block(self._parse(file, first, n, self._schema))

    def _find_schema(self, opening: Opening) -> pa.Schema:
        """The columns of all objects, with the types that hold what is in any of them."""
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
        return schema

    def _parse(
        self, file: IO[bytes], first: int, n: int, schema: pa.Schema | None = None
    ) -> pa.Table:
        """Objects as a table, of the types that they have, or of a schema, as far as they fit."""
        start = self._ends[first - 1] if first else 0
        file.seek(start)
        lines = file.read(self._ends[first + n - 1] - start)
        where = f"in objects {first} to {first + n - 1}"
        rule = "infer" if schema is None else "ignore"
        try:
            table = pa.json.read_json(
                pa.BufferReader(lines),
                pa.json.ReadOptions(block_size=max(len(lines), 1)),
                pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=rule),
            )
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path}: not one JSON object a line, {where}: {error}") from None
        if table.num_rows != n:
            raise ValueError(
                f"{self.path}: {n} lines hold {table.num_rows} objects, {where}: one object a line"
            )
        return table

    def _block(self, table: pa.Table) -> Block:
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


def without_times(type_: pa.DataType) -> pa.DataType:
    """A type that was found in JSON, with times as the texts that they are there."""
    if pa.types.is_temporal(type_):
        return pa.string()
    if pa.types.is_list(type_):
        return pa.list_(without_times(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, without_times(field.type)) for field in type_])
    return type_


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
