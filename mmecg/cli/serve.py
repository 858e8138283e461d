"""``mmecg serve``: answer embedding and search over gRPC; the same as ``python -m mmecg_server``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from mmecg.config import Precision

_EXAMPLES = """\
examples:
  mmecg serve                                  the demo corpus on 127.0.0.1:50051
  mmecg serve --corpus corpus/ --port 0        a free port; the log names it
  mmecg serve --config server.toml             keys: see server/README.md
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "serve",
        help="answer embedding and search over gRPC",
        description="Serve a corpus until SIGTERM or SIGINT. Flags win over the configuration file.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="configuration; see server/README.md")
    parser.add_argument("--corpus", type=Path, help="corpus folder; without one, the demo corpus")
    parser.add_argument("--bundle", type=Path, help="model bundle; default the one that ships with mmecg")
    parser.add_argument("--host", help="address to bind (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to bind (50051); 0 picks a free one")
    parser.add_argument("--precision", choices=get_args(Precision), help="what the ECG tower computes in (auto)")
    parser.add_argument("--torch-threads", type=int, metavar="N", help="threads of one encoder call")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the server's own main with these flags."""
    from mmecg_server.__main__ import main

    flags = ("config", "corpus", "bundle", "host", "port", "precision", "torch_threads")
    given = {name: getattr(args, name) for name in flags if getattr(args, name) is not None}
    return main([f"--{name.replace('_', '-')}={value}" for name, value in given.items()])
