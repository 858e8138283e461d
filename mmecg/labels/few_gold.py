"""Few-gold mode: some hundred labelled studies give calibrated stacks whose uncertainty is stated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError
from mmecg.labels.agreement import Ridge, Scores, Stack, fit_stack

MIN_STUDIES = 50
RIDGE = Ridge(own=10.0, cross=np.inf)
"""With so few labels, the channels of other labels are left out."""


@dataclass(frozen=True)
class FewGold:
    """A stack, and the stacks of resampled gold studies.

    Attributes
    ----------
    stack : Stack
    resampled : tuple of Stack
    """

    stack: Stack
    resampled: tuple[Stack, ...]

    def probabilities(
        self, scores: Scores, *, level: float = 0.95
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return the probability of every label with the bounds of its percentile interval.

        Parameters
        ----------
        scores : mapping of channel to floating, shape (n, labels)
        level : float

        Returns
        -------
        probability, low, high : float64, shape (n, labels)
            The bounds hold what the choice of gold studies leaves open, not what the record leaves open. Without
            resampled stacks they are NaN.
        """
        point = self.stack.probabilities(scores)
        if not self.resampled:
            return point, np.full(point.shape, np.nan), np.full(point.shape, np.nan)
        spread = np.stack([stack.probabilities(scores) for stack in self.resampled])
        low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return point, np.minimum(low, point), np.maximum(high, point)


def fit_few_gold(
    scores: Mapping[str, NDArray[np.floating]],
    gold: NDArray[np.bool_],
    labels: Sequence[str],
    *,
    subject_ids: NDArray[np.str_] | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> FewGold:
    """Fit a stack on few gold studies.

    Parameters
    ----------
    scores : mapping of channel to floating, shape (n, labels)
        Channels of the gold studies, of a bundle that has not seen them. Any channels will do; what comes in must come
        in again for new studies.
    gold : bool, shape (n, labels)
    labels : sequence of str
    subject_ids : str, shape (n,), optional
        Patients are resampled, if given; else studies.
    resamples, seed : int
        Resampled stacks, for the intervals; 0 for none.

    Raises
    ------
    InvalidInputError
        There are fewer than 50 studies.
    """
    if len(gold) < MIN_STUDIES:
        raise InvalidInputError(
            f"{len(gold)} gold studies, expected at least {MIN_STUDIES}; label more studies", field="gold"
        )
    channels = tuple(scores)
    stack = fit_stack(scores, gold, labels, channels, ridge=RIDGE)
    units = np.arange(len(gold)) if subject_ids is None else np.unique(subject_ids, return_inverse=True)[1]
    members = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(resamples):
        rows = np.concatenate([members[unit] for unit in rng.integers(len(members), size=len(members))])
        drawn = {name: values[rows] for name, values in scores.items()}
        resampled.append(fit_stack(drawn, gold[rows], labels, channels, ridge=RIDGE))
    return FewGold(stack, tuple(resampled))
