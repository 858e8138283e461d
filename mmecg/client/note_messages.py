"""What notes did to a prediction, as messages and back; and what any evidence added to labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import isnan

from mmecg_pb.v1 import prediction_service_pb2 as pb

from mmecg.prediction.result import NoteFinding, NotesEvidence


def render_effects(effects: Mapping[str, float]) -> list[pb.LabelEffect]:
    """Render what was added to labels, strongest first."""
    return [pb.LabelEffect(label=label, log_odds=value) for label, value in effects.items()]


def parse_effects(effects: Iterable[pb.LabelEffect]) -> dict[str, float]:
    """Read what was added to labels."""
    return {effect.label: effect.log_odds for effect in effects}


def render_notes(evidence: NotesEvidence) -> pb.NotesEvidence:
    """Render what notes did."""
    return pb.NotesEvidence(
        weight=None if isnan(evidence.weight) else evidence.weight,
        effects=render_effects(evidence.effects),
        said=[pb.NoteFinding(**asdict(one)) for one in evidence.said],
    )


def parse_notes(message: pb.NotesEvidence) -> NotesEvidence:
    """Read what notes did."""
    return NotesEvidence(
        weight=message.weight if message.HasField("weight") else float("nan"),
        effects=parse_effects(message.effects),
        said=tuple(
            NoteFinding(note=one.note, start=one.start, end=one.end, finding=one.finding, status=one.status)
            for one in message.said
        ),
    )
