"""The predictor on the real tower and a real corpus, with heads drawn at random: structure, strictness, bad input."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.bundle import Bundle
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import Ecg
from mmecg.errors import BundleError, FingerprintMismatchError, QueryError
from mmecg.labels.change import load_serial_table
from mmecg.prediction.answer import MOVED
from mmecg.prediction.heads import PredictionHeads
from mmecg.prediction.predictor import Predictor
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import ABSTAIN_REASONS, FLAGS, PredictionOptions
from mmecg.report import Report
from mmecg.retriever import Retriever
from mmecg.study import Study
from mmecg.vitals import Vitals

START = datetime(2000, 1, 1)
OTHERS = 40


def study(number: int, subject: str, **changes: object) -> Study:
    rhythm = "atrial_fibrillation" if number % 2 else "sinus"
    values: dict = {
        "study_id": f"{subject}-{number}",
        "subject_id": subject,
        "acquired_at": START + timedelta(days=number),
        "ecg": synthetic_ecg(rhythm=rhythm, seed=number, heart_rate_bpm=55 + number % 40),
        "labels": {"AFIB": 100.0} if number % 2 else {"SR": 0.0, "NORM": 100.0},
        "vitals": Vitals(age_years=60, sex="female"),
    }
    return Study(**(values | changes))


@pytest.fixture(scope="module")
def corpus(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    """Forty subjects with one study each, and Anna with six."""
    others = [study(number, f"p{number}") for number in range(OTHERS)]
    anna = [
        study(0, "anna"),
        study(1, "anna", labels={}, report=Report.from_text("atrial fibrillation. no left bundle branch block")),
        study(2, "anna", labels={}),
        study(3, "anna", ecg=None),
        study(4, "anna"),
        study(9, "anna"),
    ]
    with Corpus.create(tmp_path_factory.mktemp("predictor") / "corpus", bundle.fingerprint) as made:
        Retriever(bundle.encoder, made).ingest([*others, *anna])
        yield made


@pytest.fixture(scope="module")
def predictor(bundle: Bundle, heads: PredictionHeads, corpus: Corpus) -> Predictor:
    return Predictor(bundle, corpus, heads=heads)


def test_history_cohort_and_evidence(predictor: Predictor, heads: PredictionHeads) -> None:
    found = predictor.predict(study(7, "anna"))
    assert [one.label for one in found.labels] == list(heads.labels)
    assert [(one.study_id, one.days_before, one.source) for one in found.priors] == [
        ("anna-4", 3, "labels"),
        ("anna-3", 4, "labels"),
        ("anna-2", 5, "ecg"),
        ("anna-1", 6, "report"),
        ("anna-0", 7, "labels"),
    ]
    assert (found.history_found, found.history_used, found.flags) == (5, 5, ())
    assert sum(one.weight for one in found.priors) == pytest.approx(1, abs=1e-5)
    assert np.isnan(found.priors[1].similarity)
    assert 0 < found.priors[0].similarity <= 1
    for one in found.priors:
        at = np.array([found[label].probability for label in one.effects])
        without = 1 / (1 + (1 / at - 1) * np.exp(list(one.effects.values())))
        moved = np.abs(at - without)
        assert len(moved) == 8
        assert (moved >= MOVED - 1e-6).all()
        assert (np.diff(moved) <= 1e-6).all(), "what it moved most comes first"
    assert len(found.neighbours) == 10
    assert sum(one.weight for one in found.neighbours) == pytest.approx(1)
    assert not any(one.study_id.startswith("anna") for one in found.neighbours)
    assert {label for one in found.neighbours for label in one.labels} <= {"AFIB", "SR", "NORM", "superclass/NORM"}
    age, *measured = found.measurements
    assert age.low <= age.value <= age.high
    rate = next(one for one in measured if one.name == "heart_rate_bpm")
    assert rate.value == pytest.approx(62, abs=4), "55 + 7, a beat of spread"
    assert found.comparison is not None
    assert (found.comparison.prior_study_id, found.comparison.days_before) == ("anna-4", 3)
    assert found.comparison.measured[0].now == rate.value
    assert set(found.comparison.serial) <= set(load_serial_table().findings)
    for one in found.labels:
        assert 0 <= one.low <= one.probability <= one.high <= 1
    assert set(found.flags) <= FLAGS.keys()
    assert set(found.abstain_reasons) <= ABSTAIN_REASONS.keys()
    assert found.abstained == bool(found.abstain_reasons)


def test_others_from_before_alone_vote_if_asked(predictor: Predictor) -> None:
    asked, limited = study(39, "anna"), PredictionOptions(cohort_before_as_of=True)

    def voters(**given: object) -> set[int]:
        return {int(one.study_id.split("-")[1]) for one in predictor.predict(asked, **given).neighbours}

    early = START + timedelta(days=25)
    assert max(voters(as_of=early)) >= 25, "by default those of any time vote"
    found = voters(as_of=early, options=limited)
    assert found
    assert max(found) < 25
    assert voters(as_of=START + timedelta(days=100), options=limited) <= set(range(39)), "the study is the border"
    late = predictor.predict(asked, as_of=START + timedelta(days=10), options=limited)
    assert "no_cohort" in late.flags, "too few were there by then"
    timeless = predictor.predict(asked.ecg, options=limited)
    assert not timeless.neighbours
    assert "no_cohort" in timeless.flags


def test_effects_are_the_log_odds_that_history_added(predictor: Predictor) -> None:
    found = predictor.predict(study(7, "anna"), options=PredictionOptions(labels=("AFIB",)))
    (afib,) = found.labels
    moved = np.log(afib.probability / (1 - afib.probability)) - np.log(afib.single / (1 - afib.single))
    assert sum(one.effects.get("AFIB", 0.0) for one in found.priors) == pytest.approx(moved, abs=0.3)
    assert abs(moved) > 0.05


def test_vitals_count_unless_they_contradict(predictor: Predictor, heads: PredictionHeads) -> None:
    ecg = study(7, "nobody").ecg
    bare, plain, impossible = (
        predictor.predict(ecg, vitals=vitals)
        for vitals in (Vitals(), Vitals(age_years=70, sex="female"), Vitals(height_cm=150, weight_kg=9))
    )
    assert all(one.probability != other.probability for one, other in zip(bare.labels, plain.labels, strict=True))
    assert [one.probability for one in impossible.labels] == [one.probability for one in bare.labels]
    assert "implausible_vitals" in impossible.flags


@pytest.mark.parametrize("use_cohort", [True, False])
def test_without_history_the_answer_is_that_of_the_ecg_alone(predictor: Predictor, use_cohort: bool) -> None:
    options = PredictionOptions(use_cohort=use_cohort)
    known = study(7, "anna")
    alone = [
        predictor.predict(known, options=replace(options, use_history=False)),
        predictor.predict(replace(known, subject_id="nobody"), options=options),
        predictor.predict(known, as_of=START - timedelta(days=1), options=options),
    ]
    for found in alone:
        assert all(one.probability == one.single for one in found.labels)
        assert (found.priors, found.changes, found.history_used) == ((), (), 0)
    assert [one.probability for one in alone[0].labels] == [one.probability for one in alone[2].labels]
    with_history = predictor.predict(known, options=options)
    singles = [one.single for one in with_history.labels]
    assert singles == [one.probability for one in alone[0].labels], "bit by bit"
    assert any(one.probability != one.single for one in with_history.labels)
    assert bool(with_history.neighbours) is use_cohort


def test_a_future_study_changes_nothing(predictor: Predictor, corpus: Corpus) -> None:
    options = PredictionOptions(use_cohort=False)
    asked = study(7, "anna")
    before = predictor.predict(asked, options=options)
    future = [study(50 + i, "anna", acquired_at=asked.acquired_at + timedelta(days=i)) for i in range(2)]
    given = predictor.predict(asked, extra_history=future, options=options)
    Retriever(predictor.bundle.encoder, corpus).ingest(future)
    try:
        stored = predictor.predict(asked, options=options)
    finally:
        for one in future:
            corpus.delete(one.study_id)
    assert (given.flags, given.history_refused) == (("later_history",), 2)
    given = replace(given, flags=(), history_refused=0)
    assert repr(before) == repr(given) == repr(stored)  # NaN is not equal to NaN
    assert before.history_used == 5


def test_history_of_the_caller_is_worth_what_the_same_in_the_corpus_is(
    bundle: Bundle, heads: PredictionHeads, predictor: Predictor
) -> None:
    given = [study(number, "anna") for number in (0, 4)]
    bare = Predictor(bundle, heads=heads)
    found = bare.predict(study(7, "anna"), extra_history=given)
    assert [one.study_id for one in found.priors] == ["anna-4", "anna-0"]
    assert "no_cohort" in found.flags
    one = predictor.predict(study(7, "anna"), extra_history=given)
    same = predictor.predict(study(7, "anna"))
    assert [each.probability for each in one.labels] == pytest.approx(
        [each.probability for each in same.labels], abs=1e-4
    )


def test_many_are_as_one_by_one(predictor: Predictor) -> None:
    queries = [
        PredictionQuery(study=study(7, "anna"), extra_history=[study(6, "anna")]),
        PredictionQuery(study=synthetic_ecg(seed=1)),
        PredictionQuery(study=study(3, "p3", ecg=None, report=Report.from_text("atrial fibrillation"))),
    ]
    many = predictor.predict_many(queries)
    for query, found in zip(queries, many, strict=True):
        one = predictor.predict_many([query])[0]
        for name in ("probability", "low", "high"):
            np.testing.assert_allclose(
                [getattr(each, name) for each in found.labels], [getattr(each, name) for each in one.labels], atol=1e-4
            )
        assert found.flags == one.flags


def test_changes_follow_decisions_and_the_last_known_value(predictor: Predictor) -> None:
    found = predictor.predict(study(7, "anna"))
    decisions = {one.label: one.decision for one in found.labels}
    for change in found.changes:
        assert decisions[change.label] == ("absent" if change.change == "gone" else "present")
        assert change.prior_study_id == "anna-4", "it is coded, so it knows every label"
        assert (change.change == "new") == (change.label not in ("NORM", "SR", "superclass/NORM"))


@pytest.mark.parametrize(
    ("text", "likely"), [("atrial fibrillation", "AFIB"), ("sinus rhythm", "SR")], ids=["fibrillation", "sinus"]
)
def test_text_answers_without_an_ecg(predictor: Predictor, text: str, likely: str) -> None:
    found = predictor.predict(study(1, "nobody", ecg=None, report=Report.from_text(text)))
    assert found[likely].probability > 0.8
    assert {"no_ecg", "unknown_subject"} <= set(found.flags)
    assert {one.decision for one in found.labels} == {"undecided"}
    assert {one.conformal_set for one in found.labels} == {(True, False)}
    assert found.neighbours == ()
    assert found.measurements == ()


def test_prevalence_and_history_answer_without_text(predictor: Predictor, heads: PredictionHeads) -> None:
    nothing = study(1, "nobody", ecg=None, labels={}, vitals=Vitals(age_years=60))
    found = predictor.predict(nothing)
    assert [one.probability for one in found.labels] == pytest.approx(heads.prevalence.tolist(), abs=1e-5)
    known = predictor.predict(replace(nothing, subject_id="anna", acquired_at=START + timedelta(days=7)))
    assert known.history_used == 5
    assert [one.probability for one in known.labels] != [one.probability for one in found.labels]


def test_labels_and_report_of_the_study_itself_are_not_read(predictor: Predictor) -> None:
    plain = predictor.predict(study(7, "anna", labels={}))
    told = predictor.predict(
        study(7, "anna", labels={"CLBBB": 100.0}, report=Report.from_text("left bundle branch block"))
    )
    assert repr(plain) == repr(told)


def test_missing_leads_and_short_recordings(predictor: Predictor) -> None:
    found = predictor.predict(synthetic_ecg(seed=3).select_leads(["I"]))
    assert {"no_subject", "not_calibrated"} <= set(found.flags)
    lost = [one for one in found.labels if one.decision == "not_supported"]
    assert "ASMI" in {one.label for one in lost}
    assert all(np.isnan(one.probability) and one.reason and one.conformal_set == () for one in lost)
    assert found["AFIB"].decision != "not_supported"
    assert np.isfinite(found.uncertainty.expected_errors)
    assert "not_calibrated" in predictor.predict(synthetic_ecg(duration_s=5)).flags


def test_abstains_on_quality_novelty_and_uncertainty(bundle: Bundle, heads: PredictionHeads) -> None:
    shape = synthetic_ecg(seed=3)
    flat = np.where(np.arange(12)[:, None] < 8, 0.001, shape.signal)
    poor = Predictor(bundle, heads=heads).predict(Ecg.from_array(flat, sampling_rate_hz=100))
    assert "quality" in poor.abstain_reasons
    odd = replace(heads, novelty=replace(heads.novelty, bias=np.array([0, 9, 0], np.float32)))
    novel = Predictor(bundle, heads=odd).predict(shape)
    assert "novelty" in novel.abstain_reasons
    assert "novel" in novel.flags
    assert novel.uncertainty.novelty_kind == "noise"
    uncertain = heads.confidence.alone
    sure = replace(heads, confidence=replace(heads.confidence, alone=replace(uncertain, uncertainty=np.ones(1001))))
    assert not Predictor(bundle, heads=sure).predict(shape).abstained
    never = replace(heads, confidence=replace(heads.confidence, alone=replace(uncertain, uncertainty=np.zeros(1001))))
    assert Predictor(bundle, heads=never).predict(shape).abstain_reasons == ("uncertain",)
    trusting = PredictionOptions(abstain_share=0.0)
    assert not Predictor(bundle, heads=never).predict(shape, options=trusting).abstained


def test_options(predictor: Predictor) -> None:
    asked = ("LBBB", "superclass", "snomed:164889003")
    found = predictor.predict(study(7, "anna"), options=PredictionOptions(labels=asked, max_history=2))
    assert [one.label for one in found.labels if "/" not in one.label] == ["LBBB", "snomed:164889003"]
    assert len(found.labels) == 7
    everything = predictor.predict(study(7, "anna"), options=PredictionOptions(max_history=2))
    assert found["snomed:164889003"].probability == everything["AFIB"].probability
    heads = [everything[name] for name in ("CLBBB", "ILBBB")]
    assert found["LBBB"].probability == pytest.approx(1 - np.prod([1 - one.probability for one in heads]))
    assert found["LBBB"].low <= found["LBBB"].probability <= found["LBBB"].high
    assert (True in found["LBBB"].conformal_set) == any(True in one.conformal_set for one in heads)
    assert found.flags == ("history_truncated",)
    assert (found.history_found, found.history_used) == (5, 2)


def test_site_prevalence_shifts_and_sets_stay(predictor: Predictor, heads: PredictionHeads) -> None:
    plain, shifted = (
        predictor.predict(study(7, "anna"), options=PredictionOptions(labels=("AFIB", "SR"), prevalence=given))
        for given in ({}, {"AFIB": 0.99})
    )
    assert shifted["AFIB"].probability > plain["AFIB"].probability
    assert shifted["AFIB"].low >= plain["AFIB"].low
    assert shifted["AFIB"].conformal_set == plain["AFIB"].conformal_set
    assert shifted["SR"] == plain["SR"]


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"as_of": datetime.now(UTC) + timedelta(days=9)}, "as_of_in_future"),
        ({"as_of": datetime(1900, 1, 1)}, "before_birth"),
        ({"vitals": Vitals(age_years=20)}, "implausible_vitals"),
        ({"study": study(7, "nobody")}, "unknown_subject"),
    ],
)
def test_doubtful_requests_are_answered_and_flagged(predictor: Predictor, changes: dict, flag: str) -> None:
    found = predictor.predict(**({"study": study(7, "anna")} | changes))
    assert flag in found.flags
    assert len(found.flags) == len(set(found.flags))
    assert all(np.isfinite(one.probability) for one in found.labels)


def test_an_old_study_seen_from_later_has_plausible_vitals(predictor: Predictor) -> None:
    found = predictor.predict(study(7, "anna"), as_of=START + timedelta(days=365 * 20))
    assert "implausible_vitals" not in found.flags


def test_the_change_of_a_code_is_that_of_all_its_heads(predictor: Predictor, heads: PredictionHeads) -> None:
    """Whichever of the two blocks was there: a left bundle branch block was."""
    asked = PredictionOptions(labels=("LBBB",), level=0.5)
    added = [study(5, "zoe", labels={name: 100.0}) for name in ("CLBBB", "ILBBB")]
    kinds = set()
    for seed in range(40):
        now = study(7, "zoe", ecg=synthetic_ecg(seed=seed))
        answers = [predictor.predict(now, extra_history=[one], options=asked) for one in added]
        for found in answers:
            kinds.update((found.labels[0].decision, one.change) for one in found.changes)
    assert kinds, "something is decided"
    assert kinds <= {("present", "persists"), ("absent", "gone")}


def test_the_recording_itself_is_not_its_own_past(predictor: Predictor) -> None:
    """A bare recording that the corpus holds already, asked about later; or one sent once more under another id."""
    stored = study(9, "anna")
    assert stored.ecg is not None
    after = stored.acquired_at + timedelta(hours=1)
    found = predictor.predict(stored.ecg, subject_id="anna", as_of=after)
    assert "same_recording" in found.flags
    assert "anna-9" not in {one.study_id for one in found.priors}
    assert found.history_used == found.history_found == 5
    other = predictor.predict(synthetic_ecg(seed=123), subject_id="anna", as_of=after)
    assert "same_recording" not in other.flags
    assert other.priors[0].study_id == "anna-9"
    lone = study(7, "zoe")
    copied = predictor.predict(lone, extra_history=[study(5, "zoe", ecg=lone.ecg, labels={"CLBBB": 100.0})])
    assert "same_recording" in copied.flags
    assert [one.probability for one in copied.labels] == [one.single for one in copied.labels]


def test_no_time_means_no_history(predictor: Predictor) -> None:
    found = predictor.predict(study(7, "anna", acquired_at=None))
    assert "no_as_of" in found.flags
    assert found.history_used == 0


def test_refusals(bundle: Bundle, heads: PredictionHeads, corpus: Corpus, tmp_path) -> None:
    with pytest.raises(QueryError, match=r"did you mean .*AFIB"):
        Predictor(bundle, corpus, heads=heads).predict(synthetic_ecg(), options=PredictionOptions(labels=("AFBI",)))
    with Corpus.create(tmp_path / "other", "0" * 64) as other, pytest.raises(FingerprintMismatchError, match="corpus"):
        Predictor(bundle, other, heads=heads)
    with pytest.raises(FingerprintMismatchError, match="heads"):
        Predictor(bundle, corpus, heads=replace(heads, fingerprint="0" * 64))
    with pytest.raises(BundleError, match="no prediction heads"):
        Predictor(replace(bundle, path=tmp_path))
