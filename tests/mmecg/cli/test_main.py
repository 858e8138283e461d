"""The frame around the commands: help, version, exit codes, one-line errors."""

import os
import subprocess
import sys

import pytest

import mmecg
from mmecg.cli import COMMANDS, _describe
from mmecg.errors import (
    ArtifactError,
    BundleError,
    ConfigError,
    NotReadyError,
    OverloadedError,
    QueryError,
    StudyNotFoundError,
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(run, command):
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert "examples:" in outcome.out
    assert "--json" in outcome.out or command == "serve"


def test_version(run):
    assert run("--version").out == f"mmecg {mmecg.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["find"], ["search", "--top-k", "many"]])
def test_a_wrong_command_line_is_one_line_and_exit_code_2(run, arguments):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "--help" in outcome.error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QueryError("x"), 2),
        (ConfigError("x"), 2),
        (StudyNotFoundError("x"), 2),
        (FileNotFoundError(2, "No such file", "x"), 2),
        (ArtifactError("x"), 1),
        (BundleError("x"), 1),
        (NotReadyError("x"), 1),
        (OverloadedError("x"), 1),
        (TimeoutError("x"), 1),
        (PermissionError(13, "Permission denied", "x"), 1),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1),
        (RuntimeError("a report"), 1),
    ],
)
def test_exit_code_tells_who_erred(error, code):
    message, got = _describe(error)
    assert got == code
    assert "report" not in message.replace("report what it shows", "")


def test_missing_extra_says_what_to_install():
    message, _ = _describe(ModuleNotFoundError("No module named 'faiss'", name="faiss"))
    assert message == "this command needs faiss; install it with: pip install 'mmecg[cpu]' (or 'mmecg[gpu]')"


def test_debug_shows_where_an_error_came_from(run):
    with pytest.raises(QueryError, match="nothing to search for"):
        run("search", "--debug")


def test_python_m_mmecg_is_the_same_command():
    command = [sys.executable, "-m", "mmecg", "search"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mmecg: error: nothing to search for")


def test_a_reader_that_has_seen_enough_is_no_error(corpus):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        command = [sys.executable, "-m", "mmecg", "search", "--corpus", str(corpus), "--text", "sinus", "--json"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
