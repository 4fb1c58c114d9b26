"""The reference is trl's GRPOTrainer, its formulas written out token by token in plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from twn_lightning.errors import ConfigError
from twn_lightning.losses.grpo import LossType, group_advantages, grpo_loss, k3_kl

CLIP_LOW, CLIP_HIGH, KL_WEIGHT, MAX_TOKENS = 0.2, 0.28, 0.04, 9


def rollouts() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    log_probs = -torch.rand(4, 5, generator=generator) * 2
    old = log_probs + 0.4 * torch.randn(4, 5, generator=generator)
    reference = log_probs + 0.3 * torch.randn(4, 5, generator=generator)
    advantages = torch.tensor([1.3, -0.7, 0.2, -0.8])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    return log_probs.requires_grad_(), old, reference, advantages, mask


def slow_loss(loss_type: LossType, num_tokens: float | None = None) -> tuple[float, float, float]:
    log_probs, old, reference, advantages, mask = (tensor.tolist() for tensor in rollouts())
    rows: list[list[float]] = []
    kls: list[float] = []
    clipped_tokens = 0
    for i in range(4):
        row = []
        for t in range(5):
            if not mask[i][t]:
                continue
            ratio = math.exp(log_probs[i][t] - old[i][t])
            clipped = min(max(ratio, 1 - CLIP_LOW), 1 + CLIP_HIGH)
            difference = reference[i][t] - log_probs[i][t]
            kl = math.exp(difference) - difference - 1
            row.append(-min(ratio * advantages[i], clipped * advantages[i]) + KL_WEIGHT * kl)
            kls.append(kl)
            clipped_tokens += (ratio < 1 - CLIP_LOW and advantages[i] < 0) or (ratio > 1 + CLIP_HIGH and advantages[i] > 0)
        rows.append(row)
    total, count = sum(map(sum, rows)), sum(map(len, rows))
    loss = {
        "grpo": statistics.mean(statistics.mean(row) for row in rows),
        "bnpo": total / count,
        "dr_grpo": total / (len(rows) * MAX_TOKENS),
        "dapo": total / (num_tokens or count),
    }[loss_type]
    return loss, statistics.mean(kls), clipped_tokens / count


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_each_loss_type_equals_the_formula_written_out(loss_type: LossType) -> None:
    terms = grpo_loss(*rollouts(), clip_low=CLIP_LOW, clip_high=CLIP_HIGH, kl_weight=KL_WEIGHT, loss_type=loss_type, max_tokens=MAX_TOKENS)
    loss, kl, clip_fraction = slow_loss(loss_type)
    assert terms.loss.item() == pytest.approx(loss, abs=1e-6)
    assert terms.kl.item() == pytest.approx(kl, abs=1e-6)
    assert terms.clip_fraction.item() == pytest.approx(clip_fraction)
    assert 0 < clip_fraction < 1


def test_dapo_divides_by_the_tokens_of_all_ranks() -> None:
    terms = grpo_loss(*rollouts(), clip_low=CLIP_LOW, clip_high=CLIP_HIGH, kl_weight=KL_WEIGHT, loss_type="dapo", num_tokens=torch.tensor(16.0))
    assert terms.loss.item() == pytest.approx(slow_loss("dapo", 16.0)[0], abs=1e-6)


def test_dapo_over_two_ranks_averages_to_one_process() -> None:
    log_probs, old, reference, advantages, mask = rollouts()
    half = torch.tensor(mask.sum().item() / 2)
    parts = [
        grpo_loss(
            log_probs[rows],
            old[rows],
            reference[rows],
            advantages[rows],
            mask[rows],
            clip_low=CLIP_LOW,
            clip_high=CLIP_HIGH,
            kl_weight=KL_WEIGHT,
            loss_type="dapo",
            num_tokens=half,
        ).loss
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert (sum(parts) / 2).item() == pytest.approx(slow_loss("dapo")[0], abs=1e-6)  # type: ignore[union-attr]


def test_on_policy_the_gradient_is_the_policy_gradient_and_padding_gets_none() -> None:
    log_probs, _, _, advantages, mask = rollouts()
    terms = grpo_loss(log_probs, log_probs.detach(), None, advantages, mask, clip_low=0.2, clip_high=0.2, kl_weight=0.0, loss_type="bnpo")
    terms.loss.backward()  # type: ignore[no-untyped-call]
    expected = -(advantages[:, None] * mask) / mask.sum()
    assert log_probs.grad is not None
    assert torch.allclose(log_probs.grad, expected)
    assert terms.kl.item() == 0.0
    assert terms.clip_fraction.item() == 0.0


def test_a_clipped_token_gets_no_gradient() -> None:
    log_probs = torch.tensor([[0.0, 0.0]], requires_grad=True)
    old = torch.tensor([[-1.0, 0.0]])  # ratio e, above 1.2, with a positive advantage
    mask = torch.ones(1, 2)
    terms = grpo_loss(log_probs, old, None, torch.tensor([1.0]), mask, clip_low=0.2, clip_high=0.2, kl_weight=0.0, loss_type="grpo")
    terms.loss.backward()  # type: ignore[no-untyped-call]
    assert terms.loss.item() == pytest.approx(-(1.2 + 1.0) / 2)
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[0.0, -0.5]]


def test_k3_is_zero_at_equality_and_positive_on_either_side() -> None:
    kl = k3_kl(torch.zeros(3), torch.tensor([0.0, 1.0, -1.0]))
    assert kl.tolist() == pytest.approx([0.0, math.e - 2, math.exp(-1.0)])


def test_advantages_compare_within_the_group_alone() -> None:
    rewards = torch.tensor([[1.0, 3.0], [100.0, 100.0]])
    scaled = group_advantages(rewards, scale_by_std=True, epsilon=1e-4)
    deviation = math.sqrt(2.0)  # unbiased
    assert scaled.flatten().tolist() == pytest.approx([-1 / (deviation + 1e-4), 1 / (deviation + 1e-4), 0.0, 0.0])
    assert group_advantages(rewards, scale_by_std=False, epsilon=1e-4).tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_settings_that_contradict_each_other_are_refused() -> None:
    log_probs, old, _, advantages, mask = rollouts()
    with pytest.raises(ConfigError, match="at least 2"):
        group_advantages(torch.zeros(3, 1), scale_by_std=True, epsilon=1e-4)
    with pytest.raises(ConfigError, match="give max_tokens"):
        grpo_loss(log_probs, old, None, advantages, mask, clip_low=0.2, clip_high=0.2, kl_weight=0.0, loss_type="dr_grpo")
    with pytest.raises(ConfigError, match="kl_weight is 0.1"):
        grpo_loss(log_probs, old, None, advantages, mask, clip_low=0.2, clip_high=0.2, kl_weight=0.1, loss_type="grpo")
    with pytest.raises(ConfigError, match='loss_type is "ppo"'):
        grpo_loss(log_probs, old, None, advantages, mask, clip_low=0.2, clip_high=0.2, kl_weight=0.0, loss_type="ppo")  # type: ignore[arg-type]
