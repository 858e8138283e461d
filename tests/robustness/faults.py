"""A disk that fails, a power cut, a clock that goes back, bits that flip: what the corpus makes of each.

Every case has its outcome: refused in clear words, or recovered. What was acknowledged is there, nothing that was
erased comes back, and no answer is made of damaged data. See tests/robustness/README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from bit_flips import flip_all
from children import fork
from crash_check import check
from disk_work import Work
from journal import Model
from power_cut import PowerCut, read_records
from small import FINGERPRINT, warm_up

from mmecg_index.corpus import Corpus  # isort: skip

WRITE, SYNC, TRUNCATE, OPEN, NAMES = 1, 2, 4, 8, 16
FAIL, TEAR, DIE = 0, 1, 2
FAULTS: dict[str, tuple[int, int, bool, int]] = {
    "disk full, once": (WRITE, errno.ENOSPC, False, FAIL),
    "disk full, from then on": (WRITE, errno.ENOSPC, True, FAIL),
    "no room for new files": (OPEN | NAMES, errno.ENOSPC, True, FAIL),
    "write fails, once": (WRITE, errno.EIO, False, FAIL),
    "write fails, from then on": (WRITE, errno.EIO, True, FAIL),
    "torn write": (WRITE, errno.EIO, False, TEAR),
    "torn write, then the process dies": (WRITE, errno.EIO, False, DIE),
    "sync fails, once": (SYNC, errno.EIO, False, FAIL),
    "sync fails, from then on": (SYNC, errno.EIO, True, FAIL),
    "the process dies in a sync": (SYNC, errno.EIO, False, DIE),
    "truncating fails": (TRUNCATE, errno.EIO, True, FAIL),
    "renaming or removing fails": (NAMES, errno.EIO, False, FAIL),
    "read-only from then on": (WRITE | OPEN | NAMES | TRUNCATE, errno.EROFS, True, FAIL),
}
"""Name -> calls that fail, error number, whether they go on failing, and how."""

_MOST = {WRITE: 120, SYNC: 60, TRUNCATE: 6}
_PROMISES = ("lost", "back", "wrong", "index", "audit", "unanswered", "unreadable")
NO_COMPILER = 77


def compile_disk(folder: Path) -> Path | None:
    """Return ``disk.c`` as a library; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread"], check=True)
    return library


class Disk:
    """The functions of the library that is loaded before the C library."""

    def __init__(self) -> None:
        self._functions = ctypes.CDLL(None)
        self._functions.disk_shift_clock.argtypes = [ctypes.c_long]
        self._functions.disk_mark.argtypes = [ctypes.c_int64]

    def watch(self, place: Path) -> None:
        """Say where the disk is."""
        self._functions.disk_watch(str(place).encode())

    def fail(self, kinds: int, nth: int, code: int, stays: bool, how: int) -> None:
        """Let the n-th call from now on fail."""
        self._functions.disk_fail(kinds, nth, code, int(stays), how)

    def mend(self) -> None:
        """Let nothing fail any more."""
        self._functions.disk_fail(0, 0, 0, 0, 0)

    def struck(self) -> int:
        """Return how many calls have failed."""
        return int(self._functions.disk_struck())

    def record(self, path: Path) -> None:
        """Record every change and sync in a file."""
        self._functions.disk_record(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    def mark(self, number: int) -> None:
        """Put a mark into the record."""
        self._functions.disk_mark(number)

    def shift_clock(self, seconds: int) -> None:
        """Let the clock be wrong."""
        self._functions.disk_shift_clock(seconds)


class Run:
    """Cases, one after another.

    Parameters
    ----------
    folder : Path
    seed : int
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._log = folder / "log"
        self._count = 0
        self.table: dict[str, dict[str, Any]] = {}
        self.failures: list[dict[str, Any]] = []

    def fault(self, name: str) -> None:
        """Let the disk fail at some call of a mixed work, mend it, work on, and look at what is there."""
        kinds, code, stays, how = FAULTS[name]
        nth = 1 if name.startswith("read-only") else self._random.randint(1, _MOST.get(kinds, 12))
        after = self._random.randint(0, 30)

        def arm(disk: Disk) -> None:
            disk.fail(kinds, nth, code, stays, how)

        self._work(name, arm, after)

    def clock(self, years: int) -> None:
        """Let the clock jump in the middle of the work."""
        name = f"clock {'back' if years < 0 else 'ahead'} by {abs(years)} years"
        self._work(name, lambda disk: disk.shift_clock(years * 31_557_600), 20)

    def _work(self, name: str, arm: Any, after: int) -> None:
        place, seed = self._new_place(), self._random.getrandbits(32)
        journal = self._folder / f"journal-{self._count}"

        def work(pipe: int) -> None:
            disk = Disk()
            disk.watch(place)
            found = Work(place, journal, seed).run(60, after, lambda: arm(disk), disk)
            os.write(pipe, json.dumps(found).encode())
            os.close(pipe)

        child = fork(work, self._log)
        answer = child.line(120)
        child.wait(10)
        died = os.WIFSIGNALED(child.status) and os.WTERMSIG(child.status) == signal.SIGKILL
        child.kill()
        row = self._row(name)
        if not answer and not died:
            self._fail(name, "the work did not end", place)
        row["struck"] += died
        if answer:
            found = json.loads(answer)
            row["struck"] += found["struck"]
            row["outcomes"].update(found["outcomes"])
            row["writes again"] += found["writes_again"]
            for complaint in found["wrong"]:
                self._fail(name, complaint, place)
        model = Model()
        model.read(journal)
        self._check(name, place, model)

    def power_cut(self, states: int) -> None:
        """Record a work, and look at states that the disk could have been in had the power failed."""
        place, seed = self._new_place(), self._random.getrandbits(32)
        journal, records = self._folder / f"journal-{self._count}", self._folder / f"record-{self._count}"
        shutil.rmtree(place)
        place.mkdir()

        def work(pipe: int) -> None:
            disk = Disk()
            disk.watch(place)
            disk.record(records)
            Corpus.create(place / "corpus", FINGERPRINT, reserve_bytes=0).close()
            Work(place, journal, seed, mark=disk.mark).run(40, 99, lambda: None, disk)
            os.close(pipe)

        child = fork(work, self._log)
        child.line(120)
        child.kill()
        lines = journal.read_text().splitlines(keepends=True)
        cut = PowerCut(read_records(records), place)
        first = next(number for number, one in enumerate(cut._records) if one.kind == "k")
        for _ in range(states):
            end = self._random.randint(first, len(cut._records))
            state = self._folder / f"state-{self._count}"
            self._count += 1
            cut.build(end, state, random.Random(self._random.getrandbits(32)))
            known = self._folder / "journal"
            known.write_text("".join(lines[: cut.mark(end)]))
            model = Model()
            model.read(known)
            self._row("power cut")["struck"] += 1
            model.backups = []  # looked at where they are made
            self._check("power cut", state, model)
        shutil.rmtree(place)

    def _check(self, name: str, place: Path, model: Model) -> None:
        child = fork(lambda pipe: check(place, model, pipe, close=True), self._log)
        answer = child.line(120)
        child.kill()
        last = self._log.read_text(errors="replace")[-400:] if self._log.exists() else ""
        found = json.loads(answer) if answer else {"failed": f"the check did not end: {last}"}
        row = self._row(name)
        row["cases"] += 1
        row["under way"] += found.get("under_way", 0)
        row["found done"] += found.get("found_done", 0)
        row["opens again"] += not found["failed"]
        complaints = [found["failed"]] if found["failed"] else []
        complaints += [f"{promise}: {found[promise]}" for promise in _PROMISES if found.get(promise)]
        complaints += model.bad
        for complaint in complaints:
            self._fail(name, complaint, place)
        if not complaints:
            shutil.rmtree(place)

    def _fail(self, name: str, complaint: str, place: Path) -> None:
        self._row(name)["broken"] += 1
        self.failures.append({"case": name, "what": complaint[:500], "place": str(place)})
        print(json.dumps(self.failures[-1]), file=sys.stderr, flush=True)

    def _row(self, name: str) -> dict[str, Any]:
        if name not in self.table:
            self.table[name] = defaultdict(int, {"outcomes": Counter()})
        return self.table[name]

    def _new_place(self) -> Path:
        self._count += 1
        place = self._folder / f"place-{self._count}"
        place.mkdir()
        child = fork(
            lambda pipe: Corpus.create(place / "corpus", FINGERPRINT, factory="HNSW8", reserve_bytes=0).close(),
            self._log,
        )
        child.line()
        child.kill()
        return place


def render(run: Run) -> str:
    """Return the table in Markdown."""
    columns = ("cases", "struck", "under way", "found done", "writes again", "opens again", "broken")
    lines = [f"| fault | {' | '.join(columns)} | outcomes of calls |", "|---" * (len(columns) + 2) + "|"]
    for name, row in run.table.items():
        told = ", ".join(f"{what} {count}" for what, count in row["outcomes"].most_common())
        lines.append(f"| {name} | {' | '.join(str(row[column]) for column in columns)} | {told} |")
    return "\n".join(lines)


def main() -> int:
    """Run the cases; exit 0 if every promise was kept, 77 where there is no compiler."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=30, help="cases of each fault of the disk")
    parser.add_argument("--power-cuts", type=int, default=1000, help="states of the disk")
    parser.add_argument("--flips", type=int, default=2000, help="bits in index files, and as many in the database")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the summary is written")
    arguments = parser.parse_args()
    if not hasattr(ctypes.CDLL(None), "disk_watch"):
        with tempfile.TemporaryDirectory(prefix="mmecg-disk-") as folder:
            library = compile_disk(Path(folder))
            if library is None:
                print("there is no C compiler, so that no disk can be made to fail")
                return NO_COMPILER
            environment = os.environ | {"LD_PRELOAD": str(library)}
            return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
    warm_up()
    with tempfile.TemporaryDirectory(prefix="mmecg-faults-") as folder:
        run = Run(Path(folder), arguments.seed)
        for _ in range(arguments.each):
            for name in FAULTS:
                run.fault(name)
        for years in (-10, 10) if arguments.each else ():
            run.clock(years)
        for start in range(0, arguments.power_cuts, 50):
            run.power_cut(min(50, arguments.power_cuts - start))
        summary: dict[str, Any] = {"seed": arguments.seed, "faults": run.table, "flips": {}, "failures": run.failures}
        print(render(run), flush=True)
        if arguments.flips:
            if arguments.json:
                arguments.json.write_text(json.dumps(summary, indent=1) + "\n")
            summary["flips"] = flip_all(Path(folder), arguments.flips, arguments.seed)
    flips = summary["flips"]
    failures = summary["failures"] = run.failures + flips.pop("failures", [])
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({"flips": flips, "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
