from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from twn_lightning.batches import PairBatch
from twn_lightning.errors import ConfigError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.rewards.mix import REWARD_NAMES, RewardMix
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.grpo import GrpoSpec, GrpoStage
from twn_lightning.stages.rollouts import Rollouts

OPTIM = OptimSpec(learning_rate=1e-2, total_steps=30)
DECODING = Decoding(max_new_tokens=6, temperature=1.0)


def stage_of(model: DualLoRAModel, *, rewards: dict[str, float] | None = None, **spec: Any) -> GrpoStage:
    defaults: dict[str, Any] = {"group_size": 3, "score_temperature": 0.1, "length_target": 2}
    mix = RewardMix(rewards or dict.fromkeys(REWARD_NAMES, 1.0))
    return GrpoStage(model, OPTIM, spec=GrpoSpec(**(defaults | spec)), decoding=DECODING, rewards=mix)


def test_first_step_has_ratio_one_and_no_divergence_from_the_reference(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    batch = make_batch(tiny_model)  # text, image, video and two images
    stage = stage_of(tiny_model)
    output = stage.step(batch)
    rollouts = stage.rollouts
    assert rollouts is not None
    assert rollouts.reference_log_probs is not None
    torch.testing.assert_close(tiny_model.thought_log_probs(batch.query, rollouts.thoughts), rollouts.log_probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rollouts.reference_log_probs, rollouts.log_probs, rtol=1e-4, atol=1e-5)
    assert output.metrics["clip_fraction"] == 0.0
    assert output.metrics["kl"].item() == pytest.approx(0.0, abs=1e-5)
    assert {f"reward_{name}" for name in REWARD_NAMES} <= output.metrics.keys()
    assert {"reward", "think_tokens", "finished_rate", "group_reward_std"} <= output.metrics.keys()


def test_reward_is_the_weighted_sum_of_parts_and_advantages_compare_within_a_group(
    tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]
) -> None:
    weights = {"retrieval": 2.0, "rank": 0.5, "length": 0.25}
    rollouts = stage_of(tiny_model, rewards=weights, scale_by_std=False).roll_out(make_batch(tiny_model))
    assert rollouts.parts.keys() == weights.keys()  # a part without weight is not computed
    total = sum(weight * rollouts.parts[name] for name, weight in weights.items())
    torch.testing.assert_close(rollouts.total, total)
    expected = rollouts.total - rollouts.total.mean(dim=1, keepdim=True)
    torch.testing.assert_close(rollouts.advantages, expected.flatten())


def test_thinking_positives_leave_the_queries_thoughts_as_they_are(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    batch = make_batch(tiny_model)
    alone = stage_of(tiny_model, rewards={"rank": 1.0}).roll_out(batch)
    read = tiny_model.num_prompt_tokens
    both = stage_of(tiny_model, rewards={"rank": 1.0, "group_margin": 1.0}).roll_out(batch)
    assert torch.equal(alone.thoughts.token_ids, both.thoughts.token_ids)
    assert torch.equal(alone.parts["rank"], both.parts["rank"])
    assert both.parts["group_margin"].shape == both.parts["rank"].shape
    # The positives are read once more, for their thoughts.
    assert tiny_model.num_prompt_tokens - read == read + batch.positive.attention_mask.numel()


def test_gradient_reaches_the_reasoning_adapter_alone(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    stage = stage_of(tiny_model)
    stage.step(make_batch(tiny_model)).loss.backward()  # type: ignore[no-untyped-call]
    touched = {name for name, parameter in tiny_model.named_parameters() if parameter.grad is not None and bool(parameter.grad.any())}
    assert touched == set(tiny_model.named_part_parameters("reasoning"))


def test_inner_epochs_train_on_the_same_thoughts_and_then_sample_anew(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    stage = stage_of(tiny_model, inner_epochs=2)
    batch = make_batch(tiny_model)
    optimizer = stage.configure_optimizers()["optimizer"]
    seen: list[Rollouts] = []
    for micro_step in range(3):
        stage.micro_step = micro_step
        optimizer.zero_grad()
        output = stage.step(batch)
        output.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert stage.rollouts is not None
        seen.append(stage.rollouts)
        if micro_step == 1:
            assert output.metrics["kl"] > 1e-4  # the policy has moved away from where it sampled
    assert seen[0] is seen[1]
    assert seen[2] is not seen[1]


def test_inner_epochs_on_other_prompts_are_refused(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    stage = stage_of(tiny_model, inner_epochs=2)
    batch = make_batch(tiny_model)
    stage.step(batch)
    stage.micro_step = 1
    with pytest.raises(ConfigError, match="does not repeat the one before"):
        stage.step(replace(batch, keys=("a", "b", "c", "d")))


def test_validation_samples_its_own_thoughts_and_leaves_those_of_training(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    stage = stage_of(tiny_model, inner_epochs=2)
    batch = make_batch(tiny_model)
    stage.step(batch)
    kept = stage.rollouts
    stage.eval()
    with torch.no_grad():
        first, second = stage.step(batch), stage.step(batch)
    assert stage.rollouts is kept
    assert first.metrics["reward"] == second.metrics["reward"]


def test_rollouts_survive_a_checkpoint(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    rollouts = stage_of(tiny_model, kl_weight=0.0).roll_out(make_batch(tiny_model))
    again = Rollouts.unpacked(rollouts.packed(), torch.device("cpu"))
    assert (again.keys, again.reference_log_probs) == (rollouts.keys, None)
    assert torch.equal(again.thoughts.token_ids, rollouts.thoughts.token_ids)
    assert all(torch.equal(again.parts[name], part) for name, part in rollouts.parts.items())


def test_greedy_sampling_and_groups_of_one_are_refused(tiny_model: DualLoRAModel) -> None:
    with pytest.raises(ConfigError, match="at temperature 0 all are equal"):
        GrpoStage(tiny_model, OPTIM, spec=GrpoSpec(), decoding=Decoding(), rewards=RewardMix({"rank": 1.0}))
    with pytest.raises(ConfigError, match="group_size must be at least 2"):
        GrpoSpec(group_size=1)


@pytest.mark.slow
def test_what_is_rewarded_becomes_more_frequent(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    stage = stage_of(tiny_model, rewards={"length": 1.0}, group_size=8, kl_weight=0.0, length_target=1)
    batch = make_batch(tiny_model, 2)
    optimizer = stage.configure_optimizers()["optimizer"]
    lengths = []
    for micro_step in range(25):
        stage.micro_step = micro_step
        optimizer.zero_grad()
        output = stage.step(batch)
        output.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        lengths.append(output.metrics["think_tokens"].item())
    assert sum(lengths[-5:]) < 0.7 * sum(lengths[:5])


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_every_loss_type_and_gradient_checkpointing_run(
    loss_type: str, make_model: Callable[..., DualLoRAModel], make_batch: Callable[..., PairBatch]
) -> None:
    losses = []
    for recompute in (False, True):
        model = make_model()
        if recompute:
            model.enable_gradient_checkpointing()
        stage = stage_of(model, loss_type=loss_type)
        output = stage.step(make_batch(model, 3))
        output.loss.backward()  # type: ignore[no-untyped-call]
        losses.append(output.loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
