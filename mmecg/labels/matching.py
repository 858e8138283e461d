"""Rule literals found in plain text: one automaton for all languages, word boundaries, sentences, and their language.

The automaton (Aho-Corasick) knows no words. Literals that begin a word are given to it with the space in front, so that
"or" is not reported inside "anterior"; what follows a match is checked here, for all matches at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from mmecg.labels.normalise import IS_WORD, NEWLINE, SPACE, PlainText
from mmecg.labels.rules import Kind, Literal, Role, Rules, rule_literals

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_MENTIONS = (Kind.FINDING, Kind.BASE)
_IS_DIGIT = np.zeros(256, dtype=bool)
_IS_DIGIT[[*b"0123456789"]] = True


@dataclass(frozen=True)
class Matches:
    """Matches in a text, in order of their beginning; of each sentence those of its language.

    Attributes
    ----------
    pattern : int64, shape (matches,)
        Number of the literal in :attr:`Matcher.roles`.
    start, end : int64, shape (matches,)
        Bytes of the plain text; whole words.
    word : int64, shape (matches,)
        Number of the first word, counted through the text.
    sentence, language : int64, shape (matches,)
        Number of the sentence, counted through the text; language as its position among the matcher's rules.
    """

    pattern: Ints
    start: Ints
    end: Ints
    word: Ints
    sentence: Ints
    language: Ints

    def groups(self) -> Iterator[tuple[int, int]]:
        """Yield the slice of each sentence."""
        edges = np.flatnonzero(np.diff(self.sentence, prepend=-1, append=-2)).tolist()
        yield from zip(edges, edges[1:], strict=False)


class Matcher:
    """The literals of several languages as one automaton.

    Parameters
    ----------
    rules : tuple of Rules
        One a language; where a sentence fits several equally well, the first wins.

    Attributes
    ----------
    roles : list of list of tuple of Role
        For each language and literal what the literal is; empty if it is none of the language's. Beyond the literals
        stands one entry for separators.
    word_counts : int64, shape (literals + 1,)
        Words that a literal holds.
    """

    def __init__(self, rules: tuple[Rules, ...]) -> None:
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        self.rules = rules
        by_language = [rule_literals(item) for item in rules]
        literals = sorted({literal for found in by_language for literal in found})
        separator = Role(Kind.SEPARATOR, 0, "")
        self.roles: list[list[tuple[Role, ...]]] = [
            [*(found.get(literal, ()) for literal in literals), (separator,)] for found in by_language
        ]
        self._keys, self._with_space = _keys(literals)
        self._automaton = (
            BytesAhoCorasick(self._keys, implementation=Implementation.ContiguousNFA) if literals else None
        )
        self._length = np.array([len(literal.text) for literal in literals] + [0], dtype=np.int64)
        self._closed = np.array([not item.open_end and IS_WORD[item.text[-1]] for item in literals], dtype=bool)
        self._open_start = np.array([item.open_start for item in literals], dtype=bool)
        self._open_end = np.array([item.open_end for item in literals], dtype=bool)
        self.word_counts = np.array([_count_words(item.text) for item in literals] + [0], dtype=np.int64)
        self._known = np.array([[bool(roles) for roles in of_one] for of_one in self.roles])
        self._mention = np.array([[_has(roles, _MENTIONS) for roles in of_one] for of_one in self.roles])
        self._inert = np.array([[_has(roles, (Kind.WORD,)) and len(roles) == 1 for roles in x] for x in self.roles])
        self._separators = [_compile_separators(item) for item in rules]

    def match(self, plain: PlainText, raw: str) -> Matches:
        """Return the matches of every sentence that mentions a finding.

        Parameters
        ----------
        plain : PlainText
            Plain form of ``raw``.
        raw : str
            For separators, which are looked for in the raw text.
        """
        pattern, start, end = self._find(plain)
        sentence_of = np.cumsum(_sentence_ends(plain, start, end))
        sentence = sentence_of[start]
        language = self._languages(pattern, sentence, int(sentence_of[-1]) + 1 if sentence_of.size else 0)
        of_match = language[sentence]
        pattern, start, end, sentence, of_match = self._add_separators(
            plain, raw, (pattern, start, end, sentence, of_match), language, sentence_of
        )
        keep = self._known[of_match, pattern] & ~self._inert[of_match, pattern]
        speaks = np.bincount(sentence, weights=self._mention[of_match, pattern], minlength=language.size) > 0
        keep &= speaks[sentence]
        pattern, start, end, sentence, of_match = (values[keep] for values in (pattern, start, end, sentence, of_match))
        order = np.lexsort((-self._length[pattern], -end, start))
        reach = np.maximum.accumulate(end[order]) if order.size else order
        order = order[np.concatenate([[True], end[order][1:] > reach[:-1]])] if order.size else order
        words = np.cumsum(_word_starts(plain))
        start = start[order]
        word = words[np.minimum(start, words.size - 1)] if order.size else start
        return Matches(pattern[order], start, end[order], word, sentence[order], of_match[order])

    def _find(self, plain: PlainText) -> tuple[Ints, Ints, Ints]:
        """Return pattern, start and end of every match that stands on word boundaries, in any language."""
        found = self._automaton.find_matches_as_indexes(plain.text, overlapping=True) if self._automaton else []
        table = np.fromiter(chain.from_iterable(found), dtype=np.int64, count=3 * len(found)).reshape(-1, 3)
        pattern, start, end = table[:, 0], table[:, 1], table[:, 2]
        is_word = np.append(IS_WORD[plain.codes], False)
        fits = ~(self._closed[pattern] & is_word[end])
        pattern, start, end = pattern[fits], start[fits] + self._with_space[pattern[fits]], end[fits]
        for opened, edge, step in ((self._open_start[pattern], start, -1), (self._open_end[pattern], end, 1)):
            if opened.any():
                edge[opened] = _extend(is_word, edge[opened], step)
        return pattern, start, end

    def _languages(self, pattern: Ints, sentence: Ints, sentences: int) -> Ints:
        """Return the language of each sentence: the one whose literals cover most."""
        votes = [
            np.bincount(sentence, weights=self._length[pattern] * known[pattern], minlength=sentences)
            for known in self._known
        ]
        return np.argmax(votes, axis=0)

    def _add_separators(
        self, plain: PlainText, raw: str, matches: tuple[Ints, ...], language: Ints, sentence_of: Ints
    ) -> tuple[Ints, ...]:
        for number, separator in enumerate(self._separators):
            if separator is None:
                continue
            at = np.array([found.start() for found in separator.finditer(raw)], dtype=np.int64)
            at = np.searchsorted(plain.raw_index, at)
            at = at[at < plain.codes.size]
            sentence = sentence_of[at]
            at, sentence = at[language[sentence] == number], sentence[language[sentence] == number]
            added = (np.full(at.size, len(self._length) - 1), at, at, sentence, np.full(at.size, number))
            matches = tuple(np.concatenate(pair) for pair in zip(matches, added, strict=True))
        return matches


def _keys(literals: list[Literal]) -> tuple[list[bytes], Ints]:
    """Return what the automaton looks for, and whether a space was put in front."""
    spaced = [not item.open_start and bool(IS_WORD[item.text[0]]) for item in literals]
    keys = [b" " + item.text if space else item.text for item, space in zip(literals, spaced, strict=True)]
    return keys, np.array(spaced, dtype=np.int64)


def _sentence_ends(plain: PlainText, start: Ints, end: Ints) -> Flags:
    """Return where sentences end: line ends, semicolons, and full stops outside numbers, initials and matches."""
    codes = plain.codes
    stop = np.flatnonzero(codes == b"."[0])
    covered = np.zeros(codes.size + 1, dtype=np.int64)
    np.add.at(covered, start, 1)
    np.add.at(covered, end, -1)
    covered = np.cumsum(covered)
    padded = np.concatenate([[SPACE, SPACE], codes, [SPACE, SPACE]])
    before, before2, after2 = padded[stop + 1], padded[stop], padded[stop + 4]
    raw = np.concatenate([plain.raw_index, [-9, -9]])
    tight = raw[np.minimum(stop + 2, raw.size - 1)] - raw[stop] == 1  # no space between the stop and the next word
    number = _IS_DIGIT[before] & _IS_DIGIT[after2] & tight
    initial = IS_WORD[before] & ~IS_WORD[before2] & IS_WORD[after2] & tight
    ends = (codes == NEWLINE) | (codes == b";"[0])
    ends[stop] = ~(number | initial | (covered[stop] > 0))
    return ends


def _word_starts(plain: PlainText) -> Flags:
    is_word = IS_WORD[plain.codes]
    return is_word & ~np.concatenate([[False], is_word[:-1]])[: is_word.size]


def _extend(is_word: Flags, edge: Ints, step: int) -> Ints:
    """Move edges outwards to the edges of their words."""
    edge = edge.copy()
    while True:
        at = edge if step > 0 else edge - 1
        moves = is_word[at] & (at >= 0)
        if not moves.any():
            return edge
        edge[moves] += step


def _count_words(text: bytes) -> int:
    return len(re.findall(rb"[a-z0-9'\x7f]+", text))


def _has(roles: tuple[Role, ...], kinds: tuple[Kind, ...]) -> bool:
    return any(role.kind in kinds for role in roles)


def _compile_separators(rules: Rules) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, rules.separators))) if rules.separators else None
