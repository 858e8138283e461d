"""Typing errors of a corpus, found once and beforehand: unknown words that are close to one word of the rules.

A word is taken for a mistyped rule word if it is long enough, begins with the same letter, is within the edit distance
for its length (transpositions count once), has no second rule word as near, and is much rarer in the corpus than the
word it stands for. Words of the rules are never changed. Evidence stays the words as written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from mmecg.labels.normalise import IS_WORD, PlainText, blank_masked, normalise
from mmecg.labels.rules import Rules, rule_literals

MIN_LENGTH = 6
LONG = 9
"""From this length on two edits are allowed, below it one."""
RARER = 10
"""How many times rarer than its rule word a typing error is, at least."""

_WORD = re.compile(rb"[a-z]+")


def rule_words(rules: Iterable[Rules]) -> frozenset[bytes]:
    """Return every word of the rules' literals and of their word lists, in plain form."""
    return frozenset(word for item in rules for literal in rule_literals(item) for word in _WORD.findall(literal.text))


def find_typos(texts: Iterable[str], known: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return the typing errors of a corpus and the rule words that they stand for, in plain form and in order.

    Parameters
    ----------
    texts : iterable of str
    known : frozenset of bytes
        :func:`rule_words`.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    counts: Counter[bytes] = Counter()
    for text in texts:
        counts.update(_WORD.findall(normalise(blank_masked(text)).text))
    choices = sorted(word.decode() for word in known if len(word) >= MIN_LENGTH)
    found: dict[bytes, bytes] = {}
    for word in sorted(counts.keys() - known):
        if len(word) < MIN_LENGTH:
            continue
        limit = 2 if len(word) >= LONG else 1
        alike = [choice for choice in choices if ord(choice[0]) == word[0]]
        near = process.extract(word.decode(), alike, scorer=OSA.distance, score_cutoff=limit, limit=2)
        if near and (len(near) == 1 or near[0][1] < near[1][1]):
            right = near[0][0].encode()
            if counts[word] * RARER <= counts[right]:
                found[word] = right
    return found


class TypoMender:
    """Puts rule words in the place of typing errors; offsets still lead to the words as written.

    Parameters
    ----------
    typos : mapping of bytes to bytes
        What :func:`find_typos` returned.
    """

    def __init__(self, typos: Mapping[bytes, bytes]) -> None:
        from ahocorasick_rs import BytesAhoCorasick

        self._right = [typos[word] for word in sorted(typos)]
        self._automaton = BytesAhoCorasick([b" " + word for word in sorted(typos)]) if typos else None

    def mend(self, plain: PlainText) -> PlainText:
        """Return the text with its typing errors replaced."""
        found = self._automaton.find_matches_as_indexes(plain.text, overlapping=True) if self._automaton else []
        last, codes, index = 0, [], []
        for number, start, end in found:
            if end < plain.codes.size and IS_WORD[plain.codes[end]]:
                continue
            right = np.frombuffer(self._right[number], dtype=np.uint8)
            source = np.minimum(np.arange(start + 1, start + 1 + right.size), end - 1)
            source[-1] = end - 1
            codes += [plain.codes[last : start + 1], right]
            index += [plain.raw_index[last : start + 1], plain.raw_index[source]]
            last = end
        if not codes:
            return plain
        joined = np.concatenate([*codes, plain.codes[last:]])
        return PlainText(joined.tobytes(), joined, np.concatenate([*index, plain.raw_index[last:]]))
