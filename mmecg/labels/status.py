"""From the matches of one sentence to statements: composition, cue scopes, status, qualifiers.

A sentence is seen as a row of events (:class:`Event`): literals with their roles and the number of their first word.
Nothing here looks at text or offsets, so that equal rows have equal statements and need be resolved once only.

1. Of events that overlap, the longer stays; of equals, the first.
2. Qualifiers go to the nearest mention (finding or base) of their clause; bases become findings.
3. Cues reach mentions on their side, up to a terminator, a clause end, their scope in words, or a further cue of
   presence behind a mention; ``reach = "nearest"`` stops after the nearest mention and what is joined to it.
4. Of the cues that reach a mention, the one of the latest :class:`~mmecg.labels.assertion.Status` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mmecg.labels.assertion import Status
from mmecg.labels.rules import Compose, Cue, Kind, Role, Rules

QUALIFIER_SCOPE = 6
"""Words between a qualifier and the mention that it goes to, at most."""
ALTERNATIVE_SCOPE = 4
"""Words between "or" and the mention on either side, at most, unless the cue names its scope."""
JOINED_GAP = 2
"""Words without a role between joined mentions ("A and the B"), at most."""

_RANK = {status: rank for rank, status in enumerate(Status)}
_BREAKS = frozenset({Kind.TERMINATOR, Kind.SEPARATOR})


@dataclass(frozen=True, slots=True)
class Event:
    """A literal in a sentence.

    Attributes
    ----------
    roles : tuple of Role
    word : int
        Number of its first word.
    words : int
        How many words it holds; 0 for punctuation.
    """

    roles: tuple[Role, ...]
    word: int
    words: int

    @property
    def end(self) -> int:
        """Number of the word behind it."""
        return self.word + self.words

    def role(self, *kinds: Kind) -> Role | None:
        """Return its first role of these kinds."""
        return next((role for role in self.roles if role.kind in kinds), None)


@dataclass(frozen=True, slots=True)
class Statement:
    """A finding that a sentence speaks of; like :class:`~mmecg.labels.assertion.LabelAssertion`, without offsets."""

    finding: str
    status: Status
    rule: str
    cue: str
    qualifiers: tuple[tuple[str, str], ...]
    age_status: Status | None
    cause_status: Status | None
    language: str
    needs_prior: bool
    alternatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A statement and the events that it rests on.

    Attributes
    ----------
    statement : Statement
    first, last, cue : int
        Positions of events in the sentence: where the evidence begins, where it ends, and the cue (-1 if none).
    """

    statement: Statement
    first: int
    last: int
    cue: int


@dataclass(slots=True)
class _Mention:
    """A finding or base at event ``at``, and what is known of it so far."""

    at: int
    role: Role
    word: int
    end: int
    qualifiers: list[tuple[int, str, str]] = field(default_factory=list)  # event, kind, value
    cues: list[tuple[Status, int, Cue]] = field(default_factory=list)
    age: Status | None = None
    cause: Status | None = None
    partners: list[_Mention] = field(default_factory=list)


@dataclass(slots=True)
class _Part:
    """A finding that a mention gives, with the events that make it up."""

    finding: str
    events: list[int]
    alternatives: tuple[str, ...] = ()


class Resolver:
    """Turns the events of one sentence into statements.

    Parameters
    ----------
    rules : Rules
        Of the sentence's language.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._composes: dict[str, list[Compose]] = {}
        for compose in sorted(rules.compose, key=lambda item: -len(item.needs)):
            self._composes.setdefault(compose.base, []).append(compose)

    def resolve(self, events: Sequence[Event]) -> list[Resolved]:
        """Return the statements of a sentence, in order of their mention."""
        sentence = _Sentence(self.rules, events)
        mentions = sentence.mentions
        for at in sentence.of(Kind.QUALIFIER):
            self._qualify(sentence, at)
        for at in sentence.of(Kind.CUE):
            for role in events[at].roles:
                if role.kind is Kind.CUE:
                    self._apply(sentence, at, self.rules.cue[role.index])
        parts = {id(mention): self._parts(sentence, mention) for mention in mentions}
        return [self._state(mention, part, parts) for mention in mentions for part in parts[id(mention)]]

    def _qualify(self, sentence: _Sentence, at: int) -> None:
        """Give a qualifier to the nearest mention; one behind its mention goes to what is joined to it as well."""
        role = sentence.events[at].role(Kind.QUALIFIER)
        rule = self.rules.qualifier[role.index]  # type: ignore[union-attr]
        sides = {"forward": (1,), "backward": (-1,), "both": (1, -1)}[rule.direction]
        near = [(side, found) for side in sides if (found := sentence.neighbour(at, side)) is not None]

        def cost(item: tuple[int, _Mention]) -> tuple[bool, int, int]:
            mention = item[1]
            fits = rule.kind != "location" or self._takes(mention, rule.kind, rule.value)
            return (not fits, sentence.breaks(at, mention.at), sentence.distance(at, mention))

        near = [item for item in near if sentence.distance(at, item[1]) <= QUALIFIER_SCOPE]
        if not near:
            return
        side, mention = min(near, key=cost)
        targets = [mention]
        if side < 0 and rule.kind == "location":
            joined = sentence.joined(mention, -1, strong=True)
            targets += [other for other in joined if not any(kind == rule.kind for _, kind, _ in other.qualifiers)]
        for target in targets:
            target.qualifiers.append((at, rule.kind, rule.value))

    def _takes(self, mention: _Mention, kind: str, value: str) -> bool:
        if mention.role.kind is not Kind.BASE:
            return False
        base = self.rules.base[mention.role.index].id
        return any((kind, value) in compose.needs for compose in self._composes.get(base, ()))

    def _apply(self, sentence: _Sentence, at: int, cue: Cue) -> None:
        status = Status(cue.status)
        if status is Status.ALTERNATIVE:
            self._oppose(sentence, at, cue)
            return
        if cue.about == "age" or (cue.about == "presence" and sentence.is_about_age(at, cue)):
            for mention in sentence.aged(at):
                mention.age = _later(mention.age, status)
            return
        reached = sentence.reached(at, cue)
        for mention in reached:
            mention.cues.append((status, at, cue))
            if cue.about == "cause":
                mention.cause = _later(mention.cause, status)
        if cue.about == "cause" and cue.direction == "forward" and reached:
            subject = sentence.neighbour(at, -1)
            if subject is not None:
                subject.cause = _later(subject.cause, status)

    def _oppose(self, sentence: _Sentence, at: int, cue: Cue) -> None:
        """Make the mentions on both sides of "or" alternatives, and those joined to the left one by commas too."""
        left, right = sentence.neighbour(at, -1), sentence.neighbour(at, 1)
        scope = cue.scope or ALTERNATIVE_SCOPE
        if left is None or right is None or any(sentence.gap(at, side) > scope for side in (left, right)):
            return
        group = [*sentence.joined(left, -1), left, right]
        for mention in group:
            mention.cues.append((Status.ALTERNATIVE, at, cue))
            mention.partners += [other for other in group if other is not mention and other not in mention.partners]

    def _parts(self, sentence: _Sentence, mention: _Mention) -> list[_Part]:
        """Return the findings of a mention; a base takes the most specific compositions of its qualifiers."""
        if mention.role.kind is Kind.FINDING:
            return [_Part(name, [mention.at]) for name in self.rules.finding[mention.role.index].gives]
        base = self.rules.base[mention.role.index]
        left = {(kind, value): at for at, kind, value in reversed(mention.qualifiers)}
        parts: list[_Part] = []
        for compose in self._composes.get(base.id, ()):
            if compose.needs <= left.keys():
                events = [mention.at, *(left[need] for need in compose.needs)]
                parts += [_Part(name, events) for name in compose.gives]
                left = {need: at for need, at in left.items() if need not in compose.needs}
        if not parts:
            return [_Part(base.default, [mention.at])] if base.default else []
        self._oppose_parts(sentence, mention, parts)
        return parts

    def _oppose_parts(self, sentence: _Sentence, mention: _Mention, parts: list[_Part]) -> None:
        """Make compositions alternatives where "or" stands between their qualifiers ("anterior or lateral")."""
        places = sorted({at for part in parts for at in part.events if at != mention.at})
        for at in sentence.of(Kind.CUE):
            role = sentence.events[at].role(Kind.CUE)
            cue = self.rules.cue[role.index]  # type: ignore[union-attr]
            if cue.status != "alternative" or not any(low < at < high for low, high in pairwise(places)):
                continue
            mention.cues.append((Status.ALTERNATIVE, at, cue))
            for part in parts:
                part.alternatives = tuple(other.finding for other in parts if other is not part)

    def _state(self, mention: _Mention, part: _Part, parts: dict[int, list[_Part]]) -> Resolved:
        own = Status.PRESENT
        qualifiers = [(kind, value) for _, kind, value in sorted(mention.qualifiers)]
        if mention.role.kind is Kind.FINDING:
            rule = self.rules.finding[mention.role.index]
            own, qualifiers = Status(rule.status), [*rule.qualifiers.items(), *qualifiers]
        status, at, cue = max(mention.cues, key=lambda item: _RANK[item[0]], default=(own, -1, None))
        if _RANK[own] > _RANK[status]:
            status, at, cue = own, -1, None
        others: tuple[str, ...] = ()
        if status is Status.ALTERNATIVE:
            named = [other.finding for partner in mention.partners for other in parts[id(partner)]]
            others = tuple(dict.fromkeys([*named, *part.alternatives]))
        statement = Statement(
            finding=part.finding,
            status=status,
            rule=mention.role.rule,
            cue=f"{self.rules.language}/{cue.id}" if cue else "",
            qualifiers=tuple(dict.fromkeys(qualifiers)),
            age_status=mention.age,
            cause_status=mention.cause,
            language=self.rules.language,
            needs_prior=own is Status.SERIAL or any(each is Status.SERIAL for each, _, _ in mention.cues),
            alternatives=tuple(name for name in others if name != part.finding),
        )
        return Resolved(statement, min(part.events), max(part.events), at)


class _Sentence:
    """Events of a sentence, its mentions, and what is near what."""

    def __init__(self, rules: Rules, events: Sequence[Event]) -> None:
        self.rules = rules
        self.events = events
        self.kept = _without_overlaps(events)
        self.mentions = [
            _Mention(at, role, events[at].word, events[at].end)
            for at in self.kept
            if (role := events[at].role(Kind.FINDING, Kind.BASE)) is not None
        ]

    def of(self, kind: Kind) -> list[int]:
        """Return the events of a kind."""
        return [at for at in self.kept if self.events[at].role(kind) is not None]

    def neighbour(self, at: int, side: int) -> _Mention | None:
        """Return the nearest mention before (-1) or behind (1) an event, in its clause."""
        near = [mention for mention in self.mentions if (mention.at - at) * side > 0]
        if not near:
            return None
        mention = near[0] if side > 0 else near[-1]
        return None if self._between(at, mention.at, Kind.SEPARATOR) else mention

    def distance(self, at: int, mention: _Mention) -> int:
        """Return the words between an event and a mention."""
        event = self.events[at]
        return max(mention.word - event.end, event.word - mention.end, 0)

    def gap(self, at: int, mention: _Mention) -> int:
        """Return the words without a role between an event and a mention."""
        low, high = sorted((at, mention.at))
        return self._free_words(low, high)

    def breaks(self, at: int, other: int) -> int:
        """Return how many terminators and conjunctions stand between two events."""
        return sum(self._between(at, other, kind) for kind in (Kind.TERMINATOR, Kind.CONJUNCTION))

    def joined(self, mention: _Mention, side: int, *, strong: bool = False) -> list[_Mention]:
        """Return the mentions that conjunctions join to one, going outwards.

        Parameters
        ----------
        mention : _Mention
        side : {-1, 1}
        strong : bool
            The first link must be a word, not a comma: in "A, B possible" nothing joins A to B.
        """
        found: list[_Mention] = []
        order = self.mentions[::side]
        for inner, outer in pairwise(order[order.index(mention) :]):
            low, high = sorted((inner.at, outer.at))
            links = [at for at in self.kept if low < at < high and self._links(at)]
            words = any(self.events[at].words for at in links)
            if not links or (strong and not found and not words) or self._free_words(low, high) > JOINED_GAP:
                break
            if any(self.events[at].role(*_BREAKS) for at in self.kept if low < at < high):
                break
            found.append(outer)
        return found

    def reached(self, at: int, cue: Cue) -> list[_Mention]:
        """Return the mentions that a cue reaches."""
        if cue.direction == "both":
            sides = [side for side in (1, -1) if self._reached_on(at, cue, side)]
            return self._reached_on(at, cue, min(sides, key=lambda side: self._nearest(at, side))) if sides else []
        return self._reached_on(at, cue, 1 if cue.direction == "forward" else -1)

    def _reached_on(self, at: int, cue: Cue, side: int) -> list[_Mention]:
        allowed: list[_Mention] = []
        for mention in [item for item in self.mentions if (item.at - at) * side > 0][::side]:
            if self._stops(at, mention, side, bool(allowed)) or (cue.scope and self.distance(at, mention) > cue.scope):
                break
            allowed.append(mention)
        if cue.reaches_all or not allowed:
            return allowed
        joined = self.joined(allowed[0], side, strong=side < 0)
        return [allowed[0], *(mention for mention in allowed if mention in joined)]

    def _stops(self, at: int, mention: _Mention, side: int, passed: bool) -> bool:
        """Return whether something between a cue and a mention ends the cue's reach."""
        low, high = sorted((at, mention.at))
        for between in self.kept:
            if not low < between < high:
                continue
            if self.events[between].role(*_BREAKS):
                return True
            if passed and self._has_mention(low, high, between, side) and self._is_rival(between, side):
                return True
        return False

    def _has_mention(self, low: int, high: int, between: int, side: int) -> bool:
        """Return whether a mention stands between the cue and event ``between``."""
        edge = (low, between) if side > 0 else (between, high)
        return any(edge[0] < mention.at < edge[1] for mention in self.mentions)

    def _is_rival(self, at: int, side: int) -> bool:
        """Return whether an event is a cue of presence that speaks of the same side."""
        directions = ("forward", "both") if side > 0 else ("backward", "both")
        cues = (self.rules.cue[role.index] for role in self.events[at].roles if role.kind is Kind.CUE)
        return any(
            cue.about == "presence" and cue.status != "alternative" and cue.direction in directions for cue in cues
        )

    def is_about_age(self, at: int, cue: Cue) -> bool:
        """Return whether a cue stands right before an age that no mention follows ("wahrscheinlich alt")."""
        behind = next((other for other in self.kept if other > at), None)
        if cue.direction == "backward" or behind is None or self.events[behind].word != self.events[at].end:
            return False
        role = self.events[behind].role(Kind.QUALIFIER)
        if role is None or self.rules.qualifier[role.index].kind != "age":
            return False
        end = self.events[behind].end
        for other in (item for item in self.kept if item > behind):
            event = self.events[other]
            if event.word != end or event.role(Kind.FINDING, Kind.BASE):
                return event.word != end
            if not event.role(Kind.QUALIFIER):
                return True
            end = event.end
        return True

    def aged(self, at: int) -> list[_Mention]:
        """Return the mentions whose age a cue speaks of: those of the nearest age qualifier, or the nearest mention."""
        ages = sorted({place for mention in self.mentions for place, kind, _ in mention.qualifiers if kind == "age"})
        if ages:
            nearest = min(ages, key=lambda place: abs(self.events[place].word - self.events[at].word))
            return [mention for mention in self.mentions if any(place == nearest for place, _, _ in mention.qualifiers)]
        before = self.neighbour(at, -1)
        return [before] if before else []

    def _nearest(self, at: int, side: int) -> int:
        mention = self.neighbour(at, side)
        return self.distance(at, mention) if mention else 1 << 30

    def _links(self, at: int) -> bool:
        event = self.events[at]
        cue = event.role(Kind.CUE)
        is_or = cue is not None and self.rules.cue[cue.index].status == "alternative"
        return is_or or event.role(Kind.CONJUNCTION) is not None

    def _between(self, at: int, other: int, kind: Kind) -> int:
        low, high = sorted((at, other))
        return sum(low < place < high and self.events[place].role(kind) is not None for place in self.kept)

    def _free_words(self, low: int, high: int) -> int:
        inside = sum(self.events[at].words for at in self.kept if low < at < high)
        return max(self.events[high].word - self.events[low].end - inside, 0)


def _without_overlaps(events: Sequence[Event]) -> list[int]:
    """Return the events that stay where some overlap: the longer, else the first; in order."""
    kept: list[int] = []
    for at, event in enumerate(events):
        if kept and event.words and event.word < events[kept[-1]].end:
            if event.words <= events[kept[-1]].words:
                continue
            kept.pop()
        kept.append(at)
    return kept


def _later(first: Status | None, second: Status) -> Status:
    return max([item for item in (first, second) if item is not None], key=_RANK.__getitem__)
