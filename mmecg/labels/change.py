"""What a serial statement says has changed: its words to one of a few changes, and what each change means.

The table is ``serial.toml``; the README of this folder explains it under "Serial statements".
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from mmecg.config import parse_config
from mmecg.errors import ConfigError
from mmecg.labels.normalise import normalise
from mmecg.labels.rules import expand

SERIAL_TABLE = Path(__file__).parent / "serial.toml"
COMPARED, REPLACED = "compared", "replaced"


@dataclass(frozen=True, kw_only=True)
class Change:
    """``[[change]]``: how a finding may have changed.

    Attributes
    ----------
    id : str
    now, before : bool or None
        Whether a finding that changed so is there now, and was there in the earlier ECG; None if the words leave it
        open.
    unknown : str
        Why an earlier study cannot confirm it, where ``before`` is None.
    """

    id: str
    now: bool | None = None
    before: bool | None = None
    unknown: str = ""

    def __post_init__(self) -> None:
        if (self.before is None) != bool(self.unknown):
            raise ConfigError(f"change {self.id} needs either before or unknown; give one of them")


@dataclass(frozen=True, kw_only=True)
class SerialFinding:
    """``[[finding]]``: what a serial finding of the vocabulary says of which finding.

    Attributes
    ----------
    id, change : str
    of : str
        The finding that has changed; empty if it is a measurement, or the whole ECG.
    unknown : str
        Why an earlier study cannot confirm it, where ``of`` is empty.
    """

    id: str
    change: str
    of: str = ""
    unknown: str = ""

    def __post_init__(self) -> None:
        if bool(self.of) == bool(self.unknown):
            raise ConfigError(f"serial finding {self.id} needs either of or unknown; give one of them")


@dataclass(frozen=True, kw_only=True)
class SerialCue:
    """``[[cue]]``: words of a serial cue, and how a finding has changed that stands before or after them."""

    language: str
    patterns: tuple[str, ...]
    change: str = ""
    before: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        if (bool(self.before), bool(self.after)) != (not self.change,) * 2:
            raise ConfigError(f"cue {self.patterns[:1]} needs either change, or before and after; give one of them")


@dataclass(frozen=True, kw_only=True)
class Excludes:
    """``[[excludes]]``: where one of ``present`` is stated, none of ``absent`` is there."""

    present: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Entries:
    change: tuple[Change, ...]
    finding: tuple[SerialFinding, ...]
    cue: tuple[SerialCue, ...]
    excludes: tuple[Excludes, ...] = ()


class SerialTable:
    """The content of ``serial.toml``, checked.

    Parameters
    ----------
    values : mapping of str to value
        As TOML gives them.

    Attributes
    ----------
    changes : mapping of str to Change
    findings : mapping of str to tuple of SerialFinding
        What each serial finding of the vocabulary says.
    cues : mapping of (str, bytes) to tuple of (str, str)
        Language and literal in plain form, to the change of a finding before and after it.
    excludes : mapping of str to frozenset of str
        What cannot be there where a finding is.

    Raises
    ------
    ConfigError
        An unknown key, an unknown change, words with two meanings.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        entries = parse_config(_Entries, values)
        self.changes = {change.id: change for change in entries.change}
        self.findings: dict[str, tuple[SerialFinding, ...]] = {}
        for finding in entries.finding:
            self.findings[finding.id] = (*self.findings.get(finding.id, ()), finding)
        self.cues: dict[tuple[str, bytes], tuple[str, str]] = {}
        for cue in entries.cue:
            sides = (cue.before or cue.change, cue.after or cue.change)
            for literal in _literals(cue.patterns):
                if self.cues.setdefault((cue.language, literal), sides) != sides:
                    raise ConfigError(f"{literal.decode()!r} ({cue.language}) stands for two changes; keep one")
        self.excludes: dict[str, frozenset[str]] = {}
        for entry in entries.excludes:
            for name in entry.present:
                self.excludes[name] = self.excludes.get(name, frozenset()) | frozenset(entry.absent)
        used = {side for sides in self.cues.values() for side in sides} | {item.change for item in entries.finding}
        if unknown := sorted((used | {COMPARED, REPLACED}) - self.changes.keys()):
            raise ConfigError(f"change {unknown[0]!r} has no [[change]] entry; add it")

    def change_of(self, finding: str, rule: str, cue: str, *, stands_before: bool) -> str:
        """Return how a finding has changed.

        Parameters
        ----------
        finding, rule : str
            Of the assertion.
        cue : str
            The words of its cue, as they stand in the raw text; empty if the phrase itself is serial.
        stands_before : bool
            Whether the finding stands before the cue.

        Returns
        -------
        str
            A key of :attr:`changes`; ``"compared"`` if the words do not say.
        """
        language, _, rest = rule.partition("/")
        if cue:
            before, after = self.cues.get((language, _plain(cue)), (COMPARED, COMPARED))
            return before if stands_before else after
        named = rest.rpartition("/")[0].split("+")  # of all findings that the phrase names, the serial ones explain it
        said = [part for name in named for part in self.findings.get(name, ()) if finding in (part.id, part.of)]
        if not said:
            return COMPARED
        return said[0].change if len(said) == 1 else REPLACED


@lru_cache(maxsize=65_536)
def _plain(words: str) -> bytes:
    """Return the plain form of a cue's words, of which there are few."""
    return normalise(words).text.strip()


@cache
def load_serial_table() -> SerialTable:
    """Return the table that ships with mmecg, checked."""
    try:
        return SerialTable(tomllib.loads(SERIAL_TABLE.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ConfigError) as error:
        raise ConfigError(f"serial table {SERIAL_TABLE.name}: {error}") from None


def _literals(patterns: tuple[str, ...]) -> Iterator[bytes]:
    """Yield the literals of patterns in plain form."""
    for pattern in patterns:
        for text in expand(pattern):
            yield _plain(text)
