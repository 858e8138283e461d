"""Words that are not as they were meant: typing errors of a corpus, and letters lost in a wrong encoding.

Typing errors are found once and beforehand: unknown words that are close to one word of the rules.
A word is taken for a mistyped rule word if it is long enough, begins with the same letter, is within the edit distance
for its length (transpositions count once), has no second rule word as near, and is much rarer in the corpus than the
word it stands for. Words of the rules are never changed. Evidence stays the words as written.

A letter that was lost (U+FFFD) is put back where exactly one word of the rules has it, most likely an umlaut.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np

from mmecg.labels.normalise import IS_WORD, PlainText, blank_masked, normalise
from mmecg.labels.rules import Rules, rule_literals

MIN_LENGTH = 6
LONG = 9
"""From this length on two edits are allowed, below it one."""
RARER = 10
"""How many times rarer than its rule word a typing error is, at least."""

LOST = "\ufffd"
"""What a decoder puts in the place of a byte that it cannot read."""
MAX_LOST = 3
"""Letters of a word that may be lost, at most."""

_WORD = re.compile(rb"[a-z]+")
_ASCII_WORD = re.compile("[a-z]+")
_BROKEN_WORD = re.compile(rf"[^\W\d_]*(?:{LOST}[^\W\d_]*)+")
_UMLAUTS = {"ae": "ä", "oe": "ö", "ue": "ü", "aa": "å", "ss": "ß"}
_LOST_LETTERS = ((2, f"({'|'.join(_UMLAUTS)})"), (4, "(?<=[a-z])([a-z])(?=[a-z])"))
"""Letters that must be left of a word, and what may stand in the place of a lost one: umlauts, else any, but inside."""


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


class LostLetters:
    """Puts letters in the place of U+FFFD; the text keeps its length, so that offsets stay what they are.

    Parameters
    ----------
    rules : sequence of Rules
        The words of the language that knows most words of a line are tried first.
    """

    def __init__(self, rules: Sequence[Rules]) -> None:
        self._rules = rules
        self._find = lru_cache(65_536)(self._search)

    @cached_property
    def _known(self) -> list[frozenset[str]]:
        return [frozenset(word.decode() for word in rule_words([item])) for item in self._rules]

    @cached_property
    def _listed(self) -> list[str]:
        return ["\n".join(sorted(words)) for words in self._known]

    def mend(self, raw: str) -> str:
        """Return the text, of the same length, with the letters that can be told."""
        if LOST not in raw:
            return raw
        return "\n".join(self._mend_line(line) if LOST in line else line for line in raw.split("\n"))

    def _mend_line(self, line: str) -> str:
        words = _ASCII_WORD.findall(line.lower())
        votes = [sum(word in known for word in words) for known in self._known]
        order = tuple(sorted(range(len(votes)), key=lambda number: -votes[number]))
        return _BROKEN_WORD.sub(lambda found: self._find(found[0], order), line)

    def _search(self, word: str, order: tuple[int, ...]) -> str:
        """Return the word with its letters, or as it is if none fits, or several do."""
        parts = word.split(LOST)
        known = [normalise(part).text.decode().strip() for part in parts]
        if len(parts) - 1 > MAX_LOST:
            return word
        for least, letter in _LOST_LETTERS:
            if sum(map(len, known)) < least:
                continue
            pattern = re.compile(f"^{letter.join(map(re.escape, known))}$", re.MULTILINE)
            for number in order:
                fits = [found.groups() for found in pattern.finditer(self._listed[number])]
                if len(fits) == 1:
                    letters = [_UMLAUTS.get(one, one) for one in fits[0]]
                    return "".join(part + one for part, one in zip(parts, [*letters, ""], strict=True))
        return word
