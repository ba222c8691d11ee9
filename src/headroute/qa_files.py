"""Question-answer files: UnifyWeaver's JSON, JSON lines and CSV, read whole and checked.

    .json   {"clusters": [{"id", "answer_source"?, "answers": {variant: text},
                           "queries": {length: [text]}}]}
    .jsonl  one object a line: {"question", "answer", "cluster_id"?}
    .csv    the same three as named columns; other fields and columns are ignored in both

Rows with one cluster_id make a cluster; rows without one make a cluster with the rows of the same
answer. A text that a cluster has twice counts once. Every error is a QAFileError that names file,
line and field. Nothing is stored here.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

LENGTH_TYPES = ("short", "medium", "long")

_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


class QAFileError(ValueError):
    """A file that is not what it should be: "FILE:LINE: field 'answer': what is wrong"."""


@dataclass(frozen=True)
class ClusterRecord:
    """One cluster as its file has it."""

    name: str
    source: str  # where the answer comes from, by its file's own words
    answers: list[tuple[str, str]] = field(default_factory=list)  # (variant, text), no pair twice
    questions: list[tuple[str, str | None]] = field(
        default_factory=list
    )  # (text, length type), no text twice


def read_qa_file(path: str | Path) -> list[ClusterRecord]:
    """The clusters of a .json, .jsonl or .csv file, at least one, in order. Raises QAFileError."""
    path = Path(path)
    if _kind(path) == ".json":
        return _read_json_clusters(path)
    answers: dict[str, dict[tuple[str, str], None]] = {}  # dicts as ordered sets
    questions: dict[str, dict[str, None]] = {}
    for line, row in _read_rows(path):
        question = _row_text(path, line, row, "question")
        answer = _row_text(path, line, row, "answer")
        name = _row_cluster(path, line, row) or _name_from_answer(answer)
        answers.setdefault(name, {})["default", answer] = None
        questions.setdefault(name, {})[question] = None
    if not answers:
        raise QAFileError(f"{path}:1: no rows in it")
    return [
        ClusterRecord(
            name, path.name, list(texts), [(question, None) for question in questions[name]]
        )
        for name, texts in answers.items()
    ]


def read_test_file(path: str | Path) -> list[tuple[str, str]]:
    """Held-out (question, cluster name) pairs of a .json, .jsonl or .csv file. Raises QAFileError.

    JSON is UnifyWeaver's shape, in which the answers may be missing. A row has "question" or
    "query", and "cluster_id" or, where training rows have no cluster_id, their "answer".
    """
    path = Path(path)
    pairs = []
    if _kind(path) == ".json":
        document = _JSONDocument(path)
        for place in document.clusters():
            name = document.text((*place, "id"))
            pairs += [(text, name) for text, _ in document.questions((*place, "queries"))]
    else:
        for line, row in _read_rows(path):
            field = "query" if "query" in row and "question" not in row else "question"
            question = _row_text(path, line, row, field)
            cluster = _row_cluster(path, line, row)
            if cluster is None and "answer" not in row:
                raise _error(path, line, "cluster_id", "is missing")
            pairs.append(
                (question, cluster or _name_from_answer(_row_text(path, line, row, "answer")))
            )
    if not pairs:
        raise QAFileError(f"{path}:1: no questions in it")
    return pairs


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl", ".csv"):
        raise QAFileError(
            f"{path}: unknown kind of file {suffix!r}, expected .json, .jsonl or .csv"
        )
    return suffix


def _error(path: Path, line: int, name: str, problem: str) -> QAFileError:
    return QAFileError(f"{path}:{line}: field {name!r}: {problem}")


def _kind_of(value: object) -> str:
    return _NAMES.get(type(value), "a number")


def _text_problem(value: object) -> str | None:
    """What keeps `value` from being a question, an answer or a name; None when nothing does."""
    if not isinstance(value, str):
        return f"must be text, got {_kind_of(value)}"
    if not value.strip():
        return "is empty"
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair: "\ud800"
        return "has half of a surrogate pair in it, which is no character"
    return None


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QAFileError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.start counts from behind a byte order mark, which has no newline in it: the line is
        # right all the same
        line = data.count(b"\n", 0, error.start) + 1
        raise QAFileError(
            f"{path}:{line}: not UTF-8: byte 0x{error.object[error.start]:02x}"
        ) from None
    if not text.strip():
        raise QAFileError(f"{path}:1: the file is empty")
    return text


# ---- rows: JSON lines and CSV


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(line of the row's beginning, row)"""
    text = _read_text(path)
    return _csv_rows(path, text) if _kind(path) == ".csv" else _json_rows(path, text)


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    # Not splitlines(): it also splits at U+2028 and the like, which JSON allows inside a string.
    for line, source in enumerate(text.split("\n"), 1):
        if not source.strip():
            continue
        row = _parse_json(path, source, first_line=line)
        if not isinstance(row, dict):
            raise QAFileError(f"{path}:{line}: must be an object, got {_kind_of(row)}")
        yield line, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # a row may have more lines than one: quoted line breaks
        try:
            cells = _next_row(reader, longest=len(text))
        except StopIteration:
            return
        except csv.Error as error:
            raise QAFileError(f"{path}:{line}: not CSV: {error}") from None
        if not any(cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            for name in header:
                if name and header.count(name) > 1:
                    raise _error(path, line, name, "the header has it twice")
            continue
        if any(cells[len(header) :]):
            raise QAFileError(
                f"{path}:{line}: {len(cells)} fields in a row, {len(header)} in the header:"
                " a comma without quotes?"
            )
        yield line, dict(zip(header, cells, strict=False))


def _next_row(reader: Iterator[list[str]], longest: int) -> list[str]:
    before = csv.field_size_limit(longest)  # of the whole process; 131,072 by default
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


def _row_text(path: Path, line: int, row: dict[str, object], name: str) -> str:
    if name not in row:
        raise _error(path, line, name, f"is missing, there are only: {', '.join(row)}")
    value = row[name]
    if problem := _text_problem(value):
        raise _error(path, line, name, problem)
    return str(value)


def _row_cluster(path: Path, line: int, row: dict[str, object]) -> str | None:
    """The row's cluster_id, None when it is absent, null or empty. Numbers serve as names too."""
    value = row.get("cluster_id")
    if type(value) is int:
        return str(value)
    if value is None or value == "":
        return None
    return _row_text(path, line, row, "cluster_id").strip()


def _name_from_answer(answer: str) -> str:
    """A name that only this answer has: the cluster stays the same when other rows change."""
    return f"{' '.join(answer.split())[:40]} [{hashlib.sha256(answer.encode()).hexdigest()[:8]}]"


# ---- UnifyWeaver's JSON


def _read_json_clusters(path: Path) -> list[ClusterRecord]:
    document = _JSONDocument(path)
    records: dict[str, ClusterRecord] = {}
    for place in document.clusters():
        name = document.text((*place, "id"))
        if name in records:
            document.fail((*place, "id"), "another cluster of the file has it")
        source = path.name
        if "answer_source" in document.value(place, dict):
            source = document.text((*place, "answer_source"))
        answers = []
        for variant in document.value((*place, "answers"), dict):
            if problem := _text_problem(variant):
                document.fail((*place, "answers", variant), f"its name {problem}")
            answers.append((variant, document.text((*place, "answers", variant))))
        records[name] = ClusterRecord(
            name, source, answers, document.questions((*place, "queries"))
        )
    return list(records.values())


def _parse_json(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise QAFileError(f"{path}:{line}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits or of brackets
        raise QAFileError(f"{path}:{first_line}: not JSON: {error}") from None


Place = tuple[str | int, ...]


class _JSONDocument:
    """A parsed file; values are asked for by place, like ("clusters", 3, "id"), and checked."""

    def __init__(self, path: Path):
        self._path = path
        self._text = _read_text(path)
        self._root = _parse_json(path, self._text, first_line=1)
        self.value((), dict)

    def clusters(self) -> list[Place]:
        """The places of the clusters, each an object; at least one."""
        count = len(self.value(("clusters",), list))
        if not count:
            self.fail(("clusters",), "there are none in it")
        places: list[Place] = [("clusters", index) for index in range(count)]
        for place in places:
            self.value(place, dict)
        return places

    def questions(self, place: Place) -> list[tuple[str, str | None]]:
        """(text, length type) of an object of lists; None for a length the database lacks."""
        questions: dict[str, str | None] = {}
        for length in self.value(place, dict):
            length_type = length if length in LENGTH_TYPES else None
            for index in range(len(self.value((*place, length), list))):
                questions.setdefault(self.text((*place, length, index)), length_type)
        return list(questions.items())

    def value(self, place: Place, kind: type) -> Any:
        """The value there, of that kind; what it is in must be known to be there."""
        value = self._root
        for step in place:
            if isinstance(step, str) and step not in value:
                self.fail(place, "is missing")
            value = value[step]
        if not isinstance(value, kind):
            self.fail(place, f"must be {_NAMES[kind]}, got {_kind_of(value)}")
        return value

    def text(self, place: Place) -> str:
        value = self.value(place, object)
        if problem := _text_problem(value):
            self.fail(place, problem)
        return str(value)

    def fail(self, place: Place, problem: str) -> NoReturn:
        line = _line_of(self._text, place)
        if not place:
            raise QAFileError(f"{self._path}:{line}: the file {problem}")
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
        if len(place) > 2 and isinstance(name := self.value(place[:2], dict).get("id"), str):
            problem += f" (cluster {name!r})"
        raise _error(self._path, line, "".join(steps).removeprefix("."), problem)


def _line_of(text: str, place: Place) -> int:
    """The line on which the value at `place` begins; of what holds it, when it is missing.

    `text` is valid JSON. Only a failing file pays for this second walk, which Python's parser
    cannot report on.
    """
    decoder = json.JSONDecoder()

    def skip(at: int, characters: str = " \t\r\n") -> int:
        while at < len(text) and text[at] in characters:
            at += 1
        return at

    at = skip(0)
    for step in place:
        found = None
        inner = skip(at + 1)  # behind the bracket
        index = 0
        while text[inner] not in "]}":
            key: str | int = index
            if isinstance(step, str):
                key, inner = decoder.raw_decode(text, inner)
                inner = skip(inner, " \t\r\n:")
            if key == step:
                found = inner  # no break: of a key that is there twice the last one counts
            inner = skip(decoder.raw_decode(text, inner)[1], " \t\r\n,")
            index += 1
        if found is None:
            break
        at = found
    return text.count("\n", 0, at) + 1
