"""Which values of a label cannot be excluded at a promised level: split conformal sets, conditional on class and case.

The set of a label holds *absent*, *present*, both, or neither. A value is left out if its log-odds would be among the
most unusual ``1 - level`` of calibration studies **of that label, with that value, in like circumstances** (Mondrian
taxonomy [1]_), so that those who have a rare label are not covered less than those who do not. With ``n`` such studies
the limit is the ``ceil((n + 1) level)``-th smallest nonconformity; if that is more than ``n`` there is no limit, and
the value stays in. For studies exchangeable with those of the calibration, the true value is in the set with at least
the promised probability [2]_.

Circumstances are

* what the history says of the label: nothing, last known absent, last known present
  (:func:`mmecg.prediction.history.last_known`). It makes the set personal: a label that came or went since is covered
  as often as one that stayed;
* for *absent*, of which there are many: how many of the study's labels score high for the label (tenths of the
  calibration studies). Without it, the old, the followed-up and the noisily recorded are covered less, since much is
  the matter with them.

Where the promise is approximate: a cell with fewer than 20 calibration studies takes the limit of the label and
category, all tenths together. Where that has fewer than 20, a label that the history knows takes a limit in common with
the other such labels of that category, on the scale of the log-odds, which calibration makes comparable; one that it
does not know takes the label's, all categories together. A label with fewer than 10 of a value takes a limit in common
with the other such labels, on the scale of how many studies of its own without the value score as high.

How to count. A pair of study and label is covered if the set holds the gold value. *Coverage* is the share of covered
pairs; as few pairs are positive it is nearly the coverage of *absent*, so coverage among positive and among negative
pairs belong beside it, and the mean number of values a set holds: a set of both is never wrong. Pairs of one study err
together: a subgroup is as large as its studies, not its pairs, and intervals resample patients.

References
----------
.. [1] Vovk, Lindsay, Nouretdinov, Gammerman, Mondrian confidence machine, technical report (2003).
.. [2] Vovk, Conditional validity of inductive conformal predictors, ACML (2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError, QueryError
from mmecg.prediction.calibration import checked_gold, checked_logits

CATEGORIES = 3
"""What the history says of a label: 0 nothing, 1 last known absent, 2 last known present."""
STRATA = 10
"""Parts of the calibration studies, equal in number, by how many labels score high."""
HIGH, SHARPNESS = 0.85, 4.0
"""A label scores high above this quantile, and how sharply, by standard deviations of the label's log-odds."""
CELL_STUDIES, LABEL_STUDIES = 20, 10
"""Calibration studies that a cell, and a label, needs for a limit of its own."""
PERCENTS = np.arange(50, 100)
"""Levels that limits are kept for; a level between two is served by the higher."""


@dataclass(frozen=True)
class Load:
    """How many of a study's labels score high, each for itself.

    Attributes
    ----------
    high, spread : float32, shape (labels,), log-odds
        What few studies score above, and the standard deviation.
    cuts : float32, shape (strata - 1,)
        Loads at which the next stratum begins.
    """

    high: NDArray[np.float32]
    spread: NDArray[np.float32]
    cuts: NDArray[np.float32]

    def of(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the load, between 0 and 1: float32, shape (n,)."""
        away = np.clip((logits - self.high) / self.spread * SHARPNESS, -30, 30)
        return np.asarray((1 / (1 + np.exp(-away))).mean(axis=1), np.float32)

    def stratum(self, logits: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the stratum, lightest first: intp, shape (n,)."""
        return np.searchsorted(self.cuts, self.of(logits), side="right")


@dataclass(frozen=True)
class LabelConformal:
    """Limits of the log-odds within which each value of a label stays in its set.

    Attributes
    ----------
    load : Load
    absent : float32, shape (levels, categories=3, strata, labels)
        Highest log-odds at which *absent* stays in.
    present : float32, shape (levels, categories=3, labels)
        Lowest log-odds at which *present* stays in.
    """

    load: Load
    absent: NDArray[np.float32]
    present: NDArray[np.float32]

    def sets(self, logits: NDArray[np.floating], category: NDArray[np.int8], level: float) -> NDArray[np.bool_]:
        """Return which values cannot be excluded: bool, shape (n, labels, 2), *absent* first.

        Parameters
        ----------
        logits : floating, shape (n, labels)
            Of all labels, as in the calibration: not shifted to a site's prevalence.
        category : int8, shape (n, labels)
            What the history says, of :func:`mmecg.prediction.history.last_known`: 0 nothing, 1 absent, 2 present.
        level : float
            Promised coverage, 0.5 to 0.99.

        Raises
        ------
        QueryError
            The level lies outside.
        InvalidInputError
            Another number of labels, or a value that is not finite or no category.
        """
        labels = self.present.shape[-1]
        given = checked_logits(logits, labels).astype(np.float32)
        kind = _checked_category(category, given.shape)
        if not 0.5 <= level <= 0.99:  # also refuses NaN
            raise QueryError(f"level is {level}, expected 0.5 to 0.99", field="options.level")
        row = int(np.searchsorted(PERCENTS, 100 * level - 1e-6))
        columns = np.arange(labels)
        highest = self.absent[row, kind, self.load.stratum(given)[:, None], columns]
        return np.stack([given <= highest, given >= self.present[row, kind, columns]], axis=-1)


def fit_conformal(logits: NDArray[np.floating], gold: NDArray[np.bool_], category: NDArray[np.int8]) -> LabelConformal:
    """Find the limits on calibration studies.

    Parameters
    ----------
    logits : floating, shape (n, labels)
        Calibrated, of studies that the heads have not seen, or cross-fitted.
    gold : bool, shape (n, labels)
    category : int8, shape (n, labels)
        As in :meth:`LabelConformal.sets`.

    Raises
    ------
    InvalidInputError
        Log-odds that are not finite, gold that is not boolean, no study, or a value that is no category.
    """
    checked = checked_logits(logits, np.shape(logits)[-1])
    gold, given = checked_gold(gold, checked), checked.astype(np.float32)  # limits are compared in float32
    kind = _checked_category(category, given.shape)
    spread = np.maximum(given.std(axis=0), 1e-3).astype(np.float32)
    load = Load(np.quantile(given, HIGH, axis=0).astype(np.float32), spread, np.empty(0, np.float32))
    cuts = np.quantile(load.of(given), np.arange(1, STRATA) / STRATA).astype(np.float32)
    load = Load(load.high, spread, cuts)
    everyone = np.zeros(len(given), np.intp)
    absent = _limits(given, ~gold, kind, load.stratum(given), STRATA)
    present = -_limits(-given, gold, kind, everyone, 1)[:, :, 0]
    return LabelConformal(load, absent, present)


def _checked_category(category: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.intp]:
    given = np.asarray(category)
    if given.shape != shape or (given.size and not 0 <= given.min() <= given.max() < CATEGORIES):
        raise InvalidInputError(f"category has shape {given.shape}, expected {shape} with values 0, 1 or 2")
    return given.astype(np.intp)


def _limits(
    score: NDArray[np.float32],
    true: NDArray[np.bool_],
    category: NDArray[np.intp],
    stratum: NDArray[np.intp],
    strata: int,
) -> NDArray[np.float32]:
    """Return the highest nonconformity of a value that stays in: float32, shape (levels, categories, strata, labels).

    Parameters
    ----------
    score : float32, shape (n, labels)
        Nonconformity to the value.
    true : bool, shape (n, labels)
        Whether a study's label has the value.
    category : intp, shape (n, labels)
    stratum : intp, shape (n,)
    strata : int
    """
    found = np.empty((len(PERCENTS), CATEGORIES, strata, score.shape[1]), np.float32)
    few = true.sum(axis=0) < LABEL_STUDIES
    of_label = _common_limits(score, true, few)
    for label in np.flatnonzero(~few).tolist():
        of_label[:, label] = _quantiles(score[true[:, label], label])
    for kind in range(CATEGORIES):
        alike = true & (category == kind)
        enough = alike.sum(axis=0) >= CELL_STUDIES
        common = score[:, ~enough][alike[:, ~enough]]
        borrowed = kind > 0 and len(common) >= CELL_STUDIES
        for label in range(len(few)):
            inside, part = score[alike[:, label], label], stratum[alike[:, label]]
            shared = _quantiles(common) if borrowed else of_label[:, label]
            wider = _quantiles(inside) if enough[label] else shared
            for one in range(strata):
                cell = inside[part == one]
                found[:, kind, one, label] = _quantiles(cell) if len(cell) >= CELL_STUDIES else wider
    return found


def _quantiles(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the ``ceil((n + 1) level)``-th smallest score of every level, infinite where there is none."""
    place = -(-(len(scores) + 1) * PERCENTS // 100) - 1  # in whole numbers, exactly
    return np.append(np.sort(scores), np.inf)[np.minimum(place, len(scores))]


def _common_limits(score: NDArray[np.float32], true: NDArray[np.bool_], few: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return limits of the labels that have few studies with a value: float32, shape (levels, labels).

    The nonconformity of a study becomes its rank among the studies of its label without the value; the quantiles of the
    ranks of all these labels then become each label's nonconformity at that rank. Other labels: infinite.
    """
    limits = np.full((len(PERCENTS), len(few)), np.inf, np.float32)
    others = {label: np.sort(score[~true[:, label], label]) for label in np.flatnonzero(few).tolist()}
    ranks = [
        np.searchsorted(without, score[true[:, label], label]) / (len(without) + 1) for label, without in others.items()
    ]
    rank = _quantiles(np.concatenate(ranks)) if ranks else np.empty(0)
    for label, without in others.items():
        place = np.ceil(np.minimum(rank, 1) * (len(without) + 1) - 1e-9).astype(np.intp)
        limits[:, label] = np.append(without, np.inf)[np.minimum(place, len(without))]
    return limits
