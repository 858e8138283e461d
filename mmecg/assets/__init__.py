"""The files that ship with mmecg: the bundle, the demo corpus (PTB-XL, CC BY 4.0) and the bundle's recipe."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

DEFAULT_BUNDLE = _FOLDER / "bundle"
DEMO_CORPUS = _FOLDER / "demo_corpus.parquet"
DEFAULT_RECIPE = _FOLDER / "training.toml"
