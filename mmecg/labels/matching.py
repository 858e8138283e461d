"""Rule literals found in plain text: one automaton for all languages, word boundaries, sentences, and their language.

The automaton (Aho-Corasick) knows no words. Literals that begin a word are given to it with the space in front, so that
"or" is not reported inside "anterior"; what follows a match is checked here, for all matches at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from mmecg.labels.normalise import IS_WORD, NEWLINE, SPACE, PlainText
from mmecg.labels.rules import Kind, Literal, Role, Rules, rule_literals

Ints = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

_IS_DIGIT = np.zeros(256, dtype=bool)
_IS_DIGIT[[*b"0123456789"]] = True


@dataclass(frozen=True)
class Matches:
    """Matches in a text, in order of their beginning; of each sentence those of its language.

    Attributes
    ----------
    pattern : int32, shape (matches,)
        Position of the literal in :attr:`Matcher.roles`.
    start, end : int32, shape (matches,)
        Bytes of the plain text; whole words.
    word : int32, shape (matches,)
        Number of the first word, counted through the text; for punctuation, of the word behind it.
    sentence, language : int32, shape (matches,)
        Number of the sentence, counted through the text; language as its position among the matcher's rules.
    """

    pattern: Ints
    start: Ints
    end: Ints
    word: Ints
    sentence: Ints
    language: Ints

    def pick(self, which: Ints | Flags) -> Matches:
        """Return some of the matches."""
        return Matches(
            *(values[which] for values in (self.pattern, self.start, self.end, self.word, self.sentence, self.language))
        )


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
    word_counts : int32, shape (literals + 1,)
        Words that a literal holds.
    """

    def __init__(self, rules: tuple[Rules, ...]) -> None:
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        by_language = [rule_literals(item) for item in rules]
        literals = sorted({literal for found in by_language for literal in found})
        separator = (Role(Kind.SEPARATOR, 0, ""),)
        self.roles: list[list[tuple[Role, ...]]] = [
            [*(found.get(literal, ()) for literal in literals), separator] for found in by_language
        ]
        spaced = [not item.open_start and bool(IS_WORD[item.text[0]]) for item in literals]
        keys = [b" " + item.text if space else item.text for item, space in zip(literals, spaced, strict=True)]
        self._automaton = BytesAhoCorasick(keys, implementation=Implementation.ContiguousNFA) if keys else None
        self._closed = _flags(literals, lambda item: not item.open_end and bool(IS_WORD[item.text[-1]]))
        self._open_start = _flags(literals, lambda item: item.open_start)
        self._open_end = _flags(literals, lambda item: item.open_end)
        self._has_stop = _flags(literals, lambda item: b"." in item.text)
        self._length = np.array([len(item.text) for item in literals] + [0], dtype=np.int32)
        self.word_counts = np.array([_count_words(item.text) for item in literals] + [0], dtype=np.int32)
        self._known = self._table(bool)
        self._speaks = self._table(lambda roles: any(role.kind in (Kind.FINDING, Kind.BASE) for role in roles))
        self._useful = self._table(lambda roles: any(role.kind is not Kind.WORD for role in roles))
        self._separators = [
            re.compile("|".join(map(re.escape, item.separators))) if item.separators else None for item in rules
        ]
        self.stops = frozenset(
            word for item in literals for word in re.findall(rb"([a-z0-9'\x7f]+)\.(?: |$)", item.text)
        )

    def _table(self, test: Callable[[tuple[Role, ...]], bool]) -> Flags:
        """Return bool, shape (languages, literals + 1)."""
        return np.array([[test(roles) for roles in of_one] for of_one in self.roles], dtype=bool)

    def match(self, plain: PlainText, raw: str) -> Matches:
        """Return the matches of every sentence that mentions a finding.

        Parameters
        ----------
        plain : PlainText
            Plain form of ``raw``.
        raw : str
            For separators, which are looked for in the raw text.
        """
        is_word = np.append(IS_WORD[plain.codes], False)
        pattern, start, end = self._find(plain, is_word)
        is_end = _sentence_ends(plain, *(values[self._has_stop[pattern]] for values in (start, end)))
        sentence_at = np.cumsum(is_end, dtype=np.int32)
        sentence = sentence_at[start]
        sentences = int(sentence_at[-1]) + 1 if sentence_at.size else 0
        language = self._languages(pattern, sentence, sentences)
        word_at = np.cumsum(is_word[:-1] & ~np.concatenate([[False], is_word[:-2]])[: sentence_at.size], dtype=np.int32)
        word = word_at[start] + ~is_word[start]
        found = Matches(pattern, start, end, word.astype(np.int32), sentence, language[sentence])
        found = self._with_separators(found, plain, raw, language, sentence_at, word_at)
        speaks = np.zeros(sentences, dtype=bool)
        speaks[found.sentence[self._speaks[found.language, found.pattern]]] = True
        found = found.pick(self._useful[found.language, found.pattern] & speaks[found.sentence])
        return found.pick(self._outermost(found))

    def _find(self, plain: PlainText, is_word: Flags) -> tuple[Ints, Ints, Ints]:
        """Return pattern, start and end of every match that stands on word boundaries, in any language."""
        found = self._automaton.find_matches_as_indexes(plain.text, overlapping=True) if self._automaton else []
        pattern, end = (np.fromiter(map(itemgetter(at), found), dtype=np.int32, count=len(found)) for at in (0, 2))
        whole = ~(self._closed[pattern] & is_word[end])
        pattern, end = pattern[whole], end[whole]
        start = end - self._length[pattern]
        for opened, edge, step in ((self._open_start[pattern], start, -1), (self._open_end[pattern], end, 1)):
            if opened.any():
                edge[opened] = _extend(is_word, edge[opened], step)
        return pattern, start, end

    def _languages(self, pattern: Ints, sentence: Ints, sentences: int) -> Ints:
        """Return the language of each sentence: the one whose literals cover most."""
        length = self._length[pattern]
        votes = [np.bincount(sentence, weights=length * known[pattern], minlength=sentences) for known in self._known]
        best: Ints = np.argmax(votes, axis=0).astype(np.int32)
        return best

    def _outermost(self, found: Matches) -> Ints:
        """Return the order of matches by beginning, without those inside others."""
        span, length = (found.end - found.start).astype(np.int64), self._length[found.pattern]
        # By beginning, then the longer span, then the longer literal; in one number, as three keys sort far slower.
        key = (found.start * (span.max(initial=0) + 1) - span) * (int(self._length.max()) + 1) - length
        order = np.argsort(key, kind="stable")
        end = found.end[order]
        inside = end[1:] <= np.maximum.accumulate(end)[:-1]
        picked: Ints = order[np.concatenate([[True], ~inside])[: order.size]]
        return picked

    def _with_separators(
        self, found: Matches, plain: PlainText, raw: str, language: Ints, sentence_at: Ints, word_at: Ints
    ) -> Matches:
        for number, separator in enumerate(self._separators):
            if separator is None:
                continue
            at = np.searchsorted(plain.raw_index, [hit.start() for hit in separator.finditer(raw)])
            at = at[at < plain.codes.size].astype(np.int32)
            at = at[language[sentence_at[at]] == number]
            pattern, own = np.full(at.size, self._length.size - 1), np.full(at.size, number)
            added = Matches(pattern, at, at + 1, word_at[at] + 1, sentence_at[at], own)
            columns = ("pattern", "start", "end", "word", "sentence", "language")
            found = Matches(*(np.concatenate([getattr(found, name), getattr(added, name)]) for name in columns))
        return found


def _flags(literals: list[Literal], test: Callable[[Literal], bool]) -> Flags:
    return np.array([test(item) for item in literals], dtype=bool)


def _sentence_ends(plain: PlainText, start: Ints, end: Ints) -> Flags:
    """Return where sentences end: line ends, semicolons, and full stops outside numbers, initials and matches.

    Parameters
    ----------
    plain : PlainText
    start, end : int32, shape (matches,)
        Matches that hold a full stop.
    """
    codes = plain.codes
    ends: Flags = (codes == NEWLINE) | (codes == b";"[0])
    stop = np.flatnonzero(codes == b"."[0])
    padded = np.concatenate([[SPACE, SPACE], codes, [SPACE, SPACE]])
    before, before2, after = padded[stop + 1], padded[stop], padded[stop + 4]
    origin = np.concatenate([plain.raw_index, [-9, -9]])
    tight = origin[stop + 2] - origin[stop] == 1  # no space between the stop and the next word
    number = _IS_DIGIT[before] & _IS_DIGIT[after]
    initial = IS_WORD[before] & ~IS_WORD[before2] & IS_WORD[after]
    ends[stop] = ~(tight & (number | initial))
    for low, high in zip(start.tolist(), end.tolist(), strict=True):
        ends[low:high] &= codes[low:high] != b"."[0]
    return ends


def _extend(is_word: Flags, edge: Ints, step: int) -> Ints:
    """Return edges moved outwards to the edges of their words."""
    edge = edge.copy()
    while True:
        at = edge if step > 0 else edge - 1
        moves = is_word[at] & (at >= 0)
        if not moves.any():
            return edge
        edge[moves] += step


def _count_words(text: bytes) -> int:
    return len(re.findall(rb"[a-z0-9'\x7f]+", text))
