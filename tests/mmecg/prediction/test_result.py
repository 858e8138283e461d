"""Options out of range or of the wrong type are refused by name."""

import math

import pytest

from mmecg.errors import QueryError
from mmecg.prediction.query import PredictionQuery
from mmecg.prediction.result import PredictionOptions
from mmecg.study import Study


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 0.3}, "level is 0.3, expected 0.5 to 0.99"),
        ({"level": math.nan}, "level is nan, expected 0.5 to 0.99"),
        ({"level": "0.9"}, "level is of type str, expected a number"),
        ({"abstain_share": 0.95}, "abstain_share is 0.95, expected 0 to 0.9"),
        ({"max_history": 2.5}, "max_history is 2.5, expected a whole number"),
        ({"use_history": "no"}, "use_history is of type str, expected bool"),
        ({"max_history": 65}, "max_history is 65, expected 1 to 64"),
        ({"prevalence": {"AFIB": 1.0}}, "prevalence of 'AFIB' is 1.0, expected a number above 0 and below 1"),
        (
            {"prevalence": {"AFIB": "rare"}},
            "prevalence of 'AFIB' is of type str, expected a number above 0 and below 1",
        ),
    ],
)
def test_bad_options(options, message) -> None:
    with pytest.raises(QueryError) as caught:
        PredictionOptions(**options)
    assert str(caught.value) == message
    assert caught.value.field == f"options.{next(iter(options))}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"study": "records/00001"}, "study is of type str, expected Study or Ecg"),
        ({"as_of": "1985-02-16"}, "as_of is of type str, expected datetime"),
        ({"vitals": {}}, "vitals is of type dict, expected Vitals"),
        ({"note": 5}, "note is of type int, expected str"),
        ({"options": {}}, "options is of type dict, expected PredictionOptions"),
    ],
)
def test_what_is_of_another_type_is_refused_in_words(arguments, message) -> None:
    study = Study(study_id="1", subject_id="anna")
    with pytest.raises(QueryError) as caught:
        PredictionQuery(**({"study": study} | arguments))
    assert str(caught.value) == message
    assert caught.value.field == next(iter(arguments))
