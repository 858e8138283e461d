"""The lock covers what is installed, nothing on the load path can run what a file holds, deployment files agree."""

import ast
import json
import pickle
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from mmecg_index.corpus import Corpus
from mmecg_server.config import ServerConfig
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mmecg.bundle import load_bundle
from mmecg.config import load_config
from mmecg.retriever import Query, Retriever

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def pinned(path: Path) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    return pinned(DEPLOY / "requirements.lock") | pinned(DEPLOY / "torch-cpu.lock")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(project: dict, *extras: str) -> list[Requirement]:
    """Return what the project and some extras require, with the extras that those name."""
    found = [Requirement(text) for text in project["dependencies"]]
    waiting = list(extras)
    while waiting:
        for text in project["optional-dependencies"][waiting.pop()]:
            one = Requirement(text)
            if one.name == "mmecg":
                waiting.extend(one.extras)
            else:
                found.append(one)
    return found


def test_the_lock_covers_what_the_server_requires(lock, project):
    wanted = required(project, "cpu", "otel")
    assert {"torch", "faiss-cpu", "prometheus-client", "opentelemetry-sdk", "grpcio"} <= {one.name for one in wanted}
    missing = [
        str(one)
        for one in wanted
        if (version := lock.get(canonicalize_name(one.name))) is None or not one.specifier.contains(Version(version))
    ]
    assert missing == [], "run scripts/lock"


def test_the_lock_agrees_with_what_the_tests_ran_with(lock):
    constraints = pinned(ROOT / "scripts/constraints.txt")
    other = {
        name: (version, constraints.get(name))
        for name, version in lock.items()
        if version.split("+")[0] != constraints.get(name)
    }
    assert other == {}, "run scripts/lock after scripts/constraints.txt has changed"


def test_every_locked_file_has_a_hash_and_no_address_is_named():
    for name in ("requirements.lock", "torch-cpu.lock"):
        text = (DEPLOY / name).read_text()
        entries = [entry for entry in re.split(r"\n(?=[A-Za-z0-9])", text) if not entry.startswith("#")]
        assert entries
        assert [entry[:60] for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)] == []
        assert not re.search(r"https?://|file:|--index|--find-links| @ ", text)


def test_the_lock_has_no_cuda(lock):
    assert [name for name in lock if name.startswith(("nvidia", "triton", "cuda"))] == []
    assert lock["torch"].endswith("+cpu")


def test_the_bill_of_materials_is_of_the_lock(lock):
    bill = json.loads((DEPLOY / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {canonicalize_name(one["name"]): one["version"] for one in bill["components"]}
    assert {name: listed.get(name) for name in lock} == lock
    assert set(listed) - set(lock) <= {"pip", "setuptools", "mmecg"}
    assert "file://" not in json.dumps(bill)


# What runs code that a file holds. torch.load does without weights_only=True.
_UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(tree: ast.AST) -> list[int]:
    """Return the lines of imports and calls that could run what a file holds."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            names = set()
        if names & _UNSAFE:
            found.append(node.lineno)
        if isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            if given.get("allow_pickle", "False") != "False" or called in ("eval", "exec", "np.core.load"):
                found.append(node.lineno)
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append(node.lineno)
    return found


_CONVERTER = ROOT / "mmecg/encoders/torch_file.py"
"""Reads published checkpoints once, into safetensors, by an unpickler that knows tensors and plain containers only."""


def test_nothing_that_runs_a_files_content_is_written_in_our_code():
    sources = [
        path
        for folder in ("mmecg", "index/mmecg_index", "server/mmecg_server", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if path != _CONVERTER
    ]
    assert len(sources) > 100
    wrong = [f"{path.relative_to(ROOT)}:{line}" for path in sources for line in unsafe(ast.parse(path.read_text()))]
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import load", "np.load(x, allow_pickle=True)", "torch.load(x)", "eval(x)"],
)
def test_the_search_finds_what_it_looks_for(code):
    assert unsafe(ast.parse(code)) == [1]


def test_loading_bundle_and_corpus_unpickles_nothing(tmp_path, monkeypatch, make_study):
    bundle = load_bundle()
    with Corpus.create(tmp_path / "corpus", bundle.fingerprint) as corpus:
        Retriever(bundle.encoder, corpus).ingest([make_study(number) for number in range(3)])

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr("numpy.lib.format.pickle", pickle, raising=False)
    again = load_bundle()
    with Corpus.open(tmp_path / "corpus", again.fingerprint) as corpus:
        (result,) = Retriever(again.encoder, corpus).search([Query(text="sinus rhythm")], 2)
        assert len(result.hits) == 2
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(b"N.")


def test_the_example_configuration_is_one():
    config = load_config(ServerConfig, DEPLOY / "server.toml")
    assert config.tls.certificate is not None
    assert config.auth.is_on


def test_unit_and_image_stop_later_than_the_drain():
    drain_s = load_config(ServerConfig, DEPLOY / "server.toml").drain_s
    unit = (DEPLOY / "mmecg.service").read_text()
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1]) > drain_s
    assert int(re.search(r"stop_grace_period: (\d+)s", (DEPLOY / "compose.yaml").read_text())[1]) > drain_s
    assert "ReadWritePaths=/var/lib/mmecg\n" in unit
    assert "kill -HUP" in unit
    image = (DEPLOY / "Dockerfile").read_text()
    assert "\nUSER mmecg\n" in image
    assert image.index("USER mmecg") < image.index("ENTRYPOINT")
    assert '["mmecg", "health"' in image


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "mmecg.service"
    unit.write_text((DEPLOY / "mmecg.service").read_text().replace("/opt/mmecg/bin/python", shutil.which("env")))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
