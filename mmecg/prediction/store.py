"""Weights of the heads as one safetensors file: frozen dataclasses of arrays, written field by field.

An array field becomes a tensor ``outer/inner/field``; text, numbers, tuples of text and truth values go to the
metadata as JSON; a field that is a dataclass itself is written the same way, one level down. A field that is None is
left out and read as None.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmecg.errors import BundleError

T = TypeVar("T")


def save_heads(path: Path, heads: Any) -> None:
    """Write a dataclass of arrays.

    Parameters
    ----------
    path : Path
        Its folder is made if missing; the file is replaced as a whole.
    heads : dataclass instance
    """
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray[Any, Any]] = {}
    plain: dict[str, Any] = {}
    _flatten(heads, "", tensors, plain)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, {"plain": json.dumps(plain, ensure_ascii=False)})
    part.replace(path)


def load_heads(path: Path, kind: type[T]) -> T:
    """Read what :func:`save_heads` wrote.

    Raises
    ------
    BundleError
        The file is missing, damaged, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            plain = json.loads((file.metadata() or {})["plain"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _build(kind, "", tensors, plain)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BundleError(f"prediction heads {path} cannot be used ({reason}); run scripts/train-heads") from None


def _flatten(value: Any, prefix: str, tensors: dict[str, Any], plain: dict[str, Any]) -> None:
    for item in dataclasses.fields(value):
        name, content = prefix + item.name, getattr(value, item.name)
        if dataclasses.is_dataclass(content):
            _flatten(content, name + "/", tensors, plain)
        elif isinstance(content, np.ndarray):
            tensors[name] = np.ascontiguousarray(content)
        elif content is not None:
            plain[name] = content


def _build(kind: type[T], prefix: str, tensors: dict[str, Any], plain: dict[str, Any]) -> T:
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        name, hint = prefix + item.name, hints[item.name]
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        nested: Any = next((option for option in options if dataclasses.is_dataclass(option)), None)
        if nested is not None:
            there = any(key.startswith(name + "/") for key in (*tensors, *plain))
            wanted = there or type(None) not in options
            found[item.name] = _build(nested, name + "/", tensors, plain) if wanted else None
        elif name in tensors:
            found[item.name] = tensors[name]
        elif name in plain:
            found[item.name] = tuple(plain[name]) if isinstance(plain[name], list) else plain[name]
        elif type(None) in options:
            found[item.name] = None
        else:
            raise KeyError(f"no {name}")
    return kind(**found)
