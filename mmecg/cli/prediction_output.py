"""What ``mmecg predict`` prints and draws: tables for people, plain values for programs, panels for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmecg.cli.output import describe_labels, describe_vitals, note, print_table, shorten

if TYPE_CHECKING:
    from mmecg.plotting import Panel
    from mmecg.prediction.measured import Comparison, MeasuredChange, Measurement
    from mmecg.prediction.query import PredictionQuery
    from mmecg.prediction.result import (
        LabelChange,
        LabelPrediction,
        NoteFinding,
        Prediction,
        Saliency,
    )
    from mmecg.study import Study

SHOWN_FROM = 0.1
"""Probability from which on a label is printed if nobody asked for it by name."""

_SUPERCLASS_NAMES = {
    "NORM": "normal ECG",
    "MI": "any myocardial infarction",
    "STTC": "any ST/T change",
    "CD": "any conduction disturbance",
    "HYP": "any hypertrophy",
}
_PARTS = {"qrs": "QRS", "st_t": "ST-T"}
_UNDECIDED = {"both": "both fit", "neither": "neither fits", "the one value": "is less likely"}
_SHOWN_NEIGHBOURS = 5
_SHOWN_EFFECTS = 5
_DAYS_A_YEAR = 365.25


def prediction_as_json(found: Prediction, maps: Sequence[Saliency]) -> dict[str, Any]:
    """Return a prediction as plain values; what is not a number is null."""
    values: dict[str, Any] = _plain(asdict(found))
    if found.as_of is not None:
        values["as_of"] = found.as_of.isoformat()
    values["saliency"] = [
        _plain({"label": one.label, "method": one.method, "logit": one.logit, "lead_shares": dict(one.lead_shares)})
        for one in maps
    ]
    return values


def print_prediction(found: Prediction, maps: Sequence[Saliency], *, everything: bool) -> None:
    """Print tables of labels, earlier studies and similar ones, and notes with flags and abstention.

    Parameters
    ----------
    found : Prediction
    maps : sequence of Saliency
    everything : bool
        Print also labels that are absent and unlikely.
    """
    changed = {one.label: one for one in found.changes}
    shown = [one for one in found.labels if everything or _is_telling(one, changed)]
    rows = [_label_row(one, changed.get(one.label)) for one in shown]
    columns = [
        "label",
        "finding",
        "probability>",
        "interval>",
        "no history>",
        f"set at {found.level:.0%}",
        "decision",
        "change, or why",
    ]
    print_table(_title(found), columns, rows)
    if found.priors:
        print_table(
            f"Earlier studies that were used ({found.history_used} of {found.history_found})",
            ["study", "before>", "known from", "similarity>", "weight>", "moved, log-odds"],
            [
                [one.study_id, span(one.days_before), one.source, _number(one.similarity), f"{one.weight:.2f}",
                 describe_effects(one.effects)]
                for one in found.priors
            ],
        )  # fmt: skip
    if found.notes is not None:
        said = [(one.finding, one.status, where_of(one)) for one in found.notes.said]
        moved = f"; moved {describe_effects(found.notes.effects)}" if found.notes.effects else ""
        note(f"notes say {', '.join(f'{finding} {status} ({where})' for finding, status, where in said)}{moved}")
    if found.neighbours:
        print_table(
            f"Similar studies of others, {min(_SHOWN_NEIGHBOURS, len(found.neighbours))} of {len(found.neighbours)}",
            ["study", "score>", "vote>", "labels"],
            [
                [one.study_id, f"{one.score:.3f}", f"{one.weight:.3f}", ", ".join(one.labels)]
                for one in found.neighbours[:_SHOWN_NEIGHBOURS]
            ],
        )
    print_measurements(found)
    if maps:
        print_table("Where in the ECG", ["label", "leads, share of the saliency"], [_saliency_row(one) for one in maps])
    _print_notes(found, len(found.labels) - len(shown))


def print_measurements(found: Prediction) -> None:
    """Print what is measured, beside the latest earlier recording, and notes with the leads that changed.

    Amplitudes of single leads are not printed; ``--json`` has them.
    """
    comparison = found.comparison
    before = {one.name: one for one in comparison.measured} if comparison else {}
    shown = [one for one in found.measurements if not one.lead]
    rows = [_measurement_row(one, before.get(one.name), found.level) for one in shown]
    listed = {one.name for one in shown}
    rows += [
        [one.name, _number_of(one.now), "", _number_of(one.before), one.change]
        for one in before.values()
        if one.name not in listed
    ]
    if rows:
        then = f"{span(comparison.days_before)} before>" if comparison else "before>"
        print_table("Measured", ["what", "now>", "range>", then, "change"], rows)
    if comparison and comparison.leads:
        said = ", ".join(f"{lead} ({part})" for lead, part in changed_parts(comparison).items())
        note(f"median beats differ from study {comparison.prior_study_id} in {said}")
    if comparison and comparison.serial:
        note(f"beside study {comparison.prior_study_id}: {', '.join(map(_name, comparison.serial))}")


def _measurement_row(one: Measurement, before: MeasuredChange | None, level: float) -> list[str]:
    if one.reason:
        return [one.name, "", "", "", one.reason]
    held = f" at {level:.0%}" if one.name == "age_years" else ""
    bounds = f"{_number_of(one.low)}-{_number_of(one.high)}{held}" if one.low == one.low else ""
    then = [_number_of(before.before), before.change] if before else ["", ""]
    return [one.name, _number_of(one.value), bounds, *then]


def _number_of(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2f}"


def panels(query: PredictionQuery, found: Prediction, maps: Sequence[Saliency], before: Study | None) -> list[Panel]:
    """Return the ECG beside what is predicted, and under it the earlier one, with the leads that changed."""
    from mmecg.plotting import Panel, Shade
    from mmecg.prediction.result import ABSTAIN_REASONS, FLAGS

    marks = changed_parts(found.comparison)
    changed = {one.label: one for one in found.changes}
    telling = [one for one in found.labels if _is_telling(one, changed)]
    telling.sort(key=lambda one: -one.probability if one.probability >= 0 else 0.0)
    facts = [_summary(found)] if _summary(found) else []
    facts += [
        f"{one.label}  {one.probability:.2f} ({one.low:.2f}-{one.high:.2f})  {_word(one, changed.get(one.label))}"
        for one in telling[:14]
    ]
    facts += [f"abstains: {ABSTAIN_REASONS[reason]}" for reason in found.abstain_reasons]
    facts += [f"flag: {FLAGS[flag]}" for flag in found.flags]
    text = " ".join(f"Orange speaks for {one.label}, blue against it." for one in maps[:1])
    if marks:
        text += (
            f" Median beats differ most in {', '.join(f'{lead} ({part})' for lead, part in list(marks.items())[:4])}."
        )
    shade = Shade(maps[0].values, maps[0].sampling_rate_hz) if maps else None
    shown = [Panel("Now", "", facts, text, query.ecg, marks=marks, shade=shade)]
    if before is not None and before.acquired_at is not None:
        weight = next(one for one in found.priors if one.study_id == before.study_id)
        said = [f"study {before.study_id}", describe_vitals(before.vitals), describe_labels(before)]
        said.append(f"moved: {describe_effects(weight.effects)}" if weight.effects else "")
        report = before.report.text if before.report else ""
        shown.append(Panel(f"{span(weight.days_before)} before", "", [one for one in said if one], report, before.ecg))
    return shown


def changed_parts(comparison: Comparison | None) -> dict[str, str]:
    """Return what changed in each lead that did, the lead that differs most first: ``{"V2": "QRS, ST-T"}``."""
    parts: dict[str, list[str]] = {}
    for one in comparison.leads if comparison else ():
        parts.setdefault(one.lead, []).append(_PARTS[one.part])
    return {lead: ", ".join(sorted(names)) for lead, names in parts.items()}


def span(days: float) -> str:
    """Return a time span in one short word: minutes, hours, days or years."""
    for unit, size in (("y", _DAYS_A_YEAR), ("d", 1.0), ("h", 1 / 24)):
        if days >= (2 * size if unit == "y" else size):
            return f"{days / size:.1f} {unit}" if unit == "y" else f"{days / size:.0f} {unit}"
    return f"{days * 1440:.0f} min"


def where_of(one: NoteFinding) -> str:
    """Return where in which note something is said: ``note 0, 6-8``."""
    return f"{'--note' if one.note < 0 else f'note {one.note}'}, {one.start}-{one.end}"


def describe_effects(effects: Any) -> str:
    """Return what an earlier study moved, strongest first: ``+1.23 AFIB, -0.40 SR``."""
    strongest = list(effects.items())[:_SHOWN_EFFECTS]
    return ", ".join(f"{value:+.2f} {label}" for label, value in strongest)


def _is_telling(one: LabelPrediction, changed: Any) -> bool:
    return one.decision == "present" or one.probability >= SHOWN_FROM or one.label in changed


def _title(found: Prediction) -> str:
    when = f" as of {found.as_of:%Y-%m-%d %H:%M}" if found.as_of else ""
    return f"Prediction{when}{': ' + _summary(found) if _summary(found) else ''}"


def _summary(found: Prediction) -> str:
    from mmecg.prediction.changes import summary

    return shorten(summary(found.changes), 60)


def _label_row(one: LabelPrediction, change: LabelChange | None) -> list[str]:
    names = {True: "present", False: "absent"}
    if one.decision == "not_supported":
        return [one.label, _name(one.label), "", "", "", "", "not supported", one.reason]
    word = f"{change.change}, {span(change.days_before)} ({change.prior_study_id})" if change else _why(one)
    held = "or ".join(f"{names[value]} " for value in one.conformal_set).strip() or "neither"
    interval = f"{one.low:.2f}-{one.high:.2f}"
    return [
        one.label,
        _name(one.label),
        f"{one.probability:.2f}",
        interval,
        f"{one.single:.2f}",
        held,
        one.decision,
        word,
    ]


def _why(one: LabelPrediction) -> str:
    """Return in few words why a label is undecided; ``--json`` has the sentence."""
    return next((brief for words, brief in _UNDECIDED.items() if one.reason.startswith(words)), one.reason)


def _word(one: LabelPrediction, change: LabelChange | None) -> str:
    return change.change if change else one.decision


def _name(label: str) -> str:
    """Return what a label means in words; of a code, what its own system calls it."""
    from mmecg.labels.vocabulary import load_vocabulary
    from mmecg.prediction.result import SUPERCLASS_PREFIX

    if label.startswith(SUPERCLASS_PREFIX):
        return _SUPERCLASS_NAMES[label.removeprefix(SUPERCLASS_PREFIX)]
    vocabulary = load_vocabulary()
    system, colon, code = label.partition(":")
    if colon and system in vocabulary.systems:
        return next((row.name for row in vocabulary.mappings(system) if row.code == code), "")
    return next((finding.name for finding in vocabulary.findings if finding.id == label), "")


def _saliency_row(one: Saliency) -> list[str]:
    shares = list(one.lead_shares.items())[:4]
    return [one.label, ", ".join(f"{lead} {share:.0%}" for lead, share in shares)]


def _print_notes(found: Prediction, hidden: int) -> None:
    from mmecg.prediction.result import ABSTAIN_REASONS, FLAGS

    if hidden:
        note(f"{hidden} labels are absent or below {SHOWN_FROM:.0%} and not shown; --labels all or --json shows them")
    sure = found.uncertainty
    kind = f" ({sure.novelty_kind})" if sure.novelty_kind else ""
    note(f"surer than {1 - sure.rank:.0%} of calibration studies; novelty {sure.novelty:.2f}{kind}")
    for flag in found.flags:
        note(f"{flag}: {FLAGS[flag]}")
    for reason in found.abstain_reasons:
        note(f"abstains ({reason}): {ABSTAIN_REASONS[reason]}; do not act on this prediction")


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
