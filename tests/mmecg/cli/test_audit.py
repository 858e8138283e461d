import csv
import io
import json
import shutil
from datetime import UTC, datetime

import pytest
from mmecg_index.audit import AuditEntry
from mmecg_index.corpus import Corpus


@pytest.fixture
def trail(corpus, tmp_path):
    path = shutil.copytree(corpus, tmp_path / "corpus")
    with Corpus(path) as opened:
        for hour, principal in ((10, "ward-3"), (11, "study-nurse"), (12, "ward-3")):
            opened.audit.append(
                [
                    AuditEntry(
                        time=datetime(2026, 3, 1, hour, tzinfo=UTC),
                        principal=principal,
                        method="CorpusService.GetStudies",
                        touched=((f"subject-{hour - 10}", f"study-{2 * (hour - 10)}"), ("subject-9", "study-18")),
                        items=2,
                    )
                ]
            )
    return path


def entries(outcome):
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_the_trail_as_json_lines(run, trail):
    first, *_ = found = entries(run("audit", trail, "--json"))
    assert len(found) == 3
    assert (first["entry"], first["principal"], first["time"]) == (1, "ward-3", "2026-03-01T10:00:00+00:00")
    assert [touched["study_id"] for touched in first["touched"]] == ["study-0", "study-18"]


def test_who_looked_at_a_subject(run, trail):
    assert [entry["entry"] for entry in entries(run("audit", trail, "--subject", "subject-2", "--json"))] == [3]
    assert [entry["entry"] for entry in entries(run("audit", trail, "--subject", "subject-9", "--json"))] == [1, 2, 3]
    assert entries(run("audit", trail, "--subject", "nobody", "--json")) == []
    narrowed = run("audit", trail, "--principal", "ward-3", "--since", "2026-03-01T11:30", "--json")
    assert [entry["entry"] for entry in entries(narrowed)] == [3]
    assert run("audit", trail, "--since", "yesterday").code == 2


def test_the_trail_of_an_erased_subject_has_no_name(run, trail):
    assert run("erase-subject", trail, "subject-9").code == 0
    found = entries(run("audit", trail, "--subject", "subject-9", "--json"))
    assert [entry["method"] for entry in found][-1] == "corpus.erase_subject"
    assert found[-1]["principal"].startswith("cli:")
    assert {touched["subject_id"] for entry in found for touched in entry["touched"][1:]} == {""}


def test_the_trail_as_csv_and_as_a_table_while_a_server_holds_the_corpus(run, trail):
    with Corpus(trail):
        rows = list(csv.DictReader(io.StringIO(run("audit", trail, "--csv").out)))
        assert [row["study_id"] for row in rows] == [
            "study-0", "study-18", "study-2", "study-18", "study-4", "study-18"
        ]  # fmt: skip
        assert "study-nurse" in run("audit", trail).out


def methods(outcome):
    return [(one["method"], one["outcome"], one["items"]) for one in entries(outcome)]


def test_commands_are_entered(run, corpus, studies, tmp_path):
    path, count = shutil.copytree(corpus, tmp_path / "corpus"), len(studies)
    before = len(entries(run("audit", path, "--json")))
    backup, export = tmp_path / "backup", tmp_path / "export"
    assert run("backup", path, backup).code == 0
    assert run("backup", path, backup).code == 2  # is there
    assert run("export", path, export, "--embeddings").code == 0
    with Corpus(path):  # as a server has it
        assert run("backup", path, tmp_path / "second").code == 0
    assert run("reindex", path, "--cancel").code == 0
    found = entries(run("audit", path, "--json"))[before:]
    assert {one["principal"][:4] for one in found} == {"cli:"}
    assert [(one["method"], one["outcome"], one["items"]) for one in found] == [
        ("cli.backup", "OK", count),
        ("cli.backup", "AlreadyExistsError", 0),
        ("cli.export", "OK", count),
        ("cli.backup", "OK", count),
        ("cli.cancel_reindex", "OK", 0),
    ]
    assert run("verify", path).code == 0

    assert run("export", backup, tmp_path / "export-2").code == 0
    assert run("verify", backup).code == 0  # a backup is not changed by who reads it
    assert run("restore", backup, tmp_path / "restored").code == 0
    assert methods(run("audit", tmp_path / "restored", "--json"))[-1] == ("cli.restore", "OK", count)
    assert run("import", export, tmp_path / "imported").code == 0
    (imported,) = entries(run("audit", tmp_path / "imported", "--json"))
    assert (imported["method"], imported["items"]) == ("cli.import", count)
    assert {one["study_id"] for one in imported["touched"]} == {one.study_id for one in studies}


def test_a_command_on_what_may_not_be_written_is_done_and_not_entered(run, corpus, tmp_path, monkeypatch):
    path = shutil.copytree(corpus, tmp_path / "corpus")
    before = (path / "corpus.sqlite").read_bytes()
    monkeypatch.setattr("mmecg_index.commands.os.access", lambda *_: False)
    assert run("export", path, tmp_path / "export").code == 0
    assert (path / "corpus.sqlite").read_bytes() == before
