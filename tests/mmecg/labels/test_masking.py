"""A masked text reads to the rules as the text itself."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmecg.labels.masking import WordMask
from mmecg.labels.mining import LabelMiner
from mmecg.labels.rules import load_rules, parse_rules


def mask(folder: Path, text: str, *typos: bytes) -> str:
    rules = [load_rules(language, folder) for language in ("de", "en")]
    return WordMask(rules, typos).mask(f"\n{text}\n".encode()).decode()[1:-1]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("PR 164 ms, possible LVH", "zz 000 zz, possible LVH"),
        ("V4R-x12. (b.c) a LVH", "z0z-z00. (z.z) a LVH"),
        ("ST\tchanges\r", "zz\tzzzzzzz\r"),
        ("Hinterwandinfarkt, infarktartig", "Hinterwandinfarkt, infarktartig"),  # *infarkt
        ("patient's #bung größer wort\u00a0wort", "patient's #bung größer wort\u00a0wort"),
        ("undetermined undet undetected", "undetermined undet zzzzzzzzzz"),
        ("infrct lvhx", "infrct zzzz"),
        ("", ""),
        (". ,\n ;", ". ,\n ;"),
        ("x\ny", "z\nz"),
    ],
)
def test_unknown_words_are_masked(tiny_rules: Path, text: str, masked: str) -> None:
    assert mask(tiny_rules, text, b"infrct") == masked


def test_the_mask_is_no_word_of_the_rules() -> None:
    rules = parse_rules({"language": "en", "finding": [{"id": "A", "patterns": ["z 1", "zz", "a0", "0*", "y0 b"]}]})
    assert WordMask([rules]).mask(b"\nz zz xyz 77 70 0x\n") == b"\nz zz yyy 22 70 0x\n"


def test_words_of_separators_are_known() -> None:
    rules = parse_rules({"language": "en", "separator": [{"patterns": [" Ad |"]}]})
    assert WordMask([rules]).mask(b"\nAd | lead x\n") == b"\nAd | lead z\n"


WORDS = st.one_of(
    st.sampled_from(["LVH", "possible", "no", "or", "inferior", "infarct", "hinterwandinfarkt", "age undet.", "1.5"]),
    st.text(st.sampled_from("abzZ019.'#-ä|/\t中"), min_size=1, max_size=6),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(st.lists(WORDS, max_size=12).map(" ".join))
def test_a_masked_text_says_the_same(tiny_rules: Path, text: str) -> None:
    masked = mask(tiny_rules, text)
    assert len(masked) == len(text)
    miner = LabelMiner(("de", "en"), folder=tiny_rules)
    assert miner.mine(masked) == miner.mine(text)
