"""A look at the thoughts themselves while they change."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.sinks import StepClock, log_text
from twn_lightning.batches import PairBatch
from twn_lightning.evaluation.encode import AUTOCAST, autocasting, evaluating
from twn_lightning.models.outputs import Decoding
from twn_lightning.stages.base import StageModule
from twn_lightning.stages.grpo import GrpoStage


class RolloutSamples(Callback):
    """Keeps a table of a few prompts' thoughts as "samples/<stage>-step-<n>.md" in the loggers that keep texts.

    In stage 4 the table shows the batch's sampled thoughts with their rewards, elsewhere the thoughts the model writes for the
    batch's first queries, beside the reference thoughts if the batch has them.

    Args:
        every_n_steps: Optimiser steps between two tables; 0 for none.
        num_prompts: Prompts a table.
        decoding: How thoughts are written outside stage 4; None for tables in stage 4 only.
    """

    def __init__(self, *, every_n_steps: int = 50, num_prompts: int = 4, decoding: Decoding | None = None) -> None:
        self.num_prompts = num_prompts
        self.decoding = decoding
        self._clock = StepClock(every_n_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._clock.start(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Writes a table at the end of an interval."""
        if not self._clock.is_due(trainer.global_step) or not isinstance(pl_module, StageModule) or not isinstance(batch, PairBatch):
            return
        if isinstance(pl_module, GrpoStage):
            rows = rewarded_thoughts(pl_module, self.num_prompts)
        elif self.decoding is not None:
            rows = written_thoughts(pl_module, batch, self.num_prompts, self.decoding)  # on every rank: shards of a model are needed by all
        else:
            return
        if trainer.is_global_zero:
            log_text(trainer, f"samples/{pl_module.stage}-step-{trainer.global_step:06d}.md", markdown_table(rows))


def rewarded_thoughts(stage: GrpoStage, num_prompts: int) -> list[dict[str, str]]:
    """A row for each thought of the last batch's first prompts: key, thought, tokens, total reward and its parts."""
    rollouts = stage.rollouts
    if rollouts is None:
        return []
    texts = stage.model.processor.decode(rollouts.thoughts)
    num_tokens = rollouts.thoughts.num_reasoning_tokens.tolist()
    group = rollouts.total.shape[1]
    rows = []
    for number in range(min(num_prompts, len(rollouts.keys)) * group):
        prompt, member = divmod(number, group)
        rewards = {"reward": rollouts.total, **rollouts.parts}
        rows.append(
            {"key": rollouts.keys[prompt], "thought": texts[number], "tokens": str(num_tokens[number])}
            | {name: f"{float(values[prompt, member]):.3f}" for name, values in rewards.items()}
        )
    return rows


def written_thoughts(stage: StageModule[PairBatch], batch: PairBatch, num_prompts: int, decoding: Decoding) -> list[dict[str, str]]:
    """A row for each of the batch's first queries: key, thought, tokens, and the reference thought if there is one."""
    chosen = list(range(min(num_prompts, len(batch))))
    rows_tensor = batch.positive_hash.new_tensor(chosen)
    with evaluating(stage.model), autocasting(stage.device, AUTOCAST[str(stage.trainer.precision)]):
        thoughts = stage.model.think(stage.model.prefill(batch.query.select(rows_tensor)), decoding).thoughts
    decode = stage.model.processor.decode
    rows = [
        {"key": batch.keys[number], "thought": text, "tokens": str(tokens)}
        for number, text, tokens in zip(chosen, decode(thoughts), thoughts.num_reasoning_tokens.tolist(), strict=True)
    ]
    if batch.query_thoughts is not None:
        for row, reference in zip(rows, decode(batch.query_thoughts.select(rows_tensor)), strict=True):
            row["reference"] = reference
    return rows


def markdown_table(rows: list[dict[str, str]]) -> str:
    """The rows as a Markdown table with the first row's columns; line breaks and bars in cells are made harmless."""
    if not rows:
        return "No thoughts.\n"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "".join("| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in line) + " |\n" for line in lines)
