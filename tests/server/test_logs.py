"""What an operator can alert on: each event has a name, is in the README, and carries nothing of a request."""

import ast
import contextlib
import json
import logging
import re
from pathlib import Path

import pytest
from mmecg_index.corpus import Corpus
from mmecg_index.reading import reading
from mmecg_server.logs import OWN, JsonFormatter, log, set_up_logging

from mmecg.errors import NotReadyError
from mmecg.retriever import Retriever

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "mmecg", ROOT / "index" / "mmecg_index", ROOT / "server" / "mmecg_server"]
LOGGERS = {f"_LOG.{level}" for level in ("debug", "info", "warning", "error", "exception", "critical")}


def line_of(name, message, *args, **extra):
    record = logging.getLogger(name).makeRecord(name, logging.WARNING, "a/b.py", 7, message, args, None, extra=extra)
    return json.loads(JsonFormatter().format(record))


def test_records_of_our_packages_keep_event_message_and_numbers():
    line = line_of("mmecg_index.cache", "%d of %s", 3, "Zvulon", event="snapshot_refused", fields={"rows": 4})
    assert (line["event"], line["logger"], line["message"]) == ("snapshot_refused", "mmecg_index.cache", "%d of %s")
    assert line["rows"] == 4
    assert line_of("mmecg_index.cache", "%.0f ms", 12.4)["message"] == "12 ms"
    assert line_of("mmecg.retriever", "as it is")["message"] == "as it is"
    assert "Zvulon" not in json.dumps(line_of("mmecg", "%(name)s", {"name": "Zvulon"}))


@pytest.mark.parametrize("name", ["grpc._server", "mmecg_foreign", "root", "mmecgs.x"])
def test_of_foreign_records_the_text_stays_out(name):
    line = line_of(name, "Zvulon %s", "Zvulon", event="Zvulon", fields={"name": "Zvulon"})
    assert line == {"time": line["time"], "level": "warning", "event": "library", "logger": name, "line": "b:7"}


def test_our_packages_are_shown_from_info_on(capsys):
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in OWN}
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging()
        log("serving", studies=3)
        logging.getLogger("mmecg_index.folder").info("made anew", extra={"event": "index_rebuilt"})
        logging.getLogger("elsewhere").info("not this")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["serving", "index_rebuilt"]


def logging_calls():
    """Yield every call of a logger, and of ``log``, in the packages."""
    for path in (path for folder in PACKAGES for path in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == "log" and "mmecg_server" in path.parts:
                yield path.name, "server", node
            elif ast.unparse(node.func) in LOGGERS:
                yield path.name, "package", node


def texts(node):
    """Return the texts that an expression may be; none if it is made of others."""
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def test_every_event_has_a_name_and_is_in_the_readme():
    section = (ROOT / "server/README.md").read_text(encoding="utf-8").split("| event | level |")[1].split("\n##")[0]
    explained = {
        name for row in section.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    events = set()
    for where, kind, node in logging_calls():
        message = texts(node.args[0])
        assert message, f"{where}:{node.lineno}: the message is made of something, which may be private"
        if kind == "server":
            events |= set(message)
            continue
        extra = next((keyword.value for keyword in node.keywords if keyword.arg == "extra"), None)
        assert extra is not None, f"{where}:{node.lineno}: no extra with an event's name"
        given = {key.value: value for key, value in zip(extra.keys, extra.values, strict=True)}
        assert texts(given["event"]), f"{where}:{node.lineno}: an event without a name"
        events |= set(texts(given["event"]))
    assert len(events) > 20
    assert events == explained


@pytest.fixture
def stored(tmp_path, encoder, make_study):
    with Corpus.create(tmp_path / "corpus", encoder.fingerprint) as corpus:
        Retriever(encoder, corpus).ingest(make_study(number) for number in range(4))
    return tmp_path / "corpus"


def events_of(log_lines, name):
    return [line for line in map(json.loads, log_lines) if line["event"] == name]


def test_refused_snapshots_and_what_takes_their_place_are_told(stored, encoder, log_lines):
    for file in (stored / "index").glob("*/MANIFEST.json"):
        file.write_text("{")
    with Corpus.open(stored, encoder.fingerprint) as corpus:
        gauges = corpus.gauges()
        assert (gauges.refused_snapshots, gauges.rebuilt, gauges.unfinished_erasures) == (4, 4, 0)
    refused = events_of(log_lines, "snapshot_refused")
    assert {line["reason"] for line in refused} == {"IndexFormatError"}
    assert {line["snapshot"].partition("-")[0] for line in refused} == {"ecg", "text", "vitals", "metadata"}
    assert {line["name"]: line["rows"] for line in events_of(log_lines, "index_rebuilt")}["ecg"] == 4
    log_lines.clear()
    with Corpus.open(stored, encoder.fingerprint) as corpus:
        gauges = corpus.gauges()
        assert (gauges.refused_snapshots, gauges.rebuilt) == (0, 0)
    assert log_lines == []


def test_an_erasure_that_is_not_finished_is_told(stored, encoder, log_lines, monkeypatch):
    monkeypatch.setattr("mmecg_index.erasure._EMPTY_LOG_S", 0.0)
    with Corpus.open(stored, encoder.fingerprint) as corpus, reading(stored) as view:
        assert view.count("studies") == 4
        with pytest.raises(NotReadyError):
            corpus.erase_subject("subject-1")
        assert corpus.gauges().unfinished_erasures == 1
    log_lines.clear()
    with contextlib.ExitStack() as stack:
        with reading(stored) as view:
            assert view.count("studies") == 2
            corpus = stack.enter_context(Corpus.open(stored, encoder.fingerprint))
        assert corpus.gauges().unfinished_erasures == 1
    (line,) = events_of(log_lines, "erasure_unfinished")
    assert (line["level"], line["reason"]) == ("error", "NotReadyError")
    with Corpus.open(stored, encoder.fingerprint) as corpus:
        assert corpus.gauges().unfinished_erasures == 0
