from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmecg.errors import ReportError
from mmecg.report import MAX_TEXT_CHARS, Report, check_text, clean_ptb_xl


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("sinusrhythmus normales ekg 4.46                unbestÄtigter bericht", "sinusrhythmus normales ekg"),
        ("sinusrhythmus 4.46 unbestaetigter bericht", "sinusrhythmus"),
        ("linksbelastung 4.46 unbestÄti", "linksbelastung"),
        ("linksbelastung 4.46      unbestÄtigter be", "linksbelastung"),
        ("linksbelastung 4.46", "linksbelastung"),
        ("linksbelastung 4.4", "linksbelastung"),
        ("st depression of 0.15", "st depression of 0.15"),
        ("infarkt alter unbest.", "infarkt alter unbest."),
        ("trace only requested.", ""),
        ("trace only.", ""),
        ("sinus rhythm. unconfirmed report", "sinus rhythm."),
        ("sinus rhythm. normal ecg. Edit: NORM 100, (NORM 100)", "sinus rhythm. normal ecg."),
        ("linkstyp EDIT :LVH 100\n(ISCAL)", "linkstyp"),
        ("a credited sentence", "a credited sentence"),
        ("infarkt mÖglich, st-t fÖrÄndring sÅsom vid", "infarkt möglich, st-t förändring såsom vid"),
        ("ÜBERDREHTER  \n Linkstyp", "überdrehter linkstyp"),
        ("", ""),
    ],
)
def test_clean_ptb_xl(raw: str, clean: str) -> None:
    assert clean_ptb_xl(raw) == clean
    assert Report.from_ptb_xl(raw) == Report(raw, clean)


@given(st.text(alphabet="abÄÖ 4.6:\nEditunbestricht", max_size=80))
def test_cleaning_is_stable_and_never_leaks(text: str) -> None:
    once = clean_ptb_xl(text + " Edit: NORM 100, SECRET")
    assert "secret" not in once
    assert once == once.strip()
    assert "  " not in once


def test_plain_text_is_only_collapsed() -> None:
    report = Report.from_text(" Sinus\n rhythm.  Edit: kept ")
    assert report.text == "Sinus rhythm. Edit: kept"
    assert report.raw == " Sinus\n rhythm.  Edit: kept "


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"unbest\xe4tigter", "not UTF-8"),
        ("x" * 100_000, "has 100000 characters"),
        ("x" * (MAX_TEXT_CHARS + 1), "characters"),
        ("a\x00b", "control"),
        ("a\ud800b", "surrogate"),
    ],
)
def test_unusable_text(text: str | bytes, match: str) -> None:
    with pytest.raises(ReportError, match=match) as caught:
        check_text(text, field="notes[0].text")
    assert caught.value.field == "notes[0].text"
    assert "xxx" not in str(caught.value)


def test_usable_text() -> None:
    assert check_text("ä\tb\n".encode()) == "ä\tb\n"
    assert check_text("x" * MAX_TEXT_CHARS) == "x" * MAX_TEXT_CHARS
