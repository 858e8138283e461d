"""Low-rank adaptation: starts as the network was, trains few weights, and merges into plain layers exactly."""

from __future__ import annotations

import copy

import pytest
import torch

from mmecg.adaptation.backbone import load_backbone, save_backbone, small_backbone
from mmecg.adaptation.lora import add_lora, merge_lora
from mmecg.encoders.ecg_founder import build


@pytest.fixture(params=["ours", "grouped convolutions"])
def network(request):
    torch.manual_seed(0)
    if request.param == "ours":
        return small_backbone().network.eval()
    return build({"stem_width": 16, "widths": [32], "blocks": [2], "classes": 3}).eval()


def output(network, signal):
    result = network(signal)
    return result[0] if isinstance(result, tuple) else result


def test_it_starts_as_the_network_was_and_merges_exactly(network):
    signal = torch.randn(2, 12, 400)
    before = output(network, signal)
    parameters = add_lora(network, rank=3)
    assert torch.equal(output(network, signal), before)
    trained = {id(item) for item in network.parameters() if item.requires_grad}
    assert trained == {id(item) for item in parameters}
    assert sum(item.numel() for item in parameters) < 0.5 * sum(item.numel() for item in network.parameters())
    with torch.no_grad():
        for item in parameters:
            item.add_(0.05 * torch.randn_like(item))
    adapted = output(network, signal)
    assert (adapted - before).abs().max() > 1e-3
    twin = copy.deepcopy(network)
    assert torch.equal(output(twin, signal), adapted)
    merge_lora(twin)
    assert torch.equal(output(twin, signal), adapted)
    assert not any("parametrizations" in name for name in twin.state_dict())


def test_only_the_additions_get_gradients(network):
    parameters = add_lora(network)
    output(network, torch.randn(2, 12, 400)).sum().backward()
    assert any(item.grad is not None and item.grad.abs().sum() > 0 for item in parameters)
    assert all(item.grad is None for item in network.parameters() if not item.requires_grad)


def test_a_merged_backbone_is_saved_as_a_plain_one(tmp_path):
    backbone = small_backbone()
    with torch.no_grad():
        for item in add_lora(backbone):
            item.add_(0.05)
    signal = torch.randn(1, 12, 1000)
    adapted = backbone(signal)
    merge_lora(backbone)
    save_backbone(tmp_path / "x", backbone)
    assert torch.equal(load_backbone(tmp_path / "x")(signal), adapted)
