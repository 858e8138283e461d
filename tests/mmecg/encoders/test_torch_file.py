"""Files of torch.save: what is read, and what is refused before any of it is run."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import random
import sys
import types
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch

from mmecg.encoders.torch_file import read_torch_file
from mmecg.errors import ArtifactError

CONTAINERS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])


def save(content, path, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@CONTAINERS
def test_tensors_come_back_as_they_were_saved(tmp_path, zipped):
    base = torch.randn(4, 6)
    state = collections.OrderedDict(
        full=base,
        view=base[1:3, ::2],
        transposed=base.t(),
        half=torch.randn(5).half(),
        bfloat=torch.randn(5).bfloat16(),
        counter=torch.tensor(7),
        flags=torch.tensor([True, False]),
        empty=torch.empty(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
    )
    state._metadata = {"": {"version": 1}}
    got = read_torch_file(save({"model": state}, tmp_path / "file.pt", zipped))["model"]
    assert list(got) == list(state)
    for name, tensor in state.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor.detach()), name


@CONTAINERS
def test_everything_else_comes_back_as_plain_values(tmp_path, zipped):
    content = {
        "args": argparse.Namespace(lr=0.1, inner=argparse.Namespace(leads=[1, 2])),
        "sizes": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "bytes": b"\xff\x00",
        "best": np.float64(0.5),
        "default": collections.defaultdict(list, a=[1]),
        "set": {1, 2},
        "none": None,
    }
    content["itself"] = content
    got = read_torch_file(save(content, tmp_path / "file.pt", zipped))
    assert got.pop("itself") is got
    assert got == {
        "args": {"lr": 0.1, "inner": {"leads": [1, 2]}},
        "sizes": [2, 3],
        "dtype": torch.float16,
        "device": "cpu",
        "bytes": b"\xff\x00",
        "best": {},
        "default": {"a": [1]},
        "set": {1, 2},
        "none": None,
    }


def test_omegaconf_is_read_as_plain_values_without_being_imported(tmp_path, monkeypatch):
    modules = {name: types.ModuleType(name) for name in ("omegaconf", "omegaconf.dictconfig", "omegaconf.nodes")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    container = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    node = type("AnyNode", (), {"__module__": "omegaconf.nodes"})
    modules["omegaconf.dictconfig"].DictConfig, modules["omegaconf.nodes"].AnyNode = container, node
    leaf, root = node(), container()
    leaf.__dict__.update(_parent=root, _val=12)
    root.__dict__.update(_metadata=None, _parent=None, _content={"encoder_layers": leaf})
    path = save({"cfg": {"model": root}}, tmp_path / "file.pt")
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    assert read_torch_file(path) == {"cfg": {"model": {"encoder_layers": 12}}}
    assert "omegaconf" not in sys.modules


@CONTAINERS
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (os.system, ("touch {mark}",)),
        (eval, ("open({mark!r}, 'w')",)),
        (open, ("{mark}", "w")),
        (getattr, (int, "real")),
        (torch.load, ("{mark}",)),
        (torch.hub.load, ("a/b", "c")),
        (types.SimpleNamespace, ()),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, zipped, function, args):
    mark = tmp_path / "mark"
    filled = [item.format(mark=str(mark)) if isinstance(item, str) else item for item in args]
    path = save({"model": {"weight": torch.zeros(2), "evil": Calls(function, *filled)}}, tmp_path / "file.pt", zipped)
    with pytest.raises(ArtifactError, match=r"calls for '.*', expected tensors and plain containers only"):
        read_torch_file(path)
    assert not mark.exists()


def test_pickle_that_changes_what_it_is_given_changes_nothing_for_the_next_file(tmp_path):
    good = save({"model": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "good.pt")
    for target in ("collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter"):
        program = b"\x80\x02c" + target.encode() + b"\n(N}(X\x0c\x00\x00\x00__defaults__K\x01utb."
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
            archive.writestr("bad/data.pkl", program)
        with suppress(ArtifactError):
            read_torch_file(tmp_path / "bad.pt")
        assert read_torch_file(good)["model"].keys() == {"weight", "bias"}


@CONTAINERS
def test_truncated_file_is_refused(tmp_path, zipped):
    path = save({"state_dict": {"a": torch.randn(50, 4), "b": torch.randn(30)}}, tmp_path / "file.pt", zipped)
    raw = path.read_bytes()
    for length in (2, 9, 200, len(raw) // 2, len(raw) - 4):
        path.write_bytes(raw[:length])
        with pytest.raises(ArtifactError, match="download it again"):
            read_torch_file(path)


@CONTAINERS
def test_damaged_file_is_refused_or_read_but_never_breaks(tmp_path, zipped):
    path = save({"state_dict": {"a": torch.randn(3, 4), "b": torch.randn(3).half()}}, tmp_path / "file.pt", zipped)
    raw, rng, refused = path.read_bytes(), random.Random(7), 0
    for _ in range(150):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except ArtifactError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(("offset", "shape", "stride"), [(2, (4,), (1,)), (0, (4,), (-1,)), (0, (9,), (1,))])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensor_beyond_its_storage_is_refused(tmp_path, offset, shape, stride):
    call = Calls(torch._utils._rebuild_tensor_v2, torch.zeros(4).storage(), offset, shape, stride, False, {})
    with pytest.raises(ArtifactError, match="beyond its storage"):
        read_torch_file(save({"evil": call}, tmp_path / "file.pt"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\x10\0\0\0\0\0\0\0{}", "safetensors"),
        (b"CDF\x01", "another format"),
        (pickle.dumps({"a": 1}, 2), "damaged or truncated"),
        (pickle.dumps(1, 2) * 2, "not of torch.save"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "memo index"),
    ],
)
def test_file_of_another_format_is_named(tmp_path, content, reason):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match=reason):
        read_torch_file(tmp_path / "file.pt")


def test_torchscript_compressed_and_foreign_archives_are_refused(tmp_path):
    path = tmp_path / "file.pt"
    for member, compression, reason in (
        ("a/code/x.py", zipfile.ZIP_STORED, "TorchScript"),
        ("a/data.pkl", zipfile.ZIP_DEFLATED, "compressed"),
        ("a/word/document.xml", zipfile.ZIP_STORED, "without data.pkl"),
    ):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr(member, "x")
        with pytest.raises(ArtifactError, match=reason):
            read_torch_file(path)


def test_missing_file_is_the_system_s_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "none.pt")
