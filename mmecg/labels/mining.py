"""Label mining: from report text to assertions with evidence.

Texts are mined in blocks: joined by line ends, brought to plain form and searched in one pass. What is left of a
sentence then is a row of literals and word distances. What matters of it (kinds and cues, not which finding) is
resolved by :mod:`mmecg.labels.status` once and remembered, so that most sentences cost a look-up even where no two
texts are equal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmecg.labels.assertion import LabelAssertion, Status
from mmecg.labels.change import load_serial_table
from mmecg.labels.masking import WordMask
from mmecg.labels.matching import Ints, Matcher, Matches
from mmecg.labels.normalise import blank_masked, normalise
from mmecg.labels.remembered import Remembered
from mmecg.labels.report_rows import table_batches
from mmecg.labels.rules import LANGUAGES, RULES_FOLDER, Kind, Role, Rules, load_rules
from mmecg.labels.sentence import JOINED_GAP, Event
from mmecg.labels.status import ALTERNATIVE_SCOPE, QUALIFIER_SCOPE, Resolver, Statement
from mmecg.labels.tables import ASSERTION_SCHEMA, Probability, mine_batch
from mmecg.labels.typos import LostLetters, TypoMender
from mmecg.report import check_text

BATCH_ROWS = 50_000
SENTENCE_BYTES, PIECE_BYTES = 60_000_000, 60_000_000
"""What may be held of kinds of sentences, and of pieces of text with what they say."""
BLOCK_CHARS = 150_000
"""Pieces mined in one pass: such blocks stay in the processor's cache."""

MAX_CHANGES = 65_536
"""What is remembered of serial statements: ways of saying that something has changed."""

_LINE_END = "\n"
_Row = tuple[int, int, int, int, int, int]
_SAID = ("finding", "rule", "statement", "start", "end", "cue_start", "cue_end", "change")


@dataclass(frozen=True)
class Mined:
    """Assertions of a block of texts as columns.

    Attributes
    ----------
    text : int32, shape (assertions,)
        Which text of the block.
    finding, rule, statement : int32, shape (assertions,)
        Positions in :attr:`LabelMiner.findings`, :attr:`LabelMiner.rules` and :attr:`LabelMiner.statements`.
    start, end : int32, shape (assertions,)
        Evidence in that text, raw code points.
    cue_start, cue_end : int32, shape (assertions,)
        The cue; -1 if there is none.
    change : int32, shape (assertions,)
        What has changed, as its position in :attr:`LabelMiner.changes`; -1 if the statement is not serial.
    """

    text: Ints
    finding: Ints
    rule: Ints
    statement: Ints
    start: Ints
    end: Ints
    cue_start: Ints
    cue_end: Ints
    change: Ints


class LabelMiner:
    """Finds what reports say, with the words that say it. Safe to use from several threads.

    Parameters
    ----------
    languages : sequence of str
        Which rules to use; each sentence is read in the language that it fits best, the first of equals.
    folder : Path
        Where the rule files are.
    typos : mapping of bytes to bytes
        Typing errors to read as rule words (:func:`mmecg.labels.typos.find_typos`).

    Attributes
    ----------
    findings, rules, changes : list of str
        Every finding and pattern name of the rules, and every change of serial statements; sorted.
    statements : list of Statement
        Every distinct way of speaking seen so far.
    stops : frozenset of bytes
        Words whose full stop may belong to a literal ("unbest.").
    """

    def __init__(
        self,
        languages: Sequence[str] = LANGUAGES,
        *,
        folder: Path = RULES_FOLDER,
        typos: Mapping[bytes, bytes] | None = None,
    ) -> None:
        rules = tuple(load_rules(language, folder) for language in languages)
        self.languages = tuple(languages)
        self.findings = sorted({name for item in rules for name in item.findings})
        self.changes = sorted(load_serial_table().changes)
        self.statements: list[Statement] = []
        self._finding_numbers = {name: number for number, name in enumerate(self.findings)}
        self._statement_numbers: dict[Statement, int] = {}
        self._matcher = Matcher(rules)
        self._lost = LostLetters(rules)
        self._mender = TypoMender(typos or {})
        self.stops = self._matcher.stops
        self._resolvers = [Resolver(item) for item in rules]
        self._far = _farthest(rules) + int(self._matcher.word_counts.max()) + 1
        self._read_roles(rules)
        self._change_of = lru_cache(maxsize=MAX_CHANGES)(self._find_change)
        self._mask = WordMask(rules, typos or ())
        self._sentences = Remembered(6, SENTENCE_BYTES)
        self._pieces = Remembered(len(_SAID), PIECE_BYTES)

    def _read_roles(self, rules: tuple[Rules, ...]) -> None:
        """Tabulate for each language and literal: its class, finding and pattern name.

        Literals of one class are alike to the resolver. A phrase that names one finding and says nothing else of it is
        like any other such phrase (``_plain`` holds its finding, else -1), unless an "or" stands in the sentence.
        """
        roles, counts = self._matcher.roles, self._matcher.word_counts.tolist()
        named = [[_naming(some) for some in of_one] for of_one in roles]
        self.rules = sorted({role.rule for of_one in named for role in of_one if role})
        numbers = {name: number for number, name in enumerate(self.rules)}
        self._rule = np.array([[numbers[role.rule] if role else -1 for role in x] for x in named], dtype=np.int32)
        plain = [[_plain_finding(item, some) for some in of_one] for item, of_one in zip(rules, roles, strict=True)]
        self._plain = np.array([[self._finding_numbers.get(name, -1) for name in x] for x in plain], dtype=np.int32)
        known: dict[object, int] = {}
        self._exact = np.zeros_like(self._plain)
        self._class = np.zeros_like(self._plain)
        for at, of_one in enumerate(roles):
            for pattern, some in enumerate(of_one):
                kinds = tuple((role.kind, role.index) for role in some)
                self._exact[at, pattern] = known.setdefault((at, counts[pattern], kinds), len(known))
                if plain[at][pattern]:
                    kinds = ((Kind.FINDING, -1), *kinds[1:])
                self._class[at, pattern] = known.setdefault((at, counts[pattern], kinds), len(known))
        self._opposes = np.array([[_opposes(item, x) for x in y] for item, y in zip(rules, roles, strict=True)])

    def mine(self, text: str) -> tuple[LabelAssertion, ...]:
        """Return what one report says, in order of its words.

        Raises
        ------
        ReportError
            It is too long, or not plain text (:func:`mmecg.report.check_text`).
        """
        mined = self.mine_block([blank_masked(check_text(text))])
        columns = (getattr(mined, name).tolist() for name in _SAID)
        return tuple(self.assertion(*row) for row in zip(*columns, strict=True))

    def mine_table(
        self,
        table: pl.DataFrame | pl.LazyFrame,
        text_columns: Sequence[str] = ("report",),
        *,
        id_column: str | None = None,
        probability: Probability | None = None,
    ) -> pl.DataFrame:
        """Mine a table of reports; :meth:`mine_batches` does so in constant memory.

        Returns
        -------
        polars.DataFrame
            One row an assertion: :data:`mmecg.labels.tables.ASSERTION_SCHEMA`.
        """
        batches = self.mine_batches(table, text_columns, id_column=id_column, probability=probability)
        return pl.concat([pl.DataFrame(schema=ASSERTION_SCHEMA), *(assertions for assertions, _ in batches)])

    def mine_batches(
        self,
        table: pl.DataFrame | pl.LazyFrame,
        text_columns: Sequence[str] = ("report",),
        *,
        id_column: str | None = None,
        probability: Probability | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Mine a table batch by batch; :func:`mmecg.labels.parallel.mine_in_parallel` does so on all cores.

        Parameters
        ----------
        table : polars.DataFrame or polars.LazyFrame
        text_columns : sequence of str
            Each field is a text of its own.
        id_column : str, optional
            Without one, the number of the row is the study's id.
        probability : callable, optional
            Gives the probability of an assertion.
        batch_rows : int
            Rows held in memory at a time.

        Yields
        ------
        assertions, rows : polars.DataFrame
            :data:`mmecg.labels.tables.ASSERTION_SCHEMA`; :data:`mmecg.labels.report_rows.ROW_SCHEMA`, one row for each
            row of the input, in its order.

        Raises
        ------
        InvalidInputError
            A column is not there.
        """
        for batch in table_batches(table, text_columns, id_column, batch_rows):
            yield mine_batch(self, batch, text_columns, id_column, probability=probability)

    def mine_pieces(self, pieces: pl.Series) -> Mined:
        """Mine texts, each distinct one once, and what differs in words that no rule knows as one; they are remembered.

        Parameters
        ----------
        pieces : polars.Series of str
            As for :meth:`mine_block`, and without line ends.
        """
        keys: list[bytes] = []
        for low, high in _blocks(pieces.str.len_bytes().to_numpy()):
            keys += self._mask.mask(f"\n{pieces[low:high].str.join(_LINE_END)[0]}\n".encode()).split(b"\n")[1:-1]

        def mine(missing: list[int]) -> tuple[Ints, Ints]:
            rows, counts = [], []
            texts = [keys[at].decode() for at in missing]
            for low, high in _blocks(np.array([len(text) for text in texts])):
                mined = self.mine_block(texts[low:high])
                rows.append(np.column_stack([getattr(mined, name) for name in _SAID]))
                counts.append(np.bincount(mined.text, minlength=high - low))
            return np.concatenate(rows), np.concatenate(counts)

        rows, counts = self._pieces.rows(keys, mine)
        return Mined(np.repeat(np.arange(len(keys), dtype=np.int32), counts), *rows.T)

    def mine_block(self, texts: Sequence[str]) -> Mined:
        """Mine many texts at once.

        Parameters
        ----------
        texts : sequence of str
            Without leaked codes or boilerplate: what :func:`mmecg.labels.normalise.blank_masked` returns.
        """
        raw = self._lost.mend("\n".join(texts))
        plain = self._mender.mend(normalise(raw))
        found = self._matcher.match(plain, raw)
        rows, base = self._resolve(found)
        mention, first, last, cue = (base + rows[:, column] for column in (2, 3, 4, 5))
        language, pattern = found.language[mention], found.pattern[mention]
        is_plain = (rows[:, 0] < 0) & (self._plain[language, pattern] >= 0)
        finding = np.where(is_plain, self._plain[language, pattern], rows[:, 0])
        start, end = plain.raw_index[found.start[first]], plain.raw_index[found.end[last] - 1] + 1
        lengths = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts)) + 1
        offsets = np.cumsum(lengths, dtype=np.int32) - lengths
        text = np.searchsorted(offsets, start, side="right").astype(np.int32) - 1
        begin = offsets[text]
        has_cue = rows[:, 5] >= 0
        cue_start = np.where(has_cue, plain.raw_index[found.start[cue]] - begin, -1)
        cue_end = np.where(has_cue, plain.raw_index[found.end[cue] - 1] + 1 - begin, -1)
        rule = self._rule[language, pattern]
        mined = Mined(
            text, finding, rule, rows[:, 1], start - begin, end - begin, cue_start, cue_end, np.full_like(text, -1)
        )
        self._read_changes(mined, texts)
        return mined

    def _read_changes(self, mined: Mined, texts: Sequence[str]) -> None:
        """Fill in what has changed where a statement is serial."""
        serial = [number for number in set(mined.statement.tolist()) if self.statements[number].status is Status.SERIAL]
        at = np.flatnonzero(np.isin(mined.statement, serial))
        columns = (mined.text, mined.finding, mined.rule, mined.start, mined.cue_start, mined.cue_end)
        for place, *row in zip(at.tolist(), *(column[at].tolist() for column in columns), strict=True):
            text, finding, rule, start, cue_start, cue_end = row
            cue = texts[text][cue_start:cue_end] if cue_start >= 0 else ""
            mined.change[place] = self._change_of(finding, rule, cue, start < cue_start)

    def _find_change(self, finding: int, rule: int, cue: str, stands_before: bool) -> int:
        change = load_serial_table().change_of(
            self.findings[finding], self.rules[rule], cue, stands_before=stands_before
        )
        return bisect_left(self.changes, change)

    def _resolve(self, found: Matches) -> tuple[Ints, Ints]:
        """Return the statements of all sentences.

        Returns
        -------
        rows : int32, shape (assertions, 6)
            Finding (-1: that of the literal) and statement; mention, first, last and cue event counted in the sentence
            (cue -1 if there is none).
        base : int32, shape (assertions,)
            Position of the sentence's first event among the matches.
        """
        opens = np.diff(found.sentence, prepend=-1) != 0
        edges = np.append(np.flatnonzero(opens), opens.size)
        step = np.where(opens, 0, np.clip(np.diff(found.word, prepend=0), 0, self._far))
        opposed = np.zeros(int(found.sentence[-1]) + 1 if opens.size else 0, dtype=bool)
        opposed[found.sentence[self._opposes[found.language, found.pattern]]] = True
        exact = opposed[found.sentence]
        at = (found.language, found.pattern)
        classes = np.where(exact, self._exact[at], self._class[at])
        keys = (classes * (self._far + 1) + step).astype(np.int32).tobytes()
        slices = [keys[4 * low : 4 * high] for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]

        def resolve(sentences: list[int]) -> tuple[Ints, Ints]:
            found_rows = [
                self._resolve_one(found, step, int(edges[at]), int(edges[at + 1]), exact=bool(exact[edges[at]]))
                for at in sentences
            ]
            flat = [row for rows in found_rows for row in rows]
            counts = np.fromiter(map(len, found_rows), dtype=np.int32, count=len(found_rows))
            return np.array(flat, dtype=np.int32).reshape(-1, 6), counts

        rows, counts = self._sentences.rows(slices, resolve)
        return rows, np.repeat(edges[:-1].astype(np.int32), counts)

    def _resolve_one(self, found: Matches, step: Ints, low: int, high: int, *, exact: bool) -> list[_Row]:
        language = int(found.language[low])
        roles, counts = self._matcher.roles[language], self._matcher.word_counts
        patterns, words = found.pattern[low:high].tolist(), np.cumsum(step[low:high]).tolist()
        events = [Event(roles[at], word, int(counts[at])) for at, word in zip(patterns, words, strict=True)]
        rows: list[_Row] = []
        for item in self._resolvers[language].resolve(events):
            is_plain = not exact and self._plain[language, patterns[item.mention]] >= 0
            finding = -1 if is_plain else self._finding_numbers[item.finding]
            statement = self._statement_numbers.setdefault(item.statement, len(self.statements))
            if statement == len(self.statements):
                self.statements.append(item.statement)
            rows.append((finding, statement, item.mention, item.first, item.last, item.cue))
        return rows

    def assertion(
        self, finding: int, rule: int, statement: int, start: int, end: int, cue_start: int, cue_end: int, change: int
    ) -> LabelAssertion:
        """Return one row of :class:`Mined` as an assertion."""
        said = self.statements[statement]
        return LabelAssertion(
            finding=self.findings[finding],
            status=said.status,
            start=start,
            end=end,
            rule=self.rules[rule],
            cue=said.cue,
            cue_start=cue_start,
            cue_end=cue_end,
            qualifiers=said.qualifiers,
            age_status=said.age_status,
            cause_status=said.cause_status,
            language=said.language,
            needs_prior=said.needs_prior,
            alternatives=said.alternatives,
            change=self.changes[change] if change >= 0 else "",
        )


def _blocks(lengths: npt.NDArray[np.integer[Any]]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of successive texts of some :data:`BLOCK_CHARS` together, or of one that is longer."""
    ends = np.cumsum(lengths, dtype=np.int64)
    low = 0
    while low < lengths.size:
        high = max(int(np.searchsorted(ends, (ends[low - 1] if low else 0) + BLOCK_CHARS)), low + 1)
        yield low, high
        low = high


def _farthest(rules: tuple[Rules, ...]) -> int:
    """Return the longest word distance that makes a difference to the resolver."""
    scopes = [cue.scope for item in rules for cue in item.cue]
    return max([QUALIFIER_SCOPE, ALTERNATIVE_SCOPE, JOINED_GAP, *scopes])


def _naming(roles: tuple[Role, ...]) -> Role | None:
    return next((role for role in roles if role.kind in (Kind.FINDING, Kind.BASE)), None)


def _plain_finding(rules: Rules, roles: tuple[Role, ...]) -> str:
    """Return the finding of a phrase that names just one, without qualifiers or a status of its own; else nothing."""
    role = _naming(roles)
    if role is None or role.kind is not Kind.FINDING:
        return ""
    rule = rules.finding[role.index]
    is_plain = len(rule.gives) == 1 and not rule.qualifiers.items() and rule.status == "present"
    return rule.gives[0] if is_plain else ""


def _opposes(rules: Rules, roles: tuple[Role, ...]) -> bool:
    return any(role.kind is Kind.CUE and rules.cue[role.index].status == "alternative" for role in roles)
