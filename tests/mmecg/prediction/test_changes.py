"""New, gone, persists: beside the last earlier study in which a label is known; and what serial findings it answers."""

import numpy as np
import pytest

from mmecg.prediction.changes import find_changes, serial_answers, summary
from mmecg.prediction.history import Prior
from mmecg.prediction.result import LabelPrediction

SURE = {"present": 0.9, "absent": 0.1, "undecided": 0.5}
LABELS = ("CLBBB", "AFIB", "NT_", "INVT", "SR")


def predicted(label: str, decision: str, probability: float) -> LabelPrediction:
    return LabelPrediction(
        label=label,
        probability=probability,
        low=0.0,
        high=1.0,
        single=probability,
        spread=0.0,
        conformal_set=(),
        decision=decision,
    )


def prior(study_id: str, days: float, **known: float) -> Prior:
    values = np.array([known.get(label, np.nan) for label in LABELS], np.float32)
    return Prior(study_id=study_id, days_before=days, source="labels", known=values)


def changes(decisions: dict[str, str], priors: list[Prior]):
    rows = [predicted(label, said := decisions.get(label, "absent"), SURE[said]) for label in LABELS]
    return find_changes(rows, [(column,) for column in range(len(LABELS))], priors)


def test_each_label_is_compared_with_the_last_study_that_knows_it() -> None:
    late, early = prior("late", 10, AFIB=0.0, SR=1.0), prior("early", 99, AFIB=1.0, CLBBB=0.0, NT_=0.9)
    found = changes({"CLBBB": "present", "AFIB": "present", "SR": "present", "NT_": "undecided"}, [late, early])
    assert {(one.label, one.change, one.prior_study_id, one.days_before) for one in found} == {
        ("CLBBB", "new", "early", 99),
        ("AFIB", "new", "late", 10),
        ("SR", "persists", "late", 10),
    }
    assert found[-1].change == "persists", "new and gone come first"
    assert summary(found) in ("new: CLBBB, AFIB", "new: AFIB, CLBBB")


def test_gone_and_its_serial_finding() -> None:
    (gone,) = changes({}, [prior("p", 1, INVT=0.8, SR=0.0)])
    assert (gone.label, gone.change, gone.serial) == ("INVT", "gone", ("SERIAL_T_INVERSION_GONE",))
    assert summary([gone]) == "gone: INVT"


def test_a_replacement_needs_both_changes() -> None:
    both = changes({"NT_": "present"}, [prior("p", 1, INVT=1.0, NT_=0.0)])
    assert {one.label: set(one.serial) for one in both} == {
        "NT_": {"SERIAL_T_ABNORMALITY_NEW", "SERIAL_T_ABNORMALITY_REPLACED_INVERSION"},
        "INVT": {"SERIAL_T_INVERSION_GONE", "SERIAL_T_ABNORMALITY_REPLACED_INVERSION"},
    }
    assert set(serial_answers({"NT_": "appeared"})) == {"SERIAL_T_ABNORMALITY_NEW"}


@pytest.mark.parametrize("priors", [[], [prior("p", 1)]], ids=["none", "nothing known"])
def test_nothing_to_compare_with(priors: list[Prior]) -> None:
    assert changes({"AFIB": "present"}, priors) == ()


def test_a_label_of_several_heads_was_there_if_any_of_them_was() -> None:
    def kinds(decision: str, *priors: Prior) -> list[tuple[str, str]]:
        found = find_changes([predicted("either", decision, SURE[decision])], [(0, 1)], priors)
        return [(one.change, one.prior_study_id) for one in found]

    other_one = prior("p", 1, CLBBB=0.0, AFIB=1.0)
    assert kinds("present", other_one) == [("persists", "p")]
    assert kinds("absent", other_one) == [("gone", "p")]
    assert kinds("present", prior("part", 1, CLBBB=0.0), prior("p", 2, CLBBB=0.0, AFIB=0.0)) == [("new", "p")]
    assert kinds("present", prior("part", 1, CLBBB=0.0)) == [], "the other one may have been there"


@pytest.mark.parametrize(
    ("decision", "probability", "told"),
    [("present", 0.71, True), ("present", 0.69, False), ("absent", 0.29, True), ("absent", 0.31, False)],
)
def test_a_change_is_told_of_what_is_likely_enough(decision: str, probability: float, told: bool) -> None:
    before = prior("p", 1, CLBBB=0.0 if decision == "present" else 1.0)
    found = find_changes([predicted("CLBBB", decision, probability)], [(0,)], [before])
    assert bool(found) is told
