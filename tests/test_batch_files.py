"""Files in, files out: every kind of input gives the rows of the router."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from headroute import Router
from headroute.batch import job, json_lines, project_files
from headroute.batch.arrow_files import whole_grains
from headroute.batch.inputs import find_files
from headroute.cli import main

D, E, K, N = 24, 16, 7, 2500
BLOCK_ROWS = 300


@pytest.fixture
def heads(rng) -> Router:
    return Router(rng.standard_normal((K, D)), rng.standard_normal((K, E)), temperature=0.2)


@pytest.fixture
def queries(rng) -> np.ndarray:
    return rng.standard_normal((N, D), dtype=np.float32)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    """Several parts of several blocks of a small file."""
    monkeypatch.setattr(job, "BLOCK_BYTES", BLOCK_ROWS * D * 4)
    monkeypatch.setattr(job, "PART_BYTES", 3 * BLOCK_ROWS * D * 4)


def arrow_table(queries: np.ndarray, first: int = 0) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(queries.reshape(-1)), queries.shape[1])
    ids = pa.array(range(first, first + len(queries)))
    return pa.table({"id": ids, "embedding": vectors, "text": pa.array(map(str, ids.to_pylist()))})


def write(path: Path, queries: np.ndarray) -> Path:
    table = arrow_table(queries)
    if path.suffix == ".npy":
        np.save(path, queries)
    elif path.suffix == ".npz":
        np.savez_compressed(path, embedding=queries, other=queries[:2])
    elif path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=400)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=350)
    return path


KINDS = ("npy", "npz", "parquet", "arrow", "feather")


def vectors(table: pa.Table, name: str = "projected") -> np.ndarray:
    column = table.column(name).combine_chunks()
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("destination", ["out.npy", "out"])
def test_every_kind_of_file(tmp_path, heads, queries, kind, destination) -> None:
    source = write(tmp_path / f"q.{kind}", queries)
    column = "embedding" if kind == "npz" else None
    report = project_files(heads, [source], tmp_path / destination, column=column)
    assert (report.rows, report.resumed_rows, report.null_rows) == (N, 0, 0)
    expected = heads.project(queries)
    if destination == "out.npy":
        np.testing.assert_array_equal(np.load(tmp_path / destination), expected)
        assert {path.name for path in tmp_path.iterdir()} == {f"q.{kind}", "out.npy"}
        return
    table = pq.read_table(tmp_path / destination)
    np.testing.assert_array_equal(vectors(table), expected)
    passed = ["id", "text"] if kind in ("parquet", "arrow", "feather") else []
    assert table.column_names == [*passed, "projected"]
    if passed:
        assert table.column("id").to_pylist() == list(range(N))
    parts = sorted(path.name for path in (tmp_path / destination).glob("part-*"))
    assert parts == [f"part-{number:05}.parquet" for number in range(len(parts))]
    assert len(parts) == 3
    assert ds.dataset(tmp_path / destination).count_rows() == N  # the manifest is passed over


def test_folders_patterns_and_order(tmp_path, heads, queries) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    pieces = np.array_split(queries, 4)
    write(folder / "b.npy", pieces[0])
    write(folder / "c.parquet", pieces[1])
    write(folder / "deep" / "a.arrow", pieces[2])
    write(folder / "_temporary" / "z.npy", pieces[3])
    (folder / "README.md").write_text("not a query")
    (folder / "_headroute.json").write_text("{}")
    (folder / ".hidden.npy").write_text("not a query")
    write(folder / "b.npy", pieces[0]).rename(folder / "b.NPY")
    project_files(heads, [folder], tmp_path / "p.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), heads.project(np.vstack(pieces[:3])))
    (folder / "b.NPY").rename(folder / "b.npy")
    found = find_files([folder / "deep", str(folder / "*.n*y"), folder / "c.parquet"])
    assert [path.name for path in found] == ["a.arrow", "b.npy", "c.parquet"]


def test_inputs_that_cannot_be(tmp_path, heads, queries) -> None:
    source = write(tmp_path / "q.npy", queries)
    (tmp_path / "empty").mkdir()
    (tmp_path / "q.txt").write_text("hello")
    (tmp_path / "bad.parquet").write_text("hello")
    (tmp_path / "bad.arrow").write_text("hello")
    (tmp_path / "bad.npz").write_text("hello")
    os.mkfifo(tmp_path / "fifo.npy")
    write(tmp_path / "two.npz", queries)
    write(tmp_path / "nine.npy", queries[:, :9])
    pq.write_table(arrow_table(queries[:, :9]), tmp_path / "nine.parquet")
    for inputs, error, message in [
        (str(source), TypeError, r"a sequence of paths, got a single one: .*q\.npy"),
        (source, TypeError, r"a sequence of paths, got a single one: .*q\.npy"),
        ([], ValueError, "there are no inputs: name a file, a folder or a pattern"),
        ([tmp_path / "nowhere.npy"], OSError, "No such file"),
        ([tmp_path / "empty"], ValueError, "no file there ends in .npy, .npz"),
        ([str(tmp_path / "*.json")], ValueError, "no file there ends in"),
        ([source, tmp_path / "empty" / ".." / "q.npy"], ValueError, "among the inputs twice"),
        ([tmp_path / "q.txt"], ValueError, "q.txt: the name of an input ends in one of .npy"),
        ([tmp_path / "bad.parquet"], ValueError, "bad.parquet is not a Parquet file"),
        ([tmp_path / "bad.arrow"], ValueError, "bad.arrow is not a file in Arrow's file format"),
        ([tmp_path / "bad.npz"], ValueError, "bad.npz is not an .npz file"),
        ([tmp_path / "fifo.npy"], ValueError, "fifo.npy is not a plain file"),
        ([tmp_path / "two.npz"], ValueError, "holds embedding, other: choose the queries with"),
        (
            [source, tmp_path / "nine.npy"],
            ValueError,
            "nine.npy: queries have 9 columns, the heads expect 24",
        ),
        (
            [source, tmp_path / "nine.parquet"],
            ValueError,
            "nine.parquet: column 'embedding' has 9 numbers a row, the heads expect 24",
        ),
    ]:
        with pytest.raises(error, match=message):
            project_files(heads, inputs, tmp_path / "p.npy")
    assert not (tmp_path / "p.npy").exists()
    assert not list(tmp_path.glob(".p.npy*"))


def test_a_damaged_npz_file(tmp_path, heads, queries) -> None:
    source = tmp_path / "q.npz"
    np.savez_compressed(source, queries)
    content = bytearray(source.read_bytes())
    content[20_000:20_100] = bytes(100)
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"q\.npz: (Error -3 while|Bad CRC-32)"):
        project_files(heads, [source], tmp_path / "p.npy", on_bad="null")


def test_a_member_is_read_once(tmp_path, heads, queries, monkeypatch) -> None:
    np.savez_compressed(tmp_path / "q.npz", queries)
    opened = []
    real = zipfile.ZipFile.open

    def count(*arguments):
        opened.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(zipfile.ZipFile, "open", count)
    project_files(heads, [tmp_path / "q.npz"], tmp_path / "p.npy")
    assert len(opened) == 2  # for its header, and for its three parts
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), heads.project(queries))


def test_a_damaged_arrow_file(tmp_path, heads, queries) -> None:
    source = write(tmp_path / "q.arrow", queries)
    content = bytearray(source.read_bytes())
    at = content.index(b"\xff\xff\xff\xff", 100)  # where the message of a batch begins
    content[at : at + 8] = bytes(8)
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"q\.arrow: "):
        project_files(heads, [source], tmp_path / "p.npy")


def test_a_damaged_parquet_file(tmp_path, heads, queries) -> None:
    source = write(tmp_path / "q.parquet", queries)
    content = bytearray(source.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[-8 - length : -8 - length // 2] = b"\xff" * (length - length // 2)
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r"q\.parquet: "):
        project_files(heads, [source], tmp_path / "p.npy")


def test_an_output_among_the_inputs(tmp_path, heads, queries) -> None:
    write(tmp_path / "q.npy", queries)
    for folder in (tmp_path, tmp_path / "new" / ".."):
        (tmp_path / "new").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"new/out is in .*, an input: choose another output"):
            project_files(heads, [folder], tmp_path / "new" / "out")
    for _ in range(2):  # what begins with an underscore is passed over
        assert project_files(heads, [tmp_path], tmp_path / "_out").rows == N


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_other_columns_that_cannot_go_beside_the_results(tmp_path, heads, queries, kind) -> None:
    table = arrow_table(queries)
    table = table.append_column("projected", table.column("id"))
    if kind == "parquet":
        pq.write_table(table, tmp_path / "q.parquet")
    else:
        odd = pa.array([None] * N, pa.month_day_nano_interval())
        table = table.append_column("odd", odd)
        with pa.ipc.new_file(tmp_path / "q.arrow", table.schema) as file:
            file.write_table(table)
        with pa.ipc.new_file(tmp_path / "odd.arrow", table.schema.remove(3)) as file:
            file.write_table(table.remove_column(3))
        with pytest.raises(ValueError, match=r"odd\.arrow: a column cannot go to Parquet files: "):
            project_files(heads, [tmp_path / "odd.arrow"], tmp_path / "p")
    with pytest.raises(ValueError, match="there is a column 'projected', which the results need"):
        project_files(heads, [tmp_path / f"q.{kind}"], tmp_path / "p")
    project_files(heads, [tmp_path / f"q.{kind}"], tmp_path / "p.npy")  # where they do not go
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), heads.project(queries))


def test_other_columns_that_not_all_files_have(tmp_path, heads, queries) -> None:
    first, *pieces = np.array_split(queries, 5)
    write(tmp_path / "a.parquet", first)
    table = arrow_table(pieces[0])
    tables = {
        "fewer": table.drop_columns("text"),
        "more": table.append_column("more", table.column("id")),
        "other": table.set_column(0, "id", table.column("text")),
    }
    for name, other in tables.items():
        pq.write_table(other, tmp_path / f"{name}.parquet")
    write(tmp_path / "bare.npy", pieces[1])
    for name, message in [
        ("fewer.parquet", "column 'text' is not there, in .*a.parquet it is string: files of one"),
        ("more.parquet", "column 'more' is int64, in .*a.parquet it is not there"),
        ("other.parquet", "column 'id' is string, in .*a.parquet it is int64"),
        ("bare.npy", "column 'id' is not there, in .*a.parquet it is int64"),
    ]:
        inputs = [tmp_path / "a.parquet", tmp_path / name]
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            project_files(heads, inputs, tmp_path / "p")
        assert not (tmp_path / "p").exists()
        project_files(heads, inputs, tmp_path / "p.npy")  # where they do not go


def test_other_columns_that_differ_in_nothing_that_matters(tmp_path, heads, queries) -> None:
    """In their order, in metadata, in a file without rows, in another format."""
    pieces = np.array_split(queries, 3)
    table = arrow_table(pieces[0])
    tables = [
        arrow_table(pieces[1])[:0].drop_columns("id"),
        table,
        table.select(["text", "embedding", "id"]).replace_schema_metadata({"made": "here"}),
    ]
    paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for path, each in zip(paths, tables, strict=True):
        pq.write_table(each, path)
    paths.append(write(tmp_path / "q.arrow", pieces[2]))
    project_files(heads, paths, tmp_path / "p")
    result = pq.read_table(tmp_path / "p")
    np.testing.assert_array_equal(
        vectors(result), heads.project(np.vstack([pieces[0], pieces[0], pieces[2]]))
    )
    ids = [*range(len(pieces[0]))] * 2 + [*range(len(pieces[2]))]
    assert result.column("id").to_pylist() == ids
    assert result.column("text").to_pylist() == list(map(str, ids))


@pytest.mark.parametrize("on_bad", ["raise", "null"])
@pytest.mark.parametrize("destination", ["out.npy", "out"])
def test_bad_rows_in_the_third_of_five_files(
    tmp_path, heads, queries, on_bad, destination, capsys
) -> None:
    pieces = np.array_split(queries, 5)
    rows = [piece.tolist() for piece in pieces]
    rows[2][123] = rows[2][123][:7]
    rows[2][321] = None
    rows[2][322] = [float("nan")] * D
    for number, piece in enumerate(rows):
        lists = pa.array(piece, pa.list_(pa.float32()))
        table = pa.table({"v": lists, "id": range(len(piece))})
        pq.write_table(table, tmp_path / f"q{number}.parquet", row_group_size=50)
    heads.save(tmp_path / "r.safetensors")
    command = ["project", f"{tmp_path}/q*.parquet", "--router", f"{tmp_path}/r.safetensors"]
    command += ["-o", f"{tmp_path}/{destination}", "--column", "v", "--on-bad", on_bad]
    assert main(command) == (2 if on_bad == "raise" else 0)
    out, err = capsys.readouterr()
    if on_bad == "raise":
        assert "q2.parquet: query 123 has 7 numbers, the heads expect 24; the first 1,000" in err
        command[-1] = "null"  # goes on behind what is done
        assert main(command) == 0
        out = capsys.readouterr().out
        assert "1,000 of them by an earlier run" in " ".join(out.split())
    assert "3 bad queries got no result" in " ".join(out.split())
    bad = np.zeros(N, bool)
    bad[1000 + np.array([123, 321, 322])] = True
    expected = heads.project(np.where(bad[:, np.newaxis], 0, queries))
    if destination == "out.npy":
        expected[bad] = np.nan
        np.testing.assert_array_equal(np.load(tmp_path / destination), expected)
        return
    table = pq.read_table(tmp_path / destination)
    np.testing.assert_array_equal(table.column("projected").is_null(), bad)
    np.testing.assert_array_equal(vectors(table), expected[~bad])
    assert table.column("id").to_pylist() == list(range(500)) * 5


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("weights", ["weights"]),
        ("top-k", ["top_heads", "top_weights"]),
        ("answers", ["answers", "answer_scores"]),
    ],
)
def test_other_outputs(tmp_path, heads, queries, output, names) -> None:
    queries[[4, 2000], 1] = np.inf
    source = write(tmp_path / "q.npy", queries)
    options = {"output": output, "k": 3, "on_bad": "null", "dtype": "float16"}
    project_files(heads, [source], tmp_path / "p.npy", **options)
    project_files(heads, [source], tmp_path / "p", **options)
    flat, table = np.load(tmp_path / "p.npy"), pq.read_table(tmp_path / "p")
    assert table.column_names == names
    good = np.setdiff1d(np.arange(N), [4, 2000])
    for name in names:
        column = flat if len(names) == 1 else flat[name]
        np.testing.assert_array_equal(column[good], vectors(table, name))
        nothing = column[[4, 2000]]
        assert np.isnan(nothing).all() if column.dtype.kind == "f" else (nothing == -1).all()
    if output == "weights":
        expected = heads.route(queries[good]).astype(np.float16)
        np.testing.assert_array_equal(flat[good], expected)
    if output == "top-k":
        np.testing.assert_array_equal(
            flat["top_heads"][good], heads.top_heads(queries[good], 3).indices
        )


def test_texts(tmp_path, capsys) -> None:
    """Through the command line, by a database; blank lines count for nothing."""
    faq = [
        {"question": question, "answer": answer}
        for answer in ("Press reset.", "Call us.", "Look at the lamp.")
        for question in (f"{answer} When?", f"Why? {answer}", f"How to: {answer}")
    ]
    (tmp_path / "faq.jsonl").write_text("\n".join(map(json.dumps, faq)))
    db = f"{tmp_path}/lda.db"
    assert main(["import", f"{tmp_path}/faq.jsonl", "--db", db]) == 0
    assert main(["train", "--db", db, "--method", "centroid"]) == 0
    lines = [json.dumps({"question": f"How do I reset password {n}?", "n": n}) for n in range(20)]
    lines[3] = json.dumps({"question": None, "n": 3})
    (tmp_path / "t.jsonl").write_text("\n \n" + "\n\n".join(lines) + "\n\n")
    command = ["project", f"{tmp_path}/t.jsonl", "--db", db, "-o", f"{tmp_path}/out"]
    command += ["--output", "answers", "--top-k", "2", "--batch-rows", "6"]
    assert main(command) == 2
    assert "there is no 'text', only question, n: name it with" in capsys.readouterr().err
    command += ["--column", "question"]
    assert main(command) == 2
    assert "t.jsonl: query 3 is null" in capsys.readouterr().err
    assert main([*command, "--on-bad", "null"]) == 0
    capsys.readouterr()
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["question", "n", "answers", "answer_scores"]
    assert table.column("n").to_pylist() == list(range(20))
    assert table.column("answers").null_count == 1
    assert main(["search", "How do I reset password 19?", "--db", db, "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)["results"]
    assert table.column("answers")[19].as_py() == [hit["answer_id"] for hit in found[:2]]
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": "b"} {"text": "c"}\n')
    (tmp_path / "worse.jsonl").write_text('{"text": "a"}\n{"text": ')
    (tmp_path / "number.jsonl").write_text('{"text": 1}\n')
    for name, message in [
        ("bad", "2 lines hold 3 objects"),
        ("worse", "not one JSON object a line, in objects 0 to 1"),
        ("number", "'text' must be texts, got int64"),
    ]:
        command = ["project", f"{tmp_path}/{name}.jsonl", "--db", db, "-o", f"{tmp_path}/o.npy"]
        assert main(command) == 2
        assert message in capsys.readouterr().err


class Lengths:
    """Stands for an encoder."""

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text), *range(1, D)] for text in texts], np.float32).reshape(-1, D)


@pytest.fixture
def project_lines(tmp_path, heads, monkeypatch):
    """Projects objects, a few at a time, and gives the results as a table or as an array."""
    monkeypatch.setattr(json_lines, "load_encoder", lambda _: Lengths())
    monkeypatch.setattr(json_lines, "_JSON_BYTES", 50)

    def project(lines: list[dict], out: str = "p", **options):
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\r\n" for line in lines)
        (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
        options = {"model": "lengths", "batch_rows": 2, **options}
        project_files(heads, [tmp_path / "t.jsonl"], tmp_path / out, restart=True, **options)
        return np.load(tmp_path / out) if out == "p.npy" else pq.read_table(tmp_path / out)

    return project


def test_columns_of_objects_are_of_one_type(project_lines, heads) -> None:
    lines: list[dict] = [{"text": "x" * n, "n": n} for n in range(20)]
    lines[0] |= {"list": [], "deep": {"a": None}, "when": None}
    lines[7]["n"] = None
    lines[8]["n"] = 1.5
    lines[11]["note"] = "only here"
    lines[12] |= {"list": [1], "deep": {"b": "2020-02-02"}, "when": "2020-01-02T03:04:05Z"}
    lines[19] |= {"when": "yesterday", "list": [0.5]}
    table = project_lines(lines)
    names = ["text", "n", "list", "deep", "when", "note"]
    assert table.column_names == [*names, "projected"]
    assert [table.num_rows, table.column("projected").null_count] == [20, 0]
    for name in names:
        expected = [line.get(name) for line in lines]
        if name == "deep":
            expected[0], expected[12] = {"a": None, "b": None}, {"a": None, "b": "2020-02-02"}
        assert table.column(name).to_pylist() == expected
    expected = heads.project(Lengths().encode_queries([line["text"] for line in lines]))
    np.testing.assert_array_equal(vectors(table), expected)
    np.testing.assert_array_equal(project_lines(lines, "p.npy"), expected)


@pytest.mark.parametrize("missing", [{"text": None}, {"n": 1}])
@pytest.mark.parametrize("out", ["p", "p.npy"])
def test_blocks_without_a_text(project_lines, missing, out) -> None:
    lines = [{"text": "2020-02-02"}, {"text": "b"}, missing, missing, {"text": "e"}]
    with pytest.raises(ValueError, match=r"t\.jsonl: query 2 is null"):
        project_lines(lines, out)
    result = project_lines(lines, out, on_bad="null")
    bad = np.isnan(result[:, 0]) if out == "p.npy" else result.column("projected").is_null()
    np.testing.assert_array_equal(bad, [False, False, True, True, False])


def test_objects_that_cannot_be(project_lines) -> None:
    for lines, message in [
        ([{"text": "a", "projected": 1}], "there is a column 'projected', which the results need"),
        ([{"text": "a", "empty": {}}], "a column cannot go to Parquet files: .*'empty'"),
        ([{"text": "a", "n": "x" * 50}, {"text": "b", "n": 1}], "in objects 1 to 1: Unable to mer"),
        ([{"question": "a"}], "there is no 'text', only question: name it with --column"),
    ]:
        with pytest.raises(ValueError, match=rf"t\.jsonl: {message}"):
            project_lines(lines)


def test_a_model_of_another_dimension_and_none_at_all(tmp_path, heads, capsys) -> None:
    heads.save(tmp_path / "r.safetensors")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    command = ["project", f"{tmp_path}/t.jsonl", "--router", f"{tmp_path}/r.safetensors"]
    command += ["-o", f"{tmp_path}/p.npy"]
    assert main(command) == 2
    assert "t.jsonl holds texts: say which --model embeds them" in capsys.readouterr().err
    assert main([*command, "--model", "all-MiniLM-L6-v2"]) == 2
    assert "embeddings have 384 columns, the heads expect 24" in capsys.readouterr().err


def test_no_rows(tmp_path, heads, queries) -> None:
    for number, kind in enumerate(KINDS):
        source = write(tmp_path / f"q.{kind}", queries[:0])
        column = "embedding" if kind == "npz" else None
        out = tmp_path / f"p{number}.npy"
        assert project_files(heads, [source], out, column=column).rows == 0
        assert np.load(out).shape == (0, E)
        assert project_files(heads, [source], tmp_path / f"p{number}", column=column).rows == 0


def test_numbers_of_rows_and_of_heads(tmp_path, heads, queries) -> None:
    source = write(tmp_path / "q.npy", queries)
    options = {"output": "top-k", "k": np.int64(3), "batch_rows": np.int64(70)}
    project_files(heads, [source], tmp_path / "p.npy", **options)
    expected = heads.top_heads(queries, 3)
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy")["top_heads"], expected.indices)
    for rows in (0, -3):
        with pytest.raises(ValueError, match=f"batch_rows must be at least 1, got {rows}"):
            project_files(heads, [source], tmp_path / "p.npy", batch_rows=rows)


def test_whole_grains() -> None:
    parts = whole_grains([5, 0, 3, 9, 2, 0], 6)
    assert [(part.first, part.rows, list(part.grains)) for part in parts] == [
        (0, 8, [0, 1, 2]),
        (8, 9, [3]),
        (17, 2, [4, 5]),
    ]
    assert whole_grains([], 6) == []
    assert whole_grains([0, 0], 6) == []


def test_input_files_stay_as_they_are(tmp_path, heads, queries) -> None:
    source = write(tmp_path / "q.npy", queries)
    source.chmod(0o400)
    before = source.read_bytes()
    project_files(heads, [source], tmp_path / "p.npy")
    assert source.read_bytes() == before
