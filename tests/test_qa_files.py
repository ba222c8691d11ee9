"""Question-answer files: what is read, and that every mistake is named by file, line and field."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headroute.qa_files import ClusterRecord, QAFileError, _line_of, read_qa_file, read_test_file


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# ---- what is read


def test_unifyweavers_json(write):
    path = write(
        "qa.json",
        """{"version": "1.0", "clusters": [
        {"id": "a", "answer_source": "docs/a.md",
         "answers": {"default": "Long answer.", "e5-small-v2": "Short."},
         "queries": {"short": ["q1", "q2", "q1"], "novel": ["q3"]}, "tags": [1]},
        {"id": "b", "answers": {}, "queries": {"long": []}}]}""",
    )
    assert read_qa_file(path) == [
        ClusterRecord(
            "a",
            "docs/a.md",
            [("default", "Long answer."), ("e5-small-v2", "Short.")],
            [("q1", "short"), ("q2", "short"), ("q3", None)],
        ),
        ClusterRecord("b", "qa.json", [], []),
    ]


ROWS = [
    {"question": "q1", "answer": "a1", "cluster_id": "x", "author": "me"},
    {"question": "q2", "answer": "a2"},
    {"question": "q3", "answer": "a3", "cluster_id": "x"},
    {"question": "q4", "answer": "a2", "cluster_id": ""},
    {"question": "q1", "answer": "a1", "cluster_id": "x"},
]


def as_csv(rows) -> str:
    lines = ["author,cluster_id,question,answer"]
    for row in rows:
        lines.append(",".join(f'"{row.get(k, "")}"' for k in lines[0].split(",")))
    return "\r\n".join(lines)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("qa.jsonl", "\n\n".join(json.dumps(row) for row in ROWS)),
        ("qa.jsonl", "\r\n".join(json.dumps(row) for row in ROWS) + "\r\n"),
        ("qa.csv", as_csv(ROWS)),
        ("qa.CSV", "\ufeff" + as_csv(ROWS) + "\r\n\r\n"),
    ],
)
def test_rows_are_grouped(write, name, content):
    """By cluster_id, else by answer; what is there twice counts once."""
    x, a2 = read_qa_file(write(name, content))
    assert x == ClusterRecord(
        "x", name, [("default", "a1"), ("default", "a3")], [("q1", None), ("q3", None)]
    )
    assert a2.answers == [("default", "a2")]
    assert a2.questions == [("q2", None), ("q4", None)]


def test_names_from_answers_depend_on_the_answer_alone(write):
    same = "The first forty characters of these answers are the same ones, "
    first = write("1.jsonl", json.dumps({"question": "q", "answer": same + "1"}))
    second = write(
        "2.jsonl", "\n".join(json.dumps({"question": q, "answer": same + q}) for q in "31")
    )
    (one,) = read_qa_file(first)
    three, again = read_qa_file(second)
    assert one.name == again.name != three.name
    assert one.name.startswith("The first forty characters of these answ")


def test_texts_stay_as_they_are(write):
    """Line breaks in quotes, quotes in quotes, U+2028 inside a JSON line, surrounding blanks."""
    csv = 'question,answer\n" two\nlines ","say ""hi"", ünï"\n'
    (record,) = read_qa_file(write("qa.csv", csv))
    assert record.questions == [(" two\nlines ", None)]
    assert record.answers == [("default", 'say "hi", ünï')]
    (record,) = read_qa_file(write("long.csv", "question,answer\nq," + "x" * 200_000))
    assert record.answers == [("default", "x" * 200_000)]
    line = json.dumps({"question": "a\u2028b", "answer": "a\u0085b"}, ensure_ascii=False)
    (record,) = read_qa_file(write("qa.jsonl", line))
    assert record.questions == [("a\u2028b", None)]
    assert record.answers == [("default", "a\u0085b")]


def test_numbers_are_cluster_ids_too(write):
    path = write("qa.jsonl", '{"question": "q", "answer": "a", "cluster_id": 7}')
    assert read_qa_file(path)[0].name == "7"


def test_test_files(write):
    document = {"clusters": [{"id": "a", "queries": {"novel": ["q1", "q2"]}}]}
    pairs = [("q1", "a"), ("q2", "a")]
    assert read_test_file(write("t.json", json.dumps(document))) == pairs
    rows = '{"question": "q1", "cluster_id": "a"}\n{"query": "q2", "cluster_id": "a"}'
    assert read_test_file(write("t.jsonl", rows)) == pairs
    assert read_test_file(write("t.csv", "cluster_id,query\na,q1\na,q2")) == pairs


def test_test_rows_without_cluster_id_find_the_cluster_of_their_answer(write):
    training = write("qa.jsonl", '{"question": "q1", "answer": "An answer."}')
    held_out = write("t.jsonl", '{"question": "q2", "answer": "An answer."}')
    assert read_test_file(held_out) == [("q2", read_qa_file(training)[0].name)]


# ---- mistakes: name of the file, its content, line, and what the message says


def one_cluster(**changes) -> str:
    """A JSON file whose only cluster begins on line 3, with one key a line in the order below."""
    cluster = {"id": "a", "answers": {"default": "text"}, "queries": {"short": ["q"]}} | changes
    keys = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in cluster.items() if v != "-")
    return f'{{"clusters":\n[\n{{{keys}}}]}}'


MISTAKES = [
    # JSON
    ("qa.json", "", 1, "the file is empty"),
    ("qa.json", " \n ", 1, "the file is empty"),
    ("qa.json", b"\xef\xbb\xbf", 1, "the file is empty"),
    ("qa.json", '{"clusters": [\n{"id": "a",}]}', 2, "not JSON: "),
    ("qa.json", "[" * 100_000, 1, "not JSON: "),
    ("qa.json", b'{"clusters":\n"caf\xe9"}', 2, "not UTF-8: byte 0xe9"),
    ("qa.json", b'\xef\xbb\xbf{"clusters":\n\n"caf\xe9"}', 3, "not UTF-8: byte 0xe9"),
    ("qa.json", "[1]", 1, "the file must be an object, got a list"),
    ("qa.json", "{}", 1, "field 'clusters': is missing"),
    ("qa.json", '{\n"clusters": {}}', 2, "field 'clusters': must be a list, got an object"),
    ("qa.json", '{\n"clusters": []}', 2, "field 'clusters': there are none in it"),
    ("qa.json", '{"clusters": [\n7]}', 2, "field 'clusters[0]': must be an object, got a number"),
    ("qa.json", one_cluster(id="-"), 3, "field 'clusters[0].id': is missing"),
    ("qa.json", one_cluster(id=3), 3, "field 'clusters[0].id': must be text, got a number"),
    ("qa.json", one_cluster(id=" "), 3, "field 'clusters[0].id': is empty"),
    (
        "qa.json",
        '{"clusters": [{"id": "a", "answers": {}, "queries": {}},\n'
        '{"answers": {}, "queries": {},\n"id": "a"}]}',
        3,
        "field 'clusters[1].id': another cluster of the file has it (cluster 'a')",
    ),
    ("qa.json", one_cluster(answers="-"), 3, "field 'clusters[0].answers': is missing"),
    ("qa.json", one_cluster(answers=["a"]), 4, "'clusters[0].answers': must be an object, got a"),
    ("qa.json", one_cluster(answers={"default": None}), 4, "answers.default': must be text, got n"),
    ("qa.json", one_cluster(answers={"default": ""}), 4, "answers.default': is empty"),
    ("qa.json", one_cluster(answers={" ": "a"}), 4, "answers. ': its name is empty"),
    ("qa.json", one_cluster(queries="-"), 3, "field 'clusters[0].queries': is missing"),
    ("qa.json", one_cluster(queries=["q"]), 5, "queries': must be an object, got a list"),
    ("qa.json", one_cluster(queries={"short": "q"}), 5, "queries.short': must be a list, got text"),
    ("qa.json", one_cluster(queries={"short": ["q", True]}), 5, "queries.short[1]': must be text"),
    ("qa.json", one_cluster(queries={"short": [" "]}), 5, "queries.short[0]': is empty"),
    ("qa.json", one_cluster(queries={"short": ["\ud800"]}), 5, "half of a surrogate pair"),
    ("qa.json", one_cluster(answer_source=5), 6, "answer_source': must be text, got a number"),
    # JSON lines
    ("qa.jsonl", "\n", 1, "the file is empty"),
    ("qa.jsonl", '{"question": "q", "answer": "a"}\n\n{"question":', 3, "not JSON: "),
    ("qa.jsonl", '{"question": "q", "answer": "a"}\n[]', 2, "must be an object, got a list"),
    ("qa.jsonl", '\n{"question": "q"}', 2, "field 'answer': is missing, there are only: question"),
    ("qa.jsonl", '{"question": "", "answer": "a"}', 1, "field 'question': is empty"),
    (
        "qa.jsonl",
        '{"question": "q", "answer": ["a"]}',
        1,
        "field 'answer': must be text, got a list",
    ),
    (
        "qa.jsonl",
        '{"question": "q", "answer": "a", "cluster_id": true}',
        1,
        "field 'cluster_id': must be text, got true or false",
    ),
    # CSV
    ("qa.csv", "question,answer\n", 1, "no rows in it"),
    ("qa.csv", "question;answer\nq;a\n", 2, "field 'question': is missing, there are only: questi"),
    ("qa.csv", "question,answer,question\nq,a,q", 1, "field 'question': the header has it twice"),
    ("qa.csv", 'question,answer\n"two\nlines",a\nq,', 4, "field 'answer': is empty"),
    ("qa.csv", 'question,answer\n"two\nlines"\n', 2, "field 'answer': is missing"),
    ("qa.csv", "question,answer\n\nq,a,b\n", 3, "3 fields in a row, 2 in the header"),
    ("qa.csv", 'question,answer\nq,a\nq,"never\nclosed', 3, "not CSV: unexpected end of data"),
    ("qa.csv", 'question,answer\nq,"a"b\n', 2, "not CSV: "),
    ("qa.csv", b"question,answer\nq,a\ncaf\xe9,a", 3, "not UTF-8: byte 0xe9"),
]


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"), MISTAKES, ids=[m[3][:40] for m in MISTAKES]
)
def test_mistakes(write, name, content, line, problem):
    path = write(name, content)
    with pytest.raises(QAFileError) as caught:
        read_qa_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert problem in message
    assert "\n" not in message


def test_a_file_of_held_out_questions_is_not_training_data(write):
    path = write("test.json", one_cluster(answers="-"))
    assert read_test_file(path) == [("q", "a")]
    with pytest.raises(QAFileError, match=r"answers': is missing"):
        read_qa_file(path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.json", one_cluster(queries={}), ":1: no questions in it"),
        ("t.json", one_cluster(id=4), ":3: field 'clusters[0].id': must be text, got a number"),
        ("t.jsonl", '{"question": "q"}', ":1: field 'cluster_id': is missing"),
        ("t.jsonl", '{"cluster_id": "q"}', ":1: field 'question': is missing"),
    ],
)
def test_mistakes_in_test_files(write, name, content, problem):
    path = write(name, content)
    with pytest.raises(QAFileError) as caught:
        read_test_file(path)
    assert str(caught.value).startswith(f"{path}{problem}")


@pytest.mark.parametrize("read", [read_qa_file, read_test_file])
def test_files_that_cannot_be_read(write, tmp_path, read):
    with pytest.raises(QAFileError, match=r"gone\.json: cannot be read: No such file"):
        read(tmp_path / "gone.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(QAFileError, match=r"folder\.json: cannot be read: "):
        read(tmp_path / "folder.json")
    with pytest.raises(QAFileError, match=r"unknown kind of file '\.txt', expected \.json, "):
        read(write("qa.txt", "text"))


# ---- the line of a place in a JSON text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=15,
)


def places(value, place=()):
    yield place
    if isinstance(value, dict | list):
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*place, step))


@given(JSON)
def test_lines_are_where_the_values_are(value):
    """Written with one value a line, the lines of all places are 1, 2, 3, … in their order."""
    text = json.dumps(value, indent=1)
    found = [_line_of(text, place) for place in places(value)]
    closing = sum(line.strip() in ("]", "],", "}", "},") for line in text.split("\n"))
    assert found == sorted(set(found))
    assert len(found) == text.count("\n") + 1 - closing
