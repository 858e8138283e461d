"""The vocabulary: complete in both directions, without circles, and with no implication that gold contradicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmecg.datasets.ptb_xl import label_matrix, read_ptb_xl_table, read_scp_statements
from mmecg.errors import ConfigError, InvalidInputError
from mmecg.labels.rule_report import axis_gold, describe_edges, score_edges
from mmecg.labels.vocabulary import (
    KINDS,
    MIN_EDGE_PRECISION,
    Edge,
    Finding,
    Mapping,
    Relation,
    Vocabulary,
    load_vocabulary,
)

PTB_XL = Path(__file__).parents[4] / "shared" / "data" / "ptbxl"
TRAINING_FOLDS = range(1, 9)

CODES = {"scp": 71, "snomed": 133, "ecgfounder": 150, "ecg_fm": 17}
SERIAL_STATEMENTS = ("NOW", "NO LONGER", "REPLACED", "LESS", "MORE", " HAS ", "CHANGE IN")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary()


@pytest.fixture(scope="module")
def gold() -> tuple[tuple[str, ...], np.ndarray]:
    """Return findings and their gold values in folds 1 to 8: the SCP statements, and the two axis deviations."""
    if not PTB_XL.exists():
        pytest.skip("../shared/data/ptbxl is not here")
    table = read_ptb_xl_table(PTB_XL).filter(pl.col("strat_fold").is_in(TRAINING_FOLDS))
    statements = tuple(read_scp_statements(PTB_XL)["label"])
    axes = axis_gold(table)
    return (*statements, *axes), np.column_stack([label_matrix(table, statements), *axes.values()])


def toy(*, crosswalk: tuple[Mapping, ...] = (), edges: tuple[Edge, ...] = (), kind: str = "form") -> Vocabulary:
    findings = tuple(Finding(name, name.lower(), kind, "", "", serial=False) for name in "ABC")
    return Vocabulary("0", findings, crosswalk, edges)


def test_every_code_of_the_source_systems_is_there(vocabulary: Vocabulary) -> None:
    assert {system: len({row.code for row in vocabulary.mappings(system)}) for system in CODES} == CODES
    assert {"aha", "aecg", "cdisc", "dicom", "icd10"} <= set(vocabulary.systems)


def test_every_code_leads_to_a_finding_or_says_why_not(vocabulary: Vocabulary) -> None:
    for row in vocabulary.crosswalk:
        if row.finding:
            assert vocabulary.finding(row.finding).id == row.finding
        else:
            assert row.note
    without = [(row.system, row.code) for row in vocabulary.crosswalk if not row.finding]
    assert ("ecgfounder", "ACUTE") in without
    assert len(without) == 8


def test_exact_codes_make_the_round_trip(vocabulary: Vocabulary) -> None:
    for row in vocabulary.crosswalk:
        if row.relation is Relation.EXACT:
            back = vocabulary.translate(row.finding, row.system)
            assert row.code in [found.code for found in back if found.relation is Relation.EXACT]
    exact = [(row.system, row.code) for row in vocabulary.crosswalk if row.relation is Relation.EXACT]
    assert len(exact) == len(set(exact)), "a code is exactly two findings"


def test_ptb_xl_statements_come_first_with_their_classes(vocabulary: Vocabulary) -> None:
    if not PTB_XL.exists():
        pytest.skip("../shared/data/ptbxl is not here")
    for finding, row in zip(vocabulary.findings, read_scp_statements(PTB_XL).iter_rows(named=True), strict=False):
        assert (finding.id, finding.superclass, finding.subclass) == (
            row["label"],
            row["superclass"] or "",
            row["subclass"] or "",
        )


def test_serial_statements_are_typed_serial(vocabulary: Vocabulary) -> None:
    for row in vocabulary.mappings("ecgfounder"):
        compares = any(words in row.code for words in SERIAL_STATEMENTS)
        assert compares == bool(row.finding and vocabulary.finding(row.finding).serial), row.code
    assert sum(finding.serial for finding in vocabulary.findings) == 24
    assert all(finding.serial == (finding.kind == "serial") for finding in vocabulary.findings)


def test_no_serial_finding_implies_or_is_implied(vocabulary: Vocabulary) -> None:
    ends = {name for edge in vocabulary.edges for name in (edge.finding, edge.implies)}
    assert not [name for name in ends if vocabulary.finding(name).serial]


def test_closure_adds_what_is_implied_at_any_distance(vocabulary: Vocabulary) -> None:
    assert vocabulary.closure(["RBBB_AND_LAFB"]) == {
        "RBBB_AND_LAFB", "CRBBB", "RBBB", "BBB", "LAFB", "FASCICULAR_BLOCK", "LEFT_AXIS_DEVIATION", "BIFASCICULAR_BLOCK"
    }  # fmt: skip
    assert vocabulary.closure([]) == frozenset()


def test_atrial_fibrillation_implies_neither_pathway_nor_tachycardia(vocabulary: Vocabulary) -> None:
    assert vocabulary.closure(["AFIB"]) == {"AFIB", "AFIB_OR_FLUTTER"}
    assert [row.code for row in vocabulary.translate("AFIB", "ecg_fm")] == ["Atrial fibrillation"]


def test_translation_follows_implications_but_never_narrows(vocabulary: Vocabulary) -> None:
    assert [(row.code, row.relation) for row in vocabulary.translate("IMI", "ecg_fm")] == [
        ("Infarction", Relation.BROADER)
    ]
    assert [row.code for row in vocabulary.translate("MI", "ecgfounder")] == []
    first, *others = (row.code for row in vocabulary.translate("CRBBB", "snomed"))
    assert (first, set(others)) == ("713427006", {"59118001", "6374002"})


def test_a_hyphen_will_do_for_an_underscore(vocabulary: Vocabulary) -> None:
    assert vocabulary.mappings("ecg-fm") == vocabulary.mappings("ecg_fm")
    assert vocabulary.translate("AFIB", "ecg-fm") == vocabulary.translate("AFIB", "ecg_fm")


def test_unknown_names_come_with_advice(vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidInputError, match="did you mean AFIB"):
        vocabulary.finding("afibb")
    with pytest.raises(InvalidInputError, match="did you mean snomed"):
        vocabulary.mappings("SNOMED-CT")
    with pytest.raises(InvalidInputError, match="AVNRT"):
        vocabulary.closure(["AFIB", "AVNR"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"edges": (Edge("A", "B", ""), Edge("B", "A", ""))}, "circle: A -> B -> A"),
        ({"edges": (Edge("A", "D", ""),)}, "'D'"),
        ({"edges": (Edge("A", "B", "one"), Edge("A", "B", "other"))}, "twice"),
        ({"crosswalk": (Mapping("D", "x", "1", "", Relation.EXACT),)}, "'D'"),
        ({"crosswalk": (Mapping("A", "x", "1", "", Relation.EXACT),) * 2}, "twice"),
        ({"crosswalk": (Mapping("A", "x", "1", "", None),)}, "needs a finding and a relation"),
        ({"crosswalk": (Mapping("", "x", "1", "", None),)}, "a note"),
        ({"kind": "rythm"}, KINDS[0]),
    ],
)
def test_broken_vocabulary_is_refused(parts: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toy(**parts)


@pytest.mark.data
def test_no_implication_is_contradicted_by_gold(vocabulary: Vocabulary, gold: tuple) -> None:
    precision = vocabulary.edge_precision(*gold)
    tested = {edge: value for edge, value in precision.items() if value is not None}
    assert {(edge.finding, edge.implies) for edge in tested} >= {
        ("LAFB", "LEFT_AXIS_DEVIATION"), ("LPFB", "RIGHT_AXIS_DEVIATION")
    }  # fmt: skip
    wrong = {f"{edge.finding} -> {edge.implies}": value for edge, value in tested.items() if value < MIN_EDGE_PRECISION}
    assert not wrong
    assert all(edge.reason for edge in precision.keys() - tested.keys()), "an untested edge needs its reason"


@pytest.mark.data
def test_the_table_says_which_implications_gold_tests(vocabulary: Vocabulary, gold: tuple) -> None:
    tested = {edge: round(value, 2) for edge, value in vocabulary.edge_precision(*gold).items() if value is not None}
    assert tested == {edge: edge.precision for edge in vocabulary.edges if edge.precision is not None}


def test_the_report_counts_implications_that_gold_cannot_test(vocabulary: Vocabulary) -> None:
    table = pl.DataFrame({"heart_axis": ["LAD", None, "MID", "ALAD"]})
    edges = score_edges(table, ["LAFB", "IMI"], np.array([[True, True], [False, True], [True, False], [True, False]]))
    assert edges.height == len(vocabulary.edges)
    assert edges.drop_nulls("precision").rows() == [("LAFB", "LEFT_AXIS_DEVIATION", 3, pytest.approx(2 / 3))]
    said = describe_edges(edges)
    assert f"1 of {edges.height} implications" in said
    assert "LAFB implies LEFT_AXIS_DEVIATION in 0.67 of 3 records" in said
    assert f"The other {edges.height - 1} have no gold" in said


@pytest.mark.data
def test_gold_would_catch_a_leaking_implication(vocabulary: Vocabulary, gold: tuple) -> None:
    leak = Edge("AFIB", "WPW", "as a public labeler has it")
    leaking = Vocabulary("0", vocabulary.findings, vocabulary.crosswalk, (*vocabulary.edges, leak))
    precision = leaking.edge_precision(*gold)[leak]
    assert precision is not None
    assert precision < 0.01
