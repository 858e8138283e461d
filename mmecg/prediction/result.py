"""What a prediction says: values only, so that a thin client can hold them.

Labels are the 71 SCP-ECG statements of PTB-XL by their names (``"AFIB"``) and the five diagnostic superclasses as
``"superclass/MI"``, because ``NORM`` is both a statement and a superclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS
from mmecg.errors import QueryError
from mmecg.prediction.measured import Comparison, Measurement

SUPERCLASS_PREFIX = "superclass/"
Decision = Literal["present", "absent", "undecided", "not_supported"]
Source = Literal["labels", "report", "ecg"]
"""What is known of an earlier study: its labels, else what its report says, else its ECG alone."""

Method = Literal["integrated_gradients", "occlusion"]
METHODS: tuple[str, ...] = get_args(Method)
"""How a prediction can be explained; see :mod:`mmecg.prediction.explain`."""

FLAGS: dict[str, str] = {
    "no_subject": "no subject was given, so no history was looked for",
    "unknown_subject": "the corpus does not know the subject; the answer rests on this ECG alone",
    "no_history": "the subject has no study before as_of",
    "no_as_of": "neither as_of nor the time of the study was given, so nothing counts as earlier",
    "history_truncated": "the subject has more earlier studies than are used; the latest were taken",
    "as_of_in_future": "as_of lies in the future",
    "before_birth": "as_of lies before the subject was born, by an age that a study of theirs gives",
    "implausible_vitals": "vitals contradict each other or an earlier study and were left out",
    "no_cohort": "the corpus has too few labelled studies of other subjects that may vote",
    "not_calibrated": "the recording is not 12 leads of 10 s, which is what the calibration is for",
    "novel": "the recording is unlike those the model knows",
    "undated_history": "studies without a time among those that the caller added were left out",
    "later_history": "studies that the caller added but not before as_of or the time of the study were left out",
    "same_recording": "an earlier study that holds this very recording was left out",
    "from_notes": "notes written before the ECG state labels of the past, which entered like an earlier study",
    "no_ecg": "the study has no ECG: the answer rests on its text, or on prevalence, and nothing is promised of it",
}
"""What a prediction may be flagged with, and what that means."""

ABSTAIN_REASONS: dict[str, str] = {
    "quality": "the recording is too poor",
    "novelty": "the recording is unlike those the model knows",
    "uncertain": "the model is among its least certain",
}
"""Why a prediction may abstain as a whole; single labels say why in :attr:`LabelPrediction.reason`."""


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What is asked for.

    Attributes
    ----------
    labels : tuple of str, optional
        Labels to predict, or ``"all"`` / ``"superclass"``, or names of another vocabulary (``"snomed:164889003"``);
        default all that have a head.
    level : float
        Promised coverage of the conformal sets, 0.5 to 0.99.
    abstain_share : float
        Share of studies like those of the calibration fold on which the model abstains as too uncertain, 0 to 0.9.
    prevalence : mapping of str to float
        Prevalence of a label at the caller's site, between 0 and 1, exclusive; the probability is shifted to it.
    use_history, use_cohort : bool
        Whether earlier studies of the subject and notes, and studies of others, may count.
    cohort_before_as_of : bool
        Whether only studies of others acquired before ``as_of`` (or the study, if that is earlier) vote, as in a
        retrospective study that asks what was known then; without a time nobody votes. Default no: many archives shift
        the dates of every patient by another amount, and which studies come first means nothing there.
    max_history : int
        Earlier studies that are used, at most; the latest are.
    """

    labels: tuple[str, ...] | None = None
    level: float = 0.9
    abstain_share: float = 0.1
    prevalence: Mapping[str, float] = field(default_factory=dict)
    use_history: bool = True
    use_cohort: bool = True
    cohort_before_as_of: bool = False
    max_history: int = 16

    def __post_init__(self) -> None:
        for name in ("use_history", "use_cohort", "cohort_before_as_of"):
            if not isinstance(flag := getattr(self, name), bool):
                raise QueryError(f"{name} is of type {type(flag).__name__}, expected bool", field=f"options.{name}")
        for name, kind, low, high in (
            ("level", (int, float), 0.5, 0.99),
            ("abstain_share", (int, float), 0.0, 0.9),
            ("max_history", (int,), 1, 64),
        ):
            value: Any = getattr(self, name)
            if not isinstance(value, kind):
                what = "a whole number" if kind == (int,) else "a number"
                got = f"{value}" if isinstance(value, float) else f"of type {type(value).__name__}"
                raise QueryError(f"{name} is {got}, expected {what}", field=f"options.{name}")
            if not low <= value <= high:  # also refuses NaN
                raise QueryError(f"{name} is {value}, expected {low:g} to {high:g}", field=f"options.{name}")
        shares: Mapping[str, Any] = self.prevalence
        for label, share in shares.items():
            if not isinstance(share, int | float) or not 0 < share < 1:
                got = f"{share}" if isinstance(share, int | float) else f"of type {type(share).__name__}"
                message = f"prevalence of {label[:40]!r} is {got}, expected a number above 0 and below 1"
                raise QueryError(message, field="options.prevalence")


@dataclass(frozen=True, kw_only=True)
class LabelPrediction:
    """What is predicted for one label.

    Attributes
    ----------
    label : str
    probability : float
        Calibrated, with everything that was used; NaN if the recording does not support the label.
    low, high : float
        Venn-Abers interval of the probability.
    single : float
        Calibrated probability without history: from this ECG, the vitals and the cohort (``current`` in the tables of
        :mod:`mmecg.evaluation`); equals ``probability`` if there is no history.
    spread : float
        Standard deviation of the ensemble's log-odds.
    conformal_set : tuple of bool
        Values that cannot be excluded at the promised level: ``(True,)``, ``(False,)``, both, or none.
    decision : {"present", "absent", "undecided", "not_supported"}
        ``present`` and ``absent`` if the conformal set has that value alone, and it is the likelier one.
    reason : str
        Why it is undecided or not supported; empty otherwise.
    """

    label: str
    probability: float
    low: float
    high: float
    single: float
    spread: float
    conformal_set: tuple[bool, ...]
    decision: Decision
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PriorEvidence:
    """An earlier study of the subject that moved the prediction.

    Attributes
    ----------
    study_id : str
    days_before : float
    source : {"labels", "report", "ecg"}
    similarity : float
        Cosine of its ECG embedding with the new one; NaN without an ECG.
    weight : float
        Share of the history's attention, averaged over the labels that were asked for; the shares of earlier studies
        and notes sum to 1.
    effects : mapping of str to float
        Log-odds that it added to each label whose probability it moved most, that first.
    """

    study_id: str
    days_before: float
    source: Source
    similarity: float
    weight: float
    effects: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NoteFinding:
    """What a note states, and where; never the words.

    Attributes
    ----------
    note : int
        Position among the notes of the study, from 0; -1 for the one that came with the request.
    start, end : int
        Code point offsets into that note.
    finding : str
        Identifier in the vocabulary.
    status : str
        ``"present"``, ``"probable"``, ``"historical"`` or ``"negated"`` (:class:`mmecg.labels.assertion.Status`).
    """

    note: int
    start: int
    end: int
    finding: str
    status: str


@dataclass(frozen=True, kw_only=True)
class NotesEvidence:
    """What notes written before the ECG did to the prediction.

    Attributes
    ----------
    weight : float
        As in :class:`PriorEvidence`; NaN where they answered in the place of an ECG, not beside one.
    effects : mapping of str to float
        As in :class:`PriorEvidence`.
    said : tuple of NoteFinding
    """

    weight: float
    effects: Mapping[str, float] = field(default_factory=dict)
    said: tuple[NoteFinding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NeighbourEvidence:
    """A similar study of another subject: its vote's weight (the votes sum to 1), and its labels among those asked."""

    study_id: str
    score: float
    weight: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelChange:
    """A label beside the last earlier study in which it is known.

    Attributes
    ----------
    label : str
    change : {"new", "gone", "persists"}
        From the decision of the new ECG and the known value of the earlier study.
    prior_study_id : str
    days_before : float
    source : {"labels", "report", "ecg"}
    probability : float
    serial : tuple of str
        Serial findings of the vocabulary that this answers, such as ``"no_longer_evident"`` ones.
    """

    label: str
    change: Literal["new", "gone", "persists"]
    prior_study_id: str
    days_before: float
    source: Source
    probability: float
    serial: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """How sure the prediction is as a whole.

    Attributes
    ----------
    expected_errors : float
        Mean over the labels of the smaller of probability and its complement.
    rank : float
        Share of calibration studies that were surer, 0 to 1.
    spread : float
        Mean spread of the ensemble over the labels.
    novelty : float
        Probability that the recording is not an ordinary adult 12-lead ECG, 0 to 1.
    novelty_kind : str
        What it most resembles (``"noise"``, ``"limb_swap"``, ``"inverted"``, ``"not_ecg"``, …); empty below 0.5.
    """

    expected_errors: float
    rank: float
    spread: float
    novelty: float
    novelty_kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer.

    Attributes
    ----------
    labels : tuple of LabelPrediction
        In the order asked for.
    changes : tuple of LabelChange
        ``new`` and ``gone`` first.
    priors : tuple of PriorEvidence
        Latest first.
    neighbours : tuple of NeighbourEvidence
        Nearest first; empty if the cohort was not used.
    measurements : tuple of Measurement
    comparison : Comparison, optional
        With the latest earlier study that has an ECG; None if there is none, or one of the two cannot be read.
    uncertainty : Uncertainty
    abstained : bool
        True if the whole prediction should not be acted upon; the probabilities are given all the same.
    abstain_reasons : tuple of str
        Keys of :data:`ABSTAIN_REASONS`.
    flags : tuple of str
        Keys of :data:`FLAGS`.
    history_found : int
        Earlier studies of the subject in the corpus and among those that the caller added.
    history_used : int
    history_refused : int
        Studies that the caller added but that are undated or not earlier, so that they were left out.
    notes : NotesEvidence, optional
        None if no note states anything.
    as_of : datetime, optional
        From when on the future began: the earlier of what was asked for and the time of the study.
    level : float
    fingerprint : str
        Of the bundle.
    """

    labels: tuple[LabelPrediction, ...]
    changes: tuple[LabelChange, ...]
    priors: tuple[PriorEvidence, ...]
    neighbours: tuple[NeighbourEvidence, ...]
    measurements: tuple[Measurement, ...]
    uncertainty: Uncertainty
    abstained: bool
    abstain_reasons: tuple[str, ...]
    flags: tuple[str, ...]
    history_found: int
    history_used: int
    as_of: datetime | None
    level: float
    fingerprint: str
    history_refused: int = 0
    notes: NotesEvidence | None = None
    comparison: Comparison | None = None

    def __getitem__(self, label: str) -> LabelPrediction:
        """Return the prediction of a label. Raises ``KeyError`` if it was not asked for."""
        for one in self.labels:
            if one.label == label:
                return one
        raise KeyError(label)


@dataclass(frozen=True, eq=False)
class Saliency:
    """What each lead adds to the log-odds of a label, moment by moment.

    Attributes
    ----------
    label : str
    method : {"integrated_gradients", "occlusion"}
    values : float32, shape (leads=12, samples), log-odds
        Above 0 speaks for the label; 0 for a lead that was not recorded.
    sampling_rate_hz : float
        Of the values: the tower's, unless :meth:`summed` lowered it. They cover the first 10 s at most.
    logit, baseline_logit : float
        Log-odds of the recording, and of a flat line.
    """

    label: str
    method: str
    values: NDArray[np.float32]
    sampling_rate_hz: float
    logit: float
    baseline_logit: float

    @property
    def lead_shares(self) -> Mapping[str, float]:
        """Share of each lead in the magnitude of the saliency, largest first."""
        size = np.abs(self.values).sum(axis=1)
        total = float(size.sum()) or 1.0
        return {LEADS[lead]: float(size[lead]) / total for lead in np.argsort(-size, kind="stable")}

    def summed(self, sampling_rate_hz: float) -> Saliency:
        """Return the same at a lower rate, each value the sum of those in its time, so that they add up to the same.

        Parameters
        ----------
        sampling_rate_hz : float
            At least 1; from its own on, nothing changes.

        Raises
        ------
        QueryError
            Below 1.
        """
        if not sampling_rate_hz >= 1:  # also refuses NaN
            message = f"sampling_rate_hz is {sampling_rate_hz:g}, expected at least 1"
            raise QueryError(message, field="sampling_rate_hz")
        if sampling_rate_hz >= self.sampling_rate_hz:
            return self
        step = self.sampling_rate_hz / sampling_rate_hz
        starts = np.ceil(np.arange(0, self.values.shape[1], step)).astype(np.int64)
        values = np.add.reduceat(self.values, starts[starts < self.values.shape[1]], axis=1)
        return replace(self, values=values, sampling_rate_hz=sampling_rate_hz)
