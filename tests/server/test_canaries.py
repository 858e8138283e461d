"""The guard of this folder hears what it should; and the command line tells nothing private either."""

import contextlib
import re
import sqlite3

import pytest
from mmecg_index.audit import AuditEntry
from mmecg_index.corpus import Corpus

from mmecg.cli import main
from mmecg.errors import InvalidInputError, StudyNotFoundError
from mmecg.retriever import Query, Retriever

PRIVATE = re.compile(r"(?:study|subject)-\d|chest pain|case \d|(?<!\d)(?:73\.582|131\.719)")


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (StudyNotFoundError("no study has id study-7"), ["told a caller: study-7"]),
        (InvalidInputError("weight_kg is 73.58217, expected less"), ["told a caller: 73.582"]),
        (StudyNotFoundError("no study has id study-1"), []),
        (RuntimeError("study-7"), []),
    ],
    ids=["id", "vitals", "echo", "internal"],
)
def test_the_guard_hears_errors_that_tell_more_than_was_sent(
    nothing_private_leaks, server, client, corpus, monkeypatch, error, heard
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(corpus, "get", fail)
    monkeypatch.setattr(corpus, "tagged", fail)
    with pytest.raises(Exception, match=str(error) if heard else "study-1|internal"):
        client.get_study("study-1")
    assert [text for text in nothing_private_leaks if text.startswith("told")] == heard
    nothing_private_leaks.clear()


def test_the_guard_hears_statuses_inside_of_streams(nothing_private_leaks, server, client, corpus, monkeypatch):
    def fail(*_, **__):
        raise InvalidInputError("it was like study-9")

    monkeypatch.setattr(corpus, "search", fail)
    (outcome,) = client.search_many([Query(text="sinus rhythm")])
    assert "study-9" in str(outcome.error)
    assert nothing_private_leaks == ["told a caller: study-9"]
    nothing_private_leaks.clear()


@pytest.fixture
def stored(tmp_path, encoder, make_study):
    """A corpus with an audit trail, one study of it damaged, and a subject that was erased."""
    with Corpus.create(tmp_path / "corpus", encoder.fingerprint) as corpus:
        Retriever(encoder, corpus).ingest(make_study(number) for number in range(6))
        moment = make_study(0).acquired_at.astimezone()
        touched = tuple((f"subject-{number // 2}", f"study-{number}") for number in range(6))
        corpus.audit.append([AuditEntry(moment, "ward-3", "SearchService/Search", touched=touched)])
        corpus.erase_subject("subject-0")
    return tmp_path / "corpus"


DAMAGES = (
    "UPDATE studies SET crc = crc + 1 WHERE study_id = 'study-3'",
    "UPDATE studies SET document = replace(document, '\"', 'x') WHERE study_id = 'study-2'",
    "UPDATE embeddings SET vector = zeroblob(8) WHERE row = 4",
    "UPDATE studies SET study_id = 'study-7' WHERE study_id = 'study-4'",
)


@pytest.mark.parametrize("damages", [(), DAMAGES], ids=["sound", "damaged"])
def test_the_command_line_tells_nothing_private(stored, tmp_path, capsys, monkeypatch, damages):
    monkeypatch.setattr("mmecg_server.__main__.set_up_logging", lambda: None)  # it would take the guard's handler away
    with contextlib.closing(sqlite3.connect(stored / "corpus.sqlite")) as connection, connection:
        for damage in damages:
            assert connection.execute(damage).rowcount > 0
    (tmp_path / "bad.toml").write_text("[[principal]]\nname = 'x'\nroles = ['nobody']\n")
    (tmp_path / "serve.toml").write_text("[auth]\nprincipals = 'bad.toml'\n")
    commands = [
        ["audit", stored], ["audit", stored, "--json"], ["audit", stored, "--csv"], ["audit", stored, "--subject", "x"],
        ["audit", tmp_path], ["verify", stored], ["verify", stored, "--json"], ["info", stored],
        ["backup", stored, tmp_path / "backup"], ["verify", tmp_path / "backup"],
        ["restore", tmp_path / "backup", tmp_path / "restored"], ["export", stored, tmp_path / "export"],
        ["erase-subject", stored, "subject-7", "--check"],
        ["serve", "--config", tmp_path / "serve.toml", "--port", "0"],
        ["health", "127.0.0.1:1", "--timeout-s", "1"],
    ]  # fmt: skip
    for command in commands:
        words = [str(word) for word in command]
        main(words)
        told = capsys.readouterr()
        shown = {found for found in PRIVATE.findall(told.out + told.err) if found not in " ".join(words)}
        if words[0] == "audit":  # its reader is told of studies that are there, and nothing else
            assert not {found for found in shown if not re.fullmatch("(study|subject)-[1-5]", found)}, words
            assert "subject-0" not in told.out
            shown = set()
        assert shown == set(), (words, told)
