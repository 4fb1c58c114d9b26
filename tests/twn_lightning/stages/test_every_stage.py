"""Every stage, labelling and evaluation, with either interface, in float32, with all weights in bfloat16, and in mixed precision."""

from collections.abc import Callable

import pytest
import torch

from twn_lightning.batches import GateBatch, Item, PairBatch
from twn_lightning.evaluation.evaluate import evaluate_task
from twn_lightning.evaluation.self_label import self_label
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel, Part
from twn_lightning.models.outputs import Decoding
from twn_lightning.rewards.mix import REWARD_NAMES, RewardMix
from twn_lightning.stages.base import OptimSpec, StageModule
from twn_lightning.stages.contrastive import ContrastiveStage
from twn_lightning.stages.cot_sft import CotSftStage
from twn_lightning.stages.gate import GateStage
from twn_lightning.stages.grpo import GrpoSpec, GrpoStage

pytestmark = pytest.mark.slow

OPTIM = OptimSpec(learning_rate=1e-2, total_steps=10)
SHORT = Decoding(max_new_tokens=4)


def trained_parts(stage: StageModule[PairBatch] | StageModule[GateBatch], batch: PairBatch | GateBatch) -> set[str]:
    """Takes one optimiser step, and names the parameters that it changed."""
    before = {name: parameter.detach().clone() for name, parameter in stage.model.named_parameters()}
    optimizer = stage.configure_optimizers()["optimizer"]
    output = stage.step(batch)  # type: ignore[arg-type]
    assert torch.isfinite(output.loss)
    output.loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return {name for name, parameter in stage.model.named_parameters() if name in before and not torch.equal(parameter, before[name])}


@pytest.mark.parametrize(
    ("interface", "dtype", "mixed"),
    [
        ("reencode", torch.float32, False),
        ("reencode", torch.bfloat16, False),
        ("kv", torch.bfloat16, False),
        ("kv", torch.float32, True),
        ("kv", torch.bfloat16, True),
    ],
)
def test_every_stage_trains_its_parts(
    make_model: Callable[..., DualLoRAModel],
    make_batch: Callable[..., PairBatch],
    make_items: Callable[[int], list[Item]],
    interface: str,
    dtype: torch.dtype,
    mixed: bool,
) -> None:
    model = make_model(interface=interface)
    if mixed:
        added = model.named_part_parameters("reasoning", "embedding", "queries", "gate")
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if name in added else dtype)
    else:
        model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        go_through(model, make_batch(model), make_items(3))


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding": None, "detach": False},
        {"embedding": None, "detach": False, "num_queries": 0},
        {"num_queries": 0, "interface": "reencode"},
    ],
    ids=["shared", "shared-last", "last-reencode"],
)
def test_every_stage_trains_a_shared_adapter_and_pools_the_last_token(
    make_model: Callable[..., DualLoRAModel],
    make_batch: Callable[..., PairBatch],
    make_items: Callable[[int], list[Item]],
    settings: dict[str, object],
) -> None:
    model = make_model(**settings)
    go_through(model, make_batch(model), make_items(3))


def go_through(model: DualLoRAModel, batch: PairBatch, items: list[Item]) -> None:
    def parts(*names: Part) -> set[str]:
        return {name for name, parameter in model.named_part_parameters(*names).items() if parameter.numel()}

    assert trained_parts(ContrastiveStage(model, OPTIM), batch) == set(parts("embedding", "queries"))
    assert trained_parts(CotSftStage(model, OPTIM), batch) == set(parts("reasoning", "embedding", "queries"))

    examples = self_label(model, [batch], decoding=SHORT)
    assert len(examples) == 2 * len(batch)
    gate_stage = GateStage(model, OPTIM, dead_zone=0.0)
    assert trained_parts(gate_stage, GateBatch(state=examples.state, gain=examples.gain)) == set(parts("gate"))

    decoding, rewards = Decoding(max_new_tokens=4, temperature=1.0), RewardMix(dict.fromkeys(REWARD_NAMES, 1.0))
    grpo_stage = GrpoStage(model, OPTIM, spec=GrpoSpec(group_size=2, length_target=2), decoding=decoding, rewards=rewards)
    assert trained_parts(grpo_stage, batch) == set(parts("reasoning"))

    queries = [Query(item=item, labels={str(number): 1.0}, candidates=None, key=str(number)) for number, item in enumerate(items)]
    candidates = {str(number): Item(text=f"answer {number}") for number in range(3)}
    result = evaluate_task(model, RetrievalTask("toy", "image", "IMG_RET", "hit@1", "global", queries, candidates), decoding=SHORT)
    assert result.modes["always"].reasoning_tokens >= 6
