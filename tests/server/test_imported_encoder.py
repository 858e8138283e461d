"""A published checkpoint from its file to the service: import, align, build, serve; then asked by ECG, text and label.

The weights are drawn at random and the network is ECGFounder's with few maps; everything else is the real thing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmecg_server.__main__ import open_bundle, open_corpus, open_predictor, warm_up
from mmecg_server.config import ServerConfig
from mmecg_server.server import Server

from mmecg.bundle import load_bundle
from mmecg.cli import main
from mmecg.client import ChannelOptions, Client, RetryPolicy
from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.datasets.wfdb_write import write_wfdb
from mmecg.ecg import Ecg
from mmecg.encoders import ecg_founder
from mmecg.encoders.published import load_encoder
from mmecg.errors import BundleError, FingerprintMismatchError, MmecgError, NotAlignedError
from mmecg.labels.report_miner import ReportMiner
from mmecg.retriever import Retriever

TOY = {"stem_width": 16, "widths": [16, 32], "blocks": [1, 1], "classes": 150}
REPORTS = ("sinusrhythmus", "vorhofflimmern")
CODES = ("{'SR': 100.0, 'NORM': 100.0}", "{'AFIB': 100.0}")
STUDIES = 32


def recording(number: int) -> Ecg:
    """Return sinus rhythm at 60 /min (even) or atrial fibrillation at 130 /min (odd), in whole microvolts."""
    if number % 2:
        ecg = synthetic_ecg(rhythm="atrial_fibrillation", heart_rate_bpm=130, seed=number)
    else:
        ecg = synthetic_ecg(heart_rate_bpm=60, seed=number)
    return Ecg.from_array(np.rint(1000 * ecg.signal).astype(np.int16), sampling_rate_hz=100, unit="uV")


def write_ptb_xl(folder: Path) -> Path:
    """Write a folder in PTB-XL layout, one record a patient, folds 1 and 2."""
    (folder / "records100").mkdir(parents=True)
    with (folder / "scp_statements.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "description", "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"])
        rows.writerow(["NORM", "normal ECG", 1.0, "", "", "NORM", "NORM"])
        rows.writerow(["SR", "sinus rhythm", "", "", 1.0, "", ""])
        rows.writerow(["AFIB", "atrial fibrillation", "", "", 1.0, "", ""])
    columns = ["ecg_id", "patient_id", "age", "sex", "height", "weight", "recording_date", "report", "scp_codes",
               "strat_fold", "filename_lr", "filename_hr"]  # fmt: skip
    with (folder / "ptbxl_database.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for number in range(STUDIES):
            name = f"records100/{number:05d}_lr"
            assert write_wfdb(folder / name, recording(number))
            kind = number % 2
            row = [number, float(number), 50 + number % 9, kind, "", "", "1990-01-01 10:00:00", REPORTS[kind]]
            rows.writerow([*row, CODES[kind], 1 + number % 4 // 2, name, name.replace("lr", "hr")])
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``encoder/`` (imported), ``bundle/`` (aligned), and a corpus of each."""
    root = tmp_path_factory.mktemp("imported")
    data = write_ptb_xl(root / "ptb-xl")
    with pytest.MonkeyPatch.context() as patch:
        toy = replace(ecg_founder.SPEC, build=lambda given: ecg_founder.build({**TOY, **given}))
        patch.setattr(ecg_founder, "SPEC", toy)
        torch.manual_seed(0)
        torch.save({"state_dict": ecg_founder.build(TOY).state_dict()}, root / "12_lead.pth")
        (root / "recipe.toml").write_text("epochs = 12\nfolds = [1, 2]\nbatch_size = 16\nextra_reports = 8\n")
        encoder, bundle = root / "encoder", root / "bundle"
        command("import-encoder", "ecg-founder", root / "12_lead.pth", "--out", encoder)
        command("align", encoder, "--data", data, "--out", bundle, "--config", root / "recipe.toml", "--quiet")
        for folder in (encoder, bundle):
            command("build", "--encoder", folder, "--data", data, "--out", folder.with_name(f"corpus-{folder.name}"))
        yield root


def command(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@contextmanager
def serving(bundle: Path, corpus: Path) -> Iterator[Client]:
    """Serve as the program does, and yield a client."""
    config = ServerConfig(port=0, bundle=bundle, corpus=corpus, precision="float32")
    with Server(config) as server:
        loaded, miner = open_bundle(config), ReportMiner()
        with open_corpus(config, loaded.fingerprint) as opened:
            retriever = Retriever(loaded.encoder, opened)
            predictor = open_predictor(loaded, opened, miner)
            warm_up(retriever, predictor)
            server.serve(retriever, miner, predictor)
            with Client(f"127.0.0.1:{server.port}", ChannelOptions(retry=RetryPolicy(attempts=1))) as client:
                yield client


def test_an_aligned_bundle_answers_ecg_text_and_label_queries(root: Path) -> None:
    aligned, shipped = load_bundle(root / "bundle", precision="float32"), load_bundle(precision="float32")
    with serving(root / "bundle", root / "corpus-bundle") as client:
        info = client.info()
        assert (info.ecg_encoder, info.fingerprint) == ("ecg-founder", aligned.fingerprint)
        assert info.fingerprint != shipped.fingerprint
        texts = ("sinus rhythm", "atrial fibrillation")
        for kind, text in enumerate(texts):
            for query in ({"text": text}, {"ecg": recording(STUDIES + kind)}):
                hits = client.search(**query, top_k=8).hits
                found = [int(hit.study_id) % 2 == kind for hit in hits]
                assert sum(found) >= 7, (query.keys(), found)
        np.testing.assert_allclose(
            client.embed_ecg([recording(99)]), aligned.encoder.encode_ecg([recording(99)]), atol=1e-5
        )
        np.testing.assert_allclose(client.embed_text(texts), shipped.encoder.encode_text(texts), atol=1e-5)
        mined = client.mine_labels(study_id="1")
        assert {assertion.finding for assertion in mined.assertions} == {"AFIB"}
        with pytest.raises(MmecgError, match="no prediction heads"):
            client.predict(recording(0))


def test_an_imported_encoder_alone_answers_ecg_queries_only(root: Path) -> None:
    with serving(root / "encoder", root / "corpus-encoder") as client:
        assert client.info().ecg_encoder == "ecg-founder"
        assert client.info().fingerprint == load_encoder(root / "encoder").fingerprint
        stats = client.stats()
        assert (stats.embeddings["ecg"], stats.embeddings["text"], stats.embeddings["vitals"]) == (STUDIES, 0, 0)
        assert int(client.search(ecg=recording(5), top_k=1).hits[0].study_id) == 5
        with pytest.raises(NotAlignedError, match=r"not aligned with text.*mmecg align"):
            client.search(text="sinus rhythm")
        with pytest.raises(NotAlignedError, match="not aligned with text"):
            client.search(ecg=recording(5), text="sinus rhythm")


def test_a_corpus_of_one_space_is_refused_by_the_other(root: Path) -> None:
    config = ServerConfig(bundle=root / "bundle", corpus=root / "corpus-encoder")
    with pytest.raises(FingerprintMismatchError), open_corpus(config, open_bundle(config).fingerprint):
        pass


def test_an_aligned_bundle_says_what_it_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("info", "--bundle", root / "bundle", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["bundle"]["ecg_encoder"] == "ecg-founder"
    assert "ecg-founder saw HEEDB" in answer["card"]
    bundle = load_bundle(root / "bundle")
    assert bundle.contamination("PTB-XL", fold=9).startswith("The bundle saw folds 1, 2, 3")
    assert "ecg-founder saw HEEDB in pretraining" in bundle.contamination("heedb")
    assert not bundle.contamination("CPSC2018")
    assert load_encoder(root / "bundle" / "encoder").fingerprint == load_encoder(root / "encoder").fingerprint


def test_a_bundle_with_another_encoder_inside_is_refused(root: Path, tmp_path: Path) -> None:
    import shutil

    from mmecg.bundle import write_manifest

    shutil.copytree(root / "bundle", tmp_path / "bundle")
    encoder = load_encoder(root / "encoder")
    with torch.no_grad():
        encoder.network.dense.bias[0] += 1
    shutil.rmtree(tmp_path / "bundle" / "encoder")
    encoder.save(tmp_path / "bundle" / "encoder")
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(tmp_path / "bundle")
    write_manifest(tmp_path / "bundle")
    with pytest.raises(BundleError, match="not the encoder it was aligned with"):
        load_bundle(tmp_path / "bundle")
