"""What each subset of the evidence is worth: ECG, vitals, notes, earlier studies, studies of others, text alone.

PTB-XL has no notes. The report of the patient's latest earlier record stands in for one, undated, as if the clinician
had summed it up beside the new ECG; the control is the note of another patient. Real notes say less, and other things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.evaluation.bootstrap import interval
from mmecg.evaluation.prediction_cases import Cases, Part
from mmecg.evaluation.prediction_data import PredictionData, history_of, priors_of
from mmecg.evaluation.prediction_history import other_owners
from mmecg.evaluation.prediction_systems import Current, Logits, WithHistory
from mmecg.labels.logistic import logit
from mmecg.prediction.history import Prior
from mmecg.prediction.known import KnownLabels
from mmecg.prediction.notes import UNDATED_DAYS, findings_of, stated
from mmecg.prediction.predictor import NOTES_ALONE
from mmecg.prediction.vitals_head import VitalsHead

SUBSET = "subset/"
"""Begins the names of systems that are here to be compared with each other, not as controls of the history."""

MODALITIES: dict[str, str] = {
    "ecg": "ECG",
    f"{SUBSET}ecg_vitals": "ECG, vitals",
    f"{SUBSET}ecg_notes": "ECG, notes",
    f"{SUBSET}ecg_vitals_notes": "ECG, vitals, notes",
    "no_cohort": "ECG, history",
    "single": "ECG, other patients",
    "current": "ECG, vitals, other patients",
    f"{SUBSET}notes": "ECG, vitals, other patients, notes",
    f"{SUBSET}other_notes": "ECG, vitals, other patients, notes of another patient (control)",
    "labels_only": "ECG, vitals, other patients, labels of earlier studies",
    "embeddings_only": "ECG, vitals, other patients, ECGs of earlier studies",
    "reports_only": "ECG, vitals, other patients, ECGs and reports of earlier studies",
    "history": "ECG, vitals, other patients, ECGs and labels of earlier studies (history)",
    f"{SUBSET}history_notes": "ECG, vitals, other patients, history, notes",
    "control_carry_forward": "no ECG: the last known labels as they were",
    f"{SUBSET}vitals_only": "no ECG: vitals",
    f"{SUBSET}notes_only": "no ECG: notes",
    f"{SUBSET}vitals_notes_only": "no ECG: vitals, notes",
    f"{SUBSET}history_only": "no ECG: vitals, history",
    f"{SUBSET}report_only": "no ECG: its report (text alone)",
}
"""Subsets of the evidence, by the system that uses them."""


@dataclass(frozen=True)
class Bases:
    """Log-odds without history, each float64, shape (n, labels).

    Attributes
    ----------
    ecg, with_vitals, current
        Of the ECG, with vitals, with the votes of others as well; superclasses not joined yet.
    rates, vitals_alone
        Without an ECG: prevalence, and with vitals.
    """

    ecg: Logits
    with_vitals: Logits
    current: Logits
    rates: Logits
    vitals_alone: Logits

    @classmethod
    def of(
        cls, current: Current, channels: NDArray[np.float32], vitals: VitalsHead, prevalence: NDArray[np.float32]
    ) -> Bases:
        """Return those of records, by their vitals (:attr:`PredictionData.vitals`) and the heads."""
        rates = np.tile(logit(prevalence), (len(channels), 1))
        with_vitals = vitals.apply(current.ecg, channels)
        return cls(current.ecg, with_vitals, current.current, rates, vitals.apply_alone(rates, channels))


def subset_systems(
    data: PredictionData,
    bases: Bases,
    add: Callable[[Logits, PredictionData], WithHistory],
    finish: Callable[[Logits], Logits],
    *,
    seed: int,
) -> dict[str, Logits]:
    """Return the log-odds of the subsets that :func:`mmecg.evaluation.prediction_systems.systems_of` does not have.

    Parameters
    ----------
    data : PredictionData
    bases : Bases
    add : callable
        From log-odds and records to what adds histories to them.
    finish : callable
        Joins superclasses with their statements where there is an ECG.
    seed : int
        Of the control.

    Returns
    -------
    mapping of str to float64, shape (n, labels)
        Records without an earlier one have no notes and no history.
    """
    earlier, known = priors_of(data), KnownLabels(data.labels)
    followed = np.flatnonzero([bool(rows) for rows in earlier])
    if not len(followed):
        return {}
    reports = data.table["report_raw"].fill_null("").to_list()
    latest = np.array([earlier[row][-1] for row in followed.tolist()])
    strange = latest[other_owners(data.subject_ids[followed], seed=seed)]
    notes, others = ([_note(reports[row], known) for row in rows.tolist()] for rows in (latest, strange))
    own = history_of(data, earlier, rows=followed)
    both = [[*history, *note] for history, note in zip(own, notes, strict=True)]
    blind = replace(data, embedding=np.full_like(data.embedding, np.nan))

    def added(base: Logits, histories: Sequence[Sequence[Prior]], records: PredictionData = data) -> Logits:
        found = np.array(base)
        found[followed] = add(base, records)(followed, histories)
        return found

    with_ecg = {
        "ecg_vitals": bases.with_vitals,
        "ecg_notes": added(bases.ecg, notes),
        "ecg_vitals_notes": added(bases.with_vitals, notes),
        "notes": added(bases.current, notes),
        "other_notes": added(bases.current, others),
        "history_notes": added(bases.current, both),
    }
    finished = {name: finish(logits) for name, logits in with_ecg.items()}
    finished |= _without_ecg(bases, known, reports, followed, latest)
    finished["history_only"] = added(bases.vitals_alone, own, blind)
    return {SUBSET + name: logits for name, logits in finished.items()}


def _without_ecg(
    bases: Bases, known: KnownLabels, reports: Sequence[str], followed: NDArray[np.int64], latest: NDArray[np.int64]
) -> dict[str, Logits]:
    """Return what vitals and texts say alone, by the reports of all records and the latest one of the followed."""
    said = np.zeros_like(bases.rates)
    said[followed] = NOTES_ALONE * np.stack([_beyond(known, reports[row], bases.rates[0]) for row in latest.tolist()])
    return {
        "vitals_only": bases.vitals_alone,
        "notes_only": bases.rates + said,
        "vitals_notes_only": bases.vitals_alone + said,
        "report_only": bases.rates + np.stack([_beyond(known, text, bases.rates[0]) for text in reports]),
    }


def _note(text: str, known: KnownLabels) -> list[Prior]:
    """Return what a text states as an undated earlier study, or nothing."""
    values = stated(findings_of(text, known), known)
    if not np.isfinite(values).any():
        return []
    return [Prior(study_id="", days_before=UNDATED_DAYS, source="report", known=values)]


def _beyond(known: KnownLabels, text: str, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a text says as a report, beyond the rates: float64, shape (labels,), log-odds."""
    logits = known.text_logits(text)
    return np.zeros_like(rates) if logits is None else logits - rates


def modalities(cases: Cases, suffix: str = "") -> Part:
    """Return macro-AUROC of every subset of the evidence on studies with an earlier one; the full set is the row."""
    followed = cases.take(cases.priors > 0)
    part = followed.task("all")
    names = {name: words for name, words in MODALITIES.items() if name in part.systems}
    aurocs = {name: part.aurocs(name) for name in names}
    kept = aurocs["history"].enough
    if not kept.any():
        return Part(())
    best = aurocs["history"].macro()
    lines = []
    for name, words in names.items():
        figure, loss = aurocs[name].macro(), aurocs[name].gain_over(aurocs["history"])
        bounds, spread = interval(figure.samples), interval(loss.samples)
        lines.append(
            {"evidence": words, "studies": len(part), "labels": int(kept.sum()), "auroc": figure.value,
             "low": bounds.low, "high": bounds.high, "beside_history": loss.value, "beside_history_low": spread.low,
             "beside_history_high": spread.high}
        )  # fmt: skip
    for name, value in part.macro_baselines(kept).items():
        lines.append(
            {"evidence": f"{name.replace('_', ' ')} (baseline)", "studies": len(part), "labels": int(kept.sum()),
             "auroc": value, "beside_history": value - best.value}
        )  # fmt: skip
    table = pl.DataFrame(lines, infer_schema_length=None)
    others = {f"auroc_{name.removeprefix(SUBSET)}": found.macro().value for name, found in aurocs.items()}
    key = f"modalities/all_evidence{suffix}"
    rows = [best.row(key, len(part), part.macro_baselines(kept), n_labels=int(kept.sum()), **others)]
    for name, what in (("notes", "notes_gain"), ("other_notes", "control_other_notes")):
        if SUBSET + name in aurocs:
            gain = aurocs[SUBSET + name].gain_over(aurocs["current"])
            extra = {"n_labels": int(kept.sum()), "auroc_without": aurocs["current"].macro().value}
            rows.append(gain.row(f"modalities/{what}{suffix}", len(part), {"prevalence": 0.0}, **extra))
    return Part(tuple(rows), {f"modalities{suffix.replace('/', '_')}": table})
