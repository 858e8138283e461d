"""An operator's work on a corpus that is being served."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mmecg_index.administration import CorpusAdministration
from mmecg_index.aside import run_aside
from mmecg_index.corpus import Corpus
from mmecg_index.verify import verify

from mmecg.errors import MmecgError, NotReadyError


def test_a_verification_is_done_by_a_process_of_its_own(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmecg_index.verify as here

    with Corpus(filled) as corpus:
        expected = verify(filled)

        def fail(*_: object) -> None:
            raise AssertionError("this process, which answers calls, reads the whole corpus")

        monkeypatch.setattr(here, "_check_studies", fail)
        assert CorpusAdministration(corpus).verify() == expected
        assert (expected.studies, expected.findings) == (30, ())


def test_findings_come_back(filled: Path) -> None:
    with Corpus(filled) as corpus:
        corpus._database.writer.execute("UPDATE studies SET crc = crc + 1")
        assert CorpusAdministration(corpus).verify().findings == verify(filled).findings != ()


def test_a_verification_ends_when_nobody_wants_it_or_the_corpus_is_closed(filled: Path) -> None:
    with Corpus(filled) as corpus:
        with pytest.raises(NotReadyError, match="ended before"):
            CorpusAdministration(corpus).verify(wanted=lambda: False)
        raised: list[BaseException] = []

        def ask() -> None:
            try:
                CorpusAdministration(corpus).verify(wanted=lambda: corpus.close() is not None)
            except NotReadyError as error:
                raised.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(60)
        assert len(raised) == 1


def test_a_process_that_fails_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(MmecgError, match="exit code 1"):
        run_aside("mmecg_index.verify", [str(tmp_path / "nothing")])


WAIT = (
    "import sys, time; from mmecg_index.aside import step_aside; step_aside(); print('up', flush=True); time.sleep(99)"
)
START = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {WAIT!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.readline()
"""


def test_a_process_aside_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert os.getpriority(os.PRIO_PROCESS, pid) >= 10
        parent.kill()
    end = time.monotonic() + 30
    while time.monotonic() < end and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
