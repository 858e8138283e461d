"""How much of full labels positive-unlabelled training recovers: training labels are masked, test labels are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.evaluation.label_data import LABELS_20, LabelData
from mmecg.evaluation.label_metrics import Figure, everything_f1, f1
from mmecg.evaluation.label_protocols import Given
from mmecg.evaluation.results import Row
from mmecg.labels.positive_unlabelled import Method, fit_labelled, fit_positive_unlabelled, mask_labels

MIN_POSITIVES = 400
"""With 8 % of them labelled, a code needs so many."""

FREQUENCIES: dict[str, NDArray[np.float64]] = {
    "pu/f1_share_of_oracle/0.2": np.full(len(LABELS_20), 0.2),
    "pu/f1_share_of_oracle/0.2/label_dependent": np.geomspace(0.08, 0.32, len(LABELS_20))[::-1],
}
"""Share of each code's training positives that stays labelled, by row."""


@dataclass(frozen=True)
class Simulation:
    """What is left of the figures if training labels are masked.

    Attributes
    ----------
    f1, f1_oracle, f1_naive : Figure
        Macro-F1 at probability 0.5 on the test records: of the model, of the same linear model on all labels, and of
        the same one that takes the unlabelled as negative.
    more : dict of str to float
        ``auroc``, ``auroc_oracle`` (macro), ``brier``, ``brier_oracle``; means over the labels: ``prior_error``, the
        absolute error of the prior, and ``log_frequency_error``, the absolute error of the logarithm of the label
        frequency.
    """

    f1: Figure
    f1_oracle: Figure
    f1_naive: Figure
    more: dict[str, float]

    @property
    def share(self) -> Figure:
        """F1 as a share of the oracle's, in each resample as well."""
        with np.errstate(invalid="ignore", divide="ignore"):
            samples = self.f1.samples / self.f1_oracle.samples
        return Figure(self.f1.value / self.f1_oracle.value, samples)


def simulate_positive_unlabelled(
    train: tuple[NDArray[np.floating], NDArray[np.bool_]],
    test: tuple[NDArray[np.floating], NDArray[np.bool_]],
    weights: NDArray[np.float32],
    subjects: Sequence[str] | NDArray[np.generic],
    frequency: float | Sequence[float],
    *,
    seed: int = 0,
    method: Method = "elkan_noto",
) -> Simulation:
    """Mask the training labels, fit on what is left, and compare with the same linear model on all labels, the oracle.

    Parameters
    ----------
    train, test : floating, shape (n, features), and bool, shape (n, labels)
        Features and labels.
    weights : float32, shape (n, resamples)
        Of the test records.
    subjects : sequence of str, length n
        Of the training records.
    frequency : float or sequence of float, length labels
        Share of the positives that stays.
    seed : int
        Of the masking and of the inner folds.
    method : {"elkan_noto", "nnpu"}
    """
    from sklearn.metrics import roc_auc_score

    (known, labels), (features, gold) = train, test
    mentioned = mask_labels(labels, frequency, np.random.default_rng(seed))
    model = fit_positive_unlabelled(known, mentioned, subjects, method, seed)
    chance = {
        "": model.probabilities(features),
        "_oracle": fit_labelled(known, labels).probabilities(features),
        "_naive": fit_labelled(known, mentioned).probabilities(features),
    }
    both = gold.any(axis=0) & ~gold.all(axis=0)
    more = {
        "prior_error": float(np.abs(model.prior - labels.mean(axis=0)).mean()),
        "log_frequency_error": float(
            np.abs(np.log(model.label_frequency * labels.sum(axis=0) / mentioned.sum(axis=0))).mean()
        ),
    }
    for name in ("", "_oracle"):
        more[f"auroc{name}"] = float(roc_auc_score(gold[:, both], chance[name][:, both], average="macro"))
        more[f"brier{name}"] = float(np.mean((chance[name] - gold) ** 2))
    figures = {f"f1{name}": f1(gold, found >= 0.5, weights)[0] for name, found in chance.items()}
    return Simulation(**figures, more=more)


def positive_unlabelled(train: pl.DataFrame, given: Given) -> list[Row]:
    """Return the rows ``pu/f1_share_of_oracle/*``: what is left of F1 if most positives are not labelled.

    Features are the 100 leading components of TF-IDF of the reports. Of the training positives of each of the 20 codes
    20 % keep their label (``0.2``), or 8 to 32 % depending on the code (``0.2/label_dependent``); frequency and prior
    are estimated. The value is the F1 at probability 0.5 as a share of that of the same model on all labels. The
    interval resamples test patients, model and oracle together; masking and fits stay as they are. Baselines: the
    unlabelled taken as negative, and every label present.

    Parameters
    ----------
    train : polars.DataFrame
        Records of the training folds, none of a test patient.
    given : Given
    """
    from mmecg.datasets.ptb_xl import label_matrix

    labels = label_matrix(train, LABELS_20)
    if not len(labels) or labels.sum(axis=0).min() < MIN_POSITIVES:
        why = f"a code has fewer than {MIN_POSITIVES} positives in the training folds; give a folder that has them"
        return [Row.missing(key, why) for key in FREQUENCIES]
    known, features = _text_components(train, given.data)
    gold = given.data.gold[:, given.data.columns(LABELS_20)]
    rows = []
    for key, frequency in FREQUENCIES.items():
        found = simulate_positive_unlabelled(
            (known, labels), (features, gold), given.weights, train["subject_id"].to_list(), frequency.tolist(),
            seed=given.seed,
        )  # fmt: skip
        oracle = found.f1_oracle.value
        baselines = {"naive_negative": found.f1_naive.value / oracle, "prevalence": everything_f1(gold)[0] / oracle}
        extra = {"f1": found.f1.value, "f1_oracle": oracle, **found.more}
        rows.append(found.share.row(key, len(gold), baselines, **extra))
    return rows


def _text_components(train: pl.DataFrame, data: LabelData) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    reader = TfidfVectorizer(ngram_range=(1, 2), min_df=5, sublinear_tf=True)
    reduce = TruncatedSVD(100, random_state=0)
    known = reduce.fit_transform(reader.fit_transform(train["report_text"].fill_null("").to_list()))
    fresh = reduce.transform(reader.transform(data.table["report_text"].fill_null("").to_list()))
    return known.astype(np.float32), fresh.astype(np.float32)
