"""Label mining on one core: reports a second with spans and assertion status, beside medspaCy in the same run.

    POLARS_MAX_THREADS=1 python benchmarks/bench_mining.py [--peer-python ENV/bin/python] [--count 10000000]

The reports are made of phrases and cues of the English rules and of filler words, four to five statements each.
*Cached*: statements come from a pool of 3,800. *Uncached*: each holds a number of its own, so that no two are equal,
but the rules know no such number. *New*: each is put together anew, so that nothing that was mined before helps.
Figures are CPU time from a table of reports to one of assertions, and from lists of texts to columns of numbers; the
latter remember no text.

The peer is medspaCy's target matcher and ConText with its own rules, with a sentencizer instead of PyRuSH (which is ten
times slower), on phrases of the same rules; it needs an environment of its own (``pip install medspacy``), whose
interpreter ``--peer-python`` names. ``--count`` mines that many reports from Parquet files and gives the peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from mmecg.labels.mining import LabelMiner
from mmecg.labels.rules import Kind, load_rules, rule_literals

POOL = 3_800
STATEMENTS = (4, 5)
FILLER = ("the", "tracing", "shows", "with", "leads", "and", "rate", "of", "before", "this", "recording", "patient")
BLOCK = 500
KINDS = ("uncached", "cached", "new")

PEER = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
from loguru import logger
logger.remove()
import medspacy, spacy
from medspacy.target_matcher import TargetRule
given = json.load(open(sys.argv[1]))
nlp = spacy.blank("en")
nlp.add_pipe("sentencizer")
matcher = nlp.add_pipe("medspacy_target_matcher")
matcher.add([TargetRule(phrase, "FINDING") for phrase in given["phrases"]])
nlp.add_pipe("medspacy_context")
list(nlp.pipe(given["texts"][:20]))
start = time.process_time()
found = sum(len(doc.ents) for doc in nlp.pipe(given["texts"]))
print(json.dumps({"seconds": time.process_time() - start, "found": found}))
"""


def phrases(kinds: tuple[Kind, ...]) -> list[str]:
    """Return the literals of the English rules of some kinds."""
    literals = rule_literals(load_rules("en"))
    return sorted(item.text.decode() for item, roles in literals.items() if roles[0].kind in kinds)


def make_statements(count: int, rng: np.random.Generator) -> pl.Series:
    """Return statements: a cue or none, a phrase, up to two words of filler."""
    cues, findings = (pl.Series(phrases(kinds)) for kinds in ((Kind.CUE,), (Kind.FINDING, Kind.BASE)))
    filler = pl.Series([f" {word}" for word in FILLER])

    def pick(words: pl.Series, share: float) -> pl.Series:
        return words.gather(rng.integers(0, len(words), count)).set(pl.Series(rng.random(count) >= share), "")

    return pick(cues + " ", 0.5) + pick(findings, 1) + pick(filler, 0.7) + pick(filler, 0.3)


def make_reports(count: int, rng: np.random.Generator, kind: str, pool: pl.Series) -> pl.DataFrame:
    """Return reports of four or five statements, which are ``cached``, ``uncached`` or ``new``."""
    columns = []
    for place in range(max(STATEMENTS)):
        statement = make_statements(count, rng) if kind == "new" else pool.gather(rng.integers(0, len(pool), count))
        if kind != "cached":
            number = pl.Series(rng.integers(10**8, 10**9, count)).cast(pl.String)
            statement = statement + " no " + number if place % 2 else statement + " at " + number
        columns.append(statement.alias(f"s{place}"))
    last = pl.when(pl.Series(rng.random(count) < 0.5)).then(". " + pl.col(columns[-1].name)).otherwise(pl.lit(""))
    body = pl.concat_str([column.name for column in columns[:-1]], separator=". ")
    return pl.DataFrame(columns).select(report=body + last + ".").with_row_index("study_id")


def best(work: Callable[[Any], object], given: Sequence[object]) -> float:
    """Return the least CPU seconds of several rounds, each with what is given for it."""
    seconds = []
    for some in given:
        start = time.process_time()
        work(some)
        seconds.append(time.process_time() - start)
    return min(seconds)


def mine_lists(miner: LabelMiner, texts: list[str]) -> None:
    """Mine texts in blocks, to columns of numbers."""
    for low in range(0, len(texts), BLOCK):
        miner.mine_block(texts[low : low + BLOCK])


def ask_peer(python: str, reports: pl.DataFrame) -> float:
    """Return the reports a second of medspaCy."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.json"
        given.write_text(
            json.dumps({"phrases": phrases((Kind.FINDING, Kind.BASE)), "texts": reports["report"].to_list()})
        )
        done = subprocess.run(
            [python, "-W", "ignore", "-c", PEER, str(given)], capture_output=True, text=True, check=True
        )
    return reports.height / json.loads(done.stdout.splitlines()[-1])["seconds"]


def measure_memory(count: int, kind: str, pool: pl.Series, rng: np.random.Generator) -> tuple[float, float, int]:
    """Mine ``count`` reports from Parquet files; return peak MB, seconds and assertions."""
    with tempfile.TemporaryDirectory() as folder:
        part = 50_000
        for number, low in enumerate(range(0, count, part)):
            reports = make_reports(min(part, count - low), rng, kind, pool)
            reports.with_columns(pl.col("study_id") + low).write_parquet(Path(folder) / f"{number:06}.parquet")
        start, rows, assertions = time.perf_counter(), 0, 0
        table = pl.scan_parquet(Path(folder) / "*.parquet")
        for found, flagged in LabelMiner().mine_batches(table, id_column="study_id"):
            assertions, rows = assertions + found.height, rows + flagged.height
        seconds = time.perf_counter() - start
    if rows != count:
        raise SystemExit(f"{rows} rows came out of {count}")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds, assertions


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", help="interpreter of an environment with medspaCy")
    parser.add_argument("--peer-reports", type=int, default=500)
    parser.add_argument("--kind", choices=KINDS, default="cached", help="of the reports of --count")
    parser.add_argument("--count", type=int, default=0, help="reports to mine for the peak memory; 0 leaves it out")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    pool, miner = make_statements(2 * POOL, rng).unique(maintain_order=True).head(POOL), LabelMiner()
    print(f"polars threads {pl.thread_pool_size()}; {len(rule_literals(load_rules('en')))} English literals")
    if args.count:
        peak, seconds, assertions = measure_memory(args.count, args.kind, pool, rng)
        print(f"{args.count:,} reports, {assertions:,} assertions in {seconds:.0f} s: peak memory {peak:.0f} MB")
    table = Table("what", "reports/s")
    for kind in KINDS:
        rounds = [make_reports(args.reports, rng, kind, pool) for _ in range(args.rounds)]
        seconds = best(lambda reports: miner.mine_table(reports, id_column="study_id"), rounds)
        table.add_row(f"table to table, {kind}", f"{args.reports / seconds:,.0f}")
        if kind == "uncached":
            texts = rounds[0]["report"].to_list()
            print(f"mean length {np.mean([len(text) for text in texts]):.0f} characters")
            seconds = best(lambda texts: mine_lists(miner, texts), [texts] * args.rounds)
            table.add_row(f"texts to columns, {kind}", f"{args.reports / seconds:,.0f}")
    if args.peer_python:
        rate = ask_peer(args.peer_python, make_reports(args.peer_reports, rng, "uncached", pool))
        table.add_row("medspaCy, texts to entities with context", f"{rate:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
