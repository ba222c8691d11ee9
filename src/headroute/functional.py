"""The chapter's three functions, on its lists of head dicts `{'centroid': (d,), 'answer_emb':
(e,)}`.

They are for one query and a handful of heads, and compute in float64. `Router` is for many.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headroute import _validate
from headroute._backends.reference import Float64, routing_weights, unit
from headroute.visualize import bar

Head = Mapping[str, Any]


class Embedder(Protocol):
    """What turns text into an embedding, such as a SentenceTransformer."""

    def encode(self, text: str, /) -> Any:
        """Return the embedding of one text, (d,)."""


def route_query(
    query_emb: npt.ArrayLike, heads: Sequence[Head], temperature: float = 0.1
) -> Float64:
    """Return the routing weights of one query: softmax of its cosines to the centroids over τ.

    Args:
        query_emb: (d,) real numbers.
        heads: K >= 1 dicts with a 'centroid' (d,).
        temperature: τ, positive and finite.

    Returns (K,) float64. A zero query gets uniform weights.

    Raises TypeError for what is not real numbers, ValueError for wrong shapes, NaN, infinity or a
    zero centroid.
    """
    tau = _validate.temperature(temperature)
    centroids = _validate.centroids(_column(heads, "centroid"))
    query = _validate.queries(query_emb, centroids.shape[1])
    if query.ndim != 1:
        raise ValueError(
            f"route_query takes one query of shape ({query.shape[-1]},), got {query.shape}: "
            "Router takes many"
        )
    if not np.isfinite(query).all():
        raise ValueError("query 0 has a NaN or infinity in it")
    row = query[np.newaxis].astype(np.float64)
    return np.ravel(routing_weights(row, unit(centroids.astype(np.float64)), tau))


def project_multi_head(
    query_emb: npt.ArrayLike, heads: Sequence[Head], temperature: float = 0.1
) -> Float64:
    """Return the projected query: the heads' answers, blended by the weights of `route_query`.

    Heads also have an 'answer_emb' (e,) here. Returns (e,) float64. Raises what `route_query`
    raises.
    """
    weights = route_query(query_emb, heads, temperature)
    answers = _validate.answers(_column(heads, "answer_emb"), len(weights))
    return weights @ answers.astype(np.float64)


def visualize_routing(
    query: str, heads: Sequence[Head], temperature: float = 0.1, *, embedder: Embedder | None = None
) -> None:
    """Print which heads a query routes to: a line a head with its weight and a bar of up to 40
    blocks.

    Args:
        query: the query's text.
        heads: as for `route_query`; a 'name' in a head is shown beside its number.
        temperature: τ, positive and finite.
        embedder: an object whose `encode(text)` returns (d,); by default all-MiniLM-L6-v2 (extra
        `embed`).

    Raises what `route_query` raises.
    """
    encode = _default_encode() if embedder is None else embedder.encode
    weights = route_query(encode(query), heads, temperature)
    print(f"Query: {query}")
    for i, (head, weight) in enumerate(zip(heads, weights, strict=True)):
        name = f" ({head['name']})" if "name" in head else ""
        print(f"  Head {i}{name}: {weight:.2f} {bar(weight)}")


def _column(heads: Sequence[Head], key: str) -> npt.NDArray[Any]:
    """Stack one entry of every head.

    TypeError, with the head's number, for what is no dict; ValueError for an entry that is missing
    or of another shape.
    """
    rows = []
    for number, head in enumerate(heads):
        if not isinstance(head, Mapping):
            raise TypeError(f"head {number} must be a dict, got {type(head).__name__}")
        if key not in head:
            raise ValueError(f"head {number} has no {key!r}")
        rows.append(_validate.real_array(head[key], f"the {key!r} of head {number}"))
        if rows[-1].shape != rows[0].shape:
            raise ValueError(
                f"head {number} has a {key!r} of shape {rows[-1].shape}, head 0 of {rows[0].shape}"
            )
    return np.array(rows)


@functools.cache
def _default_encode() -> Callable[[str], Any]:
    from headroute.embedding import Encoder

    encoder = Encoder("all-MiniLM-L6-v2")
    return lambda text: encoder.encode_queries([text])[0]
