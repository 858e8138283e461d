"""The ``mmecg`` command.

Every command is a module with ``add_parser(subparsers)`` and ``run(args) -> int``; what is heavy is imported in ``run``
only, so that ``mmecg --help`` answers at once.

Exit codes: 0 done; 1 failed, or done in part (records were skipped); 2 the command line, an input or a configuration
cannot be used. An error is one line on standard error; ``--debug`` shows where it came from.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from typing import NoReturn

import mmecg
from mmecg.errors import AlreadyExistsError, ConfigError, InvalidInputError, MmecgError, NotFoundError

COMMANDS = (
    "train",
    "build",
    "search",
    "predict",
    "embed",
    "serve",
    "health",
    "token",
    "evaluate",
    "mine-labels",
    "label-text",
    "evaluate-labels",
    "evaluate-prediction",
    "encoders",
    "import-encoder",
    "experiment",
    "align",
    "probe",
    "finetune",
    "pretrain",
    "review-labels",
    "info",
    "backup",
    "restore",
    "verify",
    "erase-subject",
    "reindex",
    "audit",
    "export",
    "import",
)

OK, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 130

_EXTRAS = frozenset(
    {"ahocorasick_rs", "faiss", "matplotlib", "mmecg_index", "mmecg_server", "rich", "safetensors", "sklearn", "torch"}
)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog.split()[0]}: error: {message}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``mmecg`` and its commands."""
    parser = _Parser(
        prog="mmecg",
        description="Find, embed and serve electrocardiograms by ECG, report text, vital signs, or a mix of them.",
        epilog="Research software, not a medical device. Examples: mmecg search --text 'atrial fibrillation'; "
        "mmecg build --data ptb-xl/ --out corpus/",
    )
    parser.add_argument("--version", action="version", version=f"mmecg {mmecg.__version__}")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser, title="commands"
    )
    for name in COMMANDS:
        module = name.replace("-", "_") + "_" * iskeyword(name)
        import_module(f"mmecg.cli.{module}").add_parser(subparsers)
    for command in subparsers.choices.values():
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; default those of the process.

    Returns
    -------
    int
        The exit code.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    try:
        code = int(args.run(args))
        sys.stdout.flush()  # here, so that a reader that has gone is noticed here and not at the interpreter's exit
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; leave nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if args.debug:
            raise
        return _fail(*_describe(error))


def _describe(error: Exception) -> tuple[str, int]:
    """Return the line and the exit code of an error."""
    if isinstance(error, InvalidInputError | NotFoundError | AlreadyExistsError | ConfigError):
        return str(error), USAGE
    if isinstance(error, MmecgError):
        return str(error), FAILED
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRAS:
        return f"this command needs {error.name}; install it with: pip install 'mmecg[cpu]' (or 'mmecg[gpu]')", FAILED
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{where}", USAGE if isinstance(error, FileNotFoundError) else FAILED
    if isinstance(error, TimeoutError) and str(error):
        return str(error), FAILED
    return f"unexpected {type(error).__name__}; run the command again with --debug and report what it shows", FAILED


def _fail(message: str, code: int) -> int:
    print(f"mmecg: error: {' '.join(message.split())}", file=sys.stderr)
    return code
