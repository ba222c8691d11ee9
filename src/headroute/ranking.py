"""Rank documents for many queries by the dot products with their projections.

    scores = P Xᵀ = (W A) Xᵀ = W (A Xᵀ)    W (N, K) weights, A (K, e) answers, X (D, e) documents

With few heads G = A Xᵀ is made once, and the projection never. Only the router is ours: products
are NumPy's.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from headroute._selection import Indices, k_best
from headroute._validate import Float32

# Rows whose scores are held at once, and float32 bytes of those scores: selecting the best needs
# about four times as much again.
_ROWS = 512
_SCORE_BYTES = 2 << 20


class RankedDocuments(NamedTuple):
    """The documents of the largest scores for each query, best first."""

    indices: Indices  # (N, k), or (k,) for one query
    scores: Float32  # the same shape: dot products of documents and projections


def by_weights(n_queries: int, n_documents: int, n_heads: int, answer_dim: int) -> bool:
    """Whether W (A Xᵀ) takes fewer multiply-adds than (W A) Xᵀ."""
    g = n_heads * answer_dim * n_documents
    projections = n_queries * n_heads * answer_dim
    return (
        g + n_queries * n_heads * n_documents < projections + n_queries * answer_dim * n_documents
    )


def documents_side(n_queries: int, answers: Float32, documents: Float32) -> tuple[Float32, bool]:
    """What the queries' side is multiplied by, and whether that side is weights, or projections.

    (K, D) products of answers (K, e) and documents (D, e), where that takes less and float32 holds
    them; else the documents' columns (e, D).
    """
    if by_weights(n_queries, len(documents), *answers.shape):
        with np.errstate(over="ignore", invalid="ignore"):
            products: Float32 = answers @ documents.T
        if np.isfinite(products).all():
            return products, True
    return documents.T, False


def rank(
    left: Callable[[slice], Float32], n_queries: int, right: Float32, k: int
) -> tuple[Indices, Float32]:
    """The k largest scores of every query, (n_queries, k), best first; equal ones by lower index.

    `left(rows)` returns the queries' side of some rows, (n, width); `right` (width, D) is the
    documents' side. N×D is never held at once.
    """
    n_documents = right.shape[1]

    def products(rows: slice, part: Float32, first: int) -> Float32:
        with np.errstate(over="ignore", invalid="ignore"):
            result = part @ right[:, first : first + piece]
        if not np.isfinite(result).all():
            query, document = np.argwhere(~np.isfinite(result))[0]
            raise ValueError(
                f"query {rows.start + query} and document {first + document} have a dot product "
                "larger than float32 holds"
            )
        return result

    indices = np.empty((n_queries, k), np.int64)
    scores = np.empty((n_queries, k), np.float32)
    step = max(1, min(n_queries, _ROWS))
    piece = max(k, _SCORE_BYTES // (4 * step))
    for start in range(0, n_queries, step):
        rows = slice(start, min(start + step, n_queries))
        part = left(rows)
        where, best = k_best(products(rows, part, 0), k)
        for first in range(piece, n_documents, piece):
            fresh = products(rows, part, first)
            hit = np.flatnonzero((fresh > best[:, -1:]).any(axis=1))
            # Those found before come first: theirs are the lower indices.
            columns, best[hit] = k_best(np.hstack([best[hit], fresh[hit]]), k)
            old = np.take_along_axis(where[hit], np.minimum(columns, k - 1), axis=1)
            where[hit] = np.where(columns < k, old, columns - k + first)
        indices[rows], scores[rows] = where, best
    return indices, scores
