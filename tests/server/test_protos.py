"""The generated code is fresh, everything is commented, and every RPC and configuration key is in the README."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmecg_server.config import AdminConfig, LimitsConfig, ServerConfig, StorageConfig, TlsConfig
from mmecg_server.service import SERVICES

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos/mmecg_pb/v1").glob("*.proto"))
DECLARATION = re.compile(r"^\s*(message|enum|service|rpc|oneof|(?:repeated |optional )?[\w.<>, ]+ \w+ = \d+)")


def test_generated_code_is_fresh(tmp_path):
    subprocess.run([ROOT / "scripts/gen-protos", tmp_path], check=True, env=os.environ | {"PYTHON": sys.executable})
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    committed = ROOT / "protos"
    assert len(fresh) == 2 * len(PROTOS) + 2 * len(SERVICES)
    assert {path.relative_to(committed) for path in committed.rglob("*_pb2*.py*") if path.suffix != ".pyc"} == set(
        fresh
    )
    for path, content in fresh.items():
        assert (committed / path).read_text() == content, f"{path} is stale; run scripts/gen-protos"


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_everything_is_commented(path):
    lines = path.read_text().splitlines()
    declared = [number for number, line in enumerate(lines) if DECLARATION.match(line) and "//" not in line]
    assert declared
    bare = [lines[number].strip() for number in declared if not lines[number - 1].strip().startswith("//")]
    assert bare == []


def test_every_rpc_and_key_is_in_the_readme():
    readme = (ROOT / "server/README.md").read_text()
    methods = [name for path in PROTOS for name in re.findall(r"rpc (\w+)\(", path.read_text())]
    assert len(methods) == 26
    kinds = (ServerConfig, AdminConfig, LimitsConfig, StorageConfig, TlsConfig)
    keys = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    assert [name for name in (*methods, *keys) if f"`{name}`" not in readme] == []
