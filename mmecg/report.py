"""Report and note text: the raw words, and a clean form that a model may read.

The clean form of a PTB-XL report leaves out what is not the reader's finding: machine boilerplate ("4.46 unbestätigter
bericht", also cut short at the end; "trace only requested."), and every "Edit: …" tail, which carries the record's own
gold codes (a leak in 557 reports). Oddly cased umlauts ("mÖglich") are mended. The raw text is always kept beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmecg.errors import ReportError

MAX_TEXT_CHARS = 20_000
"""Longest accepted report or note; discharge summaries rarely pass 15,000 characters."""

CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
"""Control characters that no report or note may have."""

GOLD_CODES = r"(?i)\bedit\s*:"
"""Where the gold codes of a PTB-XL record begin in its report."""

_REFUSED = re.compile(CONTROL.removesuffix("]") + r"\ud800-\udfff]")
_EDIT_TAIL = re.compile(GOLD_CODES + r".*\Z", re.DOTALL)
_BOILERPLATE = re.compile(
    r"\b\d\.\d\d\s+unbest[äÄa]e?tigter\s+(?:ekg-)?bericht\b"  # software version + "unconfirmed report"
    r"|\bunbest[äÄa]e?tigter\s+(?:ekg-)?bericht\b"
    r"|\bunconfirmed\s+report\b|\bobekr[äÄa]ftad\s+rapport\b"
    r"|\bej\s+bekr[äÄa]ftad\s+(?:ekg-)?(?:rapport|tolkning)\b"
    r"|\btrace\s+only(?:\s+requested)?\b\.?"
    # Reports are cut at a fixed length, often in the middle of "4.46 unbestätigter bericht".
    r"|\s4\.4\d?(?:\s+u[a-zäÄ]*(?:\s+b[a-z]*)?)?\s*\Z",
    re.IGNORECASE,
)
_SPACES = re.compile(r"\s+")

MASK_HINTS = r"(?i)edit\s*:|unbest|unconfirmed|bekr|trace\s+only|4\.4"
"""Quick pattern that is found in every report where :func:`masked_spans` finds something, and in few others."""


@dataclass(frozen=True)
class Report:
    """A report as written, and cleaned.

    Attributes
    ----------
    raw : str
        The text as it was stored. Evidence offsets of mined labels refer to it.
    text : str
        The clean form that the text tower reads; may be empty.
    """

    raw: str
    text: str

    @classmethod
    def from_text(cls, raw: str) -> Report:
        """Check the text and collapse white space; nothing else is changed."""
        checked = check_text(raw)
        return cls(checked, _SPACES.sub(" ", checked).strip())

    @classmethod
    def from_ptb_xl(cls, raw: str) -> Report:
        """Check the text and clean it as :func:`clean_ptb_xl` says."""
        checked = check_text(raw)
        return cls(checked, clean_ptb_xl(checked))


def check_text(text: str | bytes, *, field: str = "report") -> str:
    """Return text that is valid and not too long.

    Raises
    ------
    ReportError
        Bytes that are not UTF-8, control or surrogate characters, or more than :data:`MAX_TEXT_CHARS` characters.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ReportError(
                f"text is not UTF-8 (byte {error.start} cannot be decoded); convert it to UTF-8", field=field
            ) from None
    if len(text) > MAX_TEXT_CHARS:
        raise ReportError(
            f"text has {len(text)} characters, expected at most {MAX_TEXT_CHARS}; send the relevant part, "
            "or split it into several notes",
            field=field,
        )
    if _REFUSED.search(text):
        raise ReportError("text has control or surrogate characters; send plain text", field=field)
    return text


def masked_spans(raw: str) -> list[tuple[int, int]]:
    """Return the slices of a report that no label may be mined from: leaked gold codes and machine boilerplate.

    Parameters
    ----------
    raw : str
        One report; the "Edit: …" tail reaches to its end.

    Returns
    -------
    list of (int, int)
        Start and end code point, in order and apart from each other.
    """
    tail = _EDIT_TAIL.search(raw)
    spans = [match.span() for match in _BOILERPLATE.finditer(raw, 0, tail.start() if tail else len(raw))]
    return [*spans, tail.span()] if tail else spans


def clean_ptb_xl(raw: str) -> str:
    """Return a PTB-XL report without boilerplate and leaked gold codes, in lower case, which mends the umlauts.

    The "Edit: …" tail is cut to the end of the report. White space runs collapse to one space.
    """
    text = _EDIT_TAIL.sub("", raw)
    return _SPACES.sub(" ", _BOILERPLATE.sub(" ", text)).strip().lower()
