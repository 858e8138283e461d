"""What the ECG says about a label, and the stack of text and ECG.

Channels are scores of every label for every record, on scales that carry over from one bundle to the next:

===========  =======================================================================================================
``text``     log-odds from the words (:mod:`mmecg.labels.evidence`)
``probe``    log-odds of a linear probe on the ECG tower's features
``votes``    log-odds of the similarity-weighted votes of the nearest training ECGs
``zero_shot``  cosine of the ECG with the label's prompts, as standard deviations from the training records' mean
===========  =======================================================================================================

The stack is a logistic regression a label over the channels of *all* labels. Its weights are shared slopes for the own
channels of a label, plus departures that a ridge draws to zero: weakly for the own channels, strongly for those of
other labels. With few gold labels the departures vanish and the labels borrow strength from each other.

The scores of a bundle on records that it was trained on flatter it. Stacks are therefore fitted on scores of bundles of
the same shape that did not see the record (``scripts/train-labels``), then used with the shipped one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ConfigError, InvalidInputError
from mmecg.labels.logistic import cross_entropy, expected_f1_thresholds, expit, logit
from mmecg.neighbours import knn_scores, vote_logits

ECG_CHANNELS: tuple[str, ...] = ("probe", "votes", "zero_shot")
CHANNELS: tuple[str, ...] = ("text", *ECG_CHANNELS)

_CLIP = 10.0
_INT8 = 127.0

Scores = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class EcgReader:
    """What turns the output of one bundle's ECG tower into the channels of :data:`ECG_CHANNELS`.

    Attributes
    ----------
    fingerprint : str
        Of the bundle.
    labels : tuple of str
    probe_weight : float32, shape (features, labels)
    probe_bias : float32, shape (labels,)
    prompts : float32, shape (labels, dim), unit norm
    prompt_mean, prompt_scale : float32, shape (labels,)
        Of the cosines of the training records.
    corpus : int8, shape (corpus, dim)
        Embeddings of training records times 127.
    corpus_labels : bool, shape (corpus, labels)
    """

    fingerprint: str
    labels: tuple[str, ...]
    probe_weight: NDArray[np.float32]
    probe_bias: NDArray[np.float32]
    prompts: NDArray[np.float32]
    prompt_mean: NDArray[np.float32]
    prompt_scale: NDArray[np.float32]
    corpus: NDArray[np.int8]
    corpus_labels: NDArray[np.bool_]

    def scores(self, features: NDArray[np.float32], embedding: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the ECG channels.

        Parameters
        ----------
        features : float32, shape (n, features)
        embedding : float32, shape (n, dim), unit norm
        """
        cosines = (embedding @ self.prompts.T - self.prompt_mean) / self.prompt_scale
        return {
            "probe": np.clip(features @ self.probe_weight + self.probe_bias, -_CLIP, _CLIP).astype(np.float32),
            "votes": vote(embedding, self.corpus.astype(np.float32) / _INT8, self.corpus_labels),
            "zero_shot": np.asarray(cosines, np.float32),
        }

    def check(self, fingerprint: str) -> None:
        """Raise ``ConfigError`` unless the reader was fitted on the bundle of this fingerprint."""
        if fingerprint != self.fingerprint:
            raise ConfigError(
                f"label weights are of bundle {self.fingerprint[:12]}, got bundle {fingerprint[:12]}; use that bundle, "
                "or fit weights for this one with scripts/train-labels"
            )


def vote(
    queries: NDArray[np.float32], corpus: NDArray[np.float32], corpus_labels: NDArray[np.floating] | NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the log-odds of the votes of the nearest corpus entries for every label; see :func:`knn_scores`.

    Parameters
    ----------
    queries : float32, shape (queries, dim), unit norm
    corpus : float32, shape (corpus, dim), unit norm
    corpus_labels : bool or floating, shape (corpus, labels)
        Gold, or the probabilities of mined labels.

    Returns
    -------
    float32, shape (queries, labels)
    """
    return vote_logits(knn_scores(queries, corpus, corpus_labels)).astype(np.float32)


@dataclass(frozen=True)
class Stack:
    """Weights over channels.

    Attributes
    ----------
    labels, channels : tuple of str
    weight : float32, shape (channels * labels, labels)
        Rows are channel by channel, label by label.
    bias : float32, shape (labels,)
    thresholds : float32, shape (labels,)
        Log-odds from which on a label is decided present.
    """

    labels: tuple[str, ...]
    channels: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    thresholds: NDArray[np.float32]

    def log_odds(self, scores: Scores) -> NDArray[np.float32]:
        """Return the log-odds of every label: float32, shape (n, labels)."""
        return np.asarray(design(scores, self.channels) @ self.weight + self.bias, np.float32)

    def probabilities(self, scores: Scores) -> NDArray[np.float64]:
        """Return the probability of every label: float64, shape (n, labels)."""
        return expit(self.log_odds(scores))

    def decided(self, scores: Scores) -> NDArray[np.bool_]:
        """Return which labels are decided present: bool, shape (n, labels)."""
        return np.asarray(self.log_odds(scores) >= self.thresholds)


@dataclass(frozen=True)
class Ridge:
    """How strongly departures from the shared slopes are drawn to zero; see the module's docstring.

    Attributes
    ----------
    own : float
        For a label's own channels.
    cross : float
        For the channels of other labels; infinite leaves them out.
    """

    own: float = 30.0
    cross: float = 1000.0


def fit_stack(
    scores: Scores, gold: NDArray[np.bool_], labels: Sequence[str], channels: Sequence[str], *, ridge: Ridge
) -> Stack:
    """Fit a stack on scores of records that neither the text weights nor the bundle had seen.

    The thresholds have the best expected F1 under the probabilities of these records, so that no gold is spent on them:
    with two thousand records that did better than thresholds tuned on held-out gold.

    Parameters
    ----------
    scores : mapping of channel to floating, shape (n, labels)
    gold : bool, shape (n, labels)
    labels, channels : sequence of str
    ridge : Ridge
    """
    inputs = design(scores, channels)
    weight, bias = _fit(inputs, gold, len(channels), ridge)
    return Stack(tuple(labels), tuple(channels), weight, bias, expected_f1_thresholds(inputs @ weight + bias))


def design(scores: Scores, channels: Sequence[str]) -> NDArray[np.float32]:
    """Return the channels side by side: float32, shape (n, channels * labels).

    Raises
    ------
    InvalidInputError
        A channel is missing.
    """
    if missing := [name for name in channels if name not in scores]:
        raise InvalidInputError(
            f"scores lack the channel {missing[0]!r}, expected {', '.join(channels)}", field="scores"
        )
    return np.concatenate([np.clip(scores[name], -_CLIP, _CLIP) for name in channels], axis=1).astype(np.float32)


def _fit(
    inputs: NDArray[np.float32], gold: NDArray[np.bool_], channels: int, ridge: Ridge
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from scipy.optimize import minimize

    count = gold.shape[1]
    own = np.tile(np.eye(count, dtype=np.bool_), (channels, 1))
    penalty = np.where(own, ridge.own, ridge.cross)
    free = np.isfinite(penalty)
    penalty = np.where(free, penalty, 0.0)
    target = gold.astype(np.float32)
    rate = (gold.sum(axis=0) + 0.5) / (len(gold) + 1.0)
    base = logit(rate)
    cut = channels + own.size

    def unpack(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        departure = flat[channels:cut].reshape(own.shape) * free
        return own * np.repeat(flat[:channels], count)[:, None] + departure, departure, flat[cut:] + base

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, departure, bias = unpack(flat)
        loss, residual = cross_entropy(inputs @ weight.astype(np.float32) + bias.astype(np.float32), target, 1.0)
        slope = (inputs.T @ residual).astype(np.float64)
        shared = np.where(own, slope, 0.0).reshape(channels, -1).sum(axis=1)
        loss += float((penalty * departure**2).sum() / 2 + 0.01 * np.square(flat[cut:]).sum() / 2)
        bent = (slope + penalty * departure) * free
        offset = residual.sum(axis=0, dtype=np.float64) + 0.01 * flat[cut:]
        return loss, np.concatenate([shared, bent.ravel(), offset])

    start = np.concatenate([np.full(channels, 1.0 / channels), np.zeros(own.size + count)])
    options = {"maxiter": 120, "maxfun": 200, "maxcor": 10, "ftol": 1e-7}
    weight, _, bias = unpack(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x)
    return weight.astype(np.float32), bias.astype(np.float32)
