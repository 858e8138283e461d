"""The shipped rules: they name known findings, read assertion well, and their scores on gold are fresh."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmecg.datasets.ptb_xl import label_matrix, read_ptb_xl_table, read_scp_statements
from mmecg.labels.assertion import LabelAssertion, Status
from mmecg.labels.mining import LabelMiner
from mmecg.labels.rule_report import FOLDS, MIN_REPORTS, REPORT_FILE, mine_reports, score_rules
from mmecg.labels.rules import LANGUAGES, load_rules
from mmecg.labels.vocabulary import load_vocabulary

PTB_XL = Path(__file__).parents[4] / "shared" / "data" / "ptbxl"
CLAUSES = Path(__file__).parent / "assertion_clauses.csv"
TARGETS = {"en": 0.93, "de": 0.90, "sv": 0.85}
MIN_CLAUSES = {"en": 130, "de": 110, "sv": 60}

WORD_OF_FINDING = {"WPW": "wpw", "PACE": "schrittmacher", "AFLT": "vorhofflattern", "SVARR": "supraventrikul"}
"""A word without which no German rule of the finding matches, so that few reports need mining to score those rules."""


@pytest.fixture(scope="module")
def miner() -> LabelMiner:
    return LabelMiner()


@pytest.fixture(scope="module")
def clauses() -> list[dict[str, str]]:
    with CLAUSES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def first(found: tuple[LabelAssertion, ...], finding: str) -> LabelAssertion | None:
    return next((item for item in found if item.finding == finding), None)


def test_rules_name_findings_of_the_vocabulary_and_nearly_all_of_them(miner: LabelMiner) -> None:
    known = {finding.id for finding in load_vocabulary().findings}
    assert set(miner.findings) <= known
    # generic parents that a text never needs to name: they are implied
    assert known - set(miner.findings) <= {"ISCHEMIA", "LBBB", "RBBB", "PVC_OR_ABERRANCY"}


def test_every_scp_statement_has_a_rule(miner: LabelMiner) -> None:
    statements = {row.code for row in load_vocabulary().mappings("scp")}
    assert statements <= set(miner.findings)


def test_clauses_are_many_and_of_every_status(clauses: list[dict[str, str]]) -> None:
    count = Counter(row["language"] for row in clauses)
    assert all(count[language] >= least for language, least in MIN_CLAUSES.items())
    for language in LANGUAGES:
        assert {row["status"] for row in clauses if row["language"] == language} == {str(status) for status in Status}


@pytest.mark.parametrize("language", LANGUAGES)
def test_assertion_status_of_labelled_clauses(miner: LabelMiner, clauses: list[dict[str, str]], language: str) -> None:
    rows = [row for row in clauses if row["language"] == language]
    said = [first(miner.mine(row["text"]), row["finding"]) for row in rows]
    right = [item is not None and item.status == row["status"] for item, row in zip(said, rows, strict=True)]
    assert np.mean(right) >= TARGETS[language]


def test_evidence_of_the_clauses_is_a_slice_of_their_raw_text(miner: LabelMiner, clauses: list[dict[str, str]]) -> None:
    for row in clauses:
        for item in miner.mine(row["text"]):
            words = row["text"][item.start : item.end]
            assert words
            assert words == words.strip()


@pytest.mark.parametrize(
    ("text", "finding", "status"),
    [
        ("T WAVE INVERSION NO LONGER EVIDENT IN ANTERIOR LEADS", "SERIAL_T_INVERSION_GONE", Status.SERIAL),
        ("QT HAS LENGTHENED", "SERIAL_QT_LENGTHENED", Status.SERIAL),
        ("SINUS RHYTHM HAS REPLACED ATRIAL FIBRILLATION", "AFIB", Status.SERIAL),
    ],
)
def test_comparison_with_an_earlier_ecg_needs_it(miner: LabelMiner, text: str, finding: str, status: Status) -> None:
    item = first(miner.mine(text), finding)
    assert item is not None
    assert (item.status, item.needs_prior) == (status, True)


@pytest.mark.parametrize(
    ("text", "finding", "age"),
    [
        ("qrs(t) abnorm    inferiorer infarkt      wahrscheinlich alt", "IMI", Status.PROBABLE),
        ("Anterior infarct, possibly acute", "AMI", Status.POSSIBLE),
        ("inferior infarkt      mÖjligen fÄrsk", "IMI", Status.POSSIBLE),
    ],
)
def test_doubt_about_age_is_none_about_presence(miner: LabelMiner, text: str, finding: str, age: Status) -> None:
    item = first(miner.mine(text), finding)
    assert item is not None
    assert (item.status, item.age_status) == (Status.PRESENT, age)


@pytest.mark.parametrize(
    ("text", "finding", "other"),
    [
        ("inferiorer infarkt    alter unbest. linkshypertrophie möglich", "IMI", "LVH"),
        ("inferior infarct of uncertain age, LVH", "IMI", "LVH"),
        ("infarkt ålder ej bestämmbar t-förändring", "MI", "TAB_"),
    ],
)
def test_an_undetermined_age_is_that_of_what_stands_before_it(
    miner: LabelMiner, text: str, finding: str, other: str
) -> None:
    said = {item.finding: item.qualifiers for item in miner.mine(text)}
    assert (said[finding], said[other]) == ((("age", "undetermined"),), ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("st & t abnorm, wahrscheinlich hochlaterale ischämie", {"ST_ABNORMALITY": "present", "ISCLA": "probable"}),
        ("kammerhypertrophie lvh, wahrscheinlich", {"LVH": "probable"}),
        ("inferiorer infarkt, wahrscheinlich alt", {"IMI": "present"}),
        ("q in iii (nicht signifikant) normales ekg", {"QWAVE": "present", "NORM": "present"}),
        ("keine signifikante st-senkung", {"STD_": "negated"}),
        ("(aneurysma bekannt) fehlende r-progression", {"ANEUR": "historical", "POOR_R_WAVE_PROGRESSION": "present"}),
        ("bekanntes vorhofflimmern", {"AFIB": "historical"}),
        (
            "lagetyp normal vorhofsüberlastung wahrscheinlich",
            {"NORMAL_AXIS": "present", "ATRIAL_ENLARGEMENT": "probable"},
        ),
        ("schenkelblock, vollständig, rechts", {"CRBBB": "present"}),
        ("ves ohne kompensatorische pause lagetyp normal", {"PVC": "present", "NORMAL_AXIS": "present"}),
        ("kein rs in v6 pathologisches ekg", {"ABNORMAL_ECG": "present"}),
        ("v3 hohe t wahrscheinlich normales ekg", {"TALL_T_WAVE": "present", "NORM": "probable"}),
        ("sinus arrhythmie (fragl. respiratorisch) lagetyp normal", {"SARRH": "present", "NORMAL_AXIS": "present"}),
        ("mlt linkskammerhypertrophie wahrscheinlich", {"NORMAL_AXIS": "present", "LVH": "probable"}),
        ("suggest repeat when patient reverts to sinus rhythm", {"SR": "conditional"}),
        ("suggest check p digoxin level", {}),
        ("the cause of the marked bradycardia is not evident", {}),
        ("hypokalaemia should be excluded", {"EL": "possible"}),
        ("v.a. neu aufgetretenen inferioren infarkt", {"IMI": "possible"}),
        ("AF with RVR", {"AFIB": "present", "RAPID_VENTRICULAR_RESPONSE": "present"}),
        ("AFib w/ rapid ventricular response", {"AFIB": "present", "RAPID_VENTRICULAR_RESPONSE": "present"}),
        ("no change in atrial fibrillation", {"AFIB": "serial"}),
        ("no longer evident ST elevation", {"STE_": "serial"}),
        ("sinus rhythm, no longer evident ST elevation", {"SR": "present", "STE_": "serial"}),
        ("AF is no longer evident, ST elevation in V1", {"AFIB": "serial", "STE_": "present"}),
        ("possible new infarct", {"MI": "possible"}),
        ("new infarct", {"MI": "serial"}),
        ("compared with tracing of 9:92, probable LVH", {"LVH": "probable"}),
        ("possible infarct is no longer evident", {"MI": "serial"}),
        ("t waves are flat in i and inverted in avl", {"NDT": "present", "INVT": "present"}),
        ("p waves are inverted in ii", {"P_WAVE_ABNORMALITY": "present"}),
        ("vänstergrenblock nytillkommet", {"CLBBB": "serial"}),
        ("nytillkommen infarkt", {"MI": "serial"}),
        ("regelbunden rytm, inga p-våg funna", {"NO_P_WAVES": "present"}),
        ("ökad risk för totalt av-block", {"3AVB": "conditional"}),
        (
            "överväg färsk inferior peri- eller myokardskada",
            {"IMI": "alternative", "ACUTE_PERICARDITIS": "alternative"},
        ),
        ("st-sänkning inferolateralt, såsom vid ischemi", {"STD_": "present", "ISCIL": "probable"}),
        ("lateral myokard affektion", {"INJLA": "present", "LATERAL_INJURY": "present"}),
        ("no atrial fibrillation or flutter", {"AFIB": "negated", "AFLT": "negated"}),
        (
            "ventricular flutter or fibrillation",
            {"VENTRICULAR_FLUTTER": "alternative", "VENTRICULAR_FIBRILLATION": "alternative"},
        ),
        (
            "kammerflimmern oder -flattern",
            {"VENTRICULAR_FLUTTER": "alternative", "VENTRICULAR_FIBRILLATION": "alternative"},
        ),
        ("AFL with 2:1 AV block", {"AFLT": "present", "AV_CONDUCTION_2_1": "present"}),
        ("old IMI", {"IMI": "present"}),
        ("old AMI", {"MI": "present"}),
        ("possible NSTEMI", {"MI": "possible", "ACUTE_MI": "possible"}),
        ("non-ST elevation myocardial infarction", {"MI": "present", "ACUTE_MI": "present"}),
        ("V.a. NSTEMI", {"MI": "possible", "ACUTE_MI": "possible"}),
        ("misstänkt STEMI", {"STEMI": "possible"}),
        ("QTc 480 ms", {}),
        ("prolonged QTc 480 ms", {"LNGQT": "present"}),
        ("bei Beschwerden an Ischämie denken", {"ISC_": "possible"}),
        ("an eine Ischämie zu denken", {"ISC_": "possible"}),
        ("denken an Ischämie", {"ISC_": "possible"}),
        ("Sinusrhythmus. Im Vergleich zum Vorbefund unverändert.", {"SR": "present", "SERIAL_NO_CHANGE": "serial"}),
        ("unverändert gegenüber dem Vor-EKG", {"SERIAL_NO_CHANGE": "serial"}),
        ("keine wesentliche Änderung zum Vorbefund", {"SERIAL_NO_CHANGE": "serial"}),
        ("höger skänkelblock", {"CRBBB": "present"}),
        ("inkomplett höger skänkelblock", {"IRBBB": "present"}),
        ("vänster skänkelblock", {"CLBBB": "present"}),
        ("misst hjärtinfarkt", {"MI": "possible"}),
        ("misst. hjärtinfarkt", {"MI": "possible"}),
        ("VKH", {"LVH": "present"}),
        ("T-negativisering", {"INVT": "present"}),
        ("QT-förlängning", {"LNGQT": "present"}),
        ("patologisk vänsterställd elaxel", {"ABNORMAL_LEFT_AXIS_DEVIATION": "present"}),
        ("vänsterställd elaxel", {"LEFTWARD_AXIS": "present"}),
        ("oförändrat jämfört med tidigare", {"SERIAL_NO_CHANGE": "serial"}),
        ("sinusrytm oförändrat jämfört med tidigare EKG", {"SR": "present", "SERIAL_NO_CHANGE": "serial"}),
    ],
)
def test_how_a_text_speaks_of_all_that_it_names(miner: LabelMiner, text: str, expected: dict[str, str]) -> None:
    assert {item.finding: item.status for item in miner.mine(text)} == expected


@pytest.mark.parametrize(
    "text",
    [
        "atrial fibrillation or flutter",
        "atrial flutter or fibrillation",
        "possible atrial fibrillation or flutter",
        "Vorhofflimmern oder -flattern",
        "förmaksflimmer eller -fladder",
    ],
)
def test_a_noun_left_out_behind_or_is_an_alternative(miner: LabelMiner, text: str) -> None:
    said = {item.finding: (item.status, item.alternatives) for item in miner.mine(text)}
    assert said == {"AFIB": (Status.ALTERNATIVE, ("AFLT",)), "AFLT": (Status.ALTERNATIVE, ("AFIB",))}


def test_a_phrase_that_names_alternatives_says_which(miner: LabelMiner) -> None:
    said = {item.finding: item.alternatives for item in miner.mine("anteriorer myokard- oder perikardschaden")}
    assert said == {"AMI": ("ACUTE_PERICARDITIS",), "ACUTE_PERICARDITIS": ("AMI",)}


@pytest.mark.parametrize("doubt", ["mögl.", "mögl", "möglich", "möglicherweise", "evtl.", "eventuell"])
def test_every_spelling_of_a_doubt_before_an_age_is_about_age(miner: LabelMiner, doubt: str) -> None:
    (said,) = miner.mine(f"anteriorer infarkt {doubt} akut")
    assert (said.finding, said.status, said.age_status) == ("AMI", Status.PRESENT, Status.POSSIBLE)
    assert said.qualifiers == (("age", "acute"),)


def test_a_doubt_before_an_undetermined_age_is_about_presence(miner: LabelMiner) -> None:
    (said,) = miner.mine("anteriorer infarkt möglich alter unbest.")
    assert (said.status, said.age_status) == (Status.POSSIBLE, None)


def test_a_doubted_comparison_still_needs_the_prior_study(miner: LabelMiner) -> None:
    (said,) = miner.mine("possible new left bundle branch block")
    assert (said.status, said.needs_prior, said.change) == (Status.POSSIBLE, True, "")


@pytest.mark.parametrize("age", ["ålder obestämd", "ålder ej bestämd", "ålder okänd", "av okänd ålder"])
def test_an_unknown_age_is_read_in_swedish(miner: LabelMiner, age: str) -> None:
    (said,) = miner.mine(f"inferior infarkt {age}")
    assert (said.finding, said.qualifiers) == ("IMI", (("age", "undetermined"),))


def test_atrial_fibrillation_is_no_accessory_pathway(miner: LabelMiner) -> None:
    found = {item.finding for item in miner.mine("Atrial fibrillation with PVC(s) or aberrant ventricular conduction")}
    assert not found & {"WPW", "PREEXCITATION", "SVTAC", "SVT_WITH_ABERRANCY", "TACHYCARDIA"}


def test_gold_codes_in_the_text_match_nothing(miner: LabelMiner) -> None:
    assert [item.finding for item in miner.mine("sinusrhythmus    Edit: LVH 50, ISC_ 100, IMI 15")] == ["SR"]


def test_scores_count_a_rule_once_a_report() -> None:
    afib = LabelAssertion("AFIB", Status.PRESENT, 0, 4, "en/AFIB/1", language="en")
    doubted = LabelAssertion("AFIB", Status.POSSIBLE, 0, 4, "en/AFIB/1", cue="en/possible", language="en")
    other = LabelAssertion("LV_STRAIN", Status.PRESENT, 0, 4, "en/LV_STRAIN/1", language="en")
    reports = [(afib, afib, other), (afib,), (doubted,), (other,), ()]
    gold = np.array([[True], [False], [True], [True], [True]])
    scores = score_rules(reports, gold, ["AFIB"], min_reports=1)
    assert scores.select("rule", "cue", "reports", "coverage", "precision", "recall").rows() == [
        ("en/AFIB/1", "", 2, 0.5, 0.5, round(1 / 3, 4)),
        ("en/AFIB/1", "en/possible", 1, 0.25, 1.0, round(1 / 3, 4)),
        ("en/LV_STRAIN/1", "", 2, 0.5, None, None),
    ]


def test_report_names_rules_and_cues_that_exist(miner: LabelMiner) -> None:
    report = pl.read_csv(REPORT_FILE)
    assert set(report["rule"]) <= set(miner.rules)
    cues = {f"{language}/{cue.id}" for language in LANGUAGES for cue in load_rules(language).cue}
    assert set(report["cue"].drop_nulls()) - {""} <= cues
    assert report["reports"].min() >= MIN_REPORTS


@pytest.mark.skipif(not PTB_XL.exists(), reason="../shared/data/ptbxl is not here")
def test_report_is_fresh(miner: LabelMiner) -> None:
    """Recomputes counts and precision of the rules whose reports are found by one word."""
    table = read_ptb_xl_table(PTB_XL).filter(pl.col("strat_fold").is_in(FOLDS))
    labels = read_scp_statements(PTB_XL)["label"].to_list()
    report = pl.read_csv(REPORT_FILE)
    for finding, word in WORD_OF_FINDING.items():
        part = table.filter(pl.col("report_raw").str.to_lowercase().str.contains(word, literal=True))
        reports = mine_reports(miner, part["report_raw"].to_list())
        fresh = score_rules(reports, label_matrix(part, labels), labels)
        names = ("rule", "cue", "status", "reports", "precision")
        wanted = (pl.col("finding") == finding) & (pl.col("language") == "de")
        kept = report.with_columns(pl.col("cue").fill_null("")).filter(wanted).select(names)
        assert kept.rows() == fresh.filter(wanted).select(names).rows()
        assert kept.height


def test_an_unknown_cause_denies_nothing():
    text = "sinus bradycardia. the cause of the bradycardia is not evident."
    said = {(item.finding, item.status) for item in LabelMiner().mine(text)}
    assert ("SBRAD", Status.NEGATED) not in said
    assert ("SBRAD", Status.PRESENT) in said


@pytest.mark.parametrize(
    "text",
    ["förmaksflimmer ej längre påvisbart", "förmaksflimmer inte längre", "ej längre förmaksflimmer"],
)
def test_what_is_no_longer_there_in_swedish_is_serial(text):
    (said,) = LabelMiner().mine(text)
    assert (said.finding, said.status, said.change) == ("AFIB", Status.SERIAL, "disappeared")
