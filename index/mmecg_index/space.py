"""A corpus for those who work with one bundle, while it may be switched to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmecg.errors import ModelChangedError
from mmecg.search import CorpusStats, Embeddings, Filter, IndexResult, Scope, Target, WriteRequest
from mmecg.study import Study

if TYPE_CHECKING:
    from mmecg_index.corpus import Corpus
    from mmecg_index.gauges import CorpusGauges
    from mmecg_index.scope import ScopedCorpus


class SpaceView:
    """A corpus, or a scope's part of it, as long as it holds embeddings of one bundle.

    Before and after that, whatever reads or writes embeddings raises ``ModelChangedError``, so that what one bundle
    embedded never meets the embeddings of another. The index says of which space it is; what is read from the store is
    of this space, and complete if the corpus was of this space before and after; a write is checked in its
    transaction. All else is the corpus's own.

    Parameters
    ----------
    corpus : Corpus or ScopedCorpus
    fingerprint : str
        Of the bundle; the corpus may be of another one still.

    Attributes
    ----------
    fingerprint : str
    """

    def __init__(self, corpus: Corpus | ScopedCorpus, fingerprint: str) -> None:
        self._corpus = corpus
        self.fingerprint = fingerprint

    def __getattr__(self, name: str) -> Any:
        """Return what is not about embeddings."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._corpus, name)

    def search(
        self,
        queries: NDArray[np.float32],
        top_k: int,
        *,
        target: Target = "ecg",
        where: Filter | None = None,
    ) -> IndexResult:
        """Search the embeddings of one modality under a filter."""
        return self._corpus.search(queries, top_k, target=target, where=where, fingerprint=self.fingerprint)

    def embeddings(self, rows: NDArray[np.int64]) -> list[Embeddings]:
        """Return the embeddings of rows; nothing for a row that is not there."""
        self._check()
        found = self._corpus.embeddings(rows, fingerprint=self.fingerprint)
        self._check()
        return found

    def store(
        self,
        studies: Sequence[Study],
        embeddings: Sequence[Embeddings | None],
        *,
        recipes: Sequence[str | None] | None = None,
        etags: Sequence[str | None] | None = None,
        requests: Sequence[WriteRequest | None] | None = None,
    ) -> list[int]:
        """Store studies durably, all or none; see :meth:`mmecg.search.CorpusStore.store`."""
        return self._corpus.store(
            studies, embeddings, recipes=recipes, etags=etags, requests=requests, fingerprint=self.fingerprint
        )

    def stats(self) -> CorpusStats:
        """Return what it holds."""
        self._check()
        found = self._corpus.stats()
        self._check()
        return found

    def within(self, scope: Scope) -> SpaceView:
        """Return the same view of what is inside a scope."""
        return SpaceView(self._corpus.within(scope), self.fingerprint)

    @property
    def writable(self) -> bool:
        """False after a failure of the disk."""
        return self._corpus.writable

    @property
    def readable(self) -> bool:
        """False once the database was found damaged."""
        return self._corpus.readable

    def gauges(self) -> CorpusGauges:
        """Return the present state of the corpus, for whoever runs it."""
        found: CorpusGauges = self._corpus.gauges()  # type: ignore[union-attr]  # of the whole corpus only
        return found

    def probe_recall(self, modality: str, wait: Callable[[float], object]) -> float | None:
        """Return the recall of an index; see :func:`mmecg_index.gauges.probe_recall`."""
        recall: float | None = self._corpus.probe_recall(modality, wait)  # type: ignore[union-attr]
        return recall

    def _check(self) -> None:
        if self._corpus.fingerprint != self.fingerprint:
            raise ModelChangedError
