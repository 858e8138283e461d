"""Everything a corpus or a backup holds, read and compared: what is damaged, in words that name no study and nobody.

Any number of processes may use the corpus meanwhile. What is checked: SQLite's own structure, and that of every index
against its table; the schema; each study (checksum, decoded, its time and site against their columns, its content
hash); each embedding (checksum, length, space); each index snapshot (every byte, and every vector in it against the
store); the audit trail; and of a backup the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import polars as pl

from mmecg.administration import Verification as Verification
from mmecg.embedding import MODALITIES
from mmecg.errors import ArtifactError, IndexFormatError, MmecgError
from mmecg_index import audit, schema
from mmecg_index.aside import run_aside, step_aside
from mmecg_index.codec import content_hash, decode_study, metadata_record, study_checksum, vector_checksum
from mmecg_index.database import sort_time
from mmecg_index.reading import FILE, View, reading
from mmecg_index.snapshot import load_index
from mmecg_index.table import METADATA, load_table

BACKUP_MANIFEST = "BACKUP.json"
BACKUP_FORMAT, BACKUP_VERSION = "mmecg-backup", 1
_LOG = logging.getLogger(__name__)
_BATCH = 10_000
_DELETED_WITHIN_S = 1.0


def verify(directory: Path) -> Verification:
    """Read a corpus or a backup as a whole.

    Parameters
    ----------
    directory : Path

    Raises
    ------
    IndexFormatError
        There is no corpus. (One that is damaged is described by the findings.)
    """
    if not (directory / FILE).is_file():
        raise IndexFormatError(f"{directory} holds no corpus and no backup; name the directory of one")
    findings = Counter[str]()
    if (directory / BACKUP_MANIFEST).exists():
        findings += Counter(_check_files(directory))
    counts: dict[str, Any] = {}
    try:
        with reading(directory) as view:
            counts["sequence"] = view.sequence
            for part in (_check_structure, _check_studies, _check_embeddings, _check_snapshots, _check_audit):
                try:
                    counts |= part(view, directory, findings)
                except (sqlite3.DatabaseError, ArtifactError) as error:
                    findings[f"the database cannot be read further ({type(error).__name__})"] += 1
    except ArtifactError:
        findings["the database cannot be opened: its header, schema or settings are damaged"] += 1
    lines = (text if count == 1 else f"{text} ({count} times)" for text, count in findings.items())
    return Verification(**counts, findings=tuple(lines))


def verify_aside(directory: Path, *, wanted: Callable[[], bool]) -> Verification | None:
    """Do what :func:`verify` does in a process of its own, so that it holds up nobody; None if it was ended.

    Parameters
    ----------
    directory : Path
    wanted : callable
        Once it returns False, the process is ended.
    """
    found = run_aside(__name__, [str(directory)], wanted=wanted)
    if found is None:
        return None
    state: dict[str, Any] = json.loads(found)
    return Verification(**state | {"findings": tuple(state["findings"])})


def read_backup_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a backup.

    Raises
    ------
    IndexFormatError
        It is missing, damaged, or of another version.
    """
    try:
        raw = (directory / BACKUP_MANIFEST).read_bytes()
        manifest = json.loads(raw)
        sealed = isinstance(manifest, dict) and manifest.pop("seal", None) is not None
        sealed = sealed and render_backup_manifest(manifest) == raw
    except (OSError, ValueError):
        sealed, manifest = False, {}
    if not sealed or manifest.get("format") != BACKUP_FORMAT:
        raise IndexFormatError(f"{directory} is no backup, or its {BACKUP_MANIFEST} is damaged; use another one")
    if manifest["version"] != BACKUP_VERSION:
        raise IndexFormatError(
            f"backup has version {manifest['version']}, expected {BACKUP_VERSION}; use a later release"
        )
    found: dict[str, Any] = manifest
    return found


def render_backup_manifest(manifest: dict[str, Any]) -> bytes:
    """Return a manifest as canonical JSON, sealed with the hash of its content."""
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps(manifest | {"seal": seal}, sort_keys=True, indent=1) + "\n").encode()


def describe_file(file: Path) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _check_files(directory: Path) -> list[str]:
    try:
        manifest = read_backup_manifest(directory)
    except IndexFormatError:
        return [f"{BACKUP_MANIFEST} is damaged or of another version"]
    return [
        f"{name} is missing or not as it was written (SHA-256)"
        for name, expected in manifest["files"].items()
        if not (directory / name).is_file() or describe_file(directory / name) != expected
    ]


def _check_structure(view: View, _: Path, findings: Counter[str]) -> dict[str, Any]:
    for (line,) in view.connection.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            findings[f"SQLite: {_without_values(line)}"] += 1
    for table, *_rest in view.connection.execute("PRAGMA foreign_key_check"):
        findings[f"SQLite: a row of {table} refers to one that is not there"] += 1
    if view.version == schema.VERSION and _schema_of(view.connection) != _expected_schema():
        findings["the schema is not that of this version"] += 1
    (newest,) = view.connection.execute(
        "SELECT max(sequence) FROM (SELECT max(sequence) sequence FROM studies UNION ALL "
        "SELECT max(sequence) FROM deletions)"
    ).fetchone()
    if (newest or 0) > view.sequence:
        findings["the sequence number is older than what is stored"] += 1
    return {}


def _without_values(line: str) -> str:
    """Return a line of the integrity check, without stored values."""
    structural = ("*** in database", "row ", "wrong #", "Tree ", "On tree")
    return line if line.startswith(structural) else line.split(":")[0][:80]


def _schema_of(connection: sqlite3.Connection) -> dict[str, tuple[str, str, frozenset[str]]]:
    """Return each table, index and trigger; tables by their columns, because a migration words them differently."""
    found = {}
    for name, kind, table, sql in connection.execute("SELECT name, type, tbl_name, sql FROM sqlite_master"):
        columns = frozenset(
            map(str, connection.execute('SELECT name, type, "notnull", pk FROM pragma_table_info(?)', (name,)))
        )
        found[name] = (kind, table, columns if kind == "table" else frozenset({" ".join((sql or "").split())}))
    return found


def _expected_schema() -> dict[str, tuple[str, str, frozenset[str]]]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        schema.create_tables(connection, fingerprint="", dim=1)
        return _schema_of(connection)
    finally:
        connection.close()


def _check_studies(view: View, _: Path, findings: Counter[str]) -> dict[str, Any]:
    since_2 = "site, content_hash" if view.version >= 2 else "NULL, NULL"
    cursor = view.connection.execute(
        f"SELECT study_id, subject_id, sort_time, document, crc, signal, {since_2} FROM studies"  # noqa: S608
    )
    count = 0
    for study_id, subject_id, time, document, crc, signal, stored_site, content in cursor:
        count += 1
        expected = (
            study_checksum(study_id, subject_id, document) if view.version >= 2 else zlib.crc32(document.encode())
        )
        if crc != expected:
            findings["a study's document does not fit its checksum"] += 1
            continue
        try:
            study = decode_study(study_id, subject_id, document, signal)
            if (signal is None) != ("ecg" not in json.loads(document)):
                findings["a study's signal is missing, or belongs to no recording"] += 1
            if time != sort_time(study.acquired_at):
                findings["a study's time does not fit its document"] += 1
            if view.version >= 2 and stored_site != study.site:
                findings["a study's site does not fit its document"] += 1
            if content is not None and content != content_hash(study, view.secret):
                findings["a study does not fit its content hash"] += 1
        except MmecgError:
            findings["a study cannot be decoded"] += 1
    return {"studies": count}


def _check_embeddings(view: View, _: Path, findings: Counter[str]) -> dict[str, Any]:
    count = 0
    for row, modality, fingerprint, vector, crc in view.connection.execute(
        "SELECT row, modality, fingerprint, vector, crc FROM embeddings"
    ):
        count += 1
        expected = vector_checksum(row, modality, fingerprint, vector) if view.version >= 2 else zlib.crc32(vector)
        if crc != expected:
            findings["an embedding does not fit its checksum"] += 1
        elif modality not in MODALITIES or (fingerprint == view.fingerprint and len(vector) != 4 * view.dim):
            findings["an embedding is of an unknown modality or length"] += 1
    return {"embeddings": count}


def _check_snapshots(view: View, directory: Path, findings: Counter[str]) -> dict[str, Any]:
    count = 0
    for path in sorted((directory / "index").glob("*-*")):
        if path.name.startswith("."):
            continue
        check = _check_table if path.name.startswith(f"{METADATA}-") else _check_snapshot
        try:
            problem = check(view, path)
        except ArtifactError as error:
            if _goes(path):  # a server has put a newer one in its place
                continue
            problem = "is damaged" if isinstance(error, IndexFormatError) else "is of another bundle"
        count += 1
        if problem:
            findings[f"index snapshot {path.name} {problem}; it is rebuilt when the corpus is opened"] += 1
    return {"snapshots": count}


def _goes(path: Path) -> bool:
    """Return whether somebody is deleting a snapshot; its files go before its directory does."""
    end = monotonic() + _DELETED_WITHIN_S
    while path.exists():
        if monotonic() > end:
            return False
        sleep(0.01)
    return True


def _check_snapshot(view: View, path: Path) -> str:
    """Return what is wrong; empty if each vector is the store's, and those up to its sequence number are all there."""
    index, saved = load_index(path, fingerprint=view.fingerprint)
    modality = path.name.rpartition("-")[0]
    if saved > view.sequence:
        return ""  # written since the view was taken
    found: dict[int, bytes] = {}
    for block in index.state.blocks:
        rows, positions = block.living
        found |= {row: block.matrix[at].tobytes() for row, at in zip(rows.tolist(), positions.tolist(), strict=True)}
    cursor = view.connection.execute(
        "SELECT row, vector FROM studies JOIN embeddings USING (row) "
        "WHERE sequence <= ? AND modality = ? AND fingerprint = ?",
        (saved, modality, view.fingerprint),
    )
    while batch := cursor.fetchmany(_BATCH):
        for row, vector in batch:
            if found.pop(row, None) != np.frombuffer(vector, "<f4").astype(np.float32).tobytes():
                return "does not hold the vectors of the store"
    return "holds vectors that the store has not" if found.keys() - _changed_since(view, saved) else ""


def _check_table(view: View, path: Path) -> str:
    """Return what is wrong; empty if each row is what the store says, and those up to its sequence number are there."""
    table, saved = load_table(path, fingerprint=view.fingerprint)
    if saved > view.sequence:
        return ""
    cursor = view.connection.execute(
        "SELECT row, study_id, subject_id, document, crc FROM studies WHERE sequence <= ? ORDER BY row", (saved,)
    )
    known: set[int] = set()
    while batch := cursor.fetchmany(_BATCH):
        rows = [row for row, *_ in batch]
        there = table.filter(pl.col("row").is_between(rows[0], rows[-1]) & pl.col("row").is_in(rows))
        if there["row"].to_list() != rows:
            return "does not hold the studies of the store"
        known.update(rows)
        for found, (row, study_id, subject_id, document, crc) in zip(there.iter_rows(), batch, strict=True):
            whole = view.version < 2 or study_checksum(study_id, subject_id, document) == crc
            if whole and metadata_record(row, study_id, subject_id, document) != found:
                return "does not hold what the store says"
    return "holds studies that the store has not" if set(table["row"]) - known - _changed_since(view, saved) else ""


def _changed_since(view: View, saved: int) -> set[int]:
    """Return the rows that were deleted or replaced after a sequence number."""
    query = (
        "SELECT row FROM deletions WHERE sequence > :saved UNION ALL SELECT row FROM studies WHERE sequence > :saved"
    )
    return {row for (row,) in view.connection.execute(query, {"saved": saved})}


def _check_audit(view: View, _: Path, findings: Counter[str]) -> dict[str, Any]:
    if view.version < 2:
        return {}
    state = audit.verify(view.connection, view.secret)
    findings.update(state.findings)
    return {"audit_entries": state.entries, "audit_seal": state.seal}


def _main() -> None:
    step_aside()
    print(json.dumps(asdict(verify(Path(sys.argv[1])))))


if __name__ == "__main__":
    _main()
