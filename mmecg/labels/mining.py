"""Label mining: from report text to assertions with evidence.

Texts are mined in blocks: joined by line ends, brought to plain form and searched in one pass. What is left of a sentence
then is a row of literals and word distances; it is resolved (:mod:`mmecg.labels.status`) once and remembered, so that
most sentences cost a look-up even where no two texts are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmecg.labels.assertion import LabelAssertion
from mmecg.labels.matching import Matcher, Matches
from mmecg.labels.normalise import blank_masked, normalise
from mmecg.labels.rules import LANGUAGES, RULES_FOLDER, load_rules
from mmecg.labels.status import Event, Resolver, Statement
from mmecg.report import check_text

Ints = npt.NDArray[np.int64]

MAX_REMEMBERED = 500_000
"""Rows of literals whose statements are remembered; about 400 bytes each."""
_FAR = 63
"""Word distances above it count as equal; no scope reaches that far."""


@dataclass(frozen=True)
class Mined:
    """Assertions of a block of texts as columns.

    Attributes
    ----------
    statement : int64, shape (assertions,)
        Position in :attr:`LabelMiner.statements`.
    text : int64, shape (assertions,)
        Which text of the block.
    start, end : int64, shape (assertions,)
        Evidence in that text, raw code points.
    cue_start, cue_end : int64, shape (assertions,)
        The cue; -1 if there is none.
    """

    statement: Ints
    text: Ints
    start: Ints
    end: Ints
    cue_start: Ints
    cue_end: Ints


class LabelMiner:
    """Finds what reports say, with the words that say it.

    Parameters
    ----------
    languages : sequence of str
        Which rules to use; each sentence is read in the language that it fits best, the first of equals.
    folder : Path
        Where the rule files are.

    Attributes
    ----------
    statements : list of Statement
        Every distinct statement seen so far; :attr:`Mined.statement` points into it.
    """

    def __init__(self, languages: Sequence[str] = LANGUAGES, *, folder: Path = RULES_FOLDER) -> None:
        rules = tuple(load_rules(language, folder) for language in languages)
        self.languages = tuple(languages)
        self.statements: list[Statement] = []
        self._matcher = Matcher(rules)
        self._resolvers = [Resolver(item) for item in rules]
        self._numbers: dict[Statement, int] = {}
        self._remembered: dict[bytes, Ints] = {}

    def mine(self, text: str) -> tuple[LabelAssertion, ...]:
        """Return what one report says, in order of its words.

        Raises
        ------
        ReportError
            It is too long, or not plain text (:func:`mmecg.report.check_text`).
        """
        mined = self.mine_block([check_text(text)])
        spans = zip(
            mined.statement.tolist(),
            mined.start.tolist(),
            mined.end.tolist(),
            mined.cue_start.tolist(),
            mined.cue_end.tolist(),
            strict=True,
        )
        return tuple(_assertion(self.statements[number], *span) for number, *span in spans)

    def mine_block(self, texts: Sequence[str], *, masked: bool = False) -> Mined:
        """Mine many texts at once.

        Parameters
        ----------
        texts : sequence of str
        masked : bool
            The texts hold no leaked codes or boilerplate any more.
        """
        blank = texts if masked else [blank_masked(text) for text in texts]
        raw = "\n".join(blank)
        plain = normalise(raw)
        matches = self._matcher.match(plain, raw)
        rows, base = self._resolve(matches)
        number, first, last, cue = rows[:, 0], base + rows[:, 1], base + rows[:, 2], base + rows[:, 3]
        start, end = plain.raw_index[matches.start[first]], plain.raw_index[matches.end[last] - 1] + 1
        has_cue = rows[:, 3] >= 0
        cue_start = np.where(has_cue, plain.raw_index[matches.start[cue]], -1)
        cue_end = np.where(has_cue, plain.raw_index[matches.end[cue] - 1] + 1, -1)
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1
        offsets = np.cumsum(lengths) - lengths
        text = np.searchsorted(offsets, start, side="right") - 1
        begin = offsets[text]
        return Mined(number, text, start - begin, end - begin, cue_start - begin * has_cue, cue_end - begin * has_cue)

    def _resolve(self, matches: Matches) -> tuple[Ints, Ints]:
        """Return the statements of all sentences.

        Returns
        -------
        rows : int64, shape (assertions, 4)
            Number of the statement; first and last event, and cue (-1 if none), counted in the sentence.
        base : int64, shape (assertions,)
            Position of the sentence's first event among the matches.
        """
        if not matches.pattern.size:
            return np.empty((0, 4), dtype=np.int64), np.empty(0, dtype=np.int64)
        words = matches.word + (self._matcher.word_counts[matches.pattern] == 0)
        opens = np.diff(matches.sentence, prepend=-1) != 0
        steps = np.where(opens, 0, np.clip(np.diff(words, prepend=0), 0, _FAR))
        keys = ((matches.pattern * len(self.languages) + matches.language) * (_FAR + 1) + steps).tobytes()
        edges = np.flatnonzero(np.append(opens, True)).tolist()
        found: list[Ints] = []
        for low, high in zip(edges, edges[1:], strict=False):
            key = keys[8 * low : 8 * high]
            rows = self._remembered.get(key)
            if rows is None:
                rows = self._resolve_one(matches, steps, low, high)
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[key] = rows
            found.append(rows)
        counts = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        return np.concatenate(found), np.repeat(np.array(edges[:-1]), counts)

    def _resolve_one(self, matches: Matches, steps: Ints, low: int, high: int) -> Ints:
        language = int(matches.language[low])
        roles, counts = self._matcher.roles[language], self._matcher.word_counts
        patterns, words = matches.pattern[low:high].tolist(), np.cumsum(steps[low:high]).tolist()
        events = [Event(roles[at], word, int(counts[at])) for at, word in zip(patterns, words, strict=True)]
        resolved = self._resolvers[language].resolve(events)
        rows = [[self._number(item.statement), item.first, item.last, item.cue] for item in resolved]
        return np.array(rows, dtype=np.int64).reshape(-1, 4)

    def _number(self, statement: Statement) -> int:
        number = self._numbers.setdefault(statement, len(self.statements))
        if number == len(self.statements):
            self.statements.append(statement)
        return number


def _assertion(statement: Statement, start: int, end: int, cue_start: int, cue_end: int) -> LabelAssertion:
    return LabelAssertion(
        finding=statement.finding,
        status=statement.status,
        start=start,
        end=end,
        rule=statement.rule,
        cue=statement.cue,
        cue_start=cue_start,
        cue_end=cue_end,
        qualifiers=statement.qualifiers,
        age_status=statement.age_status,
        cause_status=statement.cause_status,
        language=statement.language,
        needs_prior=statement.needs_prior,
        alternatives=statement.alternatives,
    )
