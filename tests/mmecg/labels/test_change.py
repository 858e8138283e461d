"""What serial words mean: every serial finding and every serial cue has a change, and gold bears out the exclusions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmecg.datasets.ptb_xl import label_matrix, read_ptb_xl_table, read_scp_statements
from mmecg.errors import ConfigError
from mmecg.labels.change import SerialTable, load_serial_table
from mmecg.labels.mining import LabelMiner
from mmecg.labels.rules import LANGUAGES, Kind, load_rules, rule_literals
from mmecg.labels.vocabulary import load_vocabulary

PTB_XL = Path(__file__).parents[4] / "shared" / "data" / "ptbxl"
SIDES = {"backward": (0,), "forward": (1,), "both": (0, 1)}
MAX_SHARE = 0.2
"""Where a finding is, another that it excludes may be at most so often, relative to how often it is overall."""


@pytest.fixture(scope="module")
def changes() -> Callable[[str], dict[str, str]]:
    miner = LabelMiner()
    return lambda text: {one.finding: one.change for one in miner.mine(text)}


def test_every_serial_finding_of_the_vocabulary_has_a_meaning() -> None:
    serial = {finding.id for finding in load_vocabulary().findings if finding.serial}
    table = load_serial_table()
    assert table.findings.keys() == serial
    names = {finding.id for finding in load_vocabulary().findings}
    assert {part.of for parts in table.findings.values() for part in parts if part.of} <= names
    assert {*table.excludes, *(name for absent in table.excludes.values() for name in absent)} <= names


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_serial_cue_of_the_rules_has_a_meaning_and_no_other_words_do(language: str) -> None:
    rules = load_rules(language)
    cues = {
        literal.text
        for literal, roles in rule_literals(rules).items()
        if any(role.kind is Kind.CUE and rules.cue[role.index].status == "serial" for role in roles)
    }
    assert {literal for of, literal in load_serial_table().cues if of == language} == cues


@pytest.mark.parametrize("language", LANGUAGES)
def test_only_words_for_what_is_there_now_yield_to_doubt(language: str) -> None:
    rules, table = load_rules(language), load_serial_table()
    for literal, roles in rule_literals(rules).items():
        cues = [rules.cue[role.index] for role in roles if role.kind is Kind.CUE]
        for side in {side for cue in cues if cue.yields for side in SIDES[cue.direction]}:
            change = table.cues[language, literal.text][side]
            assert table.changes[change].now is True or change == "compared", literal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sinus rhythm has replaced atrial fibrillation", {"SR": "appeared", "AFIB": "disappeared"}),
        ("atrial fibrillation has converted to sinus rhythm", {"AFIB": "disappeared", "SR": "appeared"}),
        (
            "compared with tracing of 3-4-99, atrial fibrillation has replaced sinus rhythm",
            {"AFIB": "appeared", "SR": "disappeared"},
        ),
        ("atrial fibrillation is no longer evident", {"AFIB": "disappeared"}),
        ("ST no longer depressed", {"STD_": "disappeared", "SERIAL_ST_DEPRESSION_GONE": "disappeared"}),
        (
            "ST elevation has replaced ST depression",
            {"STE_": "appeared", "STD_": "disappeared", "SERIAL_ST_ELEVATION_REPLACED_DEPRESSION": "replaced"},
        ),
        ("compared with tracing of 6:5:92, rhythm was previously atrial fibrillation", {"AFIB": "previous"}),
        ("appearances are no longer suggestive of inferior infarct", {"IMI": "disappeared"}),
        ("compared with tracing of 6:5:92, ST segment elevation in V2,3 is less marked", {"STE_": "decreased"}),
        ("QT has lengthened", {"SERIAL_QT_LENGTHENED": "lengthened"}),
        ("persistent left bundle branch block", {"CLBBB": "unchanged"}),
        ("no new left bundle branch block", {"CLBBB": ""}),
        ("left bundle branch block", {"CLBBB": ""}),
        ("vorhofflimmern nicht mehr nachweisbar", {"AFIB": "disappeared"}),
        ("unveränderter linksschenkelblock", {"CLBBB": "unchanged"}),
        ("no significant change in atrial fibrillation", {"AFIB": "unchanged"}),
        ("the previously inverted t waves are now upright", {"INVT": "disappeared"}),
        ("no change in the ECG", {"SERIAL_NO_CHANGE": "unchanged"}),
        ("keine änderung des vorhofflimmerns", {"AFIB": "unchanged"}),
        ("ingen förändring av förmaksflimmer", {"AFIB": "unchanged"}),
        ("oförändrad inferior infarkt", {"IMI": "unchanged"}),
        ("EKG oförändrat", {"SERIAL_NO_CHANGE": "unchanged"}),
        ("no longer evident ST elevation", {"STE_": "disappeared"}),
        ("vänstergrenblock nytillkommet", {"CLBBB": "appeared"}),
        ("ischemiförändringar som inte fanns på ekg 910218", {"ISC_": "appeared"}),
    ],
)
def test_what_words_say(changes: Callable[[str], dict[str, str]], text: str, expected: dict[str, str]) -> None:
    assert changes(text) == expected


def test_no_exclusion_is_contradicted_by_gold() -> None:
    if not PTB_XL.exists():
        pytest.skip("../shared/data/ptbxl is not here")
    table = read_ptb_xl_table(PTB_XL).filter(pl.col("strat_fold") <= 8)
    statements = tuple(read_scp_statements(PTB_XL)["label"])
    gold = dict(zip(statements, label_matrix(table, statements).T, strict=True))
    vocabulary = load_vocabulary()

    def values(name: str) -> np.ndarray:
        return np.any([gold[code] for code in statements if name in vocabulary.closure([code])], axis=0)

    for present, excluded in load_serial_table().excludes.items():
        for absent in excluded:
            share = values(absent)[values(present)].mean()
            assert share <= MAX_SHARE * values(absent).mean(), (present, absent)


CHANGE = {"id": "compared", "unknown": "x"}
REPLACED = {"id": "replaced", "unknown": "x"}
GONE = {"id": "gone", "before": True}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"change": [{"id": "gone"}]}, "either before or unknown"),
        ({"finding": [{"id": "X", "change": "gone"}]}, "either of or unknown"),
        ({"finding": [{"id": "X", "of": "Y", "change": "went"}]}, "'went' has no"),
        ({"cue": [{"language": "en", "patterns": ["new"], "before": "gone"}]}, "before and after"),
        (
            {
                "cue": [
                    {"language": "en", "patterns": ["new"], "change": "gone"},
                    {"language": "en", "patterns": ["new"], "change": "compared"},
                ]
            },
            "two changes",
        ),
        ({"words": []}, "words is unknown"),
    ],
)
def test_a_broken_table_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SerialTable({"change": [CHANGE, REPLACED, GONE], "finding": [], "cue": [], **values})
