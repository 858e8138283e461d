"""Prediction messages: what goes in comes out, whatever it is; what cannot be told is refused."""

import dataclasses
import math
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmecg_pb.v1 import prediction_service_pb2 as pb

from mmecg.client.prediction_messages import (
    MAX_EXTRA_HISTORY,
    parse_method,
    parse_options,
    parse_prediction,
    parse_prediction_query,
    parse_saliency,
    render_options,
    render_prediction,
    render_prediction_query,
    render_saliency,
)
from mmecg.client.prediction_requests import explain_request, predict_request
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS
from mmecg.errors import InvalidInputError, QueryError, SignalError, StudyNotFoundError
from mmecg.prediction.measured import Comparison, LeadChange, MeasuredChange, Measurement
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import (
    METHODS,
    LabelChange,
    LabelPrediction,
    NeighbourEvidence,
    NoteFinding,
    NotesEvidence,
    Prediction,
    PredictionOptions,
    PriorEvidence,
    Saliency,
    Uncertainty,
)
from mmecg.report import Report
from mmecg.study import Study
from mmecg.vitals import Vitals

WORDS = st.text(max_size=8)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
SHARE = st.floats(0, 1)
OR_NAN = NUMBER | st.just(math.nan)
SOURCE = st.sampled_from(("labels", "report", "ecg"))
TIME = st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))
LABEL = st.builds(
    LabelPrediction,
    label=WORDS,
    probability=OR_NAN,
    low=OR_NAN,
    high=OR_NAN,
    single=OR_NAN,
    spread=OR_NAN,
    conformal_set=st.sampled_from(((), (True,), (False,), (True, False))),
    decision=st.sampled_from(("present", "absent", "undecided", "not_supported")),
    reason=WORDS,
)
CHANGE = st.builds(
    LabelChange,
    label=WORDS,
    change=st.sampled_from(("new", "gone", "persists")),
    prior_study_id=WORDS,
    days_before=NUMBER,
    source=SOURCE,
    probability=SHARE,
    serial=st.lists(WORDS, max_size=2).map(tuple),
)
PRIOR = st.builds(
    PriorEvidence,
    study_id=WORDS,
    days_before=NUMBER,
    source=SOURCE,
    similarity=OR_NAN,
    weight=SHARE,
    effects=st.dictionaries(WORDS, NUMBER, max_size=3),
)
NOTES = st.builds(
    NotesEvidence,
    weight=OR_NAN,
    effects=st.dictionaries(WORDS, NUMBER, max_size=3),
    said=st.lists(
        st.builds(
            NoteFinding,
            note=st.integers(-1, 9),
            start=st.integers(0, 99),
            end=st.integers(0, 99),
            finding=WORDS,
            status=WORDS,
        ),
        max_size=2,
    ).map(tuple),
)
COMPARISON = st.builds(
    Comparison,
    prior_study_id=WORDS,
    days_before=NUMBER,
    leads=st.lists(
        st.builds(LeadChange, lead=WORDS, part=st.sampled_from(("qrs", "st_t")), difference_mv=NUMBER), max_size=2
    ).map(tuple),
    measured=st.lists(
        st.builds(
            MeasuredChange,
            name=WORDS,
            now=NUMBER,
            before=NUMBER,
            change=st.sampled_from(("increased", "decreased", "unchanged")),
            limit=NUMBER,
        ),
        max_size=2,
    ).map(tuple),
    serial=st.lists(WORDS, max_size=2).map(tuple),
)
PREDICTION = st.builds(
    Prediction,
    labels=st.lists(LABEL, max_size=3).map(tuple),
    changes=st.lists(CHANGE, max_size=2).map(tuple),
    priors=st.lists(PRIOR, max_size=2).map(tuple),
    neighbours=st.lists(
        st.builds(
            NeighbourEvidence, study_id=WORDS, score=NUMBER, weight=SHARE, labels=st.lists(WORDS, max_size=2).map(tuple)
        ),
        max_size=2,
    ).map(tuple),
    measurements=st.lists(
        st.builds(Measurement, name=WORDS, value=OR_NAN, low=OR_NAN, high=OR_NAN, lead=WORDS, reason=WORDS), max_size=2
    ).map(tuple),
    comparison=st.none() | COMPARISON,
    history_refused=st.integers(0, 64),
    notes=st.none() | NOTES,
    uncertainty=st.builds(
        Uncertainty, expected_errors=NUMBER, rank=SHARE, spread=NUMBER, novelty=SHARE, novelty_kind=WORDS
    ),
    abstained=st.booleans(),
    abstain_reasons=st.lists(WORDS, max_size=2).map(tuple),
    flags=st.lists(WORDS, max_size=2).map(tuple),
    history_found=st.integers(0, 10**6),
    history_used=st.integers(0, 64),
    as_of=TIME,
    level=SHARE,
    fingerprint=WORDS,
)
OPTIONS = st.builds(
    PredictionOptions,
    labels=st.none() | st.lists(WORDS, min_size=1, max_size=3).map(tuple),
    level=st.floats(0.5, 0.99),
    abstain_share=st.floats(0, 0.9),
    prevalence=st.dictionaries(WORDS, st.floats(0.01, 0.99), max_size=2),
    use_history=st.booleans(),
    use_cohort=st.booleans(),
    cohort_before_as_of=st.booleans(),
    max_history=st.integers(1, 64),
)
MOMENT = datetime(2020, 5, 17, 12)


def nobody(study_id):
    raise StudyNotFoundError("no such study")


def same(one, other):
    """Compare field by field: NaN is NaN, and mappings have an order."""
    if dataclasses.is_dataclass(one):
        assert type(one) is type(other)
        return all(same(getattr(one, item.name), getattr(other, item.name)) for item in dataclasses.fields(one))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one.items()) == list(other.items())
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(PREDICTION)
def test_a_prediction_comes_back_as_it_was_sent(prediction):
    sent = pb.PredictResponse.FromString(render_prediction(prediction).SerializeToString())
    assert same(parse_prediction(sent), prediction)


@given(OPTIONS)
def test_options_come_back_as_they_were_sent(options):
    assert parse_options(pb.PredictionOptions.FromString(render_options(options).SerializeToString())) == options


def test_options_that_are_not_set_have_their_default():
    assert parse_options(pb.PredictionOptions()) == PredictionOptions()


def make_study(number, **changes):
    study = Study(
        study_id=f"study-{number}",
        subject_id="subject",
        acquired_at=MOMENT - timedelta(days=number),
        ecg=synthetic_ecg(seed=number),
        report=Report.from_text("Sinus rhythm."),
        vitals=Vitals(age_years=60.0, sex="female"),
        labels={"SR": 100.0},
    )
    return dataclasses.replace(study, **changes)


def through(query, find=nobody):
    message = render_prediction_query(query)
    return parse_prediction_query(pb.PredictRequest.FromString(message.SerializeToString()), find)


def test_a_query_comes_back_as_it_was_sent():
    query = PredictionQuery(
        study=make_study(0),
        subject_id="subject",
        as_of=MOMENT,
        extra_history=(make_study(1), make_study(2, ecg=None)),
        vitals=Vitals(heart_rate_bpm=61.0),
        note="known AF",
        options=PredictionOptions(labels=("AFIB", "superclass/MI"), level=0.8, use_cohort=False),
    )
    got = through(query)
    without_ecg = {"study": Study(study_id="study-0", subject_id="subject"), "extra_history": ()}
    assert dataclasses.replace(got, **without_ecg) == dataclasses.replace(query, **without_ecg)
    for one, other in zip((got.study, *got.extra_history), (query.study, *query.extra_history), strict=True):
        assert dataclasses.replace(one, ecg=None) == dataclasses.replace(other, ecg=None)
        assert (one.ecg is None) == (other.ecg is None)
    np.testing.assert_allclose(got.study.ecg.signal, query.study.ecg.signal, atol=6e-4)


def test_a_bare_recording_says_nothing_else():
    got = through(PredictionQuery(study=synthetic_ecg(seed=1)))
    assert got == PredictionQuery(study=got.study)
    assert got.study.signal.shape == (12, 1000)


def test_a_time_with_a_zone_comes_back_in_utc():
    query = PredictionQuery(study=make_study(0), as_of=datetime.fromisoformat("2020-05-17T12:00:00+02:00"))
    assert through(query).as_of == datetime(2020, 5, 17, 10)


def test_a_time_that_utc_cannot_hold_is_refused():
    with pytest.raises(InvalidInputError, match="years 1 to 9999"):
        through(PredictionQuery(study=make_study(0), as_of=datetime.fromisoformat("0001-01-01T00:00:00+02:00")))


def test_a_study_of_the_corpus_is_looked_up():
    request = predict_request(None, {"study_id": "study-4", "subject_id": "subject"})
    found = parse_prediction_query(request, {"study-4": make_study(4)}.__getitem__)
    assert found.study_id == "study-4"
    with pytest.raises(StudyNotFoundError):
        parse_prediction_query(request, nobody)


@pytest.mark.parametrize("method", METHODS)
def test_a_saliency_comes_back_as_it_was_sent(method):
    values = np.random.default_rng(0).standard_normal((12, 250)).astype(np.float32)
    sent = Saliency("AFIB", method, values, 25.0, 1.5, -2.25)
    message = render_saliency(sent, "f" * 64)
    assert [lead.lead for lead in message.leads] == list(LEADS)
    message = pb.ExplainPredictionResponse(
        **{field.name: value for field, value in message.ListFields() if field.name != "leads"},
        leads=reversed(message.leads),
    )
    got = parse_saliency(message)
    np.testing.assert_array_equal(got.values, values)
    names = ("label", "method", "sampling_rate_hz", "logit", "baseline_logit")
    assert [getattr(got, name) for name in names] == [getattr(sent, name) for name in names]


def test_a_saliency_without_all_leads_is_refused():
    message = render_saliency(Saliency("AFIB", "occlusion", np.zeros((12, 5), np.float32), 25.0, 0.0, 0.0), "")
    del message.leads[3]
    with pytest.raises(InvalidInputError, match="lacks some of the 12 leads"):
        parse_saliency(message)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"level": math.nan}, "level"), ({"level": 1.0}, "level"), ({"max_history": 0}, "max_history"),
     ({"max_history": 65}, "max_history"), ({"prevalence": {"MI": 0.0}}, "prevalence"),
     ({"abstain_share": -0.1}, "abstain_share")],
)  # fmt: skip
def test_options_out_of_range_are_refused(values, words):
    with pytest.raises(QueryError, match=words) as caught:
        parse_options(pb.PredictionOptions(**values))
    assert caught.value.field == f"options.{words}"


@pytest.mark.parametrize("labels", [(), "all", ""])
def test_labels_that_would_become_others_are_not_sent(labels):
    with pytest.raises(QueryError, match="labels are"):
        render_options(PredictionOptions(labels=labels))


def test_the_history_of_the_caller_is_bounded():
    request = render_prediction_query(PredictionQuery(study=make_study(0)))
    request.extra_history.extend([pb.PredictRequest().study] * MAX_EXTRA_HISTORY)
    with pytest.raises(InvalidInputError, match="study_id"):
        parse_prediction_query(request, nobody)
    request.extra_history.add()
    with pytest.raises(QueryError, match=f"extra_history has {MAX_EXTRA_HISTORY + 1} studies") as caught:
        parse_prediction_query(request, nobody)
    assert caught.value.field == "extra_history"


def test_a_request_needs_one_source():
    with pytest.raises(QueryError, match="no source"):
        parse_prediction_query(pb.PredictRequest(), nobody)
    for source, arguments in ((None, {}), (synthetic_ecg(), {"study_id": "study-1"})):
        with pytest.raises(QueryError, match="give one of them"):
            predict_request(source, arguments)
        with pytest.raises(QueryError, match="give one of them"):
            explain_request(source, "AFIB", arguments)


def test_an_argument_that_is_misspelt_is_refused():
    with pytest.raises(TypeError, match=r"predict got an unknown argument 'asof'; did you mean as_of\?"):
        predict_request(synthetic_ecg(), {"asof": MOMENT})
    with pytest.raises(TypeError, match=r"explain got an unknown argument 'methods'; did you mean method\?"):
        explain_request(synthetic_ecg(), "AFIB", {"methods": "occlusion"})


def test_an_explanation_is_asked_for_an_array_as_for_a_study():
    ecg = synthetic_ecg(seed=2)
    options = {"method": "occlusion", "values_per_s": 10.0}
    wanted = explain_request(ecg, "AFIB", options)
    array = {"sampling_rate_hz": 100.0, **options}
    assert explain_request(ecg.signal, "AFIB", array) == wanted
    assert explain_request(make_study(2, ecg=ecg), "AFIB", options) == wanted
    assert (wanted.method, wanted.sampling_rate_hz) == (pb.EXPLANATION_METHOD_OCCLUSION, 10.0)
    with pytest.raises(QueryError, match="study has no ECG"):
        explain_request(make_study(2, ecg=None), "AFIB", {})
    with pytest.raises(SignalError, match="sampling_rate_hz"):
        explain_request(ecg.signal, "AFIB", {})


def test_methods_have_numbers():
    assert parse_method(pb.EXPLANATION_METHOD_UNSPECIFIED) == "integrated_gradients"
    named = {parse_method(number) for number in pb.ExplanationMethod.DESCRIPTOR.values_by_number}
    assert named == set(METHODS)
    with pytest.raises(InvalidInputError, match="method is 77"):
        parse_method(77)
    with pytest.raises(QueryError, match="expected one of integrated_gradients, occlusion"):
        explain_request(synthetic_ecg(), "AFIB", {"method": "guess"})


@pytest.mark.parametrize(("field", "kind"), [("labels", "decision"), ("changes", "change"), ("priors", "source")])
@pytest.mark.parametrize("number", [0, 77])
def test_an_unknown_number_is_refused(field, kind, number):
    message = pb.PredictResponse()
    setattr(getattr(message, field).add(), kind, number)
    with pytest.raises(InvalidInputError, match=f"{kind} is {number}"):
        parse_prediction(message)


def test_every_enum_has_a_name_for_each_value():
    for enum, unit in ((pb.Decision, "labels"), (pb.ChangeKind, "changes"), (pb.EvidenceSource, "priors")):
        name = {"labels": "decision", "changes": "change", "priors": "source"}[unit]
        for number in set(enum.values()) - {0}:
            message = pb.PredictResponse()
            one = getattr(message, unit).add()
            setattr(one, name, number)
            if unit == "changes":
                one.source = pb.EVIDENCE_SOURCE_ECG
            assert parse_prediction(message)
