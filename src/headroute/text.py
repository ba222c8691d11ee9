"""Words and columns for a terminal of 80 columns."""

import textwrap
from collections.abc import Sequence

TEXT_WIDTH = 80


def count(n: int, thing: str) -> str:
    """1 question, 2 questions, 1,000 queries."""
    if n == 1:
        return f"1 {thing}"
    return f"{n:,} {thing[:-1] + 'ies' if thing.endswith('y') else thing + 's'}"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A name and what there is to say about it, each; long lines continue under their beginning."""
    column = 2 + max(len(name) for name, _ in pairs) + 2
    return "\n".join(
        textwrap.fill(
            text,
            TEXT_WIDTH,
            initial_indent=f"  {name}".ljust(column),
            subsequent_indent=" " * column,
        )
        for name, text in pairs
    )
