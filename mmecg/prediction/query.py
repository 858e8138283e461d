"""What is asked of a predictor, and what it says about itself: the time, the subject, contradictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mmecg.ecg import Ecg
from mmecg.errors import QueryError
from mmecg.prediction.result import PredictionOptions
from mmecg.report import check_text
from mmecg.study import Study, check_id, without_zone
from mmecg.vitals import Vitals

YEAR = timedelta(days=365.25)
ZONES = timedelta(hours=14)
"""How far ahead of UTC a clock may be: a time without a zone lies in the future only beyond that."""

AGE_SLACK_YEARS = 2.0
MASKED_AGE_YEARS = 89.0
"""From here on ages are often masked ("above 89"), so they contradict nothing."""

BMI_RANGE = (7.0, 150.0)
"""Body mass index, kg/m2, beyond anything recorded of a living person: height and weight contradict each other."""


_KINDS: dict[str, tuple[type, ...]] = {
    "study": (Study, Ecg),
    "subject_id": (str, type(None)),
    "as_of": (datetime, type(None)),
    "vitals": (Vitals, type(None)),
    "note": (str,),
    "options": (PredictionOptions,),
}


@dataclass(frozen=True, kw_only=True)
class PredictionQuery:
    """One study to predict, and from when on the future begins.

    Attributes
    ----------
    study : Study or Ecg
        Its labels and its report are not read if it has an ECG: they are what is predicted.
    subject_id : str, optional
        Default that of the study; no other than that.
    as_of : datetime, optional
        Only studies strictly before it are history; default when the study was acquired. The earlier of the two counts,
        so that what was recorded after the study never explains it.
    extra_history : sequence of Study
        Earlier studies beside those of the corpus; one that the corpus has too takes its place.
    vitals : Vitals, optional
        Default those of the study.
    note : str
        What was written beside the ECG before it was recorded, such as history and indication; it counts beside the
        study's notes (:mod:`mmecg.prediction.notes`). Never the report.
    options : PredictionOptions

    Raises
    ------
    QueryError
        ``subject_id`` is not the subject of the study, or something is of another type.
    ReportError
        The note is too long or not plain text.
    """

    study: Study | Ecg
    subject_id: str | None = None
    as_of: datetime | None = None
    extra_history: Sequence[Study] = ()
    vitals: Vitals | None = None
    note: str = ""
    options: PredictionOptions = field(default_factory=PredictionOptions)

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds):
                expected = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
                raise QueryError(f"{name} is of type {type(value).__name__}, expected {expected}", field=name)
        if self.subject_id is not None:
            check_id(self.subject_id, "subject_id")
        check_text(self.note, field="note")
        if isinstance(self.study, Study) and self.subject_id not in (None, self.study.subject_id):
            raise QueryError(
                "subject_id is not the subject of the study, expected the same; leave it out, or send the recording "
                "alone",
                field="subject_id",
            )

    @property
    def ecg(self) -> Ecg | None:
        """The recording."""
        return self.study if isinstance(self.study, Ecg) else self.study.ecg

    @property
    def study_id(self) -> str | None:
        """Id of the study; None for a bare ECG."""
        return None if isinstance(self.study, Ecg) else self.study.study_id

    @property
    def subject(self) -> str | None:
        """Whom it is about."""
        return self.subject_id or (None if isinstance(self.study, Ecg) else self.study.subject_id)

    @property
    def acquired_at(self) -> datetime | None:
        """When the study was acquired."""
        return None if isinstance(self.study, Ecg) else self.study.acquired_at

    @property
    def border(self) -> datetime | None:
        """From when on the future begins: the earlier of ``as_of`` and the time of the study."""
        given = [moment for moment in (self.as_of, self.acquired_at) if moment is not None]
        return min(given, key=without_zone, default=None)

    @property
    def moment(self) -> datetime | None:
        """The border as all times are compared (:func:`mmecg.study.without_zone`)."""
        return None if self.border is None else without_zone(self.border)

    @property
    def aged_at(self) -> datetime | None:
        """When the vitals hold: when the study was acquired, else ``as_of``."""
        return self.moment if self.acquired_at is None else without_zone(self.acquired_at)

    @property
    def known_vitals(self) -> Vitals:
        """The vitals that count."""
        return self.vitals or (Vitals() if isinstance(self.study, Ecg) else self.study.vitals)


def time_flags(query: PredictionQuery) -> list[str]:
    """Return the flags that the time alone gives rise to."""
    moment, acquired_at, age = query.moment, query.acquired_at, query.known_vitals.age_years
    if moment is None:
        return ["no_as_of"]
    flags = []
    if without_zone(query.as_of or moment) > datetime.now(UTC).replace(tzinfo=None) + ZONES:
        flags.append("as_of_in_future")
    if acquired_at is not None and age is not None and is_before_birth(moment, without_zone(acquired_at), age):
        flags.append("before_birth")
    return flags


def is_before_birth(moment: datetime, aged_at: datetime, age_years: float) -> bool:
    """Return whether a moment lies before the birth of someone who was of an age at a time (ages are rounded down)."""
    oldest = 120.0 if age_years >= MASKED_AGE_YEARS else age_years
    return aged_at - moment > (oldest + 1) * YEAR


def vitals_contradict(vitals: Vitals, aged_at: datetime | None, earlier: Iterable[Study]) -> bool:
    """Return whether vitals of a time contradict each other, or age or sex contradict earlier studies."""
    if vitals.height_cm is not None and vitals.weight_kg is not None:
        index = vitals.weight_kg / (vitals.height_cm / 100) ** 2
        if not BMI_RANGE[0] <= index <= BMI_RANGE[1]:
            return True
    for study in earlier:
        was = study.vitals
        if None not in (vitals.sex, was.sex) and vitals.sex != was.sex:
            return True
        ages = (vitals.age_years, was.age_years)
        if aged_at is None or study.acquired_at is None or ages[0] is None or ages[1] is None:
            continue
        expected = ages[1] + (aged_at - without_zone(study.acquired_at)) / YEAR
        if abs(ages[0] - expected) > AGE_SLACK_YEARS and max(ages[0], ages[1]) < MASKED_AGE_YEARS:
            return True
    return False
