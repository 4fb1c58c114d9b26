from __future__ import annotations

import math

import pytest
import torch

from twn_lightning.errors import ConfigError
from twn_lightning.rewards.mix import RewardMix
from twn_lightning.rewards.retrieval import gain_reward, group_margin, outcome_reward, rank_reward, retrieval_margin, rollout_log_probs
from twn_lightning.rewards.shape import format_reward, length_reward

# One prompt, two rollouts, three targets; the positive is column 1. Cosines: [0.6, 0.8, 0] and [1, 0, 0].
ROLLOUT = torch.tensor([[[0.6, 0.8, 0.0], [1.0, 0.0, 0.0]]])
TARGET = torch.eye(3)
POSITIVE = torch.tensor([1])


def test_format_needs_an_end_and_words() -> None:
    finished = torch.tensor([[True, True, False]])
    assert format_reward(finished, torch.tensor([[4, 0, 4]])).tolist() == [[1.0, 0.0, 0.0]]


def test_length_falls_from_the_target_to_the_maximum() -> None:
    num_tokens = torch.tensor([[5, 10, 15, 20, 30]])
    assert length_reward(num_tokens, target=10, maximum=20).tolist() == [[1.0, 1.0, 0.5, 0.0, 0.0]]
    assert length_reward(num_tokens, target=10, maximum=10).tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0]]
    with pytest.raises(ConfigError, match="target is 10 and its maximum 5"):
        length_reward(num_tokens, target=10, maximum=5)


def test_margin_over_the_hardest_other_target() -> None:
    assert retrieval_margin(ROLLOUT, TARGET, POSITIVE).flatten().tolist() == pytest.approx([0.2, -1.0])


def test_margin_over_the_soft_maximum() -> None:
    margin = retrieval_margin(ROLLOUT, TARGET, POSITIVE, temperature=0.5)
    weights = [math.exp(0.6 / 0.5), math.exp(0.0)]
    assert margin[0, 0].item() == pytest.approx(0.8 - 0.6 * weights[0] / sum(weights))


def test_a_masked_target_is_no_rival() -> None:
    mask = torch.tensor([[True, False, False]])
    assert retrieval_margin(ROLLOUT, TARGET, POSITIVE, mask).flatten().tolist() == pytest.approx([0.8, 0.0])
    assert rank_reward(ROLLOUT, TARGET, POSITIVE, mask).tolist() == [[1.0, 0.5]]  # the second ties with column 2
    alone = torch.tensor([[True, False, True]])
    assert retrieval_margin(ROLLOUT, TARGET, POSITIVE, alone).flatten().tolist() == pytest.approx([0.8, 0.0])


def test_rank_counts_ties_against_the_positive() -> None:
    assert rank_reward(ROLLOUT, TARGET, POSITIVE).flatten().tolist() == pytest.approx([1.0, 1 / 3])


def test_gain_is_measured_against_not_thinking() -> None:
    after = rollout_log_probs(ROLLOUT, TARGET, POSITIVE, temperature=0.1)
    slow = [scores[1] - math.log(sum(math.exp(score) for score in scores)) for scores in ([6.0, 8.0, 0.0], [10.0, 0.0, 0.0])]
    assert after.flatten().tolist() == pytest.approx(slow)
    gain = gain_reward(after, torch.tensor([-2.0]))
    assert gain.flatten().tolist() == pytest.approx([slow[0] + 2, slow[1] + 2])
    assert gain_reward(after, torch.tensor([-2.0]), maximum=1.0).flatten().tolist() == [1.0, -1.0]
    with pytest.raises(ConfigError, match="maximum is 0"):
        gain_reward(after, torch.tensor([-2.0]), maximum=0.0)


def test_rollouts_of_two_prompts_keep_their_own_positive_and_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    rollout = torch.randn(2, 3, 4, generator=generator)
    target, positive = torch.randn(5, 4, generator=generator), torch.tensor([4, 0])
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 2] = True
    log_probs = rollout_log_probs(rollout, target, positive, mask, temperature=1.0)
    for prompt in range(2):
        for number in range(3):
            scores = [float(rollout[prompt, number] @ row) for row in target]
            kept = [math.exp(score) for column, score in enumerate(scores) if not mask[prompt, column]]
            assert log_probs[prompt, number].item() == pytest.approx(scores[int(positive[prompt])] - math.log(sum(kept)), abs=1e-5)


def test_the_mix_is_the_weighted_sum_and_keeps_its_parts() -> None:
    mix = RewardMix({"format": 0.5, "retrieval": 2.0, "length": 0.0})
    assert mix.names == ("format", "retrieval")
    reward = mix({"format": torch.tensor([[1.0, 0.0]]), "retrieval": torch.tensor([[0.25, -1.0]])})
    assert reward.total.tolist() == [[1.0, -2.0]]
    assert reward.parts["retrieval"].tolist() == [[0.25, -1.0]]


def test_a_misspelt_or_missing_part_is_named() -> None:
    with pytest.raises(ConfigError, match='"retreival". Did you mean "retrieval"'):
        RewardMix({"retreival": 1.0})
    with pytest.raises(ConfigError, match="Choose from format"):
        RewardMix({"zzz": 1.0})
    with pytest.raises(ConfigError, match="No reward part has a weight"):
        RewardMix({"format": 0.0})
    with pytest.raises(ConfigError, match="gain have a weight but were not computed"):
        RewardMix({"gain": 1.0})({"format": torch.zeros(1, 2)})


def test_outcome_is_the_margin_of_rollouts_that_find_the_positive() -> None:
    weights = [math.exp(0.6 / 0.5), math.exp(0.0)]
    margin = 0.8 - 0.6 * weights[0] / sum(weights)
    assert outcome_reward(ROLLOUT, TARGET, POSITIVE).flatten().tolist() == pytest.approx([margin, 0.0])
    # The second rollout ties with column 2 and so is third: cosine 0, others 1 and 0.
    weights = [math.exp(1.0 / 0.5), math.exp(0.0)]
    assert outcome_reward(ROLLOUT, TARGET, POSITIVE, top_k=2)[0, 1].item() == 0.0
    assert outcome_reward(ROLLOUT, TARGET, POSITIVE, top_k=3)[0, 1].item() == pytest.approx(-weights[0] / sum(weights))


# Two positives with two vectors each, and a rollout along x: cosines 1 and 0.6 to the own, 0.8 and 0 to the other.
GROUPS = torch.tensor([[[1.0, 0.0], [0.6, 0.8]], [[0.8, 0.6], [0.0, 1.0]]])


def test_group_margin_is_the_share_of_the_nearest_times_the_margin() -> None:
    along_x = torch.tensor([[[1.0, 0.0]]])
    # Of the two nearest (1 and 0.8) one is its own: 1/2 x (0.8 - 0.4); the other group's view: 1/2 x (0.4 - 0.8).
    assert group_margin(along_x, GROUPS, torch.tensor([0])).item() == pytest.approx(0.5 * 0.4)
    assert group_margin(along_x, GROUPS, torch.tensor([1])).item() == pytest.approx(0.5 * -0.4)
    equal = torch.tensor([[False, True]])
    assert group_margin(along_x, GROUPS, torch.tensor([0]), equal).item() == pytest.approx(0.8)


def test_group_margin_is_that_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    rollout, groups = (torch.nn.functional.normalize(torch.randn(*shape, 4, generator=generator), dim=-1) for shape in ((3, 2), (5, 3)))
    own, mask = torch.tensor([0, 2, 4]), torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3] = True
    rewards = group_margin(rollout, groups, own, mask)
    for prompt, positive in enumerate(own.tolist()):
        for thought in range(2):
            cosines = [(float(rollout[prompt, thought] @ vector), group) for group in range(5) for vector in groups[group] if not mask[prompt, group]]
            nearest = sorted(cosines, reverse=True)[:3]
            share = sum(group == positive for _, group in nearest) / 3
            mine, others = ([cosine for cosine, group in cosines if (group == positive) == is_own] for is_own in (True, False))
            assert rewards[prompt, thought].item() == pytest.approx(share * (sum(mine) / len(mine) - sum(others) / len(others)), abs=1e-6)


def test_group_margin_counts_ties_against_the_own_group() -> None:
    groups = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    tilted = torch.tensor([[[0.6, 0.8]]])
    assert group_margin(tilted, torch.cat([groups, torch.tensor([[[0.0, -1.0]]])]), torch.tensor([0])).item() == 0.0
