"""Whether a search in few bits would pay: predicted from the heads, since queries resemble them.

A sample of the heads plays the queries, each without itself. What the kernel would keep of every
one is counted by the kernel's own rule (csrc/screened_kernel.inl), from exact cosines.
"""

import math

import numpy as np

from headroute._backends._units import unit_centroids
from headroute._validate import Float32
from headroute.precision import HeadRounding, Screening

# Cosines that a prediction may compute: 0.1 s or so.
_COSINES = 2_000_000
_FEWEST, _MOST = 16, 128

# Costs beside a head of a float32 row, measured at K = 15,000 (docs/decisions/0020): one whose
# cosine is taken and answer read, and what a row takes whatever K is.
_KEPT = 4.5
_ROW = 200.0

# The part of what may be dropped that the search drops: kSearched of the kernel.
_SEARCHED = 0.4


def predict(
    centroids: Float32,
    rounding: HeadRounding,
    temperature: float,
    may_drop: float,
    search_cost: float,
) -> Screening | None:
    """The prospects of a search, or None where it is hopeless from the start.

    `search_cost` is that of a head that is only searched, beside one of a float32 row.
    """
    n_heads, d = centroids.shape
    if may_drop <= 0:
        return None
    n = int(np.clip(_COSINES // n_heads, _FEWEST, _MOST))
    sample = np.linspace(0, n_heads - 1, n).astype(np.intp)
    unit = unit_centroids(centroids)
    r = math.sqrt(d / 12) / max(rounding.query_scale, 1.0)
    beta = r * rounding.centroid_norm + (1 + r) * rounding.centroid_rounding
    kept = np.empty(n)
    for row, i in enumerate(sample):
        cosines = unit @ unit[i]
        cosines[i] = -np.inf
        kept[row] = _kept(cosines, beta, temperature, may_drop)
    limit = min(max(64, n_heads // 4), 4096)
    given_up = kept > limit
    cost = search_cost + (_KEPT * np.minimum(kept, limit) + _ROW) / n_heads + given_up
    return Screening(float(cost.mean()), float(np.minimum(kept, limit).mean() / n_heads))


def _kept(cosines: Float32, beta: float, temperature: float, may_drop: float) -> int:
    """How many heads are left when the lightest by their bounds are dropped."""
    weights = np.sort(np.exp((cosines - cosines.max()) / temperature))
    budget = _SEARCHED * may_drop * weights.sum() * math.exp(-min(beta / temperature, 700.0))
    return int((np.cumsum(weights) > budget).sum())
