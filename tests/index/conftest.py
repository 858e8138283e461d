"""Studies and corpora for tests of what an operator does with a corpus."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.ecg import Ecg
from mmecg.embedding import MODALITIES, normalise
from mmecg.report import Report
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals

DIM = 8
FINGERPRINT = "a" * 64


def make_study(number: int, **changes: object) -> Study:
    """A study with everything in it; every third number another subject; every fifth signal is on no grid."""
    random = np.random.default_rng(number)
    counts = random.integers(-900, 900, (12, 200)) / 1000
    if number % 5 == 4:
        counts = counts + random.normal(0, 0.01, (12, 200))
    acquired = datetime(2020, 1, 1, tzinfo=UTC if number % 2 else None) + timedelta(days=100 - number)
    values: dict = {
        "study_id": f"study-{number:04d}-é",
        "subject_id": f"patient-{number // 3:04d}",
        "acquired_at": acquired,
        "ecg": None if number % 7 == 6 else Ecg.from_array(counts, sampling_rate_hz=100),
        "report": Report.from_text(f"Sinus rhythm, seen by Dr Müller{number:03d}. ST elevation {number} in II, III."),
        "notes": (ClinicalNote(f"chest pain since {number} hours", "triage", acquired - timedelta(hours=1)),),
        "vitals": Vitals(age_years=20 + number % 60, sex="female", heart_rate_bpm=61.5),
        "labels": {"AFIB": 100.0} if number % 2 else {"NORM": 80.0},
        "site": ["north", "south", None][number % 3],
        "device": "cart 7",
        "attributes": {"fold": str(number % 10)},
    }
    return Study(**(values | changes))


def make_embedding(number: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1000 + number)
    return {modality: normalise(random.standard_normal(DIM)) for modality in MODALITIES}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "corpus"
    with Corpus.create(path, FINGERPRINT, dim=DIM) as corpus:
        corpus.upsert([make_study(i) for i in range(30)], [make_embedding(i) for i in range(30)])
    return path


@pytest.fixture
def filled(template: Path, tmp_path: Path) -> Path:
    """Directory of a closed corpus of 30 studies of 10 subjects."""
    return shutil.copytree(template, tmp_path / "corpus")


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 240 studies, whose look-up trees have interior pages."""
    path = tmp_path_factory.mktemp("large") / "corpus"
    with Corpus.create(path, FINGERPRINT, dim=DIM) as corpus:
        corpus.upsert([make_study(i, ecg=None) for i in range(240)], [make_embedding(1)] * 240)
    return path


@pytest.fixture
def content() -> Callable[[Path], dict]:
    """Everything that answers come from: studies bit by bit, embeddings, and the answer to a search."""

    def read(path: Path) -> dict:
        with Corpus(path) as corpus:
            ids = corpus.list_studies(page_size=1000)[0]
            studies = corpus.get(ids)
            query = normalise(np.random.default_rng(0).standard_normal((2, DIM)))
            found = {target: corpus.search(query, 10, target=target) for target in MODALITIES}
            return {
                "studies": {each.study_id: comparable(each) for each in studies},
                "embeddings": [
                    {name: vector.tobytes() for name, vector in each.items()}
                    for each in corpus.embeddings(corpus.rows(ids))
                ],
                "answers": {target: (result.rows.tolist(), result.scores.tolist()) for target, result in found.items()},
            }

    return read


def comparable(study: Study) -> tuple:
    """A study as values that compare bit by bit."""
    ecg = study.ecg
    signal = None if ecg is None else (ecg.signal.tobytes(), ecg.lead_mask.tobytes(), ecg.sampling_rate_hz)
    times = (study.acquired_at and study.acquired_at.isoformat(), [str(note.written_at) for note in study.notes])
    rest = (study.subject_id, study.report, study.notes, study.vitals, dict(study.labels), study.site, study.device)
    return signal, times, rest, dict(study.attributes)


@pytest.fixture
def study() -> Callable[..., Study]:
    return make_study


@pytest.fixture
def embedding() -> Callable[[int], dict[str, np.ndarray]]:
    return make_embedding
