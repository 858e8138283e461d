from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmecg.labels.mining import LabelMiner
from mmecg.labels.normalise import normalise
from mmecg.labels.rules import LANGUAGES, load_rules
from mmecg.labels.typos import LostLetters, TypoMender, find_typos, rule_words

CORPUS = ["atrial fibrillation"] * 40 + ["atrial fibrilation", "atrial fibrillatoin?", "left hypertrophy", "infarcts"]
LETTERS = LostLetters([load_rules(language) for language in LANGUAGES])


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


@pytest.mark.parametrize(
    ("raw", "mended"),
    [
        ("v\ufffdnstersidigt sk\ufffdnkelblock", "vänstersidigt skänkelblock"),
        ("amplitudenkriterien f\ufffdr linkshypertrophie", "amplitudenkriterien für linkshypertrophie"),
        ("amplitudkriterier f\ufffdr v\ufffdnster kammarhypertrofi", "amplitudkriterier för vänster kammarhypertrofi"),
        ("LINKSHYPERTROPHIE M\ufffdGLICH", "LINKSHYPERTROPHIE MöGLICH"),
        ("\ufffdberdrehter linkstyp", "überdrehter linkstyp"),
        ("v\ufffd\ufffdnstergrenblock", "vaenstergrenblock"),  # both bytes of a letter were lost
        ("sinus\ufffdhythm sinusrhyt\ufffdmus", "sinus\ufffdhythm sinusrhythmus"),
        ("inferior\ufffd infarkt", "inferior\ufffd infarkt"),  # may have been a quotation mark
        ("f\ufffdr \ufffd\ufffd 5\ufffd", "für \ufffd\ufffd 5\ufffd"),
        ("x" * 50 + "\ufffd" * 50, "x" * 50 + "\ufffd" * 50),
        ("möglich", "möglich"),
    ],
)
def test_lost_letters_are_put_back_where_one_word_has_them(raw: str, mended: str) -> None:
    found = LETTERS.mend(raw)
    assert found == mended
    assert len(found) == len(raw)


@given(st.text(alphabet="\ufffd\ufffdvnsterfülkaä .\n\r5-", max_size=40))
def test_mended_text_differs_in_lost_letters_alone(raw: str) -> None:
    found = LETTERS.mend(raw)
    assert len(found) == len(raw)
    assert all(mended == char or char == "\ufffd" for char, mended in zip(raw, found, strict=True))


def test_evidence_of_a_mended_word_is_the_raw_text() -> None:
    text = "sinusrytm\r\nv\ufffdnstersidigt sk\ufffdnkelblock \ufffd"
    rhythm, block = LabelMiner().mine(text)
    assert (rhythm.finding, block.finding) == ("SR", "CLBBB")
    assert text[block.start : block.end] == "v\ufffdnstersidigt sk\ufffdnkelblock"
