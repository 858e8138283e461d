"""What kind of recording this is not: an ordinary 12-lead ECG, or one that labels should not be read from.

Two detectors look at the tower's features and at :func:`mmecg.prediction.waveform.summarise`:

* one has seen corrupted recordings: a small network with a class for each of the corruptions of
  :data:`mmecg.datasets.corruptions.CORRUPTIONS`; the classes of a kind are summed. Exchanged electrodes make an ECG
  that could be somebody's, so only examples tell them from ordinary ones;
* one has seen ordinary recordings alone: the Mahalanobis distance of the summary from theirs, after Lee et al.
  (NeurIPS 2018). It is for what nobody thought of.

The probability is that of either. It is scaled so that a stated share of ordinary recordings reaches 0.5: how often
recordings are faulty differs between sites by far more than this could say. A lead that was not recorded counts as an
average one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import Ecg
from mmecg.prediction.waveform import align, summarise

ORDINARY = "ordinary"
UNKNOWN = "unknown"
"""Kind of a recording that is far from ordinary ones, but like none of the corruptions."""

INPUT_LIMIT = 6.0
"""Inputs are cut at so many standard deviations."""

_Array = NDArray[np.float32]


@dataclass(frozen=True)
class Novelty:
    """What was found in n recordings.

    Attributes
    ----------
    probability : float64, shape (n,)
        That the recording is no ordinary ECG.
    kind : list of str, length n
        What it most resembles if it is none: ``"noise"``, ``"limb_swap"``, ``"chest_swap"``, ``"inverted"``,
        ``"lead_mismatch"`` (limb leads that contradict each other), ``"not_ecg"``, or ``"unknown"``. To be read where
        the probability is high.
    """

    probability: NDArray[np.float64]
    kind: list[str]


@dataclass(frozen=True)
class NoveltyDetector:
    """The two detectors.

    Attributes
    ----------
    mean, scale : float32, shape (inputs,)
        Of what :func:`inputs_of` gives over the training recordings.
    hidden_weight : float32, shape (inputs, hidden)
    hidden_bias : float32, shape (hidden,)
    weight : float32, shape (hidden, classes)
    bias : float32, shape (classes,)
    classes : tuple of str, length classes
        ``"ordinary"``, then ``"kind/name"`` of the corruptions.
    centre : float32, shape (summary,)
    whitening : float32, shape (summary, summary)
        Of the summary, standardised, over ordinary recordings.
    far_at, far_slope : float
        Logarithm of the squared distance at which the probability to be far is one half, and how fast it rises.
    """

    mean: _Array
    scale: _Array
    hidden_weight: _Array
    hidden_bias: _Array
    weight: _Array
    bias: _Array
    classes: tuple[str, ...]
    centre: _Array
    whitening: _Array
    far_at: float
    far_slope: float

    def scores(self, features: NDArray[np.float32], ecgs: Sequence[Ecg]) -> Novelty:
        """Judge recordings.

        Parameters
        ----------
        features : float32, shape (n, features)
            Of the ECG tower.
        ecgs : sequence of Ecg, length n
        """
        summary = np.stack([summarise(ecg) for ecg in ecgs])
        return self.judge(features, summary)

    def judge(self, features: NDArray[np.float32], summary: NDArray[np.float32]) -> Novelty:
        """Judge recordings whose summaries are at hand: float32, shape (n, summary)."""
        logits = self.logits(features, summary)
        share = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))  # (n, classes)
        far = 1 / (1 + np.exp(np.clip(-self.far_slope * (self.log_distance(summary) - self.far_at), -50, 50)))
        kinds = [name.split("/")[0] for name in self.classes]
        known = dict.fromkeys(kinds[1:])
        of_kind = np.stack([share[:, [kind == one for kind in kinds]].sum(axis=1) for one in known], axis=1)
        seen = of_kind.sum(axis=1)
        kind = [list(known)[best] for best in of_kind.argmax(axis=1)]
        unknown = (far > seen) & (seen < 0.5)
        return Novelty(
            1 - share[:, 0] * (1 - far), [UNKNOWN if new else one for one, new in zip(kind, unknown, strict=True)]
        )

    def logits(self, features: NDArray[np.float32], summary: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the network's log-odds of the classes, up to a constant: float64, shape (n, classes)."""
        inputs = standardise(inputs_of(features, summary), self.mean, self.scale)
        hidden = np.maximum(inputs @ self.hidden_weight + self.hidden_bias, 0)
        return np.asarray(hidden @ self.weight + self.bias, np.float64)

    def log_distance(self, summary: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the logarithm of the squared Mahalanobis distance per dimension: float64, shape (n,)."""
        first = len(self.mean) - len(self.centre)
        inputs = standardise(summary, self.mean[first:], self.scale[first:], limit=2 * INPUT_LIMIT)
        far = (inputs - self.centre) @ self.whitening
        return np.asarray(np.log(np.mean(np.square(far, dtype=np.float64), axis=1) + 1e-9))


def inputs_of(features: _Array, summary: _Array) -> _Array:
    """Return what the network sees: features, how leads point beside each other, summary; shape (n, inputs)."""
    return np.concatenate([features, align(summary), summary], axis=1)


def standardise(inputs: _Array, mean: _Array, scale: _Array, *, limit: float = INPUT_LIMIT) -> _Array:
    """Return inputs in standard deviations, cut at a limit, and 0, the average, where they are NaN."""
    return np.asarray(np.nan_to_num(np.clip((inputs - mean) / scale, -limit, limit), nan=0.0), np.float32)
