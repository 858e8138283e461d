"""What the engine makes of cues and qualifiers, on the small rules of conftest.py."""

import pytest

from mmecg.labels.assertion import Status
from mmecg.labels.mining import LabelMiner

P, PR, PO, C = Status.PRESENT, Status.PROBABLE, Status.POSSIBLE, Status.CANNOT_RULE_OUT
A, S, N = Status.ALTERNATIVE, Status.SERIAL, Status.NEGATED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("LVH", {"LVH": P}),
        ("possible LVH", {"LVH": PO}),
        ("possible one two three four five six seven eight LVH", {"LVH": PO}),
        ("possible one two three four five six seven eight nine LVH", {"LVH": P}),
        ("no evidence of LVH, RVH or infarct", {"LVH": N, "RVH": N, "MI": N}),
        ("no LVH but RVH", {"LVH": N, "RVH": P}),
        ("no LVH. RVH", {"LVH": N, "RVH": P}),
        ("no LVH; RVH\nsinus rhythm", {"LVH": N, "RVH": P, "SR": P}),
        ("no LVH, possible RVH", {"LVH": N, "RVH": PO}),
        ("no possible RVH", {"RVH": N}),
        ("no change, LVH", {"LVH": P}),
        ("no significant change LVH", {"LVH": P}),
        ("sinus rhythm, LVH cannot be excluded", {"SR": P, "LVH": C}),
        ("LVH and RVH cannot be excluded", {"LVH": C, "RVH": C}),
        ("LVH, RVH and infarct cannot be excluded", {"LVH": C, "RVH": C, "MI": C}),
        ("LVH sinus rhythm cannot be excluded", {"LVH": P, "SR": C}),
        ("LVH ?", {"LVH": PO}),
        ("? LVH", {"LVH": PO}),
        ("sinus rhythm, ? LVH", {"SR": P, "LVH": PO}),
        ("LVH ?, sinus rhythm", {"LVH": PO, "SR": P}),
        ("possible new infarct", {"MI": PO}),
        ("new infarct", {"MI": S}),
        ("no new infarct", {"MI": N}),
        ("LVH or RVH", {"LVH": A, "RVH": A}),
        ("possible LVH or RVH", {"LVH": A, "RVH": A}),
        ("LVH or nothing", {"LVH": P}),
        ("LVH, but or RVH", {"LVH": A, "RVH": A}),
        ("sinus rhythm has replaced atrial fibrillation", {"SR": P, "AFIB": S}),
        ("infarct is no longer evident", {"MI": S}),
        ("qt has lengthened", {"QT_LONGER": S}),
        ("no qt has lengthened", {"QT_LONGER": N}),
        ("LVH may be due to infarct", {"LVH": P, "MI": PO}),
        ("inferolateral ischemia", {"ISCIN": P, "ISCLA": P}),
        ("possible inferolateral ischemia", {"ISCIN": PO, "ISCLA": PO}),
        ("verdacht auf vorhofflimmern linkshypertrophie", {"AFIB": PO, "LVH": P}),
        ("v.a. vorhofflimmern", {"AFIB": PO}),
        ("verdacht auf vorhofflimmern und linkshypertrophie", {"AFIB": PO, "LVH": PO}),
        ("sinusrhythmus linkshypertrophie mÖglich vorhofflimmern", {"SR": P, "LVH": PO, "AFIB": P}),
        ("vorhofflimmern | nicht auszuschliessen linkshypertrophie", {"AFIB": P, "LVH": P}),
        ("hinterwandinfarkt nicht auszuschließen", {"MI": C}),
    ],
)
def test_status(miner: LabelMiner, text: str, expected: dict[str, Status]) -> None:
    assert {item.finding: item.status for item in miner.mine(text)} == expected


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("infarct", ["MI"]),
        ("inferior infarct", ["IMI"]),
        ("infarct, inferior", ["IMI"]),
        ("anterior and inferior infarct", ["IMI", "AMI"]),
        ("inferior and lateral infarct", ["ILMI"]),
        ("inferior, lateral and anterior infarct", ["ILMI", "AMI"]),
        ("lateral infarct", ["MI"]),
        ("q waves", []),
        ("inferior q waves", ["IQ"]),
        ("q waves and infarct inferior", ["IQ", "IMI"]),
        ("inferior. infarct", ["MI"]),
        ("inferior one two three four five six seven infarct", ["MI"]),
        ("inferior infarct, lvh", ["IMI", "LVH"]),
        ("lvh inferior infarct", ["LVH", "IMI"]),
        ("infarct inferior lvh", ["IMI", "LVH"]),
    ],
)
def test_composition(miner: LabelMiner, text: str, findings: list[str]) -> None:
    assert [item.finding for item in miner.mine(text)] == findings


@pytest.mark.parametrize(
    ("text", "status", "age_status", "age"),
    [
        ("inferior infarct, probably old", P, PR, "old"),
        ("inferior infarct, old", P, None, "old"),
        ("probable old inferior infarct", PR, None, "old"),
        ("possible inferior infarct, age undetermined", PO, None, "undetermined"),
        ("inferior infarct, age undet. probably old", P, PR, "undetermined"),
        ("inferiorer infarkt     alter unbest.", P, None, "undetermined"),
        ("inferiorer infarkt wahrscheinlich alt", P, PR, "old"),
        ("inferiorer infarkt möglich, wahrscheinlich alt", PO, PR, "old"),
    ],
)
def test_age(miner: LabelMiner, text: str, status: Status, age_status: Status | None, age: str) -> None:
    (found,) = miner.mine(text)
    assert (found.status, found.age_status) == (status, age_status)
    assert next(value for kind, value in found.qualifiers if kind == "age") == age
    assert found.finding == "IMI"


def test_cause_is_kept_apart_from_presence(miner: LabelMiner) -> None:
    subject, cause = miner.mine("LVH may be due to infarct")
    assert (subject.status, subject.cause_status) == (P, PO)
    assert (cause.status, cause.cause_status, cause.cue) == (PO, PO, "en/may_cause")


def test_alternatives_name_each_other(miner: LabelMiner) -> None:
    found = {item.finding: item.alternatives for item in miner.mine("LVH, RVH or atrial fibrillation. sinus rhythm")}
    assert found == {"LVH": ("RVH", "AFIB"), "RVH": ("LVH", "AFIB"), "AFIB": ("LVH", "RVH"), "SR": ()}
    found = {item.finding: item.alternatives for item in miner.mine("anterior or inferior infarct")}
    assert found == {"AMI": ("IMI",), "IMI": ("AMI",)}
    denied = miner.mine("no LVH or RVH")
    assert [(item.status, item.alternatives) for item in denied] == [(N, ()), (N, ())]


def test_what_a_doubt_stands_between_is_no_alternative(miner: LabelMiner) -> None:
    found = {item.finding: item.status for item in miner.mine("sinus rhythm, possible LVH or RVH")}
    assert found == {"SR": P, "LVH": A, "RVH": A}


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("infarct no longer seen", True),
        ("no infarct no longer seen", True),
        ("qt has lengthened", True),
        ("infarct", False),
    ],
)
def test_serial_statements_need_a_prior_ecg(miner: LabelMiner, text: str, needs: bool) -> None:
    (found,) = miner.mine(text)
    assert found.needs_prior is needs


def test_evidence_rule_and_cue(miner: LabelMiner) -> None:
    text = "Sinus rhythm. Possible, slight old INFERIOR infarction."
    rhythm, infarct = miner.mine(text)
    assert (rhythm.rule, rhythm.cue, rhythm.cue_start, rhythm.cue_end) == ("en/SR/1", "", -1, -1)
    assert text[infarct.start : infarct.end] == "INFERIOR infarction"
    assert (infarct.rule, infarct.cue) == ("en/infarct/1", "en/possible")
    assert text[infarct.cue_start : infarct.cue_end] == "Possible"
    assert infarct.qualifiers == (("degree", "slight"), ("age", "old"), ("location", "inferior"))
