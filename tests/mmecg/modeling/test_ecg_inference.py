"""The prepared tower is the tower: the plain module is the oracle, on statistics that are not initial ones."""

import numpy as np
import pytest
import torch
from torch import nn

from mmecg.config import Precision
from mmecg.ecg import Ecg
from mmecg.modeling.dual_encoder import DualEncoder, DualEncoderConfig
from mmecg.modeling.ecg_encoder import EcgEncoder, EcgEncoderConfig
from mmecg.modeling.ecg_inference import EcgInference, resolve_dtype
from mmecg.modeling.text_encoder import TextEncoder, build_text_encoder, build_vocabulary

SHAPE = EcgEncoderConfig(stem_width=16, widths=(16, 16, 32), kernels=(5, 3, 3), strides=(2, 1, 2))


def with_history(tower: nn.Module) -> nn.Module:
    """Give every batch norm statistics, and a scale, as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm1d):
            tensors = [module.running_mean, module.running_var, *module.parameters()]
            for tensor in tensors:
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return tower


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    torch.manual_seed(0)
    return with_history(EcgEncoder(SHAPE)).eval()


@pytest.fixture
def encoder() -> DualEncoder:
    torch.manual_seed(0)
    text = TextEncoder(build_text_encoder(build_vocabulary(["sinus"] * 3, []), width=16, hidden=16))
    model = DualEncoder(DualEncoderConfig(ecg=SHAPE), text).eval()
    with_history(model.ecg)
    return model


@pytest.mark.parametrize("samples", [100, 248, 333, 1000])
def test_float32_is_the_tower(tower: nn.Module, samples: int) -> None:
    signal = torch.randn(3, 12, samples) * 0.3
    with torch.inference_mode():
        expected = tower(signal)
    torch.testing.assert_close(EcgInference(tower, torch.float32)(signal), expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_is_near_and_gives_float32(tower: nn.Module) -> None:
    signal = torch.randn(4, 12, 1000) * 0.3
    exact, rough = (EcgInference(tower, dtype)(signal) for dtype in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert nn.functional.cosine_similarity(exact, rough).min() > 0.999


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_embedding_does_not_depend_on_its_batch(encoder: DualEncoder, precision: Precision) -> None:
    encoder.prepare(precision)
    signals = np.random.default_rng(0).normal(0, 0.3, (70, 12, 500))
    ecgs = [Ecg.from_array(signal, sampling_rate_hz=100) for signal in signals]
    alone = np.concatenate([encoder.encode_ecg([ecg]) for ecg in ecgs])
    # A sum in another order may round to the neighbouring bfloat16 (8 bits) inside the tower.
    np.testing.assert_allclose(encoder.encode_ecg(ecgs), alone, atol=2e-6 if precision == "float32" else 1e-3)


def test_what_is_prepared_follows_the_model(encoder: DualEncoder) -> None:
    ecg = [Ecg.from_array(np.random.default_rng(0).normal(0, 0.3, (12, 500)), sampling_rate_hz=100)]
    plain, names = encoder.encode_ecg(ecg), set(encoder.state_dict())
    prepared = encoder.prepare("bfloat16").encode_ecg(ecg)
    assert not np.array_equal(prepared, plain)
    assert set(encoder.state_dict()) == names
    np.testing.assert_array_equal(encoder.to("cpu").encode_ecg(ecg), prepared)
    np.testing.assert_array_equal(encoder.train().eval().encode_ecg(ecg), plain)


def test_auto_is_bfloat16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    assert resolve_dtype("float32", cpu) == torch.float32
    for features, expected in (
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features, raising=False)
        assert resolve_dtype("auto", cpu) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve_dtype("auto", cpu) == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_what_the_cpu_gives(tower: nn.Module) -> None:
    signal = torch.randn(4, 12, 1000) * 0.3
    exact = EcgInference(tower, torch.float32)(signal)
    rough = EcgInference(tower.to("cuda"), resolve_dtype("auto", torch.device("cuda")))(signal.to("cuda")).cpu()
    tower.to("cpu")
    assert nn.functional.cosine_similarity(exact, rough).min() > 0.999
