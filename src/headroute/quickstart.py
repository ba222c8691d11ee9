"""The quickstart: the main job on the packaged sample, and the kernel on a million queries.

Each step says what it found as soon as it has it. In a folder of an earlier quickstart it reuses
what is there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headroute import get_num_threads
from headroute.database import Database, ImportResult
from headroute.loading import DEFAULT_MODEL, load_encoder, router_of
from headroute.memory import aligned_empty
from headroute.pipeline import TrainReport, train
from headroute.progress import progress_bar
from headroute.qa_files import read_qa_file, read_test_file
from headroute.report import bars, import_text, train_text
from headroute.router import Router
from headroute.search import Route, route_embedding
from headroute.text import count, facts
from headroute.validation import ValidationReport, validate
from headroute.validation_text import validation_text
from headroute.visualize import shorten

Float32 = NDArray[np.float32]

QUERIES = 1_000_000
BLOCK_ROWS = 16_384  # 24 MiB of queries of 384 dimensions, and as much of results
JITTER = 0.3  # length of the noise, in lengths of a query
CHECKED = 1_000

SAMPLE = "helpdesk.json"
TEST_SET = "helpdesk_test.json"


@dataclass(frozen=True)
class SampleRoute:
    query: str
    cluster: str  # where the query belongs
    route: Route


@dataclass(frozen=True)
class KernelReport:
    """Projecting many queries. Seconds, rates and GFLOP/s are of the kernel calls alone."""

    queries: int
    heads: int
    query_dim: int
    answer_dim: int
    seconds: float
    queries_per_second: float
    gflops: float
    backend: str
    isa: str
    threads: int
    checked: int  # queries computed again in float64 NumPy
    largest_error: float  # against these, absolute; answers have length 1


@dataclass(frozen=True)
class QuickstartReport:
    database: str
    imported: ImportResult
    training: TrainReport
    validation: ValidationReport
    routes: list[SampleRoute]
    kernel: KernelReport
    seconds: float


def quickstart(folder: Path, say: Callable[[str], None]) -> QuickstartReport:
    """Run all steps in `folder`. Raises ValueError for a folder that holds something else."""
    start = time.perf_counter()
    prepare(folder)
    database, sample, test_set = folder / "helpdesk.db", folder / SAMPLE, folder / TEST_SET

    say("1. Import the sample: the help desk of a company that does not exist")
    with Database.create(database) as db:
        imported = db.import_files([(sample, read_qa_file(sample))])
        say(import_text(str(database), imported, db.summary()) + "\n")

    say("2. Embed the questions and answers, train one head a cluster")
    training = train(database, DEFAULT_MODEL)
    say(train_text(training) + "\n")

    say("3. Compare with direct similarity, on questions that training never saw")
    validation = validate(database, name=training.name, test_set=test_set)
    say(validation_text(validation) + "\n")

    say(f"4. Route three of these questions, τ = {training.temperature:g}")
    with Database.open(database, read_only=True) as db:
        router = router_of(db.projection(DEFAULT_MODEL, training.name))
        _, questions = db.embeddings(DEFAULT_MODEL, "question")
    routes = route_samples(router, test_set)
    for sample_route in routes:
        say(sample_text(sample_route))

    say(f"5. Project {count(QUERIES, 'query')}: the embedded questions with noise added")
    kernel = run_kernel(router, questions, QUERIES)
    say(kernel_text(kernel) + "\n")

    report = QuickstartReport(
        str(database), imported, training, validation, routes, kernel, time.perf_counter() - start
    )
    say(closing_text(report, test_set))
    return report


def prepare(folder: Path) -> None:
    """Put the sample's files into the folder; ValueError for a folder with other files only."""
    if folder.exists():
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        if any(folder.iterdir()) and not (folder / SAMPLE).exists():
            raise ValueError(
                f"the folder {folder} holds something else: try `headroute quickstart OTHER_FOLDER`"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SAMPLE, TEST_SET):
        if not (folder / name).exists():
            (folder / name).write_bytes(files("headroute").joinpath("data", name).read_bytes())


def route_samples(router: Router, test_set: Path) -> list[SampleRoute]:
    """Three held-out questions from all over the file, routed."""
    pairs = read_test_file(test_set)
    chosen = [pairs[i * len(pairs) // 3] for i in range(3)]
    embeddings = load_encoder(DEFAULT_MODEL).encode_queries([text for text, _ in chosen])
    return [
        SampleRoute(text, cluster, route_embedding(router, embedding, router.temperature))
        for (text, cluster), embedding in zip(chosen, embeddings, strict=True)
    ]


def run_kernel(router: Router, questions: Float32, total: int) -> KernelReport:
    """Project `total` queries, questions (n, d) with noise; only the kernel calls are timed."""
    rng = np.random.default_rng(0)
    d = router.query_dim
    length = np.linalg.norm(questions, axis=1).mean()
    noise = rng.standard_normal((2 * BLOCK_ROWS, d), dtype=np.float32)
    noise *= np.float32(JITTER * length / np.sqrt(d))
    queries = np.empty((BLOCK_ROWS, d), np.float32)
    projected = aligned_empty((BLOCK_ROWS, router.answer_dim))

    def jitter() -> None:
        # Questions and noise are paired anew for each block.
        np.take(questions, rng.integers(len(questions), size=BLOCK_ROWS), axis=0, out=queries)
        offset = rng.integers(BLOCK_ROWS + 1)
        np.add(queries, noise[offset : offset + BLOCK_ROWS], out=queries)

    jitter()
    router.project(queries, out=projected)  # unmeasured: the first call may compile
    exact = Router(
        router.centroids, router.answers, temperature=router.temperature, backend="reference"
    )
    error = np.abs(projected[:CHECKED] - exact.project(queries[:CHECKED])).max()
    seconds = 0.0
    with progress_bar(total, "Projecting", "query") as bar:
        for start in range(0, total, BLOCK_ROWS):
            jitter()
            rows = min(BLOCK_ROWS, total - start)
            begin = time.perf_counter()
            router.project(queries[:rows], out=projected[:rows])
            seconds += time.perf_counter() - begin
            bar.update(rows)
    flop = 2 * router.n_heads * (d + router.answer_dim)
    return KernelReport(
        queries=total,
        heads=router.n_heads,
        query_dim=d,
        answer_dim=router.answer_dim,
        seconds=seconds,
        queries_per_second=total / seconds,
        gflops=flop * total / seconds / 1e9,
        backend=router.backend,
        isa=str(router.backend_info.get("isa", "chosen by the compiler")),
        threads=get_num_threads(),
        checked=CHECKED,
        largest_error=float(error),
    )


# ---- text


def sample_text(sample: SampleRoute) -> str:
    title = f'"{shorten(sample.query, 76)}"\n  belongs to {sample.cluster}'
    return "\n".join([title, *bars(sample.route.heads, 3), ""])


def kernel_text(report: KernelReport) -> str:
    return facts(
        [
            ("speed", f"{report.queries_per_second:,.0f} queries/s, {report.gflops:.0f} GFLOP/s"),
            ("time", f"{report.seconds:.2f} s in the kernel; making the queries is not counted"),
            (
                "kernel",
                f"{report.backend} backend, ISA {report.isa}, {count(report.threads, 'thread')}; "
                f"{report.heads} heads, {report.query_dim} to {report.answer_dim} dimensions",
            ),
            (
                "checked",
                f"{count(report.checked, 'query')} again in float64 NumPy: "
                f"largest difference {report.largest_error:.1e}",
            ),
        ]
    )


def closing_text(report: QuickstartReport, test_set: Path) -> str:
    return f"""\
Done in {report.seconds:.0f} s. Type next:
  headroute search "I lost my laptop" --db {report.database}
  headroute route "I lost my laptop" --temperature 0.01 0.1 1.0 \\
      --db {report.database}
  headroute validate --temperature 0.03 0.07 \\
      --db {report.database} \\
      --test-set {test_set}
With questions and answers of your own:
  headroute import FILE.csv --db lda.db
  headroute train --db lda.db --validate"""
