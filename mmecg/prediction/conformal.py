"""Which values of a label cannot be excluded at a promised level: split conformal sets, conditional on class and case.

The set of a label holds *absent*, *present*, both, or none. A value is left out if its log-odds would be among the most
unusual ``1 - level`` of calibration studies **of that label, with that value, in like circumstances** (Mondrian
taxonomy [1]_), so that a label that few have is not covered at the expense of those who have it. For studies
exchangeable with those of the calibration, a value that is true is in the set with at least the promised probability:
with ``n`` such studies its limit is the ``ceil((n + 1) level)``-th smallest nonconformity; there is none, and the value
stays in, if that is more than ``n``.

Circumstances are

* what the history says of the label: nothing, last known absent, last known present (:func:`categories`): the set is
  personal;
* for *absent*, of which there are many, also how uncertain the study is as a whole: a fifth of the calibration studies
  each by the mean over labels of the smaller of probability and its complement. Without it, the old, the paced and the
  followed-up are covered less, since much is the matter with them and their absent labels score higher.

Where a cell has fewer than 20 calibration studies, its limit is that of the next wider group that has as many, and this
is where the promise is approximate: the label in all circumstances; a label with fewer than 10 of that value takes a
limit shared with the other such labels, on the scale of how many studies of the label without that value score as
high.

How coverage is counted. A pair of study and label is covered if the set holds the gold value. *Coverage* is the share of
covered pairs; as few are positive, it is nearly that of *absent*, so coverage among true positives and among true
negatives belong beside it. A set that holds both is always right: its size belongs there, too.

References
----------
.. [1] Vovk, Lindsay, Nouretdinov, Gammerman, Mondrian confidence machine, technical report (2003); Vovk, Conditional
   validity of inductive conformal predictors, ACML (2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError, QueryError
from mmecg.prediction.calibration import checked_gold, checked_logits

CATEGORIES = ("unknown", "absent", "present")
"""What the history says of a label."""
STRATA = 5
"""Parts of the calibration studies by how uncertain they are."""
CELL_STUDIES, LABEL_STUDIES = 20, 10
"""Calibration studies that a cell, and a label, needs for a limit of its own."""
LOWEST_LEVEL, HIGHEST_LEVEL = 50, 99
"""Percent; limits are kept for every percent between, and a level between two is served by the higher."""


@dataclass(frozen=True)
class LabelConformal:
    """Limits of the log-odds within which each value of a label stays in its set.

    Attributes
    ----------
    uncertainty : float64, shape (strata - 1,)
        Expected errors per label at which a study belongs to the next stratum.
    absent : float32, shape (levels, 3, strata, labels)
        Highest log-odds at which *absent* stays in, by level, category and stratum.
    present : float32, shape (levels, 3, labels)
        Lowest log-odds at which *present* stays in.
    """

    uncertainty: NDArray[np.float64]
    absent: NDArray[np.float32]
    present: NDArray[np.float32]

    def sets(self, logits: NDArray[np.floating], category: NDArray[np.int8], level: float) -> NDArray[np.bool_]:
        """Return which values cannot be excluded: bool, shape (n, labels, 2), *absent* first.

        Parameters
        ----------
        logits : floating, shape (n, labels)
            Calibrated, of all labels, and not shifted to a site's prevalence.
        category : int8, shape (n, labels)
            Of :func:`categories`.
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
        category = _checked_category(category, given.shape)
        row = int(np.ceil(np.round(100 * level, 6))) - LOWEST_LEVEL if np.isfinite(level) else -1
        if not 0 <= row <= HIGHEST_LEVEL - LOWEST_LEVEL:
            raise QueryError(f"level is {level}, expected 0.5 to 0.99", field="options.level")
        stratum = np.searchsorted(self.uncertainty, expected_errors(given), side="right")[:, None]
        columns = np.arange(labels)
        absent = given <= self.absent[row][category, stratum, columns]
        return np.stack([absent, given >= self.present[row][category, columns]], axis=-1)


def categories(known: NDArray[np.floating]) -> NDArray[np.int8]:
    """Return what the history says of each label: 0 nothing, 1 last known absent, 2 last known present.

    Parameters
    ----------
    known : floating, shape (..., priors, labels)
        Values of the earlier studies between 0 and 1, **latest first**, NaN where unknown (and for padding); there may
        be no prior.

    Returns
    -------
    int8, shape (..., labels)
    """
    seen = ~np.isnan(known)
    if not known.shape[-2]:
        return np.zeros((*known.shape[:-2], known.shape[-1]), np.int8)
    latest = np.argmax(seen, axis=-2, keepdims=True)
    value = np.take_along_axis(known, latest, axis=-2)[..., 0, :]
    return np.where(seen.any(axis=-2), np.where(value >= 0.5, 2, 1), 0).astype(np.int8)


def expected_errors(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean over labels of the smaller of probability and its complement: float64, shape (n,).

    Parameters
    ----------
    logits : floating, shape (n, labels)
        Calibrated.
    """
    return np.asarray(np.exp(-np.logaddexp(0, np.abs(logits))).mean(axis=1), np.float64)


def fit_conformal(
    logits: NDArray[np.floating], gold: NDArray[np.bool_], category: NDArray[np.int8]
) -> LabelConformal:
    """Find the limits on calibration studies.

    Parameters
    ----------
    logits : floating, shape (n, labels)
        Calibrated, of studies that the heads have not seen, or cross-fitted.
    gold : bool, shape (n, labels)
    category : int8, shape (n, labels)
        Of :func:`categories`.

    Raises
    ------
    InvalidInputError
        Log-odds that are not finite, gold that is not boolean, no study, or a value that is no category.
    """
    given = checked_logits(logits, np.shape(logits)[-1]).astype(np.float32)  # as they are compared
    gold = checked_gold(gold, given)
    category = _checked_category(category, given.shape)
    errors = expected_errors(given)
    uncertainty = np.quantile(errors, np.arange(1, STRATA) / STRATA)
    stratum = np.searchsorted(uncertainty, errors, side="right")
    absent = _limits(given, ~gold, category, stratum, STRATA)
    present = -_limits(-given, gold, category, np.zeros_like(stratum), 1)[:, :, 0]
    return LabelConformal(uncertainty, absent, present)


def _checked_category(category: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.intp]:
    if np.shape(category) != shape or not np.isin(category, range(len(CATEGORIES))).all():
        raise InvalidInputError(f"category has shape {np.shape(category)}, expected {shape} with values 0, 1 or 2")
    return np.asarray(category, np.intp)


def _limits(
    score: NDArray[np.float32],
    true: NDArray[np.bool_],
    category: NDArray[np.intp],
    stratum: NDArray[np.intp],
    strata: int,
) -> NDArray[np.float32]:
    """Return the highest nonconformity that stays in: float32, shape (levels, 3, strata, labels)."""
    levels = np.arange(LOWEST_LEVEL, HIGHEST_LEVEL + 1)
    found = np.empty((len(levels), len(CATEGORIES), strata, score.shape[1]), np.float32)
    few = true.sum(axis=0) < LABEL_STUDIES
    shared = _shared_limits(score, true, few)
    for label in range(score.shape[1]):
        scores, cell = score[true[:, label], label], np.stack([category[:, label], stratum], axis=1)[true[:, label]]
        pooled = shared[:, label] if few[label] else _quantiles(scores)
        for kind in range(len(CATEGORIES)):
            alike = cell[:, 0] == kind
            wider = _quantiles(scores[alike]) if alike.sum() >= CELL_STUDIES else pooled
            for part in range(strata):
                inside = scores[alike & (cell[:, 1] == part)]
                found[:, kind, part, label] = _quantiles(inside) if len(inside) >= CELL_STUDIES else wider
    return found


def _quantiles(scores: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the ``ceil((n + 1) level)``-th smallest score of every level, infinite where there is none."""
    levels = np.arange(LOWEST_LEVEL, HIGHEST_LEVEL + 1)
    place = -(-(len(scores) + 1) * levels // 100) - 1  # in whole numbers: 0.9 * 10 is 9
    return np.append(np.sort(scores), np.inf)[np.minimum(place, len(scores))].astype(np.float32)


def _shared_limits(
    score: NDArray[np.float32], true: NDArray[np.bool_], few: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return limits of labels with few studies of a value, all together: float32, shape (levels, labels).

    The nonconformity of a study is first replaced by its rank among the studies of its label with the other value.
    """
    others = [np.sort(score[~true[:, label], label]) for label in range(score.shape[1])]
    ranks = [
        (np.searchsorted(others[label], score[true[:, label], label], side="left") + 1) / (len(others[label]) + 1)
        for label in np.flatnonzero(few)
    ]
    limits = _quantiles(np.concatenate(ranks)) if ranks else np.full(HIGHEST_LEVEL - LOWEST_LEVEL + 1, np.inf)
    shared = np.full((len(limits), score.shape[1]), np.inf, np.float32)
    for label in np.flatnonzero(few):
        place = np.minimum(np.nan_to_num(limits, posinf=2.0) * (len(others[label]) + 1) - 1, len(others[label]))
        shared[:, label] = np.append(others[label], np.inf)[np.ceil(place).astype(np.intp)]
    return shared
