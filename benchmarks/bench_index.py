"""Our index beside raw FAISS, in one run, on one thread: recall@10 against an exact scan, and CPU time a query.

    OMP_NUM_THREADS=1 python benchmarks/bench_index.py --count 1000000 --factory HNSW32

``raw FAISS`` is ``index.search`` of the very index that ours holds, with the same search parameters; with a filter it
is handed an ``IDSelectorBitmap``. A ``cluster`` filter keeps whole clusters, as a label does. CPU time of the process
is used, not the clock, so that other load on the machine changes little; ``p50`` is the clock's, of ours, with the
filter's rows remembered. ``--peer`` puts another engine beside (see ``index_peers.py``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import polars as pl
from index_peers import PEERS
from mmecg_index.ann import is_ivf
from mmecg_index.faiss_index import FaissIndex
from numpy.typing import NDArray

from mmecg.embedding import normalise

K = 10


def make_vectors(count: int, dim: int, clusters: int, spread: float, seed: int) -> tuple[Any, Any, Any]:
    """Return unit vectors around random centres, the cluster of each, and the centres."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, dim), np.float32)
    cluster = random.integers(0, clusters, count)
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, 50_000):
        part = slice(start, start + 50_000)
        noise = random.standard_normal((len(cluster[part]), dim), np.float32)
        vectors[part] = normalise(centres[cluster[part]] + spread * noise)
    return vectors, cluster, centres


def measure(search: Callable[[Any], tuple[Any, Any]], queries: Any, truth: Any) -> tuple[float, float, float]:
    """Return recall@10 (ties count), CPU milliseconds a query (best of three rounds), and the clock's median.

    One query a call.
    """
    best, walls = np.inf, []
    for _ in range(3):
        found = []
        start = time.process_time()
        for query in queries:
            began = time.perf_counter()
            found.append(search(query[None])[0][0])
            walls.append(time.perf_counter() - began)
        best = min(best, (time.process_time() - start) / len(queries) * 1000)
    return float((np.stack(found) >= truth[:, -1:] - 1e-5).mean()), best, float(np.median(walls) * 1000)


def raw_parameters(index: FaissIndex, **extra: Any) -> Any:
    """Return the search parameters that ours uses for ten hits."""
    ann = index.state.segment.ann
    if is_ivf(ann.index):
        return faiss.SearchParametersIVF(nprobe=ann.effort, **extra)
    return faiss.SearchParametersHNSW(efSearch=ann.effort, **extra)


def filters(count: int, cluster: NDArray[np.int64], clusters: int) -> dict[str, NDArray[np.int64] | None]:
    """Return rows that pass, by name: none, shares at random, shares as whole clusters."""
    random = np.random.default_rng(3)
    chosen: dict[str, NDArray[np.int64] | None] = {"none": None}
    for share in (0.001, 0.01, 0.1, 0.5, 0.9):
        chosen[f"{share:.1%} random"] = np.flatnonzero(random.random(count) < share)
    for share in (0.01, 0.1, 0.3):
        chosen[f"{share:.0%} clusters"] = np.flatnonzero(cluster < share * clusters)
    return chosen


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=2_000)
    parser.add_argument("--spread", type=float, default=0.7, help="noise around a centre, relative to its length")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--factory", default="HNSW32")
    parser.add_argument("--peer", choices=PEERS, help="another engine, in the same run")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    every = options.count + options.queries
    vectors, cluster, _ = make_vectors(every, options.dim, options.clusters, options.spread, seed=1)
    stored, queries = vectors[: options.count], np.ascontiguousarray(vectors[options.count :])
    index = FaissIndex(options.dim, "benchmark", factory=options.factory)
    start = time.process_time()
    index.upsert(np.arange(options.count), stored)
    index.compact()
    ann = index.state.segment.ann
    if ann is None:
        raise SystemExit("choose an approximate --factory")
    print(
        f"{options.count} x {options.dim}, {options.factory}, built in {time.process_time() - start:.0f} CPU s; "
        f"effort {ann.effort}, recall@{K} measured at build {ann.recall:.4f}; FAISS {faiss.__version__}"
    )
    rows, chosen = [], filters(options.count, cluster[: options.count], options.clusters)
    start = time.process_time()
    peers = PEERS[options.peer](stored, chosen, k=K, effort=ann.effort) if options.peer else {}
    if peers:
        print(f"{options.peer} built in {time.process_time() - start:.0f} CPU s, same effort")
    for name, passing in chosen.items():
        allowed = stored if passing is None else stored[passing]
        truth, _ = faiss.knn(queries, allowed, K, metric=faiss.METRIC_INNER_PRODUCT)
        extra = {}
        if passing is not None:
            bits = np.packbits(np.isin(np.arange(options.count), passing), bitorder="little")
            extra = {"sel": faiss.IDSelectorBitmap(bits)}
        parameters = raw_parameters(index, **extra)
        raw = measure(lambda query, p=parameters: ann.index.search(query, K, params=p), queries, truth)

        def ours(query: Any, passing: Any = passing) -> tuple[Any, Any]:
            found = index.search(query, K, rows=passing)
            return found.scores, found.rows

        mine = measure(ours, queries, truth)
        plan = index.search(queries[:1], K, rows=passing).plan
        peer = measure(peers[name], queries, truth) if peers else ()
        rows.append((name, plan.rows_passing, plan.engine, *mine, *raw[:2], mine[1] / raw[1], *peer))
    columns = ["filter", "passing", "plan", "recall", "ms", "p50", "raw recall", "raw ms", "ms / raw ms"]
    columns += ["peer recall", "peer ms", "peer p50"] if peers else []
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160, float_precision=3, tbl_hide_dataframe_shape=True):
        print(pl.DataFrame(rows, schema=columns, orient="row"))


if __name__ == "__main__":
    main()
