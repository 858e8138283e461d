"""Words that no rule knows, masked, so that sentences that differ in nothing else read alike.

"PR 164 ms, possible LVH" and "PR 171 ms, possible LVH" are one sentence to the rules. A mask keeps the kind of each
sign (letter or digit) and the length of the text, so that what is found in a masked text lies where it lies in the raw
one.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from mmecg.labels.normalise import normalise
from mmecg.labels.rules import Rules, rule_literals

_HASH_BITS = 20
_JOINS = 1 << 40  # more than the values of a text's letters add up to

_ALPHABET = string.ascii_lowercase + string.digits
_IS_GAP = np.zeros(256, dtype=bool)
_IS_GAP[[*b" \t\r\n", *(set(string.punctuation.encode()) - set(b"'#"))]] = True
_LOWER = np.frombuffer(bytes(range(256)).lower(), dtype=np.uint8)


class WordMask:
    """Masks the words that no rule knows.

    A word here is what stands between white space and ASCII punctuation. One that is not ASCII letters and digits alone
    may be several words in plain form, or a part of one (:mod:`mmecg.labels.normalise`), and is left as it is.

    Parameters
    ----------
    rules : iterable of Rules
        Words of their literals are known, and words that hold one that a literal leaves open (``*infarkt*``).
    words : iterable of bytes
        More words to be left as they are, in plain form.
    """

    def __init__(self, rules: Iterable[Rules], words: Iterable[bytes] = ()) -> None:
        from ahocorasick_rs import BytesAhoCorasick

        known, parts = set(words), set[bytes]()
        for item in rules:
            for literal in rule_literals(item):
                own = _words(literal.text)
                known.update(own)
                parts.update(own[:1] if literal.open_start else ())
                parts.update(own[-1:] if literal.open_end else ())
            parts.update(word for separator in item.separators for word in _words(normalise(separator).text))
        self._parts = BytesAhoCorasick(sorted(parts)) if parts else None
        # A word's number is the sum of its signs' values: words that share one with a known word are left as they are.
        values = np.random.default_rng(0).integers(1, 1 << _HASH_BITS, 256)
        self._values = np.full(256, _JOINS)
        self._values[[*_ALPHABET.encode()]] = values[[*_ALPHABET.encode()]]
        self._values[[*string.ascii_uppercase.encode()]] = values[[*string.ascii_lowercase.encode()]]
        self._known = np.zeros(1 << _HASH_BITS, dtype=bool)
        for word in known:
            self._known[int(self._values[[*word]].sum()) & (self._known.size - 1)] = True
        self._masked = _masked_signs(known | parts)

    def mask(self, text: bytes) -> bytes:
        """Return a text, of the same length, in which unknown words are masked.

        Parameters
        ----------
        text : bytes
            UTF-8, between line ends.
        """
        codes = np.frombuffer(text, dtype=np.uint8)
        is_gap = _IS_GAP.take(codes)
        edges = np.flatnonzero(is_gap[1:] != is_gap[:-1]) + 1  # beginnings and ends in turn
        sums = np.cumsum(self._values.take(codes))
        numbers = np.diff(sums.take(edges - 1))[::2]
        unknown = np.flatnonzero((numbers < _JOINS) & ~self._known[numbers & (self._known.size - 1)])
        start, end = edges[::2][unknown], edges[1::2][unknown]
        if self._parts is not None:
            lines = _LOWER.take(codes[_inside(start, end + 1)]).tobytes()
            found = [at for _, at, _ in self._parts.find_matches_as_indexes(lines)]
            holds = np.searchsorted(np.cumsum(end + 1 - start), found, side="right")
            start, end = np.delete(start, holds), np.delete(end, holds)
        hidden = _inside(start, end)
        masked = codes.copy()
        masked[hidden] = self._masked.take(codes[hidden])
        return masked.tobytes()


def _words(plain: bytes) -> list[bytes]:
    return re.findall(rb"[a-z0-9]+", plain)


def _masked_signs(known: set[bytes]) -> npt.NDArray[np.uint8]:
    """Return what letters and digits become: such that no known word is made of these two alone."""
    pairs = ((letter, digit) for letter in string.ascii_lowercase[::-1] for digit in string.digits)
    letter, digit = next(pair for pair in pairs if not any(set(word) <= {*map(ord, pair)} for word in known))
    masked = np.arange(256, dtype=np.uint8)
    masked[[*string.ascii_letters.encode()]], masked[[*string.digits.encode()]] = ord(letter), ord(digit)
    return masked


def _inside(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the positions inside some spans."""
    lengths = end - start
    before = np.cumsum(lengths) - lengths
    positions: npt.NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(start - before, lengths)
    return positions
