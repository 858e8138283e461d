from __future__ import annotations

import math

import numpy as np
import pytest

from mmecg.errors import InvalidInputError
from mmecg.prediction.history import CHANNELS, MAX_PRIORS, HistoryHead, Prior, build_tokens, last_known
from mmecg.prediction.single import EmbeddingHead

LABELS, DIM, HIDDEN = 3, 4, 5
PREVALENCE = np.array([0.1, 0.3, 0.01], np.float32)
RNG = np.random.default_rng(0)


def random_head() -> HistoryHead:
    draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)  # noqa: E731
    return HistoryHead(
        draw(len(CHANNELS), HIDDEN), draw(HIDDEN), draw(HIDDEN, HIDDEN), draw(HIDDEN), draw(HIDDEN, 2), draw(2),
        np.abs(draw(LABELS)), draw(3, LABELS), draw(LABELS, LABELS),
    )  # fmt: skip


HEAD = random_head()
EMBEDDING_HEAD = EmbeddingHead(RNG.normal(size=(DIM, LABELS)).astype(np.float32), np.zeros(LABELS, np.float32))


def unit(count: int) -> np.ndarray:
    vectors = RNG.normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prior(days: float, known: list[float] | None = None, *, ecg: bool = True) -> Prior:
    values = np.array(known if known is not None else [math.nan] * LABELS, np.float32)
    return Prior(
        study_id=f"s{days}",
        days_before=days,
        source="labels" if known else "ecg",
        known=values,
        embedding=unit(1)[0] if ecg else None,
    )


def apply(priors: list[list[Prior]], logits: np.ndarray, embedding: np.ndarray):
    tokens = build_tokens(logits, embedding, priors, [len(row) for row in priors], EMBEDDING_HEAD, PREVALENCE)
    return HEAD.apply(logits, tokens)


def test_no_history_changes_no_bit() -> None:
    logits = np.array([[-0.0, 0.1, -40.0], [1.0, 2.0, 3.0]])
    for priors in ([[], []], [[], [prior(3, [1, 0, 1])]]):
        effect = apply(priors, logits, unit(2))
        assert effect.logits[0].tobytes() == logits[0].tobytes()
        assert not effect.effect[0].any()
        assert not effect.share[0].any()
    assert (effect.logits[1] != logits[1]).all()


def test_attention_shares_and_effects_add_up() -> None:
    logits = RNG.normal(size=(3, LABELS))
    priors = [[prior(2, [1, 0, math.nan])], [], [prior(1, ecg=False), prior(30, [0, 1, 1]), prior(900)]]
    effect = apply(priors, logits, unit(3))
    assert effect.share.shape == (3, 3, LABELS)
    np.testing.assert_allclose(effect.share.sum(axis=1)[[0, 2]], 1, rtol=1e-5)
    assert not effect.effect[0, 1:].any()
    np.testing.assert_allclose(effect.logits - logits, effect.effect.sum(axis=1), atol=1e-5)
    assert np.isfinite(effect.logits).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits, embedding = RNG.normal(size=(2, LABELS)), unit(2)
    priors = [[prior(2, [1, 0, 1])], [prior(5, [0, 0, 1]), prior(50)]]
    together = apply(priors, logits, embedding)
    for row in (0, 1):
        alone = apply([priors[row]], logits[[row]], embedding[[row]])
        np.testing.assert_allclose(alone.logits[0], together.logits[row], rtol=1e-6)


def test_of_two_that_say_the_same_the_older_weighs_less() -> None:
    one = prior(1, [1, 0, 0])
    older = Prior(study_id="o", days_before=1000, source="labels", known=one.known, embedding=one.embedding)
    logits, embedding = RNG.normal(size=(1, LABELS)), unit(1)
    plain = HistoryHead(**{**vars(HEAD), "out_weight": np.zeros_like(HEAD.out_weight)})
    tokens = build_tokens(logits, embedding, [[one, older]], [2], EMBEDDING_HEAD, PREVALENCE)
    share = plain.apply(logits, tokens).share[0]
    assert (share[0] > share[1]).all()
    expected = np.exp(-plain.decay * (np.log1p(1000) - np.log1p(1)))
    np.testing.assert_allclose(share[1] / share[0], expected, rtol=1e-4)


def test_tokens_say_what_is_known() -> None:
    logits, embedding = np.array([[3.0, 0.0, -30.0]]), unit(1)
    seen, blind = prior(9, [1, math.nan, 0.25]), prior(99, [0, 1, 1], ecg=False)
    tokens = build_tokens(logits, embedding, [[seen, blind]], [7], EMBEDDING_HEAD, PREVALENCE)
    got = {name: tokens.channels[0, ..., index] for index, name in enumerate(CHANNELS)}
    np.testing.assert_allclose(got["known_value"], [[1, 0, 0.25], [0, 1, 1]])
    np.testing.assert_allclose(got["is_known"], [[1, 0, 1], [1, 1, 1]])
    assert got["surprise"][0, 1] == 0
    then = 1 / (1 + np.exp(-EMBEDDING_HEAD.logits(seen.embedding[None])))[0]
    np.testing.assert_allclose(got["surprise"][0, [0, 2]], (seen.known - then)[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(got["surprise"][1], np.array([0, 1, 1]) - PREVALENCE, atol=1e-5)
    np.testing.assert_allclose(tokens.surprise[0], got["surprise"][...], atol=1e-6)
    np.testing.assert_allclose(got["cosine"][:, 0], [seen.embedding @ embedding[0], 0], atol=1e-6)
    np.testing.assert_allclose(got["log_days"][:, 0] * 3, np.log1p([9, 99]), rtol=1e-6)
    np.testing.assert_allclose(got["log_found"], np.log(7), rtol=1e-6)
    np.testing.assert_allclose(got["current_logit"][0], [1, 0, -4])
    assert not got["logit_change"][1].any()


def test_without_an_ecg_of_now_the_labels_still_count() -> None:
    logits = RNG.normal(size=(1, LABELS))
    effect = apply([[prior(5, [1, 0, 1])]], logits, np.full((1, DIM), np.nan, np.float32))
    assert np.isfinite(effect.logits).all()
    assert (effect.logits != logits).any()


@pytest.mark.parametrize("days", [0, -1, math.nan])
def test_what_is_not_earlier_is_refused(days: float) -> None:
    with pytest.raises(InvalidInputError, match="expected above 0"):
        prior(days)


def test_too_many_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=f"at most {MAX_PRIORS}"):
        apply([[prior(1 + day) for day in range(MAX_PRIORS + 1)]], np.zeros((1, LABELS)), unit(1))


def test_the_latest_that_knows_a_label_counts() -> None:
    priors = [[prior(1, [math.nan, 0.2, 0.5]), prior(9, [1, 1, 0])], []]
    assert last_known(priors, LABELS).tolist() == [[2, 1, 2], [0, 0, 0]]
