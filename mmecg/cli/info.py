"""``mmecg info``: versions, the model bundle, and what a corpus holds."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmecg.bundle import Bundle

_EXAMPLES = """\
examples:
  mmecg info
  mmecg info --corpus corpus/ --json
"""
_PACKAGES = (
    "torch",
    "sentence-transformers",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "polars",
    "grpcio",
    "protobuf",
    "wfdb",
)
_INDEX_ROWS = {
    "engine": "engine",
    "rows": "vectors",
    "tail_rows": "of these scanned (tail)",
    "tombstones": "removed, still there",
    "effort": "search effort",
    "recall": "recall@10 at build",
    "memory_mapped": "memory-mapped",
    "snapshot_bytes": "bytes of the snapshot",
    "snapshot_sequence": "complete up to write",
    "unsaved_commits": "writes behind the store",
}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "info",
        help="show versions, the model bundle and what a corpus holds",
        description="Show versions, the model bundle's card, and what a corpus holds.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--bundle", type=Path, help="model bundle; default the one that ships with mmecg")
    parser.add_argument("--corpus", type=Path, help="corpus folder")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is there."""
    from mmecg.bundle import load_bundle
    from mmecg.cli.output import print_json, print_table

    bundle = load_bundle(args.bundle)
    found: dict[str, dict[str, Any]] = {"versions": _versions(), "bundle": _describe(bundle)}
    indexes: dict[str, dict[str, Any]] = {}
    if args.corpus is not None:
        from mmecg_index.corpus import Corpus

        with closing(Corpus.open(args.corpus, bundle.fingerprint)) as corpus:
            found["corpus"] = {"path": str(args.corpus), **asdict(corpus.stats())}
            indexes = {name: asdict(gauges) for name, gauges in corpus.gauges().indexes.items()}
    if args.json:
        print_json(found | ({"indexes": indexes} if indexes else {}) | {"card": bundle.card})
        return 0
    for title, values in found.items():
        print_table(title, ["what", "value"], [[name, _plain(value)] for name, value in values.items()])
    if indexes:
        rows = [[what, *(_plain(index[name]) for index in indexes.values())] for name, what in _INDEX_ROWS.items()]
        print_table("indexes", ["what", *indexes], rows)
    print(bundle.card)
    return 0


def _versions() -> dict[str, str]:
    versions = {"mmecg": metadata.version("mmecg")}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _describe(bundle: Bundle) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    return {
        "path": str(bundle.path),
        "fingerprint": bundle.fingerprint,
        "ecg_encoder": bundle.encoder.ecg_encoder,
        "megabytes": round(size / 1e6, 1),
        **asdict(bundle.config.training),
    }


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
