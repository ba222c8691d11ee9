"""What 10⁶ to 10¹¹ queries cost, and on how many nodes: docs/scale.md by one command.

    python benchmarks/scale.py -o docs/scale.md

Measures the constants (scale_constants.py, four minutes on an idle machine, 26 GB of free disk),
puts them into the model (scale_model.py) and simulates a job on many nodes (schedule_study.py, one
minute more). Pictures are written beside the document. This file has what is
assumed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import schedule_study
from scale_constants import Constants, from_json, measure, to_json
from scale_model import Assumed, Parts, rate
from scale_pictures import draw_bandwidth, draw_schedule
from scale_tables import FLOAT32, local_disk
from scale_text import document
from schedule_study import ONE_A_NODE, Job

# Assumed, not measured: there is no object store here, no second node, and no bill.
ASSUMED = Assumed(
    rates=(0.1, 0.5, 1.0, 3.0),  # GB/s of a node from and to an object store, each way
    usual_rate=1.0,
    nodes=100,
    parts=Parts(seconds=60.0, least_each=10, least_seconds=5.0, overhead_seconds=0.5),
    overheads=(0.1, 2.0),  # the range of overhead_seconds
    prices=(0.05, 0.20),  # dollars for an hour of a node of two cores
    job_queries=1e11,  # the simulated job's
    job_heads=1_024,
    part_seconds=(20.0, 60.0, 200.0, 600.0, 2000.0),  # and one part a node
)


def job_of(measured: Constants, assumed: Assumed) -> Job:
    """The simulated one: float32 files in an object store at the usual rate."""
    return Job(
        queries=assumed.job_queries,
        ns_per_query=rate(FLOAT32.work(measured, assumed.job_heads), assumed.usual_store).ns,
        nodes=assumed.nodes,
        overhead_seconds=assumed.parts.overhead_seconds,
        start_seconds=measured.start[assumed.job_heads].whole,
        sizes=(*assumed.part_seconds, ONE_A_NODE),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="FILE.md (default: it is printed)")
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE.json",
        help="constants of an earlier run; if there is no such file, they are left there",
    )
    parser.add_argument(
        "--folder", type=Path, help="where the disk is measured (default: for temporary files)"
    )
    args = parser.parse_args()
    if args.measured and args.measured.exists():
        measured = from_json(args.measured.read_text())
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            measured = measure(Path(folder), lambda text: print(text, file=sys.stderr, flush=True))
        if args.measured:
            args.measured.write_text(to_json(measured))
    if measured.foreign_load > 0.05:
        busy = f"{100 * measured.foreign_load:.0f} % of the CPUs"
        print(f"not idle: other processes took {busy}; do not publish this", file=sys.stderr)
    job = job_of(measured, ASSUMED)
    study = schedule_study.run(job)
    pictures = ("scale.png", "scale_schedule.png")
    text = document(measured, ASSUMED, job, study, pictures)
    if args.output is None:
        print(text, end="")
        return
    args.output.write_text(text)
    storages = [local_disk(measured), *ASSUMED.stores]
    draw_bandwidth(measured, storages, args.output.parent / pictures[0])
    draw_schedule(job, study, args.output.parent / pictures[1])


if __name__ == "__main__":
    main()
