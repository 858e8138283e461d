"""Configuration: TOML into frozen dataclasses, strictly.

Every program has one dataclass whose fields are its keys; nested dataclasses are TOML tables. An unknown key, a
wrong type or an impossible value is a :class:`mmecg.errors.ConfigError`. Nothing reads the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmecg.errors import ConfigError

T = TypeVar("T")

Precision = Literal["auto", "float32", "bfloat16"]
"""What the ECG tower computes in; ``"auto"`` is bfloat16 where the processor has instructions for it."""


def load_config(kind: type[T], path: Path | None = None, **overrides: Any) -> T:
    """Read a configuration file.

    Parameters
    ----------
    kind : type
        A frozen dataclass, for example ``mmecg_server.config.ServerConfig``.
    path : Path, optional
        A TOML file. Without one, the defaults. Relative paths in it are relative to its folder.
    **overrides
        Values that win over the file, as a command line gives them; ``None`` means not given.

    Raises
    ------
    ConfigError
        The file cannot be read or is not TOML, a key is unknown, or a value has the wrong type or is impossible.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"configuration {path} cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration {path} is not TOML: {error}") from None
    values |= {name: value for name, value in overrides.items() if value is not None}
    return parse_config(kind, values, root=path.parent if path else Path())


def parse_config(kind: type[T], values: Mapping[str, Any], *, root: Path | None = None, prefix: str = "") -> T:
    """Build a configuration dataclass from a mapping, as :func:`load_config` does.

    Parameters
    ----------
    kind : type
        A frozen dataclass.
    values : mapping of str to value
        Keys are field names; a nested dataclass takes a mapping.
    root : Path, optional
        Folder that relative paths given as strings are relative to.
    prefix : str
        Put before the names in messages.

    Raises
    ------
    ConfigError
        See :func:`load_config`.
    """
    hints = typing.get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {prefix}{near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise ConfigError(f"configuration key {prefix}{name} is unknown; {advice}")
    return kind(**{name: _convert(hints[name], value, root, prefix + name) for name, value in values.items()})


def effective_config(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, for the log: paths as strings, no secrets (keys are given as paths)."""
    plain: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            value = effective_config(value)
        plain[item.name] = str(value) if isinstance(value, Path) else value
    return plain


def _convert(hint: Any, value: Any, root: Path | None, name: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"configuration key {name} is not a table; write [{name}]")
        return parse_config(hint, value, root=root, prefix=f"{name}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"configuration key {name} has type {type(value).__name__}, expected a list")
        return tuple(_convert(arguments[0], item, root, name) for item in value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(
                f"configuration key {name} is {value!r}, expected one of {', '.join(map(repr, arguments))}"
            )
        return value
    if isinstance(hint, types.UnionType):
        choices = [choice for choice in arguments if choice is not type(None)]
        return _convert(choices[0], value, root, name)
    if hint is Path and isinstance(value, str):
        return (root or Path()) / value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"configuration key {name} has type {type(value).__name__}, expected {_type_name(hint)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"configuration key {name} is {value}, expected a finite number")
    return value


def _type_name(hint: type) -> str:
    return "str (a path)" if hint is Path else hint.__name__


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError`` unless a condition holds; for the ``__post_init__`` of a configuration."""
    if not condition:
        raise ConfigError(message)
