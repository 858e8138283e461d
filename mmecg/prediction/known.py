"""What is known of a study's labels: what it lists, else what its report says, else nothing but its ECG.

Rules, stated once:

* **Labels first.** A listed label is there, whatever its likelihood, and so is what it implies
  (:meth:`~mmecg.labels.vocabulary.Vocabulary.closure`, superclasses). In a study that lists at least one SCP
  statement, one that is *not* listed counts as absent, as in the benchmark of PTB-XL and as in training; in a study
  that lists only labels of another kind, its report tells, or it is unknown. ``"snomed:164889003"`` names a code of
  another vocabulary.
* **Else the report**, if anything is found in it: every label has the probability that the shipped text evidence
  (:mod:`mmecg.labels.evidence`) learnt for a report that speaks so (present, negated, possible, …), or that is silent.
  On earlier studies of PTB-XL that served the history better than leaving open what is not mentioned (log loss 0.0587
  against 0.0590, with labels instead 0.0589; 0.0593 from the ECG alone).
* **Else nothing**, and only the ECG of the study speaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ReportError
from mmecg.labels.assertion import LabelAssertion
from mmecg.labels.report_miner import ReportMiner
from mmecg.labels.vocabulary import Relation, load_vocabulary
from mmecg.labels.weights import load_text_evidence
from mmecg.prediction.calibration import probability_of
from mmecg.prediction.result import SUPERCLASS_PREFIX, Source
from mmecg.study import Study

_REMEMBERED = 4096


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
        self._read = by_digest(self._read_text)

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
        if any(name in self._column for name in study.labels):
            return "labels", self._of_listed(listed, np.zeros(len(self.labels), np.float32))
        said = self._of_report(study.report.raw) if study.report is not None else None
        rest = np.full(len(self.labels), np.nan, np.float32) if said is None else said
        if listed:
            return "labels", self._of_listed(listed, rest)
        return "ecg" if said is None else "report", rest

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

    def text_logits(self, text: str) -> NDArray[np.float64] | None:
        """Return what a text says of every label: float64, shape (labels,), log-odds; None if it says nothing."""
        return self._read(text)

    def mined(self, text: str) -> tuple[LabelAssertion, ...]:
        """Return what a text says, finding by finding; nothing of a text that is too long or not plain."""
        self._miner = self._miner or ReportMiner()
        try:
            return tuple(self._miner.mine_report(text).assertions)
        except ReportError:
            return ()

    def implied(self, findings: Iterable[str]) -> frozenset[str]:
        """Return the labels that follow from findings, themselves included."""
        there = self._vocabulary.closure(findings)
        above = {SUPERCLASS_PREFIX + name for finding in there if (name := self._superclass[finding])}
        return frozenset(label for label in (*there, *above) if label in self._column)

    def _of_listed(self, listed: frozenset[str], rest: NDArray[np.float32]) -> NDArray[np.float32]:
        there = self.implied(listed)
        return np.where([label in there for label in self.labels], np.float32(1), rest)

    def _of_report(self, raw: str) -> NDArray[np.float32] | None:
        logits = self._read(raw)
        return None if logits is None else probability_of(logits).astype(np.float32)

    def _read_text(self, text: str) -> NDArray[np.float64] | None:
        """Return log-odds of every label; a superclass is as likely as one of its statements, taken as independent."""
        said = self.mined(text)
        if not said:
            return None
        evidence = load_text_evidence()
        stated = dict(zip(evidence.labels, evidence.log_odds([said])[0].astype(np.float64), strict=True))
        none: dict[str, float] = {}  # ln(1 - p) of a superclass: the sum of those of its statements
        for label, logit in stated.items():
            if name := self._superclass.get(label):
                none[name] = none.get(name, 0.0) - float(np.logaddexp(0, logit))
        stated |= {SUPERCLASS_PREFIX + name: np.log(-np.expm1(total)) - total for name, total in none.items()}
        logits = np.array([stated[label] for label in self.labels], np.float64)
        logits.flags.writeable = False
        return logits


def by_digest(work_out: Callable[[str], NDArray[np.float64] | None]) -> Callable[[str], NDArray[np.float64] | None]:
    """Remember what was worked out for the last texts without keeping any: by digest, under a key of this process."""
    secret, lock = os.urandom(32), Lock()
    held: dict[bytes, NDArray[np.float64] | None] = {}

    def remembered(text: str) -> NDArray[np.float64] | None:
        digest = blake2b(text.encode("utf-8", "surrogatepass"), key=secret, digest_size=16).digest()
        with lock:
            if digest in held:
                held[digest] = value = held.pop(digest)  # now the last used
                return value
        value = work_out(text)
        with lock:
            held[digest] = value
            while len(held) > _REMEMBERED:
                del held[next(iter(held))]
        return value

    return remembered


@lru_cache(_REMEMBERED)
def _implied_by(code: str, system: str) -> frozenset[str]:
    """Return the findings that are there wherever a foreign code holds, which is exactly or narrower than they."""
    rows = load_vocabulary().mappings(system)
    return frozenset(row.finding for row in rows if row.code == code and row.finding and row.relation in _SAYS)


_SAYS = (Relation.EXACT, Relation.NARROWER)
