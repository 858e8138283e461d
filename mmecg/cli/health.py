"""``mmecg health``: ask a running server whether it is ready; for container engines and scripts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  mmecg health 127.0.0.1:50051
  mmecg health ecg.hospital.example:50051 --tls-ca ca.pem --service mmecg.v1.CorpusService
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "health",
        help="ask a running server whether it is ready",
        description="Ask a running server whether it is ready. Exit code 0: it is; 1: it is not, or does not answer.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("address", metavar="HOST:PORT", help="address of the server")
    parser.add_argument("--service", default="", help="one service, as mmecg.v1.CorpusService; default the server")
    parser.add_argument("--timeout-s", type=float, default=5.0, metavar="S", help="time given to the server (5)")
    parser.add_argument("--tls", action="store_true", help="speak TLS")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE.pem", help="authority of the server's certificate")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE.pem", help="certificate of this client")
    parser.add_argument("--tls-key", type=Path, metavar="FILE.pem", help="its private key")
    parser.add_argument("--tls-server-name", metavar="NAME", help="name in the server's certificate, if another")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with a token, and only that")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the server says of itself."""
    from mmecg.cli.output import print_json
    from mmecg.client import ChannelOptions
    from mmecg.client.health import check_health

    options = ChannelOptions(
        timeout_s=args.timeout_s,
        tls=args.tls,
        tls_ca=args.tls_ca,
        tls_certificate=args.tls_certificate,
        tls_key=args.tls_key,
        tls_server_name=args.tls_server_name,
        token=None if args.token_file is None else args.token_file.read_text(encoding="ascii").strip(),
    )
    status = check_health(args.address, args.service, options)
    if args.json:
        print_json({"address": args.address, "service": args.service, "status": status})
    else:
        print(status)
    return 0 if status == "SERVING" else 1
