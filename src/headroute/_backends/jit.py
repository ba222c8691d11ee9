"""The numba backend: the fused loop nest without a compiler at installation time.

    for a block of queries: normalise into a tile → cosines with a block of heads → running maximum,
    exponentials and row sums on the tile → weighted answers → divide by the row sums → store

N×K is never held: a thread's tiles take about 1 MiB, whatever N and K. Heads are normalised and
packed once, into panels that the tile product (`jit_tile`) reads in order. No BLAS and no
parallel=True, whose only layer that is always there aborts when two threads call it: plain Python
threads run compiled code without the GIL.

Weights below 2**-126 of their row's largest are zero, or off by less than that.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headroute._backends._units import unit_centroids
from headroute._backends.jit_tile import bits_of_float, float_of_bits, tile_product, tile_shape
from headroute._validate import Float32

NAME = "numba"

_LANES, _ROWS = tile_shape()
_PANEL = 2 * _LANES
_wide = tile_product(_ROWS, 2, _LANES)
_narrow = tile_product(_ROWS, 1, _LANES)  # for a last panel that is at most half full
_wide_row = tile_product(1, 2, _LANES)
_narrow_row = tile_product(1, 1, _LANES)

# Fewer rows than this after the last whole tile go one by one: cheaper than a tile that is mostly
# padding.
_LONE_ROWS = 4

# Queries and heads of a block. The three tiles of a thread (queries, weights, sums) and a panel fit
# in 1 MiB of L2 at d = e = 384; at larger dimensions there are fewer rows, down to one tile.
_BLOCK_HEADS = 512
_BLOCK_ROWS = 6 * _ROWS
_TILE_FLOATS = 128 << 10

# Products are summed in segments of this depth, which are then added up: the error grows with the
# root of the segment and with the root of their number, not with the root of the whole depth. About
# the root of the usual depth is best; sums over heads are the longer ones.
_COSINE_SEGMENT = 32
_ANSWER_SEGMENT = 128

# Work that a thread takes at a time, in multiply-adds: about 0.2 ms at 300 GFLOP/s a core pair, so
# that threads end together. At most one such piece of work stays on the calling thread.
_PIECE = 1 << 25

_LOG2_E = 1.4426950408889634

# 2**f ≈ 1 + P1 f + … + P6 f**6 on [-1/2, 1/2], minimax, relative error 2.0e-9.
_P1, _P2, _P3, _P4, _P5, _P6 = (
    np.float32(float.fromhex(digits))
    for digits in (
        "0x1.62e430p-1",
        "0x1.ebfbdcp-3",
        "0x1.c6aee8p-5",
        "0x1.3b2d4cp-7",
        "0x1.5f3e54p-10",
        "0x1.41fbbcp-13",
    )
)


def unavailable() -> str | None:
    disabled = numba.config.DISABLE_JIT  # type: ignore[attr-defined]
    return "NUMBA_DISABLE_JIT is set" if disabled else None


def build_facts() -> dict[str, object]:
    return {"numba": numba.__version__}


class Heads:
    """Heads, normalised and packed; see `headroute._backends.Heads` for the shapes."""

    def __init__(self, centroids: Float32, answers: Float32) -> None:
        self._shape = (len(centroids), centroids.shape[1], answers.shape[1])
        self._centroids = _pack(unit_centroids(centroids).T)
        # The sum of K answers must not be infinite before it is divided by the sum of the weights.
        self._answer_scale = np.float32(2.0**64 if np.abs(answers).max() > 2.0**64 else 1.0)
        self._answers = _pack(answers / self._answer_scale)

    def project(self, queries: Float32, temperature: float, out: Float32, num_threads: int) -> int:
        bad = self._run(_project, queries, temperature, out, num_threads)
        if bad < 0 and self._answer_scale != 1:
            np.multiply(out, self._answer_scale, out=out)
        return bad

    def route(self, queries: Float32, temperature: float, out: Float32, num_threads: int) -> int:
        return self._run(_route, queries, temperature, out, num_threads)

    def info(self) -> dict[str, str | int]:
        return {"lanes": _LANES}

    def _run(
        self,
        kernel: Callable[..., int],
        queries: Float32,
        temperature: float,
        out: Float32,
        num_threads: int,
    ) -> int:
        n_heads, d, e = self._shape
        # Clamped, so that a tiny temperature times a difference of zero is zero.
        scale = np.float32(min(_LOG2_E / temperature, float(np.finfo(np.float32).max)))
        block = max(_ROWS, min(_BLOCK_ROWS, _TILE_FLOATS // max(d, e) // _ROWS * _ROWS))

        def run(rows: slice) -> int:
            return kernel(
                queries[rows], self._centroids, self._answers, n_heads, scale, out[rows], block
            )

        n = len(queries)
        piece = max(1, _PIECE // (n_heads * (d + e) * block)) * block
        if n <= piece:
            return run(slice(None))
        starts = iter(range(0, n, piece))
        lock = threading.Lock()
        stop = threading.Event()

        def work() -> int:
            """Do pieces until there are no more; return the first bad row met, or n."""
            while not stop.is_set():
                with lock:
                    start = next(starts, n)
                if start == n:
                    break
                bad = run(slice(start, start + piece))
                if bad >= 0:
                    stop.set()
                    return start + bad
            return n

        helpers = min(num_threads, -(-n // piece)) - 1
        if helpers == 0:
            first_bad = work()
        else:
            with ThreadPoolExecutor(helpers) as pool:
                futures = [pool.submit(work) for _ in range(helpers)]
                try:
                    # Pieces are taken in order, so every one before a bad row is finished too.
                    first_bad = min([work(), *(future.result() for future in futures)])
                finally:
                    stop.set()  # Ctrl-C comes to this thread alone
        return first_bad if first_bad < n else -1


def _pack(matrix: npt.NDArray[np.float32]) -> Float32:
    """Return matrix (depth, columns) as flat panels, each [depth, `_PANEL`] of its columns.

    The last panel is padded with zeros, to half the width if its columns fit there.
    """
    depth, columns = matrix.shape
    panels = []
    for start in range(0, columns, _PANEL):
        part = matrix[:, start : start + _PANEL]
        panel = np.zeros((depth, _PANEL if part.shape[1] > _LANES else _LANES), np.float32)
        panel[:, : part.shape[1]] = part
        panels.append(panel.ravel())
    return np.concatenate(panels)


def _compiled(*fastmath: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "fastmath": set(fastmath), "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # neither beside the source nor in the home folder is a cache possible
            return numba.njit(**options)(function)  # type: ignore[no-any-return]

    return decorate


@_compiled("reassoc", "contract", "nsz")  # not nnan: this is where NaN is found
def _sum_of_squares(row: Float32) -> Any:
    total = np.float32(0)
    for x in row:
        total += x * x
    return total


@_compiled()
def _load_units(queries: Float32, first: int, n: int, units: Float32) -> int:
    """Write q / ‖q‖ of n queries to a flat tile (n, d).

    Returns the first row with a NaN or infinity, or -1.
    """
    d = queries.shape[1]
    for i in range(n):
        row = queries[first + i]
        unit = units[i * d : (i + 1) * d]
        squares = _sum_of_squares(row)
        if np.float32(2.0**-80) < squares < np.float32(2.0**120):
            _scale(row, np.float32(1) / np.sqrt(squares), unit)
            continue
        # Zero, NaN, infinity, or squares that float32 cannot hold with all their digits; float64
        # can.
        exact = 0.0
        for x in row:
            exact += np.float64(x) * np.float64(x)
        if not np.isfinite(exact):
            return first + i
        _scale(row, 1 / np.sqrt(exact) if exact > 0 else 0.0, unit)
    return -1


@_compiled("contract")
def _scale(row: Float32, factor: np.float32 | float, result: Float32) -> None:
    for j in range(len(result)):
        result[j] = row[j] * factor


@_compiled()
def _multiply(
    a: Float32,  # [rows, depth], row stride a_stride
    rows: int,
    a_stride: int,
    b: Float32,  # panels of all the depth there is, b_depth
    b_start: int,  # of the first panel
    b_depth: int,
    b_first: int,  # where in b_depth this product starts
    depth: int,
    segment: int,
    c: Float32,  # [rows, columns], row stride c_stride; both padded to whole tiles
    columns: int,
    c_stride: int,
) -> None:
    """C += A B, tile by tile, a panel of B staying in cache meanwhile."""
    tiled = rows // _ROWS * _ROWS
    if rows - tiled >= _LONE_ROWS:
        tiled = rows
    for column in range(0, columns, _PANEL):
        wide = columns - column > _LANES
        panel = b_start + column * b_depth + b_first * (_PANEL if wide else _LANES)
        for i in range(0, tiled, _ROWS):
            to = i * c_stride + column
            for k in range(0, depth, segment):
                steps = min(segment, depth - k)
                at = i * a_stride + k
                if wide:
                    _wide(a, at, a_stride, b, panel + k * _PANEL, steps, c, to, c_stride)
                else:
                    _narrow(a, at, a_stride, b, panel + k * _LANES, steps, c, to, c_stride)
        for i in range(tiled, rows):
            to = i * c_stride + column
            for k in range(0, depth, segment):
                steps = min(segment, depth - k)
                at = i * a_stride + k
                if wide:
                    _wide_row(a, at, 0, b, panel + k * _PANEL, steps, c, to, 0)
                else:
                    _narrow_row(a, at, 0, b, panel + k * _LANES, steps, c, to, 0)


@_compiled("reassoc", "nnan", "nsz")  # nothing but finite cosines comes here
def _maximum(row: Float32) -> Any:
    largest = row[0]
    for x in row:
        largest = max(largest, x)
    return largest


@_compiled("contract")
def _exp2(x: np.float32) -> Any:
    """2**x for x <= 0, to 0.66 ulp; 0 below -127, and within 2**-126 of the truth below -126.

    x = n + f with |f| <= 1/2; a polynomial for 2**f; n is added to the exponent bits.
    """
    x = max(x, np.float32(-127))
    n = np.floor(x + np.float32(0.5))
    f = x - n
    p = _P6 * f + _P5
    p = p * f + _P4
    p = p * f + _P3
    p = p * f + _P2
    p = p * f + _P1
    p = p * f + np.float32(1)
    return float_of_bits(bits_of_float(p) + (np.int32(n) << np.int32(23)))


@_compiled("reassoc", "contract", "nnan", "nsz")
def _exponentials(row: Float32, largest: np.float32, scale: np.float32) -> Any:
    """Replace cosines, at most `_BLOCK_HEADS`, by 2**((x - largest) * scale); return their sum.

    Callers add such sums up in float64: one of 20,000 weights would not be as exact as NumPy's.
    """
    total = np.float32(0)
    for j in range(len(row)):
        weight = _exp2((row[j] - largest) * scale)
        row[j] = weight
        total += weight
    return total


@_compiled()
def _project(
    queries: Float32,  # (n, d)
    centroids: Float32,  # packed
    answers: Float32,  # packed
    n_heads: int,
    scale: np.float32,  # log2(e) / τ
    out: Float32,  # (n, e)
    block: int,  # rows of a block, a multiple of the tile's
) -> int:
    """Projected queries; returns the first row with a NaN or infinity, or -1."""
    n_queries, d = queries.shape
    e = out.shape[1]
    width = min(_BLOCK_HEADS, -(-n_heads // _PANEL) * _PANEL)
    e_padded = -(-e // _PANEL) * _PANEL
    block = min(block, -(-n_queries // _ROWS) * _ROWS)
    units = np.zeros(block * d, np.float32)
    tile = np.empty(block * width, np.float32)
    sums = np.empty(block * e_padded, np.float32)
    largest = np.empty(block, np.float32)
    totals = np.empty(block, np.float64)
    for first in range(0, n_queries, block):
        n = min(block, n_queries - first)
        bad: int = _load_units(queries, first, n, units)
        if bad >= 0:
            return bad
        sums[:] = 0
        for head in range(0, n_heads, width):
            heads = min(width, n_heads - head)
            tile[:] = 0
            _multiply(
                units, n, d, centroids, head * d, d, 0, d, _COSINE_SEGMENT, tile, heads, width
            )
            for i in range(n):
                row = tile[i * width : i * width + heads]
                highest = _maximum(row)
                if head == 0:
                    largest[i] = highest
                    totals[i] = 0
                elif highest > largest[i]:
                    factor = _exp2((largest[i] - highest) * scale)
                    part = sums[i * e_padded : i * e_padded + e]
                    _scale(part, factor, part)
                    totals[i] *= factor
                    largest[i] = highest
                totals[i] += np.float64(_exponentials(row, largest[i], scale))
            _multiply(
                tile, n, width, answers, 0, n_heads, head, heads, _ANSWER_SEGMENT, sums, e, e_padded
            )
        for i in range(n):
            _scale(sums[i * e_padded :], 1 / totals[i], out[first + i])
    return -1


@_compiled()
def _route(
    queries: Float32,
    centroids: Float32,
    answers: Float32,  # noqa: ARG001  the two kernels are called alike
    n_heads: int,
    scale: np.float32,
    out: Float32,  # (n, K)
    block: int,
) -> int:
    """Weights; returns the first row with a NaN or infinity, or -1."""
    n_queries, d = queries.shape
    width = min(_BLOCK_HEADS, -(-n_heads // _PANEL) * _PANEL)
    block = min(block, -(-n_queries // _ROWS) * _ROWS)
    units = np.zeros(block * d, np.float32)
    tile = np.empty(block * width, np.float32)
    for first in range(0, n_queries, block):
        n = min(block, n_queries - first)
        bad: int = _load_units(queries, first, n, units)
        if bad >= 0:
            return bad
        for head in range(0, n_heads, width):
            heads = min(width, n_heads - head)
            tile[:] = 0
            _multiply(
                units, n, d, centroids, head * d, d, 0, d, _COSINE_SEGMENT, tile, heads, width
            )
            for i in range(n):
                out[first + i, head : head + heads] = tile[i * width : i * width + heads]
        for i in range(n):
            row = out[first + i]
            highest = _maximum(row)
            total = 0.0
            for head in range(0, n_heads, width):
                total += np.float64(_exponentials(row[head : head + width], highest, scale))
            _scale(row, 1 / total, row)
    return -1
