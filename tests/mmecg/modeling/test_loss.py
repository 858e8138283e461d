import torch
from torch.nn import functional

from mmecg.modeling.loss import contrastive_loss

SCALE = torch.tensor(10.0).log()


def unit(rows: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_one_positive_a_row_is_the_clip_loss() -> None:
    ecg, text = unit(6, 0), unit(6, 1)
    logits = 10 * ecg @ text.T
    target = torch.arange(6)
    clip = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(ecg, text, torch.eye(6), SCALE), clip)


def test_identical_reports_are_positives_of_each_other() -> None:
    ecg = unit(4, 0)
    text = unit(4, 1)
    text[1] = text[0]  # studies 0 and 1 carry the same report
    groups = torch.tensor([7, 7, 8, 9])
    positives = (groups[:, None] == groups[None]).float()
    swapped = ecg[[1, 0, 2, 3]]
    as_is = contrastive_loss(ecg, text, positives, SCALE)
    torch.testing.assert_close(contrastive_loss(swapped, text, positives, SCALE), as_is)
    assert not torch.isclose(
        contrastive_loss(swapped, unit(4, 2), torch.eye(4), SCALE),
        contrastive_loss(ecg, unit(4, 2), torch.eye(4), SCALE),
    )


def test_rows_without_positive_do_not_count() -> None:
    ecg, text = unit(5, 0), unit(5, 1)
    positives = torch.eye(5)
    positives[4, 4] = 0
    logits = 10 * ecg @ text.T
    target = torch.arange(4)
    expected = (functional.cross_entropy(logits[:4], target) + functional.cross_entropy(logits.T[:4], target)) / 2
    torch.testing.assert_close(contrastive_loss(ecg, text, positives, SCALE), expected)


def test_no_positive_at_all_is_zero_with_a_gradient() -> None:
    ecg = unit(3, 0).requires_grad_()
    loss = contrastive_loss(ecg, unit(3, 1), torch.zeros(3, 3), SCALE)
    loss.backward()
    assert loss.item() == 0
    assert ecg.grad is not None
    assert torch.isfinite(ecg.grad).all()


def test_extra_key_with_offset_weighs_as_often_as_it_was_drawn() -> None:
    ecg, text, extra = unit(4, 0), unit(4, 1), unit(1, 2)
    positives = torch.cat([torch.eye(4), torch.zeros(4, 3)], dim=1)
    thrice = contrastive_loss(ecg, torch.cat([text, extra, extra, extra]), positives, SCALE, keys_as_queries=4)
    offset = torch.cat([torch.zeros(4), torch.tensor([3.0]).log()])
    once = contrastive_loss(ecg, torch.cat([text, extra]), positives[:, :5], SCALE, keys_as_queries=4, offset=offset)
    torch.testing.assert_close(once, thrice)
