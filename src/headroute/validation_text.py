"""A validation as text: the table of methods, what went wrong, and the verdict in the last line.

Recall@k is sentence-transformers' cosine_accuracy@k: the share of questions with an answer of
theirs among the first k. MRR@10 is cosine_mrr@10, NDCG@10 is cosine_ndcg@10.
"""

import textwrap

from headroute.evaluation import DIRECT, FEWEST_QUERIES
from headroute.text import TEXT_WIDTH, count
from headroute.validation import ValidationReport
from headroute.visualize import printable, shorten

_COLUMNS = {
    "Recall@1": "cosine_accuracy@1",
    "Recall@5": "cosine_accuracy@5",
    "MRR@10": "cosine_mrr@10",
    "NDCG@10": "cosine_ndcg@10",
}


def validation_text(report: ValidationReport) -> str:
    """All of it."""
    parts = [comparison_text(report)]
    if report.worst_questions:
        parts.append(worst_text(report))
    if report.verdict is not None:
        parts.append(interval_text(report))
    parts.append(verdict_text(report))
    return "\n\n".join(parts)


def comparison_text(report: ValidationReport) -> str:
    """What was measured on what, and the table."""
    answers = f"each ranking {count(report.answers, 'answer')}"
    if report.test_set:
        questions = count(report.questions, "held-out question")
        title = f"Validated on {questions} of {report.test_set},\n{answers}:"
        if report.left_out:
            n = count(report.left_out, "other question")
            title += f"\n{n} left out, which the heads were trained on"
    elif report.folds:
        questions = count(report.questions, "question")
        title = f"Validated on {questions}, held out in {report.folds} parts, {answers}:"
        if report.left_out:
            n = count(report.left_out, "question")
            title += f"\n{n} left out, whose cluster had no other to train on"
    else:
        questions = count(report.questions, "training question")
        title = (
            f"Validated on the {questions} themselves, {answers}.\n"
            "The heads have seen them: use --test-set or --cross-validate for figures that mean\n"
            "something."
        )
    if report.repeated:
        title += f"\n{count(report.repeated, 'repeat')} of a question in its cluster not counted"
    rows = [("", *_COLUMNS)]
    for method, figures in report.figures.items():
        name = method
        if method == "routing" and not report.folds:  # every fold has a τ of its own
            name = f"routing, τ = {report.temperatures[0]:g}"
        rows.append((name, *(cell(column, figures[key]) for column, key in _COLUMNS.items())))
    if DIRECT in report.figures and len(report.temperatures) == 1:
        ours, theirs = next(iter(report.figures.values())), report.figures[DIRECT]
        rows.insert(
            3,
            (
                "difference",
                *(
                    difference_cell(column, ours[key] - theirs[key])
                    for column, key in _COLUMNS.items()
                ),
            ),
        )
    lines = [f"  {name:<21}{a:>13}{b:>13}{c:>10}{d:>10}" for name, a, b, c, d in rows]
    return "\n".join([title, "", *lines])


def cell(column: str, value: float) -> str:
    return f"{value:.1%}" if column.startswith("Recall") else f"{value:.3f}"


def difference_cell(column: str, value: float) -> str:
    return f"{points(value)} points" if column.startswith("Recall") else f"{value:+.3f}"


def points(share: float) -> str:
    """In hundredths; the same share prints the same however it was rounded to float64."""
    return f"{round(100 * share, 9):+.1f}"


def worst_text(report: ValidationReport) -> str:
    """The questions and the clusters that routing does worst."""
    lines = ["Questions that routing ranks worst"]
    for worst in report.worst_questions:
        text = f'rank {worst.rank}: "{shorten(" ".join(printable(worst.question).split()), 120)}"'
        lines += textwrap.wrap(text, TEXT_WIDTH, initial_indent="  ", subsequent_indent="    ")
        names = f"of {shorten(worst.cluster, 30)}, taken for {shorten(worst.found, 30)}"
        lines.append(f"    {names}")
    lines += ["", "Clusters that routing finds worst"]
    for cluster in report.worst_clusters:
        of = f"of {count(cluster.questions, 'question')}"
        lines.append(f"  {shorten(cluster.cluster, 40):<42}{cluster.right:>7.1%} {of}")
    return "\n".join(lines)


def interval_text(report: ValidationReport) -> str:
    """What stands above the verdict: the difference in MRR@10, and which routing is judged."""
    assert report.mrr_difference is not None
    mrr = report.mrr_difference
    line = f"MRR@10: {mrr.mean:+.3f} over direct, 95 %: {mrr.low:+.3f} to {mrr.high:+.3f}"
    if len(report.temperatures) > 1:
        line += f"\nJudged is the first temperature, τ = {report.temperatures[0]:g}."
    return line


def verdict_text(report: ValidationReport) -> str:
    """One line: whether routing helps, and by how much."""
    if not report.held_out:
        return "no verdict: the heads have seen these questions"
    if report.verdict is None or report.accuracy_difference is None:
        return "no verdict: questions and answers are of different dimensions"
    if report.questions < FEWEST_QUERIES:
        enough = f"a verdict takes {FEWEST_QUERIES} questions at least"
        return f"{report.verdict}: {enough}, got {report.questions}"
    difference = report.accuracy_difference
    return (
        f"{report.verdict}: {points(difference.mean)} points of Recall@1 over direct, "
        f"95 %: {points(difference.low)} to {points(difference.high)}"
    )
