"""Every kind of bad input gets its own one-line error and exit code, and leaves nothing half-written."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmecg_index.corpus import Corpus

from mmecg.assets import DEFAULT_BUNDLE
from mmecg.datasets.synthetic import synthetic_ecg

RATE = ("--sampling-rate-hz", "100")
ECG = synthetic_ecg(seed=5).signal


def npy(folder, signal):
    np.save(folder / "ecg.npy", np.asarray(signal))
    return folder / "ecg.npy"


def wfdb_claim(folder, samples, stored_bytes, rate=100):
    """A header that claims ``samples``, beside a signal file of ``stored_bytes`` (sparse: no disk is used)."""
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    lines = [f"claim 12 {rate} {samples}", *(f"claim.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in leads)]
    (folder / "claim.hea").write_text("\n".join(lines) + "\n")
    with (folder / "claim.dat").open("wb") as file:
        file.truncate(stored_bytes)
    return folder / "claim"


def text_file(folder, content):
    (folder / "report.txt").write_bytes(content)
    return folder / "report.txt"


def with_nan():
    signal = ECG.copy()
    signal[3, 100] = np.nan
    return signal


RECORDINGS = {
    "11 leads": (lambda d: [npy(d, ECG[:11]), *RATE], "11 leads, expected 12"),
    "unknown lead": (lambda d: [npy(d, ECG[:2]), *RATE, "--leads", "I,X9"], "lead name 'X9' is unknown"),
    "repeated lead": (lambda d: [npy(d, ECG[:2]), *RATE, "--leads", "I,i"], "named more than once"),
    "shape": (lambda d: [npy(d, ECG[0]), *RATE], "signal has 1 axes, expected"),
    "transposed": (lambda d: [npy(d, ECG.T), *RATE], "1000 leads, expected 12"),
    "microvolt": (lambda d: [npy(d, ECG * 1000), *RATE], "looks like microvolt"),
    "unit": (lambda d: [npy(d, ECG), *RATE, "--unit", "furlong"], "unit 'furlong' is unknown"),
    "no rate": (lambda d: [npy(d, ECG)], "sampling rate"),
    "rate": (lambda d: [npy(d, ECG), "--sampling-rate-hz", "10"], "sampling rate is 10 Hz, expected 50 to 2000"),
    "rate is text": (lambda d: [npy(d, ECG), "--sampling-rate-hz", "fast"], "invalid float value: 'fast'"),
    "NaN": (lambda d: [npy(d, with_nan()), *RATE], "NaN or infinite samples in aVR"),
    "zeros": (lambda d: [npy(d, np.zeros((12, 1000))), *RATE], "every sample is zero"),
    "0.2 s": (lambda d: [npy(d, ECG[:, :20]), *RATE], "lasts 0.2 s"),
    "objects": (lambda d: [npy(d, np.array([{}], object)), *RATE], "ecg.npy"),
    "24 h": (lambda d: [wfdb_claim(d, 24 * 3600 * 50, 24 * 3600 * 50 * 24, rate=50)], "lasts 86400 s, expected 1 s"),
    "3 GB claim": (lambda d: [wfdb_claim(d, 3 * 10**9 // 24, 24_000)], "claims 125000000 samples a lead"),
    "no header": (lambda d: [d / "nowhere"], "WFDB header nowhere.hea cannot be read"),
    "empty header": (lambda d: [text_file(d, b"").rename(d / "empty.hea")], "header"),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.mark.parametrize(("build", "message"), RECORDINGS.values(), ids=RECORDINGS)
def test_bad_recording(run, corpus, folder, build, message):
    record, *options = build(folder / "in")
    plot = folder / "out" / "hits.png"
    outcome = run("search", "--corpus", corpus, "--ecg", record, *options, "--plot", plot)
    assert outcome.code == 2
    assert_error(outcome, message, folder)


QUERIES = {
    "nothing": ([], "nothing to search for"),
    "unknown vital": (["--vitals", "shoe_size=43"], "vital 'shoe_size' is unknown"),
    "impossible age": (["--vitals", "age_years=300"], "age_years is outside its plausible range"),
    "vital is text": (["--vitals", "age_years=old"], "age_years is not a number"),
    "vital is nan": (["--vitals", "age_years=nan"], "vitals"),
    "pressures swapped": (["--vitals", "systolic_bp_mmhg=80,diastolic_bp_mmhg=120"], "diastolic pressure is not below"),
    "vital without value": (["--vitals", "age_years"], "expected name=value"),
    "unknown filter": (["--text", "x", "--filter", "colour=red"], "filter field 'colour' is unknown; expected one of"),
    "near filter": (["--text", "x", "--filter", "age_min=60"], "did you mean age_min_years"),
    "filter value": (["--text", "x", "--filter", "sex=other"], "filter sex is 'other', expected one of"),
    "filter number": (["--text", "x", "--filter", "age_min_years=old"], "filter age_min_years is not a finite number"),
    "filter time": (["--text", "x", "--filter", "acquired_from=yesterday"], "filter acquired_from is no time"),
    "filter twice": (["--text", "x", "--filter", "sex=male", "--filter", "sex=female"], "given twice"),
    "weights": (["--text", "x", "--weights", "text=heavy"], "weight of text is not a number"),
    "negative weight": (["--text", "x", "--weights", "text=-1"], "weights"),
    "top_k": (["--text", "x", "--top-k", "0"], "top_k is 0, expected 1 to 1000"),
    "unknown study": (["--study-id", "nobody"], "nobody"),
    "empty text": (["--text", " "], "text"),
    "control characters": (["--text", "a\x07b"], "control"),
    "unknown option": (["--text", "x", "--colour", "red"], "unrecognized arguments: --colour red"),
    "weight of what is not asked": (["--text", "x", "--weights", "ecg=1"], "weights name ecg, which the query lacks"),
    "plot suffix": (["--text", "x", "--plot", "hits.jpg"], "has suffix '.jpg', expected .png"),
    "plot is a folder": (["--text", "x", "--plot", "."], "is a folder, expected a .png file"),
    "rate without an array": (["--text", "x", *RATE], "--sampling-rate-hz came without a NumPy file"),
    "damaged page token": (["--text", "x", "--page-token", "nonsense"], "page_token is damaged"),
    "no plot folder": (["--text", "x", "--plot", "nowhere/hits.png"], "its folder does not exist"),
}


@pytest.mark.parametrize(("options", "message"), QUERIES.values(), ids=QUERIES)
def test_bad_query(run, corpus, folder, options, message):
    outcome = run("search", "--corpus", corpus, *options)
    assert outcome.code == 2
    assert_error(outcome, message, folder)


TEXTS = {
    "not UTF-8": ("Vorhofflimmern, möglich".encode("latin-1"), r"text is not UTF-8 \(byte 17"),
    "100 kB": (b"sinus rhythm " * 8000, "expected at most 20000 characters"),
    "21,000 characters": (b"x" * 21_000, "text has 21000 characters, expected at most 20000"),
    "binary": (b"\x00\x01\x02", "control"),
}


@pytest.mark.parametrize(("content", "message"), TEXTS.values(), ids=TEXTS)
def test_bad_report(run, corpus, folder, content, message):
    path = text_file(folder / "in", content)
    outcome = run("search", "--corpus", corpus, "--text-file", path)
    assert outcome.code == 2
    assert_error(outcome, message, folder)
    assert "sinus" not in outcome.err
    outcome = run("embed", "--text-file", path, "--out", folder / "out" / "texts.parquet")
    assert outcome.code == 2
    assert_error(outcome, message, folder)


def foreign_corpus(folder, corpus):
    Corpus.create(folder / "foreign", "0" * 64).close()
    return ["--corpus", folder / "foreign"]


def corrupt_corpus(folder, corpus):
    shutil.copytree(corpus, folder / "corrupt")
    (file,) = (folder / "corrupt").glob("*.sqlite")
    content = bytearray(file.read_bytes())
    content[:4096] = bytes(4096)
    file.write_bytes(content)
    return ["--corpus", folder / "corrupt"]


def missing_corpus(folder, corpus):
    return ["--corpus", folder / "nowhere"]


def damaged_bundle(change):
    def build(folder, corpus):
        shutil.copytree(DEFAULT_BUNDLE, folder / "bundle")
        change(folder / "bundle")
        return ["--corpus", corpus, "--bundle", folder / "bundle"]

    return build


def truncate(bundle):
    with (bundle / "model.safetensors").open("r+b") as file:
        file.truncate(1000)


ARTIFACTS = {
    "wrong fingerprint": (foreign_corpus, "holds embeddings of fingerprint 000000000000, expected"),
    "corrupt corpus": (corrupt_corpus, "corrupt"),
    "no corpus": (missing_corpus, "holds no corpus; make one with `mmecg build`"),
    "truncated bundle": (damaged_bundle(truncate), r"model.safetensors is damaged \(checksum\)"),
    "bundle lacks a file": (damaged_bundle(lambda b: (b / "config.json").unlink()), "lacks config.json"),
    "no bundle": (damaged_bundle(shutil.rmtree), "has no MANIFEST.json"),
}


@pytest.mark.parametrize(("build", "message"), ARTIFACTS.values(), ids=ARTIFACTS)
def test_bad_artifact(run, corpus, folder, build, message):
    outcome = run("search", "--text", "x", *build(folder / "in", corpus))
    assert outcome.code == 1
    assert_error(outcome, message, folder)


@pytest.mark.parametrize("command", ["build", "embed"])
def test_truncated_bundle_writes_nothing(run, table, folder, command):
    _, _, *bundle = damaged_bundle(truncate)(folder / "in", None)
    data = ["--data", table] if command == "build" else ["--studies", table]
    outcome = run(command, *data, *bundle, "--out", folder / "out" / "new.parquet")
    assert outcome.code == 1
    assert_error(outcome, r"model.safetensors is damaged \(checksum\)", folder)


def test_damaged_index_is_passed_over(run, corpus, folder):
    """The index is a cache over the corpus: what is refused is built anew, and the answer is the same."""
    shutil.copytree(corpus, folder / "corpus")
    expected = run("search", "--corpus", folder / "corpus", "--text", "sinus rhythm", "--json")
    files = sorted((folder / "corpus" / "index").glob("*/tail_vectors.npy"))
    assert len(files) == 3
    for file in files:
        file.write_bytes(file.read_bytes()[:-100])
    outcome = run("search", "--corpus", folder / "corpus", "--text", "sinus rhythm", "--json")
    assert (outcome.code, outcome.out) == (0, expected.out)


def test_corpus_that_is_there_is_not_overwritten(run, corpus, table, folder):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    outcome = run("build", "--data", table, "--out", corpus)
    assert outcome.code == 2
    assert_error(outcome, "exists already", folder)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_folder_without_studies(run, folder):
    outcome = run("build", "--data", folder / "in", "--out", folder / "out" / "corpus")
    assert outcome.code == 2
    assert_error(outcome, "holds no studies, expected a PTB-XL folder", folder)


def test_bundle_beside_a_server(run, folder):
    outcome = run("search", "--text", "x", "--server", "127.0.0.1:1", "--bundle", folder / "in")
    assert outcome.code == 2
    assert_error(outcome, "--bundle came with --server, expected one of them", folder)


def test_plot_is_checked_before_the_search(run, folder):
    # Neither the corpus nor the server is there, and neither is asked.
    for where in (["--corpus", folder / "nowhere"], ["--server", "127.0.0.1:1"]):
        outcome = run("search", "--text", "x", *where, "--plot", folder / "in")
        assert outcome.code == 2
        assert_error(outcome, "is a folder, expected a .png file", folder)


@pytest.mark.parametrize("command", ["build", "embed"])
def test_rate_that_does_not_apply(run, table, folder, command):
    options = ["--data", table] if command == "build" else ["--studies", table]
    outcome = run(command, *options, *RATE, "--out", folder / "out" / "new.parquet")
    assert outcome.code == 2
    assert_error(outcome, "--sampling-rate-hz (does not apply|came without a NumPy file)", folder)


def test_rate_that_ptb_xl_does_not_have(run, folder):
    (folder / "in" / "ptbxl_database.csv").write_text("")
    outcome = run("build", "--data", folder / "in", "--sampling-rate-hz", "250", "--out", folder / "out" / "corpus")
    assert outcome.code == 2
    assert_error(outcome, "expected 100 or 500 for PTB-XL", folder)


BAD_ARRAYS = {
    "no rate": (lambda d: [npy(d, ECG)], "sampling rate"),
    "second recording": (lambda d: [npy(d, np.stack([ECG, with_nan()])), *RATE], r"recording 1 \(from 0\) of ecg.npy"),
    "missing": (lambda d: [d / "nowhere.npz", *RATE], "nowhere.npz"),
}


@pytest.mark.parametrize(("build", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_array_builds_nothing(run, folder, build, message):
    outcome = run("build", "--data", *build(folder / "in"), "--out", folder / "out" / "corpus")
    assert outcome.code == 2
    assert_error(outcome, message, folder)


def test_damaged_table(run, folder):
    (folder / "in" / "studies.parquet").write_bytes(b"PAR1" + bytes(100))
    outcome = run("build", "--data", folder / "in" / "studies.parquet", "--out", folder / "out" / "corpus")
    assert outcome.code == 1
    assert_error(outcome, "studies.parquet cannot be read", folder)


@pytest.mark.parametrize("config", ["port = 'high'", "prot = 1", "port = 99999", "not toml"])
def test_bad_server_configuration(run, folder, config):
    path = folder / "in" / "server.toml"
    path.write_text(config)
    outcome = run("serve", "--config", path)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "configuration" in outcome.err or "port" in outcome.err


def assert_error(outcome, message, folder: Path):
    assert re.search(message, outcome.error), outcome.error
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert list((folder / "out").iterdir()) == [], "something was half-written"
