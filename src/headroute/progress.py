"""Progress bars on stderr, only where somebody watches: files and pipes get no carriage returns."""

import sys
from typing import Any


def progress_bar(total: int | None, what: str, unit: str, *, shown: bool = True) -> Any:
    """A tqdm bar over `total` things called `unit`, None when nobody knows how many; a context
    manager with .update(n).
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=what,
        unit=f" {unit}",
        unit_scale=total is not None and total >= 10_000,
        file=sys.stderr,
        disable=None if shown else True,  # None: no bar when stderr is not a terminal
        leave=False,  # the summary line that follows says the same
        dynamic_ncols=True,
    )
