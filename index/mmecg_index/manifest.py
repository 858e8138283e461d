"""The manifest of a snapshot: what it is, and the size and SHA-256 of every file of it, under a seal of its own.

FAISS and polars read a file with flipped bits without complaint, so a directory is used only if each file is what the
manifest says, and the manifest is exactly the bytes that its content renders to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmecg.errors import FingerprintMismatchError, IndexFormatError

MANIFEST = "MANIFEST.json"
VERSION = 1


def write_manifest(directory: Path, content: Mapping[str, Any], *, known: Mapping[str, Any] | None = None) -> None:
    """Describe every file of a directory.

    Parameters
    ----------
    directory : Path
    content : mapping
        What is said beside version and files.
    known : mapping of str to description, optional
        Files that were described before, and are linked, not written.
    """
    known = known or {}
    names = sorted(file.name for file in directory.iterdir())
    new = [name for name in names if name not in known]
    with ThreadPoolExecutor() as pool:
        files = {**known, **dict(zip(new, pool.map(lambda name: describe_file(directory / name), new), strict=True))}
    (directory / MANIFEST).write_bytes(render_manifest({**content, "version": VERSION, "files": files}))


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the checked manifest of a snapshot; its files are not looked at.

    Raises
    ------
    IndexFormatError
        It is missing, damaged or of another version.
    """
    try:
        raw = (path / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        sealed = isinstance(manifest, dict) and manifest.pop("seal", None) is not None
        sealed = sealed and render_manifest(manifest) == raw
    except (OSError, ValueError):
        raise IndexFormatError(f"{path / MANIFEST} is missing or damaged; delete the snapshot, rebuild it") from None
    if not sealed or not str(manifest.get("format", "")).startswith("mmecg-"):
        raise IndexFormatError(f"{path} is damaged or not a snapshot of mmecg; delete it, rebuild it")
    if manifest["version"] != VERSION:
        raise IndexFormatError(f"{path} has format version {manifest['version']}, expected {VERSION}; rebuild it")
    found: dict[str, Any] = manifest
    return found


def check_snapshot(path: Path, *, format_name: str, fingerprint: str) -> dict[str, Any]:
    """Return the manifest of a snapshot, after checking every byte of its files.

    Raises
    ------
    IndexFormatError
        Something is missing, damaged, of another format or version.
    FingerprintMismatchError
        It belongs to another bundle.
    """
    manifest = read_manifest(path)
    if manifest["format"] != format_name:
        raise IndexFormatError(f"{path} is of format {manifest['format']}, expected {format_name}; delete it")
    if manifest["fingerprint"] != fingerprint:
        raise FingerprintMismatchError(got=manifest["fingerprint"], expected=fingerprint)

    def fits(item: tuple[str, Any]) -> bool:
        try:
            return bool(describe_file(path / item[0]) == item[1])
        except OSError:  # gone, maybe just now, or the disk cannot read it
            return False

    with ThreadPoolExecutor() as pool:
        for name, whole in zip(manifest["files"], pool.map(fits, manifest["files"].items()), strict=True):
            if not whole:
                raise IndexFormatError(f"{path / name} is missing or damaged; delete the snapshot, it will be rebuilt")
    return manifest


def render_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as canonical JSON, sealed with the hash of its content."""
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "seal": seal}, sort_keys=True, indent=1) + "\n").encode()


def describe_file(file: Path) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
