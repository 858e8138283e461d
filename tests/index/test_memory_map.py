"""Indexes that are mapped from their snapshots, and codes that are ranked anew: the answers are the same."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from mmecg_index import ann, faiss_index
from mmecg_index.corpus import Corpus
from mmecg_index.faiss_index import FaissIndex
from mmecg_index.snapshot import load_index, save_index

from mmecg.embedding import MODALITIES, normalise
from mmecg.errors import IndexFormatError
from mmecg.exact_index import ExactIndex

DIM = 16
FINGERPRINT = "a" * 64
FACTORIES = ["HNSW8", "HNSW8_SQ8", "IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4x4", "HNSW8_PQ8x4"]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return normalise(np.random.default_rng(0).standard_normal((3000, DIM)))


def build(vectors: np.ndarray, factory: str | None, **options: object) -> FaissIndex:
    index = FaissIndex(DIM, FINGERPRINT, factory=factory, **options)
    index.upsert(np.arange(len(vectors)), vectors)
    if factory is not None:
        index.compact()
    return index


def mapped_files() -> set[str]:
    return {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}


@pytest.mark.parametrize("factory", [None, *FACTORIES])
def test_a_mapped_index_answers_as_one_in_memory(vectors: np.ndarray, factory: str | None, tmp_path: Path) -> None:
    index = build(vectors, factory)
    index.upsert(np.arange(5000, 5100), vectors[:100])
    index.remove(np.arange(0, 1000, 3))
    save_index(index, tmp_path / "one", sequence=5)
    mapped, _ = load_index(tmp_path / "one", fingerprint=FINGERPRINT, memory_map=True)
    assert mapped.state.segment.mapped
    assert any(name.startswith(str(tmp_path / "one")) for name in mapped_files())
    queries = normalise(np.random.default_rng(1).standard_normal((5, DIM)))
    for rows in (None, np.arange(0, 5100, 2)):
        want, got = index.search(queries, 20, rows=rows), mapped.search(queries, 20, rows=rows)
        np.testing.assert_array_equal(got.rows, want.rows)
        np.testing.assert_allclose(got.scores, want.scores, atol=1e-6)
    # What is mapped is never written to; what changes lies in memory.
    before = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    for each in (index, mapped):
        each.upsert(np.array([7, 9000]), queries[:2])
        each.remove(np.array([8, 5001]))
    assert {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()} == before
    np.testing.assert_array_equal(mapped.search(queries, 20).rows, index.search(queries, 20).rows)
    save_index(mapped, tmp_path / "two", sequence=6)
    again, _ = load_index(tmp_path / "two", fingerprint=FINGERPRINT)
    np.testing.assert_array_equal(again.search(queries, 20).rows, index.search(queries, 20).rows)
    mapped.compact()
    assert len(mapped) == len(index)


@pytest.mark.parametrize("factory", FACTORIES)
def test_damage_is_found_before_anything_is_mapped(vectors: np.ndarray, factory: str, tmp_path: Path) -> None:
    save_index(build(vectors[:1000], factory), tmp_path / "bad")
    for file in sorted((tmp_path / "bad").iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
        with pytest.raises(IndexFormatError):
            load_index(tmp_path / "bad", fingerprint=FINGERPRINT, memory_map=True)
        file.write_bytes(content)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("factory", FACTORIES)
def test_every_selectivity_is_answered_in_full(
    vectors: np.ndarray, factory: str, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the segment removed, and the limit of the exact scan so low that the approximate ranking is cut."""
    monkeypatch.setattr("mmecg_index.block.EXACT_ROWS", 20)
    index = build(vectors, factory)
    if mapped:
        save_index(index, tmp_path / "one")
        index = load_index(tmp_path / "one", fingerprint=FINGERPRINT, memory_map=True)[0]
    oracle = ExactIndex(DIM, FINGERPRINT)
    oracle.upsert(np.arange(len(vectors)), vectors)
    random = np.random.default_rng(2)
    gone = random.permutation(3000)[:1500]
    index.remove(gone)
    oracle.remove(gone)
    alive = np.setdiff1d(np.arange(3000), gone)
    queries = normalise(random.standard_normal((8, DIM)))
    for share in (0.003, 0.03, 0.3, 0.9, 1.0):
        rows = None if share == 1.0 else np.sort(random.permutation(3000)[: int(share * 3000)])
        passing = alive if rows is None else np.intersect1d(rows, alive)
        got, want = index.search(queries, 10, rows=rows), oracle.search(queries, 10, rows=rows)
        expected = min(10, len(passing))
        assert ((got.rows >= 0).sum(axis=1) == expected).all(), share
        assert np.isin(got.rows[:, :expected], passing).all()
        assert got.plan.rows_passing == len(passing)
        hit = got.scores[:, :expected] >= want.scores[:, expected - 1 : expected] - 1e-5
        assert hit.mean() >= 0.8, (share, hit.mean())


def test_coarse_codes_get_more_candidates(vectors: np.ndarray, tmp_path: Path) -> None:
    fine, coarse = (build(vectors, factory).state.segment.ann for factory in ("IVF4,SQ8", "IVF4,PQ2x4"))
    assert fine is not None
    assert coarse is not None
    assert (fine.candidates, fine.recall >= 0.99) == (2, True)
    assert coarse.candidates > 2
    queries = normalise(np.random.default_rng(3).standard_normal((64, DIM)))
    exact = np.sort(queries @ vectors.T, axis=1)[:, -10:]

    def recall(candidates: int) -> float:
        found = faiss_index.replace(coarse, candidates=candidates).search(queries, 10)[0]
        return float((found >= exact[:, :1] - 1e-5).mean())

    assert recall(coarse.candidates) > recall(2) + 0.1
    index = build(vectors, "IVF4,PQ2x4")
    save_index(index, tmp_path / "one")
    loaded = load_index(tmp_path / "one", fingerprint=FINGERPRINT)[0].state.segment.ann
    assert loaded is not None
    assert (loaded.candidates, loaded.effort, loaded.recall) == (coarse.candidates, coarse.effort, coarse.recall)


def test_files_of_a_segment_that_did_not_change_are_linked(vectors: np.ndarray, tmp_path: Path) -> None:
    index = build(vectors, "HNSW8_SQ8")
    save_index(index, tmp_path / "one", sequence=1)
    index.upsert(np.array([3, 4000]), vectors[:2])
    save_index(index, tmp_path / "two", sequence=2, same_segment=tmp_path / "one")
    for name in ("segment.faiss", "segment_rows.npy", "segment_vectors.npy"):
        assert (tmp_path / "one" / name).stat().st_ino == (tmp_path / "two" / name).stat().st_ino
    queries = vectors[100:105]
    loaded, _ = load_index(tmp_path / "two", fingerprint=FINGERPRINT)
    np.testing.assert_array_equal(loaded.search(queries, 20).rows, index.search(queries, 20).rows)


def test_a_corpus_is_mapped_after_a_compaction_and_remembers_it(
    tmp_path: Path, study, embedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "FLAT_LIMIT", 50)
    monkeypatch.setattr(faiss_index, "_MIN_TAIL", 20)
    path, ids = tmp_path / "corpus", range(80)
    with Corpus.create(path, FINGERPRINT, dim=8, factory="HNSW8_SQ8", memory_map=True) as corpus:
        corpus.upsert([study(i, ecg=None) for i in ids], [embedding(i) for i in ids])
        for cache in corpus._caches.values():
            cache.settle()  # built in the background, saved, and mapped, while the corpus is open
        index = corpus.gauges().indexes["ecg"]
        assert (index.engine, index.memory_mapped, index.unsaved_commits) == ("HNSW8_SQ8", True, 0)
        assert index.recall >= 0.99
        corpus.delete(study(5).study_id)
        found = corpus.search(embedding(7)["ecg"][None], 3)
        assert found.rows[0, 0] == corpus.rows([study(7).study_id])[0]
    with Corpus.open(path, FINGERPRINT) as corpus:
        assert all(corpus.gauges().indexes[name].memory_mapped for name in MODALITIES)
        assert (corpus.stats().studies, corpus.stats().embeddings["text"]) == (79, 79)
        erased = corpus.erase_subject("patient-0004", check=True)
        assert (erased.studies, erased.traces) == (3, ())
        assert all(corpus.gauges().indexes[name].memory_mapped for name in MODALITIES), "what was built anew, too"
        del cache
        gc.collect()  # of the corpus that was closed
        assert not [name for name in mapped_files() if str(path / "index") in name and "deleted" in name]
    with Corpus.open(path, FINGERPRINT, memory_map=False) as corpus:
        assert not corpus.gauges().indexes["ecg"].memory_mapped


def test_saves_of_several_threads_leave_the_newest(filled: Path, study, embedding) -> None:
    with Corpus(filled) as corpus:
        threads = [threading.Thread(target=corpus.compact) for _ in range(4)]
        for number, thread in enumerate(threads):
            corpus.upsert([study(100 + number, ecg=None)], [embedding(100 + number)])
            thread.start()
        for thread in threads:
            thread.join()
        sequences = {path.name.rpartition("-")[2] for path in (filled / "index").iterdir()}
        assert sequences == {f"{corpus.sequence:015d}"}
        assert all(index.unsaved_commits == 0 for index in corpus.gauges().indexes.values())
