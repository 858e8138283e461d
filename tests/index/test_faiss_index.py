from __future__ import annotations

import functools
import os
import sys
import threading

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmecg_index import ann, block, faiss_index
from mmecg_index.ann import choose_factory
from mmecg_index.faiss_index import FaissIndex

from mmecg.embedding import normalise
from mmecg.errors import ConfigError, QueryError
from mmecg.exact_index import ExactIndex
from mmecg.search import IndexResult

DIM = 16
FACTORIES = [None, "HNSW8", "IVF8,Flat", "IVF8,SQ8", "HNSW8,SQ8"]


def vectors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return normalise(np.random.default_rng(seed).standard_normal((count, dim)))


def clustered(count: int, clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors close to their centre, and the cluster of each."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, DIM))
    cluster = random.integers(0, clusters, count)
    return normalise(centres[cluster] + 0.3 * random.standard_normal((count, DIM))), cluster


def same_up_to_ties(found: IndexResult, truth: IndexResult) -> None:
    """Equal rank by rank in score, and equal in rows where scores are not tied."""
    np.testing.assert_allclose(found.scores, truth.scores, atol=2e-6)
    for rows, scores, true_rows, true_scores in zip(found.rows, found.scores, truth.rows, truth.scores, strict=True):
        assert (rows < 0).tolist() == (true_rows < 0).tolist()
        assert len(set(rows[rows >= 0])) == (rows >= 0).sum()
        cut = true_scores[-1] + 4e-6
        assert set(rows[scores > cut]) <= set(true_rows[true_scores >= cut - 4e-6])


def recall(found: IndexResult, truth: IndexResult) -> float:
    """Share of hits that score no worse than the last of the exact answer: ties count."""
    return float((found.scores >= truth.scores[:, -1:] - 1e-5).mean())


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.lists(st.integers(0, 60), max_size=40)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 60), max_size=20)),
        st.tuples(st.just("compact"), st.just([])),
        st.tuples(st.just("search"), st.none() | st.lists(st.integers(0, 70), max_size=30)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(OPERATIONS, st.integers(1, 70), st.integers(0, 3))
def test_exact_plans_agree_with_the_oracle_after_any_operations(operations: list, top_k: int, seed: int) -> None:
    index, oracle = FaissIndex(DIM, "f"), ExactIndex(DIM, "f")
    # Few distinct vectors, so that ties are common.
    pool = vectors(25, seed)
    for number, (name, rows) in enumerate(operations):
        chosen = np.array(rows or [], np.int64)
        if name == "upsert":
            data = pool[(chosen + number) % 25]
            for each in (index, oracle):
                each.upsert(chosen, data)
        elif name == "remove":
            assert index.remove(chosen) == oracle.remove(chosen)
        elif name == "compact":
            index.compact()
        restricted = chosen if name == "search" and rows is not None else None
        found, truth = (each.search(pool[:3], top_k, rows=restricted) for each in (index, oracle))
        assert found.plan == truth.plan
        assert len(index) == len(oracle)
        same_up_to_ties(found, truth)
        if name == "remove" and len(chosen):
            same_up_to_ties(
                index.search_without(pool[:3], top_k, chosen),
                oracle.search(pool[:3], top_k, rows=np.setdiff1d(np.arange(80), chosen)),
            )


@pytest.mark.parametrize("factory", FACTORIES[1:])
@pytest.mark.parametrize("exact_rows", [0, 10**9])
def test_every_engine_finds_what_the_oracle_finds(
    factory: str, exact_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "EXACT_ROWS", exact_rows)
    index, oracle = FaissIndex(DIM, "f", factory=factory), ExactIndex(DIM, "f")
    data, random = vectors(4000), np.random.default_rng(1)
    for each in (index, oracle):
        each.upsert(np.arange(4000) * 3, data)
    index.compact()
    changed, gone = random.integers(0, 12000, 1000), np.arange(0, 600)
    for each in (index, oracle):
        each.upsert(changed, vectors(1000, 2))
        each.remove(gone)
    assert len(index) == len(oracle)
    queries = vectors(20, 3)
    for rows in (None, np.arange(0, 12000, 2), np.arange(0, 12000, 30), np.arange(700, 720)):
        found, truth = (each.search(queries, 10, rows=rows) for each in (index, oracle))
        assert found.plan.rows_passing == truth.plan.rows_passing
        assert found.plan.engine == (factory if not found.plan.exact else "exact_rows")
        assert found.plan.exact == (rows is not None and exact_rows > 0) or found.plan.rows_passing < 200
        assert recall(found, truth) >= 0.97
        if found.plan.exact:
            same_up_to_ties(found, truth)
    index.compact()
    assert len(index) == len(index.state.segment) == len(oracle)
    assert recall(index.search(queries, 10), oracle.search(queries, 10)) >= 0.97


@pytest.mark.parametrize("factory", FACTORIES)
def test_filtered_search_fills_top_k_at_every_selectivity(factory: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small enough that the approximate plan runs, as it would above 100,000 passing rows.
    monkeypatch.setattr(block, "EXACT_ROWS", 50)
    data, cluster = clustered(5000, 40)
    index, oracle = FaissIndex(DIM, "f", factory=factory), ExactIndex(DIM, "f")
    for each in (index, oracle):
        each.upsert(np.arange(5000), data)
    index.compact()
    queries = np.ascontiguousarray(data[:30])
    random = np.random.default_rng(0)
    for top_k in (1, 10, 100):
        for rows in (
            *(np.flatnonzero(random.random(5000) < share) for share in (0.001, 0.01, 0.1, 0.5, 0.99)),
            # Filters that go with the embedding, as labels do: for most queries nothing near passes.
            *(np.flatnonzero(cluster < limit) for limit in (1, 4, 20)),
            np.flatnonzero(cluster != cluster[0]),
        ):
            found, truth = (each.search(queries, top_k, rows=rows) for each in (index, oracle))
            assert ((found.rows >= 0).sum(axis=1) == min(top_k, len(rows))).all()
            assert np.isin(found.rows[found.rows >= 0], rows).all()
            assert found.plan.rows_passing == len(rows)
            filled = slice(0, min(top_k, len(rows)))
            assert (found.scores[:, filled] >= truth.scores[:, filled][:, -1:] - 1e-5).mean() >= 0.95


def test_an_unfiltered_search_never_comes_back_short(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = clustered(3000, 30)
    index = FaissIndex(DIM, "f", factory="IVF32,Flat", target_recall=0.1)
    index.upsert(np.arange(3000), data)
    index.compact()
    assert index.state.segment.ann is not None
    assert index.state.segment.ann.effort == 1  # One list of about 100 vectors cannot hold 1000 hits.
    found = index.search(data[:4], 1000)
    assert (found.rows >= 0).all()


def test_a_query_whose_neighbourhood_is_filtered_away_is_answered_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "EXACT_ROWS", 50)
    data, cluster = clustered(6000, 30)
    index, oracle = FaissIndex(DIM, "f", factory="HNSW8"), ExactIndex(DIM, "f")
    for each in (index, oracle):
        each.upsert(np.arange(6000), data)
    index.compact()
    far, near = (np.ascontiguousarray(data[wanted][:20]) for wanted in (cluster >= 6, cluster < 6))
    rows = np.flatnonzero(cluster < 6)
    found, truth = (each.search(far, 10, rows=rows) for each in (index, oracle))
    assert found.plan == truth.plan
    same_up_to_ties(found, truth)
    assert index.search(near, 10, rows=rows).plan.engine == "HNSW8"
    assert recall(index.search(near, 10, rows=rows), oracle.search(near, 10, rows=rows)) >= 0.97


@pytest.mark.parametrize("spacing", [1, 5, 10**12])
def test_rows_may_be_dense_or_far_apart(spacing: int) -> None:
    index, oracle = FaissIndex(DIM, "f"), ExactIndex(DIM, "f")
    for each in (index, oracle):
        each.upsert(np.arange(500) * spacing, vectors(500))
        each.upsert(np.arange(400, 600) * spacing, vectors(200, 1))
        each.remove(np.arange(10, 20) * spacing)
    for chosen in ([], [15], [599, 600, 700], range(5, 700, 3), [-(-(2**60) // spacing)]):
        rows = np.array(chosen, np.int64) * spacing
        found, truth = (each.search(vectors(3, 2), 10, rows=rows) for each in (index, oracle))
        assert found.plan == truth.plan
        same_up_to_ties(found, truth)


def test_longer_rankings_begin_with_shorter_ones_despite_ties() -> None:
    index = FaissIndex(DIM, "f")
    index.upsert(np.arange(600), vectors(6)[np.arange(600) % 6])
    rankings = [index.search(vectors(6)[:1], top_k).rows[0].tolist() for top_k in (3, 10, 50, 99, 100, 150, 599)]
    rankings += [index.search(vectors(6)[:1], top_k, rows=np.arange(600)).rows[0].tolist() for top_k in (7, 120, 600)]
    assert rankings[-1][:100] == list(range(0, 600, 6))
    for ranking in rankings:
        assert ranking == rankings[-1][: len(ranking)]


@pytest.mark.parametrize("compact_after", [None, 30, 60])
def test_equal_scores_stand_in_the_order_of_their_rows_whatever_was_written_when(compact_after: int | None) -> None:
    random = np.random.default_rng(0)
    vectors = np.eye(4, dtype=np.float32)
    index = FaissIndex(4, "f")
    for number, row in enumerate([*random.permutation(50), *random.permutation(50)]):
        index.upsert(np.array([row]), vectors[row % 2][None])
        if number == compact_after:
            index.compact()
    for top_k in (3, 25, 30, 50):
        expected = [*range(0, 50, 2), *range(1, 50, 2)][:top_k]
        assert index.search(vectors[:1], top_k).rows[0].tolist() == expected
        assert index.search(vectors[:1], top_k, rows=np.arange(50)).rows[0].tolist() == expected


def test_effort_is_tuned_and_the_shared_index_is_left_alone() -> None:
    data = vectors(4000)
    index = FaissIndex(DIM, "f", factory="HNSW8")
    index.upsert(np.arange(4000), data)
    index.compact()
    built = index.state.segment.ann
    assert built is not None
    assert built.recall >= ann.TARGET_RECALL
    before = built.index.hnsw.efSearch
    index.search(data[:5], 50)
    assert built.index.hnsw.efSearch == before


def test_searching_while_others_write_and_compact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "_MAX_DEAD_TAIL", 20)
    data = vectors(2000)
    index = FaissIndex(DIM, "f", factory="HNSW8")
    index.upsert(np.arange(1000), data[:1000])
    index.compact()
    stop, failures = threading.Event(), []

    def search() -> None:
        random = np.random.default_rng()
        while not stop.is_set():
            # Rows 0 to 499 never change: whatever goes on, each is its own best hit, with its own vector.
            wanted = random.integers(0, 500, 4)
            rows = None if random.random() < 0.5 else np.arange(500)
            found = index.search(np.ascontiguousarray(data[wanted]), 3, rows=rows)
            if rows is not None and (found.rows[:, 0] != wanted).any():
                failures.append(found)
            if (found.rows < 0).any() or not (found.scores <= 1.001).all():
                failures.append(found)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        random = np.random.default_rng(5)
        for step in range(150):
            rows = random.integers(500, 2000, 10)
            index.upsert(rows, data[rows])
            index.remove(random.integers(500, 2000, 5))
            if step % 50 == 25:
                index.compact()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    living = np.concatenate([part.living[0] for part in index.state.blocks])
    found = index.search(np.ascontiguousarray(data[np.sort(living)]), 1, rows=living)
    assert found.rows[:, 0].tolist() == np.sort(living).tolist()


def test_writes_during_a_compaction_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = vectors(2100)
    index, oracle = FaissIndex(DIM, "f", factory="HNSW8"), ExactIndex(DIM, "f")
    for each in (index, oracle):
        each.upsert(np.arange(1000), data[:1000])
    index.compact()
    for each in (index, oracle):
        each.upsert(np.arange(900, 1100), data[1000:1200])
    original = faiss_index.build_ann

    def build_while_writing(*args: object, **kwargs: object) -> object:
        for each in (index, oracle):
            each.upsert(np.array([5, 950, 3000]), data[2000:2003])
            each.remove(np.array([7, 951, 1099]))
            each.upsert(np.array([7]), data[2010:2011])
        return original(*args, **kwargs)

    monkeypatch.setattr(faiss_index, "build_ann", build_while_writing)
    index.compact()
    assert len(index) == len(oracle)
    everything = np.arange(4000)
    queries = data[1990:2100]
    same_up_to_ties(index.search(queries, 20, rows=everything), oracle.search(queries, 20, rows=everything))


def test_no_search_makes_the_tables_of_a_new_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    index, made = FaissIndex(DIM, "f", factory="HNSW8"), []
    original = block.Block._position_of_row.func

    def noted(one: block.Block) -> np.ndarray | None:
        made.append((threading.current_thread().name, len(one)))
        return original(one)

    table = functools.cached_property(noted)
    table.__set_name__(block.Block, "_position_of_row")
    monkeypatch.setattr(block.Block, "_position_of_row", table)
    index.upsert(np.arange(300), vectors(300))
    compaction = threading.Thread(target=index.compact, name="compaction")
    compaction.start()
    compaction.join()
    assert index.remove(np.arange(0, 300, 3)) == 100
    wanted = np.arange(0, 200, 2)
    found = index.search(vectors(5, seed=1), 20, rows=wanted)
    assert set(found.rows.ravel()) <= set(wanted[wanted % 3 > 0].tolist())
    assert found.plan.rows_passing == np.count_nonzero(wanted % 3)
    assert [name for name, size in made if size == 300] == ["compaction"]


def test_a_cancelled_compaction_changes_nothing() -> None:
    index = FaissIndex(DIM, "f", factory="HNSW8")
    index.upsert(np.arange(100), vectors(100))
    before, cancel = index.state, threading.Event()
    cancel.set()
    with pytest.raises(ann.BuildCancelledError):
        index.compact(cancel=cancel)
    assert index.state is before
    index.compact()
    assert index.state.segment.ann is not None


def test_size_chooses_the_engine() -> None:
    assert choose_factory(200_000) == "Flat"
    assert choose_factory(1_000_000) == "HNSW32"
    assert choose_factory(20_000_000) == "IVF16384,SQ8"
    faiss.index_factory(8, choose_factory(20_000_000), faiss.METRIC_INNER_PRODUCT)


def test_compaction_is_asked_for_when_the_tail_outgrows_the_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "FLAT_LIMIT", 100)
    monkeypatch.setattr(faiss_index, "_MIN_TAIL", 50)
    index = FaissIndex(DIM, "f")
    index.upsert(np.arange(100), vectors(100))
    assert not index.needs_compaction
    index.upsert(np.arange(100, 200), vectors(100, 1))
    assert index.needs_compaction
    index.compact()
    assert not index.needs_compaction
    assert index.state.segment.ann is not None
    index.remove(np.arange(60))
    assert index.needs_compaction


@pytest.mark.parametrize("factory", ["HNSWx", "PQ8", "nonsense", "Flat,IVF4"])
def test_a_factory_that_cannot_be_used_is_refused(factory: str) -> None:
    with pytest.raises(ConfigError, match="factory"):
        FaissIndex(DIM, "f", factory=factory)


def test_too_few_vectors_for_inverted_lists_is_refused() -> None:
    index = FaissIndex(DIM, "f", factory="IVF64,Flat")
    index.upsert(np.arange(100), vectors(100))
    with pytest.raises(ConfigError, match="at least"):
        index.compact()
    assert len(index) == 100


def test_bad_input_is_refused_and_changes_nothing() -> None:
    index = FaissIndex(DIM, "f")
    for rows, data in (([1], np.ones((1, DIM))), ([1], vectors(1, dim=4)), ([-1], vectors(1)), ([1, 2], vectors(1))):
        with pytest.raises(QueryError):
            index.upsert(np.array(rows), data.astype(np.float32))
    assert len(index) == 0
    with pytest.raises(QueryError):
        index.search(vectors(1), 0)
    assert index.search(vectors(2), 3).rows.tolist() == [[-1] * 3] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority of one thread")
def test_a_builder_steps_back_and_nobody_else() -> None:
    here, cores = threading.get_native_id(), os.cpu_count() or 1
    before = os.getpriority(os.PRIO_PROCESS, here), faiss.omp_get_max_threads()
    seen = []

    def build() -> None:
        ann.step_back()
        seen.append((os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), faiss.omp_get_max_threads()))

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert seen == [(max(10, before[0]), max(1, cores // 2))]
    assert (os.getpriority(os.PRIO_PROCESS, here), faiss.omp_get_max_threads()) == before


def test_a_purge_waits_for_the_compaction_that_began_before_the_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    data = vectors(600)
    index = FaissIndex(DIM, "f" * 64, factory="HNSW8")
    index.upsert(np.arange(300), data[:300])
    index.compact()
    index.upsert(np.arange(300, 600), data[300:])
    building, go_on, build_ann = threading.Event(), threading.Event(), faiss_index.build_ann

    def slow(*args: object, **options: object) -> ann.Ann:
        building.set()
        go_on.wait(30)
        return build_ann(*args, **options)

    monkeypatch.setattr(faiss_index, "build_ann", slow)
    builder = threading.Thread(target=index.compact)
    builder.start()
    building.wait(30)
    index.remove(np.array([450]))  # still alone in the tail, and already on its way into the next segment
    purger = threading.Thread(target=index.purge)
    purger.start()
    go_on.set()
    for thread in (builder, purger):
        thread.join()
    held = np.concatenate([part.matrix[: len(part)] for part in index.state.blocks])
    assert len(held) == len(index) == 599
    assert not (held == data[450]).all(axis=1).any()
