"""What the robustness runs share: studies made of two numbers, an encoder that needs no model, a whole server.

Everything of the server and the corpus is real. Only the encoder is small: vectors drawn from a hash of the content.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from mmecg_index.administration import CorpusAdministration
from mmecg_index.calls import CallTrail
from mmecg_index.codec import content_hash, encode_study
from mmecg_index.corpus import Corpus
from mmecg_server.config import ServerConfig
from mmecg_server.server import Server

from mmecg.ecg import Ecg
from mmecg.embedding import EMBEDDING_DIM, normalise
from mmecg.report import Report
from mmecg.retriever import Retriever
from mmecg.study import ClinicalNote, Study
from mmecg.vitals import Vitals

FINGERPRINT = "f" * 64
STUDIES_PER_SUBJECT = 3


class HashEncoder:
    """A vector for every content: deterministic, the same alone and in a batch."""

    fingerprint = FINGERPRINT
    ecg_encoder = "small"

    def encode_ecg(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        """Return unit vectors, float32, shape (ecgs, 256)."""
        return self._draw([ecg.signal.tobytes() for ecg in ecgs])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32, shape (texts, 256)."""
        return self._draw([text.encode() for text in texts])

    def encode_vitals(self, vitals: Sequence[Vitals]) -> np.ndarray:
        """Return unit vectors, float32, shape (vitals, 256)."""
        return self._draw([item.to_array().tobytes() for item in vitals])

    def ecg_features(self, ecgs: Sequence[Ecg]) -> np.ndarray:
        """Return what a predictor would read."""
        return self.encode_ecg(ecgs)

    @staticmethod
    def _draw(contents: Sequence[bytes]) -> np.ndarray:
        drawn = [np.random.default_rng(zlib.crc32(one)).standard_normal(EMBEDDING_DIM) for one in contents]
        return np.stack([normalise(vector) for vector in drawn]).astype(np.float32)


def subject_of(number: int) -> int:
    """Return whose study it is."""
    return number // STUDIES_PER_SUBJECT


CANARY_KG = 73.58217
"""Weight of everybody; no output may show it."""


def canary(subject: int) -> str:
    """Return a word that stands in every study of a subject and nowhere else."""
    return f"kanari{subject:07d}vogel"


def make_study(number: int, version: int = 0) -> Study:
    """Return the study of a number; report, notes and vitals differ between its versions."""
    random = np.random.default_rng(number)
    subject = subject_of(number)
    acquired_at = datetime(2020, 1, 1) + timedelta(hours=number)
    ecg = None
    if number % 3 != 2:
        counts = np.cumsum(random.integers(-9, 10, (12, 200)), axis=1)
        ecg = Ecg.from_array(counts / 1000, sampling_rate_hz=100)
    return Study(
        study_id=f"study-{number}",
        subject_id=f"{canary(subject)}-{subject}",
        acquired_at=acquired_at,
        ecg=ecg,
        report=Report.from_text(f"Sinus rhythm, case {number} of {canary(subject)}, read {version} times."),
        notes=(ClinicalNote(f"chest pain, {canary(subject)}, {version}", "triage", acquired_at - timedelta(hours=1)),),
        vitals=Vitals(
            age_years=20 + number % 60,
            sex="female" if number % 2 else "male",
            weight_kg=CANARY_KG,
            heart_rate_bpm=40 + version,
        ),
        labels={"NORM" if number % 4 == 0 else "MI": 100.0},
        site=f"site-{number % 2}",
        device="device-b",
        attributes={"fold": str(number % 10), "word": canary(subject)},
    )


CHANGED_BY_VERSION = ("report", "notes", "vitals")


def content_of(study: Study) -> bytes:
    """Return a hash over everything that a study says."""
    return content_hash(study, b"compare") + study.study_id.encode()


@contextmanager
def serving(config: ServerConfig, corpus: Corpus, *, backups: Path | None = None) -> Iterator[Server]:
    """Serve a corpus with everything but predictions."""
    with Server(config) as server:
        administration = CorpusAdministration(corpus, backup_dir=backups)
        server.serve(Retriever(HashEncoder(), corpus), None, None, CallTrail(corpus), administration)
        yield server


def index_faults(corpus: Corpus) -> list[str]:
    """Return where indexes and tables in memory are not what the database says; empty if they are."""
    faults = []
    with corpus._database.reading() as connection:
        stored = {
            (modality, row): np.frombuffer(vector, "<f4")
            for row, modality, vector in connection.execute("SELECT row, modality, vector FROM embeddings")
        }
        studies = dict(connection.execute("SELECT row, study_id FROM studies").fetchall())
    table = corpus.metadata()
    if dict(zip(table["row"], table["study_id"], strict=True)) != studies or corpus.count() != len(studies):
        faults.append("the metadata table is not the store's")
    for modality, cache in corpus._caches.items():
        held = {}
        for block in cache.index.state.blocks:
            rows, places = block.living
            held |= dict(zip(rows.tolist(), block.matrix[places], strict=True))
        wanted = {row: vector for (name, row), vector in stored.items() if name == modality}
        if held.keys() != wanted.keys() or any(not np.array_equal(held[row], wanted[row]) for row in wanted):
            faults.append(f"the {modality} index does not hold the store's vectors")
        elif wanted:
            rows = np.array(list(wanted), np.int64)
            found = corpus.search(np.stack(list(wanted.values())), 1, target=modality)
            best = found.rows[:, 0]
            # Two contents may have one vector, or almost: the other one is then as near, but for rounding.
            own = np.array([vector @ vector for vector in wanted.values()])
            missed = int(np.sum((best != rows) & (found.scores[:, 0] < own - 1e-5)))
            if missed:
                faults.append(f"{missed} {modality} embeddings are not their own nearest hit")
    return faults


def warm_up() -> None:
    """Import what is imported at the first use, so that every process that is forked from this one has it."""
    import scipy.signal  # noqa: F401

    encode_study(make_study(0))
    content_of(make_study(0))
