"""The command `headroute`: arguments in, text or JSON out. The work is done elsewhere.

Exit codes: 0; 1, it ran and the answer is no (each command's --help says what that means); 2, bad
input, with one line on stderr; 130 after Ctrl-C; 141 when nobody reads the output any more; 143
after SIGTERM.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from headroute.arguments import build_parser

if TYPE_CHECKING:
    from headroute.router import Router


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a terminal without █ or τ shows ? instead of a traceback
    try:
        try:
            with terminable():
                code = run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 141
    except KeyboardInterrupt as error:
        print(f"headroute: {with_notes('interrupted', error)}", file=sys.stderr)
        return 130
    except SystemExit as error:
        if getattr(error, "__notes__", None):
            print(f"headroute: {with_notes('terminated', error)}", file=sys.stderr)
        raise
    except OSError as error:  # of the output itself, such as a full disk
        print(f"headroute: error: {one_line(error)}", file=sys.stderr)
        return 2
    return code


def run(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    from headroute.loading import NoHeadsError

    try:
        return COMMANDS[args.command](args)
    except BrokenPipeError:
        raise
    except (NoHeadsError, ValueError, TypeError, OSError) as error:
        message = one_line(error)
        if args.json:
            print(json.dumps({"error": message}))
        answer_is_no = isinstance(error, NoHeadsError)
        print(f"headroute: {'' if answer_is_no else 'error: '}{message}", file=sys.stderr)
        return 1 if answer_is_no else 2


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: by an exception, so that it tidies up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def one_line(error: Exception) -> str:
    message = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    return " ".join(with_notes(message, error).split())


def with_notes(message: str, error: BaseException) -> str:
    return "; ".join([message, *getattr(error, "__notes__", [])])


def emit(args: argparse.Namespace, document: object, text: str) -> None:
    """Print a result, as one JSON document or as text."""
    if args.json:
        if dataclasses.is_dataclass(document) and not isinstance(document, type):
            document = dataclasses.asdict(document)
        text = json.dumps(document, ensure_ascii=False, indent=2)
    print(text)


# ---- commands: each prints its result and returns the exit code, and imports what it needs


def command_import(args: argparse.Namespace) -> int:
    from headroute.database import Database
    from headroute.qa_files import read_qa_file
    from headroute.report import import_text

    files = [
        (path, read_qa_file(path)) for path in args.files
    ]  # all of them, before the database is touched
    with Database.create(args.db) as db:
        result = db.import_files(files)
        summary = db.summary()
    emit(
        args,
        {"database": str(args.db), **dataclasses.asdict(result)},
        import_text(str(args.db), result, summary),
    )
    return 0


def command_train(args: argparse.Namespace) -> int:
    from headroute.pipeline import train
    from headroute.report import train_text

    report = train(
        args.db,
        args.model,
        name=args.name,
        validate=args.validate,
        test_set=args.test_set,
        temperature=args.temperature,
        method=args.method,
        heads_per_group=args.heads_per_group,
        learn_answers=args.learn_answers,
        random_state=args.random_state,
    )
    emit(args, report, train_text(report))
    return 0


def command_validate(args: argparse.Namespace) -> int:
    from headroute.validation import validate
    from headroute.validation_text import validation_text

    report = validate(
        args.db,
        model=args.model,
        name=args.name,
        temperatures=args.temperature,
        test_set=args.test_set,
        folds=args.cross_validate,
    )
    emit(args, report, validation_text(report))
    return 0 if report.verdict == "routing helps" else 1


def command_plot(args: argparse.Namespace) -> int:
    from headroute.pictures import plot, read_subject
    from headroute.report import pictures_text

    subject = read_subject(args.db, args.model, args.name, args.test_set)
    report = plot(subject, args.picture, args.output)
    emit(args, report, pictures_text(report))
    return 0


def command_report(args: argparse.Namespace) -> int:
    from headroute.pictures import write_page
    from headroute.report import pictures_text

    report = write_page(
        args.db,
        args.output,
        model=args.model,
        name=args.name,
        test_set=args.test_set,
        folds=args.cross_validate,
    )
    emit(args, report, pictures_text(report))
    return 0


def command_search(args: argparse.Namespace) -> int:
    from headroute.report import search_text
    from headroute.search import search

    report = search(
        args.db,
        args.query,
        top_k=args.top_k,
        temperature=args.temperature,
        model=args.model,
        name=args.name,
        abstain=args.abstain,
    )
    emit(args, report, search_text(report))
    return 0 if report.scope is None or report.scope.answer_known else 1


def command_route(args: argparse.Namespace) -> int:
    from headroute.report import route_text
    from headroute.search import route

    report = route(
        args.db, args.query, temperatures=args.temperature, model=args.model, name=args.name
    )
    emit(args, report, route_text(report, args.top))
    return 0


def command_project(args: argparse.Namespace) -> int:
    from headroute.batch import project_files
    from headroute.database import Database
    from headroute.loading import router_of, searched_answers, stored_heads
    from headroute.report import projection_text
    from headroute.router import Router

    model, documents = args.model, None
    if args.router:
        router = Router.load(args.router, tolerance=args.tolerance)
    else:
        with Database.open(args.db, read_only=True) as db:
            stored = stored_heads(db, args.model, args.name)
            model = stored.model
            if args.output == "answers":
                documents = searched_answers(db, model)
        router = router_of(stored, args.tolerance)
    options: dict[str, Any] = {
        "column": args.column,
        "batch_rows": args.batch_rows,
        "restart": args.restart,
        "output": args.output,
        "temperature": args.temperature,
        "dtype": args.dtype,
        "k": args.top_k,
        "on_bad": args.on_bad,
        "document_ids": documents and documents[0],
        "documents": documents and documents[1],
    }
    if args.engine == "ray":
        return project_on_ray(args, router, options)
    if args.address or args.id_column:
        raise ValueError("--address and --id-column are for --engine ray")
    report = project_files(
        router,
        args.inputs,
        args.destination,
        model=model,
        heads_path=args.router or args.db,
        num_threads=args.threads,
        **options,
    )
    emit(args, report, projection_text(report))
    return 0


def project_on_ray(args: argparse.Namespace, router: "Router", options: dict[str, Any]) -> int:
    from headroute import ray
    from headroute.report import cluster_text

    if options["column"] is None:
        del options["column"]
    report = ray.project_files(
        router,
        args.inputs,
        args.destination,
        address=args.address,
        num_cpus=args.threads or 1,
        id_column=args.id_column,
        **options,
    )
    emit(args, report, cluster_text(report))
    return 0


def command_info(args: argparse.Namespace) -> int:
    from headroute import build_info
    from headroute.database import Database
    from headroute.report import build_text, database_text, router_text
    from headroute.router import Router

    if args.db:
        with Database.open(args.db, read_only=True) as db:
            summary = db.summary()
        emit(args, summary, database_text(summary))
    elif args.router:
        router = Router.load(args.router)
        facts = {
            "path": str(args.router),
            "n_heads": router.n_heads,
            "query_dim": router.query_dim,
            "answer_dim": router.answer_dim,
            "temperature": router.temperature,
            "names": router.names,
        }
        emit(args, facts, router_text(facts))
    else:
        info = build_info()
        emit(args, info, build_text(info))
    return 0


def command_quickstart(args: argparse.Namespace) -> int:
    from headroute.quickstart import quickstart

    report = quickstart(args.folder, say=(lambda _: None) if args.json else say)
    if args.json:
        emit(args, report, "")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "import": command_import,
    "train": command_train,
    "validate": command_validate,
    "plot": command_plot,
    "report": command_report,
    "search": command_search,
    "route": command_route,
    "project": command_project,
    "info": command_info,
    "quickstart": command_quickstart,
}
