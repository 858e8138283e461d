"""The errors of mmecg: who erred, what was wrong, and what to do next.

::

    MmecgError
    ├── InvalidInputError(ValueError)     the caller sent something unusable
    │   ├── SignalError                   an ECG: leads, shape, unit, rate, length, values
    │   ├── VitalsError                   a vital sign outside its plausible range, an unknown name
    │   ├── ReportError                   report or note text: encoding, length
    │   └── QueryError                    a query: no modality, bad filter, bad top_k, bad page token
    │       └── NotAlignedError           by text or vitals, where the model embeds ECGs only
    ├── NotFoundError                     the caller named something that is not there
    │   ├── StudyNotFoundError
    │   └── SubjectNotFoundError
    ├── AlreadyExistsError                the caller wanted to create what is there
    ├── ArtifactError                     the operator's files are not usable
    │   ├── BundleError                   a model bundle: missing file, truncated, wrong version
    │   ├── IndexFormatError              an index or corpus: damaged, foreign, wrong version
    │   └── FingerprintMismatchError      index and bundle do not share an embedding space
    ├── UnauthenticatedError              the caller did not show who it is: no token, or one that does not hold
    ├── PermissionDeniedError             the caller may not do this: its role, or the scope it is limited to
    ├── ConfigError                       the operator's configuration
    ├── NotReadyError                     loading or draining: try again
    │   └── ModelChangedError             another bundle took the place of the one that the call began with
    └── OverloadedError                   the queue is full: try again later

A message says what, got, expected and the next step, for example
``signal has 11 leads, expected 12 (missing aVF); name the leads you have``. It never carries report text,
vitals, or identifiers that the caller did not send.
"""

from __future__ import annotations


class MmecgError(Exception):
    """Base of every error that mmecg raises on purpose."""


class InvalidInputError(MmecgError, ValueError):
    """The caller's input cannot be used.

    Parameters
    ----------
    message : str
        What, got, expected, next step.
    field : str, optional
        Dotted path of the offending field, as the caller knows it (``"ecg.sampling_rate_hz"``).
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class SignalError(InvalidInputError):
    """An ECG signal cannot be used: leads, shape, unit, sampling rate, length or values."""


class VitalsError(InvalidInputError):
    """A vital sign is unknown, not a number, or outside its plausible range."""


class ReportError(InvalidInputError):
    """A report or note cannot be used: encoding or length."""


class QueryError(InvalidInputError):
    """A search query cannot be used: modality, weights, filter, ``top_k`` or page token."""


class NotAlignedError(QueryError):
    """The model embeds ECGs only: its encoder was never aligned with text and vitals."""


class NotFoundError(MmecgError):
    """What the caller named does not exist."""


class StudyNotFoundError(NotFoundError):
    """No study has the ``study_id`` that the caller named."""


class SubjectNotFoundError(NotFoundError):
    """No study belongs to the ``subject_id`` that the caller named."""


class AlreadyExistsError(MmecgError):
    """What the caller wanted to create exists already."""


class UnauthenticatedError(MmecgError):
    """The caller did not show who it is: no token or certificate, or one that is unknown, expired or of another use."""


class PermissionDeniedError(MmecgError):
    """The caller is known but may not do this. It says nothing about whether what was named exists."""


class ConflictError(MmecgError):
    """What the caller wanted to change was changed by somebody else since it was read."""


class ArtifactError(MmecgError):
    """A file that the operator provides is damaged, foreign or of another version."""


class BundleError(ArtifactError):
    """A model bundle is incomplete, damaged or of an unknown version."""


class IndexFormatError(ArtifactError):
    """An index or corpus on disk is damaged, foreign or of an unknown version."""


class FingerprintMismatchError(ArtifactError):
    """Embeddings of one bundle were offered to an index of another."""

    def __init__(self, *, got: str, expected: str, what: str = "index") -> None:
        super().__init__(
            f"{what} holds embeddings of fingerprint {got[:12]}, expected {expected[:12]} (the loaded bundle); "
            "load the bundle it was built with, or give it that bundle's embeddings with `mmecg reindex`"
        )
        self.got = got
        self.expected = expected


class ConfigError(MmecgError):
    """The configuration is not usable: unknown key, wrong type, impossible value."""


class NotReadyError(MmecgError):
    """The service is loading or draining; the same call may succeed later."""

    retry_after_s: float | None = None
    """Pause in seconds that the server asks for, if it names one."""


class ModelChangedError(NotReadyError):
    """A corpus was switched to another bundle while a call ran; sent again, it is answered by the new one."""

    retry_after_s: float | None = 0.02

    def __init__(self, message: str = "") -> None:
        super().__init__(message or "the corpus was switched to another bundle meanwhile; send the call again")


class OverloadedError(MmecgError):
    """The service's queue is full; the same call may succeed after a pause.

    Parameters
    ----------
    message : str
    limit : str
        Which limit was reached, in one word for the operator's metrics.
    retry_after_s : float, optional
        Pause that the server asks for, if it names one.
    """

    def __init__(self, message: str = "", *, limit: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_s = retry_after_s
