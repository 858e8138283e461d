"""What is known of a study's labels: what it lists, else what its report says, else nothing but its ECG.

Rules, stated once:

* **Labels first.** A listed label is there, whatever its likelihood, and so is what it implies
  (:meth:`~mmecg.labels.vocabulary.Vocabulary.closure`, superclasses). In a study that lists at least one SCP
  statement, one that is *not* listed counts as absent, as in the benchmark of PTB-XL and as in training; in a study
  that lists only labels of another kind, it is unknown. ``"snomed:164889003"`` names a code of another vocabulary.
* **Else the report.** A finding that it mentions has the probability that the shipped text evidence learnt for a report
  that speaks so (present, negated, possible, …); what follows from a stated finding is at least as likely; what a
  stated finding excludes (``mmecg/labels/serial.toml``) is absent. What the report does not mention is unknown.
* **Else nothing**, and only the ECG of the study speaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ReportError
from mmecg.labels.assertion import MinedReport
from mmecg.labels.change import load_serial_table
from mmecg.labels.report_miner import ReportMiner
from mmecg.labels.vocabulary import Relation, load_vocabulary
from mmecg.labels.weights import load_text_evidence
from mmecg.prediction.result import SUPERCLASS_PREFIX, Source
from mmecg.study import Study

_REMEMBERED = 4096
_NORMAL = "NORM"


class KnownLabels:
    """Tells what is known of a study. Safe to use from several threads.

    Parameters
    ----------
    labels : tuple of str
        What values are wanted for; superclasses as ``"superclass/MI"``.
    miner : ReportMiner, optional
        Default the one of the rules that ship.
    """

    def __init__(self, labels: tuple[str, ...], miner: ReportMiner | None = None) -> None:
        self.labels = labels
        self._miner = miner
        self._column = {label: index for index, label in enumerate(labels)}
        self._vocabulary = load_vocabulary()
        self._superclass = {finding.id: finding.superclass for finding in self._vocabulary.findings}
        self._excludes = load_serial_table().excludes
        self._of_report = lru_cache(_REMEMBERED)(self._read_report)

    def of(self, study: Study) -> tuple[Source, NDArray[np.float32]]:
        """Return what is known, and from where.

        Parameters
        ----------
        study : Study

        Returns
        -------
        source : {"labels", "report", "ecg"}
        known : float32, shape (labels,)
            Probability that the study has the label; NaN where nothing is known.
        """
        listed = self.findings(study.labels)
        if listed:
            coded = any(name in self._column for name in study.labels)
            return "labels", self._of_listed(listed, absent=0.0 if coded else np.nan)
        if study.report is not None:
            known = self._of_report(study.report.raw)
            if np.isfinite(known).any():
                return "report", known
        return "ecg", np.full(len(self.labels), np.nan, np.float32)

    def findings(self, names: Iterable[str]) -> frozenset[str]:
        """Return the findings that label names stand for; a name that the vocabulary lacks is passed over."""
        found: set[str] = set()
        for name in names:
            system, colon, code = name.partition(":")
            if name in self._superclass:
                found.add(name)
            elif colon and system in self._vocabulary.systems:
                found.update(_implied_by(code, system))
        return frozenset(found)

    def text_logits(self, study: Study) -> NDArray[np.float64] | None:
        """Return what the text of a study without an ECG says of every label: float64, shape (labels,), log-odds.

        The text is the report and the notes that were certainly written before the ECG, read by the shipped text
        evidence, which gives what is *not* mentioned a probability too. A superclass is as likely as one of its
        statements, taken as independent. None if there is no text.
        """
        texts = [study.report.raw if study.report else "", *(note.text for note in study.notes_before_ecg())]
        text = "\n".join(filter(str.strip, texts))
        if not text:
            return None
        evidence = load_text_evidence()
        said = self._mine(text)
        stated = dict(zip(evidence.labels, evidence.log_odds([said.assertions])[0].astype(np.float64), strict=True))
        # ln(1 - p) of a superclass is the sum of those of its statements.
        none: dict[str, float] = {}
        for label, logit in stated.items():
            if name := self._superclass.get(label):
                none[name] = none.get(name, 0.0) - float(np.logaddexp(0, logit))
        stated |= {SUPERCLASS_PREFIX + name: np.log(-np.expm1(total)) - total for name, total in none.items()}
        return np.array([stated[label] for label in self.labels], np.float64)

    def implied(self, findings: Iterable[str]) -> frozenset[str]:
        """Return the labels that follow from findings, themselves included."""
        there = self._vocabulary.closure(findings)
        above = {SUPERCLASS_PREFIX + name for finding in there if (name := self._superclass[finding])}
        return frozenset(label for label in (*there, *above) if label in self._column)

    def _of_listed(self, listed: frozenset[str], *, absent: float) -> NDArray[np.float32]:
        known = np.full(len(self.labels), absent, np.float32)
        for label in self.implied(listed):
            known[self._column[label]] = 1.0
        return _frozen(known)

    def _read_report(self, raw: str) -> NDArray[np.float32]:
        known = np.full(len(self.labels), np.nan, np.float32)
        said = self._mine(raw).labels
        values = {one.finding: (one.value, one.probability) for one in said}
        stated = self._vocabulary.closure(finding for finding, (value, _) in values.items() if value)
        for finding in self._superclass:
            if stated & self._excludes.get(finding, frozenset()) or any(
                finding in self._excludes.get(other, frozenset()) for other in stated
            ):
                self._raise(known, finding, 0.0)
        for finding, (value, probability) in values.items():
            likely = (0.5 if value is None else float(value)) if probability is None else probability
            if value is False:
                self._set(known, finding, likely)
            else:
                for label in self.implied([finding]):
                    self._raise(known, label, likely)
        if _NORMAL in stated:
            for label in self.labels:
                if label.startswith(SUPERCLASS_PREFIX) and label != SUPERCLASS_PREFIX + _NORMAL:
                    self._raise(known, label, 0.0)
        return _frozen(known)

    def _mine(self, text: str) -> MinedReport:
        self._miner = self._miner or ReportMiner()
        try:
            return self._miner.mine_report(text)
        except ReportError:  # longer than is mined, or not plain text: it says nothing
            return MinedReport()

    def _set(self, known: NDArray[np.float32], label: str, value: float) -> None:
        if label in self._column:
            known[self._column[label]] = value

    def _raise(self, known: NDArray[np.float32], label: str, value: float) -> None:
        """Set a value unless a greater one is there."""
        if label in self._column:
            known[self._column[label]] = np.fmax(known[self._column[label]], value)


@lru_cache(_REMEMBERED)
def _implied_by(code: str, system: str) -> frozenset[str]:
    """Return the findings that are there wherever a foreign code holds, which is exactly or narrower than they."""
    rows = load_vocabulary().mappings(system)
    return frozenset(row.finding for row in rows if row.code == code and row.finding and row.relation in _SAYS)


_SAYS = (Relation.EXACT, Relation.NARROWER)


def _frozen(known: NDArray[np.float32]) -> NDArray[np.float32]:
    known.flags.writeable = False
    return known
