"""The packaged help desk: its shape, its size, and that the held-out questions are held out."""

import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from headroute.qa_files import read_qa_file, read_test_file

DATA = Path(str(files("headroute"))) / "data"
LENGTHS = {"short": range(2, 5), "medium": range(5, 15), "long": range(15, 41)}  # words


def load(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


TRAINING = load("helpdesk.json")
HELD_OUT = load("helpdesk_test.json")


def training_questions() -> list[str]:
    return [q for c in TRAINING["clusters"] for texts in c["queries"].values() for q in texts]


def held_out_questions() -> list[str]:
    return [q for c in HELD_OUT["clusters"] for q in c["queries"]["novel"]]


def words(text: str) -> str:
    """The text without case, punctuation and spacing, so that near copies compare equal."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_top_level() -> None:
    assert set(TRAINING) == {"version", "description", "license", "clusters"}
    assert set(HELD_OUT) == {"version", "description", "license", "clusters"}
    assert len(TRAINING["clusters"]) >= 28


def test_both_files_have_the_same_clusters_once() -> None:
    ids = [cluster["id"] for cluster in TRAINING["clusters"]]
    assert len(set(ids)) == len(ids)
    assert [cluster["id"] for cluster in HELD_OUT["clusters"]] == ids


@pytest.mark.parametrize("cluster", TRAINING["clusters"], ids=lambda c: c["id"])
def test_training_cluster(cluster: dict[str, Any]) -> None:
    assert set(cluster) == {"id", "answer_source", "answers", "queries"}
    assert re.fullmatch(r"[a-z_]+", cluster["id"])
    assert set(cluster["answers"]) == {"default"}
    assert 60 <= len(cluster["answers"]["default"].split()) <= 130
    assert set(cluster["queries"]) == set(LENGTHS)
    for length, questions in cluster["queries"].items():
        assert len(questions) >= 2
        for question in questions:
            assert len(question.split()) in LENGTHS[length], question
    assert 7 <= sum(map(len, cluster["queries"].values())) <= 9


@pytest.mark.parametrize("cluster", HELD_OUT["clusters"], ids=lambda c: c["id"])
def test_held_out_cluster(cluster: dict[str, Any]) -> None:
    assert set(cluster) == {"id", "queries"}
    assert set(cluster["queries"]) == {"novel"}
    assert len(cluster["queries"]["novel"]) == 4


def test_no_text_occurs_twice() -> None:
    texts = [
        *training_questions(),
        *held_out_questions(),
        *(cluster["answers"]["default"] for cluster in TRAINING["clusters"]),
    ]
    counts = Counter(map(words, texts))
    assert [text for text, count in counts.items() if count > 1] == []
    assert all(text == text.strip() for text in texts)


def test_held_out_questions_are_no_rewordings() -> None:
    """No held-out question shares five successive words with a training question of its cluster."""

    def runs(text: str) -> set[tuple[str, ...]]:
        tokens = words(text).split()
        return {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)}

    for training, held_out in zip(TRAINING["clusters"], HELD_OUT["clusters"], strict=True):
        known = {run for texts in training["queries"].values() for q in texts for run in runs(q)}
        for question in held_out["queries"]["novel"]:
            assert not runs(question) & known, question


def test_hosts_are_reserved_ones() -> None:
    text = json.dumps([TRAINING, HELD_OUT])
    hosts = re.findall(r"(?:https?://|@)([\w-]+(?:\.[\w-]+)+)", text)
    assert hosts
    assert {".".join(host.split(".")[-2:]) for host in hosts} == {"example.com"}


def test_the_readers_accept_both_files() -> None:
    clusters = read_qa_file(DATA / "helpdesk.json")
    assert [c.name for c in clusters] == [c["id"] for c in TRAINING["clusters"]]
    assert sum(len(c.questions) for c in clusters) == len(training_questions())
    assert [q for q, _ in read_test_file(DATA / "helpdesk_test.json")] == held_out_questions()
