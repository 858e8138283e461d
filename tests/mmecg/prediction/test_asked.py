"""Label names to heads: own names, groups, findings above them, codes of other vocabularies, and none."""

import numpy as np
import pytest

from mmecg.errors import QueryError
from mmecg.prediction.asked import LabelResolver

LABELS = ("NORM", "AFIB", "CLBBB", "ILBBB", "CRBBB", "superclass/NORM", "superclass/CD")


@pytest.fixture(scope="module")
def resolver() -> LabelResolver:
    return LabelResolver(LABELS)


def names(resolver: LabelResolver, *labels: str) -> list[tuple[str, ...]]:
    return [tuple(LABELS[column] for column in one.columns) for one in resolver.resolve(labels)]


def test_groups_and_own_names_in_the_order_asked_for(resolver: LabelResolver) -> None:
    assert [one.label for one in resolver.resolve(None)] == list(LABELS)
    assert resolver.resolve(("all",)) == resolver.resolve(None)
    asked = resolver.resolve(("superclass", "AFIB", "superclass/CD"))
    assert [one.label for one in asked] == ["superclass/NORM", "superclass/CD", "AFIB"]


def test_a_finding_without_a_head_is_answered_by_those_that_imply_it(resolver: LabelResolver) -> None:
    assert names(resolver, "LBBB", "BBB") == [("CLBBB", "ILBBB"), ("CLBBB", "ILBBB", "CRBBB")]


def test_codes_of_other_vocabularies(resolver: LabelResolver) -> None:
    assert names(resolver, "snomed:164889003", "scp:CLBBB") == [("AFIB",), ("CLBBB",)]
    (asked,) = resolver.resolve(("snomed:164889003",))
    assert asked.label == "snomed:164889003"


@pytest.mark.parametrize(
    ("label", "advice"),
    [("AFBI", "did you mean AFIB"), ("superclass/CDD", "superclass/CD"), ("SERIAL_CHANGE", ""), ("snomed:1", "")],
)
def test_a_label_without_a_head_is_refused_with_close_names(resolver: LabelResolver, label: str, advice: str) -> None:
    with pytest.raises(QueryError, match="no trained head") as caught:
        resolver.resolve(("AFIB", label))
    assert advice in str(caught.value)
    assert caught.value.field == "options.labels"


@pytest.mark.parametrize("labels", [(), "AFIB", ("AFIB",) * 1001], ids=["none", "a string", "too many"])
def test_how_many(resolver: LabelResolver, labels: tuple[str, ...]) -> None:
    with pytest.raises(QueryError, match="expected 1 to 1000"):
        resolver.resolve(labels)


def test_names_are_text(resolver: LabelResolver) -> None:
    with pytest.raises(QueryError, match="not text"):
        resolver.resolve(("AFIB", 17))  # type: ignore[arg-type]


def test_prevalence_needs_a_head_of_its_own(resolver: LabelResolver) -> None:
    site = resolver.site_prevalence({"AFIB": 0.3})
    assert site[1] == 0.3
    assert np.isnan(np.delete(site, 1)).all()
    with pytest.raises(QueryError, match="no trained head"):
        resolver.site_prevalence({"LBBB": 0.3})
