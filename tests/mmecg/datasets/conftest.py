"""Shared folders for the dataset tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # With recent pandas, the import of the wfdb package itself warns of deprecations.
    warnings.simplefilter("ignore")
    import wfdb

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


@pytest.fixture
def wrsamp() -> Callable[..., None]:
    """Return ``wfdb.wrsamp``, whose own use of recent pandas warns of deprecations."""

    def write(*arguments: object, **options: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wfdb.wrsamp(*arguments, **options)

    return write


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"../shared/data/{name} is not here")
        return path

    return find
