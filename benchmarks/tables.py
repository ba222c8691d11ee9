"""The tables of docs/benchmarks.md, empty when a run has nothing for one, and their targets."""

from figures import BF16_PEERS, PEERS, Figure, Race, Run

# What we set out to reach: the best peer's time over ours, one call on everything, two threads.
TARGETS = {16: 2.5, 64: 1.85, 256: 1.35, 1024: 1.35, 4096: 1.2, 16384: 1.25}
INT16_TARGETS = {16: 2.5, 64: 2.8, 256: 2.5, 1024: 2.5, 4096: 2.4, 16384: 2.3}
# Leaving out heads: our own float32 time, and the best peer's, over ours.
SCREENING_TARGETS = {0.01: (5.0, 6.0), 0.02: (4.0, 5.0), 0.03: (2.5, 0.0), 0.1: (0.95, 0.0)}
# Our time over NumPy's, one query.
SINGLE_TARGETS = {16: 0.4, 64: 0.4, 1024: 0.65}
SINGLE_INT16_TARGETS = {1024: 0.4}
FLOAT16_TARGETS = {16: 1.4}  # the float32 call's time over the float16 call's
SHAPE_TARGET = 0.9  # of the GFLOP/s at d = e = 384
FILES_TARGET = 0.8  # of the speed of the slower of cp and the kernel; of pyarrow's rewriting
PEAK_TARGET = 1.1  # peak memory of 10,000,000 rows over that of 100,000
MILLION_TARGET = 0.85  # of the float32 ceiling


def table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def verdict(ok: bool, target: float, sign: str) -> str:
    return f"{sign} {target:g}: {'met' if ok else '**missed**'}"


def best_bf16(race: Race, ours: Figure) -> str:
    """The best bfloat16 peer's time over ours, and its name; empty if there was none."""
    found = [name for name in BF16_PEERS if name in race]
    if not found:
        return ""
    best = min(found, key=lambda name: race[name].seconds)
    return f"{race[best].seconds / ours.seconds:.2f} ({best})"


def projection_table(run: Run) -> str:
    rows = []
    for heads, race, best in run.against_peers("projection", PEERS, "headroute"):
        ours = race["headroute"]
        ratio = race[best].seconds / ours.seconds
        rows.append(
            [f"{heads:,}", f"**{ours.ns_per_query:,.0f}** ({ours.gflops:.0f})"]
            + [
                f"{race[name].ns_per_query:,.0f}" if name in race else ""
                for name in ("numba", *PEERS)
            ]
            + [f"**{ratio:.2f}** ({best})", verdict(ratio >= TARGETS[heads], TARGETS[heads], "≥")]
            + [best_bf16(race, ours)]
        )
    header = ["K", "headroute (GFLOP/s)", "numba backend", *PEERS]
    return table([*header, "best peer / headroute", "target", "best in bfloat16 / headroute"], rows)


def blocks_table(run: Run) -> str:
    names = [f"{name}-blocks" for name in (*PEERS, *BF16_PEERS)]
    rows = []
    for heads, race, best in run.against_peers("projection", names, "headroute"):
        rows.append(
            [f"{heads:,}", f"{race['headroute'].ns_per_query:,.0f}"]
            + [f"{race[name].ns_per_query:,.0f}" if name in race else "" for name in names]
            + [f"{race[best].seconds / race['headroute'].seconds:.2f} ({best})"]
        )
    return table(["K", "headroute", *names, "best / headroute"], rows)


def int16_table(run: Run) -> str:
    rows = []
    everyone = (*PEERS, *BF16_PEERS)
    for heads, race, best in run.against_peers("projection", everyone, "headroute", "int16"):
        ours = race["int16"]
        ratio = race[best].seconds / ours.seconds
        rows.append(
            [
                f"{heads:,}",
                f"**{ours.ns_per_query:,.0f}** ({ours.gflops:.0f})",
                f"{race['headroute'].ns_per_query:,.0f}",
                f"{race['headroute'].seconds / ours.seconds:.2f}",
                f"**{ratio:.2f}** ({best})",
                verdict(ratio >= INT16_TARGETS[heads], INT16_TARGETS[heads], "≥"),
                best_bf16(race, ours),
            ]
        )
    header = ["K", "int16 (GOP/s)", "float32", "float32 / int16"]
    header += ["best peer / int16", "target", "best in bfloat16 / int16"]
    return table(header, rows)


def screening_table(run: Run) -> str:
    rows = []
    for temperature, (own, peer) in SCREENING_TARGETS.items():
        suite = f"screening {temperature}"
        for _, race, best in run.against_peers(suite, PEERS, "headroute", "tolerant"):
            ours = race["tolerant"]
            to_own = race["headroute"].seconds / ours.seconds
            to_best = race[best].seconds / ours.seconds
            target = f"{own:g} and {peer:g}" if peer else f"{own:g}"
            met = to_own >= own and to_best >= peer
            rows.append(
                [
                    f"{temperature:g}",
                    str(ours.facts["plan"]),
                    f"**{ours.ns_per_query / 1e3:.1f}**",
                    f"{race['headroute'].ns_per_query / 1e3:.1f}",
                    f"{race[best].ns_per_query / 1e3:.1f} ({best})",
                    f"**{to_own:.2f}**",
                    f"**{to_best:.2f}**",
                    f"≥ {target}: {'met' if met else '**missed**'}",
                    f"{ours.facts['largest_error']:.1e}",
                    f"{ours.facts['largest_bound']:.1e}",
                ]
            )
    header = ["τ", "plan", "tolerance 1e-3, µs", "float32, µs", "best peer, µs"]
    header += ["float32 / ours", "best peer / ours", "target", "largest error", "largest bound"]
    return table(header, rows)


def sgemm_table(run: Run) -> str:
    products = dict(run.races("sgemm"))
    rows = [
        [f"{heads:,}", f"{race['headroute'].gflops:.0f}", f"{products[heads]['sgemm'].gflops:.0f}"]
        for heads, race in run.races("projection", "headroute")
        if heads in products
    ]
    return table(["K", "headroute, GFLOP/s", "NumPy's 2048³ sgemm, GFLOP/s"], rows)


def single_table(run: Run) -> str:
    names = ("1-thread", "int16", "numba", "numpy", "numpy-best", "torch-eager", "onnxruntime")
    rows = []
    for heads, race in run.races("single", "headroute", "int16", "numpy", "numpy-best"):
        ours, numpy = race["headroute"].seconds, race["numpy"].seconds
        cells = [f"{heads:,}", f"**{ours * 1e6:.1f}**"]
        cells += [f"{race[name].seconds * 1e6:.1f}" if name in race else "" for name in names]
        cells.append(f"{ours / race['numpy-best'].seconds:.2f}")
        for seconds, targets in (
            (ours, SINGLE_TARGETS),
            (race["int16"].seconds, SINGLE_INT16_TARGETS),
        ):
            share, target = seconds / numpy, targets.get(heads)
            met = "" if target is None else f" ({verdict(share <= target, target, '≤')})"
            cells.append(f"{share:.2f}{met}")
        rows.append(cells)
    header = ["K", "headroute", *names, "headroute / numpy-best", "headroute / numpy"]
    return table([*header, "int16 / numpy"], rows)


def calls_table(run: Run) -> str:
    rows = []
    for heads, race in run.races(
        "calls", "headroute", "float16", "float16-int16", "stats", "top_heads", "partition"
    ):
        us = {name: figure.ns_per_query / 1e3 for name, figure in race.items()}
        gain, target = us["headroute"] / us["float16"], FLOAT16_TARGETS.get(heads)
        met = "" if target is None else f" ({verdict(gain >= target, target, '≥')})"
        rows.append(
            [
                f"{heads:,}",
                f"{us['headroute']:.3g}",
                f"{us['float16']:.3g}",
                f"{gain:.2f}{met}",
                f"{us['float16-int16']:.3g}",
                f"{us['headroute'] / us['float16-int16']:.2f}",
                f"{us['stats']:.3g}",
                f"{us['stats'] / us['headroute']:.2f}",
                f"**{us['top_heads']:.3g}**",
                f"{us['partition']:.3g}",
                f"**{us['partition'] / us['top_heads']:.2f}**",
            ]
        )
    header = ["K", "project", "float16 in and out", "project / float16", "float16, int16"]
    header += ["project / that", "with stats"]
    header += ["stats / project", "top_heads, k = 10", "route and argpartition", "that / top_heads"]
    return table(header, rows)


def isa_table(run: Run) -> str:
    rows = []
    for heads, race in run.races("isas", "numpy"):
        threads: dict[str, dict[int, Figure]] = {}
        for name, figure in race.items():
            if name != "numpy":
                isa, _, count = name.rpartition("-")
                threads.setdefault(isa, {})[int(count)] = figure
        for isa, of_isa in threads.items():
            if 1 not in of_isa:
                continue
            one, all_ = of_isa[1], of_isa[max(of_isa)]
            rows.append(
                [
                    f"{heads:,}",
                    isa,
                    f"{one.gflops:.0f}",
                    f"{all_.gflops:.0f}",
                    f"{one.seconds / all_.seconds:.2f}",
                    f"{race['numpy'].seconds / all_.seconds:.2f}",
                ]
            )
    return table(
        ["K", "ISA", "1 thread, GFLOP/s", "all threads", "all / 1", "NumPy's time / ours"], rows
    )


def shapes_table(run: Run) -> str:
    """GFLOP/s, and beside it that part of the GFLOP/s of the first shape."""
    first = "384x384"
    races = list(run.races("shapes"))
    names = [name.partition("-") for _, race in races for name in race]
    shapes = [first, *dict.fromkeys(shape for _, _, shape in names if shape != first)]
    rows = []
    for heads, race in races:
        for precision in ("float32", "int16"):
            base = race.get(f"{precision}-{first}")
            if base is None:
                continue
            found = [race.get(f"{precision}-{shape}") for shape in shapes]
            shares = [0 if f is None else f.gflops / base.gflops for f in found]
            cells = [
                "" if f is None else f"{f.gflops:.0f} ({share:.2f})"
                for f, share in zip(found, shares, strict=True)
            ]
            least = min(share for share in shares if share)
            target = verdict(least >= SHAPE_TARGET, SHAPE_TARGET, "≥")
            rows.append([f"{heads:,}", precision, *cells, target])
    titles = [f"d = {d}, e = {e}" for d, e in (shape.split("x") for shape in shapes)]
    return table(["K", "arithmetic, GOP/s", *titles, "target"], rows)


def million_table(run: Run) -> str:
    rows = []
    for heads, race in run.races("million", "headroute"):
        ours = race["headroute"]
        ceiling = run.ceiling("float32", heads)
        share = 0.0 if ceiling is None else ours.gflops / ceiling
        facts = ours.facts
        packed = facts["packed_bytes"]
        rows.append(
            [
                f"{heads:,}",
                f"{facts['seconds_made']:.1f} ({facts['system_seconds_made']:.1f})",
                f"{facts['head_bytes'] / 1e9:.2f}",
                "" if packed is None else f"{packed / 1e9:.2f}",
                f"{ours.queries}",
                f"**{ours.ns_per_query / 1e3:,.0f}**",
                f"{ours.gflops:.0f}",
            ]
            + (
                ["", "", ""]
                if ceiling is None
                else [
                    f"{ceiling:.0f}",
                    f"**{share:.2f}**",
                    verdict(share >= MILLION_TARGET, MILLION_TARGET, "≥"),
                ]
            )
        )
    header = ["K", "made in, s (the system's part)", "heads, GB", "packed, GB", "N"]
    header += ["µs a query", "GFLOP/s", "float32 ceiling", "share", "target"]
    return table(header, rows)


def files_table(run: Run) -> str:
    rows = []
    for suite, title, peers in (
        ("npy files", ".npy", ("cp", "cp and sync", "kernel")),
        ("parquet files", "Parquet", ("pyarrow", "pyarrow-plain")),
    ):
        for _, race in run.races(suite, "headroute", *peers):
            ours = race["headroute"]
            gigabytes = (
                ours.queries * 4 * (ours.facts["query_dim"] + ours.facts["answer_dim"]) / 1e9
            )
            if suite == "npy files":
                limit = max(race["cp"].seconds, race["kernel"].seconds)
            else:
                limit = min(race[name].seconds for name in peers)
            share = limit / ours.seconds
            rows.append(
                [
                    f"{title}, {ours.queries:,} queries",
                    f"**{ours.seconds:.2f}** ({gigabytes / ours.seconds:.2f})",
                    ", ".join(f"{name} {race[name].seconds:.2f}" for name in peers),
                    f"**{share:.2f}**",
                    verdict(share >= FILES_TARGET, FILES_TARGET, "≥"),
                ]
            )
    header = ["files", "headroute, s (GB/s)", "beside it, s", "share of the speed", "target"]
    return table(header, rows)


def peak_text(run: Run) -> str:
    for _, race in run.races("npy files", "headroute"):
        few, many = (race["headroute"].facts[name] for name in ("peak_few", "peak_many"))
        return (
            f"Peak memory: {few:.0f} MiB for 100,000 queries, {many:.0f} MiB for 10,000,000, "
            f"{many / few:.2f} times ({verdict(many / few <= PEAK_TARGET, PEAK_TARGET, '≤')})."
        )
    return ""
