"""What stands beside the queries in files, and goes to Parquet parts beside the results.

Readers take a folder of parts for one table, so the columns of all files must be the same.
"""

from collections.abc import Sequence
from typing import Any

from headroute._optional import arrow_library
from headroute.batch.sources import Source, said_of_file


def check_others(sources: Sequence[Source]) -> None:
    """ValueError, of the first file with a column that cannot go there, or whose columns are not
    those of the files before it. Files without rows may have any.
    """
    for source in sources:
        if source.others is not None:
            with said_of_file(source.path):
                check_storable(source.others)
    filled = [source for source in sources if source.rows]
    for source in filled[1:]:
        check_alike(filled[0], source)


def check_alike(first: Source, other: Source) -> None:
    """ValueError unless both have the same columns; their order and metadata do not count."""
    before, now = types_of(first), types_of(other)
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{other.path}: column {name!r} is {now.get(name, 'not there')}, in {first.path} "
                f"it is {before.get(name, 'not there')}: files of one run have the same columns "
                "beside the queries, unless results go to .npy"
            )


def types_of(source: Source) -> dict[str, Any]:
    """By name, pyarrow.DataType."""
    if source.others is None:
        return {}
    return dict(zip(source.others.names, source.others.types, strict=True))


def check_storable(schema: Any) -> None:
    """ValueError unless a Parquet file can have these columns."""
    pa, parquet = arrow_library("pyarrow"), arrow_library("pyarrow.parquet")
    try:
        parquet.write_table(schema.empty_table(), pa.BufferOutputStream())
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"a column cannot go to Parquet files: {error}") from None
