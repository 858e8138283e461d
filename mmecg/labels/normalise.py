"""Raw report text to the plain form that rules are matched on, with a map back to raw offsets.

The plain form is ASCII: lower case; ä→ae, ö→oe, ü→ue, å→aa, ß→ss, other accents dropped; white space, hyphens,
slashes, brackets, quotation marks and asterisks become one space; ``#`` before a letter is a broken ``ü``. Every word
is preceded by exactly one space ("v.a." reads " v. a."), so that a pattern that begins with a space begins at a word.
Line ends stay, and nothing is matched across them. Composed and decomposed Unicode give the same plain form.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mmecg.report import masked_spans

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int32]

SPACE, NEWLINE, APOSTROPHE, HASH = b" "[0], b"\n"[0], b"'"[0], b"#"[0]
OTHER_LETTER, OTHER_SYMBOL = 0x7F, b"~"[0]
"""What a letter or digit, and any other sign, become that have no ASCII form."""

_FOLDS = {"ø": "oe", "æ": "ae", "ß": "ss", "œ": "oe", "ı": "i"}
_SPACES = frozenset('-/_()[]{}"*\\|`´‘‚“”„«»‐‑‒–—―−')
MARKUP = r"<[A-Za-z/!][^<>]*>|&[a-z]{2,8};"
"""Pattern of HTML tags and named entities."""

_SIGNS = {"’": "'", "…": "."}
_LINE_ENDS = frozenset("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
_DIAERESIS, _RING = 0x308, 0x30A

IS_WORD = np.zeros(256, dtype=bool)
"""bool, shape (256,): whether a byte of the plain form belongs to a word."""
IS_WORD[[*b"abcdefghijklmnopqrstuvwxyz0123456789'", OTHER_LETTER]] = True
_IS_LETTER = IS_WORD.copy()
_IS_LETTER[[*b"0123456789'", OTHER_LETTER]] = False


@dataclass(frozen=True)
class PlainText:
    """Text in the form that rules are matched on.

    Attributes
    ----------
    text : bytes
        The plain form.
    codes : uint8, shape (bytes,)
        The same as an array.
    raw_index : int32, shape (bytes,)
        The raw code point that each byte stems from; never decreasing.
    """

    text: bytes
    codes: Bytes
    raw_index: Offsets


def blank_masked(raw: str) -> str:
    """Return the text, of the same length, with blanks for what no label may come from.

    Leaked gold codes and machine boilerplate stand between line ends then; markup becomes spaces.
    """
    for start, end in masked_spans(raw):
        raw = raw[:start] + "\n".join(["", " " * (end - start - 2), ""]) + raw[end:]
    if "<" in raw or "&" in raw:
        raw = re.sub(MARKUP, lambda found: " " * len(found[0]), raw)
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
    is_space = codes == SPACE
    surplus = is_space[1:] & is_space[:-1]
    if surplus.any():
        keep = np.concatenate([[True], ~surplus])
        codes, raw_index, is_space = codes[keep], raw_index[keep], is_space[keep]
    is_word = IS_WORD[codes]
    bare = is_word.copy()  # where a word begins without a space in front
    bare[1:] &= ~(is_word[:-1] | is_space[:-1])
    at = np.flatnonzero(bare)
    codes, raw_index = np.insert(codes, at, SPACE), np.insert(raw_index, at, raw_index[at])
    return PlainText(codes.tobytes(), codes, raw_index)


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
    table = np.array([_fold_char(chr(point)) for point in distinct.tolist()], dtype=np.uint8)
    first, second, length = table[which].T.copy()
    base = np.concatenate([first[:1], first[:-1]])
    umlaut = (points == _DIAERESIS) & np.isin(base, [*b"aou"])
    ring = (points == _RING) & (base == b"a"[0])
    first[umlaut], first[ring], length[umlaut | ring] = b"e"[0], b"a"[0], 1
    return _spell(first, second, length)


def _spell(first: Bytes, second: Bytes, length: Bytes) -> tuple[Bytes, Offsets]:
    """Write each character as its one or two bytes, or none; a ``#`` before a letter is "ue"."""
    index = np.arange(first.size, dtype=np.int32)
    broken = np.flatnonzero(first[:-1] == HASH)
    broken = broken[_IS_LETTER[first[broken + 1]]]
    first[broken], second[broken], length[broken] = b"u"[0], b"e"[0], 2
    if bool((length == 1).all()):
        return first, index
    source = np.repeat(index, length)
    codes = first[source]
    second_byte = np.concatenate([[False], source[1:] == source[:-1]])[: source.size]
    codes[second_byte] = second[source[second_byte]]
    return codes, source


def _mend(codes: Bytes) -> None:
    """Turn apostrophes that are not inside a word into spaces, in place."""
    at = np.flatnonzero(codes == APOSTROPHE)
    around = np.concatenate([codes, [SPACE]])
    codes[at[~(_IS_LETTER[around[at - 1]] & _IS_LETTER[around[at + 1]])]] = SPACE


@lru_cache(maxsize=65_536)
def _fold_char(char: str) -> tuple[int, int, int]:
    """Return first byte, second byte, and how many of them (0 to 2) stand for a character."""
    if char in _LINE_ENDS:
        return NEWLINE, 0, 1
    if char.isspace() or char in _SPACES:
        return SPACE, 0, 1
    if char in _SIGNS:
        return ord(_SIGNS[char]), 0, 1
    folded = _unaccented(unicodedata.normalize("NFKD", char.lower()))
    if not folded or unicodedata.category(char) in ("Cf", "Cc"):
        return 0, 0, 0
    if len(folded) <= 2 and folded.isascii() and folded.isprintable() and " " not in folded:
        return ord(folded[0]), ord(folded[-1]), len(folded)
    return (OTHER_LETTER if char.isalnum() else OTHER_SYMBOL), 0, 1


def _unaccented(decomposed: str) -> str:
    """Return decomposed text with umlauts and rings spelt out and other marks dropped."""
    for mark, bases, letter in ((_DIAERESIS, "aou", "e"), (_RING, "a", "a")):
        for base in bases:
            decomposed = decomposed.replace(base + chr(mark), base + letter)
    return "".join(_FOLDS.get(part, part) for part in decomposed if not unicodedata.combining(part))


_LATIN = [_fold_char(chr(point)) for point in range(256)]
_FIRST = np.array([item[0] for item in _LATIN], dtype=np.uint8)
_SECOND = np.array([item[1] for item in _LATIN], dtype=np.uint8)
_LENGTH = np.array([item[2] for item in _LATIN], dtype=np.uint8)
