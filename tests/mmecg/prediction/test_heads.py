from __future__ import annotations

import dataclasses
import json
import shutil
import types
import typing
from pathlib import Path

import numpy as np
import pytest

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.bundle import Bundle, load_bundle
from mmecg.errors import BundleError
from mmecg.prediction.heads import HEADS_FILE, PredictionHeads, read_heads, write_heads


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of the shipped bundle without heads."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, path)
    shutil.rmtree(path / "prediction", ignore_errors=True)
    return dataclasses.replace(load_bundle(), path=path)


def made_up(kind: type, rng: np.random.Generator, **given: object) -> typing.Any:
    """Return a dataclass with values of the right types, which differ from one another."""
    values = dict(given)
    for name, hint in typing.get_type_hints(kind).items():
        if name in values:
            continue
        if isinstance(hint, types.UnionType):
            hint = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(hint):
            values[name] = made_up(typing.cast(type, hint), rng)
        elif hint in (int, float):
            values[name] = hint(rng.integers(1, 1000))
        elif typing.get_origin(hint) is tuple:
            values[name] = (str(rng.integers(1000)), "é")
        else:
            values[name] = rng.normal(size=(2, 3)).astype(np.float32)
    return kind(**values)


def flat(value: object, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for field in dataclasses.fields(typing.cast(typing.Any, value)):
        content = getattr(value, field.name)
        nested = flat(content, f"{prefix}{field.name}/") if dataclasses.is_dataclass(content) else {}
        found |= nested or {prefix + field.name: content}
    return found


def test_a_bundle_without_heads_says_how_to_get_them(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no prediction heads; run scripts/train-heads"):
        read_heads(bundle)


def test_round_trip_leaves_the_fingerprint(bundle: Bundle) -> None:
    heads = made_up(PredictionHeads, np.random.default_rng(0), fingerprint=bundle.fingerprint)
    write_heads(bundle, heads)
    again = read_heads(bundle)
    got, expected = flat(again), flat(heads)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(got[name], value, err_msg=name)
        else:
            assert got[name] == value, name
    manifest = json.loads((bundle.path / "MANIFEST.json").read_text())
    assert manifest["fingerprint"] == bundle.fingerprint
    assert HEADS_FILE in manifest["files"]


def test_heads_of_another_bundle_are_refused(bundle: Bundle) -> None:
    heads = made_up(PredictionHeads, np.random.default_rng(1), fingerprint="f" * 64)
    with pytest.raises(BundleError, match="fit them for this one"):
        write_heads(bundle, heads)
    write_heads(dataclasses.replace(bundle, fingerprint="f" * 64), heads)
    with pytest.raises(BundleError, match="are for bundle ffffffffffff…"):
        read_heads(bundle)


def test_a_damaged_file_is_named(bundle: Bundle) -> None:
    path: Path = bundle.path / HEADS_FILE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(BundleError, match=r"heads\.safetensors cannot be used"):
        read_heads(bundle)
