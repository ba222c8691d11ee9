"""Queries in the columns of Arrow record batches, and results in columns beside the others.

Lists of numbers are used where they are, without a loop over rows, and without a copy unless rows
are missing. See `headroute.batch.task` for what is computed.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headroute.batch.task import BadRowError, Field, Options, Queries, Results, Task, solve
from headroute.router import Router


def project_record_batch(
    batch: pa.RecordBatch,
    router: Router,
    column: str = "embedding",
    **options: Unpack[Options],
) -> pa.RecordBatch:
    """Return the batch with the results in place of the queries, and all other columns.

    Args:
        batch: n rows; its `column` holds lists of numbers, FixedSizeList, List or LargeList of
            float16, float32, float64 or integers, each of length d.
        options: those of `headroute.batch.Task`. The results are columns of FixedSizeList:
            "projected", "weights", "top_heads" and "top_weights", or "answers" and "answer_scores".

    Raises ValueError, with the row's number, for a row that is null, has another length, or has a
    null, NaN or infinity in it, unless on_bad="null" makes it a null row; ValueError when there is
    no such column, when another one has the name of a result, or when its fixed length is not
    what the heads expect; TypeError when the column holds something else.
    """
    return project_with(Task(router, **options), batch, column)


def project_batches(
    batches: Iterable[pa.RecordBatch],
    router: Router,
    column: str = "embedding",
    **options: Unpack[Options],
) -> Iterator[pa.RecordBatch]:
    """Yield `project_record_batch` of each batch; rows in errors count through all of them."""
    task = Task(router, **options)
    first = 0
    for batch in batches:
        yield project_with(task, batch, column, first)
        first += batch.num_rows


def project_with(task: Task, batch: pa.RecordBatch, column: str, first: int = 0) -> pa.RecordBatch:
    """`project_record_batch` by a task that was made before; row 0 is number `first`."""
    queries, others = take_queries(batch, column, task)
    try:
        results = solve(task, queries)
    except BadRowError as error:
        raise error.located(f"column {column!r}", first) from None
    return with_results(others, task.fields, results)


def take_queries(batch: pa.RecordBatch, column: str, task: Task) -> tuple[Queries, pa.RecordBatch]:
    """The queries of a column, and the batch without it."""
    place = check_columns(batch.schema, column, task)
    queries = queries_of(batch.column(place), task.router.query_dim)
    return queries, batch.remove_column(place)


def check_columns(schema: pa.Schema, column: str, task: Task) -> int:
    """The place of the queries' column. ValueError when there is none, when a fixed length is not
    that of the heads, or when another column has a result's name; TypeError when it is of another
    type.
    """
    places = schema.get_all_field_indices(column)
    if len(places) != 1:
        names = ", ".join(map(repr, schema.names)) or "none"
        some = "several columns" if places else "no column"
        raise ValueError(f"there must be one column {column!r}, found {some} of that name: {names}")
    type_ = check_list_type(schema.field(places[0]).type, column)
    if pa.types.is_fixed_size_list(type_) and type_.list_size != task.router.query_dim:
        raise ValueError(
            f"column {column!r} has {type_.list_size} numbers a row, the heads expect "
            f"{task.router.query_dim}: embedded with another model?"
        )
    check_names([name for name in schema.names if name != column], task)
    return int(places[0])


def check_names(names: Sequence[str], task: Task) -> None:
    """ValueError when a column that stays has a result's name."""
    for field in task.fields:
        if field.name in names:
            raise ValueError(f"there is a column {field.name!r}, which the results need: rename it")


def queries_of(array: pa.Array, d: int) -> Queries:
    """The rows (n, d) of an array of lists of numbers."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    n = len(array)
    lengths = lengths_of(array)
    faults = {
        int(row): "is null"
        if lengths[row] < 0
        else f"has {lengths[row]} numbers, the heads expect {d}"
        for row in np.flatnonzero(lengths != d)
    }
    if not faults:
        values = array.flatten()
        rows = numbers_of(values).reshape(n, d)
        where = np.arange(n)
    else:
        where = np.flatnonzero(lengths == d)
        values = array.filter(pa.array(lengths == d)).flatten()
        numbers = numbers_of(values)
        rows = np.zeros((n, d), numbers.dtype)
        rows[where] = numbers.reshape(-1, d)
    if values.null_count:
        holes = np.asarray(values.is_null()).reshape(-1, d).any(axis=1)
        faults |= {int(row): "has a null in it" for row in where[holes]}
    return Queries(rows, faults)


def check_list_type(type_: pa.DataType, column: str) -> pa.DataType:
    """The type of the lists of real numbers; TypeError for another one."""
    if isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    if not any(is_list(type_) for is_list in lists) or not (
        pa.types.is_floating(type_.value_type) or pa.types.is_integer(type_.value_type)
    ):
        raise TypeError(f"column {column!r} must hold lists of real numbers, got {type_}")
    return type_


def lengths_of(array: pa.Array) -> npt.NDArray[np.int64]:
    """Of the lists (n,); -1 for a null."""
    if pa.types.is_fixed_size_list(array.type):
        lengths = np.full(len(array), array.type.list_size, np.int64)
        if array.null_count:
            lengths[np.asarray(array.is_null())] = -1
        return lengths
    return np.asarray(pc.list_value_length(array).fill_null(-1), np.int64)


def numbers_of(values: pa.Array) -> npt.NDArray[Any]:
    """Flat values as an array, without a copy unless there are nulls in it: those become NaN."""
    return np.asarray(values.to_numpy(zero_copy_only=False))


def with_results(
    others: pa.RecordBatch | None, fields: tuple[Field, ...], results: Results
) -> pa.RecordBatch:
    """The batch, if there is one, with the results as columns at its end."""
    mask = None
    if len(results.bad):
        bad = np.zeros(len(results.columns[0]), bool)
        bad[results.bad] = True
        mask = pa.array(bad)
    arrays = [
        pa.FixedSizeListArray.from_arrays(
            pa.array(column.reshape(-1)), type=list_type(field), mask=mask
        )
        for field, column in zip(fields, results.columns, strict=True)
    ]
    schema = pa.schema([]) if others is None else others.schema
    for field in fields:
        schema = schema.append(pa.field(field.name, list_type(field)))
    return pa.RecordBatch.from_arrays(
        [*(() if others is None else others.columns), *arrays], schema=schema
    )


def list_type(field: Field) -> pa.DataType:
    return pa.list_(pa.field("item", pa.from_numpy_dtype(field.dtype)), field.width)
