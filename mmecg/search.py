"""What search means: the filter, the hit, the plan that ran, and the two protocols behind which engines stand.

Words: a *row* is the stable int64 number that the corpus gives a study for its lifetime (never a position that a
removal renumbers). A *target* is the modality whose embeddings are searched. ``score`` is cosine, higher is better.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.errors import QueryError
from mmecg.quality import QUALITY_KINDS
from mmecg.study import Scope as Scope
from mmecg.study import Study
from mmecg.study import WriteRequest as WriteRequest
from mmecg.study import without_zone as without_zone
from mmecg.vitals import Sex

Target = Literal["ecg", "text", "vitals"]
MAX_TOP_K = MAX_PAGE_SIZE = 1000

METADATA_SCHEMA: dict[str, pl.DataType] = {
    "row": pl.Int64(),
    "study_id": pl.String(),
    "subject_id": pl.String(),
    "acquired_at": pl.Datetime("us"),
    "age_years": pl.Float32(),
    "sex": pl.String(),
    "site": pl.String(),
    "device": pl.String(),
    "labels": pl.List(pl.String()),
    "text": pl.String(),
    "quality": pl.List(pl.String()),
}
"""Columns of the metadata table that a filter reads, one row a study; ``text`` is the clean report in lower case."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which studies may be hits. Every given condition must hold; a condition left out allows everything.

    Attributes
    ----------
    subject_ids, study_ids, sites, devices : frozenset of str, optional
        The study's value is one of these.
    exclude_subject_ids, exclude_study_ids : frozenset of str
        The study's value is none of these.
    acquired_from, acquired_before : datetime, optional
        Half-open interval; a study without a time does not pass. Times are compared as :func:`without_zone` says.
    age_min_years, age_max_years : float, optional
        Closed interval; a study without an age does not pass.
    sex : {"female", "male"}, optional
    labels_any, labels_all, labels_none : frozenset of str
        The study has one, all, none of these labels.
    text_contains : str, optional
        The clean report contains this text, case folded. Not a regular expression.
    exclude_quality : frozenset of str
        The study has none of these quality finding kinds (see :mod:`mmecg.quality`).

    Raises
    ------
    QueryError
        A kind of quality finding that does not exist (it would let too much pass), or a string for a set of strings.
    """

    subject_ids: frozenset[str] | None = None
    exclude_subject_ids: frozenset[str] = frozenset()
    study_ids: frozenset[str] | None = None
    exclude_study_ids: frozenset[str] = frozenset()
    acquired_from: datetime | None = None
    acquired_before: datetime | None = None
    age_min_years: float | None = None
    age_max_years: float | None = None
    sex: Sex | None = None
    sites: frozenset[str] | None = None
    devices: frozenset[str] | None = None
    labels_any: frozenset[str] = frozenset()
    labels_all: frozenset[str] = frozenset()
    labels_none: frozenset[str] = frozenset()
    text_contains: str | None = None
    exclude_quality: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str) and name not in ("sex", "text_contains"):
                raise QueryError(f"filter {name} is a string, expected a set of strings", field=f"filter.{name}")
        for kind in sorted(set(self.exclude_quality).difference(QUALITY_KINDS)):
            message = f"filter exclude_quality names {kind[:40]!r}, expected one of {', '.join(QUALITY_KINDS)}"
            raise QueryError(message, field="filter.exclude_quality")

    def conditions(self) -> list[pl.Expr]:
        """Return the conditions as polars expressions over :data:`METADATA_SCHEMA`."""
        found: list[pl.Expr] = []
        for column, allowed in (
            ("subject_id", self.subject_ids),
            ("study_id", self.study_ids),
            ("site", self.sites),
            ("device", self.devices),
        ):
            if allowed is not None:
                found.append(pl.col(column).is_in(sorted(allowed)))
        for column, refused in (("subject_id", self.exclude_subject_ids), ("study_id", self.exclude_study_ids)):
            if refused:
                found.append(~pl.col(column).is_in(sorted(refused)))
        if self.acquired_from is not None:
            found.append(pl.col("acquired_at") >= without_zone(self.acquired_from))
        if self.acquired_before is not None:
            found.append(pl.col("acquired_at") < without_zone(self.acquired_before))
        if self.age_min_years is not None:
            found.append(pl.col("age_years") >= self.age_min_years)
        if self.age_max_years is not None:
            found.append(pl.col("age_years") <= self.age_max_years)
        if self.sex is not None:
            found.append(pl.col("sex") == self.sex)
        if self.labels_any:
            found.append(pl.any_horizontal(_has("labels", self.labels_any)))
        found.extend(_has("labels", self.labels_all))
        found.extend(~has for has in _has("labels", self.labels_none))
        if self.text_contains is not None:
            found.append(pl.col("text").str.contains(self.text_contains.lower(), literal=True))
        found.extend(~has for has in _has("quality", self.exclude_quality))
        return found

    def passing_rows(self, table: pl.DataFrame) -> NDArray[np.int64] | None:
        """Return the rows of a metadata table that pass, or None if the filter has no condition.

        A comparison with a missing value does not pass.
        """
        conditions = self.conditions()
        if not conditions:
            return None
        passing = table.lazy().filter(pl.all_horizontal(conditions).fill_null(False)).select("row").collect()
        return passing["row"].to_numpy().astype(np.int64, copy=False)


def _has(column: str, values: Iterable[str]) -> list[pl.Expr]:
    return [pl.col(column).list.contains(value).fill_null(False) for value in sorted(values)]


@dataclass(frozen=True)
class SearchPlan:
    """How an answer was found.

    Attributes
    ----------
    engine : str
        ``"exact"``, ``"exact_rows"`` (exact over the passing rows) or the name of the approximate index.
    exact : bool
        True if no better hit can exist.
    rows_total, rows_passing : int
        Rows in the index, and rows that passed the filter.
    """

    engine: str
    exact: bool
    rows_total: int
    rows_passing: int


@dataclass(frozen=True)
class IndexResult:
    """Rows and scores of a batch of queries.

    Attributes
    ----------
    rows : int64, shape (queries, k)
        Best first; -1 where fewer than ``top_k`` rows pass.
    scores : float32, shape (queries, k)
        Cosine; ``-inf`` beside a row of -1.
    plan : SearchPlan
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    plan: SearchPlan


class VectorIndex(Protocol):
    """A set of unit vectors under int64 rows. Safe to search from many threads, also while it changes."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the bundle whose embeddings it holds."""

    def __len__(self) -> int: ...

    def upsert(self, rows: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Add vectors, replacing those whose row is there."""

    def remove(self, rows: NDArray[np.int64]) -> int:
        """Remove rows; return how many were there."""

    def search(self, queries: NDArray[np.float32], top_k: int, *, rows: NDArray[np.int64] | None = None) -> IndexResult:
        """Return the best ``top_k`` of all rows, or of ``rows`` only; always ``top_k`` when that many pass."""


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes
    ----------
    study_id : str
    score : float
        Cosine of the query with the study's embedding of the target modality.
    modality_scores : mapping of str to float
        Cosine of the query with each embedding that the study has.
    study : Study, optional
        The study itself, when asked for.
    """

    study_id: str
    score: float
    modality_scores: Mapping[str, float] = field(default_factory=dict)
    study: Study | None = None


@dataclass(frozen=True)
class SearchResult:
    """The hits of one query, the plan that found them, and the token of the next page (empty on the last)."""

    hits: tuple[Hit, ...]
    plan: SearchPlan
    next_page_token: str = ""


@dataclass(frozen=True)
class CorpusStats:
    """What a corpus holds. ``embeddings`` counts the studies that have one of each modality."""

    studies: int
    subjects: int
    embeddings: Mapping[str, int]
    fingerprint: str
    sequence: int


Embeddings = Mapping[str, NDArray[np.float32]]
"""Of one study: modality to float32, shape (dim,), unit norm."""


class CorpusStore(Protocol):
    """The system of record: studies with their embeddings, under the fingerprint of one bundle."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the bundle whose embeddings it holds."""

    @property
    def sequence(self) -> int:
        """Number of the last write that is durable and searchable."""

    @property
    def writable(self) -> bool:
        """False while writes are refused because the storage failed; reads go on."""

    def unchanged(self, studies: Sequence[Study], recipes: Sequence[str]) -> list[bool]:
        """Return which studies are stored just so, with embeddings that were made in this way: they need no others."""

    def store(
        self,
        studies: Sequence[Study],
        embeddings: Sequence[Embeddings | None],
        *,
        recipes: Sequence[str | None] | None = None,
        etags: Sequence[str | None] | None = None,
        requests: Sequence[WriteRequest | None] | None = None,
    ) -> list[int]:
        """Store studies durably, all or none, replacing those whose id is there; return the sequence number of each.

        What is stored just so already is left alone and keeps its number.

        Parameters
        ----------
        studies : sequence of Study
        embeddings : sequence of mapping of modality to float32, shape (dim,), unit norm
            None for a study that is :meth:`unchanged`.
        recipes : sequence of str, optional
            How the bundle made the embeddings of each study; None if they came from elsewhere.
        etags : sequence of str, optional
            Replace only the study of this tag.
        requests : sequence of WriteRequest, optional
            One that comes again is answered as it was, and changes nothing.

        Raises
        ------
        ConflictError
            A study that should be unchanged, or of a certain tag, is not.
        AlreadyExistsError
            A request id stands for something else.
        PermissionDeniedError
            A study, or the one of that id that is there, is outside the scope.
        """

    def answered(self, study_id: str, request: WriteRequest) -> int | None:
        """Return the sequence number that a request with ``content`` was answered with; None if it was not."""

    def delete(self, study_id: str, *, request: WriteRequest | None = None) -> int:
        """Delete a study; return the committed sequence number. Raises ``StudyNotFoundError``."""

    def get(self, study_ids: Sequence[str], *, with_signal: bool = True) -> list[Study]:
        """Return studies in the order asked for. Raises ``StudyNotFoundError``."""

    def tagged(self, study_ids: Sequence[str], *, with_signal: bool = True) -> list[tuple[Study, str]]:
        """Return what :meth:`get` does, each study with the tag (etag) that changes with its content."""

    def study_ids(self, rows: NDArray[np.int64]) -> list[str | None]:
        """Return the id of each row; None for a row that is not there."""

    def count(self, where: Filter | None = None) -> int:
        """Return how many studies pass a filter."""

    def list_studies(
        self, *, subject_id: str | None = None, page_size: int = 100, page_token: str = ""
    ) -> tuple[list[str], str]:
        """Return study ids (of a subject: oldest first) and the next page's token. Raises ``SubjectNotFoundError``."""

    def earlier(
        self, subject_id: str, before: datetime, *, limit: int, exclude: Collection[str] = ()
    ) -> tuple[list[str], int]:
        """Return a subject's last studies strictly before a time, latest first, and how many there are without a limit.

        Raises ``SubjectNotFoundError``. Excluded ids are not counted, nor studies without a time.
        """

    def embeddings(self, rows: NDArray[np.int64]) -> list[Embeddings]:
        """Return the embeddings of rows; nothing for a row that is not there."""

    def rows(self, study_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of studies. Raises ``StudyNotFoundError``."""

    def metadata(self) -> pl.DataFrame:
        """Return the metadata table (:data:`METADATA_SCHEMA`), ascending by row; an immutable snapshot."""

    def search(
        self,
        queries: NDArray[np.float32],
        top_k: int,
        *,
        target: Target = "ecg",
        where: Filter | None = None,
    ) -> IndexResult:
        """Search the embeddings of one modality under a filter."""

    def stats(self) -> CorpusStats:
        """Return what the corpus holds."""

    def within(self, scope: Scope) -> CorpusStore:
        """Return a view that holds, for whoever asks it, only what is inside a scope; a study outside is not there."""

    def close(self) -> None:
        """Release files and locks."""


def check_top_k(top_k: int) -> int:
    """Return ``top_k`` if it is 1 to :data:`MAX_TOP_K`. Raises ``QueryError`` for anything else."""
    if not 1 <= top_k <= MAX_TOP_K:
        raise QueryError(f"top_k is {top_k}, expected 1 to {MAX_TOP_K}", field="top_k")
    return top_k


def check_vectors(vectors: NDArray[np.float32], dim: int, *, field: str = "embedding") -> NDArray[np.float32]:
    """Return unit vectors as a contiguous float32 matrix.

    Parameters
    ----------
    vectors : float32, shape (n, dim)
        Unit norm within 1e-3.

    Raises
    ------
    QueryError
        Another shape, a value that is not finite, or another norm.
    """
    matrix = np.ascontiguousarray(vectors, np.float32)
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise QueryError(f"vectors have shape {np.shape(vectors)}, expected (n, {dim})", field=field)
    squared = np.einsum("nd,nd->n", matrix, matrix)
    if not (np.abs(squared - 1) <= 2e-3).all():
        raise QueryError("a vector is not finite or not of unit length; normalise it", field=field)
    return matrix


def check_rows(rows: NDArray[np.int64], count: int | None = None) -> NDArray[np.int64]:
    """Return rows as ascending int64 without repeats. Raises ``QueryError`` unless they are ``count`` of 0 or more."""
    checked = np.asarray(rows, np.int64)
    if checked.ndim != 1 or (checked.size and checked.min() < 0) or count not in (None, len(checked)):
        raise QueryError(f"rows of shape {checked.shape} are negative, or not one a vector", field="rows")
    return checked if (np.diff(checked) > 0).all() else np.unique(checked)
