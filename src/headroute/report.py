"""Results as text for a terminal of 80 columns. Nothing is computed or printed here."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from headroute.batch.job import ProjectionReport
from headroute.database import ImportResult
from headroute.pictures import PictureReport
from headroute.pipeline import TrainReport
from headroute.ray import ClusterReport
from headroute.search import HeadWeight, RouteReport, Scope, SearchReport
from headroute.text import TEXT_WIDTH, count, facts
from headroute.training_record import TrainingRecord
from headroute.validation_text import comparison_text
from headroute.visualize import printable, shorten, weight_bars

SHOWN_HEADS = 5


def import_text(database: str, result: ImportResult, summary: Mapping[str, Any]) -> str:
    """What an import changed, and what the database has now."""
    changes = [
        f"{count(n, thing)} {what}"
        for n, thing, what in (
            (result.clusters_added, "cluster", "added"),
            (result.clusters_updated, "cluster", "updated"),
            (result.clusters_removed, "cluster", "removed"),
            (result.questions_added, "question", "added"),
            (result.questions_removed, "question", "removed"),
            (result.answers_added, "answer", "added"),
            (result.answers_removed, "answer", "removed"),
        )
        if n
    ]
    return f"{database}\n" + facts(
        [
            ("imported", ", ".join(changes) or "nothing: everything is there already"),
            ("now", contents(summary)),
        ]
    )


def contents(summary: Mapping[str, Any]) -> str:
    things = (("clusters", "cluster"), ("questions", "question"), ("answers", "answer"))
    return ", ".join(count(summary[key], thing) for key, thing in things)


def train_text(report: TrainReport) -> str:
    """What was embedded, trained and stored; then the validation, if there was one."""
    embedded = [
        count(n, thing)
        for n, thing in (
            (report.embedded_questions, "question"),
            (report.embedded_answers, "answer"),
        )
        if n
    ]
    all_texts = f"{count(report.questions, 'question')} and {count(report.answers, 'answer')}"
    where = f" from {report.encoder}" if report.encoder else ""
    projection = f'projection {report.projection_id}, "{report.name}"'
    pairs = [
        ("model", f"{report.model}{where}, {report.dimension} dimensions"),
        (
            "embedded",
            f"{' and '.join(embedded)} in {report.embedding_seconds:.1f} s"
            if embedded
            else "nothing new: all texts have their embeddings",
        ),
        (
            "trained",
            f"{count(report.heads, 'head')} from {all_texts} in {report.training_seconds:.1f} s",
        ),
        ("method", method_text(report.training)),
        ("temperature", temperature_text(report.temperature, report.training)),
        (
            "stored",
            f"as {projection}" if report.stored else f"nothing new: {projection} is the same",
        ),
    ]
    pairs += [("note", note) for note in training_notes(report.training)]
    if report.skipped:
        names = shorten(", ".join(report.skipped), 200)
        skipped = count(len(report.skipped), "cluster")
        pairs.append(("skipped", f"{skipped} without questions or without answers: {names}"))
    text = f"{report.database}\n{facts(pairs)}"
    return f"{text}\n\n{comparison_text(report.validation)}" if report.validation else text


def method_text(training: TrainingRecord) -> str:
    """What the heads are made of, and what that did to held-out questions."""
    if training.freedom is None:
        return "mean centroids"
    heights = dict(training.freedom_curve)
    if training.freedom == 0:
        return "mean centroids: no learned map made held-out questions likelier"
    return (
        "learned map of the mean centroids; log-likelihood of held-out questions "
        f"{heights[0.0]:.3f} before, {heights[training.freedom]:.3f} after"
    )


def temperature_text(temperature: float, training: TrainingRecord) -> str:
    how = {
        "given": "as given",
        "leave-one-out": "the likeliest for questions left out of their own heads",
        "cross-validation": "the likeliest for questions held out of the training",
        "default": "the default: no cluster has two questions to estimate it from",
    }
    return f"τ = {temperature:g}, {how[training.temperature_source]}"


def training_notes(training: TrainingRecord) -> list[str]:
    notes = []
    if training.answer_freedom is not None:
        notes.append(
            "answers learned"
            if training.answer_freedom
            else "answers as given: learning them made no held-out question likelier"
        )
    if n := training.lone_questions:
        notes.append(f"{count(n, 'cluster')} of a single question: of it nothing was estimated")
    if n := training.shared_questions:
        notes.append(f"{count(n, 'question')} in more than one cluster: they tell nothing apart")
    return notes


def search_text(report: SearchReport) -> str:
    """The first answer whole, two lines of each of the others, then the bars of the heads."""
    lines = []
    if report.scope and not report.scope.answer_known:
        lines += [*no_answer_lines(report.scope), ""]
    for result in report.results:
        variant = "" if result.variant == "default" else f", variant {result.variant}"
        lines.append(
            f"{result.rank:>2}. {shorten(result.cluster, 40)}  "
            f"(cosine {result.score:.3f}, answer {result.answer_id}{variant})"
        )
        lines += paragraph(result.text, None if result.rank == 1 else 2)
        lines.append("")
    heads = bars(report.heads, None)
    if len(report.heads) < report.n_heads:
        rest = 1 - sum(head.weight for head in report.heads)
        heads.append(
            f"  and {report.n_heads - len(report.heads):,} more, together {max(rest, 0):.2f}"
        )
    lines += [f"Heads (weights at τ = {report.temperature:g})", *heads]
    return "\n".join(lines)


def no_answer_lines(scope: Scope) -> list[str]:
    """That no answer is known, and how that was judged."""
    text = (
        f"no answer known: the question is unlike those that the heads were trained on, with a "
        f"{scope.kind.replace('_', ' ')} score of {scope.score:.3g}, and {scope.level:.0%} of them "
        f"are below {scope.threshold:.3g}. The closest answers:"
    )
    return textwrap.wrap(text, TEXT_WIDTH)


def paragraph(text: str, max_lines: int | None) -> list[str]:
    """A text of the database, wrapped and indented, in at most `max_lines` lines."""
    safe = printable(text)
    indent = " " * 4
    if max_lines is None:
        return [
            line
            for source in safe.strip().split("\n")
            for line in textwrap.wrap(
                source,
                TEXT_WIDTH,
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens=False,
                replace_whitespace=False,
            )
            or [""]
        ]
    one_line = " ".join(safe.split())
    return textwrap.wrap(
        one_line,
        TEXT_WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        max_lines=max_lines,
        placeholder=" …",
    )


def route_text(report: RouteReport, top: int = SHOWN_HEADS) -> str:
    """Bars for each temperature, heaviest head first."""
    parts = [
        "\n".join([f"τ = {route.temperature:g}", *bars(route.heads, top)])
        for route in report.routes
    ]
    return "\n\n".join([f"Query: {shorten(report.query, TEXT_WIDTH - 7)}", *parts])


def bars(heads: Sequence[HeadWeight], top: int | None) -> list[str]:
    return weight_bars([h.weight for h in heads], [h.name for h in heads], top=top, by_weight=True)


def rounded_up(bound: float) -> str:
    """Two digits that promise no more than `bound` does."""
    shown = f"{bound:.2g}"
    if float(shown) < bound:
        shown = f"{bound * 1.1:.2g}"
    return shown


def projection_text(report: ProjectionReport) -> str:
    """What was projected, how exactly and how fast."""
    notes = [f"of {count(report.inputs, 'file')}"] if report.inputs > 1 else []
    if report.resumed_rows:
        notes.append(f"{report.resumed_rows:,} of them by an earlier run")
    if report.zero_queries:
        notes.append(f"{count(report.zero_queries, 'zero query')} got uniform weights")
    if report.null_rows:
        notes.append(f"{count(report.null_rows, 'bad query')} got no result")
    what = {
        "projected": f"{report.query_dim} to {report.answer_dim} dimensions",
        "weights": "weights of the heads",
        "top-k": "heads of most weight",
        "answers": "nearest answers",
    }[report.kind]
    lines = [("projected", "; ".join([f"{count(report.rows, 'query')}, {what}", *notes]))]
    if report.kind == "projected" and report.bound is not None:
        bound = f"no row is off by more than {rounded_up(report.bound)} of the longest answer"
        lines.append(("accuracy", f"{report.precision}; {bound}"))
    if report.rows and report.resumed_rows == report.rows:
        lines.append(("time", "none: the run was complete"))
        return f"{report.output}\n" + facts(lines)
    rates = f"{report.rows_per_second:,.0f} queries/s, {report.bytes_per_second / 1e9:.2f} GB/s"
    lines.append(("time", f"{report.seconds:.2f} s, {rates}, reading and writing included"))
    return f"{report.output}\n" + facts(lines)


def cluster_text(report: ClusterReport) -> str:
    """What was projected on a cluster."""
    notes = [f"of {count(report.inputs, 'file')}"]
    if report.resumed_rows:
        notes.append(f"{report.resumed_rows:,} of them by an earlier run")
    nodes = count(report.nodes, "node")
    if report.nodes_lost:
        nodes += f", of which {report.nodes_lost} died"
    speed = f"{report.seconds:.2f} s, {report.rows_per_second:,.0f} queries/s"
    return f"{report.output}\n" + facts(
        [
            ("projected", "; ".join([f"{count(report.rows, 'query')}, {report.kind}", *notes])),
            ("on", nodes),
            ("time", speed),
        ]
    )


def pictures_text(report: PictureReport) -> str:
    """What was drawn, and of what."""
    of = f"{count(report.heads, 'head')} and {count(report.questions, 'question')}"
    return f"{report.output}\n" + facts([("pictures", ", ".join(report.pictures)), ("of", of)])


def build_text(info: Mapping[str, Any]) -> str:
    """What `build_info()` says."""
    backends = []
    for name in ("native", "numba", "reference"):
        built = info[name]
        if built is None:
            backends.append((name, f"not usable: {info['unavailable'][name]}"))
        else:
            details = ", ".join(
                f"{key} {' '.join(value) if isinstance(value, list) else value}"
                for key, value in built.items()
            )
            backends.append((name, details or "float64 NumPy, the definition"))
    return f"headroute {info['version']}\n" + facts(
        [
            ("python", info["python"]),
            ("numpy", info["numpy"]),
            ("backend", f"{info['backend']}, {count(info['threads'], 'thread')}"),
            *backends,
        ]
    )


def database_text(summary: Mapping[str, Any]) -> str:
    """What `Database.summary()` says."""
    variants = ", ".join(f"{n:,} {name}" for name, n in summary["variants"].items())
    pairs = [
        ("size", f"{summary['bytes'] / 1e6:.1f} MB"),
        (
            "contents",
            contents(summary) + (f" ({variants})" if len(summary["variants"]) > 1 else ""),
        ),
    ]
    pairs += [
        (
            "model",
            f"{model['name']}, {model['dimension']} dimensions, embedded: "
            f"{count(model['embedded_questions'], 'question')}, "
            f"{count(model['embedded_answers'], 'answer')}",
        )
        for model in summary["models"]
    ]
    for p in summary["projections"]:
        measured = ""
        if p["recall_at_1"] is not None:
            measured = f", Recall@1 {p['recall_at_1']:.1%}, MRR@10 {p['mrr']:.3f}"
        pairs.append(
            (
                f"heads {p['id']}",
                f"{p['name']}: {count(p['heads'] or 0, 'head')}, τ = {p['temperature']:g}, "
                f"{p['model']}{measured}, {p['created_at']} UTC",
            )
        )
    if not summary["projections"]:
        pairs.append(("heads", f"none yet: headroute train --db {summary['path']}"))
    return f"{summary['path']}\n{facts(pairs)}"


def router_text(router: Mapping[str, Any]) -> str:
    names = shorten(", ".join(router["names"]), 200)
    return f"{router['path']}\n" + facts(
        [
            ("heads", f"{count(router['n_heads'], 'head')}: {names}"),
            ("queries", f"{router['query_dim']} dimensions"),
            ("answers", f"{router['answer_dim']} dimensions"),
            ("temperature", f"τ = {router['temperature']:g}"),
        ]
    )
