"""What a report says about one finding: the words, and whether they state, doubt or deny it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a text speaks of a finding.

    The order is the precedence where several cues reach one mention: a later member wins.
    """

    PRESENT = "present"
    PROBABLE = "probable"
    POSSIBLE = "possible"
    CANNOT_RULE_OUT = "cannot_rule_out"
    ALTERNATIVE = "alternative"
    CONDITIONAL = "conditional"
    HISTORICAL = "historical"
    SERIAL = "serial"
    NEGATED = "negated"


class Resolution(StrEnum):
    """What the subject's earlier study says of a serial statement."""

    CONSISTENT = "consistent"
    CONTRADICTED = "contradicted"
    UNKNOWN = "unknown"
    NEEDS_PRIOR = "needs_prior"


@dataclass(frozen=True, slots=True)
class SerialResolution:
    """A serial statement beside the subject's last study before it; made by :mod:`mmecg.labels.serial`.

    Attributes
    ----------
    resolution : Resolution
    reason : str
        Why it is unknown or needs a prior study (:data:`mmecg.labels.serial.REASONS`); empty otherwise.
    now, before : bool or None
        What the statement says of the finding in the present and in the earlier ECG; None if it leaves it open.
    prior_value : bool or None
        What is known of the finding in the earlier study; None if nothing is.
    prior_study_id : str
        Empty if there is none.
    days_since_prior : float or None
        From the earlier study to this one; None if there is none.
    """

    resolution: Resolution
    reason: str = ""
    now: bool | None = None
    before: bool | None = None
    prior_value: bool | None = None
    prior_study_id: str = ""
    days_since_prior: float | None = None


@dataclass(frozen=True, slots=True)
class LabelAssertion:
    """One finding that a text speaks of, with its evidence.

    Attributes
    ----------
    finding : str
        Identifier in the vocabulary (:mod:`mmecg.labels.vocabulary`); an SCP statement keeps its SCP code.
    status : Status
        Of the finding's *presence*.
    start, end : int
        Evidence: code point offsets into the **raw** text, so that ``raw[start:end]`` is what was matched.
    rule : str
        The pattern that matched, as ``<language>/<finding>/<number>``.
    cue : str
        The cue that decided the status, as ``<language>/<cue id>``; empty if none.
    cue_start, cue_end : int
        Where the cue stands in the raw text; both -1 if there is none.
    qualifiers : tuple of (str, str)
        Kind and value, such as ``("age", "old")``, ``("location", "inferior")``, ``("degree", "slight")``.
    age_status, cause_status : Status or None
        Of the statement about age ("wahrscheinlich alt": the age is probable, the presence is not in doubt), or about
        cause ("may be due to ischaemia"); None if the text makes none.
    language : str
        ``"de"``, ``"en"`` or ``"sv"``: of the rules that matched.
    needs_prior : bool
        The statement compares with an earlier ECG, so that one ECG cannot decide it.
    alternatives : tuple of str
        For :attr:`Status.ALTERNATIVE`: the other findings of the "A or B".
    probability : float or None
        That the finding is present, given these words; filled in by :mod:`mmecg.labels.evidence`, None if it has not
        been or nothing was learnt for them.
    change : str
        With :attr:`Status.SERIAL`: how the finding has changed, such as ``"disappeared"``; see
        :mod:`mmecg.labels.change`.
    serial : SerialResolution or None
        With :attr:`needs_prior`, and if a corpus was asked: what the subject's earlier study says.
    """

    finding: str
    status: Status
    start: int
    end: int
    rule: str
    cue: str = ""
    cue_start: int = -1
    cue_end: int = -1
    qualifiers: tuple[tuple[str, str], ...] = ()
    age_status: Status | None = None
    cause_status: Status | None = None
    language: str = ""
    needs_prior: bool = False
    alternatives: tuple[str, ...] = ()
    probability: float | None = None
    change: str = ""
    serial: SerialResolution | None = None


@dataclass(frozen=True, slots=True)
class MinedLabel:
    """What a whole text says of one label.

    Attributes
    ----------
    code : str
        In the code system asked for; the finding itself if none was.
    finding : str
    value : bool or None
        True if the text states it, False if it denies it, None if it leaves it open.
    probability : float or None
        That it is present, given the whole text; None if nothing was learnt for it.
    """

    code: str
    finding: str
    value: bool | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class MinedReport:
    """Everything mined from one text; a label that is not listed is unlabelled, not absent.

    Attributes
    ----------
    assertions : tuple of LabelAssertion
        In the order of the evidence.
    labels : tuple of MinedLabel
        One a label that the text speaks of.
    flags : tuple of str
        Remarks on the text, such as ``"truncated"``.
    """

    assertions: tuple[LabelAssertion, ...] = ()
    labels: tuple[MinedLabel, ...] = ()
    flags: tuple[str, ...] = ()


def value_of(assertions: Iterable[LabelAssertion]) -> bool | None:
    """Return what the mentions of one finding say together.

    True if one states it (present or probable), False if all deny it, else None: a doubt, a condition or an earlier
    finding leaves it open, and so does a serial one, unless the subject's earlier study bears it out: then it says
    what the finding is now.
    """
    said = {_says(assertion) for assertion in assertions}
    if True in said:
        return True
    return False if said == {False} else None


def _says(assertion: LabelAssertion) -> bool | None:
    if assertion.serial is not None and assertion.serial.resolution is Resolution.CONSISTENT:
        return assertion.serial.now
    if assertion.status in (Status.PRESENT, Status.PROBABLE):
        return True
    return False if assertion.status is Status.NEGATED else None


def main_language(assertions: Iterable[LabelAssertion]) -> str:
    """Return the language that most assertions are of; empty if there are none."""
    spoken = Counter(assertion.language for assertion in assertions).most_common(1)
    return spoken[0][0] if spoken else ""
