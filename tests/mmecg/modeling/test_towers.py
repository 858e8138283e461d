import copy

import numpy as np
import pytest
import torch

from mmecg.ecg import LEADS, Ecg
from mmecg.errors import ReportError, VitalsError
from mmecg.modeling.dual_encoder import DualEncoder, DualEncoderConfig
from mmecg.modeling.ecg_encoder import EcgEncoder, EcgEncoderConfig
from mmecg.modeling.text_encoder import CHUNK_TOKENS, TextEncoder, build_text_encoder, build_vocabulary
from mmecg.modeling.vitals_encoder import VitalsEncoder, vitals_matrix
from mmecg.vitals import Vitals

TEXTS = [
    "sinusrhythmus normales ekg",
    "sinus rhythm. left bundle branch block.",
    "vorhofflimmern mit linksschenkelblock",
]


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    torch.manual_seed(0)
    vocabulary = build_vocabulary(TEXTS * 3, ["atrial", "##al", "fib", "##rill", "##ation", "中", "123"])
    small = DualEncoderConfig(ecg=EcgEncoderConfig(stem_width=16, widths=(16, 32), kernels=(5, 3), strides=(2, 2)))
    return DualEncoder(small, TextEncoder(build_text_encoder(vocabulary, width=16, hidden=16))).eval()


def noise(seconds: float, rate: float = 100.0, *, seed: int = 0, leads: tuple[str, ...] = LEADS) -> Ecg:
    signal = np.random.default_rng(seed).normal(0, 0.3, (len(leads), round(seconds * rate)))
    return Ecg.from_array(signal, sampling_rate_hz=rate, leads=leads)


def test_vocabulary_holds_corpus_words_and_latin_pieces_only() -> None:
    vocabulary = build_vocabulary(TEXTS * 3, ["atrial", "中", "[MASK]"])
    assert {"linksschenkelblock", "atrial", "42", "##x", "[UNK]"} - set(vocabulary) == {"##x"}
    assert "中" not in vocabulary
    assert len(vocabulary) == len(set(vocabulary))


@pytest.mark.parametrize("seconds", [1.0, 2.5, 5.0, 10.0, 10.5, 61.0])
def test_any_length_gives_a_unit_embedding(encoder: DualEncoder, seconds: float) -> None:
    embedding = encoder.encode_ecg([noise(seconds)])
    assert embedding.shape == (1, 256)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding), 1, rtol=1e-5)


def test_embedding_does_not_depend_on_its_batch(encoder: DualEncoder) -> None:
    ecgs = [noise(10, seed=1), noise(3, seed=2), noise(25, 500, seed=3), noise(10, seed=4, leads=("II", "V5"))] * 20
    together = encoder.encode_ecg(ecgs)
    alone = np.concatenate([encoder.encode_ecg([ecg]) for ecg in ecgs[:4]])
    np.testing.assert_allclose(together[:4], alone, atol=2e-6)
    np.testing.assert_allclose(together[4:8], alone, atol=2e-6)
    reversed_order = encoder.encode_ecg(ecgs[::-1])[::-1]
    np.testing.assert_allclose(reversed_order, together, atol=2e-6)


def test_permuted_leads_give_the_same_embedding(encoder: DualEncoder) -> None:
    ecg = noise(10)
    order = [7, 3, 0, 11, 5, 4, 1, 2, 10, 9, 8, 6]
    permuted = Ecg.from_array(ecg.signal[order], sampling_rate_hz=100, leads=[LEADS[i].upper() for i in order])
    np.testing.assert_array_equal(encoder.encode_ecg([permuted]), encoder.encode_ecg([ecg]))


def test_long_recording_is_the_mean_over_segments(encoder: DualEncoder) -> None:
    ecg = noise(25)
    parts = [ecg.crop(0, 10), ecg.crop(10, 10), ecg.crop(15, 10)]
    np.testing.assert_allclose(encoder.ecg_features([ecg])[0], encoder.ecg_features(parts).mean(0), atol=1e-5)


def test_baseline_offset_does_not_matter(encoder: DualEncoder) -> None:
    ecg = noise(10)
    shifted = Ecg.from_array(ecg.signal + 0.5, sampling_rate_hz=100)
    np.testing.assert_allclose(encoder.encode_ecg([shifted]), encoder.encode_ecg([ecg]), atol=1e-4)


def test_max_pooling_is_on_the_scale_of_training_crops() -> None:
    torch.manual_seed(0)
    tower = EcgEncoder(EcgEncoderConfig(stem_width=16, widths=(16,), kernels=(5,), strides=(2,))).eval()
    crop = torch.randn(1, 12, 248)  # a whole number of steps
    with torch.inference_mode():
        repeated = tower(crop.repeat(1, 1, 4))
        once = tower(crop)
    torch.testing.assert_close(repeated[:, :16], once[:, :16], atol=0.05, rtol=0.2)
    torch.testing.assert_close(repeated[:, 16:], once[:, 16:], atol=0.3, rtol=0.3)


def test_long_text_is_embedded_in_chunks(encoder: DualEncoder) -> None:
    words = ["sinusrhythmus"] * CHUNK_TOKENS
    long = " ".join([*words, *["linksschenkelblock"] * CHUNK_TOKENS])
    halves = encoder.encode_text([" ".join(words), "linksschenkelblock"])
    expected = halves.sum(0) / np.linalg.norm(halves.sum(0))
    np.testing.assert_allclose(encoder.encode_text([long])[0], expected, atol=1e-5)


@pytest.mark.parametrize("text", ["", "   ", "…!?"])
def test_text_without_words_is_refused(encoder: DualEncoder, text: str) -> None:
    with pytest.raises(ReportError, match="text is empty"):
        encoder.encode_text(["sinusrhythmus", text])


def test_umlauts_in_either_normal_form_are_the_same_word(encoder: DualEncoder) -> None:
    composed, decomposed = encoder.encode_text(["für", "fu\u0308r"])
    np.testing.assert_array_equal(composed, decomposed)


def test_missing_vitals_are_masked_not_zero() -> None:
    matrix = vitals_matrix([Vitals(age_years=60), Vitals(height_cm=167)])
    assert matrix.shape == (2, 20)
    assert matrix[0, 0] == 0  # the mean age is 0 after scaling …
    assert matrix[0, 10] == 1  # … but it was measured
    assert matrix[1, 10] == 0


def test_every_measured_vital_can_move_the_embedding() -> None:
    torch.manual_seed(0)
    tower = VitalsEncoder()
    base = Vitals(age_years=50, sex="male")
    for change in ({"age_years": 70}, {"sex": "female"}, {"height_cm": 150}, {"weight_kg": 100}):
        other = Vitals(**{"age_years": 50, "sex": "male", **change})  # type: ignore[arg-type]
        first, second = tower(vitals_matrix([base, other]))
        assert not torch.allclose(first, second)


def test_vitals_that_training_never_saw_have_no_effect(encoder: DualEncoder) -> None:
    tower = copy.deepcopy(encoder)
    tower.vitals.forget_unseen((vitals_matrix([Vitals(age_years=40, sex="male")]) != 0).any(0))
    known = Vitals(age_years=70, sex="female")
    more = Vitals(age_years=70, sex="female", heart_rate_bpm=140, spo2_percent=80, temperature_c=40)
    first, second = tower.encode_vitals([known, more])
    np.testing.assert_array_equal(first, second)
    with pytest.raises(VitalsError, match="not trained on"):
        tower.encode_vitals([Vitals(heart_rate_bpm=140)])


def test_empty_vitals_are_refused(encoder: DualEncoder) -> None:
    with pytest.raises(VitalsError, match="vitals are empty"):
        encoder.encode_vitals([Vitals(age_years=50), Vitals()])


def test_random_baseline_differs_and_is_reproducible(encoder: DualEncoder) -> None:
    ecg = [noise(10)]
    first, again = (DualEncoder.random_like(encoder, seed=3).encode_ecg(ecg) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, encoder.encode_ecg(ecg))
