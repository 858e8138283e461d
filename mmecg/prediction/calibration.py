"""From the log-odds of a head to log-odds that can be believed, per label, and how far they can be believed.

* :class:`LogitMap` makes log-odds honest. What is fitted depends on how many positives a label has, because a curve
  through few positives says more about them than about the label:

  ============  =====================  =================================================================================
  method        positives              ``z'``
  ============  =====================  =================================================================================
  temperature   < 10                   ``a z + c``: one slope shared by all labels, an offset of the label's own [1]_
  beta          10 to 299              ``-a ln(1 + exp(-z)) + b ln(1 + exp(z)) + c``, that is ``a ln p - b ln(1 - p) +
                                       c`` [2]_; ``a = b`` is Platt's sigmoid [1]_
  isotonic      >= 300                 beta, and on it isotonic regression [3]_ between block centres
  ============  =====================  =================================================================================

  Slopes are drawn to the shared one and offsets to none, by Gaussian priors worth some four positives. Every map rises
  strictly, so that the order of the studies, and with it AUROC, stays.

* :class:`VennAbers` gives two probabilities, ``low`` and ``high``: those that isotonic regression would give if the
  new study were a calibration study without and with the label. One of them is calibrated whatever the distribution,
  if studies are exchangeable [4]_. They lie far apart where the calibration studies say little.

* :func:`shift_prevalence` moves log-odds to a site where a label is more or less common [5]_.

References
----------
.. [1] Platt, Probabilistic outputs for support vector machines, Advances in Large Margin Classifiers (1999).
.. [2] Kull, Silva Filho, Flach, Beta calibration, AISTATS (2017).
.. [3] Zadrozny, Elkan, Transforming classifier scores into accurate multiclass probability estimates, KDD (2002).
.. [4] Vovk, Petej, Venn-Abers predictors, UAI (2014); the algorithm: Vovk, Petej, Fedorova, Large-scale probabilistic
   predictors with and without guarantees of validity, NeurIPS (2015).
.. [5] Saerens, Latinne, Decaestecker, Adjusting the outputs of a classifier to new a priori probabilities, Neural
   Computation 14(1) (2002), equation 2.4 for two classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError

BETA_POSITIVES, ISOTONIC_POSITIVES = 10, 300
"""Positives from which a label has slopes of its own, and isotonic regression on top (as many negatives, too)."""
SLOPE_SPREAD, OFFSET_SPREAD = 0.25, 0.5
"""Standard deviations of the priors, log-odds: slopes of a label around the shared one, offsets around none."""
LEAST_SLOPE = 0.05
ISOTONIC_SHARE = 0.9
"""Of the isotonic curve in the blend with beta: the rest keeps the curve rising where a block is flat."""
BLOCK_PRIOR = 300.0
"""Studies that beta is worth in a block of the isotonic regression, which follows noise in small blocks."""
GRID_LIMIT, GRID_STEP = 12.0, 0.25
NEWTON_STEPS = 50
_TICKS, _CUT, _STRIDE = 32, 100, 10_000  # of Venn-Abers


@dataclass(frozen=True)
class LogitMap:
    """A strictly rising map of log-odds to log-odds for every label.

    Attributes
    ----------
    slope_low, slope_high, offset : float64, shape (labels,)
        ``a``, ``b`` and ``c`` of the beta map.
    correction : float32, shape (grid, labels), log-odds
        What isotonic regression adds to the beta map, at -12, -11.75, …, 12 of it; 0 for other labels.
    method : tuple of str
        ``"temperature"``, ``"beta"`` or ``"isotonic"`` for every label.
    """

    slope_low: NDArray[np.float64]
    slope_high: NDArray[np.float64]
    offset: NDArray[np.float64]
    correction: NDArray[np.float32]
    method: tuple[str, ...]

    def apply(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return calibrated log-odds: float64, shape (n, labels).

        Parameters
        ----------
        logits : floating, shape (n, labels)

        Raises
        ------
        InvalidInputError
            Another number of labels, or a value that is not finite.
        """
        given = checked_logits(logits, len(self.method))
        low, high = _bends(given)
        bent = self.slope_low * low + self.slope_high * high + self.offset
        place = np.clip((bent + GRID_LIMIT) / GRID_STEP, 0, len(self.correction) - 1)
        below = np.minimum(place.astype(np.intp), len(self.correction) - 2)
        labels, part = np.arange(len(self.method)), place - below
        added = (1 - part) * self.correction[below, labels] + part * self.correction[below + 1, labels]
        return np.asarray(bent + added, np.float64)


def checked_logits(logits: NDArray[np.floating], labels: int) -> NDArray[np.float64]:
    """Return log-odds as float64, shape (n, labels), or raise ``InvalidInputError``."""
    given = np.asarray(logits, np.float64)
    if given.ndim != 2 or given.shape[1] != labels:
        raise InvalidInputError(f"logits have shape {given.shape}, expected (n, {labels}): one column for every label")
    if not np.isfinite(given).all():
        where = np.flatnonzero(~np.isfinite(given).all(axis=0))[0]
        raise InvalidInputError(f"logits are not finite in column {where}; leave out studies that have none")
    return given


def checked_gold(gold: NDArray[np.bool_], logits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the gold labels, or raise ``InvalidInputError`` if they are not truth values beside the log-odds."""
    if gold.dtype != np.bool_ or gold.shape != logits.shape or not len(gold):
        got = f"gold is {gold.dtype} of shape {gold.shape}"
        raise InvalidInputError(f"{got}, expected bool of shape {logits.shape} with at least one study")
    return gold


def fit_logit_map(logits: NDArray[np.floating], gold: NDArray[np.bool_]) -> LogitMap:
    """Fit the calibration of every label on studies that the head has not seen.

    Parameters
    ----------
    logits : floating, shape (n, labels)
    gold : bool, shape (n, labels)

    Raises
    ------
    InvalidInputError
        Log-odds that are not finite, gold that is not boolean, or no study.
    """
    given = checked_logits(logits, np.shape(logits)[-1])
    gold, labels = checked_gold(gold, given), given.shape[1]
    rarer = np.minimum(gold.sum(axis=0), (~gold).sum(axis=0))
    method = np.where(rarer < BETA_POSITIVES, "temperature", np.where(rarer < ISOTONIC_POSITIVES, "beta", "isotonic"))
    shared = _shared_slope(given, gold)
    beta = np.array([_fit_beta(given[:, one], gold[:, one], shared, method[one]) for one in range(labels)])
    nothing = np.zeros((int(2 * GRID_LIMIT / GRID_STEP) + 1, labels), np.float32)
    plain = LogitMap(beta[:, 0], beta[:, 1], beta[:, 2], nothing, tuple(method.tolist()))
    bent, correction = plain.apply(given), nothing.copy()
    for one in np.flatnonzero(method == "isotonic"):
        correction[:, one] = _isotonic_correction(bent[:, one], gold[:, one])
    return LogitMap(plain.slope_low, plain.slope_high, plain.offset, correction, plain.method)


def _bends(logits: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``ln p`` and ``-ln(1 - p)``, which add up to the log-odds."""
    low = -np.logaddexp(0, -logits)
    return low, logits - low


def probability_of(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities of log-odds, exact also where they are tiny."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))


def _middle(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where each label is decided, so that a slope turns about it: mean log-odds, weight ``p (1 - p)``."""
    chance = probability_of(logits)
    weight = chance * (1 - chance) + 1e-12
    return np.asarray((weight * logits).sum(axis=0) / weight.sum(axis=0))


def _shared_slope(logits: NDArray[np.float64], gold: NDArray[np.bool_]) -> float:
    """Return the slope about each label's middle that fits all labels best, each with an offset of its own."""
    away, slope, offset = logits - _middle(logits), 1.0, np.zeros(logits.shape[1])
    for _ in range(NEWTON_STEPS):
        chance = probability_of(logits + (slope - 1) * away + offset)
        error, weight = gold - chance, chance * (1 - chance)
        own = weight.sum(axis=0) + OFFSET_SPREAD**-2
        pull = error.sum(axis=0) - offset * OFFSET_SPREAD**-2
        cross = (away * weight).sum(axis=0)
        curvature = (np.square(away) * weight).sum() - (np.square(cross) / own).sum() + 1e-9
        step = np.clip(((away * error).sum() - (cross * pull / own).sum()) / curvature, -0.25, 0.25)
        offset = offset + np.clip((pull - cross * step) / own, -1, 1)
        slope = max(slope + float(step), LEAST_SLOPE)
        if abs(step) < 1e-6:
            break
    return slope


def _fit_beta(
    logits: NDArray[np.float64], gold: NDArray[np.bool_], shared: float, method: str
) -> tuple[float, float, float]:
    """Return ``a``, ``b`` and ``c`` with the greatest posterior, by damped Newton steps."""
    middle = float(_middle(logits))
    if method == "temperature":
        columns, start = np.ones((len(logits), 1)), np.zeros(1)
        precision, fixed = np.array([OFFSET_SPREAD**-2]), shared * (logits - middle) + middle
    else:
        low, high = _bends(logits)
        middle_low = -float(np.logaddexp(0, -middle))
        columns = np.stack([low - middle_low, high - (middle - middle_low), np.ones_like(low)], axis=1)
        start = np.array([shared, shared, 0.0])
        precision, fixed = np.array([SLOPE_SPREAD, SLOPE_SPREAD, OFFSET_SPREAD]) ** -2.0, np.full(len(logits), middle)
    found = _newton(columns, fixed, gold, start, precision)
    if method == "temperature":
        return shared, shared, float(found[0]) + (1 - shared) * middle
    low_slope, high_slope = np.maximum(found[:2], LEAST_SLOPE)
    offset = found[2] + middle - low_slope * middle_low - high_slope * (middle - middle_low)
    return float(low_slope), float(high_slope), float(offset)


def _newton(
    columns: NDArray[np.float64],
    fixed: NDArray[np.float64],
    gold: NDArray[np.bool_],
    start: NDArray[np.float64],
    precision: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the maximum of a logistic likelihood with a Gaussian prior around ``start``."""

    def loss(at: NDArray[np.float64]) -> float:
        score = fixed + columns @ at
        return float(np.logaddexp(0, np.where(gold, -score, score)).sum() + precision @ np.square(at - start) / 2)

    found, best = start, loss(start)
    for _ in range(NEWTON_STEPS):
        chance = probability_of(fixed + columns @ found)
        gradient = columns.T @ (chance - gold) + precision * (found - start)
        curvature = (columns * (chance * (1 - chance))[:, None]).T @ columns + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        while (reached := loss(found - step)) > best and np.abs(step).max() > 1e-9:
            step = step / 2
        if best - reached < 1e-9:
            break
        found, best = found - step, reached
    return found


def _isotonic_correction(logits: NDArray[np.float64], gold: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return what isotonic regression adds to beta, on the grid: float64, shape (grid,), log-odds.

    A block of the regression stands at its mean log-odds with the mean of its rate and of beta's, then lines join the
    blocks, so that no two log-odds become one. Outside the blocks the correction of the last one holds.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(logits, kind="stable")
    blocks = isotonic_regression(gold[order].astype(np.float64)).blocks
    size = np.diff(blocks)
    rate, at, expected = (
        np.add.reduceat(values[order], blocks[:-1]) / size
        for values in (gold.astype(np.float64), logits, probability_of(logits))
    )
    blended = (size * rate + BLOCK_PRIOR * expected) / (size + BLOCK_PRIOR)
    reached = np.maximum.accumulate(np.log(blended) - np.log1p(-blended))
    grid = np.linspace(-GRID_LIMIT, GRID_LIMIT, int(2 * GRID_LIMIT / GRID_STEP) + 1)
    risen = np.interp(grid, at, reached)
    outside = np.clip(grid, at[0], at[-1])  # beyond the blocks, rise as beta does
    return np.asarray(ISOTONIC_SHARE * (risen - outside))


@dataclass(frozen=True)
class VennAbers:
    """Two step functions of the log-odds for every label, one after the other in flat arrays.

    Log-odds ``z`` are told apart to 1/32, in calibration and afterwards, which keeps what the method promises. Steps of
    label ``l`` are looked up at ``10000 l + 32 z``, ``z`` cut off at ±100, so that one search serves all.

    Attributes
    ----------
    low_edges, high_edges : int64, shape (steps,), ascending
        Where the lower probability rises, and after which the higher one does.
    low, high : float32, shape (steps,)
        The probability from that edge on; up to that edge.
    """

    low_edges: NDArray[np.int64]
    low: NDArray[np.float32]
    high_edges: NDArray[np.int64]
    high: NDArray[np.float32]

    @property
    def labels(self) -> int:
        """Number of labels."""
        return int(self.high_edges[-1]) // _STRIDE + 1

    def interval(self, logits: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lower and the higher probability: float64, shape (n, labels), each between 0 and 1.

        Parameters
        ----------
        logits : floating, shape (n, labels)

        Raises
        ------
        InvalidInputError
            Another number of labels, or a value that is not finite.
        """
        at = _ticks(checked_logits(logits, self.labels)) + _STRIDE * np.arange(self.labels)
        low = self.low[np.searchsorted(self.low_edges, at, side="right") - 1]
        high = self.high[np.searchsorted(self.high_edges, at, side="left")]
        return low.astype(np.float64), high.astype(np.float64)


def _ticks(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(_TICKS * np.clip(logits, -_CUT, _CUT)).astype(np.int64)


def fit_venn_abers(logits: NDArray[np.floating], gold: NDArray[np.bool_]) -> VennAbers:
    """Fit both step functions of every label.

    A label without a positive has 0 as its lower probability, and a higher one that says how few studies rule it out.

    Parameters
    ----------
    logits : floating, shape (n, labels)
        As they will be asked for, of studies that the head has not seen.
    gold : bool, shape (n, labels)

    Raises
    ------
    InvalidInputError
        Log-odds that are not finite, gold that is not boolean, or no study.
    """
    given = checked_logits(logits, np.shape(logits)[-1])
    gold = checked_gold(gold, given)
    ticks, parts = _ticks(given), []
    for one in range(given.shape[1]):
        score, positive = ticks[:, one], gold[:, one]
        high_edges, high = _upper_steps(score, positive)
        low_edges, low = _upper_steps(-score, ~positive)  # the same question, asked of the complement
        shift = _STRIDE * one
        parts.append((shift - low_edges[::-1], 1 - low[::-1], shift + high_edges, high))
    low_edges, low, high_edges, high = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return VennAbers(low_edges, low.astype(np.float32), high_edges, high.astype(np.float32))


def _upper_steps(
    score: NDArray[np.int64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return where the higher probability steps: edges up to which each value holds, the last beyond any score.

    The value at a score is the slope there of the greatest convex minorant of (studies, positives), both cumulated by
    rising score, with one positive study more at that score. As the score rises, the points left of it are moved by
    (-1, -1) one after another, and the part of the minorant right of it changes only near its left end: a stack.
    """
    edges, group = np.unique(score, return_inverse=True)
    size = np.bincount(group)
    points = np.concatenate([[[0, 0]], np.stack([size, np.bincount(group, positive)], axis=1).cumsum(axis=0)])
    right = [(int(x), int(y)) for x, y in points]
    left = (-1, -1)
    stack: list[tuple[int, int]] = []
    for point in reversed([left, *right[1:]]):
        _push(stack, point)
    values = np.empty(len(edges) + 1)
    for step in range(1, len(right)):
        (x0, y0), (x1, y1) = stack[-1], stack[-2]
        values[step - 1] = (y1 - y0) / (x1 - x0)
        left = (right[step][0] - 1, right[step][1] - 1)
        if (left[1] - y0) * (x1 - x0) < (y1 - y0) * (left[0] - x0):  # below the first edge of the minorant
            stack.pop()
            _push(stack, left)
    values[-1] = 1.0
    last = np.append(values[1:] != values[:-1], True)
    return np.append(edges, _STRIDE // 2)[last], values[last]


def _push(stack: list[tuple[int, int]], point: tuple[int, int]) -> None:
    """Put a point left of a convex chain, whose left end is the top, and drop what is no longer a corner."""
    while len(stack) > 1:
        (x1, y1), (x2, y2) = stack[-1], stack[-2]
        if (y1 - point[1]) * (x2 - x1) < (y2 - y1) * (x1 - point[0]):
            break
        stack.pop()
    stack.append(point)


def shift_prevalence(
    logits: NDArray[np.floating], trained: NDArray[np.floating], site: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return log-odds at a site where labels have another prevalence: float64, shape (n, labels).

    Right as far as an ECG with the label looks as it does elsewhere, and so does one without (label shift).

    Parameters
    ----------
    logits : floating, shape (n, labels)
    trained : floating, shape (labels,)
        Prevalence among the calibration studies.
    site : floating, shape (labels,)
        Prevalence at the site; NaN leaves a label as it is.

    Raises
    ------
    InvalidInputError
        A prevalence that is needed and is not between 0 and 1, exclusive.
    """
    given = checked_logits(logits, len(trained))
    known, change = ~np.isnan(site), np.zeros(len(trained))
    for name, share, sign in (("site", site, 1), ("trained", trained, -1)):
        needed = np.asarray(share, np.float64)[known]
        if not ((needed > 0) & (needed < 1)).all():
            raise InvalidInputError(f"{name} prevalence must lie above 0 and below 1, or be NaN to leave a label alone")
        change[known] += sign * (np.log(needed) - np.log1p(-needed))
    return given + change
