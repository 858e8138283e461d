"""Peer engines for `bench_index.py`: each takes the vectors and every filter once, and gives a search a filter.

None is a dependency of mmecg; install the one that is asked for beside it. All run at the effort that they are given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Filters = Mapping[str, "NDArray[np.int64] | None"]
"""Rows that pass, by the name of the filter; None is all."""
Search = Callable[[Any], tuple[Any, Any]]
"""A query of shape (1, dim) to scores and rows, best first; -1 where too few were found."""


def hnswlib_peer(stored: NDArray[np.float32], filters: Filters, *, k: int, effort: int) -> dict[str, Search]:
    """Build hnswlib's graph with the M and efConstruction of ours; a filter is a function asked for each candidate."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=stored.shape[1])
    index.init_index(max_elements=len(stored), M=32, ef_construction=80)
    index.add_items(stored, np.arange(len(stored)), num_threads=1)
    index.set_ef(effort)

    def under(passing: NDArray[np.int64] | None) -> Search:
        allowed = None if passing is None else set(passing.tolist()).__contains__

        def search(query: Any) -> tuple[Any, Any]:
            try:
                rows, distances = index.knn_query(query, k=k, num_threads=1, filter=allowed)
            except RuntimeError:  # it found fewer than k, which it calls an error
                return _padded([], [], k)
            return 1 - distances, rows

        return search

    return {name: under(passing) for name, passing in filters.items()}


def lancedb_peer(stored: NDArray[np.float32], filters: Filters, *, k: int, effort: int) -> dict[str, Search]:
    """Fill a LanceDB table with an IVF_HNSW_SQ index; a filter is a boolean column, applied before the search.

    ``effort`` is its `ef`; the best 10 k are ranked again by their exact vectors. It uses threads of its own.
    """
    import lancedb
    import pyarrow as pa

    flags = {f"passes_{number}": passing for number, passing in enumerate(filters.values()) if passing is not None}
    columns: dict[str, Any] = {
        "row": np.arange(len(stored)),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), stored.shape[1]),
    }
    for column, passing in flags.items():
        columns[column] = np.zeros(len(stored), bool)
        columns[column][passing] = True
    folder = tempfile.TemporaryDirectory(prefix="bench-lancedb-")
    table = lancedb.connect(folder.name).create_table("vectors", pa.table(columns))
    table.create_index(metric="dot", index_type="IVF_HNSW_SQ", m=32, ef_construction=40)

    def under(column: str | None) -> Search:
        def search(query: Any, _folder: Any = folder) -> tuple[Any, Any]:
            asked = table.search(query[0]).distance_type("dot").limit(k).ef(max(effort, 10 * k)).refine_factor(10)
            if column:
                asked = asked.where(f"{column} = true", prefilter=True)
            found = asked.select(["row", "_distance"]).to_arrow()
            return _padded(1 - found["_distance"].to_numpy(), found["row"].to_numpy(), k)

        return search

    named = iter(flags)
    return {name: under(None if passing is None else next(named)) for name, passing in filters.items()}


def _padded(scores: Any, rows: Any, k: int) -> tuple[Any, Any]:
    all_scores, all_rows = np.full((1, k), -np.inf, np.float32), np.full((1, k), -1, np.int64)
    all_scores[0, : len(scores)], all_rows[0, : len(rows)] = scores, rows
    return all_scores, all_rows


PEERS: dict[str, Callable[..., dict[str, Search]]] = {"hnswlib": hnswlib_peer, "lancedb": lancedb_peer}
