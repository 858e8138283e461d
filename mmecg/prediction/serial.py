"""The recording beside the latest earlier one: what was measured in both, and which serial findings that answers.

A change is told only where it is larger than what lies between two recordings of a patient who has not changed: the
95th percentile of the pairs of consecutive studies on folds 1 to 7 of PTB-XL that are at most 7 days apart and were
given the same statements (229 pairs). One such pair in twenty is therefore called changed, by each of the limits.

QT is measured but not compared: 52 ms at a rate of 60, the limit of unchanged pairs, is exceeded in no more of all
pairs (4.5 %), so that most of what it told would be error.

The findings that this answers are :data:`ANSWERED`; what appears or disappears is answered by the labels
(:mod:`mmecg.prediction.changes`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmecg.ecg import LEADS, Ecg
from mmecg.prediction.answer import poor_leads
from mmecg.prediction.compare import changed_leads
from mmecg.prediction.earlier import Earlier
from mmecg.prediction.history import Prior
from mmecg.prediction.measure import Reading, read_beats
from mmecg.prediction.measured import Comparison, LeadChange, MeasuredChange
from mmecg.prediction.result import LabelChange
from mmecg.quality import assess_quality
from mmecg.retriever import get_present
from mmecg.search import CorpusStore

DIFFERENCES: dict[str, float] = {"heart_rate_bpm": 25.0, "qrs_duration_ms": 13.0}
"""Limits of differences: the 95th percentiles, rounded."""

FACTORS: dict[str, float] = {"qrs_amplitude_mv": 1.19, "t_amplitude_mv": 1.68}
"""Limits of ratios, of amplitudes over all leads that both recordings have: the 95th percentiles, rounded."""

LEAD_LIMITS: dict[str, float] = {"st_level_mv": 0.08, "t_amplitude_mv": 0.2}
"""Limits of the difference in single leads, of those alone whose ST-T is marked (:mod:`mmecg.prediction.compare`): two
leads are beyond them in one unchanged pair in twenty."""

MIN_LEADS = 2
"""Leads that must agree: one alone may be a loose electrode. Two are asked for ST in the universal definition of
myocardial infarction (Thygesen et al., Circulation 138:e618, 2018)."""

ST_MV, T_MV = 0.05, 0.1
"""From where on ST counts as depressed or elevated (Thygesen et al. 2018), and T as inverted (the same), in a lead."""

_MORE_OR_LESS: tuple[tuple[str, str, str, float], ...] = (
    ("STD_", "SERIAL_ST_DEPRESSION", "st_level_mv", -ST_MV),
    ("STE_", "SERIAL_ST_ELEVATION", "st_level_mv", ST_MV),
    ("INVT", "SERIAL_T_INVERSION", "t_amplitude_mv", -T_MV),
)
_T_AMPLITUDE = {"increased": "SERIAL_T_AMPLITUDE_INCREASED", "decreased": "SERIAL_T_AMPLITUDE_DECREASED"}
ANSWERED: frozenset[str] = frozenset(
    [*_T_AMPLITUDE.values()]
    + [f"{stem}_{way}" for _, stem, _, _ in _MORE_OR_LESS for way in ("MORE", "LESS")]
    + ["SERIAL_ST_CHANGE", "SERIAL_CHANGE", "SERIAL_NO_CHANGE"]
)
"""Serial findings of the vocabulary that measurements answer."""


def compare(
    now: Reading, before: Reading, prior: Prior, changes: Sequence[LabelChange], *, complete: bool = True
) -> Comparison | None:
    """Return what lies between two recordings of a subject; None if the beats of one of them cannot be trusted.

    Parameters
    ----------
    now, before : Reading
    prior : Prior
        The study of the earlier recording.
    changes : sequence of LabelChange
        Of the labels, beside any earlier study.
    complete : bool
        Whether all labels were asked for; of some alone nobody can say that nothing changed.
    """
    if now.beat is None or before.beat is None:
        return None
    leads, measured = changed_leads(now, before), measured_changes(now, before)
    since = {one.label: one.change for one in changes if one.prior_study_id == prior.study_id}
    said = {name for one in changes if one.prior_study_id == prior.study_id for name in one.serial}
    said |= {
        _T_AMPLITUDE[one.change] for one in measured if one.name == "t_amplitude_mv" and one.change in _T_AMPLITUDE
    }
    marked = np.isin(LEADS, [one.lead for one in leads if one.part == "st_t"])
    said |= _more_or_less(now, before, since, marked)
    st = marked & (np.abs(_difference(now, before, "st_level_mv")) > LEAD_LIMITS["st_level_mv"])
    if not any(name.startswith("SERIAL_ST_") for name in said) and _many(st):
        said.add("SERIAL_ST_CHANGE")
    whole = _whole(leads, measured, since, labelled=complete and prior.source != "ecg")
    return Comparison(
        prior_study_id=prior.study_id,
        days_before=prior.days_before,
        leads=leads,
        measured=measured,
        serial=tuple(sorted(said | whole)),
    )


def compare_with_latest(
    now: Reading | None,
    priors: Sequence[Prior],
    earlier: Earlier,
    corpus: CorpusStore | None,
    changes: Sequence[LabelChange],
    *,
    complete: bool,
) -> Comparison | None:
    """Return :func:`compare` with :func:`latest_recording`; None if there is none, or its beats cannot be trusted."""
    found = latest_recording(priors, earlier, corpus) if now and now.beat else None
    if now is None or found is None:
        return None
    prior, ecg = found
    return compare(now, read_beats(ecg, unreadable=poor_leads(assess_quality(ecg))), prior, changes, complete=complete)


def latest_recording(priors: Sequence[Prior], earlier: Earlier, corpus: CorpusStore | None) -> tuple[Prior, Ecg] | None:
    """Return the latest earlier study that has an ECG, and the ECG; None if there is none.

    Parameters
    ----------
    priors : sequence of Prior
        Latest first.
    earlier : Earlier
        The studies themselves, for those that the caller added.
    corpus : CorpusStore, optional
        Where the others are; one deleted meanwhile is passed over.
    """
    added = {study.study_id: study.ecg for study in earlier.studies if study.study_id in earlier.added}
    for prior in priors:
        if prior.embedding is None:
            continue
        if prior.study_id in added:
            ecg = added[prior.study_id]
        else:
            stored = get_present(corpus, [prior.study_id], with_signal=True) if corpus is not None else []
            ecg = stored[0].ecg if stored else None
        if ecg is not None:
            return prior, ecg
    return None


def measured_changes(now: Reading, before: Reading) -> tuple[MeasuredChange, ...]:
    """Return what could be measured in both, and whether it changed."""
    both = now.lead_mask & before.lead_mask
    found = []
    for name, limit in (*DIFFERENCES.items(), *FACTORS.items()):
        value, was = (_value(one, name, both) for one in (now, before))
        if not (value > 0 and was > 0):  # also NaN
            continue
        beyond = (value - was) / limit if name in DIFFERENCES else math.log(value / was) / math.log(limit)
        change: Literal["increased", "decreased", "unchanged"]
        change = "unchanged" if abs(beyond) <= 1 else "increased" if beyond > 0 else "decreased"
        found.append(MeasuredChange(name=name, now=value, before=was, change=change, limit=limit))
    return tuple(found)


def _value(reading: Reading, name: str, leads: NDArray[np.bool_]) -> float:
    """Return a measurement of the recording, of amplitudes the root mean square of leads; NaN if there is none."""
    if name in FACTORS:
        values = of_leads(reading, name)[leads]
        return float(np.sqrt(np.mean(np.square(values)))) if len(values) else math.nan
    return reading.values.get((name, ""), math.nan)


def of_leads(reading: Reading, name: str) -> NDArray[np.float64]:
    """Return a measurement of every lead: float64, shape (leads=12,); NaN where there is none."""
    return np.array([reading.values.get((name, lead), math.nan) for lead in LEADS])


def _difference(now: Reading, before: Reading, name: str) -> NDArray[np.float64]:
    return of_leads(now, name) - of_leads(before, name)


def _more_or_less(now: Reading, before: Reading, since: Mapping[str, str], marked: NDArray[np.bool_]) -> set[str]:
    """Return which of the findings that persist became more or less: in two leads that show it now, or did before."""
    said = set()
    for label, stem, name, limit in _MORE_OR_LESS:
        if since.get(label) != "persists":
            continue
        sign = math.copysign(1.0, limit)
        grown = sign * _difference(now, before, name)
        for way, there, more in (("MORE", now, grown), ("LESS", before, -grown)):
            shown = sign * of_leads(there, name) >= abs(limit)
            if _many(marked & shown & (more > LEAD_LIMITS[name])):
                said.add(f"{stem}_{way}")
    return said


def _many(leads: NDArray[np.bool_]) -> bool:
    return int(leads.sum()) >= MIN_LEADS


def _whole(
    leads: Sequence[LeadChange], measured: Sequence[MeasuredChange], since: Mapping[str, str], *, labelled: bool
) -> set[str]:
    """Return whether the whole ECG changed: by a label, a measurement other than rate, or two leads in one part.

    Nothing is said where only the rate changed, and no change is claimed where the labels of then are not known.
    """
    labels = any(change in ("new", "gone") for change in since.values())
    moved = {one.name for one in measured if one.change != "unchanged"}
    marked = any(sum(one.part == part for one in leads) >= MIN_LEADS for part in ("qrs", "st_t"))
    if labels or marked or moved - {"heart_rate_bpm"}:
        return {"SERIAL_CHANGE"}
    return {"SERIAL_NO_CHANGE"} if labelled and not moved else set()
