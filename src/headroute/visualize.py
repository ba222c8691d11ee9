"""Routing weights as bars for a terminal, drawn as in the chapter:

      password_reset  0.82 ████████████████████████████████
      account_locked  0.12 ████
      and 26 more, together 0.06

Takes weights and names, returns lines. Knows nothing of routers, databases or where the lines go.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

NAME_WIDTH = 31  # 2 + name + 2 + "0.82" + 1 + a bar of 40 = 80 columns


def bar(weight: float, width: int = 40) -> str:
    """A bar of int(weight * width) full blocks; weight is in [0, 1]."""
    return "█" * int(weight * width)


def weight_bars(
    weights: ArrayLike,
    names: Sequence[str],
    *,
    width: int = 40,
    top: int | None = None,
    by_weight: bool = False,
) -> list[str]:
    """One line a head: its name, its weight with two decimals, its bar.

    weights   (K,) routing weights; names has K entries
    width     length in characters of the bar of weight 1
    top       show only the `top` heaviest heads, and one line for what the others add up to
    by_weight heaviest first (ties in head order); otherwise in head order, as the chapter does

    Raises ValueError when there are not as many names as weights, or width or top is below 1.
    """
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(names):
        raise ValueError(f"{len(names)} names for weights of shape {values.shape}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    heaviest_first = np.argsort(-values, kind="stable")
    shown, hidden = heaviest_first[:top], heaviest_first[len(values) if top is None else top :]
    if not by_weight:
        shown = np.sort(shown)
    labels = [shorten(names[i], NAME_WIDTH) for i in shown]
    column = max(map(len, labels), default=0)
    lines = [
        f"  {label:<{column}}  {values[i]:.2f} {bar(values[i], width)}".rstrip()
        for label, i in zip(labels, shown, strict=True)
    ]
    if len(hidden):
        lines.append(f"  and {len(hidden):,} more, together {values[hidden].sum():.2f}")
    return lines


def shorten(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters, with '…' for what is missing."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def printable(text: str) -> str:
    """`text` without the characters that command a terminal; they become spaces, newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text.expandtabs(4))
