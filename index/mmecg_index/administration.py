"""An operator's work on an open corpus: erase, back up, verify, audit, another bundle. What AdminService calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from mmecg.administration import Reindexer, Reindexing
from mmecg.errors import ConfigError, NotReadyError, QueryError
from mmecg_index import audit
from mmecg_index.audit import AuditRecord
from mmecg_index.backup import Backup, back_up
from mmecg_index.corpus import Corpus
from mmecg_index.erasure import Erasure
from mmecg_index.reading import reading
from mmecg_index.verify import Verification, verify_aside

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class CorpusAdministration:
    """See the module. Safe to call from many threads.

    Parameters
    ----------
    corpus : Corpus
    backup_dir : Path, optional
        Where backups are written; without one there are none.
    bundle_dir : Path, optional
        Where bundles lie that may take over; without one there are none.
    reindexer : Reindexer, optional
        Lets them.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        backup_dir: Path | None = None,
        bundle_dir: Path | None = None,
        reindexer: Reindexer | None = None,
    ) -> None:
        self._corpus = corpus
        self._backup_dir = backup_dir
        self._bundle_dir = bundle_dir
        self._reindexer = reindexer

    def erase_subject(self, subject_id: str, *, check: bool = False) -> Erasure:
        """Erase a subject; see :meth:`mmecg_index.erasure.Eraser.erase`."""
        return self._corpus.erase_subject(subject_id, check=check)

    def back_up(self, name: str) -> Backup:
        """Write a backup of this name; see :func:`mmecg_index.backup.back_up`.

        Raises
        ------
        ConfigError
            There is no directory for backups.
        QueryError
            The name could be a path.
        """
        if self._backup_dir is None:
            raise ConfigError("the server has no directory for backups; its operator can set admin.backup_dir")
        return back_up(self._corpus.path, self._backup_dir / _check_name(name, "name"))

    def reindex(self, name: str) -> str:
        """Let the bundle of this name take over; return its fingerprint. See :mod:`mmecg_index.reembed`.

        Raises
        ------
        ConfigError
            There is no directory for bundles.
        QueryError
            The name could be a path.
        BundleError
            The bundle cannot be used.
        AlreadyExistsError
            Another one is taking over.
        """
        if self._bundle_dir is None or self._reindexer is None:
            raise ConfigError("the server has no directory for bundles; its operator can set admin.bundle_dir")
        return self._reindexer.start(self._bundle_dir / _check_name(name, "bundle"))

    def reindexing(self) -> Reindexing:
        """Return how far that is."""
        if self._reindexer is not None:
            return self._reindexer.state
        studies = self._corpus.count()
        return Reindexing(self._corpus.fingerprint, True, studies, studies)

    def verify(self, *, wanted: Callable[[], bool] = lambda: True) -> Verification:
        """Read the whole corpus, in a process of its own; see :func:`mmecg_index.verify.verify`.

        Raises
        ------
        NotReadyError
            The corpus is being closed, or nobody wants to know any more.
        """
        found = verify_aside(self._corpus.path, wanted=lambda: wanted() and not self._corpus.closed)
        if found is None:
            raise NotReadyError("the verification was ended before it was done; ask again, or run `mmecg verify`")
        return found

    def audit(
        self,
        *,
        subject_id: str | None = None,
        principal: str | None = None,
        since: datetime | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[AuditRecord]:
        """Return entries of the audit trail, oldest first; see :func:`mmecg_index.audit.select`."""
        if self._corpus.writable:
            self._corpus.audit.flush()
        with reading(self._corpus.path) as view:
            return audit.select(
                view.connection,
                view.secret,
                subject_id=subject_id,
                principal=principal,
                since=since,
                after=after,
                limit=limit,
            )


def _check_name(name: str, field: str) -> str:
    if not _NAME.fullmatch(name):
        raise QueryError(
            f"{field} is not usable, expected 1 to 64 letters, digits, dots, dashes and underscores, not a dot first",
            field=field,
        )
    return name
