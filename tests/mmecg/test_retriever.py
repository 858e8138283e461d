from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.ecg import Ecg
from mmecg.embedding import EMBEDDING_DIM, fuse, normalise
from mmecg.errors import FingerprintMismatchError, QueryError, ReportError, StudyNotFoundError
from mmecg.report import Report
from mmecg.retriever import Query, Retriever, study_text
from mmecg.search import Filter
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals

FINGERPRINT = "c" * 64


def direction(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(EMBEDDING_DIM)


class HashingEncoder:
    """A real, deterministic encoder: words and vitals are hashed, signals projected at random."""

    fingerprint = FINGERPRINT

    def __init__(self) -> None:
        self.projection = np.random.default_rng(0).standard_normal((12 * 100, EMBEDDING_DIM))
        self.texts: list[str] = []

    def ecg_features(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        return np.stack([ecg.signal[:, :100].reshape(-1) for ecg in ecgs])

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        return normalise(self.ecg_features(ecgs) @ self.projection)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        if not all(texts):
            raise ReportError("text is empty")
        self.texts += texts
        return normalise(np.stack([sum(direction(word) for word in set(text.split())) for text in texts]))

    def encode_vitals(self, vitals: Sequence[Vitals]) -> np.ndarray:
        return normalise(np.stack([direction(repr(item)) for item in vitals]))


WORDS = ["sinus rhythm", "atrial fibrillation", "left bundle branch block", "sinus bradycardia"]


def study(number: int) -> Study:
    # Signals drift with the number, so that neighbours in number are neighbours in embedding.
    base, other = (np.random.default_rng(seed).standard_normal((12, 100)) for seed in (1, 2))
    angle = number / 60
    return Study(
        study_id=f"s{number}",
        subject_id=f"p{number // 2}",
        acquired_at=datetime(2020, 1, 1) + timedelta(days=number),
        ecg=Ecg.from_array(np.cos(angle) * base + np.sin(angle) * other, sampling_rate_hz=100),
        report=Report.from_text(WORDS[number % 4]),
        vitals=Vitals(age_years=30 + number % 7) if number % 5 else Vitals(),
        labels={WORDS[number % 4]: 100.0},
    )


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    with Corpus.create(tmp_path_factory.mktemp("retriever") / "corpus", FINGERPRINT) as corpus:
        retriever = Retriever(HashingEncoder(), corpus)
        assert retriever.ingest(study(number) for number in range(100)) == 2
        yield retriever


def ids(result: object) -> list[str]:
    return [hit.study_id for hit in result.hits]


def test_ingest_stores_the_embeddings_that_there_can_be(retriever: Retriever) -> None:
    assert retriever.corpus.stats().embeddings == {"ecg": 100, "text": 100, "vitals": 80}


def test_an_ecg_finds_itself_and_its_neighbours(retriever: Retriever) -> None:
    (found,) = retriever.search([Query(ecg=study(50).ecg)], 3)
    assert ids(found)[0] == "s50"
    assert set(ids(found)) == {"s49", "s50", "s51"}
    assert found.hits[0].score == pytest.approx(1, abs=1e-5)
    assert found.hits[0].study is not None
    assert found.hits[0].study.report == study(50).report
    assert found.hits[0].study.ecg is None
    assert (found.plan.exact, found.plan.rows_passing, found.plan.rows_total) == (True, 100, 100)


def test_signals_and_studies_come_on_request(retriever: Retriever) -> None:
    (found,) = retriever.search([Query(ecg=study(50).ecg)], 1, with_signal=True)
    hit_study, original = found.hits[0].study, study(50)
    assert hit_study is not None
    assert hit_study.ecg is not None
    assert original.ecg is not None
    np.testing.assert_array_equal(hit_study.ecg.signal, original.ecg.signal)
    assert retriever.search([Query(ecg=study(50).ecg)], 1, with_studies=False)[0].hits[0].study is None


def test_modality_scores_are_cosines_with_what_the_study_has(retriever: Retriever) -> None:
    query = Query(text="atrial fibrillation", vitals=Vitals(age_years=33))
    (found,) = retriever.search([query], 10, target="text")
    vector = retriever.embed([query])[0]
    assert {hit.study_id for hit in found.hits} <= {f"s{number}" for number in range(1, 100, 4)}
    for hit in found.hits:
        stored = retriever.corpus.embeddings(retriever.corpus.rows([hit.study_id]))[0]
        assert hit.modality_scores == {name: pytest.approx(float(vector @ stored[name]), abs=1e-6) for name in stored}
        assert hit.score == pytest.approx(hit.modality_scores["text"], abs=1e-5)
    assert any("vitals" not in hit.modality_scores for hit in found.hits)


def test_a_study_is_never_its_own_hit_nor_are_its_subjects_by_default(retriever: Retriever) -> None:
    (others,) = retriever.search([Query(study_id="s50")], 99)
    (all_but_itself,) = retriever.search([Query(study_id="s50")], 99, exclude_same_subject=False)
    assert len(others.hits) == 98
    assert not {"s50", "s51"} & set(ids(others))
    assert len(all_but_itself.hits) == 99
    assert "s51" in ids(all_but_itself)[:3]
    (named,) = retriever.search([Query(ecg=study(50).ecg, subject_id="p25")], 100)
    assert not {"s50", "s51"} & set(ids(named))
    assert "s51" in ids(
        retriever.search([Query(ecg=study(50).ecg, subject_id="p25")], 3, exclude_same_subject=False)[0]
    )


def test_a_study_without_the_target_modality_is_used_by_another(retriever: Retriever) -> None:
    (found,) = retriever.search([Query(study_id="s50")], 5, target="vitals")
    ecg = retriever.corpus.embeddings(retriever.corpus.rows(["s50"]))[0]["ecg"]
    np.testing.assert_allclose(retriever.embed([Query(study_id="s50")], target="vitals")[0], ecg, atol=1e-6)
    assert len(found.hits) == 5


def test_a_mix_is_the_weighted_sum(retriever: Retriever) -> None:
    ecg, given = study(9).ecg, direction("given")
    query = Query(
        ecg=ecg, text="sinus", study_id="s3", embedding=given, weights={"text": 2, "study": 0.5, "embedding": 0}
    )
    assert ecg is not None
    encoder = retriever.encoder
    expected = fuse(
        {
            "ecg": encoder.encode_ecg([ecg])[0],
            "text": 2 * encoder.encode_text(["sinus"])[0],
            "study": 0.5 * retriever.corpus.embeddings(retriever.corpus.rows(["s3"]))[0]["ecg"],
        }
    )
    np.testing.assert_allclose(retriever.embed([query])[0], expected, atol=1e-6)


def test_an_embedding_is_a_query_of_any_length(retriever: Retriever) -> None:
    stored = retriever.corpus.embeddings(retriever.corpus.rows(["s8"]))[0]["ecg"]
    (found,) = retriever.search([Query(embedding=3 * stored, fingerprint=FINGERPRINT)], 1)
    assert ids(found) == ["s8"]
    with pytest.raises(FingerprintMismatchError):
        retriever.search([Query(embedding=stored, fingerprint="d" * 64)])
    for bad in (
        stored[:9],
        np.zeros(EMBEDDING_DIM),
        np.full(EMBEDDING_DIM, np.nan),
        stored[None],
        np.array(["a"] * 256),
    ):
        with pytest.raises(QueryError):
            retriever.search([Query(embedding=bad)])


def test_filters_hold_and_fill(retriever: Retriever) -> None:
    where = Filter(labels_any=frozenset({"sinus rhythm"}), age_min_years=33)
    passing = [number for number in range(0, 100, 4) if number % 5 and 30 + number % 7 >= 33 and number not in (40, 41)]
    (found,) = retriever.search([Query(study_id="s40")], 50, where=where)
    assert sorted(ids(found)) == sorted(f"s{number}" for number in passing)
    assert found.plan.rows_passing == len(passing)
    assert found.plan.engine == "exact_rows"


def test_a_batch_answers_as_one_by_one(retriever: Retriever) -> None:
    queries = [
        Query(study_id="s1"),
        Query(text="sinus"),
        Query(study_id="s1"),
        Query(ecg=study(3).ecg, subject_id="p7"),
    ]
    together = retriever.search(queries, 4)
    alone = [retriever.search([query], 4)[0] for query in queries]
    assert [ids(result) for result in together] == [ids(result) for result in alone]
    assert retriever.search([], 4) == []


@pytest.mark.parametrize("target", ["ecg", "text"])  # Texts repeat, so that scores tie across pages.
@pytest.mark.parametrize("page", [1, 7, 33, 50])
def test_pages_continue_one_ranking(retriever: Retriever, target: str, page: int) -> None:
    query, where = Query(study_id="s10"), Filter(acquired_from=datetime(2020, 1, 5))
    (whole,) = retriever.search([query], 200, target=target, where=where)
    assert whole.next_page_token == ""
    token, seen = "", []
    while True:
        (found,) = retriever.search([query], page, target=target, where=where, page_token=token)
        seen += ids(found)
        token = found.next_page_token
        if not token:
            break
        assert len(found.hits) == page
    assert seen == ids(whole)
    assert len(seen) == 94


def test_foreign_page_tokens_are_refused(retriever: Retriever) -> None:
    query = Query(study_id="s10")
    token = retriever.search([query], 5)[0].next_page_token
    for call in (
        lambda: retriever.search([Query(study_id="s11")], 5, page_token=token),
        lambda: retriever.search([query], 5, page_token=token, target="text"),
        lambda: retriever.search([query], 5, page_token=token, where=Filter(sex="male")),
        lambda: retriever.search([query], 5, page_token=token, exclude_same_subject=False),
        lambda: retriever.search([query, query], 5, page_token=token),
        lambda: retriever.search([query], 5, page_token=token[:-4]),
        lambda: retriever.search([query], 5, page_token="é"),
        lambda: retriever.search([query], 5, page_token="junk"),
    ):
        with pytest.raises(QueryError, match="page_token"):
            call()
    assert retriever.search([query], 9, page_token=token)[0].hits


@pytest.mark.parametrize(
    "query",
    [
        Query(),
        Query(weights={"ecg": 1}),
        Query(text="sinus", weights={"sound": 1}),
        Query(text="sinus", weights={"text": -1}),
        Query(text="sinus", weights={"text": 0}),
        Query(text="sinus", weights={"text": float("nan")}),
    ],
)
def test_unusable_queries_are_refused(retriever: Retriever, query: Query) -> None:
    with pytest.raises(QueryError):
        retriever.search([query])


def test_bad_arguments_are_refused(retriever: Retriever) -> None:
    for top_k in (0, -3, 1001):
        with pytest.raises(QueryError, match="top_k"):
            retriever.search([Query(text="sinus")], top_k)
    with pytest.raises(QueryError, match="target"):
        retriever.search([Query(text="sinus")], target="sound")  # type: ignore[arg-type]
    with pytest.raises(StudyNotFoundError):
        retriever.search([Query(study_id="nobody")])


def test_an_encoder_of_another_bundle_is_refused(retriever: Retriever) -> None:
    other = HashingEncoder()
    other.fingerprint = "d" * 64
    with pytest.raises(FingerprintMismatchError):
        Retriever(other, retriever.corpus)


def test_texts_without_letters_and_digits_are_no_text() -> None:
    notes = (ClinicalNote("…", written_at=datetime(2020, 1, 1)), ClinicalNote("74", written_at=datetime(2020, 1, 1)))
    item = Study(
        study_id="s", subject_id="p", acquired_at=datetime(2020, 1, 1), report=Report.from_text("-"), notes=notes
    )
    assert study_text(item) == "74"
    assert study_text(replace(item, notes=())) == ""


def test_later_notes_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    moment = datetime(2020, 1, 1)
    item = Study(
        study_id="s",
        subject_id="p",
        acquired_at=moment,
        report=Report.from_text("sinus"),
        notes=(
            ClinicalNote("chest pain", "triage", moment - timedelta(hours=1)),
            ClinicalNote("discharged with infarction", "discharge", moment + timedelta(days=3)),
            ClinicalNote("undated", "note"),
        ),
    )
    assert study_text(item) == "sinus\nchest pain"
    with Corpus.create(tmp_path / "corpus", FINGERPRINT) as corpus:
        encoder = HashingEncoder()
        retriever = Retriever(encoder, corpus)
        retriever.ingest([item])
        retriever.ingest([item], include_later_notes=True)
        assert encoder.texts == ["sinus\nchest pain", "sinus\nchest pain\ndischarged with infarction\nundated"]
        assert retriever.ingest([]) == corpus.stats().sequence == 2
        assert corpus.get(["s"])[0].notes == item.notes
