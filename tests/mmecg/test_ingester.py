"""Into the corpus: what is there is not embedded again, vectors can be given, and an update loses nothing of others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.ecg import Ecg
from mmecg.embedding import EMBEDDING_DIM, normalise
from mmecg.errors import AlreadyExistsError, ConflictError, NotReadyError, QueryError, StudyNotFoundError
from mmecg.report import Report
from mmecg.retriever import Query, Retriever
from mmecg.search import WriteRequest
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals

FINGERPRINT = "c" * 64


class CountingEncoder:
    """A real, deterministic encoder that counts what it embeds."""

    fingerprint = FINGERPRINT

    def __init__(self) -> None:
        self.ecgs = self.texts = 0
        self.projection = np.random.default_rng(0).standard_normal((1200, EMBEDDING_DIM))

    def ecg_features(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        return np.stack([ecg.signal.reshape(-1) for ecg in ecgs])

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        self.ecgs += len(ecgs)
        return normalise(self.ecg_features(ecgs) @ self.projection)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        return np.stack([self._drawn(text) for text in texts])

    def encode_vitals(self, vitals: Sequence[Vitals]) -> np.ndarray:
        return np.stack([self._drawn(repr(item)) for item in vitals])

    def _drawn(self, text: str) -> np.ndarray:
        return normalise(np.random.default_rng(list(text.encode())).standard_normal(EMBEDDING_DIM))


def study(number: int) -> Study:
    moment = datetime(2020, 1, 1) + timedelta(days=number)
    return Study(
        study_id=f"s{number}",
        subject_id=f"p{number}",
        acquired_at=moment,
        ecg=Ecg.from_array(np.random.default_rng(number).standard_normal((12, 100)), sampling_rate_hz=100),
        notes=(ClinicalNote("troponin rose", "discharge", moment + timedelta(days=1)),),
    )


@pytest.fixture
def retriever(tmp_path: Path) -> Iterator[Retriever]:
    with Corpus.create(tmp_path / "corpus", FINGERPRINT) as corpus:
        yield Retriever(CountingEncoder(), corpus)


def with_report(text: str) -> object:
    return lambda one: replace(one, report=Report.from_text(text))


def test_what_is_there_is_not_embedded_again(retriever: Retriever) -> None:
    studies = [study(number) for number in range(5)]
    assert retriever.ingest(studies) == 1
    assert retriever.ingest(studies) == 1
    assert retriever.encoder.ecgs == 5
    studies[3] = replace(studies[3], site="west")
    assert retriever.store(studies) == [1, 1, 1, 2, 1]
    assert retriever.encoder.ecgs == 6
    assert retriever.ingest([]) == 2


def test_embeddings_of_other_notes_are_others(retriever: Retriever) -> None:
    """A note that came later may give the answer away: it must not stay in an embedding."""
    (one,) = retriever.store([study(0)])
    (two,) = retriever.store([study(0)], include_later_notes=True)
    assert retriever.corpus.stats().embeddings["text"] == 1
    (three,) = retriever.store([study(0)])
    assert (one, two, three) == (1, 2, 3)
    assert retriever.corpus.stats().embeddings["text"] == 0


def test_given_embeddings_are_taken(retriever: Retriever) -> None:
    vector = normalise(np.random.default_rng(9).standard_normal(EMBEDDING_DIM))
    assert retriever.store([study(0), study(1)], given=[{"ecg": vector}, {}]) == [1, 1]
    assert retriever.encoder.ecgs == 1  # the other one's
    (result,) = retriever.search([Query(embedding=vector)], 1)
    assert (result.hits[0].study_id, result.hits[0].score) == ("s0", pytest.approx(1))
    assert retriever.store([study(0)], given=[{"ecg": vector}]) == [1]
    assert retriever.encoder.ecgs == 1
    assert retriever.store([study(0)]) == [2]  # now the encoder's own
    assert retriever.encoder.ecgs == 2
    with pytest.raises(QueryError, match="unit length"):
        retriever.store([study(0)], given=[{"ecg": 2 * vector}])


def test_a_report_that_comes_later_is_added(retriever: Retriever) -> None:
    retriever.ingest([study(0)])
    ((_, tag),) = retriever.corpus.tagged(["s0"])
    assert retriever.update("s0", with_report("Sinus rhythm"), etag=tag) == 2
    stored = retriever.corpus.get(["s0"])[0]
    assert stored.report is not None
    assert stored.ecg is not None
    assert retriever.corpus.stats().embeddings == {"ecg": 1, "text": 1, "vitals": 0}
    with pytest.raises(ConflictError):
        retriever.update("s0", with_report("Flutter"), etag=tag)
    assert retriever.update("s0", with_report("Sinus rhythm")) == 2  # nothing to do
    with pytest.raises(StudyNotFoundError):
        retriever.update("s1", with_report("Flutter"))
    with pytest.raises(QueryError, match="another id") as caught:
        retriever.update("s0", lambda one: replace(one, study_id="s7"))
    assert caught.value.field == "study_id"


def test_an_update_that_is_sent_again_is_done_once(retriever: Retriever) -> None:
    retriever.ingest([study(0)])
    ((_, tag),) = retriever.corpus.tagged(["s0"])
    request = WriteRequest(request_id="r", content=b"report: sinus rhythm")
    assert retriever.update("s0", with_report("Sinus rhythm"), etag=tag, request=request) == 2
    assert retriever.update("s0", with_report("Flutter")) == 3
    assert retriever.update("s0", with_report("Sinus rhythm"), etag=tag, request=request) == 2
    assert retriever.corpus.get(["s0"])[0].report == Report.from_text("Flutter")
    with pytest.raises(AlreadyExistsError):
        retriever.update("s0", with_report("x"), request=replace(request, content=b"report: x"))


def test_an_update_that_is_sent_again_after_the_study_was_deleted_is_answered(retriever: Retriever) -> None:
    retriever.ingest([study(0)])
    request = WriteRequest(request_id="r", content=b"report: sinus rhythm")
    assert retriever.update("s0", with_report("Sinus rhythm"), request=request) == 2
    retriever.corpus.delete("s0")
    assert retriever.update("s0", with_report("Sinus rhythm"), request=request) == 2
    assert retriever.corpus.stats().studies == 0
    with pytest.raises(AlreadyExistsError):
        retriever.update("s0", with_report("x"), request=replace(request, content=b"report: x"))
    for never in (None, replace(request, request_id="another")):
        with pytest.raises(StudyNotFoundError):
            retriever.update("s0", with_report("Sinus rhythm"), request=never)


def test_updates_of_many_threads_lose_nothing(retriever: Retriever) -> None:
    retriever.ingest([study(0)])

    def add(name: str) -> None:
        for step in range(4):
            key = f"{name}{step}"
            while True:
                try:
                    retriever.update("s0", lambda one, key=key: replace(one, attributes={**one.attributes, key: "1"}))
                    break
                except Exception as error:
                    if type(error).__name__ != "OverloadedError":
                        raise

    threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert retriever.corpus.get(["s0"])[0].attributes.keys() == {
        f"{name}{step}" for name in "abcd" for step in range(4)
    }


def test_a_search_can_ask_for_a_write(retriever: Retriever) -> None:
    sequence = retriever.ingest([study(0)])
    query = [Query(study_id="s0")]
    assert retriever.search(query, 1, min_sequence=sequence)
    with pytest.raises(NotReadyError, match=f"min_sequence is {sequence + 1}, but the corpus is at {sequence}"):
        retriever.search(query, 1, min_sequence=sequence + 1)
