"""ECG-FM: the golden vectors, the keys of its published files, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmecg.encoders.ecg_fm import SPEC, EcgFmConfig, build, mean_tokens, read_checkpoint
from mmecg.encoders.published import PublishedEncoder, configure, reduce_logits
from mmecg.errors import BundleError, ConfigError
from mmecg.labels.vocabulary import Relation, load_vocabulary

FRAMES, EMBEDDING, LOGITS = 1e-4, 1e-4, 1e-3
CFG = {
    "model": {
        "_name": "wav2vec2_cmsc",
        "in_d": 12,
        "conv_feature_layers": "[(256, 2, 2)] * 4",
        "conv_bias": False,
        "extractor_mode": "default",
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "encoder_layers": 12,
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "layer_norm_first": False,
    }
}
TOY = {"width": 32, "layers": 2, "heads": 4, "feed_forward": 64, "convolutions": [[16, 2, 2]] * 4, "labels": 17}


@pytest.fixture(scope="module")
def loaded():
    """Return a function that gives the encoder of a kind of file with pseudo-weights, one at a time."""
    held: dict[str, PublishedEncoder] = {}

    def load(golden, pseudo_weights, kind: str) -> PublishedEncoder:
        if kind not in held:
            held.clear()
            weights = read_checkpoint({"cfg": CFG, "model": pseudo_weights(golden.keys("ecg_fm", kind))})
            with torch.device("meta"):
                network = build(weights.hyperparameters)
            network.load_state_dict(weights.tensors, assign=True)
            held[kind] = PublishedEncoder(network, configure(SPEC, weights.hyperparameters), kind)
        return held[kind]

    yield load
    held.clear()


def test_finetuned_matches_the_golden_vectors_of_a_record(golden, pseudo_weights, error, loaded):
    encoder = loaded(golden, pseudo_weights, "finetuned")
    (segments,) = encoder.segments(golden.ecgs()[:1])
    assert error(segments.features, golden.outputs["ecgfm_ft_embedding"][0]) < EMBEDDING
    assert error(segments.logits, golden.outputs["ecgfm_ft_logits"][0]) < LOGITS
    modes = np.array([label.reduction for label in encoder.labels])
    probability = 1 / (1 + np.exp(-reduce_logits(segments.logits, modes).astype(np.float64)))
    assert error(probability, golden.outputs["ecgfm_ft_prob_aggregated"][0]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_synthetic_signals_match(golden, pseudo_weights, error, loaded, kind):
    network = loaded(golden, pseudo_weights, kind).network
    prefix = "ecgfm_ft_" if kind == "finetuned" else "ecgfm_"
    for name in ("s2500", "s5000", "s3777"):
        with torch.inference_mode():
            frames = network.contextualise(network.embed(golden.signal(name)))
            features = mean_tokens(frames)
            logits = network.proj(features) if network.proj else None
        assert error(features, golden.synthetic[f"{name}__{prefix}embedding"]) < EMBEDDING
        if kind == "finetuned":
            assert error(logits, golden.synthetic[f"{name}__{prefix}logits"]) < LOGITS
        else:
            stored = frames[:1] if name == "s2500" else frames[:, [0, 1, -2, -1]]
            assert error(stored, golden.synthetic[f"{name}__ecgfm_frames"]) < FRAMES


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_records_match(golden, pseudo_weights, error, loaded, kind):
    encoder = loaded(golden, pseudo_weights, kind)
    edge = golden.edge_ecgs()
    segments = encoder.segments([*golden.ecgs(), *edge.values()])
    features = np.stack([item.features for item in segments])
    if kind == "pretrained":
        assert error(features[:5], golden.outputs["ecgfm_embedding"]) < EMBEDDING
        for name, got in zip(edge, features[5:], strict=True):
            assert error(got, golden.edge[f"{name}__ecgfm_embedding"]) < EMBEDDING
        return
    logits = np.stack([item.logits for item in segments])
    assert error(features[:5], golden.outputs["ecgfm_ft_embedding"]) < EMBEDDING
    assert error(logits[:5], golden.outputs["ecgfm_ft_logits"]) < LOGITS
    for name, got in zip(edge, logits[5:], strict=True):
        assert error(got, golden.edge[f"{name}__ecgfm_ft_logits"]) < LOGITS
    assert error(encoder.probabilities(golden.ecgs()), golden.outputs["ecgfm_ft_prob_aggregated"]) < 1e-5


@pytest.mark.slow
def test_frames_of_records_match(golden, pseudo_weights, error, loaded):
    network = loaded(golden, pseudo_weights, "pretrained").network
    inputs = np.concatenate([SPEC.preprocessing["published"].apply(ecg) for ecg in golden.ecgs()])
    with torch.inference_mode():
        frames = network.contextualise(network.embed(torch.from_numpy(inputs))).numpy()
    assert error(frames[0], golden.outputs["ecgfm_frames_record0_segment0"]) < FRAMES
    assert error(frames[:, [0, -1]].reshape(5, 2, 2, 768), golden.outputs["ecgfm_frames_first_last"]) < FRAMES


@pytest.mark.parametrize(("kind", "labels"), [("pretrained", 0), ("finetuned", 17)])
def test_keys_and_shapes_are_the_published_ones(golden, kind, labels):
    listed = {entry["key"]: torch.empty(entry["shape"], device="meta") for entry in golden.keys("ecg_fm", kind)}
    weights = read_checkpoint({"cfg": CFG, "model": listed})
    with torch.device("meta"):
        network = build({"labels": labels})
    assert weights.hyperparameters == {"labels": labels}
    assert {key: tensor.shape for key, tensor in weights.tensors.items()} == {
        key: tensor.shape for key, tensor in network.state_dict().items()
    }
    assert set(weights.unused) == {e["key"] for e in golden.keys("ecg_fm", kind) if e.get("unused_in_forward")}
    total = sum(tensor.numel() for tensor in listed.values())
    assert total == golden.keys("ecg_fm", "parameter_count")[kind]
    assert kind == "finetuned" or total == SPEC.parameters


def test_both_spellings_of_weight_norm_are_read(golden):
    keys = golden.keys("ecg_fm", "pretrained")
    new = {entry.get("alias", entry["key"]): torch.empty(entry["shape"], device="meta") for entry in keys}
    old = {entry["key"]: tensor for entry, tensor in zip(keys, new.values(), strict=True)}
    read_new = read_checkpoint({"cfg": CFG, "model": new})
    assert read_new.tensors.keys() == read_checkpoint({"cfg": CFG, "model": old}).tensors.keys()
    with pytest.raises(BundleError, match="two spellings"):
        read_checkpoint({"cfg": CFG, "model": old | new})


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("encoder_layers", 24, "encoder_layers 24, expected 12"),
        ("encoder_attention_heads", 16, "encoder_attention_heads 16, expected 12"),
        ("layer_norm_first", True, "layer_norm_first True, expected False"),
        ("conv_feature_layers", "[(256, 2, 2)] * 3 + [(256, 3, 2)]", "expected ((256, 2, 2), "),
        ("conv_feature_layers", "__import__('os').getcwd()", "conv_feature_layers __import__"),
    ],
)
def test_other_hyperparameters_are_refused(option, value, told):
    with pytest.raises(BundleError) as refusal:
        read_checkpoint({"cfg": {"model": CFG["model"] | {option: value}}, "model": {"x": torch.zeros(1)}})
    assert told in str(refusal.value)


def test_a_finetuned_file_answers_for_the_pretrained_one_within_it():
    outer = {"model": CFG["model"] | {"args": {"model": CFG["model"] | {"encoder_layers": 6}}}}
    with pytest.raises(BundleError, match="encoder_layers 6, expected 12"):
        read_checkpoint({"cfg": outer, "model": {"x": torch.zeros(1)}})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"state_dict": {}}, "holds state_dict, expected cfg and model"),
        ({"cfg": CFG, "model": {"x": 1.0}}, "holds cfg, model, expected"),
        ({"cfg": CFG, "model": {7: torch.zeros(1)}}, "holds cfg, model, expected"),
        ({}, "holds nothing"),
        ({"model": {"x": torch.zeros(1)}}, "no configuration"),
        (
            {"cfg": {"model": CFG["model"] | {"conv_feature_layers": "(" * 5000}}, "model": {"x": torch.zeros(1)}},
            "other",
        ),
        ({"cfg": CFG, "model": {"proj.weight": torch.zeros(26, 768)}}, "26 labels, expected 17"),
    ],
)
def test_files_of_another_kind_are_refused(content, told):
    with pytest.raises(BundleError, match=told):
        read_checkpoint(content)


def test_labels_are_in_published_order_and_agree_with_the_vocabulary(golden):
    published = golden.labels("labels_ecg_fm")
    assert [(label.index, label.name, label.reduction) for label in SPEC.labels] == [
        (item["index"], item["label"], item["segment_aggregation"]) for item in published
    ]
    exact = {row.code: row.finding for row in load_vocabulary().mappings("ecg_fm") if row.relation is Relation.EXACT}
    assert {label.name: label.finding for label in SPEC.labels} == exact


@pytest.mark.parametrize(("samples", "tokens"), [(2500, 156), (5000, 312), (3777, 236)])
def test_tokens_of_a_signal(samples, tokens):
    network = build(TOY).eval()
    signal = torch.randn(1, 12, samples)
    assert network.contextualise(network.embed(signal)).shape == (1, tokens, 32)
    features, logits = network(signal)
    assert (features.shape, logits.shape) == ((1, 32), (1, 17))


def test_the_network_can_be_trained():
    torch.manual_seed(0)
    network = build(TOY)
    features, logits = network(torch.randn(2, 12, 320))
    (features.sum() + logits.square().sum()).backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == set()


def test_mean_of_tokens_leaves_out_zeros():
    tokens = torch.tensor([[[1.0, 0.0, 0.0], [3.0, 4.0, 0.0]]])
    assert mean_tokens(tokens).tolist() == [[2.0, 4.0, 0.0]]


@pytest.mark.parametrize("wrong", [{"heads": 5}, {"position_groups": 7}, {"depth": 3}])
def test_impossible_hyperparameters_are_refused(wrong):
    with pytest.raises(ConfigError):
        build(wrong)


def test_published_hyperparameters_are_the_defaults():
    config = EcgFmConfig()
    assert (config.width, config.layers, config.heads, config.labels) == (SPEC.feature_dim, 12, 12, 0)
