"""Training on mined labels: what a report mentions is positive, what it does not mention is unlabelled.

Notation: ``y`` a finding is present, ``s`` it is mentioned, ``x`` features of the ECG. Only what is present is
mentioned, and (*selected completely at random*, SCAR) whether a present finding is mentioned does not depend on ``x``.
Then ``P(s=1|x) = c P(y=1|x)`` with the **label frequency** ``c = P(s=1|y=1)``, and the **prior** is
``P(y=1) = P(s=1) / c``. Each label has a frequency of its own, which is estimated:

1. *Naive* model ``g(x) = P(s=1|x)``: logistic regression, scores out of fold by subject.
2. **Label frequency**: where the finding is certain, ``g`` is ``c``, and nowhere is it more. So ``c`` is the height of
   the plateau at the top of the scores: the mean, over the ``m`` highest, of the isotonic regression of ``s`` on the
   score (isotonic because ``P(s=1|x)`` rises with the score; Elkan and Noto's third estimator, the maximum of ``g``,
   made robust). Where the features never make a finding certain, the plateau is too low, and the prior too high.
3. Model, by ``method``. ``softplus(z)`` is the logistic loss of a negative, ``softplus(-z)`` of a positive.

   * ``elkan_noto``: an unmentioned record counts as a positive of weight ``w = (1-c)/c * g/(1-g)`` and as a negative
     of weight ``1-w`` (Elkan and Noto 2008, section 3).
   * ``nnpu``: minimises ``R+ + max(0, N)``, where ``R+ = prior * mean_s[softplus(-z)]`` is the risk of the positives
     and ``N = mean[softplus(z)] - prior * mean_s[softplus(z)]`` that of the negatives, estimated without negatives
     (Kiryo et al. 2017, equation 6; all records stand for the population, as the mentioned ones are among them). For a
     linear model the minimum is found exactly, by convex problems: it is that of ``R+ + N`` if ``N >= 0`` there, else
     that of ``R+ + t N`` with the ``t`` in (0, 1) for which ``N = 0``.
4. **Recalibration**: probability ``q = sigmoid(a z + b)``, where ``a`` and ``b`` maximise the likelihood of what was
   mentioned, ``P(s=1|z) = c q``, on out-of-fold scores. It corrects over-prediction.

Sources: Elkan and Noto, Learning classifiers from only positive and unlabeled data, KDD 2008; Kiryo, Niu, du Plessis
and Sugiyama, Positive-unlabeled learning with non-negative risk estimator, NeurIPS 2017, arXiv:1703.00593; Platt,
Probabilistic outputs for support vector machines, 1999.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmecg.datasets.splits import subject_groups
from mmecg.errors import InvalidInputError
from mmecg.labels.logistic import expit

Method = Literal["elkan_noto", "nnpu"]
Floats = NDArray[np.float64]

COMPONENTS = 64
"""At most so many principal components of the features, each scaled to unit variance."""

PENALTY = 1e-3
"""Of the squared weights, beside a mean loss."""

FOLDS = 4
MIN_MENTIONED = 20
"""A label that is mentioned in fewer records cannot be fitted."""

PLATEAU_SHARE, MIN_PLATEAU = 0.5, 50
"""The plateau is this share of the number of mentioned records, and at least so many records."""

MIN_SHARE = 1e-4
_ITERATIONS, _TOLERANCE = 40, 1e-9


@dataclass(frozen=True)
class LinearModel:
    """A linear model of every label.

    Attributes
    ----------
    weight : float64, shape (features, labels)
    bias : float64, shape (labels,)
    """

    weight: Floats
    bias: Floats

    def probabilities(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the probability that each finding is present: float32, shape (n, labels).

        Parameters
        ----------
        features : float, shape (n, features)
        """
        return expit(features @ self.weight + self.bias).astype(np.float32)


@dataclass(frozen=True)
class PositiveUnlabelledModel(LinearModel):
    """A linear model of every label, fitted on what was mentioned.

    Attributes
    ----------
    label_frequency : float64, shape (labels,)
        Estimated share of the present findings that were mentioned.
    prior : float64, shape (labels,)
        Estimated share of the records in which the finding is present.
    """

    label_frequency: Floats
    prior: Floats


def fit_positive_unlabelled(
    features: NDArray[np.floating],
    mentioned: NDArray[np.bool_],
    subjects: Sequence[str] | NDArray[np.generic],
    method: Method = "elkan_noto",
    seed: int = 0,
) -> PositiveUnlabelledModel:
    """Fit a model of what is present on what was mentioned.

    Parameters
    ----------
    features : float, shape (n, features)
        Such as features or embeddings of a bundle's ECG tower.
    mentioned : bool, shape (n, labels)
        False is *unlabelled*, not absent.
    subjects : sequence of str, length n
        Records of a subject stay on one side of every inner split.
    method : {"elkan_noto", "nnpu"}
    seed : int
        Of the inner folds.

    Raises
    ------
    InvalidInputError
        The lengths differ, a feature is not finite, there are too few subjects, or a label is mentioned too rarely.
    """
    fold = _check(features, mentioned, subjects, method, seed)
    space = _Space.of(features)
    inputs = space.inputs(features)
    naive = _out_of_fold(inputs, fold, lambda rows: _fit_soft(inputs[rows], mentioned[rows]))
    columns = range(mentioned.shape[1])
    frequency = np.array([_label_frequency(naive[:, label], mentioned[:, label]) for label in columns])

    def fit(rows: NDArray[np.bool_]) -> Floats:
        if method == "nnpu":
            return _fit_nnpu(inputs[rows], mentioned[rows], frequency)
        return _fit_elkan_noto(inputs[rows], mentioned[rows], frequency, naive[rows])

    scores = _out_of_fold(inputs, fold, fit)
    slope, shift = np.transpose(
        [_recalibration(scores[:, label], mentioned[:, label], frequency[label]) for label in columns]
    )
    solution = fit(np.ones(len(inputs), np.bool_)) * slope
    solution[-1] += shift
    weight, bias = space.outwards(solution)
    return PositiveUnlabelledModel(weight, bias, frequency, mentioned.mean(axis=0) / frequency)


def mask_labels(
    labels: NDArray[np.bool_], frequency: float | Sequence[float], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Keep each positive with probability ``frequency``, as reports that mention a finding or not would (SCAR).

    Parameters
    ----------
    labels : bool, shape (n, labels)
    frequency : float or sequence of float, length labels
        Above 0, at most 1.
    rng : numpy.random.Generator

    Returns
    -------
    bool, shape (n, labels)
    """
    share = np.broadcast_to(np.asarray(frequency, np.float64), labels.shape[1:])
    if not ((share > 0) & (share <= 1)).all():
        raise InvalidInputError("label frequency is not above 0 and at most 1; give a share", field="frequency")
    return np.asarray(labels & (rng.random(labels.shape) < share))


def fit_labelled(features: NDArray[np.floating], labels: NDArray[np.bool_]) -> LinearModel:
    """Fit the same linear model on labels that are complete: the oracle, or what takes the unlabelled as negative.

    Parameters
    ----------
    features : float, shape (n, features)
    labels : bool, shape (n, labels)
    """
    space = _Space.of(features)
    return LinearModel(*space.outwards(_fit_soft(space.inputs(features), labels)))


@dataclass(frozen=True)
class _Space:
    """Principal axes of the standardised features, scaled to unit variance: Newton steps are cheap and well posed."""

    mean: Floats
    axes: Floats  # (features, components)

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> _Space:
        mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        scale[scale == 0] = 1
        standard = (features - mean) / scale
        variance, axes = np.linalg.eigh(standard.T @ standard / len(standard))
        kept = np.flatnonzero(variance > 1e-9 * variance[-1])[-COMPONENTS:]
        return cls(mean, axes[:, kept] / np.sqrt(variance[kept]) / scale[:, None])

    def inputs(self, features: NDArray[np.floating]) -> Floats:
        """Return float64, shape (n, components + 1); the last column is the bias."""
        return np.column_stack([(features - self.mean) @ self.axes, np.ones(len(features))])

    def outwards(self, solution: Floats) -> tuple[Floats, Floats]:
        """Return weight and bias on the features themselves."""
        weight = self.axes @ solution[:-1]
        return weight, solution[-1] - self.mean @ weight


def _fit_elkan_noto(inputs: Floats, mentioned: NDArray[np.bool_], frequency: Floats, naive: Floats) -> Floats:
    odds = np.exp(np.minimum(naive, 30.0))  # g / (1 - g)
    weight = np.minimum((1 - frequency) / frequency * odds, 1.0)
    return _fit_soft(inputs, np.where(mentioned, 1.0, weight))


def _fit_soft(inputs: Floats, targets: Floats | NDArray[np.bool_]) -> Floats:
    """Return logistic regressions on targets in 0..1: float64, shape (components + 1, labels)."""
    share = np.full(len(inputs), 1 / len(inputs))
    return np.column_stack([_minimise(inputs, share, share * column) for column in targets.T])


def _fit_nnpu(inputs: Floats, mentioned: NDArray[np.bool_], frequency: Floats) -> Floats:
    return np.column_stack(
        [_fit_nnpu_label(inputs, column, c) for column, c in zip(mentioned.T, frequency, strict=True)]
    )


def _fit_nnpu_label(inputs: Floats, mentioned: NDArray[np.bool_], frequency: float) -> Floats:
    """Return the minimiser of ``R+ + max(0, N)``, by way of ``R+ + t N``: float64, shape (components + 1,)."""
    from scipy.optimize import brentq

    everyone = np.full(len(inputs), 1 / len(inputs))
    positives = everyone * mentioned / frequency  # sums to the prior

    def fit(share: float) -> Floats:
        # softplus(-z) = softplus(z) - z
        return _minimise(inputs, share * everyone + (1 - share) * positives, positives)

    def negative_risk(share: float) -> float:
        return float((everyone - positives) @ np.logaddexp(0, inputs @ fit(share)))

    # N falls as its share t rises.
    if negative_risk(1.0) >= 0:
        return fit(1.0)
    if negative_risk(MIN_SHARE) <= 0:
        return fit(MIN_SHARE)
    return fit(brentq(negative_risk, MIN_SHARE, 1.0, xtol=MIN_SHARE))


def _minimise(inputs: Floats, weights: Floats, linear: Floats) -> Floats:
    """Minimise ``sum(weights * softplus(z) - linear * z) + PENALTY * |w|^2`` by Newton steps with backtracking.

    Parameters
    ----------
    inputs : float64, shape (n, components + 1)
        ``z`` is their product with the solution; the last one, the bias, is not penalised.
    weights, linear : float64, shape (n,)
        Weights are not negative.

    Returns
    -------
    float64, shape (components + 1,)
    """
    ridge = np.full(inputs.shape[1], 2 * PENALTY)
    ridge[-1] = 1e-9
    pull = linear @ inputs
    solution = np.zeros(inputs.shape[1])

    def value(point: Floats) -> tuple[float, Floats]:
        scores = inputs @ point
        return float(weights @ np.logaddexp(0, scores) - pull @ point + point @ (ridge * point) / 2), scores

    now, scores = value(solution)
    for _ in range(_ITERATIONS):
        chance = expit(scores)
        gradient = (weights * chance) @ inputs - pull + ridge * solution
        curvature = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        slope = float(gradient @ step)
        size = 1.0
        while (following := value(solution - size * step))[0] > now - 1e-4 * size * slope and size > 1e-6:
            size /= 2
        solution = solution - size * step
        converged = now - following[0] < _TOLERANCE
        now, scores = following
        if converged:
            break
    return solution


def _out_of_fold(inputs: Floats, fold: NDArray[np.int64], fit: Callable[[NDArray[np.bool_]], Floats]) -> Floats:
    """Return scores of every record by the model that has not seen its subject: float64, shape (n, labels)."""
    parts = [(fold == number, fit(fold != number)) for number in range(FOLDS)]
    scores = np.empty((len(inputs), parts[0][1].shape[1]))
    for held_out, solution in parts:
        scores[held_out] = inputs[held_out] @ solution
    return scores


def _label_frequency(scores: Floats, mentioned: NDArray[np.bool_]) -> float:
    from sklearn.isotonic import isotonic_regression

    rising = isotonic_regression(mentioned[np.argsort(scores, kind="stable")].astype(np.float64))
    plateau = max(MIN_PLATEAU, round(PLATEAU_SHARE * int(mentioned.sum())))
    return float(rising[-plateau:].mean())


def _recalibration(scores: Floats, mentioned: NDArray[np.bool_], frequency: float) -> tuple[float, float]:
    """Return slope and shift that maximise the likelihood of ``P(s=1|z) = c sigmoid(a z + b)``."""
    from scipy.optimize import minimize

    def loss(point: Floats) -> tuple[float, Floats]:
        chance = expit(point[0] * scores + point[1])
        silent = 1 - frequency * chance
        likelihood = np.where(mentioned, frequency * chance, silent)
        slope = np.where(mentioned, -(1 - chance), frequency * chance * (1 - chance) / np.maximum(silent, 1e-12))
        gradient = np.array([np.mean(slope * scores), np.mean(slope)])
        return -float(np.mean(np.log(np.maximum(likelihood, 1e-12)))), gradient

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    return float(found.x[0]), float(found.x[1])


def _check(
    features: NDArray[np.floating],
    mentioned: NDArray[np.bool_],
    subjects: Sequence[str] | NDArray[np.generic],
    method: str,
    seed: int,
) -> NDArray[np.int64]:
    """Refuse what cannot be fitted; return the inner fold of each record: int64, shape (n,)."""
    if method not in get_args(Method):
        raise InvalidInputError(f"method is {method!r}, expected one of {', '.join(get_args(Method))}", field="method")
    if not len(features) == len(mentioned) == len(subjects):
        raise InvalidInputError(
            f"features, mentioned and subjects have {len(features)}, {len(mentioned)} and {len(subjects)} rows, "
            "expected as many of each; give one row a record",
            field="mentioned",
        )
    if not np.isfinite(features).all():
        raise InvalidInputError("features have a value that is not finite; leave out that record", field="features")
    rare = np.flatnonzero(mentioned.sum(axis=0) < MIN_MENTIONED)
    if len(rare):
        raise InvalidInputError(
            f"label {rare[0]} is mentioned in {int(mentioned[:, rare[0]].sum())} records, expected at least "
            f"{MIN_MENTIONED}; leave it out",
            field="mentioned",
        )
    if (count := len(np.unique(np.asarray(subjects)))) < FOLDS:
        raise InvalidInputError(f"{count} subjects, expected at least {FOLDS}; give more", field="subjects")
    return subject_groups(subjects, FOLDS, seed=seed)
