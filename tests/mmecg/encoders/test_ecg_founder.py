"""ECGFounder: the golden vectors, the keys of its published files, its labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from mmecg.ecg import Ecg
from mmecg.encoders.ecg_founder import LABELS, SPEC, SPEC_1_LEAD, SameConv, build, read_checkpoint
from mmecg.encoders.filters import FILTERS
from mmecg.encoders.published import PublishedEncoder, configure
from mmecg.errors import BundleError, ConfigError
from mmecg.labels.vocabulary import load_vocabulary

FEATURES, LOGITS, INPUT = 1e-4, 1e-3, 1e-5
SPECS = {"12_lead": SPEC, "1_lead": SPEC_1_LEAD}
TOY = {"stem_width": 16, "widths": [16, 32, 48], "blocks": [2, 1, 2], "classes": 5}


@pytest.fixture(scope="module")
def loaded():
    """Return a function that gives a network with pseudo-weights, and the tensors that it does not need."""
    held: dict[str, tuple[torch.nn.Module, tuple[str, ...]]] = {}

    def load(golden, pseudo_weights, kind: str):
        if kind not in held:
            weights = SPECS[kind].read_checkpoint({"state_dict": pseudo_weights(golden.keys("ecgfounder", kind))})
            with torch.device("meta"):
                network = SPECS[kind].build(weights.hyperparameters)
            network.load_state_dict(weights.tensors, assign=True)
            held[kind] = network.eval(), weights.unused
        return held[kind]

    yield load
    held.clear()


@pytest.mark.parametrize("kind", SPECS)
def test_keys_of_the_file_are_those_of_the_network(golden, pseudo_weights, loaded, kind):
    network, unused = loaded(golden, pseudo_weights, kind)
    keys = golden.keys("ecgfounder", kind)
    assert {entry["key"] for entry in keys if entry.get("unused_in_forward")} == set(unused)
    assert {entry["key"] for entry in keys} == set(unused) | set(network.state_dict())
    batch_norms = sum(np.prod(entry["shape"]) for entry in keys if entry["key"].endswith(("weight", "bias")))
    assert batch_norms == SPECS[kind].parameters
    assert sum(tensor.numel() for tensor in network.parameters()) == SPECS[kind].parameters - 66_368


@pytest.mark.parametrize(("kind", "prefix"), [("12_lead", "ecgfounder12"), ("1_lead", "ecgfounder1")])
@pytest.mark.parametrize("name", ["s2500", "s5000", "s3777"])
def test_synthetic_signals_match_the_golden_vectors(golden, pseudo_weights, error, loaded, kind, prefix, name):
    network, _ = loaded(golden, pseudo_weights, kind)
    signal = golden.signal(name)
    with torch.inference_mode():
        features, logits = network(signal if kind == "12_lead" else signal[:, :1])
    assert error(features, golden.synthetic[f"{name}__{prefix}_features"]) < FEATURES
    assert error(logits, golden.synthetic[f"{name}__{prefix}_logits"]) < LOGITS


@pytest.mark.parametrize(("kind", "prefix"), [("12_lead", "ecgfounder12"), ("1_lead", "ecgfounder1")])
@pytest.mark.parametrize("variant", ["dataset", "eval"])
def test_records_match_the_golden_vectors(golden, pseudo_weights, error, loaded, kind, prefix, variant):
    network, _ = loaded(golden, pseudo_weights, kind)
    encoder = PublishedEncoder(network, configure(SPECS[kind], {}, variant=variant), "pseudo")
    segments = encoder.segments(golden.ecgs())
    assert error([item.features[0] for item in segments], golden.outputs[f"{prefix}_{variant}_features"]) < FEATURES
    assert error([item.logits[0] for item in segments], golden.outputs[f"{prefix}_{variant}_logits"]) < LOGITS


def test_inputs_match_the_golden_vectors(golden, error):
    rows = [list(golden.inputs["record_id"]).index(record) for record in golden.preprocessed["record_id"]]
    ecgs = [golden.ecgs()[row] for row in rows]
    for prefix, spec in (("ecgfounder12", SPEC), ("ecgfounder1", SPEC_1_LEAD)):
        got = np.concatenate([spec.preprocessing["dataset"].apply(ecg) for ecg in ecgs])
        assert error(got, golden.preprocessed[f"{prefix}_dataset_input"]) < INPUT
    plain = np.concatenate([SPEC.preprocessing["eval"].apply(ecg)[..., :250] for ecg in ecgs])
    assert error(plain, golden.preprocessed["ecgfounder12_eval_input_first_250"]) < INPUT


def test_leads_in_another_order_give_the_same(golden, pseudo_weights, error, loaded):
    network, _ = loaded(golden, pseudo_weights, "12_lead")
    encoder = PublishedEncoder(network, configure(SPEC, {}), "pseudo")
    (segment,) = encoder.segments([golden.edge_ecgs()["mimic_order"]])
    assert error(segment.features[0], golden.edge["mimic_order__ecgfounder12_dataset_features"]) < FEATURES
    assert error(segment.logits[0], golden.edge["mimic_order__ecgfounder12_dataset_logits"]) < LOGITS


def test_stages_match_the_golden_trace(golden, pseudo_weights, error, loaded):
    network, _ = loaded(golden, pseudo_weights, "12_lead")
    seen = []
    blocks = [block for stage in network.stage_list for block in stage.block_list]
    hooks = [
        module.register_forward_hook(lambda *call: seen.append(call[2])) for module in (network.first_conv, *blocks)
    ]
    with torch.inference_mode():
        network(golden.signal("s5000"))
    for hook in hooks:
        hook.remove()
    names = ["first_conv", *(f"block{index:02}" for index in range(20))]
    for name, maps in zip(names, seen, strict=True):
        got = torch.stack([maps[0].mean(-1), maps[0, :, -1]])
        assert error(got, golden.synthetic[f"trace_ecgfounder12__{name}_mean_last"]) < FEATURES, name


def test_labels_are_the_published_ones_with_findings_of_the_crosswalk(golden):
    assert [label.name for label in LABELS] == golden.labels("labels_ecgfounder")


def test_labels_agree_with_the_vocabulary():
    vocabulary = load_vocabulary()
    rows = {row.code: row for row in vocabulary.mappings("ecgfounder")}
    assert rows.keys() == {label.name for label in LABELS}
    for label in LABELS:
        row = rows[label.name]
        assert (label.finding, label.relation) == (row.finding, row.relation or ""), label.name
        assert label.serial == (row.finding != "" and vocabulary.finding(row.finding).serial), label.name
    serial = [label.name for label in LABELS if label.serial]
    assert len(serial) == 22
    assert {"T WAVE INVERSION NOW EVIDENT IN", "ST LESS DEPRESSED IN", "QT HAS LENGTHENED"} <= set(serial)


@pytest.mark.parametrize("samples", [40, 41, 63])
@pytest.mark.parametrize(("kernel", "stride"), [(16, 1), (16, 2), (1, 1)])
def test_same_convolution_pads_as_it_says(samples, kernel, stride):
    module, x = SameConv(4, 6, kernel, stride, groups=2), torch.randn(2, 4, samples)
    length = -(-samples // stride)
    total = max(0, (length - 1) * stride + kernel - samples)
    padded = torch.cat([torch.zeros(2, 4, total // 2), x, torch.zeros(2, 4, total - total // 2)], -1)
    expected = functional.conv1d(padded, module.conv.weight, module.conv.bias, stride, groups=2)
    assert expected.shape[-1] == length
    assert torch.equal(module(x), expected) or torch.allclose(module(x), expected, atol=1e-6)


def test_network_trains_and_an_embedding_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    network = build(TOY)
    signal = torch.randn(3, 12, 160)
    features, logits = network(signal)
    assert features.shape == (3, 48)
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    with torch.inference_mode():
        assert torch.allclose(network(signal[1:2])[0], features[1:2], atol=1e-6)
        assert (network(signal.flip(1))[0] - features).abs().max() > 1e-4


def test_unknown_hyperparameter_is_refused():
    with pytest.raises(ConfigError, match="stem_widht"):
        build({"stem_widht": 64})


def test_every_filter_keeps_the_shape_and_does_what_it_is_called():
    time = np.arange(5000) / 500
    tones = {hz: np.sin(2 * np.pi * hz * time)[None] for hz in (0.1, 10, 50, 60)}

    def gain(name, hz):
        return FILTERS[name](tones[hz], 500.0)[0, 1000:4000].std() / tones[hz].std()

    assert gain("notch_50hz", 50) < 0.01 < 0.99 < gain("notch_50hz", 60)
    assert gain("notch_60hz", 60) < 0.01 < 0.99 < gain("notch_60hz", 50)
    assert gain("bandpass_0.67_40hz", 0.1) < 0.01 < 0.99 < gain("bandpass_0.67_40hz", 10)
    assert gain("highpass_0.5hz", 0.1) < 0.05 < 0.99 < gain("highpass_0.5hz", 10)
    assert gain("lowpass_50hz", 50) == pytest.approx(0.5, abs=0.01)  # -3 dB, twice
    assert gain("median_0.4s", 0.1) < 0.01
    assert gain("median_0.4s", 10) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("variant", SPEC.preprocessing)
def test_any_length_and_rate_becomes_ten_seconds_without_stretching(variant):
    time = np.arange(0, 20, 1 / 250)
    signal = np.sin(2 * np.pi * 5 * time) * np.arange(1, 13)[:, None] / 12
    preprocessing = SPEC.preprocessing[variant]
    long = preprocessing.apply(Ecg.from_array(signal, sampling_rate_hz=250))
    short = preprocessing.apply(Ecg.from_array(signal[:, :1500], sampling_rate_hz=250))
    assert long.shape == short.shape == (1, 12, 5000)
    assert not short[..., 3000:].any()
    for array in (long[0, 11], short[0, 11, :3000]):
        spectrum = np.abs(np.fft.rfft(array))
        assert np.fft.rfftfreq(len(array), 1 / 500)[spectrum.argmax()] == pytest.approx(5, abs=0.01)


def test_variants_are_three_and_differ():
    signal = np.random.default_rng(0).normal(0, 0.3, (12, 5000))
    ecg = Ecg.from_array(signal, sampling_rate_hz=500)
    inputs = [item.apply(ecg) for item in SPEC.preprocessing.values()]
    assert list(SPEC.preprocessing) == ["dataset", "eval", "paper"]
    assert (
        min(np.abs(a - b).max() for a, b in ((inputs[0], inputs[1]), (inputs[0], inputs[2]), (inputs[1], inputs[2])))
        > 0.1
    )


def test_file_of_another_number_of_leads_is_refused():
    state = {"first_conv.conv.weight": torch.zeros(64, 1, 16)}
    with pytest.raises(BundleError, match="of 1 leads, expected 12; import it as ecg-founder-1-lead"):
        read_checkpoint({"state_dict": state})
    with pytest.raises(BundleError, match="of 8 leads, expected 1; give a published file"):
        read_checkpoint({"state_dict": {"first_conv.conv.weight": torch.zeros(64, 8, 16)}}, leads=1)


def test_file_of_another_kind_or_head_is_refused():
    with pytest.raises(BundleError, match="holds cfg, model, expected state_dict"):
        read_checkpoint({"cfg": {}, "model": {}})
    with pytest.raises(BundleError, match="classifier of 71 labels, expected 150"):
        read_checkpoint({"state_dict": {"dense.weight": torch.zeros(71, 1024)}})


def test_prefix_of_parallel_training_and_batch_norms_are_left_out():
    state = {"module.dense.bias": torch.zeros(150), "module.first_bn.weight": torch.ones(64)}
    weights = read_checkpoint({"state_dict": state})
    assert list(weights.tensors) == ["dense.bias"]
    assert weights.unused == ("module.first_bn.weight",)
    with pytest.raises(BundleError, match="expected state_dict"):
        read_checkpoint({"state_dict": {1: torch.zeros(1)}})
