"""``mmecg label-text``: clauses on standard input, what each says on standard output, line by line."""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmecg.labels.assertion import LabelAssertion
    from mmecg.labels.mining import LabelMiner
    from mmecg.labels.tables import Probability

_EXAMPLES = """\
examples:
  echo 'no evidence of atrial fibrillation' | mmecg label-text          finding, status and words
  mmecg label-text --language de --json < clauses.txt                   one JSON object a line

Each line of the input gives exactly one line of JSON, at once: {"text_line": 1, "assertions": [...]}; one that cannot
be read (not UTF-8, too long, control characters) has an "error" too, and the exit code is 1.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "label-text",
        help="label lines of text from standard input",
        description="Read one text a line and print what it says: findings, status, words.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--language",
        choices=("auto", "de", "en", "sv"),
        default="auto",
        help="of the text; auto tells by sentence (auto)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Label standard input."""
    from mmecg.labels.mining import LabelMiner
    from mmecg.labels.rules import LANGUAGES
    from mmecg.labels.weights import load_text_evidence

    probability = load_text_evidence().mention_probability
    miner = LabelMiner(LANGUAGES if args.language == "auto" else (args.language,))
    failed = False
    for number, line in enumerate(sys.stdin.buffer, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        answer = _label(miner, probability, number, line.rstrip(b"\r\n"))
        failed |= "error" in answer
        _print(answer, as_json=args.json)
    return 1 if failed else 0


def _label(miner: LabelMiner, probability: Probability, number: int, line: bytes) -> dict[str, Any]:
    from mmecg.errors import ReportError
    from mmecg.report import check_text

    try:
        text = check_text(line, field="text")
        found = [_plain(dataclasses.replace(item, probability=probability(item)), text) for item in miner.mine(text)]
    except ReportError as error:
        return {"text_line": number, "assertions": [], "error": str(error)}
    return {"text_line": number, "assertions": found}


def _plain(assertion: LabelAssertion, text: str) -> dict[str, Any]:
    """Return an assertion as plain values, with its words."""
    values = dataclasses.asdict(assertion)
    values["qualifiers"] = [list(pair) for pair in assertion.qualifiers]
    return {**values, "evidence": text[assertion.start : assertion.end]}


def _print(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, ensure_ascii=False, allow_nan=False), flush=True)
        return
    lines = [f"{item['finding']}\t{item['status']}\t{item['evidence']}" for item in answer["assertions"]]
    if "error" in answer:
        print(f"mmecg: line {answer['text_line']}: {answer['error']}", file=sys.stderr)
    for line in lines or ["-\t-\t-"]:
        print(f"{answer['text_line']}\t{line}", flush=True)
