"""A superclass by its own score and those of the statements that it holds; it never comes out less likely than one.

Scored each by itself, a statement can come out likelier than the superclass that it makes true. Statements are scored
more sharply than superclasses, so the superclass follows: its log-odds join its own with those of the likeliest of its
statements and those of any of them. What then still contradicts is raised to the likeliest statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.labels.vocabulary import load_vocabulary
from mmecg.prediction.result import SUPERCLASS_PREFIX


@dataclass(frozen=True)
class SuperclassHead:
    """Superclasses joined with their statements.

    Attributes
    ----------
    columns : int64, shape (superclasses,)
        Where among the labels the superclasses are; those without a statement among the labels are left as they are.
    holds : bool, shape (superclasses, labels)
        Which statements each of them holds.
    weight : float32, shape (3, superclasses)
        Of the log-odds of :func:`channels`.
    bias : float32, shape (superclasses,)
    """

    columns: NDArray[np.int64]
    holds: NDArray[np.bool_]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def apply(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Join superclasses with their statements, whose log-odds stay.

        Parameters
        ----------
        logits : float64, shape (n, labels)
            Calibrated.

        Returns
        -------
        float64, shape (n, labels)
        """
        found = logits.copy()
        found[:, self.columns] = (channels(logits, self.columns, self.holds) * self.weight).sum(axis=-2) + self.bias
        return self.at_least(found)

    def at_least(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raise superclasses to their likeliest statement: float64, shape (n, labels)."""
        found = logits.copy()
        found[:, self.columns] = np.maximum(logits[:, self.columns], _likeliest(logits, self.holds))
        return found


def channels(logits: NDArray[np.float64], columns: NDArray[np.int64], holds: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return what a superclass is read from: float64, shape (n, 3, superclasses), log-odds.

    Its own; of the likeliest of its statements; of any of them, as if they were independent.

    Parameters
    ----------
    logits : float64, shape (n, labels)
    columns : int64, shape (superclasses,)
    holds : bool, shape (superclasses, labels)
    """
    # -ln of the probability that no statement is there; above 0, so that the logarithm stands where that is certain.
    none = np.maximum(np.logaddexp(0, logits) @ holds.T, np.finfo(np.float64).tiny)
    return np.stack([logits[:, columns], _likeliest(logits, holds), none + np.log(-np.expm1(-none))], axis=1)


def superclasses_of(labels: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the superclasses among labels that hold a statement among them, and which: columns and holds as above."""
    above = {finding.id: SUPERCLASS_PREFIX + finding.superclass for finding in load_vocabulary().findings}
    holds = np.array([[above.get(label) == name for label in labels] for name in labels], np.bool_)
    columns = np.flatnonzero(holds.any(axis=1))
    return columns, holds[columns]


def _likeliest(logits: NDArray[np.float64], holds: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(np.where(holds, logits[:, None, :], -np.inf).max(axis=2, initial=-np.inf))
