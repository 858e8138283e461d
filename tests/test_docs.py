"""The documents say what the code does: every command, configuration key and RPC, and no command that does not work."""

import ast
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path

import pytest
from mmecg_pb.v1 import (
    corpus_service_pb2,
    embedding_service_pb2,
    info_service_pb2,
    label_mining_service_pb2,
    prediction_service_pb2,
    search_service_pb2,
)
from mmecg_server.config import ServerConfig

from mmecg.cli import COMMANDS, build_parser
from mmecg.search import Filter

ROOT = Path(__file__).parents[1]
PROTOS = (
    corpus_service_pb2,
    embedding_service_pb2,
    info_service_pb2,
    label_mining_service_pb2,
    prediction_service_pb2,
    search_service_pb2,
)
READMES = sorted(path for path in ROOT.glob("**/README.md") if ".venv" not in path.parts and "assets" not in path.parts)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def readme_commands():
    """Return the commands of the shell blocks, without comments and with continued lines joined."""
    text = "\n".join(blocks(README, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def configuration_keys(kind, prefix=""):
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from configuration_keys(hints[field.name], f"{prefix}{field.name}.")
        yield prefix + field.name


def rpcs():
    for module in PROTOS:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from (f"{service.name}.{method.name}" for method in service.methods)


def server_readme():
    return (ROOT / "server" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_shows_every_command(command):
    assert any(shlex.split(line, comments=True)[:2] == ["mmecg", command] for line in readme_commands())


@pytest.mark.parametrize("line", [line for line in readme_commands() if line.startswith("mmecg ")])
def test_commands_of_the_readme_are_understood(line):
    words, *_ = line.split(" < ")  # what a shell reads from a file
    args = build_parser().parse_args(shlex.split(words, comments=True)[1:])
    assert callable(args.run)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_help_are_understood(command):
    parser = build_parser()
    (commands,) = (action for action in parser._actions if getattr(action, "choices", None))
    epilog = commands.choices[command].epilog or ""
    examples = re.findall(r"^  (mmecg .*?)(?:   .*)?$", epilog, flags=re.MULTILINE)
    assert examples, f"mmecg {command} --help has no example"
    for example in examples:
        words, *_ = example.split(" < ")
        assert callable(parser.parse_args(shlex.split(words.rpartition(" | ")[2])[1:]).run), example


def test_scripts_of_the_readme_are_there():
    scripts = {line.split()[0] for line in readme_commands() if line.startswith("scripts/")}
    assert scripts >= {"scripts/demo", "scripts/test"}
    for script in [*scripts, ".ci/run"]:
        assert os.access(ROOT / script, os.X_OK), script


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_python_of_the_readme_compiles_and_imports_what_is_there(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("key", list(configuration_keys(ServerConfig)))
def test_server_readme_explains_every_configuration_key(key):
    *table, name = key.split(".")
    assert all(f"`{part}`" in server_readme() for part in [*table, name])


@pytest.mark.parametrize("rpc", list(rpcs()))
def test_server_readme_names_every_rpc(rpc):
    service, method = rpc.split(".")
    assert service in server_readme()
    assert re.search(rf"\b{method}\b", server_readme())


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Filter)])
def test_search_help_names_every_filter_field(field):
    parser = build_parser()
    (commands,) = (action for action in parser._actions if getattr(action, "choices", None))
    assert re.search(rf"^  {field}$", commands.choices["search"].epilog, flags=re.MULTILINE)


@pytest.mark.parametrize("folder", ["scripts", "benchmarks"])
def test_readme_of_a_folder_of_programs_names_each(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    programs = {path.stem for path in (ROOT / folder).iterdir() if path.is_file() and path.suffix in ("", ".py")}
    assert [name for name in sorted(programs) if not re.search(rf"`{name}(\.py)?`", text)] == []


def test_setup_that_is_done_needs_only_what_every_unix_has(tmp_path):
    programs, venv = tmp_path / "programs", tmp_path / "venv"
    programs.mkdir()
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    for name in ("bash", "cat", "cksum", "dirname", "env"):
        (programs / name).symlink_to(shutil.which(name))
    content = b"".join(
        (ROOT / name).read_bytes() for name in ("pyproject.toml", "scripts/constraints.txt", "scripts/setup")
    )
    stamp = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout
    (venv / ".mmecg-setup").write_bytes(stamp)
    environment = {"PATH": str(programs), "MMECG_VENV": str(venv)}
    done = subprocess.run([ROOT / "scripts" / "setup"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
