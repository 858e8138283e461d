"""Rules of each language as data: loading, strict checking, and patterns spelt out to literals.

The file format is in the README of this folder. A file is parsed into :class:`Rules`; what
:mod:`mmecg.labels.matching` builds its automaton from are the :class:`Literal` entries of all languages.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any
from typing import Literal as OneOf

from mmecg.config import parse_config
from mmecg.errors import ConfigError
from mmecg.labels.normalise import NEWLINE, OTHER_LETTER, OTHER_SYMBOL, normalise

RULES_FOLDER = Path(__file__).parent / "rules"
LANGUAGES = ("de", "en", "sv")

MAX_LITERALS = 2_000
"""Literals that one pattern may expand to."""

Direction = OneOf["forward", "backward", "both"]
StatusName = OneOf[
    "present",
    "probable",
    "possible",
    "cannot_rule_out",
    "alternative",
    "conditional",
    "historical",
    "serial",
    "negated",
]
_UNMATCHABLE = (NEWLINE, OTHER_LETTER, OTHER_SYMBOL)


class Kind(StrEnum):
    """What a literal is to the status engine."""

    FINDING = "finding"
    BASE = "base"
    QUALIFIER = "qualifier"
    CUE = "cue"
    PSEUDO = "pseudo"
    TERMINATOR = "terminator"
    CONJUNCTION = "conjunction"
    SEPARATOR = "separator"
    WORD = "word"


@dataclass(frozen=True, kw_only=True)
class Qualifiers:
    """Values of qualifiers by kind; in ``[[compose]]`` all that are given must be there."""

    location: tuple[str, ...] = ()
    age: tuple[str, ...] = ()
    degree: tuple[str, ...] = ()

    def items(self) -> tuple[tuple[str, str], ...]:
        """Return (kind, value) of each."""
        return tuple((kind, value) for kind in ("location", "age", "degree") for value in getattr(self, kind))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``[[finding]]``: a phrase that names one finding, or several at once."""

    patterns: tuple[str, ...]
    id: str = ""
    ids: tuple[str, ...] = ()
    qualifiers: Qualifiers = field(default_factory=Qualifiers)
    status: StatusName = "present"

    def __post_init__(self) -> None:
        if bool(self.id) == bool(self.ids):
            raise ConfigError(f"finding {self.id!r} has id and ids, or neither, expected one of them")

    @property
    def gives(self) -> tuple[str, ...]:
        """Findings that the phrase names."""
        return self.ids or (self.id,)


@dataclass(frozen=True, kw_only=True)
class Base:
    """``[[base]]``: a phrase that becomes a finding together with a qualifier."""

    id: str
    patterns: tuple[str, ...]
    default: str = ""


@dataclass(frozen=True, kw_only=True)
class Compose:
    """``[[compose]]``: base and qualifiers to findings."""

    base: str
    gives: tuple[str, ...]
    location: tuple[str, ...] = ()
    age: tuple[str, ...] = ()
    degree: tuple[str, ...] = ()

    @property
    def needs(self) -> frozenset[tuple[str, str]]:
        """Kind and value of the qualifiers that it takes."""
        return frozenset(Qualifiers(location=self.location, age=self.age, degree=self.degree).items())


@dataclass(frozen=True, kw_only=True)
class Qualifier:
    """``[[qualifier]]``: a phrase about location, age or degree."""

    kind: OneOf["location", "age", "degree"]
    value: str
    patterns: tuple[str, ...]
    direction: Direction = "both"


@dataclass(frozen=True, kw_only=True)
class Cue:
    """``[[cue]]``: a phrase that sets the status of findings near it."""

    id: str
    status: StatusName
    patterns: tuple[str, ...]
    about: OneOf["presence", "age", "cause"] = "presence"
    direction: Direction = "forward"
    scope: int = 0
    reach: OneOf["", "all", "nearest"] = ""
    yields: bool = False

    def __post_init__(self) -> None:
        if self.scope < 0:
            raise ConfigError(f"cue {self.id} has scope {self.scope}, expected 1 or more words, or none")
        if self.yields and self.status != "serial":
            raise ConfigError(f"cue {self.id} yields with status {self.status}, expected serial; leave yields out")

    @property
    def reaches_all(self) -> bool:
        """Whether it reaches every finding of its side, not the nearest and what is joined to it."""
        return self.reach == "all" or (not self.reach and self.direction == "forward")


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """``[[pseudo]]``, ``[[terminator]]``, ``[[conjunction]]`` and ``[[separator]]``."""

    patterns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of one language."""

    language: str
    words: tuple[str, ...] = ()
    finding: tuple[Finding, ...] = ()
    base: tuple[Base, ...] = ()
    compose: tuple[Compose, ...] = ()
    qualifier: tuple[Qualifier, ...] = ()
    cue: tuple[Cue, ...] = ()
    pseudo: tuple[Phrases, ...] = ()
    terminator: tuple[Phrases, ...] = ()
    conjunction: tuple[Phrases, ...] = ()
    separator: tuple[Phrases, ...] = ()

    def __post_init__(self) -> None:
        known = {base.id for base in self.base}
        for compose in self.compose:
            if compose.base not in known:
                raise ConfigError(f"compose names base {compose.base!r}, expected one of {', '.join(sorted(known))}")
            if not compose.needs or not compose.gives:
                raise ConfigError(f"compose of base {compose.base} needs a qualifier and gives; add them")

    @property
    def findings(self) -> frozenset[str]:
        """Every finding that the rules can give."""
        phrases = [name for item in self.finding for name in item.gives]
        composed = [name for compose in self.compose for name in compose.gives]
        return frozenset([*phrases, *composed, *(item.default for item in self.base if item.default)])

    @property
    def separators(self) -> tuple[str, ...]:
        """Separators, as they stand in raw text."""
        return tuple(pattern for entry in self.separator for pattern in entry.patterns)


@dataclass(frozen=True, order=True)
class Literal:
    """A pattern spelt out.

    Attributes
    ----------
    text : bytes
        In plain form (:mod:`mmecg.labels.normalise`), without the space in front.
    open_start, open_end : bool
        Whether the word may begin before it or go on after it (``*``).
    """

    text: bytes
    open_start: bool
    open_end: bool


@dataclass(frozen=True)
class Role:
    """What a literal is in one language.

    Attributes
    ----------
    kind : Kind
    index : int
        Position of its rule among those of its kind.
    rule : str
        ``<language>/<id>/<number>``: the number counts the patterns of that id.
    """

    kind: Kind
    index: int
    rule: str


@lru_cache(maxsize=16)
def load_rules(language: str, folder: Path = RULES_FOLDER) -> Rules:
    """Read and check the rules of a language.

    Raises
    ------
    ConfigError
        There is no such file, it is not TOML, a key is unknown, a value is impossible, or two findings share a literal.
    """
    path = folder / f"{language}.toml"
    if not path.is_file():
        known = sorted(found.stem for found in folder.glob("*.toml"))
        raise ConfigError(f"there are no rules for language {language!r}, expected one of {', '.join(known)}")
    try:
        rules = parse_rules(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"rules {path.name}: {error}") from None
    if rules.language != language:
        raise ConfigError(f"rules {path.name}: language is {rules.language!r}, expected {language!r} like its name")
    return rules


def parse_rules(values: Mapping[str, Any]) -> Rules:
    """Check the content of a rule file. Raises ``ConfigError``."""
    plain = dict(values)
    plain["compose"] = [_listed(entry) for entry in plain.get("compose", [])]
    plain["finding"] = [
        {**entry, "qualifiers": _listed(entry["qualifiers"])} if "qualifiers" in entry else entry
        for entry in plain.get("finding", [])
    ]
    if "language" not in plain:
        raise ConfigError('language is missing; begin the file with language = "en"')
    try:
        rules = parse_config(Rules, plain)
    except TypeError as error:
        raise ConfigError(f"an entry lacks a key: {str(error).partition(': ')[2] or error}") from None
    rule_literals(rules)
    return rules


@lru_cache(maxsize=16)
def rule_literals(rules: Rules) -> dict[Literal, tuple[Role, ...]]:
    """Return every literal of a language with its roles.

    Raises
    ------
    ConfigError
        A pattern is malformed, or two findings (or bases) share a literal.
    """
    found: dict[Literal, tuple[Role, ...]] = {}
    names: dict[Literal, str] = {}
    for kind, index, rule, pattern in _patterns(rules):
        for literal in _literals(pattern):
            roles = found.get(literal, ())
            if kind in (Kind.FINDING, Kind.BASE):
                owner = rule.rpartition("/")[0]
                if names.setdefault(literal, owner) != owner:
                    raise ConfigError(
                        f"{literal.text.decode()!r} stands for {names[literal]} and for {owner}, expected one; "
                        "name both in ids = [...], or make one of the patterns longer"
                    )
                if any(role.kind is kind for role in roles):
                    continue  # the same finding twice
            if all((role.kind, role.index) != (kind, index) for role in roles):
                found[literal] = (*roles, Role(kind, index, rule))
    return found


def _patterns(rules: Rules) -> Iterator[tuple[Kind, int, str, str]]:
    """Yield kind, position among its kind, rule name and pattern of everything but separators."""
    counts: dict[str, int] = {}
    entries: list[tuple[Kind, int, str, tuple[str, ...]]] = [
        *((Kind.FINDING, at, "+".join(item.gives), item.patterns) for at, item in enumerate(rules.finding)),
        *((Kind.BASE, at, item.id, item.patterns) for at, item in enumerate(rules.base)),
        *((Kind.QUALIFIER, at, f"{item.kind}:{item.value}", item.patterns) for at, item in enumerate(rules.qualifier)),
        *((Kind.CUE, at, item.id, item.patterns) for at, item in enumerate(rules.cue)),
        *((Kind.PSEUDO, at, "pseudo", item.patterns) for at, item in enumerate(rules.pseudo)),
        *((Kind.TERMINATOR, at, "terminator", item.patterns) for at, item in enumerate(rules.terminator)),
        *((Kind.CONJUNCTION, at, "conjunction", item.patterns) for at, item in enumerate(rules.conjunction)),
        (Kind.WORD, 0, "word", rules.words),
    ]
    for kind, at, name, patterns in entries:
        for pattern in patterns:
            counts[name] = counts.get(name, 0) + 1
            yield kind, at, f"{rules.language}/{name}/{counts[name]}", pattern


def expand(pattern: str) -> list[str]:
    """Spell out a pattern: ``(a|b)`` is one of, ``[x]`` is optional, nested at will.

    Raises
    ------
    ConfigError
        Brackets do not match, or there are more than :data:`MAX_LITERALS` literals.
    """
    texts, end = _alternatives(pattern, 0, "")
    if end != len(pattern):
        raise ConfigError(f"pattern {pattern!r} has {pattern[end]!r} at {end} without its beginning; remove it")
    return texts


def _alternatives(pattern: str, at: int, close: str) -> tuple[list[str], int]:
    """Return what stands from ``at`` to ``close`` spelt out, and where it ends."""
    done: list[str] = []
    current = [""]
    while at < len(pattern) and pattern[at] not in ")]":
        sign = pattern[at]
        if sign in "([":
            inner, at = _alternatives(pattern, at + 1, ")" if sign == "(" else "]")
            inner = ["", *inner] if sign == "[" else inner
            current = [left + right for left in current for right in inner]
        elif sign == "|":
            done, current = done + current, [""]
        else:
            current = [text + sign for text in current]
        if len(done) + len(current) > MAX_LITERALS:
            raise ConfigError(f"pattern {pattern!r} expands to more than {MAX_LITERALS} literals; split it")
        at += 1
    if close and (at >= len(pattern) or pattern[at] != close):
        raise ConfigError(f"pattern {pattern!r} lacks {close!r}; close the bracket")
    return done + current, at


@lru_cache(maxsize=100_000)
def _literals(pattern: str) -> tuple[Literal, ...]:
    """Return the literals of a pattern, in plain form and in order."""
    texts = [text.strip() for text in expand(pattern)]
    plain = normalise("\n".join(text.strip("*") for text in texts)).text.split(b"\n")
    if "\n" in pattern or len(plain) != len(texts):
        raise ConfigError(f"pattern {pattern!r} has a line end, expected words; nothing is matched across lines")
    found = set()
    for text, core in zip(texts, (item.strip(b" ") for item in plain), strict=True):
        if not core or "*" in text.strip("*") or any(code in core for code in _UNMATCHABLE):
            raise ConfigError(
                f"pattern {pattern!r} gives {text!r}, expected words, with * at the beginning or end only"
            )
        found.add(Literal(core, text.startswith("*"), text.endswith("*")))
    return tuple(sorted(found))


def _listed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Let ``location = "inferior"`` mean a list of one."""
    kinds = ("location", "age", "degree")
    return {key: [value] if key in kinds and isinstance(value, str) else value for key, value in entry.items()}
