"""Negation in English discharge sentences: our English cues on the NegEx test kit, with the phrase given.

    git clone https://github.com/chapmanbe/negex
    python benchmarks/negex.py negex/rsAnnotations-1-120-random.txt

Each line of the kit is a sentence, a phrase in it, and whether the sentence denies the phrase (W. Chapman et al., 120
reports; the repository's code is under Apache 2.0, and the kit itself names no licence, so none of it is kept here).
The phrase stands for the finding: cues, scopes and terminators are those of ``mmecg/labels/rules/en.toml``. "Negated"
is the status ``negated``; every other status counts as affirmed. Of the kit, only lines of odd number were looked at
when cues were amended; lines of even number are the test half.
"""

from __future__ import annotations

import argparse
import csv
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmecg.labels.assertion import Status
from mmecg.labels.mining import LabelMiner
from mmecg.labels.rules import RULES_FOLDER

PHRASE = "givenphrase"
"""Stands in the sentence for the phrase."""
FINDING = f'\n[[finding]]\nid = "PHRASE"\npatterns = ["{PHRASE}"]\n'
FINDING_BLOCKS = ("finding]]", "base]]", "compose]]", "qualifier]]")


@dataclass(frozen=True)
class Line:
    """One line of the kit."""

    number: int
    sentence: str
    negated: bool
    missing: bool


def read_kit(path: Path) -> Iterator[Line]:
    """Yield the lines, the phrase put in place; a phrase that the sentence lacks stays missing (counted affirmed)."""
    with path.open(encoding="latin-1", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        for row in rows:
            words = r"(?<!\w)" + r"\s+".join(re.escape(word) for word in row[1].split()) + r"(?!\w)"
            sentence, found = re.subn(words, PHRASE, row[2].strip('"'), count=1, flags=re.IGNORECASE)
            yield Line(int(row[0]), sentence, row[3] == "Negated", not found)


def phrase_miner() -> LabelMiner:
    """Return a miner of the English cues with the phrase as its only finding."""
    head, *blocks = (RULES_FOLDER / "en.toml").read_text(encoding="utf-8").split("\n[[")
    cues = [block for block in blocks if not block.startswith(FINDING_BLOCKS)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "en.toml").write_text("\n[[".join([head, *cues]) + FINDING, encoding="utf-8")
        return LabelMiner(["en"], folder=Path(folder))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="rsAnnotations-1-120-random.txt")
    parser.add_argument("--errors", action="store_true", help="print what goes wrong in the half that may be looked at")
    args = parser.parse_args()
    miner = phrase_miner()
    scored = [(line, _is_negated(miner, line.sentence)) for line in read_kit(args.kit)]
    table = Table("lines", "n", "negated", "precision", "recall", "F1", "phrase missing")
    for name, rest in (("odd (looked at)", 1), ("even (test)", 0)):
        part = [(line, said) for line, said in scored if line.number % 2 == rest]
        hits = sum(line.negated and said for line, said in part)
        said, gold = sum(said for _, said in part), sum(line.negated for line, _ in part)
        missing = sum(line.missing for line, _ in part)
        figures = (hits / max(said, 1), hits / max(gold, 1), 2 * hits / max(said + gold, 1))
        table.add_row(name, str(len(part)), str(gold), *(f"{figure:.3f}" for figure in figures), str(missing))
    Console().print(table)
    if args.errors:
        for line, said in scored:
            if line.number % 2 and said != line.negated:
                print("missed " if line.negated else "wrongly", line.number, line.sentence)


def _is_negated(miner: LabelMiner, sentence: str) -> bool:
    return any(item.status is Status.NEGATED for item in miner.mine(sentence))


if __name__ == "__main__":
    main()
