"""`Predictor`: encoder, heads and corpus joined. A study in, an answer out.

Which modality does what:

=================  ===================================================================================================
ECG                the prediction; without one, the report gives it, else notes and vitals over the prevalence
report, labels     of the study that is predicted: not read if it has an ECG, for they are the answer
vitals             age, sex, height and weight add to the ECG's log-odds; left out and flagged where they contradict
                   each other or an earlier study
notes              written before the ECG: what they state enters like an earlier study without a date, known by its
                   labels (:mod:`mmecg.prediction.notes`)
earlier studies    labels, else mined labels of the report, and the stored embedding of the ECG; any of them may lack
others             votes of the coded studies of other subjects
=================  ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from mmecg.bundle import Bundle
from mmecg.ecg import Ecg
from mmecg.errors import FingerprintMismatchError, QueryError
from mmecg.labels.logistic import logit
from mmecg.labels.report_miner import ReportMiner
from mmecg.prediction import answer
from mmecg.prediction.answer import Scores
from mmecg.prediction.asked import AskedLabel, LabelResolver
from mmecg.prediction.changes import find_changes
from mmecg.prediction.earlier import Earlier, find_earlier
from mmecg.prediction.examined import EXAMINERS, Examined, examine
from mmecg.prediction.heads import PredictionHeads, read_heads
from mmecg.prediction.history import HistoryEffect, Prior, build_tokens, last_known
from mmecg.prediction.known import KnownLabels
from mmecg.prediction.measured import Measurement
from mmecg.prediction.notes import Noted, read_notes, with_notes
from mmecg.prediction.query import PredictionQuery, time_flags, vitals_contradict
from mmecg.prediction.result import (
    Method,
    NotesEvidence,
    Prediction,
    PredictionOptions,
    PriorEvidence,
    Saliency,
    Uncertainty,
)
from mmecg.prediction.serial import compare_with_latest
from mmecg.prediction.support import unsupported
from mmecg.prediction.vitals_head import vitals_channels
from mmecg.prediction.vote import CohortVotes, Vote
from mmecg.quality import QualityFinding
from mmecg.search import CorpusStore
from mmecg.study import Study
from mmecg.vitals import Vitals

NOVEL_FROM = 0.5
NOTES_ALONE = 0.4
"""What a text of the past says of an ECG that nobody has, as a share of what it would say as its report, in log-odds
beyond prevalence. With the last report as the note, log loss was least there in folds 1-7: 0.120; 0.149 at 1."""


@dataclass(frozen=True)
class _Case:
    """One query on its way: what was asked, found and computed so far."""

    query: PredictionQuery
    asked: tuple[AskedLabel, ...]
    site: NDArray[np.float64]
    earlier: Earlier
    priors: list[Prior]
    noted: Noted | None
    text: NDArray[np.float64] | None
    implausible: bool
    features: NDArray[np.float32] | None
    embedding: NDArray[np.float32]
    looking: Future[Examined] | None

    @property
    def examined(self) -> Examined | None:
        """What was read in the recording."""
        return None if self.looking is None else self.looking.result()

    @property
    def told(self) -> list[Prior]:
        """The earlier studies, and behind them the notes unless these give the answer themselves."""
        alone = self.features is None and self.text is None
        return with_notes(self.priors, None if alone else self.noted)


class Predictor:
    """Predicts labels of a study from its ECG, the subject's earlier studies, and similar studies of others.

    Safe to call from many threads.

    Parameters
    ----------
    bundle : Bundle
    corpus : CorpusStore, optional
        Where history and neighbours come from.
    heads : PredictionHeads, optional
        Default those of the bundle.
    miner : ReportMiner, optional
        Reads reports of earlier studies without labels; default the one that ships.

    Raises
    ------
    BundleError
        The bundle has no heads.
    FingerprintMismatchError
        Corpus or heads are of another bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        corpus: CorpusStore | None = None,
        *,
        heads: PredictionHeads | None = None,
        miner: ReportMiner | None = None,
    ) -> None:
        self.heads = heads or read_heads(bundle)
        for what, part in (("heads", self.heads), ("corpus", corpus)):
            if part is not None and part.fingerprint != bundle.fingerprint:
                raise FingerprintMismatchError(got=part.fingerprint, expected=bundle.fingerprint, what=what)
        self.bundle = bundle
        self.corpus = corpus
        self._ecg_features: Callable[[Sequence[Ecg]], NDArray[np.float32]] = bundle.encoder.ecg_features
        self.known = KnownLabels(self.heads.labels, miner)
        self._labels = LabelResolver(self.heads.labels)
        self._examiners = ThreadPoolExecutor(EXAMINERS, thread_name_prefix="examine")
        cohort = self.heads.cohort
        self._votes = None if corpus is None else CohortVotes(corpus, self.known, cohort.k, cohort.minimum_studies)

    def predict(
        self,
        study: Study | Ecg,
        *,
        subject_id: str | None = None,
        as_of: datetime | None = None,
        extra_history: Sequence[Study] = (),
        vitals: Vitals | None = None,
        note: str = "",
        options: PredictionOptions | None = None,
    ) -> Prediction:
        """Predict one study; the arguments are those of :class:`PredictionQuery`.

        Raises
        ------
        QueryError
            A label without a head, or a study of another subject among ``extra_history``.
        """
        query = PredictionQuery(
            study=study,
            subject_id=subject_id,
            as_of=as_of,
            extra_history=extra_history,
            vitals=vitals,
            note=note,
            options=options or PredictionOptions(),
        )
        return self.predict_many([query])[0]

    def predict_many(self, queries: Sequence[PredictionQuery]) -> list[Prediction]:
        """Predict several studies, in their order; all ECGs are encoded in one batch.

        Raises
        ------
        QueryError
            As :meth:`predict`.
        """
        cases = self._encode(
            [
                (
                    query,
                    self._labels.resolve(query.options.labels),
                    self._labels.site_prevalence(query.options.prevalence),
                    find_earlier(query, self.corpus),
                )
                for query in queries
            ]
        )
        return [self._answer(case) for case in cases]

    def explain(self, study: Study | Ecg, label: str, *, method: Method = "integrated_gradients") -> Saliency:
        """Say which moments of which leads speak for a label; see :mod:`mmecg.prediction.explain`.

        Raises
        ------
        QueryError
            No ECG, a label without a head, or an unknown method.
        """
        from mmecg.prediction.explain import explain

        ecg = study if isinstance(study, Ecg) else study.ecg
        if ecg is None:
            raise QueryError("study has no ECG, expected one to explain; give the recording", field="study")
        return explain(self.bundle.encoder, self.heads.single, self.heads.labels, ecg, [label], method=method)[0]

    def sharing(self, ecg_features: Callable[[Sequence[Ecg]], NDArray[np.float32]]) -> Predictor:
        """Return the same predictor with a tower that other callers use too, such as one that joins their batches.

        Parameters
        ----------
        ecg_features : callable
            Recordings to float32, shape (batch, features), as :meth:`mmecg.embedding.Encoder.ecg_features`.
        """
        shared = copy(self)
        shared._ecg_features = ecg_features
        return shared

    def over(self, corpus: CorpusStore) -> Predictor:
        """Return the same predictor with history and neighbours from another corpus, such as a view of its own."""
        other, cohort = copy(self), self.heads.cohort
        other.corpus = corpus
        other._votes = CohortVotes(corpus, self.known, cohort.k, cohort.minimum_studies)
        return other

    def _encode(
        self, waiting: Sequence[tuple[PredictionQuery, tuple[AskedLabel, ...], NDArray[np.float64], Earlier]]
    ) -> list[_Case]:
        ecgs = [ecg for query, *_, earlier in waiting for ecg in (query.ecg, *earlier.ecgs) if ecg is not None]
        looking = [None if query.ecg is None else self._examiners.submit(examine, query.ecg) for query, *_ in waiting]
        features = iter(self._ecg_features(ecgs)) if ecgs else iter(())
        dim = self.heads.embedding.weight.shape[0]
        cases = []
        for (query, asked, site, earlier), found in zip(waiting, looking, strict=True):
            own = next(features) if query.ecg is not None else None
            added = [next(features) for _ in earlier.ecgs]
            rows = [one for one in (own, *added) if one is not None]
            vectors = list(self.bundle.encoder.embed_features(np.stack(rows))) if rows else []
            embedding = vectors.pop(0) if own is not None else np.full(dim, np.nan, np.float32)
            earlier = earlier.with_embeddings(vectors).without_copies(embedding)
            priors = earlier.priors(self.known, query.moment) if query.moment is not None else []
            implausible = vitals_contradict(query.known_vitals, query.aged_at, earlier.studies)
            noted = read_notes(query, self.known)
            report = None if own is not None or isinstance(query.study, Ecg) else query.study.report
            text = self.known.text_logits(report.raw) if report is not None else None
            cases.append(_Case(query, asked, site, earlier, priors, noted, text, implausible, own, embedding, found))
        return cases

    def _answer(self, case: _Case) -> Prediction:
        query, options, ecg = case.query, case.query.options, case.query.ecg
        quality = case.examined.quality if case.examined else ()
        reading = case.examined.reading if case.examined else None
        missing = self._missing(ecg, quality)
        single, spread = self._single(case)
        vote = self._vote(case)
        alone = single if vote is None else self.heads.cohort.apply(single, vote.shares[None], vote.studies)
        join = self.heads.join_superclasses if ecg is not None else self.heads.raise_superclasses
        alone, history = join(alone), self._history(case, alone).through(join)
        scores, quantiles = self._scores(case, alone, history.logits, spread, voted=vote is not None)
        labels, columns = answer.predict_labels(case.asked, scores, missing, has_ecg=ecg is not None)
        changes = find_changes(labels, [one.columns for one in case.asked], case.priors)
        uncertainty = self._uncertainty(case, scores, quantiles, missing)
        poor = ecg is not None and answer.is_poor(ecg, quality)
        evidence = answer.prior_evidence(case.asked, columns, case.told, history, case.embedding, missing)
        reasons = _abstain_reasons(uncertainty, options.abstain_share, poor=poor)
        novel = ["novel"] if "novelty" in reasons else []
        wants_vote = options.use_cohort and ecg is not None
        every = len(labels) >= len(self.heads.labels)
        return Prediction(
            labels=labels,
            changes=changes,
            priors=evidence[: len(case.priors)],
            neighbours=answer.neighbour_evidence(case.asked, columns, vote),
            measurements=(*self._measurements(case), *(reading.measurements if reading else ())),
            comparison=compare_with_latest(reading, case.priors, case.earlier, self.corpus, changes, complete=every),
            uncertainty=uncertainty,
            abstained=bool(reasons),
            abstain_reasons=tuple(reasons),
            flags=(*_flags(case), *(["no_cohort"] if wants_vote and vote is None else []), *novel),
            history_found=case.earlier.found,
            history_used=len(case.priors),
            history_refused=case.earlier.refused,
            notes=_notes_evidence(case.noted, evidence[len(case.priors) :]),
            as_of=query.border,
            level=options.level,
            fingerprint=self.heads.fingerprint,
        )

    def _single(self, case: _Case) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return log-odds and their spread, shape (1, labels): of ECG and vitals, or report, or vitals and notes."""
        channels = vitals_channels([Vitals() if case.implausible else case.query.known_vitals])
        if case.features is not None:
            logits, spread = self.heads.single.logits(case.features[None])
            return self.heads.vitals.apply(logits, channels), spread
        rates = logit(self.heads.prevalence)
        logits = self.heads.vitals.apply_alone(rates[None], channels) if case.text is None else case.text[None]
        noted = self.known.text_logits(case.noted.text) if case.noted is not None and case.text is None else None
        if noted is not None:
            logits = logits + NOTES_ALONE * (noted - rates)
        return logits, np.zeros_like(logits)

    def _vote(self, case: _Case) -> Vote | None:
        query, limited = case.query, case.query.options.cohort_before_as_of
        if self._votes is None or case.features is None or not query.options.use_cohort:
            return None
        if limited and query.moment is None:  # of nobody can be said that they were earlier
            return None
        before = query.moment if limited else None
        return self._votes.of(case.embedding, query.subject, query.study_id, before=before)

    def _history(self, case: _Case, alone: NDArray[np.float64]) -> HistoryEffect:
        heads = self.heads
        tokens = build_tokens(
            alone, case.embedding[None], [case.told], [case.earlier.found], heads.embedding, heads.prevalence
        )
        return heads.history.apply(alone, tokens)

    def _scores(
        self,
        case: _Case,
        alone: NDArray[np.float64],
        joined: NDArray[np.float64],
        spread: NDArray[np.float64],
        *,
        voted: bool,
    ) -> tuple[Scores, NDArray[np.float32]]:
        """Return the scores, and the calibration quantiles of the uncertainty, of the route that was taken."""
        route = self.heads.confidence.cohort if voted else self.heads.confidence.alone
        low, high = route.venn_abers.interval(joined)
        category = last_known([case.told], len(self.heads.labels))
        level = case.query.options.level
        sets = route.conformal.sets(joined, category, level)
        together = {count for one in case.asked for count in range(2, len(one.columns) + 1)}
        needed = {count: answer.join_level(level, count) for count in together}
        absent_of = {count: route.conformal.sets(joined, category, each)[0, :, 0] for count, each in needed.items()}
        if case.features is None:  # nothing was calibrated for this: nothing is excluded
            low, high, sets = np.zeros_like(low), np.ones_like(high), np.ones_like(sets)
            absent_of = {count: np.ones(sets.shape[1], np.bool_) for count in together}
        ends = spread[0], low[0], high[0], sets[0], self.heads.prevalence, case.site
        return Scores(alone[0], joined[0], *ends, self.heads.superclass, absent_of), route.uncertainty

    def _uncertainty(
        self, case: _Case, scores: Scores, quantiles: NDArray[np.float32], missing: dict[int, str]
    ) -> Uncertainty:
        errors = answer.expected_errors(scores.joined, missing)
        novelty, kind = 0.0, ""
        if case.features is not None and case.examined is not None:
            found = self.heads.novelty.judge(case.features[None], case.examined.summary[None])
            novelty, kind = float(found.probability[0]), found.kind[0]
        return Uncertainty(
            expected_errors=errors,
            rank=answer.rank_among(errors, quantiles),
            spread=float(scores.spread.mean()),
            novelty=novelty,
            novelty_kind=kind if novelty >= NOVEL_FROM else "",
        )

    def _missing(self, ecg: Ecg | None, quality: Sequence[QualityFinding]) -> dict[int, str]:
        """Return the columns that a recording does not support, and why."""
        if ecg is None:
            return {}
        reasons = unsupported(ecg, self.heads.labels, quality=quality)
        return {column: reasons[label] for column, label in enumerate(self.heads.labels) if label in reasons}

    def _measurements(self, case: _Case) -> tuple[Measurement, ...]:
        if case.features is None:
            return ()
        value, low, high = self.heads.age.predict(case.features[None], case.query.options.level)
        return (Measurement(name="age_years", value=float(value[0]), low=float(low[0]), high=float(high[0])),)


def _notes_evidence(noted: Noted | None, found: Sequence[PriorEvidence]) -> NotesEvidence | None:
    """Return what notes did: beside an ECG or a report as the one token ``found``, else in their place."""
    if noted is None:
        return None
    weight, effects = (found[0].weight, found[0].effects) if found else (float("nan"), {})
    return NotesEvidence(weight=weight, effects=effects, said=noted.said)


def _flags(case: _Case) -> list[str]:
    query = case.query
    flags = time_flags(query) if query.options.use_history or query.as_of else []
    flags += [flag for flag in case.earlier.flags if flag not in flags]
    if case.implausible:
        flags.append("implausible_vitals")
    if case.noted is not None:
        flags.append("from_notes")
    if query.ecg is None:
        flags.append("no_ecg")
    elif not answer.is_calibrated_for(query.ecg):
        flags.append("not_calibrated")
    return flags


def _abstain_reasons(uncertainty: Uncertainty, share: float, *, poor: bool) -> list[str]:
    reasons = ["quality"] if poor else []
    if uncertainty.novelty >= NOVEL_FROM:
        reasons.append("novelty")
    if uncertainty.rank > 1 - share:
        reasons.append("uncertain")
    return reasons
