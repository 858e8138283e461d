"""The subject's earlier studies as evidence: attention over them, label by label, with time decay.

Each earlier study is a token for each label: what is known of the label then (or what the stored embedding says),
whether that surprises given the ECG of then, how long ago, how alike the two ECGs are. A small network, the same for
all labels, turns a token into a value and an attention logit; a term that never favours the older study is taken off
the logit; what was known of *other* labels adds to the value through one matrix. The values, weighted by attention,
are added to the log-odds of the current ECG. Without earlier studies nothing is added, so the output is the input bit
by bit.

Whoever calls this decides what is earlier: a :class:`Prior` lies strictly before the study that is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import InvalidInputError
from mmecg.prediction.result import Source
from mmecg.prediction.single import EmbeddingHead

MAX_PRIORS = 64
CHANNELS: tuple[str, ...] = (
    "known_value", "is_known", "surprise", "prior_logit", "has_ecg", "current_logit", "logit_change", "prevalence",
    "log_days", "cosine", "rank", "log_found",
)  # fmt: skip
"""What a token says of a label. ``surprise`` is the known value beyond what the ECG of then gives."""

_CLIP = 12.0
_BLOCK = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """What is known of one earlier study.

    Attributes
    ----------
    study_id : str
    days_before : float
        Above 0.
    source : {"labels", "report", "ecg"}
    known : float32, shape (labels,)
        Probability that the study has the label, 0 to 1; NaN where nothing is known.
    embedding : float32, shape (dim,), optional
    """

    study_id: str
    days_before: float
    source: Source
    known: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if not self.days_before > 0:  # also refuses NaN
            raise InvalidInputError(
                f"an earlier study lies {self.days_before} days before the one predicted, expected above 0",
                field="history",
            )


@dataclass(frozen=True)
class HistoryTokens:
    """Earlier studies of a batch, latest first; what a head needs of them.

    Attributes
    ----------
    current : float32, shape (n, labels)
        Log-odds from the current ECG.
    known : float32, shape (n, priors, labels)
        0 to 1, NaN where unknown.
    logits : float32, shape (n, priors, labels)
        Log-odds from the ECG of then; the prevalence's without an embedding.
    has_ecg : bool, shape (n, priors)
    log_days, cosine : float32, shape (n, priors)
    log_found : float32, shape (n,)
    prevalence : float32, shape (labels,)
    mask : bool, shape (n, priors)
        Where a prior is.
    """

    current: NDArray[np.float32]
    known: NDArray[np.float32]
    logits: NDArray[np.float32]
    has_ecg: NDArray[np.bool_]
    log_days: NDArray[np.float32]
    cosine: NDArray[np.float32]
    log_found: NDArray[np.float32]
    prevalence: NDArray[np.float32]
    mask: NDArray[np.bool_]

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> HistoryTokens:
        """Return some rows of the batch."""
        return HistoryTokens(
            self.current[rows], self.known[rows], self.logits[rows], self.has_ecg[rows], self.log_days[rows],
            self.cosine[rows], self.log_found[rows], self.prevalence, self.mask[rows],
        )  # fmt: skip

    @property
    def channels(self) -> NDArray[np.float32]:
        """The tokens: float32, shape (n, priors, labels, channels), in the order of :data:`CHANNELS`."""
        shape = self.known.shape
        seen = np.isfinite(self.known)
        known = np.where(seen, self.known, 0.0)
        current = self.current[:, None, :]
        by_prior = {
            "has_ecg": self.has_ecg,
            "log_days": self.log_days / 3,
            "cosine": self.cosine,
            "rank": np.broadcast_to(np.arange(shape[1]) / 3, shape[:2]),
            "log_found": np.broadcast_to(self.log_found[:, None], shape[:2]),
        }
        values = {
            "known_value": known,
            "is_known": seen,
            "surprise": np.where(seen, known - _expit(self.logits), 0.0),
            "prior_logit": self.logits / 3,
            "current_logit": current / 3,
            "logit_change": np.where(self.has_ecg[:, :, None], self.logits - current, 0.0) / 3,
            "prevalence": _logit(self.prevalence) / 3,
            **{name: np.broadcast_to(value[:, :, None], shape) for name, value in by_prior.items()},
        }
        channels = np.empty((*shape, len(CHANNELS)), np.float32)
        for index, name in enumerate(CHANNELS):
            channels[..., index] = values[name]
        return channels

    @property
    def surprise(self) -> NDArray[np.float32]:
        """Known value beyond what the ECG of then gives; 0 where unknown: float32, shape (n, priors, labels)."""
        gap = self.known - _expit(self.logits)
        return np.nan_to_num(gap, nan=0.0).astype(np.float32)


@dataclass(frozen=True)
class HistoryEffect:
    """What the earlier studies do.

    Attributes
    ----------
    logits : float64, shape (n, labels)
        Of the current study, with its history.
    share : float32, shape (n, priors, labels)
        Attention; the priors of a row sum to 1, 0 where there is none.
    effect : float32, shape (n, priors, labels)
        Log-odds that each prior added.
    """

    logits: NDArray[np.float64]
    share: NDArray[np.float32]
    effect: NDArray[np.float32]

    def through(self, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> HistoryEffect:
        """Return it behind a change of the log-odds: an effect is then what leaving the prior's out takes away.

        Parameters
        ----------
        change : callable
            From and to float64, shape (n, labels).
        """
        logits = change(self.logits)
        without = [change(self.logits - self.effect[:, place]) for place in range(self.effect.shape[1])]
        effect = np.array([logits - one for one in without]).reshape(-1, *logits.shape).swapaxes(0, 1)
        return HistoryEffect(logits, self.share, effect.astype(np.float32))


@dataclass(frozen=True)
class HistoryHead:
    """Attention over earlier studies; fitted by :func:`mmecg.evaluation.history_fitting.fit_history`.

    Attributes
    ----------
    first_weight : float32, shape (channels, hidden)
    first_bias : float32, shape (hidden,)
    second_weight : float32, shape (hidden, hidden)
    second_bias : float32, shape (hidden,)
    out_weight : float32, shape (hidden, 2)
        To value and attention logit.
    out_bias : float32, shape (2,)
    decay : float32, shape (labels,)
        Not negative: taken off the attention logit for each unit of log(1 + days).
    departure : float32, shape (3, labels)
        A label's own additions to the value: constant, times known value, times current log-odds.
    cross : float32, shape (labels, labels)
        From the surprise at one label (rows) to the value of another (columns).
    """

    first_weight: NDArray[np.float32]
    first_bias: NDArray[np.float32]
    second_weight: NDArray[np.float32]
    second_bias: NDArray[np.float32]
    out_weight: NDArray[np.float32]
    out_bias: NDArray[np.float32]
    decay: NDArray[np.float32]
    departure: NDArray[np.float32]
    cross: NDArray[np.float32]

    def apply(self, logits: NDArray[np.float64], tokens: HistoryTokens) -> HistoryEffect:
        """Add the history to log-odds.

        Parameters
        ----------
        logits : float64, shape (n, labels)
            Of the current ECG, as in :func:`build_tokens`.
        tokens : HistoryTokens

        Returns
        -------
        HistoryEffect
            A row without priors keeps its log-odds bit by bit.
        """
        share = np.zeros(tokens.known.shape, np.float32)
        effect = np.zeros(tokens.known.shape, np.float32)
        changed = np.array(logits, np.float64)
        rows = np.flatnonzero(tokens.mask.any(axis=1))
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            share[part], effect[part] = self._attend(tokens.take(part))
            changed[part] += effect[part].sum(axis=1, dtype=np.float64)
        return HistoryEffect(changed, share, effect)

    def _attend(self, tokens: HistoryTokens) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        channels = tokens.channels
        hidden = _silu(channels @ self.first_weight + self.first_bias)
        hidden = _silu(hidden @ self.second_weight + self.second_bias)
        value, attention = np.moveaxis(hidden @ self.out_weight + self.out_bias, -1, 0)
        attention = attention - self.decay * tokens.log_days[:, :, None]
        attention = np.where(tokens.mask[:, :, None], attention, -np.inf)
        share = np.exp(attention - attention.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        constant, by_known, by_current = self.departure
        value = value + constant + by_known * channels[..., 0] + by_current * tokens.current[:, None, :]
        value = value + tokens.surprise @ self.cross
        return share, np.where(tokens.mask[:, :, None], share * value, 0.0).astype(np.float32)


def build_tokens(
    logits: NDArray[np.float64],
    embedding: NDArray[np.float32],
    priors: Sequence[Sequence[Prior]],
    found: Sequence[int],
    head: EmbeddingHead,
    prevalence: NDArray[np.float32],
) -> HistoryTokens:
    """Turn the earlier studies of a batch into tokens.

    Parameters
    ----------
    logits : float64, shape (n, labels)
        Of the current ECGs.
    embedding : float32, shape (n, dim), unit norm
        Of the current ECGs; a row of NaN where there is none.
    priors : sequence of sequence of Prior, length n
        Latest first; at most :data:`MAX_PRIORS` each.
    found : sequence of int, length n
        Earlier studies that there are, also those left out of ``priors``.
    head : EmbeddingHead
    prevalence : float32, shape (labels,)
    """
    n, labels = logits.shape
    most = max((len(row) for row in priors), default=0)
    if most > MAX_PRIORS:
        raise InvalidInputError(f"{most} earlier studies, expected at most {MAX_PRIORS}; take the latest")
    shape = (n, most)
    mask, has_ecg = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    log_days, cosine = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    known = np.full((*shape, labels), np.nan, np.float32)
    expected = np.broadcast_to(_logit(prevalence), known.shape).astype(np.float32)
    places = [(row, place, prior) for row, earlier in enumerate(priors) for place, prior in enumerate(earlier)]
    for row, place, prior in places:
        mask[row, place] = True
        log_days[row, place] = np.log1p(prior.days_before)
        known[row, place] = prior.known
        has_ecg[row, place] = prior.embedding is not None and bool(np.isfinite(embedding[row, 0]))
    ecgs = [(row, place, prior.embedding) for row, place, prior in places if prior.embedding is not None]
    if ecgs:
        row, place = np.array([(row, place) for row, place, _ in ecgs]).T
        stored = np.stack([one for _, _, one in ecgs])
        expected[row, place] = np.clip(head.logits(stored), -_CLIP, _CLIP)
        cosine[row, place] = np.nan_to_num(np.einsum("nd,nd->n", stored, embedding[row]))
    return HistoryTokens(
        current=np.clip(logits, -_CLIP, _CLIP).astype(np.float32),
        known=known,
        logits=expected,
        has_ecg=has_ecg,
        log_days=log_days,
        cosine=cosine,
        log_found=np.log(np.maximum(found, 1)).astype(np.float32).reshape(n),
        prevalence=prevalence,
        mask=mask,
    )


def last_known(priors: Sequence[Sequence[Prior]], labels: int) -> NDArray[np.int8]:
    """Return what the latest earlier study that knows a label says of it: int8, shape (n, labels).

    0 nothing is known, 1 it was absent (a probability below 0.5), 2 it was present.
    """
    category = np.zeros((len(priors), labels), np.int8)
    for row, earlier in enumerate(priors):
        for prior in reversed(earlier):
            seen = np.isfinite(prior.known)
            category[row, seen] = np.where(prior.known[seen] >= 0.5, 2, 1)
    return category


def _silu(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(value * _expit(value), np.float32)


def _expit(value: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * value)))


def _logit(share: NDArray[np.float32]) -> NDArray[np.floating]:
    safe = np.clip(share.astype(np.float64), 1e-4, 1 - 1e-4)
    return np.asarray(np.log(safe / (1 - safe)))
