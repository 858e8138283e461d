"""Raw report text to the plain form that rules are matched on, with a map back to raw offsets.

The plain form is ASCII: lower case; ä→ae, ö→oe, ü→ue, å→aa, ß→ss, other accents dropped; white space, hyphens,
slashes, brackets, quotation marks and asterisks become one space; ``#`` before a letter is a broken ``ü``. Every word is
preceded by exactly one space ("v.a." reads " v. a."), so that a pattern that begins with a space begins at a word. Line ends
stay, and nothing is matched across them. Composed and decomposed Unicode give the same plain form.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mmecg.report import masked_spans

Bytes = npt.NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)
Offsets = npt.NDArray[np.int64]

SPACE, NEWLINE, APOSTROPHE, HASH = b" "[0], b"\n"[0], b"'"[0], b"#"[0]
OTHER_LETTER, OTHER_SYMBOL = 0x7F, b"~"[0]
"""What a letter or digit, and any other sign, become that have no ASCII form."""

_FOLDS = {"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae", "ß": "ss", "œ": "oe", "ı": "i"}
_SPACES = frozenset('-/_()[]{}"*\\|`´‘‚“”„«»‐‑‒–—―−')
_SIGNS = {"’": "'", "…": "."}
_LINE_ENDS = frozenset("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
_DIAERESIS, _RING = 0x308, 0x30A

IS_WORD = np.zeros(256, dtype=bool)
"""bool, shape (256,): whether a byte of the plain form belongs to a word."""
IS_WORD[[*b"abcdefghijklmnopqrstuvwxyz0123456789'", OTHER_LETTER]] = True
_IS_LETTER = IS_WORD.copy()
_IS_LETTER[[*b"0123456789'"]] = False


@dataclass(frozen=True)
class PlainText:
    """Text in the form that rules are matched on.

    Attributes
    ----------
    text : bytes
        The plain form.
    codes : uint8, shape (bytes,)
        The same as an array.
    raw_index : int64, shape (bytes,)
        The raw code point that each byte stems from; never decreasing.
    """

    text: bytes
    codes: Bytes
    raw_index: Offsets

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """Return the raw slice that the bytes ``start`` to ``end`` (``start < end``) stem from."""
        return int(self.raw_index[start]), int(self.raw_index[end - 1]) + 1


def blank_masked(raw: str) -> str:
    """Return the text with leaked gold codes and machine boilerplate replaced by line ends, of the same length."""
    for start, end in masked_spans(raw):
        raw = raw[:start] + "\n" * (end - start) + raw[end:]
    return raw


def normalise(raw: str) -> PlainText:
    """Return the plain form of a text; masking is the caller's (:func:`blank_masked`).

    Parameters
    ----------
    raw : str
        Any text; also many texts joined by line ends.
    """
    codes, raw_index = _fold(raw)
    _mend(codes)
    is_word, is_space = IS_WORD[codes], codes == SPACE
    after_word, after_space = _shift(is_word, 0), _shift(is_space, 0)
    opens_word = is_word & ~after_word & ~after_space
    counts = (~(is_space & after_space)).astype(np.int64) + opens_word
    source = np.repeat(np.arange(codes.size), counts)
    plain = codes[source]
    plain[(np.cumsum(counts) - counts)[opens_word]] = SPACE
    return PlainText(plain.tobytes(), plain, raw_index[source])


def _fold(raw: str) -> tuple[Bytes, Offsets]:
    """Return the ASCII form of each code point, spelt out, and where each byte comes from."""
    try:
        points = np.frombuffer(raw.encode("latin-1"), dtype=np.uint8)
    except UnicodeEncodeError:
        return _fold_unicode(raw)
    return _spell(_FIRST[points], _SECOND[points], _LENGTH[points])


def _fold_unicode(raw: str) -> tuple[Bytes, Offsets]:
    points = np.frombuffer(raw.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    distinct, which = np.unique(points, return_inverse=True)
    table = np.array([_fold_char(chr(point)) for point in distinct.tolist()], dtype=np.uint8).reshape(-1, 3)
    first, second, length = table[which, 0], table[which, 1], table[which, 2].astype(np.int64)
    base = _shift(first, 0)
    umlaut = (points == _DIAERESIS) & np.isin(base, [*b"aou"])
    ring = (points == _RING) & (base == b"a"[0])
    first[umlaut], first[ring], length[umlaut | ring] = b"e"[0], b"a"[0], 1
    return _spell(first, second, length)


def _spell(first: Bytes, second: Bytes, length: npt.NDArray[np.int64]) -> tuple[Bytes, Offsets]:
    index = np.arange(first.size)
    broken = (first == HASH) & np.append(_IS_LETTER[first[1:]], False)[: first.size]
    if broken.any():
        first[broken], second[broken], length[broken] = b"u"[0], b"e"[0], 2
    if bool((length == 1).all()):
        return first, index
    begin = np.cumsum(length) - length
    codes = np.empty(int(length.sum()), dtype=np.uint8)
    codes[begin[length > 0]] = first[length > 0]
    codes[begin[length == 2] + 1] = second[length == 2]
    return codes, np.repeat(index, length)


def _mend(codes: Bytes) -> None:
    """Turn apostrophes that are not inside a word into spaces, in place."""
    is_letter = _IS_LETTER[codes]
    codes[(codes == APOSTROPHE) & ~(_shift(is_letter, 0) & np.append(is_letter[1:], False)[: codes.size])] = SPACE


def _shift(values: npt.NDArray[Scalar], first: int) -> npt.NDArray[Scalar]:
    """Return the values one place later, with ``first`` in front."""
    return np.concatenate([np.array([first], dtype=values.dtype), values[:-1]])[: values.size]


@lru_cache(maxsize=65_536)
def _fold_char(char: str) -> tuple[int, int, int]:
    """Return first byte, second byte, and how many of them (0 to 2) stand for a character."""
    if char in _LINE_ENDS:
        return NEWLINE, 0, 1
    if char.isspace() or char in _SPACES:
        return SPACE, 0, 1
    if char in _SIGNS:
        return ord(_SIGNS[char]), 0, 1
    lower = char.lower()
    lower = unicodedata.normalize("NFC", lower)
    folded = _FOLDS.get(lower)
    if folded is None:
        folded = "".join(part for part in unicodedata.normalize("NFKD", lower) if not unicodedata.combining(part))
    if not folded or unicodedata.category(char) in ("Cf", "Cc"):
        return 0, 0, 0
    if len(folded) <= 2 and folded.isascii() and folded.isprintable() and " " not in folded:
        return ord(folded[0]), ord(folded[-1]), len(folded)
    return (OTHER_LETTER if char.isalnum() else OTHER_SYMBOL), 0, 1


_LATIN = [_fold_char(chr(point)) for point in range(256)]
_FIRST = np.array([item[0] for item in _LATIN], dtype=np.uint8)
_SECOND = np.array([item[1] for item in _LATIN], dtype=np.uint8)
_LENGTH = np.array([item[2] for item in _LATIN], dtype=np.int64)
