"""What heads are worth on real questions: the tables of docs/quality.md, beside their targets.

    python benchmarks/quality.py > quality.md

CLINC150 (150 intents, answers are the intents' names) and UnifyWeaver, embedded with
all-MiniLM-L6-v2. The classifiers of scikit-learn get the same embeddings and choose their C by
cross-validation. Takes about ten minutes on 2 cores, two of them for embedding.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from clinc import DATA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV

from headroute import Router, train_heads
from headroute.cli import main as headroute
from headroute.embedding import Encoder

UNIFYWEAVER = DATA.parents[1] / "unifyweaver"
COLUMNS = (5, 10, 50, 100)  # training questions an intent
SEEDS = (0, 1, 2)
STRENGTHS = (3.0, 10.0, 30.0, 100.0)  # of LogisticRegression: its C
TEMPERATURES = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1)


class Clinc(NamedTuple):
    """Unit embeddings, and indices into `answers`."""

    train: np.ndarray  # (15,000, d)
    train_groups: np.ndarray
    validation: np.ndarray  # (3,000, d)
    test: np.ndarray  # (4,500, d)
    test_groups: np.ndarray
    out_of_scope: np.ndarray  # (1,000, d)
    answers: np.ndarray  # (150, d)


def read_clinc(step: int) -> Clinc:
    """Embed every step-th text; (queries, d) float32 each."""
    document = json.loads(DATA.read_text())
    encoder = Encoder("all-MiniLM-L6-v2")
    names = sorted({name for _, name in document["train"]})

    def part(name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = document[name][::step]
        vectors = encoder.encode_queries([text for text, _ in rows], lambda _: None)
        groups = [names.index(group) if group in names else -1 for _, group in rows]
        return vectors, np.array(groups)

    train, validation, test, outside = map(part, ("train", "val", "test", "oos_test"))
    answers = encoder.encode_queries([name.replace("_", " ") for name in names], lambda _: None)
    return Clinc(*train, validation[0], *test, outside[0], answers)


def sample(groups: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Rows of `number` questions of each group."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    return np.concatenate([rng.permutation(rows)[:number] for rows in members])


def recall_at_1(
    router: Router,
    queries: np.ndarray,
    groups: np.ndarray,
    answers: np.ndarray,
    temperature: float | None = None,
) -> float:
    """The share of queries whose projection is closest to the right answer."""
    found = router.score_answers(queries, answers, 1, temperature=temperature)
    return float((found.indices[:, 0] == groups).mean())


def logistic_regression(rows: np.ndarray, groups: np.ndarray) -> LogisticRegression:
    """The best C of STRENGTHS by 3-fold cross-validation, refitted to all."""
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": STRENGTHS}, cv=3)
    return search.fit(rows, groups).best_estimator_


def clinc_columns(data: Clinc) -> Iterator[tuple[int, dict[str, list[float]]]]:
    """(questions an intent, accuracies of every method over the seeds)."""
    for number in COLUMNS:
        results: dict[str, list[float]] = {}
        for seed in SEEDS:
            rows = sample(data.train_groups, number, seed)
            questions, groups = data.train[rows], data.train_groups[rows]
            means = train_heads(questions, groups, data.answers, method="centroid")
            learned = train_heads(questions, groups, data.answers, random_state=seed)
            plain = logistic_regression(questions, groups)
            hindsight = max(
                recall_at_1(means, data.test, data.test_groups, data.answers, tau)
                for tau in TEMPERATURES
            )
            for name, value in (
                (
                    "mean centroids, τ = 0.1",
                    recall_at_1(means, data.test, data.test_groups, data.answers, 0.1),
                ),
                (
                    "mean centroids, leave-one-out τ",
                    recall_at_1(means, data.test, data.test_groups, data.answers),
                ),
                ("mean centroids, best τ in hindsight", hindsight),
                ("LogisticRegression, best C", plain.score(data.test, data.test_groups)),
                ("learned heads", recall_at_1(learned, data.test, data.test_groups, data.answers)),
            ):
                results.setdefault(name, []).append(value)
        yield number, results


def print_clinc(data: Clinc) -> None:
    columns = dict(clinc_columns(data))
    names = list(next(iter(columns.values())))
    print(f"| training questions an intent | {' | '.join(map(str, columns))} |")
    print("|---" * (1 + len(columns)) + "|")
    mean = {name: [float(np.mean(columns[n][name])) for n in columns] for name in names}
    for name in names:
        print(f"| {name} | {' | '.join(f'{100 * value:.1f} %' for value in mean[name])} |")
    ours = np.array(mean["learned heads"])
    for title, other, target in (
        (
            "learned less LogisticRegression, points",
            "LogisticRegression, best C",
            "above 0 in two columns, never below -0.2",
        ),
        ("learned less mean centroids, points", "mean centroids, leave-one-out τ", "0.8 or more"),
    ):
        differences = 100 * (ours - np.array(mean[other]))
        print(
            f"| {title} (target: {target}) | "
            f"{' | '.join(f'{value:+.2f}' for value in differences)} |"
        )
    behind = 100 * (
        np.array(mean["mean centroids, leave-one-out τ"])
        - np.array(mean["mean centroids, best τ in hindsight"])
    )
    print(
        "| leave-one-out τ less the best in hindsight, points (target: -0.3 or more) | "
        f"{' | '.join(f'{value:+.2f}' for value in behind)} |"
    )


def print_out_of_scope(data: Clinc) -> None:
    print(
        "| heads, all training questions | score | AUROC (target 0.972) | "
        "false positives at 95 % recall (target 13 %) |"
    )
    print("|---|---|---|---|")
    for method in ("centroid", "learned"):
        router = train_heads(data.train, data.train_groups, data.answers, method=method)
        inside, outside = (router.predict(rows).score for rows in (data.test, data.out_of_scope))
        area = roc_auc_score(
            np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate([inside, outside])
        )
        false = (outside >= np.quantile(inside, 0.05)).mean()
        print(f"| {method} | {router.calibration.score} | {area:.4f} | {100 * false:.1f} % |")
    print()
    print("| level α | refused in-scope queries, mean of 20 splits | refused out of scope |")
    print("|---|---|---|")
    pool = np.concatenate([data.validation, data.test])
    for alpha in (0.01, 0.05, 0.1):
        inside, outside = [], []
        for seed in range(20):
            order = np.random.default_rng(seed).permutation(len(pool))
            calibrated = router.calibrate(pool[order[: len(data.validation)]])
            rest = pool[order[len(data.validation) :]]
            inside.append(calibrated.predict(rest, abstain=alpha).abstained.mean())
            outside.append(calibrated.predict(data.out_of_scope, abstain=alpha).abstained.mean())
        print(
            f"| {100 * alpha:g} % | {100 * np.mean(inside):.2f} % | "
            f"{100 * np.mean(outside):.1f} % |"
        )


def print_times(data: Clinc) -> None:
    """Training on everything, in turn, medians of three."""
    seconds: dict[str, list[float]] = {}
    for _ in range(3):
        for name, fit in (
            (
                "learned heads, with the choice of freedom and τ",
                lambda: train_heads(data.train, data.train_groups, data.answers),
            ),
            (
                "LogisticRegression, C = 1",
                lambda: LogisticRegression(max_iter=1000).fit(data.train, data.train_groups),
            ),
            (
                "LogisticRegression, C = 10",
                lambda: LogisticRegression(C=10, max_iter=1000).fit(data.train, data.train_groups),
            ),
            (
                "mean centroids and leave-one-out τ",
                lambda: train_heads(data.train, data.train_groups, data.answers, method="centroid"),
            ),
        ):
            start = time.perf_counter()
            fit()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    print(f"| {len(data.train):,} questions | seconds |")
    print("|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {np.median(values):.2f} |")


def print_unifyweaver() -> None:
    """The command line on UnifyWeaver's files: the chapter's mean centroids, and the default."""
    files = [str(UNIFYWEAVER / f"qa_pairs_v{i}.json") for i in range(1, 6)]
    print("| 50 novel questions | τ | Recall@1 | Recall@5 | MRR@10 |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        db = str(Path(folder) / "lda.db")
        run("import", *files, "--db", db)
        for name, options in (
            ("mean centroids, the chapter's τ", ("--method", "centroid", "--temperature", "0.1")),
            ("mean centroids, leave-one-out τ", ("--method", "centroid")),
            ("default settings (target: 80 %)", ()),
        ):
            test = ("--test-set", str(UNIFYWEAVER / "qa_pairs_test.json"))
            report = json.loads(run("train", "--db", db, *test, *options))
            print(f"| {name} | {report['temperature']:g} | {cells(report, 'routing')} |")
        print(f"| direct similarity | | {cells(report, 'direct similarity')} |")


def cells(report: dict, method: str) -> str:
    figures = report["validation"]["figures"][method]
    recall = [f"{100 * figures[f'cosine_accuracy@{k}']:.0f} %" for k in (1, 5)]
    return " | ".join([*recall, f"{figures['cosine_mrr@10']:.3f}"])


def run(*arguments: str) -> str:
    """What a command prints as JSON."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        headroute([*arguments, "--json"])
    return printed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=int, default=1, help="every step-th text, for a quick look")
    data = read_clinc(parser.parse_args().step)
    warnings.simplefilter("ignore")  # questions in two groups; their number is in the report
    for title, show in (
        ("CLINC150: Recall@1 on 4,500 test queries, means of 3 samples", print_clinc),
        ("CLINC150: 1,000 queries out of scope", print_out_of_scope),
        ("Time of training", print_times),
    ):
        print(f"\n### {title}\n", flush=True)
        show(data)
    print("\n### UnifyWeaver\n", flush=True)
    print_unifyweaver()


if __name__ == "__main__":
    main()
