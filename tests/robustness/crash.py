"""Kill a real server with SIGKILL, round after round, and look whether its corpus keeps what it acknowledged.

A round: a server process opens the corpus and serves; a client process stores (streams and single studies), updates,
deletes, erases subjects, makes backups, and journals what it asks for and what it is told; meanwhile the indexes are
compacted and saved over and over. The server is killed at a random moment, or at a named point in the code. Then a
third process opens the corpus and compares everything with the journal. The next round sends again what was answered
and what was not. See tests/robustness/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import Child, fork
from crash_check import check, check_migrated, unpack_version_1
from crash_client import Client, wait_for_first_acknowledgement
from crash_server import run_program, serve_until_killed, stop_when_asked
from journal import Model
from kill_points import POINTS, Trap
from small import warm_up

ROUNDS_PER_CORPUS = 12
RANDOM_SHARE = 0.4
FACTORIES = (None, "HNSW8", "IVF4,Flat")
_PROMISES = ("lost", "back", "wrong", "index", "audit", "unanswered", "unreadable")


class Run:
    """A number of rounds, on one corpus after another."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._log = folder / "log"
        self.rounds: list[dict[str, Any]] = []
        self.acknowledged: dict[str, int] = defaultdict(int)

    def corpus_of_rounds(self, rounds: int, *, program: bool = False) -> None:
        """Make a corpus, and crash its server so often."""
        place = self._folder / f"corpus-{len(self.rounds)}"
        place.mkdir()
        model = Model()
        options = {
            "factory": None if program else self._random.choice(FACTORIES),
            "synchronous": self._random.choice(("full", "full", "normal")),
        }
        for _ in range(rounds):
            point = "random, the real program" if program else self._choose_point()
            found = self._round(place, model, point, options)
            found |= {"round": len(self.rounds), "point": point} | options
            self.rounds.append(found)
            if any(found[promise] for promise in _PROMISES) or found["failed"]:
                shutil.copytree(place, self._folder / f"kept-{found['round']}", dirs_exist_ok=True)
                print(json.dumps(found), file=sys.stderr, flush=True)
        for kind, count in model.acknowledged_by_kind.items():
            self.acknowledged[kind] += count
        shutil.rmtree(place)

    def _choose_point(self) -> str:
        if self._random.random() < RANDOM_SHARE:
            return self._random.choice(("random", "random", "random", "while opening", "while closing"))
        return self._random.choice(list(POINTS))

    def _round(self, place: Path, model: Model, point: str, options: dict[str, Any]) -> dict[str, Any]:
        journal = place / "journal"
        journal.unlink(missing_ok=True)
        reached = self._crash(place, model, point, options, journal)
        before = model.acknowledged
        model.read(journal)
        started = time.monotonic()
        child = fork(lambda pipe: check(place, model, pipe, close=self._random.random() < 0.5), self._log)
        self._random.random()
        answer = child.line(300)
        child.kill()
        checked_s = time.monotonic() - started
        empty: dict[str, Any] = {promise: [] for promise in _PROMISES}
        if not answer:
            return empty | {"failed": "the check did not end", "reached": reached}
        found = empty | json.loads(answer) | {"reached": reached}
        model.settle({int(number): version for number, version in found.pop("observed", {}).items()})
        found["wrong"] = [*found["wrong"], *model.bad]
        return found | {"check_s": checked_s, "writes": model.acknowledged - before}

    def _crash(self, place: Path, model: Model, point: str, options: dict[str, Any], journal: Path) -> bool:
        """Serve and write until the server is dead; return whether it died where it was to."""
        if point == "random, the real program":
            server = fork(lambda pipe: run_program(place, pipe), self._log)
        else:
            trap: Callable[[], None] | None = None
            if point in POINTS:
                install, most = POINTS[point]
                times = self._random.randint(1, most)

                def trap() -> None:
                    install(Trap(times))

            if point == "while closing":
                trap = stop_when_asked
            server = fork(lambda pipe: serve_until_killed(place, pipe, trap=trap, **options), self._log)
        if point == "while opening":
            time.sleep(self._random.uniform(0, 0.15))
            server.kill()
            return True
        port = server.line()
        if not port:
            reached = server.wait(1)
            server.kill()
            return reached and point in POINTS
        seed = self._random.getrandbits(32)
        client = fork(lambda _: Client(int(port), model, journal, seed).run(), self._log)
        reached = self._end(server, point, journal)
        server.kill()
        if not client.wait(90):
            model.bad.append("the client did not end")
        client.kill()
        return reached

    def _end(self, server: Child, point: str, journal: Path) -> bool:
        delay = self._random.expovariate(1 / 0.5)
        if point in POINTS:
            return server.wait(6)
        wait_for_first_acknowledgement(journal, 30)
        time.sleep(min(delay, 3))
        if point == "while closing":
            os.kill(server.pid, signal.SIGTERM)
            time.sleep(self._random.uniform(0, 0.3))
        return True

    def migration(self) -> None:
        """Crash the opening of a corpus of version 1."""
        place = self._folder / f"migration-{len(self.rounds)}"
        unpack_version_1(place)
        statement = self._random.randint(1, 40)
        child = fork(lambda pipe: check_migrated(place, pipe, die_at=statement), self._log)
        reached = not child.line()
        child.kill()
        child = fork(lambda pipe: check_migrated(place, pipe), self._log)
        answer = child.line()
        child.kill()
        empty: dict[str, Any] = {promise: [] for promise in _PROMISES}
        found = empty | (json.loads(answer) if answer else {"failed": "the check did not end"})
        self.rounds.append(found | {"round": len(self.rounds), "point": "migration of version 1", "reached": reached})
        shutil.rmtree(place)


def summarise(run: Run, seconds: float, seed: int) -> dict[str, Any]:
    """Return the table of the run, by kill point, and its sums."""
    table: dict[str, dict[str, Any]] = {}
    for one in run.rounds:
        row = table.setdefault(one["point"], defaultdict(int))
        row["rounds"] += 1
        row["reached"] += bool(one["reached"])
        for name in ("writes", "under_way", "found_done", *_PROMISES):
            value = one.get(name, 0)
            row[name] += len(value) if isinstance(value, list) else value
        row["opens that failed"] += bool(one["failed"])
    opened = [one["open_s"] for one in run.rounds if "open_s" in one]
    total = {name: sum(row[name] for row in table.values()) for name in next(iter(table.values()))}
    return {
        "seed": seed,
        "seconds": round(seconds),
        "total": total,
        "acknowledged": dict(run.acknowledged),
        "backups_verified": sum(one.get("backups", 0) for one in run.rounds),
        "replayed_or_retried": "every round, see crash_client.py",
        "open_s": {"median": statistics.median(opened), "max": max(opened)} if opened else {},
        "points": {point: dict(row) for point, row in sorted(table.items())},
        "failures": [one for one in run.rounds if one["failed"] or any(one[promise] for promise in _PROMISES)],
    }


def render(summary: dict[str, Any]) -> str:
    """Return the summary as a Markdown table."""
    columns = list(summary["total"])
    lines = [f"| kill point | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for point, row in [*summary["points"].items(), ("total", summary["total"])]:
        lines.append(f"| {point} | {' | '.join(str(row[name]) for name in columns)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the rounds; exit 0 if nothing that was promised was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--program-rounds", type=int, default=0, help="rounds with python -m mmecg_server itself")
    parser.add_argument("--migration-share", type=float, default=0.05, help="of the rounds that crash a migration")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the summary is written")
    parser.add_argument("--keep", type=Path, help="folder to work in, which is kept")
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="mmecg-crash-"))
    folder.mkdir(exist_ok=True)
    warm_up()
    run = Run(folder, arguments.seed)
    try:
        for _ in range(round(arguments.rounds * arguments.migration_share)):
            run.migration()
        if arguments.program_rounds:
            run.corpus_of_rounds(arguments.program_rounds, program=True)
        while (left := arguments.rounds + arguments.program_rounds - len(run.rounds)) > 0:
            run.corpus_of_rounds(min(left, ROUNDS_PER_CORPUS))
            if arguments.json:
                write(arguments.json, summarise(run, time.monotonic() - started, arguments.seed))
        summary = summarise(run, time.monotonic() - started, arguments.seed)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        write(arguments.json, summary)
    print(render(summary))
    print(json.dumps({name: value for name, value in summary.items() if name != "points"}))
    return 1 if summary["failures"] else 0


def write(path: Path, summary: dict[str, Any]) -> None:
    """Write the summary."""
    path.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
