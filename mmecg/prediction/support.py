"""What a recording can support: the leads and the seconds that a label needs, by ``support.toml``.

A lead counts if it was recorded and is neither flat, nor saturated, nor drowned in noise by
:func:`mmecg.quality.assess_quality`. A lead that could be derived from two others is not.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmecg.ecg import LEADS, LIMB_LEADS, Ecg
from mmecg.errors import ConfigError
from mmecg.quality import QualityFinding, assess_quality

SUPPORT_TABLE = Path(__file__).parent / "support.toml"
UNUSABLE: Mapping[str, str] = {
    "missing_lead": "not recorded",
    "flat": "flat",
    "saturated": "saturated",
    "noise": "noise",
}
"""Quality findings that take a lead away, in the words of a reason."""

_GROUPS = {"LIMB": LIMB_LEADS, "CHEST": LEADS[len(LIMB_LEADS) :]}


@dataclass(frozen=True)
class Part:
    """So many leads of a group."""

    count: int
    leads: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.leads) if len(self.leads) < len(LEADS) else "the 12 leads"
        return f"{self.count} of {names}" if len(self.leads) > 1 else names


@dataclass(frozen=True)
class Support:
    """What a label needs.

    Attributes
    ----------
    label : str
    needs : tuple of tuple of Part
        Alternatives; each asks for all of its parts.
    seconds : float
        Shortest recording.
    reason : str
        Why, in words.
    source : str
        Where that is defined.
    """

    label: str
    needs: tuple[tuple[Part, ...], ...]
    seconds: float
    reason: str
    source: str


def support_of(labels: Iterable[str]) -> dict[str, Support]:
    """Return what labels need; a label that the table does not know needs nothing and is left out."""
    table = read_support_table()
    return {label: table[label] for label in labels if label in table}


def unsupported(ecg: Ecg, labels: Iterable[str], *, quality: Iterable[QualityFinding] | None = None) -> dict[str, str]:
    """Return the labels that a recording cannot support, and why.

    Parameters
    ----------
    ecg : Ecg
    labels : iterable of str
    quality : iterable of QualityFinding, optional
        Of :func:`mmecg.quality.assess_quality`, if the caller has it already.

    Returns
    -------
    dict of str to str
        Label to the reason in plain words: ``"needs 2 of II, III, aVF; flat: III; not recorded: aVF"``.
    """
    lost: dict[str, str] = {}
    for finding in assess_quality(ecg) if quality is None else quality:
        if finding.kind in UNUSABLE:
            lost.update((lead, UNUSABLE[finding.kind]) for lead in finding.leads if lead not in lost)
    found = {}
    for label, support in support_of(labels).items():
        if why := _reason(support, lost, ecg.duration_s):
            found[label] = why
    return found


def _reason(support: Support, lost: Mapping[str, str], duration_s: float) -> str:
    """Return why a label is not supported; empty if it is."""
    if duration_s < support.seconds:
        return f"needs {support.seconds:g} s; the recording lasts {duration_s:.3g} s"
    if not lost or any(all(_met(part, lost) for part in parts) for parts in support.needs):
        return ""
    needed = ", or ".join(" and ".join(map(str, parts)) for parts in support.needs)
    concerned = {lead for parts in support.needs for part in parts if not _met(part, lost) for lead in part.leads}
    why = [
        f"{words}: {', '.join(leads)}"
        for words in UNUSABLE.values()
        if (leads := [lead for lead in LEADS if lead in concerned and lost.get(lead) == words])
    ]
    return "; ".join([f"needs {needed}", *why])


def _met(part: Part, lost: Mapping[str, str]) -> bool:
    return sum(lead not in lost for lead in part.leads) >= part.count


@cache
def read_support_table(path: Path = SUPPORT_TABLE) -> dict[str, Support]:
    """Read the table.

    Raises
    ------
    ConfigError
        A label is there twice, or an entry is incomplete, names an unknown lead or source, or asks for more leads than
        it names.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    sources = content["sources"]
    table: dict[str, Support] = {}
    for entry in content["support"]:
        if set(entry) != {"labels", "needs", "seconds", "reason", "source"} or entry["source"] not in sources:
            raise ConfigError(
                f"{path.name}: entry {entry.get('labels')} has {sorted(entry)}, expected labels, needs, seconds, "
                "reason, and a source that is listed"
            )
        needs = tuple(tuple(map(_parse_part, text.split("+"))) for text in entry["needs"])
        for label in entry["labels"]:
            if label in table:
                raise ConfigError(f"{path.name}: {label} is there twice; give it one entry")
            table[label] = Support(label, needs, float(entry["seconds"]), entry["reason"], sources[entry["source"]])
    return table


def _parse_part(text: str) -> Part:
    """Parse ``"2 of II III aVF"``."""
    found = re.fullmatch(r"\s*(\d+) of ([\w ]+?)\s*", text)
    leads = tuple(lead for name in found[2].split() for lead in _GROUPS.get(name, (name,))) if found else ()
    if found is None or not set(leads) <= set(LEADS) or not 1 <= int(found[1]) <= len(leads):
        raise ConfigError(
            f"support needs {text!r}, expected such as '2 of II III aVF' with leads of {', '.join(LEADS)}"
        )
    return Part(int(found[1]), leads)
