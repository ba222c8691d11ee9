"""The pictures of docs/scale.md."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from plots import BACKEND, INT8, INT16, OURS, PEER, TEXT, finish, new_axes
from scale_constants import HEADS, Constants
from scale_model import Storage
from scale_tables import FORMATS, kernel_line, part_title, power
from schedule_study import CASES, Job, Study

_SHOWN = {
    "no stragglers, no failures": PEER,
    "5 % stragglers, a failure a day": INT8,
    "20 % stragglers, a failure in 2 hours": OURS,
}


def draw_bandwidth(measured: Constants, storages: Sequence[Storage], path: Path) -> None:
    """What a storage must give for the kernel to be the slowest, over K."""
    figure, axes = new_axes()
    heads = np.geomspace(16, HEADS[-1], 200)
    colours = (OURS, INT16, BACKEND)
    for form, colour in zip(FORMATS, colours, strict=False):
        a, b = kernel_line(measured, form)
        most = max(form.read_bytes, form.written(0))
        axes.plot(heads, most / (a + b * heads), color=colour, label=f"kernel, {form.name}")
        points = [measured.kernel[form.kernel, k, measured.threads] for k in HEADS]
        axes.plot(HEADS, [most / ns for ns in points], "o", color=colour, markersize=5)
    for storage in storages:
        form = FORMATS[0]
        reachable = form.read_bytes / max(storage.ns(form.read_bytes, form.written(0)))
        axes.axhline(reachable, color=TEXT, linewidth=0.9, linestyle="--")
        label = f"{storage.name}, {reachable:.2g} GB/s" if "disk" in storage.name else storage.name
        axes.text(HEADS[-1], reachable * 1.06, label, ha="right", color=TEXT, fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([16, 64, 256, 1024, 4096, 16384])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    axes.set_xlabel("heads K; right of where a line meets a storage, the kernel is the slowest")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    title = f"GB/s, each way, that keep the kernel busy on {measured.threads} threads; d = e = 384"
    finish(figure, axes, title, path)


def draw_schedule(job: Job, study: Study, path: Path) -> None:
    """Makespan over the ideal by size of parts: median, and 5 to 95 % as a band."""
    assert set(_SHOWN) <= set(CASES)
    figure, axes = new_axes()
    places = [job.part_queries(size) * job.ns_per_query * 1e-9 for size in job.sizes]
    for case, colour in _SHOWN.items():
        for copies, style in ((True, "-"), (False, "--")):
            cells = [study[case, copies, size] for size in job.sizes]
            label = f"{case}{', copies' if copies else ''}"
            axes.plot(places, [c.median for c in cells], style, color=colour, label=label)
            if copies:
                low, high = [c.low for c in cells], [c.high for c in cells]
                axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.95, 8)
    axes.set_yticks([1, 1.2, 1.5, 2, 3, 5, 8])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xticks(places, [part_title(size) for size in job.sizes])
    axes.set_xlabel("time of a part on a usual node")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    title = f"Makespan / ideal, {power(job.queries)} queries on {job.nodes} simulated nodes"
    finish(figure, axes, title, path)
