"""Read what ``torch.save`` wrote, without running anything in it.

Such a file holds a pickle, and a pickle is a program: loading one blindly runs whatever its author put there. Here it
may build tensors and plain containers; any other name that it calls for is refused before it is called. Configuration
objects (``argparse.Namespace``, ``omegaconf``) become the dicts and lists that they hold, NumPy scalars empty dicts;
their classes are never imported.

Tensors are mapped from the file, not read: what nobody looks at, such as an optimiser's state, costs no memory. Both
containers are understood, the zip archive of torch 1.6 and later and the plain stream before it.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from mmecg.errors import ArtifactError

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPE_NAMES = {str(dtype): dtype for dtype in _DTYPES.values()}  # "torch.float32"
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_BUILTINS = (dict, list, set, int, str, bool, float)
_RECORDS = frozenset(
    ("argparse.Namespace", "typing.Any", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
)


class _Record:
    """An object of a known configuration class: only the state that was set on it is kept."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dict(dict[Any, Any]):
    """Stands for every kind of dict; attributes that a file sets on one (torch: ``_metadata``) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class _Storage:
    """Elements that one tensor or several are views of."""

    dtype: torch.dtype
    key: str
    elements: int


_Locate = Callable[[_Storage], int]
"""From a storage to where its first byte lies in the file."""


def read_torch_file(path: str | Path) -> Any:
    """Return the content of a file of ``torch.save``: dicts, lists, plain values and tensors.

    The tensors are mapped from the file: do not change it as long as they are used.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    ArtifactError
        The file is not one of ``torch.save``, is damaged or truncated, or calls for anything but tensors and plain
        containers.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(64)
        kind = _kind(head)
        if kind is not None:
            raise ArtifactError(f"{path} is {kind}, expected a checkpoint of torch.save; download it again")
        file.seek(0)
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        try:
            content = _read_archive(file, memory) if head.startswith(b"PK") else _read_stream(file, memory)
            return _as_plain(content, {})
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
        except Exception as error:  # the pickle module may raise anything over bytes that are not what they claim
            reason = str(error) or type(error).__name__
            raise ArtifactError(
                f"{path} is damaged or truncated ({path.stat().st_size:,} bytes; {reason[:120]}), expected a whole "
                "checkpoint of torch.save; download it again and compare its size and checksum"
            ) from None


def _as_plain(value: Any, met: dict[int, Any]) -> Any:
    """Return dicts, lists and values; what is met twice is made once, and what holds itself ends there."""
    if id(value) in met:
        return met[id(value)]
    if isinstance(value, _Record):
        state = value.state if isinstance(value.state, Mapping) else {}
        met[id(value)] = None
        inner: Any = state.get("_content", state.get("_val", state))  # of an omegaconf container, of one of its nodes
        met[id(value)] = plain = _as_plain(inner, met)
        return plain
    if isinstance(value, Mapping):
        mapping: dict[Any, Any] = {}
        met[id(value)] = mapping
        mapping.update((key, _as_plain(item, met)) for key, item in value.items())
        return mapping
    if isinstance(value, list | tuple):
        items: list[Any] = []
        met[id(value)] = items
        items.extend(_as_plain(item, met) for item in value)
        return items
    return value


def _kind(head: bytes) -> str | None:
    """Return what a file is that is not of torch; None for one that may be."""
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return None
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page"
    if head[8:9] == b"{":
        return "a safetensors file"
    return "of another format"


def _read_archive(file: IO[bytes], memory: mmap.mmap) -> Any:
    """Read a zip archive: ``<name>/data.pkl`` and one member ``<name>/data/<key>`` a storage."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        if any(name.startswith("code/") for name in members):
            raise ArtifactError("is a TorchScript program, expected a checkpoint: tensors, no code")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise ArtifactError("has compressed members, expected them stored, as torch.save writes them")
        if "data.pkl" not in members:
            raise ArtifactError("is a zip archive without data.pkl, expected a checkpoint of torch.save")
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged}")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ArtifactError("was written on a big-endian machine, expected little-endian; save it again")
        program = archive.read(members["data.pkl"])

    def locate(storage: _Storage) -> int:
        member = members[f"data/{storage.key}"]
        if member.file_size != storage.elements * storage.dtype.itemsize:
            raise ValueError(f"{member.filename} has {member.file_size} bytes")
        # A local header: 30 bytes, the last four of which say how long the name and the extra field behind it are.
        lengths = struct.unpack_from("<HH", memory, member.header_offset + 26)
        return int(member.header_offset + 30 + sum(lengths))

    return _Unpickler(program, memory, locate).load()


def _read_stream(file: IO[bytes], memory: mmap.mmap) -> Any:
    """Read a stream: magic number, protocol, system, content and storage keys as pickles, then the storages."""
    head = [_Unpickler(_cut_pickle(file), memory, None).load() for _ in range(2)]
    if head != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
        raise ArtifactError("is a pickle but not of torch.save, expected a checkpoint")
    system = _Unpickler(_cut_pickle(file), memory, None).load()
    if not system["little_endian"]:
        raise ArtifactError("was written on a big-endian machine, expected little-endian; save it again")
    program = _cut_pickle(file)
    first = _Unpickler(program, memory, None)  # the storages that it names have to be known to find them in the file
    first.load()
    position = {}
    keys = _Unpickler(_cut_pickle(file), memory, None).load()
    at = file.tell()
    for key in keys:
        (elements,) = struct.unpack_from("<q", memory, at)
        storage = first.storages[key]
        if elements != storage.elements:
            raise ValueError(f"storage {key[:20]} has {elements} elements")
        position[key] = at + 8
        at += 8 + elements * storage.dtype.itemsize
    if at > len(memory):
        raise EOFError("ends within its tensors")
    return _Unpickler(program, memory, lambda storage: position[storage.key]).load()


def _cut_pickle(file: IO[bytes]) -> bytes:
    """Return the pickle that begins where the file stands, and leave the file behind it."""
    start = file.tell()
    for operation, _, _ in pickletools.genops(file):
        if operation.name == "STOP":
            break
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


class _Unpickler(pickle.Unpickler):
    """An unpickler with a closed list of names.

    What it hands out is made anew for each file, so that a pickle that sets attributes on it changes nothing that
    outlives the file.

    Parameters
    ----------
    program : bytes
        One pickle.
    memory : mmap
        The file.
    locate : callable or None
        None to build no tensors, only to learn which storages there are.
    """

    def __init__(self, program: bytes, memory: mmap.mmap, locate: _Locate | None) -> None:
        for operation, argument, _ in pickletools.genops(program):
            # The memo grows to the largest index at once: four bytes could ask for all memory there is.
            if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(program):
                raise pickle.UnpicklingError(f"memo index {argument}")
        super().__init__(BytesIO(program))
        self.storages: dict[str, _Storage] = {}
        self._memory = memory
        self._locate = locate
        self._names: dict[str, Any] = {
            **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
            **_DTYPE_NAMES,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.Size": lambda sizes=(): tuple(sizes),
            "torch.device": lambda *names: ":".join(map(str, names)),
            "_codecs.encode": lambda text, _: str.encode(text, "latin1"),  # bytes in protocol 2
            "collections.OrderedDict": _Dict,
            "collections.defaultdict": lambda *_: _Dict(),
            **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in _BUILTINS},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, if it is on the list."""
        full = f"{module}.{name}"
        if full in self._names:
            return self._names[full]
        if full in _RECORDS or module.partition(".")[0] == "omegaconf":
            return _Record
        raise ArtifactError(
            f"its pickle calls for {full[:80]!r}, expected tensors and plain containers only; nothing of it was run: a "
            "checkpoint from its authors does not do this, do not load this file with other programs either"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a storage: ``("storage", type, key, location, elements)``, in the stream with a view behind it."""
        kind, dtype, key, _, elements, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(item is not None for item in view):
            raise pickle.UnpicklingError(f"unknown kind of storage {str(kind)[:20]!r}")
        return self.storages.setdefault(key, _Storage(dtype, key, elements))

    def _tensor(self, storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> Tensor | None:
        if self._locate is None:
            return None
        shape, stride = tuple(map(int, shape)), tuple(map(int, stride))
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if min(offset, *shape, *stride, 0) < 0 or (0 not in shape and last >= storage.elements):
            raise ValueError("a tensor reaches beyond its storage")
        if 0 in shape:
            return torch.empty(shape, dtype=storage.dtype)
        start = self._locate(storage)
        flat = torch.frombuffer(self._memory, dtype=storage.dtype, count=storage.elements, offset=start)
        return flat.as_strided(shape, stride, offset)
