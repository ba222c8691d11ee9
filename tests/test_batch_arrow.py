"""Arrow in, Arrow out: every list type, nulls, slices, and what is not a list of numbers."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroute import Router
from headroute.batch import BadRowError, Task, project_batches, project_record_batch
from headroute.batch.arrow import queries_of

D, E, K = 5, 3, 7


@pytest.fixture(scope="module")
def heads() -> Router:
    rng = np.random.default_rng(1)
    return Router(rng.standard_normal((K, D)), rng.standard_normal((K, E)), temperature=0.3)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((20, D)).astype(np.float32)


def fixed(rows, mask=None) -> pa.Array:
    values = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(
        values, rows.shape[1], mask=None if mask is None else pa.array(mask)
    )


def table(array: pa.Array, **others) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [array, *map(pa.array, others.values())], names=["embedding", *others]
    )


def numbers(batch: pa.RecordBatch, name: str = "projected") -> np.ndarray:
    column = batch.column(name)
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)


LISTS = [
    pa.list_(pa.float32(), D),
    pa.list_(pa.float16(), D),
    pa.list_(pa.float64(), D),
    pa.list_(pa.float32()),
    pa.large_list(pa.float32()),
    pa.list_(pa.int16()),
]


@pytest.mark.parametrize("type_", LISTS, ids=str)
@pytest.mark.parametrize("window", [slice(0, 20), slice(3, 11), slice(7, 7)], ids=str)
def test_every_type_of_list(heads, queries, type_, window) -> None:
    source = np.round(queries * 8)  # exact in all of them
    array = pa.array(source.astype(int).tolist(), type_)
    batch = table(array)[window]
    np.testing.assert_array_equal(
        numbers(project_record_batch(batch, heads)), heads.project(source[window])
    )


def test_extension_types_are_their_storage(heads, queries) -> None:
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [D]), fixed(queries)
    )
    result = project_record_batch(table(tensors), heads)
    np.testing.assert_array_equal(numbers(result), heads.project(queries))


@pytest.mark.parametrize("list_type", [pa.list_(pa.float32(), D), pa.list_(pa.float32())], ids=str)
def test_numbers_are_used_in_place(queries, list_type) -> None:
    array = fixed(queries).cast(list_type)[4:16]
    rows, faults = queries_of(array, D)
    assert not faults
    values = np.frombuffer(array.buffers()[-1], np.float32)
    assert np.shares_memory(rows, values)
    np.testing.assert_array_equal(rows, queries[4:16])


def test_the_other_columns_stay_as_they_are(heads, queries) -> None:
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), metadata={"unit": "none"}),
            ("embedding", pa.list_(pa.float32(), D)),
            ("word", pa.dictionary(pa.int8(), pa.string())),
        ],
        metadata={"made": "here"},
    )
    words = pa.array(["a", None] * 10).dictionary_encode().cast(schema.field("word").type)
    batch = pa.RecordBatch.from_arrays([pa.array(range(20)), fixed(queries), words], schema=schema)
    result = project_record_batch(batch[2:9], heads, dtype="float16")
    assert result.schema.names == ["id", "word", "projected"]
    assert result.schema.field("id").metadata == {b"unit": b"none"}
    assert result.schema.metadata == {b"made": b"here"}
    assert result.column("id").to_pylist() == list(range(2, 9))
    assert result.column("word").to_pylist() == words[2:9].to_pylist()
    np.testing.assert_array_equal(numbers(result), heads.project(queries[2:9]).astype(np.float16))


def test_weights_top_heads_and_answers(heads, queries) -> None:
    batch = table(fixed(queries))
    weights = project_record_batch(batch, heads, output="weights", temperature=0.1)
    np.testing.assert_array_equal(
        numbers(weights, "weights"), heads.route(queries, temperature=0.1)
    )
    top = project_record_batch(batch, heads, output="top-k", k=3)
    expected = heads.top_heads(queries, 3)
    np.testing.assert_array_equal(numbers(top, "top_heads"), expected.indices)
    np.testing.assert_array_equal(numbers(top, "top_weights"), expected.weights)
    documents = np.random.default_rng(3).standard_normal((9, E))
    found = project_record_batch(
        batch, heads, output="answers", k=2, documents=documents, document_ids=range(100, 109)
    )
    projected = heads.project(queries).astype(np.float64)
    cosines = projected @ (documents / np.linalg.norm(documents, axis=1, keepdims=True)).T
    best = np.argsort(-cosines, axis=1)[:, :2]
    np.testing.assert_array_equal(numbers(found, "answers"), 100 + best)
    np.testing.assert_allclose(
        numbers(found, "answer_scores"), np.take_along_axis(cosines, best, 1), rtol=0, atol=1e-5
    )


def test_a_column_of_one_name_may_become_the_result(heads, queries) -> None:
    batch = table(fixed(queries)).rename_columns(["projected"])
    result = project_record_batch(batch, heads, "projected")
    np.testing.assert_array_equal(numbers(result), heads.project(queries))


BAD = {
    "is null": None,
    "has 4 numbers, the heads expect 5": [1.0] * 4,
    "has 0 numbers, the heads expect 5": [],
    "has a null in it": [1.0, None, 0.0, 0.0, 0.0],
    "has a NaN or infinity in it": [1.0, float("nan"), 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list])
def test_bad_rows(heads, queries, fault, list_type) -> None:
    rows = queries.tolist()
    rows[7] = rows[12] = BAD[fault]
    batch = table(pa.array(rows, list_type(pa.float32())), id=range(20))
    with pytest.raises(BadRowError, match=f"^column 'embedding': query 7 {fault}$"):
        project_record_batch(batch, heads)
    with pytest.raises(ValueError, match=f"query 4 {fault}"):
        project_record_batch(batch[3:], heads)
    pieces = project_batches([batch[:6], batch[6:6], batch[6:]], heads)
    next(pieces)
    next(pieces)
    with pytest.raises(ValueError, match=f"query 7 {fault}"):
        next(pieces)
    result = project_record_batch(batch[3:], heads, on_bad="null")
    good = np.setdiff1d(np.arange(3, 20), [7, 12])
    assert (
        result.column("projected").is_valid().to_pylist()
        == np.isin(np.arange(3, 20), good).tolist()
    )
    np.testing.assert_array_equal(numbers(result), heads.project(queries[good]))
    assert result.column("id").to_pylist() == list(range(3, 20))


@pytest.mark.parametrize("sliced", [slice(0, 20), slice(5, 18)], ids=str)
def test_nulls_of_fixed_size_lists(heads, queries, sliced) -> None:
    mask = np.zeros(20, bool)
    mask[[2, 6, 17]] = True
    batch = table(fixed(queries, mask))[sliced]
    with pytest.raises(ValueError, match=f"query {2 if sliced.start == 0 else 1} is null"):
        project_record_batch(batch, heads)
    result = project_record_batch(batch, heads, on_bad="null")
    np.testing.assert_array_equal(result.column("projected").is_null(), mask[sliced])
    np.testing.assert_array_equal(numbers(result), heads.project(queries[sliced][~mask[sliced]]))


@pytest.mark.parametrize("list_type", [pa.list_(pa.int8(), D), pa.list_(pa.uint64())], ids=str)
def test_integers_with_nulls_among_them(heads, list_type) -> None:
    rows = [[3, 1, 4, 1, 5], None, [9, 2, None, 5, 3], [5, 8, 9, 7, 9]]
    result = project_record_batch(table(pa.array(rows, list_type)), heads, on_bad="null")
    assert result.column("projected").is_null().to_pylist() == [False, True, True, False]
    np.testing.assert_array_equal(numbers(result), heads.project([rows[0], rows[3]]))


@settings(deadline=None)
@given(
    st.lists(
        st.none() | st.lists(st.none() | st.integers(-9, 9), min_size=D - 1, max_size=D + 1),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 11),
    st.integers(0, 12),
)
def test_any_lists_against_a_loop(rows, start, length) -> None:
    array = pa.array(rows, pa.list_(pa.float32()))[start : start + length]
    part = rows[start : start + length]
    good = [row is not None and len(row) == D and None not in row for row in part]
    found, faults = queries_of(array, D)
    assert [place not in faults for place in range(len(part))] == good
    for place, row in enumerate(part):
        if good[place]:
            assert found[place].tolist() == row


def test_columns_that_cannot_be(heads, queries) -> None:
    batch = table(fixed(queries), id=range(20))
    for column, error, message in [
        ("vector", ValueError, "there must be one column 'vector', found no column of that name"),
        ("id", TypeError, "column 'id' must hold lists of real numbers, got int64"),
    ]:
        with pytest.raises(error, match=message):
            project_record_batch(batch, heads, column)
    twice = batch.rename_columns(["embedding", "embedding"])
    with pytest.raises(ValueError, match="found several columns of that name"):
        project_record_batch(twice, heads)
    views = pa.array(queries.tolist(), pa.list_view(pa.float32()))  # Arrow casts them wrongly
    with pytest.raises(TypeError, match="must hold lists of real numbers, got list_view<"):
        project_record_batch(table(views), heads)
    texts = table(pa.array([["a"]]))
    with pytest.raises(TypeError, match="must hold lists of real numbers, got list<"):
        project_record_batch(texts, heads)
    with pytest.raises(ValueError, match="there is a column 'projected', which the results need"):
        project_record_batch(table(fixed(queries), projected=range(20)), heads)
    with pytest.raises(ValueError, match="4 numbers a row, the heads expect 5: embedded with"):
        project_record_batch(table(fixed(queries[:, :4])), heads, on_bad="null")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "vectors"}, ValueError, "output must be one of projected, weights"),
        ({"dtype": "float64"}, ValueError, "dtype must be one of float32, float16, got 'float64'"),
        ({"on_bad": "skip"}, ValueError, "on_bad must be one of raise, null"),
        ({"output": "top-k", "k": 8}, ValueError, r"k must be between 1 .* heads \(7\), got 8"),
        ({"output": "answers", "k": 0}, ValueError, r"k must be between 1 .* documents \(7\)"),
        ({"temperature": 0}, ValueError, "temperature must be a positive, finite number"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
        (
            {"output": "answers", "documents": np.ones((4, E)), "document_ids": [1, 2]},
            ValueError,
            "4 documents but ids of shape",
        ),
        (
            {"output": "answers", "document_ids": np.arange(7) / 2},
            TypeError,
            "document_ids must be integers, got dtype float64",
        ),
        (
            {"output": "answers", "documents": [["a"] * E]},
            TypeError,
            "documents must be real numbers, got dtype <U1",
        ),
        ({"output": "answers", "documents": np.ones((4, 2))}, ValueError, r"shape \(D, 3\)"),
    ],
)
def test_options_that_cannot_be(heads, options, error, message) -> None:
    with pytest.raises(error, match=message):
        Task(heads, **options)


def test_errors_of_other_processes_say_the_same() -> None:
    error = BadRowError(3, "is null").located("a.parquet", 10)
    assert str(error) == "a.parquet: query 13 is null"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
