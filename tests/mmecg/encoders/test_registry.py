"""Encoders are found through entry points, also those of packages that we do not know."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch

from mmecg.ecg import Ecg
from mmecg.encoders.published import configure, load_encoder, write_encoder
from mmecg.encoders.registry import SeenData, available, get_encoder, read_labels
from mmecg.errors import ConfigError, InvalidInputError

OURS = {"ecg-fm", "ecg-founder", "ecg-founder-1-lead"}
MODULE = """\
import torch
from mmecg.encoders.preprocessing import Preprocessing
from mmecg.encoders.registry import EncoderSpec, PublishedWeights

class Means(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(12, 1))

    def forward(self, signal):
        return (self.gain * signal).mean(-1), None

SPEC = EncoderSpec(
    name="{name}", title="Means", paper="none", code_licence="MIT", weights_licence="MIT", samples=1000,
    feature_dim=12, parameters=0, preprocessing={{"plain": Preprocessing(sampling_rate_hz=100, samples=1000)}},
    build=lambda hyperparameters: Means(), read_checkpoint=lambda content: PublishedWeights({{}}, {{}}),
)
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Return a function that makes a distribution with one entry point and puts it on the path."""

    def make(entry: str, *, module: str = "their_encoder", name: str = "means", source: str = MODULE) -> None:
        folder = tmp_path / module
        (folder / f"{module}-1.0.dist-info").mkdir(parents=True)
        (folder / f"{module}.py").write_text(source.format(name=name), encoding="utf-8")
        info = folder / f"{module}-1.0.dist-info"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[mmecg.encoders]\n{entry} = {module}:SPEC\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return make


def test_ours_are_registered_under_their_names():
    found = available()
    assert found.keys() >= OURS
    assert {name: spec.name for name, spec in found.items()} == {name: name for name in found}


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_spec_is_consistent(name):
    spec = get_encoder(name)
    for variant in spec.preprocessing.values():
        assert (variant.leads, variant.samples, variant.sampling_rate_hz) == (
            spec.leads,
            spec.samples,
            spec.sampling_rate_hz,
        )
    assert spec.labels
    assert spec.paper.startswith("arXiv:")


def test_a_third_partys_encoder_is_found_and_works(distribution, tmp_path):
    distribution("means")
    assert available().keys() >= OURS | {"means"}
    spec = get_encoder("means")
    assert (spec.default_variant, spec.sampling_rate_hz, len(spec.leads)) == ("plain", 100, 12)
    write_encoder(tmp_path / "saved", configure(spec, {}), {"gain": torch.ones(12, 1)})
    ecg = Ecg.from_array(np.random.default_rng(0).standard_normal((12, 5000)), sampling_rate_hz=500)
    features = load_encoder(tmp_path / "saved").features([ecg])
    np.testing.assert_allclose(features, np.zeros((1, 12)), atol=1e-5)


def test_one_that_cannot_be_imported_leaves_the_others(distribution):
    distribution("broken", module="broken_encoder", source="raise OSError('no licence file')")
    with pytest.warns(RuntimeWarning, match="encoder broken .* cannot be loaded: no licence file"):
        found = available()
    assert found.keys() >= OURS
    assert "broken" not in found


def test_an_entry_point_of_another_name_is_refused(distribution):
    distribution("medians")
    with pytest.raises(ConfigError, match="is an encoder named means, expected an EncoderSpec named medians"):
        get_encoder("medians")


def test_an_entry_point_to_something_else_is_refused(distribution):
    distribution("number", module="number_encoder", source="SPEC = 12")
    with pytest.raises(ConfigError, match="is a int, expected an EncoderSpec"):
        get_encoder("number")


def test_two_of_one_name_are_refused(distribution):
    distribution("ecg-fm", module="impostor", name="ecg-fm")
    with pytest.raises(ConfigError, match="ecg-fm is registered twice"):
        get_encoder("ecg-fm")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInputError, match=r"no encoder 'ecgfm'; registered: .*ecg-fm"):
        get_encoder("ecgfm")


@pytest.mark.parametrize("spelling", ["PTB-XL", "ptb_xl", "PTB XL"])
def test_contamination_is_said_of_what_was_seen(spelling):
    said = get_encoder("ecg-fm").contamination(spelling)
    assert said.startswith("ECG-FM saw PTB-XL in pretraining")
    assert "not figures on unseen patients" in said
    assert get_encoder("ecg-founder").contamination(spelling) == ""


def test_labels_out_of_order_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "their_labels"
    package.mkdir()
    (package / "__init__.py").touch()
    header = "index,name,finding,relation,serial,reduction\n"
    (package / "labels.csv").write_text(f"{header}1,b,,,false,mean\n0,a,,,true,max\n", encoding="utf-8")
    (package / "wrong.csv").write_text(f"{header}0,a,,,false,median\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="not in the order of its index"):
        read_labels("their_labels", "labels.csv")
    with pytest.raises(ConfigError, match="reduction of 'a' is 'median'"):
        read_labels("their_labels", "wrong.csv")


def test_the_contamination_sentence_names_what_was_seen():
    seen = SeenData("PTB-XL", "pretraining", "its paper")
    assert seen.is_of("ptb_xl")
    assert not seen.is_of("PTB")
    assert seen.sentence("It", 9) == (
        "It saw PTB-XL in pretraining (its paper): its figures on PTB-XL are not figures on unseen patients."
    )
    some = SeenData("PTB-XL", "training", "its card", (1, 2))
    assert some.sentence("It", 9) == "It saw folds 1, 2 of PTB-XL in training (its card), not fold 9."
    assert "not figures on unseen patients" in some.sentence("It", 2)
    assert "not figures on unseen patients" in some.sentence("It")
