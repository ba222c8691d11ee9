"""What every kind of file of queries is for a run: parts, and blocks of rows in them.

A part is what is done whole or not at all. Blocks of a part are read in order, by one thread; none
is larger than asked for but where a file has no finer grain. The kinds themselves are in
`array_files`, `arrow_files` and `json_lines`; `inputs` finds files and opens them.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from headroute.batch.task import Queries, Task


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
    others: Any  # pyarrow.Schema of what stands beside the queries and is wanted, or None

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


def even_parts(rows: int, part_rows: int) -> list[Part]:
    return [
        Part(first, min(part_rows, rows - first), range(0)) for first in range(0, rows, part_rows)
    ]


def steps(part: Part, block_rows: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of the blocks of a part."""
    for first in range(part.first, part.first + part.rows, block_rows):
        yield first, min(block_rows, part.first + part.rows - first)


@contextlib.contextmanager
def said_of_file(path: Path) -> Iterator[None]:
    """A ValueError or TypeError here begins with the file."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None
