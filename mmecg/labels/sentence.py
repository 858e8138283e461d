"""The events of one sentence, its mentions, and what is near what: the geometry that cues and qualifiers work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mmecg.labels.assertion import Status
from mmecg.labels.rules import Cue, Kind, Role, Rules

JOINED_GAP = 2
"""Words without a role between joined mentions ("A and the B"), at most."""

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


@dataclass(slots=True)
class Mention:
    """A finding or base at event ``at``, and what is known of it so far."""

    at: int
    role: Role
    word: int
    end: int
    qualifiers: list[tuple[int, str, str]] = field(default_factory=list)  # event, kind, value
    cues: list[tuple[Status, int, Cue]] = field(default_factory=list)
    age: Status | None = None
    cause: Status | None = None
    partners: list[Mention] = field(default_factory=list)


class Sentence:
    """Events of a sentence, its mentions, and what is near what."""

    def __init__(self, rules: Rules, events: Sequence[Event]) -> None:
        self.rules = rules
        self.events = events
        self.kept = _without_overlaps(events)
        self.mentions = [
            Mention(at, role, events[at].word, events[at].end)
            for at in self.kept
            if (role := events[at].role(Kind.FINDING, Kind.BASE)) is not None
        ]

    def of(self, kind: Kind) -> list[int]:
        """Return the events of a kind."""
        return [at for at in self.kept if self.events[at].role(kind) is not None]

    def neighbour(self, at: int, side: int) -> Mention | None:
        """Return the nearest mention before (-1) or behind (1) an event, in its clause."""
        near = [mention for mention in self.mentions if (mention.at - at) * side > 0]
        if not near:
            return None
        mention = near[0] if side > 0 else near[-1]
        return None if self._between(at, mention.at, Kind.SEPARATOR) else mention

    def distance(self, at: int, mention: Mention) -> int:
        """Return the words between an event and a mention."""
        event = self.events[at]
        return max(mention.word - event.end, event.word - mention.end, 0)

    def gap(self, at: int, mention: Mention) -> int:
        """Return the words without a role between an event and a mention."""
        low, high = sorted((at, mention.at))
        return self._free_words(low, high)

    def breaks(self, at: int, other: int) -> int:
        """Return how many terminators and conjunctions stand between two events."""
        return sum(self._between(at, other, kind) for kind in (Kind.TERMINATOR, Kind.CONJUNCTION))

    def joined(self, mention: Mention, side: int, *, strong: bool = False) -> list[Mention]:
        """Return the mentions that conjunctions join to one, going outwards.

        Parameters
        ----------
        mention : Mention
        side : {-1, 1}
        strong : bool
            The first link must be a word, not a comma: in "A, B possible" nothing joins A to B.
        """
        found: list[Mention] = []
        order = self.mentions[::side]
        for inner, outer in pairwise(order[order.index(mention) :]):
            low, high = sorted((inner.at, outer.at))
            between = [at for at in self.kept if low < at < high]
            links = [at for at in between if self._links(at)]
            words = any(self.events[at].words for at in links)
            if not links or (strong and not found and not words) or self._free_words(low, high) > JOINED_GAP:
                break
            if any(self.events[at].role(*_BREAKS, Kind.CUE) for at in between if at not in links):
                break  # in "A, possible B" the two are not spoken of alike
            found.append(outer)
        return found

    def reached(self, at: int, cue: Cue) -> list[Mention]:
        """Return the mentions that a cue reaches."""
        if cue.direction == "both":
            sides = {side: found for side in (1, -1) if (found := self._reached_on(at, cue, side))}
            return min(sides.values(), key=lambda found: self._apart(at, found[0]), default=[])
        return self._reached_on(at, cue, 1 if cue.direction == "forward" else -1)

    def _reached_on(self, at: int, cue: Cue, side: int) -> list[Mention]:
        allowed: list[Mention] = []
        for mention in [item for item in self.mentions if (item.at - at) * side > 0][::side]:
            if self._stops(at, mention, side, bool(allowed)) or (cue.scope and self.distance(at, mention) > cue.scope):
                break
            allowed.append(mention)
        if cue.reaches_all or not allowed:
            return allowed
        joined = self.joined(allowed[0], side, strong=side < 0)
        return [allowed[0], *(mention for mention in allowed if mention in joined)]

    def _stops(self, at: int, mention: Mention, side: int, passed: bool) -> bool:
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

    def aged(self, at: int) -> list[Mention]:
        """Return the mentions whose age a cue speaks of: those of the nearest age qualifier, or the nearest mention."""
        ages = sorted({place for mention in self.mentions for place, kind, _ in mention.qualifiers if kind == "age"})
        if ages:
            nearest = min(ages, key=lambda place: abs(self.events[place].word - self.events[at].word))
            return [mention for mention in self.mentions if any(place == nearest for place, _, _ in mention.qualifiers)]
        before = self.neighbour(at, -1)
        return [before] if before else []

    def _apart(self, at: int, mention: Mention) -> tuple[int, int]:
        return self.distance(at, mention), self.breaks(at, mention.at)

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
