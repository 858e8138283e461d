"""Sources of studies for commands that read many: what :func:`open_studies` knows, and NumPy files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmecg.cli.inputs import StudySource, is_numpy, open_studies
from mmecg.errors import InvalidInputError, MmecgError

if TYPE_CHECKING:
    from mmecg.datasets.bulk import BulkReport
    from mmecg.study import Study

PTB_XL_RATES = (100, 500)
KINDS = (
    "PTB-XL folder, MIMIC-IV-ECG folder, .parquet table of studies, .npy or .npz file of recordings, or folder of WFDB "
    "records"
)


def open_source(path: Path, *, sampling_rate_hz: float | None = None) -> StudySource:
    """Open what :func:`open_studies` opens, or a NumPy file (see :func:`mmecg.datasets.numpy_arrays.read_numpy`).

    Parameters
    ----------
    path : Path
    sampling_rate_hz : float, optional
        Of a NumPy file; of PTB-XL, which of its two copies (100).

    Raises
    ------
    InvalidInputError
        It holds no studies, or the rate is not for this kind of source.
    SignalError
        The NumPy file cannot be read.
    """
    if is_numpy(path):
        return _NumpyFile(path, sampling_rate_hz)
    if sampling_rate_hz is None:
        return open_studies(path)
    if not (path / "ptbxl_database.csv").is_file():
        raise InvalidInputError(
            f"--sampling-rate-hz does not apply to {path}, expected it with a PTB-XL folder (100 or 500) or a NumPy "
            "file; leave it out"
        )
    if sampling_rate_hz not in PTB_XL_RATES:
        raise InvalidInputError(f"--sampling-rate-hz is {sampling_rate_hz:g}, expected 100 or 500 for PTB-XL")
    return open_studies(path, sampling_rate_hz=int(sampling_rate_hz))


class _NumpyFile:
    """The recordings of a NumPy file; one that cannot be read refuses the file, so nothing is skipped."""

    def __init__(self, path: Path, sampling_rate_hz: float | None) -> None:
        import numpy as np

        self._path, self._rate = path, sampling_rate_hz
        self._read = 0
        next(self._studies(), None)  # refuses a file that cannot be read before its shape is asked for
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        shape = (stored["signal"] if path.suffix.lower() == ".npz" else stored).shape
        self._count = shape[0] if len(shape) == 3 else 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Study]:
        self._read = 0
        for study in self._studies():
            self._read += 1
            yield study

    @property
    def report(self) -> BulkReport:
        import polars as pl

        from mmecg.datasets.bulk import BulkReport

        return BulkReport(self._read, pl.DataFrame(schema={"record": pl.String(), "reason": pl.String()}))

    def _studies(self) -> Iterator[Study]:
        from mmecg.datasets.numpy_arrays import read_numpy

        done = 0
        try:
            for study in read_numpy(self._path, sampling_rate_hz=self._rate):
                yield study
                done += 1
        except MmecgError as error:
            raise InvalidInputError(f"recording {done} (from 0) of {self._path.name} cannot be used: {error}") from None
