"""What the prediction report says and in which order; and the targets that its figures stand beside."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

from mmecg.evaluation.results import Row


@dataclass(frozen=True)
class Target:
    """A figure to reach.

    Attributes
    ----------
    key : str
        Row.
    words : str
        What it is.
    least, most : float
        Within which the value should lie.
    wanted : str
        The same in words.
    excludes_zero : bool
        Whether the interval must lie on one side of 0.
    """

    key: str
    words: str
    least: float
    most: float
    wanted: str
    excludes_zero: bool = False

    def met(self, row: Row) -> bool:
        """Return whether a row reaches it."""
        return self.least <= row.value <= self.most and not (self.excludes_zero and row.low <= 0 <= row.high)


_ANY = float("inf")


def _history_targets(suffix: str, words: str) -> tuple[Target, ...]:
    controls = {"shuffled": "shuffled history", "other_patient": "another patient's history",
                "count_only": "number of earlier studies"}  # fmt: skip
    wanted = "≥ +0.03, interval excludes 0"
    gain = Target(
        f"history_gain/macro_auroc{suffix}", f"gain from history{words}", 0.03, _ANY, wanted, excludes_zero=True
    )
    return gain, *(
        Target(f"control_{name}/macro_auroc{suffix}", f"control: {what}{words}", -0.005, 0.005, "within ± 0.005")
        for name, what in controls.items()
    )


TARGETS: tuple[Target, ...] = (
    Target("single/all", "macro-AUROC, all statements, current ECG only", 0.93, _ANY, "≥ 0.93"),
    Target("single/superclass", "macro-AUROC, superclasses, current ECG only", 0.932, _ANY, "≥ 0.932"),
    *_history_targets("", ""),
    *_history_targets("/cross_fitted", ", cross-fitted"),
    Target("ece/macro", "calibration error, mean of labels", 0, 0.015, "≤ 0.015"),
    Target("ece/worst_subgroup", "calibration error, worst subgroup", 0, 0.04, "≤ 0.04"),
    Target("calibration/slope", "calibration slope", 0.95, 1.05, "0.95 to 1.05"),
    Target("conformal90/coverage", "coverage of 90 % conformal sets", 0.89, 0.91, "0.89 to 0.91"),
    Target("conformal90/worst_subgroup", "coverage, worst subgroup", 0.88, _ANY, "≥ 0.88"),
    Target("abstain20/error_reduction", "errors avoided by abstaining on 20 %", 0.40, _ANY, "≥ 0.40"),
    Target("ood/auroc", "telling what is no ordinary ECG", 0.95, _ANY, "≥ 0.95"),
    Target("gap/sex", "AUROC gap between the sexes", 0, 0.02, "≤ 0.02"),
    Target("gap/age", "AUROC gap between age groups", 0, 0.02, "≤ 0.02"),
)  # fmt: skip
"""Of the issue that this evaluation answers; those of the service's speed are measured elsewhere."""


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes
    ----------
    key : str
        Anchor.
    title : str
    text : tuple of str
        Paragraphs: what is measured, and how to read it.
    rows : tuple of str
        First words of the rows.
    pictures, tables : tuple of (name, caption)
    """

    key: str
    title: str
    text: tuple[str, ...]
    rows: tuple[str, ...]
    pictures: tuple[tuple[str, str], ...] = ()
    tables: tuple[tuple[str, str], ...] = ()

    def has(self, key: str) -> bool:
        """Return whether a row belongs to the section."""
        return key.split("/")[0] in self.rows


def load_sections() -> tuple[Section, ...]:
    """Read ``prediction_sections.toml``."""
    text = (resources.files("mmecg.evaluation") / "prediction_sections.toml").read_text("utf-8")
    return tuple(
        Section(
            key=entry["key"],
            title=entry["title"],
            text=tuple(entry["text"]),
            rows=tuple(entry["rows"]),
            pictures=tuple(entry.get("pictures", {}).items()),
            tables=tuple(entry.get("tables", {}).items()),
        )
        for entry in tomllib.loads(text)["section"]
    )
