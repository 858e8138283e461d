import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmecg.labels.normalise import blank_masked, normalise

LATIN = st.text(st.characters(max_codepoint=0x24F, exclude_categories=("Cs",)), max_size=60)
ANY = st.text(max_size=60) | st.text(alphabet="aäÖ ß\n.#'-éo\u0308\u030aA1中½ﬁ…\t", max_size=60)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("mÖglich Äpfel grüße måttlig", " moeglich aepfel gruesse maattlig"),
        ("f#r den #bergang #1", " fuer den uebergang # 1"),
        ("ST-T / QRS(T)  \t abnorm", " st t qrs t abnorm"),
        ("v.a. Infarkt", " v. a. infarkt"),
        ("rate 4.46", " rate 4. 46"),
        ("can't 'old' patient’s", " can't old patient's"),
        ("a\r\nb", " a\n\n b"),
        ("Ärzte", " aerzte"),
        ("", ""),
        ("-", " "),
        ("中文 ½", " \x7f\x7f \x7f"),
        ("ﬁbrillation…", " fibrillation."),
        ("soft\u00adhyphen", " softhyphen"),
    ],
)
def test_plain_form(raw: str, plain: str) -> None:
    assert normalise(raw).text.decode("ascii") == plain


@given(ANY)
def test_every_byte_stems_from_raw_text_in_order(raw: str) -> None:
    plain = normalise(raw)
    assert len(plain.text) == len(plain.raw_index) == len(plain.codes)
    index = plain.raw_index.tolist()
    assert index == sorted(index)
    assert all(0 <= at < len(raw) for at in index)
    assert b"  " not in plain.text
    assert plain.text.isascii()
    assert not re.search(rb"[^ a-z0-9'\x7f][a-z0-9]", plain.text)  # a space stands before each word


@given(ANY, st.data())
def test_every_span_maps_to_the_raw_slice_that_reads_the_same(raw: str, data: st.DataObject) -> None:
    plain = normalise(raw)
    words = list(re.finditer(rb"[a-z]+", plain.text))
    if words:
        word = data.draw(st.sampled_from(words))
        start, end = plain.raw_index[word.start()], plain.raw_index[word.end() - 1] + 1
        assert word[0] in normalise(raw[start:end]).text
        assert 0 <= start < end <= len(raw)


@given(LATIN)
def test_composed_and_decomposed_text_are_alike(raw: str) -> None:
    composed, decomposed = (normalise(unicodedata.normalize(form, raw)).text for form in ("NFC", "NFD"))
    assert composed == decomposed


@given(LATIN.filter(lambda text: "ŉ" not in text))  # the one letter whose capital is two characters, apostrophe and N
def test_case_does_not_matter(raw: str) -> None:
    assert normalise(raw.lower()).text == normalise(raw.lower().upper().lower()).text


@pytest.mark.parametrize(
    "raw",
    [
        "linkstyp Edit: LVH 50, (ISCAL 100)",
        "linkstyp 4.46        unbestÄtigter bericht",
        "linkstyp unconfirmed report EDIT : AFIB\n100",
        "linkstyp trace only requested.",
    ],
)
def test_masked_text_is_blank_and_keeps_its_length(raw: str) -> None:
    blank = blank_masked(raw)
    assert len(blank) == len(raw)
    assert blank.split() == ["linkstyp"]
    assert "\n" in blank  # nothing is matched across it
