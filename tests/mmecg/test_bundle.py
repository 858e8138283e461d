"""A bundle comes back as it was saved; a damaged, truncated or foreign one is refused with what is wrong."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmecg.assets import DEFAULT_BUNDLE, DEMO_CORPUS
from mmecg.bundle import (
    Bundle,
    BundleConfig,
    TrainingSummary,
    load_bundle,
    save_bundle,
    write_manifest,
)
from mmecg.config import Precision
from mmecg.datasets.parquet import read_studies
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import BundleError
from mmecg.modeling.dual_encoder import DualEncoder, DualEncoderConfig
from mmecg.modeling.ecg_encoder import EcgEncoderConfig
from mmecg.modeling.text_encoder import TextEncoder, build_text_encoder, build_vocabulary
from mmecg.vitals import Vitals

MODEL = DualEncoderConfig(ecg=EcgEncoderConfig(stem_width=16, widths=(16, 32), kernels=(5, 3), strides=(2, 2)))
CONFIG = BundleConfig(MODEL, TrainingSummary("PTB-XL", (1, 2), 17, "labels", 1, 0), 0.25)
ECG = Ecg.from_array(np.random.default_rng(0).normal(0, 0.3, (12, 1000)), sampling_rate_hz=100, leads=LEADS)


def new_model() -> DualEncoder:
    torch.manual_seed(0)
    vocabulary = build_vocabulary(["sinus rhythm"] * 3, ["a"])
    return DualEncoder(MODEL, TextEncoder(build_text_encoder(vocabulary, width=16, hidden=16))).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle", new_model(), CONFIG)
    return tmp_path / "bundle"


def test_round_trip(folder: Path) -> None:
    model, bundle = new_model(), load_bundle(folder, precision="float32")
    assert bundle.config == CONFIG
    assert bundle.encoder.fingerprint == bundle.fingerprint
    assert len(bundle.fingerprint) == 64
    np.testing.assert_allclose(bundle.encoder.encode_ecg([ECG]), model.encode_ecg([ECG]), atol=1e-6)
    np.testing.assert_array_equal(bundle.encoder.encode_text(["sinus rhythm"]), model.encode_text(["sinus rhythm"]))
    vitals = [Vitals(age_years=60, sex="female")]
    np.testing.assert_array_equal(bundle.encoder.encode_vitals(vitals), model.encode_vitals(vitals))
    assert "Not a medical device" in bundle.card


def test_text_tower_is_a_sentence_transformer(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(folder / "text"), device="cpu").encode(["sinus rhythm"])
    np.testing.assert_allclose(loaded, new_model().encode_text(["sinus rhythm"]), atol=1e-6)


def test_fingerprint_names_the_space_not_the_card(folder: Path) -> None:
    before = load_bundle(folder).fingerprint
    (folder / "README.md").write_text("another card")
    assert write_manifest(folder) == before
    assert load_bundle(folder).card == "another card"
    model = new_model()
    with torch.no_grad():
        model.projection.linear.bias[0] += 0.01
    assert save_bundle(folder, model, CONFIG) != before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "text/model.safetensors", "text/tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_refused(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.raises(BundleError, match=r"damaged|lacks"):
        load_bundle(folder)


def test_manifest_is_needed_and_checked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no MANIFEST\.json"):
        load_bundle(tmp_path)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for change, message in (
        ({"format_version": 99}, "format version 99"),
        ({"fingerprint": "0" * 64}, "does not fit"),
        ({"files": {}}, "does not fit"),
    ):
        (folder / "MANIFEST.json").write_text(json.dumps(manifest | change))
        with pytest.raises(BundleError, match=message):
            load_bundle(folder)
    (folder / "MANIFEST.json").write_text("{")
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["ecg"]["stem_width"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder)
    with pytest.raises(BundleError, match=r"does not fit config\.json"):
        load_bundle(folder)


def test_saving_leaves_no_part_behind_and_replaces(folder: Path) -> None:
    save_bundle(folder, new_model(), CONFIG, card="second")
    assert load_bundle(folder).card == "second"
    assert [item.name for item in folder.parent.iterdir()] == ["bundle"]


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle()


def test_shipped_bundle_is_small_and_complete(shipped: Bundle) -> None:
    size = sum(item.stat().st_size for item in DEFAULT_BUNDLE.rglob("*") if item.is_file())
    assert size <= 64e6
    assert not {9, 10} & set(shipped.config.training.folds)
    assert "CC BY 4.0" in shipped.card


def test_shipped_bundle_knows_its_languages(shipped: Bundle) -> None:
    pairs = [("vorhofflimmern", "atrial fibrillation"), ("linksschenkelblock", "left bundle branch block")]
    german = shipped.encoder.encode_text([pair[0] for pair in pairs])
    english = shipped.encoder.encode_text([pair[1] for pair in pairs])
    cosine = german @ english.T
    assert cosine[0, 0] > cosine[0, 1] + 0.3
    assert cosine[1, 1] > cosine[1, 0] + 0.3


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-5), ("bfloat16", 3e-3)])
def test_shipped_bundle_gives_the_golden_embeddings(precision: Precision, tolerance: float) -> None:
    """The golden file is written by ``scripts/make-golden`` when a new bundle ships; another bundle must not pass.

    Elements are about 0.06 in size. Both precisions are tried wherever the test runs, so "auto" passes everywhere.
    """
    shipped = load_bundle(precision=precision)
    golden = json.loads((Path(__file__).parents[1] / "golden" / "bundle_embeddings.json").read_text())
    assert shipped.fingerprint == golden["fingerprint"]
    study = next(iter(read_studies(DEMO_CORPUS)))
    assert study.study_id == golden["study_id"]
    assert study.ecg is not None
    assert study.report is not None
    ecg = shipped.encoder.encode_ecg([study.ecg])[0]
    np.testing.assert_allclose(ecg, golden["ecg"], atol=tolerance)
    np.testing.assert_allclose(shipped.encoder.encode_text([study.report.text])[0], golden["text"], atol=2e-5)
    np.testing.assert_allclose(shipped.encoder.encode_vitals([study.vitals])[0], golden["vitals"], atol=2e-5)


def test_bfloat16_finds_what_float32_finds() -> None:
    ecgs = [study.ecg for study in itertools.islice(read_studies(DEMO_CORPUS), 128) if study.ecg]
    exact, rough = (load_bundle(precision=name).encoder.encode_ecg(ecgs) for name in ("float32", "bfloat16"))
    assert (exact * rough).sum(1).min() > 0.9999
    nearest, found = ((queries @ exact.T).argsort(1)[:, -11:-1] for queries in (exact, rough))
    shared = [len(set(a) & set(b)) for a, b in zip(nearest.tolist(), found.tolist(), strict=True)]
    assert np.mean(shared) > 9.8
