"""From the matches of one sentence to statements: composition, cue scopes, status, qualifiers.

A sentence is seen as a row of events (:class:`Event`): literals with their roles and the number of their first word.
Nothing here looks at text or offsets, so that equal rows have equal statements and need be resolved once only.

1. Of events that overlap, the longer stays; of equals, the first.
2. Qualifiers go to the nearest mention (finding or base) of their clause; bases become findings.
3. Cues reach mentions on their side, up to a terminator, a clause end, their scope in words, or a further cue of
   presence behind a mention; ``reach = "nearest"`` stops after the nearest mention and what is joined to it.
4. Of the cues that reach a mention, the one of the latest :class:`~mmecg.labels.assertion.Status` decides; of serial
   ones, the phrase itself, or the one of the shortest reach, or the nearest. Where all serial ones yield, any other
   decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mmecg.labels.assertion import Status
from mmecg.labels.rules import Compose, Cue, Kind, Rules
from mmecg.labels.sentence import Event, Mention, Sentence

QUALIFIER_SCOPE = 6
"""Words between a qualifier and the mention that it goes to, at most."""
ALTERNATIVE_SCOPE = 4
"""Words between "or" and the mention on either side, at most, unless the cue names its scope."""

_RANK = {status: rank for rank, status in enumerate(Status)}


@dataclass(frozen=True, slots=True)
class Statement:
    """How a sentence speaks of a finding; as in :class:`~mmecg.labels.assertion.LabelAssertion`."""

    status: Status
    cue: str
    qualifiers: tuple[tuple[str, str], ...]
    age_status: Status | None
    cause_status: Status | None
    language: str
    needs_prior: bool
    alternatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A finding, how the sentence speaks of it, and the events that say so.

    Attributes
    ----------
    finding : str
    statement : Statement
    mention, first, last, cue : int
        Positions of events in the sentence: what names the finding (or its base), where the evidence begins, where it
        ends, and the cue (-1 if none).
    """

    finding: str
    statement: Statement
    mention: int
    first: int
    last: int
    cue: int


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
        sentence = Sentence(self.rules, events)
        mentions = sentence.mentions
        for at in sentence.of(Kind.QUALIFIER):
            self._qualify(sentence, at)
        for at in sentence.of(Kind.CUE):
            for role in events[at].roles:
                if role.kind is Kind.CUE:
                    self._apply(sentence, at, self.rules.cue[role.index])
        parts = {id(mention): self._parts(sentence, mention) for mention in mentions}
        return [self._state(sentence, mention, part, parts) for mention in mentions for part in parts[id(mention)]]

    def _qualify(self, sentence: Sentence, at: int) -> None:
        """Give a qualifier to the nearest mention; one behind its mention goes to what is joined to it as well."""
        role = sentence.events[at].role(Kind.QUALIFIER)
        rule = self.rules.qualifier[role.index]  # type: ignore[union-attr]
        sides = {"forward": (1,), "backward": (-1,), "both": (1, -1)}[rule.direction]
        near = [(side, found) for side in sides if (found := sentence.neighbour(at, side)) is not None]

        def cost(item: tuple[int, Mention]) -> tuple[bool, int, int]:
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

    def _takes(self, mention: Mention, kind: str, value: str) -> bool:
        if mention.role.kind is not Kind.BASE:
            return False
        base = self.rules.base[mention.role.index].id
        return any((kind, value) in compose.needs for compose in self._composes.get(base, ()))

    def _apply(self, sentence: Sentence, at: int, cue: Cue) -> None:
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

    def _oppose(self, sentence: Sentence, at: int, cue: Cue) -> None:
        """Make the mentions on both sides of "or" alternatives, and those joined to the left one by commas too."""
        left, right = sentence.neighbour(at, -1), sentence.neighbour(at, 1)
        scope = cue.scope or ALTERNATIVE_SCOPE
        if left is None or right is None or any(sentence.gap(at, side) > scope for side in (left, right)):
            return
        group = [*sentence.joined(left, -1), left, right]
        for mention in group:
            mention.cues.append((Status.ALTERNATIVE, at, cue))
            mention.partners += [other for other in group if other is not mention and other not in mention.partners]

    def _parts(self, sentence: Sentence, mention: Mention) -> list[_Part]:
        """Return the findings of a mention; a base takes the most specific compositions of its qualifiers."""
        if mention.role.kind is Kind.FINDING:
            rule = self.rules.finding[mention.role.index]
            others = rule.gives if rule.status == "alternative" else ()
            return [_Part(name, [mention.at], others) for name in rule.gives]
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

    def _oppose_parts(self, sentence: Sentence, mention: Mention, parts: list[_Part]) -> None:
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

    def _state(self, sentence: Sentence, mention: Mention, part: _Part, parts: dict[int, list[_Part]]) -> Resolved:
        def strength(item: tuple[Status, int, Cue]) -> tuple[int, bool, int]:
            status, at, cue = item
            if status is not Status.SERIAL:
                return _RANK[status], False, 0
            # "compared with", far ahead and for all that follows, says least of what has changed
            return -1 if yields else _RANK[status], not cue.reaches_all, -sentence.distance(at, mention)

        # what is new may be doubted ("possible new infarct"); what is gone is gone
        yields = all(cue.yields for status, _, cue in mention.cues if status is Status.SERIAL)
        own = Status.PRESENT
        qualifiers = [(kind, value) for _, kind, value in sorted(mention.qualifiers)]
        if mention.role.kind is Kind.FINDING:
            rule = self.rules.finding[mention.role.index]
            own, qualifiers = Status(rule.status), [*rule.qualifiers.items(), *qualifiers]
        status, at, cue = max(mention.cues, key=strength, default=(own, -1, None))
        if _RANK[own] > _RANK[status] or own is status is Status.SERIAL:
            status, at, cue = own, -1, None
        others: tuple[str, ...] = ()
        if status is Status.ALTERNATIVE:
            named = [other.finding for partner in mention.partners for other in parts[id(partner)]]
            others = tuple(dict.fromkeys([*named, *part.alternatives]))
        statement = Statement(
            status=status,
            cue=f"{self.rules.language}/{cue.id}" if cue else "",
            qualifiers=tuple(dict.fromkeys(qualifiers)),
            age_status=mention.age,
            cause_status=mention.cause,
            language=self.rules.language,
            needs_prior=own is Status.SERIAL or any(each is Status.SERIAL for each, _, _ in mention.cues),
            alternatives=tuple(name for name in others if name != part.finding),
        )
        return Resolved(part.finding, statement, mention.at, min(part.events), max(part.events), at)


def _later(first: Status | None, second: Status) -> Status:
    return max([item for item in (first, second) if item is not None], key=_RANK.__getitem__)
