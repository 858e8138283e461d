"""A `FaissIndex` on disk: a directory that is written once, whole or not at all, and checked byte by byte when read.

FAISS reads a file with flipped bits or a zeroed tail without complaint, so every file's SHA-256 stands in
``MANIFEST.json``, and the manifest itself must be exactly the bytes that its content renders to, seal included.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mmecg.errors import FingerprintMismatchError, IndexFormatError
from mmecg_index.ann import Ann, stored_vectors
from mmecg_index.block import Block
from mmecg_index.durable import new_directory
from mmecg_index.faiss_index import FaissIndex, State, empty_block

FORMAT = "mmecg-index"
VERSION = 1
MANIFEST = "MANIFEST.json"
ANN_FILE = "segment.faiss"


def save_index(index: FaissIndex, path: Path, *, sequence: int = 0) -> None:
    """Write the index to a new directory, atomically. Searches and writes may go on; they are not included.

    Parameters
    ----------
    index : FaissIndex
    path : Path
        Must not exist; a snapshot is never changed.
    sequence : int
        Sequence number of the system of record up to which the index is complete.

    Raises
    ------
    AlreadyExistsError
        ``path`` is there.
    """
    state = index.state
    segment, tail = state.segment, state.tail
    tail_rows, tail_at = tail.living
    arrays: dict[str, NDArray[Any]] = {"tail_rows.npy": tail_rows, "tail_vectors.npy": tail.matrix[tail_at]}
    if segment.ann is not None:
        arrays |= {"segment_rows.npy": segment.rows, "segment_alive.npy": segment.alive}
        if stored_vectors(segment.ann.index) is None:
            arrays["segment_vectors.npy"] = segment.matrix
    with new_directory(path) as directory:
        for name, array in arrays.items():
            np.save(directory / name, array, allow_pickle=False)
        if segment.ann is not None:
            faiss.write_index(segment.ann.index, str(directory / ANN_FILE))
        files = {file.name: _describe(file) for file in sorted(directory.iterdir())}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": index.fingerprint,
            "dim": index.dim,
            "sequence": sequence,
            "count": len(state),
            "requested_factory": index.factory,
            "target_recall": index.target_recall,
            "ann": _describe_ann(segment.ann),
            "faiss_version": faiss.__version__,
            "files": files,
        }
        (directory / MANIFEST).write_bytes(_render(manifest))


def load_index(path: Path, *, fingerprint: str) -> tuple[FaissIndex, int]:
    """Read an index, after checking every byte; return it with its sequence number.

    Raises
    ------
    IndexFormatError
        Something is missing, damaged, of another format or version.
    FingerprintMismatchError
        The index holds embeddings of another bundle.
    """
    manifest = read_manifest(path)
    if manifest["fingerprint"] != fingerprint:
        raise FingerprintMismatchError(got=manifest["fingerprint"], expected=fingerprint)
    for name, expected in manifest["files"].items():
        if not (path / name).is_file() or _describe(path / name) != expected:
            raise IndexFormatError(f"{path / name} is missing or damaged; delete the snapshot, it will be rebuilt")
    index = FaissIndex(
        manifest["dim"], fingerprint, factory=manifest["requested_factory"], target_recall=manifest["target_recall"]
    )
    try:
        index.restore(State(_read_segment(path, manifest), _read_tail(path)))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise IndexFormatError(f"{path} cannot be read ({type(error).__name__}); delete it, rebuild it") from error
    if len(index) != manifest["count"]:
        raise IndexFormatError(
            f"{path} holds {len(index)} vectors, expected {manifest['count']}; delete it, rebuild it"
        )
    return index, int(manifest["sequence"])


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the checked manifest of a snapshot.

    Raises
    ------
    IndexFormatError
        It is missing, damaged, of another format or version.
    """
    try:
        raw = (path / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        sealed = isinstance(manifest, dict) and manifest.pop("seal", None) is not None and _render(manifest) == raw
    except (OSError, ValueError):
        raise IndexFormatError(f"{path / MANIFEST} is missing or damaged; delete the snapshot, rebuild it") from None
    if not sealed or manifest.get("format") != FORMAT:
        raise IndexFormatError(f"{path} is damaged or not an index of mmecg; delete it, rebuild it")
    if manifest["version"] != VERSION:
        raise IndexFormatError(f"{path} has format version {manifest['version']}, expected {VERSION}; rebuild it")
    found: dict[str, Any] = manifest
    return found


def _render(manifest: dict[str, Any]) -> bytes:
    """Return the manifest as canonical JSON, sealed with the hash of its content."""
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps(manifest | {"seal": seal}, sort_keys=True, indent=1) + "\n").encode()


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _describe_ann(ann: Ann | None) -> dict[str, Any] | None:
    return None if ann is None else {"factory": ann.factory, "effort": ann.effort, "measured_recall": ann.recall}


def _read_segment(path: Path, manifest: dict[str, Any]) -> Block:
    described = manifest["ann"]
    if described is None:
        return empty_block(manifest["dim"])
    index = faiss.read_index(str(path / ANN_FILE))
    matrix = stored_vectors(index)
    if matrix is None:
        matrix = np.load(path / "segment_vectors.npy", allow_pickle=False)
    ann = Ann(described["factory"], index, matrix, described["effort"], described["measured_recall"])
    rows, alive = (np.load(path / f"segment_{name}.npy", allow_pickle=False) for name in ("rows", "alive"))
    return Block(rows, matrix, alive, ann)


def _read_tail(path: Path) -> Block:
    rows, matrix = (np.load(path / f"tail_{name}.npy", allow_pickle=False) for name in ("rows", "vectors"))
    return Block(rows, matrix, np.ones(len(rows), np.bool_))
