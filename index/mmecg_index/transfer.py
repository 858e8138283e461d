"""A corpus in formats that other programs read: Parquet for studies (and embeddings), WFDB for signals; and back.

::

    export/
      MANIFEST.json               format, version, fingerprint, sequence, counts, size and SHA-256 of every table
      studies-00000.parquet …     up to 1,000 studies each, columns of mmecg.datasets.parquet and those of EXTRA
      records/3f/3f0a…hea, .dat   one WFDB record a study (format 16), named by a hash of the study id

``mmecg.datasets.parquet.read_studies`` reads the tables, without signals. Nothing is lost: a signal that lies on no
recorder's grid, which WFDB's whole numbers would round, stands in its table as float32; so do, in ISO 8601, times with
a zone, which a column of times could not keep. Row numbers, sequence numbers, the audit trail and what was erased are
of the corpus that was exported and stay there.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmecg.datasets import parquet
from mmecg.datasets.wfdb import read_wfdb
from mmecg.datasets.wfdb_write import write_wfdb
from mmecg.ecg import Ecg
from mmecg.embedding import MODALITIES
from mmecg.errors import IndexFormatError, MmecgError
from mmecg.study import Study, without_zone
from mmecg_index.codec import check_study, decode_study, decode_vector
from mmecg_index.database import select_in
from mmecg_index.durable import new_directory, sync
from mmecg_index.reading import View, reading

FORMAT, VERSION = "mmecg-export", 1
MANIFEST = "MANIFEST.json"
PART_STUDIES = 1000

EXTRA: dict[str, pl.DataType] = {
    "schema_version": pl.Int64(),
    "acquired_at_iso": pl.String(),
    "notes_written_at_iso": pl.List(pl.String()),
    "record": pl.String(),
    "signal_float32": pl.Binary(),
    "signal_crc32": pl.Int64(),
    **{f"embedding_{modality}": pl.List(pl.Float32()) for modality in MODALITIES},
}
"""Columns beside those of :data:`mmecg.datasets.parquet.SCHEMA`.

``acquired_at_iso``, ``notes_written_at_iso``: where a time has a zone. ``record``: path of the WFDB record.
``signal_float32``: of a signal that is in no record, float32, little endian, one recorded lead after the other.
``signal_crc32``: CRC-32 of a signal's values in that form, wherever they are. ``embedding_…``: if they were exported.
"""


@dataclass(frozen=True)
class Exported:
    """What an export holds.

    Attributes
    ----------
    studies, records, float32_signals : int
        Studies; signals as WFDB records; signals as float32 in the tables.
    sequence : int
        Sequence number of the corpus.
    fingerprint : str
        Of the embeddings; empty if there are none.
    """

    studies: int
    records: int
    float32_signals: int
    sequence: int
    fingerprint: str


def export_corpus(corpus: Path, target: Path, *, with_embeddings: bool = False) -> Exported:
    """Write a corpus as it is at this moment; whoever uses it reads and writes on.

    Parameters
    ----------
    corpus : Path
    target : Path
        Directory to make.
    with_embeddings : bool
        Write the embeddings too, so that an import with the same bundle need not compute them.

    Raises
    ------
    AlreadyExistsError
        ``target`` is there, and not an empty directory.
    IndexFormatError
        There is no corpus, or it is damaged.
    """
    with new_directory(target.absolute()) as directory, reading(corpus) as view:
        files: dict[str, Any] = {}
        studies = records = floats = 0
        for number, part in enumerate(_parts(view)):
            rows = [_row(view, each, directory, with_embeddings=with_embeddings) for each in part]
            name = f"studies-{number:05d}.parquet"
            table = pl.DataFrame(rows, schema=parquet.SCHEMA | EXTRA, orient="row")
            table.write_parquet(directory / name, compression="zstd")
            files[name] = _describe(directory / name)
            studies += len(rows)
            records += table["record"].count()
            floats += table["signal_float32"].count()
        exported = Exported(studies, records, floats, view.sequence, view.fingerprint if with_embeddings else "")
        manifest = {"format": FORMAT, "version": VERSION, "dim": view.dim, "files": files, **vars(exported)}
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in directory.rglob("*"):
            sync(path)
    return exported


class Export:
    """An export to import from: iterate over its studies as often as you like.

    Parameters
    ----------
    directory : Path

    Raises
    ------
    IndexFormatError
        It is none, or of a newer version.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            known = manifest["format"] == FORMAT
            version = int(manifest["version"])
        except (OSError, ValueError, KeyError, TypeError):
            known, version = False, 0
        if not known:
            raise IndexFormatError(f"{directory} is no export of mmecg, or its {MANIFEST} is damaged; export again")
        if version > VERSION:
            raise IndexFormatError(
                f"{directory} has format version {version}, expected at most {VERSION}; import it with a later release"
            )
        try:
            self._files: Mapping[str, Any] = dict(manifest["files"])
            self.fingerprint = str(manifest["fingerprint"])
            self.dim = int(manifest["dim"])
            self._studies = int(manifest["studies"])
        except (ValueError, KeyError, TypeError):
            raise IndexFormatError(f"{directory / MANIFEST} is damaged; export again") from None

    def __len__(self) -> int:
        return self._studies

    def __iter__(self) -> Iterator[tuple[Study, dict[str, NDArray[np.float32]]]]:
        """Yield studies, and their embeddings where they were exported, in the order they were stored.

        Raises
        ------
        IndexFormatError
            A table or a signal is missing or not as it was written.
        """
        for name, expected in sorted(self._files.items()):
            file = self.directory / name
            if not file.is_file() or _describe(file) != expected:
                raise IndexFormatError(f"{file} is missing or not as it was written (SHA-256); export again")
            for row in pl.read_parquet(file).iter_rows(named=True):
                if row["schema_version"] > VERSION:
                    raise IndexFormatError(f"{file} is of a newer version than {VERSION}; use a later release")
                yield self._study(row), _embeddings(row)

    def _study(self, row: Mapping[str, Any]) -> Study:
        try:
            study = parquet.study_of_row(row)
            ecg = self._ecg(row)
        except (MmecgError, OSError, ValueError) as error:
            raise IndexFormatError(
                f"a study of {self.directory} cannot be read ({type(error).__name__}); export again"
            ) from error
        if row["acquired_at_iso"] is not None:
            study = replace(study, acquired_at=datetime.fromisoformat(row["acquired_at_iso"]))
        times = row["notes_written_at_iso"] or [None] * len(study.notes)
        notes = [
            note if time is None else replace(note, written_at=datetime.fromisoformat(time))
            for note, time in zip(study.notes, times, strict=True)
        ]
        return replace(study, ecg=ecg, notes=tuple(notes))

    def _ecg(self, row: Mapping[str, Any]) -> Ecg | None:
        if row["record"] is not None:
            ecg = read_wfdb(self.directory / row["record"])
        elif row["signal_float32"] is not None:
            values = np.frombuffer(row["signal_float32"], "<f4").reshape(len(row["leads"]), -1)
            ecg = Ecg.from_array(values, sampling_rate_hz=row["sampling_rate_hz"], leads=row["leads"])
        else:
            return None
        if zlib.crc32(_values(ecg)) != row["signal_crc32"]:
            raise IndexFormatError("a signal is not as it was written (checksum)")
        return ecg


def _parts(view: View) -> Iterator[list[tuple[Any, ...]]]:
    cursor = view.connection.execute(
        "SELECT row, study_id, subject_id, document, crc, signal FROM studies ORDER BY row"
    )
    while part := cursor.fetchmany(PART_STUDIES):
        yield part


def _row(view: View, stored: Sequence[Any], directory: Path, *, with_embeddings: bool) -> dict[str, Any]:
    number, study_id, subject_id, document, crc, signal = stored
    if view.version >= 2:
        check_study(study_id, subject_id, document, crc)
    study = decode_study(study_id, subject_id, document, signal)
    row: dict[str, Any] = dict.fromkeys(EXTRA) | parquet.row_of_study(_without_zones(replace(study, ecg=None)))
    row |= {"schema_version": VERSION, "acquired_at_iso": _zoned(study.acquired_at)}
    times = [_zoned(note.written_at) for note in study.notes]
    row["notes_written_at_iso"] = times if any(times) else None
    if study.ecg is not None:
        row |= _signal(study, study.ecg, directory)
    if with_embeddings:
        query = "SELECT row, modality, fingerprint, vector, crc FROM embeddings"
        for embedding in select_in(view.connection, query, "row", [number]):
            if embedding[2] == view.fingerprint:
                row[f"embedding_{embedding[1]}"] = decode_vector(*embedding).tolist()
    return row


def _signal(study: Study, ecg: Ecg, directory: Path) -> dict[str, Any]:
    name = hashlib.blake2b(study.study_id.encode(), digest_size=12).hexdigest()
    record = Path("records") / name[:2] / name
    (directory / record).parent.mkdir(parents=True, exist_ok=True)
    written = write_wfdb(directory / record, ecg, acquired_at=study.acquired_at)
    values = _values(ecg)
    return {
        "sampling_rate_hz": ecg.sampling_rate_hz,
        "samples": ecg.signal.shape[1],
        "leads": list(ecg.leads),
        "record": record.as_posix() if written else None,
        "signal_float32": None if written else values,
        "signal_crc32": zlib.crc32(values),
    }


def _embeddings(row: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    found = {modality: row[f"embedding_{modality}"] for modality in MODALITIES}
    return {modality: np.array(values, np.float32) for modality, values in found.items() if values is not None}


def _values(ecg: Ecg) -> bytes:
    return ecg.signal[ecg.lead_mask].astype("<f4").tobytes()


def _without_zones(study: Study) -> Study:
    """Return the study with times as a column of times takes them."""
    notes = [
        note if note.written_at is None else replace(note, written_at=without_zone(note.written_at))
        for note in study.notes
    ]
    moment = study.acquired_at
    return replace(study, acquired_at=None if moment is None else without_zone(moment), notes=tuple(notes))


def _zoned(moment: datetime | None) -> str | None:
    return None if moment is None or moment.tzinfo is None else moment.isoformat()


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
