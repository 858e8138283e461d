"""Notes beside an ECG are evidence of the past: what they state, what they leave open, and what they may not do."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest

from mmecg.bundle import Bundle
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.errors import ReportError
from mmecg.prediction.heads import PredictionHeads
from mmecg.prediction.history import MAX_PRIORS
from mmecg.prediction.known import KnownLabels
from mmecg.prediction.notes import OF_REQUEST, read_notes, with_notes
from mmecg.prediction.predictor import NOTES_ALONE, Predictor
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import SUPERCLASS_PREFIX, PredictionOptions
from mmecg.report import Report
from mmecg.study import ClinicalNote, Study

NOW = datetime(2000, 1, 10, 12)
KNOWN = "Known AF, on amiodarone; prior LBBB. No previous pacemaker."


def study(*notes: ClinicalNote, **changes: object) -> Study:
    values: dict = {"study_id": "now", "subject_id": "anna", "acquired_at": NOW, "ecg": synthetic_ecg(seed=3)}
    return Study(**(values | {"notes": notes} | changes))


def note(text: str, hours: float = 1, kind: str = "history") -> ClinicalNote:
    return ClinicalNote(text, kind, NOW - timedelta(hours=hours))


@pytest.fixture(scope="module")
def known(heads: PredictionHeads) -> KnownLabels:
    return KnownLabels(heads.labels)


@pytest.fixture(scope="module")
def predictor(bundle: Bundle, heads: PredictionHeads) -> Predictor:
    return Predictor(bundle, heads=heads)


def values(known: KnownLabels, text: str) -> dict[str, float]:
    noted = read_notes(PredictionQuery(study=study(), note=text), known)
    if noted is None:
        return {}
    pairs = zip(known.labels, noted.prior.known.tolist(), strict=True)
    return {label: value for label, value in pairs if np.isfinite(value)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KNOWN, {"AFIB": 1, "CLBBB": 1, "superclass/CD": 1, "PACE": 0}),
        ("bekanntes Vorhofflimmern, kein Linksschenkelblock", {"AFIB": 1, "CLBBB": 0}),
        ("no atrial fibrillation. known atrial fibrillation", {"AFIB": 1}),
        ("?AF", {}),
        ("rule out myocardial infarction", {}),
        ("family history of atrial fibrillation", {}),
        ("Mother had atrial fibrillation. Known LVH", {"LVH": 1, "superclass/HYP": 1}),
        ("chest pain since this morning", {}),
    ],
)
def test_what_is_stated_is_known_and_the_rest_is_open(known: KnownLabels, text: str, expected: dict) -> None:
    assert values(known, text) == expected


def test_only_notes_that_were_certainly_written_before(known: KnownLabels) -> None:
    def read(*notes: ClinicalNote, **changes: object) -> list[int]:
        noted = read_notes(PredictionQuery(study=study(*notes), **changes), known)
        return [] if noted is None else [one.note for one in noted.said]

    before, later, undated = note("known AF"), note("known LBBB", -1), ClinicalNote("known AF", "history")
    assert read(undated, later, before) == [2]
    assert read(before, as_of=NOW - timedelta(hours=2)) == []
    assert read(before, note="prior LBBB") == [OF_REQUEST, 0]
    assert read(before, options=PredictionOptions(use_history=False)) == []


@pytest.mark.parametrize("kind", ["ECG", "report"])
def test_the_report_in_the_dress_of_a_note_is_not_read(known: KnownLabels, kind: str) -> None:
    said = Report.from_text("atrial fibrillation")
    assert read_notes(PredictionQuery(study=study(note("known AF", kind=kind))), known) is None
    assert read_notes(PredictionQuery(study=study(note(f"{said.raw} "), report=said)), known) is None


def test_notes_beyond_what_is_mined_at_once_are_left_out(known: KnownLabels) -> None:
    long = note("  cough. " * 2854 + "known LBBB", 2)
    noted = read_notes(PredictionQuery(study=study(long, note("known AF", 1))), known)
    assert noted is not None
    assert [(one.note, one.finding) for one in noted.said] == [(1, "AFIB")]
    with pytest.raises(ReportError, match="text has 30000"):
        PredictionQuery(study=study(), note="x" * 30_000)


def test_notes_join_and_are_told_without_their_words(predictor: Predictor) -> None:
    plain, told = predictor.predict(study()), predictor.predict(study(note(KNOWN)))
    assert plain.notes is None
    assert "from_notes" not in plain.flags
    assert all(one.probability == one.single for one in plain.labels)
    assert "from_notes" in told.flags
    assert told.notes is not None
    assert told.notes.weight == pytest.approx(1)
    assert 0 < len(told.notes.effects) <= 8
    spans = {(one.finding, KNOWN[one.start : one.end], one.status) for one in told.notes.said}
    assert spans == {("AFIB", "AF", "historical"), ("CLBBB", "LBBB", "present"), ("PACE", "pacemaker", "negated")}
    assert "amiodarone" not in repr(told)
    assert (told.priors, told.changes, told.history_used) == ((), (), 0)
    assert [one.single for one in told.labels] == [one.probability for one in plain.labels], "bit by bit"
    for label, effect in told.notes.effects.items():
        odds = [np.log(p / (1 - p)) for p in (told[label].probability, told[label].single)]
        assert odds[0] - odds[1] == pytest.approx(effect, abs=1e-3)


def test_a_note_that_states_nothing_changes_nothing(predictor: Predictor) -> None:
    plain = predictor.predict(study())
    assert repr(predictor.predict(study(note("chest pain, ?AF")))) == repr(plain)
    assert repr(predictor.predict(study(note(KNOWN, -1)))) == repr(plain)


def test_notes_stand_behind_the_earlier_studies(predictor: Predictor) -> None:
    earlier = [
        Study(study_id=f"e{day}", subject_id="anna", acquired_at=NOW - timedelta(days=day), labels={"SR": 100.0})
        for day in (1, 2)
    ]
    found = predictor.predict(study(note(KNOWN)), extra_history=earlier)
    assert [one.study_id for one in found.priors] == ["e1", "e2"]
    assert found.notes is not None
    assert sum(one.weight for one in found.priors) + found.notes.weight == pytest.approx(1, abs=1e-5)
    assert found.history_used == 2
    assert {one.prior_study_id for one in found.changes} <= {"e1"}


def test_there_is_always_room_for_notes(known: KnownLabels) -> None:
    noted = read_notes(PredictionQuery(study=study(), note=KNOWN), known)
    assert noted is not None
    many = with_notes([replace(noted.prior, study_id="e")] * MAX_PRIORS, noted)
    assert len(many) == MAX_PRIORS
    assert many[-1] is noted.prior


def test_without_an_ecg_notes_answer_unless_there_is_a_report(predictor: Predictor, heads: PredictionHeads) -> None:
    bare = study(ecg=None)
    told = predictor.predict(replace(bare, notes=(note("known AF"),)))
    text = predictor.known.text_logits("known AF\n")
    assert text is not None
    rates = np.log(heads.prevalence / (1 - heads.prevalence))
    expected = rates + NOTES_ALONE * (text - rates)
    statements = [place for place, label in enumerate(heads.labels) if not label.startswith(SUPERCLASS_PREFIX)]
    got = np.array([one.probability for one in told.labels])
    np.testing.assert_allclose(np.log(got / (1 - got))[statements], expected[statements], atol=1e-4)
    assert {"no_ecg", "from_notes"} <= set(told.flags)
    assert told.notes is not None
    assert np.isnan(told.notes.weight)
    reported = replace(bare, report=Report.from_text("sinus rhythm"))
    both = predictor.predict(replace(reported, notes=(note("known AF"),)))
    assert both["SR"].single == predictor.predict(reported)["SR"].single
    assert both.notes is not None
    assert both.notes.weight == pytest.approx(1)
