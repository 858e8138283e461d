"""Everything that is learnt beside the encoder: one file in the bundle, for the embedding space of that bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.bundle import CARD, Bundle, default_card, write_manifest
from mmecg.errors import BundleError
from mmecg.prediction.calibration import VennAbers
from mmecg.prediction.card import prediction_card, with_section
from mmecg.prediction.cohort import CohortHead
from mmecg.prediction.conformal import LabelConformal
from mmecg.prediction.history import HistoryHead
from mmecg.prediction.novelty import NoveltyDetector
from mmecg.prediction.single import EmbeddingHead, SingleHead
from mmecg.prediction.store import load_heads, save_heads
from mmecg.prediction.superclass import SuperclassHead
from mmecg.prediction.vitals_head import VitalsHead

HEADS_FILE = "prediction/heads.safetensors"
"""Inside the bundle; the bundle's fingerprint does not depend on it, as the embedding space does not."""


@dataclass(frozen=True)
class AgeHead:
    """Age from the tower's features: a linear regression, with a conformal interval.

    Attributes
    ----------
    weight : float32, shape (features,), years
    bias : float
    residuals : float32, shape (1001,), years
        Quantiles 0, 0.001, …, 1 of the absolute error on patients that neither the tower nor the regression had seen.
    """

    weight: NDArray[np.float32]
    bias: float
    residuals: NDArray[np.float32]

    def predict(
        self, features: NDArray[np.float32], level: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return age and the ends of its interval, each float64, shape (n,), years; an interval starts at 0 at least.

        Parameters
        ----------
        features : float32, shape (n, features)
        level : float
            Share of intervals that are promised to hold the age, 0 to 1.
        """
        value = np.asarray(features @ self.weight + self.bias, np.float64)
        reach = float(self.residuals[int(np.ceil(level * (len(self.residuals) - 1)))])
        return value, np.maximum(value - reach, 0.0), value + reach


@dataclass(frozen=True)
class RouteConfidence:
    """How far the log-odds of one route can be believed.

    Attributes
    ----------
    venn_abers : VennAbers
    conformal : LabelConformal
    uncertainty : float32, shape (1001,)
        Quantiles of the expected errors (mean over labels of the smaller of probability and complement) of the studies
        that this was fitted on.
    """

    venn_abers: VennAbers
    conformal: LabelConformal
    uncertainty: NDArray[np.float32]


@dataclass(frozen=True)
class Confidence:
    """Of the route without the cohort's vote, and of that with it; both with whatever history there is."""

    alone: RouteConfidence
    cohort: RouteConfidence


@dataclass(frozen=True)
class PredictionHeads:
    """The heads of a bundle.

    Attributes
    ----------
    fingerprint : str
        Of the bundle.
    labels : tuple of str
    prevalence : float32, shape (labels,)
        In the training records.
    single : SingleHead
    embedding : EmbeddingHead
    vitals : VitalsHead
    cohort : CohortHead
    history : HistoryHead
    confidence : Confidence
    novelty : NoveltyDetector
    age : AgeHead
    superclass : SuperclassHead
    """

    fingerprint: str
    labels: tuple[str, ...]
    prevalence: NDArray[np.float32]
    single: SingleHead
    embedding: EmbeddingHead
    vitals: VitalsHead
    cohort: CohortHead
    history: HistoryHead
    confidence: Confidence
    novelty: NoveltyDetector
    age: AgeHead
    superclass: SuperclassHead

    def join_superclasses(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Join the superclasses with their statements, after everything else: float64, shape (n, labels)."""
        return self.superclass.apply(logits)

    def raise_superclasses(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raise the superclasses to their likeliest statement, without an ECG: float64, shape (n, labels)."""
        return self.superclass.at_least(logits)


def read_heads(bundle: Bundle) -> PredictionHeads:
    """Read the heads of a bundle.

    Raises
    ------
    BundleError
        It has none, or they were fitted for another one.
    """
    path = bundle.path / HEADS_FILE
    if not path.is_file():
        raise BundleError(f"bundle {bundle.path} has no prediction heads; run scripts/train-heads with --bundle")
    heads = load_heads(path, PredictionHeads)
    if heads.fingerprint != bundle.fingerprint:
        raise BundleError(
            f"prediction heads {path} are for bundle {heads.fingerprint[:12]}…, expected {bundle.fingerprint[:12]}…; "
            "run scripts/train-heads with --bundle"
        )
    return heads


def write_heads(bundle: Bundle, heads: PredictionHeads) -> None:
    """Put heads into a bundle, and bring its model card and its manifest up to date.

    Raises
    ------
    BundleError
        They were fitted for another bundle.
    """
    if heads.fingerprint != bundle.fingerprint:
        raise BundleError(
            f"prediction heads are for bundle {heads.fingerprint[:12]}…, expected {bundle.fingerprint[:12]}…; "
            "fit them for this one"
        )
    save_heads(bundle.path / HEADS_FILE, heads)
    card = bundle.path / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else default_card(bundle.config)
    card.write_text(with_section(text, prediction_card(heads, bundle.config)), encoding="utf-8")
    write_manifest(bundle.path)
