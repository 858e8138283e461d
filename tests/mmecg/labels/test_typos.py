from pathlib import Path

import pytest

from mmecg.labels.mining import LabelMiner
from mmecg.labels.normalise import normalise
from mmecg.labels.rules import load_rules
from mmecg.labels.typos import TypoMender, find_typos, rule_words

CORPUS = ["atrial fibrillation"] * 40 + ["atrial fibrilation", "atrial fibrillatoin?", "left hypertrophy", "infarcts"]


@pytest.fixture
def known(tiny_rules: Path) -> frozenset[bytes]:
    return rule_words([load_rules("en", tiny_rules)])


def test_rare_words_near_a_rule_word_are_typos(known: frozenset[bytes]) -> None:
    expected = {b"fibrilation": b"fibrillation", b"fibrillatoin": b"fibrillation"}
    assert find_typos(CORPUS, known) == find_typos(reversed(CORPUS), known) == expected


@pytest.mark.parametrize(
    "texts",
    [
        ["infarct"] * 50 + ["infarcts", "infarction"],  # all are words of the rules
        ["fibrillation"] * 9 + ["fibrilation"],  # not rare enough
        ["fibrillation"] * 50 + ["defibrillation"],  # another first letter
        ["rhythm"] * 50 + ["rythms"],  # too far for its length
        ["sinus"] * 50 + ["sinos"],  # too short
        ["fibrillation"] * 50 + ["x Edit: fibrilation"],  # leaked codes are not read
    ],
)
def test_what_is_no_typo(known: frozenset[bytes], texts: list[str]) -> None:
    assert find_typos(texts, known) == {}


def test_evidence_stays_as_written(tiny_rules: Path) -> None:
    text = "Possible atrial FIBRILATION, fibrilations; no left ventriculra hypertrophy"
    typos = {b"fibrilation": b"fibrillation", b"ventriculra": b"ventricular"}
    assert LabelMiner(("en",), folder=tiny_rules).mine(text) == ()
    found = LabelMiner(("en",), folder=tiny_rules, typos=typos).mine(text)
    assert [(item.finding, item.status.value, text[item.start : item.end]) for item in found] == [
        ("AFIB", "possible", "atrial FIBRILATION"),
        ("LVH", "negated", "left ventriculra hypertrophy"),
    ]


def test_map_to_raw_text_never_goes_back() -> None:
    plain = TypoMender({b"abcdef": b"abcdefgh", b"qwertyui": b"qwerty"}).mend(normalise("ä abcdef Qwertyui abcdefx"))
    assert plain.text == b" ae abcdefgh qwerty abcdefx"
    index = plain.raw_index.tolist()
    assert index == sorted(index)
    assert len(index) == len(plain.codes) == len(plain.text)
