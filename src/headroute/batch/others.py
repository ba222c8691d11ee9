"""What stands beside the queries in files, and goes to Parquet parts beside the results."""

from collections.abc import Sequence
from typing import Any

from headroute._optional import arrow_library
from headroute.batch.sources import Source, said_of_file


def check_others(sources: Sequence[Source]) -> None:
    """ValueError, of the first file with a column that cannot go there."""
    for source in sources:
        if source.others is not None:
            with said_of_file(source.path):
                check_storable(source.others)


def check_storable(schema: Any) -> None:
    """ValueError unless a Parquet file can have these columns."""
    pa, parquet = arrow_library("pyarrow"), arrow_library("pyarrow.parquet")
    try:
        parquet.write_table(schema.empty_table(), pa.BufferOutputStream())
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"a column cannot go to Parquet files: {error}") from None
