"""Figures of experiments: probes chosen on the fold kept for it, macro-AUROC with resamples, differences in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmecg.adaptation.incomplete import label_loss
from mmecg.adaptation.linear import PENALTIES, LinearHead, fit_linear
from mmecg.evaluation.bootstrap import bootstrap_auroc, bootstrap_mean, interval, mean_of_labels
from mmecg.evaluation.label_metrics import Figure
from mmecg.evaluation.metrics import auroc, eligible, macro
from mmecg.evaluation.results import Row
from mmecg.experiments.bench import RANDOM, Bench

CHANCE = 0.5
"""AUROC of the prevalence: a constant score."""


def fit_head(
    features: NDArray[np.float32],
    truth: NDArray[np.float32],
    fit: NDArray[np.int64],
    choose: NDArray[np.int64],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> LinearHead:
    """Fit a linear head on some rows; the penalty is the one with the best macro-AUROC on others.

    Parameters
    ----------
    features : float32, shape (n, features)
    truth : float32, shape (n, labels)
        1, 0, or NaN where unknown, which has no part.
    fit, choose : int64
        Rows.
    penalties : sequence of float
        Strong to weak.
    """
    loss = label_loss("known", truth[fit])
    groups = {"labels": range(truth.shape[1])}
    return fit_linear(features[fit], truth[fit], loss, (features[choose], truth[choose]), groups, penalties=penalties)


def auroc_figure(
    bench: Bench, truth: NDArray[np.float32], scores: NDArray[np.floating], *, min_positives: int = 1
) -> Figure:
    """Return the macro-AUROC on the test rows.

    Parameters
    ----------
    bench : Bench
    truth : float32, shape (n, labels)
        Of all rows; NaN where unknown.
    scores : floating, shape (test rows, labels)
    min_positives : int
        Labels with fewer are left out of the mean.
    """
    rows = truth[bench.split.test]
    known = np.isfinite(rows).all(axis=1)
    positive = rows[known] > 0.5
    kept = eligible(positive, min_positives=min_positives)
    samples = bootstrap_auroc(positive[:, kept], scores[known][:, kept], bench.weights[known])
    value, _ = macro(auroc(positive, scores[known]), positive, min_positives=min_positives)
    return Figure(value, mean_of_labels(samples, np.ones(samples.shape[1], np.bool_)))


def mean_figure(values: NDArray[np.floating], weights: NDArray[np.float32]) -> Figure:
    """Return the mean of a value a record, with the mean in every resample; NaN values are left out.

    Parameters
    ----------
    values : floating, shape (n,)
    weights : float32, shape (n, resamples)
    """
    known = values[np.isfinite(values)]
    value = float(known.mean()) if len(known) else float("nan")
    return Figure(value, bootstrap_mean(np.asarray(values, np.float64), weights))


def difference(one: Figure, other: Figure) -> Figure:
    """Return ``one`` less ``other``, in pairs of resamples."""
    return Figure(one.value - other.value, one.samples - other.samples)


def average(figures: Sequence[Figure]) -> Figure:
    """Return the mean of some figures, resample by resample."""
    return Figure(float(np.mean([one.value for one in figures])), np.mean([one.samples for one in figures], axis=0))


def excludes_zero(figure: Figure) -> bool:
    """Return whether the 95 % interval of a difference lies on one side of zero."""
    bounds = interval(figure.samples)
    return bool(bounds.low > 0 or bounds.high < 0)


def spoken(figure: Figure) -> str:
    """Return a figure with its interval as text: ``0.912 (0.901 – 0.922)``."""
    bounds = interval(figure.samples)
    return f"{figure.value:.3f} ({bounds.low:.3f} – {bounds.high:.3f})"


def verdict(figure: Figure) -> str:
    """Return a difference as text, which says so if it lies within its interval."""
    bounds = interval(figure.samples)
    text = f"{figure.value:+.3f} ({bounds.low:+.3f} – {bounds.high:+.3f})"
    return text if excludes_zero(figure) else f"{text}: no difference beyond the interval"


def rows_beside(
    bench: Bench,
    key: str,
    figures: Mapping[str, Figure],
    n: int,
    *,
    prevalence: float = CHANCE,
    **extra: object,
) -> list[Row]:
    """Return the row of each encoder, ``<encoder>/<key>``, and its gain over the random one, ``…/gain``.

    Parameters
    ----------
    bench : Bench
    key : str
    figures : mapping of str to Figure
        By name of the encoder; names that are no encoder are further baselines.
    n : int
        Recordings, or pairs, that the figure rests on.
    prevalence : float
        What a constant score gives.
    **extra
        More fields of the rows.
    """
    others = {name: one.value for name, one in figures.items() if name not in bench.encoders}
    baselines = {"random_encoder": figures[RANDOM].value, "prevalence": prevalence, **others}
    rows = []
    for name in bench.encoders:
        if name == RANDOM:
            continue
        gain = difference(figures[name], figures[RANDOM])
        nothing = dict.fromkeys(("random_encoder", "prevalence"), 0.0)
        rows.append(figures[name].row(f"{name}/{key}", n, baselines, **extra))
        rows.append(gain.row(f"{name}/{key}/gain", n, nothing, excludes_zero=excludes_zero(gain)))
    return rows


def known_rows(bench: Bench, truth: NDArray[np.float32]) -> int:
    """Return how many test recordings have all these labels known."""
    return int(np.isfinite(truth[bench.split.test]).all(axis=1).sum())
