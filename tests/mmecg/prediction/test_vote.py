"""Votes of the corpus: those of the oracle over the coded studies of other subjects."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.embedding import normalise
from mmecg.neighbours import knn_scores
from mmecg.prediction.known import KnownLabels
from mmecg.prediction.vote import CohortVotes
from mmecg.study import Study

DIM, K, COUNT = 16, 10, 120
LABELS = ("NORM", "AFIB", "SR", "superclass/NORM")
VECTORS = normalise(np.random.default_rng(0).standard_normal((COUNT, DIM)))


def study(number: int) -> Study:
    labels = {"AFIB": 50.0} if number % 3 == 0 else {"NORM": 100.0, "SR": 0.0}
    coded = number % 4 != 1
    return Study(study_id=f"s{number}", subject_id=f"p{number // 2}", labels=labels if coded else {"mine": 1.0})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    with Corpus.create(tmp_path_factory.mktemp("vote") / "corpus", "f" * 64, dim=DIM) as made:
        made.upsert([study(i) for i in range(COUNT)], [{"ecg": VECTORS[i]} for i in range(COUNT)])
        yield made


@pytest.fixture(scope="module")
def votes(corpus: Corpus) -> CohortVotes:
    return CohortVotes(corpus, KnownLabels(LABELS), K, minimum_studies=80)


@pytest.mark.parametrize("number", [0, 1, 7])
def test_votes_are_those_of_the_oracle(votes: CohortVotes, number: int) -> None:
    query = normalise(VECTORS[number] + 0.1)
    others = [i for i in range(COUNT) if i % 4 != 1 and i // 2 != number // 2]
    gold = np.array([[i % 3 != 0, i % 3 == 0, i % 3 != 0, i % 3 != 0] for i in others])
    expected = knn_scores(query[None], VECTORS[others], gold, k=K)[0]
    vote = votes.of(query, f"p{number // 2}", f"s{number}")
    assert vote is not None
    np.testing.assert_allclose(vote.shares, expected, atol=1e-5)
    assert len(vote.study_ids) == K
    assert not {f"s{number}", f"s{number ^ 1}"} & set(vote.study_ids)
    assert (np.diff(vote.scores) <= 0).all()
    assert vote.weights.sum() == pytest.approx(1)


def test_the_same_recording_under_another_id_does_not_vote(votes: CohortVotes) -> None:
    vote = votes.of(VECTORS[4], None, None)
    assert vote is not None
    assert "s4" not in vote.study_ids
    assert len(vote.study_ids) == K


def test_too_few_coded_studies_give_no_vote(corpus: Corpus, votes: CohortVotes) -> None:
    strict = CohortVotes(corpus, KnownLabels(LABELS), K, minimum_studies=90)
    assert strict.of(VECTORS[0], None, None) is not None, "90 studies are coded"
    assert strict.of(VECTORS[0], "p0", "s0") is None, "one of them is the subject's"
    assert votes.of(VECTORS[0], "p0", "s0") is not None


def test_a_write_is_seen(tmp_path: Path) -> None:
    with Corpus.create(tmp_path / "corpus", "f" * 64, dim=DIM) as corpus:
        votes = CohortVotes(corpus, KnownLabels(LABELS), 2, minimum_studies=2)
        assert votes.of(VECTORS[9], None, None) is None
        corpus.upsert([study(2), study(3)], [{"ecg": VECTORS[2]}, {"ecg": VECTORS[3]}])
        assert votes.of(VECTORS[9], None, None) is not None
        corpus.delete("s3")
        assert votes.of(VECTORS[9], None, None) is None


def test_only_earlier_studies_vote_if_asked(tmp_path: Path) -> None:
    days = [datetime(2000, 1, 1) + timedelta(days=i) for i in range(40)]
    dated = [replace(study(i), acquired_at=days[i] if i % 8 else None) for i in range(40)]
    with Corpus.create(tmp_path / "corpus", "f" * 64, dim=DIM) as corpus:
        corpus.upsert(dated, [{"ecg": VECTORS[i]} for i in range(40)])
        votes = CohortVotes(corpus, KnownLabels(LABELS), K, minimum_studies=11)
        query = normalise(VECTORS[35] + 0.1)
        allowed = [i for i in range(20) if i % 4 != 1 and i % 8]
        gold = np.array([[i % 3 != 0, i % 3 == 0, i % 3 != 0, i % 3 != 0] for i in allowed])
        vote = votes.of(query, None, None, before=days[20])
        assert vote is not None
        assert {int(study_id[1:]) for study_id in vote.study_ids} <= set(allowed)
        np.testing.assert_allclose(vote.shares, knn_scores(query[None], VECTORS[allowed], gold, k=K)[0], atol=1e-5)
        assert votes.of(query, None, None, before=days[15]) is None, "fewer than 11 are coded, dated and earlier"
