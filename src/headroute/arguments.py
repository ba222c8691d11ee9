"""The command line's grammar: what each command takes, and its --help."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from headroute import __version__, _validate
from headroute.batch.task import DTYPES, ON_BAD, OUTPUTS
from headroute.loading import DEFAULT_MODEL


class Parser(argparse.ArgumentParser):
    """argparse with its errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"headroute: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The parser of the whole command line; `.command` is the chosen command's name."""
    parser = Parser(
        prog="headroute",
        description="Route questions through heads trained from your questions and answers.",
        epilog="Start with `headroute quickstart`. Every command has a --help with an example.",
    )
    parser.add_argument("--version", action="version", version=f"headroute {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)

    import_command(commands)
    train_command(commands)
    validate_command(commands)
    plot_command(commands)
    report_command(commands)
    search_command(commands)
    route_command(commands)
    project_command(commands)
    info_command(commands)
    quickstart_command(commands)
    return parser


def import_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "import",
        "bring question-answer files into a database",
        """\
Bring question-answer files into a database, which is created if there is none.

  .json   {"clusters": [{"id": …, "answers": {variant: text},
                         "queries": {length: [text, …]}}, …]}
  .jsonl  one object a line: {"question": …, "answer": …, "cluster_id": …}
  .csv    the columns question, answer and, if you like, cluster_id

All files are checked first: if one is malformed, nothing changes. The same file
again adds nothing; a changed file updates its clusters. Texts that stay keep
their embeddings.""",
        "headroute import faq.csv manual.jsonl --db lda.db",
        {0: "done, also when there was nothing new", 2: "bad input, nothing was changed"},
    )
    sub.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".json, .jsonl or .csv")
    add_db(sub)


def train_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "train",
        "embed what is new and train one head a cluster",
        """\
Embed the questions and answers that have no embedding yet, and train the heads
of the clusters: a head starts as the mean of its questions, its answer is the
mean of its answers, normalised. Embeddings and heads are stored at the end,
together. The figures of a --test-set are kept with the heads.""",
        "headroute train --db lda.db --model all-MiniLM-L6-v2 --validate",
        {
            0: "trained, or nothing new",
            1: "no cluster has both questions and answers",
            2: "bad input, nothing was changed",
        },
    )
    add_db(sub)
    sub.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="sentence-transformers model, a name or a folder (default: %(default)s)",
    )
    sub.add_argument(
        "--temperature",
        type=lambda text: text if text == "auto" else temperature(text),
        default="auto",
        metavar="TAU",
        help="τ of the softmax, positive, or auto: the likeliest for questions that the heads do "
        "not know (default: auto)",
    )
    sub.add_argument(
        "--method",
        choices=["learned", "centroid"],
        default="learned",
        help="learned: train a map of the means, where that helps questions held out; "
        "centroid: the means themselves (default: learned)",
    )
    sub.add_argument(
        "--heads-per-group",
        type=lambda text: text if text == "auto" else at_least_1(text),
        default=1,
        metavar="N",
        help="heads a cluster, or auto: several where its questions fall apart (default: 1)",
    )
    sub.add_argument(
        "--learn-answers",
        action="store_true",
        help="train the answers of the heads too, where that helps questions held out",
    )
    sub.add_argument(
        "--random-state", type=int, default=0, metavar="N", help="seed (default: %(default)s)"
    )
    sub.add_argument(
        "--name", help="name of the heads, in place of those of that name (default: by the model)"
    )
    sub.add_argument(
        "--validate",
        action="store_true",
        help="compare with direct similarity, on --test-set or else on the training questions",
    )
    add_test_set(sub, "; implies --validate")


def validate_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "validate",
        "find out whether routing helps",
        """\
Compare routing, at one or more temperatures, with direct similarity, which
compares the question's own embedding with the answers, and with nearest
centroid, nearest question, a linear adapter, logistic regression and BM25. The
last line is the verdict: routing helps when the 95 % interval of the difference
in Recall@1 to direct similarity, by a paired bootstrap over the questions, is
above 0, and there are 20 questions at least. Of several temperatures the first
is judged. Questions that the heads were trained on are left out of a test set,
and the same question of the same cluster counts once. Nothing is stored.""",
        "headroute validate --db lda.db --test-set held_out.jsonl",
        {
            0: "routing helps",
            1: "no evidence that it does, or it hurts; or no verdict, as these are the\n"
            "     training questions; or the database has no heads yet",
            2: "bad input",
        },
    )
    add_db(sub)
    add_selection(sub)
    add_temperatures(sub)
    source = sub.add_mutually_exclusive_group()
    add_test_set(source, " (default: the training questions)")
    add_cross_validate(source)


def plot_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "plot",
        "draw what the heads do",
        """\
Draw a picture of the newest heads, PNG or SVG by the name of the file:

  temperature  Recall@1 and likelihood over the temperature
  weights      a heat map of routing weights, questions by groups of heads
  map          questions and heads in the plane, by PCA, or UMAP if installed

Needs the extra `plot`.""",
        "headroute plot weights --db lda.db --test-set held_out.jsonl -o weights.png",
        {0: "drawn", 1: "the database has no heads yet", 2: "bad input"},
    )
    sub.add_argument("picture", choices=["temperature", "weights", "map"], help="what to draw")
    add_db(sub)
    add_selection(sub)
    add_test_set(sub, " (default: the training questions)")
    add_output(sub, "FILE.png")


def report_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "report",
        "validate, and write a page with the verdict and all pictures",
        """\
Validate, and write one self-contained HTML page: the verdict, the table of all
methods, the worst questions, and all pictures. Needs the extra `plot`.""",
        "headroute report --db lda.db --test-set held_out.jsonl -o report.html",
        {0: "written", 1: "the database has no heads yet", 2: "bad input"},
    )
    add_db(sub)
    add_selection(sub)
    source = sub.add_mutually_exclusive_group()
    add_test_set(source, " (default: the training questions)")
    add_cross_validate(source)
    add_output(sub, "FILE.html")


def search_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "search",
        "find the best answers to a question",
        """\
Route and project a question, and rank the answers by their cosine to the
projection. Shows the answers and the heads that weigh most. A question that is
unlike those of the training gets "no answer known" first.""",
        'headroute search "how do I read a CSV file?" --top-k 5',
        {0: "found", 1: "no answer known, or the database has no heads yet", 2: "bad input"},
    )
    sub.add_argument("query", type=question, help="the question, in quotes")
    add_db(sub)
    add_selection(sub)
    add_temperature(sub)
    sub.add_argument(
        "--top-k",
        type=at_least_1,
        default=5,
        metavar="N",
        help="number of answers (default: %(default)s)",
    )
    sub.add_argument(
        "--abstain",
        type=level,
        default=0.05,
        metavar="ALPHA",
        help="share of the questions it should answer that may be refused (default: %(default)s)",
    )


def route_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "route",
        "show which heads a question routes to",
        "Draw the weights of the heads for a question, at one or more temperatures.",
        'headroute route "how do I read a CSV file?" --temperature 0.01 0.1 1.0',
        {0: "shown", 1: "the database has no heads yet", 2: "bad input"},
    )
    sub.add_argument("query", type=question, help="the question, in quotes")
    add_db(sub)
    add_selection(sub)
    add_temperatures(sub)
    sub.add_argument(
        "--top",
        type=at_least_1,
        default=5,
        metavar="N",
        help="number of heads to draw (default: %(default)s)",
    )


def project_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "project",
        "project files of query embeddings, or of texts",
        """\
Project every query of some files into one .npy file, or into a folder of
Parquet parts. Files may be larger than memory, folders and patterns stand for
the files in them, and rows count from 0 in each file.

  .npy, .npz                  an array (queries, dimension)
  .parquet, .arrow, .feather  a column of lists of numbers; others are kept
  .jsonl                      texts, one object a line, embedded on the way

Whatever ends a run, the same command goes on where it was. A row that is null,
of another length, or has a NaN or infinity ends the run with its number, or has
no result with --on-bad null (NaN or -1 in a .npy file).""",
        "headroute project queries.npy --db lda.db -o projected.npy",
        {
            0: "done",
            1: "the database has no heads yet",
            2: "bad input, or another run's output; what was complete stays",
        },
    )
    sub.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders, patterns")
    sub.add_argument(
        "-o",
        dest="destination",
        type=Path,
        required=True,
        metavar="OUT",
        help="FILE.npy, replaced when all is done, or a folder for Parquet parts",
    )
    source = sub.add_mutually_exclusive_group()
    add_db(source)
    source.add_argument("--router", type=Path, metavar="FILE", help="heads of a saved router")
    add_selection(sub)
    add_temperature(sub)
    sub.add_argument(
        "--output",
        choices=OUTPUTS,
        default="projected",
        help="what a query gets: its projection, the weights of all heads, the heads of most "
        "weight, or the answers nearest its projection: their ids in the database, or numbers of "
        "heads with --router (default: projected)",
    )
    sub.add_argument(
        "--top-k",
        type=at_least_1,
        default=5,
        metavar="N",
        help="number of heads or answers (default: %(default)s)",
    )
    sub.add_argument(
        "--tolerance",
        type=tolerance,
        default=0.0,
        metavar="E",
        help="largest error to accept, as a part of the longest answer's length; "
        "0.01 may be twice as fast (default: 0, float32)",
    )
    sub.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the output: float16 is half as large, rounded once (default: float32)",
    )
    sub.add_argument(
        "--column",
        metavar="NAME",
        help="that of the queries, or the member of an .npz file (default: embedding; text in "
        ".jsonl; the only member)",
    )
    sub.add_argument(
        "--on-bad",
        choices=ON_BAD,
        default="raise",
        help="what to do with a bad query (default: raise)",
    )
    sub.add_argument(
        "--batch-rows",
        type=lambda text: None if text == "auto" else at_least_1(text),
        metavar="N",
        help="queries computed at a time, or auto: 16 MiB of them (default: auto)",
    )
    sub.add_argument(
        "--threads",
        type=at_least_1,
        metavar="N",
        help="threads (default: one a usable CPU; with --engine ray one, of each actor)",
    )
    sub.add_argument(
        "--restart",
        action="store_true",
        help="begin anew, whatever an earlier run has done there",
    )
    sub.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="where: this machine, or a Ray cluster, from Parquet files to Parquet files that all "
        "its machines see (default: local)",
    )
    sub.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the Ray cluster, or auto (default: a Ray that is started on this machine)",
    )
    sub.add_argument(
        "--id-column",
        metavar="NAME",
        help="with --engine ray: a column of unique ids, without which a run cannot go on",
    )


def info_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "info",
        "describe this installation, a database or a router",
        """\
Describe this installation (backends, instruction sets, threads), or a database,
or the file of a saved router.""",
        "headroute info --db lda.db",
        {0: "described", 2: "bad input"},
    )
    source = sub.add_mutually_exclusive_group()
    source.add_argument("--db", type=Path, metavar="FILE", help="a database")
    source.add_argument("--router", type=Path, metavar="FILE", help="a saved router")


def quickstart_command(commands: Any) -> None:
    sub = add_command(
        commands,
        "quickstart",
        "see everything at work on a sample, in about a minute",
        """\
Make a folder with a sample help desk; import, embed, train and validate it,
route three questions, and project a million queries. Needs the extras `embed`
and `offline`. May be run again in the same folder.""",
        "headroute quickstart",
        {0: "done", 2: "bad input, such as a folder that holds something else"},
    )
    sub.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("headroute-quickstart"),
        metavar="FOLDER",
        help="where (default: %(default)s)",
    )


def add_command(
    commands: Any,
    name: str,
    summary: str,
    description: str,
    example: str,
    exit_codes: dict[int, str],
) -> Parser:
    codes = "\n".join(f"  {code}  {meaning}" for code, meaning in exit_codes.items())
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n  {example}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def add_db(parser: Any) -> None:
    parser.add_argument(
        "--db",
        type=Path,
        default=Path("lda.db"),
        metavar="FILE",
        help="the database (default: %(default)s)",
    )


def add_selection(parser: Parser) -> None:
    parser.add_argument("--model", help="use the heads of this model (default: the newest heads)")
    parser.add_argument("--name", help="use the heads of this name (default: the newest heads)")


def add_temperature(parser: Parser) -> None:
    parser.add_argument(
        "--temperature",
        type=temperature,
        metavar="TAU",
        help="τ of the softmax, positive (default: that of the training)",
    )


def add_temperatures(parser: Parser) -> None:
    parser.add_argument(
        "--temperature",
        type=temperature,
        nargs="+",
        default=[],
        metavar="TAU",
        help="one τ or more, positive (default: that of the training)",
    )


def add_test_set(parser: Any, more: str) -> None:
    parser.add_argument(
        "--test-set",
        type=Path,
        metavar="FILE",
        help=f"held-out questions, .json, .jsonl or .csv{more}",
    )


def add_cross_validate(parser: Any) -> None:
    parser.add_argument(
        "--cross-validate",
        type=at_least_1,
        metavar="K",
        help="hold out the database's own questions in K parts, training on the others",
    )


def add_output(parser: Any, metavar: str) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar=metavar, help="where to write"
    )


def tolerance(text: str) -> float:
    try:
        return _validate.tolerance(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0") from None


def temperature(text: str) -> float:
    try:
        return _validate.temperature(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a positive, finite number, got {text!r}"
        ) from None


def level(text: str) -> float:
    try:
        return _validate.level(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number above 0 and below 1, got {text!r}"
        ) from None


def question(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):  # bytes that are not UTF-8
        raise argparse.ArgumentTypeError(f"must be readable text, got {text!r}")
    return text


def at_least_1(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)
