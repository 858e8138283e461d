"""The quantiser chooses entries, its gradient reaches what it quantises, and its diversity is that of its codes."""

import pytest
import torch

from mmecg.pretraining.quantiser import GumbelQuantiser, diversity_loss, perplexity


@pytest.fixture
def quantiser():
    torch.manual_seed(0)
    return GumbelQuantiser(16, dim=12, groups=2, codes=8)


def test_result_is_the_chosen_entries_side_by_side(quantiser):
    quantiser.eval()
    vectors = torch.randn(5, 16)
    found = quantiser(vectors)
    logits = quantiser.weight_proj(vectors).view(5, 2, 8)
    entries = quantiser.vars.view(2, 8, 6)
    for row in range(5):
        chosen = logits[row].argmax(-1)
        assert found.codes[row].tolist() == chosen.tolist()
        expected = torch.cat([entries[0, chosen[0]], entries[1, chosen[1]]])
        torch.testing.assert_close(found.vectors[row], expected)


def test_gradient_reaches_input_and_entries(quantiser):
    vectors = torch.randn(64, 16, requires_grad=True)
    quantiser(vectors).vectors.square().sum().backward()
    assert (vectors.grad.abs().sum(1) > 0).all()
    assert quantiser.weight_proj.weight.grad.abs().sum() > 0
    assert (quantiser.vars.grad[0].abs().sum(1) > 0).sum() >= 8


def test_training_draws_and_evaluation_does_not(quantiser):
    vectors = torch.randn(64, 16) * 0.2
    draws = [quantiser(vectors).codes for _ in range(2)]
    assert not torch.equal(*draws)
    quantiser.eval()
    torch.testing.assert_close(quantiser(vectors).codes, quantiser(vectors).codes)


def test_temperature_falls_to_its_floor(quantiser):
    assert quantiser.temperature == 2.0
    quantiser(torch.randn(4, 16))
    assert quantiser.temperature == pytest.approx(2.0 * 0.999995)
    quantiser.updates += 10_000_000
    assert quantiser.temperature == 0.5
    assert GumbelQuantiser(4, dim=4, temperature=(1.0, 0.1, 0.5)).temperature == 1.0


def test_diversity_counts_codes():
    even = torch.full((2, 8), 1 / 8)
    one = torch.zeros(2, 8)
    one[:, 3] = 1
    assert perplexity(even).item() == pytest.approx(16, rel=1e-4)
    assert perplexity(one).item() == pytest.approx(2, rel=1e-4)
    assert diversity_loss(even).item() == pytest.approx(0, abs=1e-4)
    assert diversity_loss(one).item() == pytest.approx(14 / 16, abs=1e-4)


def test_the_diversity_loss_brings_codes_into_use(quantiser):
    with torch.no_grad():
        quantiser.weight_proj.bias[::8] = 25.0  # one code of each group takes nearly all
    vectors = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    used = len(quantiser.eval()(vectors).codes.unique(dim=0))
    optimizer = torch.optim.Adam(quantiser.parameters(), 0.1)
    quantiser.train()
    for _ in range(60):
        optimizer.zero_grad()
        diversity_loss(quantiser(vectors).shares).backward()
        optimizer.step()
    quantiser.eval()
    assert len(quantiser(vectors).codes.unique(dim=0)) > 10 * used
    assert diversity_loss(quantiser(vectors).shares) < 0.1
