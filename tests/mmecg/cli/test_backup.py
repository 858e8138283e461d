"""``mmecg backup``, ``restore`` and ``verify``."""

import json
import shutil

from mmecg_index.corpus import Corpus
from mmecg_index.verify import verify


def test_backup_is_verified_and_restored(run, corpus, studies, tmp_path):
    made = run("backup", corpus, tmp_path / "backup", "--json")
    assert made.code == 0, made.err
    answer = json.loads(made.out)
    assert answer["studies"] == len(studies)
    assert answer["size_bytes"] > 0
    checked = run("verify", tmp_path / "backup", "--json")
    assert checked.code == 0, checked.err
    found = json.loads(checked.out)
    assert (found["ok"], found["findings"], found["studies"]) == (True, [], len(studies))
    assert found["embeddings"] == 3 * len(studies)
    restored = run("restore", tmp_path / "backup", tmp_path / "restored")
    assert restored.code == 0, restored.err
    assert f"{len(studies)} studies" in restored.out
    assert "erased after this backup is in it again" in restored.err
    assert run("verify", tmp_path / "restored").code == 0
    assert run("search", "--corpus", tmp_path / "restored", "--text", "atrial fibrillation", "--json").code == 0


def test_damage_is_told_by_words_and_exit_code(run, corpus, tmp_path):
    assert run("backup", corpus, tmp_path / "backup", "--no-indexes").code == 0
    file = tmp_path / "backup" / "corpus.sqlite"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    checked = run("verify", tmp_path / "backup")
    assert checked.code == 1
    assert "corpus.sqlite is missing or not as it was written (SHA-256)" in checked.err
    assert "restore a backup" in checked.out
    refused = run("restore", tmp_path / "backup", tmp_path / "restored")
    assert refused.code == 1
    assert "restore another backup" in refused.error
    assert not (tmp_path / "restored").exists()


def test_nothing_is_overwritten_and_a_path_that_is_no_corpus_is_said_so(run, corpus, tmp_path):
    assert run("backup", corpus, tmp_path / "backup").code == 0
    assert run("backup", corpus, tmp_path / "backup").code == 2
    assert run("restore", tmp_path / "backup", corpus).code == 2
    for command in (("backup", tmp_path, tmp_path / "x"), ("verify", tmp_path), ("restore", tmp_path, tmp_path / "x")):
        outcome = run(*command)
        assert outcome.code == 1
        assert "no corpus" in outcome.error or "no backup" in outcome.error


def test_erasures_are_applied_to_what_is_restored(run, corpus, studies, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    assert run("backup", tmp_path / "corpus", tmp_path / "backup").code == 0
    assert run("erase-subject", tmp_path / "corpus", "subject-3").code == 0
    arguments = ("restore", tmp_path / "backup", tmp_path / "restored", "--apply-erasures", tmp_path / "corpus")
    restored = run(*arguments, "--json")
    assert restored.code == 0, restored.err
    assert json.loads(restored.out)["erased"] == 2
    assert json.loads(restored.out)["studies"] == len(studies) - 2
    with Corpus(tmp_path / "restored") as opened:
        assert opened.stats().studies == len(studies) - 2
        assert opened.sequence == json.loads(restored.out)["sequence"]
    assert verify(tmp_path / "restored").ok
    check = run("erase-subject", tmp_path / "restored", "subject-3", "--check", "--known-from", tmp_path / "backup")
    assert (check.code, check.out.split(": ")[-1]) == (0, "no traces left\n")
