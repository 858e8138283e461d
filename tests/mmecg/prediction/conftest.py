"""The real bundle, and heads of the real shape whose weights are drawn at random: what they say means nothing."""

import numpy as np
import pytest

from mmecg.bundle import Bundle, load_bundle
from mmecg.datasets.ptb_xl import SUPERCLASSES
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.embedding import EMBEDDING_DIM
from mmecg.labels.weights import load_text_evidence
from mmecg.prediction.calibration import fit_logit_map, fit_venn_abers
from mmecg.prediction.cohort import CohortHead
from mmecg.prediction.conformal import fit_conformal
from mmecg.prediction.heads import AgeHead, Confidence, PredictionHeads, RouteConfidence
from mmecg.prediction.history import CHANNELS, HistoryHead
from mmecg.prediction.novelty import NoveltyDetector
from mmecg.prediction.result import SUPERCLASS_PREFIX
from mmecg.prediction.single import EmbeddingHead, SingleHead
from mmecg.prediction.superclass import SuperclassHead, superclasses_of
from mmecg.prediction.vitals_head import CHANNELS as VITALS
from mmecg.prediction.vitals_head import VitalsHead
from mmecg.prediction.waveform import ALIGNED, summarise

HIDDEN = 8


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return load_bundle(precision="float32")


def random_heads(bundle: Bundle) -> PredictionHeads:
    labels = (*load_text_evidence().labels, *(SUPERCLASS_PREFIX + name for name in SUPERCLASSES))
    count, features = len(labels), bundle.config.model.ecg.features
    random = np.random.default_rng(0)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    logits = random.standard_normal((400, count)) * 2
    gold = random.random((400, count)) < 1 / (1 + np.exp(-logits))
    category = np.zeros(gold.shape, np.int8)
    confidence = RouteConfidence(
        fit_venn_abers(logits, gold),
        fit_conformal(logits, gold, category),
        np.linspace(0.05, 0.35, 1001, dtype=np.float32),
    )
    vitals = 0.2 * np.random.default_rng(1).standard_normal((len(VITALS), count)).astype(np.float32)
    prevalence = np.clip(gold.mean(axis=0), 0.01, 0.9).astype(np.float32)
    prevalence[-len(SUPERCLASSES) :] = 0.9  # no rarer than what they hold
    return PredictionHeads(
        fingerprint=bundle.fingerprint,
        labels=labels,
        prevalence=prevalence,
        single=SingleHead(draw(4, features, count, scale=0.3), draw(4, count, scale=0.1), fit_logit_map(logits, gold)),
        embedding=EmbeddingHead(draw(EMBEDDING_DIM, count), draw(count)),
        vitals=VitalsHead(vitals, np.zeros_like(vitals)),
        cohort=CohortHead(np.full((2, count), 0.5, np.float32), np.zeros(count, np.float32), 10, 20.0),
        history=HistoryHead(
            draw(len(CHANNELS), HIDDEN), draw(HIDDEN), draw(HIDDEN, HIDDEN), draw(HIDDEN), draw(HIDDEN, 2), draw(2),
            np.abs(draw(count)), draw(3, count), draw(count, count, scale=0.05),
        ),
        confidence=Confidence(confidence, confidence),
        novelty=calm_detector(features),
        age=AgeHead(draw(features, scale=0.01), 60.0, np.linspace(0, 40, 1001, dtype=np.float32)),
        superclass=SuperclassHead(
            *superclasses_of(labels), np.full((3, 5), [[0.6], [0.2], [0.2]], np.float32), np.full(5, -0.1, np.float32)
        ),
    )  # fmt: skip


def calm_detector(features: int) -> NoveltyDetector:
    """A detector that finds everything ordinary."""
    summary = len(summarise(synthetic_ecg()))
    nothing = np.zeros(features + ALIGNED + summary, np.float32)
    return NoveltyDetector(
        mean=nothing,
        scale=nothing + 1,
        hidden_weight=np.zeros((len(nothing), 2), np.float32),
        hidden_bias=np.zeros(2, np.float32),
        weight=np.zeros((2, 3), np.float32),
        bias=np.array([9, 0, 0], np.float32),
        classes=("ordinary", "noise/white", "inverted/all"),
        centre=np.zeros(summary, np.float32),
        whitening=np.eye(summary, dtype=np.float32),
        far_at=50.0,
        far_slope=1.0,
    )


@pytest.fixture(scope="session")
def heads(bundle: Bundle) -> PredictionHeads:
    return random_heads(bundle)
