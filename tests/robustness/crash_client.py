"""The client of the crash run: mixed writes from several threads until the server is gone, each journalled."""

from __future__ import annotations

import queue
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
from journal import Journal, Model
from mmecg_pb.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    corpus_service_pb2,
    corpus_service_pb2_grpc,
    query_pb2,
    search_service_pb2,
    search_service_pb2_grpc,
)
from small import CHANGED_BY_VERSION, STUDIES_PER_SUBJECT, make_study, subject_of

from mmecg.client.corpus_requests import update_request, upsert_item, upsert_message, upsert_request

WORKERS = 4
TIMEOUT_S = 60.0
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_REPLAYED = 8


class Client:
    """One round of writes. Each worker has subjects of its own, so that it knows the order of what it asked for."""

    def __init__(self, port: int, model: Model, path: Path, seed: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_retries", 0)])
        self._corpus = corpus_service_pb2_grpc.CorpusServiceStub(self._channel)
        self._search = search_service_pb2_grpc.SearchServiceStub(self._channel)
        self._admin = admin_service_pb2_grpc.AdminServiceStub(self._channel)
        self._journal = Journal(path, model.next_id)
        self._model = model
        self._seed = seed

    def run(self) -> None:
        """Write until the server is gone."""
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, worker: int) -> None:
        try:
            _Worker(self, worker).run()
        except grpc.RpcError as error:
            if error.code() not in _LOST:
                self._journal.complain(f"{error.code().name}: {error.details()}")
        except Exception as error:
            self._journal.complain(f"{type(error).__name__}: {error}")


class _Worker:
    def __init__(self, client: Client, worker: int) -> None:
        self._client = client
        self._worker = worker
        self._random = random.Random(f"{client._seed}-{worker}")
        self._journal = client._journal
        mine = {number: version for number, version in client._model.settled.items() if self._is_mine(number)}
        self._versions = {number: version for number, version in mine.items() if version is not None}
        self._made = {number: version or 0 for number, version in mine.items()}
        self._next = max((subject_of(number) for number in mine), default=worker - WORKERS) + WORKERS
        self._next = max(self._next, *(each + WORKERS for each in self._erased()), worker)

    def _is_mine(self, number: int) -> bool:
        return subject_of(number) % WORKERS == self._worker

    def _erased(self) -> list[int]:
        known = self._client._model.erased | self._client._model.erasing
        return [subject for subject in known if subject % WORKERS == self._worker] or [self._worker - WORKERS]

    def run(self) -> None:
        self._replay()
        kinds = ("stream", "put", "update", "delete", "erase", "backup", "search")
        weights = (4, 6, 6, 4, 2, 1, 2)
        while True:
            (kind,) = self._random.choices(kinds, weights)
            getattr(self, f"_{kind}")()

    def _replay(self) -> None:
        """Send again what was answered before the crash, and what was not: the same answers, and nothing twice."""
        model = self._client._model
        answered = [each for each in model.answered if self._is_mine(each["number"])]
        for old in self._random.sample(answered, min(_REPLAYED, len(answered))):
            got = self._send(old)
            if got != old["sequence"]:
                self._journal.complain(f"request of {old['op']} answered with {got}, before with {old['sequence']}")
        for old in model.pending:
            if self._is_mine(old["number"]):
                what = {name: old[name] for name in ("number", "version", "request")}
                number = self._journal.intend(old["op"], **what)
                self._journal.acknowledge(number, sequence=self._send(old))
                self._note(old)

    def _note(self, operation: dict[str, Any]) -> None:
        number = operation["number"]
        if operation["op"] == "delete":
            self._versions.pop(number, None)
        else:
            self._versions[number] = self._made[number] = operation["version"]

    def _send(self, operation: dict[str, Any]) -> int:
        """Send one write; return the sequence number of the answer."""
        corpus, metadata = self._client._corpus, (("x-request-id", operation.get("call") or uuid.uuid4().hex),)
        if operation["op"] == "delete":
            name = f"study-{operation['number']}"
            request: Any = corpus_service_pb2.DeleteStudyRequest(study_id=name, request_id=operation["request"])
            return int(corpus.DeleteStudy(request, timeout=TIMEOUT_S, metadata=metadata).sequence)
        study = make_study(operation["number"], operation["version"])
        if operation["op"] == "update":
            request = update_request(study, CHANGED_BY_VERSION, "", operation["request"])
            return int(corpus.UpdateStudy(request, timeout=TIMEOUT_S, metadata=metadata).sequence)
        request = upsert_request(study, operation["request"])
        (answer,) = corpus.UpsertStudies(iter([request]), timeout=TIMEOUT_S, metadata=metadata)
        return self._sequence_of(answer)

    def _sequence_of(self, answer: Any) -> int:
        if answer.HasField("status"):
            raise RuntimeError(f"an item was refused: {answer.status.code} {answer.status.message}")
        return int(answer.sequence)

    def _write(self, kind: str, number: int, version: int) -> int:
        operation: dict[str, Any] = {
            "op": kind, "number": number, "version": version, "request": uuid.uuid4().hex, "call": uuid.uuid4().hex
        }  # fmt: skip
        entry = self._journal.intend(kind, **{name: value for name, value in operation.items() if name != "op"})
        sequence = self._send(operation)
        self._journal.acknowledge(entry, sequence=sequence)
        self._note(operation)
        return sequence

    def _next_version(self, number: int) -> int:
        self._made[number] = version = self._made.get(number, 0) + 1
        return version

    def _new(self) -> int:
        """Return the number of a study that never was, or of one that was deleted."""
        first = self._next * STUDIES_PER_SUBJECT
        free = [first + place for place in range(STUDIES_PER_SUBJECT) if first + place not in self._versions]
        if len(free) == 1 or not free:
            self._next += WORKERS
        return free[0] if free else self._new()

    def _some(self) -> int | None:
        return self._random.choice(sorted(self._versions)) if self._versions else None

    def _put(self) -> None:
        number = self._some() if self._random.random() < 0.3 else None
        number = self._new() if number is None else number
        self._write("put", number, self._next_version(number))

    def _update(self) -> None:
        if (number := self._some()) is not None:
            self._write("update", number, self._next_version(number))

    def _delete(self) -> None:
        if (number := self._some()) is not None:
            self._write("delete", number, 0)

    def _erase(self) -> None:
        number = self._some()
        if number is None or subject_of(number) == self._next:
            return
        subject = subject_of(number)
        entry = self._journal.intend("erase", subject=subject)
        request = admin_service_pb2.EraseSubjectRequest(subject_id=make_study(number).subject_id)
        answer = self._client._admin.EraseSubject(request, timeout=TIMEOUT_S)
        self._journal.acknowledge(entry, sequence=answer.sequence)
        for each in range(subject * STUDIES_PER_SUBJECT, (subject + 1) * STUDIES_PER_SUBJECT):
            self._versions.pop(each, None)

    def _backup(self) -> None:
        name = uuid.uuid4().hex
        entry = self._journal.intend("backup", name=name)
        answer = self._client._admin.Backup(admin_service_pb2.BackupRequest(name=name), timeout=TIMEOUT_S)
        self._journal.acknowledge(entry, sequence=answer.sequence)

    def _search(self) -> None:
        """Write a study, and find it with its own report, as of that write."""
        number = self._new()
        sequence = self._write("put", number, self._next_version(number))
        study = make_study(number, self._versions[number])
        request = search_service_pb2.SearchRequest(
            query=query_pb2.Query(study_id=study.study_id), top_k=1, min_sequence=sequence,
            exclude_same_subject=False,
        )  # fmt: skip
        answer = self._client._search.Search(request, timeout=TIMEOUT_S)
        if answer.sequence < sequence:
            self._journal.complain("a search answered as of an earlier write than it was asked for")

    def _stream(self) -> None:
        """Store a batch over one stream, some in a message; what is answered before the end counts."""
        numbers = list(dict.fromkeys(self._new_or_old() for _ in range(self._random.randint(2, 20))))
        operations = []
        for number in numbers:
            version = self._next_version(number)
            operation = {"op": "put", "number": number, "version": version, "request": uuid.uuid4().hex}
            entry = self._journal.intend("put", number=number, version=version, request=operation["request"])
            operations.append((entry, operation))
        sending: queue.SimpleQueue[Any] = queue.SimpleQueue()
        messages = []
        while operations:
            count = self._random.randint(1, 5)
            message, operations = operations[:count], operations[count:]
            messages.append(message)
            studies = [(make_study(each["number"], each["version"]), each["request"]) for _, each in message]
            sending.put(upsert_message([upsert_item(study, request) for study, request in studies]))
        sending.put(None)
        answers = self._client._corpus.UpsertStudies(iter(sending.get, None), timeout=TIMEOUT_S)
        for message, answer in zip(messages, answers, strict=True):
            for (entry, operation), outcome in zip(message, answer.outcomes or [answer], strict=True):
                self._journal.acknowledge(entry, sequence=self._sequence_of(outcome))
                self._note(operation)

    def _new_or_old(self) -> int:
        number = self._some() if self._random.random() < 0.3 else None
        if number is None:
            number = self._next * STUDIES_PER_SUBJECT + self._random.randrange(STUDIES_PER_SUBJECT)
            if self._random.random() < 0.5:
                self._next += WORKERS
        return number


def wait_for_first_acknowledgement(path: Path, limit_s: float) -> bool:
    """Return whether the journal holds an answer before the time is over."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if path.exists() and b'"ack"' in path.read_bytes():
            return True
        time.sleep(0.02)
    return False
