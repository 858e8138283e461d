"""Send a server requests that are almost right, and bytes that are nothing at all, and look what comes of it.

Expected: no crash, no INTERNAL, no UNKNOWN; nothing of a study in an answer to somebody who may not see it, nor in the
log or the metrics; memory, file handles and threads as before. See tests/robustness/README.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from mmecg_index.corpus import Corpus
from mmecg_pb.v1 import corpus_service_pb2, corpus_service_pb2_grpc
from mmecg_server.auth import METHOD_ROLES
from mmecg_server.principals import new_token
from small import CANARY_KG, FINGERPRINT, HashEncoder, canary, make_study
from wire import Mutator, RawPort, methods

from mmecg.retriever import Retriever

STUDIES = 60
THREADS = 8
RAW_SHARE = 0.1
MEMORY_SLACK_KIB = 64 * 1024
_TIMEOUT_S = 30.0
_FAULTS = ("INTERNAL", "UNKNOWN", "DATA_LOSS")


@dataclass(frozen=True)
class Caller:
    """Somebody who calls, and whether an answer may name studies of others."""

    name: str
    metadata: tuple[tuple[str, str], ...]
    sees: Callable[[int], bool]


@dataclass
class Tally:
    """What became of the requests."""

    codes: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, who: str, code: str) -> None:
        """Count an outcome."""
        with self.lock:
            self.codes.setdefault(who, Counter())[code] += 1

    def fault(self, what: str) -> None:
        """Note what must not be."""
        with self.lock:
            self.faults.append(what)


class Target:
    """A server process of its own.

    Parameters
    ----------
    folder : Path
    auth : bool
    program : bool
        ``python -m mmecg_server`` with the bundled model, instead of the small server.
    """

    def __init__(self, folder: Path, *, auth: bool, program: bool) -> None:
        self._folder = folder
        self.callers = self._make_callers(auth)
        self.log = folder / "server.log"
        fingerprint = FINGERPRINT
        if program:
            from mmecg.bundle import load_bundle

            fingerprint = load_bundle(None).fingerprint
        encoder = HashEncoder()
        encoder.fingerprint = fingerprint
        with Corpus.create(folder / "corpus", fingerprint) as corpus:
            Retriever(encoder, corpus).ingest([make_study(number) for number in range(STUDIES)])
        (folder / "backups").mkdir()
        config = folder / "server.toml"
        config.write_text(
            f'corpus = "{folder / "corpus"}"\nport = 0\ntorch_threads = 1\ndrain_s = 5\n'
            + "[limits]\nmax_streams = 16\nmax_message_bytes = 8388608\nstream_idle_s = 5\nconnection_idle_s = 5\n"
            + "[metrics]\nport = 0\n"
            + (f'[auth]\nprincipals = "{folder / "principals.toml"}"\n' if auth else "")
        )
        command = ["-m", "mmecg_server"] if program else [str(Path(__file__).with_name("small_program.py"))]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, *command, "--config", str(config)], stderr=log)
        self.port = self._wait_for_port()
        self.address = f"127.0.0.1:{self.port}"

    def _make_callers(self, auth: bool) -> list[Caller]:
        if not auth:
            return [Caller("anybody", (), lambda number: True)]
        wanted: dict[str, dict[str, Any]] = {
            "all roles": {"roles": ("reader", "ingester", "predictor")},
            "one site": {"roles": ("reader", "predictor"), "sites": ["site-1"]},
            "another subject": {"roles": ("reader", "ingester", "predictor"), "subjects": ["subject-of-mine"]},
            "ingester": {"roles": ("ingester",)},
        }
        sees: dict[str, Callable[[int], bool]] = {
            "all roles": lambda number: True,
            "one site": lambda number: number % 2 == 1,
        }
        callers, entries = [], []
        for name, options in wanted.items():
            token, entry = new_token(name.replace(" ", "-"), **options)
            entries.append(entry)
            metadata = (("authorization", f"Bearer {token}"),)
            callers.append(Caller(name, metadata, sees.get(name, lambda number: False)))
        (self._folder / "principals.toml").write_text("\n".join(entries))
        wrong = (("authorization", "Bearer mmecg_0123456789ab_" + "A" * 43),)
        return [
            *callers,
            Caller("no token", (), lambda number: False),
            Caller("wrong token", wrong, lambda number: False),
        ]

    def _wait_for_port(self) -> int:
        end = time.monotonic() + 180
        while time.monotonic() < end and self._process.poll() is None:
            for line in self.log.read_text(errors="replace").splitlines():
                if '"event": "serving"' in line:
                    return int(json.loads(line)["port"])
            time.sleep(0.1)
        log = self.log.read_text(errors="replace")
        raise RuntimeError(f"the server did not start: {log[-2000:]}")

    def scrape(self) -> str:
        """Return the metrics."""
        (line,) = [line for line in self.log.read_text(errors="replace").splitlines() if '"event": "listening"' in line]
        address = f"http://127.0.0.1:{json.loads(line)['metrics_port']}/metrics"
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
            return str(answer.read(), "utf-8")

    def state(self) -> dict[str, int]:
        """Return memory in use, file handles and threads."""
        place = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        return {
            "kib": int(status["VmRSS"].split()[0]),
            "sockets": sum(_is_socket(each) for each in (place / "fd").iterdir()),
            "files": len(list((place / "fd").iterdir())),
            "threads": int(status["Threads"]),
        }

    def alive(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None

    def stop(self) -> int:
        """Ask it to end; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -9


class Fuzzer:
    """Sends requests to a target from several threads.

    Parameters
    ----------
    target : Target
    tally : Tally
    seed : int
    """

    def __init__(self, target: Target, tally: Tally, seed: int) -> None:
        self._target = target
        self._tally = tally
        self._seed = seed
        self._methods = list(methods())
        assert {path for path, *_ in self._methods} == set(METHOD_ROLES), "a method is not fuzzed"

    def run(self, count: int) -> None:
        """Send so many requests."""
        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(self._work, thread, count // THREADS) for thread in range(THREADS)]:
                done.result()

    def _work(self, thread: int, count: int) -> None:
        mutator = Mutator(hash((self._seed, thread)))
        raw = RawPort(self._target.port, hash((self._seed, thread, "raw")))
        with grpc.insecure_channel(self._target.address, [("grpc.enable_retries", 0)]) as channel:
            for number in range(count):
                if mutator.random.random() < RAW_SHARE:
                    kind, outcome, answer = raw.send()
                    self._tally.count(f"raw: {kind}", outcome)
                    self._look("raw", self._target.callers[-1], answer, kind)
                    if b"internal error" in answer:  # gRPC itself answers 13 to headers that cannot be parsed
                        self._tally.fault(f"raw {kind}: {outcome}")
                else:
                    self._call(channel, mutator)
                if number % 200 == 0 and not self._target.alive():
                    self._tally.fault("the server is gone")
                    return

    def _call(self, channel: grpc.Channel, mutator: Mutator) -> None:
        path, kind, streams = mutator.random.choice(self._methods)
        caller = mutator.random.choice(self._target.callers)
        metadata = caller.metadata
        if mutator.random.random() < 0.1:
            metadata = (*metadata, *_odd_metadata(mutator))
        answers: list[bytes] = []
        try:
            if streams:
                code, answers = self._stream(channel, path, kind, mutator, metadata)
            else:
                request = mutator.request(kind)
                answers = [channel.unary_unary(path)(request, timeout=_TIMEOUT_S, metadata=metadata)]
                code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
            answers.append(f"{error.details()}{error.trailing_metadata()}".encode())
            if code in _FAULTS:
                self._tally.fault(f"{caller.name} {path}: {code} {error.details()}")
        except ValueError:  # the client's own library refuses the metadata
            code = "not sent"
        self._tally.count(caller.name, code)
        for answer in answers:
            self._look(path, caller, answer, code)

    def _stream(
        self, channel: grpc.Channel, path: str, kind: Any, mutator: Mutator, metadata: Any
    ) -> tuple[str, list[bytes]]:
        requests = [mutator.request(kind) for _ in range(mutator.random.randint(0, 5))]
        leaves = mutator.random.random()
        hold = threading.Event()

        def sending() -> Iterator[bytes]:
            yield from requests
            if leaves < 0.15:  # a half-open stream
                hold.wait(1)

        call = channel.stream_stream(path)(sending(), timeout=_TIMEOUT_S, metadata=metadata)
        code, answers = "OK", []
        try:
            if leaves < 0.15:
                time.sleep(0.01)
                call.cancel()
            for answer in call:
                answers.append(answer)
                if leaves > 0.9:
                    call.cancel()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                raise
            code = "left"
        finally:
            hold.set()
        for answer in answers:
            if b"internal error" in answer:
                self._tally.fault(f"{path}: an item's status is INTERNAL")
        return code, answers

    def _look(self, what: str, caller: Caller, answer: bytes, code: str) -> None:
        """Look for words of studies that the caller may not see."""
        if b"kanari" not in answer:
            return
        for number in range(STUDIES):
            word = canary(number // 3).encode()
            theirs = [each for each in range(number // 3 * 3, number // 3 * 3 + 3) if caller.sees(each)]
            if word in answer and not theirs:
                self._tally.fault(f"leak: {caller.name} {what} {code}")


def _odd_metadata(mutator: Mutator) -> tuple[tuple[str, str | bytes], ...]:
    random = mutator.random
    return random.choice(
        (
            (("x-request-id", "x" * random.choice((1, 64, 65, 5000))),),
            (("x-request-id", "a b;c"),),
            (("authorization", random.choice(("", "Bearer", "Basic abc", "bearer x", "Bearer " + "y" * 5000))),),
            (("authorization", "Bearer eyJhbGciOiJub25lIn0.e30."),),
            (("authorization", "Bearer a"), ("authorization", "Bearer b")),
            (("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),),
            (("x-data-bin", random.randbytes(200)),),
            (("grpc-accept-encoding", "nothing"),),
        )
    )


def _is_socket(handle: Path) -> bool:
    try:
        return str(handle.readlink()).startswith("socket:")
    except OSError:
        return False


def probe(target: Target) -> str:
    """Return how an ordinary call is answered."""
    with grpc.insecure_channel(target.address) as channel:
        try:
            stub = corpus_service_pb2_grpc.CorpusServiceStub(channel)
            request = corpus_service_pb2.GetStudyRequest(study_id="study-1")
            study = stub.GetStudy(request, timeout=60, metadata=target.callers[0].metadata).study
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK" if study.subject_id == make_study(1).subject_id else "another study"


def settle(target: Target, before: dict[str, int]) -> dict[str, int]:
    """Wait until connections and streams have ended; return what the server still holds."""
    end = time.monotonic() + 60
    while True:
        after = target.state()
        if (
            after["sockets"] <= before["sockets"] and after["threads"] <= before["threads"] + 4
        ) or time.monotonic() > end:
            return after
        time.sleep(0.5)


def run(count: int, seed: int, *, auth: bool, program: bool = False) -> dict[str, Any]:
    """Fuzz one server; return what came of it."""
    tally = Tally()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mmecg-fuzz-") as folder:
        target = Target(Path(folder), auth=auth, program=program)
        try:
            fuzzer = Fuzzer(target, tally, seed)
            fuzzer.run(min(count // 10, 2000))  # what is made at the first use
            before = settle(target, {"sockets": 1, "threads": 0}) if count >= 10_000 else target.state()
            fuzzer.run(count - min(count // 10, 2000))
            after = settle(target, before)
            answered, metrics = probe(target), target.scrape()
        finally:
            code = target.stop()
        log = target.log.read_text(errors="replace")
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    faults = tally.faults + [f"log: {line}" for line in lines if line["event"] == "internal_error"]
    faults += [f"log: {line['code']}" for line in lines if line.get("code") in _FAULTS]
    for name, text in {"log": log, "metrics": metrics}.items():
        leaks = [word for word in ("kanari", str(CANARY_KG)) if word in text]
        faults += [f"leak: the {name} shows {', '.join(leaks)} of studies"] if leaks or not text else []
    faults += [] if answered == "OK" else [f"an ordinary call afterwards: {answered}"]
    faults += [] if code == 0 else [f"the server ended with {code}"]
    if count >= 10_000 and after["kib"] > before["kib"] + MEMORY_SLACK_KIB:
        faults.append(f"memory: {before['kib']} to {after['kib']} KiB")
    for name, slack in (("sockets", 2), ("files", 32), ("threads", 16)):
        if after[name] > before[name] + slack:
            faults.append(f"{name}: {before[name]} to {after[name]}")
    return {
        "server": f"{'python -m mmecg_server' if program else 'small'}, auth {'on' if auth else 'off'}",
        "sent": sum(sum(each.values()) for each in tally.codes.values()),
        "seconds": round(time.monotonic() - started),
        "before": before,
        "after": after,
        "codes": {who: dict(codes) for who, codes in sorted(tally.codes.items())},
        "faults": faults,
    }


def main() -> int:
    """Fuzz; exit 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="requests in all")
    parser.add_argument("--program-share", type=float, default=0.2, help="of them to python -m mmecg_server itself")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the summary is written")
    arguments = parser.parse_args()
    of_program = int(arguments.count * arguments.program_share / 2)
    of_small = (arguments.count - 2 * of_program) // 2
    results = []
    for program, count in ((False, of_small), (True, of_program)):
        for auth in (False, True):
            if count:
                results.append(run(count, arguments.seed + len(results), auth=auth, program=program))
                print(json.dumps(results[-1]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    faults = sum(len(each["faults"]) for each in results)
    print(f"{sum(each['sent'] for each in results)} requests, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
