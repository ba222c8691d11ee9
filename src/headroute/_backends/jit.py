"""The numba backend: the fused loop nest without a compiler at installation time.

    for a pass of rows: copy into tiles, find ‖q‖
        for a block of heads, for a tile: cosines → running maximum, exponentials, row sums, on the
        tile in cache → weighted answers
    divide by the row sums → out

N×K is never held: a thread's memory is bounded, whatever N and K. Heads are normalised and packed
once, into panels that the tile product (`jit_tile`) reads in order. No BLAS and no parallel=True,
whose only layer that is always there aborts when two threads call it: plain Python threads run
compiled code without the GIL.

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
from headroute._backends.jit_tile import (
    STRIP,
    bits_of_float,
    float_of_bits,
    prefetch,
    scale_strip,
    tile_product,
    tile_shape,
)
from headroute._validate import Float32

NAME = "numba"
CHAINS = False
HALVES = False

_LANES, _ROWS = tile_shape()
_PANEL = 2 * _LANES
_STEP = max(_PANEL, STRIP)  # a block's heads are whole panels and whole strips
_wide = tile_product(_ROWS, 2, _LANES)
_narrow = tile_product(_ROWS, 1, _LANES)  # for a last panel that is at most half full
_wide_row = tile_product(1, 2, _LANES)
_narrow_row = tile_product(1, 1, _LANES)

# Fewer rows than this after the last whole tile go one by one: cheaper than a tile that is mostly
# padding.
_LONE_ROWS = 4

# A block's centroids and answers are read once a tile, so they stay in L2: 800 KiB of them, at most
# 512 heads, whose weights then take 28 KiB.
_BLOCK_FLOATS = 200 << 10
_BLOCK_HEADS = 512
# With several blocks, many rows pass through each together, so that fetching it from L3 is cheap:
# 1.6 MiB of their queries and sums.
_PASS_FLOATS = 400 << 10

# Products are summed in segments of this depth, which are then added up: the error grows with the
# root of the segment and with the root of their number, not with the root of the whole depth.
_COSINE_SEGMENT = 96
_ANSWER_SEGMENT = 256

# Work that a thread takes at a time, in multiply-adds: about 0.2 ms at 300 GFLOP/s a core pair, so
# that threads end together. At most one such piece of work stays on the calling thread.
_PIECE = 1 << 25

_LOG2_E = 1.4426950408889634
_LARGEST = float(np.finfo(np.float32).max)

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
        excess = float(np.abs(answers).max()) * len(answers) / 2.0**126
        self._answer_scale = np.float32(2.0 ** max(0, np.ceil(np.log2(max(excess, 1)))))
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
        scale = np.float32(min(_LOG2_E / temperature, _LARGEST))
        fit = _BLOCK_FLOATS // (d + e) // _STEP * _STEP
        width = max(_STEP, min(fit, _BLOCK_HEADS, -(-n_heads // _STEP) * _STEP))
        tiles = 1 if n_heads <= width else max(1, _PASS_FLOATS // (_ROWS * (d + e)))

        def run(rows: slice) -> int:
            return kernel(
                queries[rows],
                self._centroids,
                self._answers,
                n_heads,
                scale,
                out[rows],
                tiles,
                width,
            )

        n = len(queries)
        rows_of_pass = tiles * _ROWS
        piece = max(1, _PIECE // (n_heads * (d + e) * rows_of_pass)) * rows_of_pass
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


@_compiled("contract")
def _load_tile(
    queries: Float32,
    first: int,
    rows: int,
    height: int,
    strips: Float32,  # [d / STRIP, height, STRIP], the result
    lanes: Float32,  # (height * STRIP,), scratch
    log2e_over_temperature: np.float32,
    scales: Float32,  # (height,), the result: log2(e) / (τ ‖q‖), 0 for a zero query
) -> int:
    """Copy queries into a tile, zeros after the last; return the first bad row, or -1."""
    d = queries.shape[1]
    whole = d // STRIP * STRIP
    size = height * STRIP
    ahead = rows * (queries.strides[0] // queries.itemsize)  # the next tile's rows
    if rows < height or whole < d:
        strips[:] = 0
    for i in range(rows):
        row = queries[first + i]
        for start in range(0, whole, STRIP):
            scale_strip(row, start, np.float32(1), strips, start * height + i * STRIP)
            prefetch(row, start + ahead)
        for j in range(whole, d):
            strips[whole * height + i * STRIP + j - whole] = row[j]
    lanes[:size] = 0
    for start in range(0, len(strips), size):
        part = strips[start : start + size]
        for j in range(size):
            lanes[j] += part[j] * part[j]
    for i in range(rows):
        squares = np.float32(0)
        for x in lanes[i * STRIP : (i + 1) * STRIP]:
            squares += x
        exact: Any = np.float64(squares)
        if not np.float32(2.0**-80) < squares < np.float32(2.0**120):
            # Zero, NaN, infinity, or squares that float32 cannot hold with all their digits;
            # float64 can.
            exact = 0.0
            for x in queries[first + i]:
                exact += np.float64(x) * np.float64(x)
            if not np.isfinite(exact):
                return first + i
            if exact > 0:
                factor = 1 / np.sqrt(exact)
                for j in range(d):
                    at = j // STRIP * size + i * STRIP + j % STRIP
                    strips[at] = np.float32(np.float64(strips[at]) * factor)
                exact = 1.0
        scales[i] = 0
        if exact > 0:
            scales[i] = min(np.float64(log2e_over_temperature) / np.sqrt(exact), _LARGEST)
    return -1


@_compiled()
def _scale(source: Float32, start: int, factor: np.float32, result: Float32) -> None:
    """result = source[start:] * factor"""
    n = len(result)
    whole = n // STRIP * STRIP
    for j in range(0, whole, STRIP):
        scale_strip(source, start + j, factor, result, j)
    for j in range(whole, n):
        result[j] = source[start + j] * factor


@_compiled()
def _multiply(
    a: Float32,  # strips [depth / STRIP, height, STRIP]
    height: int,  # _ROWS or 1
    b: Float32,  # panels of all the depth there is, b_depth
    b_start: int,  # of the first panel
    b_depth: int,
    b_first: int,  # where in b_depth this product starts
    depth: int,
    segment: int,  # a multiple of STRIP
    c: Float32,
    c_start: int,
    c_row: int,  # see `tile_product`
    c_strip: int,
    columns: int,
    add: bool,
) -> None:
    """C (+)= A B for one tile of rows, panel by panel."""
    for column in range(0, columns, _PANEL):
        wide = columns - column > _LANES
        panel = b_start + column * b_depth + b_first * (_PANEL if wide else _LANES)
        to = c_start + column // STRIP * c_strip + column % STRIP
        for k in range(0, depth, segment):
            steps = min(segment, depth - k)
            at = k * height
            more = add or k > 0
            if height == 1:
                if wide:
                    _wide_row(a, at, b, panel + k * _PANEL, steps, c, to, c_row, c_strip, more)
                else:
                    _narrow_row(a, at, b, panel + k * _LANES, steps, c, to, c_row, c_strip, more)
            elif wide:
                _wide(a, at, b, panel + k * _PANEL, steps, c, to, c_row, c_strip, more)
            else:
                _narrow(a, at, b, panel + k * _LANES, steps, c, to, c_row, c_strip, more)


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


@_compiled("nnan", "nsz")  # nothing but finite cosines comes here
def _maxima(tile: Float32, heads: int, height: int, lanes: Float32, largest: Float32) -> None:
    """Largest cosine of each row of a tile [heads / STRIP, height, STRIP].

    Lane by lane first, all rows at once: `lanes` is (height * STRIP,).
    """
    size = height * STRIP
    padding = -heads % STRIP
    for i in range(height):
        end = (heads - 1) // STRIP * size + (i + 1) * STRIP
        tile[end - padding : end] = tile[end - padding - 1]  # lanes beyond the last head
    lanes[:size] = tile[:size]
    for start in range(size, (heads + padding) * height, size):
        part = tile[start : start + size]
        for j in range(size):
            lanes[j] = max(lanes[j], part[j])
    for i in range(height):
        best = lanes[i * STRIP]
        for j in range(1, STRIP):
            best = max(best, lanes[i * STRIP + j])
        largest[i] = best


@_compiled("contract", "nnan", "nsz")
def _exponentials(
    tile: Float32,
    heads: int,
    height: int,
    largest: Float32,  # (height,)
    scales: Float32,  # (height,)
    lanes: Float32,  # (3, height * STRIP), scratch
    totals: Float32,  # (height,), the result
) -> None:
    """Replace the cosines of a tile by 2**((x - largest) * scale); sum them up row by row.

    At most `_BLOCK_HEADS` a row; callers add such sums up in float64: one of 20,000 weights would
    not be as exact as NumPy's.
    """
    size = height * STRIP
    peak, factor, total = lanes[0], lanes[1], lanes[2]
    for i in range(height):
        peak[i * STRIP : (i + 1) * STRIP] = largest[i]
        factor[i * STRIP : (i + 1) * STRIP] = scales[i]
    total[:size] = 0
    for start in range(0, (heads + STRIP - 1) // STRIP * size, size):
        part = tile[start : start + size]
        for j in range(size):
            part[j] = _exp2((part[j] - peak[j]) * factor[j])
        if start + STRIP * height > heads * height:
            for i in range(height):
                part[i * STRIP + heads % STRIP : (i + 1) * STRIP] = 0
        for j in range(size):
            total[j] += part[j]
    for i in range(height):
        row_total = np.float32(0)
        for x in total[i * STRIP : (i + 1) * STRIP]:
            row_total += x
        totals[i] = row_total


@_compiled()
def _height(rows: int) -> int:
    """Height of the next tile when so many rows are left."""
    return _ROWS if rows >= _LONE_ROWS else 1


@_compiled()
def _project(
    queries: Float32,  # (n, d)
    centroids: Float32,  # packed
    answers: Float32,  # packed
    n_heads: int,
    scale: np.float32,  # log2(e) / τ
    out: Float32,  # (n, e)
    tiles: int,  # of a pass
    width: int,  # heads of a block
) -> int:
    """Projected queries; returns the first row with a NaN or infinity, or -1."""
    n_queries, d = queries.shape
    e = out.shape[1]
    e_padded = -(-e // _PANEL) * _PANEL
    pass_rows = min(tiles * _ROWS, -(-n_queries // _ROWS) * _ROWS)
    strip_size = -(-d // STRIP) * STRIP
    strips = np.empty(pass_rows * strip_size, np.float32)
    sums = np.empty(pass_rows * e_padded, np.float32)
    tile = np.empty(_ROWS * width, np.float32)
    lanes = np.empty((3, _ROWS * STRIP), np.float32)
    block_largest = np.empty(_ROWS, np.float32)
    block_totals = np.empty(_ROWS, np.float32)
    largest = np.empty(pass_rows, np.float32)
    scales = np.zeros(pass_rows + _ROWS, np.float32)
    totals = np.empty(pass_rows, np.float64)
    for first in range(0, n_queries, pass_rows):
        n = min(pass_rows, n_queries - first)
        for head in range(0, n_heads, width):
            heads = min(width, n_heads - head)
            start = 0
            while start < n:
                height = _height(n - start)
                rows = min(height, n - start)
                own = strips[start * strip_size : (start + height) * strip_size]
                if head == 0:
                    bad: int = _load_tile(
                        queries, first + start, rows, height, own, lanes[0], scale, scales[start:]
                    )
                    if bad >= 0:
                        return bad
                _multiply(
                    own, height, centroids, head * d, d, 0, d, _COSINE_SEGMENT,
                    tile, 0, STRIP, height * STRIP, heads, False,
                )  # fmt: skip
                _maxima(tile, heads, height, lanes[0], block_largest)
                for i in range(rows):
                    row = start + i
                    if head == 0:
                        largest[row] = block_largest[i]
                        totals[row] = 0
                    elif block_largest[i] > largest[row]:
                        factor = _exp2((largest[row] - block_largest[i]) * scales[row])
                        part = sums[row * e_padded : row * e_padded + e]
                        _scale(part, 0, factor, part)
                        totals[row] *= factor
                        largest[row] = block_largest[i]
                    block_largest[i] = largest[row]
                _exponentials(
                    tile, heads, height, block_largest, scales[start:], lanes, block_totals
                )
                for i in range(rows):
                    totals[start + i] += np.float64(block_totals[i])
                _multiply(
                    tile, height, answers, 0, n_heads, head, heads, _ANSWER_SEGMENT,
                    sums, start * e_padded, e_padded, STRIP, e, head > 0,
                )  # fmt: skip
                if head + width >= n_heads:
                    for i in range(start, start + rows):
                        _scale(sums, i * e_padded, np.float32(1 / totals[i]), out[first + i])
                start += rows
    return -1


@_compiled("reassoc", "contract", "nnan", "nsz")
def _weights_of_row(row: Float32, largest: np.float32, scale: np.float32) -> Any:
    """`_exponentials` for one row of cosines (n,), n <= `_BLOCK_HEADS`; returns their sum."""
    total = np.float32(0)
    for j in range(len(row)):
        weight = _exp2((row[j] - largest) * scale)
        row[j] = weight
        total += weight
    return total


@_compiled("reassoc", "nnan", "nsz")
def _largest_of_row(row: Float32) -> Any:
    largest = row[0]
    for x in row:
        largest = max(largest, x)
    return largest


@_compiled()
def _route(
    queries: Float32,
    centroids: Float32,
    answers: Float32,  # noqa: ARG001  the two kernels are called alike
    n_heads: int,
    scale: np.float32,
    out: Float32,  # (n, K)
    tiles: int,
    width: int,
) -> int:
    """Weights; returns the first row with a NaN or infinity, or -1.

    Cosines of all blocks go to `out`, and are turned into weights when the rows are complete.
    """
    n_queries, d = queries.shape
    pass_rows = min(tiles * _ROWS, -(-n_queries // _ROWS) * _ROWS)
    strip_size = -(-d // STRIP) * STRIP
    strips = np.empty(pass_rows * strip_size, np.float32)
    tile = np.empty(_ROWS * width, np.float32)
    lanes = np.empty((1, _ROWS * STRIP), np.float32)
    scales = np.zeros(pass_rows + _ROWS, np.float32)
    for first in range(0, n_queries, pass_rows):
        n = min(pass_rows, n_queries - first)
        for head in range(0, n_heads, width):
            heads = min(width, n_heads - head)
            start = 0
            while start < n:
                height = _height(n - start)
                rows = min(height, n - start)
                own = strips[start * strip_size : (start + height) * strip_size]
                if head == 0:
                    bad: int = _load_tile(
                        queries, first + start, rows, height, own, lanes[0], scale, scales[start:]
                    )
                    if bad >= 0:
                        return bad
                _multiply(
                    own, height, centroids, head * d, d, 0, d, _COSINE_SEGMENT,
                    tile, 0, STRIP, height * STRIP, heads, False,
                )  # fmt: skip
                for i in range(rows):
                    row = out[first + start + i]
                    for k in range(heads):
                        row[head + k] = tile[(k // STRIP * height + i) * STRIP + k % STRIP]
                start += rows
        for i in range(first, first + n):
            row = out[i]
            highest = _largest_of_row(row)
            total = 0.0
            for head in range(0, n_heads, width):
                part = row[head : head + width]
                total += np.float64(_weights_of_row(part, highest, scales[i - first]))
            _scale(row, 0, np.float32(1 / total), row)
    return -1
