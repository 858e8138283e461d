"""A `FaissIndex` on disk: a directory that is written once, whole or not at all, and checked byte by byte when read.

See :mod:`mmecg_index.manifest` for the check. Files may be mapped into memory instead of read, after the check.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mmecg.errors import IndexFormatError
from mmecg_index.ann import Ann, stored_vectors
from mmecg_index.block import Block
from mmecg_index.durable import new_directory
from mmecg_index.faiss_index import FaissIndex, State, empty_block, gather
from mmecg_index.manifest import check_snapshot, read_manifest, write_manifest

FORMAT = "mmecg-index"
ANN_FILE = "segment.faiss"
_SEGMENT_FILES = (ANN_FILE, "segment_rows.npy", "segment_vectors.npy")
"""Never change while the segment does not."""


def save_index(
    index: FaissIndex, path: Path, *, sequence: int = 0, state: State | None = None, same_segment: Path | None = None
) -> None:
    """Write an index to a new directory, atomically. Searches and writes may go on; they are not included.

    Parameters
    ----------
    index : FaissIndex
    path : Path
        Must not exist; a snapshot is never changed.
    sequence : int
        Sequence number of the system of record up to which the index is complete.
    state : State, optional
        What to write, instead of the state that the index is in now.
    same_segment : Path, optional
        Snapshot of the very same segment, whose files are linked instead of written.

    Raises
    ------
    AlreadyExistsError
        ``path`` is there.
    """
    state = state or index.state
    segment, ann = state.segment, state.segment.ann
    exact = [state.tail] if ann is not None else list(state.blocks)
    with new_directory(path) as directory:
        known = {} if ann is None or same_segment is None else _link(same_segment, directory)
        _write_exact(exact, directory, index.dim)
        if ann is not None:
            np.save(directory / "segment_alive.npy", segment.alive, allow_pickle=False)
        if ann is not None and not known:
            np.save(directory / "segment_rows.npy", segment.rows, allow_pickle=False)
            if stored_vectors(ann.index) is None:
                np.save(directory / "segment_vectors.npy", segment.matrix, allow_pickle=False)
            try:
                faiss.write_index(ann.index, str(directory / ANN_FILE))
            except RuntimeError as error:  # FAISS has no other kind
                raise OSError(str(error)) from error
        content = {
            "format": FORMAT,
            "fingerprint": index.fingerprint,
            "dim": index.dim,
            "sequence": sequence,
            "count": len(state),
            "requested_factory": index.factory,
            "target_recall": index.target_recall,
            "ann": _describe_ann(ann),
            "faiss_version": faiss.__version__,
        }
        write_manifest(directory, content, known=known)


def load_index(path: Path, *, fingerprint: str, memory_map: bool = False) -> tuple[FaissIndex, int]:
    """Read an index, after checking every byte; return it with its sequence number.

    Parameters
    ----------
    path : Path
    fingerprint : str
    memory_map : bool
        Leave vectors and approximate index on the disk, and map them.

    Raises
    ------
    IndexFormatError
        Something is missing, damaged, of another format or version.
    FingerprintMismatchError
        The index holds embeddings of another bundle.
    """
    manifest = check_snapshot(path, format_name=FORMAT, fingerprint=fingerprint)
    index = FaissIndex(
        manifest["dim"], fingerprint, factory=manifest["requested_factory"], target_recall=manifest["target_recall"]
    )
    try:
        segment, tail = _read_segment(path, manifest, memory_map=memory_map), _read_exact(path, memory_map=memory_map)
        if memory_map and segment.ann is None:  # What is mapped is never added to, so it is no tail.
            segment, tail = tail, empty_block(index.dim)
        elif memory_map:
            tail = Block(tail.rows, tail.matrix.copy(), tail.alive)
        index.restore(State(segment, tail))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise IndexFormatError(f"{path} cannot be read ({type(error).__name__}); delete it, rebuild it") from error
    if len(index) != manifest["count"]:
        raise IndexFormatError(
            f"{path} holds {len(index)} vectors, expected {manifest['count']}; delete it, rebuild it"
        )
    return index, int(manifest["sequence"])


def map_segment(path: Path) -> Block:
    """Return the segment of a snapshot that this process has just written."""
    return _read_segment(path, read_manifest(path), memory_map=True)


def _read_segment(path: Path, manifest: dict[str, Any], *, memory_map: bool) -> Block:
    described = manifest["ann"]
    if described is None:
        return empty_block(manifest["dim"])
    index = faiss.read_index(str(path / ANN_FILE), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)
    matrix = stored_vectors(index)
    if matrix is None:
        matrix = _load(path / "segment_vectors.npy", memory_map=memory_map)
    ann = Ann(
        described["factory"],
        index,
        matrix,
        described["effort"],
        described["measured_recall"],
        described.get("candidates", 2),
    )
    rows, alive = (np.load(path / f"segment_{name}.npy", allow_pickle=False) for name in ("rows", "alive"))
    return Block(rows, matrix, alive, ann, mapped=memory_map)


def _describe_ann(ann: Ann | None) -> dict[str, Any] | None:
    if ann is None:
        return None
    return {
        "factory": ann.factory,
        "effort": ann.effort,
        "measured_recall": ann.recall,
        "candidates": ann.candidates,
    }


def _link(snapshot: Path, directory: Path) -> dict[str, Any]:
    """Link the files of a segment from an earlier snapshot; return their descriptions, none where that fails."""
    known = {name: said for name, said in read_manifest(snapshot)["files"].items() if name in _SEGMENT_FILES}
    try:
        for name in known:
            os.link(snapshot / name, directory / name)
    except OSError:  # a file system without links
        for name in known:
            (directory / name).unlink(missing_ok=True)
        return {}
    return known


def _write_exact(blocks: Sequence[Block], directory: Path, dim: int) -> None:
    """Write the living of some blocks, ascending by row, without holding them in memory a second time."""
    rows = np.concatenate([block.living[0] for block in blocks])
    order = np.argsort(rows, kind="stable")
    np.save(directory / "tail_rows.npy", rows[order], allow_pickle=False)
    if not len(rows):
        np.save(directory / "tail_vectors.npy", np.empty((0, dim), np.float32), allow_pickle=False)
        return
    file = open_memmap(directory / "tail_vectors.npy", mode="w+", dtype=np.float32, shape=(len(rows), dim))
    gather(blocks, order, file)
    file.flush()


def _read_exact(path: Path, *, memory_map: bool) -> Block:
    rows = np.load(path / "tail_rows.npy", allow_pickle=False)
    matrix = _load(path / "tail_vectors.npy", memory_map=memory_map)
    return Block(rows, matrix, np.ones(len(rows), np.bool_), mapped=memory_map)


def _load(file: Path, *, memory_map: bool) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.asarray(np.load(file, mmap_mode="r" if memory_map else None, allow_pickle=False))
    return found
